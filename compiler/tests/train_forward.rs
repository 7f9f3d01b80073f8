//! The law of training on real policies: the forward pass of the training
//! executor, in batches, gives every code and every bit of the actions that the
//! interpreter gives on the integer graph, state by state.
//!
//! States are recorded ones; `QAILC_STATES` says how many (default 400).

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::collections::BTreeMap;

use qail_ir::{Graph, ValueId, interp::Interpreter};
use qail_passes::{PipelineOptions, Precision, quant::region::Region, rebatch::rebatch};
use qail_train::{CpuExecutor, CpuOptions, TrainExecutor, options::TrainOptions};
use qailc::{
    data::{DemoMap, Demos},
    pipeline::{self, BuildOptions, Quantized, Sample, Training},
};

/// Samples of a batch; the last one is smaller.
const BATCH: usize = 64;

/// Keeps the graph in front of `lower-quant`: the one that trains.
#[derive(Default)]
struct Trained {
    graph: Option<Graph>,
    lowered: bool,
}

impl pipeline::Observer for Trained {
    fn progress(&mut self, _: &str, _: usize, _: usize) {}

    fn after_pass(&mut self, pass: &str, graph: &Graph) {
        self.lowered |= pass == "lower-quant";
        if !self.lowered {
            self.graph = Some(graph.clone());
        }
    }
}

/// Codes by name, and the bits of the outputs, of one state.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    codes: BTreeMap<String, Vec<i64>>,
    actions: BTreeMap<String, Vec<u32>>,
}

fn interpret(judge: &Interpreter<'_>, graph: &Graph, quantized: &Quantized, state: &Sample) -> Trace {
    let zeros = &quantized.lowering.as_ref().unwrap().codes;
    let mut trace = Trace::default();
    let outputs = judge
        .observe(state, |id, tensor| {
            let name = &graph.node(id).name;
            if let (Some(info), Some(codes)) = (zeros.get(name), tensor.as_ints()) {
                let codes = codes.iter().map(|code| code - i64::from(info.zero_point)).collect();
                trace.codes.insert(name.clone(), codes);
            }
        })
        .unwrap();
    let bits = |(name, tensor): (String, qail_ir::interp::Tensor)| {
        (name, tensor.as_f32().unwrap().iter().map(|x| x.to_bits()).collect())
    };
    trace.actions = outputs.into_iter().map(bits).collect();
    trace
}

fn train(graph: &Graph, states: &[Sample]) -> Vec<Trace> {
    let batch = states.len();
    let mut graph = graph.clone();
    rebatch(&mut graph, batch).unwrap();
    let region = Region::of(&graph).unwrap();
    let keep: Vec<ValueId> = region.quantizers.keys().chain(region.moved.keys()).map(|id| id.value()).collect();
    let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep: keep.clone() }).unwrap();
    let names: Vec<String> = states[0].keys().cloned().collect();
    let rows = |name: &String| states.iter().flat_map(|state| state[name].as_f32().unwrap().to_vec()).collect();
    let inputs: Vec<Vec<f32>> = names.iter().map(rows).collect();
    let given: Vec<(&str, &[f32])> = names.iter().map(String::as_str).zip(inputs.iter().map(Vec::as_slice)).collect();
    executor.run(&given).unwrap();
    (0..batch)
        .map(|i| {
            let row = |all: &[f32]| all[i * all.len() / batch..(i + 1) * all.len() / batch].to_vec();
            let codes = keep.iter().map(|&value| {
                let row = row(executor.codes(value).unwrap());
                (graph.node(value.node).name.clone(), row.into_iter().map(|code| code as i64).collect())
            });
            let actions = graph.outputs.iter().map(|output| {
                let row = row(executor.read(output.value).unwrap());
                (output.name.clone(), row.into_iter().map(f32::to_bits).collect())
            });
            Trace { codes: codes.collect(), actions: actions.collect() }
        })
        .collect()
}

fn forward_is_the_artifact(model: &str, demos: &str) {
    for (precision, edge_bits) in
        [(Precision::W8A8, 8), (Precision::W4A8, 8), (Precision::W4A4, 8), (Precision::W4A4, 4)]
    {
        for steps in [0, 60] {
            let n_codes = codes_that_agree(model, demos, (precision, edge_bits), steps);
            eprintln!("{model} {precision} e{edge_bits} behind {steps} updates: {n_codes} codes, 0 differ");
        }
    }
}

/// Compares a policy behind `steps` updates, and counts the codes.
fn codes_that_agree(model: &str, demos: &str, (precision, edge_bits): (Precision, u8), steps: u64) -> usize {
    let fixture = |path: &str| qail_fixtures::root().join("policies").join(path);
    let n_states = std::env::var("QAILC_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let training = Training {
        method: None,
        options: TrainOptions { steps, evaluate_every: steps, ..TrainOptions::default() },
        window: 1,
        threads: 1,
        cache_dir: None,
        save: None,
    };
    let options = BuildOptions {
        passes: PipelineOptions { edge_bits, trains: true, ..PipelineOptions::new(precision) },
        demos: Some(fixture(demos)),
        n_calibration: 512,
        training: (steps > 0).then_some(training),
        ..BuildOptions::new(precision)
    };
    let mut trained = Trained::default();
    let quantized = pipeline::quantize(&fixture(model), &options, &mut trained).unwrap();
    let graph = trained.graph.unwrap();
    let recorded: Demos = pipeline::open_demos(&fixture(demos), &graph, &DemoMap::default()).unwrap();
    let states = pipeline::Demonstrations::read(&recorded, &graph, n_states, 0).unwrap().calibration;
    assert!(states.len() > BATCH);
    let judge = Interpreter::new(&quantized.graph).unwrap();
    let mut n_codes = 0;
    for states in states.chunks(BATCH) {
        for (state, found) in states.iter().zip(train(&graph, states)) {
            let expected = interpret(&judge, &quantized.graph, &quantized, state);
            assert_eq!(found, expected, "{model} {precision} with edges of {edge_bits} bits, {steps} updates");
            n_codes += found.codes.values().map(Vec::len).sum::<usize>();
        }
    }
    assert!(n_codes > 100 * states.len());
    n_codes
}

#[test]
fn hopper_trains_on_its_codes() {
    forward_is_the_artifact("hopper/hopper_expert.onnx", "hopper/hopper_demos.npz");
}

#[test]
fn halfcheetah_trains_on_its_codes() {
    forward_is_the_artifact("halfcheetah/halfcheetah_expert.onnx", "halfcheetah/halfcheetah_demos.npz");
}
