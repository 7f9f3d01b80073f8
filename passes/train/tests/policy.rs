//! From a prepared policy to gradients that make it better.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use qail_ir::{
    Constant, Graph, Op, ValueId,
    interp::{Interpreter, Tensor},
    text, verify,
};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, pipeline, rebatch::rebatch};
use qail_train::{Distance, Head, LossSpec, Weighting, attach, differentiate};

const POLICY: &str = "graph @policy(%obs: f32[1, 5]) -> (action = %act) {batch = 0} {
    %mean = const rand(9) : f32[5]
    %centered = sub %obs, %mean : f32[1, 5]
    %w0 = const rand(1) : f32[5, 12]
    %b0 = const rand(2) : f32[12]
    %h0 = linear %centered, %w0, %b0 : f32[1, 12]
    %a0 = relu %h0 : f32[1, 12]
    %w1 = const rand(3) : f32[12, 8]
    %b1 = const rand(4) : f32[8]
    %h1 = linear %a0, %w1, %b1 : f32[1, 8]
    %a1 = tanh %h1 : f32[1, 8]
    %w2 = const rand(5) : f32[8, 2]
    %b2 = const rand(6) : f32[2]
    %h2 = linear %a1, %w2, %b2 : f32[1, 2]
    %act = tanh %h2 : f32[1, 2]
}";

const N: usize = 16;

/// Numbers in [-1, 1).
fn numbers(shape: [usize; 2], seed: u64) -> Tensor {
    let constant = Constant { ty: qail_ir::TensorType::f32(shape), data: qail_ir::ConstData::Rand(seed) };
    Tensor::from_constant(&constant).unwrap()
}

/// Constants that train: weights, biases and steps.
fn parameters(graph: &Graph) -> Vec<ValueId> {
    let mut all: Vec<ValueId> = graph
        .topo()
        .into_iter()
        .filter(|&id| matches!(graph.node(id).op, Op::Linear(_) | Op::FakeQuant(_)))
        .flat_map(|id| graph.operands(id))
        .filter(|&value| graph.const_of(value).is_some_and(|constant| constant.ty.is_f32()))
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn gradients_lead_a_quantized_policy_towards_its_teacher() {
    let samples: Vec<BTreeMap<String, Tensor>> =
        (0..64).map(|seed| BTreeMap::from([("obs".to_owned(), numbers([1, 5], 100 + seed))])).collect();
    let mut graph = text::parse(POLICY).unwrap();
    let mut teacher = graph.clone();
    let options = PipelineOptions { trains: true, ..PipelineOptions::new(Precision::W4A4) };
    PassManager::new(pipeline::prepare(&options)).run(&mut graph, &mut PassContext::with_samples(&samples)).unwrap();
    rebatch(&mut graph, N).unwrap();
    rebatch(&mut teacher, N).unwrap();
    let obs = numbers([N, 5], 7);
    let actions = support::run(&teacher, &BTreeMap::from([("obs".to_owned(), obs.clone())]))["action"].clone();
    let actions = Tensor::f32([N, 2], actions);

    let spec = LossSpec {
        head: Head::Deterministic { output: "action".to_owned() },
        qail: Some(Distance::Huber { delta: 1.0 }),
        qbc: Some((1.0, Distance::L2)),
        weighting: Weighting::None,
        masked: None,
    };
    let loss = attach(&mut graph, &spec).unwrap();
    let wrt = parameters(&graph);
    assert!(wrt.len() >= 11, "{} parameters", wrt.len());
    let mut joint = differentiate(&graph, loss.total, &wrt).unwrap();
    verify(&joint.graph).unwrap();
    let inputs = BTreeMap::from([
        ("obs".to_owned(), obs),
        ("target.action".to_owned(), actions.clone()),
        ("teacher.action".to_owned(), actions),
    ]);
    let mut losses = Vec::new();
    for step in 0..60 {
        let results = Interpreter::new(&joint.graph).unwrap().run(&inputs).unwrap();
        losses.push(results["loss"].as_f32().unwrap()[0]);
        for &value in &wrt {
            let Op::Const(constant) = joint.graph.op(value).clone() else { panic!("a parameter is a constant") };
            let gradient = &results[&format!("grad.{}", joint.graph.node(value.node).name)];
            assert_eq!(gradient.ty, constant.ty);
            let gradient = gradient.as_f32().unwrap();
            let old = joint.graph.constant(constant.id).all_f32().unwrap();
            // Every parameter moves by a share of its own size: observations are
            // integers up to 2^15 here, and the weights that read them are small.
            let largest = |x: &[f32]| x.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
            let rate = 0.02 * 0.95f32.powi(step) * largest(&old) / largest(gradient);
            let new: Vec<f32> = old.iter().zip(gradient).map(|(x, g)| x - rate * g).collect();
            joint.graph.set_const(constant.id, Constant::f32(constant.ty.shape, &new)).unwrap();
        }
    }
    // A quantized loss jumps from step to step; its trend is what counts.
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let (first, last) = (losses[0], mean(&losses[50..]));
    assert!(first > 0.0 && last < first / 2.0, "{first} became {last}: {losses:?}");
}
