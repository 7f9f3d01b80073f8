//! What a lowered graph says about itself: sums of codes, and floats between codes.

use std::collections::BTreeSet;

use qail_ir::{Graph, NodeId, Op, QuantScheme};

/// Sums of codes by name, with the width of their results.
pub(super) fn sums(graph: &Graph) -> Vec<(String, QuantScheme)> {
    let width = |id: NodeId| match &graph.node(id).op {
        Op::QAdd(add) => Some(add.scheme),
        Op::QSum(_) => graph.users(id.value()).first().and_then(|&(user, _)| graph.ty(user.value()).scheme()),
        _ => None,
    };
    let name = |id: NodeId| Some((graph.node(id).name.clone(), width(id)?));
    graph.topo().into_iter().filter_map(name).collect()
}

/// Operations on floats that come from codes and become codes again, by name, with the operation.
pub(super) fn islands(graph: &Graph) -> Vec<(String, String)> {
    let order = graph.topo();
    let mut from_codes: BTreeSet<NodeId> = BTreeSet::new();
    for &id in &order {
        let behind = graph.operands(id).iter().any(|value| from_codes.contains(&value.node));
        if behind || matches!(graph.node(id).op, Op::Dequantize(_)) {
            from_codes.insert(id);
        }
    }
    let mut to_codes: BTreeSet<NodeId> = BTreeSet::new();
    for &id in order.iter().rev() {
        let in_front = graph.users(id.value()).iter().any(|(user, _)| to_codes.contains(user));
        if in_front || matches!(graph.node(id).op, Op::Quantize(_)) {
            to_codes.insert(id);
        }
    }
    let is_island = |id: &NodeId| {
        let floats = graph.ty(id.value()).is_f32() && computes(&graph.node(*id).op);
        floats && from_codes.contains(id) && to_codes.contains(id)
    };
    let name = |id: NodeId| (graph.node(id).name.clone(), graph.node(id).op.name().to_owned());
    order.into_iter().filter(is_island).map(name).collect()
}

/// True for operations on floats that are no movements.
fn computes(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(_)
            | Op::Binary(_)
            | Op::MatMul(_)
            | Op::Linear(_)
            | Op::Reduce(_)
            | Op::Softmax(_)
            | Op::Normalize(_)
            | Op::Attention(_)
            | Op::Rope(_)
            | Op::Film(_)
            | Op::CumSum(_)
            | Op::LinearWq(_)
    )
}
