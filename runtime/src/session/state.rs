//! What a session keeps from run to run: the memory of a recurrent policy, the
//! keys and values that a decoder has seen.
//!
//! A state lives where the steps that use it run, and never leaves it unless it
//! is asked for. It is zero after the load and after a reset; a run that fails
//! before its last step leaves it as it was.

use qail_artifact::Storage;

use super::{Session, check_port, copy_in, copy_out};
use crate::{
    PortInfo, RunError, TensorView, TensorViewMut,
    plan::{PlanState, PlanTensor},
};

impl Session {
    /// What is kept from run to run: names, types and shapes.
    pub fn states(&self) -> &[PortInfo] {
        &self.states
    }

    /// Forgets everything: the start of an episode.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn reset(&mut self) -> Result<(), RunError> {
        for state in &self.plan.states {
            self.memory.bytes_mut(state.tensor).fill(0);
            self.device.store(&self.plan, state.tensor, &self.memory)?;
        }
        Ok(())
    }

    /// Forgets what belongs to one element of the batch, where several
    /// environments run side by side.
    ///
    /// # Errors
    ///
    /// [`RunError::NoElement`] if there is no such element, or if the device fails.
    pub fn reset_element(&mut self, element: usize) -> Result<(), RunError> {
        let n_elements = self.n_elements();
        if element >= n_elements {
            return Err(RunError::NoElement { element, n_elements });
        }
        if n_elements == 1 {
            return self.reset();
        }
        for index in 0..self.plan.states.len() {
            let Some((state, port)) = self.plan.states.get(index).zip(self.states.get(index)) else { continue };
            let (tensor, runs) = (state.tensor, Runs::of(state, port, element, self.plan.tensors.get(state.tensor)));
            self.fetch_tensor(tensor)?;
            let bytes = self.memory.bytes_mut(tensor);
            for start in runs.starts() {
                bytes.get_mut(start..start + runs.len).unwrap_or_default().fill(0);
            }
            self.device.store(&self.plan, tensor, &self.memory)?;
        }
        Ok(())
    }

    /// Reads a state. Not for the control loop: on a GPU it waits for a copy.
    ///
    /// # Errors
    ///
    /// [`RunError::NoState`], a buffer of another type or length, or a device that fails.
    pub fn read_state(&mut self, name: &str, mut out: TensorViewMut<'_>) -> Result<(), RunError> {
        let tensor = self.checked_state(name, out.storage(), out.len())?;
        self.fetch_tensor(tensor)?;
        copy_out(&self.memory, tensor, out.bytes_mut())
    }

    /// Sets a state: to go on from a recorded step.
    ///
    /// # Errors
    ///
    /// As [`Session::read_state`].
    pub fn write_state(&mut self, name: &str, value: TensorView<'_>) -> Result<(), RunError> {
        let tensor = self.checked_state(name, value.storage(), value.len())?;
        copy_in(&mut self.memory, tensor, value.bytes())?;
        self.device.store(&self.plan, tensor, &self.memory)
    }

    /// Elements of a batch that the states tell apart; 1 if they do not.
    pub fn n_elements(&self) -> usize {
        let extents = self.plan.states.iter().zip(&self.states).map(|(state, port)| extent(state, port));
        let mut extents = extents.collect::<Vec<_>>();
        extents.dedup();
        match extents[..] {
            [n] => n,
            _ => 1,
        }
    }

    /// Brings a tensor into the mirror if its newest value is elsewhere.
    pub(super) fn fetch_tensor(&mut self, tensor: usize) -> Result<(), RunError> {
        if self.plan.left_on_device.binary_search(&tensor).is_err() {
            return Ok(());
        }
        self.device.fetch(&self.plan, tensor, &mut self.memory)
    }

    fn checked_state(&self, name: &str, storage: Storage, len: usize) -> Result<usize, RunError> {
        let port = self.states.iter().find(|port| port.name == name);
        let port = port.ok_or_else(|| RunError::NoState(name.to_owned()))?;
        check_port(port, storage, len)?;
        Ok(port.tensor)
    }

    /// Fails if a state is at its limit. Integers live on the host.
    pub(super) fn check_states(&self) -> Result<(), RunError> {
        for (state, port) in self.plan.states.iter().zip(&self.states) {
            let Some(limit) = state.limit else { continue };
            let bytes = self.memory.bytes(state.tensor);
            let found = match port.storage {
                Storage::I64 => {
                    bytes.chunks_exact(8).filter_map(|b| b.first_chunk()).map(|&b| i64::from_le_bytes(b)).max()
                }
                _ => bytes.chunks_exact(4).filter_map(|b| b.first_chunk()).map(|&b| i32::from_le_bytes(b).into()).max(),
            };
            if let Some(found) = found.filter(|&found| found > limit) {
                return Err(RunError::StateLimit { name: port.name.clone(), found, limit });
            }
        }
        Ok(())
    }
}

fn extent(state: &PlanState, port: &PortInfo) -> usize {
    state.element_axis.and_then(|axis| port.shape.get(axis)).copied().unwrap_or(1)
}

/// The bytes of one element of a batch: runs of `len`, `step` apart.
struct Runs {
    first: usize,
    len: usize,
    step: usize,
    n: usize,
}

impl Runs {
    fn of(state: &PlanState, port: &PortInfo, element: usize, tensor: Option<&PlanTensor>) -> Self {
        let size = tensor.map_or(0, PlanTensor::element_bytes);
        let axis = state.element_axis.unwrap_or(0);
        let inner: usize = port.shape.iter().skip(axis + 1).product();
        let (len, extent) = (inner * size, extent(state, port));
        Self { first: element * len, len, step: len * extent, n: port.shape.iter().take(axis).product() }
    }

    fn starts(&self) -> impl Iterator<Item = usize> {
        (0..self.n).map(|i| self.first + i * self.step)
    }
}
