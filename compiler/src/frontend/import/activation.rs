//! Functions of one number.

use qail_ir::{Binary, BinaryFn, Op, Unary, UnaryFn};

use super::{OpError, builder::Tensor, cx::NodeCx};

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

/// Bounds are attributes before opset 11, then operands; each may be missing.
pub(super) fn clip(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let mut x = cx.float(0)?;
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
