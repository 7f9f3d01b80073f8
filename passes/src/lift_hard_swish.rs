//! `lift-hard-swish`: makes `hard_swish(x)` of `x * hard_sigmoid(x)` and of `x * clip(x + 3, 0, 6) / 6`.

use qail_ir::{BinaryFn, Graph, Op, Unary, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, close},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftHardSwish;

impl Pass for LiftHardSwish {
    fn name(&self) -> &'static str {
        "lift-hard-swish"
    }

    fn summary(&self) -> &'static str {
        "makes hard_swish(x) of x * hard_sigmoid(x)"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, hard_swish)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn hard_swish(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Option<UnaryFn> {
    let Op::Unary(Unary { f }) = *graph.op(gate) else { return None };
    let inner = *graph.operands(gate.node).first()?;
    let fits = match f {
        UnaryFn::HardSigmoid { alpha, beta } => {
            inner == x && close(f64::from(alpha), 1.0 / 6.0) && close(f64::from(beta), 0.5) && close(number, 1.0)
        }
        UnaryFn::Clip { min, max } => {
            let shifted = pattern::with_number(graph, inner, BinaryFn::Add);
            let by_3 = shifted.is_some_and(|(operand, three)| operand == x && close(three, 3.0));
            min == 0.0 && max == 6.0 && by_3 && close(number, 1.0 / 6.0)
        }
        _ => false,
    };
    fits.then_some(UnaryFn::HardSwish)
}
