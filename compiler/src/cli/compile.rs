//! `qailc compile`: from a model to an artifact and a report.

use std::path::PathBuf;

use indicatif::ProgressBar;
use qail_artifact::Artifact;
use qail_ir::{Graph, text};

use super::{
    Exit, Failure, Terminal,
    args::{DataArgs, ModelArgs, QuantArgs, build_options},
    failure::of_pipeline,
};
use crate::{
    files::write_atomic,
    pipeline::{self, Observer, Quantized},
    report::Report,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Where to write the artifact. Default: the model's name with `.qail`.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the graph behind each pass into this folder.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let options = build_options(&args.model, &args.data, &args.quant);
    let path = args.output.clone().unwrap_or_else(|| args.model.model.with_extension("qail"));
    if path == args.model.model {
        return Err(
            Failure::plain(Exit::Usage, "the artifact would overwrite the model").help("give another name with -o")
        );
    }
    let mut watcher = Watcher::new(terminal, args.dump.clone());
    let context = format!("cannot compile `{}`", args.model.model.display());
    let built = pipeline::compile(&args.model.model, &options, &mut watcher);
    watcher.finish()?;
    let built = built.map_err(|error| of_pipeline(&context, &error))?;
    say_notes(&built.quantized, terminal);
    write_atomic(&path, &built.bytes)
        .map_err(|error| Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), &error))?;
    let artifact = Artifact::parse(&built.bytes).map_err(|error| Failure::new(Exit::Internal, context, &error))?;
    let report = Report::new(artifact.manifest(), built.bytes.len() as u64);
    terminal.result(
        || format!("{}-> {}\n", report.render(), path.display()),
        || serde_json::json!({ "schema": 1, "artifact": path, "report": report, "notes": built.quantized.notes }),
    );
    Ok(())
}

/// Says what was assumed; with `--verbose` also what passes did not do, and why.
pub(super) fn say_notes(quantized: &Quantized, terminal: &Terminal) {
    for note in &quantized.notes {
        terminal.note(note);
    }
    for note in &quantized.pass_notes {
        let text = format!("{} at `{}`: {}", note.pass, note.node, note.text);
        if pipeline::is_important(note) { terminal.note(&text) } else { terminal.detail(&text) }
    }
    if let Some(demonstrations) = quantized.demonstrations.as_ref().filter(|d| !d.split) {
        let n = demonstrations.n_steps;
        terminal
            .note(&format!("the data is one episode of {n} steps: the error is measured on what was calibrated on"));
    }
}

/// Shows progress and writes the graphs behind passes.
pub(super) struct Watcher<'a> {
    terminal: &'a Terminal,
    dump: Option<PathBuf>,
    n_dumped: usize,
    failed: Option<Failure>,
    bar: Option<(String, ProgressBar)>,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(terminal: &'a Terminal, dump: Option<PathBuf>) -> Self {
        Self { terminal, dump, n_dumped: 0, failed: None, bar: None }
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
        write_atomic(&path, text::print(graph).as_bytes()).map_err(|error| fail(&error))
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

    fn after_pass(&mut self, pass: &str, graph: &Graph) {
        if let (Some(folder), None) = (self.dump.clone(), &self.failed) {
            self.failed = self.write_graph(&folder, pass, graph).err();
            self.n_dumped += 1;
        }
    }
}
