//! Slice and Split: parts of a tensor along its axes.

use qail_ir::{ConstData, Constant, Op, Slice, SliceAxis};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// Starts, ends, axes and steps are attributes before opset 10, then operands.
pub(super) fn slice(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let old = cx.shape(x);
    let missing = || OpError::invalid("it has no starts or ends");
    let (starts, ends, axes, steps) = if cx.opset < 10 {
        (cx.int_list("starts")?, cx.int_list("ends")?, cx.int_list("axes")?, None)
    } else {
        (cx.ints(1, "start")?, cx.ints(2, "end")?, cx.ints(3, "list of axes")?, cx.ints(4, "step")?)
    };
    let (starts, ends) = (starts.ok_or_else(missing)?, ends.ok_or_else(missing)?);
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(OpError::invalid("its starts, ends, axes and steps differ in number"));
    }
    cx::axes(&axes, old.len())?;
    let mut parts = whole(&old);
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = cx::axis(axis, old.len())?;
        parts[axis] = part(start, end, step, old[axis])?;
    }
    if parts == whole(&old) {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Op::Slice(Slice { axes: parts }), &[x])?])
}

/// Every element of every axis.
pub(super) fn whole(shape: &[usize]) -> Vec<SliceAxis> {
    shape.iter().map(|&len| SliceAxis { start: 0, len, step: 1 }).collect()
}

/// One axis of a slice: bounds count from the end if negative, and are clamped.
fn part(start: i64, end: i64, step: i64, extent: usize) -> Result<SliceAxis, OpError> {
    let n = i64::try_from(extent).unwrap_or(i64::MAX);
    let from_start = |bound: i64| if bound < 0 { bound.saturating_add(n) } else { bound };
    let (start, end) = (from_start(start), from_start(end));
    if n == 0 {
        return Ok(SliceAxis { start: 0, len: 0, step: 1 });
    }
    let (start, distance) = match step {
        0 => return Err(OpError::invalid("a step is 0")),
        1.. => {
            let start = start.clamp(0, n);
            (start, end.clamp(0, n) - start)
        }
        _ => {
            let start = start.clamp(0, n - 1);
            (start, start - end.clamp(-1, n - 1))
        }
    };
    let len = if distance > 0 { (distance as u64).div_ceil(step.unsigned_abs()) as usize } else { 0 };
    // A step beyond the axis takes one element, so its size does not matter.
    let step = if len <= 1 { 1 } else { step as isize };
    Ok(SliceAxis { start: start as usize, len, step })
}

/// Sizes come from an attribute before opset 13, then from an operand, or all
/// parts are alike.
pub(super) fn split(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let old = cx.shape(x);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), old.len())?;
    let n_parts = cx.node.output.len();
    let extent = old[axis];
    let sizes = if cx.opset < 13 { cx.int_list("split")? } else { cx.ints(1, "list of sizes")? };
    let asked = if cx.opset < 18 { None } else { cx.int("num_outputs")? };
    if asked.is_some_and(|asked| usize::try_from(asked) != Ok(n_parts)) {
        return Err(OpError::invalid(format!("it has {n_parts} results, not `num_outputs`")));
    }
    let sizes: Vec<usize> = match sizes {
        Some(sizes) => sizes.iter().filter_map(|&size| usize::try_from(size).ok()).collect(),
        None => {
            // The last part may be smaller.
            let size = extent.div_ceil(n_parts.max(1));
            (0..n_parts).map(|i| extent.saturating_sub(i.saturating_mul(size)).min(size)).collect()
        }
    };
    let total = sizes.iter().try_fold(0usize, |total, &size| total.checked_add(size));
    if sizes.len() != n_parts || total != Some(extent) {
        return Err(OpError::invalid(format!("{extent} elements do not split into {n_parts} parts {sizes:?}")));
    }
    let mut start = 0;
    let mut results = Vec::with_capacity(n_parts);
    for (i, &len) in sizes.iter().enumerate() {
        let mut axes = whole(&old);
        axes[axis] = SliceAxis { start, len, step: 1 };
        start += len;
        // A part that nobody reads is not made. One without elements is a
        // constant: rotary embeddings split off what is not rotated, and join
        // it again.
        results.push(match cx.needed.get(i) {
            Some(true) if len == 0 => empty(cx, i, x, axis),
            Some(true) => cx.emit_result(i, Op::Slice(Slice { axes }), &[x])?,
            Some(false) | None => x,
        });
    }
    Ok(results)
}

/// Result `slot`: as `x`, but without elements along `axis`.
fn empty(cx: &mut NodeCx<'_>, slot: usize, x: Tensor, axis: usize) -> Tensor {
    let mut ty = cx.ty(x).clone();
    ty.shape[axis] = 0;
    let name = cx.result(slot);
    cx.builder.known(name, Constant { ty, data: ConstData::Splat(0.0) }, cx.origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(start: i64, end: i64, step: i64, extent: usize) -> Vec<usize> {
        let part = part(start, end, step, extent).unwrap();
        (0..part.len).map(|i| part.start.wrapping_add_signed(i as isize * part.step)).collect()
    }

    #[test]
    fn bounds_are_those_of_numpy() {
        assert_eq!(elements(1, 3, 1, 5), [1, 2]);
        assert_eq!(elements(-2, i64::MAX, 1, 5), [3, 4]);
        assert_eq!(elements(0, -1, 2, 5), [0, 2]);
        assert_eq!(elements(-1, i64::MIN, -1, 3), [2, 1, 0]);
        assert_eq!(elements(4, 0, -2, 5), [4, 2]);
        assert_eq!(elements(3, 1, 1, 5), [0usize; 0]);
        assert_eq!(elements(0, 5, i64::MAX, 5), [0]);
        assert_eq!(elements(9, i64::MIN, i64::MIN, 5), [4]);
        assert_eq!(elements(0, -1, -1, 0), [0usize; 0]);
    }
}
