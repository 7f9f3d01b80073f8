//! `qailc eval` and `qailc bench`: does the quantized policy still act, what
//! does the user see, and what happens when an environment misbehaves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::{process::Command, time::Instant};

use insta::assert_snapshot;

use support::{DEMOS, EXPERT, transcript as qailc};

/// A folder with `hopper.qail`, 4 bits.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "-q",
        "compile",
        EXPERT,
        "-b",
        "w4a4",
        "--method",
        "ptq",
        "--demos",
        DEMOS,
        "--calibration-samples",
        "256",
        "-o",
        "hopper.qail",
    ];
    assert!(qailc(folder.path(), &args).starts_with("exit 0"));
    folder
}

/// Everything that `eval` says about a well-behaved environment.
#[test]
fn two_policies_are_compared_on_the_same_seeds() {
    let folder = folder();
    let eval = |more: &[&str]| {
        let mut args = vec![
            "-q",
            "eval",
            "hopper.qail",
            "--against",
            EXPERT,
            "--env",
            "cmd:$TOY 11 3 20",
            "--episodes",
            "6",
            "--seed",
            "100",
        ];
        args.extend(more);
        qailc(folder.path(), &args)
    };
    assert_snapshot!(eval(&["--out", "episodes.csv"]));
    let episodes = std::fs::read_to_string(folder.path().join("episodes.csv")).unwrap();
    assert_snapshot!("episodes_are_written_as_csv", episodes);
    eval(&["--out", "one.csv", "--jobs", "1"]);
    assert_eq!(episodes, std::fs::read_to_string(folder.path().join("one.csv")).unwrap(), "jobs change the result");
    let json: serde_json::Value = {
        eval(&["--out", "episodes.json"]);
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("episodes.json")).unwrap()).unwrap()
    };
    assert_eq!(json["episodes"].as_array().unwrap().len(), 6);
    assert_eq!(json["episodes"][2]["seed"], 102);
    assert!(json["episodes"][2]["against"]["return"].as_f64().unwrap() < 0.0);
    let text = eval(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(text.split_once("--- stdout").unwrap().1).unwrap();
    assert_eq!(json["closed_loop"]["report"]["episodes"], 6);
    assert!(json["closed_loop"]["report"]["comparison"]["visited"]["mse"].as_f64().unwrap() > 0.0);
    // Returns are negative here.
    assert_snapshot!("a_negative_return_needs_a_floor", eval(&["--metric", "return", "--min-retention", "0.5"]));
    assert_snapshot!(
        "a_gate_says_how_many_episodes_it_takes",
        eval(&["--metric", "return", "--floor", "-30", "--min-retention", "1.0005"])
    );
}

#[test]
fn a_policy_is_evaluated_alone() {
    let folder = folder();
    assert_snapshot!(qailc(
        folder.path(),
        &["-q", "eval", "hopper.qail", "--env", "cmd:$TOY 11 3 20", "--episodes", "2"]
    ));
    let same = [
        "-q",
        "eval",
        EXPERT,
        "--against",
        EXPERT,
        "--env",
        "cmd:$TOY 11 3 20",
        "--episodes",
        "8",
        "--min-retention",
        "0.9",
    ];
    assert_snapshot!("perfect_success_is_not_certainty", qailc(folder.path(), &same));
}

#[test]
fn recorded_states_tell_errors_and_drift() {
    let folder = folder();
    assert_snapshot!(qailc(folder.path(), &["eval", "hopper.qail", "--against", EXPERT, "--demos", DEMOS]));
    // The same numbers as an artifact and as a model: no error at all.
    let text = qailc(folder.path(), &["--json", "eval", EXPERT, "--against", EXPERT, "--demos", DEMOS]);
    let json: serde_json::Value = serde_json::from_str(text.split_once("--- stdout").unwrap().1).unwrap();
    assert_eq!(json["open_loop"]["outputs"][0]["all"]["mse"], 0.0);
    assert_eq!(json["open_loop"]["outputs"][1]["against"], "expert");
}

/// An environment that fails gives code 4, the reason, its last words, and what
/// was finished before.
#[test]
fn environments_that_misbehave_are_quoted() {
    let folder = folder();
    let eval = |env: &str, timeout: &str| {
        let env = format!("cmd:$TOY {env}");
        let args =
            ["-q", "eval", "hopper.qail", "--env", &env, "--episodes", "3", "--jobs", "1", "--env-timeout", timeout];
        qailc(folder.path(), &args)
    };
    assert_snapshot!("it_dies", eval("11 3 20 exit 30", "60"));
    assert_snapshot!("it_dies_before_it_says_hello", eval("11 3 20 deaf", "60"));
    assert_snapshot!("it_hangs", eval("11 3 20 hang", "4"));
    assert_snapshot!("it_never_says_hello", eval("11 3 20 silent", "1"));
    assert_snapshot!("it_prints_before_its_hello", eval("11 3 20 noise", "60"));
    assert_snapshot!("it_prints_in_between", eval("11 3 20 print", "60"));
    assert_snapshot!("it_speaks_another_version", eval("11 3 20 version", "60"));
    assert_snapshot!("it_answers_another_shape", eval("11 3 20 short", "60"));
    assert_snapshot!("it_observes_nan", eval("11 3 20 nan", "60"));
    assert_snapshot!("it_rewards_infinity", eval("11 3 20 reward", "60"));
    assert_snapshot!("it_refuses", eval("11 3 20 error", "60"));
    assert_snapshot!("its_observation_has_another_size", eval("12 3", "60"));
    assert_snapshot!("its_action_has_another_size", eval("11 4", "60"));
}

#[test]
fn flags_that_make_no_sense_end_with_code_2() {
    let folder = folder();
    for args in [
        &["eval", "hopper.qail"][..],
        &["eval", "hopper.qail", "--env", "python env.py"],
        &["eval", "hopper.qail", "--env", "cmd:"],
        &["eval", "hopper.qail", "--env", "cmd:$TOY 11 3", "--episodes", "0"],
        &["eval", "hopper.qail", "--env", "cmd:$TOY 11 3", "--min-retention", "0.9"],
        &["eval", "hopper.qail", "--env", "cmd:$TOY '11 3"],
        &["bench", "hopper.qail", "--rate", "50ms"],
    ] {
        let text = qailc(folder.path(), args);
        assert!(text.starts_with("exit 2"), "{args:?}: {text}");
    }
    let text = qailc(folder.path(), &["eval", "hopper.qail", "--env", "cmd:no-such-simulator"]);
    assert!(text.starts_with("exit 4") && text.contains("cannot start `no-such-simulator`"), "{text}");
    let text = qailc(folder.path(), &["eval", "hopper.qail", "--env", "cmd:$TOY 11 3", "-o", "missing/a.csv"]);
    assert!(text.starts_with("exit 4") && text.contains("there is no folder"), "{text}");
}

/// A wrapper that waits for a child which holds the pipes open: both are ended.
#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_behind() {
    let folder = folder();
    let start = Instant::now();
    let marker = format!("{}", 7_000_000 + std::process::id());
    let env = format!("cmd:$TOY 11 3 {marker} child");
    let text = qailc(folder.path(), &["eval", "hopper.qail", "--env", &env, "--env-timeout", "1", "--jobs", "2"]);
    assert!(text.starts_with("exit 4") && text.contains("was silent for 1 s"), "{text}");
    assert!(start.elapsed().as_secs() < 60);
    let alive = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&marker)
        })
    };
    // An orphan is reaped by the first process of the machine, soon.
    for _ in 0..100 {
        if !alive() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("a process of the environment is left");
}

#[test]
fn bench_measures_and_holds_to_gates() {
    let folder = folder();
    let text = qailc(folder.path(), &["bench", "hopper.qail", "--runs", "2000", "--max-p99", "1e9"]);
    assert!(text.starts_with("exit 0") && text.contains("2000 steps") && text.contains("p99.9"), "{text}");
    let text =
        qailc(folder.path(), &["bench", "hopper.qail", "--runs", "50", "--max-p99", "0", "--device", "cpu:generic"]);
    assert!(text.starts_with("exit 6") && text.contains("on cpu:generic, and 0 us was asked for"), "{text}");
    let args = ["--json", "bench", "hopper.qail", "--rate", "200Hz", "--seconds", "0.3", "--input", DEMOS];
    let text = qailc(folder.path(), &args);
    let json: serde_json::Value =
        serde_json::from_str(text.split_once("--- stdout").unwrap().1.split("--- stderr").next().unwrap()).unwrap();
    let (steps, missed) = (json["steps"].as_u64().unwrap(), json["missed_deadlines"].as_u64().unwrap());
    assert!(steps + missed <= 61 && steps >= 1, "{text}");
    assert!(json["latency_us"]["p50"].as_f64().unwrap() <= json["latency_us"]["p99.9"].as_f64().unwrap());
    // A million steps a second cannot be kept up.
    let text = qailc(folder.path(), &["--json", "bench", "hopper.qail", "--rate", "1000kHz", "--seconds", "0.1"]);
    let json: serde_json::Value =
        serde_json::from_str(text.split_once("--- stdout").unwrap().1.split("--- stderr").next().unwrap()).unwrap();
    assert!(json["missed_deadlines"].as_u64().unwrap() > 0, "{text}");
}

/// The real thing, short: 4 bits hop as far as full precision in a third of the
/// steps of an episode, far beyond the 326 of a policy with a 4-bit observation.
#[test]
fn a_4_bit_hopper_still_hops() {
    let Some(python) = std::env::var_os("QAILC_PYTHON") else {
        eprintln!("SKIPPED: QAILC_PYTHON is not set");
        return;
    };
    let python = python.to_string_lossy().into_owned();
    if !Command::new(&python).args(["-c", "import gymnasium, mujoco"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: {python} has no gymnasium and mujoco (fixtures/envs/requirements.txt)");
        return;
    }
    let folder = folder();
    let env = format!(
        "cmd:'{python}' '{}' Hopper-v5 --max-steps 300",
        qail_fixtures::root().join("envs/gym_env.py").display()
    );
    let args =
        ["--json", "eval", "hopper.qail", "--against", EXPERT, "--env", &env, "--episodes", "4", "--seed", "3000"];
    let text = qailc(folder.path(), &args);
    let json = text.split_once("--- stdout").unwrap_or_else(|| panic!("{text}")).1.split("--- stderr").next().unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let report = &json["closed_loop"]["report"];
    let (policy, teacher) =
        (&report["policy"]["return_median"]["estimate"], &report["against"]["return_median"]["estimate"]);
    assert!(teacher.as_f64().unwrap() > 900.0, "{report:#}");
    assert!(policy.as_f64().unwrap() > 0.95 * teacher.as_f64().unwrap(), "{report:#}");
}
