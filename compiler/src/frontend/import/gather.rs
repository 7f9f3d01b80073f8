//! Lookups by index.
//!
//! Gather with known indices is a table lookup now, or slices of a computed
//! tensor: attention splits its packed projections this way. Indices of several
//! axes become places in the flattened tensor, by arithmetic on integers.

use qail_ir::{CompareFn, Concat, ConstData, Constant, DType, Op, Reshape, Slice, SliceAxis, TensorType};

use super::{
    OpError,
    builder::{self, Tensor},
    cx::{self, NodeCx},
    slice,
};

/// Most slices that one node becomes.
const MAX_RUNS: usize = 64;

/// Elements at `indices` along an axis.
pub(super) fn gather(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let indices = cx.operand(1)?;
    let old = cx.shape(x);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), old.len())?;
    let index_shape = cx.shape(indices);
    if cx.constant(indices).is_none() {
        return Ok(vec![cx.looked_up(x, indices, axis)?]);
    }
    let list = cx.ints(1, "list of indices")?.unwrap_or_default();
    let list: Vec<usize> = list.iter().map(|&i| cx::place(i, old[axis])).collect::<Result<_, _>>()?;
    let mut shape = old[..axis].to_vec();
    shape.extend(&index_shape);
    shape.extend(&old[axis + 1..]);

    if let Some(constant) = cx.constant(x).cloned() {
        let ty = TensorType { elem: constant.ty.elem, shape };
        builder::check_size(&ty)?;
        cx.builder.reserve(&ty)?;
        let data = lookup(&constant, axis, &list)?;
        return Ok(vec![cx.known(Constant { ty, data })]);
    }
    let runs = runs(&list);
    if runs.is_empty() || runs.len() > MAX_RUNS {
        return Ok(vec![cx.looked_up(x, indices, axis)?]);
    }
    let mut parts = Vec::with_capacity(runs.len());
    for (i, &run) in runs.iter().enumerate() {
        let mut axes = slice::whole(&old);
        axes[axis] = run;
        parts.push(cx.emit_part(&format!("part{i}"), Op::Slice(Slice { axes }), &[x])?);
    }
    let joined = match parts[..] {
        [one] => one,
        _ => cx.emit_part("joined", Op::Concat(Concat { axis }), &parts)?,
    };
    if cx.ty(joined).shape == shape {
        return Ok(vec![joined]);
    }
    Ok(vec![cx.emit(Op::Reshape(Reshape { shape }), &[joined])?])
}

/// Indices as `i64` from the start of an axis of `extent` elements.
pub(super) fn from_start(cx: &mut NodeCx<'_>, index: Tensor, extent: usize) -> Result<Tensor, OpError> {
    let index = cx.cast_to(index, DType::I64)?;
    if let Some(constant) = cx.constant(index).cloned() {
        let list: Vec<i64> = constant.all_int()?;
        if list.iter().all(|&i| i >= 0 && (i as u64) < extent as u64) {
            return Ok(index);
        }
        let list: Vec<i64> = list.iter().map(|&i| cx::place(i, extent).map(|i| i as i64)).collect::<Result<_, _>>()?;
        return Ok(cx.known_part("index", Constant::ints(constant.ty, &list)));
    }
    let (zero, whole) = (cx.scalar_like(index, 0.0), cx.scalar_like(index, extent as f64));
    let negative = cx.compare(CompareFn::Lt, index, zero)?;
    let later = cx.add(index, whole)?;
    cx.choose(negative, later, index)
}

/// Distances between neighbours along each axis of a row-major tensor.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Places in the flattened `data`, for an index that replaces the place along one axis.
pub(super) fn flat_places(cx: &mut NodeCx<'_>, data: &[usize], index: Tensor, axis: usize) -> Result<Tensor, OpError> {
    let shape = cx.shape(index);
    let fits = shape.len() == data.len()
        && shape.iter().zip(data).enumerate().all(|(i, (have, whole))| i == axis || have <= whole);
    if !fits || axis >= data.len() {
        return Err(OpError::invalid(format!("indices of shape {shape:?} into {data:?} along axis {axis}")));
    }
    let (steps, own) = (strides(data), strides(&shape));
    let index = from_start(cx, index, data[axis])?;
    let step = cx.scalar_like(index, steps[axis] as f64);
    let along = cx.mul(index, step)?;
    let base = cx.table(&shape, |i| {
        let one = |other: usize| if other == axis { 0 } else { i / own[other] % shape[other] * steps[other] };
        (0..shape.len()).map(one).sum::<usize>() as i64
    })?;
    cx.add(along, base)
}

/// Places in the flattened leading axes of `data`, for tuples of indices along the last axis.
/// The first `batch` axes of both belong together.
pub(super) fn tuple_places(
    cx: &mut NodeCx<'_>,
    data: &[usize],
    index: Tensor,
    batch: usize,
) -> Result<(Tensor, usize), OpError> {
    let shape = cx.shape(index);
    let Some((&depth, lead)) = shape.split_last() else {
        return Err(OpError::invalid("its indices have no axis"));
    };
    let indexed = batch.saturating_add(depth);
    if indexed > data.len()
        || depth == 0
        || lead.len() < batch
        || lead.iter().zip(data).take(batch).any(|(a, b)| a != b)
    {
        return Err(OpError::invalid(format!("indices of shape {shape:?} into {data:?}")));
    }
    let steps = strides(&data[..indexed]);
    let mut place: Option<Tensor> = None;
    for i in 0..depth {
        let one = cx.sliced(index, lead.len(), i, 1)?;
        let one = cx.reshaped(one, lead)?;
        let one = from_start(cx, one, data[batch + i])?;
        let step = cx.scalar_like(one, steps[batch + i] as f64);
        let one = cx.mul(one, step)?;
        place = Some(match place {
            Some(place) => cx.add(place, one)?,
            None => one,
        });
    }
    let mut place = place.ok_or_else(|| OpError::invalid("its indices are empty"))?;
    if batch > 0 {
        let own = strides(lead);
        let base =
            cx.table(lead, |i| (0..batch).map(|axis| i / own[axis] % lead[axis] * steps[axis]).sum::<usize>() as i64)?;
        place = cx.add(place, base)?;
    }
    Ok((place, indexed))
}

/// Element by element along an axis.
pub(super) fn gather_elements(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, index) = (cx.operand(0)?, cx.operand(1)?);
    let shape = cx.shape(x);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), shape.len())?;
    Ok(vec![elements(cx, x, index, axis)?])
}

/// Element by element along an axis.
pub(super) fn elements(cx: &mut NodeCx<'_>, x: Tensor, index: Tensor, axis: usize) -> Result<Tensor, OpError> {
    let shape = cx.shape(x);
    let place = flat_places(cx, &shape, index, axis)?;
    let flat = cx.reshaped(x, [shape.iter().product::<usize>()])?;
    cx.looked_up(flat, place, 0)
}

/// Rows by tuples of indices.
pub(super) fn gather_nd(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, index) = (cx.operand(0)?, cx.operand(1)?);
    let shape = cx.shape(x);
    let batch = usize::try_from(cx.int("batch_dims")?.unwrap_or(0)).unwrap_or(usize::MAX);
    let (place, indexed) = tuple_places(cx, &shape, index, batch)?;
    let (lead, row) = shape.split_at(indexed);
    let rows = cx.reshaped(x, [&[lead.iter().product()], row].concat())?;
    Ok(vec![cx.looked_up(rows, place, 0)?])
}

/// Splits indices into arithmetic progressions.
fn runs(list: &[usize]) -> Vec<SliceAxis> {
    let mut runs: Vec<SliceAxis> = Vec::new();
    for &i in list {
        if let Some(run) = runs.last_mut() {
            let reach = |n: usize| run.start as isize + run.step * n as isize;
            let distance = i as isize - run.start as isize;
            if run.len == 1 && distance != 0 {
                (run.len, run.step) = (2, distance);
                continue;
            }
            if run.len > 1 && reach(run.len) == i as isize {
                run.len += 1;
                continue;
            }
        }
        runs.push(SliceAxis { start: i, len: 1, step: 1 });
    }
    runs
}

fn lookup(constant: &Constant, axis: usize, list: &[usize]) -> Result<ConstData, OpError> {
    let shape = &constant.ty.shape;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut bytes = Vec::new();
    for o in 0..outer {
        for &i in list {
            let start = (o * shape[axis] + i) * inner;
            bytes.extend(constant.read_bytes(start..start + inner)?);
        }
    }
    Ok(ConstData::Bytes(bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_become_as_few_slices_as_progressions() {
        let run = |start, len, step| SliceAxis { start, len, step };
        assert_eq!(runs(&[2]), [run(2, 1, 1)]);
        assert_eq!(runs(&[0, 2, 4, 5]), [run(0, 3, 2), run(5, 1, 1)]);
        assert_eq!(runs(&[3, 2, 1]), [run(3, 3, -1)]);
        assert_eq!(runs(&[1, 1]), [run(1, 1, 1), run(1, 1, 1)]);
    }
}
