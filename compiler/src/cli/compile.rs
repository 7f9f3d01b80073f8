//! `qailc compile`: from a model, or from a checkpoint of `qailc train`, to an
//! artifact and a report.
//!
//! [`Args`] is public, for programs that compile as the command does: they give
//! the same flags and bring an observer of their own.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Parser;
use indicatif::ProgressBar;
use qail_ir::Graph;
use qail_passes::Note;
use qail_train::{
    checkpoint,
    trainer::{Evaluation, StepReport},
};

use super::{
    Exit, Failure, Terminal,
    args::RecipeArgs,
    failure::of_pipeline,
    outputs::{self, Inputs},
    terminal::shown,
};
use crate::{
    files::open_regular,
    pipeline::{self, Built, Demonstrations, Observer, Quantized},
    qir,
    report::Report,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Keep the results of training here, and look for them here first.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Where to write the artifact. Default: the model's name with `.qail`.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the graph behind each pass into this folder.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

/// The flags alone, without a command in front.
#[derive(Parser)]
#[command(name = "qailc compile", no_binary_name = true, disable_help_flag = true)]
struct Alone {
    #[command(flatten)]
    args: Args,
}

impl Args {
    /// Reads flags and the model, as they stand behind `qailc compile`.
    ///
    /// # Errors
    /// Flags that the command would refuse.
    pub fn parse(flags: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        Alone::try_parse_from(flags).map(|alone| alone.args).map_err(|error| Failure::of_flags(&error))
    }

    /// The file that the artifact belongs into.
    pub fn out(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| self.recipe.model.model.with_extension("qail"))
    }

    /// How long training may take; whoever observes the build holds it to that.
    pub fn time_budget(&self) -> Option<Duration> {
        self.recipe.train.time_budget()
    }

    /// Compiles. The artifact is not in its place yet, but it was tried whether
    /// it could be.
    ///
    /// # Errors
    /// Flags, files, models and data that cannot be used.
    pub fn build(&self, observer: &mut dyn Observer) -> Result<Built, Failure> {
        let (path, model) = (self.out(), &self.recipe.model.model);
        // Training takes a while: what can fail behind it fails before it.
        let built = if is_checkpoint(model) {
            outputs::check(&[("-o", &path)], &Inputs::default().and("the checkpoint", [model]))?;
            refuse_flags(&self.recipe)?;
            let chunk = self.recipe.chunk.over(None);
            pipeline::compile_checkpoint(&path, model, chunk.as_ref(), observer)
        } else {
            let training = self.recipe.train.training(self.cache_dir.clone());
            let options = self.recipe.build_options(training)?;
            outputs::check(&[("-o", &path)], &self.recipe.files(&options))?;
            pipeline::compile_beside(&path, model, &options, observer)
        };
        built.map_err(|error| of_pipeline(&self.context(), &error))
    }

    /// Writes what was built, whole or not at all, and reports on it.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, built: &mut Built) -> Result<Report, Failure> {
        let path = self.out();
        built.persist(&path).map_err(|error| not_written(&path, &error))?;
        Ok(Report::new(&built.manifest, built.bytes.len() as u64))
    }

    fn context(&self) -> String {
        format!("cannot compile `{}`", self.recipe.model.model.display())
    }
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let mut watcher = Watcher::new(terminal, args.dump.clone(), args.time_budget());
    let built = args.build(&mut watcher);
    watcher.finish()?;
    let mut built = built?;
    say_notes_of(&built.quantized, terminal);
    let (path, report) = (args.out(), args.write(&mut built)?);
    terminal.result(
        || format!("{}-> {}\n", report.render(), path.display()),
        || serde_json::json!({ "schema": 1, "artifact": shown(&path), "report": report, "notes": built.quantized.notes }),
    );
    Ok(())
}

fn not_written(path: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), error)
}

/// True if the file is a checkpoint and no model, going by its first bytes.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    let mut first = [0; 16];
    open_regular(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && checkpoint::looks_like(&first)
}

/// A checkpoint holds everything: flags that would change it are refused.
fn refuse_flags(args: &RecipeArgs) -> Result<(), Failure> {
    let given = [
        ("--bits", args.quant.bits.is_some()),
        ("--demos", args.data.demos.is_some()),
        ("--method", args.train.method.is_some()),
        ("--policy", args.model.policy.is_some()),
        ("--dim", !args.model.dims.is_empty()),
        ("--output", !args.model.outputs.is_empty()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => {
            let message = format!("{flag} has no effect on a checkpoint: it was decided when it was trained");
            Err(Failure::plain(Exit::Usage, message).help("leave the flag out, or train again with `qailc train`"))
        }
    }
}

/// Says what was assumed; with `--verbose` also what passes did not do, and why.
pub(super) fn say_notes(
    notes: &[String],
    pass_notes: &[Note],
    demonstrations: Option<&Demonstrations>,
    terminal: &Terminal,
) {
    for note in notes {
        terminal.note(note);
    }
    for note in pass_notes {
        let text = format!("{} at `{}`: {}", note.pass, note.node, note.text);
        if pipeline::is_important(note) { terminal.note(&text) } else { terminal.detail(&text) }
    }
    if let Some(demonstrations) = demonstrations.filter(|d| !d.split) {
        let n = demonstrations.n_steps;
        terminal
            .note(&format!("the data is one episode of {n} steps: the error is measured on what was calibrated on"));
    }
}

/// As [`say_notes`], of a whole build.
pub(super) fn say_notes_of(quantized: &Quantized, terminal: &Terminal) {
    say_notes(&quantized.notes, &quantized.pass_notes, quantized.demonstrations.as_ref(), terminal);
}

/// Shows progress, writes the graphs behind passes, and owns the clock.
pub(super) struct Watcher<'a> {
    terminal: &'a Terminal,
    dump: Option<PathBuf>,
    n_dumped: usize,
    failed: Option<Failure>,
    bar: Option<(String, ProgressBar)>,
    time_budget: Option<Duration>,
    /// When training began.
    began: Option<Instant>,
    held_out: String,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(terminal: &'a Terminal, dump: Option<PathBuf>, time_budget: Option<Duration>) -> Self {
        Self { terminal, dump, n_dumped: 0, failed: None, bar: None, time_budget, began: None, held_out: String::new() }
    }

    /// Clears the bar; fails if a graph could not be written.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if let Some((_, bar)) = self.bar {
            bar.finish_and_clear();
        }
        self.failed.map_or(Ok(()), Err)
    }

    fn write_graph(&self, folder: &std::path::Path, pass: &str, graph: &Graph) -> Result<(), Failure> {
        let path = folder.join(format!("{:02}-{pass}.qir", self.n_dumped));
        let fail = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), error)
        };
        std::fs::create_dir_all(folder).map_err(|error| fail(&error))?;
        qir::write(&path, graph).map_err(|error| fail(&error))
    }
}

impl Observer for Watcher<'_> {
    fn progress(&mut self, stage: &str, done: usize, all: usize) {
        if self.bar.as_ref().is_none_or(|(name, _)| name != stage) {
            if let Some((_, bar)) = self.bar.take() {
                bar.finish_and_clear();
            }
            self.bar = Some((stage.to_owned(), self.terminal.bar(all as u64, stage)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    }

    fn trained(&mut self, report: &StepReport, steps: u64) {
        self.progress("train", usize::try_from(report.step).unwrap_or(0), usize::try_from(steps).unwrap_or(0));
        // A bar is looked at a few times a second, not at every update.
        let Some((_, bar)) = self.bar.as_ref().filter(|_| report.step.is_multiple_of(16)) else { return };
        let term = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!(" {name} {value:.2e}"));
        bar.set_message(format!("train{}{}{}", term("qail", report.qail), term("qbc", report.qbc), self.held_out));
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        let mse = |error: Option<f64>| error.map_or("-".to_owned(), |error| format!("{error:.3e}"));
        let expert = mse(evaluation.expert.map(|error| error.mse()));
        let teacher = mse(Some(evaluation.teacher.mse()));
        self.held_out = format!(" held-out {teacher}");
        let best = if evaluation.is_best { ", best so far" } else { "" };
        self.terminal.detail(&format!(
            "step {}: held-out action mse {teacher} against the full-precision policy, {expert} against the expert{best}",
            evaluation.step
        ));
    }

    fn stop_training(&mut self) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        self.time_budget.is_some_and(|budget| began.elapsed() >= budget)
    }

    fn after_pass(&mut self, pass: &str, graph: &Graph) {
        if let (Some(folder), None) = (self.dump.clone(), &self.failed) {
            self.failed = self.write_graph(&folder, pass, graph).err();
            self.n_dumped += 1;
        }
    }
}
