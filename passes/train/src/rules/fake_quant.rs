//! Quantizers: straight-through for what is quantized, LSQ for the step.

use qail_ir::{FakeQuant, FakeQuantGrad, Grad, Op, TypeError, ValueId, Wrt};

use super::Builder;

/// The straight-through estimator and the step gradient of LSQ: see
/// [`FakeQuantGrad`] for the formulas.
pub(super) fn fake_quant(
    builder: &mut Builder<'_>,
    fake: &FakeQuant,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let wrt = if slot == 0 { Wrt::First } else { Wrt::Second };
    let mut operands = operands.to_vec();
    operands.push(g);
    builder.add(Op::Grad(Grad::FakeQuant(FakeQuantGrad { fake: fake.clone(), wrt })), &operands)
}
