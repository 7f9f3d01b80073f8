//! `--json`: whatever a command does, one JSON document on stdout, with the
//! version of its form.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use support::{DEMOS, EXPERT, say};

/// Arguments, exit code, and a field of the document. In this order: later rows
/// read what earlier ones wrote.
const ROWS: &[(&[&str], i32, &str)] = &[
    (&["check", EXPERT], 0, "/ready"),
    (&["check", "missing.onnx"], 4, "/error/causes/0"),
    (&["check", "unsupported.onnx"], 3, "/blockers/0/remedy"),
    (&["compile", "unsupported.onnx", "-b", "f32"], 3, "/blockers/0/node"),
    (
        &["compile", EXPERT, "--method", "ptq", "--demos", DEMOS, "--calibration-samples", "64", "-o", "a.qail"],
        0,
        "/report/layers/0/name",
    ),
    (
        &["train", EXPERT, "--steps", "2", "--demos", DEMOS, "--calibration-samples", "64", "-o", "a.ckpt"],
        0,
        "/errors/0",
    ),
    (&["train", EXPERT], 2, "/error/help"),
    (&["compile", "a.ckpt", "-o", "b.qail"], 0, "/artifact"),
    (&["bench", "a.qail", "--runs", "10"], 0, "/latency_us/p50"),
    (&["bench", "a.qail", "--runs", "10", "--max-p99", "0.001"], 6, "/latency_us/p50"),
    (&["eval", "a.qail", "--against", EXPERT, "--demos", DEMOS], 0, "/open_loop"),
    (&["eval", "a.qail", "--env", "cmd:false", "--episodes", "1"], 4, "/error"),
    (&["compile", EXPERT], 2, "/error/help"),
    (&["compile"], 2, "/error/message"),
    (&["run", "a.qail", "--input", DEMOS, "--rows", "2"], 0, "/values/0/5"),
    (&["run", "a.qail", "--input", DEMOS, "--rows", "2", "-o", "out.npz"], 0, "/file"),
    (&["run", "a.qail", "--input", "missing.npz"], 4, "/error"),
    (&["inspect", "a.qail", "--plan"], 0, "/plan"),
    (&["inspect", "a.qail", "--wgsl", "0"], 0, "/wgsl"),
    (&["inspect", "out.npz"], 8, "/error/exit_code"),
    (&["data", "inspect", DEMOS], 0, "/arrays/0"),
    (&["data", "inspect", "missing.npz"], 4, "/error"),
    (&["opt", EXPERT], 0, "/qir"),
    (&["opt", EXPERT, "-o", "a.qir"], 0, "/file"),
    (&["opt", "--list", "x"], 0, "/passes/0/exactness"),
    (&["opt", EXPERT, "--passes", "x"], 2, "/error"),
    (&["export", EXPERT, "-b", "w8a16", "--format", "qdq", "-o", "missing/a.onnx"], 4, "/error"),
    (
        &["export", EXPERT, "--demos", DEMOS, "--calibration-samples", "64", "--format", "exact", "-o", "a.onnx"],
        0,
        "/file",
    ),
    (&["export", EXPERT, "-b", "w4a16", "--format", "nbits", "-o", "n.onnx"], 0, "/file"),
    (&["compile", "n.onnx", "-o", "n.qail"], 0, "/artifact"),
    (&["export", EXPERT, "-b", "f32", "--format", "nbits", "-o", "f.onnx"], 3, "/error"),
    (&["devices"], 0, "/devices/0/device"),
    (&["completions", "bash"], 0, "/script"),
    (&["frobnicate"], 2, "/error"),
];

/// `n` operators that this version refuses.
fn write_unsupported(path: &Path, n: usize) {
    use prost::Message;
    use qailc::frontend::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, data_type};
    let tensor = |name: &str| ValueInfoProto::tensor(name, data_type::FLOAT, &[1, 1, 4]);
    let names: Vec<String> = (0..n).map(|i| format!("y{i}")).collect();
    let node = |name: &String| NodeProto {
        op_type: "NonZero".to_owned(),
        input: vec!["x".to_owned()],
        output: vec![name.clone()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "memory".to_owned(),
        input: vec![tensor("x")],
        output: names.iter().map(|name| tensor(name)).collect(),
        node: names.iter().map(node).collect(),
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
    std::fs::write(path, model.encode_to_vec()).unwrap();
}

#[test]
fn every_command_prints_one_document() {
    let folder = tempfile::tempdir().unwrap();
    write_unsupported(&folder.path().join("unsupported.onnx"), 1);
    for (args, exit, field) in ROWS {
        let (code, out, err) = say(folder.path(), &[&["--json"], *args].concat());
        assert_eq!(code, *exit, "{args:?}: {err}");
        // `from_str` refuses anything behind the first document.
        let document: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}"));
        assert_eq!(document["schema"], 1, "{args:?}");
        assert!(document.pointer(field).is_some_and(|value| !value.is_null()), "{args:?} has no {field}: {out}");
        assert_eq!(document.get("error").is_some(), *exit != 0, "{args:?}");
        if *exit != 0 {
            assert_eq!(document["error"]["exit_code"], *exit, "{args:?}");
        }
    }
}

#[test]
fn blockers_that_are_not_listed_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    write_unsupported(&folder.path().join("many.onnx"), 1002);
    let (code, out, err) = say(folder.path(), &["check", "many.onnx"]);
    assert_eq!((code, out.lines().count()), (3, 1000));
    assert!(err.contains("1002 blockers, of which the first 1000 are listed"), "{err}");
}

#[test]
fn no_command_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let (_, help, _) = say(folder.path(), &["--help"]);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let known: BTreeSet<&str> = ROWS.iter().filter(|row| row.1 == 0).map(|(args, ..)| args[0]).collect();
    // A line of a command begins with two spaces; more belong to its description.
    let lines = commands.lines().filter(|line| !line.starts_with("   "));
    for command in lines.filter_map(|line| line.split_whitespace().next()).filter(|&command| command != "help") {
        assert!(known.contains(command), "`{command}` has no row that ends well");
    }
}

/// The system takes any bytes as a name, JSON does not.
#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_are_shown_as_far_as_they_are() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let folder = tempfile::tempdir().unwrap();
    let named = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    let [model, demos] = [EXPERT, DEMOS].map(|path| path.replace("$POLICIES", "policies"));
    std::fs::copy(qail_fixtures::root().join(model), folder.path().join(named(b"m\xff.onnx"))).unwrap();
    std::fs::copy(qail_fixtures::root().join(demos), folder.path().join(named(b"d\xff.npz"))).unwrap();
    let (model, demos): (&[u8], &[u8]) = (b"m\xff.onnx", b"d\xff.npz");
    let rows: [&[&[u8]]; 10] = [
        &[b"check", model],
        &[b"compile", model, b"-b", b"f32"],
        &[b"train", model, b"--demos", demos, b"--steps", b"1", b"--calibration-samples", b"8"],
        &[b"export", model, b"-b", b"f32", b"--format", b"fake-quant", b"-o", b"e\xff.onnx"],
        &[b"opt", model, b"-o", b"g\xff.qir"],
        &[b"run", b"m\xff.qail", b"--input", demos, b"--rows", b"1", b"-o", b"o\xff.npz"],
        &[b"bench", b"m\xff.qail", b"--runs", b"1"],
        &[b"eval", b"m\xff.qail", b"--against", model, b"--demos", demos],
        &[b"inspect", b"m\xff.qail"],
        &[b"data", b"inspect", demos, b"--model", model],
    ];
    for args in rows {
        let shown: Vec<_> = args.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        let args = args.iter().map(|arg| OsStr::from_bytes(arg));
        let output = support::command(folder.path(), &["--json"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{shown:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok(), "{shown:?}");
    }
}
