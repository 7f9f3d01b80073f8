//! Functions of one number.

use qail_ir::{Binary, BinaryFn, CompareFn, Op, Unary, UnaryFn};

use super::{
    OpError,
    builder::{Tensor, is_integer},
    cx::NodeCx,
};
use crate::frontend::error::shown;

/// A function without parameters.
pub(super) fn unary(cx: &mut NodeCx<'_>, f: UnaryFn) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    Ok(vec![cx.emit(Op::Unary(Unary { f }), &[x])?])
}

/// `x` or `alpha * x`.
pub(super) fn leaky_relu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(0.01);
    unary(cx, UnaryFn::LeakyRelu { alpha })
}

/// `x` or `alpha * (exp(x) - 1)`.
pub(super) fn elu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(1.0);
    unary(cx, UnaryFn::Elu { alpha })
}

/// `x` or `gamma * alpha * (exp(x) - 1)`, all of it times `gamma`.
pub(super) fn selu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(1.673_263_2);
    let gamma = cx.number("gamma")?.unwrap_or(1.050_701);
    unary(cx, UnaryFn::Selu { alpha, gamma })
}

/// `x` or `alpha * (exp(x / alpha) - 1)`.
pub(super) fn celu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(1.0);
    unary(cx, UnaryFn::Celu { alpha })
}

/// `min(max(alpha * x + beta, 0), 1)`.
pub(super) fn hard_sigmoid(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let alpha = cx.number("alpha")?.unwrap_or(0.2);
    let beta = cx.number("beta")?.unwrap_or(0.5);
    unary(cx, UnaryFn::HardSigmoid { alpha, beta })
}

/// `x * sigmoid(alpha * x)`.
pub(super) fn swish(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    match cx.number("alpha")?.unwrap_or(1.0) {
        1.0 => unary(cx, UnaryFn::Silu),
        alpha => unary(cx, UnaryFn::Swish { alpha }),
    }
}

/// With the error function, or with the hyperbolic tangent near it.
pub(super) fn gelu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    match cx.text("approximate")?.as_deref() {
        None | Some("none") => unary(cx, UnaryFn::Gelu),
        Some("tanh") => unary(cx, UnaryFn::GeluTanh),
        Some(other) => Err(OpError::invalid(format!("its approximation is {}", shown(other)))),
    }
}

/// `x` or `slope * x`, with a slope for every channel.
pub(super) fn prelu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, slope) = (cx.float(0)?, cx.float(1)?);
    if let Some(Some(alpha)) = cx.constant(slope).map(One::all_f32_of_one).transpose()? {
        return unary(cx, UnaryFn::LeakyRelu { alpha });
    }
    let above = cx.map(UnaryFn::Relu, x)?;
    let below = cx.map(UnaryFn::Clip { min: f32::NEG_INFINITY, max: 0.0 }, x)?;
    let below = cx.mul(below, slope)?;
    let y = cx.add(above, below)?;
    if cx.ty(y).shape != cx.ty(x).shape {
        return Err(OpError::invalid("its slope does not broadcast to its operand"));
    }
    Ok(vec![y])
}

/// `x` above the threshold, else 0.
pub(super) fn thresholded_relu(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let alpha = cx.number("alpha")?.unwrap_or(1.0);
    let (alpha, zero) = (cx.scalar(alpha), cx.scalar(0.0));
    let above = cx.compare(CompareFn::Gt, x, alpha)?;
    Ok(vec![cx.choose(above, x, zero)?])
}

/// Nearer to 0 by `bias`, and 0 between the thresholds.
pub(super) fn shrink(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let lambda = cx.number("lambd")?.unwrap_or(0.5);
    let bias = cx.number("bias")?.unwrap_or(0.0);
    let (low, high, bias, zero) = (cx.scalar(-lambda), cx.scalar(lambda), cx.scalar(bias), cx.scalar(0.0));
    let (up, down) = (cx.add(x, bias)?, cx.zip(BinaryFn::Sub, x, bias)?);
    let (below, above) = (cx.compare(CompareFn::Lt, x, low)?, cx.compare(CompareFn::Gt, x, high)?);
    let rest = cx.choose(above, down, zero)?;
    Ok(vec![cx.choose(below, up, rest)?])
}

/// `|x|`, of integers, too.
pub(super) fn abs(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    if !is_integer(cx.ty(x)) {
        return unary(cx, UnaryFn::Abs);
    }
    let zero = cx.scalar_like(x, 0.0);
    let negative = cx.compare(CompareFn::Lt, x, zero)?;
    let other = cx.zip(BinaryFn::Sub, zero, x)?;
    Ok(vec![cx.choose(negative, other, x)?])
}

/// Bounds are attributes before opset 11, then operands; each may be missing.
pub(super) fn clip(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let mut x = cx.operand(0)?;
    if is_integer(cx.ty(x)) {
        for (index, f) in [(1, BinaryFn::Max), (2, BinaryFn::Min)] {
            let Some(bound) = cx.optional(index) else { continue };
            x = cx.zip(f, x, bound)?;
        }
        return Ok(vec![x]);
    }
    if cx.opset < 11 {
        let bound = |found: Option<f32>, none: f32| found.filter(|found| found.abs() < f32::MAX).unwrap_or(none);
        let min = bound(cx.number("min")?, f32::NEG_INFINITY);
        let max = bound(cx.number("max")?, f32::INFINITY);
        return unary(cx, UnaryFn::Clip { min, max });
    }
    let (min, max) = (cx.optional(1), cx.optional(2));
    match (scalar(cx, min)?, scalar(cx, max)?) {
        (Some(min), Some(max)) => {
            let (min, max) = (min.unwrap_or(f32::NEG_INFINITY), max.unwrap_or(f32::INFINITY));
            unary(cx, UnaryFn::Clip { min, max })
        }
        // A bound that is computed.
        _ => {
            let name = cx.result(0);
            let bounds = [(min, BinaryFn::Max, format!("{name}.low")), (max, BinaryFn::Min, name)];
            for (bound, f, name) in bounds {
                let Some(bound) = bound else { continue };
                if cx.ty(bound).n_elements() != 1 {
                    return Err(OpError::invalid(format!("a bound is {}, not one number", cx.ty(bound))));
                }
                x = cx.builder.emit(name, Op::Binary(Binary { f }), &[x, bound], &cx.origin)?;
            }
            Ok(vec![x])
        }
    }
}

/// A bound: `None` if it is computed, `Some(None)` if it is left out.
fn scalar(cx: &NodeCx<'_>, bound: Option<Tensor>) -> Result<Option<Option<f32>>, OpError> {
    let Some(bound) = bound else { return Ok(Some(None)) };
    cx.expect_float(bound)?;
    let Some(constant) = cx.constant(bound) else { return Ok(None) };
    match constant.all_f32_of_one()? {
        Some(x) if x.is_nan() => Err(OpError::invalid("a bound is not a number")),
        Some(x) => Ok(Some(Some(x))),
        None => Err(OpError::invalid(format!("a bound is {}, not one number", constant.ty))),
    }
}

/// Reads a constant of one element.
trait One {
    fn all_f32_of_one(&self) -> Result<Option<f32>, OpError>;
}

impl One for qail_ir::Constant {
    fn all_f32_of_one(&self) -> Result<Option<f32>, OpError> {
        if self.ty.n_elements() != 1 {
            return Ok(None);
        }
        Ok(self.read_f32(0..1)?.first().copied())
    }
}
