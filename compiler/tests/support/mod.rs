//! Runs the command line as a user does. In arguments, `$POLICIES` is the folder
//! of bundled policies, `$TOY` the example `toy_env` and `$DIR` the folder that
//! the command runs in; in what it says, these paths become the names again.
// Each test crate uses a part of it.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) const EXPERT: &str = "$POLICIES/hopper/hopper_expert.onnx";
pub(crate) const DEMOS: &str = "$POLICIES/hopper/hopper_demos.npz";

/// Names and the paths that they stand for, in the order of replacement.
fn names(folder: &Path) -> [(&'static str, PathBuf); 3] {
    // Cargo builds the examples of a crate with its tests.
    let toy = Path::new(env!("CARGO_BIN_EXE_qailc")).with_file_name("examples").join("toy_env");
    [("$POLICIES", qail_fixtures::root().join("policies")), ("$TOY", toy), ("$DIR", folder.to_owned())]
}

/// `qailc` in a folder.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let names = names(folder);
    if args.iter().any(|arg| arg.contains("$TOY")) {
        assert!(names[1].1.exists(), "{} is missing: cargo build --example toy_env", names[1].1.display());
    }
    let resolve = |arg: &&str| {
        names.iter().fold((*arg).to_owned(), |arg, (name, path)| arg.replace(name, &path.to_string_lossy()))
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_qailc"));
    command.args(args.iter().map(resolve)).current_dir(folder);
    command
}

/// Exit code, stdout and stderr of `qailc` in a folder, as one text.
pub(crate) fn transcript(folder: &Path, args: &[&str]) -> String {
    let output = command(folder, args).output().unwrap();
    let mut text = format!("exit {}\n", output.status.code().unwrap_or(-1));
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            text.push_str(&format!("--- {name}\n{}", String::from_utf8_lossy(bytes)));
        }
    }
    // Rows of a table end in padding.
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    names(folder).iter().fold(text.join("\n"), |text, (name, path)| text.replace(&*path.to_string_lossy(), name))
}
