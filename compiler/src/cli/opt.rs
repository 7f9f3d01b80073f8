//! `qailc opt`: passes over a model or a `.qir` file, and the graph in text form.

use std::path::PathBuf;

use qail_ir::{Graph, text};
use qail_passes::{PassContext, PassManager, registry};

use super::{
    Exit, Failure, Terminal,
    args::{DataArgs, ModelArgs},
    failure::{exit_of_pass, of_import, of_observations, of_pipeline},
    outputs::{self, Inputs},
    terminal::shown,
};
use crate::{
    frontend,
    pipeline::{self, Demonstrations, PipelineError},
    qir,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Passes, in order: `fold-normalizer,insert-fake-quant(bits=w4a4)`.
    #[arg(long, default_value = "", value_name = "A,B(OPTION=VALUE)")]
    passes: String,
    /// Where to write the graph; long constants go to a file beside it, with
    /// `.weights` behind its name. Default: the terminal, without them.
    #[arg(long = "out", short = 'o', value_name = "FILE.qir")]
    output: Option<PathBuf>,
    /// List the passes and stop.
    #[arg(long)]
    list: bool,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    if args.list {
        list(terminal);
        return Ok(());
    }
    let passes = registry::parse(&args.passes)
        .map_err(|error| Failure::new(exit_of_pass(&error), "cannot run the passes", &error))?;
    if let Some(path) = &args.output {
        let inputs = Inputs::default().and_models("the model", [&args.model.model]);
        let inputs = inputs.and("the demonstrations", &args.data.demos);
        outputs::check(&[("-o", path), ("-o", &qir::weights_path(path))], &inputs)?;
    }
    let mut graph = read(args)?;
    let demonstrations = match &args.data.demos {
        Some(path) => {
            let read = || {
                let demos = pipeline::open_demos(path, &graph, &args.data.mapping())?;
                Demonstrations::read(&demos, &graph, args.data.n_calibration(), 0)
            };
            Some(read().map_err(|error| match &error {
                PipelineError::Data(error) => of_observations(path, error),
                _ => of_pipeline(&format!("cannot read observations from `{}`", path.display()), &error),
            })?)
        }
        None => None,
    };
    let mut cx = PassContext::new();
    if let Some(demonstrations) = &demonstrations {
        cx.samples = Some(&demonstrations.calibration);
    }
    PassManager::new(passes)
        .run(&mut graph, &mut cx)
        .map_err(|error| Failure::new(exit_of_pass(&error), "a pass refused", &error))?;
    for note in &cx.notes {
        terminal.detail(&format!("{} at `{}`: {}", note.pass, note.node, note.text));
    }
    match &args.output {
        Some(path) => {
            qir::write(path, &graph).map_err(|error| {
                Failure::new(Exit::InvalidInput, format!("cannot write `{}`", path.display()), &error)
            })?;
            terminal.result(
                || format!("-> {}\n", path.display()),
                || serde_json::json!({ "schema": 1, "file": shown(path) }),
            );
        }
        None => {
            let printed = text::print(&graph);
            terminal.result(|| printed.clone(), || serde_json::json!({ "schema": 1, "qir": printed }));
        }
    }
    Ok(())
}

fn read(args: &Args) -> Result<Graph, Failure> {
    let path = &args.model.model;
    let context = format!("cannot read `{}`", path.display());
    if path.extension().is_some_and(|extension| extension == "qir") {
        return qir::read(path).map_err(|error| Failure::new(Exit::InvalidInput, context, &error));
    }
    let imported = frontend::import(path, &args.model.import_options());
    imported.map(|imported| imported.graph).map_err(|error| of_import(context, &error))
}

fn list(terminal: &Terminal) {
    let passes: Vec<_> = registry::PASSES.iter().filter_map(|entry| entry.default_pass().ok()).collect();
    terminal.result(
        || {
            let mut table = comfy_table::Table::new();
            table.load_style(comfy_table::presets::NOTHING);
            for pass in &passes {
                table.add_row([pass.name(), pass.exactness().name(), pass.summary()]);
            }
            format!("{table}\n")
        },
        || {
            let rows: Vec<_> = passes
                .iter()
                .map(|p| serde_json::json!({ "name": p.name(), "exactness": p.exactness().name(), "summary": p.summary() }))
                .collect();
            serde_json::json!({ "schema": 1, "passes": rows })
        },
    );
}
