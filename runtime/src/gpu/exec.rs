//! Runs segments: one encoder, one pass, one submission, one wait.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Duration,
};

use qail_artifact::Storage;

use super::{fault::Faults, planes};
use crate::{
    RunError,
    device::DeviceExec,
    memory::HostMemory,
    plan::{Item, Plan, PlanTensor, Segment},
};

/// Longest wait for a segment of a run. A device that takes longer is taken for
/// lost: the control loop must get an answer.
const RUN_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for the first dispatches, which compile, and for software drivers,
/// which are there to compare numbers and may take a minute for an image.
const SLOW_TIMEOUT: Duration = Duration::from_secs(120);

/// Buffers of the device arenas, by index of the arena.
pub(super) struct Arenas(pub(super) Vec<Option<wgpu::Buffer>>);

impl Arenas {
    /// The buffer of an arena, if it is one of the device.
    pub(super) fn get(&self, arena: usize) -> Option<&wgpu::Buffer> {
        self.0.get(arena)?.as_ref()
    }
}

/// Where results wait for the host.
pub(super) struct Staging(pub(super) wgpu::Buffer);

/// A step that is ready to run.
pub(super) struct Prepared {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) group: wgpu::BindGroup,
    pub(super) workgroups: [u32; 3],
}

/// The device steps of one session.
pub(super) struct GpuExec {
    pub(super) name: String,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) faults: Faults,
    pub(super) arenas: Arenas,
    /// By index of the step in the plan.
    pub(super) steps: BTreeMap<usize, Prepared>,
    pub(super) staging: Staging,
    /// Memory for tensors on their way to planes.
    pub(super) planes: Vec<u8>,
    /// Longest wait for a segment of a run.
    pub(super) timeout: Duration,
}

/// Longest wait for a segment of a run on an adapter.
pub(super) fn timeout(is_software: bool) -> Duration {
    if is_software { SLOW_TIMEOUT } else { RUN_TIMEOUT }
}

/// A tensor in the staging buffer.
struct Parcel {
    tensor: usize,
    start: u64,
    end: u64,
}

impl GpuExec {
    /// Runs the steps of a segment on whatever the arenas hold.
    pub(super) fn warm_up(&mut self, plan: &Plan, segment: &Segment) -> Result<(), String> {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.encode(plan, segment, &mut encoder)?;
        let index = self.queue.submit([encoder.finish()]);
        self.wait(index, SLOW_TIMEOUT)
    }

    /// Records the steps of a segment.
    fn encode(&self, plan: &Plan, segment: &Segment, encoder: &mut wgpu::CommandEncoder) -> Result<(), String> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for item in plan.order.get(segment.items.clone()).unwrap_or_default() {
            let step = match item {
                Item::Step(index) => self.steps.get(index),
                Item::Turn { .. } => None,
            };
            let step = step.ok_or("a step has no kernel: the file was compiled without shaders")?;
            let [x, y, z] = step.workgroups;
            pass.set_pipeline(&step.pipeline);
            pass.set_bind_group(0, &step.group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
        Ok(())
    }

    /// Waits for a submission.
    fn wait(&self, index: wgpu::SubmissionIndex, timeout: Duration) -> Result<(), String> {
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(timeout) };
        // wgpu panics when the device is lost in the middle of a wait.
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(wait))) {
            Ok(Ok(_)) => {}
            Ok(Err(wgpu::PollError::Timeout)) => self.faults.set_lost(format!("no answer within {timeout:?}")),
            // The submission was refused: what was reported says why.
            Ok(Err(error)) => return Err(self.faults.take().unwrap_or_else(|| error.to_string())),
            Err(_) => self.faults.set_lost("the wait was interrupted".to_owned()),
        }
        self.faults.take().map_or(Ok(()), Err)
    }

    /// Sends a tensor of the mirror to its arena.
    fn upload(&mut self, tensor: &PlanTensor, mirror: &[u8]) -> Result<(), String> {
        let buffer = self.arenas.get(tensor.arena).ok_or("a tensor of the host is uploaded")?;
        let bytes = match tensor.storage {
            Storage::I16 => {
                planes::split(mirror, tensor.stride, &mut self.planes);
                &self.planes
            }
            Storage::Unspecified | Storage::F32 | Storage::I32 | Storage::I8 | Storage::U8 | Storage::I64 => mirror,
        };
        self.queue.write_buffer(buffer, tensor.offset as u64, bytes);
        Ok(())
    }

    /// Records copies of tensors into the staging buffer.
    fn collect(
        &self,
        plan: &Plan,
        tensors: &[usize],
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<Vec<Parcel>, String> {
        let mut parcels = Vec::with_capacity(tensors.len());
        let mut start = 0u64;
        for &index in tensors {
            let tensor = plan.tensors.get(index).ok_or("a tensor that does not exist is downloaded")?;
            let buffer = self.arenas.get(tensor.arena).ok_or("a tensor of the host is downloaded")?;
            let size = tensor.size as u64;
            encoder.copy_buffer_to_buffer(buffer, tensor.offset as u64, &self.staging.0, start, size);
            let end = start.saturating_add(size);
            parcels.push(Parcel { tensor: index, start, end });
            start = end;
        }
        Ok(parcels)
    }

    /// Submits, waits, and brings what was collected into the mirror.
    fn finish(
        &mut self,
        plan: &Plan,
        encoder: wgpu::CommandEncoder,
        parcels: &[Parcel],
        memory: &mut HostMemory,
    ) -> Result<(), String> {
        let index = self.queue.submit([encoder.finish()]);
        let Some(end) = parcels.last().map(|parcel| parcel.end) else { return self.wait(index, self.timeout) };
        let (sender, receiver) = mpsc::channel();
        self.staging.0.map_async(wgpu::MapMode::Read, ..end, move |result| {
            // The receiver lives until the end of this function; later nobody asks.
            let _ = sender.send(result);
        });
        let waited = self.wait(index, self.timeout);
        let mapped = receiver.try_recv();
        let copied = match (waited, mapped) {
            (Err(reason), _) => Err(reason),
            (Ok(()), Ok(Ok(()))) => self.read(plan, parcels, end, memory),
            (Ok(()), Ok(Err(error))) => Err(error.to_string()),
            (Ok(()), Err(_)) => Err("the results did not arrive".to_owned()),
        };
        self.staging.0.unmap();
        copied.and_then(|()| self.faults.take().map_or(Ok(()), Err))
    }

    fn read(&self, plan: &Plan, parcels: &[Parcel], end: u64, memory: &mut HostMemory) -> Result<(), String> {
        let view = self.staging.0.get_mapped_range(..end).map_err(|error| error.to_string())?;
        for parcel in parcels {
            let range = usize::try_from(parcel.start).unwrap_or(usize::MAX)..usize::try_from(parcel.end).unwrap_or(0);
            let (Some(bytes), Some(tensor)) = (view.get(range), plan.tensors.get(parcel.tensor)) else {
                return Err("a result lies outside its buffer".to_owned());
            };
            let mirror = memory.bytes_mut(parcel.tensor);
            if mirror.len() != bytes.len() {
                return Err("a result is not as long as its tensor".to_owned());
            }
            match tensor.storage {
                Storage::I16 => planes::join(bytes, tensor.stride, mirror),
                Storage::Unspecified | Storage::F32 | Storage::I32 | Storage::I8 | Storage::U8 | Storage::I64 => {
                    mirror.copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), String> {
        // A lost device stays lost; an old complaint is no reason to refuse.
        if let Some(reason) = self.faults.take().filter(|reason| reason.starts_with("lost")) {
            return Err(reason);
        }
        for &index in &segment.uploads {
            let tensor = plan.tensors.get(index).ok_or("a tensor that does not exist is uploaded")?;
            self.upload(tensor, memory.bytes(index))?;
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.encode(plan, segment, &mut encoder)?;
        let parcels = self.collect(plan, &segment.downloads, &mut encoder)?;
        self.finish(plan, encoder, &parcels, memory)
    }
}

impl DeviceExec for GpuExec {
    fn name(&self) -> &str {
        &self.name
    }

    fn run_segment(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), RunError> {
        self.run(plan, segment, memory).map_err(|reason| RunError::Device { device: self.name.clone(), reason })
    }

    fn store(&mut self, plan: &Plan, tensor: usize, memory: &HostMemory) -> Result<(), RunError> {
        let Some(entry) = plan.tensors.get(tensor).filter(|entry| self.arenas.get(entry.arena).is_some()) else {
            // What lives on the host is there already.
            return Ok(());
        };
        self.upload(entry, memory.bytes(tensor))
            .map_err(|reason| RunError::Device { device: self.name.clone(), reason })
    }

    fn fetch(&mut self, plan: &Plan, tensor: usize, memory: &mut HostMemory) -> Result<(), RunError> {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.collect(plan, &[tensor], &mut encoder)
            .and_then(|parcels| self.finish(plan, encoder, &parcels, memory))
            .map_err(|reason| RunError::Device { device: self.name.clone(), reason })
    }
}
