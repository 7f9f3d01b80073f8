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
mod control;
mod demonstrations;
mod deployed;
mod error;
mod given;
mod head;
mod layers;
mod made;
mod sampler;
mod stages;
mod state;
mod training;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use qail_artifact::schema::{Control, Layer, Provenance};
use qail_ir::{
    ConstData, Constant,
    interp::{Interpreter, Tensor},
};
use qail_passes::{
    Note, NoteKind, Pass, PassContext, PassManager, PipelineOptions, Precision, Sampler, Samples, default_pipeline,
    pipeline::given_pipeline, quant::LoweringReport,
};
use qail_runtime::{ArtifactBytes, DeviceSpec, LoadOptions, PortInfo, Session, TensorView, TensorViewMut};
use qail_train::{Head, denoise::Denoise, options::Method};

pub use built::Built;
pub use control::ChunkChoice;
pub use demonstrations::{Demonstrations, Sample, TrainingRows, open as open_demos};
pub use error::PipelineError;
pub use head::{HeadChoice, HeadKind};
pub use made::Inputs;
pub use sampler::SamplerChoice;
pub use state::StateChoice;
// What an observer hears of.
pub use qail_ir::Graph;
pub use qail_train::trainer::{Evaluation, StepReport};
pub use training::{Save, Trained, Training, read_checkpoint, train};

use crate::{
    data::{DemoMap, Demos},
    elements::Elements,
    eval::metrics::ActionError,
    files::sha256_of,
    frontend::ImportOptions,
    policy::Policy,
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
    /// Models behind the first one, whose outputs they read.
    pub stages: Vec<PathBuf>,
    /// What the model files do not say.
    pub policy: Policy,
    /// How to train; `None` for post-training quantization alone.
    pub training: Option<Training>,
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

/// A model and its data, read and not yet changed.
struct Opened {
    teacher: Graph,
    /// It brings quantizers, which are kept.
    is_quantized: bool,
    demos: Option<Demos>,
    demonstrations: Option<Demonstrations>,
    name: String,
    model_sha256: String,
    data_sha256: String,
    control: Option<Control>,
    /// The model is one step of denoising.
    sampler: Option<Sampler>,
    denoise: Option<Denoise>,
    notes: Vec<String>,
    pass_notes: Vec<Note>,
}

impl Opened {
    /// What is done to the model; notes if that was chosen for the user.
    fn method(&mut self, options: &BuildOptions) -> Result<Method, PipelineError> {
        if self.is_quantized {
            return given::method(options);
        }
        let Some(training) = &options.training else { return Ok(Method::Ptq) };
        let has_actions = self.demos.as_ref().is_some_and(|demos| demos.actions().is_some());
        let precision = options.passes.precision;
        let (method, note) = training::method(training, precision, has_actions)?;
        self.notes.extend(note);
        if training.method.is_none() && !method.trains() && self.demos.is_some() {
            let why = "keeps float activations: nothing is trained (ptq), the data only measures the error";
            self.notes.push(format!("{precision} {why}"));
        }
        if let Some(weights) = self.demos.as_ref().and_then(Demos::weights).filter(|_| method.trains()) {
            self.notes.push(format!("array `{}` says how much each step weighs in training", weights.key));
        }
        Ok(method)
    }

    /// Which outputs are the action; a note if that was guessed.
    fn head(&self, options: &BuildOptions) -> Result<(Head, Option<String>), PipelineError> {
        if let Some(sampler) = &self.sampler {
            return Ok((Head::Deterministic { output: sampler.output.clone() }, None));
        }
        head::resolve(&self.teacher, &options.policy.head, self.n_actions())
    }

    /// Length of a recorded action, if there are any.
    fn n_actions(&self) -> Option<usize> {
        self.demos.as_ref().and_then(Demos::actions).map(|field| field.info.row_len())
    }

    /// What a control loop makes of the outputs; a note if that was guessed.
    /// Nothing if nobody said anything and nothing can be told.
    fn control(&self, options: &BuildOptions) -> Result<(Option<Control>, Option<String>), PipelineError> {
        let policy = &options.policy;
        let is_named = policy.head.outputs.keys().any(|part| part != "log_std");
        let head = match self.head(options) {
            Ok((head, _)) => head,
            Err(_) if policy.chunk.is_none() && !is_named => return Ok((None, None)),
            Err(error) => return Err(error),
        };
        let action = head::action(&head);
        let (chunk, note) = control::chunk(policy.chunk.as_ref(), &self.teacher, action, self.n_actions())?;
        let says_something = chunk.is_some() || is_named;
        // What a control loop gets is what the sampler makes of the prediction.
        let action = self.sampler.as_ref().map_or(action, |sampler| &sampler.action);
        Ok((says_something.then(|| Control { action: action.to_owned(), chunk }), note))
    }

    /// Actions in a chunk, if one action a step was recorded for it.
    fn window(&self) -> Option<usize> {
        let Control { action, chunk } = self.control.as_ref()?;
        let output = self.sampler.as_ref().map_or(action, |sampler| &sampler.output);
        let output = self.teacher.output_named(output)?;
        let (length, n) = control::axes(&self.teacher.ty(output).shape).filter(|_| chunk.is_some())?;
        (length > 1 && self.n_actions() == Some(n)).then_some(length)
    }

    /// Steps over which the states are followed in training: 1 without states,
    /// with caches, whose places are given, and where a row is a chunk already.
    fn followed(&self, window: usize) -> usize {
        let is_recurrent = !self.teacher.states.is_empty()
            && self.teacher.states.iter().all(|state| state.limit.is_none() && state.element_axis.is_some());
        if is_recurrent && self.window().is_none() && self.denoise.is_none() { window.max(1) } else { 1 }
    }

    /// How the inputs come from the data.
    fn inputs(&self) -> Inputs<'_> {
        Inputs { graph: &self.teacher, denoise: self.denoise.as_ref(), window: self.window(), follow: 1 }
    }

    fn samples(&self) -> Option<&dyn Samples> {
        self.demonstrations.as_ref().map(|demonstrations| &demonstrations.calibration as &dyn Samples)
    }
}

fn open(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Opened, PipelineError> {
    let imported = stages::import(model, options, observer)?;
    let mut teacher = imported.graph;
    let state_note = state::declare(&mut teacher, options.policy.states.as_ref())?;
    let is_quantized = given::accepted(&teacher, options)?;
    if options.passes.precision.needs_data() && options.demos.is_none() && !is_quantized {
        return Err(PipelineError::NeedsData { precision: options.passes.precision });
    }
    let mut opened = Opened {
        teacher,
        is_quantized,
        demos: None,
        demonstrations: None,
        name: model.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        model_sha256: imported.sha256,
        data_sha256: String::new(),
        control: None,
        sampler: None,
        denoise: None,
        notes: imported.notes,
        pass_notes: Vec::new(),
    };
    opened.notes.extend(state_note);
    if let Some(choice) = &options.policy.sampler {
        let (sampler, note) = choice.resolve(&opened.teacher)?;
        let denoise = Denoise::new(&sampler, options.seed);
        opened.denoise = Some(denoise.map_err(|error| PipelineError::Sampler { what: error.to_string() })?);
        opened.sampler = Some(sampler);
        opened.notes.extend(note);
        if !options.policy.bounds.is_empty() {
            let what = "bounds of [actions] cannot go with [sampler]: its `clip` bounds the action";
            return Err(PipelineError::Sampler { what: what.to_owned() });
        }
    }
    if let Some(path) = &options.demos {
        let inputs = Inputs { denoise: opened.denoise.as_ref(), ..Inputs::from(&opened.teacher) };
        opened.demos = Some(demonstrations::open(path, inputs, &options.map)?);
        let failed = |source| PipelineError::Read { path: path.clone(), source };
        opened.data_sha256 = sha256_of(path).map_err(failed)?;
    }
    if !options.policy.bounds.is_empty() {
        let (head, _) = opened.head(options)?;
        bounds::clip(&mut opened.teacher, head::action(&head), &options.policy.bounds)?;
    }
    let (control, note) = opened.control(options)?;
    opened.control = control;
    opened.notes.extend(note);
    if let Some(demos) = &opened.demos {
        let has_actions = demos.actions().is_some();
        if opened.denoise.is_some() && !has_actions {
            let what = "a sampler needs recorded actions: the noise that it takes away is added to them";
            return Err(PipelineError::Sampler { what: what.to_owned() });
        }
        opened.demonstrations = Some(Demonstrations::read(demos, opened.inputs(), options.n_calibration, N_HELD_OUT)?);
    }
    Ok(opened)
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
        opened.notes.push(given::note(passed.lowering.as_ref()));
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

/// A model that can be compiled.
#[derive(Debug)]
pub struct Checked {
    /// What would be built, for example `w4a4+e8+o16`.
    pub precision: String,
    /// Layers, as the report of a build would list them.
    pub layers: Vec<Layer>,
    /// Remarks of the frontend.
    pub notes: Vec<String>,
    /// True if compiling needs recorded observations.
    pub needs_data: bool,
}

/// Goes all the way to kernels without data: two seeded random observations
/// stand in for recorded ones, so that every pass and kernel is tried. Their
/// ranges are thrown away.
///
/// # Errors
/// Whatever [`compile`] would say about the model.
pub fn check(model: &Path, options: &BuildOptions) -> Result<Checked, PipelineError> {
    let mut imported = stages::import(model, options, &mut Silent)?;
    imported.notes.extend(state::declare(&mut imported.graph, options.policy.states.as_ref())?);
    let sampler = options.policy.sampler.as_ref().map(|choice| choice.resolve(&imported.graph)).transpose()?;
    imported.notes.extend(sampler.as_ref().and_then(|(_, note)| note.clone()));
    let sampler = sampler.map(|(sampler, _)| sampler);
    let samples: Vec<Sample> = (0..2).map(|seed| random_sample(&imported.graph, seed)).collect::<Result<_, _>>()?;
    let is_quantized = given::accepted(&imported.graph, options)?;
    if let Some(chunk) = &options.policy.chunk {
        let (head, _) = head::resolve(&imported.graph, &options.policy.head, None)?;
        control::chunk(Some(chunk), &imported.graph, head::action(&head), None)?;
    }
    let passes = if is_quantized { given_pipeline() } else { default_pipeline(&options.passes) };
    let passed = run_passes(&imported.graph, Some(&samples), passes, options.seed, &mut Silent)?;
    plan_of(&*deployed::deployed(&passed.graph, sampler.as_ref())?, sampler.as_ref(), options.seed)?;
    Ok(Checked {
        precision: if is_quantized { given::PRECISION.to_owned() } else { options.passes.effective() },
        layers: layers::layers(&passed.graph, passed.lowering.as_ref()),
        notes: imported.notes,
        needs_data: options.passes.precision.needs_data() && !is_quantized,
    })
}

/// A seeded random value for every input.
fn random_sample(graph: &Graph, seed: u64) -> Result<Sample, PipelineError> {
    let inputs = graph.inputs().iter().map(|&id| {
        let node = graph.node(id);
        let ty = node.outputs.first().ok_or_else(|| PipelineError::internal("an input has no type"))?.clone();
        let constant = Constant { ty, data: ConstData::Rand(seed) };
        let tensor =
            Tensor::from_constant(&constant).map_err(|_| PipelineError::internal("random numbers cannot be read"))?;
        Ok((node.name.clone(), tensor))
    });
    inputs.collect()
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
        let teacher = deployed::deployed(teacher, sampler)?;
        let held_out = deployed::judged(&teacher, held_out, sampler, quantized.provenance.seed);
        for error in compare(&teacher, bytes, &held_out, observer)? {
            plan.manifest.evaluation.extend(error.figures());
        }
    }
    growing.finish(plan.manifest, quantized)
}

fn plan_of(graph: &Graph, sampler: Option<&Sampler>, seed: u64) -> Result<qail_codegen::Plan, PipelineError> {
    let noise = sampler.into_iter().flat_map(deployed::noise).collect();
    Ok(qail_codegen::build(graph, &qail_codegen::BuildOptions { noise, seed, ..Default::default() })?)
}

/// Runs the artifact and the teacher on the same steps.
fn compare(
    teacher: &Graph,
    bytes: impl Into<ArtifactBytes>,
    samples: &[Sample],
    observer: &mut dyn Observer,
) -> Result<Vec<OutputError>, PipelineError> {
    let no_room = || PipelineError::internal("an input or output holds codes");
    let judge = Interpreter::new(teacher)?;
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
