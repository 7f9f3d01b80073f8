//! Sums, means and extreme numbers.

use qail_ir::{BinaryFn, Expand, Grad, Op, Reduce, ReduceFn, TypeError, ValueId};

use super::Builder;

/// `g` for every summand, `g / n` for every element of a mean, and all of `g`
/// for the extreme one.
pub(super) fn reduce(
    builder: &mut Builder<'_>,
    op: &Reduce,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new(op.f.name(), "one operand", &[])) };
    let shape = builder.shape(x);
    let n: usize = op.axes.iter().map(|&axis| shape.get(axis).copied().unwrap_or(1)).product();
    let g = match op.f {
        ReduceFn::Min | ReduceFn::Max => return builder.add(Op::Grad(Grad::Reduce(op.clone())), &[x, g]),
        ReduceFn::Prod => return Err(TypeError::new(op.f.name(), "no part in a backward graph", &[])),
        ReduceFn::Sum => g,
        ReduceFn::Mean if n == 1 => g,
        ReduceFn::Mean => {
            // While the gradient is still small.
            let factor = builder.scalar((1.0 / n as f64) as f32);
            builder.binary(BinaryFn::Mul, g, factor)?
        }
    };
    let kept = |(axis, &extent): (usize, &usize)| if op.axes.contains(&axis) { 1 } else { extent };
    let kept: Vec<usize> = shape.iter().enumerate().map(kept).collect();
    // Broadcasting adds leading axes by itself.
    let g = if builder.shape(g).is_empty() { g } else { builder.reshaped(g, kept)? };
    if builder.shape(g) == shape { Ok(g) } else { builder.add(Op::Expand(Expand { shape }), &[g]) }
}
