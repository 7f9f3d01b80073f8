//! Times one artifact for `fixtures/bench/latency.py`.
//!
//! `latency_worker ARTIFACT STATES.npz KEY [DEVICE]` loads, says `ready`, and
//! answers each line `run SECONDS` with the median of single steps as JSON.

use std::{
    error::Error,
    io::BufRead,
    path::Path,
    time::{Duration, Instant},
};

use qail_runtime::{Session, TensorView, TensorViewMut};
use qailc::data::Npz;

/// States to take turns with.
const N_STATES: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [artifact, states, key, device @ ..] = &args[..] else {
        return Err("usage: latency_worker ARTIFACT STATES.npz KEY [DEVICE]".into());
    };
    let device = device.first().map_or("cpu", String::as_str).parse()?;
    let mut session = Session::open(artifact, device)?;
    let width = session.inputs().first().ok_or("the model has no input")?.elements();
    let mut rows = Npz::open(Path::new(states))?.rows(key)?;
    let mut x = Vec::new();
    rows.next_f32(N_STATES, &mut x)?;
    let states: Vec<&[f32]> = x.chunks_exact(width).collect();
    let mut action = vec![0.0; session.outputs().first().ok_or("the model has no output")?.elements()];
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some(seconds) = line.strip_prefix("run ") else { break };
        let (end, mut times) = (Instant::now() + Duration::from_secs_f64(seconds.parse()?), Vec::new());
        for state in states.iter().cycle() {
            let start = Instant::now();
            if start >= end {
                break;
            }
            session.run(&[TensorView::F32(state)], &mut [TensorViewMut::F32(&mut action)])?;
            times.push(start.elapsed().as_nanos());
        }
        times.sort_unstable();
        println!("{{\"ns\": {}, \"n\": {}}}", times.get(times.len() / 2).copied().unwrap_or(0), times.len());
    }
    Ok(())
}
