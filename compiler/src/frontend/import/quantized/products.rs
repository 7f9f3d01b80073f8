//! Products of matrices of codes.

use qail_ir::{Constant, DType, Linear, Op, Transpose};

use super::{
    super::{OpError, builder::Tensor, conv, cx::NodeCx},
    activation,
    parameters::{Parameters, Slots, known},
    real,
};

/// `QLinearMatMul`: real values, their product, rounded.
pub(in super::super) fn qlinear_matmul(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let a = operand(cx, "a", 0)?;
    let b = operand(cx, "b", 3)?;
    let product = matmul(cx, a, b)?;
    let result = Parameters::of_result(cx, cx.shape(product), Slots { scale: 6, zero_point: 7 })?;
    let name = cx.result(0);
    Ok(vec![activation::quantize(cx, name, product, &result)?])
}

/// Operand `at` of codes with its scale and zero point behind it.
pub(super) fn operand(cx: &mut NodeCx<'_>, part: &str, at: usize) -> Result<Tensor, OpError> {
    let x = cx.operand(at)?;
    let last = cx.ty(x).shape.len().saturating_sub(1) as i64;
    let parameters = Parameters::of_operand(cx, x, Slots { scale: at + 1, zero_point: at + 2 }, last)?;
    let name = format!("{}.{part}", cx.result(0));
    real(cx, name, x, &parameters)
}

/// `a * b` with a known matrix `b`.
fn matmul(cx: &mut NodeCx<'_>, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
    let (x, w) = (cx.ty(a), cx.ty(b));
    if cx.constant(b).is_none() || w.shape.len() != 2 || x.shape.is_empty() {
        let reason = format!("a product of {x} and {w}, where the second is no known matrix, is not supported");
        return Err(OpError::unsupported(reason, "quantize products with constant weights only"));
    }
    let n = w.shape.last().copied().unwrap_or(1);
    let bias = cx.known_part("bias", Constant::f32([n], &vec![0.0; n]));
    cx.emit_part("product", Op::Linear(Linear { act: None, groups: 1 }), &[a, b, bias])
}

/// `MatMulInteger`: sums of products of codes, as numbers. Its first operand is
/// made by `QuantizeLinear`, so the sums are real values over its scale.
pub(in super::super) fn matmul_integer(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    integers(cx, matmul)
}

/// `ConvInteger`, likewise.
pub(in super::super) fn conv_integer(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    integers(cx, |cx, x, w| conv::of_tensors(cx, x, w, None))
}

fn integers(
    cx: &mut NodeCx<'_>,
    product: fn(&mut NodeCx<'_>, Tensor, Tensor) -> Result<Tensor, OpError>,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    let Some(made) = cx.builder.codes(a).cloned() else { return dynamic(cx) };
    let zero_point = match cx.optional(2) {
        Some(zero_point) => known(cx, zero_point, "zero point")?.all_int()?,
        None => vec![0],
    };
    if zero_point != [made.zero_point] {
        let reason = format!(
            "it reads codes with zero points {zero_point:?}; `{}` made them with {}",
            made.node, made.zero_point
        );
        return Err(OpError::unsupported(reason, "give both nodes the same zero point"));
    }
    known(cx, b, "second operand")?;
    let of_b = Parameters::of_integers(cx, b, 3)?;
    let name = format!("{}.b", cx.result(0));
    let w = real(cx, name, b, &of_b)?;
    let a = Tensor::Computed(cx.builder.place(a));
    let product = product(cx, a, w)?;
    let step = cx.known_part("step", Constant::f32([], &[made.scale]));
    let op = Op::Binary(qail_ir::Binary { f: qail_ir::BinaryFn::Div });
    Ok(vec![cx.emit(op, &[product, step])?])
}

/// `QGemm` of ONNX Runtime: `alpha * A * B + C`, rounded if the result has a scale.
pub(super) fn qgemm(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(1.0);
    let transpose_a = cx.int("transA")?.unwrap_or(0) != 0;
    let transpose_b = cx.int("transB")?.unwrap_or(0) != 0;
    if alpha != 1.0 || transpose_a {
        return Err(OpError::unsupported("alpha and transA are not supported here", "fold them into the scales"));
    }
    let a = operand(cx, "a", 0)?;
    let b = cx.operand(3)?;
    known(cx, b, "second operand")?;
    let channels = if transpose_b { 0 } else { 1 };
    let of_b = Parameters::of_operand(cx, b, Slots { scale: 4, zero_point: 5 }, channels)?;
    let step = step(cx)?;
    let name = format!("{}.b", cx.result(0));
    let mut w = real(cx, name, b, &of_b)?;
    if cx.ty(w).shape.len() != 2 {
        return Err(OpError::invalid(format!("gemm takes matrices, found {}", cx.ty(w))));
    }
    if transpose_b {
        w = cx.emit_part("columns", Op::Transpose(Transpose { perm: vec![1, 0] }), &[w])?;
    }
    let n = cx.ty(w).shape.last().copied().unwrap_or(1);
    let bias = bias(cx, 6, n, step, &of_b.scales)?;
    let bias = cx.known_part("bias", Constant::f32([n], &bias));
    let product = Op::Linear(Linear { act: None, groups: 1 });
    if !cx.is_given(7) {
        return Ok(vec![cx.emit(product, &[a, w, bias])?]);
    }
    let product = cx.emit_part("product", product, &[a, w, bias])?;
    let result = Parameters::of_result(cx, cx.shape(product), Slots { scale: 7, zero_point: 8 })?;
    let name = cx.result(0);
    Ok(vec![activation::quantize(cx, name, product, &result)?])
}

/// `QLinearConv`: real values, their convolution, rounded.
pub(in super::super) fn qlinear_conv(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = operand(cx, "x", 0)?;
    let w = cx.operand(3)?;
    known(cx, w, "weight")?;
    let of_w = Parameters::of_operand(cx, w, Slots { scale: 4, zero_point: 5 }, 0)?;
    let name = format!("{}.w", cx.result(0));
    let w = real(cx, name, w, &of_w)?;
    let n = cx.ty(w).shape.first().copied().unwrap_or(1);
    let step = step(cx)?;
    let bias = bias(cx, 8, n, step, &of_w.scales)?;
    let bias = cx.known_part("bias", Constant::f32([n], &bias));
    let product = conv::of_tensors(cx, x, w, Some(bias))?;
    let result = Parameters::of_result(cx, cx.shape(product), Slots { scale: 6, zero_point: 7 })?;
    let name = cx.result(0);
    Ok(vec![activation::quantize(cx, name, product, &result)?])
}

/// The scale of the first operand, operand 1 of the node.
fn step(cx: &NodeCx<'_>) -> Result<f64, OpError> {
    let scale = known(cx, cx.operand(1)?, "scale")?.all_f32()?;
    Ok(f64::from(scale.first().copied().unwrap_or(1.0)))
}

/// The numbers behind a bias of `n` codes, each in units of both scales.
fn bias(cx: &NodeCx<'_>, slot: usize, n: usize, step: f64, scales: &[f32]) -> Result<Vec<f32>, OpError> {
    let Some(c) = cx.optional(slot) else { return Ok(vec![0.0; n]) };
    let codes = known(cx, c, "bias")?;
    if codes.ty.dtype() != Some(DType::I32) || codes.ty.n_elements() != n {
        return Err(OpError::invalid(format!("its bias is {}, not {n} numbers of type i32", codes.ty)));
    }
    let scale = |i: usize| scales.get(if scales.len() == 1 { 0 } else { i }).copied().unwrap_or(1.0);
    let codes = codes.all_int()?.into_iter().enumerate();
    Ok(codes.map(|(i, code)| (code as f64 * step * f64::from(scale(i))) as f32).collect())
}

/// Scales that are found anew at every step.
pub(in super::super) fn dynamic(_: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    Err(OpError::unsupported(
        "activations that are quantized with scales found at run time are not supported",
        "quantize statically, quantize the weights only (MatMulNBits), or pass the float model",
    ))
}
