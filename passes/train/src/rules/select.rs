//! Operations that choose and look up by index: their gradients go back to
//! where the elements came from.

use qail_ir::{
    BinaryFn, CumSum, DType, Gather, Op, Scatter, ScatterFn, TensorType, TopK, TopKPart, Transpose, TypeError, ValueId,
    Where,
};

use super::{Builder, movement};

/// `g` where the operand was chosen, 0 elsewhere.
pub(super) fn choose(
    builder: &mut Builder<'_>,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [condition, a, b] = *operands else { return Err(TypeError::new("where", "three operands", &[])) };
    let zero = builder.scalar(0.0);
    let (own, parts) = if slot == 1 { (a, [condition, g, zero]) } else { (b, [condition, zero, g]) };
    let shape = builder.shape(own);
    let part = builder.add(Op::Where(Where), &parts)?;
    builder.summed_to(part, &shape)
}

/// Every part is added where it was read; the axis that is looked up comes first for that.
pub(super) fn gather(
    builder: &mut Builder<'_>,
    op: &Gather,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x, index] = *operands else { return Err(TypeError::new("gather", "two operands", &[])) };
    let (shape, of_index) = (builder.shape(x), builder.shape(index));
    let extent = shape.get(op.axis).copied().unwrap_or(1);
    let (rank, n_index) = (shape.len(), of_index.len());
    let g = builder.transposed_by(g, moved_first(rank - 1 + n_index, op.axis, n_index))?;
    let others: Vec<usize> = shape.iter().enumerate().filter(|(axis, _)| *axis != op.axis).map(|(_, &n)| n).collect();
    let n_rows = of_index.iter().product();
    let g = builder.reshaped(g, [&[n_rows][..], &others].concat())?;
    let index = builder.reshaped(index, vec![n_rows])?;
    let index = clamped(builder, index, extent)?;
    let zeros = builder.splat([&[extent][..], &others].concat(), 0.0);
    let sum = builder.add(Op::Scatter(Scatter { f: ScatterFn::Add }), &[zeros, index, g])?;
    // Back from the first place.
    let perm = moved_first(rank, op.axis, 1);
    if perm.is_sorted() {
        return Ok(sum);
    }
    movement::transpose(builder, &Transpose { perm }, sum)
}

/// The order of axes that brings `n` axes from `at` on to the front.
fn moved_first(rank: usize, at: usize, n: usize) -> Vec<usize> {
    (at..at + n).chain(0..at).chain(at + n..rank).collect()
}

/// Indices as `gather` reads them: those beyond an end stop at it.
fn clamped(builder: &mut Builder<'_>, index: ValueId, extent: usize) -> Result<ValueId, TypeError> {
    let bounds = [-(extent as i64), extent as i64 - 1];
    if builder.ints_within(index, bounds) {
        return Ok(index);
    }
    let ty = TensorType { shape: vec![], ..builder.ty(index) };
    let [lo, hi] = bounds.map(|bound| builder.ints(ty.clone(), &[bound]));
    let index = builder.binary(BinaryFn::Max, index, lo)?;
    builder.binary(BinaryFn::Min, index, hi)
}

/// `g` at the places of the elements that were picked.
pub(super) fn top_k(
    builder: &mut Builder<'_>,
    op: &TopK,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("top_k", "one operand", &[])) };
    let shape = builder.shape(x);
    let extent = shape.get(op.axis).copied().unwrap_or(1);
    let behind: usize = shape.iter().skip(op.axis + 1).product();
    let before: usize = shape.iter().take(op.axis).product();
    let n: usize = shape.iter().product();
    let index = builder.add(Op::TopK(TopK { part: TopKPart::Indices, ..op.clone() }), &[x])?;
    let n_picked = before * op.k * behind;
    let index = builder.reshaped(index, vec![n_picked])?;
    // Place in the flat tensor: `(i * extent + index) * behind + j`.
    let i64s = |n: usize| TensorType::plain(DType::I64, vec![n]);
    let distance = builder.ints(i64s(1), &[behind as i64]);
    let index = builder.binary(BinaryFn::Mul, index, distance)?;
    let first = |i: usize| move |_| (0..behind).map(move |j| (i * extent * behind + j) as i64);
    let firsts: Vec<i64> = (0..before).flat_map(|i| (0..op.k).flat_map(first(i))).collect();
    let firsts = builder.ints(i64s(n_picked), &firsts);
    let place = builder.binary(BinaryFn::Add, index, firsts)?;
    let (g, zeros) = (builder.reshaped(g, vec![n_picked])?, builder.splat(vec![n], 0.0));
    let sum = builder.add(Op::Scatter(Scatter { f: ScatterFn::Add }), &[zeros, place, g])?;
    builder.reshaped(sum, shape)
}

/// An element is part of the sums from it on: they run the other way.
pub(super) fn cum_sum(builder: &mut Builder<'_>, op: &CumSum, g: ValueId) -> Result<ValueId, TypeError> {
    builder.add(Op::CumSum(CumSum { reverse: !op.reverse, ..op.clone() }), &[g])
}
