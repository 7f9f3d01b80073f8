//! `fold-constants`: computes what depends on constants alone.
//!
//! The reference interpreter does it, so the numbers are those of the graph.
//! A result may have at most `limit` elements, or as many as its operands: a
//! transposed weight folds whatever its size, a constant expanded to a large
//! tensor does not. Quantizers stay: folding them would hide the codes. Exact.

use std::collections::BTreeMap;

use qail_ir::{Graph, NodeId, Op, Origin, ValueId, interp};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct FoldConstants {
    /// Largest number of elements of a result that is larger than its operands.
    pub limit: usize,
}

impl Default for FoldConstants {
    fn default() -> Self {
        Self { limit: 1 << 16 }
    }
}

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn summary(&self) -> &'static str {
        "computes what depends on constants alone"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        let mut known: BTreeMap<(String, Vec<ValueId>), ValueId> = BTreeMap::new();
        for id in graph.topo() {
            if !is_foldable(&graph.node(id).op) {
                continue;
            }
            let operands = graph.operands(id);
            if operands.is_empty() || operands.iter().any(|&value| graph.const_of(value).is_none()) {
                continue;
            }
            let n_operands: usize = operands.iter().map(|&value| graph.ty(value).n_elements()).sum();
            if graph.ty(id.value()).n_elements() > self.limit.max(n_operands) {
                cx.declined(graph, id, "the result is larger than its operands and than the limit");
                continue;
            }
            // What was computed from the same constants once stays one constant: shared weights
            // stay shared.
            let what = (format!("{:?}", graph.node(id).op), operands);
            match known.get(&what) {
                Some(&result) => {
                    let origin = graph.node(id).origin.clone();
                    graph.merge_origin(result.node, &origin);
                    graph.replace_uses(id.value(), result);
                }
                None => drop(known.insert(what, fold(graph, id)?)),
            }
            dead.push(id);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

fn is_foldable(op: &Op) -> bool {
    match op {
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
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Gather(_)
        | Op::Scatter(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Unfold(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_) => true,
        Op::Input(_)
        | Op::Const(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_)
        | Op::Grad(_) => false,
    }
}

/// Runs a node that reads constants alone, and puts its result in its place.
pub(crate) fn fold(graph: &mut Graph, id: NodeId) -> Result<ValueId, PassError> {
    let node = graph.node(id).clone();
    let mut alone = Graph::new("constant");
    let mut operands = Vec::new();
    for value in graph.operands(id) {
        if let Some(constant) = graph.const_of(value) {
            let name = graph.node(value.node).name.clone();
            operands.push(alone.add_const(name, constant.as_ref().clone(), Origin::default()));
        }
    }
    let result = rewrite::add(&mut alone, &node.name, node.op, &operands, Origin::default())?;
    alone.add_output("result", result);
    let error = |error| PassError::Interp(Box::new(error));
    let results = interp::run(&alone, &BTreeMap::new()).map_err(error)?;
    let internal = || PassError::Internal { node: node.name.clone(), invariant: "a folded node has a constant result" };
    let tensor = results.into_values().next().ok_or_else(internal)?;
    let constant = tensor.to_constant().map_err(|_| internal())?;
    let new = graph.add_const(node.name.clone(), constant, node.origin.clone());
    rewrite::take_over(graph, id, new);
    Ok(new)
}
