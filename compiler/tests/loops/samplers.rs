//! Diffusion and flow policies.

use std::collections::BTreeMap;

use qail_ir::{
    Graph, TensorType,
    interp::{self, Tensor},
};
use qail_passes::{
    Precision,
    sampler::{BetaSchedule, alpha_bars},
};
use qail_runtime::DeviceSpec;
use qailc::{data::Npz, frontend, pipeline};
use tempfile::TempDir;

use super::{
    close, compile, devices,
    models::{Numbers, denoiser, encoder, record},
    options, run, session,
    support::command,
};

const DDIM: &str = "[sampler]\nkind = \"ddim\"\nsteps = 5\ntrain_steps = 20\n[chunk]\nexecute = 2";
const FLOW: &str = "[sampler]\nkind = \"flow-euler\"\nsteps = 4";

fn folder(is_flow: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    denoiser(&folder.path().join("policy.onnx"), is_flow);
    record(&folder.path().join("demos.npz"), "cond");
    folder
}

/// Noise to begin with and an observation.
fn given() -> (Vec<f32>, Vec<f32>) {
    let mut numbers = Numbers(77);
    (numbers.list(8, 2.0), numbers.list(3, 1.0))
}

/// What the network of the model file says.
fn predict(network: &Graph, x: &[f64], time: Time, cond: &[f32]) -> Vec<f64> {
    let time = match time {
        Time::Step(t) => Tensor::ints(TensorType::plain(qail_ir::DType::I64, [1]), vec![t as i64]),
        Time::Flow(t) => Tensor::f32([1], vec![t as f32]),
    };
    let x = Tensor::f32([1, 4, 2], x.iter().map(|&x| x as f32).collect());
    let inputs: BTreeMap<String, Tensor> =
        [("x".to_owned(), x), ("timestep".to_owned(), time), ("cond".to_owned(), Tensor::f32([1, 3], cond.to_vec()))]
            .into();
    interp::run(network, &inputs).unwrap()["prediction"].to_f64()
}

#[derive(Clone, Copy)]
enum Time {
    Step(usize),
    Flow(f64),
}

fn network(folder: &TempDir) -> Graph {
    frontend::import(&folder.path().join("policy.onnx"), &frontend::ImportOptions::default()).unwrap().graph
}

#[test]
fn check_refuses_what_compile_refuses() {
    let folder = folder(false);
    let model = folder.path().join("policy.onnx");
    for said in ["[actions]\nbounds = [[-1, 1]]", "[chunk]\nlength = 3"] {
        let policy = format!("[sampler]\nkind = \"ddim\"\nsteps = 5\ntrain_steps = 20\n{said}");
        let options = options(folder.path(), Precision::F32, &policy, &[]);
        let compiled = pipeline::compile(&model, &options, &mut pipeline::Silent).unwrap_err();
        assert_eq!(pipeline::check(&model, &options).unwrap_err().to_string(), compiled.to_string());
    }
}

#[test]
fn an_artifact_is_the_loop_written_out() {
    let (noise, cond) = given();
    let folder = folder(false);
    let network = network(&folder);
    let alpha = alpha_bars(BetaSchedule::SquaredCosine, 20).unwrap();
    let mut x: Vec<f64> = noise.iter().map(|&x| x.into()).collect();
    for t in [16, 12, 8, 4, 0] {
        let e = predict(&network, &x, Time::Step(t), &cond);
        let (now, next) = (alpha[t], if t >= 4 { alpha[t - 4] } else { 1.0 });
        for (x, e) in x.iter_mut().zip(&e) {
            let clean = ((*x - (1.0 - now).sqrt() * e) / now.sqrt()).clamp(-1.0, 1.0);
            *x = next.sqrt() * clean + (1.0 - next).sqrt() * e;
        }
    }
    let expected: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let built = compile(folder.path(), "policy.onnx", Precision::F32, DDIM, &[]);
    for device in devices() {
        let found = run(&mut session(&built, device), &[&cond, &noise], "action");
        close(&found, &expected, 1e-4, &format!("{device}"));
    }
}

#[test]
fn a_flow_is_followed_from_noise_to_action() {
    let (noise, cond) = given();
    let folder = folder(true);
    let network = network(&folder);
    let mut x: Vec<f64> = noise.iter().map(|&x| x.into()).collect();
    for k in 0..4 {
        let v = predict(&network, &x, Time::Flow(1.0 - 0.25 * f64::from(k)), &cond);
        x.iter_mut().zip(&v).for_each(|(x, v)| *x -= 0.25 * v);
    }
    let expected: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let built = compile(folder.path(), "policy.onnx", Precision::F32, FLOW, &[]);
    close(&run(&mut session(&built, DeviceSpec::Cpu(None)), &[&cond, &noise], "action"), &expected, 1e-4, "flow");
}

#[test]
fn every_turn_agrees_in_every_code_on_every_device() {
    let (noise, cond) = given();
    for (is_flow, policy) in [(false, DDIM), (true, FLOW)] {
        let folder = folder(is_flow);
        for precision in [Precision::W8A8, Precision::W4A4] {
            let built = compile(folder.path(), "policy.onnx", precision, policy, &[]);
            let graph = built.quantized.deployed().unwrap();
            // The encoder runs once, and what the time alone decides not at all.
            let entry = &built.manifest.entries[0];
            let names: Vec<&str> = entry.steps.iter().map(|step| step.name.as_str()).collect();
            let before = names.iter().position(|name| *name == "repeat").unwrap();
            assert!(before > 1, "{names:?}");
            let inputs = [
                ("x".to_owned(), Tensor::f32([1, 4, 2], noise.clone())),
                ("cond".to_owned(), Tensor::f32([1, 3], cond.clone())),
            ];
            let values = interp::run_all(&graph, &inputs.into()).unwrap();
            let expected = values[&graph.output_named("action").unwrap()].as_f32().unwrap();
            for device in devices() {
                let mut session = session(&built, device);
                let found = run(&mut session, &[&cond, &noise], "action");
                assert_eq!(found, expected, "{precision} on {device}");
                // The codes of the last turn too.
                let mut n_codes = 0;
                for (value, tensor) in &values {
                    let name = &graph.node(value.node).name;
                    let is_code = graph.ty(*value).scheme().is_some() && graph.const_of(*value).is_none();
                    if let (true, Ok(codes)) = (is_code, session.read_codes(name)) {
                        let expected: Vec<i32> = tensor.as_ints().unwrap().iter().map(|&x| x as i32).collect();
                        assert_eq!(codes, expected, "`{name}`, {precision} on {device}");
                        n_codes += codes.len();
                    }
                }
                assert!(n_codes > 50, "{n_codes} codes on {device}");
            }
        }
    }
}

#[test]
fn stages_are_one_policy_whose_encoder_runs_once() {
    let (noise, obs) = given();
    let folder = folder(true);
    encoder(&folder.path().join("encoder.onnx"));
    let alone = compile(folder.path(), "policy.onnx", Precision::F32, FLOW, &[]);
    record(&folder.path().join("demos.npz"), "obs");
    let stages = format!("{FLOW}\n[stages]\nthen = [\"policy.onnx\"]\nwires = {{ cond = \"features\" }}");
    std::fs::write(folder.path().join("policy.toml"), stages).unwrap();
    let options = frontend::ImportOptions::default();
    let encoder = frontend::import(&folder.path().join("encoder.onnx"), &options).unwrap().graph;
    let inputs = [("obs".to_owned(), Tensor::f32([1, 3], obs.clone()))].into();
    let features = interp::run(&encoder, &inputs).unwrap()["features"].as_f32().unwrap().to_vec();
    let expected = run(&mut session(&alone, DeviceSpec::Cpu(None)), &[&features, &noise], "action");
    let joined = |precision: Precision| {
        let policy = format!("{FLOW}\n[stages]\nwires = {{ cond = \"features\" }}");
        compile(folder.path(), "encoder.onnx", precision, &policy, &["policy.onnx"])
    };
    let built = joined(Precision::F32);
    for device in devices() {
        let found = run(&mut session(&built, device), &[&obs, &noise], "action");
        close(&found, &expected, 1e-5, &format!("{device}"));
    }
    let steps = &built.manifest.entries[0].steps;
    let before: Vec<&str> = steps.iter().take_while(|step| step.name != "repeat").map(|s| s.name.as_str()).collect();
    assert!(before.contains(&"features"), "{before:?}");
    // Codes cross the border of the stages.
    let built = joined(Precision::W8A8);
    let graph = built.quantized.deployed().unwrap();
    let inputs =
        [("x".to_owned(), Tensor::f32([1, 4, 2], noise.clone())), ("obs".to_owned(), Tensor::f32([1, 3], obs.clone()))];
    let expected = interp::run(&graph, &inputs.into()).unwrap()["action"].clone();
    for device in devices() {
        let found = run(&mut session(&built, device), &[&obs, &noise], "action");
        assert_eq!(found, expected.as_f32().unwrap(), "{device}");
    }
    // The command line reads the same from the file.
    let args = ["compile", "encoder.onnx", "-b", "f32", "-o", "policy.qail", "--demos", "demos.npz"];
    let output = command(folder.path(), &args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_sampler_trains_and_builds_from_its_checkpoint() {
    let folder = folder(false);
    std::fs::write(folder.path().join("policy.toml"), DDIM).unwrap();
    let qailc = |args: &[&str]| {
        let output = command(folder.path(), args).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &err
    };
    let recipe = ["policy.onnx", "-b", "w4a4", "--demos", "demos.npz", "--steps", "60", "--batch", "16"];
    let more = ["--eval-every", "20", "--calibration-samples", "40"];
    qailc(&[&["train"][..], &recipe, &more, &["-o", "policy.ckpt"]].concat());
    qailc(&["compile", "policy.ckpt", "-o", "one.qail"]);
    let said = qailc(&[&["compile"][..], &recipe, &more, &["-o", "two.qail"]].concat());
    assert!(said.contains("the sampler denoises `x` with `prediction`"), "{said}");
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    if read("one.qail") != read("two.qail") {
        let about = |file: &str| qailc(&["inspect", file, "--json", "--plan"]);
        panic!("{}\n{}", about("one.qail"), about("two.qail"));
    }
    // Noise is drawn by the session, the same for one seed, and an action a step comes of it.
    let run = |more: &[&str]| {
        qailc(&[&["run", "one.qail", "--input", "demos.npz", "-o", "out.npz"], more].concat());
        let npz = Npz::open(&folder.path().join("out.npz")).unwrap();
        let shape = npz.info("action").unwrap().shape.clone();
        (shape, npz.read_f32("action", 0..50).unwrap())
    };
    let (shape, chunks) = run(&[]);
    assert_eq!(shape, [50, 4, 2]);
    assert_eq!(run(&[]).1, chunks);
    assert_ne!(run(&["--seed", "9"]).1, chunks);
    assert_eq!(run(&["--actions"]).0, [50, 2]);
    qailc(&["inspect", "one.qail", "--plan"]);
}
