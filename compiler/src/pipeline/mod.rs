//! From a model file to the bytes of an artifact: the order of everything.
//!
//! ```text
//! import -> prepare (fold, fuse, fake-quant, calibrate) -> train -> finish (lower) -> codegen -> file
//!                                                                                         |
//!                                              teacher (the imported graph) <- compare <- session on the CPU
//! ```
//! Without training, `ptq`, the passes run in one go and round with more care.
//! Nothing here prints or reads the clock: progress goes to an [`Observer`].

mod bounds;
mod built;
mod check;
mod control;
mod demonstrations;
mod deployed;
mod error;
mod given;
mod head;
mod layers;
mod made;
mod opened;
mod sampler;
mod stages;
mod state;
mod training;
mod weights;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use qail_artifact::schema::{Control, Provenance};
use qail_ir::interp::Interpreter;
use qail_passes::{
    Note, NoteKind, Pass, PassContext, PassManager, PipelineOptions, Precision, Sampler, Samples, default_pipeline,
    pipeline::given_pipeline, quant::LoweringReport,
};
use qail_runtime::{ArtifactBytes, DeviceSpec, LoadOptions, PortInfo, Session, TensorView, TensorViewMut};

pub use built::Built;
pub use check::{Checked, check};
pub use control::ChunkChoice;
pub use demonstrations::{Demonstrations, Sample, TrainingRows, open as open_demos};
pub use error::PipelineError;
pub use head::{HeadChoice, HeadKind};
pub use made::Inputs;
pub use opened::open_recording;
pub use sampler::SamplerChoice;
pub use state::StateChoice;
// What an observer hears of.
pub use qail_ir::Graph;
pub use qail_train::trainer::{Evaluation, StepReport};
pub use training::{Save, Trained, Training, read_checkpoint, train};

use opened::{Opened, open};

use crate::{
    data::DemoMap, elements::Elements, eval::metrics::ActionError, frontend::ImportOptions, policy::Policy,
    report::OutputError,
};

/// Steps that the error against the teacher is measured on.
const N_HELD_OUT: usize = 1000;

/// What is built, from what.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// How to read the model.
    pub import: ImportOptions,
    /// Passes and their settings.
    pub passes: PipelineOptions,
    /// Recorded observations.
    pub demos: Option<PathBuf>,
    /// Which array is which input.
    pub map: DemoMap,
    /// Steps to calibrate on, at most.
    pub n_calibration: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// What the model files do not say.
    pub policy: Policy,
    /// How to train; `None` for post-training quantization alone.
    pub training: Option<Training>,
}

impl BuildOptions {
    /// A precision and nothing else: no data, so nothing to calibrate on, no
    /// training, seed 0.
    pub fn new(precision: Precision) -> Self {
        Self {
            import: ImportOptions::default(),
            passes: PipelineOptions::new(precision),
            demos: None,
            map: DemoMap::default(),
            n_calibration: 0,
            seed: 0,
            policy: Policy::default(),
            training: None,
        }
    }
}

/// Who hears about the work.
pub trait Observer {
    /// Work done and work in all, of a named stage.
    fn progress(&mut self, stage: &str, done: usize, all: usize);
    /// The graph behind a pass.
    fn after_pass(&mut self, pass: &str, graph: &Graph);
    /// One update of training out of `steps`.
    fn trained(&mut self, report: &StepReport, steps: u64) {
        let _ = (report, steps);
    }
    /// How good the policy in training is on held-out steps.
    fn evaluated(&mut self, evaluation: &Evaluation) {
        let _ = evaluation;
    }
    /// Asked before each update: true ends training early.
    fn stop_training(&mut self) -> bool {
        false
    }
}

/// An observer that is not interested.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn progress(&mut self, _: &str, _: usize, _: usize) {}
    fn after_pass(&mut self, _: &str, _: &Graph) {}
}

/// A model, quantized.
#[derive(Debug)]
pub struct Quantized {
    /// The graph as imported, in full precision; unknown behind a checkpoint.
    pub teacher: Option<Graph>,
    /// The graph as it will run; one step of it, if there is a sampler.
    pub graph: Graph,
    /// What `lower-quant` did, in integer precisions.
    pub lowering: Option<LoweringReport>,
    /// Remarks of the frontend.
    pub notes: Vec<String>,
    /// Remarks of the passes.
    pub pass_notes: Vec<Note>,
    /// The data, if there is any.
    pub demonstrations: Option<Demonstrations>,
    /// What really runs, for example `w4a4+e8+o16`.
    pub precision: String,
    /// Name of the model.
    name: String,
    control_rate_hz: f64,
    control: Option<Control>,
    /// The graph is one step of denoising, and runs in its loop.
    sampler: Option<Sampler>,
    provenance: Provenance,
    /// Figures that training measured on the artifact.
    evaluation: BTreeMap<String, f64>,
}

impl Quantized {
    /// The graph as it runs: a denoising step is in the loop of its sampler.
    ///
    /// # Errors
    /// A sampler that does not fit the graph.
    pub fn deployed(&self) -> Result<Graph, PipelineError> {
        Ok(deployed::deployed(&self.graph, self.sampler.as_ref())?.into_owned())
    }
}

/// Imports a model, trains it if that was asked for, and runs the passes of its
/// precision.
///
/// # Errors
/// Everything that is wrong with the model or the data, integer precisions
/// without data, and training that fails.
pub fn quantize(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Quantized, PipelineError> {
    let mut opened = open(model, options, observer)?;
    observer.after_pass("import", &opened.teacher);
    let method = opened.method(options)?;
    if let (Some(training), true) = (&options.training, method.trains()) {
        let checkpoint = training::trained(&mut opened, training, method, options, observer)?;
        let Opened { teacher, demonstrations, sampler, notes, pass_notes, .. } = opened;
        let quantized = training::quantized(&checkpoint, notes, pass_notes, observer)?;
        return Ok(Quantized { teacher: Some(teacher), demonstrations, sampler, ..quantized });
    }
    let passes = if opened.is_quantized { given_pipeline() } else { default_pipeline(&options.passes) };
    let passed = run_passes(&opened.teacher, opened.samples(), passes, options.seed, observer)?;
    if opened.is_quantized {
        opened.notes.extend(given::notes(passed.lowering.as_ref()));
    }
    let provenance = Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model_sha256: opened.model_sha256,
        data_sha256: opened.data_sha256,
        flags: flags(options, opened.is_quantized, opened.control.as_ref()),
        seed: options.seed,
        method: match options.passes.precision {
            _ if opened.is_quantized => given::PRECISION,
            Precision::F32 => "none",
            _ => "ptq",
        }
        .to_owned(),
        reproducible: true,
        // Nothing that quantization computes depends on the instruction set.
        isa: "any".to_owned(),
    };
    Ok(Quantized {
        teacher: Some(opened.teacher),
        graph: passed.graph,
        lowering: passed.lowering,
        notes: opened.notes,
        pass_notes: passed.notes,
        demonstrations: opened.demonstrations,
        precision: if opened.is_quantized { given::PRECISION.to_owned() } else { options.passes.effective() },
        name: opened.name,
        control_rate_hz: options.policy.control_rate_hz.unwrap_or(0.0),
        control: opened.control,
        sampler: opened.sampler,
        provenance,
        evaluation: BTreeMap::new(),
    })
}

/// The quantized model of a checkpoint. Needs neither the model nor the data.
///
/// # Errors
/// Files that are no sound checkpoints.
pub fn quantize_checkpoint(path: &Path, observer: &mut dyn Observer) -> Result<Quantized, PipelineError> {
    let checkpoint = read_checkpoint(path)?;
    let complete = checkpoint.facts.get("complete").map(String::as_str) == Some("true");
    let step = checkpoint.state.best_step;
    let note = format!("training was not finished; the best parameters so far are those of step {step}");
    training::quantized(&checkpoint, if complete { vec![] } else { vec![note] }, Vec::new(), observer)
}

/// What the passes of a precision leave.
struct Passed {
    graph: Graph,
    lowering: Option<LoweringReport>,
    notes: Vec<Note>,
}

fn run_passes(
    teacher: &Graph,
    samples: Option<&dyn Samples>,
    passes: Vec<Box<dyn Pass>>,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<Passed, PipelineError> {
    let mut graph = teacher.clone();
    let observer = std::cell::RefCell::new(observer);
    let mut cx = PassContext { samples, seed, ..PassContext::new() };
    cx.progress = Some(Box::new(|pass, done, all| observer.borrow_mut().progress(pass, done, all)));
    PassManager::new(passes).run_with(&mut graph, &mut cx, &mut |pass, _, graph| {
        observer.borrow_mut().after_pass(pass.name(), graph);
    })?;
    Ok(Passed { graph, lowering: cx.lowering.take(), notes: std::mem::take(&mut cx.notes) })
}

/// Compiles a model: [`quantize`], then kernels, then the file, whose error
/// against the teacher is measured on held-out episodes by running it. The file
/// is among the temporary ones until it is [put into its place](Built::persist).
///
/// # Errors
/// As [`quantize`], graphs that have no plan, and a file that cannot be written.
pub fn compile(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Built, PipelineError> {
    build(quantize(model, options, observer)?, None, observer)
}

/// As [`compile`], with a file that grows beside `target`.
///
/// # Errors
/// As [`compile`].
pub fn compile_beside(
    target: &Path,
    model: &Path,
    options: &BuildOptions,
    observer: &mut dyn Observer,
) -> Result<Built, PipelineError> {
    build(quantize(model, options, observer)?, Some(target), observer)
}

/// Compiles a checkpoint, as [`compile_beside`] does behind training. With `chunk`
/// its actions are given out in another way.
///
/// # Errors
/// As [`quantize_checkpoint`], graphs that have no plan, and a file that cannot
/// be written.
pub fn compile_checkpoint(
    target: &Path,
    path: &Path,
    chunk: Option<&ChunkChoice>,
    observer: &mut dyn Observer,
) -> Result<Built, PipelineError> {
    let mut quantized = quantize_checkpoint(path, observer)?;
    if let Some(chunk) = chunk {
        quantized.control = Some(control::changed(quantized.control.as_ref(), chunk)?);
    }
    build(quantized, Some(target), observer)
}

fn build(quantized: Quantized, target: Option<&Path>, observer: &mut dyn Observer) -> Result<Built, PipelineError> {
    let sampler = quantized.sampler.as_ref();
    let graph = deployed::deployed(&quantized.graph, sampler)?;
    let mut plan = plan_of(&graph, sampler, quantized.provenance.seed)?;
    let manifest = &mut plan.manifest;
    manifest.name = quantized.name.clone();
    manifest.precision = quantized.precision.clone();
    manifest.layers = layers::layers(&quantized.graph, quantized.lowering.as_ref());
    manifest.provenance = Some(quantized.provenance.clone());
    manifest.evaluation = quantized.evaluation.clone();
    manifest.control_rate_hz = quantized.control_rate_hz;
    control::store(quantized.control.as_ref(), manifest);
    let mut growing = built::Growing::new(&plan, target, observer)?;
    let held_out = quantized.demonstrations.as_ref().map(|d| d.held_out.as_slice()).unwrap_or_default();
    // What was trained was measured when training ended.
    if let (Some(teacher), false, true) = (&quantized.teacher, held_out.is_empty(), quantized.evaluation.is_empty()) {
        let bytes = growing.seal(plan.manifest.clone())?;
        let looped = (sampler, quantized.provenance.seed);
        for error in compare(teacher, bytes, held_out, looped, observer)? {
            plan.manifest.evaluation.extend(error.figures());
        }
    }
    growing.finish(plan.manifest, quantized)
}

fn plan_of(graph: &Graph, sampler: Option<&Sampler>, seed: u64) -> Result<qail_codegen::Plan, PipelineError> {
    let noise = sampler.into_iter().flat_map(deployed::noise).collect();
    let plan = qail_codegen::build(graph, &qail_codegen::BuildOptions { noise, seed, ..Default::default() })?;
    if let Some(sampler) = sampler {
        deployed::check_turns(&plan.manifest, sampler)?;
    }
    Ok(plan)
}

/// Runs the artifact and the teacher, both in the loop of the sampler and from
/// the same noise, on the same steps.
fn compare(
    teacher: &Graph,
    bytes: impl Into<ArtifactBytes>,
    samples: &[Sample],
    (sampler, seed): (Option<&Sampler>, u64),
    observer: &mut dyn Observer,
) -> Result<Vec<OutputError>, PipelineError> {
    let no_room = || PipelineError::internal("an input or output holds codes");
    let teacher = deployed::deployed(teacher, sampler)?;
    let samples = deployed::judged(&teacher, samples, sampler, seed);
    let judge = Interpreter::new(&teacher)?;
    let given_noise = LoadOptions { given_noise: true, ..LoadOptions::default() };
    let mut session = Session::load_with(bytes, DeviceSpec::Cpu(None), &given_noise)?;
    let states: Vec<String> = session.states().iter().map(|state| state.name.clone()).collect();
    let mut kept = session.states().iter().map(Elements::zeros).collect::<Option<Vec<_>>>().ok_or_else(no_room)?;
    let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    let rooms = |ports: &[PortInfo]| -> Option<Vec<Elements>> { ports.iter().map(Elements::zeros).collect() };
    let (mut given, mut found) = rooms(session.inputs()).zip(rooms(session.outputs())).ok_or_else(no_room)?;
    let mut errors = vec![ActionError::new(); names.len()];
    for (i, sample) in samples.iter().enumerate() {
        observer.progress("compare", i, samples.len());
        let expected = judge.run(sample)?;
        for (port, given) in session.inputs().iter().zip(&mut given) {
            let tensor = sample.get(&port.name).ok_or_else(|| PipelineError::internal("an input has no sample"))?;
            if !given.set(tensor) {
                return Err(PipelineError::internal("a sample has another type than its input"));
            }
        }
        // Both begin the step with what the full-precision policy remembers.
        for (name, kept) in states.iter().zip(&mut kept) {
            let tensor = sample.get(name).ok_or_else(|| PipelineError::internal("a state has no sample"))?;
            if !kept.set(tensor) {
                return Err(PipelineError::internal("a sample has another type than its state"));
            }
            session.write_state(name, kept.view())?;
        }
        let inputs: Vec<TensorView<'_>> = given.iter().map(Elements::view).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = found.iter_mut().map(Elements::view_mut).collect();
        session.run(&inputs, &mut outputs)?;
        for ((name, found), error) in names.iter().zip(&found).zip(&mut errors) {
            let teacher = expected.get(name).ok_or_else(|| PipelineError::internal("an output has no teacher"))?;
            error.add_numbers(found.to_f64(), teacher.to_f64());
        }
    }
    let of = |(name, error): (String, ActionError)| OutputError {
        name,
        mse: error.mse(),
        max: error.max(),
        teacher_rms: error.reference_rms(),
        n_samples: samples.len(),
    };
    Ok(names.into_iter().zip(errors).map(of).collect())
}

/// Flags that change the result, in a fixed order.
fn flags(options: &BuildOptions, is_quantized: bool, control: Option<&Control>) -> Vec<String> {
    let mut flags = Vec::new();
    if !is_quantized {
        flags.push(format!("bits={}", options.passes.precision));
        if options.passes.precision != Precision::F32 {
            flags.push(format!("edge-bits={}", options.passes.edge_bits));
        }
        if options.passes.precision.needs_data() {
            flags.push(format!("observer={}", options.passes.calibrate.observer));
            flags.push(format!("calibration-samples={}", options.n_calibration));
        }
    }
    flags.extend(options.import.dims.iter().map(|(name, extent)| format!("dim:{name}={extent}")));
    flags.extend(options.import.outputs.iter().flatten().map(|name| format!("output={name}")));
    flags.extend(options.map.inputs.iter().map(|(input, key)| format!("map:{input}={key}")));
    flags.extend(options.policy.bounds.iter().map(|(low, high)| format!("bounds={low:?}..{high:?}")));
    flags.extend(
        options.policy.sampler.iter().flat_map(SamplerChoice::to_facts).map(|(key, value)| format!("{key}={value}")),
    );
    flags.extend(options.policy.wires.iter().map(|(input, output)| format!("wire:{input}={output}")));
    flags.extend(options.policy.states.iter().map(|states| format!("state={states}")));
    flags.extend(options.policy.control_rate_hz.map(|rate| format!("control-rate-hz={rate:?}")));
    // How its actions are given out is part of the artifact, and changes no number.
    flags.extend(control.and_then(|control| control.chunk).map(|chunk| format!("chunk-length={}", chunk.length)));
    flags
}

/// Notes that a user should see without asking: everything but declined rewrites.
pub fn is_important(note: &Note) -> bool {
    note.kind != NoteKind::Declined
}
