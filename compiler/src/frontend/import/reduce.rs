//! Sums, means and extremes over axes.

use qail_ir::{BinaryFn, DType, ReduceFn, UnaryFn};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// The operand, its axes, and whether they stay as 1; none if there is nothing to do.
type Asked = (Tensor, Option<Vec<usize>>, bool);

/// Axes are an attribute before `operand_since`, then an operand.
fn asked(cx: &NodeCx<'_>, operand_since: i64) -> Result<Asked, OpError> {
    let x = cx.operand(0)?;
    let rank = cx.ty(x).shape.len();
    let keep_dims = cx.int("keepdims")?.unwrap_or(1) != 0;
    let (axes, none_is_nothing) = if cx.opset < operand_since {
        (cx.int_list("axes")?, false)
    } else {
        (cx.ints(1, "list of axes")?, cx.int("noop_with_empty_axes")?.unwrap_or(0) != 0)
    };
    let axes = match axes.filter(|axes| !axes.is_empty()) {
        Some(axes) => Some(cx::axes(&axes, rank)?),
        None if none_is_nothing => None,
        None => Some((0..rank).collect()),
    };
    Ok((x, axes, keep_dims))
}

/// One of the functions of the graph.
pub(super) fn reduce(cx: &mut NodeCx<'_>, f: ReduceFn, operand_since: i64) -> Result<Vec<Tensor>, OpError> {
    let (x, axes, keep_dims) = asked(cx, operand_since)?;
    let axes = axes.unwrap_or_default();
    let truth = cx.ty(x).dtype() == Some(DType::Bool);
    // Of truth values the largest is "any", the smallest "all".
    let numbers = if truth { cx.cast_to(x, DType::U8)? } else { x };
    let y = cx.reduced(f, numbers, &axes, keep_dims)?;
    Ok(vec![if truth { cx.cast_to(y, DType::Bool)? } else { y }])
}

/// What happens to each number before its sum, and to the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    /// `sum |x|`.
    L1,
    /// `sqrt(sum x^2)`.
    L2,
    /// `ln(sum x)`.
    LogSum,
    /// `ln(sum exp(x))`.
    LogSumExp,
    /// `sum x^2`.
    SumSquare,
}

/// A sum with a function before or behind it.
pub(super) fn norm(cx: &mut NodeCx<'_>, norm: Norm) -> Result<Vec<Tensor>, OpError> {
    let (x, axes, keep_dims) = asked(cx, 18)?;
    if !matches!(norm, Norm::L1 | Norm::SumSquare) {
        cx.expect_float(x)?;
    }
    let axes = axes.unwrap_or_default();
    let sum = |cx: &mut NodeCx<'_>, x: Tensor| cx.reduced(ReduceFn::Sum, x, &axes, keep_dims);
    Ok(vec![match norm {
        Norm::L1 => {
            let size = match cx.ty(x).is_f32() {
                true => cx.map(UnaryFn::Abs, x)?,
                false => {
                    let zero = cx.scalar_like(x, 0.0);
                    let other = cx.zip(BinaryFn::Sub, zero, x)?;
                    cx.zip(BinaryFn::Max, x, other)?
                }
            };
            sum(cx, size)?
        }
        Norm::SumSquare => {
            let square = cx.mul(x, x)?;
            sum(cx, square)?
        }
        Norm::L2 => {
            let square = cx.mul(x, x)?;
            let sum = sum(cx, square)?;
            cx.map(UnaryFn::Sqrt, sum)?
        }
        Norm::LogSum => {
            let sum = sum(cx, x)?;
            cx.map(UnaryFn::Log, sum)?
        }
        Norm::LogSumExp => {
            // Of the largest number nothing is left to overflow.
            let largest = cx.reduced(ReduceFn::Max, x, &axes, true)?;
            let distance = cx.zip(BinaryFn::Sub, x, largest)?;
            let power = cx.map(UnaryFn::Exp, distance)?;
            let sum = sum(cx, power)?;
            let log = cx.map(UnaryFn::Log, sum)?;
            let largest = cx.reshaped(largest, cx.shape(log))?;
            cx.add(log, largest)?
        }
    }])
}
