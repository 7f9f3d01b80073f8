//! A model and its data, read and resolved: what everything after it starts from.

use std::path::Path;

use qail_artifact::schema::Control;
use qail_ir::Graph;
use qail_passes::{Note, Sampler, Samples};
use qail_train::{Head, denoise::Denoise, options::Method};

use super::{
    BuildOptions, Demonstrations, Inputs, N_HELD_OUT, Observer, PipelineError, Silent, bounds, control, demonstrations,
    given, head, stages, state, training, weights,
};
use crate::{
    data::{DemoMap, Demos},
    files::sha256_of,
};

/// A model and its data, read and not yet changed.
pub(super) struct Opened {
    pub(super) teacher: Graph,
    /// It brings quantizers, which are kept.
    pub(super) is_quantized: bool,
    pub(super) demos: Option<Demos>,
    pub(super) demonstrations: Option<Demonstrations>,
    pub(super) name: String,
    pub(super) model_sha256: String,
    pub(super) data_sha256: String,
    pub(super) control: Option<Control>,
    /// The model is one step of denoising.
    pub(super) sampler: Option<Sampler>,
    pub(super) denoise: Option<Denoise>,
    pub(super) notes: Vec<String>,
    pub(super) pass_notes: Vec<Note>,
}

impl Opened {
    /// What is done to the model; notes if that was chosen for the user.
    pub(super) fn method(&mut self, options: &BuildOptions) -> Result<Method, PipelineError> {
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
    pub(super) fn head(&self, options: &BuildOptions) -> Result<(Head, Option<String>), PipelineError> {
        if let Some(sampler) = &self.sampler {
            return Ok((Head::Deterministic { output: sampler.output.clone() }, None));
        }
        head::resolve(&self.teacher, &options.policy.head, self.n_actions())
    }

    /// Length of a recorded action, if there are any.
    pub(super) fn n_actions(&self) -> Option<usize> {
        self.demos.as_ref().and_then(Demos::actions).map(|field| field.info.row_len())
    }

    /// What a control loop makes of the outputs; a note if that was guessed.
    /// Nothing if nobody said anything and nothing can be told.
    pub(super) fn control(&self, options: &BuildOptions) -> Result<(Option<Control>, Option<String>), PipelineError> {
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

    /// Opens the recording.
    fn record(&mut self, path: &Path, options: &BuildOptions) -> Result<(), PipelineError> {
        let inputs = Inputs { denoise: self.denoise.as_ref(), ..Inputs::from(&self.teacher) };
        let demos = demonstrations::open(path, inputs, &options.map)?;
        if self.denoise.is_some() && demos.actions().is_none() {
            let what = "a sampler needs recorded actions: the noise that it takes away is added to them";
            return Err(PipelineError::Sampler { what: what.to_owned() });
        }
        self.demos = Some(demos);
        Ok(())
    }

    /// Actions in a chunk, if one action a step was recorded for it.
    pub(super) fn window(&self) -> Option<usize> {
        let Control { action, chunk } = self.control.as_ref()?;
        let output = self.sampler.as_ref().map_or(action, |sampler| &sampler.output);
        let output = self.teacher.output_named(output)?;
        let (length, n) = control::axes(&self.teacher.ty(output).shape).filter(|_| chunk.is_some())?;
        (length > 1 && self.n_actions() == Some(n)).then_some(length)
    }

    /// Steps over which the states are followed in training: 1 without states,
    /// with caches, whose places are given, and where a row is a chunk already.
    pub(super) fn followed(&self, window: usize) -> usize {
        let is_recurrent = !self.teacher.states.is_empty()
            && self.teacher.states.iter().all(|state| state.limit.is_none() && state.element_axis.is_some());
        if is_recurrent && self.window().is_none() && self.denoise.is_none() { window.max(1) } else { 1 }
    }

    /// How the inputs come from the data.
    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs { graph: &self.teacher, denoise: self.denoise.as_ref(), window: self.window(), follow: 1 }
    }

    pub(super) fn samples(&self) -> Option<&dyn Samples> {
        self.demonstrations.as_ref().map(|demonstrations| &demonstrations.calibration as &dyn Samples)
    }
}

/// Reads the model, and what the user said of it.
pub(super) fn read(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Opened, PipelineError> {
    let imported = stages::import(model, options, observer)?;
    let mut teacher = imported.graph;
    weights::check(&teacher)?;
    let state_note = state::declare(&mut teacher, options.policy.states.as_ref())?;
    let is_quantized = given::accepted(&teacher, options)?;
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
    // Without data nothing is mapped, and a slip is one all the same.
    let said = DemoMap { inputs: options.policy.map.clone() };
    for map in [&options.map, &said] {
        map.check(opened.inputs().recorded().map(|(name, _)| name))?;
    }
    Ok(opened)
}

/// Opens the recording of a build as the build would, and says whether the model
/// can learn from it.
///
/// # Errors
/// Whatever [`super::compile`] would say about the model, and about types and
/// shapes of the data.
pub fn open_recording(model: &Path, recording: &Path, options: &BuildOptions) -> Result<Demos, PipelineError> {
    let mut opened = read(model, options, &mut Silent)?;
    opened.record(recording, options)?;
    opened.control(options)?;
    opened.demos.ok_or_else(|| PipelineError::internal("a recording that was opened is there"))
}

/// Reads the model and its data.
pub(super) fn open(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Opened, PipelineError> {
    let mut opened = read(model, options, observer)?;
    if options.passes.precision.needs_data() && options.demos.is_none() && !opened.is_quantized {
        return Err(PipelineError::NeedsData { precision: options.passes.precision });
    }
    if let Some(path) = &options.demos {
        opened.record(path, options)?;
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
        opened.notes.extend(memory_note(&opened.teacher, demos));
        opened.demonstrations = Some(Demonstrations::read(demos, opened.inputs(), options.n_calibration, N_HELD_OUT)?);
    }
    Ok(opened)
}

/// What an error of single steps leaves out, if the policy has a memory.
fn memory_note(teacher: &Graph, demos: &Demos) -> Option<String> {
    if teacher.states.is_empty() {
        return None;
    }
    let mut note = "errors are those of single steps, each from the memory that the float policy has there; `qailc \
                    eval` follows whole episodes with the policy's own"
        .to_owned();
    let limit = teacher.states.iter().filter_map(|state| state.limit).min();
    let longest = demos.episodes().iter().map(std::ops::Range::len).max().unwrap_or(0);
    if let Some(steps) = limit.map(|limit| limit.saturating_add(1)).filter(|&steps| longest as i64 > steps) {
        note += &format!(
            "; episodes of {longest} steps are longer than the {steps} that the cache holds, and start anew there, \
             which `run` does not"
        );
    }
    Some(note)
}
