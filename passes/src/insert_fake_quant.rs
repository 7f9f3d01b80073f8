//! `insert-fake-quant`: marks where codes will be.
//!
//! Every `linear` with constant weights gets a quantizer on its weights (one
//! step a channel, symmetric) and on its input. A value has one quantizer,
//! shared by its readers and as wide as the widest of them wants. Where the
//! input comes from decides its kind:
//! - from another layer, through functions of one number and movements (windows
//!   and max pools among them): one step, unsigned behind a function that is
//!   never negative, with a zero point behind one whose negative side is short
//!   (`silu`, `elu`, `leaky_relu`). Sums of such values (residual adds, average
//!   pools) are sums of 8-bit codes, and parts of a concatenation share a step;
//!   who reads such a stream in fewer bits has a quantizer of its own behind it;
//! - from the model's inputs without a layer between: 16 bits and one
//!   power-of-two step a feature. Coarser observations are what breaks most
//!   policies. What is read in windows (an image) has one step, and bytes are
//!   their own codes;
//! - from floats behind a layer (softmax, norms): one step.
//!
//! A function that does more than clamp (`tanh`, `silu`, ..) becomes a table
//! later: its operand gets an 8-bit quantizer of its own. Edge layers, first or
//! last on some path that takes no skip connection, have `edge_bits` where the
//! inside has fewer.
//!
//! Steps are placeholders, constants `<value>.s` of `splat(1)`, until
//! `calibrate` or training fills them.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    ConstData, Constant, DType, FakeQuant, Graph, Linear, NodeId, Op, Origin, QuantScheme, TensorType, Unary, ValueId,
};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError, PassOptions, Precision,
    quant::{ENTRY, ENTRY_HI, edges::Edges, flow},
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
        insertion.edges = Edges::of(graph, &insertion.ids);
        insertion.look(graph);
        for layer in &layers {
            insertion.plan(graph, layer)?;
        }
        insertion.quantize_inputs(graph)?;
        for layer in &layers {
            let bits = insertion.widened(self.weight_bits, layer.id);
            insertion.quantize_weights(graph, layer, bits)?;
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
        let Some(layer) = ConstLinear::matching(graph, id) else { continue };
        let Linear { act: Some(f), groups } = layer.op else { continue };
        if flow::clamps(f) {
            continue;
        }
        let node = graph.node(id).clone();
        let operands = graph.operands(id);
        let bare = Op::Linear(Linear { act: None, groups });
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

/// A place that reads a value, perhaps through movements.
struct Reader {
    node: NodeId,
    slot: u16,
    movements: Vec<NodeId>,
    bits: u8,
    /// Input features of a layer and its largest weight code.
    reach: Option<(usize, i32)>,
}

/// What kind of codes a value gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The result of a layer, a sum or an addition, through functions of one number.
    Inside,
    /// What the model is given, with one step a feature.
    Features,
    /// What the model is given, with one step: images.
    Whole,
    /// What comes from floats behind a layer.
    Island,
}

/// A value that gets a quantizer.
struct Plan {
    kind: Kind,
    readers: Vec<Reader>,
    /// The concatenation whose parts share a step, if the value is one of them.
    group: Option<NodeId>,
}

#[derive(Default)]
struct Insertion {
    options: InsertFakeQuant,
    ids: BTreeSet<NodeId>,
    edges: Edges,
    /// Values that can be codes from a layer on.
    inside: BTreeSet<ValueId>,
    /// Values in the order in which they are first read, with what to do.
    plans: Vec<(ValueId, Plan)>,
    /// Places of the plans above.
    places: BTreeMap<(ValueId, Option<NodeId>), usize>,
    /// Copies of concatenations, which read codes.
    joined: BTreeMap<NodeId, NodeId>,
    /// Shared steps of the parts of these copies.
    steps: BTreeMap<NodeId, ValueId>,
    /// Copies of movements by what they move.
    moved: BTreeMap<(NodeId, ValueId), ValueId>,
    /// Quantizers of operands of tables, by the value they quantize.
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

/// Bits of values that are summed: residual streams, pools, parts of concatenations.
const STREAM_BITS: u8 = 8;

impl Insertion {
    /// Finds the values that can be codes from a layer on.
    fn look(&mut self, graph: &Graph) {
        for id in graph.topo() {
            let operands = graph.operands(id);
            let Some(&x) = operands.first() else { continue };
            let from_codes = self.inside.contains(&x);
            let inside = match &graph.node(id).op {
                Op::Linear(_) => self.ids.contains(&id),
                Op::Unary(unary) => from_codes && flow::fits_a_table(unary.f),
                op if flow::joins(op) => operands.iter().all(|value| self.inside.contains(value)),
                Op::Binary(_) => match flow::addends(graph, id.value()) {
                    Some(both) => both.iter().all(|value| self.inside.contains(value)),
                    None => false,
                },
                _ if flow::moves(graph, id) => from_codes,
                _ => from_codes && flow::sum_of(graph, id).is_some(),
            };
            if inside {
                self.inside.insert(id.value());
            }
        }
    }

    /// Decides where the input of a layer is quantized.
    fn plan(&mut self, graph: &mut Graph, layer: &ConstLinear) -> Result<(), PassError> {
        let bits = self.widened(self.options.activation_bits, layer.id);
        let weight_bits = self.widened(self.options.weight_bits, layer.id);
        let reach = Some((layer.k, QuantScheme::signed(weight_bits).hi()));
        let reader = |movements, bits| Reader { node: layer.id, slot: 0, movements, bits, reach };
        if self.inside.contains(&layer.x) {
            return self.read(graph, layer.x, reader(vec![], bits), None);
        }
        let (root, movements) = flow::through_movements(graph, layer.x);
        let has_windows = movements.iter().any(|&id| matches!(graph.node(id).op, Op::Unfold(_)));
        let is_image = has_windows || flow::is_of_bytes(graph, root);
        let (value, movements, kind) = match (self.edges.is_first(layer.id), is_image) {
            // A step a feature moves into the rows of weights, which groups of channels share.
            (true, false) if layer.op.groups > 1 => (layer.x, vec![], Kind::Whole),
            (true, false) => (layer.x, vec![], Kind::Features),
            (true, true) => (root, movements, Kind::Whole),
            (false, false) => (layer.x, vec![], Kind::Island),
            (false, true) => (root, movements, Kind::Island),
        };
        let bits = if kind == Kind::Island { bits } else { self.options.observation_bits };
        self.add(value, None, kind, reader(movements, bits));
        Ok(())
    }

    fn add(&mut self, value: ValueId, group: Option<NodeId>, kind: Kind, reader: Reader) -> bool {
        let next = self.plans.len();
        let place = *self.places.entry((value, group)).or_insert(next);
        match self.plans.get_mut(place) {
            Some((_, known)) => {
                // One step suits every reader.
                if kind == Kind::Whole {
                    known.kind = Kind::Whole;
                }
                known.readers.push(reader);
                false
            }
            None => {
                self.plans.push((value, Plan { kind, readers: vec![reader], group }));
                true
            }
        }
    }

    /// Lets a place read a value from inside as codes, and what the value is made of too.
    fn read(
        &mut self,
        graph: &mut Graph,
        value: ValueId,
        reader: Reader,
        group: Option<NodeId>,
    ) -> Result<(), PassError> {
        let mut queue = vec![(value, reader, group)];
        while let Some((value, mut reader, group)) = queue.pop() {
            let (root, mut movements) = flow::through_movements(graph, value);
            movements.append(&mut reader.movements);
            reader.movements = movements;
            if flow::joins(graph.op(root)) {
                let (joined, is_new) = self.join(graph, root.node)?;
                let group = group.unwrap_or(joined);
                if is_new {
                    for (slot, part) in (0..).zip(graph.operands(joined)) {
                        let (movements, reach) = (vec![], None);
                        let reader = Reader { node: joined, slot, movements, bits: STREAM_BITS, reach };
                        queue.push((part, reader, Some(group)));
                    }
                }
                self.wire(graph, joined.value(), &reader)?;
                continue;
            }
            if self.add(root, group, Kind::Inside, reader) {
                self.read_source(graph, root, &mut queue);
            }
        }
        Ok(())
    }

    /// What a quantizer of `value` reads as codes itself.
    fn read_source(&self, graph: &Graph, value: ValueId, queue: &mut Vec<(ValueId, Reader, Option<NodeId>)>) {
        let chain = flow::chain_behind(graph, value);
        let source = chain.source;
        let mut push = |value: ValueId, node: NodeId, slot: u16| {
            let reader = Reader { node, slot, movements: vec![], bits: STREAM_BITS, reach: None };
            queue.push((value, reader, None));
        };
        if let Some([a, b]) = flow::addends(graph, source) {
            let is_layer = |value: ValueId| matches!(graph.op(value), Op::Linear(Linear { act: None, .. }));
            // One operand may be the accumulators of a layer that nobody else reads.
            let whole = graph.ty(a) == graph.ty(b);
            let free = |value: ValueId| is_layer(value) && graph.sole_user(value) == Some(source.node);
            let kept = [a, b].into_iter().find(|&value| free(value) && (value == a || whole));
            for (slot, operand) in (0..).zip(graph.operands(source.node)) {
                if Some(operand) != kept {
                    push(operand, source.node, slot);
                }
            }
        } else if let Some(sum) = flow::sum_of(graph, source.node) {
            push(sum.x, source.node, 0);
        } else if let (true, Some(first)) = (flow::moves_or_joins(graph, source.node), chain.first) {
            push(source, first, 0);
        }
    }

    /// The copy of a concatenation that reads codes; true if it was made now.
    fn join(&mut self, graph: &mut Graph, id: NodeId) -> Result<(NodeId, bool), PassError> {
        if let Some(&known) = self.joined.get(&id) {
            return Ok((known, false));
        }
        let node = graph.node(id).clone();
        let operands = graph.operands(id);
        let copy = rewrite::add(graph, &node.name, node.op, &operands, node.origin)?;
        self.joined.insert(id, copy.node);
        self.replaced.push(id);
        Ok((copy.node, true))
    }

    fn widened(&self, bits: u8, layer: NodeId) -> u8 {
        if self.edges.contains(layer) { bits.max(self.options.edge_bits) } else { bits }
    }

    fn quantize_inputs(&mut self, graph: &mut Graph) -> Result<(), PassError> {
        for (value, plan) in std::mem::take(&mut self.plans) {
            let bits = plan.readers.iter().map(|reader| reader.bits).max().unwrap_or(STREAM_BITS);
            // Whoever reads a stream in fewer bits requantizes it; other values are as wide as their
            // widest reader wants.
            let is_stream = plan.readers.iter().any(|reader| reader.reach.is_none());
            let quantized = self.quantize(graph, value, &plan, bits)?;
            let mut narrower: BTreeMap<(u8, ValueId), ValueId> = BTreeMap::new();
            for reader in &plan.readers {
                if !is_stream || reader.bits >= bits {
                    self.wire(graph, quantized, reader)?;
                    continue;
                }
                // Behind what makes the tensor smaller: a pool is there once.
                let is_pool = |&id: &NodeId| matches!(graph.node(id).op, Op::Reduce(_));
                let behind = reader.movements.iter().rposition(is_pool).map_or(0, |at| at + 1);
                let (before, after) = reader.movements.split_at(behind);
                let wide = self.move_codes(graph, quantized, before)?;
                let narrow = match narrower.get(&(reader.bits, wide)) {
                    Some(&known) => known,
                    None => {
                        let Op::FakeQuant(fake) = graph.op(quantized).clone() else { continue };
                        let scheme = QuantScheme { bits: reader.bits, ..fake.scheme };
                        let zero_point = graph.operands(quantized.node).len() > 2;
                        let new = fake_quant(graph, wide, whole_range(scheme), None, zero_point)?;
                        narrower.insert((reader.bits, wide), new);
                        new
                    }
                };
                let x = self.move_codes(graph, narrow, after)?;
                graph.rewire(reader.node, reader.slot, x);
            }
        }
        Ok(())
    }

    /// Lets a place read codes.
    fn wire(&mut self, graph: &mut Graph, x: ValueId, reader: &Reader) -> Result<(), PassError> {
        let x = self.move_codes(graph, x, &reader.movements)?;
        graph.rewire(reader.node, reader.slot, x);
        Ok(())
    }

    /// Copies movements behind a quantizer.
    fn move_codes(&mut self, graph: &mut Graph, mut x: ValueId, movements: &[NodeId]) -> Result<ValueId, PassError> {
        for &id in movements {
            x = match self.moved.get(&(id, x)) {
                Some(&known) => known,
                None => {
                    let node = graph.node(id).clone();
                    let mut operands = graph.operands(id);
                    operands.iter_mut().take(1).for_each(|operand| *operand = x);
                    let copy = rewrite::add(graph, &node.name, node.op, &operands, node.origin)?;
                    self.moved.insert((id, x), copy);
                    self.replaced.push(id);
                    copy
                }
            };
        }
        Ok(x)
    }

    /// The quantizer of a value.
    fn quantize(&mut self, graph: &mut Graph, value: ValueId, plan: &Plan, bits: u8) -> Result<ValueId, PassError> {
        // The sum of magnitudes in an accumulator has 31 bits: weights and sums of many features
        // leave fewer than 16 for an observation.
        let reach = |reader: &Reader| reader.reach.map(|(k, hi)| (k.max(1) as i64).saturating_mul(i64::from(hi)));
        let reach = plan.readers.iter().filter_map(reach).max().unwrap_or(1);
        let room = i64::from(i32::MAX) / reach.max(1);
        let narrowed = if room >= i64::from(ENTRY_HI) { ENTRY_HI } else { (room / 2) as i32 };
        let wide = bits == ENTRY.bits && narrowed > 255;
        let entry = FakeQuant { scheme: ENTRY, lo: -narrowed, hi: narrowed, axis: None, group: None };
        match plan.kind {
            Kind::Inside => self.quantize_inside(graph, value, plan.group, bits),
            _ if flow::is_of_bytes(graph, value) => {
                let quantized = fake_quant(graph, value, whole_range(QuantScheme::unsigned(8)), None, false)?;
                // Bytes are their own codes.
                rewrite::set_const_operand(graph, quantized.node, 1, Constant::f32([], &[1.0]))
                    .into_iter()
                    .for_each(|old| self.replaced.push(old));
                Ok(quantized)
            }
            Kind::Features if wide => {
                let axis = graph.ty(value).shape.len().checked_sub(1);
                fake_quant(graph, value, FakeQuant { axis, ..entry }, axis, false)
            }
            Kind::Whole if wide => fake_quant(graph, value, entry, None, false),
            Kind::Features | Kind::Whole | Kind::Island => {
                let scheme = QuantScheme::signed(bits.min(STREAM_BITS));
                fake_quant(graph, value, whole_range(scheme), None, false)
            }
        }
    }

    fn quantize_inside(
        &mut self,
        graph: &mut Graph,
        value: ValueId,
        group: Option<NodeId>,
        bits: u8,
    ) -> Result<ValueId, PassError> {
        let chain = flow::chain_behind(graph, value);
        self.quantize_operand_of_table(graph, &chain)?;
        let last = chain.functions.last().copied();
        let Some(group) = group else {
            let scheme = QuantScheme { bits, signed: !last.is_some_and(flow::never_negative) };
            return fake_quant(graph, value, whole_range(scheme), None, last.is_some_and(flow::short_negative_side));
        };
        // Parts of a concatenation have one step, so they have one scheme too; `calibrate` makes it
        // unsigned where no part is negative.
        let quantized = fake_quant(graph, value, whole_range(QuantScheme::signed(bits)), None, false)?;
        let Some(&own) = graph.operands(quantized.node).get(1) else { return Ok(quantized) };
        match self.steps.get(&group) {
            Some(&shared) => {
                graph.rewire(quantized.node, 1, shared);
                self.replaced.push(own.node);
            }
            None => drop(self.steps.insert(group, own)),
        }
        Ok(quantized)
    }

    /// Quantizes the operand of the first function of a chain, unless the whole
    /// chain folds into the range of codes.
    fn quantize_operand_of_table(&mut self, graph: &mut Graph, chain: &flow::Chain) -> Result<(), PassError> {
        let Some(first) = chain.first else { return Ok(()) };
        if chain.functions.iter().all(|&f| flow::clamps(f)) || flow::moves_or_joins(graph, chain.source.node) {
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

    fn quantize_weights(&mut self, graph: &mut Graph, layer: &ConstLinear, bits: u8) -> Result<(), PassError> {
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
