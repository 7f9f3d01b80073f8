//! The first law: interpreter, CPU kernels of every instruction set that this
//! machine has, and shaders on every Vulkan driver agree in every code, in every
//! accumulator, and in every bit of the actions.
//!
//! Codes in front of a table never reach memory: on every executor the step that
//! computes them looks them up at once, so they are compared through what the
//! table makes of them. The same requantization is compared code by code where
//! no table follows, and its shader text is the same in every kernel.
//!
//! States are recorded ones. `QAILC_STATES` says how many of each policy
//! (default 400); the slow suite takes 10,000. `QAILC_REQUIRE_ADAPTERS` says how
//! many Vulkan drivers must be there; without it a machine without any is fine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::collections::BTreeMap;

use qail_ir::{
    Elem, Graph,
    interp::{Data, Interpreter},
};
use qail_passes::{PipelineOptions, Precision};
use qail_runtime::{DeviceSpec, Isa, LoadOptions, Session, TensorView, TensorViewMut};
use qailc::{
    data::{DemoMap, Demos},
    pipeline::{self, BuildOptions, Built, Sample, Silent},
};

/// A policy with recorded states.
struct Case {
    model: &'static str,
    demos: &'static str,
}

const HOPPER: Case = Case { model: "hopper/hopper_expert.onnx", demos: "hopper/hopper_demos.npz" };
const HALFCHEETAH: Case =
    Case { model: "halfcheetah/halfcheetah_expert.onnx", demos: "halfcheetah/halfcheetah_demos.npz" };

/// Precisions with codes, and bits of their edge layers.
const INTEGER: [(Precision, u8); 4] =
    [(Precision::W8A8, 8), (Precision::W4A8, 8), (Precision::W4A4, 8), (Precision::W4A4, 4)];
/// Precisions whose arithmetic is `f32`.
const FLOAT: [Precision; 3] = [Precision::F32, Precision::W8A16, Precision::W4A16];

fn fixture(path: &str) -> std::path::PathBuf {
    qail_fixtures::root().join("policies").join(path)
}

fn n_states() -> usize {
    std::env::var("QAILC_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

fn compile(case: &Case, precision: Precision, edge_bits: u8) -> Built {
    let options = BuildOptions {
        passes: PipelineOptions { edge_bits, ..PipelineOptions::new(precision) },
        demos: Some(fixture(case.demos)),
        n_calibration: 512,
        ..BuildOptions::new(precision)
    };
    pipeline::compile(&fixture(case.model), &options, &mut Silent).unwrap()
}

/// Recorded states, evenly spread.
fn states(case: &Case, graph: &Graph) -> Vec<Sample> {
    let demos: Demos = pipeline::open_demos(&fixture(case.demos), graph, &DemoMap::default()).unwrap();
    let all = pipeline::Demonstrations::read(&demos, graph, n_states(), 0).unwrap();
    all.calibration
}

/// What one executor says about one state: integers by name, and the actions.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    integers: BTreeMap<String, Vec<i32>>,
    actions: Vec<u32>,
}

fn interpret(judge: &Interpreter<'_>, graph: &Graph, state: &Sample) -> Trace {
    let mut trace = Trace::default();
    let outputs = judge
        .observe(state, |id, tensor| {
            let node = graph.node(id);
            let constant = matches!(node.op, qail_ir::Op::Const(_));
            let integer = matches!(tensor.ty.elem, Elem::Code(_)) || matches!(node.op, qail_ir::Op::QLinear(_));
            if let (Data::Int(values), true, false) = (&tensor.data, integer, constant) {
                trace.integers.insert(node.name.clone(), values.iter().map(|&x| x as i32).collect());
            }
        })
        .unwrap();
    trace.actions = outputs.values().flat_map(|tensor| tensor.as_f32().unwrap().iter().map(|x| x.to_bits())).collect();
    trace
}

/// Every executor that this machine has, by name.
fn sessions(built: &Built, gpu: bool) -> Vec<(String, Session)> {
    let options = LoadOptions { keep_intermediates: true, ..LoadOptions::default() };
    let mut specs: Vec<DeviceSpec> =
        Isa::ALL.into_iter().filter(|isa| isa.is_present()).map(|isa| DeviceSpec::Cpu(Some(isa))).collect();
    if gpu {
        let vulkan = support::vulkan();
        if vulkan.is_empty() {
            eprintln!("no Vulkan driver here: shaders are NOT compared");
        }
        specs.extend(vulkan);
    }
    specs
        .into_iter()
        .map(|spec| {
            let session = Session::load_with(built.bytes.as_slice(), spec, &options).unwrap();
            (session.device_name().to_owned(), session)
        })
        .collect()
}

fn run(session: &mut Session, state: &Sample, names: &[String]) -> Trace {
    let inputs: Vec<TensorView<'_>> =
        session.inputs().iter().map(|port| TensorView::F32(state[&port.name].as_f32().unwrap())).collect();
    let mut rooms: Vec<Vec<f32>> = session.outputs().iter().map(|port| vec![0.0; port.elements()]).collect();
    let mut views: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(|room| TensorViewMut::F32(room)).collect();
    session.run(&inputs, &mut views).unwrap();
    let integers = names.iter().map(|name| (name.clone(), session.read_codes(name).unwrap())).collect();
    Trace { integers, actions: rooms.iter().flatten().map(|x| x.to_bits()).collect() }
}

/// Integer values that exist outside of registers: a fused accumulator does not.
fn names_in_memory(session: &Session, trace: &Trace) -> Vec<String> {
    let known: std::collections::BTreeSet<&str> = session.tensor_names().collect();
    trace.integers.keys().filter(|name| known.contains(name.as_str())).cloned().collect()
}

fn codes_and_actions_agree(case: &Case) {
    for (precision, edge_bits) in INTEGER {
        let built = compile(case, precision, edge_bits);
        let graph = &built.quantized.graph;
        let judge = Interpreter::new(graph).unwrap();
        let states = states(case, graph);
        assert!(states.len() >= n_states().min(10_000));
        let expected: Vec<Trace> = states.iter().map(|state| interpret(&judge, graph, state)).collect();
        let mut sessions = sessions(&built, true);
        for (device, session) in &mut sessions {
            let names = names_in_memory(session, &expected[0]);
            // Every layer hands its codes, or its accumulators, to memory.
            assert!(names.len() >= 4, "{device} keeps only {names:?}");
            let (mut n_compared, mut n_different, mut n_actions) = (0usize, 0usize, 0usize);
            for (state, expected) in states.iter().zip(&expected) {
                let found = run(session, state, &names);
                for name in &names {
                    let pairs = expected.integers[name].iter().zip(&found.integers[name]);
                    n_different += pairs.filter(|(a, b)| a != b).count();
                    n_compared += expected.integers[name].len();
                    assert_eq!(expected.integers[name].len(), found.integers[name].len());
                }
                n_actions += usize::from(expected.actions != found.actions);
            }
            println!(
                "{} {precision} e{edge_bits} on {device}: {} states, {n_compared} integers, {n_different} differ, {n_actions} actions differ",
                case.model,
                states.len()
            );
            assert_eq!((n_different, n_actions), (0, 0), "{} {precision} e{edge_bits} on {device}", case.model);
        }
    }
}

#[test]
fn hopper_computes_the_same_codes_everywhere() {
    codes_and_actions_agree(&HOPPER);
}

#[test]
fn halfcheetah_computes_the_same_codes_everywhere() {
    codes_and_actions_agree(&HALFCHEETAH);
}

#[test]
fn float_precisions_agree_bit_for_bit_on_the_cpu() {
    for case in [HOPPER, HALFCHEETAH] {
        for precision in FLOAT {
            let built = compile(&case, precision, 8);
            let graph = &built.quantized.graph;
            let judge = Interpreter::new(graph).unwrap();
            let states = states(&case, graph);
            for (device, mut session) in sessions(&built, true) {
                let (mut n_different, mut largest) = (0usize, 0f32);
                for state in &states {
                    let expected = interpret(&judge, graph, state).actions;
                    let found = run(&mut session, state, &[]).actions;
                    n_different += usize::from(expected != found);
                    for (&a, &b) in expected.iter().zip(&found) {
                        largest = largest.max((f32::from_bits(a) - f32::from_bits(b)).abs());
                    }
                }
                println!(
                    "{} {precision} on {device}: {} states, {n_different} actions differ, by {largest:e} at most",
                    case.model,
                    states.len()
                );
                if device.starts_with("cpu") {
                    assert_eq!(n_different, 0, "{} {precision} on {device}", case.model);
                } else {
                    // A shader's tanh is its own (2^-11 relative is what WGSL asks for at
                    // worst; drivers are within a few ulp), and products may be fused.
                    assert!(largest <= 2e-5, "{} {precision} on {device}: {largest:e}", case.model);
                }
            }
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, two) = (compile(&HOPPER, Precision::W4A4, 8), compile(&HOPPER, Precision::W4A4, 8));
    assert!(one.bytes == two.bytes);
}
