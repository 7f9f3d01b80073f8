//! Samples a second of the interpreter on a locomotion policy (17-256-256-6),
//! in floats and in codes: `cargo run -p qail-ir --example interp_speed`.

use std::{collections::BTreeMap, time::Instant};

use qail_ir::{
    interp::{Interpreter, Tensor},
    text,
};

const FLOAT: &str = "graph @float(%obs: f32[1, 17]) -> (%act) {
    %w0 = const rand(1) : f32[17, 256]  %b0 = const rand(2) : f32[256]
    %w1 = const rand(3) : f32[256, 256] %b1 = const rand(4) : f32[256]
    %w2 = const rand(5) : f32[256, 6]   %b2 = const rand(6) : f32[6]
    %s = const splat(0.01) : f32[256]
    %w1.q = fake_quant %w1, %s {s4, lo = -7, axis = 1} : f32[256, 256]
    %h0 = linear %obs, %w0, %b0 {act = relu} : f32[1, 256]
    %h1 = linear %h0, %w1.q, %b1 {act = relu} : f32[1, 256]
    %h2 = linear %h1, %w2, %b2 : f32[1, 6]
    %act = tanh %h2 : f32[1, 6]
}";

const CODES: &str = "graph @codes(%obs: f32[1, 17]) -> (%act) {
    %w0 = const rand(1) : qs8[17, 256]  %b0 = const rand(2) : i32[256]
    %w1 = const rand(3) : qs4[256, 256] %b1 = const rand(4) : i32[256]
    %w2 = const rand(5) : qs8[256, 6]   %b2 = const rand(6) : i32[6]
    %r = const splat(1024.0) : f32[17]  %s = const splat(1e-4) : f64[6]
    %m = const splat(40001) : i32[256]  %s0 = const splat(30) : i32[256]  %s1 = const splat(21) : i32[256]
    %q0 = quantize %obs, %r {lo = -32639, hi = 32639} : qs16[1, 17]
    %a0 = qlinear %q0, %w0, %b0 : i32[1, 256]
    %q1 = requantize %a0, %m, %s0 {lo = 0} : qs4[1, 256]
    %a1 = qlinear %q1, %w1, %b1 : i32[1, 256]
    %q2 = requantize %a1, %m, %s1 {lo = 0} : qs8[1, 256]
    %a2 = qlinear %q2, %w2, %b2 : i32[1, 6]
    %h2 = dequantize %a2, %s : f32[1, 6]
    %act = tanh %h2 : f32[1, 6]
}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for text in [FLOAT, CODES] {
        let graph = text::parse(text)?;
        let interpreter = Interpreter::new(&graph)?;
        let n_samples = 5_000u32;
        let start = Instant::now();
        let mut sum = 0.0;
        for i in 0..n_samples {
            let obs: Vec<f32> = (0..17u32).map(|k| ((i * 31 + k * 7) % 97) as f32 / 50.0 - 1.0).collect();
            let outputs = interpreter.run(&BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 17], obs))]))?;
            sum += outputs.values().flat_map(Tensor::to_f64).sum::<f64>();
        }
        let rate = f64::from(n_samples) / start.elapsed().as_secs_f64();
        println!("{}: {rate:.0} samples/s (sum of actions {sum:.6})", graph.name);
    }
    Ok(())
}
