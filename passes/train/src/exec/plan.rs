//! From a graph to steps: what is needed, in which form, in which order.
//!
//! A value can be needed as floats, as codes, or as the accumulators of a layer,
//! and is computed in the forms that somebody reads. Transposed operands of
//! products are read where they lie; a reshaped value is the value.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{DType, FakeQuant, Grad, Graph, NodeId, Op, UnaryFn, ValueId, interp::Tensor};
use qail_passes::quant::region::Region;

use super::{
    ExecError,
    memory::{Access, Item, Kind},
    step::Step,
};

/// A form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// Accumulators of a layer on codes, without bias.
    Acc(NodeId),
    /// Codes without their zero point.
    Codes(ValueId),
    /// Real numbers, or what else the type says.
    Real(ValueId),
}

/// Quantized weights.
#[derive(Clone, Debug)]
pub(super) struct CodedWeights {
    pub(super) fake: FakeQuant,
    pub(super) w: ValueId,
    pub(super) scale: ValueId,
}

/// Steps and what they work on.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) access: Vec<Access>,
    pub(super) kinds: Vec<Kind>,
    pub(super) pinned: BTreeSet<Item>,
    pub(super) items: BTreeMap<Form, Item>,
    /// Constants that are not `f32`.
    pub(super) tensors: Vec<(Item, Tensor)>,
    pub(super) n_quantizers: usize,
    pub(super) n_layers: usize,
    pub(super) n_weights: usize,
}

pub(super) struct Planner<'g> {
    pub(super) graph: &'g Graph,
    pub(super) region: Region,
    pub(super) weights: BTreeMap<NodeId, CodedWeights>,
    pub(super) needed: BTreeSet<Form>,
    pub(super) plan: Plan,
    /// Places of quantizers of activations (and of movements of codes that change their range), of layers and of
    /// weights in the state.
    pub(super) quantizers: BTreeMap<NodeId, usize>,
    pub(super) layers: BTreeMap<NodeId, usize>,
    pub(super) weight_places: BTreeMap<NodeId, usize>,
}

impl Plan {
    /// The steps that compute the outputs of a graph and the values of `keep`.
    pub(super) fn new(graph: &Graph, keep: &[ValueId]) -> Result<Self, ExecError> {
        let region = Region::of(graph)?;
        let weights = coded_weights(graph, &region);
        let order = graph.topo();
        let mut planner = Planner {
            graph,
            region,
            weights,
            needed: BTreeSet::new(),
            plan: Self::default(),
            quantizers: BTreeMap::new(),
            layers: BTreeMap::new(),
            weight_places: BTreeMap::new(),
        };
        let kept = planner.roots(keep)?;
        planner.demand(&order, &kept);
        planner.leaves(&order)?;
        for &id in &order {
            for form in planner.forms(id) {
                planner.compute(form)?;
            }
        }
        let mut plan = planner.plan;
        plan.pinned.extend(kept.iter().filter_map(|form| plan.items.get(form)));
        plan.n_quantizers = planner.quantizers.len();
        plan.n_layers = planner.layers.len();
        plan.n_weights = planner.weight_places.len();
        Ok(plan)
    }
}

/// Weights with one step a column, whose codes have one definition.
fn coded_weights(graph: &Graph, region: &Region) -> BTreeMap<NodeId, CodedWeights> {
    let mut weights: BTreeMap<NodeId, CodedWeights> = BTreeMap::new();
    for id in graph.nodes() {
        let Op::FakeQuant(fake @ FakeQuant { axis: Some(1), group: None, .. }) = &graph.node(id).op else { continue };
        let [w, scale] = graph.operands(id)[..] else { continue };
        if graph.const_of(w).is_some_and(|w| w.ty.shape.len() == 2) && graph.const_of(scale).is_some() {
            weights.insert(id, CodedWeights { fake: fake.clone(), w, scale });
        }
    }
    for layer in region.layers.values() {
        let coded = CodedWeights { fake: layer.fake.clone(), w: layer.w, scale: layer.scale };
        weights.insert(layer.quantizer.node, coded);
    }
    weights
}

/// True for functions that go through `f64` for each element.
fn costly(f: UnaryFn) -> bool {
    match f {
        UnaryFn::Elu { .. }
        | UnaryFn::Tanh
        | UnaryFn::Sigmoid
        | UnaryFn::Silu
        | UnaryFn::Exp
        | UnaryFn::Log
        | UnaryFn::Gelu
        | UnaryFn::GeluTanh
        | UnaryFn::Mish
        | UnaryFn::Swish { .. }
        | UnaryFn::Selu { .. }
        | UnaryFn::Celu { .. }
        | UnaryFn::Softplus
        | UnaryFn::Erf
        | UnaryFn::Sin
        | UnaryFn::Cos
        | UnaryFn::Tan
        | UnaryFn::Asin
        | UnaryFn::Acos
        | UnaryFn::Atan
        | UnaryFn::Sinh
        | UnaryFn::Cosh
        | UnaryFn::Asinh
        | UnaryFn::Acosh
        | UnaryFn::Atanh => true,
        UnaryFn::Relu
        | UnaryFn::LeakyRelu { .. }
        | UnaryFn::Clip { .. }
        | UnaryFn::Abs
        | UnaryFn::Neg
        | UnaryFn::Sqrt
        | UnaryFn::Reciprocal
        | UnaryFn::HardSigmoid { .. }
        | UnaryFn::HardSwish
        | UnaryFn::Softsign
        | UnaryFn::Floor
        | UnaryFn::Ceil
        | UnaryFn::Round
        | UnaryFn::Sign => false,
    }
}

impl Planner<'_> {
    fn roots(&self, keep: &[ValueId]) -> Result<BTreeSet<Form>, ExecError> {
        let mut kept: BTreeSet<Form> = self.graph.outputs.iter().map(|output| Form::Real(output.value)).collect();
        for &value in keep {
            let known = self.graph.contains(value.node)
                && self.graph.node(value.node).outputs.get(usize::from(value.slot)).is_some();
            if !known {
                return Err(ExecError::NotKept { name: format!("{value:?}") });
            }
            kept.insert(Form::Real(value));
            if self.has_codes(value) {
                kept.insert(Form::Codes(value));
            }
        }
        Ok(kept)
    }

    /// True if a value has codes: a quantizer of an activation or of weights, or
    /// a movement of codes.
    pub(super) fn has_codes(&self, value: ValueId) -> bool {
        self.region.has_codes(value) || self.weights.contains_key(&value.node)
    }

    /// The codes of at most 8 bits that the operand of a costly function has.
    pub(super) fn small_codes(&self, f: UnaryFn, x: ValueId) -> bool {
        costly(f)
            && self.region.has_codes(x)
            && self.region.quantizer_of(x).is_some_and(|quantizer| quantizer.fake.scheme.bits <= 8)
    }

    /// What is needed for the roots: users come before operands.
    fn demand(&mut self, order: &[NodeId], kept: &BTreeSet<Form>) {
        self.needed = kept.clone();
        for &id in order.iter().rev() {
            // Floats may need the codes of the same node, and those its accumulators.
            for form in self.forms(id).into_iter().rev() {
                let operands = self.operands(form);
                self.needed.extend(operands);
            }
            for form in self.forms(id).into_iter().rev() {
                let operands = self.operands(form);
                self.needed.extend(operands);
            }
        }
    }

    /// Needed forms of what a node defines: accumulators, codes, floats.
    fn forms(&self, id: NodeId) -> Vec<Form> {
        let slots = 0..self.graph.node(id).outputs.len();
        let values = slots.filter_map(|slot| u16::try_from(slot).ok()).map(|slot| ValueId { node: id, slot });
        let forms = values.clone().map(Form::Codes).chain(values.map(Form::Real));
        std::iter::once(Form::Acc(id)).chain(forms).filter(|form| self.needed.contains(form)).collect()
    }

    /// What a form is computed from.
    fn operands(&self, form: Form) -> Vec<Form> {
        let all = |id: NodeId| self.graph.operands(id).into_iter().map(Form::Real).collect::<Vec<Form>>();
        match form {
            Form::Acc(id) => {
                let (Some(layer), Some(&x)) = (self.region.layers.get(&id), self.graph.operands(id).first()) else {
                    return all(id);
                };
                vec![Form::Codes(x), Form::Codes(layer.quantizer), Form::Real(layer.scale), Form::Real(layer.bias)]
            }
            Form::Codes(value) => self.operands_of_codes(value),
            Form::Real(value) => self.operands_of_real(value, all(value.node)),
        }
    }

    fn operands_of_codes(&self, value: ValueId) -> Vec<Form> {
        use qail_passes::quant::region::{Addend, Addition, CodesFrom};
        if self.region.moved.contains_key(&value.node) {
            let view = self.code_view(value);
            return if view.root == value { self.moved(value.node) } else { vec![Form::Codes(view.root)] };
        }
        if let Some(quantizer) = self.region.quantizers.get(&value.node) {
            let mut forms = match &quantizer.from {
                CodesFrom::Layer(layer) => vec![Form::Acc(*layer)],
                CodesFrom::Codes(codes) => vec![Form::Codes(*codes)],
                CodesFrom::Sum(sum) => vec![Form::Codes(sum.codes)],
                CodesFrom::Add(Addition { a: Addend::Layer(layer), b, .. }) => vec![Form::Acc(*layer), Form::Codes(*b)],
                CodesFrom::Add(Addition { a: Addend::Codes(a), b, .. }) => vec![Form::Codes(*a), Form::Codes(*b)],
                CodesFrom::Floats => vec![Form::Real(quantizer.x)],
            };
            forms.push(Form::Real(quantizer.scale));
            return forms;
        }
        self.weights
            .get(&value.node)
            .map_or(Vec::new(), |weights| vec![Form::Real(weights.w), Form::Real(weights.scale)])
    }

    /// What an extreme or a concatenation of codes reads.
    fn moved(&self, id: NodeId) -> Vec<Form> {
        self.graph.operands(id).into_iter().map(Form::Codes).collect()
    }

    fn operands_of_real(&self, value: ValueId, all: Vec<Form>) -> Vec<Form> {
        let operands = self.graph.operands(value.node);
        match (self.graph.op(value), &operands[..]) {
            _ if self.codes_serve(value) => {
                let scale = self.region.quantizer_of(value).map(|quantizer| Form::Real(quantizer.scale));
                std::iter::once(Form::Codes(value)).chain(scale).collect()
            }
            (Op::Grad(Grad::Unfold(_)), &[g]) => vec![Form::Real(self.view_of_windows(g).root)],
            (Op::Linear(_), _) if self.region.layers.contains_key(&value.node) => vec![Form::Acc(value.node)],
            (Op::FakeQuant(_), &[_, scale, ..]) if self.has_codes(value) => {
                vec![Form::Codes(value), Form::Real(scale)]
            }
            (Op::Unary(unary), &[x]) if self.small_codes(unary.f, x) => vec![Form::Codes(x)],
            (Op::Grad(Grad::Unary(unary)), &[x, g]) if self.small_codes(unary.f, x) => {
                vec![Form::Codes(x), Form::Real(g)]
            }
            (Op::MatMul(_), &[a, b]) => vec![Form::Real(self.window(a).root), Form::Real(self.window(b).root)],
            _ => {
                let view = self.view(value);
                if view.root == value { all } else { vec![Form::Real(view.root)] }
            }
        }
    }

    /// Inputs and constants: they keep their buffers.
    fn leaves(&mut self, order: &[NodeId]) -> Result<(), ExecError> {
        for &id in order {
            let node = self.graph.node(id);
            let form = Form::Real(id.value());
            let ty = self.graph.ty(id.value());
            let item = match &node.op {
                Op::Input(_) if !self.needed.contains(&form) => continue,
                Op::Input(_) => match ty.dtype() {
                    Some(DType::F32) => self.item(form, Kind::F32(ty.n_elements())),
                    Some(DType::Bool | DType::U8 | DType::I32 | DType::I64) => {
                        self.item(form, Kind::Tensor(ty.n_elements()))
                    }
                    Some(DType::F64) | None => {
                        return Err(ExecError::InputType { name: node.name.clone(), ty: ty.clone() });
                    }
                },
                Op::Const(_) if ty.is_f32() => self.item(form, Kind::F32(ty.n_elements())),
                Op::Const(c) if self.needed.contains(&form) => {
                    let item = self.item(form, Kind::Tensor(ty.n_elements()));
                    let tensor = Tensor::from_constant(self.graph.constant(c.id))
                        .map_err(|source| qail_ir::interp::InterpError::Const { name: node.name.clone(), source })?;
                    self.plan.tensors.push((item, tensor));
                    item
                }
                _ => continue,
            };
            self.plan.pinned.insert(item);
        }
        Ok(())
    }

    /// A new item for a form.
    pub(super) fn item(&mut self, form: Form, kind: Kind) -> Item {
        let item = self.scratch(kind);
        self.plan.items.insert(form, item);
        item
    }

    /// A new item without a name.
    pub(super) fn scratch(&mut self, kind: Kind) -> Item {
        self.plan.kinds.push(kind);
        Item(self.plan.kinds.len() - 1)
    }

    /// The item of a form that was computed.
    pub(super) fn known(&self, form: Form) -> Result<Item, ExecError> {
        let id = match form {
            Form::Acc(id) => id,
            Form::Codes(value) | Form::Real(value) => value.node,
        };
        self.plan.items.get(&form).copied().ok_or_else(|| self.internal(id, "operands are computed before their users"))
    }

    pub(super) fn real(&self, value: ValueId) -> Result<Item, ExecError> {
        self.known(Form::Real(value))
    }

    pub(super) fn internal(&self, id: NodeId, invariant: &'static str) -> ExecError {
        ExecError::Internal { node: self.graph.node(id).name.clone(), invariant }
    }

    pub(super) fn push(&mut self, step: Step, reads: &[Item], writes: &[Item]) {
        self.plan.steps.push(step);
        self.plan.access.push(Access { reads: reads.to_vec(), writes: writes.to_vec() });
    }
}
