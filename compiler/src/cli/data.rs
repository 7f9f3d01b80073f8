//! `qailc data inspect`: what is in a recording, before anything is built on it.

use std::{fmt::Write as _, path::PathBuf};

use qail_passes::{PipelineOptions, Precision};

use super::{
    Failure, Terminal,
    args::policy_of,
    failure::{exit_of_data, of_import, of_pipeline},
    terminal::shown,
};
use crate::{
    data::{ArraySummary, DemoMap, Summary},
    pipeline::{self, BuildOptions, PipelineError},
};

/// Columns of an array that the table shows.
const MAX_SHOWN: usize = 64;

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows types, ranges and episodes of a recording, and what looks wrong.
    Inspect {
        /// An `.npz` file or a folder of `.npy` files.
        file: PathBuf,
        /// Also say whether a model can learn from it.
        #[arg(long, value_name = "FILE.onnx")]
        model: Option<PathBuf>,
    },
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let Command::Inspect { file, model } = &args.command;
    let context = format!("cannot read `{}`", file.display());
    let summary = Summary::read(file).map_err(|error| Failure::new(exit_of_data(&error), context.clone(), &error))?;
    if let Some(model) = model {
        let policy = policy_of(model, None, None)?;
        let options = BuildOptions {
            // What is quantized already fits as it is.
            passes: PipelineOptions { is_default: true, ..PipelineOptions::new(Precision::F32) },
            map: DemoMap { inputs: policy.map.clone() },
            policy,
            ..BuildOptions::new(Precision::F32)
        };
        pipeline::open_recording(model, file, &options).map_err(|error| match &error {
            PipelineError::Import(error) => of_import(format!("cannot import `{}`", model.display()), error),
            _ => of_pipeline(&format!("`{}` does not fit `{}`", file.display(), model.display()), &error),
        })?;
    }
    let remarks = summary.remarks();
    terminal.result(
        || {
            let mut text: String = summary.arrays.iter().map(table).collect();
            if let Some(episodes) = &summary.episodes {
                let (n, shortest, longest) = (episodes.n, episodes.shortest, episodes.longest);
                // Writing to a `String` cannot fail.
                let _ = writeln!(text, "{n} episodes of {shortest} to {longest} steps");
            }
            if let Some(model) = model {
                let _ = writeln!(text, "fits {}", model.display());
            }
            remarks.iter().for_each(|remark| text.push_str(&format!("note: {remark}\n")));
            text
        },
        || {
            serde_json::json!({
                "schema": 1, "file": shown(file), "arrays": summary.arrays, "episodes": summary.episodes,
                "fits": model.as_deref().map(shown), "remarks": remarks,
            })
        },
    );
    Ok(())
}

fn table(array: &ArraySummary) -> String {
    let mut text = format!("{} {} {:?}\n", array.key, array.dtype, array.shape);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["column", "min", "max", "mean", "std", ""]);
    for (index, column) in array.columns.iter().enumerate().take(MAX_SHOWN) {
        let number = |x: f64| format!("{x:.4}");
        let remark = if column.constant { "constant" } else { "" };
        let name = if array.columns.len() == 1 { "all".to_owned() } else { index.to_string() };
        table.add_row([
            name,
            number(column.min),
            number(column.max),
            number(column.mean),
            number(column.std),
            remark.to_owned(),
        ]);
    }
    let _ = writeln!(text, "{table}");
    if array.columns.len() > MAX_SHOWN {
        let _ = writeln!(text, "  .. {} columns more", array.columns.len() - MAX_SHOWN);
    }
    text
}
