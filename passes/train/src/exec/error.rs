//! Why a graph cannot be executed, or a step cannot be taken.

use qail_ir::{TensorType, interp::InterpError};
use qail_passes::PassError;

/// A graph that cannot be executed, or numbers that it cannot be executed on.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The graph is broken, or an operation has no result.
    #[error("cannot execute the graph")]
    Interp(#[from] InterpError),
    /// The quantizers of the graph cannot be read.
    #[error("cannot read the quantizers of the graph")]
    Quantizers(#[from] PassError),
    /// More memory than a plan may take.
    #[error("the values of the graph take {bytes} bytes, more than {limit}: use a smaller batch")]
    TooLarge {
        /// What it would take.
        bytes: usize,
        /// What it may take.
        limit: usize,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads")]
    Threads {
        /// How many.
        threads: usize,
        /// What the system said.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// An input of doubles or codes.
    #[error("input `{name}` is {ty}; inputs of training are f32 or whole numbers")]
    InputType {
        /// The input.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A number that the type of an input does not have.
    #[error("element {index} of input `{name}` is {value}, which is no {ty}")]
    InputValue {
        /// The input.
        name: String,
        /// Which element.
        index: usize,
        /// What was found.
        value: f32,
        /// The type of the input.
        ty: TensorType,
    },
    /// A name that the graph does not have.
    #[error("there is no input `{name}`; the graph takes {known}")]
    UnknownInput {
        /// What was given.
        name: String,
        /// What the graph takes.
        known: String,
    },
    /// An input that was not given.
    #[error("input `{name}` is missing")]
    MissingInput {
        /// The input.
        name: String,
    },
    /// An input that was given twice.
    #[error("input `{name}` is given twice")]
    RepeatedInput {
        /// The input.
        name: String,
    },
    /// Too few or too many numbers.
    #[error("`{name}` takes {expected} elements, found {found}")]
    Size {
        /// The input or constant.
        name: String,
        /// What its type says.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A value that is no constant of `f32`.
    #[error("`{name}` is not a constant of f32, so it cannot be set")]
    NotSettable {
        /// The value.
        name: String,
    },
    /// A constant that diverged.
    #[error("element {index} of `{name}` is {value}: training diverged, a lower learning rate may help")]
    NotFinite {
        /// The constant.
        name: String,
        /// Which element.
        index: usize,
        /// What was found.
        value: f32,
    },
    /// A step that is not a positive number.
    #[error(
        "quantizer `{node}` has step {step} at index {index}, expected a positive normal number: training diverged, a lower learning rate may help"
    )]
    Step {
        /// The quantizer.
        node: String,
        /// Which step.
        index: usize,
        /// What was found.
        step: f32,
    },
    /// A rescaling factor that has no multiplier.
    #[error(
        "node `{node}`: channel {channel} needs the factor {factor:e}, outside [2^-47, 2^15): training diverged, a lower learning rate may help"
    )]
    Multiplier {
        /// The layer.
        node: String,
        /// The output channel.
        channel: usize,
        /// The factor `s_in * s_w / s_out`.
        factor: f64,
    },
    /// An accumulator that may leave 32 bits.
    #[error(
        "node `{node}`: channel {channel} may reach {bound} in its accumulator, more than 2^31 - 1: training diverged, a lower learning rate may help"
    )]
    Overflow {
        /// The layer.
        node: String,
        /// The output channel.
        channel: usize,
        /// The bound `sum |w||a| + |B|`.
        bound: i128,
    },
    /// NaN in front of a quantizer.
    #[error("node `{node}`: element {index} is not a number and has no code")]
    NotANumber {
        /// The quantizer.
        node: String,
        /// Which element.
        index: usize,
    },
    /// A value that was neither an output nor asked for.
    #[error("`{name}` was not kept: list it in the options")]
    NotKept {
        /// The value.
        name: String,
    },
    /// A value without codes.
    #[error("`{name}` has no codes: only quantizers do")]
    NoCodes {
        /// The value.
        name: String,
    },
    /// Nothing has been computed, or the last attempt failed.
    #[error("there are no values: the graph has not run, or the last run failed")]
    NotRun,
    /// An invariant of the executor does not hold: a bug.
    #[error("internal error at node `{node}`: {invariant}")]
    Internal {
        /// The node.
        node: String,
        /// What should hold.
        invariant: &'static str,
    },
}
