//! `insert-fake-quant`: marks where codes will be.
//!
//! Every `linear` with constant weights gets a quantizer on its weights (one
//! step a channel, symmetric) and on its input. A value has one quantizer,
//! shared by its readers and as wide as the widest of them wants. Where the
//! input comes from decides its kind:
//! - from another layer, through functions of one number and movements: one
//!   step, unsigned behind a function that is never negative, with a zero point
//!   behind one whose negative side is short (`silu`, `elu`, `leaky_relu`);
//! - from anywhere else, an observation above all: 16 bits and one power-of-two
//!   step a feature. Coarser observations are what breaks most policies.
//!
//! A function that does more than clamp (`tanh`, `silu`, ..) becomes a table
//! later: its operand gets an 8-bit quantizer of its own. Edge layers, first or
//! last on some path, have `edge_bits` where the inside has fewer.
//!
//! Steps are placeholders, constants `<value>.s` of `splat(1)`, until
//! `calibrate` or training fills them.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    ConstData, Constant, DType, FakeQuant, Graph, Linear, NodeId, Op, Origin, QuantScheme, TensorType, Unary, UnaryFn,
    ValueId,
};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError, PassOptions, Precision,
    quant::{
        ENTRY, ENTRY_HI,
        flow::{self, Edge},
    },
    rewrite::{self, ConstLinear},
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertFakeQuant {
    /// Bits of a weight.
    pub weight_bits: u8,
    /// Bits of an activation.
    pub activation_bits: u8,
    /// Bits of weights and inputs of edge layers, if the inside has fewer.
    pub edge_bits: u8,
    /// Bits of an observation: 16 with a step a feature, 4 or 8 with one step.
    pub observation_bits: u8,
}

impl InsertFakeQuant {
    /// The quantizers of a precision, `None` if it keeps activations as floats.
    pub fn new(precision: Precision, edge_bits: u8) -> Option<Self> {
        let (weight_bits, activation_bits) = precision.weight_bits().zip(precision.activation_bits())?;
        Some(Self { weight_bits, activation_bits, edge_bits, observation_bits: 16 })
    }

    /// Reads `bits`, `edge-bits` and `observation-bits`.
    pub(crate) fn from_options(options: &mut PassOptions) -> Result<Self, PassError> {
        let accepted = "w8a8, w4a8 or w4a4";
        let precision = options.take("bits", Precision::W8A8, accepted)?;
        let edge_bits = options.take("edge-bits", 8, "4 or 8")?;
        let observation_bits = options.take("observation-bits", 16, "4, 8 or 16")?;
        if !matches!(edge_bits, 4 | 8) {
            return Err(options.error("edge-bits", format!("expected 4 or 8, found {edge_bits}")));
        }
        if !matches!(observation_bits, 4 | 8 | 16) {
            return Err(options.error("observation-bits", format!("expected 4, 8 or 16, found {observation_bits}")));
        }
        match Self::new(precision, edge_bits) {
            Some(pass) => Ok(Self { observation_bits, ..pass }),
            None => Err(options.error("bits", format!("expected {accepted}, found {precision}"))),
        }
    }
}

impl Pass for InsertFakeQuant {
    fn name(&self) -> &'static str {
        "insert-fake-quant"
    }

    fn summary(&self) -> &'static str {
        "puts quantizers with placeholder steps on weights and inputs of linear layers"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        split_curved(graph)?;
        let layers = layers(graph, cx);
        let mut insertion =
            Insertion { options: *self, ids: layers.iter().map(|layer| layer.id).collect(), ..Insertion::default() };
        for layer in &layers {
            insertion.plan(graph, layer);
        }
        insertion.quantize_inputs(graph)?;
        for layer in &layers {
            insertion.quantize_weights(graph, layer)?;
        }
        rewrite::sweep(graph, insertion.replaced);
        Ok(Changed::when(!layers.is_empty()))
    }
}

/// Takes functions that do more than clamp out of the layers they were fused
/// into: their operand needs a quantizer.
fn split_curved(graph: &mut Graph) -> Result<(), PassError> {
    let mut dead = Vec::new();
    for id in graph.topo() {
        let Some(ConstLinear { op: Linear { act: Some(f) }, .. }) = ConstLinear::matching(graph, id) else { continue };
        if flow::clamps(f) {
            continue;
        }
        let node = graph.node(id).clone();
        let operands = graph.operands(id);
        let bare = Op::Linear(Linear { act: None });
        let linear = rewrite::add(graph, &format!("{}.pre", node.name), bare, &operands, node.origin)?;
        rewrite::replace(graph, id, Op::Unary(Unary { f }), &[linear])?;
        dead.push(id);
    }
    rewrite::sweep(graph, dead);
    Ok(())
}

/// Layers that can run on codes, operands first.
fn layers(graph: &Graph, cx: &mut PassContext<'_>) -> Vec<ConstLinear> {
    let mut layers = Vec::new();
    for id in graph.topo() {
        match (&graph.node(id).op, ConstLinear::matching(graph, id)) {
            (_, Some(layer)) => layers.push(layer),
            (Op::MatMul(_), None) => cx.declined(graph, id, "both operands are computed; it stays in floats"),
            (Op::Linear(_), None) if !has_quantized_weights(graph, id) => {
                cx.declined(graph, id, "its weights are computed; it stays in floats");
            }
            _ => {}
        }
    }
    layers
}

fn has_quantized_weights(graph: &Graph, id: NodeId) -> bool {
    graph.operands(id).get(1).is_some_and(|w| matches!(graph.op(*w), Op::FakeQuant(_)))
}

/// A layer that reads a value, perhaps through movements.
struct Reader {
    layer: NodeId,
    movements: Vec<NodeId>,
}

/// A value that gets a quantizer.
struct Plan {
    bits: u8,
    /// Functions between the layer that defines the value and the value; none
    /// for a value that no layer defines.
    chain: Option<flow::Chain>,
    readers: Vec<Reader>,
}

#[derive(Default)]
struct Insertion {
    options: InsertFakeQuant,
    ids: BTreeSet<NodeId>,
    /// Values in the order in which layers read them, with what to do.
    plans: Vec<(ValueId, Plan)>,
    /// Quantizers of operands of tables, by the layer they quantize.
    operands_of_tables: BTreeMap<ValueId, ValueId>,
    /// Quantized weights by constant and bits.
    weights: BTreeMap<(ValueId, u8), ValueId>,
    /// Movements that were copied behind a quantizer.
    replaced: Vec<NodeId>,
}

impl Default for InsertFakeQuant {
    fn default() -> Self {
        Self { weight_bits: 8, activation_bits: 8, edge_bits: 8, observation_bits: 16 }
    }
}

impl Insertion {
    /// Decides where the input of a layer is quantized.
    fn plan(&mut self, graph: &Graph, layer: &ConstLinear) {
        let (root, movements) = flow::through_movements(graph, layer.x);
        let chain = flow::chain_behind(graph, root);
        let on_codes = self.ids.contains(&chain.source.node) && chain.functions.iter().all(|&f| flow::fits_a_table(f));
        let (value, plan) = if on_codes {
            let wide = Edge::of(graph, layer.id, &self.ids).is_edge();
            let bits = self.widened(self.options.activation_bits, wide);
            (root, Plan { bits, chain: Some(chain), readers: vec![Reader { layer: layer.id, movements }] })
        } else {
            let readers = vec![Reader { layer: layer.id, movements: vec![] }];
            (layer.x, Plan { bits: self.options.observation_bits, chain: None, readers })
        };
        match self.plans.iter_mut().find(|(known, _)| *known == value) {
            Some((_, known)) => {
                known.bits = known.bits.max(plan.bits);
                known.readers.extend(plan.readers);
            }
            None => self.plans.push((value, plan)),
        }
    }

    fn widened(&self, bits: u8, wide: bool) -> u8 {
        if wide { bits.max(self.options.edge_bits) } else { bits }
    }

    fn quantize_inputs(&mut self, graph: &mut Graph) -> Result<(), PassError> {
        for (value, plan) in std::mem::take(&mut self.plans) {
            let quantized = match &plan.chain {
                Some(chain) => {
                    self.quantize_operand_of_table(graph, chain)?;
                    let last = chain.functions.last().copied();
                    let scheme = QuantScheme { bits: plan.bits, signed: !last.is_some_and(never_negative) };
                    let zero_point = last.is_some_and(short_negative_side);
                    fake_quant(graph, value, whole_range(scheme), None, zero_point)?
                }
                None if plan.bits == ENTRY.bits => {
                    let axis = graph.ty(value).shape.len().checked_sub(1);
                    let fake = FakeQuant { scheme: ENTRY, lo: -ENTRY_HI, hi: ENTRY_HI, axis, group: None };
                    fake_quant(graph, value, fake, axis, false)?
                }
                None => fake_quant(graph, value, whole_range(QuantScheme::signed(plan.bits)), None, false)?,
            };
            for Reader { layer, movements } in plan.readers {
                let mut x = quantized;
                for id in movements {
                    let node = graph.node(id).clone();
                    x = rewrite::add(graph, &node.name, node.op, &[x], node.origin)?;
                    self.replaced.push(id);
                }
                graph.rewire(layer, 0, x);
            }
        }
        Ok(())
    }

    /// Quantizes the operand of the first function of a chain, unless the whole
    /// chain folds into the range of codes.
    fn quantize_operand_of_table(&mut self, graph: &mut Graph, chain: &flow::Chain) -> Result<(), PassError> {
        let Some(first) = chain.first else { return Ok(()) };
        if chain.functions.iter().all(|&f| flow::clamps(f)) {
            return Ok(());
        }
        let quantized = match self.operands_of_tables.get(&chain.source) {
            Some(&known) => known,
            None => {
                let fake = whole_range(QuantScheme::signed(8));
                let quantized = fake_quant(graph, chain.source, fake, None, false)?;
                self.operands_of_tables.insert(chain.source, quantized);
                quantized
            }
        };
        graph.rewire(first, 0, quantized);
        Ok(())
    }

    fn quantize_weights(&mut self, graph: &mut Graph, layer: &ConstLinear) -> Result<(), PassError> {
        let wide = Edge::of(graph, layer.id, &self.ids).is_edge();
        let bits = self.widened(self.options.weight_bits, wide);
        let quantized = match self.weights.get(&(layer.w, bits)) {
            Some(&known) => known,
            None => {
                let scheme = QuantScheme::signed(bits);
                let fake = FakeQuant { scheme, lo: -scheme.hi(), hi: scheme.hi(), axis: Some(1), group: None };
                let quantized = fake_quant(graph, layer.w, fake, Some(1), false)?;
                self.weights.insert((layer.w, bits), quantized);
                quantized
            }
        };
        graph.rewire(layer.id, 1, quantized);
        Ok(())
    }
}

fn whole_range(scheme: QuantScheme) -> FakeQuant {
    FakeQuant { scheme, lo: scheme.lo(), hi: scheme.hi(), axis: None, group: None }
}

/// Adds a quantizer of `value` with placeholder steps, one for each element
/// along `axis`.
fn fake_quant(
    graph: &mut Graph,
    value: ValueId,
    fake: FakeQuant,
    axis: Option<usize>,
    zero_point: bool,
) -> Result<ValueId, PassError> {
    let name = graph.node(value.node).name.clone();
    let origin = graph.node(value.node).origin.clone();
    let shape: Vec<usize> = axis.and_then(|axis| graph.ty(value).shape.get(axis).copied()).into_iter().collect();
    let step = Constant { ty: TensorType::f32(shape), data: ConstData::Splat(1.0) };
    let mut operands = vec![value, graph.add_const(format!("{name}.s"), step, Origin::default())];
    if zero_point {
        let zero = Constant::ints(TensorType::plain(DType::I32, []), &[0]);
        operands.push(graph.add_const(format!("{name}.z"), zero, Origin::default()));
    }
    rewrite::add(graph, &format!("{name}.q"), Op::FakeQuant(fake), &operands, origin)
}

fn never_negative(f: UnaryFn) -> bool {
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

fn short_negative_side(f: UnaryFn) -> bool {
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
