//! `lift-mish`: makes `mish(x)` of `x * tanh(softplus(x))`.
//!
//! The inner function may be written as `ln(1 + exp(x))`. The function rounds once where the
//! pieces rounded each, and does not overflow where `exp` does.

use qail_ir::{BinaryFn, Graph, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, Gate, close},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftMish;

impl Pass for LiftMish {
    fn name(&self) -> &'static str {
        "lift-mish"
    }

    fn summary(&self) -> &'static str {
        "makes mish(x) of x * tanh(softplus(x))"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, cx, mish)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn mish(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Gate {
    let Some(inner) = pattern::unary(graph, gate, UnaryFn::Tanh) else { return Ok(None) };
    match (is_softplus(graph, inner, x), close(number, 1.0)) {
        (true, true) => Ok(Some(UnaryFn::Mish)),
        (true, false) => Err("a mish is multiplied with a number"),
        (false, _) => Ok(None),
    }
}

fn is_softplus(graph: &Graph, value: ValueId, x: ValueId) -> bool {
    if let Some(operand) = pattern::unary(graph, value, UnaryFn::Softplus) {
        return operand == x;
    }
    let sum = pattern::unary(graph, value, UnaryFn::Log);
    let parts = sum.and_then(|sum| pattern::with_number(graph, sum, BinaryFn::Add));
    parts.is_some_and(|(exp, one)| close(one, 1.0) && pattern::unary(graph, exp, UnaryFn::Exp) == Some(x))
}
