//! `fold-normalizer`: folds `(x - mean) / std` and the like in front of a
//! `linear` into its weights.
//!
//! The chain may hold any `add`, `sub`, `mul` and `div` with one constant a
//! feature; its value must feed the first operand of `linear` only. With
//! `x' = a x + c`, in `f64` and rounded once:
//! `W'[k, n] = a[k] W[k, n]`, `b'[n] = b[n] + sum_k c[k] W[k, n]`.
//!
//! An observation that enters in 16 bits needs this: its steps then fold into
//! the same weights, and the device never sees the normalizer.

use qail_ir::{Graph, NodeId, Origin, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    rewrite::{self, Affine, ConstLinear},
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldNormalizer;

impl Pass for FoldNormalizer {
    fn name(&self) -> &'static str {
        "fold-normalizer"
    }

    fn summary(&self) -> &'static str {
        "folds a per-feature affine chain in front of a linear into its weights"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        for id in graph.topo() {
            // Chains are folded from their last node, whose readers are the layers.
            let Some(chain) = chain(graph, id)? else { continue };
            let Some(layers) = layers_behind(graph, id.value(), cx) else { continue };
            dead.extend(fold(graph, id, &chain, &layers, cx)?);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// Affine functions one behind the other.
struct Chain {
    /// The value where they begin.
    root: ValueId,
    affine: Affine,
    origin: Origin,
}

/// The chain that ends in `id`.
fn chain(graph: &Graph, id: NodeId) -> Result<Option<Chain>, PassError> {
    let Some((root, affine)) = Affine::matching(graph, id)? else { return Ok(None) };
    let mut chain = Chain { root, affine, origin: graph.node(id).origin.clone() };
    while let Some((before, first)) = Affine::matching(graph, chain.root.node)? {
        chain.origin = chain.origin.merge(&graph.node(chain.root.node).origin);
        chain.root = before;
        chain.affine = chain.affine.after(&first);
    }
    Ok(Some(chain))
}

/// The layers that read a value, if nothing else does.
fn layers_behind(graph: &Graph, value: ValueId, cx: &mut PassContext<'_>) -> Option<Vec<ConstLinear>> {
    let users = graph.users(value);
    let layers: Vec<ConstLinear> =
        users.iter().filter_map(|&(user, slot)| ConstLinear::matching(graph, user).filter(|_| slot == 0)).collect();
    if layers.is_empty() {
        return None;
    }
    if layers.len() < users.len() || graph.is_output(value) {
        cx.declined(graph, value.node, "the normalized value has readers other than linear layers");
        return None;
    }
    Some(layers)
}

/// Folds the chain that ends in `id` into every layer; gives nodes that may
/// then be dead.
fn fold(
    graph: &mut Graph,
    id: NodeId,
    chain: &Chain,
    layers: &[ConstLinear],
    cx: &mut PassContext<'_>,
) -> Result<Vec<NodeId>, PassError> {
    let mut folded = Vec::with_capacity(layers.len());
    for layer in layers {
        let (mut w, mut b) = layer.parameters(graph)?;
        let mut shift = vec![0.0f64; layer.n];
        for (k, row) in w.chunks_exact_mut(layer.n.max(1)).enumerate() {
            let (Some(&scale), Some(&offset)) = (chain.affine.scale.get(k), chain.affine.shift.get(k)) else {
                continue;
            };
            for (w, shift) in row.iter_mut().zip(&mut shift) {
                *shift += offset * *w;
                *w *= scale;
            }
        }
        b.iter_mut().zip(&shift).for_each(|(b, shift)| *b += shift);
        if !chain.affine.is_finite() || !w.iter().chain(&b).all(|x| (*x as f32).is_finite()) {
            cx.declined(graph, layer.id, "the folded parameters are not finite; is a standard deviation zero?");
            return Ok(vec![]);
        }
        folded.push((w, b));
    }
    let mut dead = vec![id];
    for (layer, (w, b)) in layers.iter().zip(&folded) {
        graph.merge_origin(layer.id, &chain.origin);
        dead.extend(layer.set_parameters(graph, w, b));
        graph.rewire(layer.id, 0, chain.root);
    }
    Ok(dead)
}
