//! What can go wrong between a graph and a plan.

use qail_artifact::{WriteError, schema::step};
use qail_ir::ConstError;

/// A graph that has no plan, and why. `node` is the name of a graph node.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// An operation, type or combination that no kernel computes.
    #[error("node `{node}`: {op} is not supported: {reason}")]
    Unsupported {
        /// Name of the node.
        node: String,
        /// Operation in the text form.
        op: &'static str,
        /// What is in the way, and what is accepted.
        reason: String,
    },
    /// A size that a device with default limits cannot hold.
    #[error("node `{node}`: {what} is {found}, the limit is {limit}")]
    Limit {
        /// Name of the node, or `plan` for the whole.
        node: String,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: String,
        /// How large it may be.
        limit: String,
    },
    /// An accumulator that could leave 32 bits.
    #[error("node `{node}`: channel {channel} can reach {bound}, an accumulator holds 2147483647")]
    Overflow {
        /// Name of the node.
        node: String,
        /// The channel.
        channel: usize,
        /// Bound of the absolute value of its accumulator.
        bound: i64,
    },
    /// A number outside of what its type or the contract allows.
    #[error("node `{node}`: {what} is {found}, accepted is {accepted}")]
    BadValue {
        /// Name of the node.
        node: String,
        /// Which number.
        what: &'static str,
        /// What was found.
        found: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// A constant that cannot be read.
    #[error("node `{node}`: a constant cannot be read")]
    Const {
        /// Name of the node that reads it.
        node: String,
        /// Why.
        #[source]
        source: ConstError,
    },
    /// A weight matrix that cannot be packed.
    #[error("node `{node}`: the weights cannot be packed: {reason}")]
    Pack {
        /// Name of the node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The file cannot be written, or would be refused by its reader.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A shader that is not valid WGSL: a bug of this crate, found before a file
    /// is written.
    #[error("node `{node}`: kernel `{kernel}` is invalid: {reason}")]
    InvalidShader {
        /// Name of the node.
        node: String,
        /// Name of the kernel.
        kernel: String,
        /// What the validator says.
        reason: String,
    },
    /// Something that cannot be, with the invariant that says so.
    #[error("internal error: {invariant}")]
    Internal {
        /// The invariant.
        invariant: String,
    },
}

impl CodegenError {
    /// An internal error.
    pub(crate) fn internal(invariant: impl Into<String>) -> Self {
        Self::Internal { invariant: invariant.into() }
    }
}

/// Name of a step's operation for messages and the printed plan.
pub(crate) fn op_name(op: &step::Op) -> &'static str {
    match op {
        step::Op::Quantize(_) => "quantize",
        step::Op::QLinear(_) => "qlinear",
        step::Op::QGroups(_) => "qgroups",
        step::Op::Requantize(_) => "requantize",
        step::Op::Dequantize(_) => "dequantize",
        step::Op::Linear(_) => "linear",
        step::Op::LinearWq(_) => "linear_wq",
        step::Op::Unary(_) => "unary",
        step::Op::Binary(_) => "binary",
        step::Op::Copy(_) => "copy",
        step::Op::Reduce(_) => "reduce",
        step::Op::MatMul(_) => "matmul",
        step::Op::Unfold(_) => "unfold",
        step::Op::Softmax(_) => "softmax",
        step::Op::Normalize(_) => "normalize",
        step::Op::Attention(_) => "attention",
        step::Op::Rope(_) => "rope",
        step::Op::Film(_) => "film",
        step::Op::Compare(_) => "compare",
        step::Op::Where(_) => "where",
        step::Op::Gather(_) => "gather",
        step::Op::Scatter(_) => "scatter",
        step::Op::Order(_) => "order",
        step::Op::Scan(_) => "scan",
        step::Op::Cast(_) => "cast",
        step::Op::QAdd(_) => "qadd",
        step::Op::Lookup(_) => "lookup",
        step::Op::Repeat(_) => "repeat",
    }
}
