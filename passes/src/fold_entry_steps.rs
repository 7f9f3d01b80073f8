//! `fold-entry-steps`: moves the steps of a 16-bit observation into the weights
//! behind it.
//!
//! The quantizer of an observation has a power-of-two step for each feature,
//! but a layer on codes has one step for its input. So the observation is first
//! multiplied by the reciprocal steps (exact), quantized with step 1, and the
//! rows of the weights are multiplied by the steps (exact). Weight quantizers
//! behind it see the folded weights, which are those that the device stores;
//! their steps must be found after this pass. `calibrate` does both in order.

use qail_ir::{Binary, BinaryFn, Constant, FakeQuant, Graph, Linear, NodeId, Op, Origin, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    quant::{ENTRY, is_placeholder},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldEntrySteps;

impl Pass for FoldEntrySteps {
    fn name(&self) -> &'static str {
        "fold-entry-steps"
    }

    fn summary(&self) -> &'static str {
        "moves the per-feature steps of observations into the weights that read them"
    }

    fn exactness(&self) -> Exactness {
        // Exact while weights are not yet quantized.
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        Ok(Changed::when(!fold(graph, cx)?.is_empty()))
    }
}

/// A layer whose weights took the steps of its input.
pub(crate) struct Folded {
    pub(crate) layer: NodeId,
    pub(crate) steps: Vec<f64>,
}

/// Runs the pass; gives the layers that changed.
pub(crate) fn fold(graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Vec<Folded>, PassError> {
    let mut folded = Vec::new();
    let mut dead = Vec::new();
    for id in graph.topo() {
        let Some(entry) = entry(graph, id, cx)? else { continue };
        let layers = fold_one(graph, id, &entry, &mut dead)?;
        folded.extend(layers.into_iter().map(|layer| Folded { layer, steps: entry.steps.clone() }));
        dead.push(id);
    }
    rewrite::sweep(graph, dead);
    Ok(folded)
}

/// A quantizer of an observation whose steps can move.
struct Entry {
    x: ValueId,
    scale: ValueId,
    fake: FakeQuant,
    steps: Vec<f64>,
    layers: Vec<NodeId>,
}

fn entry(graph: &Graph, id: NodeId, cx: &mut PassContext<'_>) -> Result<Option<Entry>, PassError> {
    let Op::FakeQuant(fake) = &graph.node(id).op else { return Ok(None) };
    let [x, scale] = graph.operands(id)[..] else { return Ok(None) };
    let last = graph.ty(x).shape.len().checked_sub(1);
    if fake.scheme != ENTRY || fake.axis != last || graph.const_of(x).is_some() {
        return Ok(None);
    }
    if graph.const_of(scale).is_none_or(|scale| is_placeholder(scale)) {
        return Ok(None);
    }
    let Some(steps) = rewrite::const_f64(graph, scale)? else { return Ok(None) };
    if !steps.iter().all(|&step| is_power_of_two(step)) {
        cx.declined(graph, id, "its steps are not powers of two");
        return Ok(None);
    }
    let users = graph.users(id.value());
    let layers: Vec<NodeId> = users
        .iter()
        .filter(|&&(user, slot)| slot == 0 && weights(graph, user).is_some())
        .map(|&(user, _)| user)
        .collect();
    if layers.is_empty() || layers.len() < users.len() || graph.is_output(id.value()) {
        cx.declined(graph, id, "it is not read by linear layers alone");
        return Ok(None);
    }
    Ok(Some(Entry { x, scale, fake: fake.clone(), steps, layers }))
}

fn is_power_of_two(step: f64) -> bool {
    step.is_normal() && step > 0.0 && libm::frexp(step).0 == 0.5 && ((1.0 / step) as f32).is_normal()
}

/// The constant weights of a layer, and their quantizer if they have one.
fn weights(graph: &Graph, layer: NodeId) -> Option<(ValueId, Option<NodeId>)> {
    let Op::Linear(Linear { groups: 1, .. }) = graph.node(layer).op else { return None };
    let w = *graph.operands(layer).get(1)?;
    if graph.const_of(w).is_some() {
        return Some((w, None));
    }
    let Op::FakeQuant(_) = graph.op(w) else { return None };
    let inner = *graph.operands(w.node).first()?;
    graph.const_of(inner).map(|_| (inner, Some(w.node)))
}

fn fold_one(graph: &mut Graph, id: NodeId, entry: &Entry, dead: &mut Vec<NodeId>) -> Result<Vec<NodeId>, PassError> {
    let x_name = graph.node(entry.x.node).name.clone();
    let origin = graph.node(id).origin.clone();
    let factors: Vec<f32> = entry.steps.iter().map(|step| (1.0 / step) as f32).collect();
    let factors = graph.add_const(format!("{x_name}.r"), Constant::f32([factors.len()], &factors), Origin::default());
    let scaled = Op::Binary(Binary { f: BinaryFn::Mul });
    let scaled = rewrite::add(graph, &format!("{x_name}.scaled"), scaled, &[entry.x, factors], origin)?;
    let one = graph.add_const(graph.node(entry.scale.node).name.clone(), Constant::f32([], &[1.0]), Origin::default());
    let fake = FakeQuant { axis: None, ..entry.fake.clone() };
    rewrite::replace(graph, id, Op::FakeQuant(fake), &[scaled, one])?;
    rewrite::inherit_name(graph, entry.scale.node, one, &[id]);
    dead.push(entry.scale.node);
    for &layer in &entry.layers {
        fold_into(graph, layer, &entry.steps, dead)?;
    }
    Ok(entry.layers.clone())
}

/// Multiplies the rows of a layer's weights by the steps. Shared weights are copied.
fn fold_into(graph: &mut Graph, layer: NodeId, steps: &[f64], dead: &mut Vec<NodeId>) -> Result<(), PassError> {
    let node = graph.node(layer).name.clone();
    let missing =
        || PassError::Internal { node: node.clone(), invariant: "a layer behind an entry has constant weights" };
    let (w, quantizer) = weights(graph, layer).ok_or_else(missing)?;
    let ty = graph.ty(w).clone();
    let [_, n] = ty.shape[..] else { return Err(missing()) };
    let mut elements = rewrite::const_f32(graph, w)?.ok_or_else(missing)?;
    for (row, step) in elements.chunks_exact_mut(n.max(1)).zip(steps) {
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * step) as f32);
    }
    if !elements.iter().all(|w| w.is_finite()) {
        return Err(PassError::Unsupported {
            node,
            reason: "its weights times the steps of its input are not finite".to_owned(),
        });
    }
    let name = graph.node(w.node).name.clone();
    let origin = graph.node(w.node).origin.clone();
    let folded = graph.add_const(name, Constant::f32(ty.shape, &elements), origin);
    dead.push(w.node);
    let Some(quantizer) = quantizer else {
        graph.rewire(layer, 1, folded);
        rewrite::inherit_name(graph, w.node, folded, &[]);
        return Ok(());
    };
    let old_operands = graph.operands(quantizer);
    let mut operands = graph.operands(quantizer);
    let quantizer_node = graph.node(quantizer).clone();
    // Its own steps: those of shared weights were for other numbers.
    for operand in operands.iter_mut().skip(1) {
        let Some(constant) = graph.const_of(*operand) else { continue };
        let constant = Constant::clone(constant);
        let name = graph.node(operand.node).name.clone();
        dead.push(operand.node);
        *operand = graph.add_const(name, constant, Origin::default());
    }
    if let Some(first) = operands.first_mut() {
        *first = folded;
    }
    let quantized = rewrite::add(graph, &quantizer_node.name, quantizer_node.op, &operands, quantizer_node.origin)?;
    graph.rewire(layer, 1, quantized);
    if graph.users(quantizer.value()).is_empty() {
        for (old, new) in old_operands.into_iter().zip(operands) {
            rewrite::inherit_name(graph, old.node, new, &[quantizer]);
        }
        rewrite::inherit_name(graph, quantizer, quantized, &[]);
    }
    dead.push(quantizer);
    Ok(())
}
