//! `merge-linear-bias`: folds `+ c`, `- c`, `* c` and `/ c` behind a `linear`
//! into its weights and bias.
//!
//! `c` is one number or one a channel. Only if the `linear` has no activation
//! and its result has no other reader. Parameters are computed in `f64` and
//! rounded once; a bias added to a zero bias is exact. Layers that share parameters
//! (one backbone for two cameras) and are followed by the same numbers share the
//! new ones.

use std::collections::BTreeMap;

use qail_ir::{Graph, NodeId, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    rewrite::{self, Affine, ConstLinear},
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeLinearBias {
    /// Only what does not change a bit: a bias added to a zero bias.
    pub exact_only: bool,
}

/// What became of parameters behind numbers: of a scale, and of a scale and a shift.
#[derive(Default)]
struct Known {
    weights: BTreeMap<(ValueId, Vec<u64>), ValueId>,
    biases: BTreeMap<(ValueId, Vec<u64>, Vec<u64>), ValueId>,
}

impl Pass for MergeLinearBias {
    fn name(&self) -> &'static str {
        "merge-linear-bias"
    }

    fn summary(&self) -> &'static str {
        "folds constants added to or multiplied with the result of a linear into its parameters"
    }

    fn exactness(&self) -> Exactness {
        if self.exact_only { Exactness::Exact } else { Exactness::Rounding }
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        let mut known = Known::default();
        // Operands first, so that a chain folds from its beginning.
        for id in graph.topo() {
            let merged = self.merge(graph, id, &dead, &mut known, cx)?;
            dead.extend(merged);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

impl MergeLinearBias {
    /// Merges the node into the layer that feeds it; gives nodes that may then be dead.
    fn merge(
        &self,
        graph: &mut Graph,
        id: NodeId,
        dead: &[NodeId],
        known: &mut Known,
        cx: &mut PassContext<'_>,
    ) -> Result<Vec<NodeId>, PassError> {
        let Some((y, affine)) = Affine::matching(graph, id)? else { return Ok(vec![]) };
        let Some(linear) = ConstLinear::matching(graph, y.node) else { return Ok(vec![]) };
        if linear.op.act.is_some() {
            return Ok(vec![]);
        }
        if !rewrite::is_sole_reader(graph, id, y, dead) {
            cx.declined(graph, id, "the linear in front has another reader");
            return Ok(vec![]);
        }
        let scales = affine.scale.iter().any(|scale| *scale != 1.0);
        let Some(mut b) = rewrite::const_f64(graph, linear.b)? else { return Ok(vec![]) };
        if self.exact_only && (scales || b.iter().any(|b| *b != 0.0)) {
            return Ok(vec![]);
        }
        // Layers that share their parameters and are followed by the same numbers go on sharing them.
        let bits = |all: &[f64]| all.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
        let of_w = (linear.w, bits(&affine.scale));
        let of_b = (linear.b, bits(&affine.scale), bits(&affine.shift));
        let shared_w = if scales { known.weights.get(&of_w).copied() } else { Some(linear.w) };
        if let (Some(w), Some(&b)) = (shared_w, known.biases.get(&of_b)) {
            graph.rewire(linear.id, 1, w);
            graph.rewire(linear.id, 2, b);
            rewrite::take_over(graph, id, y);
            return Ok(vec![id, linear.w.node, linear.b.node]);
        }
        for ((b, scale), shift) in b.iter_mut().zip(&affine.scale).zip(&affine.shift) {
            *b = *b * scale + shift;
        }
        // Large weights are read only if they change.
        let mut w = if scales { linear.parameters(graph)?.0 } else { Vec::new() };
        for row in w.chunks_exact_mut(linear.n.max(1)) {
            row.iter_mut().zip(&affine.scale).for_each(|(w, scale)| *w *= scale);
        }
        if !w.iter().chain(&b).all(|x| (*x as f32).is_finite()) {
            cx.declined(graph, id, "the merged parameters are not finite");
            return Ok(vec![]);
        }
        let mut old = vec![id, linear.b.node];
        if scales {
            old.extend(linear.set_parameters(graph, &w, &b));
        } else {
            linear.set_bias(graph, &b);
        }
        if let [_, w, b] = graph.operands(linear.id)[..] {
            known.weights.insert(of_w, w);
            known.biases.insert(of_b, b);
        }
        rewrite::take_over(graph, id, y);
        Ok(old)
    }
}
