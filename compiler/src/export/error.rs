//! What cannot be exported.

use qail_ir::ConstError;

use crate::files::WriteError;

/// A graph that cannot be written as ONNX.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An operation that the format cannot carry.
    #[error("node `{node}`: {op} cannot be exported as {format}: {reason}")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// The format asked for.
        format: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A scale, weight or table that is computed at run time.
    #[error("node `{node}`: operand {slot} of {op} is not a constant")]
    NotConst {
        /// The node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// Which operand.
        slot: usize,
    },
    /// A constant that cannot be read.
    #[error("node `{node}`")]
    Const {
        /// The node that reads it.
        node: String,
        /// Why.
        #[source]
        source: ConstError,
    },
    /// A multiplier that breaks its rules.
    #[error("node `{node}`: channel {channel} has m = {m}, shift = {shift}, which is no multiplier")]
    Multiplier {
        /// The node.
        node: String,
        /// The channel.
        channel: usize,
        /// Its mantissa.
        m: i64,
        /// Its shift.
        shift: i64,
    },
    /// The report belongs to another graph.
    #[error("node `{node}` is not in the report of the lowering; export the graph that `lower-quant` left")]
    NotInReport {
        /// The node.
        node: String,
    },
    /// A form of quantized weights for a graph that has none.
    #[error("no layer has quantized weights, which {format} is for; use -b w4a16 or w8a16")]
    NoQuantizedWeights {
        /// The format asked for.
        format: &'static str,
    },
    /// An output that has the name of an input.
    #[error("output `{name}` has the name of an input; name the outputs differently")]
    Name {
        /// The name.
        name: String,
    },
    /// ONNX files are limited by protobuf.
    #[error("the model would take {n_bytes} bytes; an ONNX file holds at most {limit}")]
    TooLarge {
        /// What it takes.
        n_bytes: u64,
        /// What fits.
        limit: u64,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
