//! Tensors that grow, shrink, repeat, or lose a triangle.

use qail_ir::{DType, Window};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};
use crate::frontend::error::shown;

/// Padding before and behind each axis; negative to cut off.
fn amounts(cx: &NodeCx<'_>, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let (pads, axes) = if cx.opset < 11 {
        (cx.int_list("pads")?, None)
    } else {
        (cx.ints(1, "padding")?, cx.ints(3, "list of axes")?)
    };
    let pads = pads.ok_or_else(|| OpError::invalid("it has no padding"))?;
    let axes: Vec<usize> = match axes {
        Some(axes) => axes.iter().map(|&axis| cx::axis(axis, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() || pads.iter().any(|pad| pad.unsigned_abs() > 1 << 30) {
        return Err(OpError::invalid(format!("its padding is {pads:?} for {} axes", axes.len())));
    }
    let mut amounts = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        amounts[axis] = (pads[i], pads[axes.len() + i]);
    }
    Ok(amounts)
}

/// A border of one number, or of what lies inside.
pub(super) fn pad(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let shape = cx.shape(x);
    let amounts = amounts(cx, shape.len())?;
    let mut out = Vec::with_capacity(shape.len());
    for (&extent, (before, behind)) in shape.iter().zip(&amounts) {
        let new = usize::try_from(extent as i64 + before + behind).ok().filter(|&new| new > 0);
        out.push(new.ok_or_else(|| OpError::invalid(format!("its padding leaves nothing of {shape:?}")))?);
    }
    let value = if cx.opset < 11 { None } else { cx.optional(2) };
    let number = if cx.opset < 11 { cx.number("value")?.unwrap_or(0.0) } else { 0.0 };
    match cx.text("mode")?.as_deref() {
        None | Some("constant") => Ok(vec![framed(cx, x, &amounts, &out, value, number)?]),
        Some(mode @ ("edge" | "reflect" | "wrap")) => {
            let mut y = x;
            for (axis, (&(before, behind), &extent)) in amounts.iter().zip(&shape).enumerate() {
                if (before, behind) == (0, 0) {
                    continue;
                }
                let n = extent as i64;
                let index = cx.table(&[out[axis]], |i| {
                    let at = i as i64 - before;
                    match mode {
                        "edge" => at.clamp(0, n - 1),
                        "wrap" => at.rem_euclid(n),
                        _ => reflected(at, n),
                    }
                })?;
                y = cx.looked_up(y, index, axis)?;
            }
            Ok(vec![y])
        }
        Some(other) => Err(OpError::invalid(format!("its mode is {}", shown(other)))),
    }
}

/// A place of `n` that turns around at both ends.
fn reflected(at: i64, n: i64) -> i64 {
    let period = (2 * n - 2).max(1);
    let at = at.rem_euclid(period);
    at.min(period - at).min(n - 1)
}

/// A border of one number that may be computed.
fn framed(
    cx: &mut NodeCx<'_>,
    x: Tensor,
    amounts: &[(i64, i64)],
    out: &[usize],
    value: Option<Tensor>,
    number: f32,
) -> Result<Tensor, OpError> {
    let shape = cx.shape(x);
    let windows = |shape: &[usize]| -> Vec<Window> {
        let one = |(&(before, _), (&extent, &out)): (&(i64, i64), (&usize, &usize))| Window {
            pad: before as isize,
            out,
            ..Window::identity(extent)
        };
        amounts.iter().zip(shape.iter().zip(out)).map(one).collect()
    };
    let known = value.map(|value| cx.constant(value).map(|value| value.all()).transpose()).transpose()?.flatten();
    let truth = cx.ty(x).dtype() == Some(DType::Bool);
    let fill = match (value, known.as_deref()) {
        (None, _) => Some(number),
        // What `f32` cannot say goes the other way.
        (Some(_), Some(&[fill])) => {
            let fits = f64::from(fill as f32) == fill && (cx.ty(x).is_f32() || fill.is_finite());
            fits.then_some(fill as f32)
        }
        (Some(_), Some(_)) => return Err(OpError::invalid("its value is not one number")),
        (Some(_), None) => None,
    };
    if let (Some(fill), false) = (fill, truth) {
        return cx.windows(x, windows(&shape), fill);
    }
    let inside = cx.truths(out, |mut i| {
        amounts.iter().zip(&shape).zip(out).rev().all(|((&(before, _), &extent), &out)| {
            let at = (i % out) as i64 - before;
            i /= out;
            (0..extent as i64).contains(&at)
        })
    })?;
    let bytes = if truth { cx.cast_to(x, DType::U8)? } else { x };
    let grown = cx.windows(bytes, windows(&shape), 0.0)?;
    let grown = if truth { cx.cast_to(grown, DType::Bool)? } else { grown };
    let value = match value {
        Some(value) => cx.reshaped(value, [])?,
        None => cx.scalar_like(x, f64::from(number)),
    };
    cx.choose(inside, grown, value)
}

/// The middle of a larger tensor, or a border of zeros around a smaller one.
pub(super) fn center(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let shape = cx.shape(x);
    let asked = cx.ints(1, "new shape")?.unwrap_or_default();
    let axes: Vec<usize> = match cx.int_list("axes")? {
        Some(axes) => axes.iter().map(|&axis| cx::axis(axis, shape.len())).collect::<Result<_, _>>()?,
        None => (0..shape.len()).collect(),
    };
    if asked.len() != axes.len() {
        return Err(OpError::invalid(format!("its new shape is {asked:?} for {} axes", axes.len())));
    }
    let mut windows: Vec<Window> = shape.iter().map(|&extent| Window::identity(extent)).collect();
    for (&axis, &asked) in axes.iter().zip(&asked) {
        let out = usize::try_from(asked).ok().filter(|&out| out > 0 && out <= 1 << 30);
        let out = out.ok_or_else(|| OpError::invalid(format!("an extent of {asked}")))?;
        let extent = shape[axis];
        // The smaller half comes first, of what is cut and of what is added.
        let pad = if out >= extent { ((out - extent) / 2) as isize } else { -(((extent - out) / 2) as isize) };
        windows[axis] = Window { pad, out, ..Window::identity(extent) };
    }
    Ok(vec![cx.windows(x, windows, 0.0)?])
}

/// One triangle of each matrix, zeros in the other.
pub(super) fn triangle(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let upper = cx.int("upper")?.unwrap_or(1) != 0;
    let diagonal = match cx.ints(1, "diagonal")?.as_deref() {
        None => 0,
        Some(&[diagonal]) => diagonal,
        Some(found) => return Err(OpError::invalid(format!("its diagonal is {found:?}"))),
    };
    let shape = cx.shape(x);
    let &[.., rows, columns] = &shape[..] else {
        return Err(OpError::invalid(format!("a triangle of {}", cx.ty(x))));
    };
    let kept = cx.truths(&[rows, columns], |i| {
        let distance = (i % columns) as i64 - (i / columns) as i64;
        if upper { distance >= diagonal } else { distance <= diagonal }
    })?;
    let zero = cx.scalar_like(x, 0.0);
    Ok(vec![cx.choose(kept, x, zero)?])
}

/// Copies beside each other along every axis.
pub(super) fn tile(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let shape = cx.shape(x);
    let repeats = cx.ints(1, "number of copies")?.unwrap_or_default();
    let repeats: Vec<usize> = repeats.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    if repeats.len() != shape.len() || repeats.contains(&0) {
        return Err(OpError::invalid(format!("copies {repeats:?} of {shape:?}")));
    }
    let mut y = x;
    for (axis, &n) in repeats.iter().enumerate().filter(|&(_, &n)| n > 1) {
        // One axis at a time: the rank grows by one only.
        let now = cx.shape(y);
        let (before, behind) = now.split_at(axis);
        let split = cx.reshaped(y, [before, &[1], behind].concat())?;
        let copies = cx.expanded(split, [before, &[n], behind].concat())?;
        let extent = shape[axis].checked_mul(n).ok_or_else(|| OpError::invalid("its result is too large"))?;
        let behind = behind.get(1..).unwrap_or(&[]);
        y = cx.reshaped(copies, [before, &[extent], behind].concat())?;
    }
    Ok(vec![y])
}

/// Blocks of channels become blocks of places.
pub(super) fn depth_to_space(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let block = block(cx)?;
    let columns_first = match cx.text("mode")?.as_deref() {
        None | Some("DCR") => false,
        Some("CRD") => true,
        Some(other) => return Err(OpError::invalid(format!("its mode is {}", shown(other)))),
    };
    let shape = cx.shape(x);
    let &[n, c, h, w] = &shape[..] else {
        return Err(OpError::invalid(format!("it takes images, found {}", cx.ty(x))));
    };
    let depth = c / (block * block);
    if depth * block * block != c {
        return Err(OpError::invalid(format!("{c} channels do not form blocks of {block}")));
    }
    let (split, perm) = if columns_first {
        ([n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3])
    } else {
        ([n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2])
    };
    let y = cx.reshaped(x, split)?;
    let y = cx.permuted(y, perm)?;
    Ok(vec![cx.reshaped(y, [n, depth, h * block, w * block])?])
}

/// Blocks of places become blocks of channels.
pub(super) fn space_to_depth(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let block = block(cx)?;
    let shape = cx.shape(x);
    let &[n, c, h, w] = &shape[..] else {
        return Err(OpError::invalid(format!("it takes images, found {}", cx.ty(x))));
    };
    if !h.is_multiple_of(block) || !w.is_multiple_of(block) {
        return Err(OpError::invalid(format!("{h} x {w} places do not form blocks of {block}")));
    }
    let y = cx.reshaped(x, [n, c, h / block, block, w / block, block])?;
    let y = cx.permuted(y, [0, 3, 5, 1, 2, 4])?;
    Ok(vec![cx.reshaped(y, [n, c * block * block, h / block, w / block])?])
}

fn block(cx: &NodeCx<'_>) -> Result<usize, OpError> {
    let block = cx.int("blocksize")?.unwrap_or(0);
    usize::try_from(block)
        .ok()
        .filter(|block| (1..=1 << 15).contains(block))
        .ok_or_else(|| OpError::invalid(format!("its block size is {block}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reflection_turns_at_both_ends() {
        assert_eq!((-3..6).map(|at| reflected(at, 3)).collect::<Vec<_>>(), [1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!((-2..3).map(|at| reflected(at, 1)).collect::<Vec<_>>(), [0; 5]);
    }
}
