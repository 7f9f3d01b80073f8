//! Operations that treat every element on its own.

use qail_ir::{BinaryFn, BinaryGrad, Grad, Op, TypeError, Unary, UnaryFn, ValueId, Wrt};

use super::Builder;

/// `dx = f'(x) * g`.
pub(super) fn unary(
    builder: &mut Builder<'_>,
    f: UnaryFn,
    operands: &[ValueId],
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x] = *operands else { return Err(TypeError::new(f.name(), "one operand", &[])) };
    match f {
        UnaryFn::Neg => builder.unary(UnaryFn::Neg, g),
        // The derivative is the result, which is there already.
        UnaryFn::Exp => builder.binary(BinaryFn::Mul, g, builder.node.value()),
        // Defined for every function, by its derivative.
        f => builder.add(Op::Grad(Grad::Unary(Unary { f })), &[x, g]),
    }
}

/// The partial derivative times `g`, summed over the axes that were broadcast.
pub(super) fn binary(
    builder: &mut Builder<'_>,
    f: BinaryFn,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [a, b] = *operands else { return Err(TypeError::new(f.name(), "two operands", &[])) };
    let (wrt, own) = if slot == 0 { (Wrt::First, a) } else { (Wrt::Second, b) };
    let shape = builder.shape(own);
    let part = match (f, wrt) {
        (BinaryFn::Add, _) | (BinaryFn::Sub, Wrt::First) => g,
        // The sum is smaller than what is summed, so it comes first.
        (BinaryFn::Sub, Wrt::Second) => {
            let sum = builder.summed_to(g, &shape)?;
            return builder.unary(UnaryFn::Neg, sum);
        }
        (BinaryFn::Mul, Wrt::First) => builder.binary(BinaryFn::Mul, g, b)?,
        (BinaryFn::Mul, Wrt::Second) => builder.binary(BinaryFn::Mul, g, a)?,
        (BinaryFn::Div, Wrt::First) => builder.binary(BinaryFn::Div, g, b)?,
        (BinaryFn::Div, Wrt::Second)
        | (BinaryFn::Pow | BinaryFn::Min | BinaryFn::Max | BinaryFn::Mod | BinaryFn::Rem, _) => {
            builder.add(Op::Grad(Grad::Binary(BinaryGrad { f, wrt })), &[a, b, g])?
        }
    };
    builder.summed_to(part, &shape)
}
