//! States and repeats: what runs and turns hand on, against the interpreter.

// Clippy knows tests, but not the functions that they share.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::{devices, graph, plan};
use qail_ir::{
    Graph, TensorType,
    interp::{self, Tensor},
};
use qail_runtime::{DeviceSpec, Session, TensorView, TensorViewMut};

/// Two layers of a recurrent policy, and a counter of its steps.
const RECURRENT: &str = "graph @g(%x: f32[1, 3], %h: f32[1, 4], %n: i64[1]) -> (y = %y, h2 = %h2, n2 = %n2) {
    state \"h\" = \"h2\" {element_axis = 0}
    state \"n\" = \"n2\" {limit = 2}
    %w = const rand(1) : f32[7, 4]
    %b = const rand(2) : f32[4]
    %xh = concat %x, %h {axis = 1} : f32[1, 7]
    %h2 = linear %xh, %w, %b {act = tanh} : f32[1, 4]
    %u = const rand(3) : f32[4, 2]
    %c = const rand(4) : f32[2]
    %y = linear %h2, %u, %c : f32[1, 2]
    %one = const [1] : i64[1]
    %n2 = add %n, %one : i64[1]
}";

/// Encodes once, then changes `x` five times with a step size of each turn.
const SAMPLER: &str = "graph @g(%obs: f32[1, 3], %x: f32[1, 4], %k: i64[]) -> (action = %next, code = %code) {
    repeat 5 \"k\"
    carry \"x\" = \"action\"
    %we = const rand(1) : f32[3, 8]
    %be = const rand(2) : f32[8]
    %code = linear %obs, %we, %be {act = relu} : f32[1, 8]
    %both = concat %code, %x {axis = 1} : f32[1, 12]
    %wd = const rand(3) : f32[12, 4]
    %bd = const rand(4) : f32[4]
    %v = linear %both, %wd, %bd {act = tanh} : f32[1, 4]
    %steps = const [0.5, 0.25, 0.125, 0.0625, 0.03125] : f32[5]
    %dt = gather %steps, %k {axis = 0} : f32[]
    %move = mul %v, %dt : f32[1, 4]
    %next = add %x, %move : f32[1, 4]
}";

/// Two states that swap, and one that stays.
const SWAP: &str = "graph @g(%x: f32[2], %a: f32[2], %b: f32[2], %c: f32[2]) -> (a2 = %b, b2 = %a, c2 = %c, y = %y) {
    state \"a\" = \"b2x\"
}";

fn all_devices() -> Vec<DeviceSpec> {
    [DeviceSpec::Cpu(None)].into_iter().chain(devices().iter().copied()).collect()
}

/// Runs a session and the interpreter side by side, states handed on by hand.
fn side_by_side(graph: &Graph, device: DeviceSpec, n_runs: usize, tolerance: f32) {
    let mut session = Session::load(plan(graph).to_file().unwrap(), device).unwrap();
    let mut states: BTreeMap<String, Tensor> = BTreeMap::new();
    let zero = |ty: &TensorType| match ty.is_f32() {
        true => Tensor::f32(ty.shape.clone(), vec![0.0; ty.n_elements()]),
        false => Tensor::ints(ty.clone(), vec![0; ty.n_elements()]),
    };
    for state in &graph.states {
        states.insert(state.input.clone(), zero(graph.ty(graph.input_named(&state.input).unwrap())));
    }
    for run in 0..n_runs {
        let mut given = common::inputs(graph, run as u64);
        given.retain(|name, _| !graph.is_turn(name));
        given.extend(states.clone());
        let expected = interp::run(graph, &given).unwrap();
        let inputs: Vec<TensorView<'_>> =
            session.inputs().iter().map(|port| TensorView::F32(given[&port.name].as_f32().unwrap())).collect();
        let mut rooms: Vec<Vec<f32>> = session.outputs().iter().map(|port| vec![0.0; port.elements()]).collect();
        let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(|room| TensorViewMut::F32(room)).collect();
        session.run(&inputs, &mut outputs).unwrap();
        for (name, found) in names.iter().zip(&rooms) {
            close(found, expected[name].as_f32().unwrap(), tolerance, &format!("{device}, run {run}, `{name}`"));
        }
        for state in &graph.states {
            states.insert(state.input.clone(), expected[&state.output].clone());
            if let Some(expected) = expected[&state.output].as_f32() {
                let mut found = vec![0.0; expected.len()];
                session.read_state(&state.input, TensorViewMut::F32(&mut found)).unwrap();
                close(&found, expected, tolerance, &format!("{device}, run {run}, state `{}`", state.input));
            }
        }
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} instead of {expected}: {context}");
    }
}

fn tolerance(device: DeviceSpec) -> f32 {
    if matches!(device, DeviceSpec::Cpu(_)) { 0.0 } else { 1e-5 }
}

#[test]
fn a_recurrent_policy_remembers() {
    for device in all_devices() {
        side_by_side(&graph(RECURRENT), device, 3, tolerance(device));
    }
}

#[test]
fn a_sampler_encodes_once_and_denoises_often() {
    let graph = graph(SAMPLER);
    let plan = plan(&graph);
    let steps = &plan.manifest.entries[0].steps;
    let place = steps.iter().position(|step| step.name == "repeat").unwrap();
    assert!(steps[..place].iter().any(|step| step.name == "code"), "{}", qail_codegen::explain(&plan.manifest));
    for device in all_devices() {
        side_by_side(&graph, device, 2, tolerance(device));
    }
}

#[test]
fn an_output_is_what_a_state_was() {
    let source = "graph @g(%x: f32[1, 4], %h: f32[1, 4]) -> (was = %h, column = %t, h2 = %h2) {
        state \"h\" = \"h2\"
        %t = transpose %h {perm = [1, 0]} : f32[4, 1]
        %h2 = add %h, %x : f32[1, 4]
    }";
    for device in all_devices() {
        side_by_side(&graph(source), device, 3, tolerance(device));
    }
}

#[test]
fn an_output_that_the_next_turn_overwrites_is_refused() {
    let source = "graph @g(%x: f32[1, 4]) -> (action = %y, before = %t) {
        repeat 3
        carry \"x\" = \"action\"
        %t = transpose %x {perm = [1, 0]} : f32[4, 1]
        %y = tanh %x : f32[1, 4]
    }";
    let error = qail_codegen::build(&graph(source), &qail_codegen::BuildOptions::default()).unwrap_err();
    assert!(error.to_string().contains("output `before` is what the last turn began with"), "{error}");
}

#[test]
fn states_that_swap_are_put_aside() {
    let text = SWAP.replace(
        "state \"a\" = \"b2x\"",
        "state \"a\" = \"a2\"\nstate \"b\" = \"b2\"\nstate \"c\" = \"c2\"
         %s = add %a, %x : f32[2]
         %t = sub %s, %b : f32[2]
         %y = add %t, %c : f32[2]",
    );
    let graph = graph(&text);
    let mut session = Session::load(plan(&graph).to_file().unwrap(), DeviceSpec::Cpu(None)).unwrap();
    for (name, value) in [("a", 1.0f32), ("b", 10.0), ("c", 100.0)] {
        session.write_state(name, TensorView::F32(&[value; 2])).unwrap();
    }
    let mut y = [0.0; 2];
    let mut run = |session: &mut Session| {
        session.run(&[TensorView::F32(&[0.0; 2])], &mut [TensorViewMut::F32(&mut y)]).unwrap();
        y[0]
    };
    assert_eq!([run(&mut session), run(&mut session), run(&mut session)], [91.0, 109.0, 91.0]);
}

#[test]
fn a_reset_forgets_and_a_full_state_refuses() {
    for device in all_devices() {
        let mut session = Session::load(plan(&graph(RECURRENT)).to_file().unwrap(), device).unwrap();
        let mut y = [0.0; 2];
        let mut run = |session: &mut Session| {
            let result = session.run(&[TensorView::F32(&[0.5, -1.0, 2.0])], &mut [TensorViewMut::F32(&mut y)]);
            result.map(|()| y).map_err(|error| error.to_string())
        };
        let first = run(&mut session).unwrap();
        assert_ne!(run(&mut session).unwrap(), first);
        run(&mut session).unwrap();
        assert_eq!(
            run(&mut session).unwrap_err(),
            "state `n` is 3 and may be at most 2 before a step; reset the session"
        );
        session.reset().unwrap();
        assert_eq!(run(&mut session).unwrap(), first);
        session.reset_element(0).unwrap();
        assert_eq!(run(&mut session).unwrap(), first);
        assert!(session.reset_element(1).is_err());
    }
}

#[test]
fn one_element_of_a_batch_is_reset_alone() {
    let text = "graph @g(%x: f32[3, 2], %h: f32[2, 3, 2]) -> (y = %y, h2 = %h2) {
        state \"h\" = \"h2\" {element_axis = 1}
        %h2 = add %h, %x : f32[2, 3, 2]
        %y = reduce_sum %h2 {axes = [0]} : f32[3, 2]
    }";
    for device in all_devices() {
        let mut session = Session::load(plan(&graph(text)).to_file().unwrap(), device).unwrap();
        let mut y = [0.0; 6];
        for _ in 0..2 {
            session.run(&[TensorView::F32(&[1.0; 6])], &mut [TensorViewMut::F32(&mut y)]).unwrap();
        }
        assert_eq!((session.n_elements(), y), (3, [4.0; 6]));
        session.reset_element(1).unwrap();
        session.run(&[TensorView::F32(&[1.0; 6])], &mut [TensorViewMut::F32(&mut y)]).unwrap();
        assert_eq!(y, [6.0, 6.0, 2.0, 2.0, 6.0, 6.0]);
    }
}

#[test]
fn the_plan_of_a_sampler_reads_well() {
    let options = qail_codegen::BuildOptions { shaders: false, ..Default::default() };
    let plan = qail_codegen::build(&graph(SAMPLER), &options).unwrap();
    insta::assert_snapshot!(qail_codegen::explain(&plan.manifest));
}

#[test]
fn noise_is_drawn_by_seed_and_run_or_given() {
    let graph = graph(
        "graph @g(%obs: f32[1, 3], %z: f32[1, 999]) -> (y = %y, copy = %obs) {
        %two = const splat(2.0) : f32[]
        %y = mul %z, %two : f32[1, 999]
    }",
    );
    let options = qail_codegen::BuildOptions { noise: ["z".to_owned()].into(), seed: 7, ..Default::default() };
    let file = qail_codegen::build(&graph, &options).unwrap().to_file().unwrap();
    let mut session = Session::load(file.clone(), DeviceSpec::Cpu(None)).unwrap();
    let (mut y, mut copy) = (vec![0.0; 999], [0.0; 3]);
    let mut run = |session: &mut Session| {
        let mut outputs = [TensorViewMut::F32(&mut y), TensorViewMut::F32(&mut copy)];
        session.run(&[TensorView::F32(&[1.0; 3])], &mut outputs).unwrap();
        y.clone()
    };
    let (first, second) = (run(&mut session), run(&mut session));
    assert_ne!(first, second);
    let mean = first.iter().sum::<f32>() / 999.0;
    let variance = first.iter().map(|y| (y - mean) * (y - mean)).sum::<f32>() / 999.0;
    assert!(mean.abs() < 0.2 && (variance - 4.0).abs() < 0.6, "{mean} {variance}");
    session.reseed(7);
    assert_eq!(run(&mut session), first);
    session.reseed(8);
    assert_ne!(run(&mut session), first);
    let given = qail_runtime::LoadOptions { given_noise: true, ..Default::default() };
    let session = Session::load_with(file, DeviceSpec::Cpu(None), &given).unwrap();
    let names: Vec<&str> = session.inputs().iter().map(|port| port.name.as_str()).collect();
    assert_eq!((names, session.noise().len()), (vec!["obs", "z"], 0));
}
