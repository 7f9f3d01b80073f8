//! `qailc check`: everything that stands in the way of compiling a model.
//!
//! Needs no data: calibration is replaced by ranges that are never used, so
//! what runs are import, the float passes, selection of quantizers and kernels.

use super::{
    Exit, Failure, Terminal,
    args::{DataArgs, ModelArgs, QuantArgs, build_options},
    failure::of_import,
    terminal::shown,
};
use crate::{
    frontend::{Blocker, ImportError},
    pipeline,
};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    quant: QuantArgs,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let model = args.model.model.display();
    let options = build_options(&args.model, &DataArgs::none(), &args.quant)?;
    match pipeline::check(&args.model.model, &options) {
        Ok(checked) => {
            let (precision, layers) = (&checked.precision, &checked.layers);
            let n_weights: u64 = layers.iter().map(|layer| layer.n_weights).sum();
            terminal.result(
                || {
                    let mut text = format!(
                        "{model}: ready for {precision}: {} layers with weights, {n_weights} weights\n",
                        layers.iter().filter(|layer| layer.n_weights > 0).count()
                    );
                    for note in &checked.notes {
                        text.push_str(&format!("note: {note}\n"));
                    }
                    if checked.needs_data {
                        text.push_str("compiling needs recorded observations: --demos FILE.npz\n");
                    }
                    text
                },
                || {
                    serde_json::json!({
                        "schema": 1, "model": shown(&args.model.model), "precision": precision, "ready": true,
                        "blockers": [], "notes": checked.notes, "needs_data": checked.needs_data, "weights": n_weights,
                    })
                },
            );
            Ok(())
        }
        Err(pipeline::PipelineError::Import(ImportError::Blocked { blockers, n_more })) => {
            Err(blocked(args, terminal, blockers, n_more))
        }
        Err(pipeline::PipelineError::Import(error)) => Err(of_import(format!("cannot import `{model}`"), &error)),
        Err(error) => Err(super::failure::of_pipeline(&format!("`{model}` cannot be compiled"), &error)),
    }
}

/// Lists blockers as the result of the command; the failure counts them, and
/// its document has them as fields.
fn blocked(args: &Args, terminal: &Terminal, blockers: Vec<Blocker>, n_more: usize) -> Failure {
    terminal.listing(blockers.iter().map(|blocker| format!("{blocker}\n")));
    let (n, all) = (blockers.len(), blockers.len().saturating_add(n_more));
    let what = match (all, n_more) {
        (1, _) => "1 blocker".to_owned(),
        (_, 0) => format!("{n} blockers"),
        _ => format!("{all} blockers, of which the first {n} are listed"),
    };
    let context = format!("`{}` cannot be compiled: {what}", args.model.model.display());
    Failure { blockers, ..Failure::plain(Exit::Unsupported, context) }
}
