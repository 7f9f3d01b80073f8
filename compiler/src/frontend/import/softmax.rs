//! Softmax, its logarithm, and the hard one.

use qail_ir::{ArgReduce, CompareFn, DType};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// The operand and the axis. Before opset 13 everything from the axis on is one row.
fn row(cx: &mut NodeCx<'_>) -> Result<(Tensor, usize), OpError> {
    let x = cx.float(0)?;
    let shape = cx.shape(x);
    let asked = cx.int("axis")?.unwrap_or(if cx.opset < 13 { 1 } else { -1 });
    if cx.opset >= 13 {
        return Ok((x, cx::axis(asked, shape.len())?));
    }
    // The axis may be one past the last.
    let axis = if asked == shape.len() as i64 { shape.len() } else { cx::axis(asked, shape.len())? };
    if axis + 1 == shape.len() {
        return Ok((x, axis));
    }
    let (outer, inner) = shape.split_at(axis);
    let rows = cx.reshaped(x, [outer.iter().product(), inner.iter().product::<usize>()])?;
    Ok((rows, 1))
}

/// Numbers that sum to 1, or their logarithms.
pub(super) fn softmax(cx: &mut NodeCx<'_>, log: bool) -> Result<Vec<Tensor>, OpError> {
    let shape = cx.operand(0).map(|x| cx.shape(x))?;
    let (x, axis) = row(cx)?;
    let y = cx.softmax(x, axis, log)?;
    Ok(vec![cx.reshaped(y, shape)?])
}

/// 1 for the first largest number of a row, else 0.
pub(super) fn hardmax(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let shape = cx.operand(0).map(|x| cx.shape(x))?;
    let (x, axis) = row(cx)?;
    let largest = cx.extreme(x, ArgReduce { largest: true, axis, keep_dims: true, last: false })?;
    let n = cx.extent(x, axis)?;
    let mut counted = vec![1; cx.ty(x).shape.len()];
    counted[axis] = n;
    let places = cx.table(&counted, |i| i as i64)?;
    let hit = cx.compare(CompareFn::Eq, places, largest)?;
    let y = cx.cast_to(hit, DType::F32)?;
    Ok(vec![cx.reshaped(y, shape)?])
}
