//! Latency of `Session::run` for seeded multilayer perceptrons, one thread.
//!
//! ```text
//! cargo run --release -p qail-runtime --no-default-features --example latency -- [--json] [--runs N] [DEVICE]
//! ```
//! Prints the median, the percentiles that a control loop cares about and the
//! largest value, in microseconds. The observation changes from run to run.

#![allow(clippy::unwrap_used)]

#[path = "../artifact/tests/common/mod.rs"]
mod common;

use std::{hint::black_box, time::Instant};

use common::{Mlp, Precision};
use qail_runtime::{DeviceSpec, Session, TensorView, TensorViewMut};

const WARM_UP: usize = 2_000;
const SHAPES: [(&str, &[usize]); 2] = [("mlp17", &[17, 256, 256, 6]), ("mlp376", &[376, 256, 256, 17])];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut json, mut n_runs, mut device) = (false, 50_000, DeviceSpec::Cpu(None));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--runs" => n_runs = args.next().ok_or("--runs needs a number")?.parse()?,
            name => device = name.parse()?,
        }
    }
    if !json {
        println!("model   precision device          p50     p90     p99   p99.9     max  us");
    }
    use Precision::{F32, W4A4, W4A8, W4A16, W8A8, W8A16};
    for (name, dims) in SHAPES {
        for precision in [W8A8, W4A8, W4A4, F32, W8A16, W4A16] {
            let mlp = Mlp::new(dims, 1, precision, 7);
            let mut session = Session::load(mlp.file.clone(), device)?;
            let times = measure(&mlp, &mut session, n_runs)?;
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
            let figures = [at(0.5), at(0.9), at(0.99), at(0.999), at(1.0)];
            let precision = format!("{precision:?}").to_lowercase();
            let [p50, p90, p99, p999, max] = figures;
            let device = session.device_name();
            if json {
                println!(
                    "{{\"model\":\"{name}\",\"precision\":\"{precision}\",\"device\":\"{device}\",\"runs\":{n_runs},\
                     \"p50_us\":{p50},\"p90_us\":{p90},\"p99_us\":{p99},\"p999_us\":{p999},\"max_us\":{max}}}"
                );
            } else {
                println!("{name:<7} {precision:<9} {device:<12}{p50:7.2} {p90:7.2} {p99:7.2} {p999:7.2} {max:7.1}");
            }
        }
    }
    Ok(())
}

/// Sorted times of single runs in microseconds.
fn measure(mlp: &Mlp, session: &mut Session, n_runs: usize) -> Result<Vec<f64>, qail_runtime::RunError> {
    let observations: Vec<Vec<f32>> = (0..16).map(|seed| mlp.observations(seed)).collect();
    let mut actions = vec![0.0; mlp.exit_scale.len()];
    let mut times = Vec::with_capacity(n_runs);
    for turn in 0..WARM_UP + n_runs {
        let observation = &observations[turn % observations.len()];
        let start = Instant::now();
        session.run(&[TensorView::F32(black_box(observation))], &mut [TensorViewMut::F32(&mut actions)])?;
        let elapsed = start.elapsed();
        black_box(&actions);
        if turn >= WARM_UP {
            times.push(elapsed.as_nanos() as f64 / 1000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
