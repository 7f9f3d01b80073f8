//! Loads a `.qail` file and runs it, inside a control loop.
//!
//! [`Session::load`] makes everything; [`Session::run`] computes, and a
//! [`Controller`] gives one action a step, also of policies that compute chunks. On a CPU `run`
//! allocates nothing, takes no lock and starts no thread; on a GPU it is one
//! submission and one wait for each run of device steps.
//!
//! The integer part of a model gives the same codes on every device, bit for
//! bit. `unsafe` code is confined to `cpu/simd` and the mapping of files.
//!
//! ```no_run
//! use qail_runtime::{Session, TensorView, TensorViewMut};
//!
//! let mut session = Session::open("policy.qail", "cpu".parse()?)?;
//! let (observation, mut action) = ([0.0; 17], [0.0; 6]);
//! session.run(&[TensorView::F32(&observation)], &mut [TensorViewMut::F32(&mut action)])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

mod bytes;
mod control;
mod cpu;
mod device;
mod error;
#[cfg(feature = "gpu")]
mod gpu;
mod host;
mod memory;
mod plan;
mod session;
mod tensor;

pub use bytes::ArtifactBytes;
pub use control::{Acted, ChunkPolicy, ControlError, Controller};
pub use device::{DeviceNameError, DeviceSpec, GpuBackend, GpuSpec, Isa};
pub use error::{RunError, RuntimeError};
#[cfg(feature = "gpu")]
pub use gpu::{AdapterInfo, adapters};
pub use qail_artifact::{ArtifactError, Storage};
pub use session::{LoadOptions, Session};
pub use tensor::{PortInfo, TensorView, TensorViewMut};
