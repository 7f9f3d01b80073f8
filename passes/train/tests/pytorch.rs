//! Losses and gradients against stored values of PyTorch, which
//! `fixtures/scripts/make_gradients.py` made.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, path::Path};

use qail_ir::{Graph, TensorType, interp::Tensor, text, verify};
use qail_train::{Distance, Head, LossSpec, Weighting, attach, differentiate};
use serde_json::Value;

use support::{run, value, with_loss};

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/pytorch/gradients.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(x: &Value) -> Vec<f32> {
    x.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn tensors(x: &Value) -> BTreeMap<String, Tensor> {
    let tensor = |x: &Value| {
        let shape: Vec<usize> = x["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        Tensor::f32(shape, floats(&x["elements"]))
    };
    x.as_object().unwrap().iter().map(|(name, x)| (name.clone(), tensor(x))).collect()
}

/// Both sides compute in `f32`, in their own order: at most about 30 roundings
/// of terms that are at most `scale`, and 2^-23 each.
fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(1.0f32, |scale, x| scale.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= 30.0 * f32::EPSILON * scale, "{what}, element {i}: {a}, PyTorch {b}");
    }
}

#[test]
fn gradients_of_every_operation_are_those_of_pytorch() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 102, "{}", cases.len());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let mut graph = text::parse(case["graph"].as_str().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let loss = with_loss(&mut graph, &floats(&case["c"]["elements"]));
        graph.add_output("loss", loss);
        let gradients = case["gradients"].as_object().unwrap();
        let wrt: Vec<_> = gradients.keys().map(|input| value(&graph, input)).collect();
        let joint = differentiate(&graph, loss, &wrt).unwrap_or_else(|error| panic!("{name}: {error}"));
        verify(&joint.graph).unwrap();
        let results = run(&joint.graph, &tensors(&case["inputs"]));
        assert_close(&format!("{name}: loss"), &results["loss"], &[case["loss"].as_f64().unwrap() as f32]);
        for (input, gradient) in gradients {
            assert_close(&format!("{name}: {input}"), &results[&format!("grad.{input}")], &floats(gradient));
        }
    }
}

fn gaussian() -> Head {
    Head::Gaussian { mean: "mean".to_owned(), log_std: "log_std".to_owned() }
}

/// The spec that a stored loss is of.
fn spec(name: &str) -> LossSpec {
    let (mean, huber) = (Head::Deterministic { output: "mean".to_owned() }, Distance::Huber { delta: 0.7 });
    let none = Weighting::None;
    match name {
        "qail_l1" => LossSpec { head: mean, qail: Some(Distance::L1), qbc: None, weighting: none, masked: None },
        "qail_l2" => LossSpec { head: gaussian(), qail: Some(Distance::L2), qbc: None, weighting: none, masked: None },
        "qail_huber" => LossSpec { head: mean, qail: Some(huber), qbc: None, weighting: none, masked: None },
        "qail_nll" => {
            LossSpec { head: gaussian(), qail: Some(Distance::Nll), qbc: None, weighting: none, masked: None }
        }
        "qbc_kl" => {
            LossSpec { head: gaussian(), qail: None, qbc: Some((1.0, Distance::Kl)), weighting: none, masked: None }
        }
        "qbc_l2" => {
            LossSpec { head: gaussian(), qail: None, qbc: Some((1.0, Distance::L2)), weighting: none, masked: None }
        }
        "qail_nll_qbc_kl_weighted" => LossSpec {
            head: gaussian(),
            qail: Some(Distance::Nll),
            qbc: Some((0.7, Distance::Kl)),
            weighting: Weighting::Qbc,
            masked: None,
        },
        "qail_l2_all_weighted" => {
            LossSpec { head: mean, qail: Some(Distance::L2), qbc: None, weighting: Weighting::All, masked: None }
        }
        other => panic!("no spec for {other}"),
    }
}

#[test]
fn losses_are_those_of_pytorch() {
    let golden = golden();
    let all = tensors(&golden["loss_inputs"]);
    for case in golden["losses"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut graph = Graph::new("policy");
        for output in ["mean", "log_std"] {
            let input = graph.add_input(output, TensorType::f32([5, 3]));
            graph.add_output(output, input);
        }
        graph.batch_axis = Some(0);
        let values = attach(&mut graph, &spec(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        verify(&graph).unwrap();
        let by_log_std = floats(&case["log_std"]);
        let mut wrt = vec!["mean"];
        wrt.extend(by_log_std.iter().any(|&g| g != 0.0).then_some("log_std"));
        let values_of = wrt.iter().map(|name| value(&graph, name)).collect::<Vec<_>>();
        let joint = differentiate(&graph, values.total, &values_of).unwrap();
        let known: Vec<&str> = joint.graph.inputs().iter().map(|&id| joint.graph.node(id).name.as_str()).collect();
        let inputs = all.iter().filter(|(name, _)| known.contains(&name.as_str()));
        let results = run(&joint.graph, &inputs.map(|(name, x)| (name.clone(), x.clone())).collect());
        assert_close(&format!("{name}: loss"), &results["loss"], &[case["loss"].as_f64().unwrap() as f32]);
        for input in wrt {
            assert_close(&format!("{name}: {input}"), &results[&format!("grad.{input}")], &floats(&case[input]));
        }
    }
}
