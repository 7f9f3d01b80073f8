//! Values that are turned or scaled by others.

use qail_ir::{BinaryFn, Concat, Op, Rope, Slice, SliceAxis, TypeError, UnaryFn, ValueId};

use super::Builder;

/// Of `y = x * scale + shift`: `g * scale`, and the sums of `g * x` and of `g` over what was repeated.
pub(super) fn film(
    builder: &mut Builder<'_>,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x, scale, shift] = *operands else { return Err(TypeError::new("film", "three operands", &[])) };
    match slot {
        0 => builder.binary(BinaryFn::Mul, g, scale),
        1 => {
            let product = builder.binary(BinaryFn::Mul, g, x)?;
            summed_like(builder, product, scale)
        }
        _ => summed_like(builder, g, shift),
    }
}

/// Of `y = x * cos + R x * sin`, where `R` exchanges the elements of every pair and negates the first:
/// `g * cos - R (g * sin)`, and the sums of `g * x` and of `g * R x` over what was repeated.
///
/// The first is an embedding by other angles: `R (g * sin) = R g * P sin`, where `P` exchanges alone.
pub(super) fn rope(
    builder: &mut Builder<'_>,
    op: Rope,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x, cos, sin] = *operands else { return Err(TypeError::new("rope", "three operands", &[])) };
    match slot {
        0 => {
            let sin = match builder.shape(sin).last() {
                None | Some(1) => sin,
                Some(_) => exchanged(builder, op, sin, false)?,
            };
            let sin = builder.unary(UnaryFn::Neg, sin)?;
            builder.add(Op::Rope(op), &[g, cos, sin])
        }
        1 => {
            let product = builder.binary(BinaryFn::Mul, g, x)?;
            summed_like(builder, product, cos)
        }
        _ => {
            let turned = exchanged(builder, op, x, true)?;
            let product = builder.binary(BinaryFn::Mul, g, turned)?;
            summed_like(builder, product, sin)
        }
    }
}

fn summed_like(builder: &mut Builder<'_>, x: ValueId, like: ValueId) -> Result<ValueId, TypeError> {
    let shape = builder.shape(like);
    builder.summed_to(x, &shape)
}

/// The elements of every pair of a row exchanged; `negated`, the one that comes first with a minus.
fn exchanged(builder: &mut Builder<'_>, op: Rope, x: ValueId, negated: bool) -> Result<ValueId, TypeError> {
    let shape = builder.shape(x);
    let Some((&width, lead)) = shape.split_last() else {
        return Err(TypeError::new("rope", "rows of pairs", &[]));
    };
    // Neighbours are the halves of rows of two.
    let rows = if op.interleaved { [lead, &[width / 2, 2]].concat() } else { shape.clone() };
    let axis = rows.len() - 1;
    let half = if op.interleaved { 1 } else { width / 2 };
    let x = builder.reshaped(x, rows.clone())?;
    let mut part = |start: usize| {
        let whole = |&len: &usize| SliceAxis { start: 0, len, step: 1 };
        let mut axes: Vec<SliceAxis> = rows.iter().map(whole).collect();
        if let Some(last) = axes.last_mut() {
            *last = SliceAxis { start, len: half, step: 1 };
        }
        builder.add(Op::Slice(Slice { axes }), &[x])
    };
    let (first, second) = (part(0)?, part(half)?);
    let second = if negated { builder.unary(UnaryFn::Neg, second)? } else { second };
    let joined = builder.add(Op::Concat(Concat { axis }), &[second, first])?;
    builder.reshaped(joined, shape)
}
