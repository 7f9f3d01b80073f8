//! What the fuzz targets share: graphs that are small enough to run, and inputs
//! for them.

use std::collections::BTreeMap;

use qail_ir::{
    DType, Elem, Graph, Op,
    interp::{self, Data, Tensor},
};

/// Most elements of all values of a graph that is run. It bounds the work too:
/// the largest product of matrices inside it takes about 10^6 steps.
const MAX_ELEMENTS: usize = 20_000;
/// Most nodes of a graph that is run.
const MAX_NODES: usize = 500;

/// Runs a small graph on ones. Errors are answers; what must hold is that every
/// output fits its type.
pub fn run_if_small(graph: &Graph) {
    let order = graph.topo();
    let elements = |n: usize, id: &qail_ir::NodeId| {
        graph.node(*id).outputs.iter().fold(n, |n, ty| n.saturating_add(ty.n_elements()))
    };
    if order.len() > MAX_NODES || order.iter().fold(0, elements) > MAX_ELEMENTS {
        return;
    }
    let inputs: BTreeMap<String, Tensor> = graph
        .inputs()
        .iter()
        .map(|id| {
            let ty = graph.ty(id.value()).clone();
            let n = ty.n_elements();
            let data = match ty.elem {
                Elem::Plain(DType::F32) => Data::F32(vec![1.0; n]),
                Elem::Plain(DType::F64) => Data::F64(vec![1.0; n]),
                Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => Data::Int(vec![1; n]),
            };
            (graph.node(*id).name.clone(), Tensor { ty, data })
        })
        .collect();
    // Two inputs of one name cannot both be given.
    if inputs.len() != graph.inputs().len() {
        return;
    }
    if let Ok(outputs) = interp::run(graph, &inputs) {
        for (name, output) in outputs {
            output.check().unwrap_or_else(|error| panic!("output `{name}`: {error}"));
        }
    }
}

/// True if every constant can be printed in the text form itself.
pub fn constants_are_small(graph: &Graph) -> bool {
    let large = |id: &qail_ir::NodeId| {
        matches!(graph.node(*id).op, Op::Const(_)) && graph.ty(id.value()).n_elements() > MAX_ELEMENTS
    };
    !graph.topo().iter().any(large)
}
