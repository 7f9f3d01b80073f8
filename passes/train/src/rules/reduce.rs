//! Sums, means, products and extreme numbers.

use qail_ir::{
    BinaryFn, Cast, Compare, CompareFn, DType, Expand, Grad, Op, Reduce, ReduceFn, TypeError, ValueId, Where,
};

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
        ReduceFn::Prod => return product(builder, op, x, g),
        ReduceFn::Sum => g,
        ReduceFn::Mean if n == 1 => g,
        ReduceFn::Mean => {
            // While the gradient is still small.
            let factor = builder.scalar((1.0 / n as f64) as f32);
            builder.binary(BinaryFn::Mul, g, factor)?
        }
    };
    let kept = kept(&shape, &op.axes);
    // Broadcasting adds leading axes by itself.
    let g = if builder.shape(g).is_empty() { g } else { builder.reshaped(g, kept)? };
    if builder.shape(g) == shape { Ok(g) } else { builder.add(Op::Expand(Expand { shape }), &[g]) }
}

/// A shape whose reduced axes have extent 1.
fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    let kept = |(axis, &extent): (usize, &usize)| if axes.contains(&axis) { 1 } else { extent };
    shape.iter().enumerate().map(kept).collect()
}

/// `g` times the product of all other elements. That is `y / x`, except where
/// elements are 0: the only one of them gets the product of the others, several get 0.
fn product(builder: &mut Builder<'_>, op: &Reduce, x: ValueId, g: ValueId) -> Result<ValueId, TypeError> {
    let shape = kept(&builder.shape(x), &op.axes);
    let (zero, one) = (builder.scalar(0.0), builder.scalar(1.0));
    let over = |f: ReduceFn| Op::Reduce(Reduce { f, axes: op.axes.clone(), keep_dims: true });
    let is_zero = builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[x, zero])?;
    let others = builder.add(Op::Where(Where), &[is_zero, one, x])?;
    let of_others = builder.add(over(ReduceFn::Prod), &[others])?;
    let count = builder.add(Op::Cast(Cast { to: DType::F32 }), &[is_zero])?;
    let count = builder.add(over(ReduceFn::Sum), &[count])?;
    let alone = builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[count, one])?;
    let alone = builder.add(Op::Where(Where), &[alone, of_others, zero])?;
    let none = builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[count, zero])?;
    let whole = builder.add(Op::Where(Where), &[none, of_others, zero])?;
    let quotient = builder.binary(BinaryFn::Div, whole, others)?;
    let slope = builder.add(Op::Where(Where), &[is_zero, alone, quotient])?;
    let g = builder.reshaped(g, shape)?;
    builder.binary(BinaryFn::Mul, slope, g)
}
