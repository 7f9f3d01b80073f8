//! Policies of chunks through the command line: what is known about them, one
//! action a step, and the same figures whoever gives the actions out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::path::Path;

use qailc::data::{Npz, write_npz};
use serde_json::Value;
use tempfile::TempDir;

use support::say;

const ACT: &str = "$POLICIES/metaworld/act_push_small.onnx";
const LENGTH: usize = 20;
const N_ACTION: usize = 4;

fn good(folder: &TempDir, args: &[&str]) -> String {
    let (code, out, err) = say(folder.path(), args);
    assert_eq!(code, 0, "{args:?}: {err}");
    out + &err
}

fn json(folder: &TempDir, args: &[&str]) -> Value {
    let (code, out, err) = say(folder.path(), &[&["--json", "-q"], args].concat());
    assert_eq!(code, 0, "{args:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

fn floats(folder: &TempDir, file: &str, key: &str) -> (Vec<usize>, Vec<f32>) {
    let npz = Npz::open(&folder.path().join(file)).unwrap();
    let info = npz.info(key).unwrap().clone();
    let rows = info.n_rows();
    (info.shape, npz.read_f32(key, 0..rows).unwrap())
}

/// Two episodes of 15 and 9 recorded steps; `one.npz` has one action a step,
/// `chunks.npz` whole chunks.
fn record(folder: &TempDir) {
    let npz = Npz::open(&qail_fixtures::root().join("policies/metaworld/push_demos.npz")).unwrap();
    let [observations, actions] = ["observations", "actions"].map(|key| npz.read_f32(key, 0..24).unwrap());
    let ends = [15.0, 24.0];
    let chunks: Vec<f32> = (0..24)
        .flat_map(|step| {
            let end = if step < 15 { 15 } else { 24 };
            (0..LENGTH).flat_map(move |i| (0..N_ACTION).map(move |a| ((step + i).min(end - 1), a)))
        })
        .map(|(step, a)| actions[step * N_ACTION + a])
        .collect();
    for (name, shape, actions) in
        [("one.npz", &[24, N_ACTION][..], &actions), ("chunks.npz", &[24, LENGTH, N_ACTION], &chunks)]
    {
        let arrays: [(&str, &[usize], &[f32]); 3] =
            [("observations", &[24, 39], &observations), ("actions", shape, actions), ("episode_ends", &[2], &ends)];
        write_npz(&folder.path().join(name), &arrays).unwrap();
    }
}

fn control(folder: &TempDir, artifact: &str) -> Value {
    json(folder, &["inspect", artifact])["control"]["chunk"].clone()
}

#[test]
fn chunks_are_said_or_guessed_and_flags_win() {
    let folder = TempDir::new().unwrap();
    record(&folder);
    let compile = |more: &[&str]| say(folder.path(), &[&["compile", ACT, "-b", "f32", "-o", "a.qail"], more].concat());
    // Nobody said anything, and no recorded action shows that the output has several.
    assert_eq!(compile(&[]).0, 0);
    assert_eq!(control(&folder, "a.qail"), Value::Null);
    let (code, _, notes) = compile(&["--demos", "one.npz"]);
    assert!(code == 0 && notes.contains("taken to be a chunk of 20 actions, all of them executed"), "{notes}");
    assert_eq!(control(&folder, "a.qail"), serde_json::json!({ "length": 20, "execute": 20, "ensemble": null }));
    assert!(good(&folder, &["inspect", "a.qail"]).contains("action `actions`: chunks of 20, of which 20 are executed"));
    // Chunks that were recorded are what the output is; they say nothing about steps.
    assert_eq!(compile(&["--demos", "chunks.npz"]).0, 0);
    assert_eq!(control(&folder, "a.qail"), Value::Null);
    std::fs::write(folder.path().join("policy.toml"), "[chunk]\nlength = 20\nexecute = 5\n").unwrap();
    let toml = ["--policy", "policy.toml"];
    assert_eq!(compile(&toml).0, 0);
    assert_eq!(control(&folder, "a.qail")["execute"], 5);
    assert_eq!(compile(&[&toml[..], &["--chunk-execute", "7"]].concat()).0, 0);
    assert_eq!(control(&folder, "a.qail")["execute"], 7);
    let (code, _, said) = compile(&[&toml[..], &["--chunk-ensemble", "0.01"]].concat());
    assert!(code == 2 && said.contains("ensembling computes a chunk in every step, so 5 actions"), "{said}");
    assert_eq!(compile(&[&toml[..], &["--chunk-ensemble", "0.01", "--chunk-execute", "1"]].concat()).0, 0);
    assert_eq!(control(&folder, "a.qail"), serde_json::json!({ "length": 20, "execute": 1, "ensemble": 0.01 }));
    assert!(good(&folder, &["inspect", "a.qail"]).contains("one in every step, their mean weighed by exp(-0.01 i)"));
    let (code, _, said) = compile(&["--chunk-length", "10"]);
    assert!(code == 2 && said.contains("holds 20 actions: leave the length out"), "{said}");
    let (code, _, said) = say(folder.path(), &["check", ACT, "--policy", "policy.toml", "-b", "f32"]);
    assert_eq!(code, 0, "{said}");
    std::fs::write(folder.path().join("policy.toml"), "[chunk]\nlength = 21\n").unwrap();
    assert_eq!(say(folder.path(), &["check", ACT, "--policy", "policy.toml", "-b", "f32"]).0, 2);
    // An action of one step is no chunk of three.
    let hopper = ["compile", support::EXPERT, "-b", "f32", "--chunk-length", "3", "-o", "b.qail"];
    assert_eq!(say(folder.path(), &hopper).0, 2);
}

#[test]
fn readers_that_do_not_know_chunks_are_told_so() {
    let folder = TempDir::new().unwrap();
    let compile = |more: &[&str]| good(&folder, &[&["compile", ACT, "-b", "f32", "-o", "a.qail"], more].concat());
    let features = || {
        let bytes = std::fs::read(folder.path().join("a.qail")).unwrap();
        qail_artifact::Artifact::parse(&bytes).unwrap().manifest().required_features.clone()
    };
    compile(&[]);
    assert!(features().is_empty());
    compile(&["--chunk-length", "20"]);
    assert_eq!(features(), ["chunk"]);
}

#[test]
fn run_gives_outputs_or_one_action_a_step() {
    let folder = TempDir::new().unwrap();
    record(&folder);
    good(&folder, &["compile", ACT, "-b", "f32", "--chunk-execute", "6", "-o", "a.qail"]);
    good(&folder, &["run", "a.qail", "--input", "one.npz", "-o", "raw.npz"]);
    good(&folder, &["run", "a.qail", "--input", "one.npz", "--actions", "-o", "act.npz"]);
    let (shape, raw) = floats(&folder, "raw.npz", "actions");
    assert_eq!(shape, [24, LENGTH, N_ACTION]);
    let (shape, acted) = floats(&folder, "act.npz", "actions");
    assert_eq!(shape, [24, N_ACTION]);
    for (step, action) in acted.chunks(N_ACTION).enumerate() {
        // The second episode begins anew with step 15.
        let start = if step < 15 { 0 } else { 15 };
        let row = (step - start) % 6;
        let at = (step - row) * LENGTH * N_ACTION + row * N_ACTION;
        assert_eq!(action, &raw[at..at + N_ACTION], "step {step}");
    }
    let (code, _, said) =
        say(folder.path(), &["run", "a.qail", "--input", "one.npz", "--actions", "--dump-codes", "c.npz"]);
    assert!(code == 2 && said.contains("--dump-codes"), "{said}");
}

/// The artifact is the model in full precision, so both act alike, step by step,
/// also where the model learns of its chunks from the artifact alone.
#[test]
fn a_model_and_its_artifact_give_the_same_actions_in_a_closed_loop() {
    let folder = TempDir::new().unwrap();
    let mut changes = Vec::new();
    for chunk in [&["--chunk-execute", "1"][..], &["--chunk-execute", "6"], &["--chunk-ensemble", "0.1"]] {
        good(&folder, &[&["compile", ACT, "-b", "f32", "-o", "a.qail"], chunk].concat());
        let env = ["--env", "cmd:$TOY 39 4 50", "--episodes", "3"];
        let found = json(&folder, &[&["eval", "a.qail", "--against", ACT], &env[..]].concat());
        let report = &found["closed_loop"]["report"];
        assert_eq!(report["comparison"]["visited"]["mse"], 0.0, "{chunk:?}");
        assert_eq!(report["policy"]["return_mean"], report["against"]["return_mean"]);
        changes.push(report["policy"]["return_mean"]["estimate"].as_f64().unwrap());
    }
    assert!(changes[0] != changes[1] && changes[1] != changes[2], "it matters how chunks are given out: {changes:?}");
    // A whole chunk is no action of the environment.
    good(&folder, &["compile", ACT, "-b", "f32", "-o", "a.qail"]);
    let (code, _, said) = say(folder.path(), &["eval", "a.qail", "--env", "cmd:$TOY 39 4 50", "--episodes", "1"]);
    assert!(code == 2 && said.contains("has 80 elements of F32, the action of the environment has 4"), "{said}");
    good(&folder, &["compile", ACT, "-b", "f32", "--chunk-length", "20", "-o", "a.qail"]);
    let (code, _, said) = say(folder.path(), &["eval", "a.qail", "--env", "cmd:$TOY 39 3 50", "--episodes", "1"]);
    assert!(code == 2 && said.contains("has 4 elements in each of 20 actions"), "{said}");
}

/// Against the expert a chunk is held as far as its episode goes, whether single
/// actions were recorded or whole chunks.
#[test]
fn chunks_are_compared_with_the_experts_next_actions() {
    let folder = TempDir::new().unwrap();
    record(&folder);
    good(&folder, &["compile", ACT, "-b", "f32", "--chunk-length", "20", "-o", "a.qail"]);
    good(&folder, &["run", "a.qail", "--input", "one.npz", "-o", "raw.npz"]);
    let (_, raw) = floats(&folder, "raw.npz", "actions");
    let (_, actions) = floats(&folder, "one.npz", "actions");
    let (mut squares, mut n) = (0.0, 0);
    for step in 0..24 {
        let end = if step < 15 { 15 } else { 24 };
        for i in 0..LENGTH.min(end - step) {
            for a in 0..N_ACTION {
                let d = raw[(step * LENGTH + i) * N_ACTION + a] - actions[(step + i) * N_ACTION + a];
                squares += f64::from(d) * f64::from(d);
                n += 1;
            }
        }
    }
    let found = json(&folder, &["eval", "a.qail", "--against", ACT, "--demos", "one.npz"]);
    let outputs = &found["open_loop"]["outputs"];
    assert_eq!((&outputs[0]["against"], &outputs[0]["all"]["mse"]), (&"teacher".into(), &0.0.into()));
    assert_eq!(outputs[1]["against"], "expert");
    let mse = outputs[1]["all"]["mse"].as_f64().unwrap();
    assert!((mse - squares / n as f64).abs() < 1e-6 * mse, "{mse} {}", squares / n as f64);
    // Recorded chunks count to their last row.
    let whole = json(&folder, &["eval", "a.qail", "--demos", "chunks.npz"]);
    let all = whole["open_loop"]["outputs"][0]["all"]["mse"].as_f64().unwrap();
    assert!(all.is_finite() && (all - mse).abs() > 1e-6, "{all} {mse}");
}

#[test]
fn bench_tells_steps_that_compute_from_those_that_do_not() {
    let folder = TempDir::new().unwrap();
    good(&folder, &["compile", ACT, "-b", "f32", "--chunk-execute", "10", "-o", "a.qail"]);
    let bench = json(&folder, &["bench", "a.qail", "--runs", "205"]);
    let chunk = &bench["chunk"];
    assert_eq!(
        (&bench["steps"], &chunk["computing"]["steps"], &chunk["giving"]["steps"]),
        (&205.into(), &21.into(), &184.into())
    );
    let p50 = |kind: &str| chunk[kind]["latency_us"]["p50"].as_f64().unwrap();
    assert!(p50("computing") > p50("giving"), "{bench:#}");
    let text = good(&folder, &["bench", "a.qail", "--runs", "205"]);
    assert!(text.contains("21 steps compute a chunk") && text.contains("184 steps give out a row"), "{text}");
    // The gate looks at what computes, which is a tenth of the steps.
    let (code, _, said) =
        say(folder.path(), &["bench", "a.qail", "--runs", "205", "--max-p99", &format!("{}", p50("giving"))]);
    assert_eq!(code, 6, "{said}");
    good(&folder, &["compile", ACT, "-b", "f32", "--chunk-ensemble", "0.1", "-o", "a.qail"]);
    let chunk = json(&folder, &["bench", "a.qail", "--runs", "20"])["chunk"].clone();
    assert_eq!((&chunk["computing"]["steps"], &chunk["giving"]), (&20.into(), &Value::Null));
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_checkpoint_gives_out_its_actions_as_it_was_trained_or_as_flags_say() {
    let folder = TempDir::new().unwrap();
    record(&folder);
    let recipe = ["--demos", "one.npz", "-b", "w8a8", "--steps", "2", "--batch", "4", "--loss", "l1"];
    let with = |first: &[&str], more: &[&str]| good(&folder, &[first, &recipe[..], more].concat());
    let said = with(&["train", ACT], &["-o", "a.ckpt"]);
    assert!(said.contains("qail+qbc on w8a8+o16: 2 updates") && said.contains("chunk of 20"), "{said}");
    assert!(!said.contains("runs row by row"), "{said}");
    good(&folder, &["compile", "a.ckpt", "-o", "a.qail"]);
    with(&["compile", ACT], &["--cache-dir", "cache", "-o", "b.qail"]);
    assert_eq!(read(folder.path(), "a.qail"), read(folder.path(), "b.qail"));
    assert_eq!(control(&folder, "a.qail"), serde_json::json!({ "length": 20, "execute": 20, "ensemble": null }));
    good(&folder, &["compile", "a.ckpt", "--chunk-execute", "3", "-o", "c.qail"]);
    assert_eq!(control(&folder, "c.qail")["execute"], 3);
    let (code, _, said) = say(folder.path(), &["compile", "a.ckpt", "--chunk-length", "3", "-o", "d.qail"]);
    assert!(code == 2 && said.contains("chunks of 20, not of 3"), "{said}");
    // How actions are given out does not need another training.
    let said = with(&["compile", ACT], &["--cache-dir", "cache", "--chunk-execute", "3", "-o", "e.qail"]);
    assert!(said.contains("found in the cache"), "{said}");
    assert_eq!(read(folder.path(), "c.qail"), read(folder.path(), "e.qail"));
    // Chunks that were recorded train too, and are another run.
    let chunks = ["train", ACT, "--demos", "chunks.npz", "-b", "w8a8", "--steps", "2", "--batch", "4", "-o", "f.ckpt"];
    assert!(good(&folder, &chunks).contains("2 updates"));
    let other =
        ["train", ACT, "--demos", "one.npz", "-b", "w8a8", "--steps", "2", "--batch", "4", "-o", "f.ckpt", "--resume"];
    assert_eq!(say(folder.path(), &other).0, 4);
}
