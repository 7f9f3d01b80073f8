//! The CPU: prepared steps and the kernels behind them.
//!
//! - [`Program`] prepares the steps of a plan and runs them one after the other.
//! - [`Kernels`] holds the inner loops of one instruction set. `generic.rs` is
//!   the reference; those of `simd` equal it in every bit.
//! - Everything is allocated by `Program::new`; running allocates nothing.

mod cast;
mod elementwise;
mod generic;
mod groups;
mod integer;
mod ints;
mod kernels;
mod linear;
mod order;
mod program;
mod reduce;
mod rope;
mod rows;
mod select;
#[allow(unsafe_code, reason = "instruction sets beyond the one that the crate is built for")]
mod simd;
mod strided;
mod window;

pub(crate) use program::Program;

use qail_artifact::Place;

use crate::{
    Isa, RunError, RuntimeError,
    device::{DeviceContext, DeviceExec},
    memory::HostMemory,
    plan::{Plan, Segment},
};

/// Device steps on the CPU, in the mirror itself: nothing is moved.
pub(crate) struct CpuExec {
    name: String,
    program: Program,
}

impl CpuExec {
    pub(crate) fn new(isa: Isa, cx: &DeviceContext<'_>) -> Result<Self, RuntimeError> {
        Ok(Self { name: format!("cpu:{}", isa.name()), program: Program::new(isa, Place::Device, cx)? })
    }
}

impl DeviceExec for CpuExec {
    fn name(&self) -> &str {
        &self.name
    }

    fn run_segment(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), RunError> {
        self.program.run(plan, segment, memory)
    }

    fn store(&mut self, _plan: &Plan, _tensor: usize, _memory: &HostMemory) -> Result<(), RunError> {
        Ok(())
    }

    fn fetch(&mut self, _plan: &Plan, _tensor: usize, _memory: &mut HostMemory) -> Result<(), RunError> {
        Ok(())
    }
}
