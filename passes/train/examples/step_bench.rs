//! Time of one training step: forward, backward and Adam of the perceptron
//! 17-256-256-6 with 4-bit weights and activations, on one batch of 256 states.
//!
//! Reads a number of steps from each line of its input and prints their times in
//! milliseconds on one line: `fixtures/bench/train_step.py` takes turns with
//! PyTorch. Without input it takes 200 steps and prints the median.

// A tool beside the library: it may fail loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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
        if name.starts_with('w') && !name.ends_with('s') {
            let fan_in = graph.ty(constant).shape[0] as f32;
            w.iter_mut().for_each(|w| *w *= (3.0 / fan_in).sqrt());
        }
        if name.starts_with('w') && name.ends_with('s') {
            let k = if name == "w0s" { 17.0f32 } else { 256.0 };
            w.iter_mut().for_each(|w| *w = 0.371 / k.sqrt());
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
    let batch = 256;
    let graph = joint::joint(batch, &[17, 256, 256, 6], "relu", 4);
    let mut parameters = parameters(&graph);
    let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep: Vec::new() }).unwrap();
    for parameter in &parameters {
        executor.set(parameter.constant, &parameter.w).unwrap();
    }
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 20_011) as f32 / 10_005.0 - 1.0;
    let x: Vec<f32> = (0..batch * 17).map(|i| 1.5 * number(i)).collect();
    let t: Vec<f32> = (0..batch * 6).map(|i| number(i + 99_991)).collect();
    let loss = graph.outputs.iter().find(|output| output.name == "loss").unwrap().value;
    let mut n_steps = 0;
    let mut step = || {
        let start = Instant::now();
        n_steps += 1;
        executor.run(&[("x", &x), ("target.y", &t)]).unwrap();
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
