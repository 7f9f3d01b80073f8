//! Whether the batch axis of an export can be left open.

use qail_ir::{Graph, NodeId, Op, ValueId};

/// True if axis 0 of every computed value counts samples and no operation mixes
/// them or depends on how many there are.
pub(super) fn is_open(graph: &Graph) -> bool {
    let Some(batch) = graph.inputs().first().and_then(|input| graph.ty(input.value()).shape.first()) else {
        return false;
    };
    graph.batch_axis == Some(0)
        && graph.outputs.iter().all(|output| graph.const_of(output.value).is_none())
        && graph.topo().into_iter().all(|id| by_rows(graph, id, *batch))
}

fn by_rows(graph: &Graph, id: NodeId, batch: usize) -> bool {
    if matches!(graph.node(id).op, Op::Const(_)) {
        return true;
    }
    let shape = &graph.ty(id.value()).shape;
    if shape.first() != Some(&batch) {
        return false;
    }
    let operands = graph.operands(id);
    let rank_of = |slot: usize| operands.get(slot).map_or(0, |&value| graph.ty(value).shape.len());
    match &graph.node(id).op {
        Op::Const(_)
        | Op::Input(_)
        | Op::Unary(_)
        | Op::Cast(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::Dequantize(_) => true,
        Op::Binary(_) | Op::Compare(_) | Op::Where(_) | Op::Attention(_) | Op::Rope(_) | Op::Film(_) => {
            operands.iter().all(|&value| broadcasts_over_rows(graph, value, shape.len()))
        }
        Op::QAdd(_) => operands.iter().take(2).all(|&value| broadcasts_over_rows(graph, value, shape.len())),
        // The leading axes of both operands are batch axes from rank 3 on.
        Op::MatMul(_) => rank_of(0) > 2 && rank_of(1) == rank_of(0),
        Op::Linear(_) | Op::QLinear(_) | Op::LinearWq(_) => rank_of(0) >= 2,
        Op::Reshape(_) | Op::Expand(_) => rank_of(0) > 0 && first_extent(graph, &operands) == Some(batch),
        Op::Transpose(transpose) => transpose.perm.first() == Some(&0),
        Op::Slice(slice) => {
            slice.axes.first().is_some_and(|axis| axis.start == 0 && axis.step == 1 && axis.len == batch)
                && first_extent(graph, &operands) == Some(batch)
        }
        Op::Concat(concat) => concat.axis != 0 && operands.iter().all(|&value| graph.const_of(value).is_none()),
        Op::Reduce(reduce) => !reduce.axes.contains(&0),
        // The index is the same for every row.
        Op::Gather(gather) => gather.axis != 0 && operands.get(1).is_some_and(|&index| graph.const_of(index).is_some()),
        Op::ArgReduce(reduce) => reduce.axis != 0,
        Op::TopK(top_k) => top_k.axis != 0,
        Op::CumSum(sum) => sum.axis != 0,
        Op::Softmax(softmax) => softmax.axis != 0,
        Op::Normalize(normalize) => !normalize.axes.contains(&0),
        Op::QSum(sum) => !sum.axes.contains(&0),
        Op::Unfold(unfold) => unfold.windows.first() == Some(&qail_ir::Window::identity(batch)),
        // Rows are named by number; gradients are not written.
        Op::Scatter(_) | Op::Grad(_) => false,
    }
}

fn first_extent(graph: &Graph, operands: &[ValueId]) -> Option<usize> {
    operands.first().and_then(|&value| graph.ty(value).shape.first().copied())
}

/// A constant has no batch axis or one of extent 1; a computed value has it in front.
fn broadcasts_over_rows(graph: &Graph, value: ValueId, rank: usize) -> bool {
    let shape = &graph.ty(value).shape;
    match graph.const_of(value) {
        Some(_) => shape.len() < rank || shape.first() == Some(&1),
        None => shape.len() == rank,
    }
}
