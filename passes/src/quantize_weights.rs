//! `quantize-weights`: weight codes with float activations, `w4a16` and `w8a16`.
//!
//! Every `linear` with constant weights becomes `linear_wq`. 4-bit weights have
//! one step for 32 rows and a channel, found by least square error; 8-bit ones
//! one step a channel, the largest magnitude. Edge layers, first or last on
//! some path that takes no skip connection, have 8 bits. Needs no data. Layers that would gain nothing because
//! their weights are few still shrink: the pass does not guess about speed.
//! Weights that lie in a file stay there: they are read block by block, and
//! their codes are computed when somebody reads those.

use std::collections::BTreeSet;

use qail_ir::{Graph, LinearWq, NodeId, Op, Origin, QuantScheme};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError, PassOptions, Precision,
    quant::{
        edges::Edges,
        steps::{codes_of, steps_of},
    },
    rewrite::{self, ConstLinear},
};

/// Rows that share a step of 4-bit weights.
const GROUP: usize = 32;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeWeights {
    /// Bits of a weight.
    pub bits: u8,
    /// Bits of a weight of an edge layer, if the inside has fewer.
    pub edge_bits: u8,
}

impl Default for QuantizeWeights {
    fn default() -> Self {
        Self { bits: 4, edge_bits: 8 }
    }
}

impl QuantizeWeights {
    /// The widths of a precision, `None` unless it has float activations.
    pub fn new(precision: Precision, edge_bits: u8) -> Option<Self> {
        match (precision.weight_bits(), precision.activation_bits()) {
            (Some(bits), None) => Some(Self { bits, edge_bits }),
            (_, Some(_)) | (None, None) => None,
        }
    }

    /// Reads `bits` and `edge-bits`.
    pub(crate) fn from_options(options: &mut PassOptions) -> Result<Self, PassError> {
        let accepted = "w4a16 or w8a16";
        let precision = options.take("bits", Precision::W4A16, accepted)?;
        let edge_bits = options.take("edge-bits", 8, "4 or 8")?;
        if !matches!(edge_bits, 4 | 8) {
            return Err(options.error("edge-bits", format!("expected 4 or 8, found {edge_bits}")));
        }
        Self::new(precision, edge_bits)
            .ok_or_else(|| options.error("bits", format!("expected {accepted}, found {precision}")))
    }
}

impl Pass for QuantizeWeights {
    fn name(&self) -> &'static str {
        "quantize-weights"
    }

    fn summary(&self) -> &'static str {
        "turns linear weights into codes and keeps activations as floats"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let all: Vec<ConstLinear> =
            graph.topo().into_iter().filter_map(|id| ConstLinear::matching(graph, id)).collect();
        let ids: BTreeSet<NodeId> = all.iter().map(|layer| layer.id).collect();
        let (layers, in_groups): (Vec<_>, Vec<_>) = all.into_iter().partition(|layer| layer.op.groups == 1);
        for layer in in_groups {
            cx.declined(graph, layer.id, "its channels see groups of features; its few weights stay floats");
        }
        let edges = Edges::of(graph, &ids);
        let all = layers.iter().fold(0usize, |all, layer| all.saturating_add(layer.k.saturating_mul(layer.n)));
        let (mut dead, mut done) = (Vec::new(), 0usize);
        for layer in &layers {
            let bits = if edges.contains(layer.id) { self.bits.max(self.edge_bits) } else { self.bits };
            quantize(graph, layer, bits, &mut |n| {
                done = done.saturating_add(n);
                cx.advance(done, all);
            })?;
            dead.push(layer.id);
        }
        rewrite::sweep(graph, dead);
        Ok(Changed::when(!layers.is_empty()))
    }
}

fn quantize(
    graph: &mut Graph,
    layer: &ConstLinear,
    bits: u8,
    progress: &mut dyn FnMut(usize),
) -> Result<(), PassError> {
    let scheme = QuantScheme::signed(bits);
    let group = if bits < 8 { GROUP } else { layer.k.max(1) };
    let name = graph.node(layer.w.node).name.clone();
    let origin = graph.node(layer.w.node).origin.clone();
    let unread = |source| PassError::Const { node: name.clone(), source };
    let invariant = "weights are constants";
    let w = graph.const_of(layer.w).cloned();
    let w = w.ok_or_else(|| PassError::Internal { node: name.clone(), invariant })?;
    let scales = steps_of(&w, [layer.k, layer.n], group, scheme.hi(), progress).map_err(unread)?;
    if scales.all_f32().map_err(unread)?.iter().any(|scale| !scale.is_finite()) {
        return Err(PassError::Weights { weights: name, node: graph.node(layer.id).name.clone() });
    }
    let codes = codes_of(&w, &scales, group, scheme).map_err(unread)?;
    let codes = graph.add_const(format!("{name}.q"), codes, origin);
    let scales = graph.add_const(format!("{name}.s"), scales, Origin::default());
    let op = Op::LinearWq(LinearWq { group, act: layer.op.act });
    // The layer in front may have been replaced since the layers were listed.
    let x = graph.operands(layer.id).first().copied().unwrap_or(layer.x);
    rewrite::replace(graph, layer.id, op, &[x, codes, scales, layer.b])?;
    Ok(())
}
