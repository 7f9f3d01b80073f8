//! `lift-softmax`: makes `softmax` of `exp(x - max(x)) / sum(exp(x - max(x)))`.
//!
//! Without the maximum too: the softmax of a number does not depend on what is subtracted, but its
//! decomposed form overflows where the lifted one does not.

use qail_ir::{BinaryFn, Graph, NodeId, Op, ReduceFn, Softmax, UnaryFn, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftSoftmax;

impl Pass for LiftSoftmax {
    fn name(&self) -> &'static str {
        "lift-softmax"
    }

    fn summary(&self) -> &'static str {
        "makes softmax of exponentials divided by their sum"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some((x, axes)) = softmax_of(graph, id) else { continue };
            let &[axis] = &axes[..] else {
                cx.declined(graph, id, "the sum under its exponentials runs along several axes");
                continue;
            };
            let origins = pattern::inner_origins(graph, id.value(), &[x]);
            let new = rewrite::replace(graph, id, Op::Softmax(Softmax { axis, log: false }), &[x])?;
            origins.into_iter().for_each(|origin| graph.merge_origin(new.node, &origin));
            replaced.push(id);
        }
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// Operand and axes, if the node is a softmax.
fn softmax_of(graph: &Graph, id: NodeId) -> Option<(ValueId, Vec<usize>)> {
    let [exp, sum] = pattern::binary(graph, id.value(), BinaryFn::Div)?;
    let (axes, summed) = pattern::kept_reduce(graph, sum, ReduceFn::Sum)?;
    let shifted = pattern::unary(graph, exp, UnaryFn::Exp).filter(|_| summed == exp)?;
    let centered = pattern::binary(graph, shifted, BinaryFn::Sub).and_then(|[x, max]| {
        let (of_max, operand) = pattern::kept_reduce(graph, max, ReduceFn::Max)?;
        (operand == x && of_max == axes).then_some(x)
    });
    Some((centered.unwrap_or(shifted), axes))
}
