//! `qailc run`: an artifact on recorded observations.

use std::path::PathBuf;

use qail_runtime::{ArtifactBytes, DeviceSpec, LoadOptions, PortInfo, Session, Storage, TensorView, TensorViewMut};

use super::{Exit, Failure, Terminal, args::Pair};
use crate::data::{DemoMap, Demos, Element, NpzWriter, StepReader};

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
    /// Also write every integer code and accumulator, one array each.
    #[arg(long, value_name = "FILE.npz")]
    dump_codes: Option<PathBuf>,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let shown = args.artifact.display();
    let load = || {
        let bytes = ArtifactBytes::open(&args.artifact)?;
        let options = LoadOptions { keep_intermediates: args.dump_codes.is_some(), ..LoadOptions::default() };
        Session::load_with(bytes, args.device, &options)
    };
    let mut session = load().map_err(|error| super::failure::of_runtime(&format!("cannot load `{shown}`"), &error))?;
    let map = DemoMap {
        inputs: args.map.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect(),
        ..DemoMap::default()
    };
    let recorded = Recorded::open(&args.input, session.inputs(), &map).map_err(|error| {
        Failure::new(Exit::InvalidInput, format!("cannot read observations from `{}`", args.input.display()), &error)
    })?;
    let n_steps = args.rows.map_or(recorded.n_steps, |rows| rows.min(recorded.n_steps));
    let results = run_steps(&mut session, recorded, n_steps, args.dump_codes.is_some(), terminal)?;
    if let Some(path) = &args.output {
        write(path, &results.outputs, n_steps)?;
    }
    if let Some(path) = &args.dump_codes {
        write(path, &results.codes, n_steps)?;
    }
    terminal.result(
        || match &args.output {
            Some(path) => format!("{n_steps} steps on {} -> {}\n", session.device_name(), path.display()),
            None => rows_as_text(&results.outputs, n_steps),
        },
        || {
            let outputs: Vec<_> =
                results.outputs.iter().map(|o| serde_json::json!({ "name": o.name, "shape": o.shape })).collect();
            let mut document = serde_json::json!({
                "schema": 1, "steps": n_steps, "device": session.device_name(), "outputs": outputs, "file": args.output,
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
}

impl Recorded {
    fn open(path: &std::path::Path, ports: &[PortInfo], map: &DemoMap) -> Result<Self, crate::data::DataError> {
        // The first axis of every input is the batch, of extent 1.
        let extents = |port: &PortInfo| port.shape.get(1..).map(<[usize]>::to_vec).unwrap_or_default();
        let inputs: Vec<(&str, Vec<usize>)> = ports.iter().map(|port| (port.name.as_str(), extents(port))).collect();
        let inputs: Vec<(&str, &[usize])> = inputs.iter().map(|(name, shape)| (*name, shape.as_slice())).collect();
        let demos = Demos::open(path, &inputs, map)?;
        let streams = demos.observations().iter().map(|field| demos.stream(field)).collect::<Result<_, _>>()?;
        Ok(Self { streams, n_steps: demos.n_steps() })
    }
}

/// What a run of many steps leaves.
struct Results {
    outputs: Vec<Array<f32>>,
    codes: Vec<Array<i32>>,
}

/// Values of one tensor, step after step.
struct Array<T> {
    name: String,
    /// Extents of one step.
    shape: Vec<usize>,
    values: Vec<T>,
}

fn run_steps(
    session: &mut Session,
    mut recorded: Recorded,
    n_steps: usize,
    dump: bool,
    terminal: &Terminal,
) -> Result<Results, Failure> {
    let ports: Vec<PortInfo> = session.inputs().to_vec();
    let array = |port: &PortInfo| Array {
        name: port.name.clone(),
        shape: port.shape.get(1..).map(<[usize]>::to_vec).unwrap_or_default(),
        values: Vec::new(),
    };
    let mut outputs: Vec<Array<f32>> = session.outputs().iter().map(array).collect();
    let mut rooms: Vec<Vec<f32>> = session.outputs().iter().map(|port| vec![0.0; port.elements()]).collect();
    let names: Vec<String> = if dump { session.tensor_names().map(str::to_owned).collect() } else { Vec::new() };
    let mut codes: Vec<Array<i32>> =
        names.into_iter().map(|name| Array { name, shape: Vec::new(), values: Vec::new() }).collect();
    if let Some(port) = session.outputs().iter().find(|port| port.storage != Storage::F32) {
        let message = format!("output `{}` holds {:?}, and only f32 outputs can be written", port.name, port.storage);
        return Err(Failure::plain(Exit::Unsupported, message));
    }
    let mut given: Vec<Given> = ports.iter().map(|port| Given::new(port.storage)).collect();
    let bar = terminal.bar(n_steps as u64, "run");
    for step in 0..n_steps {
        for (stream, given) in recorded.streams.iter_mut().zip(&mut given) {
            given.row.clear();
            stream.next(1, &mut given.row).map_err(|error| {
                Failure::new(Exit::InvalidInput, format!("cannot read step {step} of the observations"), &error)
            })?;
            given.convert();
        }
        let inputs: Vec<TensorView<'_>> = given.iter().map(Given::view).collect();
        let mut views: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(|room| TensorViewMut::F32(room)).collect();
        session
            .run(&inputs, &mut views)
            .map_err(|error| super::failure::of_run(&format!("step {step} failed"), &error))?;
        for (output, room) in outputs.iter_mut().zip(&rooms) {
            output.values.extend_from_slice(room);
        }
        for array in &mut codes {
            // Float tensors have no codes.
            if let Ok(values) = session.read_codes(&array.name) {
                array.shape = vec![values.len()];
                array.values.extend(values);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    codes.retain(|array| !array.values.is_empty());
    Ok(Results { outputs, codes })
}

/// One input of one step, in the type that the session takes.
struct Given {
    storage: Storage,
    row: Vec<f32>,
    bytes: Vec<u8>,
    i64s: Vec<i64>,
}

impl Given {
    fn new(storage: Storage) -> Self {
        Self { storage, row: Vec::new(), bytes: Vec::new(), i64s: Vec::new() }
    }

    fn convert(&mut self) {
        match self.storage {
            Storage::U8 => {
                self.bytes.clear();
                self.bytes.extend(self.row.iter().map(|&x| x as u8));
            }
            Storage::I64 => {
                self.i64s.clear();
                self.i64s.extend(self.row.iter().map(|&x| x as i64));
            }
            Storage::Unspecified | Storage::F32 | Storage::I32 | Storage::I8 | Storage::I16 => {}
        }
    }

    fn view(&self) -> TensorView<'_> {
        match self.storage {
            Storage::U8 => TensorView::U8(&self.bytes),
            Storage::I64 => TensorView::I64(&self.i64s),
            Storage::Unspecified | Storage::F32 | Storage::I32 | Storage::I8 | Storage::I16 => {
                TensorView::F32(&self.row)
            }
        }
    }
}

fn write<T: Element>(path: &std::path::Path, arrays: &[Array<T>], n_steps: usize) -> Result<(), Failure> {
    let all = || -> Result<(), crate::data::DataError> {
        let mut writer = NpzWriter::create(path)?;
        for array in arrays {
            let shape: Vec<usize> = std::iter::once(n_steps).chain(array.shape.iter().copied()).collect();
            writer.add(&array.name, &shape, &array.values)?;
        }
        writer.finish()
    };
    all().map_err(|error| Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), &error))
}

/// One line a step: the numbers of all outputs.
fn rows_as_text(outputs: &[Array<f32>], n_steps: usize) -> String {
    let mut text = String::new();
    for step in 0..n_steps {
        let numbers: Vec<String> = outputs
            .iter()
            .flat_map(|output| {
                let len = output.values.len() / n_steps.max(1);
                output.values.iter().skip(step * len).take(len).map(|x| x.to_string())
            })
            .collect();
        text.push_str(&numbers.join(" "));
        text.push('\n');
    }
    text
}
