//! `qailc export`: the quantized model as ONNX, for other engines to run or to check.

use std::path::PathBuf;

use super::{
    Exit, Failure, Terminal,
    args::{DataArgs, ModelArgs, QuantArgs, build_options},
    compile::{Watcher, is_checkpoint, say_notes_of},
    failure::of_pipeline,
    outputs,
    terminal::shown,
};
use crate::{
    export::{self, ExportOptions},
    pipeline,
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
    /// Which form.
    #[arg(long)]
    format: Format,
    /// Hand back every code and accumulator as well.
    #[arg(long)]
    expose: bool,
    /// Where to write the model.
    #[arg(long = "out", short = 'o', value_name = "FILE.onnx")]
    output: PathBuf,
}

/// Forms of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Integer arithmetic in `f64`: every code and accumulator is the same number.
    Exact,
    /// QuantizeLinear and DequantizeLinear with derived scales (opset 21).
    Qdq,
    /// QuantizeLinear, Clip and DequantizeLinear with 8-bit tensors, for Brevitas and QONNX (opset 13).
    Qcdq,
    /// Floats on the grids of the codes; every engine runs it (opset 13).
    FakeQuant,
    /// MatMulNBits of ONNX Runtime, for w4a16 and w8a16.
    Nbits,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let options = build_options(&args.model, &args.data, &args.quant)?;
    let context = format!("cannot export `{}`", args.model.model.display());
    let inputs = args.model.files(&options.policy).and("the demonstrations", &args.data.demos);
    outputs::check(&[("-o", &args.output)], &inputs)?;
    let mut watcher = Watcher::new(terminal, None, None);
    let quantized = if is_checkpoint(&args.model.model) {
        pipeline::quantize_checkpoint(&args.model.model, &mut watcher)
    } else {
        if options.passes.precision.needs_data() {
            terminal.note(
                "a model is exported as `compile --method ptq` rounds it; for what training left, export the checkpoint of `qailc train`",
            );
        }
        pipeline::quantize(&args.model.model, &options, &mut watcher)
    };
    watcher.finish()?;
    let quantized = quantized.map_err(|error| of_pipeline(&context, &error))?;
    say_notes_of(&quantized, terminal);
    let export_options = ExportOptions { expose: args.expose };
    let (graph, report) = (&quantized.graph, quantized.lowering.clone().unwrap_or_default());
    let model = match args.format {
        Format::Exact => export::exact(graph, &export_options),
        Format::Qdq => export::qdq(graph, &report, &export_options),
        Format::Qcdq => export::qcdq(graph, &report, &export_options),
        Format::FakeQuant => export::fake_quant(graph, &report, &export_options),
        Format::Nbits => export::nbits(graph, &export_options),
    };
    let model = model.map_err(|error| Failure::new(Exit::Unsupported, context.clone(), &error))?;
    export::write(&model, &args.output).map_err(|error| Failure::new(Exit::InvalidInput, context, &error))?;
    terminal.result(
        || format!("{} -> {}\n", quantized.precision, args.output.display()),
        || serde_json::json!({ "schema": 1, "file": shown(&args.output), "precision": quantized.precision }),
    );
    Ok(())
}
