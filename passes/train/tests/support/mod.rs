//! Shared by the tests of gradients.
// Each test crate uses a part of them.
#![allow(dead_code)]

use std::collections::BTreeMap;

use qail_ir::{
    Binary, BinaryFn, Constant, Graph, Op, Origin, Reduce, ReduceFn, ValueId,
    interp::{self, Tensor},
};

/// Adds `loss = sum(y * c)` of the first output.
pub(crate) fn with_loss(graph: &mut Graph, c: &[f32]) -> ValueId {
    let y = graph.outputs[0].value;
    let shape = graph.ty(y).shape.clone();
    let axes = (0..shape.len()).collect();
    let c = graph.add_const("c", Constant::f32(shape, c), Origin::default());
    let mut add =
        |name: &str, op: Op, operands: &[ValueId]| graph.add(name, op, operands, Origin::default()).unwrap().value();
    let weighted = add("weighted", Op::Binary(Binary { f: BinaryFn::Mul }), &[y, c]);
    add("loss", Op::Reduce(Reduce { f: ReduceFn::Sum, axes, keep_dims: false }), &[weighted])
}

/// The value of a node by its name.
pub(crate) fn value(graph: &Graph, name: &str) -> ValueId {
    graph.nodes().find(|&id| graph.node(id).name == name).unwrap().value()
}

/// Runs a graph on floats.
pub(crate) fn run(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f32>> {
    let outputs = interp::run(graph, inputs).unwrap();
    outputs.into_iter().map(|(name, x)| (name, x.as_f32().unwrap().to_vec())).collect()
}
