//! `lift-silu`: makes `silu(x)` of `x * sigmoid(x)`.
//!
//! The product may have its operands in either order. A sigmoid that others
//! read stays for them. The numbers differ by one rounding: `silu` rounds once
//! where the product rounded twice.

use qail_ir::{Binary, BinaryFn, Graph, NodeId, Op, Unary, UnaryFn, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftSilu;

impl Pass for LiftSilu {
    fn name(&self) -> &'static str {
        "lift-silu"
    }

    fn summary(&self) -> &'static str {
        "makes silu(x) of x * sigmoid(x)"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some((x, sigmoid)) = silu_of(graph, id) else { continue };
            let origin = graph.node(sigmoid).origin.clone();
            let new = rewrite::replace(graph, id, Op::Unary(Unary { f: UnaryFn::Silu }), &[x])?;
            graph.merge_origin(new.node, &origin);
            replaced.push(id);
        }
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// `x` and the sigmoid, if the node is `x * sigmoid(x)`.
fn silu_of(graph: &Graph, id: NodeId) -> Option<(ValueId, NodeId)> {
    let Op::Binary(Binary { f: BinaryFn::Mul }) = &graph.node(id).op else { return None };
    let [a, b] = graph.operands(id)[..] else { return None };
    let is_sigmoid_of = |y: ValueId, x: ValueId| {
        matches!(graph.op(y), Op::Unary(Unary { f: UnaryFn::Sigmoid })) && graph.operands(y.node) == [x]
    };
    if is_sigmoid_of(b, a) {
        Some((a, b.node))
    } else if is_sigmoid_of(a, b) {
        Some((b, a.node))
    } else {
        None
    }
}
