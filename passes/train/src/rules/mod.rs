//! The chain rule of every operation: what a result's gradient means for one
//! operand. One file a family.
//!
//! A rule gets the node's operands and the gradient `g` of its result, and adds
//! the nodes that compute the gradient of operand `slot`, in its type. It is only
//! asked where [`flow`] says [`Flow::Through`].

mod elementwise;
mod fake_quant;
mod matmul;
mod movement;
mod normalize;
mod reduce;
mod rope;
mod scatter;
mod select;

use qail_ir::{
    Binary, BinaryFn, ConstData, Constant, DType, Graph, MatMul, NodeId, Op, Origin, Reduce, ReduceFn, Reshape,
    TensorType, Transpose, TypeError, Unary, UnaryFn, ValueId,
};

/// What becomes of a gradient on its way to one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// There is a rule.
    Through,
    /// The result does not move with the operand, or only in jumps.
    Cut,
    /// There is no rule, and zero would be wrong; what to do instead.
    Refused(&'static str),
}

/// What becomes of the gradient of a node on its way to operand `slot`.
pub(crate) fn flow(graph: &Graph, id: NodeId, slot: usize) -> Flow {
    const INTEGERS: &str = "differentiate before `lower-quant`, where quantizers are fake_quant";
    match &graph.node(id).op {
        Op::Input(_) | Op::Const(_) => Flow::Cut,
        Op::Unary(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Linear(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Expand(_)
        | Op::Reduce(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Unfold(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_) => of_result(graph, id),
        // Conditions and indices.
        Op::Compare(_) | Op::ArgReduce(_) => Flow::Cut,
        Op::Where(_) if slot == 0 => Flow::Cut,
        Op::Gather(_) | Op::Scatter(_) if slot == 1 => Flow::Cut,
        Op::Where(_) | Op::Gather(_) | Op::Scatter(_) => of_result(graph, id),
        Op::Cast(cast) => match cast.to {
            DType::F32 if graph.operands(id).first().is_some_and(|&x| graph.ty(x).is_f32()) => Flow::Through,
            DType::F64 => Flow::Refused("compute in f32"),
            DType::F32 | DType::Bool | DType::U8 | DType::I32 | DType::I64 => Flow::Cut,
        },
        // The zero point is an integer.
        Op::FakeQuant(_) if slot == 2 => Flow::Cut,
        Op::FakeQuant(_) => Flow::Through,
        Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Dequantize(_) => Flow::Refused(INTEGERS),
        Op::LinearWq(_) => Flow::Refused("differentiate before `quantize-weights`"),
        Op::Grad(_) => Flow::Refused("a backward graph has no second derivative"),
    }
}

/// What can be differentiated has a rule if its result is `f32`; whole numbers move in jumps.
fn of_result(graph: &Graph, id: NodeId) -> Flow {
    match graph.ty(id.value()).dtype() {
        Some(DType::F32) => Flow::Through,
        Some(DType::F64) => Flow::Refused("compute in f32"),
        Some(DType::Bool | DType::U8 | DType::I32 | DType::I64) | None => Flow::Cut,
    }
}

/// The gradient of operand `slot`.
pub(crate) fn backward(
    builder: &mut Builder<'_>,
    op: &Op,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    match op {
        Op::Unary(op) => elementwise::unary(builder, op.f, operands, g),
        Op::Binary(op) => elementwise::binary(builder, op.f, operands, slot, g),
        // Only from f32 to f32: a copy.
        Op::Cast(_) => Ok(g),
        Op::MatMul(_) => matmul::matmul(builder, operands, slot, g),
        Op::Linear(linear) if linear.groups > 1 => matmul::linear_in_groups(builder, operands, slot, g, linear.groups),
        Op::Linear(_) => matmul::linear(builder, operands, slot, g),
        Op::Reshape(_) => movement::reshape(builder, operands, g),
        Op::Transpose(op) => movement::transpose(builder, op, g),
        Op::Slice(op) => movement::slice(builder, op, operands, g),
        Op::Concat(op) => movement::concat(builder, op, operands, slot, g),
        Op::Expand(_) => movement::expand(builder, operands, g),
        Op::Reduce(op) => reduce::reduce(builder, op, operands, g),
        Op::FakeQuant(op) => fake_quant::fake_quant(builder, op, operands, slot, g),
        Op::Where(_) => select::choose(builder, operands, slot, g),
        Op::Gather(op) => select::gather(builder, op, operands, g),
        Op::Scatter(op) => scatter::scatter(builder, op, operands, slot, g),
        Op::TopK(op) => select::top_k(builder, op, operands, g),
        Op::CumSum(op) => select::cum_sum(builder, op, g),
        Op::Unfold(op) => movement::unfold(builder, op, operands, g),
        Op::Softmax(op) => normalize::softmax(builder, op, g),
        Op::Normalize(op) => normalize::normalize(builder, op, operands, g),
        Op::Rope(op) => rope::rope(builder, *op, operands, slot, g),
        Op::Film(_) => rope::film(builder, operands, slot, g),
        // Attention is written out before.
        Op::Attention(_)
        | Op::Input(_)
        | Op::Const(_)
        | Op::Compare(_)
        | Op::ArgReduce(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_)
        | Op::Grad(_) => Err(TypeError::new(op.name(), "no part in a backward graph", &[])),
    }
}

/// Adds backward nodes. They are named after the value whose gradient they make
/// and come from where the forward node came from.
pub(crate) struct Builder<'g> {
    graph: &'g mut Graph,
    /// The forward node.
    pub(crate) node: NodeId,
    name: String,
    origin: Origin,
}

impl<'g> Builder<'g> {
    /// For the gradient of `of`, by the rule of `node`.
    pub(crate) fn new(graph: &'g mut Graph, node: NodeId, of: NodeId) -> Self {
        let name = format!("grad.{}", graph.node(of).name);
        let origin = graph.node(node).origin.clone();
        Self { graph, node, name, origin }
    }

    pub(crate) fn shape(&self, value: ValueId) -> Vec<usize> {
        self.graph.ty(value).shape.clone()
    }

    pub(crate) fn add(&mut self, op: Op, operands: &[ValueId]) -> Result<ValueId, TypeError> {
        Ok(self.graph.add(self.name.as_str(), op, operands, self.origin.clone())?.value())
    }

    pub(crate) fn ty(&self, value: ValueId) -> TensorType {
        self.graph.ty(value).clone()
    }

    pub(crate) fn scalar(&mut self, number: f32) -> ValueId {
        self.splat(vec![], number)
    }

    /// The same number everywhere.
    pub(crate) fn splat(&mut self, shape: Vec<usize>, number: f32) -> ValueId {
        let constant = Constant { ty: TensorType::f32(shape), data: ConstData::Splat(number.into()) };
        self.graph.add_const(format!("{}.factor", self.name), constant, self.origin.clone())
    }

    pub(crate) fn ints(&mut self, ty: TensorType, elements: &[i64]) -> ValueId {
        let constant = Constant::ints(ty, elements);
        self.graph.add_const(format!("{}.index", self.name), constant, self.origin.clone())
    }

    /// True if a value is known to lie within bounds, both of them included. Reads through reshapes.
    pub(crate) fn ints_within(&self, mut value: ValueId, [lo, hi]: [i64; 2]) -> bool {
        while let (Op::Reshape(_), Some(&x)) = (self.graph.op(value), self.graph.operands(value.node).first()) {
            value = x;
        }
        let elements = self.graph.const_of(value).and_then(|constant| constant.all_int().ok());
        elements.is_some_and(|elements| elements.iter().all(|x| (lo..=hi).contains(x)))
    }

    /// Axes in another order, unless it is theirs already.
    pub(crate) fn transposed_by(&mut self, x: ValueId, perm: Vec<usize>) -> Result<ValueId, TypeError> {
        if perm.is_sorted() { Ok(x) } else { self.add(Op::Transpose(Transpose { perm }), &[x]) }
    }

    pub(crate) fn unary(&mut self, f: UnaryFn, x: ValueId) -> Result<ValueId, TypeError> {
        self.add(Op::Unary(Unary { f }), &[x])
    }

    pub(crate) fn binary(&mut self, f: BinaryFn, a: ValueId, b: ValueId) -> Result<ValueId, TypeError> {
        self.add(Op::Binary(Binary { f }), &[a, b])
    }

    pub(crate) fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, TypeError> {
        self.add(Op::MatMul(MatMul), &[a, b])
    }

    /// The last two axes exchanged.
    pub(crate) fn transposed(&mut self, x: ValueId) -> Result<ValueId, TypeError> {
        let mut perm: Vec<usize> = (0..self.shape(x).len()).collect();
        if let [.., a, b] = &mut perm[..] {
            std::mem::swap(a, b);
        }
        self.add(Op::Transpose(Transpose { perm }), &[x])
    }

    /// In another shape, unless it has it already.
    pub(crate) fn reshaped(&mut self, x: ValueId, shape: Vec<usize>) -> Result<ValueId, TypeError> {
        if self.shape(x) == shape { Ok(x) } else { self.add(Op::Reshape(Reshape { shape }), &[x]) }
    }

    /// The leading axes as one axis of rows.
    pub(crate) fn rows(&mut self, x: ValueId) -> Result<ValueId, TypeError> {
        let shape = self.shape(x);
        let (lead, last) = match shape.split_last() {
            Some((&last, lead)) => (lead.iter().product(), last),
            None => (1, 1),
        };
        self.reshaped(x, vec![lead, last])
    }

    /// Undoes broadcasting from `shape`: sums over the axes that were repeated.
    pub(crate) fn summed_to(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, TypeError> {
        let from = self.shape(x);
        let lead = from.len().saturating_sub(shape.len());
        let repeated = |axis: usize| {
            axis.checked_sub(lead).is_none_or(|own| shape.get(own) == Some(&1) && from.get(axis) != Some(&1))
        };
        let axes: Vec<usize> = (0..from.len()).filter(|&axis| repeated(axis)).collect();
        if axes.is_empty() {
            return Ok(x);
        }
        let sum = self.add(Op::Reduce(Reduce { f: ReduceFn::Sum, axes, keep_dims: lead == 0 }), &[x])?;
        self.reshaped(sum, shape.to_vec())
    }

    /// The sum of gradients of one value, in their order; none of none.
    pub(crate) fn sum(&mut self, parts: &[ValueId]) -> Result<Option<ValueId>, TypeError> {
        let Some((&first, rest)) = parts.split_first() else { return Ok(None) };
        rest.iter().try_fold(first, |sum, &part| self.binary(BinaryFn::Add, sum, part)).map(Some)
    }
}
