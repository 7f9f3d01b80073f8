//! What a user sees: stdout, stderr, exit code.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use insta::assert_snapshot;

use support::{DEMOS, EXPERT, transcript as qailc};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn check_says_what_is_ready() {
    assert_snapshot!(qailc(folder().path(), &["check", EXPERT, "-b", "w4a4"]));
}

#[test]
fn compile_reports_layers_sizes_and_error() {
    let folder = folder();
    let args = [
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
    assert_snapshot!(qailc(folder.path(), &args));
    assert_snapshot!("inspect_shows_the_same_report", qailc(folder.path(), &["inspect", "hopper.qail", "--plan"]));
    assert_snapshot!(
        "run_prints_actions",
        qailc(folder.path(), &["run", "hopper.qail", "--input", DEMOS, "--rows", "3"])
    );
    assert_snapshot!(
        "run_writes_a_file",
        qailc(
            folder.path(),
            &["run", "hopper.qail", "--input", DEMOS, "--rows", "3", "-o", "a.npz", "--device", "cpu:generic"]
        )
    );
    assert_snapshot!(
        "an_unknown_device_is_refused",
        qailc(folder.path(), &["run", "hopper.qail", "--input", DEMOS, "--device", "cuda"])
    );
    assert_snapshot!(
        "a_wrong_key_is_named",
        qailc(folder.path(), &["run", "hopper.qail", "--input", DEMOS, "--map", "obs=observation.state"])
    );
    let mut bytes = std::fs::read(folder.path().join("hopper.qail")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.path().join("damaged.qail"), &bytes).unwrap();
    assert_snapshot!("a_damaged_artifact_is_refused", qailc(folder.path(), &["inspect", "damaged.qail"]));
    assert_snapshot!(
        "an_unwritable_output_is_refused",
        qailc(folder.path(), &["run", "hopper.qail", "--input", DEMOS, "--rows", "1", "-o", "missing/a.npz"])
    );
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "half-written files: {files:?}");
}

#[test]
fn quantized_activations_need_data() {
    assert_snapshot!(qailc(folder().path(), &["compile", EXPERT, "-b", "w4a4"]));
}

#[test]
fn float_precisions_need_none() {
    assert_snapshot!(qailc(folder().path(), &["compile", EXPERT, "-b", "w4a16", "-o", "hopper.qail"]));
}

#[test]
fn a_model_that_is_none_is_invalid_input() {
    let folder = folder();
    std::fs::write(folder.path().join("model.onnx"), b"not a model").unwrap();
    assert_snapshot!(qailc(folder.path(), &["check", "model.onnx"]));
    assert_snapshot!("a_missing_model_is_invalid_input", qailc(folder.path(), &["check", "missing.onnx"]));
}

#[test]
fn data_that_is_none_is_invalid_input() {
    let folder = folder();
    std::fs::write(folder.path().join("demos.npz"), b"PK not a zip").unwrap();
    assert_snapshot!(qailc(folder.path(), &["compile", EXPERT, "--demos", "demos.npz", "-o", "a.qail"]));
    assert!(!folder.path().join("a.qail").exists());
}

#[test]
fn opt_prints_the_graph() {
    assert_snapshot!(qailc(folder().path(), &["opt", EXPERT, "--passes", "fold-normalizer,fuse-linear-act"]));
    assert_snapshot!(
        "an_unknown_pass_is_refused",
        qailc(folder().path(), &["opt", EXPERT, "--passes", "fold-everything"])
    );
    assert_snapshot!("opt_lists_passes", qailc(folder().path(), &["opt", "--list", "x"]));
}

#[test]
fn the_model_is_never_overwritten() {
    let folder = folder();
    std::fs::copy(qail_fixtures::root().join("policies/hopper/hopper_expert.onnx"), folder.path().join("m.onnx"))
        .unwrap();
    let args = ["compile", "m.onnx", "-b", "f32", "-o", "m.onnx"];
    assert_snapshot!(qailc(folder.path(), &args));
}

#[test]
fn failures_are_json_too() {
    assert_snapshot!(qailc(folder().path(), &["--json", "check", "missing.onnx"]));
}

/// Everything a user might type that makes no sense ends with code 2.
#[test]
fn usage_errors_end_with_code_2() {
    for args in
        [&["compile"][..], &["compile", EXPERT, "-b", "w3a3"], &["frobnicate"], &["check", EXPERT, "--dim", "batch"]]
    {
        assert!(qailc(folder().path(), args).starts_with("exit 2"), "{args:?}");
    }
}

/// The best of three: the others may have had to share the machine.
#[test]
fn check_takes_less_than_a_second() {
    let times = (0..3).map(|_| {
        let start = std::time::Instant::now();
        assert!(qailc(folder().path(), &["check", EXPERT]).starts_with("exit 0"));
        start.elapsed().as_secs_f64()
    });
    let best = times.fold(f64::INFINITY, f64::min);
    assert!(best < 1.0, "{best:.2} s");
}

#[test]
fn dump_writes_the_graph_behind_each_pass() {
    let folder = folder();
    let args = [
        "compile",
        EXPERT,
        "--method",
        "ptq",
        "--demos",
        DEMOS,
        "--calibration-samples",
        "64",
        "-o",
        "a.qail",
        "--dump",
        "graphs",
    ];
    assert!(qailc(folder.path(), &args).starts_with("exit 0"));
    let files = std::fs::read_dir(folder.path().join("graphs")).unwrap().map(|entry| entry.unwrap().path());
    let mut graphs: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "qir")).collect();
    graphs.sort();
    assert!(graphs.len() > 5, "{graphs:?}");
    for (i, path) in graphs.iter().enumerate() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with(&format!("{i:02}-")), "{name} is number {i}");
        let graph = qailc::qir::read(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(graph.outputs.len(), 1);
    }
    // From the model as it was read to integers.
    let text = |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    assert!(graphs[0].ends_with("00-import.qir") && !text(&graphs[0]).contains("qlinear"));
    assert!(text(graphs.last().unwrap()).contains("qlinear"));
}

#[test]
fn opt_reads_what_it_wrote() {
    let folder = folder();
    assert!(qailc(folder.path(), &["opt", EXPERT, "-o", "a.qir"]).starts_with("exit 0"));
    assert!(qailc(folder.path(), &["opt", "a.qir", "-o", "b.qir"]).starts_with("exit 0"));
    for name in [".qir", ".qir.weights"] {
        let read = |stem: &str| std::fs::read(folder.path().join(format!("{stem}{name}"))).unwrap();
        assert!(read("a") == read("b"), "*{name}");
    }
    std::fs::remove_file(folder.path().join("a.qir.weights")).unwrap();
    assert!(qailc(folder.path(), &["opt", "a.qir"]).starts_with("exit 4"));
}
