//! Training of quantized policies: QAIL, QBC and both (arXiv 2412.01034).
//!
//! ```text
//! prepared graph --losses--> graph with a loss --differentiate--> joint graph
//!      joint graph --TrainExecutor--> losses and gradients --AdamW--> parameters
//! ```
//! The graph that is trained is the one that `qail_passes::pipeline::prepare`
//! leaves: float layers with `fake_quant` on weights and activations. Parameters
//! are its constants: weights, biases and steps. The executor computes every
//! value of a quantized region on integer codes, by the same formulas as
//! `lower-quant`, so the policy that is trained is the policy that runs.

pub mod batches;
pub mod checkpoint;
pub mod denoise;
pub mod differentiate;
pub mod exec;
mod expand;
pub mod forward;
pub mod losses;
pub mod metrics;
pub mod optimizer;
pub mod options;
pub mod parameters;
mod rules;
pub mod schedule;
mod setup;
pub mod trainer;
pub mod unroll;

pub use differentiate::{GradientError, Joint, differentiate};
pub use exec::{CpuExecutor, CpuOptions, ExecError, TrainExecutor};
pub use losses::{Distance, Head, LossError, LossSpec, LossValues, Weighting, attach};
pub use unroll::{State, UnrollError, unroll};
