//! Sums, means and extremes over axes.

use qail_ir::{Op, Reduce, ReduceFn};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// Axes are an attribute before `operand_since`, then an operand.
pub(super) fn reduce(cx: &mut NodeCx<'_>, f: ReduceFn, operand_since: i64) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let rank = cx.ty(x).shape.len();
    let keep_dims = cx.int("keepdims")?.unwrap_or(1) != 0;
    let (axes, none_is_nothing) = if cx.opset < operand_since {
        (cx.int_list("axes")?, false)
    } else {
        (cx.ints(1, "list of axes")?, cx.int("noop_with_empty_axes")?.unwrap_or(0) != 0)
    };
    let axes = match axes.filter(|axes| !axes.is_empty()) {
        Some(axes) => cx::axes(&axes, rank)?,
        None if none_is_nothing => return Ok(vec![x]),
        None => (0..rank).collect(),
    };
    if axes.is_empty() {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Op::Reduce(Reduce { f, axes, keep_dims }), &[x])?])
}
