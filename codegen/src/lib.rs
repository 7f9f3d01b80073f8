//! From a quantized graph to a plan of kernels.
//!
//! [`build`] turns a lowered [`qail_ir::Graph`] into a manifest and the bytes of
//! its sections: operations are selected and fused, steps are placed on the host
//! or the device, memory is planned, and every device step gets a WGSL kernel
//! that is specialized to its shapes and validated by naga. The numbers are those
//! of `qail_ir::interp`: integer results exactly, `f32` sums in the same order.
//!
//! This crate alone knows naga; it knows no device and no file.

mod error;
mod explain;
mod kernels;
mod plan;
mod validate;

pub use error::CodegenError;
pub use explain::explain;
pub use plan::{Bounds, BuildOptions, Plan, SectionBytes, SectionData, Sink, build};
