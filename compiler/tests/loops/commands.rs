//! What the command line says of policies with loops.

use tempfile::TempDir;

use super::{
    models::{decoder, denoiser, encoder, record, recurrent},
    support::say,
};

/// A folder with a model, a recording and `policy.toml`.
fn folder(make: impl Fn(&std::path::Path), input: &str, policy: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    make(&folder.path().join("policy.onnx"));
    record(&folder.path().join("demos.npz"), input);
    std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

fn says(folder: &TempDir, args: &str, exit: i32, message: &str) {
    let (code, out, err) = say(folder.path(), &args.split(' ').collect::<Vec<_>>());
    assert!(code == exit && format!("{out}{err}").contains(message), "{args}: exit {code}\n{out}{err}");
}

#[test]
fn a_recording_fits_what_compiles_from_it() {
    let ddim = "[sampler]\nkind = \"ddim\"\nsteps = 5\ntrain_steps = 20";
    let sampler = folder(|path| denoiser(path, false), "cond", ddim);
    for folder in [&folder(recurrent, "obs", ""), &folder(decoder, "obs", ""), &sampler] {
        says(folder, "data inspect demos.npz --model policy.onnx", 0, "fits policy.onnx");
    }
    let other = folder(recurrent, "other", "");
    says(&other, "data inspect demos.npz --model policy.onnx", 2, "has no array `obs`");
    let mapped = folder(recurrent, "other", "[map]\nobs = \"other\"");
    says(&mapped, "data inspect demos.npz --model policy.onnx", 0, "fits");
    // What a step leaves for the next one is not recorded.
    let state = folder(recurrent, "obs", "[map]\nh_in = \"obs\"");
    says(&state, "check policy.onnx", 2, "no input `h_in` to map array `obs` to; its inputs are `obs`");
}

#[test]
fn bench_begins_anew_when_a_cache_is_full() {
    let folder = folder(decoder, "obs", "");
    says(&folder, "compile policy.onnx -b f32 -o a.qail", 0, "");
    says(&folder, "bench a.qail --runs 30", 0, "30 steps in");
    says(&folder, "bench a.qail --runs 30 --input demos.npz --rate 1kHz", 0, "30 steps in");
}

#[test]
fn what_cannot_be_is_a_usage_error() {
    let state = folder(recurrent, "obs", "");
    says(&state, "compile policy.onnx -b f32 --action-output h_out", 2, "output `h_out` is a state");
    let ddim = |steps: u32| format!("[sampler]\nkind = \"ddim\"\ntrain_steps = 65536\nsteps = {steps}");
    let long = folder(|path| denoiser(path, false), "cond", &ddim(60_000));
    for command in ["check policy.onnx -b f32", "compile policy.onnx -b f32"] {
        says(&long, command, 2, "`steps` of the sampler is 60000, and each has");
    }
    // The most that is offered is accepted, and one more is not.
    let (_, _, err) = say(long.path(), &["check", "policy.onnx", "-b", "f32"]);
    let most: u32 = err.split("choose ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    for (steps, exit) in [(most, 0), (most + 1, 2)] {
        std::fs::write(long.path().join("policy.toml"), ddim(steps)).unwrap();
        says(&long, "compile policy.onnx -b f32", exit, "");
    }
    let alone = folder(encoder, "obs", "[stages]\nwires = { cond = \"features\" }");
    says(&alone, "check policy.onnx", 2, "leads to `cond` of a later stage, and there is none");
}
