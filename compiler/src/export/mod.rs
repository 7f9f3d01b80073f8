//! Writes lowered graphs as ONNX, so that other engines can check the numbers.
//!
//! - [`exact()`]: the integer semantic in `f64`, which holds every accumulator
//!   exactly. Any engine with IEEE arithmetic must reproduce each code and each
//!   accumulator, without a tolerance.
//! - [`qdq()`]: QuantizeLinear and DequantizeLinear with 4-, 8- and 16-bit tensors,
//!   the form that other tools read. It computes in `f32`, so a code may differ
//!   by one where our accumulator lies within rounding error of a tie.
//!
//! Both are opset 21, format version 10. Where every operation works row by row,
//! the batch axis is left open, so that many states are checked in one run.

mod batch;
mod builder;
mod emit;
mod error;
mod exact;
mod functions;
mod qdq;
mod shapes;

use std::path::Path;

use prost::Message;
use qail_ir::{DType, Elem, Graph, Op, ValueId};

pub use error::ExportError;
pub use exact::exact;
pub use qdq::qdq;

use crate::{files::write_atomic, frontend::proto::ModelProto};

/// The operator set that exports use; the first one with 4-bit tensors.
pub const OPSET: i64 = 21;
/// The file format that goes with it.
pub const IR_VERSION: i64 = 10;
/// Key of the metadata entry that says which export a file is.
pub const FORMAT_KEY: &str = "qailc.export";
/// Key of the metadata entry that lists nodes whose numbers are only close.
pub const INEXACT_KEY: &str = "qailc.inexact";

/// What to write besides the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Add every tensor of codes and every accumulator to the outputs.
    pub expose: bool,
}

/// What an exposed value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExposedKind {
    /// Codes of a quantized tensor.
    Codes,
    /// Sums of a layer, before anything is rounded.
    Accumulator,
}

/// The values that [`ExportOptions::expose`] adds to the outputs, operands
/// before users. Whoever dumps codes to compare them dumps these, under the
/// names of their nodes.
pub fn exposed_values(graph: &Graph) -> Vec<(ValueId, ExposedKind)> {
    graph
        .topo()
        .into_iter()
        .filter_map(|id| {
            let value = id.value();
            match graph.op(value) {
                Op::Const(_) | Op::Input(_) => None,
                Op::QLinear(_) => Some((value, ExposedKind::Accumulator)),
                _ => match graph.ty(value).elem {
                    Elem::Code(_) => Some((value, ExposedKind::Codes)),
                    Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64 | DType::F32 | DType::F64) => None,
                },
            }
        })
        .collect()
}

/// Writes a model, or nothing.
pub fn write(model: &ModelProto, path: &Path) -> Result<(), ExportError> {
    builder::check_size(model.encoded_len() as u64)?;
    Ok(write_atomic(path, &model.encode_to_vec())?)
}
