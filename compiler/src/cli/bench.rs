//! `qailc bench`: how long one action takes, and how long it may take.
//!
//! The clock runs around [`Session::run`] alone: no input is prepared and no
//! number is kept in between. With `--rate` the steps start at that rate, as in
//! a control loop: caches go cold and clocks go down in the pauses, which a
//! tight loop does not show.

use std::{
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use qail_runtime::{ArtifactBytes, DeviceSpec, RunError, Session, TensorView, TensorViewMut};

use super::{
    Exit, Failure, Terminal,
    args::Pair,
    run::{extents, room},
};
use crate::{
    data::{DataError, DemoMap, Demos},
    elements::Elements,
    eval::stats,
};

/// States to take turns with.
const N_STATES: usize = 256;
/// Steps before the clock counts.
const N_WARM_UP: usize = 50;

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The artifact.
    artifact: PathBuf,
    /// `cpu`, `cpu:avx2`, `gpu`, `vulkan:0`, `metal`: see `qailc devices`.
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Start steps at this rate instead of one behind the other, and count missed deadlines.
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// How long to run.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = parse_seconds)]
    seconds: f64,
    /// Stop after N steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// Observations to run on: an `.npz` file or a folder of `.npy` files. Default: seeded numbers.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Which array of the data is which input of the model.
    #[arg(long = "map", value_name = "INPUT=KEY")]
    map: Vec<Pair<String>>,
    /// Fail with code 6 if the 99th percentile is above this.
    #[arg(long, value_name = "MICROSECONDS", value_parser = parse_us)]
    max_p99: Option<f64>,
}

/// Steps a second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    hz: f64,
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let (number, factor) = match lower.strip_suffix("hz") {
            Some(rest) => rest.strip_suffix('k').map_or((rest, 1.0), |rest| (rest, 1000.0)),
            None => (lower.as_str(), 1.0),
        };
        let hz = number.trim().parse().ok().map(|x: f64| x * factor).filter(|hz| (0.01..=1e6).contains(hz));
        hz.map(|hz| Self { hz }).ok_or("expected a rate such as 50Hz or 1kHz")
    }
}

fn parse_seconds(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|s| (0.001..=86_400.0).contains(s)).ok_or("expected seconds, 0.001 to 86400")
}

fn parse_us(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|us: &f64| us.is_finite() && *us >= 0.0).ok_or("expected microseconds")
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let context = format!("cannot load `{}`", args.artifact.display());
    let bytes = ArtifactBytes::open(&args.artifact).map_err(|error| super::failure::of_runtime(&context, &error))?;
    let start = Instant::now();
    let mut session =
        Session::load(bytes, args.device).map_err(|error| super::failure::of_runtime(&context, &error))?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let states = States::new(args, &session)?;
    let mut rooms = session.outputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
    let times = measure(args, &mut session, &mut rooms, &states);
    let times = times.map_err(|error| super::failure::of_run("a step failed", &error))?;
    let report = Report::new(args, &session, times, load_ms);
    terminal.result(|| report.render(), || report.to_json(args));
    if report.n < 1000 {
        terminal.note(&format!("p99.9 of {} steps is one of the slowest ten: run longer", report.n));
    }
    match args.max_p99 {
        Some(max) if report.p99 > max => {
            let message = format!("p99 is {:.1} us on {}, and {max} us was asked for", report.p99, report.device);
            Err(Failure::plain(Exit::PerformanceGate, message))
        }
        _ => Ok(()),
    }
}

/// Inputs of the steps: states to take turns with.
struct States {
    states: Vec<Vec<Elements>>,
}

impl States {
    fn new(args: &Args, session: &Session) -> Result<Self, Failure> {
        let rooms = session.inputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
        let states = match &args.input {
            Some(path) => read(args, path, session, &rooms).map_err(|error| {
                let context = format!("cannot read observations from `{}`", path.display());
                Failure::new(Exit::InvalidInput, context, &error)
            })?,
            None => {
                let mut random = stats::Random::new(0);
                (0..N_STATES).map(|_| rooms.iter().map(|room| seeded(room, &mut random)).collect()).collect()
            }
        };
        Ok(Self { states })
    }

    fn views(&self, step: usize) -> Vec<TensorView<'_>> {
        let state = self.states.get(step % self.states.len().max(1));
        state.map(|state| state.iter().map(Elements::view).collect()).unwrap_or_default()
    }
}

/// Up to [`N_STATES`] recorded states.
fn read(
    args: &Args,
    path: &std::path::Path,
    session: &Session,
    rooms: &[Elements],
) -> Result<Vec<Vec<Elements>>, DataError> {
    let inputs: Vec<(&str, &[usize])> =
        session.inputs().iter().map(|port| (port.name.as_str(), extents(port))).collect();
    let map = DemoMap { inputs: args.map.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect() };
    let demos = Demos::open(path, &inputs, &map)?;
    let mut streams = demos.observations().iter().map(|field| demos.stream(field)).collect::<Result<Vec<_>, _>>()?;
    let mut states = Vec::new();
    for _ in 0..demos.n_steps().min(N_STATES) {
        let mut state = rooms.to_vec();
        for (stream, room) in streams.iter_mut().zip(&mut state) {
            room.read(stream)?;
        }
        states.push(state);
    }
    Ok(states)
}

/// Floats from -1 to 1, any bytes; other integers may be indices and stay 0.
fn seeded(room: &Elements, random: &mut stats::Random) -> Elements {
    let n = room.len();
    match room {
        Elements::F32(_) => Elements::F32((0..n).map(|_| random.uniform() as f32 * 2.0 - 1.0).collect()),
        Elements::U8(_) => Elements::U8((0..n).map(|_| (random.uniform() * 256.0) as u8).collect()),
        Elements::I32(_) | Elements::I64(_) => room.clone(),
    }
}

/// What a run leaves, in nanoseconds.
struct Times {
    /// Of each step.
    steps: Vec<u64>,
    /// How late each step began, with a rate.
    late: Vec<u64>,
    /// Steps that ended after the next one should have begun.
    n_missed: u64,
    /// From the first to the last.
    seconds: f64,
}

fn measure(args: &Args, session: &mut Session, rooms: &mut [Elements], states: &States) -> Result<Times, RunError> {
    let mut outputs: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(Elements::view_mut).collect();
    for step in 0..N_WARM_UP {
        session.run(&states.views(step), &mut outputs)?;
    }
    let limit = Duration::from_secs_f64(args.seconds);
    let n_max = args.runs.unwrap_or(u64::MAX);
    let period = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.hz));
    // Room for what is likely to come: growing while measuring would be measured.
    let expected = period.map_or(1 << 20, |period| (limit.as_nanos() / period.as_nanos().max(1)) as usize + 2);
    let mut times =
        Times { steps: Vec::with_capacity(expected.min(1 << 24)), late: Vec::new(), n_missed: 0, seconds: 0.0 };
    let begin = Instant::now();
    let mut due = begin;
    for step in 0usize.. {
        if times.steps.len() as u64 >= n_max {
            break;
        }
        if period.is_some() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let inputs = states.views(step);
        let start = Instant::now();
        if start.duration_since(begin) >= limit && !times.steps.is_empty() {
            break;
        }
        session.run(&inputs, &mut outputs)?;
        let end = Instant::now();
        times.steps.push(nanos(end.duration_since(start)));
        if let Some(period) = period {
            times.late.push(nanos(start.saturating_duration_since(due)));
            due += period;
            if end > due {
                times.n_missed += 1;
                // A controller skips the periods that it missed.
                while due < end {
                    due += period;
                }
            }
        }
    }
    times.seconds = begin.elapsed().as_secs_f64();
    Ok(times)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Latencies in microseconds.
struct Report {
    device: String,
    machine: String,
    n: usize,
    seconds: f64,
    load_ms: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
    rate: Option<Paced>,
}

/// What only a run with a rate can tell.
struct Paced {
    hz: f64,
    n_missed: u64,
    late_p99: f64,
}

impl Report {
    fn new(args: &Args, session: &Session, mut times: Times, load_ms: f64) -> Self {
        let ascending = |nanos: &mut Vec<u64>| -> Vec<f64> {
            nanos.sort_unstable();
            nanos.iter().map(|&ns| ns as f64 / 1e3).collect()
        };
        let steps = ascending(&mut times.steps);
        let late = ascending(&mut times.late);
        let at = |p| stats::quantile(&steps, p);
        Self {
            device: session.device_name().to_owned(),
            machine: machine(),
            n: steps.len(),
            seconds: times.seconds,
            load_ms,
            mean: stats::mean(&steps),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            rate: args.rate.map(|rate| Paced {
                hz: rate.hz,
                n_missed: times.n_missed,
                late_p99: stats::quantile(&late, 0.99),
            }),
        }
    }

    fn render(&self) -> String {
        let mut text = format!("{} steps in {:.1} s on {} ({})\n", self.n, self.seconds, self.device, self.machine);
        text.push_str(&format!(
            "latency in us: p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}, mean {:.1}; load {:.1} ms\n",
            self.p50, self.p90, self.p99, self.p999, self.max, self.mean, self.load_ms
        ));
        if let Some(paced) = &self.rate {
            text.push_str(&format!(
                "at {} Hz: {} of {} deadlines missed, steps began late by {:.1} us (p99)\n",
                paced.hz, paced.n_missed, self.n, paced.late_p99
            ));
        }
        text
    }

    fn to_json(&self, args: &Args) -> serde_json::Value {
        serde_json::json!({
            "schema": 1, "artifact": args.artifact, "device": self.device, "machine": self.machine,
            "steps": self.n, "seconds": self.seconds, "load_ms": self.load_ms,
            "latency_us": {
                "p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p999, "max": self.max, "mean": self.mean,
            },
            "rate_hz": self.rate.as_ref().map(|paced| paced.hz),
            "missed_deadlines": self.rate.as_ref().map(|paced| paced.n_missed),
            "late_us_p99": self.rate.as_ref().map(|paced| paced.late_p99),
        })
    }
}

/// The processor and how much of it there is.
fn machine() -> String {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Linux only; other systems say how many cores there are.
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    match name {
        Some(name) => format!("{name}, {n_cores} cores"),
        None => format!("{}, {n_cores} cores", std::env::consts::ARCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        for (text, hz) in [("50Hz", 50.0), ("50", 50.0), ("1kHz", 1000.0), ("0.5 hz", 0.5)] {
            assert_eq!(text.parse(), Ok(Rate { hz }), "{text}");
        }
        for text in ["", "Hz", "-1Hz", "nan", "inf", "0Hz", "50ms"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
