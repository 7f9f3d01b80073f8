//! Functions of two and more tensors, with NumPy broadcasting. Arithmetic on
//! integers is exact: a result that does not fit is an error, not a wrap.

use qail_ir::{Binary, BinaryFn, Cast, Constant, DType, Op, TensorType, UnaryFn};

use super::{
    OpError, activation,
    builder::{Tensor, is_integer},
    cx::NodeCx,
};

/// `f(a, b)`.
pub(super) fn binary(cx: &mut NodeCx<'_>, f: BinaryFn) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    let name = cx.result(0);
    Ok(vec![apply(cx, name, f, a, b)?])
}

/// `-x`, of integers, too: shape arithmetic counts backwards.
pub(super) fn neg(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    if !is_integer(cx.ty(x)) {
        return activation::unary(cx, UnaryFn::Neg);
    }
    let ty = TensorType { elem: cx.ty(x).elem, shape: vec![] };
    let zero = cx.known_part("zero", Constant::ints(ty, &[0]));
    let name = cx.result(0);
    Ok(vec![apply(cx, name, BinaryFn::Sub, zero, x)?])
}

/// `a^b`, whose exponent may have another type.
pub(super) fn pow(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (base, exponent) = (cx.operand(0)?, cx.operand(1)?);
    if cx.ty(base).elem == cx.ty(exponent).elem {
        return binary(cx, BinaryFn::Pow);
    }
    if is_integer(cx.ty(base)) {
        // The result has the type of the base.
        let to = cx.ty(base).dtype().unwrap_or(DType::F32);
        let wide = if is_integer(cx.ty(exponent)) { DType::I64 } else { DType::F32 };
        let (a, b) = (cx.cast_to(base, wide)?, cx.cast_to(exponent, wide)?);
        let power = cx.zip(BinaryFn::Pow, a, b)?;
        return Ok(vec![cx.cast_to(power, to)?]);
    }
    let a = cx.float(0)?;
    let mut b = cx.operand(1)?;
    if let (true, Some(constant)) = (is_integer(cx.ty(b)), cx.constant(b)) {
        let ty = TensorType::plain(DType::F32, constant.ty.shape.clone());
        let elements = constant.all_f32()?;
        cx.builder.reserve(&ty)?;
        b = cx.known_part("exponent", Constant::f32(ty.shape, &elements));
    } else if is_integer(cx.ty(b)) {
        b = cx.emit_part("exponent", Op::Cast(Cast { to: DType::F32 }), &[b])?;
    }
    let name = cx.result(0);
    Ok(vec![apply(cx, name, BinaryFn::Pow, a, b)?])
}

/// `f(f(a, b), c)` and so on.
pub(super) fn variadic(cx: &mut NodeCx<'_>, f: BinaryFn) -> Result<Vec<Tensor>, OpError> {
    let operands = cx.all_operands()?;
    let (Some((&first, rest)), n) = (operands.split_first(), operands.len()) else {
        return Err(OpError::invalid("it has no operands"));
    };
    let mut result = first;
    for (i, &operand) in (2..).zip(rest) {
        let name = if i == n { cx.result(0) } else { format!("{}.{i}", cx.result(0)) };
        result = apply(cx, name, f, result, operand)?;
    }
    Ok(vec![result])
}

fn apply(cx: &mut NodeCx<'_>, name: String, f: BinaryFn, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
    let known = cx.constant(a).is_some() && cx.constant(b).is_some();
    if known && is_integer(cx.ty(a)) && is_integer(cx.ty(b)) {
        let result = cx.builder.emit(name, Op::Binary(Binary { f }), &[a, b], &cx.origin)?;
        return match result {
            Tensor::Known(_) => Ok(result),
            Tensor::Computed(_) | Tensor::Codes(..) => {
                Err(OpError::invalid("its result does not fit the type of its operands"))
            }
        };
    }
    let number = |x: Tensor| cx.ty(x).dtype().is_some_and(|dtype| dtype != DType::Bool);
    if !number(a) || !number(b) {
        return Err(OpError::unsupported("arithmetic on truth values is not supported", "cast them to numbers"));
    }
    cx.builder.emit(name, Op::Binary(Binary { f }), &[a, b], &cx.origin)
}

/// The mean of all operands.
pub(super) fn mean(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let n = cx.operands.len();
    let sum = match variadic(cx, BinaryFn::Add)?[..] {
        [sum] => sum,
        _ => return Err(OpError::invalid("it has no operands")),
    };
    cx.expect_float(sum)?;
    let n = cx.scalar(n as f32);
    Ok(vec![cx.zip(BinaryFn::Div, sum, n)?])
}

/// The remainder: of the floored quotient, or with `fmod` of the truncated one.
pub(super) fn modulo(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let truncated = cx.int("fmod")?.unwrap_or(0) != 0;
    binary(cx, if truncated { BinaryFn::Rem } else { BinaryFn::Mod })
}
