//! How many samples a pass may run through the interpreter.

use qail_ir::{Graph, Op};

/// Multiplications that a pass spends on samples: a minute or two of the scalar interpreter.
const WORK: u128 = 1 << 36;
/// Samples that are run whatever the model costs.
const AT_LEAST: usize = 16;

/// At most `limit` samples; fewer if the model is large, so that a pass ends in minutes. Depends on
/// the graph alone.
pub(crate) fn samples_within(graph: &Graph, limit: usize) -> usize {
    let affordable = usize::try_from(WORK / work(graph).max(1)).unwrap_or(usize::MAX);
    limit.max(1).min(affordable.max(AT_LEAST))
}

/// Multiplications and elements of one run.
fn work(graph: &Graph) -> u128 {
    let of_node = |id| {
        let n = graph.ty(qail_ir::NodeId::value(id)).n_elements() as u128;
        let operands = graph.operands(id);
        let last = |slot: usize| operands.get(slot).and_then(|&x| graph.ty(x).shape.last()).copied().unwrap_or(1);
        match &graph.node(id).op {
            Op::Const(_) | Op::Input(_) => 0,
            Op::Linear(_) | Op::MatMul(_) | Op::LinearWq(_) | Op::QLinear(_) => n * last(0) as u128,
            Op::Attention(_) => {
                let keys = operands.get(1).and_then(|&k| graph.ty(k).shape.get(2)).copied().unwrap_or(1);
                2 * n * keys as u128
            }
            _ => 8 * n,
        }
    };
    graph.topo().into_iter().map(of_node).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(rows: usize) -> Graph {
        let text = format!(
            "graph @g(%x: f32[{rows}, 1024]) -> (%y) {{ %w = const rand(1) : f32[1024, 1024]
             %b = const splat(0.0) : f32[1024] %y = linear %x, %w, %b : f32[{rows}, 1024] }}"
        );
        qail_ir::text::parse(&text).unwrap()
    }

    #[test]
    fn small_models_see_every_sample_and_large_ones_some() {
        assert_eq!(samples_within(&graph(1), 2048), 2048);
        assert_eq!(samples_within(&graph(1000), 2048), 65);
        assert_eq!(samples_within(&graph(1_000_000), 2048), 16);
    }
}
