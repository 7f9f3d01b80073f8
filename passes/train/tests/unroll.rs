//! Windows of recurrent policies: steps joined to one graph, against the steps
//! themselves and against PyTorch.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, path::Path};

use qail_ir::{
    Concat, Graph, Op, Origin,
    interp::{self, Tensor},
    text, verify,
};
use qail_passes::rebatch::rebatch;
use qail_train::{State, differentiate, unroll};
use serde_json::Value;

use support::{run, value, with_loss};

fn state(input: &str, output: &str) -> State {
    State { input: input.to_owned(), output: output.to_owned() }
}

const STEP: &str = "graph @policy(%obs: f32[1, 2], %h: f32[1, 3]) -> (action = %a, h_next = %n, spread = %s) {
    %w = const rand(1) : f32[2, 3]
    %ws = const splat(0.013) : f32[3]
    %wq = fake_quant %w, %ws {s8, lo = -127, axis = 1} : f32[2, 3]
    %b = const rand(2) : f32[3]
    %u = const rand(3) : f32[3, 3]
    %v = const rand(4) : f32[3, 1]
    %c = const rand(5) : f32[1]
    %s = const rand(6) : f32[1, 1]
    %l = linear %obs, %wq, %b : f32[1, 3]
    %m = linear %h, %u, %b : f32[1, 3]
    %p = add %l, %m : f32[1, 3]
    %n = tanh %p : f32[1, 3]
    %a = linear %n, %v, %c : f32[1, 1]
}";

fn step_graph() -> Graph {
    let mut graph = text::parse(STEP).unwrap();
    graph.batch_axis = Some(0);
    graph
}

#[test]
fn a_window_is_its_steps_to_the_last_bit() {
    let graph = step_graph();
    let window = unroll(&graph, &[state("h", "h_next")], 4).unwrap();
    verify(&window).unwrap();
    let obs: Vec<f32> = (0..8).map(|i| i as f32 * 0.3 - 1.0).collect();
    let mut h = Tensor::f32([1, 3], vec![0.1, -0.4, 0.7]);
    let inputs = BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 4, 2], obs.clone())), ("h".to_owned(), h.clone())]);
    let outputs = interp::run(&window, &inputs).unwrap();
    let mut actions = Vec::new();
    for obs in obs.chunks(2) {
        let inputs = BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 2], obs.to_vec())), ("h".to_owned(), h)]);
        let step = interp::run(&graph, &inputs).unwrap();
        actions.extend_from_slice(step["action"].as_f32().unwrap());
        h = step["h_next"].clone();
    }
    assert_eq!(outputs["action"], Tensor::f32([1, 4, 1], actions));
    assert_eq!(outputs["h_next"], h);
    assert_eq!(outputs["spread"].ty.shape, [1, 4, 1]);
    // Weights and their quantizers are there once.
    assert_eq!(window.nodes().filter(|&id| matches!(window.node(id).op, Op::FakeQuant(_))).count(), 1);
    assert_eq!(window.nodes().filter(|&id| matches!(window.node(id).op, Op::Linear(_))).count(), 12);
}

#[test]
fn a_window_takes_a_batch() {
    let window = unroll(&step_graph(), &[state("h", "h_next")], 3).unwrap();
    let mut batched = window.clone();
    rebatch(&mut batched, 2).unwrap();
    let numbers =
        |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) % 11) as f32 * 0.2 - 1.0).collect::<Vec<f32>>();
    let (obs, h) = (numbers(12, 1), numbers(6, 2));
    let both = run(
        &batched,
        &BTreeMap::from([
            ("obs".to_owned(), Tensor::f32([2, 3, 2], obs.clone())),
            ("h".to_owned(), Tensor::f32([2, 3], h.clone())),
        ]),
    );
    let mut one_by_one = Vec::new();
    for (obs, h) in obs.chunks(6).zip(h.chunks(3)) {
        let inputs = BTreeMap::from([
            ("obs".to_owned(), Tensor::f32([1, 3, 2], obs.to_vec())),
            ("h".to_owned(), Tensor::f32([1, 3], h.to_vec())),
        ]);
        one_by_one.extend_from_slice(&run(&window, &inputs)["action"]);
    }
    assert_eq!(both["action"], one_by_one);
}

/// `x[rows, columns]` transposed.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| x.iter().skip(j).step_by(columns).copied()).collect()
}

#[test]
fn gradients_through_time_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/pytorch/gradients.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == "lstm").unwrap();
    let floats = |x: &Value| x.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<f32>>();
    let input = |name: &str| floats(&case["inputs"][name]["elements"]);
    let list = |x: &[f32]| x.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", ");
    let (wi, wh) = (transposed(&input("wi"), 3), transposed(&input("wh"), 4));
    let gate = |name: &str, f: &str, at: usize| {
        format!(
            "%{name}_ = slice %g {{start = [0, {at}], len = [2, 4]}} : f32[2, 4] %{name} = {f} %{name}_ : f32[2, 4]\n"
        )
    };
    let text = format!(
        "graph @lstm(%x: f32[2, 3], %h: f32[2, 4], %c: f32[2, 4]) -> (h_next = %hn, c_next = %cn) {{
        %wi = const [{}] : f32[3, 16] %wh = const [{}] : f32[4, 16]
        %bi = const [{}] : f32[16] %bh = const [{}] : f32[16]
        %i = linear %x, %wi, %bi : f32[2, 16] %hh = linear %h, %wh, %bh : f32[2, 16] %g = add %i, %hh : f32[2, 16]
        {}{}{}{}
        %k = mul %f, %c : f32[2, 4] %j = mul %a, %n : f32[2, 4] %cn = add %k, %j : f32[2, 4]
        %s = tanh %cn : f32[2, 4] %hn = mul %o, %s : f32[2, 4] }}",
        list(&wi),
        list(&wh),
        list(&input("bi")),
        list(&input("bh")),
        gate("a", "sigmoid", 0),
        gate("f", "sigmoid", 4),
        gate("n", "tanh", 8),
        gate("o", "sigmoid", 12),
    );
    let step = text::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    // No batch axis: time comes first, as in the stored case.
    let mut window = unroll(&step, &[state("h", "h_next"), state("c", "c_next")], 3).unwrap();
    let ends: Vec<_> = window.outputs.iter().map(|output| output.value).collect();
    let y = window.add("y", Op::Concat(Concat { axis: 1 }), &ends, Origin::default()).unwrap().value();
    window.outputs.clear();
    window.add_output("y", y);
    let loss = with_loss(&mut window, &floats(&case["c"]["elements"]));
    let names = ["x", "h", "c", "wi", "wh", "bi", "bh"];
    let wrt: Vec<_> = names.iter().map(|name| value(&window, name)).collect();
    let joint = differentiate(&window, loss, &wrt).unwrap();
    let inputs = BTreeMap::from([
        ("x".to_owned(), Tensor::f32([3, 2, 3], input("x"))),
        ("h".to_owned(), Tensor::f32([2, 4], input("h"))),
        ("c".to_owned(), Tensor::f32([2, 4], input("c"))),
    ]);
    let results = run(&joint.graph, &inputs);
    for name in names {
        let theirs = floats(&case["gradients"][name]);
        let ours = &results[&format!("grad.{name}")];
        let ours = if name.starts_with('w') { transposed(ours, 16) } else { ours.clone() };
        let scale = theirs.iter().fold(1.0f32, |scale, x| scale.max(x.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 30.0 * f32::EPSILON * scale, "{name}: {a}, PyTorch {b}");
        }
        assert_eq!(ours.len(), theirs.len());
    }
}

#[test]
fn what_cannot_be_unrolled_is_named() {
    let graph = step_graph();
    let error = |states: &[State], steps: usize| unroll(&graph, states, steps).unwrap_err().to_string();
    assert_eq!(error(&[], 0), "cannot unroll 0 steps: a window has 1 to 1024");
    assert_eq!(error(&[state("c", "h_next")], 2), "there is no input `c`; the graph takes `obs`, `h`");
    assert_eq!(error(&[state("h", "hn")], 2), "there is no output `hn`; the graph gives `action`, `h_next`, `spread`");
    assert_eq!(
        error(&[state("h", "action")], 2),
        "state `h` is f32[1, 3], but `action` is f32[1, 1]: a state has one type"
    );
    assert_eq!(error(&[state("h", "h_next"), state("h", "h_next")], 2), "`h` belongs to two states");
}
