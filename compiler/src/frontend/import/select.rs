//! Extremes along an axis, running sums, and one of many.

use qail_ir::{ArgReduce, CompareFn, CumSum, DType, Op, TopK, TopKPart};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
    gather,
};

/// Where the largest or smallest element of an axis stands.
pub(super) fn arg_reduce(cx: &mut NodeCx<'_>, largest: bool) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), cx.ty(x).shape.len())?;
    let keep_dims = cx.int("keepdims")?.unwrap_or(1) != 0;
    let last = cx.int("select_last_index")?.unwrap_or(0) != 0;
    Ok(vec![cx.extreme(x, ArgReduce { largest, axis, keep_dims, last })?])
}

/// The first elements of an axis in sorted order, and where they stood.
pub(super) fn top_k(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let axis = cx::axis(cx.int("axis")?.unwrap_or(-1), cx.ty(x).shape.len())?;
    // An attribute up to opset 9.
    let k = if cx.opset < 10 { cx.int("k")?.map(|k| vec![k]) } else { cx.ints(1, "number of elements")? };
    let k = match k.as_deref() {
        Some(&[k]) => usize::try_from(k).unwrap_or(0),
        found => return Err(OpError::invalid(format!("its number of elements is {found:?}"))),
    };
    let largest = cx.int("largest")?.unwrap_or(1) != 0;
    // They come sorted, asked for or not.
    cx.ignore("sorted");
    let mut results = Vec::with_capacity(2);
    for part in [TopKPart::Values, TopKPart::Indices] {
        results.push(cx.part(Op::TopK(TopK { axis, k, largest, part }), &[x])?);
    }
    Ok(results)
}

/// Running sums along an axis.
pub(super) fn cum_sum(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let axis = match cx.ints(1, "axis")?.as_deref() {
        Some(&[axis]) => cx::axis(axis, cx.ty(x).shape.len())?,
        found => return Err(OpError::invalid(format!("its axis is {found:?}"))),
    };
    let exclusive = cx.int("exclusive")?.unwrap_or(0) != 0;
    let reverse = cx.int("reverse")?.unwrap_or(0) != 0;
    Ok(vec![cx.part(Op::CumSum(CumSum { axis, exclusive, reverse }), &[x])?])
}

/// One value where the index says, another elsewhere. An index beyond the depth is nowhere.
pub(super) fn one_hot(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (index, values) = (cx.operand(0)?, cx.operand(2)?);
    let depth = cx.operand(1)?;
    let depth = match cx.constant(depth).map(|depth| depth.all_int()).transpose()?.as_deref() {
        Some(&[depth]) => usize::try_from(depth).ok().filter(|&depth| depth > 0),
        Some(_) => None,
        None => return Err(OpError::unsupported("its depth is computed at run time", "export with a fixed depth")),
    };
    let depth = depth.ok_or_else(|| OpError::invalid("its depth is not a positive number"))?;
    if cx.ty(values).shape != [2] {
        return Err(OpError::invalid(format!("its values are {}, not two", cx.ty(values))));
    }
    let shape = cx.shape(index);
    let rank = shape.len() + 1;
    let axis = cx::axis(cx.int("axis")?.unwrap_or(-1), rank)?;
    let index = cx.cast_to(index, DType::I64)?;
    let (zero, whole) = (cx.scalar_like(index, 0.0), cx.scalar_like(index, depth as f64));
    let negative = cx.compare(CompareFn::Lt, index, zero)?;
    let later = cx.add(index, whole)?;
    let index = cx.choose(negative, later, index)?;
    let (before, behind) = shape.split_at(axis);
    let index = cx.reshaped(index, [before, &[1], behind].concat())?;
    let mut counted = vec![1; rank];
    counted[axis] = depth;
    let places = cx.table(&counted, |i| i as i64)?;
    let hit = cx.compare(CompareFn::Eq, index, places)?;
    let off = cx.sliced(values, 0, 0, 1)?;
    let on = cx.sliced(values, 0, 1, 1)?;
    let (off, on) = (cx.reshaped(off, [])?, cx.reshaped(on, [])?);
    Ok(vec![cx.choose(hit, on, off)?])
}

/// Sequences of different lengths, each turned around.
pub(super) fn reverse_sequence(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let lengths = cx.ints(1, "list of lengths")?.unwrap_or_default();
    let shape = cx.shape(x);
    let batch = cx::axis(cx.int("batch_axis")?.unwrap_or(1), shape.len())?;
    let time = cx::axis(cx.int("time_axis")?.unwrap_or(0), shape.len())?;
    let steps = shape[time];
    let sound = lengths.iter().all(|&n| usize::try_from(n).is_ok_and(|n| n <= steps));
    if batch == time || lengths.len() != shape[batch] || !sound {
        return Err(OpError::invalid(format!("lengths {lengths:?} of sequences in {shape:?}")));
    }
    let own = gather::strides(&shape);
    let index = cx.table(&shape, |i| {
        let (sample, step) = (i / own[batch] % shape[batch], i / own[time] % steps);
        let n = lengths.get(sample).copied().unwrap_or(0);
        if (step as i64) < n { n - 1 - step as i64 } else { step as i64 }
    })?;
    Ok(vec![gather::elements(cx, x, index, time)?])
}
