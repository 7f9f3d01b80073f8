//! MatMul followed by Add: the addend becomes the bias of the `linear`.
//!
//! Only if the product has no other reader and had no bias. Exact: a `linear`
//! adds its bias after the sum, as the Add did.

use std::collections::BTreeMap;

use qail_ir::{BinaryFn, ConstData, Constant, Graph, NodeId, Op, TensorType, ValueId};

/// Moves known addends into the products before them.
pub(super) fn fuse(graph: &mut Graph) {
    let order = graph.topo();
    // Counted once: asking each value for its users is quadratic in the worst case.
    let mut n_readers: BTreeMap<ValueId, usize> = BTreeMap::new();
    let read = order.iter().flat_map(|&node| graph.operands(node));
    for value in read.chain(graph.outputs.iter().map(|output| output.value)) {
        *n_readers.entry(value).or_default() += 1;
    }
    for add in order {
        fuse_one(graph, add, &n_readers);
    }
}

fn fuse_one(graph: &mut Graph, add: NodeId, n_readers: &BTreeMap<ValueId, usize>) -> Option<()> {
    if !graph.contains(add) || !matches!(&graph.node(add).op, Op::Binary(binary) if binary.f == BinaryFn::Add) {
        return None;
    }
    let [a, b] = graph.operands(add)[..] else { return None };
    let (product, addend) = if graph.const_of(b).is_some() { (a, b) } else { (b, a) };
    let op = graph.op(product).clone();
    if !matches!(op, Op::Linear(_)) || n_readers.get(&product) != Some(&1) {
        return None;
    }
    let [x, w, zero] = graph.operands(product.node)[..] else { return None };
    let is_zero = matches!(graph.const_of(zero)?.data, ConstData::Splat(bits) if bits == 0.0);
    if !is_zero || graph.ty(product) != graph.ty(add.value()) {
        return None;
    }
    let n = *graph.ty(w).shape.last()?;
    let bias = bias(graph, addend, n)?;
    let (name, origin) = (graph.node(add).name.clone(), graph.node(add).origin.merge(&graph.node(product.node).origin));
    let linear = graph.add("linear", op, &[x, w, bias], origin).ok()?;
    graph.replace_uses(add.value(), linear.value());
    for node in [add, product.node, zero.node, addend.node] {
        graph.remove(node);
    }
    graph.rename(linear, name);
    Some(())
}

/// The addend as `b[N]`, if it is the same for every row.
fn bias(graph: &mut Graph, addend: ValueId, n: usize) -> Option<ValueId> {
    let constant = graph.const_of(addend)?.clone();
    if constant.ty.shape == [n] {
        return Some(addend);
    }
    if constant.ty.n_elements() != n || constant.ty.shape.last() != Some(&n) {
        return None;
    }
    let node = graph.node(addend.node);
    let (name, origin) = (node.name.clone(), node.origin.clone());
    Some(graph.add_const(name, Constant { ty: TensorType::f32([n]), data: constant.data.clone() }, origin))
}
