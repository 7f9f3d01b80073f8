//! Training inside a build: from data and a prepared graph to a checkpoint, and
//! from a checkpoint to a build.
//!
//! A model that is compiled with training goes through a checkpoint as well, in
//! memory: `compile model.onnx` and `train` followed by `compile policy.ckpt`
//! give the same bytes. Error figures are part of the checkpoint, so building
//! from it needs neither model nor data.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use qail_artifact::schema::Provenance;
use qail_passes::{Note, PassContext, PassManager, PipelineOptions, Precision, pipeline::finish, pipeline::prepare};
use qail_train::{
    checkpoint::{Checkpoint, CheckpointError},
    options::{Method, TrainOptions},
    parameters::Parameter,
    trainer::{Evaluation, Setup, State, StepReport, Trainer, Watch},
};
use sha2::{Digest, Sha256};

use super::{
    BuildOptions, Demonstrations, Inputs, Observer, Opened, PipelineError, Quantized, SamplerChoice, TrainingRows,
    compare, control, deployed::deployed, flags, head, plan_of, run_passes,
};
use crate::files::{self, hex, write_atomic};

/// Samples that the units of biases are measured on.
const N_UNIT_SAMPLES: usize = 64;
/// Prefix of facts that are figures of the artifact.
const EVALUATION: &str = "eval:";
/// Prefix of facts that are flags.
const FLAG: &str = "flag:";
/// What to say if nothing was learned.
const NO_GAIN: &str = "training found nothing that does better on held-out episodes than where it began, and that is \
    kept; try more episodes, a lower --lr, or --method ptq, which rounds with more care";
/// Facts that are known once a run is over; they do not tell runs apart.
const OUTCOME: [&str; 2] = ["complete", "reproducible"];

/// How to train.
#[derive(Clone, Debug)]
pub struct Training {
    /// Terms of the loss; `None` for what precision and data allow.
    pub method: Option<Method>,
    /// What the result depends on; its method is ignored.
    pub options: TrainOptions,
    /// Steps of an episode over which the states of a recurrent policy are followed.
    pub window: usize,
    /// Threads, which the result does not depend on.
    pub threads: usize,
    /// Where finished runs are looked for and kept.
    pub cache_dir: Option<PathBuf>,
    /// Where the state is kept while training.
    pub save: Option<Save>,
}

/// A file that holds the state of a run.
#[derive(Clone, Debug)]
pub struct Save {
    /// The file.
    pub path: PathBuf,
    /// Updates between two versions.
    pub every: u64,
    /// Go on from the file, if it is there.
    pub resume: bool,
}

/// The method of a build, and a note if it was chosen for the user.
///
/// # Errors
/// A method that the precision or the data do not allow.
pub(super) fn method(
    training: &Training,
    precision: Precision,
    has_actions: bool,
) -> Result<(Method, Option<String>), PipelineError> {
    let refuse = |method: Method, why: String| Err(PipelineError::Method { method, why });
    match training.method {
        Some(method) if method.trains() && precision.activation_bits().is_none() => {
            let why =
                format!("{precision} keeps float activations, and only integer precisions (w8a8, w4a8, w4a4) train");
            refuse(method, format!("{why}; leave --method out, or choose another -b"))
        }
        Some(method) if method.needs_actions() && !has_actions => {
            refuse(method, "it imitates actions, and the data has none".to_owned())
        }
        Some(method) => Ok((method, None)),
        None if precision.activation_bits().is_none() => Ok((Method::Ptq, None)),
        None if has_actions => Ok((Method::QailQbc, None)),
        None => {
            let note = "the data has observations and no actions: training clones the full-precision policy (qbc)";
            Ok((Method::Qbc, Some(note.to_owned())))
        }
    }
}

/// What training left, for those who asked for nothing else.
#[derive(Debug)]
pub struct Trained {
    /// What it is.
    pub method: Method,
    /// What the artifact will be, for example `w4a4+e8+o16`.
    pub precision: String,
    /// Updates.
    pub steps: u64,
    /// Updates behind the parameters that were kept.
    pub best_step: u64,
    /// False if it was stopped before the last update.
    pub complete: bool,
    /// Figures of the artifact on held-out steps, by name.
    pub evaluation: BTreeMap<String, f64>,
    /// Remarks.
    pub notes: Vec<String>,
    /// Remarks of the passes.
    pub pass_notes: Vec<Note>,
    /// The data.
    pub demonstrations: Option<Demonstrations>,
}

/// Trains a model; the checkpoint is where [`Training::save`] says.
///
/// # Errors
/// Everything that is wrong with the model or the data, and training that fails.
pub fn train(model: &Path, options: &BuildOptions, observer: &mut dyn Observer) -> Result<Trained, PipelineError> {
    let mut opened = super::open(model, options, observer)?;
    if opened.is_quantized {
        return Err(PipelineError::AlreadyQuantized { asked: "training".to_owned() });
    }
    let method = opened.method(options)?;
    let training = options.training.as_ref().filter(|_| method.trains()).ok_or_else(|| PipelineError::Method {
        method,
        why: format!("it does not train; `qailc compile` builds {} from the model", options.passes.precision),
    })?;
    let checkpoint = trained(&mut opened, training, method, options, observer)?;
    Ok(Trained {
        method,
        precision: options.passes.effective(),
        steps: checkpoint.state.step,
        best_step: checkpoint.state.best_step,
        complete: checkpoint.facts.get("complete").map(String::as_str) == Some("true"),
        evaluation: evaluation(&checkpoint)?,
        notes: opened.notes,
        pass_notes: opened.pass_notes,
        demonstrations: opened.demonstrations,
    })
}

/// Trains, or takes the result from the cache.
pub(super) fn trained(
    opened: &mut Opened,
    training: &Training,
    method: Method,
    options: &BuildOptions,
    observer: &mut dyn Observer,
) -> Result<Checkpoint, PipelineError> {
    let Some(demos) = &opened.demos else {
        return Err(PipelineError::NeedsData { precision: options.passes.precision });
    };
    let (head, guess) = opened.head(options)?;
    opened.notes.extend(guess);
    let train_options = TrainOptions { method, seed: options.seed, ..training.options.clone() };
    let facts = facts(opened, &head::head_name(&head), &train_options, options);
    let cached = training.cache_dir.as_ref().map(|folder| folder.join(format!("{}.ckpt", key(&facts))));
    if let Some(found) = cached.as_ref().and_then(|path| from_cache(path, &facts, &mut opened.notes)) {
        return Ok(found);
    }
    let resumed = match &training.save {
        Some(save) if save.resume => read_if_there(&save.path)?,
        _ => None,
    };
    if let Some(resumed) = &resumed {
        same_run(resumed, &facts)?;
    }
    let window = opened.followed(training.window);
    let rows = TrainingRows::read(demos, Inputs { follow: window, ..opened.inputs() }, super::N_HELD_OUT)?;
    let n_train = rows.train.n_rows();
    if n_train < rows.n_rows {
        let (n, what) = (rows.n_rows, if window > 1 { "windows" } else { "steps" });
        opened.notes.push(format!("{n_train} of {n} {what} fit into memory, evenly spread; training sees those"));
    }
    let prepared = prepare_graph(opened, options, observer)?;
    let demonstrations = opened.demonstrations.as_ref().map(|d| d.calibration.as_slice()).unwrap_or_default();
    let TrainingRows { train, held_out, .. } = rows;
    let mut trainer = Trainer::new(Setup {
        prepared: &prepared,
        teacher: &opened.teacher,
        head,
        train,
        held_out,
        denoise: opened.denoise.clone(),
        window,
        samples: demonstrations.get(..N_UNIT_SAMPLES.min(demonstrations.len())).unwrap_or_default(),
        options: train_options.clone(),
        threads: training.threads,
    })?;
    opened.notes.extend(trainer.notes().iter().cloned());
    let names: Vec<String> = trainer.parameters().iter().map(|parameter| parameter.name.clone()).collect();
    let mut checkpoint = Checkpoint { facts, graph: prepared, names, state: trainer.state() };
    set_outcome(&mut checkpoint, false, true);
    if let Some(resumed) = resumed {
        if resumed.names != checkpoint.names {
            return Err(PipelineError::Resume { what: "its parameters are others".to_owned() });
        }
        let reproducible = resumed.facts.get("reproducible").map(String::as_str) != Some("false");
        set_outcome(&mut checkpoint, false, reproducible);
        trainer.restore(resumed.state)?;
    }
    let steps = train_options.steps;
    let mut relay = Relay { observer, save: training.save.as_ref(), checkpoint: &mut checkpoint, steps };
    let finished = trainer.run(&mut relay)?;
    checkpoint.state = trainer.state();
    if checkpoint.state.best_step == 0 && checkpoint.state.step > 0 {
        opened.notes.push(NO_GAIN.to_owned());
    }
    let reproducible = finished && checkpoint.facts.get("reproducible").map(String::as_str) != Some("false");
    set_outcome(&mut checkpoint, finished, reproducible);
    evaluate(&mut checkpoint, opened, options, observer)?;
    if let Some(save) = &training.save {
        write_atomic(&save.path, &to_bytes(&checkpoint)?)?;
    }
    if let Some(path) = cached.filter(|_| finished) {
        into_cache(&path, &checkpoint, &mut opened.notes)?;
    }
    Ok(checkpoint)
}

/// The graph that trains.
fn prepare_graph(
    opened: &mut Opened,
    options: &BuildOptions,
    observer: &mut dyn Observer,
) -> Result<qail_ir::Graph, PipelineError> {
    let passes = prepare(&PipelineOptions { trains: true, ..options.passes });
    let passed = run_passes(&opened.teacher, opened.samples(), passes, options.seed, observer)?;
    let new = |note: &Note| !opened.pass_notes.contains(note);
    let notes: Vec<Note> = passed.notes.into_iter().filter(new).collect();
    opened.pass_notes.extend(notes);
    // A build from memory and one from a file begin with the same ids.
    passed.graph.compact().map_err(|_| PipelineError::Internal("a verified graph is well-formed"))
}

/// Builds the artifact once to measure what it does on held-out steps.
fn evaluate(
    checkpoint: &mut Checkpoint,
    opened: &Opened,
    options: &BuildOptions,
    observer: &mut dyn Observer,
) -> Result<(), PipelineError> {
    let built = finished(checkpoint, options.passes, observer)?;
    let held_out = opened.demonstrations.as_ref().map(|d| d.held_out.as_slice()).unwrap_or_default();
    if held_out.is_empty() {
        return Ok(());
    }
    let sampler = opened.sampler.as_ref();
    let bytes = plan_of(&*deployed(&built.graph, sampler)?, sampler, options.seed)?.to_file()?;
    for error in compare(&opened.teacher, bytes, held_out, (sampler, options.seed), observer)? {
        for (figure, value) in error.figures() {
            checkpoint.facts.insert(format!("{EVALUATION}{figure}"), format!("{value:?}"));
        }
    }
    Ok(())
}

/// From a checkpoint to the graph that runs.
///
/// # Errors
/// Trained numbers that do not lower, for example accumulators beyond 32 bits.
pub(super) fn finished(
    checkpoint: &Checkpoint,
    passes: PipelineOptions,
    observer: &mut dyn Observer,
) -> Result<super::Passed, PipelineError> {
    let mut graph = checkpoint.trained()?;
    observer.after_pass("train", &graph);
    let observer = std::cell::RefCell::new(observer);
    let mut cx = PassContext::new();
    PassManager::new(finish(&passes)).run_with(&mut graph, &mut cx, &mut |pass, _, graph| {
        observer.borrow_mut().after_pass(pass.name(), graph);
    })?;
    Ok(super::Passed { graph, lowering: cx.lowering.take(), notes: std::mem::take(&mut cx.notes) })
}

/// A checkpoint as a build: nothing but its own content is needed.
pub(super) fn quantized(
    checkpoint: &Checkpoint,
    notes: Vec<String>,
    mut pass_notes: Vec<Note>,
    observer: &mut dyn Observer,
) -> Result<Quantized, PipelineError> {
    let fact = |name: &'static str| {
        let value = checkpoint.facts.get(name).map(String::as_str);
        value.ok_or(PipelineError::Fact { name })
    };
    let precision: Precision = fact("precision")?.parse().map_err(|_| PipelineError::Fact { name: "precision" })?;
    let edge_bits = match fact("edge-bits")? {
        "4" => 4,
        "8" => 8,
        _ => return Err(PipelineError::Fact { name: "edge-bits" }),
    };
    let passes = PipelineOptions { edge_bits, trains: true, ..PipelineOptions::new(precision) };
    let passed = finished(checkpoint, passes, observer)?;
    pass_notes.extend(passed.notes);
    let sampler =
        SamplerChoice::from_facts(&checkpoint.facts).map(|choice| choice.resolve(&passed.graph)).transpose()?;
    let evaluation = evaluation(checkpoint)?;
    let control = control::of_facts(&checkpoint.facts)?;
    let flags = checkpoint.facts.iter().filter(|(name, _)| name.starts_with(FLAG)).map(|(_, flag)| flag.clone());
    let provenance = Provenance {
        version: fact("version")?.to_owned(),
        model_sha256: fact("model-sha256")?.to_owned(),
        data_sha256: fact("data-sha256")?.to_owned(),
        flags: flags.collect(),
        seed: fact("seed")?.parse().map_err(|_| PipelineError::Fact { name: "seed" })?,
        method: fact("method")?.to_owned(),
        reproducible: fact("reproducible")? == "true",
        isa: fact("isa")?.to_owned(),
    };
    Ok(Quantized {
        teacher: None,
        sampler: sampler.map(|(sampler, _)| sampler),
        graph: passed.graph,
        lowering: passed.lowering,
        notes,
        pass_notes,
        demonstrations: None,
        name: fact("name")?.to_owned(),
        control_rate_hz: fact("control-rate-hz")?
            .parse()
            .map_err(|_| PipelineError::Fact { name: "control-rate-hz" })?,
        control,
        precision: passes.effective(),
        provenance,
        evaluation,
    })
}

/// Figures of the artifact that are part of a checkpoint.
fn evaluation(checkpoint: &Checkpoint) -> Result<BTreeMap<String, f64>, PipelineError> {
    let figures = checkpoint.facts.iter().filter_map(|(name, value)| Some((name.strip_prefix(EVALUATION)?, value)));
    figures
        .map(|(name, value)| match value.parse() {
            Ok(value) => Ok((name.to_owned(), value)),
            Err(_) => Err(PipelineError::Fact { name: "eval" }),
        })
        .collect()
}

/// Everything that decides a run, by name.
fn facts(
    opened: &Opened,
    head: &str,
    train_options: &TrainOptions,
    options: &BuildOptions,
) -> BTreeMap<String, String> {
    let mut all_flags = flags(options, false, opened.control.as_ref());
    all_flags.extend(train_options.facts().into_iter().map(|(name, value)| format!("{name}={value}")));
    all_flags.push(format!("head={head}"));
    if let window @ 2.. = opened.followed(options.training.as_ref().map_or(1, |training| training.window)) {
        all_flags.push(format!("bptt={window}"));
    }
    let numbered = all_flags.into_iter().enumerate().map(|(i, flag)| (format!("{FLAG}{i:04}"), flag));
    [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("name", opened.name.clone()),
        ("model-sha256", opened.model_sha256.clone()),
        ("data-sha256", opened.data_sha256.clone()),
        ("precision", options.passes.precision.to_string()),
        ("edge-bits", options.passes.edge_bits.to_string()),
        ("seed", options.seed.to_string()),
        ("method", train_options.method.to_string()),
        ("isa", isa().to_owned()),
        ("control-rate-hz", format!("{:?}", options.policy.control_rate_hz.unwrap_or(0.0))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .chain(control::to_facts(opened.control.as_ref()))
    .chain(options.policy.sampler.iter().flat_map(SamplerChoice::to_facts))
    .chain(numbered)
    // Names of the model are the user's; a fact is one line.
    .map(|(name, value)| (name, value.replace(['\n', '\r'], " ")))
    .collect()
}

/// The class of instruction sets that decides how float sums are grouped in the
/// backward pass; forward values do not depend on it.
fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "x86_64+avx512";
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return "x86_64+avx2";
        }
    }
    std::env::consts::ARCH
}

/// True for what tells runs apart.
fn decides(name: &str) -> bool {
    !OUTCOME.contains(&name) && !name.starts_with(EVALUATION) && !name.starts_with(control::CONTROL)
}

fn key(facts: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for (name, value) in facts.iter().filter(|(name, _)| decides(name)) {
        hash.update(format!("{name} = {value}\n"));
    }
    hex(&hash.finalize())
}

fn set_outcome(checkpoint: &mut Checkpoint, complete: bool, reproducible: bool) {
    for (name, value) in OUTCOME.into_iter().zip([complete, reproducible]) {
        checkpoint.facts.insert(name.to_owned(), value.to_string());
    }
}

/// Refuses a checkpoint of another run, and names the first difference.
fn same_run(found: &Checkpoint, facts: &BTreeMap<String, String>) -> Result<(), PipelineError> {
    let theirs: BTreeMap<&String, &String> = found.facts.iter().filter(|(name, _)| decides(name)).collect();
    let ours: BTreeMap<&String, &String> = facts.iter().filter(|(name, _)| decides(name)).collect();
    for (&name, &value) in &ours {
        match theirs.get(name) {
            Some(theirs) if *theirs == value => {}
            Some(theirs) => {
                return Err(PipelineError::Resume {
                    what: format!("it has {name} `{theirs}`, this run has `{value}`"),
                });
            }
            None => return Err(PipelineError::Resume { what: format!("it has no {name}") }),
        }
    }
    if theirs.len() > ours.len() {
        return Err(PipelineError::Resume { what: "it has more options".to_owned() });
    }
    Ok(())
}

/// Reads a checkpoint.
///
/// # Errors
/// Files that cannot be read, and everything that is no sound checkpoint.
pub fn read_checkpoint(path: &Path) -> Result<Checkpoint, PipelineError> {
    let failed = |source| PipelineError::Read { path: path.to_owned(), source };
    let bytes = files::read(path).map_err(failed)?;
    Checkpoint::from_bytes(&bytes)
        .map_err(|source| PipelineError::Checkpoint { path: path.to_owned(), source: Box::new(source) })
}

fn read_if_there(path: &Path) -> Result<Option<Checkpoint>, PipelineError> {
    if path.exists() { read_checkpoint(path).map(Some) } else { Ok(None) }
}

fn to_bytes(checkpoint: &Checkpoint) -> Result<Vec<u8>, CheckpointError> {
    checkpoint.to_bytes()
}

/// A cache is a convenience: whatever is wrong with it is a note.
fn from_cache(path: &Path, facts: &BTreeMap<String, String>, notes: &mut Vec<String>) -> Option<Checkpoint> {
    if !path.exists() {
        return None;
    }
    let found = read_checkpoint(path).and_then(|found| same_run(&found, facts).map(|()| found));
    match found {
        Ok(mut found) => {
            // What becomes of the actions is what was asked for now.
            found.facts.retain(|name, _| !name.starts_with(control::CONTROL));
            let control = facts.iter().filter(|(name, _)| name.starts_with(control::CONTROL));
            found.facts.extend(control.map(|(name, value)| (name.clone(), value.clone())));
            notes.push(format!("training was found in the cache, `{}`", path.display()));
            Some(found)
        }
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            notes.push(format!("`{}` in the cache is not used: {why}", path.display()));
            None
        }
    }
}

fn into_cache(path: &Path, checkpoint: &Checkpoint, notes: &mut Vec<String>) -> Result<(), PipelineError> {
    let bytes = to_bytes(checkpoint)?;
    // The folder may be missing, or not ours to write.
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = folder
        .map_err(|error| error.to_string())
        .and_then(|()| write_atomic(path, &bytes).map_err(|error| error.source.to_string()));
    if let Err(why) = written {
        notes.push(format!("the result of training was not kept in the cache, `{}`: {why}", path.display()));
    }
    Ok(())
}

/// Tells the observer of the build what the trainer tells.
struct Relay<'a> {
    observer: &'a mut dyn Observer,
    save: Option<&'a Save>,
    checkpoint: &'a mut Checkpoint,
    steps: u64,
}

impl Watch for Relay<'_> {
    fn step(&mut self, report: &StepReport) {
        self.observer.trained(report, self.steps);
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.observer.evaluated(evaluation);
    }

    fn stop(&mut self) -> bool {
        self.observer.stop_training()
    }

    fn wants_state(&mut self, step: u64) -> bool {
        self.save.is_some_and(|save| step.is_multiple_of(save.every.max(1)))
    }

    fn save(&mut self, state: &State, _: &[Parameter]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(save) = self.save else { return Ok(()) };
        self.checkpoint.state = state.clone();
        write_atomic(&save.path, &to_bytes(self.checkpoint)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(method: Option<Method>) -> Training {
        Training { method, options: TrainOptions::default(), window: 1, threads: 1, cache_dir: None, save: None }
    }

    #[test]
    fn the_method_follows_from_precision_and_data() {
        let pick = |given, precision, has_actions| {
            method(&training(given), precision, has_actions).map(|(method, note)| (method, note.is_some()))
        };
        assert_eq!(pick(None, Precision::W4A4, true).unwrap(), (Method::QailQbc, false));
        assert_eq!(pick(None, Precision::W4A4, false).unwrap(), (Method::Qbc, true));
        assert_eq!(pick(None, Precision::W4A16, true).unwrap(), (Method::Ptq, false));
        assert_eq!(pick(Some(Method::Ptq), Precision::W4A4, true).unwrap(), (Method::Ptq, false));
        assert!(pick(Some(Method::Qail), Precision::W4A4, false).is_err());
        assert!(pick(Some(Method::Qbc), Precision::F32, true).is_err());
    }

    #[test]
    fn keys_tell_runs_apart() {
        let one = BTreeMap::from([("seed".to_owned(), "1".to_owned())]);
        let two = BTreeMap::from([("seed".to_owned(), "2".to_owned())]);
        assert_ne!(key(&one), key(&two));
        assert_eq!(key(&one).len(), 64);
    }
}
