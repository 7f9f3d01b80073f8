//! `canonicalize`: one spelling for things that can be written in many ways.
//!
//! Bounds that bound nothing, `clip(0, inf)` for `relu`, a clip of a clip,
//! reshapes of reshapes, pairs of transposes, and whatever returns its operand
//! unchanged (slices of everything, casts and expands to the same type, concats
//! of one). Runs until nothing changes. Exact.

use qail_ir::{
    Cast, Concat, Expand, Graph, NodeId, Op, Reshape, Slice, SliceAxis, TensorType, Transpose, Unary, UnaryFn, ValueId,
};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Canonicalize;

/// What to put in the place of a node.
enum Rewrite {
    /// Readers read this value instead.
    Value(ValueId),
    /// Another operation on other operands.
    Op(Op, ValueId),
}

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        "canonicalize"
    }

    fn summary(&self) -> &'static str {
        "writes clips, reshapes, transposes and slices in one way and drops those that do nothing"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        // Operands come first, so a chain collapses in one walk.
        for id in graph.topo() {
            // A node made by a rewrite may be rewritten again; every rewrite
            // shortens a chain or names a simpler operation, so this ends.
            let mut current = id;
            while let Some(rewrite) = simpler(graph, current) {
                dead.push(current);
                match rewrite {
                    Rewrite::Value(value) => {
                        graph.replace_uses(current.value(), value);
                        break;
                    }
                    Rewrite::Op(op, x) => current = rewrite::replace(graph, current, op, &[x])?.node,
                }
            }
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// A simpler form of the node, if there is one.
fn simpler(graph: &Graph, id: NodeId) -> Option<Rewrite> {
    let node = graph.node(id);
    let [x] = graph.operands(id)[..] else { return None };
    // A node that lost its readers to its replacement is not looked at again.
    if graph.users(id.value()).is_empty() && !graph.is_output(id.value()) {
        return None;
    }
    let same_type = graph.ty(x) == graph.ty(id.value());
    match &node.op {
        Op::Unary(Unary { f }) => simpler_unary(graph, *f, x),
        Op::Reshape(_) if same_type => Some(Rewrite::Value(x)),
        Op::Reshape(reshape) => match graph.op(x) {
            Op::Reshape(Reshape { .. }) => Some(Rewrite::Op(Op::Reshape(reshape.clone()), operand(graph, x)?)),
            _ => None,
        },
        Op::Transpose(transpose) => simpler_transpose(graph, transpose, x),
        Op::Slice(slice) => takes_everything(slice, graph.ty(x)).then_some(Rewrite::Value(x)),
        Op::Concat(Concat { .. }) => Some(Rewrite::Value(x)),
        Op::Expand(Expand { .. }) | Op::Cast(Cast { .. }) if same_type => Some(Rewrite::Value(x)),
        Op::Expand(_)
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
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_)
        | Op::Input(_)
        | Op::Const(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Linear(_)
        | Op::Reduce(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_)
        | Op::Grad(_) => None,
    }
}

fn operand(graph: &Graph, value: ValueId) -> Option<ValueId> {
    graph.operands(value.node).first().copied()
}

fn simpler_unary(graph: &Graph, f: UnaryFn, x: ValueId) -> Option<Rewrite> {
    let unary = |f| Op::Unary(Unary { f });
    let inner = match graph.op(x) {
        Op::Unary(Unary { f }) => Some(*f),
        _ => None,
    };
    match (f, inner) {
        (UnaryFn::Clip { min: f32::NEG_INFINITY, max: f32::INFINITY }, _) => Some(Rewrite::Value(x)),
        (UnaryFn::Clip { min: 0.0, max: f32::INFINITY }, _) => Some(Rewrite::Op(unary(UnaryFn::Relu), x)),
        (UnaryFn::Relu, Some(UnaryFn::Relu | UnaryFn::Sigmoid)) => Some(Rewrite::Value(x)),
        (UnaryFn::Relu, Some(UnaryFn::Clip { min, .. })) if min >= 0.0 => Some(Rewrite::Value(x)),
        (UnaryFn::Clip { min, max }, Some(UnaryFn::Relu)) if max >= 0.0 => {
            Some(Rewrite::Op(unary(UnaryFn::Clip { min: min.max(0.0), max }), operand(graph, x)?))
        }
        (UnaryFn::Clip { min, max }, Some(UnaryFn::Clip { min: inner_min, max: inner_max }))
            // Disjoint ranges are left alone: their composition is a constant.
            if min <= inner_max && inner_min <= max && min <= max && inner_min <= inner_max =>
        {
            let both = UnaryFn::Clip { min: min.max(inner_min), max: max.min(inner_max) };
            Some(Rewrite::Op(unary(both), operand(graph, x)?))
        }
        (UnaryFn::Neg, Some(UnaryFn::Neg)) => Some(Rewrite::Value(operand(graph, x)?)),
        _ => None,
    }
}

fn simpler_transpose(graph: &Graph, transpose: &Transpose, x: ValueId) -> Option<Rewrite> {
    if transpose.perm.iter().enumerate().all(|(i, &axis)| i == axis) {
        return Some(Rewrite::Value(x));
    }
    let Op::Transpose(Transpose { perm: inner }) = graph.op(x) else { return None };
    let perm = transpose.perm.iter().map(|&axis| inner.get(axis).copied()).collect::<Option<Vec<usize>>>()?;
    Some(Rewrite::Op(Op::Transpose(Transpose { perm }), operand(graph, x)?))
}

fn takes_everything(slice: &Slice, ty: &TensorType) -> bool {
    let all = |(axis, &extent): (&SliceAxis, &usize)| {
        axis.start == 0 && axis.len == extent && (axis.step == 1 || extent <= 1)
    };
    slice.axes.iter().zip(&ty.shape).all(all)
}
