//! `qailc train`: from a model and demonstrations to a checkpoint.

use std::path::PathBuf;

use super::{
    Failure, Terminal,
    args::RecipeArgs,
    compile::{Watcher, say_notes},
    failure::of_pipeline,
    outputs,
    terminal::shown,
};
use crate::{
    pipeline::{self, Save},
    report::output_errors,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Where to write the checkpoint. Default: the model's name with `.ckpt`.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on from the checkpoint, if it is there; else begin.
    #[arg(long)]
    resume: bool,
    /// Updates between two versions of the checkpoint on disk.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let model = &args.recipe.model.model;
    let path = args.output.clone().unwrap_or_else(|| model.with_extension("ckpt"));
    let context = format!("cannot train `{}`", model.display());
    let mut training = args.recipe.train.training(None);
    training.save = Some(Save { path: path.clone(), every: args.save_every, resume: args.resume });
    let options = args.recipe.build_options(training)?;
    outputs::check(&[("-o", &path)], &args.recipe.files(&options))?;
    let mut watcher = Watcher::new(terminal, None, args.recipe.train.time_budget());
    let trained = pipeline::train(model, &options, &mut watcher);
    watcher.finish()?;
    let trained = trained.map_err(|error| of_pipeline(&context, &error))?;
    say_notes(&trained.notes, &trained.pass_notes, trained.demonstrations.as_ref(), terminal);
    let errors = output_errors(&trained.evaluation);
    terminal.result(
        || {
            let mut text = format!(
                "{} on {}: {} updates, the best behind {}\n",
                trained.method, trained.precision, trained.steps, trained.best_step
            );
            errors.iter().for_each(|error| text.push_str(&error.render()));
            format!("{text}-> {}\n", path.display())
        },
        || {
            serde_json::json!({
                "schema": 1,
                "checkpoint": shown(&path),
                "method": trained.method.name(),
                "precision": trained.precision,
                "steps": trained.steps,
                "best_step": trained.best_step,
                "complete": trained.complete,
                "errors": errors,
                "notes": trained.notes,
            })
        },
    );
    Ok(())
}
