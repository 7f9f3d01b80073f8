//! Models without a batch of one: observations without a batch axis, and several
//! environments at once. A recorded step is all that the model takes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::path::Path;

use qail_fixtures::Synthetic;
use qail_ir::text;
use qail_passes::quant::LoweringReport;
use qailc::{
    data::{Npz, NpzWriter},
    export::{self, ExportOptions},
};

use support::say;

const N_STEPS: usize = 60;

/// A policy on observations of a shape; the last axis are features.
fn policy(shape: &str, action: &str, hidden: &str) -> String {
    format!(
        "graph @policy(%obs: f32{shape}) -> (action = %y) {{
           %w0 = const rand(1) : f32[7, 16]
           %b0 = const rand(2) : f32[16]
           %h = linear %obs, %w0, %b0 {{act = tanh}} : f32{hidden}
           %w1 = const rand(3) : f32[16, 3]
           %b1 = const rand(4) : f32[3]
           %y = linear %h, %w1, %b1 : f32{action}
         }}"
    )
}

/// Trains, builds and runs a policy in the folder; gives the lines of both that tell the error.
fn train_and_run(folder: &Path, graph: &str, rows: &[usize]) -> [String; 2] {
    let floats =
        export::fake_quant(&text::parse(graph).unwrap(), &LoweringReport::default(), &ExportOptions::default())
            .unwrap();
    export::write(&floats, &folder.join("policy.onnx")).unwrap();
    let mut writer = NpzWriter::create(&folder.join("demos.npz")).unwrap();
    let shape = [&[N_STEPS], rows, &[7]].concat();
    let n = rows.iter().product::<usize>();
    writer.add("obs", &shape, &Synthetic::new(5, 7 * n).rows(N_STEPS)).unwrap();
    writer.finish().unwrap();
    let told = |args: &[&str]| {
        let (code, stdout, stderr) = say(folder, args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        let all = stdout + &stderr;
        all.lines().find(|line| line.contains("against the teacher")).unwrap_or_default().to_owned()
    };
    let flags = ["-b", "w4a4", "--demos", "demos.npz", "--method", "qbc", "--steps", "30", "--batch", "8"];
    let trained = told(&[&["train", "policy.onnx"], &flags[..], &["-o", "p.ckpt"]].concat());
    let built = told(&["compile", "p.ckpt", "-o", "p.qail"]);
    told(&["run", "p.qail", "--input", "demos.npz", "-o", "out.npz"]);
    let outputs = Npz::open(&folder.join("out.npz")).unwrap();
    let action = outputs.info("action").unwrap();
    assert_eq!((action.n_rows(), action.row_len()), (N_STEPS, 3 * n));
    [trained, built]
}

#[test]
fn a_policy_without_a_batch_axis_trains() {
    let folder = tempfile::tempdir().unwrap();
    let [trained, built] = train_and_run(folder.path(), &policy("[7]", "[3]", "[16]"), &[]);
    assert!(trained.contains("mse"), "{trained}");
    assert_eq!(trained, built);
}

#[test]
fn several_environments_at_once_train_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let graph = policy("[4, 7]", "[4, 3]", "[4, 16]");
    let [trained, built] = train_and_run(folder.path(), &graph, &[4]);
    assert!(trained.contains("mse"), "{trained}");
    assert_eq!(trained, built);
    let mut writer = NpzWriter::create(&folder.path().join("single.npz")).unwrap();
    writer.add("obs", &[N_STEPS, 7], &Synthetic::new(5, 7).rows(N_STEPS)).unwrap();
    writer.finish().unwrap();
    let args = ["compile", "policy.onnx", "-b", "w4a4", "--demos", "single.npz", "-o", "x.qail"];
    let (code, _, stderr) = say(folder.path(), &args);
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("has shape [60, 7], needed is [steps, 4, 7]"), "{stderr}");
}
