//! Sums, products and functions of codes, of ONNX Runtime.

use qail_ir::{Binary, BinaryFn, Op, Unary, UnaryFn};

use super::{
    super::{OpError, builder::Tensor, cx::NodeCx},
    activation,
    parameters::{Parameters, Slots},
    products::operand,
};

/// `QLinearAdd`.
pub(super) fn add(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    binary(cx, BinaryFn::Add)
}

/// `QLinearMul`.
pub(super) fn mul(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    binary(cx, BinaryFn::Mul)
}

fn binary(cx: &mut NodeCx<'_>, f: BinaryFn) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (operand(cx, "a", 0)?, operand(cx, "b", 3)?);
    let result = cx.emit_part("real", Op::Binary(Binary { f }), &[a, b])?;
    rounded(cx, result, 6)
}

/// `QLinearSigmoid`.
pub(super) fn sigmoid(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    unary(cx, UnaryFn::Sigmoid)
}

/// `QLinearLeakyRelu`.
pub(super) fn leaky_relu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(0.01);
    unary(cx, UnaryFn::LeakyRelu { alpha })
}

fn unary(cx: &mut NodeCx<'_>, f: UnaryFn) -> Result<Vec<Tensor>, OpError> {
    let x = operand(cx, "x", 0)?;
    let result = cx.emit_part("real", Op::Unary(Unary { f }), &[x])?;
    rounded(cx, result, 3)
}

fn rounded(cx: &mut NodeCx<'_>, result: Tensor, at: usize) -> Result<Vec<Tensor>, OpError> {
    let parameters = Parameters::of_result(cx, cx.shape(result), Slots { scale: at, zero_point: at + 1 })?;
    let name = cx.result(0);
    Ok(vec![activation::quantize(cx, name, result, &parameters)?])
}
