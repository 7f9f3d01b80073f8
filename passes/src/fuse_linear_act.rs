//! `fuse-linear-act`: folds an activation into the `linear` that feeds it.
//!
//! Only if the activation is the sole reader: the unfused value must stay
//! available to every other one. Exact: the numbers do not change.

use qail_ir::{Graph, Linear, LinearWq, NodeId, Op, Unary, UnaryFn};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseLinearAct;

impl Pass for FuseLinearAct {
    fn name(&self) -> &'static str {
        "fuse-linear-act"
    }

    fn summary(&self) -> &'static str {
        "folds an activation into the linear that feeds it"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        for id in graph.topo() {
            let Op::Unary(Unary { f }) = graph.node(id).op else { continue };
            let [y] = graph.operands(id)[..] else { continue };
            let Some(fused) = with_act(graph.op(y), f) else { continue };
            if !rewrite::is_sole_reader(graph, id, y, &dead) {
                cx.declined(graph, id, "the linear in front has another reader");
                continue;
            }
            fuse(graph, y.node, id, fused)?;
            dead.extend([id, y.node]);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// The layer with the activation, if it has none yet and the function is one
/// that kernels apply to their result.
fn with_act(op: &Op, f: UnaryFn) -> Option<Op> {
    let fusible = match f {
        UnaryFn::Relu
        | UnaryFn::LeakyRelu { .. }
        | UnaryFn::Elu { .. }
        | UnaryFn::Tanh
        | UnaryFn::Sigmoid
        | UnaryFn::Silu
        | UnaryFn::Clip { .. }
        | UnaryFn::Gelu
        | UnaryFn::GeluTanh
        | UnaryFn::Mish
        | UnaryFn::Swish { .. }
        | UnaryFn::HardSigmoid { .. }
        | UnaryFn::HardSwish
        | UnaryFn::Selu { .. }
        | UnaryFn::Celu { .. }
        | UnaryFn::Softplus
        | UnaryFn::Softsign
        | UnaryFn::Erf => true,
        UnaryFn::Abs
        | UnaryFn::Neg
        | UnaryFn::Exp
        | UnaryFn::Log
        | UnaryFn::Sqrt
        | UnaryFn::Reciprocal
        | UnaryFn::Sin
        | UnaryFn::Cos
        | UnaryFn::Tan
        | UnaryFn::Asin
        | UnaryFn::Acos
        | UnaryFn::Atan
        | UnaryFn::Sinh
        | UnaryFn::Cosh
        | UnaryFn::Asinh
        | UnaryFn::Acosh
        | UnaryFn::Atanh
        | UnaryFn::Floor
        | UnaryFn::Ceil
        | UnaryFn::Round
        | UnaryFn::Sign => false,
    };
    match op {
        Op::Linear(Linear { act: None, groups }) if fusible => {
            Some(Op::Linear(Linear { act: Some(f), groups: *groups }))
        }
        Op::LinearWq(LinearWq { act: None, group }) if fusible => {
            Some(Op::LinearWq(LinearWq { act: Some(f), group: *group }))
        }
        _ => None,
    }
}

fn fuse(graph: &mut Graph, linear: NodeId, act: NodeId, fused: Op) -> Result<(), PassError> {
    let operands = graph.operands(linear);
    let new = rewrite::replace(graph, linear, fused, &operands)?;
    let origin = graph.node(act).origin.clone();
    graph.merge_origin(new.node, &origin);
    graph.replace_uses(act.value(), new);
    Ok(())
}
