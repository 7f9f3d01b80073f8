//! Time of one training step: forward, backward and Adam of the perceptron
//! 17-256-256-6 with 4-bit weights and activations, on one batch of 256 states;
//! or with the argument `cnn`, of a small convolutional policy on 64 images.
//!
//! Reads a number of steps from each line of its input and prints their times in
//! milliseconds on one line: `fixtures/bench/train_step.py` takes turns with
//! PyTorch. Without input it takes 200 steps and prints the median.

// A tool beside the library: it may fail loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/cnn.rs"]
mod cnn;
#[path = "../tests/support/joint.rs"]
mod joint;

use std::{io::BufRead, time::Instant};

use qail_ir::{Graph, ValueId};
use qail_train::{CpuExecutor, CpuOptions, TrainExecutor};

/// A constant that trains.
struct Parameter {
    constant: ValueId,
    gradient: ValueId,
    w: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

fn parameters(graph: &Graph) -> Vec<Parameter> {
    let one = |output: &qail_ir::Output| {
        let name = output.name.strip_prefix("grad.")?;
        let constant = graph.nodes().find(|id| graph.node(*id).name == name)?.value();
        let mut w = graph.const_of(constant)?.all_f32().ok()?;
        let weight = graph.nodes().find(|id| graph.node(*id).name == name.trim_end_matches('s'))?.value();
        if name.starts_with('w') {
            let fan_in = graph.ty(weight).shape[0] as f32;
            w.iter_mut().for_each(|w| {
                *w = if name.ends_with('s') { 0.371 / fan_in.sqrt() } else { *w * (3.0 / fan_in).sqrt() }
            });
        }
        let zeros = vec![0.0; w.len()];
        Some(Parameter { constant, gradient: output.value, w, m: zeros.clone(), v: zeros })
    };
    graph.outputs.iter().filter_map(one).collect()
}

fn adam(parameter: &mut Parameter, gradient: &[f32], step: i32) {
    let (c1, c2) = (1.0 / (1.0 - 0.9f32.powi(step)), 1.0 / (1.0 - 0.999f32.powi(step)));
    let Parameter { w, m, v, .. } = parameter;
    pulp::Arch::new().dispatch(|| {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(gradient) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *w -= 1e-4 * (*m * c1) / ((*v * c2).sqrt() + 1e-8);
        }
    });
}

fn main() {
    let cnn = cnn::Cnn { batch: 64, image: [3, 48, 48], channels: [16, 32], stride: 2, actions: 6 };
    let graph = match std::env::args().nth(1).as_deref() {
        Some("cnn") => cnn.joint(),
        _ => joint::joint(256, &[17, 256, 256, 6], "relu", 4),
    };
    let mut parameters = parameters(&graph);
    let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep: Vec::new() }).unwrap();
    for parameter in &parameters {
        executor.set(parameter.constant, &parameter.w).unwrap();
    }
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 20_011) as f32 / 10_005.0 - 1.0;
    let input = |&id: &qail_ir::NodeId| {
        let n = graph.ty(id.value()).n_elements();
        (graph.node(id).name.clone(), (0..n).map(|i| 1.5 * number(i)).collect::<Vec<f32>>())
    };
    let inputs: Vec<(String, Vec<f32>)> = graph.inputs().iter().map(input).collect();
    let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_slice())).collect();
    let loss = graph.outputs.iter().find(|output| output.name == "loss").unwrap().value;
    let mut n_steps = 0;
    let mut step = || {
        let start = Instant::now();
        n_steps += 1;
        executor.run(&inputs).unwrap();
        for parameter in &mut parameters {
            let gradient = executor.read(parameter.gradient).unwrap();
            adam(parameter, gradient, n_steps);
            executor.set(parameter.constant, &parameter.w).unwrap();
        }
        let ms = start.elapsed().as_secs_f64() * 1e3;
        (ms, executor.read(loss).unwrap()[0])
    };
    let mut lines = 0;
    for line in std::io::stdin().lock().lines() {
        lines += 1;
        let n: usize = line.unwrap().trim().parse().expect("a number of steps");
        let times: Vec<String> = (0..n).map(|_| format!("{:.4}", step().0)).collect();
        println!("{}", times.join(" "));
    }
    if lines == 0 {
        let first = step().1;
        let mut times: Vec<f64> = (0..200).map(|_| step().0).collect();
        times.sort_by(f64::total_cmp);
        println!("median {:.3} ms, least {:.3} ms; loss {first:.4} -> {:.4}", times[100], times[0], step().1);
    }
}
