//! Comparisons, truth values, choice, and the bits of integers.

use qail_ir::{BinaryFn, CompareFn, Constant, DType, TensorType, UnaryFn};

use super::{OpError, builder::Tensor, cx::NodeCx};

/// `a < b` and the like.
pub(super) fn compare(cx: &mut NodeCx<'_>, f: CompareFn) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    Ok(vec![cx.compare(f, a, b)?])
}

fn truth(cx: &NodeCx<'_>, index: usize) -> Result<Tensor, OpError> {
    let x = cx.operand(index)?;
    match cx.ty(x).dtype() {
        Some(DType::Bool) => Ok(x),
        _ => Err(OpError::invalid(format!("operand {index} is {}, not truth values", cx.ty(x)))),
    }
}

/// Truth values are 0 and 1: and is the smaller one, or the larger one.
pub(super) fn combine(cx: &mut NodeCx<'_>, f: BinaryFn) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (truth(cx, 0)?, truth(cx, 1)?);
    Ok(vec![cx.zip(f, a, b)?])
}

/// Either, not both.
pub(super) fn xor(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (truth(cx, 0)?, truth(cx, 1)?);
    Ok(vec![cx.compare(CompareFn::Ne, a, b)?])
}

/// The other truth value.
pub(super) fn not(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = truth(cx, 0)?;
    let no = cx.scalar_like(x, 0.0);
    Ok(vec![cx.compare(CompareFn::Eq, x, no)?])
}

/// Not a number.
pub(super) fn is_nan(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    Ok(vec![cx.compare(CompareFn::Ne, x, x)?])
}

/// Infinite, of one sign or both.
pub(super) fn is_inf(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let below = cx.int("detect_negative")?.unwrap_or(1) != 0;
    let above = cx.int("detect_positive")?.unwrap_or(1) != 0;
    let (x, sign) = match (below, above) {
        (true, true) => (cx.map(UnaryFn::Abs, x)?, 1.0),
        (false, true) => (x, 1.0),
        (true, false) => (x, -1.0),
        (false, false) => {
            let never = cx.compare(CompareFn::Ne, x, x)?;
            let no = cx.scalar_like(never, 0.0);
            return Ok(vec![cx.zip(BinaryFn::Min, never, no)?]);
        }
    };
    let infinity = cx.scalar(sign * f32::INFINITY);
    Ok(vec![cx.compare(CompareFn::Eq, x, infinity)?])
}

/// One or the other.
pub(super) fn choose(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (c, a, b) = (truth(cx, 0)?, cx.operand(1)?, cx.operand(2)?);
    Ok(vec![cx.choose(c, a, b)?])
}

/// Functions of the bits of two integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    /// Both.
    And,
    /// Either or both.
    Or,
    /// Either, not both.
    Xor,
}

/// Of integers that are known: bits mean nothing to a policy, but something to masks.
pub(super) fn bits(cx: &mut NodeCx<'_>, f: Bits) -> Result<Vec<Tensor>, OpError> {
    known_bits(cx, |a, b| match f {
        Bits::And => a & b,
        Bits::Or => a | b,
        Bits::Xor => a ^ b,
    })
}

/// The other bits.
pub(super) fn bits_not(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let ty = cx.ty(x).clone();
    let elements = known(cx, x)?;
    let wrap = wrapper(&ty)?;
    let elements: Vec<i64> = elements.into_iter().map(|x| wrap(!x)).collect();
    cx.builder.reserve(&ty)?;
    Ok(vec![cx.known(Constant::ints(ty, &elements))])
}

/// Bits moved up or down; zeros follow.
pub(super) fn shift(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let left = match cx.text("direction")?.as_deref() {
        Some("LEFT") => true,
        Some("RIGHT") => false,
        found => return Err(OpError::invalid(format!("its direction is {found:?}"))),
    };
    known_bits(cx, move |a, b| {
        let by = u32::try_from(b).unwrap_or(u32::MAX);
        if left { a.checked_shl(by).unwrap_or(0) } else { (a as u64).checked_shr(by).unwrap_or(0) as i64 }
    })
}

fn known(cx: &NodeCx<'_>, x: Tensor) -> Result<Vec<i64>, OpError> {
    let constant = cx.constant(x).ok_or_else(|| {
        OpError::unsupported("the bits of computed integers are not supported", "compute with numbers instead")
    })?;
    Ok(constant.all_int()?)
}

/// Drops the bits that the type does not have.
fn wrapper(ty: &TensorType) -> Result<fn(i64) -> i64, OpError> {
    match ty.dtype() {
        Some(DType::U8) => Ok(|x| i64::from(x as u8)),
        Some(DType::I32) => Ok(|x| i64::from(x as i32)),
        Some(DType::I64) => Ok(|x| x),
        _ => Err(OpError::invalid(format!("{ty} has no bits"))),
    }
}

fn known_bits(cx: &mut NodeCx<'_>, f: impl Fn(i64, i64) -> i64) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    if cx.ty(a).elem != cx.ty(b).elem {
        return Err(OpError::invalid(format!("operands of the types {} and {}", cx.ty(a), cx.ty(b))));
    }
    known(cx, a)?;
    known(cx, b)?;
    // A comparison broadcasts as they do.
    let like = cx.compare(CompareFn::Eq, a, b)?;
    let ty = TensorType { elem: cx.ty(a).elem, shape: cx.shape(like) };
    let wrap = wrapper(&ty)?;
    let (a, b) = (cx.expanded(a, ty.shape.clone())?, cx.expanded(b, ty.shape.clone())?);
    let (a, b) = (known(cx, a)?, known(cx, b)?);
    let elements: Vec<i64> = a.iter().zip(&b).map(|(&a, &b)| wrap(f(a, b))).collect();
    cx.builder.reserve(&ty)?;
    Ok(vec![cx.known(Constant::ints(ty, &elements))])
}
