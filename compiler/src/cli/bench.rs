//! `qailc bench`: how long one action takes, and how long it may take.
//!
//! The clock runs around [`Session::run`] alone, or [`Controller::act`] if the
//! policy computes chunks: no input is prepared and no number is kept in
//! between. Most steps of a policy of chunks only give out a row, so steps that
//! compute are reported, and held to the gate, by themselves. With `--rate` the steps start at that rate, as in
//! a control loop: caches go cold and clocks go down in the pauses, which a
//! tight loop does not show.

use std::{
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use qail_runtime::{
    Acted, ArtifactBytes, ChunkPolicy, ControlError, Controller, DeviceSpec, RunError, Session, TensorView,
    TensorViewMut,
};

use super::{
    Exit, Failure, Terminal,
    args::Pair,
    run::{controller, extents, room},
    terminal::shown,
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
    #[arg(long = "map", value_name = "INPUT=KEY", requires = "input")]
    map: Vec<Pair<String>>,
    /// Fail with code 6 if the 99th percentile is above this; of a policy of chunks, that of the steps that compute one.
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
    let session = Session::load(bytes, args.device).map_err(|error| super::failure::of_runtime(&context, &error))?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let states = States::new(args, &session)?;
    let device = session.device_name().to_owned();
    let mut stepper = Stepper::new(session)?;
    let times = measure(args, &mut stepper, &states);
    let times = times.map_err(|error| super::failure::of_control("a step failed", &error))?;
    let report = Report::new(args, device, stepper.chunk(), times, load_ms);
    terminal.result(|| report.render(), || report.to_json(args));
    let judged = report.chunk.as_ref().map_or(&report.all, |chunk| &chunk.computing);
    if judged.n < 1000 {
        terminal.note(&format!("p99.9 of {} steps is one of the slowest ten: run longer", judged.n));
    }
    match args.max_p99 {
        Some(max) if judged.p99 > max => {
            let message = format!("p99 is {:.1} us on {}, and {max} us was asked for", judged.p99, report.device);
            Err(Failure::plain(Exit::PerformanceGate, message))
        }
        _ => Ok(()),
    }
}

/// What is measured: a session as it is, or the control step of a policy of chunks.
enum Stepper {
    Outputs { session: Session, rooms: Vec<Elements> },
    Actions { controller: Controller, action: Vec<f32> },
}

impl Stepper {
    fn new(session: Session) -> Result<Self, Failure> {
        if session.chunk().is_some() {
            let controller = controller(session)?;
            let action = vec![0.0; controller.action_len()];
            return Ok(Self::Actions { controller, action });
        }
        let rooms = session.outputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::Outputs { session, rooms })
    }

    fn chunk(&self) -> Option<ChunkPolicy> {
        match self {
            Self::Outputs { .. } => None,
            Self::Actions { controller, .. } => controller.chunk(),
        }
    }

    /// An episode that begins.
    fn begin(&mut self) -> Result<Episode<'_>, ControlError> {
        let mut episode = match self {
            Self::Outputs { session, rooms } => {
                Episode::Outputs { session, outputs: rooms.iter_mut().map(Elements::view_mut).collect() }
            }
            Self::Actions { controller, action } => Episode::Actions { controller, action },
        };
        episode.reset()?;
        Ok(episode)
    }
}

/// Takes a step again and again, without allocating.
enum Episode<'a> {
    Outputs { session: &'a mut Session, outputs: Vec<TensorViewMut<'a>> },
    Actions { controller: &'a mut Controller, action: &'a mut [f32] },
}

impl Episode<'_> {
    fn reset(&mut self) -> Result<(), ControlError> {
        match self {
            Self::Outputs { session, .. } => session.reset()?,
            Self::Actions { controller, .. } => controller.reset()?,
        }
        Ok(())
    }

    fn act(&mut self, inputs: &[TensorView<'_>]) -> Result<Acted, ControlError> {
        match self {
            Self::Outputs { session, outputs } => {
                session.run(inputs, outputs)?;
                Ok(Acted::Computed)
            }
            Self::Actions { controller, action } => controller.act(inputs, action),
        }
    }

    /// One step, and when it began and ended. Before a step for which a cache has
    /// no room the episode begins anew, as whoever runs the policy must have it.
    fn timed(&mut self, inputs: &[TensorView<'_>]) -> Result<(Acted, Instant, Instant), ControlError> {
        let mut start = Instant::now();
        let mut acted = self.act(inputs);
        if matches!(acted, Err(ControlError::Run(RunError::StateLimit { .. }))) {
            self.reset()?;
            start = Instant::now();
            acted = self.act(inputs);
        }
        let end = Instant::now();
        Ok((acted?, start, end))
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
            Some(path) => {
                read(args, path, session, &rooms).map_err(|error| super::failure::of_observations(path, &error))?
            }
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
    /// What each step did.
    acted: Vec<Acted>,
    /// How late each step began, with a rate.
    late: Vec<u64>,
    /// Steps that ended after the next one should have begun.
    n_missed: u64,
    /// From the first to the last.
    seconds: f64,
}

fn measure(args: &Args, stepper: &mut Stepper, states: &States) -> Result<Times, ControlError> {
    // Warm is what computes, also if most steps do not.
    let n_warm_up = N_WARM_UP * stepper.chunk().map_or(1, |chunk| chunk.execute);
    let mut episode = stepper.begin()?;
    for step in 0..n_warm_up {
        episode.timed(&states.views(step))?;
    }
    episode.reset()?;
    let limit = Duration::from_secs_f64(args.seconds);
    let n_max = args.runs.unwrap_or(u64::MAX);
    let period = args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.hz));
    // Room for what is likely to come: growing while measuring would be measured.
    let expected = period.map_or(1 << 20, |period| (limit.as_nanos() / period.as_nanos().max(1)) as usize + 2);
    let expected = expected.min(1 << 24);
    let (steps, acted) = (Vec::with_capacity(expected), Vec::with_capacity(expected));
    let mut times = Times { steps, acted, late: Vec::new(), n_missed: 0, seconds: 0.0 };
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
        if begin.elapsed() >= limit && !times.steps.is_empty() {
            break;
        }
        let (acted, start, end) = episode.timed(&inputs)?;
        times.steps.push(nanos(end.duration_since(start)));
        times.acted.push(acted);
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

/// What came of it.
struct Report {
    device: String,
    machine: String,
    seconds: f64,
    load_ms: f64,
    /// Of every step.
    all: Latency,
    chunk: Option<Chunked>,
    rate: Option<Paced>,
}

/// Latencies in microseconds.
struct Latency {
    n: usize,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// The two kinds of steps of a policy of chunks.
struct Chunked {
    policy: ChunkPolicy,
    /// Steps that compute a chunk.
    computing: Latency,
    /// Steps that give out a row; none when ensembling.
    giving: Option<Latency>,
}

/// What only a run with a rate can tell.
struct Paced {
    hz: f64,
    n_missed: u64,
    late_p99: f64,
}

impl Latency {
    fn new(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let us: Vec<f64> = nanos.iter().map(|&ns| ns as f64 / 1e3).collect();
        let at = |p| stats::quantile(&us, p);
        let [p50, p90, p99, p999, max] = [0.5, 0.9, 0.99, 0.999, 1.0].map(at);
        Self { n: us.len(), mean: stats::mean(&us), p50, p90, p99, p999, max }
    }

    fn render(&self) -> String {
        format!(
            "p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}, mean {:.1}",
            self.p50, self.p90, self.p99, self.p999, self.max, self.mean
        )
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p999, "max": self.max, "mean": self.mean,
        })
    }
}

impl Report {
    fn new(args: &Args, device: String, chunk: Option<ChunkPolicy>, times: Times, load_ms: f64) -> Self {
        let of = |kind: Acted| -> Vec<u64> {
            times.steps.iter().zip(&times.acted).filter(|(_, acted)| **acted == kind).map(|(&ns, _)| ns).collect()
        };
        let chunk = chunk.map(|policy| Chunked {
            policy,
            computing: Latency::new(of(Acted::Computed)),
            giving: Some(of(Acted::Queued)).filter(|nanos| !nanos.is_empty()).map(Latency::new),
        });
        Self {
            device,
            machine: machine(),
            seconds: times.seconds,
            load_ms,
            all: Latency::new(times.steps),
            chunk,
            rate: args.rate.map(|rate| Paced {
                hz: rate.hz,
                n_missed: times.n_missed,
                late_p99: Latency::new(times.late).p99,
            }),
        }
    }

    fn render(&self) -> String {
        let (n, seconds, load_ms) = (self.all.n, self.seconds, self.load_ms);
        let mut text = format!("{n} steps in {seconds:.1} s on {} ({})\n", self.device, self.machine);
        text.push_str(&format!("latency in us: {}; load {load_ms:.1} ms\n", self.all.render()));
        if let Some(Chunked { policy, computing, giving }) = &self.chunk {
            let every = if policy.ensemble.is_some() { "ensembled" } else { "executed" };
            let (length, execute) = (policy.length, policy.execute);
            let how = if policy.ensemble.is_some() { String::new() } else { format!("{execute} of ") };
            text.push_str(&format!("chunks of actions, {how}{length} {every}\n"));
            text.push_str(&format!("  {} steps compute a chunk: {}\n", computing.n, computing.render()));
            if let Some(giving) = giving {
                text.push_str(&format!("  {} steps give out a row: {}\n", giving.n, giving.render()));
            }
        }
        if let Some(paced) = &self.rate {
            text.push_str(&format!(
                "at {} Hz: {} of {n} deadlines missed, steps began late by {:.1} us (p99)\n",
                paced.hz, paced.n_missed, paced.late_p99
            ));
        }
        text
    }

    fn to_json(&self, args: &Args) -> serde_json::Value {
        let of = |latency: &Latency| serde_json::json!({ "steps": latency.n, "latency_us": latency.to_json() });
        serde_json::json!({
            "schema": 1, "artifact": shown(&args.artifact), "device": self.device, "machine": self.machine,
            "steps": self.all.n, "seconds": self.seconds, "load_ms": self.load_ms,
            "latency_us": self.all.to_json(),
            "chunk": self.chunk.as_ref().map(|chunk| serde_json::json!({
                "length": chunk.policy.length, "execute": chunk.policy.execute, "ensemble": chunk.policy.ensemble,
                "computing": of(&chunk.computing), "giving": chunk.giving.as_ref().map(of),
            })),
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
