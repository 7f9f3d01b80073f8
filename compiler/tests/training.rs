//! Training through the command line: the same bytes whatever happens on the
//! way, and clear words about what cannot be trained on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use qailc::data::write_npz;
use tempfile::TempDir;

use support::command;

fn policy(name: &str) -> String {
    qail_fixtures::root().join("policies").join(name).to_string_lossy().into_owned()
}

fn expert() -> String {
    policy("hopper/hopper_expert.onnx")
}

fn demos() -> String {
    policy("hopper/hopper_demos.npz")
}

fn qailc(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn good(folder: &Path, args: &[&str]) -> String {
    let output = qailc(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Exit code and what was said.
fn bad(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = qailc(folder, args);
    assert!(!output.status.success(), "{args:?} went well");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn read(folder: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

/// Few updates of small batches: about a second.
const SHORT: [&str; 8] = ["--steps", "120", "--batch", "32", "--eval-every", "40", "--calibration-samples", "128"];

fn with<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [first, &SHORT, more].concat()
}

#[test]
fn a_model_and_its_checkpoint_give_the_same_artifact() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let base = [model.as_str(), "--demos", &data];
    let train = |more: &[&str]| good(folder.path(), &with(&[&["train"][..], &base[..], more].concat(), &[]));
    let said = train(&["-o", "one.ckpt", "--threads", "1"]);
    assert!(said.contains("qail+qbc on w4a4+e8+o16: 120 updates"), "{said}");
    train(&["-o", "two.ckpt", "--threads", "2"]);
    assert_eq!(read(&folder, "one.ckpt"), read(&folder, "two.ckpt"), "threads change the result");
    good(folder.path(), &["compile", "one.ckpt", "-o", "one.qail"]);
    let compile = with(&[&["compile"][..], &base[..]].concat(), &["-o", "two.qail"]);
    good(folder.path(), &compile);
    assert_eq!(read(&folder, "one.qail"), read(&folder, "two.qail"));
    let inspected = good(folder.path(), &["inspect", "one.qail", "--json"]);
    assert!(
        inspected.contains("\"method\": \"qail+qbc\"") && inspected.contains("\"reproducible\": true"),
        "{inspected}"
    );
    // What training printed is what the file does.
    let line = |text: &str| text.lines().find(|line| line.starts_with("output")).unwrap().to_owned();
    assert_eq!(line(&said), line(&good(folder.path(), &["inspect", "one.qail"])));
    // Another seed is another policy.
    train(&["-o", "seed.ckpt", "--seed", "1"]);
    assert_ne!(read(&folder, "one.ckpt"), read(&folder, "seed.ckpt"));
    // A checkpoint exports as well.
    good(folder.path(), &["export", "one.ckpt", "--format", "exact", "-o", "one.onnx"]);
}

#[test]
fn training_leaves_less_error_than_rounding() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let mse = |args: &[&str]| -> f64 {
        let said =
            good(folder.path(), &[&["compile", &model, "--demos", &data, "--json", "-o", "a.qail"][..], args].concat());
        let report: serde_json::Value = serde_json::from_str(said.split("\nnote").next().unwrap()).unwrap();
        report["report"]["errors"][0]["mse"].as_f64().unwrap()
    };
    // Few steps have to be large ones, and what is asked for here is the error on recorded states.
    let quick = ["--steps", "400", "--lr", "1e-2", "--lr-steps", "3e-3", "--obs-noise", "0"];
    let (ptq, trained) = (mse(&["--method", "ptq"]), mse(&quick));
    assert!(trained < 0.6 * ptq, "{trained} after training, {ptq} before");
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let long = ["--steps", "1500", "--batch", "64", "--eval-every", "100", "--save-every", "20"];
    let train = |name: &'static str, more: &[&str]| -> Vec<String> {
        let args = [&["train", &model, "--demos", &data, "-o", name][..], &long[..], more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    fn refs(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    good(folder.path(), &refs(&train("whole.ckpt", &[])));
    let path = folder.path().join("cut.ckpt");
    let mut n_cuts = 0;
    for _ in 0..3 {
        let args = train("cut.ckpt", &["--resume"]);
        let before = std::fs::read(&path).ok();
        let mut child =
            command(folder.path(), &refs(&args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // As soon as there is something new to go on from.
        while std::fs::read(&path).ok() == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        n_cuts += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(n_cuts > 0, "it was never cut");
    good(folder.path(), &refs(&train("cut.ckpt", &["--resume"])));
    assert_eq!(read(&folder, "whole.ckpt"), read(&folder, "cut.ckpt"));
    // Going on from the end changes nothing.
    good(folder.path(), &refs(&train("cut.ckpt", &["--resume"])));
    assert_eq!(read(&folder, "whole.ckpt"), read(&folder, "cut.ckpt"));
    // Another run does not go on from it.
    let (code, said) = bad(folder.path(), &refs(&train("cut.ckpt", &["--resume", "--lambda", "2"])));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("of another run") && said.contains("lambda"), "{said}");
    assert_eq!(read(&folder, "whole.ckpt"), read(&folder, "cut.ckpt"), "the checkpoint is lost");
}

#[test]
fn a_cache_saves_time_and_never_fails_a_build() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let compile = |name: &str, cache: &str| {
        let args = ["compile", &model, "--demos", &data, "--cache-dir", cache, "-o", name];
        good(folder.path(), &with(&args, &[]))
    };
    assert!(!compile("a.qail", "cache").contains("found in the cache"));
    assert!(compile("b.qail", "cache").contains("found in the cache"));
    assert_eq!(read(&folder, "a.qail"), read(&folder, "b.qail"));
    let entry: PathBuf = std::fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, &bytes[..bytes.len() / 2]).unwrap();
    assert!(compile("c.qail", "cache").contains("is not used"));
    assert_eq!(read(&folder, "a.qail"), read(&folder, "c.qail"));
    // Each flag of training counts.
    let louder = ["compile", &model, "--demos", &data, "--cache-dir", "cache", "--obs-noise", "0.2", "-o", "e.qail"];
    assert!(!good(folder.path(), &with(&louder, &[])).contains("found in the cache"));
    assert_ne!(read(&folder, "a.qail"), read(&folder, "e.qail"));
    // A cache that cannot be written.
    std::fs::write(folder.path().join("file"), b"").unwrap();
    assert!(compile("d.qail", "file").contains("was not kept in the cache"));
    assert_eq!(read(&folder, "a.qail"), read(&folder, "d.qail"));
}

#[test]
fn checkpoints_that_cannot_be_used_are_refused() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    good(folder.path(), &with(&["train", &model, "--demos", &data, "-o", "a.ckpt"], &[]));
    let mut bytes = read(&folder, "a.ckpt");
    let last = bytes.len() - 5;
    bytes[last] ^= 4;
    std::fs::write(folder.path().join("damaged.ckpt"), &bytes).unwrap();
    let (code, said) = bad(folder.path(), &["compile", "damaged.ckpt", "-o", "x.qail"]);
    assert!(code == 8 && said.contains("checksum is wrong"), "{code} {said}");
    std::fs::write(folder.path().join("short.ckpt"), &bytes[..last]).unwrap();
    assert_eq!(bad(folder.path(), &["compile", "short.ckpt", "-o", "x.qail"]).0, 8);
    let (code, said) = bad(folder.path(), &["compile", "a.ckpt", "-b", "w8a8", "-o", "x.qail"]);
    assert!(code == 2 && said.contains("--bits has no effect"), "{code} {said}");
    assert!(!folder.path().join("x.qail").exists());
}

/// A recording of two episodes for the Hopper expert.
fn recording(folder: &TempDir, name: &str, actions: Option<(usize, &[f32])>, ends: &[f32]) -> String {
    let n = *ends.last().unwrap() as usize;
    let observations: Vec<f32> = (0..n * 11).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
    let mut arrays =
        vec![("observations", vec![n, 11], observations), ("episode_ends", vec![ends.len()], ends.to_vec())];
    if let Some((width, actions)) = actions {
        arrays.push(("actions", vec![n, width], actions.to_vec()));
    }
    let path = folder.path().join(name);
    let arrays: Vec<(&str, &[usize], &[f32])> =
        arrays.iter().map(|(key, shape, data)| (*key, shape.as_slice(), data.as_slice())).collect();
    write_npz(&path, &arrays).unwrap();
    name.to_owned()
}

#[test]
fn data_that_does_not_fit_is_named() {
    let folder = TempDir::new().unwrap();
    let model = expert();
    let train = |data: &str, more: &[&str]| {
        bad(folder.path(), &with(&["train", &model, "--demos", data, "-o", "x.ckpt"], more))
    };
    let none = recording(&folder, "none.npz", None, &[20.0, 40.0]);
    let (code, said) = train(&none, &["--method", "qail"]);
    assert!(code == 2 && said.contains("it imitates actions, and the data has none"), "{code} {said}");
    let mut actions = vec![0.1; 40 * 3];
    actions[25 * 3 + 1] = f32::NAN;
    let nan = recording(&folder, "nan.npz", Some((3, &actions)), &[20.0, 40.0]);
    let (code, said) = train(&nan, &[]);
    assert!(code == 4 && said.contains("array `actions` has NaN") && said.contains("step 5 of episode 1"), "{said}");
    let huge = recording(&folder, "huge.npz", Some((3, &[1e30; 120])), &[20.0, 40.0]);
    let (code, said) = train(&huge, &[]);
    assert!(code == 4 && said.contains("first batch is inf") && said.contains("data inspect"), "{code} {said}");
    // The state before the first update, which is of use.
    std::fs::remove_file(folder.path().join("x.ckpt")).unwrap();
    let wide = recording(&folder, "wide.npz", Some((4, &[0.1; 160])), &[20.0, 40.0]);
    let (code, said) = train(&wide, &[]);
    assert!(code == 2 && said.contains("has 3 numbers, but a recorded action has 4"), "{code} {said}");
    let empty = recording(&folder, "empty.npz", Some((3, &[0.1; 120])), &[20.0, 20.0, 40.0]);
    let (code, said) = train(&empty, &[]);
    assert!(code == 4 && said.contains("episode_ends"), "{code} {said}");
    let cheetah = policy("halfcheetah/halfcheetah_demos.npz");
    let (code, said) = train(&cheetah, &[]);
    assert!(code == 4 && said.contains("needed is [steps, 11]"), "{code} {said}");
    let (code, said) = train(&demos(), &["--method", "qbc", "-b", "w4a16"]);
    assert!(code == 2 && said.contains("keeps float activations"), "{code} {said}");
    assert!(!folder.path().join("x.ckpt").exists());
}

#[test]
fn what_training_prints_is_what_eval_finds() {
    let folder = TempDir::new().unwrap();
    let model = expert();
    // A single episode is held out and trained on, so that both look at the same steps.
    let npz = qailc::data::Npz::open(Path::new(&demos())).unwrap();
    let [observations, actions] = ["observations", "actions"].map(|key| npz.read_f32(key, 0..200).unwrap());
    let arrays: [(&str, &[usize], &[f32]); 2] =
        [("observations", &[200, 11], &observations), ("actions", &[200, 3], &actions)];
    write_npz(&folder.path().join("one.npz"), &arrays).unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(good(folder.path(), args).split("\nnote").next().unwrap()).unwrap()
    };
    for noise in ["0", "0.1"] {
        let train = ["train", &model, "--demos", "one.npz", "--obs-noise", noise, "-o", "a.ckpt", "--json", "-q"];
        let trained = json(&with(&train, &[]));
        good(folder.path(), &["compile", "a.ckpt", "-o", "a.qail"]);
        let found = json(&["eval", "a.qail", "--against", &model, "--demos", "one.npz", "--json", "-q"]);
        let (trained, found) = (&trained["errors"][0], &found["open_loop"]["outputs"][0]["all"]);
        assert!(trained["mse"].as_f64().unwrap() > 0.0);
        assert_eq!(trained["mse"], found["mse"]);
        assert_eq!(trained["max"], found["max"]);
    }
}

#[test]
fn training_without_gain_is_said() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let said = good(folder.path(), &with(&["train", &model, "--demos", &data, "--lr", "3", "-o", "a.ckpt"], &[]));
    assert!(said.contains("the best behind 0") && said.contains("nothing that does better"), "{said}");
}

#[test]
fn steps_weigh_what_the_recording_says() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("hopper.onnx");
    std::fs::copy(expert(), &model).unwrap();
    let write = |name: &str, key: &str, weight: f32| {
        let weights: Vec<f32> = (0..40).map(|i| if i == 3 { weight } else { 1.0 }).collect();
        let observations: Vec<f32> = (0..40 * 11).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
        let arrays: [(&str, &[usize], &[f32]); 4] = [
            ("observations", &[40, 11], &observations),
            ("actions", &[40, 3], &[0.1; 120]),
            ("episode_ends", &[2], &[20.0, 40.0]),
            (key, &[40], &weights),
        ];
        write_npz(&folder.path().join(name), &arrays).unwrap();
    };
    write("a.npz", "importance", 5.0);
    write("b.npz", "weights", -1.0);
    fn train(data: &str) -> Vec<&str> {
        with(&["train", "hopper.onnx", "--demos", data, "-o", "a.ckpt"], &[])
    }
    assert!(!good(folder.path(), &train("a.npz")).contains("weighs in training"));
    std::fs::write(folder.path().join("policy.toml"), "[map]\nweights = \"importance\"").unwrap();
    let said = good(folder.path(), &train("a.npz"));
    assert!(said.contains("array `importance` says how much each step weighs in training"), "{said}");
    std::fs::remove_file(folder.path().join("policy.toml")).unwrap();
    let (code, said) = bad(folder.path(), &train("b.npz"));
    assert!(code == 4 && said.contains("array `weights` has -1 at row 3; a weight is 0 or more"), "{code} {said}");
}

#[test]
fn float_activations_are_not_trained_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let said = good(folder.path(), &["compile", &model, "-b", "w4a16", "--demos", &data, "-o", "a.qail"]);
    assert!(said.contains("w4a16 keeps float activations: nothing is trained (ptq)"), "{said}");
    for command in ["compile", "train"] {
        let args = [command, &model, "-b", "w4a16", "--method", "qail", "--demos", &data, "-o", "x"];
        let (code, said) = bad(folder.path(), &args);
        assert!(code == 2 && said.contains("only integer precisions") && said.contains("leave --method out"), "{said}");
    }
    let (code, said) = bad(folder.path(), &["train", &model, "-b", "w4a16", "--demos", &data, "-o", "x"]);
    assert!(code == 2 && said.contains("`qailc compile` builds w4a16 from the model"), "{code} {said}");
}

/// What is compared is the policy that was compiled: the bounds, arrays and
/// outputs of `policy.toml` belong to the model wherever it is read.
#[test]
fn eval_reads_the_policy_file_of_the_model() {
    let folder = TempDir::new().unwrap();
    std::fs::copy(expert(), folder.path().join("hopper.onnx")).unwrap();
    let npz = qailc::data::Npz::open(Path::new(&demos())).unwrap();
    let [observations, actions] = ["observations", "actions"].map(|key| npz.read_f32(key, 0..200).unwrap());
    let arrays: [(&str, &[usize], &[f32]); 2] =
        [("states", &[200, 11], &observations), ("actions", &[200, 3], &actions)];
    write_npz(&folder.path().join("held.npz"), &arrays).unwrap();
    let file =
        "[actions]\nbounds = [[-0.25, 0.25]]\n[policy]\noutputs = { action = \"action\" }\n[map]\nobs = \"states\"";
    std::fs::write(folder.path().join("policy.toml"), file).unwrap();
    good(folder.path(), &["compile", "hopper.onnx", "-b", "f32", "-o", "a.qail"]);
    let eval = ["eval", "a.qail", "--against", "hopper.onnx", "--demos", "held.npz", "--json"];
    let mse = |args: &[&str]| -> f64 {
        let text = good(folder.path(), args);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["open_loop"]["outputs"][0]["all"]["mse"].as_f64().unwrap()
    };
    assert_eq!(mse(&eval), 0.0);
    // Without the bounds it is another policy.
    std::fs::write(folder.path().join("other.toml"), "[map]\nobs = \"states\"").unwrap();
    assert!(mse(&[&eval[..], &["--policy", "other.toml"]].concat()) > 1e-3);
    std::fs::write(folder.path().join("policy.toml"), "[actions]\nbouds = [[-1, 1]]").unwrap();
    let (code, said) = bad(folder.path(), &eval);
    assert!(code == 4 && said.contains("did you mean `actions.bounds`?"), "{code} {said}");
}

#[test]
fn observations_alone_and_episodes_of_one_step_train() {
    let folder = TempDir::new().unwrap();
    let model = expert();
    let none = recording(&folder, "none.npz", None, &[1.0, 2.0, 40.0, 41.0]);
    let said = good(folder.path(), &with(&["train", &model, "--demos", &none, "-o", "a.ckpt"], &[]));
    assert!(said.contains("qbc on w4a4") && said.contains("no actions"), "{said}");
}

#[test]
fn what_cannot_be_written_is_said_before_training() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    // So long that a test which trained first would not end.
    let forever = ["--steps", "100000000"];
    for (command, name) in [("train", "missing/a.ckpt"), ("compile", "missing/a.qail")] {
        let args = [&[command, &model, "--demos", &data, "-o", name][..], &forever[..]].concat();
        let (code, said) = bad(folder.path(), &args);
        assert!(code == 4 && said.contains("cannot write"), "{code} {said}");
    }
}

#[test]
fn a_time_budget_ends_training_and_is_recorded() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let args = ["compile", &model, "--demos", &data, "--steps", "100000000", "--time-budget", "0.5", "-o", "a.qail"];
    good(folder.path(), &args);
    let inspected = good(folder.path(), &["inspect", "a.qail", "--json"]);
    assert!(inspected.contains("\"reproducible\": false"), "{inspected}");
}

#[test]
fn divergence_stops_and_keeps_the_checkpoint() {
    let folder = TempDir::new().unwrap();
    let (model, data) = (expert(), demos());
    let args = ["train", &model, "--demos", &data, "--lr", "1e30", "--clip", "1e30", "-o", "a.ckpt"];
    let (code, said) = bad(folder.path(), &with(&args, &[]));
    assert!(code == 5 && said.contains("diverged"), "{code} {said}");
    // The start is still there.
    good(folder.path(), &["compile", "a.ckpt", "-o", "a.qail"]);
}

#[test]
fn a_policy_file_gives_bounds_and_refuses_slips() {
    let folder = TempDir::new().unwrap();
    let data = demos();
    std::fs::copy(expert(), folder.path().join("hopper.onnx")).unwrap();
    let file = folder.path().join("policy.toml");
    let compile = ["compile", "hopper.onnx", "--method", "ptq", "--demos", &data, "-o", "a.qail"];
    std::fs::write(&file, "[actions]\nbounds = [[-0.25, 0.25]]\n[policy]\nhead = \"deterministic\"").unwrap();
    good(folder.path(), &compile);
    good(folder.path(), &["run", "a.qail", "--input", &data, "--rows", "200", "-o", "a.npz"]);
    let summary = qailc::data::Summary::read(&folder.path().join("a.npz")).unwrap();
    let action = summary.arrays.iter().find(|array| array.key == "action").unwrap();
    assert!(action.columns.iter().all(|column| column.min >= -0.25 && column.max <= 0.25), "{action:?}");
    std::fs::write(&file, "[actions]\nbouds = [[-1, 1]]").unwrap();
    let (code, said) = bad(folder.path(), &compile);
    assert!(code == 4 && said.contains("did you mean `actions.bounds`?"), "{code} {said}");
    std::fs::write(&file, "[chunk]\nlength = 10").unwrap();
    let (code, said) = bad(folder.path(), &compile);
    assert!(code == 2 && said.contains("output `action` [1, 3] holds 1 actions"), "{code} {said}");
    std::fs::write(&file, "[actions]\nunnormalize = {}").unwrap();
    let (code, said) = bad(folder.path(), &compile);
    assert!(code == 3 && said.contains("`actions.unnormalize` is not supported"), "{code} {said}");
}

#[test]
fn data_inspect_tells_what_is_there_and_what_looks_wrong() {
    let folder = TempDir::new().unwrap();
    let model = expert();
    let mut actions = vec![0.1; 40 * 3];
    actions[7] = f32::NAN;
    let file = recording(&folder, "odd.npz", Some((3, &actions)), &[1.0, 40.0]);
    let said = good(folder.path(), &["data", "inspect", &file, "--model", &model]);
    for expected in [
        "observations float32 [40, 11]",
        "2 episodes of 1 to 39 steps",
        "fits",
        "`actions` has 1 NaN and 0 infinite numbers",
        "columns 0, 1, 2 of `actions` never change",
        "episodes 0 have one step",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let json = good(folder.path(), &["data", "inspect", &file, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["arrays"][0]["n_nan"], 1);
    let cheetah = policy("halfcheetah/halfcheetah_expert.onnx");
    let (code, said) = bad(folder.path(), &["data", "inspect", &file, "--model", &cheetah]);
    assert!(code == 4 && said.contains("needed is [steps, 17]"), "{code} {said}");
}
