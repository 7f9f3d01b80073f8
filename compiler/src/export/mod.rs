//! Writes lowered graphs as ONNX, for other engines to run or to check.
//!
//! - [`exact()`]: the integer semantic in `f64`, which holds every accumulator
//!   exactly. Any engine with IEEE arithmetic must reproduce each code and each
//!   accumulator, without a tolerance.
//! - [`qdq()`]: QuantizeLinear and DequantizeLinear with 4-, 8- and 16-bit tensors,
//!   opset 21. It computes in `f32`, so a code may differ by one where our
//!   accumulator lies within rounding error of a tie; so it is in the next two.
//! - [`qcdq()`]: QuantizeLinear, Clip and DequantizeLinear with 8-bit tensors, opset
//!   13, the convention of Brevitas and QONNX.
//! - [`fake_quant()`]: floats that lie on the grids of the codes, opset 13.
//! - [`nbits()`]: weight-only precisions with `MatMulNBits` of ONNX Runtime.
//!
//! Where every operation works row by row, the batch axis is left open, so that
//! many states are checked in one run. All but the exact form write
//! convolutions as Conv; windows that are none go through Gather.

mod batch;
mod builder;
mod codes;
mod conv;
mod described;
mod emit;
mod error;
mod exact;
mod fake_quant;
mod float;
mod form;
mod functions;
mod nbits;
mod older;
mod qcdq;
mod qdq;
mod shapes;
mod windows;

use std::path::Path;

use prost::Message;
use qail_ir::{DType, Elem, Graph, Op, ValueId};

pub use error::ExportError;
pub use exact::exact;
pub use fake_quant::fake_quant;
pub use nbits::nbits;
pub use qcdq::qcdq;
pub use qdq::qdq;

use crate::{files::write_atomic, frontend::proto::ModelProto};

/// The operator set of the exact and the QDQ form; the first one with 4-bit tensors.
pub const OPSET: i64 = 21;
/// The operator set of the other forms, which every engine knows: the first one with
/// a scale a channel.
pub const COMMON_OPSET: i64 = 13;
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
    /// Sums of a layer or of codes, before anything is rounded.
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
                Op::QLinear(_) | Op::QSum(_) => Some((value, ExposedKind::Accumulator)),
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
