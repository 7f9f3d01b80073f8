//! How far actions are from the actions they should be, for reports.
//!
//! The sums are those of training, so the held-out error while training, the
//! report of a build and `qailc eval` can be compared digit by digit.

use serde::Serialize;

pub use qail_train::metrics::ActionError;

/// [`ActionError`] for reports.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ErrorSummary {
    /// Mean squared difference.
    pub mse: f64,
    /// Largest absolute difference.
    pub max: f64,
    /// Mean difference.
    pub bias: f64,
    /// Share of elements with the opposite sign, 0 to 1.
    pub sign_flips: f64,
    /// Root mean square of what they should be.
    pub reference_rms: f64,
    /// Number of elements.
    pub n: usize,
}

impl From<&ActionError> for ErrorSummary {
    fn from(error: &ActionError) -> Self {
        Self {
            mse: error.mse(),
            max: error.max(),
            bias: error.bias(),
            sign_flips: error.sign_flips(),
            reference_rms: error.reference_rms(),
            n: error.n_elements(),
        }
    }
}
