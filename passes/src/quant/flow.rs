//! Which values feed which layers: edges, movements and chains of functions.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Graph, Linear, NodeId, Op, Unary, UnaryFn, ValueId};

/// True for functions that only clamp: they fold into the range of codes.
pub(crate) fn clamps(f: UnaryFn) -> bool {
    matches!(f, UnaryFn::Relu | UnaryFn::Clip { .. })
}

/// True for functions that a table of codes can hold: finite everywhere and
/// not steeper than the codes can follow.
pub(crate) fn fits_a_table(f: UnaryFn) -> bool {
    match f {
        UnaryFn::Relu
        | UnaryFn::LeakyRelu { .. }
        | UnaryFn::Elu { .. }
        | UnaryFn::Tanh
        | UnaryFn::Sigmoid
        | UnaryFn::Silu
        | UnaryFn::Clip { .. }
        | UnaryFn::Abs
        | UnaryFn::Neg
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
        | UnaryFn::Erf
        | UnaryFn::Sin
        | UnaryFn::Cos
        | UnaryFn::Atan
        | UnaryFn::Asinh => true,
        // Infinite somewhere, too steep, or with jumps.
        UnaryFn::Exp
        | UnaryFn::Log
        | UnaryFn::Sqrt
        | UnaryFn::Reciprocal
        | UnaryFn::Tan
        | UnaryFn::Asin
        | UnaryFn::Acos
        | UnaryFn::Sinh
        | UnaryFn::Cosh
        | UnaryFn::Acosh
        | UnaryFn::Atanh
        | UnaryFn::Floor
        | UnaryFn::Ceil
        | UnaryFn::Round
        | UnaryFn::Sign => false,
    }
}

/// True for operations that move elements and compute nothing.
pub(crate) fn moves(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_))
}

/// The value that a chain of movements begins with, and the movements, first one first.
pub(crate) fn through_movements(graph: &Graph, value: ValueId) -> (ValueId, Vec<NodeId>) {
    let mut root = value;
    let mut path = Vec::new();
    while moves(graph.op(root)) {
        let Some(&operand) = graph.operands(root.node).first() else { break };
        path.push(root.node);
        root = operand;
    }
    path.reverse();
    (root, path)
}

/// Where a chain of functions of one number begins.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The value before the first function. If a layer with a fused function
    /// defines it, that function is the first of `functions`.
    pub(crate) source: ValueId,
    /// The functions, first one first.
    pub(crate) functions: Vec<UnaryFn>,
    /// The node of the first function, if it is not fused into a layer.
    pub(crate) first: Option<NodeId>,
}

/// Walks from a value back over functions of one number.
pub(crate) fn chain_behind(graph: &Graph, value: ValueId) -> Chain {
    let mut chain = Chain { source: value, functions: Vec::new(), first: None };
    loop {
        match graph.op(chain.source) {
            Op::Unary(Unary { f }) => {
                let Some(&operand) = graph.operands(chain.source.node).first() else { break };
                chain.functions.push(*f);
                chain.first = Some(chain.source.node);
                chain.source = operand;
            }
            Op::Linear(Linear { act: Some(f) }) => {
                chain.functions.push(*f);
                break;
            }
            _ => break,
        }
    }
    chain.functions.reverse();
    chain
}

/// The graph with every quantizer bypassed, and what each of
/// them was replaced by. Ids of the other nodes are the same.
pub(crate) fn without_quantizers(graph: &Graph) -> (Graph, BTreeMap<ValueId, ValueId>) {
    let mut floats = graph.clone();
    let mut replaced: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for id in graph.topo() {
        let Op::FakeQuant(_) = graph.node(id).op else { continue };
        let Some(&x) = graph.operands(id).first() else { continue };
        let x = replaced.get(&x).copied().unwrap_or(x);
        replaced.insert(id.value(), x);
        floats.replace_uses(id.value(), x);
    }
    (floats, replaced)
}

/// Whether a layer is the first or the last on some path through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) first: bool,
    pub(crate) last: bool,
}

impl Edge {
    /// Of `layer` among `layers`.
    pub(crate) fn of(graph: &Graph, layer: NodeId, layers: &BTreeSet<NodeId>) -> Self {
        Self { first: sees_an_input(graph, layer, layers), last: reaches_an_output(graph, layer, layers) }
    }

    pub(crate) fn is_edge(self) -> bool {
        self.first || self.last
    }
}

fn sees_an_input(graph: &Graph, layer: NodeId, layers: &BTreeSet<NodeId>) -> bool {
    let mut seen = BTreeSet::new();
    let mut queue: Vec<NodeId> = graph.operands(layer).first().map(|value| value.node).into_iter().collect();
    while let Some(id) = queue.pop() {
        if layers.contains(&id) || !seen.insert(id) {
            continue;
        }
        if matches!(graph.node(id).op, Op::Input(_)) {
            return true;
        }
        queue.extend(graph.operands(id).into_iter().map(|value| value.node));
    }
    false
}

fn reaches_an_output(graph: &Graph, layer: NodeId, layers: &BTreeSet<NodeId>) -> bool {
    let mut seen = BTreeSet::new();
    let mut queue = vec![layer.value()];
    while let Some(value) = queue.pop() {
        if graph.is_output(value) {
            return true;
        }
        for (user, _) in graph.users(value) {
            if !layers.contains(&user) && seen.insert(user) {
                queue.push(user.value());
            }
        }
    }
    false
}
