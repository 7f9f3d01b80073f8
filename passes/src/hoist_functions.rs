//! `hoist-functions`: moves a function behind movements in front of them.
//!
//! `relu(reshape(linear(x)))` becomes `reshape(relu(linear(x)))`, where the function fuses into the
//! layer, or into the requantization of its accumulator. It moves over reshapes and transposes;
//! functions that only clamp also move over max and min pools, whose result they commute with.
//! Only if a layer or a sum defines the value in the end, and nobody else reads what lies between.
//! Quantizers with one step are hoisted likewise: a requantization stands right behind its layer.
//! Exact: every number passes through the same function.

use qail_ir::{BinaryFn, FakeQuant, Graph, NodeId, Op, Reduce, ReduceFn, Unary, UnaryFn, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, quant::flow, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct HoistFunctions;

impl Pass for HoistFunctions {
    fn name(&self) -> &'static str {
        "hoist-functions"
    }

    fn summary(&self) -> &'static str {
        "moves functions behind movements in front of them, to the layer that they fuse into"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for id in graph.topo() {
            let f = match graph.node(id).op {
                Op::Unary(Unary { f }) => Some(f),
                Op::FakeQuant(FakeQuant { axis: None, .. }) => None,
                _ => continue,
            };
            let Some((root, first)) = root(graph, id, f) else { continue };
            let node = graph.node(id).clone();
            let mut operands = graph.operands(id);
            let Some(last) = operands.first_mut().map(|last| std::mem::replace(last, root)) else { continue };
            graph.rename(id, format!("{}.old", node.name));
            let moved = rewrite::add(graph, &node.name, node.op, &operands, node.origin)?;
            graph.rewire(first, 0, moved);
            graph.replace_uses(id.value(), last);
            // At once: what it read may have one reader less, for a quantizer behind it.
            rewrite::sweep(graph, [id]);
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}

/// The value in front of the movements that a function stands behind, and the first of them.
fn root(graph: &Graph, id: NodeId, f: Option<UnaryFn>) -> Option<(ValueId, NodeId)> {
    let mut value = *graph.operands(id).first()?;
    let (mut user, mut first) = (id, None);
    while commutes(graph, value.node, f) {
        if graph.sole_user(value) != Some(user) {
            return None;
        }
        first = Some(value.node);
        user = value.node;
        value = *graph.operands(value.node).first()?;
    }
    // A quantizer also takes the functions in front of it along.
    let source = if f.is_none() { flow::chain_behind(graph, value).source } else { value };
    let ends = matches!(graph.op(source), Op::Linear(_)) || pattern::binary(graph, source, BinaryFn::Add).is_some();
    // Another reader would keep the value without the function.
    (ends && graph.sole_user(value) == Some(user)).then_some(value).zip(first)
}

fn commutes(graph: &Graph, id: NodeId, f: Option<UnaryFn>) -> bool {
    match (&graph.node(id).op, f) {
        (Op::Reshape(_) | Op::Transpose(_), _) => true,
        (Op::Reduce(Reduce { f: ReduceFn::Max | ReduceFn::Min, .. }), Some(f)) => flow::clamps(f),
        // A pool's windows: what stands beyond the edges is never the extreme.
        (Op::Unfold(unfold), Some(f)) => {
            let extreme = |&(user, _): &(NodeId, u16)| {
                matches!(
                    graph.node(user).op,
                    Op::Reduce(Reduce { f: ReduceFn::Max, .. }) if unfold.fill == f32::NEG_INFINITY
                )
            };
            flow::clamps(f) && graph.users(id.value()).iter().all(extreme) && has_elements(graph, id)
        }
        _ => false,
    }
}

/// True if every window shows an element.
fn has_elements(graph: &Graph, id: NodeId) -> bool {
    let (Op::Unfold(unfold), Some(&x)) = (&graph.node(id).op, graph.operands(id).first()) else { return false };
    let shows = |window: &qail_ir::Window, extent: usize| {
        (0..window.out).all(|o| (0..window.size).any(|k| window.element(o, k, extent).is_some()))
    };
    unfold.windows.iter().zip(&graph.ty(x).shape).all(|(window, &extent)| shows(window, extent))
}
