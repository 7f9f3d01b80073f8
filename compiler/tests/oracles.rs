//! ONNX Runtime as the judge of the whole way: compile, run, export, compare.
//!
//! `QAILC_PYTHON` names a Python with `fixtures/oracles/requirements.txt`; the
//! test script of the repository sets it. Without it these tests say that they
//! did not run. `QAILC_STATES` says on how many recorded states.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use qail_fixtures::Synthetic;
use qail_ir::text;
use qail_passes::quant::LoweringReport;
use qailc::{
    data::NpzWriter,
    export::{self, ExportOptions},
};

/// Precision, bits of the edges, and whether it is trained for a moment.
type Setting = (&'static str, &'static str, bool);

/// Rounded carefully, and trained.
const SETTINGS: [Setting; 5] =
    [("w8a8", "8", false), ("w4a8", "8", true), ("w4a4", "8", false), ("w4a4", "8", true), ("w4a4", "4", true)];

/// Runs a program and hands back what it said; fails if it does.
fn run(program: &Path, args: &[String]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {args:?}\n{said}", program.display());
    said
}

/// Each form of each setting; `qdq_script` knows the form `qdq` of the model.
fn agrees_with_onnx_runtime(model: &Path, demos: &Path, settings: &[Setting], qdq_script: &str) {
    let Some(python) = std::env::var_os("QAILC_PYTHON") else {
        eprintln!("QAILC_PYTHON is not set: exports of {} are NOT checked", model.display());
        return;
    };
    let n_states = std::env::var("QAILC_STATES").unwrap_or_else(|_| "2000".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let qailc = Path::new(env!("CARGO_BIN_EXE_qailc"));
    let strings = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<String>>();
    let (model, demos) = (&*model.to_string_lossy(), &*demos.to_string_lossy());
    let checkpoint = path("p.ckpt");
    for &(bits, edge_bits, trains) in settings {
        let quant = ["-b", bits, "--edge-bits", edge_bits, "--demos", demos, "--calibration-samples", "512"];
        let artifact = path("p.qail");
        let source = if trains {
            let train = [&["train", model][..], &quant, &["--steps", "50", "-o", &checkpoint]].concat();
            run(qailc, &strings(&train));
            vec![&*checkpoint]
        } else {
            [&[model][..], &quant].concat()
        };
        let method: &[&str] = if trains { &[] } else { &["--method", "ptq"] };
        run(qailc, &strings(&[&["compile"][..], &source, method, &["-o", &artifact]].concat()));
        let (actions, codes) = (path("actions.npz"), path("codes.npz"));
        let rows = ["--rows", &n_states, "--dump-codes", &codes, "-o", &actions];
        run(qailc, &strings(&[&["run", &artifact, "--input", demos][..], &rows].concat()));
        let exact = path("exact.onnx");
        for format in ["exact", "qdq", "qcdq", "fake-quant"] {
            let export = path(&format!("{format}.onnx"));
            let form = ["--format", format, "--expose", "-o", &export];
            run(qailc, &strings(&[&["export"][..], &source, &form].concat()));
            let script = match format {
                "exact" => "check_exact.py",
                "qdq" => qdq_script,
                _ => "check_formats.py",
            };
            let script = qail_fixtures::root().join("oracles").join(script);
            let mut data = vec!["--states", demos, "--codes", &codes, "--actions", &actions];
            if format != "exact" {
                // The codes in front of a table stay in registers.
                data.extend(["--exact", &exact]);
            }
            let said =
                run(Path::new(&python), &strings(&[&[&*script.to_string_lossy(), &*export][..], &data].concat()));
            println!("{model} {bits} e{edge_bits} {}{format}\n{said}", if trains { "trained " } else { "" });
        }
    }
}

/// Weight-only precisions: every form, without codes.
fn agrees_on_float_activations(policy: &str, demos: &str) {
    let Some(python) = std::env::var_os("QAILC_PYTHON") else {
        eprintln!("QAILC_PYTHON is not set: weight-only exports of {policy} are NOT checked");
        return;
    };
    let (model, demos) = bundled(policy, demos);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let qailc = Path::new(env!("CARGO_BIN_EXE_qailc"));
    let strings = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<String>>();
    let (model, demos) = (&*model.to_string_lossy(), &*demos.to_string_lossy());
    let script = qail_fixtures::root().join("oracles").join("check_formats.py").to_string_lossy().into_owned();
    let (artifact, actions) = (path("p.qail"), path("actions.npz"));
    for bits in ["w4a16", "w8a16"] {
        run(qailc, &strings(&["compile", model, "-b", bits, "-o", &artifact]));
        run(qailc, &strings(&["run", &artifact, "--input", demos, "--rows", "2000", "-o", &actions]));
        for format in ["nbits", "qcdq", "fake-quant"] {
            let export = path("p.onnx");
            run(qailc, &strings(&["export", model, "-b", bits, "--format", format, "-o", &export]));
            let said = run(Path::new(&python), &strings(&[&script, &export, "--states", demos, "--actions", &actions]));
            println!("{policy} {bits} {format}\n{said}");
        }
    }
}

#[test]
fn onnx_runtime_agrees_on_weight_only_hopper() {
    agrees_on_float_activations("hopper/hopper_bc.onnx", "hopper/hopper_demos.npz");
}

#[test]
fn onnx_runtime_agrees_on_weight_only_halfcheetah() {
    agrees_on_float_activations("halfcheetah/halfcheetah_bc.onnx", "halfcheetah/halfcheetah_demos.npz");
}

fn bundled(policy: &str, demos: &str) -> (PathBuf, PathBuf) {
    let policies = qail_fixtures::root().join("policies");
    (policies.join(policy), policies.join(demos))
}

#[test]
fn onnx_runtime_agrees_on_hopper() {
    let (model, demos) = bundled("hopper/hopper_expert.onnx", "hopper/hopper_demos.npz");
    agrees_with_onnx_runtime(&model, &demos, &SETTINGS, "check_qdq.py");
}

#[test]
fn onnx_runtime_agrees_on_halfcheetah() {
    let (model, demos) = bundled("halfcheetah/halfcheetah_expert.onnx", "halfcheetah/halfcheetah_demos.npz");
    agrees_with_onnx_runtime(&model, &demos, &SETTINGS, "check_qdq.py");
}

/// Convolutions, one of each channel by itself, a sum of accumulators and codes, a pool of extremes and a mean.
#[test]
fn onnx_runtime_agrees_on_a_policy_of_images() {
    const N: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let (model, demos) = (folder.path().join("images.onnx"), folder.path().join("images.npz"));
    let graph = text::parse(support::IMAGES).unwrap();
    let floats = export::fake_quant(&graph, &LoweringReport::default(), &ExportOptions::default()).unwrap();
    export::write(&floats, &model).unwrap();
    let mut writer = NpzWriter::create(&demos).unwrap();
    writer.add("image", &[N, 3, 8, 9], &Synthetic::new(3, 3 * 8 * 9).rows(N)).unwrap();
    writer.finish().unwrap();
    let settings = [("w8a8", "8", false), ("w4a4", "8", false), ("w4a4", "4", false)];
    agrees_with_onnx_runtime(&model, &demos, &settings, "check_formats.py");
}
