//! `lower-quant`: the graph with quantizers becomes the graph on codes.
//!
//! Every quantizer of an activation becomes one of
//! - `quantize`, where its operand comes from floats: the entry of a region,
//! - `requantize`, behind a layer; functions that only clamp fold into its range,
//! - `lookup`, behind 8-bit codes and functions of one number,
//! - `qsum` and `requantize`, behind a sum or mean of codes: `M = nearest(s_in / (n s_out))`,
//! - `qadd`, behind the sum of an accumulator or codes and codes, with one rounding:
//!   [`region::add_numbers`] has the proof that 64 bits hold it.
//!
//! A layer whose input and weights are quantized becomes `qlinear`: weight codes
//! from the nominal steps in `f64`, bias `B = rne(b / (s_in s_w)) - z_in sum(w)`,
//! multiplier `M = nearest(s_in s_w / s_out)` for each requantization of it.
//! Whoever still wants floats reads `dequantize`. Movements of codes stay.
//!
//! A model that brings its quantizers may have biases that are no whole numbers of
//! accumulators. Where rounding them would shift a result by a noticeable part of
//! a code, what rounding took is added behind `dequantize`, in floats on the host,
//! and the result is quantized there.
//!
//! From here on integer arithmetic defines the result, and floats before this
//! pass only approximate it. The bound `sum |w||a| + |B| < 2^31` is proven from
//! the codes themselves; where it fails the pass does too, naming the layer.
//! [`LoweringReport`] keeps what exports need and the graph no longer says.

mod islands;
mod layer;
mod quantizer;

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    Binary, BinaryFn, Constant, Dequantize, FakeQuant, Graph, NodeId, Op, Origin, Unary, UnaryFn, Unfold, ValueId,
};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    quant::{
        CodeInfo, LoweringReport,
        region::{self, Region},
        weight_code,
    },
    rewrite,
};
use layer::Layer;

/// The mean shift of results, over the channels of a layer and in codes, from which
/// on a given bias is kept: about that share of codes would differ by one.
const MAX_BIAS_SHIFT: f64 = 2.5e-4;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LowerQuant {
    /// The model brought its quantizers: biases are kept. Policies that train do so
    /// with whole biases.
    pub is_given: bool,
}

impl Pass for LowerQuant {
    fn name(&self) -> &'static str {
        "lower-quant"
    }

    fn summary(&self) -> &'static str {
        "turns quantizers into integer arithmetic on codes"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let old = graph.topo();
        if !old.iter().any(|&id| matches!(graph.node(id).op, Op::FakeQuant(_))) {
            return Ok(Changed::No);
        }
        // First everything on codes beside the old graph, which stays whole and
        // can be matched; then readers of floats move over; then the old goes.
        let region = Region::of(graph)?;
        let mut lowering = Lowering { is_given: self.is_given, ..Lowering::default() };
        for &id in &old {
            lowering.lower(graph, id, &region, cx)?;
        }
        let leaving = lowering.leave(graph)?;
        rewrite::sweep(graph, old.into_iter().chain(leaving));
        round_left_weights(graph)?;
        cx.lowering = Some(lowering.finish(graph));
        Ok(Changed::Yes)
    }
}

/// The graph on codes, while it grows beside the old one.
#[derive(Default)]
struct Lowering {
    /// See [`LowerQuant::is_given`].
    is_given: bool,
    /// Codes of old values.
    codes: BTreeMap<ValueId, (ValueId, CodeInfo)>,
    /// Layers on codes, by the old node.
    layers: BTreeMap<NodeId, Layer>,
    /// The same nodes, operands first.
    order: Vec<NodeId>,
    /// Codes of quantized weights, by the old quantizer.
    weights: BTreeMap<ValueId, ValueId>,
    /// Tables and the functions that they were made from.
    tables: Vec<(NodeId, Vec<UnaryFn>)>,
    /// Names of layers that stay in floats.
    float_layers: Vec<String>,
}

impl Lowering {
    /// Puts the counterpart of an old node on codes beside it, if it has one.
    fn lower(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        region: &Region,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        if let Some(&reason) = region.left.get(&id) {
            // Steps that nobody found yet explain more.
            if let Some(&scale) = graph.operands(id).get(1).filter(|&&scale| graph.const_of(scale).is_some()) {
                layer::checked_steps(graph, id, scale)?;
            }
            let node = graph.node(id).name.clone();
            return Err(PassError::Unsupported { node, reason: reason.to_owned() });
        }
        if let Some(quantizer) = region.quantizers.get(&id) {
            return self.lower_quantizer(graph, id, quantizer, cx);
        }
        match graph.node(id).op.clone() {
            Op::Linear(linear) => match region.layers.get(&id) {
                Some(layer) => self.lower_layer(graph, id, layer, linear.act),
                None => {
                    cx.declined(graph, id, "its input or its weights are not quantized; it stays in floats");
                    self.float_layers.push(graph.node(id).name.clone());
                    Ok(())
                }
            },
            op if region.moved.contains_key(&id) => self.lower_movement(graph, id, op, region),
            _ => Ok(()),
        }
    }

    fn lower_movement(&mut self, graph: &mut Graph, id: NodeId, op: Op, region: &Region) -> Result<(), PassError> {
        let missing = || PassError::Internal {
            node: graph.node(id).name.clone(),
            invariant: "codes in front of a movement were lowered",
        };
        let mut operands = graph.operands(id);
        let mut all: Option<CodeInfo> = None;
        for operand in &mut operands {
            // An index is no code.
            if !region.has_codes(*operand) {
                continue;
            }
            let (codes, info) = self.codes.get(operand).cloned().ok_or_else(missing)?;
            *operand = codes;
            all = Some(match all {
                Some(known) => CodeInfo { lo: known.lo.min(info.lo), hi: known.hi.max(info.hi), ..known },
                None => info,
            });
        }
        let mut info = all.ok_or_else(missing)?;
        let op = match op {
            Op::Unfold(unfold) => {
                let fill = region::fill_code(unfold.fill, &info);
                (info.lo, info.hi) = (info.lo.min(fill), info.hi.max(fill));
                Op::Unfold(Unfold { fill: fill as f32, ..unfold })
            }
            op => op,
        };
        let node = graph.node(id).clone();
        let moved = rewrite::add(graph, &node.name, op, &operands, node.origin)?;
        self.codes.insert(id.value(), (moved, info));
        Ok(())
    }

    /// Lets readers of floats read codes and accumulators through `dequantize`.
    /// Gives the nodes that nobody may read.
    fn leave(&mut self, graph: &mut Graph) -> Result<Vec<NodeId>, PassError> {
        let mut leaving = Vec::new();
        let quantizers: Vec<(ValueId, ValueId, CodeInfo)> = self
            .codes
            .iter()
            .filter(|(old, _)| matches!(graph.op(**old), Op::FakeQuant(_)))
            .map(|(old, (codes, info))| (*old, *codes, info.clone()))
            .collect();
        for (old, codes, info) in quantizers {
            let node = graph.node(codes.node).clone();
            let scale =
                graph.add_const(format!("{}.s", node.name), Constant::f64([1], &[info.step]), Origin::default());
            let op = Op::Dequantize(Dequantize { zero_point: info.zero_point });
            let floats = rewrite::add(graph, &format!("{}.f", node.name), op, &[codes, scale], node.origin)?;
            graph.replace_uses(old, floats);
            leaving.extend([floats.node, codes.node]);
        }
        for id in &self.order {
            let Some(layer) = self.layers.get_mut(id) else { continue };
            let node = graph.node(*id).clone();
            let scales = Constant::f64([layer.exit_scales.len()], &layer.exit_scales);
            let scales = graph.add_const(format!("{}.s", layer.report.name), scales, Origin::default());
            let op = Op::Dequantize(Dequantize { zero_point: 0 });
            let name = format!("{}.float", layer.report.name);
            let mut floats = rewrite::add(graph, &name, op, &[layer.acc, scales], node.origin.clone())?;
            layer.dequantize = Some(floats.node);
            leaving.push(floats.node);
            if layer.report.keeps_bias {
                let rest: Vec<f32> = layer.bias_rest().map(|rest| rest as f32).collect();
                let rest = Constant::f32([rest.len()], &rest);
                let rest = graph.add_const(format!("{}.rest", layer.report.name), rest, Origin::default());
                let name = format!("{}.biased", layer.report.name);
                let op = Op::Binary(Binary { f: BinaryFn::Add });
                floats = rewrite::add(graph, &name, op, &[floats, rest], node.origin.clone())?;
                leaving.push(floats.node);
            }
            if let Some(f) = layer.act {
                let name = format!("{}.{}", layer.report.name, f.name());
                floats = rewrite::add(graph, &name, Op::Unary(Unary { f }), &[floats], node.origin.clone())?;
                leaving.push(floats.node);
            }
            rewrite::take_over(graph, *id, floats);
            leaving.push(layer.acc.node);
        }
        Ok(leaving)
    }

    /// The report, with the names that nodes have in the end.
    fn finish(self, graph: &Graph) -> LoweringReport {
        let mut report = LoweringReport { float_layers: self.float_layers, ..LoweringReport::default() };
        let name = |id: NodeId| graph.contains(id).then(|| graph.node(id).name.clone());
        let mut layers = self.layers;
        for id in self.order {
            let Some(layer) = layers.remove(&id) else { continue };
            // Nobody needed the layer: dead code.
            let Some(acc) = name(layer.acc.node) else { continue };
            let mut entry = layer.report;
            entry.acc = acc;
            entry.dequantize = layer.dequantize.and_then(name);
            report.layers.push(entry);
        }
        // A node that is gone may have left its id to another: codes are codes.
        let alive: BTreeSet<NodeId> = graph.topo().into_iter().collect();
        for (codes, info) in self.codes.into_values() {
            if alive.contains(&codes.node) {
                report.codes.insert(graph.node(codes.node).name.clone(), info);
            }
        }
        for (id, functions) in self.tables {
            if alive.contains(&id) {
                report.tables.insert(graph.node(id).name.clone(), functions);
            }
        }
        report.sums = islands::sums(graph);
        report.islands = islands::islands(graph);
        report
    }
}

/// Quantized weights of layers that stay in floats become the rounded numbers.
fn round_left_weights(graph: &mut Graph) -> Result<(), PassError> {
    let mut dead = Vec::new();
    for id in graph.topo() {
        let Op::FakeQuant(FakeQuant { lo, hi, axis: Some(1), group: None, .. }) = graph.node(id).op else { continue };
        let [w, scale] = graph.operands(id)[..] else { continue };
        let (Some(all), Some(scales)) = (rewrite::const_f64(graph, w)?, rewrite::const_f32(graph, scale)?) else {
            continue;
        };
        let n = scales.len().max(1);
        let of_column = |(w, step): (&f64, &f32)| weight_code(*w, *step, lo, hi) as f32 * step;
        let rounded: Vec<f32> = all.chunks(n).flat_map(|row| row.iter().zip(&scales).map(of_column)).collect();
        let node = graph.node(id).clone();
        let constant = Constant::f32(graph.ty(w).shape.clone(), &rounded);
        let new = graph.add_const(node.name, constant, node.origin);
        rewrite::take_over(graph, id, new);
        dead.push(id);
    }
    rewrite::sweep(graph, dead);
    Ok(())
}
