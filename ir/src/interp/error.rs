//! What can go wrong when a graph runs.

use crate::{ConstError, Elem, TensorType, VerifyError};

use super::TensorError;

/// A graph that cannot run, or inputs that it cannot run on.
#[derive(Debug, thiserror::Error)]
pub enum InterpError {
    /// The graph is not well-formed.
    #[error("the graph is not well-formed")]
    Verify(#[from] VerifyError),
    /// An input of the graph was not given.
    #[error("input `{name}`, {ty}, is missing")]
    MissingInput {
        /// The input.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// Something was given that the graph does not take.
    #[error("there is no input `{name}`; the graph takes {known}")]
    UnknownInput {
        /// What was given.
        name: String,
        /// Names of the inputs.
        known: String,
    },
    /// An input of another type.
    #[error("input `{name}` is {found}, must be {expected}")]
    InputType {
        /// The input.
        name: String,
        /// Type of what was given.
        found: TensorType,
        /// Type in the graph.
        expected: TensorType,
    },
    /// An input whose elements do not match its type.
    #[error("input `{name}`")]
    Input {
        /// The input.
        name: String,
        /// Why.
        #[source]
        source: TensorError,
    },
    /// A constant that cannot be read.
    #[error("node `{name}`")]
    Const {
        /// The node.
        name: String,
        /// Why.
        #[source]
        source: ConstError,
    },
    /// More elements than the interpreter holds in memory.
    #[error("node `{name}`, {ty}: the values of the graph have more than {limit} elements together")]
    TooLarge {
        /// The node that crosses the limit.
        name: String,
        /// Its type.
        ty: TensorType,
        /// The limit.
        limit: usize,
    },
    /// A result that is not defined.
    #[error("node `{name}`: {fault}")]
    Node {
        /// The node.
        name: String,
        /// Why.
        fault: Fault,
    },
}

/// Why a node has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// NaN has no code.
    #[error("element {index}, feature {feature}, is not a number and has no code")]
    NotANumber {
        /// Index of the element, row-major.
        index: usize,
        /// Index along the last axis.
        feature: usize,
    },
    /// An accumulator outside of 32 bits.
    #[error("the accumulator of row {row}, channel {channel} is {value}, which is not an i32")]
    Accumulator {
        /// Index of the row, all leading axes flattened.
        row: usize,
        /// Index along the last axis.
        channel: usize,
        /// What it should be.
        value: i64,
    },
    /// A pair of numbers that is no [`Multiplier`](crate::fixed::Multiplier).
    #[error("channel {channel}: multiplier {m} with shift {shift} is not odd, 16 bits wide and shifted by 1 to 62")]
    Multiplier {
        /// The channel.
        channel: usize,
        /// The mantissa.
        m: i64,
        /// The shift.
        shift: i64,
    },
    /// An integer result outside of its type.
    #[error("element {index} does not fit {elem}")]
    Overflow {
        /// Index of the element, row-major.
        index: usize,
        /// The type.
        elem: Elem,
    },
    /// An integer result that does not exist.
    #[error("element {index}: {what}")]
    Undefined {
        /// Index of the element, row-major.
        index: usize,
        /// What was attempted.
        what: &'static str,
    },
    /// A constant whose elements do not match its type.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Something that verification should have refused.
    #[error("internal error: {0}")]
    Internal(&'static str),
}
