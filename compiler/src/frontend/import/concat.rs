//! Concat.

use qail_ir::{Concat, Op};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// Tensors joined along an axis.
pub(super) fn concat(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let parts = cx.all_operands()?;
    let asked = cx.int("axis")?.ok_or_else(|| OpError::invalid("it has no axis"))?;
    match parts[..] {
        [one] => {
            cx::axis(asked, cx.ty(one).shape.len())?;
            Ok(vec![one])
        }
        [first, ..] => {
            let axis = cx::axis(asked, cx.ty(first).shape.len())?;
            // Parts without elements add nothing: empty lists of integers in shape
            // arithmetic, the rest that a rotary embedding does not rotate.
            let full = |&part: &Tensor| cx.ty(part).shape.get(axis) != Some(&0);
            match parts.iter().copied().filter(full).collect::<Vec<Tensor>>()[..] {
                [] => Ok(vec![first]),
                [one] => Ok(vec![one]),
                ref parts => Ok(vec![cx.emit(Op::Concat(Concat { axis }), parts)?]),
            }
        }
        [] => Err(OpError::invalid("it has no operands")),
    }
}
