//! Recurrent policies.

use std::collections::BTreeMap;

use qail_ir::{
    Graph,
    interp::{self, Tensor},
};
use qail_passes::Precision;
use qail_runtime::{DeviceSpec, TensorView, TensorViewMut};
use qail_train::{CpuExecutor, CpuOptions, State, TrainExecutor, options::TrainOptions, unroll};
use qailc::{
    data::Npz,
    frontend,
    pipeline::{self, BuildOptions, Training},
};
use tempfile::TempDir;

use super::{
    close, compile, devices,
    models::{ENDS, decoder, record, recurrent},
    options, run, session,
    support::command,
};

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    recurrent(&folder.path().join("policy.onnx"));
    record(&folder.path().join("demos.npz"), "obs");
    folder
}

fn observations(folder: &TempDir) -> Vec<Vec<f32>> {
    let npz = Npz::open(&folder.path().join("demos.npz")).unwrap();
    let all = npz.read_f32("obs", 0..ENDS[1] as usize).unwrap();
    all.chunks_exact(3).map(<[f32]>::to_vec).collect()
}

/// Actions of an episode, the state handed on by hand.
fn by_hand(graph: &Graph, observations: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut state = Tensor::f32([1, 1, 6], vec![0.0; 6]);
    observations
        .iter()
        .map(|obs| {
            let inputs: BTreeMap<String, Tensor> =
                [("obs".to_owned(), Tensor::f32([1, 3], obs.clone())), ("h_in".to_owned(), state.clone())].into();
            let outputs = interp::run(graph, &inputs).unwrap();
            state = outputs["h_out"].clone();
            outputs["action"].as_f32().unwrap().to_vec()
        })
        .collect()
}

#[test]
fn the_state_stays_in_the_session() {
    let folder = folder();
    let observations = observations(&folder);
    let imported = frontend::import(&folder.path().join("policy.onnx"), &frontend::ImportOptions::default()).unwrap();
    for precision in [Precision::F32, Precision::W8A8, Precision::W4A4] {
        let built = compile(folder.path(), "policy.onnx", precision, "", &[]);
        assert!(built.quantized.notes.iter().any(|note| note.contains("`h_in` takes over `h_out`")));
        let expected = by_hand(&built.quantized.graph, &observations[..12]);
        if precision == Precision::F32 {
            for (found, expected) in expected.iter().zip(by_hand(&imported.graph, &observations[..12])) {
                close(found, &expected, 1e-5, "the model itself");
            }
        }
        for device in devices() {
            let mut session = session(&built, device);
            assert_eq!(session.inputs().len(), 1, "the state is no input");
            // Again after a reset: nothing is left of the first time.
            for _ in 0..2 {
                for (obs, expected) in observations.iter().zip(&expected) {
                    let found = run(&mut session, &[obs], "action");
                    let is_exact = precision != Precision::F32 || matches!(device, DeviceSpec::Cpu(_));
                    close(&found, expected, if is_exact { 0.0 } else { 1e-5 }, &format!("{precision} on {device}"));
                }
                session.reset().unwrap();
            }
        }
    }
}

#[test]
fn a_decoder_keeps_its_caches_until_they_are_full() {
    let folder = tempfile::tempdir().unwrap();
    decoder(&folder.path().join("policy.onnx"));
    record(&folder.path().join("demos.npz"), "obs");
    // Calibration sees episodes that are as long as the caches.
    let observations = observations(&folder);
    let mut writer = qailc::data::NpzWriter::create(&folder.path().join("demos.npz")).unwrap();
    writer.add("obs", &[48, 3], &observations[..48].concat()).unwrap();
    let ends: Vec<i64> = (1..=12).map(|i| 4 * i).collect();
    writer.add("episode_ends", &[12], &ends).unwrap();
    writer.finish().unwrap();
    for precision in [Precision::F32, Precision::W8A8] {
        let built = compile(folder.path(), "policy.onnx", precision, "", &[]);
        let graph = &built.quantized.graph;
        let mut states: BTreeMap<String, Tensor> = BTreeMap::new();
        for state in &graph.states {
            let ty = graph.ty(graph.input_named(&state.input).unwrap()).clone();
            let zero = match ty.is_f32() {
                true => Tensor::f32(ty.shape.clone(), vec![0.0; ty.n_elements()]),
                false => Tensor::ints(ty.clone(), vec![0; ty.n_elements()]),
            };
            states.insert(state.input.clone(), zero);
        }
        let start = states.clone();
        for device in devices() {
            let mut session = session(&built, device);
            let inputs: Vec<&str> = session.inputs().iter().map(|port| port.name.as_str()).collect();
            assert_eq!((inputs, session.states().len()), (vec!["obs"], 3));
            states = start.clone();
            for (step, obs) in observations[..4].iter().enumerate() {
                let mut given = states.clone();
                given.insert("obs".to_owned(), Tensor::f32([1, 3], obs.clone()));
                let expected = interp::run(graph, &given).unwrap();
                let found = run(&mut session, &[obs], "action");
                let is_exact = matches!(device, DeviceSpec::Cpu(_));
                let context = format!("{precision} on {device}, step {step}");
                close(&found, expected["action"].as_f32().unwrap(), if is_exact { 0.0 } else { 1e-2 }, &context);
                for state in &graph.states {
                    states.insert(state.input.clone(), expected[&state.output].clone());
                }
            }
            let views = [TensorView::F32(&observations[4])];
            let error = session.run(&views, &mut [TensorViewMut::F32(&mut [0.0; 2])]).unwrap_err().to_string();
            assert!(error.contains("`cache.length` is 4 and may be at most 3"), "{error}");
        }
    }
}

#[test]
fn the_caller_may_keep_the_state() {
    let folder = folder();
    let built = compile(
        folder.path(),
        "policy.onnx",
        Precision::F32,
        "[policy]\nstate = [{ in = \"h_in\", out = \"h_out\" }]",
        &[],
    );
    let mut kept = session(&built, DeviceSpec::Cpu(None));
    let obs = &observations(&folder)[0];
    let first = run(&mut kept, &[obs], "action");
    let mut state = [0.0; 6];
    kept.read_state("h_in", TensorViewMut::F32(&mut state)).unwrap();
    assert_ne!(state, [0.0; 6]);
    assert_ne!(run(&mut kept, &[obs], "action"), first);
    // Without data the model compiles as it stands, with the state as an input.
    let options = ["compile", "policy.onnx", "-b", "f32", "-o", "open.qail", "--policy", "none.toml"];
    std::fs::write(folder.path().join("none.toml"), "[policy]\nstate = []").unwrap();
    let output = command(folder.path(), &options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = std::fs::read(folder.path().join("open.qail")).unwrap();
    let session = qail_runtime::Session::load(file, DeviceSpec::Cpu(None)).unwrap();
    assert_eq!((session.inputs().len(), session.states().len()), (2, 0));
}

#[test]
fn recorded_episodes_begin_without_memory() {
    let folder = folder();
    let qailc = |args: &[&str]| {
        let output = command(folder.path(), args).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &err
    };
    let train = ["-b", "w4a4", "--demos", "demos.npz", "--steps", "40", "--batch", "8", "--eval-every", "20"];
    qailc(&[&["compile", "policy.onnx", "-o", "policy.qail", "--calibration-samples", "40"][..], &train].concat());
    qailc(&["run", "policy.qail", "--input", "demos.npz", "-o", "out.npz"]);
    let actions = Npz::open(&folder.path().join("out.npz")).unwrap().read_f32("action", 0..50).unwrap();
    // The second episode alone gives the same actions.
    let mut writer = qailc::data::NpzWriter::create(&folder.path().join("second.npz")).unwrap();
    let second: Vec<f32> = observations(&folder)[ENDS[0] as usize..].concat();
    writer.add("obs", &[20, 3], &second).unwrap();
    writer.finish().unwrap();
    qailc(&["run", "policy.qail", "--input", "second.npz", "-o", "out.npz"]);
    let alone = Npz::open(&folder.path().join("out.npz")).unwrap().read_f32("action", 0..20).unwrap();
    assert_eq!(alone, actions[60..]);
    let said = qailc(&["eval", "policy.qail", "--against", "policy.onnx", "--demos", "demos.npz"]);
    assert!(said.contains("action"), "{said}");
}

/// Keeps the graph that was trained.
#[derive(Default)]
struct Trained(Option<Graph>);

impl pipeline::Observer for Trained {
    fn progress(&mut self, _: &str, _: usize, _: usize) {}

    fn after_pass(&mut self, pass: &str, graph: &Graph) {
        if pass == "train" {
            self.0 = Some(graph.clone());
        }
    }
}

#[test]
fn training_through_time_computes_what_the_session_computes() {
    const WINDOW: usize = 5;
    let folder = folder();
    let observations = observations(&folder);
    for precision in [Precision::W8A8, Precision::W4A4] {
        let training = Training {
            method: None,
            options: TrainOptions { steps: 30, batch: 8, evaluate_every: 10, ..TrainOptions::default() },
            window: WINDOW,
            threads: 1,
            cache_dir: None,
            save: None,
        };
        let options = BuildOptions { training: Some(training), ..options(folder.path(), precision, "", &[]) };
        let mut trained = Trained::default();
        let built = pipeline::compile(&folder.path().join("policy.onnx"), &options, &mut trained).unwrap();
        assert!(built.manifest.provenance.as_ref().unwrap().flags.contains(&format!("bptt={WINDOW}")));
        // The steps of a window as one graph, as training runs it.
        let graph = trained.0.unwrap();
        let states = [State { input: "h_in".to_owned(), output: "h_out".to_owned() }];
        let window = unroll(&graph, &states, WINDOW).unwrap();
        let mut executor = CpuExecutor::new(&window, &CpuOptions { threads: 1, keep: Vec::new() }).unwrap();
        let seen = observations[..WINDOW].concat();
        executor.run(&[("obs", &seen), ("h_in", &[0.0; 6])]).unwrap();
        let actions = executor.read(window.output_named("action").unwrap()).unwrap().to_vec();
        let mut session = session(&built, DeviceSpec::Cpu(None));
        for (step, obs) in observations[..WINDOW].iter().enumerate() {
            let found = run(&mut session, &[obs], "action");
            assert_eq!(found, actions[2 * step..2 * step + 2], "{precision}, step {step}");
        }
    }
}
