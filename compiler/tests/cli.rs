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

/// A folder with a model `m.onnx` under several names, recordings and what was said of the policy.
#[cfg(unix)]
fn inputs() -> tempfile::TempDir {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for (from, to) in [("hopper_expert.onnx", "m.onnx"), ("hopper_demos.npz", "d.npz")] {
        std::fs::copy(qail_fixtures::root().join("policies/hopper").join(from), at(to)).unwrap();
    }
    std::fs::hard_link(at("m.onnx"), at("hard.onnx")).unwrap();
    std::os::unix::fs::symlink("m.onnx", at("soft.onnx")).unwrap();
    std::fs::create_dir(at("fold")).unwrap();
    for (name, text) in [
        ("pol.toml", "[stages]\nthen = [\"last.onnx\"]"),
        ("last.onnx", ""),
        ("fold/observations.npy", ""),
        ("m.qail", ""),
        ("m.qir", ""),
        ("m.qir.weights", ""),
        ("w.bin", ""),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    write_external(&at("external.onnx"));
    folder
}

/// A model with a constant in `w.bin`.
#[cfg(unix)]
fn write_external(path: &std::path::Path) {
    use prost::Message;
    use qailc::frontend::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
    let location = StringStringEntryProto { key: "location".to_owned(), value: "w.bin".to_owned() };
    let tensor = TensorProto { name: "w".to_owned(), external_data: vec![location], ..TensorProto::default() };
    let graph = GraphProto { name: "g".to_owned(), initializer: vec![tensor], ..GraphProto::default() };
    let model = ModelProto { ir_version: 8, graph: Some(graph), ..ModelProto::default() };
    std::fs::write(path, model.encode_to_vec()).unwrap();
}

#[cfg(unix)]
#[test]
fn no_input_is_overwritten() {
    let folder = inputs();
    let says = |args: &str, message: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        let text = qailc(folder.path(), &args);
        assert!(text.starts_with("exit 2") && text.contains(message), "{args:?}: {text}");
    };
    let compile = "compile m.onnx --policy pol.toml --demos d.npz -o";
    for (output, what) in [
        ("m.onnx", "the model"),
        ("fold/../m.onnx", "the model"),
        ("$DIR/m.onnx", "the model"),
        ("hard.onnx", "the model"),
        ("soft.onnx", "the model"),
        ("./d.npz", "the demonstrations"),
        ("pol.toml", "what was said of the policy"),
        ("last.onnx", "a stage of the policy"),
    ] {
        says(&format!("{compile} {output}"), &format!("is an input of this command ({what}); choose another -o"));
    }
    for (args, message) in [
        ("train m.onnx --demos fold -o fold/observations.npy", "(the demonstrations)"),
        ("compile external.onnx -b f32 -o w.bin", "(constants of the model)"),
        ("export m.onnx --demos d.npz --format exact -o ./d.npz", "(the demonstrations)"),
        ("opt m.onnx -o ./m.onnx", "(the model)"),
        ("opt m.qir -o ./m.qir", "(the model)"),
        ("opt m.qir --demos d.npz -o d.npz", "(the demonstrations)"),
        ("run m.qail --input d.npz -o ./d.npz", "`./d.npz` is an input of this command (the observations)"),
        ("run m.qail --input d.npz --dump-codes ./m.qail", "(the artifact); choose another --dump-codes"),
        ("run m.qail --input d.npz -o x.npz --dump-codes ./x.npz", "is what -o writes as well"),
        ("run m.qail --input fold -o fold/observations.npy", "(the observations)"),
        ("eval m.onnx --demos d.npz --env cmd:true -o hard.onnx", "(the model)"),
    ] {
        says(args, message);
    }
    let original = std::fs::read(qail_fixtures::root().join("policies/hopper/hopper_expert.onnx")).unwrap();
    assert!(std::fs::read(folder.path().join("m.onnx")).unwrap() == original);
    // What no command reads is replaced as ever, behind a link too.
    let at = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink("m.qail", at("link.qail")).unwrap();
    assert!(qailc(folder.path(), &["compile", "m.onnx", "-b", "f32", "-o", "link.qail"]).starts_with("exit 0"));
    assert!(at("link.qail").is_symlink() && std::fs::metadata(at("m.qail")).unwrap().len() > 1000);
    let found = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let found: Vec<_> = found.filter(|name| name.to_string_lossy().starts_with(".tmp")).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// Whoever opened the pipe would wait for a writer that never comes.
#[cfg(unix)]
#[test]
fn pipes_are_neither_read_nor_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let folder = inputs();
    let pipes = ["pipe", "pipe.qir"].map(|name| folder.path().join(name));
    assert!(std::process::Command::new("mkfifo").args(&pipes).status().unwrap().success());
    std::os::unix::fs::symlink("pipe", folder.path().join("link")).unwrap();
    for args in [
        "check pipe",
        "compile m.onnx --policy pipe -b f32",
        "compile m.onnx --policy /dev/zero -b f32",
        "compile m.onnx --demos pipe",
        "data inspect pipe",
        "opt pipe.qir",
        "inspect pipe",
        "inspect fold",
        "run pipe --input d.npz",
        "train m.onnx --demos d.npz --calibration-samples 8 --steps 1 --resume -o pipe",
        "compile m.onnx -b f32 -o pipe",
        "compile m.onnx -b f32 -o link",
        "export m.onnx -b f32 --format fake-quant -o pipe",
        "opt m.onnx -o pipe",
        "run m.qail --input d.npz -o pipe",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let text = qailc(folder.path(), &args);
        assert!(text.starts_with("exit 4") && text.contains("not a regular file"), "{args:?}: {text}");
        let is_pipe = |path| std::fs::symlink_metadata(path).unwrap().file_type().is_fifo();
        assert!(pipes.iter().all(is_pipe), "{args:?}");
    }
}

/// A reader that is gone ends the command quietly, a full disk does not.
#[cfg(target_os = "linux")]
#[test]
fn broken_streams_are_no_panics() {
    use std::process::Stdio;
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let folder = folder();
    let run = |args: &[&str], stdout: Stdio, stderr: Stdio| {
        let output = support::command(folder.path(), args).stdout(stdout).stderr(stderr).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let compile = ["compile", EXPERT, "--demos", DEMOS, "--method", "ptq", "--calibration-samples", "8", "-o", "a"];
    for (args, exit) in [(&compile[..], 0), (&["check", "missing.onnx"], 4), (&["--help"], 0), (&["compile"], 2)] {
        assert_eq!(run(args, closed(), closed()).0, Some(exit), "{args:?}");
    }
    for (args, exit) in [
        (&["check", EXPERT][..], 4),
        (&["--json", "check", EXPERT], 4),
        (&["--help"], 4),
        (&["compile", EXPERT, "-b", "w4a4", "--json"], 2),
    ] {
        let (code, err) = run(args, full(), Stdio::piped());
        assert_eq!(code, Some(exit), "{args:?}: {err}");
        assert!(
            err.contains("error: cannot write the result to stdout\n  caused by: No space left"),
            "{args:?}: {err}"
        );
    }
}

/// A slip in a name would go unnoticed: the usual array would be read instead.
#[test]
fn names_that_are_not_there_are_refused() {
    let folder = folder();
    let says = |args: &[&str], exit: i32, message: &str| {
        let text = qailc(folder.path(), args);
        assert!(text.starts_with(&format!("exit {exit}\n")) && text.contains(message), "{args:?}: {text}");
    };
    says(&["compile", EXPERT, "-b", "f32", "-o", "a.qail"], 0, "");
    let unknown = "the model has no input `ob` to map array `observations` to; its inputs are `obs`";
    let map = ["--map", "ob=observations"];
    for args in [
        &["compile", EXPERT, "--demos", DEMOS, "-o", "b.qail"][..],
        &["run", "a.qail", "--input", DEMOS],
        &["bench", "a.qail", "--input", DEMOS],
        &["opt", EXPERT, "--demos", DEMOS],
        &["eval", "a.qail", "--against", EXPERT, "--demos", DEMOS],
        &["eval", "a.qail", "--env", "cmd:true"],
    ] {
        says(&[args, &map].concat(), 2, unknown);
    }
    says(&["bench", "a.qail", "--map", "obs=x"], 2, "--input");
    std::fs::write(folder.path().join("p.toml"), "[map]\nob = \"observations\"\nepisode_ends = \"ends\"").unwrap();
    says(&["check", EXPERT, "--policy", "p.toml"], 2, unknown);
    let named = ["--map", "obs=observations", "--map", "episode_ends=episode_ends"];
    says(&[&["run", "a.qail", "--input", DEMOS, "--rows", "1"], &named[..]].concat(), 0, "");
    for policy in ["a.qail", EXPERT] {
        let args = ["eval", policy, "--against", "a.qail", "--demos", DEMOS, "--action", "nope"];
        let text = qailc(folder.path(), &args);
        assert!(text.contains("no output `nope`") && text.ends_with("with --action"), "{text}");
        assert!(text.starts_with("exit 2") && !text.contains("--action-output"), "{text}");
    }
    for args in [&["compile", EXPERT][..], &["run", "a.qail", "--input", DEMOS], &["eval", "a.qail", "--demos", DEMOS]]
    {
        says(&[args, &["--seed", "-1"]].concat(), 2, "a seed is a whole number from 0 to 18446744073709551615");
    }
}

/// Interrupted while the artifact grows beside its place.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_command_leaves_nothing() {
    use std::{os::unix::process::ExitStatusExt, process::Stdio};
    let folder = folder();
    std::fs::write(folder.path().join("a.qail"), "before").unwrap();
    let args = ["compile", EXPERT, "--demos", DEMOS, "--method", "ptq", "--calibration-samples", "64", "-o", "a.qail"];
    let aside = || {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
        files.filter(|file| file.file_name().to_string_lossy().starts_with(".tmp")).collect::<Vec<_>>()
    };
    let mut child = support::command(folder.path(), &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Whether the place can be written was tried with a file that is empty.
    while !aside().iter().any(|file| file.metadata().is_ok_and(|found| found.len() > 0)) {
        assert!(child.try_wait().unwrap().is_none(), "it was over before it was seen");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert!(aside().is_empty(), "{:?}", aside());
    assert_eq!(std::fs::read(folder.path().join("a.qail")).unwrap(), b"before");
}
