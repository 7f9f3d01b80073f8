//! `qailc inspect`: what is inside an artifact, after checking all of it.

use std::{fmt::Write as _, path::PathBuf};

use qail_artifact::{
    Artifact,
    schema::{Chunk, Manifest},
};
use qail_runtime::ArtifactBytes;

use super::{Exit, Failure, Terminal};
use crate::report::{Report, size};

/// Flags of the subcommand.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The artifact.
    artifact: PathBuf,
    /// Also list the steps, kernels and memory of the plan.
    #[arg(long)]
    plan: bool,
    /// Print the WGSL text of one kernel, by name or index, and nothing else.
    #[arg(long, value_name = "KERNEL")]
    wgsl: Option<String>,
}

/// Runs the subcommand.
pub(super) fn main(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    let context = format!("cannot read `{}`", args.artifact.display());
    let bytes = ArtifactBytes::open(&args.artifact).map_err(|error| super::failure::of_runtime(&context, &error))?;
    let artifact = Artifact::parse(bytes.as_slice()).map_err(|error| Failure::new(Exit::Artifact, context, &error))?;
    let manifest = artifact.manifest();
    if let Some(kernel) = &args.wgsl {
        let text = kernel_text(&artifact, kernel)?;
        terminal.result(|| text.clone(), || serde_json::json!({ "schema": 1, "wgsl": text }));
        return Ok(());
    }
    let report = Report::new(manifest, bytes.as_slice().len() as u64);
    terminal.result(
        || {
            let mut text = report.render();
            text.push_str(&ports(manifest));
            text.push_str(&control(manifest));
            text.push_str(&provenance(manifest));
            if args.plan {
                text.push_str(&qail_codegen::explain(manifest));
            }
            text
        },
        || {
            serde_json::json!({
                "schema": 1,
                "report": report,
                "provenance": manifest.provenance.as_ref().map(|p| serde_json::json!({
                    "version": p.version, "model_sha256": p.model_sha256, "data_sha256": p.data_sha256,
                    "flags": p.flags, "seed": p.seed, "method": p.method, "reproducible": p.reproducible, "isa": p.isa,
                })),
                "metadata": manifest.metadata,
                "control": manifest.control.as_ref().map(|control| serde_json::json!({
                    "action": control.action,
                    "chunk": control.chunk.map(|chunk| serde_json::json!({
                        "length": chunk.length, "execute": chunk.execute, "ensemble": chunk.ensemble,
                    })),
                })),
                "plan": args.plan.then(|| qail_codegen::explain(manifest)),
            })
        },
    );
    Ok(())
}

fn kernel_text(artifact: &Artifact<'_>, wanted: &str) -> Result<String, Failure> {
    let kernels = &artifact.manifest().kernels;
    let by_index = wanted.parse().ok().and_then(|index: usize| kernels.get(index));
    let kernel = by_index.or_else(|| kernels.iter().find(|kernel| kernel.name == wanted)).ok_or_else(|| {
        let known: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        Failure::plain(Exit::Usage, format!("there is no kernel `{wanted}`"))
            .help(format!("known are {}", known.join(", ")))
    })?;
    let bytes = artifact.section(kernel.section).unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn ports(manifest: &Manifest) -> String {
    let mut text = String::new();
    for entry in &manifest.entries {
        for (kind, ports) in [("input", &entry.inputs), ("output", &entry.outputs)] {
            for port in ports {
                let tensor = manifest.tensors.get(port.tensor as usize);
                let shape = tensor.map(|tensor| format!("{:?}", tensor.shape)).unwrap_or_default();
                let storage = tensor.map(|tensor| format!("{:?}", tensor.storage()).to_lowercase()).unwrap_or_default();
                // Writing to a `String` cannot fail.
                let _ = writeln!(text, "{kind} `{}` {storage}{shape}", port.name);
            }
        }
    }
    let scratch: u64 = manifest.arenas.iter().map(|arena| arena.size).sum();
    let _ =
        writeln!(text, "{} steps, {} kernels, scratch {}", n_steps(manifest), manifest.kernels.len(), size(scratch));
    text
}

/// What a control loop makes of the outputs.
fn control(manifest: &Manifest) -> String {
    let Some(control) = &manifest.control else { return String::new() };
    let action = &control.action;
    match control.chunk {
        None => format!("action `{action}`\n"),
        Some(Chunk { length, ensemble: Some(m), .. }) => {
            format!("action `{action}`: chunks of {length}, one in every step, their mean weighed by exp(-{m} i)\n")
        }
        Some(Chunk { length, execute, ensemble: None }) => {
            format!("action `{action}`: chunks of {length}, of which {execute} are executed\n")
        }
    }
}

fn n_steps(manifest: &Manifest) -> usize {
    manifest.entries.iter().map(|entry| entry.steps.len()).sum()
}

fn provenance(manifest: &Manifest) -> String {
    let Some(p) = &manifest.provenance else { return String::new() };
    let mut text =
        format!("made by qailc {}, method {}, seed {}\nmodel sha256 {}\n", p.version, p.method, p.seed, p.model_sha256);
    if !p.data_sha256.is_empty() {
        let _ = writeln!(text, "data sha256 {}", p.data_sha256);
    }
    let _ = writeln!(text, "flags {}", p.flags.join(" "));
    text
}
