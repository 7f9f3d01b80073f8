//! `compile`: the command `qailc compile`, with keywords for flags.
//!
//! Flags are read by the command line itself, so defaults, ranges and messages
//! have one definition; `tests/` holds the keywords against `--help`.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::{Duration, Instant},
};

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyDict, PyMapping, PyString},
};
use qailc::{
    cli::{CompileArgs, Exit, Failure},
    pipeline::{Graph, Observer, StepReport},
    report::Report,
};

use crate::exceptions::raise;

/// Between two looks at Python, which may have to wait for its lock.
const BREATH: Duration = Duration::from_millis(50);

/// What a keyword takes.
#[derive(Clone, Copy)]
enum Kind {
    /// A text, a number or a path.
    One,
    /// A sequence of texts, or one.
    Many,
    /// A mapping.
    Pairs,
}

/// Keyword, flag, and what it takes.
const KEYWORDS: [(&str, &str, Kind); 31] = [
    ("bits", "bits", Kind::One),
    ("demos", "demos", Kind::One),
    ("map", "map", Kind::Pairs),
    ("edge_bits", "edge-bits", Kind::One),
    ("method", "method", Kind::One),
    ("seed", "seed", Kind::One),
    ("steps", "steps", Kind::One),
    ("time_budget", "time-budget", Kind::One),
    ("batch", "batch", Kind::One),
    ("lr", "lr", Kind::One),
    ("lr_steps", "lr-steps", Kind::One),
    ("loss", "loss", Kind::One),
    ("lambda_", "lambda", Kind::One),
    ("weight_decay", "weight-decay", Kind::One),
    ("clip", "clip", Kind::One),
    ("ema", "ema", Kind::One),
    ("obs_noise", "obs-noise", Kind::One),
    ("eval_every", "eval-every", Kind::One),
    ("threads", "threads", Kind::One),
    ("bptt", "bptt", Kind::One),
    ("then", "then", Kind::Many),
    ("cache_dir", "cache-dir", Kind::One),
    ("observer", "observer", Kind::One),
    ("calibration_samples", "calibration-samples", Kind::One),
    ("policy", "policy", Kind::One),
    ("action_output", "action-output", Kind::One),
    ("chunk_length", "chunk-length", Kind::One),
    ("chunk_execute", "chunk-execute", Kind::One),
    ("chunk_ensemble", "chunk-ensemble", Kind::One),
    ("outputs", "output", Kind::Many),
    ("dims", "dim", Kind::Pairs),
];

/// Quantizes and trains a model (or takes a checkpoint of `qailc train`) and
/// writes an artifact.
///
/// Keywords are the flags of `qailc compile`, and None is the default of the
/// flag: bits "w4a4", edge_bits 8, and training with "qail+qbc" unless method
/// says otherwise. `out` is the model's name with `.qail` by default.
///
/// `progress(stage, done, all)` is called now and then; an exception in it, or
/// Ctrl-C, ends the work, and no artifact is written. Python's lock is given
/// back while qailc works.
///
/// Returns the report of `qailc compile --json` as a dict, with `path`, where the
/// artifact is, and `notes`.
#[pyfunction]
#[pyo3(
    signature = (model, out = None, *, progress = None, **options),
    text_signature = "(model, out=None, *, bits=None, demos=None, map=None, edge_bits=None, method=None, seed=None, \
                      steps=None, time_budget=None, batch=None, lr=None, lr_steps=None, loss=None, lambda_=None, \
                      weight_decay=None, clip=None, ema=None, obs_noise=None, eval_every=None, threads=None, bptt=None, then=None, \
                      cache_dir=None, observer=None, calibration_samples=None, policy=None, action_output=None, \
                      chunk_length=None, chunk_execute=None, chunk_ensemble=None, outputs=None, dims=None, progress=None)"
)]
pub(crate) fn compile<'py>(
    py: Python<'py>,
    model: PathBuf,
    out: Option<PathBuf>,
    progress: Option<Py<PyAny>>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyDict>> {
    let flags = flags(model, out, options)?;
    let args = CompileArgs::parse(flags).map_err(|failure| raise(py, &failure))?;
    let mut watcher = Watcher::new(progress, args.time_budget());
    let done = py.detach(|| work(&args, &mut watcher));
    // Why the work was ended tells more than how it then ended.
    if let Some(error) = watcher.failed {
        return Err(error);
    }
    let (report, notes) = done.map_err(|failure| raise(py, &failure))?;
    let dict = py.import("json")?.call_method1("loads", (report.to_json(),))?.cast_into::<PyDict>()?;
    dict.set_item("path", args.out().as_os_str())?;
    dict.set_item("notes", notes)?;
    Ok(dict)
}

/// Compiles and writes, unless the caller ended it.
fn work(args: &CompileArgs, watcher: &mut Watcher) -> Result<(Report, Vec<String>), Failure> {
    let mut built = args.build(watcher)?;
    watcher.look(|_, _| Ok(()));
    if watcher.failed.is_some() {
        return Err(Failure::plain(Exit::Internal, "ended by the caller"));
    }
    Ok((args.write(&mut built)?, built.quantized.notes))
}

/// The command line that the keywords stand for.
fn flags(model: PathBuf, out: Option<PathBuf>, options: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<OsString>> {
    let mut flags = Vec::new();
    for (key, value) in options.into_iter().flatten() {
        let key: String = key.extract()?;
        let Some((_, flag, kind)) = KEYWORDS.iter().find(|(keyword, ..)| *keyword == key) else {
            return Err(PyTypeError::new_err(format!("compile() got an unexpected keyword argument '{key}'")));
        };
        if value.is_none() {
            continue;
        }
        match kind {
            Kind::One => flags.push(assigned(flag, text(&value)?)),
            Kind::Many if value.is_instance_of::<PyString>() => flags.push(assigned(flag, text(&value)?)),
            Kind::Many => {
                for item in value.try_iter()? {
                    flags.push(assigned(flag, text(&item?)?));
                }
            }
            Kind::Pairs => {
                for item in value.cast::<PyMapping>()?.items()? {
                    let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
                    let pair = [text(&name)?, text(&value)?].join(OsStr::new("="));
                    flags.push(assigned(flag, pair));
                }
            }
        }
    }
    flags.extend(out.map(|out| assigned("out", out.into_os_string())));
    flags.extend([OsString::from("--"), model.into_os_string()]);
    Ok(flags)
}

/// `--flag=value`: a value that begins with a dash is a value all the same.
fn assigned(flag: &str, value: OsString) -> OsString {
    let mut text = OsString::from(format!("--{flag}="));
    text.push(value);
    text
}

/// Texts and paths as they are, numbers as Python prints them.
fn text(value: &Bound<'_, PyAny>) -> PyResult<OsString> {
    match value.extract::<PathBuf>() {
        Ok(path) => Ok(path.into_os_string()),
        Err(_) => Ok(value.str()?.extract::<String>()?.into()),
    }
}

/// Tells Python how far the work is, listens for Ctrl-C, and owns the clock.
struct Watcher {
    progress: Option<Py<PyAny>>,
    time_budget: Option<Duration>,
    /// When training began.
    began: Option<Instant>,
    /// When Python was last looked at.
    looked: Option<Instant>,
    /// Why the work has to end.
    failed: Option<PyErr>,
}

impl Watcher {
    fn new(progress: Option<Py<PyAny>>, time_budget: Option<Duration>) -> Self {
        Self { progress, time_budget, began: None, looked: None, failed: None }
    }

    /// True if it is time to look at Python again.
    fn is_time(&mut self) -> bool {
        let is_time = self.looked.is_none_or(|looked| looked.elapsed() >= BREATH);
        if is_time {
            self.looked = Some(Instant::now());
        }
        is_time
    }

    /// Takes Python's lock, handles signals, and does something.
    fn look(&mut self, then: impl FnOnce(Python<'_>, Option<&Py<PyAny>>) -> PyResult<()>) {
        if self.failed.is_some() {
            return;
        }
        let progress = self.progress.as_ref();
        // None if Python is going down: then nobody is left to be told.
        let looked = Python::try_attach(|py| {
            py.check_signals()?;
            then(py, progress)
        });
        self.failed = looked.and_then(Result::err);
    }
}

impl Observer for Watcher {
    fn progress(&mut self, stage: &str, done: usize, all: usize) {
        // The end of a stage is told whenever it is.
        if self.is_time() || done == all {
            self.look(|py, progress| match progress {
                Some(progress) => progress.call1(py, (stage, done, all)).map(|_| ()),
                None => Ok(()),
            });
        }
    }

    fn after_pass(&mut self, _: &str, _: &Graph) {}

    fn trained(&mut self, report: &StepReport, steps: u64) {
        self.progress("train", usize::try_from(report.step).unwrap_or(0), usize::try_from(steps).unwrap_or(0));
    }

    fn stop_training(&mut self) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        if self.is_time() {
            self.look(|_, _| Ok(()));
        }
        self.failed.is_some() || self.time_budget.is_some_and(|budget| began.elapsed() >= budget)
    }
}
