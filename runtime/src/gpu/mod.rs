//! Device steps on a graphics processor, through wgpu. The only module that
//! knows it.
//!
//! Everything is made at load: a buffer for every section that a kernel reads
//! and for every device arena, a pipeline for every kernel, a bind group for
//! every step, and one run on zeros, because drivers compile at the first
//! dispatch. A segment is then one encoder with one pass, one submission and one
//! wait.
//!
//! Shaders come from a file, so they are always compiled with bounds checks, and
//! wgpu validates them again. A driver's complaint becomes a typed error: the
//! handlers in `fault` collect what wgpu reports beside return values.
//!
//! A software adapter is only taken when its index is given: a robot that lost
//! its driver must not silently run a hundred times slower.

mod adapter;
mod exec;
mod fault;
mod load;
mod planes;

pub use adapter::{AdapterInfo, adapters};

use crate::{
    GpuSpec, RuntimeError,
    device::{DeviceContext, DeviceExec},
};

/// Makes the executor of a plan on the adapter that `spec` names.
pub(crate) fn open(spec: &GpuSpec, cx: &DeviceContext<'_>) -> Result<Box<dyn DeviceExec>, RuntimeError> {
    let adapter = adapter::select(*spec)?;
    Ok(Box::new(load::load(&adapter, cx)?))
}
