//! Gemm and MatMul. A known second factor makes them `linear`: rows times
//! `w[K, N]`, whatever the rank, with `alpha`, `beta` and transposition folded
//! into the constants.

use qail_ir::{Binary, BinaryFn, ConstData, Constant, Linear, MatMul, Op, Reshape, TensorType, Transpose};

use super::{OpError, builder::Tensor, cx::NodeCx};

/// `alpha * A' * B' + beta * C`.
pub(super) fn gemm(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.float(0)?, cx.float(1)?);
    let c = cx.optional(2);
    let alpha = cx.number("alpha")?.unwrap_or(1.0);
    let beta = cx.number("beta")?.unwrap_or(1.0);
    let transpose_a = cx.int("transA")?.unwrap_or(0) != 0;
    let transpose_b = cx.int("transB")?.unwrap_or(0) != 0;
    if cx.ty(a).shape.len() != 2 || cx.ty(b).shape.len() != 2 {
        return Err(OpError::invalid(format!("gemm takes matrices, found {} and {}", cx.ty(a), cx.ty(b))));
    }
    let swap = || Op::Transpose(Transpose { perm: vec![1, 0] });
    let x = if transpose_a { cx.emit_part("rows", swap(), &[a])? } else { a };

    if matches!((x, b), (Tensor::Computed(_), Tensor::Known(_))) {
        let reader = cx.result(0);
        let w = cx.builder.weight(b, transpose_b, alpha, &reader)?;
        let n = cx.ty(w).shape.last().copied().unwrap_or(1);
        if let Some(c) = c {
            cx.expect_float(c)?;
        }
        return match bias(cx, c, beta, n)? {
            Some(bias) => Ok(vec![cx.emit(Op::Linear(Linear { act: None, groups: 1 }), &[x, w, bias])?]),
            None => {
                let zero = zero_bias(cx, n);
                let product = cx.emit_part("product", Op::Linear(Linear { act: None, groups: 1 }), &[x, w, zero])?;
                add_scaled(cx, product, c, beta)
            }
        };
    }
    let w = if transpose_b { cx.emit_part("columns", swap(), &[b])? } else { b };
    let product = cx.emit_part("product", Op::MatMul(MatMul), &[x, w])?;
    let product = scale(cx, "scaled", product, alpha)?;
    add_scaled(cx, product, c, beta)
}

/// `product + beta * c`; the sum is the node's result.
fn add_scaled(cx: &mut NodeCx<'_>, product: Tensor, c: Option<Tensor>, beta: f32) -> Result<Vec<Tensor>, OpError> {
    let Some(c) = c else { return Ok(vec![product]) };
    cx.expect_float(c)?;
    let c = scale(cx, "addend", c, beta)?;
    let expected = cx.shape(product);
    let sum = cx.emit(Op::Binary(Binary { f: BinaryFn::Add }), &[product, c])?;
    if cx.ty(sum).shape != expected {
        return Err(OpError::invalid("the addend does not broadcast to the product"));
    }
    Ok(vec![sum])
}

fn scale(cx: &mut NodeCx<'_>, part: &str, x: Tensor, factor: f32) -> Result<Tensor, OpError> {
    if factor == 1.0 {
        return Ok(x);
    }
    let factor = cx.known_part("factor", Constant::f32([], &[factor]));
    cx.emit_part(part, Op::Binary(Binary { f: BinaryFn::Mul }), &[x, factor])
}

/// `beta * c` as `b[N]`, if it is known and the same for every row.
fn bias(cx: &mut NodeCx<'_>, c: Option<Tensor>, beta: f32, n: usize) -> Result<Option<Tensor>, OpError> {
    let Some(c) = c else { return Ok(Some(zero_bias(cx, n))) };
    let Some(constant) = cx.constant(c).cloned() else { return Ok(None) };
    let shape = &constant.ty.shape;
    let width = shape.last().copied().unwrap_or(1);
    if constant.ty.n_elements() != width || shape.len() > 2 || (width != 1 && width != n) {
        return Ok(None);
    }
    if beta == 1.0 && *shape == [n] {
        return Ok(Some(c));
    }
    let elements = constant.all_f32()?;
    let widened: Vec<f32> = (0..n).filter_map(|i| elements.get(i % width)).map(|x| x * beta).collect();
    cx.builder.reserve(&TensorType::f32([n]))?;
    Ok(Some(cx.known_part("bias", Constant::f32([n], &widened))))
}

fn zero_bias(cx: &mut NodeCx<'_>, n: usize) -> Tensor {
    cx.known_part("bias", Constant { ty: TensorType::f32([n]), data: ConstData::Splat(0.0) })
}

/// NumPy's product of matrices: vectors get an axis and lose it again.
pub(super) fn matmul(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.float(0)?, cx.float(1)?);
    let (shape_a, shape_b) = (cx.shape(a), cx.shape(b));
    if shape_a.is_empty() || shape_b.is_empty() {
        return Err(OpError::invalid("a product of matrices takes no scalars"));
    }
    let b = match shape_b[..] {
        [k] => cx.emit_part("columns", Op::Reshape(Reshape { shape: vec![k, 1] }), &[b])?,
        _ => b,
    };
    let linear = cx.ty(b).shape.len() == 2 && matches!((a, b), (Tensor::Computed(_), Tensor::Known(_)));
    let a = match shape_a[..] {
        // `linear` takes a vector as it is.
        [k] if !linear => cx.emit_part("rows", Op::Reshape(Reshape { shape: vec![1, k] }), &[a])?,
        _ => a,
    };
    let (op, operands) = if linear {
        let zero = zero_bias(cx, cx.ty(b).shape.last().copied().unwrap_or(1));
        (Op::Linear(Linear { act: None, groups: 1 }), vec![a, b, zero])
    } else {
        (Op::MatMul(MatMul), vec![a, b])
    };
    if shape_b.len() > 1 && (linear || shape_a.len() > 1) {
        return Ok(vec![cx.emit(op, &operands)?]);
    }
    let product = cx.emit_part("product", op, &operands)?;
    let mut shape = cx.shape(product);
    if shape_b.len() == 1 {
        shape.pop();
    }
    if shape_a.len() == 1 && !linear {
        let rows_axis = shape.len().saturating_sub(if shape_b.len() == 1 { 1 } else { 2 });
        shape.remove(rows_axis);
    }
    Ok(vec![cx.emit(Op::Reshape(Reshape { shape }), &[product])?])
}
