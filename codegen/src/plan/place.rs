//! Who computes a node, and in which part of the plan.
//!
//! *Anchors* are the operations that a device is for: matrix products and
//! requantization. Nodes without an anchor before them are the *prefix*, nodes
//! without one behind them the *suffix*; both run on the host, so the entry of a
//! quantized region and the actions do not depend on shader arithmetic. What
//! lies between runs on the device, except `quantize` and `dequantize`, which are
//! host code everywhere, and *islands*: operations that only host code surrounds,
//! as between a `dequantize` and a `quantize`. A device would cost them two more
//! transfers, and on the host their bits are those of every other device.

use std::collections::BTreeSet;

use super::schedule;
use qail_artifact::schema::Place;
use qail_ir::{BinaryFn, Graph, NodeId, Op, ScatterFn, TensorType};

/// Part of the plan. Steps are ordered by part first, so that the device steps
/// of a policy are one segment: one submission and one wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Before every anchor.
    Prefix,
    /// Anchors and what lies between them.
    Middle,
    /// Behind every anchor.
    Suffix,
}

/// Placement of every node of a graph.
pub(crate) struct Placement {
    /// Every node in the order of its steps.
    pub(crate) order: Vec<NodeId>,
    /// Nodes that some anchor reads from, near or far.
    before_anchor: BTreeSet<NodeId>,
    /// Nodes that compute on the device.
    device: BTreeSet<NodeId>,
    /// Nodes that a repeat computes anew in each turn; they come last.
    varying: BTreeSet<NodeId>,
}

impl Placement {
    /// Places every node.
    pub(crate) fn new(graph: &Graph) -> Self {
        let topo = graph.topo();
        // Windows are the first device step of a convolution: what is sent to the
        // device is the image, not its windows. Not so if host code quantizes them.
        let mut before_product = BTreeSet::new();
        for &node in topo.iter().rev() {
            if is_anchor(&graph.node(node).op) || before_product.contains(&node) && !is_host(graph, node) {
                before_product.extend(graph.operands(node).iter().map(|x| x.node));
            }
        }
        let is_anchor = |node: NodeId| {
            let op = &graph.node(node).op;
            is_anchor(op) || matches!(op, Op::Unfold(_)) && before_product.contains(&node)
        };
        let mut behind_anchor = BTreeSet::new();
        for &node in &topo {
            let reads = graph.operands(node);
            if reads.iter().any(|x| is_anchor(x.node) || behind_anchor.contains(&x.node)) {
                behind_anchor.insert(node);
            }
        }
        let mut before_anchor = BTreeSet::new();
        for &node in topo.iter().rev() {
            if is_anchor(node) || before_anchor.contains(&node) {
                before_anchor.extend(graph.operands(node).iter().map(|x| x.node));
            }
        }
        let mut order = Vec::with_capacity(topo.len());
        let mut device = BTreeSet::new();
        for &node in &topo {
            let part = match (is_anchor(node), behind_anchor.contains(&node), before_anchor.contains(&node)) {
                (true, ..) | (false, true, true) => Part::Middle,
                (false, false, _) => Part::Prefix,
                (false, true, false) => Part::Suffix,
            };
            if part == Part::Middle && !is_host(graph, node) {
                device.insert(node);
            }
            order.push((node, part));
        }
        let anchors = device.iter().copied().filter(|&node| is_anchor(node));
        let device = connected(graph, anchors.collect(), &device);
        // Stable: inside a part the topological order stays. A node of the prefix
        // reads only the prefix, and a node of the suffix is read only by the suffix.
        let varying = schedule::varying(graph);
        order.sort_by_key(|&(node, part)| (varying.contains(&node), part));
        let order = order.into_iter().map(|(node, _)| node).collect();
        Self { order, before_anchor, device, varying }
    }

    /// True if a repeat computes the node anew in each turn.
    pub(crate) fn varies(&self, node: NodeId) -> bool {
        self.varying.contains(&node)
    }

    /// Who computes a node.
    pub(crate) fn place(&self, node: NodeId) -> Place {
        if self.device.contains(&node) { Place::Device } else { Place::Host }
    }

    /// True if no anchor reads the result of the node, near or far.
    pub(crate) fn is_last(&self, node: NodeId) -> bool {
        !self.before_anchor.contains(&node)
    }
}

/// The nodes of `among` that are linked to one of `found` by nodes of `among`.
fn connected(graph: &Graph, found: BTreeSet<NodeId>, among: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut open: Vec<NodeId> = found.iter().copied().collect();
    let mut found = found;
    while let Some(node) = open.pop() {
        let operands = graph.operands(node).into_iter().map(|x| x.node);
        let users = graph.users(node.value()).into_iter().map(|(user, _)| user);
        open.extend(operands.chain(users).filter(|near| among.contains(near) && found.insert(*near)));
    }
    found
}

/// Operations that a device is for.
fn is_anchor(op: &Op) -> bool {
    match op {
        Op::MatMul(_)
        | Op::Linear(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Attention(_)
        | Op::LinearWq(_) => true,
        Op::Input(_)
        | Op::Const(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Expand(_)
        | Op::Reduce(_)
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Gather(_)
        | Op::Scatter(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Unfold(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Rope(_)
        | Op::Film(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::Grad(_) => false,
    }
}

/// Most steps that one invocation of a shader takes one after the other: sorting
/// or changing more than that is host code.
const MAX_SERIAL: usize = 1 << 18;

/// Operations that are host code everywhere: WGSL division and `f64` are not
/// exact, and a device reports no integer that leaves its type.
fn is_host(graph: &Graph, node: NodeId) -> bool {
    let is_int = |ty: &TensorType| ty.dtype().is_some_and(|dtype| !dtype.is_float());
    let has_int = || is_int(graph.ty(node.value())) || graph.operands(node).iter().any(|&x| is_int(graph.ty(x)));
    // Codes of 16 bits lie in two planes, which shaders show and pick, but do not cut.
    let is_wide = || graph.ty(node.value()).scheme().is_some_and(|scheme| scheme.bits > 8);
    let along = |axis: usize| {
        let x = graph.operands(node).first().copied();
        x.and_then(|x| graph.ty(x).shape.get(axis).copied()).unwrap_or(0)
    };
    match &graph.node(node).op {
        Op::Quantize(_) | Op::Dequantize(_) | Op::Input(_) | Op::Const(_) => true,
        Op::Scatter(scatter) => {
            let updates = graph.operands(node).get(1).map_or(0, |&index| graph.ty(index).n_elements());
            let is_sum = matches!(scatter.f, ScatterFn::Add | ScatterFn::Mul);
            is_sum && is_int(graph.ty(node.value())) || updates > MAX_SERIAL
        }
        Op::TopK(top) => along(top.axis).saturating_mul(top.k) > MAX_SERIAL,
        Op::ArgReduce(reduce) => along(reduce.axis) > MAX_SERIAL,
        Op::CumSum(sum) => has_int() || along(sum.axis) > MAX_SERIAL,
        Op::Binary(binary) => !matches!(binary.f, BinaryFn::Min | BinaryFn::Max) && has_int(),
        Op::Reduce(_) => has_int() || is_wide(),
        Op::Cast(_) => has_int(),
        Op::Slice(_) | Op::Concat(_) | Op::Expand(_) => is_wide(),
        Op::MatMul(_)
        | Op::Linear(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::LinearWq(_)
        | Op::Unary(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Gather(_)
        | Op::Unfold(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::FakeQuant(_)
        | Op::Grad(_) => false,
    }
}
