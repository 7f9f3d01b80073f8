//! What the quantization passes share: statistics of values, the search for
//! steps, codes of weights, and the report of a lowering.

pub(crate) mod edges;
pub(crate) mod entry;
pub(crate) mod flow;
mod histogram;
pub(crate) mod linalg;
pub mod region;
mod report;
mod search;
pub(crate) mod steps;
mod weights;
mod work;

pub use histogram::Histogram;
pub use report::{CodeInfo, LoweredLayer, LoweredRequantize, LoweringReport, ValueStats};
pub(crate) use search::search;
pub use search::{Candidates, Observer, Quantizer};
pub(crate) use weights::{RowImportance, channel_steps_weighed};
pub use weights::{channel_steps, group_steps, weight_code};
pub(crate) use work::samples_within;

use qail_ir::{ConstData, Constant, QuantScheme, fixed::Multiplier};

/// Largest magnitude of an observation code: two balanced byte planes hold it.
pub const ENTRY_HI: i32 = 32639;

/// Scheme of an observation code.
pub const ENTRY: QuantScheme = QuantScheme::signed(16);

/// The weight step that a multiplier stands for: `M * s_out / s_in` in `f64`,
/// rounded once. Exports and reports carry this one, not the nominal step.
pub fn derived_scale(multiplier: Multiplier, s_out: f64, s_in: f64) -> f32 {
    (multiplier.factor() * s_out / s_in) as f32
}

/// True for the step of a quantizer that nobody has calibrated or trained yet:
/// `splat(1)`, which [`InsertFakeQuant`](crate::InsertFakeQuant) writes.
pub fn is_placeholder(constant: &Constant) -> bool {
    matches!(constant.data, ConstData::Splat(step) if step == 1.0)
}

/// `clamp(rne(x / step) + zero_point, lo, hi)` in `f64`; NaN becomes the zero point.
#[inline]
pub fn code(x: f64, step: f64, zero_point: i32, lo: i32, hi: i32) -> i32 {
    let code = (x / step).round_ties_even() + f64::from(zero_point);
    if code.is_nan() { zero_point.clamp(lo, hi) } else { code.clamp(f64::from(lo), f64::from(hi)) as i32 }
}
