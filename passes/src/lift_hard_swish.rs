//! `lift-hard-swish`: makes `hard_swish(x)` of `x * hard_sigmoid(x)` and of `x * clip(x + 3, 0, 6) / 6`.

use qail_ir::{BinaryFn, Graph, Op, Unary, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, Gate, close},
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

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, cx, hard_swish)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn hard_swish(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Gate {
    let (Op::Unary(Unary { f }), Some(&inner)) = (graph.op(gate).clone(), graph.operands(gate.node).first()) else {
        return Ok(None);
    };
    let fits = match f {
        UnaryFn::HardSigmoid { alpha, beta } if inner == x => {
            close(f64::from(alpha), 1.0 / 6.0) && close(f64::from(beta), 0.5) && close(number, 1.0)
        }
        UnaryFn::Clip { min, max } => match pattern::with_number(graph, inner, BinaryFn::Add) {
            Some((operand, three)) if operand == x => {
                min == 0.0 && max == 6.0 && close(three, 3.0) && close(number, 1.0 / 6.0)
            }
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    if fits { Ok(Some(UnaryFn::HardSwish)) } else { Err("its numbers are not those of hard_swish") }
}
