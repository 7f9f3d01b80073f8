//! From a float policy to integer arithmetic: what holds for the whole way.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use qail_ir::{
    Constant, Graph, NodeId, Op, UnaryFn,
    interp::{Interpreter, Tensor, run},
    text,
};
use qail_passes::{
    Calibrate, Changed, CorrectBias, Exactness, LowerQuant, Observer, Pass, PassContext, PassError, PassManager,
    PipelineOptions, Precision, SampleError, Samples, default_pipeline, pipeline,
    quant::{LoweringReport, derived_scale},
    registry,
};
use support::{Mlp, bounds, floats, ints};

const HOPPER: Mlp = Mlp {
    widths: &[11, 64, 64, 3],
    act: UnaryFn::Tanh,
    last: Some(UnaryFn::Clip { min: -1.0, max: 1.0 }),
    normalizer: true,
};
const CHEETAH: Mlp = Mlp { widths: &[17, 256, 256, 6], act: UnaryFn::Relu, last: None, normalizer: false };
const GO1: Mlp = Mlp { widths: &[20, 96, 48, 12], act: UnaryFn::Silu, last: Some(UnaryFn::Tanh), normalizer: true };

/// The graph with steps, the graph on codes and what is known about it.
struct Quantized {
    fake: Graph,
    integer: Graph,
    report: LoweringReport,
}

fn quantize(mlp: &Mlp, precision: Precision, samples: &dyn Samples) -> Quantized {
    let options = PipelineOptions::new(precision);
    let mut cx = PassContext::with_samples(samples);
    let mut fake = mlp.graph(1);
    PassManager::new(pipeline::prepare(&options)).run(&mut fake, &mut cx).unwrap();
    let mut integer = fake.clone();
    PassManager::new(pipeline::finish(&options)).run(&mut integer, &mut cx).unwrap();
    Quantized { fake, integer, report: cx.lowering.unwrap() }
}

fn node(graph: &Graph, name: &str) -> NodeId {
    graph.topo().into_iter().find(|&id| graph.node(id).name == name).unwrap()
}

#[test]
fn w8a8_stays_within_the_bound_of_its_roundings() {
    for mlp in [&HOPPER, &CHEETAH] {
        let samples = mlp.samples(2, 100);
        let mut cx = PassContext::with_samples(&samples);
        let mut graph = mlp.graph(1);
        let list = "canonicalize, merge-linear-bias, fold-normalizer, insert-fake-quant(bits=w8a8), calibrate";
        PassManager::new(registry::parse(list).unwrap()).run(&mut graph, &mut cx).unwrap();
        let fake = graph.clone();
        LowerQuant::default().run(&mut graph, &mut cx).unwrap();
        let (original, integer) = (mlp.graph(1), Interpreter::new(&graph).unwrap());
        let (mut squares, mut noise) = (0.0, 0.0);
        for sample in mlp.samples(3, 50).iter().chain(&samples) {
            let (reference, bounds) = bounds::quantization_errors(&fake, sample);
            let result = integer.run(sample).unwrap();
            let elements = floats(&reference["action"]).iter().zip(floats(&result["action"]));
            for ((expected, found), bound) in elements.zip(&bounds["action"]) {
                assert!(f64::from((expected - found).abs()) <= *bound, "{expected} {found} {bound}");
            }
            let truth = run(&original, sample).unwrap();
            for (expected, found) in floats(&truth["action"]).iter().zip(floats(&result["action"])) {
                squares += f64::from(*expected).powi(2);
                noise += f64::from(expected - found).powi(2);
            }
        }
        // The bound above is for the worst case: the largest error measured is
        // under 1 % of it. So the mean is held too, at 30 dB; this one is not
        // derived but set below the 36 dB measured on both (seeded) policies.
        assert!(noise < 1e-3 * squares, "{noise} {squares}");
    }
}

#[test]
fn fewer_bits_are_worse_but_not_broken() {
    let samples = GO1.samples(2, 200);
    let noise = |precision| {
        let Quantized { integer, .. } = quantize(&GO1, precision, &samples);
        let original = GO1.graph(1);
        let (mut squares, mut noise) = (0.0, 0.0);
        for sample in GO1.samples(3, 60) {
            let (truth, found) = (run(&original, &sample).unwrap(), run(&integer, &sample).unwrap());
            for (a, b) in floats(&truth["action"]).iter().zip(floats(&found["action"])) {
                squares += f64::from(*a).powi(2);
                noise += f64::from(a - b).powi(2);
            }
        }
        noise / squares
    };
    let (w8a8, w4a8, w4a4) = (noise(Precision::W8A8), noise(Precision::W4A8), noise(Precision::W4A4));
    assert!(w8a8 < w4a8 && w4a8 < w4a4 && w4a4 < 0.1, "{w8a8} {w4a8} {w4a4}");
}

#[test]
fn lowering_a_lowered_model_again_changes_nothing() {
    for (mlp, precision) in
        [(&HOPPER, Precision::W8A8), (&CHEETAH, Precision::W4A4), (&GO1, Precision::W4A4), (&GO1, Precision::W4A8)]
    {
        let samples = mlp.samples(2, 100);
        let Quantized { mut fake, integer, report } = quantize(mlp, precision, &samples);
        for layer in &report.layers {
            // What rounding took is known, and is no more than half of an accumulator.
            assert!(layer.bias_rounding.iter().all(|rest| rest.abs() <= 0.5 + 1e-9), "{:?}", layer.bias_rounding);
            assert!(layer.bias_rounding.iter().any(|rest| *rest != 0.0));
            let codes = constant(&integer, &layer.weights).all_int().unwrap();
            let bias = constant(&integer, &layer.bias).all_int().unwrap();
            let scales = match layer.requantizes.first() {
                Some(requantize) => &requantize.derived_scales,
                None => &layer.nominal_scales,
            };
            let n = layer.n;
            let w: Vec<f32> = codes.iter().enumerate().map(|(i, &code)| code as f32 * scales[i % n]).collect();
            let b: Vec<f32> = (0..n)
                .map(|c| {
                    let alone = bias[c] + i64::from(layer.input_codes.zero_point) * layer.column_sums[c];
                    // An f32 holds the bias only up to here.
                    assert!(alone.abs() < 1 << 23);
                    (alone as f64 * layer.input_codes.step * f64::from(scales[c])) as f32
                })
                .collect();
            let linear = node(&fake, &layer.name);
            let quantizer = fake.operands(linear)[1].node;
            set(&mut fake, quantizer, 0, Constant::f32([layer.k, n], &w));
            set(&mut fake, quantizer, 1, Constant::f32([n], scales));
            set(&mut fake, linear, 2, Constant::f32([n], &b));
        }
        let mut again = fake;
        let mut cx = PassContext::new();
        PassManager::new(pipeline::finish(&PipelineOptions::new(precision))).run(&mut again, &mut cx).unwrap();
        assert_eq!(codes_of(&again), codes_of(&integer), "{precision}");
        let relowered = cx.lowering.unwrap();
        for (a, b) in report.layers.iter().zip(&relowered.layers) {
            // Biases that are whole already lose nothing but the error of `f32`.
            assert!(b.bias_rounding.iter().all(|rest| rest.abs() < 0.3), "{:?}", b.bias_rounding);
            assert_eq!(a.requantizes, b.requantizes);
        }
    }
}

fn constant<'g>(graph: &'g Graph, name: &str) -> &'g Constant {
    graph.const_of(node(graph, name).value()).unwrap()
}

fn set(graph: &mut Graph, user: NodeId, slot: usize, constant: Constant) {
    let Op::Const(c) = graph.op(graph.operands(user)[slot]) else { panic!("not a constant") };
    let id = c.id;
    graph.set_const(id, constant).unwrap();
}

/// Every integer constant by the name of its node.
fn codes_of(graph: &Graph) -> BTreeMap<String, Vec<i64>> {
    let mut codes = BTreeMap::new();
    for id in graph.topo() {
        if let Some(constant) = graph.const_of(id.value()).filter(|constant| !constant.ty.is_f32()) {
            codes.insert(graph.node(id).name.clone(), constant.all_int().unwrap());
        }
    }
    codes
}

/// Counts codes that differ between the graph with quantizers and the graph on
/// codes, and the codes compared, by quantizer.
fn differing(
    fake: &Graph,
    integer: &Graph,
    report: &LoweringReport,
    samples: &[BTreeMap<String, Tensor>],
) -> BTreeMap<String, (usize, i64, usize)> {
    let mut counts = BTreeMap::new();
    let (of_fake, of_integer) = (Interpreter::new(fake).unwrap(), Interpreter::new(integer).unwrap());
    for sample in samples {
        let mut rounded: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        of_fake
            .observe(sample, |id, tensor| {
                if let (Op::FakeQuant(_), Some(info)) = (&fake.node(id).op, report.codes.get(&fake.node(id).name)) {
                    let code =
                        |x: &f32| (f64::from(*x) / info.step).round_ties_even() as i64 + i64::from(info.zero_point);
                    rounded.insert(fake.node(id).name.clone(), floats(tensor).iter().map(code).collect());
                }
            })
            .unwrap();
        of_integer
            .observe(sample, |id, tensor| {
                let Some(rounded) = rounded.get(&integer.node(id).name) else { return };
                let entry: &mut (usize, i64, usize) = counts.entry(integer.node(id).name.clone()).or_default();
                for (a, b) in rounded.iter().zip(ints(tensor)) {
                    entry.0 += usize::from(a != b);
                    entry.1 = entry.1.max((a - b).abs());
                    entry.2 += 1;
                }
            })
            .unwrap();
    }
    counts
}

#[test]
fn codes_of_the_float_simulation_differ_rarely_and_by_one() {
    for (mlp, precision, first) in
        [(&HOPPER, Precision::W8A8, "l0.q"), (&CHEETAH, Precision::W4A4, "h0.q"), (&CHEETAH, Precision::W8A8, "h0.q")]
    {
        let samples = mlp.samples(2, 100);
        let Quantized { fake, integer, report } = quantize(mlp, precision, &samples);
        let counts = differing(&fake, &integer, &report, &mlp.samples(3, 60));
        assert!(counts.len() >= 3, "{counts:?}");
        for (name, (n, largest, all)) in &counts {
            println!("{precision} {name}: {n} of {all} codes differ, by at most {largest}");
        }
        // An observation has the same code in both: the steps are powers of two.
        assert_eq!(counts["obs.q"].0, 0);
        // In the first layer a code differs only next to a tie: within 2^-15 of
        // the pre-activation (the multiplier) plus rounding of f32. A code of at
        // most 255 then differs with a chance of 255 * 2^-14 at worst.
        let (n, largest, all) = counts[first];
        assert!(largest <= 1);
        assert!(n as f64 <= all as f64 * 255.0 * 2f64.powi(-14), "{n} of {all}");
    }
}

#[test]
fn the_same_data_gives_the_same_graph() {
    let samples = GO1.samples(2, 50);
    let print = || text::print_with_weights(&quantize(&GO1, Precision::W4A4, &samples).integer);
    let ((text, weights), (again, weights_again)) = (print(), print());
    assert_eq!(text, again);
    for (name, constant) in weights {
        assert_eq!(constant.all_int().unwrap(), weights_again[&name].all_int().unwrap());
    }
}

#[test]
fn the_report_says_what_exports_need() {
    let samples = GO1.samples(2, 50);
    let Quantized { integer, report, .. } = quantize(&GO1, Precision::W4A4, &samples);
    assert_eq!(report.layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["l0", "l1", "l2"]);
    let bits: Vec<u8> = report.layers.iter().map(|layer| layer.weight_scheme.bits).collect();
    assert_eq!(bits, [8, 4, 8]);
    for layer in &report.layers {
        assert!(report.codes.contains_key(&layer.input));
        assert!(layer.bound < i64::from(i32::MAX));
        assert!(layer.origin.iter().any(|name| name.starts_with("/Gemm")));
        for name in [&layer.acc, &layer.input, &layer.weights, &layer.bias] {
            node(&integer, name);
        }
        for requantize in &layer.requantizes {
            let op = integer.node(node(&integer, &requantize.node)).op.clone();
            assert!(matches!(op, Op::Requantize(_)));
            let derived = requantize.derived_scales.iter().zip(&layer.nominal_scales);
            for (derived, nominal) in derived {
                assert!((derived / nominal - 1.0).abs() < 2f32.powi(-14));
            }
        }
    }
    let entry = &report.layers[0].input_codes;
    assert_eq!((entry.step, entry.zero_point), (1.0, 0));
    assert!(report.layers[0].dequantize.is_none() && report.layers[2].dequantize.is_some());
    assert!(report.bits_per_weight().unwrap() > 4.0);
    // `derived_scale` is the same function for others.
    let multiplier = qail_ir::fixed::Multiplier::nearest(0.01).unwrap();
    assert_eq!(derived_scale(multiplier, 0.5, 0.25), (multiplier.factor() * 2.0) as f32);
}

#[test]
fn precisions_with_float_activations_need_no_data() {
    for precision in [Precision::F32, Precision::W8A16, Precision::W4A16] {
        let mut graph = GO1.graph(1);
        let options = PipelineOptions::new(precision);
        PassManager::new(default_pipeline(&options)).run(&mut graph, &mut PassContext::new()).unwrap();
    }
    let mut graph = GO1.graph(1);
    let passes = default_pipeline(&PipelineOptions::new(Precision::W8A8));
    let error = PassManager::new(passes).run(&mut graph, &mut PassContext::new()).unwrap_err();
    let PassError::In { pass: "calibrate", source } = error else { panic!("{error}") };
    assert!(matches!(*source, PassError::NoData { n_values: 5, .. }), "{source}");
}

#[test]
fn f32_keeps_every_bit() {
    let mut graph = HOPPER.graph(1);
    let passes = default_pipeline(&PipelineOptions::new(Precision::F32));
    assert!(passes.iter().all(|pass| pass.exactness() == Exactness::Exact || pass.name().starts_with("lift-")));
    PassManager::new(passes).run(&mut graph, &mut PassContext::new()).unwrap();
    for sample in HOPPER.samples(4, 20) {
        assert_eq!(run(&graph, &sample).unwrap(), run(&HOPPER.graph(1), &sample).unwrap());
    }
}

/// Samples, one of which is bad.
struct Bad {
    good: Vec<BTreeMap<String, Tensor>>,
    bad: Option<BTreeMap<String, Tensor>>,
}

impl Samples for Bad {
    fn len(&self) -> usize {
        self.good.len() + 1
    }

    fn get(&self, index: usize) -> Result<BTreeMap<String, Tensor>, SampleError> {
        match self.good.as_slice().get(index) {
            Some(sample) => Ok(sample.clone()),
            None => self.bad.clone().ok_or_else(|| SampleError::new("the file ends here")),
        }
    }
}

#[test]
fn bad_samples_are_named() {
    let calibrate = |bad| {
        let samples = Bad { good: HOPPER.samples(1, 2), bad };
        let mut cx = PassContext::with_samples(&samples);
        let mut graph = HOPPER.graph(1);
        let error = PassManager::new(default_pipeline(&PipelineOptions::new(Precision::W8A8))).run(&mut graph, &mut cx);
        match error.unwrap_err() {
            PassError::In { source, .. } => *source,
            other => other,
        }
    };
    assert!(matches!(calibrate(None), PassError::Sample { index: 2, .. }));
    let nan = BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 11], vec![f32::NAN; 11]))]);
    assert!(matches!(calibrate(Some(nan)), PassError::NotFinite { index: 2, .. }));
    let short = BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 2], vec![0.0; 2]))]);
    assert!(matches!(calibrate(Some(short)), PassError::Interp(_)));
}

#[test]
fn correcting_the_bias_removes_the_mean_error() {
    let samples = CHEETAH.samples(2, 200);
    let list = "insert-fake-quant(bits=w4a8, edge-bits=4), calibrate";
    let mut cx = PassContext::with_samples(&samples);
    let mut graph = CHEETAH.graph(1);
    PassManager::new(registry::parse(list).unwrap()).run(&mut graph, &mut cx).unwrap();
    let plain = graph.clone();
    assert_eq!(CorrectBias.run(&mut graph, &mut cx).unwrap(), Changed::Yes);
    let original = CHEETAH.graph(1);
    let mean_error = |graph: &Graph| -> f64 {
        let mut sums = [0.0f64; 6];
        for sample in &samples {
            let (a, b) = (run(&original, sample).unwrap(), run(graph, sample).unwrap());
            for ((sum, a), b) in sums.iter_mut().zip(floats(&a["action"])).zip(floats(&b["action"])) {
                *sum += f64::from(a - b);
            }
        }
        sums.iter().map(|sum| (sum / samples.len() as f64).powi(2)).sum()
    };
    assert!(mean_error(&graph) < 0.5 * mean_error(&plain));
}

#[test]
fn rounding_on_the_data_beats_nearest_rounding() {
    let samples = CHEETAH.samples(2, 300);
    let original = CHEETAH.graph(1);
    let noise = |list: &str| -> f64 {
        let mut cx = PassContext::with_samples(&samples);
        let mut graph = CHEETAH.graph(1);
        PassManager::new(registry::parse(list).unwrap()).run(&mut graph, &mut cx).unwrap();
        let mut noise = 0.0;
        for sample in CHEETAH.samples(3, 60) {
            let (a, b) = (run(&original, &sample).unwrap(), run(&graph, &sample).unwrap());
            noise += floats(&a["action"])
                .iter()
                .zip(floats(&b["action"]))
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum::<f64>();
        }
        noise
    };
    let insert = "insert-fake-quant(bits=w4a8), calibrate";
    let nearest = noise(&format!("{insert}, correct-bias, lower-quant"));
    let optimized = noise(&format!("{insert}, optimize-rounding, correct-bias, lower-quant"));
    assert!(optimized < 0.7 * nearest, "{optimized} {nearest}");
}

#[test]
fn the_observer_is_an_option() {
    let samples = CHEETAH.samples(2, 50);
    let step = |observer| {
        let mut cx = PassContext::with_samples(&samples);
        let options = PipelineOptions {
            calibrate: Calibrate { observer, max_samples: 50 },
            ..PipelineOptions::new(Precision::W4A4)
        };
        PassManager::new(default_pipeline(&options)).run(&mut CHEETAH.graph(1), &mut cx).unwrap();
        cx.stats["h0.q"].steps[0]
    };
    let (min_max, percentile, mse) = (step(Observer::MinMax), step(Observer::Percentile(99.0)), step(Observer::Mse));
    assert!(mse < min_max && percentile < min_max);
}

#[test]
fn no_observation_overflows_an_accumulator() {
    // Small, odd and degenerate shapes; every activation; one sample to calibrate on.
    const SHAPES: [&[usize]; 4] = [&[1, 1, 1], &[3, 5], &[2, 33, 1, 7], &[7, 4, 4, 4, 2]];
    let functions = [
        UnaryFn::Relu,
        UnaryFn::Tanh,
        UnaryFn::Silu,
        UnaryFn::Sigmoid,
        UnaryFn::Elu { alpha: 1.0 },
        UnaryFn::LeakyRelu { alpha: 0.01 },
        UnaryFn::Clip { min: -0.5, max: 6.0 },
        UnaryFn::Abs,
    ];
    for (i, act) in functions.into_iter().enumerate() {
        for widths in SHAPES {
            for (precision, edge_bits) in [(Precision::W8A8, 8), (Precision::W4A4, 8), (Precision::W4A4, 4)] {
                let mlp = Mlp { widths, act, last: (i % 2 == 0).then_some(UnaryFn::Tanh), normalizer: i % 3 == 0 };
                let samples = mlp.samples(5, 1 + i);
                let options = PipelineOptions { edge_bits, ..PipelineOptions::new(precision) };
                let mut graph = mlp.graph(7);
                let mut cx = PassContext::with_samples(&samples);
                PassManager::new(default_pipeline(&options)).run(&mut graph, &mut cx).unwrap();
                for extreme in [0.0, f32::MAX, f32::MIN, f32::INFINITY, -1e-40, 1e6] {
                    let obs = Tensor::f32([1, widths[0]], vec![extreme; widths[0]]);
                    let result = run(&graph, &BTreeMap::from([("obs".to_owned(), obs)])).unwrap();
                    assert!(floats(&result["action"]).iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}
