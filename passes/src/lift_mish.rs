//! `lift-mish`: makes `mish(x)` of `x * tanh(softplus(x))`.
//!
//! The inner function may be written as `ln(1 + exp(x))`. The function rounds once where the
//! pieces rounded each, and does not overflow where `exp` does.

use qail_ir::{BinaryFn, Graph, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, close},
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

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, mish)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn mish(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Option<UnaryFn> {
    let inner = pattern::unary(graph, gate, UnaryFn::Tanh)?;
    let is_softplus = match pattern::unary(graph, inner, UnaryFn::Softplus) {
        Some(operand) => operand == x,
        None => {
            let sum = pattern::unary(graph, inner, UnaryFn::Log)?;
            let (exp, one) = pattern::with_number(graph, sum, BinaryFn::Add)?;
            close(one, 1.0) && pattern::unary(graph, exp, UnaryFn::Exp) == Some(x)
        }
    };
    (is_softplus && close(number, 1.0)).then_some(UnaryFn::Mish)
}
