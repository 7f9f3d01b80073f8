//! `qailc run`: an artifact on recorded observations.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use qail_runtime::{
    ArtifactBytes, ControlError, Controller, DeviceSpec, LoadOptions, PortInfo, Session, TensorView, TensorViewMut,
};

use super::{
    Exit, Failure, Terminal,
    args::{Pair, parse_seed},
    outputs::{self, Inputs},
    terminal::shown,
};
use crate::{
    data::{DemoMap, Demos, NpzWriter, StepReader},
    elements::Elements,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The artifact.
    artifact: PathBuf,
    /// Observations: an `.npz` file or a folder of `.npy` files.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Which array of the data is which input of the model.
    #[arg(long = "map", value_name = "INPUT=KEY")]
    map: Vec<Pair<String>>,
    /// Where to write the outputs, one array each. Default: the terminal.
    #[arg(long = "out", short = 'o', value_name = "FILE.npz")]
    output: Option<PathBuf>,
    /// `cpu`, `cpu:avx2`, `gpu`, `vulkan:0`, `metal`: see `qailc devices`.
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Run the first N steps only.
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// The noise of samplers is among the arrays of the input, by the names of the model's inputs, instead of drawn.
    #[arg(long)]
    given_noise: bool,
    /// Seed of the noise of samplers. Default: that of the compilation.
    #[arg(long, value_name = "SEED", conflicts_with = "given_noise", allow_negative_numbers = true)]
    #[arg(value_parser = parse_seed)]
    seed: Option<u64>,
    /// Give one action a step, as a control loop gets it, instead of the outputs: of chunks the rows that are executed.
    #[arg(long)]
    actions: bool,
    /// Also write every integer code and accumulator, one array each.
    #[arg(long, value_name = "FILE.npz", conflicts_with = "actions")]
    dump_codes: Option<PathBuf>,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let output = args.output.as_ref().map(|path| ("-o", path.as_path()));
    let codes = args.dump_codes.as_ref().map(|path| ("--dump-codes", path.as_path()));
    let outputs: Vec<(&str, &Path)> = output.into_iter().chain(codes).collect();
    let inputs = Inputs::default().and("the artifact", [&args.artifact]).and("the observations", [&args.input]);
    outputs::check(&outputs, &inputs)?;
    let load = || {
        let bytes = ArtifactBytes::open(&args.artifact)?;
        let options = LoadOptions {
            keep_intermediates: args.dump_codes.is_some(),
            given_noise: args.given_noise,
            ..LoadOptions::default()
        };
        Session::load_with(bytes, args.device, &options)
    };
    let mut session = load()
        .map_err(|error| super::failure::of_runtime(&format!("cannot load `{}`", args.artifact.display()), &error))?;
    if let Some(seed) = args.seed {
        session.reseed(seed);
    }
    let map = DemoMap { inputs: args.map.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect() };
    let recorded = Recorded::open(&args.input, session.inputs(), &map)
        .map_err(|error| super::failure::of_observations(&args.input, &error))?;
    let n_steps = args.rows.map_or(recorded.n_steps, |rows| rows.min(recorded.n_steps));
    let device = session.device_name().to_owned();
    let results = if args.actions {
        act_steps(session, recorded, n_steps, terminal)?
    } else {
        run_steps(session, recorded, n_steps, args.dump_codes.is_some(), terminal)?
    };
    if let Some(path) = &args.output {
        write(path, &results.outputs, n_steps)?;
    }
    if let Some(path) = &args.dump_codes {
        write(path, &results.codes, n_steps)?;
    }
    terminal.result(
        || match &args.output {
            Some(path) => format!("{n_steps} steps on {device} -> {}\n", path.display()),
            None => rows_as_text(&results.outputs, n_steps),
        },
        || {
            let outputs: Vec<_> =
                results.outputs.iter().map(|o| serde_json::json!({ "name": o.name, "shape": o.shape })).collect();
            let mut document = serde_json::json!({
                "schema": 1, "steps": n_steps, "device": device, "outputs": outputs, "file": args.output.as_deref().map(shown),
            });
            if args.output.is_none() {
                document["values"] = results.outputs.iter().map(|o| serde_json::json!(o.values)).collect();
            }
            document
        },
    );
    Ok(())
}

/// Streams of the recorded inputs, in the order of the session's inputs.
struct Recorded {
    streams: Vec<StepReader>,
    n_steps: usize,
    episodes: Vec<Range<usize>>,
}

impl Recorded {
    fn open(path: &Path, ports: &[PortInfo], map: &DemoMap) -> Result<Self, crate::data::DataError> {
        let inputs: Vec<(&str, &[usize])> = ports.iter().map(|port| (port.name.as_str(), extents(port))).collect();
        let demos = Demos::open(path, &inputs, map)?;
        let streams = demos.observations().iter().map(|field| demos.stream(field)).collect::<Result<_, _>>()?;
        Ok(Self { streams, n_steps: demos.n_steps(), episodes: demos.episodes().to_vec() })
    }

    /// Takes over the next step.
    fn read(&mut self, step: usize, given: &mut [Elements]) -> Result<(), Failure> {
        let mut all = self.streams.iter_mut().zip(given);
        all.try_for_each(|(stream, given)| given.read(stream)).map_err(|error| {
            Failure::new(Exit::InvalidInput, format!("cannot read step {step} of the observations"), &error)
        })
    }
}

/// Extents of one step: a leading axis of extent 1 is the batch.
pub(super) fn extents(port: &PortInfo) -> &[usize] {
    port.shape.strip_prefix(&[1]).unwrap_or(&port.shape)
}

/// What a run of many steps leaves.
struct Results {
    outputs: Vec<Array>,
    codes: Vec<Array>,
}

/// Values of one tensor, step after step.
struct Array {
    name: String,
    /// Extents of one step.
    shape: Vec<usize>,
    values: Elements,
}

/// One action a step; every episode begins anew.
fn act_steps(
    session: Session,
    mut recorded: Recorded,
    n_steps: usize,
    terminal: &Terminal,
) -> Result<Results, Failure> {
    let mut given = session.inputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
    let mut controller = controller(session)?;
    let shape = match controller.chunk() {
        Some(_) => vec![controller.action_len()],
        None => controller
            .session()
            .action()
            .and_then(|index| controller.session().outputs().get(index))
            .map_or_else(Vec::new, |port| extents(port).to_vec()),
    };
    let (mut action, mut values) = (vec![0.0; controller.action_len()], Vec::new());
    let bar = terminal.bar(n_steps as u64, "act");
    let mut starts = recorded.episodes.clone().into_iter().map(|episode| episode.start).peekable();
    for step in 0..n_steps {
        if starts.next_if_eq(&step).is_some() {
            controller.reset().map_err(|error| super::failure::of_run(&format!("step {step} failed"), &error))?;
        }
        recorded.read(step, &mut given)?;
        let inputs: Vec<TensorView<'_>> = given.iter().map(Elements::view).collect();
        controller
            .act(&inputs, &mut action)
            .map_err(|error| super::failure::of_control(&format!("step {step} failed"), &error))?;
        values.extend_from_slice(&action);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let name = controller.action_name().to_owned();
    Ok(Results { outputs: vec![Array { name, shape, values: Elements::F32(values) }], codes: Vec::new() })
}

/// A session that gives one action a step.
pub(super) fn controller(session: Session) -> Result<Controller, Failure> {
    Controller::new(session).map_err(|error| {
        let failure = Failure::new(Exit::Usage, "the artifact does not say what its action is", &error);
        match error {
            ControlError::NoAction { .. } => failure.help("compile it with --action-output NAME"),
            _ => failure,
        }
    })
}

fn run_steps(
    mut session: Session,
    mut recorded: Recorded,
    n_steps: usize,
    dump: bool,
    terminal: &Terminal,
) -> Result<Results, Failure> {
    let mut given = session.inputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
    let mut found = session.outputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
    let array = |(port, room): (&PortInfo, &Elements)| {
        let mut values = room.clone();
        values.clear();
        Array { name: port.name.clone(), shape: extents(port).to_vec(), values }
    };
    let mut outputs: Vec<Array> = session.outputs().iter().zip(&found).map(array).collect();
    let names: Vec<String> =
        if dump { session.code_names().into_iter().map(str::to_owned).collect() } else { Vec::new() };
    let mut codes: Vec<Array> =
        names.into_iter().map(|name| Array { name, shape: Vec::new(), values: Elements::I32(Vec::new()) }).collect();
    let bar = terminal.bar(n_steps as u64, "run");
    let mut starts = recorded.episodes.clone().into_iter().map(|episode| episode.start).peekable();
    for step in 0..n_steps {
        if starts.next_if_eq(&step).is_some() {
            session.reset().map_err(|error| super::failure::of_run(&format!("step {step} failed"), &error))?;
        }
        recorded.read(step, &mut given)?;
        let inputs: Vec<TensorView<'_>> = given.iter().map(Elements::view).collect();
        let mut views: Vec<TensorViewMut<'_>> = found.iter_mut().map(Elements::view_mut).collect();
        session
            .run(&inputs, &mut views)
            .map_err(|error| super::failure::of_run(&format!("step {step} failed"), &error))?;
        for (output, found) in outputs.iter_mut().zip(&found) {
            output.values.append(found);
        }
        for array in &mut codes {
            let values = session
                .read_codes(&array.name)
                .map_err(|error| super::failure::of_run(&format!("step {step} failed"), &error))?;
            array.shape = vec![values.len()];
            array.values.append(&Elements::I32(values));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    codes.retain(|array| !array.values.is_empty());
    Ok(Results { outputs, codes })
}

/// Room for one value of an input or output.
pub(super) fn room(port: &PortInfo) -> Result<Elements, Failure> {
    Elements::zeros(port).ok_or_else(|| {
        let message =
            format!("`{}` holds codes of type {:?}, and only plain numbers are handed over", port.name, port.storage);
        Failure::plain(Exit::Unsupported, message)
    })
}

fn write(path: &Path, arrays: &[Array], n_steps: usize) -> Result<(), Failure> {
    let all = || -> Result<(), crate::data::DataError> {
        let mut writer = NpzWriter::create(path)?;
        for array in arrays {
            let shape: Vec<usize> = std::iter::once(n_steps).chain(array.shape.iter().copied()).collect();
            array.values.write(&mut writer, &array.name, &shape)?;
        }
        writer.finish()
    };
    all().map_err(|error| Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), &error))
}

/// One line a step: the numbers of all outputs.
fn rows_as_text(outputs: &[Array], n_steps: usize) -> String {
    let numbers: Vec<Vec<String>> = outputs.iter().map(|output| output.values.to_text()).collect();
    let mut text = String::new();
    for step in 0..n_steps {
        let row = numbers.iter().flat_map(|all| {
            let len = all.len() / n_steps.max(1);
            all.iter().skip(step * len).take(len).map(String::as_str)
        });
        text.push_str(&row.collect::<Vec<_>>().join(" "));
        text.push('\n');
    }
    text
}
