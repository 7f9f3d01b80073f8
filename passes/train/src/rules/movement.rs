//! Operations that move elements: their gradients move back.

use qail_ir::{Concat, Grad, Op, Slice, SliceAxis, SliceGrad, Transpose, TypeError, Unfold, UnfoldGrad, ValueId};

use super::Builder;

pub(super) fn reshape(builder: &mut Builder<'_>, operands: &[ValueId], g: ValueId) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("reshape", "one operand", &[])) };
    let shape = builder.shape(x);
    builder.reshaped(g, shape)
}

/// The inverse permutation.
pub(super) fn transpose(builder: &mut Builder<'_>, op: &Transpose, g: ValueId) -> Result<ValueId, TypeError> {
    let mut perm = vec![0; op.perm.len()];
    for (to, &from) in op.perm.iter().enumerate() {
        if let Some(slot) = perm.get_mut(from) {
            *slot = to;
        }
    }
    builder.add(Op::Transpose(Transpose { perm }), &[g])
}

/// Zeros around what was read.
pub(super) fn slice(
    builder: &mut Builder<'_>,
    op: &Slice,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("slice", "one operand", &[])) };
    let shape = builder.shape(x);
    builder.add(Op::Grad(Grad::Slice(SliceGrad { slice: op.clone(), shape })), &[g])
}

/// Each part's own piece.
pub(super) fn concat(
    builder: &mut Builder<'_>,
    op: &Concat,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let extent = |builder: &Builder<'_>, part: ValueId| builder.shape(part).get(op.axis).copied().unwrap_or(0);
    let start = operands.iter().take(slot).map(|&part| extent(builder, part)).sum();
    let own = operands.get(slot).map_or(0, |&part| extent(builder, part));
    let axis = |(axis, len): (usize, usize)| match axis == op.axis {
        true => SliceAxis { start, len: own, step: 1 },
        false => SliceAxis { start: 0, len, step: 1 },
    };
    let axes = builder.shape(g).into_iter().enumerate().map(axis).collect();
    builder.add(Op::Slice(Slice { axes }), &[g])
}

pub(super) fn expand(builder: &mut Builder<'_>, operands: &[ValueId], g: ValueId) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("expand", "one operand", &[])) };
    let shape = builder.shape(x);
    builder.summed_to(g, &shape)
}

/// For each element the sum over the windows that show it.
pub(super) fn unfold(
    builder: &mut Builder<'_>,
    op: &Unfold,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("unfold", "one operand", &[])) };
    let shape = builder.shape(x);
    builder.add(Op::Grad(Grad::Unfold(UnfoldGrad { unfold: op.clone(), shape })), &[g])
}
