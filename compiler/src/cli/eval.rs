//! `qailc eval`: what a policy is worth, on recorded states and in a simulator.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use qail_artifact::{Artifact, schema::Control};
use qail_passes::{PipelineOptions, Precision};
use qail_runtime::{ArtifactBytes, DeviceSpec, Session};

use super::{
    Exit, Failure, Terminal,
    args::{Pair as NamePair, parse_seed, policy_of},
    compile::Watcher,
    outputs::{self, Inputs},
    terminal::shown,
};
use crate::{
    data::{DemoMap, Demos},
    eval::{
        actor::{SessionActor, Wiring},
        closed_loop::{self, LoopError, Outcome, Worker},
        open_loop::{self, OpenLoop, OpenLoopError},
        process::{EnvError, EnvProcess},
        report::{self, Gate, LoopReport, Measure},
        stats::Statistic,
    },
    files::write_atomic,
    frontend::ImportOptions,
    pipeline::{self, BuildOptions, ChunkChoice, HeadKind, PipelineError},
    policy::{self, Policy},
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy: an artifact, or an ONNX file to run in full precision.
    policy: PathBuf,
    /// What to compare with: the ONNX file it was made from, or another artifact.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Recorded states to compare actions on: an `.npz` file or a folder of `.npy` files.
    #[arg(long, value_name = "FILE", required_unless_present = "env")]
    demos: Option<PathBuf>,
    /// Which array, or which observation of the environment, is which input of the model.
    #[arg(long = "map", value_name = "INPUT=KEY")]
    map: Vec<NamePair<String>>,
    /// The output that is the action. Default: the only one, or `action`.
    #[arg(long, value_name = "OUTPUT")]
    action: Option<String>,
    /// An environment to act in: cmd:"python gym_env.py Hopper-v5".
    #[arg(long, value_name = "cmd:COMMAND")]
    env: Option<EnvSpec>,
    /// Episodes, each with a seed of its own.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    episodes: u64,
    /// Seed of the first episode; the others follow. Also seeds the intervals.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = parse_seed)]
    seed: u64,
    /// Environments at the same time. Default: one a core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: Option<u64>,
    /// Longest silence of the environment.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", value_parser = parse_seconds)]
    env_timeout: f64,
    /// Fail with code 5 unless the lower end of the retention reaches this share.
    #[arg(long, value_name = "SHARE", requires = "against", requires = "env", value_parser = parse_share)]
    min_retention: Option<f64>,
    /// What retention is measured in. Default: success if the environment can tell it, else return.
    #[arg(long, value_name = "MEASURE", value_parser = ["return", "success"])]
    metric: Option<String>,
    /// How returns are summed up for retention: mean or median.
    #[arg(long, default_value = "mean")]
    statistic: Statistic,
    /// The return that is worth nothing, for retention.
    #[arg(long, default_value_t = 0.0, value_name = "RETURN", allow_negative_numbers = true)]
    floor: f64,
    /// Where to write the episodes: `.csv`, or JSON under any other name.
    #[arg(long = "out", short = 'o', value_name = "FILE", requires = "env")]
    output: Option<PathBuf>,
    /// `cpu`, `cpu:avx2`, `gpu`, `vulkan:0`, `metal`: see `qailc devices`.
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Extent of a symbolic dimension of an ONNX file.
    #[arg(long = "dim", value_name = "NAME=N")]
    dims: Vec<NamePair<usize>>,
    /// Outputs of an ONNX file to keep, by name. Default: all of them.
    #[arg(long = "output", value_name = "NAME")]
    outputs: Vec<String>,
    /// What an ONNX file cannot say: bounds, arrays. Default: policy.toml beside it, if there is one.
    #[arg(long = "policy", value_name = "FILE")]
    policy_file: Option<PathBuf>,
}

/// Where an environment comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EnvSpec {
    command: String,
}

impl FromStr for EnvSpec {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let command = text.strip_prefix("cmd:").ok_or("expected cmd:COMMAND, for example cmd:\"python env.py\"")?;
        Ok(Self { command: command.to_owned() })
    }
}

fn parse_seconds(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|s| (0.01..=86_400.0).contains(s)).ok_or("expected seconds, 0.01 to 86400")
}

fn parse_share(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|s| (0.0..=10.0).contains(s)).ok_or("expected a share such as 0.98")
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    // What an artifact says about its actions also holds for the model beside it.
    let (models, artifacts): (Vec<&PathBuf>, Vec<&PathBuf>) =
        [Some(&args.policy), args.against.as_ref()].into_iter().flatten().partition(|path| is_onnx(path));
    let control = if models.is_empty() { None } else { artifacts.iter().find_map(|path| control_of(path)) };
    let policy = load(&args.policy, args, control.as_ref(), terminal)?;
    let against = args.against.as_ref().map(|path| load(path, args, control.as_ref(), terminal)).transpose()?;
    if let Some(path) = &args.output {
        check_folder(path)?;
        let sources = || [Some(&policy), against.as_ref()].into_iter().flatten();
        let stages: Vec<&PathBuf> = sources().flat_map(|source| &source.said.then).collect();
        let beside = models.iter().filter_map(|model| policy::find(args.policy_file.as_deref(), model));
        let inputs = Inputs::default()
            .and_models("the model", models.iter().copied())
            .and("the artifact", artifacts.iter().copied())
            .and_models("a stage of the policy", stages)
            .and("what was said of the policy", &beside.collect::<Vec<_>>())
            .and("the demonstrations", &args.demos);
        outputs::check(&[("-o", path)], &inputs)?;
    }
    let inputs = [Some(&policy), against.as_ref()].into_iter().flatten().flat_map(|source| &source.inputs);
    DemoMap { inputs: mapping(args) }
        .check(inputs.map(String::as_str))
        .map_err(|error| Failure::new(Exit::Usage, "--map cannot be followed", &error))?;
    let open = args.demos.as_ref().map(|path| run_open(args, path, &policy, against.as_ref(), terminal)).transpose()?;
    let closed = args.env.as_ref().map(|env| run_closed(args, env, &policy, against.as_ref(), terminal)).transpose()?;
    terminal.result(
        || {
            let mut text = open.as_ref().map(render_open).unwrap_or_default();
            if let Some(report) = closed.as_ref().and_then(|closed| closed.report.as_ref()) {
                text.push_str(&report.render());
            }
            if let Some(gate) = closed.as_ref().and_then(|closed| closed.gate.as_ref()).filter(|gate| gate.passed) {
                let _ = writeln!(text, "retention of at least {}: reached", gate.min_retention);
            }
            text
        },
        || {
            serde_json::json!({
                "schema": 1, "policy": shown(&args.policy), "against": args.against.as_deref().map(shown), "device": policy.device_name,
                "open_loop": open,
                "closed_loop": closed.as_ref().map(|closed| serde_json::json!({
                    "complete": closed.outcome.failure.is_none(), "report": closed.report, "gate": closed.gate,
                    "seconds": closed.seconds, "jobs": closed.n_workers,
                })),
            })
        },
    );
    let Some(closed) = closed else { return Ok(()) };
    let n = closed.outcome.pairs.len();
    if (1..10).contains(&n) && closed.outcome.failure.is_none() {
        terminal.note(&format!("intervals of {} are too narrow: run 20 or more", report::plural(n, "episode")));
    }
    if n > 0 {
        let per_second = n as f64 / closed.seconds.max(1e-9);
        let (seconds, jobs, device) = (closed.seconds, closed.n_workers, &policy.device_name);
        terminal.note(&format!("{seconds:.1} s, {per_second:.2} episodes/s, {jobs} at a time, on {device}"));
    }
    if let Some(error) = &closed.outcome.failure {
        return Err(of_loop(error, closed.outcome.pairs.len(), args));
    }
    match (args.min_retention, &closed.gate) {
        (Some(_), Some(gate)) if gate.passed => Ok(()),
        (Some(_), Some(gate)) => Err(below(gate, closed.report.as_ref())),
        (Some(_), None) => Err(no_retention(closed.report.as_ref())),
        (None, _) => Ok(()),
    }
}

/// A policy, ready to be loaded as often as needed.
struct Source {
    bytes: ArtifactBytes,
    device: DeviceSpec,
    device_name: String,
    /// Names of its inputs.
    inputs: Vec<String>,
    /// What `policy.toml` says, of an ONNX file.
    said: Policy,
}

impl Source {
    fn session(&self) -> Result<Session, qail_runtime::RuntimeError> {
        Session::load(self.bytes.clone(), self.device)
    }
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

/// What an artifact says about its actions. Whatever is wrong with it is said
/// when it is loaded.
fn control_of(path: &Path) -> Option<Control> {
    let bytes = ArtifactBytes::open(path).ok()?;
    Artifact::parse(bytes.as_slice()).ok()?.manifest().control.clone()
}

/// Adds what an artifact says about the actions of a model, where the model's own
/// policy says nothing.
fn add_control(said: &mut Policy, control: &Control) {
    let outputs = &mut said.head.outputs;
    if !outputs.contains_key("action") && !outputs.contains_key("mean") {
        let part = if said.head.kind == Some(HeadKind::Gaussian) { "mean" } else { "action" };
        outputs.insert(part.to_owned(), control.action.clone());
    }
    if let (None, Some(chunk)) = (said.chunk, control.chunk) {
        let (length, execute) = (Some(chunk.length as usize), Some(chunk.execute as usize));
        said.chunk = Some(ChunkChoice { length, execute, ensemble: chunk.ensemble });
    }
}

/// Opens an artifact, or builds one in full precision.
fn load(path: &Path, args: &Args, control: Option<&Control>, terminal: &Terminal) -> Result<Source, Failure> {
    let is_onnx = is_onnx(path);
    // Full precision is compared on the processor, where it is exact.
    let device = if is_onnx { DeviceSpec::Cpu(None) } else { args.device };
    let context = format!("cannot load `{}`", path.display());
    let mut said =
        if is_onnx { policy_of(path, args.policy_file.as_deref(), args.action.as_deref())? } else { Policy::default() };
    if let Some(control) = control.filter(|_| is_onnx) {
        add_control(&mut said, control);
    }
    let bytes = if is_onnx {
        let options = BuildOptions {
            import: ImportOptions {
                dims: args.dims.iter().map(|pair| (pair.name.clone(), pair.value)).collect(),
                outputs: (!args.outputs.is_empty()).then(|| args.outputs.clone()),
            },
            // A quantized model is its own reference.
            passes: PipelineOptions { is_default: true, ..PipelineOptions::new(Precision::F32) },
            policy: said.clone(),
            ..BuildOptions::new(Precision::F32)
        };
        let mut watcher = Watcher::new(terminal, None, None);
        let built = pipeline::compile(path, &options, &mut watcher);
        watcher.finish()?;
        let failed = |error| match error {
            PipelineError::Head { .. } if args.action.is_some() => {
                super::failure::of_pipeline(&context, &error).help("name another output with --action")
            }
            _ => super::failure::of_pipeline(&context, &error),
        };
        built.map_err(failed)?.bytes
    } else {
        ArtifactBytes::open(path).map_err(|error| super::failure::of_runtime(&context, &error))?
    };
    let mut source = Source { bytes, device, device_name: String::new(), inputs: Vec::new(), said };
    let session = source.session().map_err(|error| super::failure::of_runtime(&context, &error))?;
    source.device_name = session.device_name().to_owned();
    source.inputs = session.inputs().iter().map(|port| port.name.clone()).collect();
    let named = |name: &&String| session.outputs().iter().all(|port| port.name != **name);
    if let Some(name) = args.action.as_ref().filter(named) {
        let known: Vec<String> = session.outputs().iter().map(|port| format!("`{}`", port.name)).collect();
        let message = format!("`{}` has no output `{name}`, only {}", path.display(), known.join(", "));
        return Err(Failure::plain(Exit::Usage, message).help("name one of them with --action"));
    }
    Ok(source)
}

fn mapping(args: &Args) -> BTreeMap<String, String> {
    args.map.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect()
}

/// Which array is which input, and which output is the action, if that was said:
/// by flags, else by the policy, else by what it is compared with.
fn said(args: &Args, policy: &Source, against: Option<&Source>) -> (BTreeMap<String, String>, Option<String>) {
    let (mut map, mut action) = (mapping(args), args.action.clone());
    for said in [Some(policy), against].into_iter().flatten().map(|source| &source.said) {
        for (input, key) in &said.map {
            map.entry(input.clone()).or_insert_with(|| key.clone());
        }
        let outputs = &said.head.outputs;
        action = action.or_else(|| outputs.get("action").or_else(|| outputs.get("mean")).cloned());
    }
    (map, action)
}

fn run_open(
    args: &Args,
    path: &Path,
    policy: &Source,
    against: Option<&Source>,
    terminal: &Terminal,
) -> Result<OpenLoop, Failure> {
    let context = format!("cannot evaluate on `{}`", path.display());
    let (inputs, action) = said(args, policy, against);
    let map = DemoMap { inputs };
    let loaded = |source: &Source| source.session().map_err(|error| super::failure::of_runtime(&context, &error));
    let mut policy = loaded(policy)?;
    let mut against = against.map(loaded).transpose()?;
    let inputs: Vec<(String, Vec<usize>)> =
        policy.inputs().iter().map(|port| (port.name.clone(), super::run::extents(port).to_vec())).collect();
    let inputs: Vec<(&str, &[usize])> = inputs.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let demos =
        Demos::open(path, &inputs, &map).map_err(|error| super::failure::of_pipeline(&context, &error.into()))?;
    let bar = terminal.bar(demos.n_steps() as u64, "states");
    let result = open_loop::open_loop(&mut policy, against.as_mut(), &demos, action.as_deref(), &mut |step| {
        bar.set_position(step as u64);
    });
    bar.finish_and_clear();
    result.map_err(|error| {
        let exit = match &error {
            OpenLoopError::Different(_) | OpenLoopError::Nothing => Exit::Usage,
            OpenLoopError::Type { .. } => Exit::Unsupported,
            OpenLoopError::Data(_) | OpenLoopError::Run { .. } => Exit::InvalidInput,
        };
        let failure = Failure::new(exit, context.clone(), &error);
        if matches!(error, OpenLoopError::Nothing) {
            return failure.help("give the model that the policy was made from with --against");
        }
        failure
    })
}

/// A closed loop and what came of it.
struct Closed {
    outcome: Outcome,
    report: Option<LoopReport>,
    gate: Option<Gate>,
    seconds: f64,
    n_workers: usize,
}

fn run_closed(
    args: &Args,
    env: &EnvSpec,
    policy: &Source,
    against: Option<&Source>,
    terminal: &Terminal,
) -> Result<Closed, Failure> {
    // What a policy file maps to are arrays of the data, not observations of the environment.
    let wiring = Wiring { inputs: mapping(args), action: said(args, policy, against).1 };
    let timeout = Duration::from_secs_f64(args.env_timeout);
    let make_worker = || -> Result<Worker, LoopError> {
        let env = EnvProcess::start(&env.command, timeout).map_err(LoopError::Start)?;
        let actor = |source: &Source| -> Result<SessionActor, LoopError> {
            Ok(SessionActor::new(source.session()?, env.hello(), &wiring)?)
        };
        let policy = Box::new(actor(policy)?);
        let against = match against {
            Some(source) => Some(Box::new(actor(source)?) as Box<dyn crate::eval::actor::Actor>),
            None => None,
        };
        Ok(Worker { env: Box::new(env), policy, against })
    };
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_workers = args.jobs.map_or(n_cores, |jobs| usize::try_from(jobs).unwrap_or(n_cores));
    let n_workers = n_workers.min(usize::try_from(args.episodes).unwrap_or(n_workers));
    let bar = terminal.bar(args.episodes, "episodes");
    let start = Instant::now();
    let outcome = closed_loop::run(args.seed, args.episodes, n_workers, &make_worker, &mut |_| bar.inc(1));
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let hello = outcome.hello.as_ref().filter(|_| !outcome.pairs.is_empty());
    if args.metric.as_deref() == Some("success") && hello.is_some_and(|hello| !hello.success) {
        return Err(Failure::plain(Exit::Usage, "the environment cannot tell success").help("use --metric return"));
    }
    let measure = Measure {
        success: args.metric.as_deref().map_or(hello.is_some_and(|h| h.success), |metric| metric == "success"),
        statistic: args.statistic,
        floor: args.floor,
    };
    let report = hello.map(|hello| LoopReport::new(hello, args.seed, args.episodes, &outcome.pairs, measure));
    let gate = match (&report, args.min_retention) {
        (Some(report), Some(min)) if outcome.failure.is_none() => report.gate(min, &outcome.pairs),
        _ => None,
    };
    if let (Some(path), Some(hello)) = (&args.output, hello) {
        let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let text = if is_csv {
            report::csv(&outcome.pairs, hello)
        } else {
            format!("{:#}\n", serde_json::json!({ "schema": 1, "info": hello.info, "episodes": outcome.pairs }))
        };
        write_atomic(path, text.as_bytes())
            .map_err(|error| Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), &error))?;
    }
    Ok(Closed { outcome, report, gate, seconds, n_workers })
}

/// Episodes take long: a folder that is not there is found out before them.
fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    let why = format!("cannot write `{}`: there is no folder `{}`", path.display(), folder.display());
    Err(Failure::plain(Exit::InvalidInput, why))
}

fn of_loop(error: &LoopError, n_finished: usize, args: &Args) -> Failure {
    let context = match n_finished {
        0 => "no episode was finished".to_owned(),
        n => format!("the evaluation is partial: {n} of {} episodes finished", args.episodes),
    };
    let exit = match error {
        LoopError::Start(EnvError::Command { .. }) | LoopError::Wiring(_) => Exit::Usage,
        LoopError::Start(_) | LoopError::Env { .. } | LoopError::Act { .. } => Exit::InvalidInput,
        LoopError::Load(error) => super::failure::of_runtime("", error).exit,
        LoopError::Worker => Exit::Internal,
    };
    let failure = Failure::new(exit, context, error);
    match error {
        LoopError::Start(EnvError::Silent { .. }) | LoopError::Env { source: EnvError::Silent { .. }, .. } => {
            failure.help("give it more time with --env-timeout SECONDS")
        }
        _ => failure,
    }
}

fn no_retention(report: Option<&LoopReport>) -> Failure {
    let failure = Failure::plain(Exit::AccuracyGate, "there is no retention to hold to a gate");
    if report.is_none_or(|report| report.episodes < 2) {
        return failure.help("run two episodes at least");
    }
    let comparison = report.and_then(|report| report.comparison.as_ref());
    if comparison.is_some_and(|comparison| comparison.measure.success) {
        return failure.help("the other policy never succeeds: use --metric return");
    }
    failure.help("the return of the other policy is not above 0: give the return that is worth nothing with --floor")
}

fn below(gate: &Gate, report: Option<&LoopReport>) -> Failure {
    let retention = report.and_then(|report| report.comparison.as_ref()).and_then(|comparison| comparison.retention);
    let message = match retention {
        Some(r) => format!(
            "retention is {:.3}, the lower end of its 95 % interval {:.3}, and {} was asked for",
            r.estimate, r.lower, gate.min_retention
        ),
        None => format!("retention is below {}", gate.min_retention),
    };
    let help = match gate.episodes_needed {
        Some(n) => format!("if the estimate stays, {n} episodes would be enough to show it"),
        None => "more episodes will not help: the estimate itself is too low".to_owned(),
    };
    Failure::plain(Exit::AccuracyGate, message).help(help)
}

fn render_open(open: &OpenLoop) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["output", "against", "mse", "max", "bias", "sign flips", "mse by quarters of the episodes"]);
    let flips = |share: f64| format!("{:.2} %", 100.0 * share);
    for errors in &open.outputs {
        let quarters: Vec<String> = errors.quarters.iter().map(|mse| format!("{mse:.2e}")).collect();
        let e = &errors.all;
        table.add_row([
            errors.output.clone(),
            errors.against.to_owned(),
            format!("{:.3e}", e.mse),
            format!("{:.3e}", e.max),
            format!("{:.1e}", e.bias),
            flips(e.sign_flips),
            quarters.join(" "),
        ]);
        // More elements than fit a screen are in the JSON document.
        for (i, e) in errors.elements.iter().enumerate().filter(|_| (2..=32).contains(&errors.elements.len())) {
            table.add_row([
                format!("  [{i}]"),
                String::new(),
                format!("{:.3e}", e.mse),
                format!("{:.3e}", e.max),
                format!("{:.1e}", e.bias),
                flips(e.sign_flips),
                String::new(),
            ]);
        }
    }
    format!("{} recorded steps, {} episodes\n{table}\n", open.steps, open.episodes)
}
