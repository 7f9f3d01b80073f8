//! Why a pass could not do its work.

use qail_ir::{ConstError, TypeError, VerifyError, interp::InterpError};

use crate::SampleError;

/// A pass that could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// What follows happened inside a pass.
    #[error("pass `{pass}` failed")]
    In {
        /// Name of the pass.
        pass: &'static str,
        /// What happened.
        #[source]
        source: Box<PassError>,
    },
    /// The pass left a broken graph: a bug in the pass.
    #[error("pass `{pass}` left a broken graph")]
    Broken {
        /// Name of the pass.
        pass: &'static str,
        /// The rule.
        #[source]
        source: VerifyError,
    },
    /// Operands that do not fit.
    #[error("node `{node}`")]
    Type {
        /// Name of the node.
        node: String,
        /// The rule.
        #[source]
        source: TypeError,
    },
    /// A constant that cannot be read.
    #[error("node `{node}`")]
    Const {
        /// Name of the node.
        node: String,
        /// What happened.
        #[source]
        source: ConstError,
    },
    /// The reference interpreter refused.
    #[error("cannot execute the graph")]
    Interp(#[source] Box<InterpError>),
    /// A calibration sample that cannot be read.
    #[error("cannot read calibration sample {index}")]
    Sample {
        /// Which sample.
        index: usize,
        /// What happened.
        #[source]
        source: SampleError,
    },
    /// Steps of activations need data.
    #[error(
        "{n_values} activations, `{first}` first, need data to find their ranges: give --demos, or a precision with float activations such as w4a16"
    )]
    NoData {
        /// Number of quantizers without a step.
        n_values: usize,
        /// Name of the first.
        first: String,
    },
    /// A value that is not a number.
    #[error("value `{node}` is not finite on calibration sample {index}")]
    NotFinite {
        /// Name of the node.
        node: String,
        /// Which sample.
        index: usize,
    },
    /// Weights that are broken.
    #[error("`{weights}` of node `{node}` holds NaN or infinity; mend the checkpoint that the model was exported from")]
    Weights {
        /// Name of the weights or of the bias.
        weights: String,
        /// The node that reads them.
        node: String,
    },
    /// A step that is not a positive number.
    #[error("quantizer `{node}` has step {step} at index {index}, expected a positive normal number")]
    Step {
        /// Name of the quantizer.
        node: String,
        /// Index into the steps.
        index: usize,
        /// What was found.
        step: f64,
    },
    /// An accumulator that may leave 32 bits.
    #[error("node `{node}`: channel {channel} may reach {bound} in its accumulator, more than 2^31 - 1")]
    Overflow {
        /// Name of the layer.
        node: String,
        /// Output channel.
        channel: usize,
        /// The bound `sum |w||a| + |B|`.
        bound: i128,
    },
    /// A rescaling factor that has no multiplier.
    #[error(
        "node `{node}`: channel {channel} needs the factor {factor:e}, outside [2^-47, 2^15): its inputs, weights and \
         results are of too different sizes; rescale that channel, or keep activations in floats (w4a16)"
    )]
    Multiplier {
        /// Name of the layer.
        node: String,
        /// Output channel.
        channel: usize,
        /// The factor `s_in * s_w / s_out`.
        factor: f64,
    },
    /// Something that the pass does not do.
    #[error("node `{node}`: {reason}")]
    Unsupported {
        /// Name of the node.
        node: String,
        /// What, and what to do about it.
        reason: String,
    },
    /// An option that the pass does not have, or a value that the option does not take.
    #[error("option `{option}` of pass `{pass}`: {reason}")]
    Options {
        /// Name of the pass.
        pass: String,
        /// Name of the option.
        option: String,
        /// What is accepted.
        reason: String,
    },
    /// No pass of this name.
    #[error("no pass is called `{name}`; `qailc opt --list` shows all")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// An invariant of this crate does not hold: a bug.
    #[error("internal error at node `{node}`: {invariant}")]
    Internal {
        /// Name of the node.
        node: String,
        /// What should hold.
        invariant: &'static str,
    },
}
