//! ONNX Runtime as the judge of the whole way: compile, run, export, compare.
//!
//! `QAILC_PYTHON` names a Python with `fixtures/oracles/requirements.txt`; the
//! test script of the repository sets it. Without it these tests say that they
//! did not run. `QAILC_STATES` says on how many recorded states.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{path::Path, process::Command};

/// Runs a program and hands back what it said; fails if it does.
fn run(program: &Path, args: &[String]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {args:?}\n{said}", program.display());
    said
}

fn agrees_with_onnx_runtime(policy: &str, demos: &str) {
    let Some(python) = std::env::var_os("QAILC_PYTHON") else {
        eprintln!("QAILC_PYTHON is not set: exports of {policy} are NOT checked");
        return;
    };
    let n_states = std::env::var("QAILC_STATES").unwrap_or_else(|_| "2000".to_owned());
    let root = qail_fixtures::root();
    let policies = root.join("policies");
    let (model, demos) = (policies.join(policy), policies.join(demos));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let qailc = Path::new(env!("CARGO_BIN_EXE_qailc"));
    let strings = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<String>>();
    let (model, demos) = (&*model.to_string_lossy(), &*demos.to_string_lossy());
    let checkpoint = path("p.ckpt");
    // Rounded carefully, and trained for a moment.
    for (bits, edge_bits, trains) in
        [("w8a8", "8", false), ("w4a8", "8", true), ("w4a4", "8", false), ("w4a4", "8", true), ("w4a4", "4", true)]
    {
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
        for format in ["exact", "qdq"] {
            let export = path(&format!("{format}.onnx"));
            let form = ["--format", format, "--expose", "-o", &export];
            run(qailc, &strings(&[&["export"][..], &source, &form].concat()));
            let script = root.join("oracles").join(format!("check_{format}.py"));
            let mut data = vec!["--states", demos, "--codes", &codes, "--actions", &actions];
            if format == "qdq" {
                // The codes in front of a table stay in registers.
                data.extend(["--exact", &exact]);
            }
            let said =
                run(Path::new(&python), &strings(&[&[&*script.to_string_lossy(), &*export][..], &data].concat()));
            println!("{policy} {bits} e{edge_bits} {}{format}\n{said}", if trains { "trained " } else { "" });
        }
    }
}

#[test]
fn onnx_runtime_agrees_on_hopper() {
    agrees_with_onnx_runtime("hopper/hopper_expert.onnx", "hopper/hopper_demos.npz");
}

#[test]
fn onnx_runtime_agrees_on_halfcheetah() {
    agrees_with_onnx_runtime("halfcheetah/halfcheetah_expert.onnx", "halfcheetah/halfcheetah_demos.npz");
}
