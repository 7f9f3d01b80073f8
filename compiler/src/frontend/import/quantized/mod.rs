//! Models that are already quantized.
//!
//! The graph stays in real values: `QuantizeLinear` rounds (`fake_quant`), and
//! `DequantizeLinear` behind it gives the rounded numbers themselves. A constant
//! that is read from codes becomes a known tensor of floats that remembers its
//! scales; as the weight of a layer it gets a quantizer that gives back the very
//! codes of the file. Operators on codes (`QLinearMatMul`, ..) are taken apart
//! into the same form. Passes then lower it like a model of our own, with the
//! scales of the file.
//!
//! - `parameters`: scales and zero points, checked,
//! - `activation`: quantizers of computed values,
//! - `weight`: constants that are codes,
//! - `products`, `elementwise`: operators on codes,
//! - `nbits`: products with packed weights,
//! - `grid`: which elements share a scale.

mod activation;
mod elementwise;
mod grid;
mod nbits;
mod parameters;
mod products;
mod weight;

pub(super) use grid::{MatrixQuant, WeightQuant};
pub(super) use {activation::clip, products::dynamic};

use super::{Import, OpError, builder::Tensor, cx::NodeCx};
use parameters::Parameters;

/// `QuantizeLinear`.
pub(super) fn quantize_linear(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let parameters = Parameters::of_quantizer(cx, x)?;
    match cx.constant(x) {
        Some(_) => Ok(vec![weight::quantize(cx, x, &parameters)?]),
        None => {
            let name = cx.result(0);
            Ok(vec![activation::quantize(cx, name, x, &parameters)?])
        }
    }
}

/// `DequantizeLinear`.
pub(super) fn dequantize_linear(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let parameters = Parameters::of_dequantizer(cx, x)?;
    let name = cx.result(0);
    Ok(vec![real(cx, name, x, &parameters)?])
}

/// What codes stand for, if they are read with `parameters`.
fn real(cx: &mut NodeCx<'_>, name: String, x: Tensor, parameters: &Parameters) -> Result<Tensor, OpError> {
    match cx.constant(x) {
        Some(_) => weight::dequantize(cx, name, x, parameters),
        None => activation::dequantize(cx, name, x, parameters),
    }
}

/// The importer of an operator of ONNX Runtime, domain `com.microsoft`.
pub(super) fn contributed(op_type: &str) -> Option<Import> {
    let import: Import = match op_type {
        "QuantizeLinear" => quantize_linear,
        "DequantizeLinear" => dequantize_linear,
        "MatMulNBits" => nbits::matmul,
        "QGemm" => products::qgemm,
        "QLinearAdd" => elementwise::add,
        "QLinearMul" => elementwise::mul,
        "QLinearSigmoid" => elementwise::sigmoid,
        "QLinearLeakyRelu" => elementwise::leaky_relu,
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" | "DynamicQuantizeLSTM" => dynamic,
        _ => return None,
    };
    Some(import)
}

pub(super) use products::{conv_integer, matmul_integer, qlinear_conv, qlinear_matmul};
