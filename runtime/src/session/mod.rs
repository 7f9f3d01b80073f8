//! A loaded model: runs one entry point of an artifact on one device.

mod noise;
mod state;

use std::path::Path;

use qail_artifact::{Artifact, Place, Storage, schema};

use self::noise::Noise;
use crate::{
    ArtifactBytes, ChunkPolicy, DeviceSpec, PortInfo, RunError, RuntimeError, TensorView, TensorViewMut,
    device::{self, DeviceContext, DeviceExec},
    host::Host,
    memory::HostMemory,
    plan::Plan,
};

/// Choices of a load. The default is what a robot wants.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Name of the entry point; none takes the first.
    pub entry: Option<String>,
    /// Gives every tensor memory of its own, so that [`Session::read_codes`] and
    /// [`Session::read_f32`] see intermediate values. Costs memory.
    pub keep_intermediates: bool,
    /// The caller gives what is noise, as inputs behind the others. Else the
    /// session draws it from a seeded generator.
    pub given_noise: bool,
    /// Runs shaders from the file without bounds checks. Only for files of one's own.
    pub trust_artifact: bool,
}

/// A model that is ready to run.
pub struct Session {
    plan: Plan,
    memory: HostMemory,
    host: Host,
    device: Box<dyn DeviceExec>,
    inputs: Vec<PortInfo>,
    outputs: Vec<PortInfo>,
    states: Vec<PortInfo>,
    noise: Noise,
    keep_intermediates: bool,
    /// The output that is the action, as far as that is known.
    action: Option<usize>,
    chunk: Option<ChunkPolicy>,
}

impl Session {
    /// Loads an artifact.
    ///
    /// # Errors
    ///
    /// If the artifact is damaged or of another version, or the device cannot run it.
    pub fn load(bytes: impl Into<ArtifactBytes>, device: DeviceSpec) -> Result<Self, RuntimeError> {
        Self::load_with(bytes, device, &LoadOptions::default())
    }

    /// Maps a file and loads it, see [`ArtifactBytes::open`].
    ///
    /// # Errors
    ///
    /// As [`Session::load`], or if the file cannot be read.
    pub fn open(path: impl AsRef<Path>, device: DeviceSpec) -> Result<Self, RuntimeError> {
        Self::load(ArtifactBytes::open(path)?, device)
    }

    /// [`Session::load`] with choices.
    ///
    /// # Errors
    ///
    /// As [`Session::load`], or if the entry point does not exist.
    pub fn load_with(
        bytes: impl Into<ArtifactBytes>,
        device: DeviceSpec,
        options: &LoadOptions,
    ) -> Result<Self, RuntimeError> {
        let bytes = bytes.into();
        let artifact = Artifact::parse(bytes.as_slice())?;
        let plan = Plan::new(&artifact, options.entry.as_deref(), options.keep_intermediates)?;
        let memory = HostMemory::new(&plan)?;
        let cx = DeviceContext { artifact: &artifact, bytes: &bytes, plan: &plan, options };
        let host = Host::new(&cx)?;
        let device = device::open(device, &cx)?;
        let entry =
            artifact.manifest().entries.get(plan.entry).ok_or(RuntimeError::Internal("the entry point is gone"))?;
        let mut inputs = ports(&plan, &entry.inputs)?;
        let mut noise = Noise::new(entry.seed, ports(&plan, &entry.noise)?);
        if options.given_noise {
            inputs.append(&mut noise.ports);
        }
        let outputs = ports(&plan, &entry.outputs)?;
        let states = entry.states.iter().map(|state| port(&plan, &state.name, state.tensor, &[], &[]));
        let states = states.collect::<Result<_, _>>()?;
        let keep_intermediates = options.keep_intermediates;
        // Control is said about the first entry point.
        let control = artifact.manifest().control.as_ref().filter(|_| plan.entry == 0);
        let named = |name: &str| outputs.iter().position(|port| port.name == name);
        let action = match control {
            Some(control) => named(&control.action),
            None if outputs.len() == 1 => Some(0),
            None => named("action"),
        };
        let chunk = control.and_then(|control| control.chunk).map(|chunk| ChunkPolicy {
            length: chunk.length as usize,
            execute: chunk.execute as usize,
            ensemble: chunk.ensemble,
        });
        let mut session =
            Self { plan, memory, host, device, inputs, outputs, states, noise, keep_intermediates, action, chunk };
        // A device may have run its steps once to warm up.
        session.reset().map_err(|_| RuntimeError::Internal("a state has no memory"))?;
        Ok(session)
    }

    /// What [`Session::run`] takes, in this order.
    pub fn inputs(&self) -> &[PortInfo] {
        &self.inputs
    }

    /// What [`Session::run`] gives, in this order.
    pub fn outputs(&self) -> &[PortInfo] {
        &self.outputs
    }

    /// The output that is the action: the one that the artifact names, or the
    /// only one, or the one called `action`.
    pub fn action(&self) -> Option<usize> {
        self.action
    }

    /// How the action is made of chunks; `None` if it is computed in every step.
    /// [`crate::Controller`] does what it says, [`Session::run`] gives whole chunks.
    pub fn chunk(&self) -> Option<ChunkPolicy> {
        self.chunk
    }

    /// What the steps run on: `cpu:avx2`, or the backend and name of a GPU.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// Computes the outputs. On a CPU nothing is allocated unless an error is returned.
    ///
    /// # Errors
    ///
    /// If inputs or outputs have the wrong number, type or length, if an input
    /// is infinite or not a number, or if the device fails. Outputs then keep
    /// their old contents, and the session stays usable.
    pub fn run(&mut self, inputs: &[TensorView<'_>], outputs: &mut [TensorViewMut<'_>]) -> Result<(), RunError> {
        check_count("outputs", self.outputs.len(), outputs.len())?;
        for (port, view) in self.outputs.iter().zip(outputs.iter()) {
            check_port(port, view.storage(), view.len())?;
        }
        self.compute(inputs)?;
        for (port, view) in self.outputs.iter().zip(outputs.iter_mut()) {
            copy_out(&self.memory, port.tensor, view.bytes_mut())?;
        }
        Ok(())
    }

    /// [`Session::run`] without handing out anything.
    pub(crate) fn compute(&mut self, inputs: &[TensorView<'_>]) -> Result<(), RunError> {
        check_count("inputs", self.inputs.len(), inputs.len())?;
        for (port, view) in self.inputs.iter().zip(inputs) {
            check_port(port, view.storage(), view.len())?;
            check_finite(port, view)?;
        }
        self.check_states()?;
        for (port, view) in self.inputs.iter().zip(inputs) {
            copy_in(&mut self.memory, port.tensor, view.bytes())?;
        }
        self.noise.draw(&mut self.memory)?;
        for segment in &self.plan.segments {
            match segment.place {
                Place::Host => self.host.run(&self.plan, segment, &mut self.memory)?,
                Place::Device => self.device.run_segment(&self.plan, segment, &mut self.memory)?,
            }
        }
        Ok(())
    }

    /// One output of floats of what was computed last.
    pub(crate) fn read_output(&self, output: usize, to: &mut [f32]) -> Result<(), RunError> {
        let port = self.outputs.get(output).ok_or(RunError::Internal("an output is gone"))?;
        check_port(port, Storage::F32, to.len())?;
        copy_out(&self.memory, port.tensor, bytemuck::cast_slice_mut(to))
    }

    /// Names of all tensors, in the order of the file.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.plan.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Names of the tensors that hold codes or accumulators, in the order of the
    /// file: bytes, 16-bit integers, and what is summed up from them. Indices
    /// and other plain integers are none.
    pub fn code_names(&self) -> Vec<&str> {
        let tensors = &self.plan.tensors;
        let mut is_code: Vec<bool> =
            tensors.iter().map(|tensor| matches!(tensor.storage, Storage::I8 | Storage::I16)).collect();
        for step in &self.plan.steps {
            let operands = step.operands();
            let reads_codes = operands.reads.iter().any(|&x| is_code.get(x as usize) == Some(&true));
            let out = operands.write.map(|out| out as usize).filter(|_| reads_codes);
            if let Some(out) = out.filter(|&out| tensors.get(out).is_some_and(|tensor| tensor.storage == Storage::I32))
                && let Some(is_code) = is_code.get_mut(out)
            {
                *is_code = true;
            }
        }
        tensors.iter().zip(is_code).filter(|(_, is_code)| *is_code).map(|(tensor, _)| tensor.name.as_str()).collect()
    }

    /// The codes or accumulators of a tensor after a run, row-major without
    /// padding. Only with [`LoadOptions::keep_intermediates`].
    ///
    /// # Errors
    ///
    /// [`RunError::NoTensor`] if there is no integer tensor of the name or if
    /// values are not kept.
    pub fn read_codes(&mut self, name: &str) -> Result<Vec<i32>, RunError> {
        let index = self.fetch(name)?;
        let missing = || RunError::NoTensor(name.to_owned());
        let tensor = self.plan.tensors.get(index).ok_or_else(missing)?;
        let bytes = self.memory.bytes(index);
        if matches!(tensor.storage, Storage::Unspecified | Storage::F32 | Storage::I64) {
            return Err(missing());
        }
        let element_bytes = tensor.element_bytes();
        let number = |b: &[u8]| match (tensor.storage, b) {
            (Storage::U8, &[a]) => i32::from(a),
            (_, &[a]) => i32::from(a as i8) + tensor.code_offset,
            (_, &[a, b]) => i32::from(i16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        let rows = bytes.chunks_exact(tensor.stride * element_bytes).take(tensor.rows);
        Ok(rows.flat_map(|row| row.chunks_exact(element_bytes).take(tensor.cols).map(number)).collect())
    }

    /// The elements of a float tensor after a run. Only with
    /// [`LoadOptions::keep_intermediates`].
    ///
    /// # Errors
    ///
    /// As [`Session::read_codes`].
    pub fn read_f32(&mut self, name: &str) -> Result<Vec<f32>, RunError> {
        let index = self.fetch(name)?;
        let tensor = self.plan.tensors.get(index).filter(|tensor| tensor.storage == Storage::F32);
        let elements = tensor.ok_or_else(|| RunError::NoTensor(name.to_owned()))?.elements();
        let numbers = self.memory.bytes(index).chunks_exact(4).take(elements);
        Ok(numbers.filter_map(|b| b.first_chunk().map(|&b| f32::from_le_bytes(b))).collect())
    }

    /// Index of a tensor whose mirror holds its value of the last run.
    fn fetch(&mut self, name: &str) -> Result<usize, RunError> {
        let index = self.plan.tensors.iter().position(|tensor| tensor.name == name);
        let index = index.filter(|_| self.keep_intermediates).ok_or_else(|| RunError::NoTensor(name.to_owned()))?;
        self.fetch_tensor(index)?;
        Ok(index)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("device", &self.device.name())
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

fn ports(plan: &Plan, ports: &[schema::Port]) -> Result<Vec<PortInfo>, RuntimeError> {
    ports.iter().map(|p| port(plan, &p.name, p.tensor, &p.lower, &p.upper)).collect()
}

fn port(plan: &Plan, name: &str, tensor: u32, lower: &[f64], upper: &[f64]) -> Result<PortInfo, RuntimeError> {
    let index = tensor as usize;
    let tensor = plan.tensors.get(index).ok_or(RuntimeError::Internal("an input or output has no tensor"))?;
    Ok(PortInfo {
        name: name.to_owned(),
        storage: tensor.storage,
        shape: tensor.shape.clone(),
        lower: lower.to_vec(),
        upper: upper.to_vec(),
        tensor: index,
    })
}

/// The elements of a port from the mirror of its tensor.
fn copy_out(memory: &HostMemory, tensor: usize, to: &mut [u8]) -> Result<(), RunError> {
    let from = memory.bytes(tensor).get(..to.len());
    to.copy_from_slice(from.ok_or(RunError::Internal("a port is longer than its tensor"))?);
    Ok(())
}

/// The elements of a port into the mirror of its tensor.
fn copy_in(memory: &mut HostMemory, tensor: usize, from: &[u8]) -> Result<(), RunError> {
    let to = memory.bytes_mut(tensor).get_mut(..from.len());
    to.ok_or(RunError::Internal("a port is longer than its tensor"))?.copy_from_slice(from);
    Ok(())
}

fn check_count(what: &'static str, expected: usize, found: usize) -> Result<(), RunError> {
    if expected == found { Ok(()) } else { Err(RunError::Count { what, expected, found }) }
}

fn check_port(port: &PortInfo, storage: Storage, found: usize) -> Result<(), RunError> {
    let expected = port.elements();
    if port.storage != storage {
        return Err(RunError::Type { name: port.name.clone(), expected: port.storage, found: storage });
    }
    if expected != found {
        return Err(RunError::Length { name: port.name.clone(), expected, found });
    }
    Ok(())
}

fn check_finite(port: &PortInfo, view: &TensorView<'_>) -> Result<(), RunError> {
    let TensorView::F32(x) = view else { return Ok(()) };
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(RunError::NotFinite {
            name: port.name.clone(),
            index,
            value: x.get(index).copied().unwrap_or(f32::NAN),
        }),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_session_may_move_to_the_thread_of_the_control_loop() {
        fn is_send<T: Send>() {}
        is_send::<super::Session>();
    }
}
