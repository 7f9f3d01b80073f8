//! Runs the command line as a user does. In arguments, `$POLICIES` is the folder
//! of bundled policies, `$TOY` the example `toy_env` and `$DIR` the folder that
//! the command runs in; in what it says, these paths become the names again.
// Each test crate uses a part of it.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use qail_runtime::{DeviceSpec, GpuBackend, GpuSpec};

pub(crate) const EXPERT: &str = "$POLICIES/hopper/hopper_expert.onnx";
pub(crate) const DEMOS: &str = "$POLICIES/hopper/hopper_demos.npz";

/// A small policy of images: a convolution with a pad, a residual sum, a pool of extremes, a convolution of each channel
/// by itself, a mean, and a layer.
pub(crate) const IMAGES: &str = "graph @images(%image: f32[1, 3, 8, 9]) -> (action = %action) {batch = 0} {
  %w0 = const rand(1) : f32[27, 8]
  %b0 = const rand(2) : f32[8]
  %x0 = unfold %image {out = [1, 3, 8, 9], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 3, 8, 9, 3, 3]
  %t0 = transpose %x0 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 8, 9, 3, 3, 3]
  %r0 = reshape %t0 : f32[1, 8, 9, 27]
  %h0 = linear %r0, %w0, %b0 {act = relu} : f32[1, 8, 9, 8]
  %w1 = const rand(3) : f32[72, 8]
  %b1 = const rand(4) : f32[8]
  %x1 = unfold %h0 {out = [1, 8, 9, 8], size = [1, 3, 3, 1], pad = [0, 1, 1, 0]} : f32[1, 8, 9, 8, 3, 3]
  %r1 = reshape %x1 : f32[1, 8, 9, 72]
  %h1 = linear %r1, %w1, %b1 : f32[1, 8, 9, 8]
  %sum = add %h1, %h0 : f32[1, 8, 9, 8]
  %act = relu %sum : f32[1, 8, 9, 8]
  %x2 = unfold %act {out = [1, 4, 4, 8], size = [1, 2, 2, 1], stride = [1, 2, 2, 1], fill = -inf} : f32[1, 4, 4, 8, 2, 2]
  %pool = reduce_max %x2 {axes = [4, 5]} : f32[1, 4, 4, 8]
  %w3 = const rand(7) : f32[9, 8]
  %b3 = const rand(8) : f32[8]
  %x3 = unfold %pool {out = [1, 4, 4, 8], size = [1, 3, 3, 1], pad = [0, 1, 1, 0]} : f32[1, 4, 4, 8, 3, 3]
  %r3 = reshape %x3 : f32[1, 4, 4, 72]
  %h3 = linear %r3, %w3, %b3 {groups = 8, act = relu} : f32[1, 4, 4, 8]
  %mean = reduce_mean %h3 {axes = [1, 2]} : f32[1, 8]
  %w2 = const rand(5) : f32[8, 3]
  %b2 = const rand(6) : f32[3]
  %action = linear %mean, %w2, %b2 : f32[1, 3]
}";

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

/// Exit code, stdout and stderr of `qailc` in a folder.
pub(crate) fn say(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = command(folder, args).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code().unwrap_or(-1), out, err)
}

/// Every Vulkan driver of this machine; there are as many as `QAILC_REQUIRE_ADAPTERS` wants.
pub(crate) fn vulkan() -> Vec<DeviceSpec> {
    let n_adapters = qail_runtime::adapters().len();
    let required = std::env::var("QAILC_REQUIRE_ADAPTERS").ok().and_then(|n| n.parse().ok()).unwrap_or(0usize);
    assert!(n_adapters >= required, "{n_adapters} Vulkan drivers, {required} required");
    let spec = |index| DeviceSpec::Gpu(GpuSpec { backend: Some(GpuBackend::Vulkan), index: Some(index) });
    (0..n_adapters).map(spec).collect()
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
