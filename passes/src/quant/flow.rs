//! Which values feed which layers: movements and chains of functions.

use std::collections::BTreeMap;

use qail_ir::{Binary, BinaryFn, DType, Graph, Linear, NodeId, Op, ReduceFn, Unary, UnaryFn, ValueId};

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

/// True for functions whose results fit unsigned codes: never negative, or with a
/// short negative side that a zero point takes in.
pub(crate) fn never_negative(f: UnaryFn) -> bool {
    match f {
        UnaryFn::Relu
        | UnaryFn::Sigmoid
        | UnaryFn::Abs
        | UnaryFn::Exp
        | UnaryFn::Sqrt
        | UnaryFn::Cosh
        | UnaryFn::Acosh
        | UnaryFn::Acos
        | UnaryFn::HardSigmoid { .. }
        | UnaryFn::Softplus => true,
        UnaryFn::Clip { min, .. } => min >= 0.0,
        // With a zero point.
        f if short_negative_side(f) => true,
        UnaryFn::Tanh
        | UnaryFn::Neg
        | UnaryFn::Log
        | UnaryFn::Reciprocal
        | UnaryFn::Softsign
        | UnaryFn::Erf
        | UnaryFn::Silu
        | UnaryFn::Elu { .. }
        | UnaryFn::LeakyRelu { .. }
        | UnaryFn::Gelu
        | UnaryFn::GeluTanh
        | UnaryFn::Mish
        | UnaryFn::Swish { .. }
        | UnaryFn::HardSwish
        | UnaryFn::Selu { .. }
        | UnaryFn::Celu { .. }
        | UnaryFn::Sin
        | UnaryFn::Cos
        | UnaryFn::Tan
        | UnaryFn::Asin
        | UnaryFn::Atan
        | UnaryFn::Sinh
        | UnaryFn::Asinh
        | UnaryFn::Atanh
        | UnaryFn::Floor
        | UnaryFn::Ceil
        | UnaryFn::Round
        | UnaryFn::Sign => false,
    }
}

/// True for functions that fall a little below zero and never far.
pub(crate) fn short_negative_side(f: UnaryFn) -> bool {
    matches!(
        f,
        UnaryFn::Silu
            | UnaryFn::Elu { .. }
            | UnaryFn::LeakyRelu { .. }
            | UnaryFn::Gelu
            | UnaryFn::GeluTanh
            | UnaryFn::Mish
            | UnaryFn::Swish { .. }
            | UnaryFn::HardSwish
            | UnaryFn::Selu { .. }
            | UnaryFn::Celu { .. }
    )
}

/// True for operations whose result holds elements of their first operand only: codes pass through.
///
/// Extremes are among them: the largest code is the code of the largest number. So are windows
/// whose fill has a code whatever the step is: zero, and the infinities of a pool, which become
/// the first and the last code. Concatenations have several operands: see [`joins`].
pub(crate) fn moves(graph: &Graph, id: NodeId) -> bool {
    match &graph.node(id).op {
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) => true,
        Op::Unfold(unfold) => unfold.fill == 0.0 || unfold.fill.is_infinite() || has_unit_codes(graph, id),
        Op::Reduce(reduce) => matches!(reduce.f, ReduceFn::Min | ReduceFn::Max),
        Op::Gather(_) => graph.operands(id).get(1).is_some_and(|&index| graph.const_of(index).is_some()),
        _ => false,
    }
}

/// True for windows with a whole fill over bytes that are their own codes.
fn has_unit_codes(graph: &Graph, id: NodeId) -> bool {
    let Op::Unfold(unfold) = &graph.node(id).op else { return false };
    if unfold.fill.fract() != 0.0 || !(0.0..=255.0).contains(&unfold.fill) {
        return false;
    }
    let mut value = id.value();
    loop {
        match (graph.op(value), graph.operands(value.node).first()) {
            (Op::Cast(_), _) => return is_of_bytes(graph, value),
            (op, Some(&x)) if !matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Linear(_)) => value = x,
            _ => return false,
        }
    }
}

/// True for bytes as floats: camera images, which are their own codes.
pub(crate) fn is_of_bytes(graph: &Graph, value: ValueId) -> bool {
    let operand = graph.operands(value.node).first().copied();
    matches!(graph.op(value), Op::Cast(_))
        && graph.ty(value).is_f32()
        && operand.is_some_and(|x| graph.ty(x).dtype() == Some(DType::U8))
}

/// True for operations that put elements of all their operands side by side.
pub(crate) fn joins(op: &Op) -> bool {
    matches!(op, Op::Concat(_))
}

/// Either of both.
pub(crate) fn moves_or_joins(graph: &Graph, id: NodeId) -> bool {
    joins(&graph.node(id).op) || moves(graph, id)
}

/// The value that a chain of movements begins with, and the movements, first one first.
pub(crate) fn through_movements(graph: &Graph, value: ValueId) -> (ValueId, Vec<NodeId>) {
    let mut root = value;
    let mut path = Vec::new();
    while moves(graph, root.node) {
        let Some(&operand) = graph.operands(root.node).first() else { break };
        path.push(root.node);
        root = operand;
    }
    path.reverse();
    (root, path)
}

/// Number of elements in each sum, if the node sums or averages and its result has an axis.
pub(crate) fn sum_of(graph: &Graph, id: NodeId) -> Option<Sum> {
    let Op::Reduce(reduce) = &graph.node(id).op else { return None };
    let x = *graph.operands(id).first()?;
    let ty = graph.ty(id.value());
    let n = reduce.axes.iter().try_fold(1usize, |n, &axis| n.checked_mul(*graph.ty(x).shape.get(axis)?))?;
    let divisor = match reduce.f {
        ReduceFn::Sum => 1,
        ReduceFn::Mean => n,
        ReduceFn::Min | ReduceFn::Max | ReduceFn::Prod => return None,
    };
    (ty.is_f32() && !ty.shape.is_empty() && n > 0).then_some(Sum { x, n, divisor })
}

/// A sum over axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// What is summed.
    pub(crate) x: ValueId,
    /// Elements in a sum.
    pub(crate) n: usize,
    /// What it is divided by.
    pub(crate) divisor: usize,
}

/// Both operands of an addition of computed values, the one in the shape of the result first.
pub(crate) fn addends(graph: &Graph, value: ValueId) -> Option<[ValueId; 2]> {
    let Op::Binary(Binary { f: BinaryFn::Add }) = graph.op(value) else { return None };
    let [a, b] = graph.operands(value.node)[..] else { return None };
    let whole = |x: ValueId| graph.ty(x) == graph.ty(value);
    let computed = graph.const_of(a).is_none() && graph.const_of(b).is_none();
    if a == b || !computed || graph.ty(value).shape.is_empty() || !graph.ty(value).is_f32() {
        return None;
    }
    match (whole(a), whole(b)) {
        (true, _) => Some([a, b]),
        (false, true) => Some([b, a]),
        (false, false) => None,
    }
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
            Op::Linear(Linear { act: Some(f), .. }) => {
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
