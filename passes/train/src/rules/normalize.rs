//! Rows of transformers. Attention has no rule: it is written out before a graph
//! is differentiated, see [`crate::expand`].

use qail_ir::{BinaryFn, Normalize, Op, Reduce, ReduceFn, Softmax, TypeError, UnaryFn, ValueId};

use super::Builder;

/// Of `y = softmax(x)`: `y * (g - sum(g * y))`; of its logarithm: `g - exp(y) * sum(g)`.
pub(super) fn softmax(builder: &mut Builder<'_>, op: &Softmax, g: ValueId) -> Result<ValueId, TypeError> {
    let y = builder.node.value();
    let over = Op::Reduce(Reduce { f: ReduceFn::Sum, axes: vec![op.axis], keep_dims: true });
    if op.log {
        let sum = builder.add(over, &[g])?;
        let p = builder.unary(UnaryFn::Exp, y)?;
        let part = builder.binary(BinaryFn::Mul, p, sum)?;
        return builder.binary(BinaryFn::Sub, g, part);
    }
    let product = builder.binary(BinaryFn::Mul, g, y)?;
    let sum = builder.add(over, &[product])?;
    let rest = builder.binary(BinaryFn::Sub, g, sum)?;
    builder.binary(BinaryFn::Mul, rest, y)
}

/// Of `y = d * r` with `d = x - mean(x)` and `r = 1 / sqrt(mean(d^2) + eps)`:
/// `r * (g - mean(g) - y * mean(g * y))`; without the second term if the mean stays.
pub(super) fn normalize(
    builder: &mut Builder<'_>,
    op: &Normalize,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new("normalize", "one operand", &[])) };
    let y = builder.node.value();
    let mean = |builder: &mut Builder<'_>, x: ValueId| {
        builder.add(Op::Reduce(Reduce { f: ReduceFn::Mean, axes: op.axes.clone(), keep_dims: true }), &[x])
    };
    let d = if op.center {
        let mean = mean(builder, x)?;
        builder.binary(BinaryFn::Sub, x, mean)?
    } else {
        x
    };
    let square = builder.binary(BinaryFn::Mul, d, d)?;
    let variance = mean(builder, square)?;
    let eps = builder.scalar(op.eps);
    let variance = builder.binary(BinaryFn::Add, variance, eps)?;
    let deviation = builder.unary(UnaryFn::Sqrt, variance)?;
    let product = builder.binary(BinaryFn::Mul, g, y)?;
    let slope = mean(builder, product)?;
    let along = builder.binary(BinaryFn::Mul, y, slope)?;
    let mut rest = builder.binary(BinaryFn::Sub, g, along)?;
    if op.center {
        let mean = mean(builder, g)?;
        rest = builder.binary(BinaryFn::Sub, rest, mean)?;
    }
    builder.binary(BinaryFn::Div, rest, deviation)
}
