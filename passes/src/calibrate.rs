//! `calibrate`: finds the steps of quantizers from data.
//!
//! Runs the graph without its quantizers on the samples, one at a time, counts
//! the values of every quantizer in a histogram of fixed size, and fills
//! placeholder steps:
//! - an activation by the observer; its codes become unsigned if the value is
//!   never negative, and keep a zero point only where that helps;
//! - the operand of a curved function by the error *behind* the function, so a
//!   saturated side costs no codes;
//! - an observation by powers of two that hold twice the largest magnitude,
//!   feature by feature (an image by one); the steps then move into the weights
//!   (`fold-entry-steps`);
//! - weights by channel: the largest magnitude for 8 bits, the least error for
//!   4, where rows count by the mean square of their input.
//!
//! Quantizers that share a step (parts of a concatenation) are chosen together.
//! Steps that are already set stay. Memory does not depend on the number of
//! samples.

use std::collections::BTreeMap;

use qail_ir::{
    Constant, DType, FakeQuant, Graph, NodeId, Op, TensorType, ValueId,
    interp::{Data, Interpreter, Tensor},
};

pub use crate::quant::Observer;
use crate::{
    Changed, Exactness, Pass, PassContext, PassError, PassOptions, fold_entry_steps,
    quant::{
        Candidates, ENTRY, Histogram, Quantizer, RowImportance, ValueStats, channel_steps_weighed,
        entry::{Feature, Reader, entry_steps, smallest_step},
        flow, is_placeholder, samples_within, search,
    },
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibrate {
    /// How the range of an activation becomes a step.
    pub observer: Observer,
    /// Largest number of samples to run; more are skipped evenly. Large models run fewer.
    pub max_samples: usize,
}

impl Default for Calibrate {
    fn default() -> Self {
        Self { observer: Observer::Mse, max_samples: 2048 }
    }
}

impl Calibrate {
    /// Reads `observer` and `samples`.
    pub(crate) fn from_options(options: &mut PassOptions) -> Result<Self, PassError> {
        let default = Self::default();
        Ok(Self {
            observer: options.take("observer", default.observer, "mse, min-max, percentile or percentile:99.9")?,
            max_samples: options.take("samples", default.max_samples, "a number")?,
        })
    }
}

impl Pass for Calibrate {
    fn name(&self) -> &'static str {
        "calibrate"
    }

    fn summary(&self) -> &'static str {
        "finds the steps of quantizers from data"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let pending = pending(graph);
        if pending.is_empty() {
            return Ok(Changed::No);
        }
        let mut seen = self.watch(graph, &pending, cx)?;
        let mut dead = Vec::new();
        let mut scales: BTreeMap<NodeId, ValueId> = BTreeMap::new();
        for quantizer in pending.iter().filter(|quantizer| !quantizer.of_weights) {
            let Some(histogram) = seen.values.get(&quantizer.first) else { continue };
            let features = seen.inputs.get(&quantizer.x);
            let (choice, steps) = self.choose(graph, quantizer, histogram, features)?;
            note_statistics(graph, quantizer, histogram, &choice, &steps, cx);
            let shared = scales.get(&quantizer.first).copied();
            let scale = set_quantizer(graph, quantizer, &choice, &steps, shared, &mut dead)?;
            scales.extend(scale.map(|scale| (quantizer.first, scale)));
        }
        rewrite::sweep(graph, dead);
        for folded in fold_entry_steps::fold(graph, cx)? {
            for (square, step) in seen.squares.get_mut(&folded.layer).into_iter().flatten().zip(&folded.steps) {
                *square /= step * step;
            }
            for (mean, step) in seen.means.get_mut(&folded.layer).into_iter().flatten().zip(&folded.steps) {
                *mean /= step;
            }
        }
        set_weights(graph, &seen.squares)?;
        cx.input_means = seen.means.into_iter().map(|(id, means)| (graph.node(id).name.clone(), means)).collect();
        Ok(Changed::Yes)
    }
}

/// A quantizer without a step.
struct Pending {
    id: NodeId,
    name: String,
    fake: FakeQuant,
    x: ValueId,
    has_zero_point: bool,
    of_weights: bool,
    /// The first quantizer that has the same step: they are chosen together.
    first: NodeId,
}

fn pending(graph: &Graph) -> Vec<Pending> {
    let mut firsts: BTreeMap<ValueId, NodeId> = BTreeMap::new();
    let of_node = |id: NodeId| {
        let Op::FakeQuant(fake) = &graph.node(id).op else { return None };
        let operands = graph.operands(id);
        let (&x, &scale) = (operands.first()?, operands.get(1)?);
        let waits = graph.const_of(scale).is_some_and(|scale| is_placeholder(scale));
        waits.then(|| Pending {
            id,
            name: graph.node(id).name.clone(),
            fake: fake.clone(),
            x,
            has_zero_point: operands.len() > 2,
            of_weights: graph.const_of(x).is_some(),
            first: *firsts.entry(scale).or_insert(id),
        })
    };
    graph.topo().into_iter().filter_map(of_node).collect()
}

/// What was seen on the data.
#[derive(Default)]
struct Seen {
    /// Numbers of each quantizer of an activation.
    values: BTreeMap<NodeId, Histogram>,
    /// Features of each value that a quantizer or a layer reads.
    inputs: BTreeMap<ValueId, Vec<Feature>>,
    /// Mean square of each input feature of each layer.
    squares: BTreeMap<NodeId, Vec<f64>>,
    /// Mean of each input feature of each layer.
    means: BTreeMap<NodeId, Vec<f64>>,
}

impl Calibrate {
    /// Runs the graph without its quantizers.
    fn watch(&self, graph: &Graph, pending: &[Pending], cx: &mut PassContext<'_>) -> Result<Seen, PassError> {
        let mut seen = Seen::default();
        let values: Vec<&Pending> = pending.iter().filter(|quantizer| !quantizer.of_weights).collect();
        let (n_samples, samples) = match (cx.samples, values.first()) {
            (Some(samples), _) if !samples.is_empty() => (samples.len(), samples),
            (_, None) => return Ok(seen),
            (_, Some(first)) => return Err(PassError::NoData { n_values: values.len(), first: first.name.clone() }),
        };
        let (floats, replaced) = flow::without_quantizers(graph);
        let value_in_floats = |value: ValueId| replaced.get(&value).copied().unwrap_or(value);
        for quantizer in &values {
            seen.values.insert(quantizer.first, Histogram::default());
            seen.inputs.insert(quantizer.x, Vec::new());
        }
        let layers: Vec<(NodeId, ValueId)> = layers(graph).map(|(id, x)| (id, value_in_floats(x))).collect();
        for &(_, x) in &layers {
            seen.inputs.entry(x).or_default();
        }
        let mut readers: BTreeMap<NodeId, Vec<&Pending>> = BTreeMap::new();
        for quantizer in &values {
            readers.entry(value_in_floats(quantizer.x).node).or_default().push(quantizer);
        }
        let interpreter = Interpreter::new(&floats).map_err(|error| PassError::Interp(Box::new(error)))?;
        let n_used = n_samples.min(samples_within(graph, self.max_samples));
        for used in 0..n_used {
            // Even steps through all samples, the first one included.
            let index = used * n_samples / n_used;
            let inputs = samples.get(index).map_err(|source| PassError::Sample { index, source })?;
            let mut not_finite = None;
            let watch = |id: NodeId, tensor: &Tensor| {
                let Data::F32(elements) = &tensor.data else { return };
                if let Some(features) = seen.inputs.get_mut(&id.value()) {
                    add_features(features, elements, tensor.ty.shape.last().copied().unwrap_or(1));
                }
                for quantizer in readers.get(&id).into_iter().flatten() {
                    if let Some(histogram) = seen.values.get_mut(&quantizer.first) {
                        elements.iter().for_each(|&x| histogram.add(f64::from(x)));
                    }
                    if not_finite.is_none() && elements.iter().any(|x| !x.is_finite()) {
                        not_finite = Some(id);
                    }
                }
            };
            interpreter.observe(&inputs, watch).map_err(|error| PassError::Interp(Box::new(error)))?;
            if let Some(id) = not_finite {
                return Err(PassError::NotFinite { node: floats.node(id).name.clone(), index });
            }
            cx.advance(used + 1, n_used);
        }
        for (id, x) in layers {
            let Some(features) = seen.inputs.get(&x) else { continue };
            seen.squares.insert(id, features.iter().map(Feature::mean_square).collect());
            seen.means.insert(id, features.iter().map(Feature::mean).collect());
        }
        Ok(seen)
    }

    /// The quantizer of a value and its steps: one, or one a feature.
    fn choose(
        &self,
        graph: &Graph,
        quantizer: &Pending,
        histogram: &Histogram,
        features: Option<&Vec<Feature>>,
    ) -> Result<(Quantizer, Vec<f32>), PassError> {
        let scheme = quantizer.fake.scheme;
        if scheme == ENTRY {
            let hi = quantizer.fake.hi;
            let steps = if quantizer.fake.axis.is_some() {
                let features = features.map(Vec::as_slice).unwrap_or_default();
                entry_steps(features, &readers_of_entry(graph, quantizer.id)?, hi)
            } else {
                vec![smallest_step(histogram.max_abs(), hi)]
            };
            let steps: Vec<f32> = steps.into_iter().map(|step| step as f32).collect();
            // Uniform noise of each step.
            let mse = steps.iter().map(|&step| f64::from(step).powi(2) / 12.0).sum::<f64>() / steps.len().max(1) as f64;
            return Ok((Quantizer { scheme, step: 1.0, zero_point: 0, mse }, steps));
        }
        let functions = functions_of_table(graph, quantizer.id);
        let candidates =
            Candidates { bits: scheme.bits, unsigned: functions.is_empty(), zero_point: quantizer.has_zero_point };
        let through = |x: f64| functions.iter().fold(x, |y, f| f.eval_f64(y));
        let choice = search(histogram, candidates, self.observer, &through);
        Ok((choice, vec![choice.step]))
    }
}

/// The weights of the layers that read an observation.
fn readers_of_entry(graph: &Graph, id: NodeId) -> Result<Vec<Reader>, PassError> {
    let mut readers = Vec::new();
    for (layer, slot) in graph.users(id.value()) {
        let weights = graph.operands(layer).get(1).copied().filter(|_| slot == 0);
        let Some(weights) = weights else { continue };
        let Op::FakeQuant(FakeQuant { hi, .. }) = *graph.op(weights) else { continue };
        let Some(&w) = graph.operands(weights.node).first() else { continue };
        let (Some(elements), [_, n]) = (rewrite::const_f64(graph, w)?, &graph.ty(w).shape[..]) else { continue };
        readers.push(Reader { w: elements, n: *n, hi });
    }
    Ok(readers)
}

/// The functions behind a quantizer that feeds a table; none if it feeds
/// anything else, or several tables.
fn functions_of_table(graph: &Graph, id: NodeId) -> Vec<qail_ir::UnaryFn> {
    let mut functions = Vec::new();
    let mut value = id.value();
    while let Some(user) = graph.sole_user(value) {
        let Op::Unary(unary) = &graph.node(user).op else { break };
        if !flow::fits_a_table(unary.f) {
            break;
        }
        functions.push(unary.f);
        value = user.value();
    }
    functions
}

fn add_features(features: &mut Vec<Feature>, elements: &[f32], n_features: usize) {
    features.resize(n_features, Feature::default());
    for row in elements.chunks_exact(n_features.max(1)) {
        for (feature, &x) in features.iter_mut().zip(row) {
            feature.add(f64::from(x));
        }
    }
}

fn layers(graph: &Graph) -> impl Iterator<Item = (NodeId, ValueId)> {
    let is_layer = |id: &NodeId| matches!(graph.node(*id).op, Op::Linear(_));
    graph.topo().into_iter().filter(is_layer).filter_map(|id| Some((id, graph.operands(id).first().copied()?)))
}

fn note_statistics(
    graph: &Graph,
    quantizer: &Pending,
    histogram: &Histogram,
    choice: &Quantizer,
    steps: &[f32],
    cx: &mut PassContext<'_>,
) {
    if histogram.max_abs() == 0.0 {
        cx.info(graph, quantizer.id, "it was zero on all samples");
    }
    cx.stats.insert(
        quantizer.name.clone(),
        ValueStats {
            n: histogram.n(),
            min: histogram.min(),
            max: histogram.max(),
            mean_square: histogram.mean_square(),
            scheme: choice.scheme,
            steps: steps.to_vec(),
            zero_point: choice.zero_point,
            mse: choice.mse,
        },
    );
}

/// Puts the chosen codes and steps into a quantizer; gives the constant of the steps.
fn set_quantizer(
    graph: &mut Graph,
    quantizer: &Pending,
    choice: &Quantizer,
    steps: &[f32],
    shared: Option<ValueId>,
    dead: &mut Vec<NodeId>,
) -> Result<Option<ValueId>, PassError> {
    let shape: Vec<usize> = quantizer.fake.axis.map(|_| steps.len()).into_iter().collect();
    match shared {
        Some(scale) => {
            dead.extend(graph.operands(quantizer.id).get(1).map(|old| old.node));
            graph.rewire(quantizer.id, 1, scale);
        }
        None => dead.extend(rewrite::set_const_operand(graph, quantizer.id, 1, Constant::f32(shape, steps))),
    }
    if quantizer.has_zero_point {
        let zero = Constant::ints(TensorType::plain(DType::I32, []), &[i64::from(choice.zero_point)]);
        dead.extend(rewrite::set_const_operand(graph, quantizer.id, 2, zero));
    }
    let mut operands = graph.operands(quantizer.id);
    if choice.zero_point == 0 {
        operands.truncate(2);
    }
    if choice.scheme != quantizer.fake.scheme || (quantizer.has_zero_point && operands.len() == 2) {
        let (lo, hi) = (choice.scheme.lo(), choice.scheme.hi());
        let fake = FakeQuant { scheme: choice.scheme, lo, hi, ..quantizer.fake.clone() };
        let all = graph.operands(quantizer.id);
        rewrite::replace(graph, quantizer.id, Op::FakeQuant(fake), &operands)?;
        dead.extend(all.into_iter().map(|value| value.node).chain([quantizer.id]));
    }
    Ok(operands.get(1).copied())
}

/// Fills the steps of quantized weights.
fn set_weights(graph: &mut Graph, mean_squares: &BTreeMap<NodeId, Vec<f64>>) -> Result<(), PassError> {
    let mut dead = Vec::new();
    for quantizer in pending(graph).into_iter().filter(|quantizer| quantizer.of_weights) {
        let FakeQuant { hi, axis: Some(1), group: None, .. } = quantizer.fake else { continue };
        let Some(w) = rewrite::const_f64(graph, quantizer.x)? else { continue };
        let Some(&n) = graph.ty(quantizer.x).shape.get(1) else { continue };
        // Shared weights: the first layer speaks for all.
        let layer = graph.users(quantizer.id.value()).first().map(|&(user, _)| user);
        let importance = RowImportance(layer.and_then(|layer| mean_squares.get(&layer).cloned()));
        let bias = layer.and_then(|layer| bias_and_step(graph, layer).transpose()).transpose()?;
        let bias = bias.as_ref().map(|(b, s_in)| (b.as_slice(), *s_in));
        let groups = match layer.map(|layer| &graph.node(layer).op) {
            Some(Op::Linear(linear)) => linear.groups,
            Some(_) | None => 1,
        };
        let steps = channel_steps_weighed(&w, n, hi, &importance, groups, bias);
        dead.extend(rewrite::set_const_operand(graph, quantizer.id, 1, Constant::f32([n], &steps)));
    }
    rewrite::sweep(graph, dead);
    Ok(())
}

/// Bias of a layer and step of its input, if both are constant.
fn bias_and_step(graph: &Graph, layer: NodeId) -> Result<Option<(Vec<f64>, f64)>, PassError> {
    let [x, _, b] = graph.operands(layer)[..] else { return Ok(None) };
    let (root, _) = flow::through_movements(graph, x);
    let Op::FakeQuant(_) = graph.op(root) else { return Ok(None) };
    let Some(&scale) = graph.operands(root.node).get(1) else { return Ok(None) };
    let step = rewrite::const_f64(graph, scale)?.and_then(|steps| steps.first().copied());
    Ok(rewrite::const_f64(graph, b)?.zip(step))
}
