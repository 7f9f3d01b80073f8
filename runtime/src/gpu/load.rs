//! Makes everything that a run needs: buffers, pipelines, bind groups.

use std::collections::{BTreeMap, BTreeSet};

use qail_artifact::schema::{BindingSource, Dispatch, Place};

use super::{
    adapter,
    exec::{self, Arenas, GpuExec, Prepared, Staging},
    fault::Faults,
};
use crate::{
    RuntimeError,
    device::DeviceContext,
    plan::{Item, Plan},
};

/// Alignment of buffers and copies in bytes.
const COPY_ALIGN: u64 = 4;

/// Opens the adapter and prepares a plan on it.
pub(super) fn load(adapter: &wgpu::Adapter, cx: &DeviceContext<'_>) -> Result<GpuExec, RuntimeError> {
    let info = adapter.get_info();
    let name = format!("{} {}", info.backend, info.name);
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("qail"),
        // Kernels are written for these limits and need no feature.
        required_features: wgpu::Features::empty(),
        required_limits: limits(&adapter.limits(), largest_section(cx)),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
        .map_err(|error| RuntimeError::NoDevice { device: name.clone(), reason: error.to_string() })?;
    let faults = Faults::watch(&device);
    let loader = Loader { cx, device: &device, name: &name, faults: &faults };

    let arenas = loader.arenas()?;
    let sections = loader.sections()?;
    let steps = loader.steps(&arenas, &sections)?;
    let staging = loader.staging()?;
    let timeout = exec::timeout(adapter::is_software(&info));
    let planes = Vec::new();
    let mut exec = GpuExec { name: name.clone(), device, queue, faults, arenas, steps, staging, planes, timeout };
    // Drivers compile at the first dispatch: a run on zeros, before it matters.
    for segment in cx.plan.segments.iter().filter(|segment| segment.place == Place::Device) {
        exec.warm_up(cx.plan, segment).map_err(|reason| RuntimeError::NoDevice { device: name.clone(), reason })?;
    }
    Ok(exec)
}

/// Bytes of the largest section that a kernel may read.
fn largest_section(cx: &DeviceContext<'_>) -> u64 {
    cx.artifact.manifest().sections.iter().map(|section| section.len).max().unwrap_or(0)
}

/// The default limits, and larger buffers if a section asks for them, as far as
/// the adapter has them.
fn limits(adapter: &wgpu::Limits, largest_section: u64) -> wgpu::Limits {
    let default = wgpu::Limits::default();
    let raised = |default: u64, adapter: u64| largest_section.next_multiple_of(COPY_ALIGN).min(adapter).max(default);
    wgpu::Limits {
        max_buffer_size: raised(default.max_buffer_size, adapter.max_buffer_size),
        max_storage_buffer_binding_size: raised(
            default.max_storage_buffer_binding_size,
            adapter.max_storage_buffer_binding_size,
        ),
        ..default
    }
}

/// Says why a kernel cannot read a section of `size` bytes, if it cannot.
fn fits(limits: &wgpu::Limits, size: u64) -> Result<(), String> {
    let most = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    if size > most { Err(format!("has {size} bytes, and a kernel here reads at most {most} at once")) } else { Ok(()) }
}

struct Loader<'a> {
    cx: &'a DeviceContext<'a>,
    device: &'a wgpu::Device,
    name: &'a str,
    faults: &'a Faults,
}

impl Loader<'_> {
    /// Fails if the device complained.
    fn check(&self) -> Result<(), RuntimeError> {
        match self.faults.take() {
            None => Ok(()),
            Some(reason) => Err(RuntimeError::NoDevice { device: self.name.to_owned(), reason }),
        }
    }

    /// A buffer for each device arena.
    fn arenas(&self) -> Result<Arenas, RuntimeError> {
        let mut arenas = Vec::with_capacity(self.cx.plan.arenas.len());
        for (i, arena) in self.cx.plan.arenas.iter().enumerate() {
            let buffer = (arena.place == Place::Device).then(|| {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(&format!("arena {i}")),
                    size: (arena.size as u64).max(COPY_ALIGN).next_multiple_of(COPY_ALIGN),
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                })
            });
            arenas.push(buffer);
        }
        self.check()?;
        Ok(Arenas(arenas))
    }

    /// Dispatches of the device steps, by index of the step.
    fn dispatches(&self) -> impl Iterator<Item = (usize, &Dispatch)> {
        let plan = self.cx.plan;
        let used: BTreeSet<usize> = plan
            .segments
            .iter()
            .filter(|segment| segment.place == Place::Device)
            .flat_map(|segment| plan.order.get(segment.items.clone()).unwrap_or_default())
            .filter_map(|item| match item {
                Item::Step(index) => Some(*index),
                Item::Turn { .. } => None,
            })
            .collect();
        used.into_iter().filter_map(move |index| Some((index, plan.steps.get(index)?.dispatch.as_ref()?)))
    }

    /// A buffer for each section that a kernel reads.
    fn sections(&self) -> Result<BTreeMap<u32, wgpu::Buffer>, RuntimeError> {
        let mut sections = BTreeMap::new();
        for (_, dispatch) in self.dispatches() {
            for binding in &dispatch.bindings {
                let Some(BindingSource::Section(index)) = binding.source else { continue };
                if sections.contains_key(&index) {
                    continue;
                }
                let missing = RuntimeError::Internal("a dispatch binds a section that does not exist");
                let bytes = self.cx.artifact.section(index).ok_or(missing)?;
                sections.insert(index, self.upload(index, bytes)?);
            }
        }
        Ok(sections)
    }

    fn upload(&self, index: u32, bytes: &[u8]) -> Result<wgpu::Buffer, RuntimeError> {
        let size = (bytes.len() as u64).max(COPY_ALIGN).next_multiple_of(COPY_ALIGN);
        if let Err(reason) = fits(&self.device.limits(), size) {
            let section = self.cx.artifact.manifest().sections.get(index as usize);
            let name = section.map_or("", |section| section.name.as_str());
            let reason = format!("section `{name}` {reason}; use device `cpu`");
            return Err(RuntimeError::NoDevice { device: self.name.to_owned(), reason });
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("section {index}")),
            size,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        self.check()?;
        let full = |error: &dyn std::fmt::Display| RuntimeError::NoDevice {
            device: self.name.to_owned(),
            reason: format!("a buffer of {size} bytes cannot be filled: {error}"),
        };
        {
            let mut view = buffer.get_mapped_range_mut(..).map_err(|error| full(&error))?;
            if view.len() < bytes.len() {
                return Err(full(&"it is shorter"));
            }
            view.slice(..bytes.len()).copy_from_slice(bytes);
        }
        buffer.unmap();
        self.check()?;
        Ok(buffer)
    }

    /// Pipelines and bind groups of all device steps, by index of the step.
    fn steps(
        &self,
        arenas: &Arenas,
        sections: &BTreeMap<u32, wgpu::Buffer>,
    ) -> Result<BTreeMap<usize, Prepared>, RuntimeError> {
        // Steps with one kernel share its pipeline; a file may bind it differently.
        let mut pipelines: BTreeMap<(u32, Vec<bool>), (wgpu::ComputePipeline, wgpu::BindGroupLayout)> = BTreeMap::new();
        let mut steps = BTreeMap::new();
        for (index, dispatch) in self.dispatches() {
            let step = self.cx.plan.steps.get(index).map_or("", |step| step.name.as_str());
            let refuse =
                |reason: String| RuntimeError::Step { step: step.to_owned(), device: self.name.to_owned(), reason };
            let writes: Vec<bool> = dispatch.bindings.iter().map(|binding| binding.write).collect();
            let key = (dispatch.kernel, writes);
            let (pipeline, layout) = match pipelines.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let made = self.pipeline(dispatch.kernel, &key.1).map_err(refuse)?;
                    pipelines.insert(key, made.clone());
                    made
                }
            };
            check_arenas(self.cx.plan, dispatch).map_err(refuse)?;
            let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let group = bind(self.device, self.cx.plan, &layout, dispatch, arenas, sections).map_err(refuse)?;
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(refuse(error.to_string()));
            }
            let mut workgroups = [1u32; 3];
            for (to, from) in workgroups.iter_mut().zip(&dispatch.workgroups) {
                *to = *from;
            }
            if workgroups.iter().any(|&n| n > 65535) || dispatch.workgroups.len() > 3 {
                return Err(refuse(format!("{:?} workgroups, at most 65535 along three axes", dispatch.workgroups)));
            }
            steps.insert(index, Prepared { pipeline, group, workgroups });
        }
        Ok(steps)
    }

    /// The pipeline of a kernel whose bindings are written as `writes` says. The
    /// layout is explicit: a derived one drops bindings that a variant ignores.
    fn pipeline(&self, kernel: u32, writes: &[bool]) -> Result<(wgpu::ComputePipeline, wgpu::BindGroupLayout), String> {
        let manifest = self.cx.artifact.manifest();
        let kernel = manifest.kernels.get(kernel as usize).ok_or("its kernel does not exist")?;
        if !kernel.features.is_empty() {
            return Err(format!("kernel `{}` needs {}", kernel.name, kernel.features.join(", ")));
        }
        let text = self.cx.artifact.wgsl(kernel.section).ok_or("its kernel has no text")?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0u32..)
            .zip(writes)
            .map(|(binding, &write)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !write },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let label = Some(kernel.name.as_str());
        let layout =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(&kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let error = pollster::block_on(scope.pop()).map(|error| error.to_string()).or_else(|| self.faults.take());
        match error {
            None => Ok((pipeline, layout)),
            Some(error) => Err(format!("kernel `{}`: {error}", kernel.name)),
        }
    }

    /// A buffer that the host can read, large enough for the downloads of any
    /// segment and for any one tensor of a device arena.
    fn staging(&self) -> Result<Staging, RuntimeError> {
        let plan = self.cx.plan;
        let sum = |tensors: &[usize]| -> u64 {
            tensors.iter().filter_map(|&i| plan.tensors.get(i)).fold(0, |n, t| n.saturating_add(t.size as u64))
        };
        let mut size = plan.segments.iter().map(|segment| sum(&segment.downloads)).max().unwrap_or(0);
        if self.cx.options.keep_intermediates {
            size = size.max(plan.tensors.iter().map(|tensor| tensor.size as u64).max().unwrap_or(0));
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("results"),
            size: size.max(COPY_ALIGN).next_multiple_of(COPY_ALIGN),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.check()?;
        Ok(Staging(buffer))
    }
}

/// A dispatch may not read and write one buffer: arenas are coloured for that.
fn check_arenas(plan: &Plan, dispatch: &Dispatch) -> Result<(), String> {
    let mut written = BTreeSet::new();
    let mut read = BTreeSet::new();
    for binding in &dispatch.bindings {
        match binding.source {
            Some(BindingSource::Tensor(tensor)) => {
                let tensor = plan.tensors.get(tensor as usize).ok_or("it binds a tensor that does not exist")?;
                if binding.write {
                    written.insert(tensor.arena)
                } else {
                    read.insert(tensor.arena)
                };
            }
            Some(BindingSource::Section(_)) if binding.write => return Err("it writes a section".to_owned()),
            Some(BindingSource::Section(_)) => {}
            None => return Err("a binding has no source".to_owned()),
        }
    }
    if written.intersection(&read).next().is_some() {
        return Err("it reads and writes one arena".to_owned());
    }
    Ok(())
}

fn bind(
    device: &wgpu::Device,
    plan: &Plan,
    layout: &wgpu::BindGroupLayout,
    dispatch: &Dispatch,
    arenas: &Arenas,
    sections: &BTreeMap<u32, wgpu::Buffer>,
) -> Result<wgpu::BindGroup, String> {
    let mut entries = Vec::with_capacity(dispatch.bindings.len());
    for (number, binding) in (0u32..).zip(&dispatch.bindings) {
        let resource = match binding.source {
            Some(BindingSource::Tensor(index)) => {
                let tensor = plan.tensors.get(index as usize).ok_or("it binds a tensor that does not exist")?;
                wgpu::BufferBinding {
                    buffer: arenas.get(tensor.arena).ok_or("it binds a tensor of the host")?,
                    offset: tensor.offset as u64,
                    size: wgpu::BufferSize::new(tensor.size as u64),
                }
            }
            Some(BindingSource::Section(index)) => {
                let buffer = sections.get(&index).ok_or("it binds a section that does not exist")?;
                wgpu::BufferBinding { buffer, offset: 0, size: None }
            }
            None => return Err("a binding has no source".to_owned()),
        };
        entries.push(wgpu::BindGroupEntry { binding: number, resource: wgpu::BindingResource::Buffer(resource) });
    }
    Ok(device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_sections_ask_for_larger_buffers_as_far_as_there_are() {
        let default = wgpu::Limits::default();
        let adapter = wgpu::Limits {
            max_buffer_size: 1 << 30,
            max_storage_buffer_binding_size: 512 << 20,
            ..wgpu::Limits::default()
        };
        assert_eq!(limits(&adapter, 1000), default);
        let wide = limits(&adapter, (300 << 20) + 1);
        assert_eq!((wide.max_buffer_size, wide.max_storage_buffer_binding_size), ((300 << 20) + 4, (300 << 20) + 4));
        assert!(fits(&wide, 300 << 20).is_ok());
        let all = limits(&adapter, 600 << 20);
        assert_eq!((all.max_buffer_size, all.max_storage_buffer_binding_size), (600 << 20, 512 << 20));
        let reason = fits(&all, 600 << 20).unwrap_err();
        assert_eq!(reason, "has 629145600 bytes, and a kernel here reads at most 536870912 at once");
    }
}
