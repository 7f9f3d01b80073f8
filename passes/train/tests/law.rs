//! The law of training: the forward pass computes the codes, the accumulators
//! and the actions of the graph that `lower-quant` makes of the same numbers.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/cnn.rs"]
mod cnn;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use qail_ir::{
    Constant, DType, Elem, Graph, Op, TensorType, UnaryFn, ValueId,
    interp::{self, Tensor},
    text,
};
use qail_passes::{
    LowerQuant, Pass, PassContext, PassManager, PipelineOptions, Precision, pipeline,
    quant::region::{CodesFrom, Region},
    rebatch::rebatch,
};
use qail_train::{CpuExecutor, CpuOptions, ExecError, TrainExecutor};
use support::{
    Mlp, Rng, floats, ints,
    network::{image_of_bytes, image_of_floats, samples, separable},
};

/// The same graph for `n` samples at once.
fn with_batch(graph: &Graph, n: usize) -> Graph {
    let mut batched = graph.clone();
    rebatch(&mut batched, n).unwrap();
    batched
}

fn lower(graph: &Graph) -> (Graph, BTreeMap<String, i32>) {
    let mut integer = graph.clone();
    let mut cx = PassContext::new();
    LowerQuant::default().run(&mut integer, &mut cx).unwrap();
    let zeros = cx.lowering.unwrap().codes.into_iter().map(|(name, info)| (name, info.zero_point)).collect();
    (integer, zeros)
}

/// Quantizers and movements of codes.
fn coded(graph: &Graph) -> Vec<ValueId> {
    let region = Region::of(graph).unwrap();
    region.quantizers.keys().chain(region.moved.keys()).map(|id| id.value()).collect()
}

/// Runs both ways and compares every code and every output, bit for bit. Gives
/// the number of codes.
fn compare(graph: &Graph, inputs: &BTreeMap<String, Tensor>, threads: usize) -> usize {
    let keep = coded(graph);
    let mut executor = CpuExecutor::new(graph, &CpuOptions { threads, keep: keep.clone() }).unwrap();
    let numbers = |x: &Tensor| x.to_f64().into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let owned: Vec<(&str, Vec<f32>)> = inputs.iter().map(|(name, x)| (name.as_str(), numbers(x))).collect();
    let given: Vec<(&str, &[f32])> = owned.iter().map(|(name, x)| (*name, x.as_slice())).collect();
    executor.run(&given).unwrap();
    let (integer, zeros) = lower(graph);
    let values = interp::run_all(&integer, inputs).unwrap();
    let by_name: BTreeMap<&str, &Tensor> =
        values.iter().map(|(value, tensor)| (integer.node(value.node).name.as_str(), tensor)).collect();
    // What nobody asks for need not be there; the rest is the same.
    let mut bare = CpuExecutor::new(graph, &CpuOptions { threads, keep: Vec::new() }).unwrap();
    bare.run(&given).unwrap();
    for output in &graph.outputs {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(bare.read(output.value).unwrap()), bits(executor.read(output.value).unwrap()));
    }
    let mut n_codes = 0;
    for value in keep {
        let name = &graph.node(value.node).name;
        // Where two quantizers are the same, one of them is gone.
        let (Some(tensor), Some(&zero)) = (by_name.get(name.as_str()), zeros.get(name)) else { continue };
        let expected: Vec<f32> = ints(tensor).iter().map(|&code| (code - i64::from(zero)) as f32).collect();
        assert_eq!(executor.codes(value).unwrap(), expected, "codes of {name}");
        n_codes += expected.len();
    }
    for output in &graph.outputs {
        let expected = integer.outputs.iter().find(|other| other.name == output.name).unwrap();
        let expected: Vec<u32> = floats(&values[&expected.value]).iter().map(|x| x.to_bits()).collect();
        let found: Vec<u32> = executor.read(output.value).unwrap().iter().map(|x| x.to_bits()).collect();
        assert_eq!(found, expected, "output {}", output.name);
    }
    n_codes
}

fn random(shape: &[usize], seed: u64, scale: f64) -> Tensor {
    let mut rng = Rng(seed);
    let n: usize = shape.iter().product();
    Tensor::f32(shape.to_vec(), (0..n).map(|_| (scale * rng.normal()) as f32).collect())
}

/// Graphs of one input `x[1, 5]`, for a batch.
fn text_of(body: &str, batch: usize) -> Graph {
    let head = "graph @g(%x: f32[1, 5]) -> (OUTPUTS) {batch = 0} {
        %w0 = const rand(1) : f32[5, 6]
        %w0s = const [0.0117, 0.0093, 0.0121, 0.0083, 0.0078, 0.0107] : f32[6]
        %w0q = fake_quant %w0, %w0s {s8, lo = -127, axis = 1} : f32[5, 6]
        %b0 = const rand(2) : f32[6]
        %w1 = const rand(3) : f32[6, 4]
        %w1s = const [0.131, 0.149, 0.113, 0.127] : f32[4]
        %w1q = fake_quant %w1, %w1s {s4, lo = -7, axis = 1} : f32[6, 4]
        %b1 = const rand(4) : f32[4]
        %s = const [0.0173] : f32[]
        %t = const [0.0311] : f32[]
        %u = const [0.0077] : f32[]
        %v = const [0.0413] : f32[]
        %z = const [3] : i32[]
        %z8 = const [37] : i32[]
        %xq = fake_quant %x, %s {s8} : f32[1, 5]
        %l = linear %xq, %w0q, %b0 : f32[1, 6]";
    let (outputs, body) = body.split_once('|').unwrap();
    let whole = format!("{} {body} }}", head.replace("OUTPUTS", outputs));
    with_batch(&text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{whole}")), batch)
}

#[test]
fn every_route_to_codes_is_that_of_the_lowered_graph() {
    for (what, body) in [
        (
            "relu",
            "%y | %r = relu %l : f32[1, 6] %q = fake_quant %r, %v {u4} : f32[1, 6]
            %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "a fused function",
            "%y, %f | %f = linear %xq, %w0q, %b0 {act = relu} : f32[1, 6]
            %q = fake_quant %f, %v {u4} : f32[1, 6] %y = linear %q, %w1q, %b1 {act = tanh} : f32[1, 4]",
        ),
        (
            "tanh",
            "%y, %th | %p = fake_quant %l, %t {s8} : f32[1, 6] %th = tanh %p : f32[1, 6]
            %q = fake_quant %th, %u {s8} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "silu with zero points",
            "%y | %p = fake_quant %l, %t, %z8 {u8} : f32[1, 6] %f = silu %p : f32[1, 6]
            %q = fake_quant %f, %v, %z {u4} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "clip",
            "%y | %c = clip %l {min = -0.25, max = 0.4} : f32[1, 6] %q = fake_quant %c, %v {s4} : f32[1, 6]
            %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "a clip that leaves one code",
            "%y | %c = clip %l {min = 0.0, max = 0.01} : f32[1, 6]
            %q = fake_quant %c, %v {s4} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "several readers",
            "%y, %n, %l, %e | %r = relu %l : f32[1, 6] %q = fake_quant %r, %v {u4} : f32[1, 6]
            %p = fake_quant %r, %u {u8} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]
            %again = fake_quant %q, %v {u4} : f32[1, 6] %n0 = linear %p, %w1q, %b1 : f32[1, 4]
            %n1 = linear %again, %w1q, %b1 : f32[1, 4] %n = add %n0, %n1 : f32[1, 4] %e = exp %p : f32[1, 6]",
        ),
        (
            "codes of codes",
            "%y | %p = fake_quant %l, %t {s8} : f32[1, 6] %c = fake_quant %p, %v {s4} : f32[1, 6]
            %d = fake_quant %c, %t {s8} : f32[1, 6] %a = abs %d : f32[1, 6]
            %q = fake_quant %a, %v {u4} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "a function that no table holds",
            "%y | %p = fake_quant %l, %t {s8} : f32[1, 6] %e = exp %p : f32[1, 6]
            %q = fake_quant %e, %v {u4} : f32[1, 6] %y = linear %q, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "movements",
            "%y | %p = fake_quant %l, %t {s8} : f32[1, 6] %r = reshape %p : f32[1, 2, 3]
            %tr = transpose %r {perm = [0, 2, 1]} : f32[1, 3, 2] %fl = reshape %tr : f32[1, 6]
            %y = linear %fl, %w1q, %b1 : f32[1, 4]",
        ),
        (
            "float islands",
            "%y, %m | %th = tanh %l : f32[1, 6] %q = fake_quant %th, %u {s8} : f32[1, 6]
            %y0 = linear %q, %w1q, %b1 : f32[1, 4] %m = mul %y0, %y0 : f32[1, 4] %y = sub %m, %b1 : f32[1, 4]",
        ),
    ] {
        for batch in [1, 7, 64] {
            let graph = text_of(body, batch);
            let inputs = BTreeMap::from([("x".to_owned(), random(&[batch, 5], 9, 1.0))]);
            assert!(compare(&graph, &inputs, 1) > 0, "{what}");
        }
    }
}

/// Graphs of one image `x[2, 2, 6, 5]` with layers for it.
fn image_text(body: &str) -> Graph {
    let (outputs, body) = body.split_once('|').unwrap();
    let whole = format!(
        "graph @g(%x: f32[2, 2, 6, 5]) -> ({outputs}) {{
        %w0 = const rand(1) : f32[18, 3]
        %w0s = const [0.131, 0.149, 0.113] : f32[3]
        %w0q = fake_quant %w0, %w0s {{s4, lo = -7, axis = 1}} : f32[18, 3]
        %b0 = const rand(2) : f32[3]
        %w1 = const rand(3) : f32[3, 3]
        %w1s = const [0.0093, 0.0087, 0.0102] : f32[3]
        %w1q = fake_quant %w1, %w1s {{s8, lo = -127, axis = 1}} : f32[3, 3]
        %b1 = const rand(4) : f32[3]
        %s = const [0.0173] : f32[]
        %t = const [0.0311] : f32[]
        %v = const [0.213] : f32[]
        %z = const [3] : i32[]
        %xq = fake_quant %x, %s {{s8}} : f32[2, 2, 6, 5]
        %u = unfold %xq {{out = [2, 2, 3, 5], size = [1, 1, 3, 3], stride = [1, 1, 2, 1], pad = [0, 0, 1, 1]}}
            : f32[2, 2, 3, 5, 3, 3]
        %ut = transpose %u {{perm = [0, 2, 3, 1, 4, 5]}} : f32[2, 3, 5, 2, 3, 3]
        %r = reshape %ut : f32[2, 3, 5, 18]
        %l = linear %r, %w0q, %b0 : f32[2, 3, 5, 3]
        {body} }}"
    );
    text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{whole}"))
}

#[test]
fn convolutions_pools_and_sums_are_those_of_the_lowered_graph() {
    for (what, body) in [
        ("a convolution", "%y | %a = relu %l : f32[2, 3, 5, 3] %q = fake_quant %a, %v {u4} : f32[2, 3, 5, 3]
            %y = linear %q, %w1q, %b1 : f32[2, 3, 5, 3]"),
        ("a pool with a zero point", "%y, %m | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3]
            %p = unfold %q {out = [2, 2, 3, 3], size = [1, 2, 2, 1], stride = [1, 2, 2, 1], pad = [0, 1, 1, 0], fill = -inf}
                : f32[2, 2, 3, 3, 2, 2]
            %m = reduce_max %p {axes = [4, 5]} : f32[2, 2, 3, 3] %y = linear %m, %w1q, %b1 : f32[2, 2, 3, 3]"),
        ("windows of zeros with a zero point", "%y | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3]
            %p = unfold %q {out = [2, 3, 7, 3], pad = [0, 0, 1, 0]} : f32[2, 3, 7, 3]
            %y = linear %p, %w1q, %b1 : f32[2, 3, 7, 3]"),
        ("a mean", "%y | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3] %m = reduce_mean %q {axes = [1, 2]} : f32[2, 3]
            %a = relu %m : f32[2, 3] %n = fake_quant %a, %s {u8} : f32[2, 3] %y = linear %n, %w1q, %b1 : f32[2, 3]"),
        ("a sum over windows", "%y | %q = fake_quant %l, %v {s4} : f32[2, 3, 5, 3]
            %p = unfold %q {out = [2, 2, 4, 3], size = [1, 2, 2, 1]} : f32[2, 2, 4, 3, 2, 2]
            %m = reduce_sum %p {axes = [4, 5]} : f32[2, 2, 4, 3] %n = fake_quant %m, %v {s8} : f32[2, 2, 4, 3]
            %y = linear %n, %w1q, %b1 : f32[2, 2, 4, 3]"),
        ("a table behind a pool", "%y | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3]
            %p = unfold %q {out = [2, 3, 4, 2], size = [1, 1, 2, 2], fill = -inf} : f32[2, 3, 4, 2, 2, 2]
            %m = reduce_max %p {axes = [4, 5]} : f32[2, 3, 4, 2] %a = relu %m : f32[2, 3, 4, 2]
            %n = fake_quant %a, %v {u4} : f32[2, 3, 4, 2]
            %d = slice %n {start = [0, 0, 0, 0], len = [2, 3, 4, 1]} : f32[2, 3, 4, 1]
            %c = concat %n, %d {axis = 3} : f32[2, 3, 4, 3] %y = linear %c, %w1q, %b1 : f32[2, 3, 4, 3]"),
        ("a residual sum", "%y | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3]
            %k = linear %q, %w1q, %b1 : f32[2, 3, 5, 3] %sum = add %q, %k : f32[2, 3, 5, 3]
            %a = relu %sum : f32[2, 3, 5, 3] %n = fake_quant %a, %v {u4} : f32[2, 3, 5, 3]
            %y = linear %n, %w1q, %b1 : f32[2, 3, 5, 3]"),
        ("a sum of codes that spread", "%y | %q = fake_quant %l, %t, %z {u8} : f32[2, 3, 5, 3]
            %g = slice %q {start = [0, 1, 0, 0], len = [2, 1, 5, 3]} : f32[2, 1, 5, 3]
            %sum = add %g, %q : f32[2, 3, 5, 3] %n = fake_quant %sum, %v {s4} : f32[2, 3, 5, 3]
            %y = linear %n, %w1q, %b1 : f32[2, 3, 5, 3]"),
        ("a concatenation", "%y | %q = fake_quant %l, %t {s8} : f32[2, 3, 5, 3] %k = linear %q, %w1q, %b1 : f32[2, 3, 5, 3]
            %n = fake_quant %k, %t {s8} : f32[2, 3, 5, 3] %c = concat %n, %q {axis = 2} : f32[2, 3, 10, 3]
            %y = linear %c, %w1q, %b1 : f32[2, 3, 10, 3]"),
        ("a lookup of codes", "%y | %q = fake_quant %l, %t {s8} : f32[2, 3, 5, 3] %i = const [2, 0, -1] : i64[3]
            %g = gather %q, %i {axis = 2} : f32[2, 3, 3, 3] %y = linear %g, %w1q, %b1 : f32[2, 3, 3, 3]"),
    ] {
        let graph = image_text(body);
        let inputs = BTreeMap::from([("x".to_owned(), random(&[2, 2, 6, 5], 9, 1.0))]);
        for threads in [1, 2] {
            assert!(compare(&graph, &inputs, threads) > 0, "{what}");
        }
    }
}

#[test]
fn a_convolutional_policy_trains_on_the_codes_of_its_artifact() {
    for cnn in [cnn::SMALL, cnn::Cnn { batch: 7, image: [3, 13, 11], channels: [8, 8], stride: 2, actions: 2 }] {
        let mut graph = cnn.graph();
        // The loss is no part of a policy.
        graph.outputs.truncate(1);
        let [c, h, w] = cnn.image;
        let mut inputs = BTreeMap::from([("x".to_owned(), random(&[cnn.batch, c, h, w], 9, 0.7))]);
        inputs.insert("t".to_owned(), random(&[cnn.batch, cnn.actions], 10, 0.7));
        let n = compare(&graph, &inputs, 1);
        let region = Region::of(&graph).unwrap();
        assert!(region.float_layers.is_empty() && region.layers.len() == 3);
        let from = |is: fn(&CodesFrom) -> bool| region.quantizers.values().filter(|q| is(&q.from)).count();
        assert_eq!(from(|from| matches!(from, CodesFrom::Add(_))), 1);
        assert_eq!(from(|from| matches!(from, CodesFrom::Sum(_))), 1);
        assert!(n > cnn.batch * 9 * h, "{n}");
    }
}

const HOPPER: Mlp = Mlp {
    widths: &[11, 64, 64, 3],
    act: UnaryFn::Tanh,
    last: Some(UnaryFn::Clip { min: -1.0, max: 1.0 }),
    normalizer: true,
};
const CHEETAH: Mlp = Mlp { widths: &[17, 256, 256, 6], act: UnaryFn::Relu, last: None, normalizer: false };
const GO1: Mlp = Mlp { widths: &[20, 96, 48, 12], act: UnaryFn::Silu, last: Some(UnaryFn::Tanh), normalizer: true };
/// Sums of 8-bit codes that leave the 24 bits of an `f32`.
const WIDE: Mlp = Mlp { widths: &[9, 700, 8, 3], act: UnaryFn::Relu, last: None, normalizer: false };

fn prepared(mlp: &Mlp, precision: Precision, edge_bits: u8) -> Graph {
    let options = PipelineOptions { edge_bits, trains: true, ..PipelineOptions::new(precision) };
    let samples = mlp.samples(2, 60);
    let mut cx = PassContext::with_samples(&samples);
    let mut graph = mlp.graph(1);
    PassManager::new(pipeline::prepare(&options)).run(&mut graph, &mut cx).unwrap();
    graph
}

fn observations(mlp: &Mlp, seed: u64, n: usize) -> BTreeMap<String, Tensor> {
    let all: Vec<f32> = mlp.samples(seed, n).iter().flat_map(|sample| floats(&sample["obs"]).to_vec()).collect();
    BTreeMap::from([("obs".to_owned(), Tensor::f32([n, mlp.widths[0]], all))])
}

#[test]
fn calibrated_policies_agree_in_every_code_and_action() {
    for mlp in [&HOPPER, &CHEETAH, &GO1, &WIDE] {
        for (precision, edge_bits) in
            [(Precision::W8A8, 8), (Precision::W4A8, 8), (Precision::W4A4, 8), (Precision::W4A4, 4)]
        {
            let graph = prepared(mlp, precision, edge_bits);
            let mut n = 0;
            // A ragged last batch.
            for (seed, batch) in [(3, 40), (4, 13)] {
                n += compare(&with_batch(&graph, batch), &observations(mlp, seed, batch), 1);
            }
            assert!(n > 53 * mlp.widths[0]);
        }
    }
}

/// Samples of one row as one batch.
fn stacked(samples: &[BTreeMap<String, Tensor>]) -> BTreeMap<String, Tensor> {
    let stack = |(name, first): (&String, &Tensor)| {
        let mut ty = first.ty.clone();
        ty.shape[0] = samples.len();
        let all = || samples.iter().map(|sample| &sample[name]);
        let tensor = if ty.is_f32() {
            Tensor::f32(ty.shape, all().flat_map(|x| floats(x).to_vec()).collect())
        } else {
            Tensor::ints(ty, all().flat_map(|x| ints(x).to_vec()).collect())
        };
        (name.clone(), tensor)
    };
    samples[0].iter().map(stack).collect()
}

#[test]
fn calibrated_networks_agree_in_every_code_and_action() {
    for graph in [image_of_floats(), image_of_bytes(), separable()] {
        for precision in [Precision::W8A8, Precision::W4A8, Precision::W4A4] {
            let options = PipelineOptions { trains: true, ..PipelineOptions::new(precision) };
            let data = samples(&graph, 1, 20);
            let mut cx = PassContext::with_samples(&data);
            let mut prepared = graph.clone();
            PassManager::new(pipeline::prepare(&options)).run(&mut prepared, &mut cx).unwrap();
            rebatch(&mut prepared, 5).unwrap();
            let region = Region::of(&prepared).unwrap();
            assert_eq!((region.layers.len(), region.float_layers.len()), (5, 0), "{precision}");
            assert!(compare(&prepared, &stacked(&samples(&graph, 7, 5)), 2) > 5 * 300);
        }
    }
}

#[test]
fn changed_constants_are_those_of_the_lowered_graph() {
    let mut graph = with_batch(&prepared(&GO1, Precision::W4A4, 8), 16);
    let keep = coded(&graph);
    let inputs = observations(&GO1, 5, 16);
    let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep: keep.clone() }).unwrap();
    let mut rng = Rng(11);
    for _ in 0..5 {
        let constants: Vec<ValueId> = graph.nodes().map(|id| id.value()).collect();
        for value in constants {
            let Op::Const(c) = graph.op(value).clone() else { continue };
            // Steps of entries are folded and stay; all others move.
            let old = graph.constant(c.id).all_f32().unwrap();
            if !graph.ty(value).is_f32() || old == [1.0] || graph.node(value.node).name.contains(".r") {
                continue;
            }
            let new: Vec<f32> = old.iter().map(|x| (f64::from(*x) * (1.0 + 0.1 * rng.uniform())) as f32).collect();
            graph.set_const(c.id, Constant::f32(graph.ty(value).shape.clone(), &new)).unwrap();
            executor.set(value, &new).unwrap();
        }
        executor.run(&[("obs", floats(&inputs["obs"]))]).unwrap();
        let (integer, zeros) = lower(&graph);
        let values = interp::run_all(&integer, &inputs).unwrap();
        for (value, tensor) in &values {
            let name = &integer.node(value.node).name;
            let Some(&zero) = zeros.get(name) else { continue };
            let old = keep.iter().find(|old| &graph.node(old.node).name == name).unwrap();
            let expected: Vec<f32> = ints(tensor).iter().map(|&code| (code - i64::from(zero)) as f32).collect();
            assert_eq!(executor.codes(*old).unwrap(), expected, "{name}");
        }
        let expected = floats(&values[&integer.outputs[0].value]);
        assert_eq!(executor.read(graph.outputs[0].value).unwrap(), expected);
    }
}

#[test]
fn weights_are_the_codes_of_the_artifact() {
    let graph = prepared(&HOPPER, Precision::W4A4, 8);
    let quantizers: Vec<ValueId> = Region::of(&graph).unwrap().layers.values().map(|layer| layer.quantizer).collect();
    let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep: quantizers.clone() }).unwrap();
    executor.run(&[("obs", &[0.5; 11])]).unwrap();
    let (integer, _) = lower(&graph);
    for value in quantizers {
        let name = &graph.node(value.node).name;
        let lowered = integer.nodes().find(|id| &integer.node(*id).name == name).unwrap();
        let expected = integer.const_of(lowered.value()).unwrap().all_f32().unwrap();
        assert_eq!(executor.codes(value).unwrap(), expected, "{name}");
    }
}

#[test]
fn numbers_without_integers_are_refused_by_name() {
    let graph = text_of(
        "%y | %r = relu %l : f32[1, 6] %q = fake_quant %r, %v {u4} : f32[1, 6]
        %y = linear %q, %w1q, %b1 : f32[1, 4]",
        2,
    );
    let constant = |name: &str| graph.nodes().find(|id| graph.node(*id).name == name).unwrap().value();
    let x = [0.3f32; 10];
    let message = |name: &str, elements: &[f32]| {
        let mut executor = CpuExecutor::new(&graph, &CpuOptions::default()).unwrap();
        let result = executor.set(constant(name), elements).and_then(|()| executor.run(&[("x", &x)]));
        assert!(matches!(executor.read(constant("y")), Err(ExecError::NotRun)));
        result.unwrap_err().to_string()
    };
    let found = message("v", &[-0.5]);
    assert!(found.starts_with("quantizer `q` has step -0.5 at index 0, expected a positive normal number"), "{found}");
    let found = message("w0s", &[0.1, 0.1, 0.0, 0.1, 0.1, 0.1]);
    assert!(found.starts_with("quantizer `w0q` has step 0 at index 2"), "{found}");
    let found = message("v", &[1e-30]);
    assert!(found.starts_with("node `l`: channel 0 needs the factor"), "{found}");
    let found = message("b0", &[0.0, 1e20, 0.0, 0.0, 0.0, 0.0]);
    assert!(found.starts_with("node `l`: channel 1 may reach"), "{found}");
    let found = message("w1", &[f32::NAN; 24]);
    assert!(found.starts_with("element 0 of `w1` is NaN: training diverged"), "{found}");
    let mut executor = CpuExecutor::new(&graph, &CpuOptions::default()).unwrap();
    let error = executor.run(&[("x", &[f32::NAN; 10])]).unwrap_err().to_string();
    assert_eq!(error, "node `xq`: element 0 is not a number and has no code");
}

#[test]
fn wrong_names_and_sizes_are_typed_errors() {
    let graph = text_of("%y | %y = relu %l : f32[1, 6]", 2);
    let constant = |name: &str| graph.nodes().find(|id| graph.node(*id).name == name).unwrap().value();
    let mut executor = CpuExecutor::new(&graph, &CpuOptions::default()).unwrap();
    let x = [0.0f32; 10];
    let mut message = |inputs: &[(&str, &[f32])]| executor.run(inputs).unwrap_err().to_string();
    assert_eq!(message(&[]), "input `x` is missing");
    assert_eq!(message(&[("obs", &x)]), "there is no input `obs`; the graph takes `x`");
    assert_eq!(message(&[("x", &x[..9])]), "`x` takes 10 elements, found 9");
    assert_eq!(message(&[("x", &x), ("x", &x)]), "input `x` is given twice");
    assert_eq!(executor.set(constant("b0"), &[0.0]).unwrap_err().to_string(), "`b0` takes 6 elements, found 1");
    let error = executor.set(constant("l"), &[0.0]).unwrap_err().to_string();
    assert_eq!(error, "`l` is not a constant of f32, so it cannot be set");
    assert!(matches!(executor.read(constant("y")), Err(ExecError::NotRun)));
    executor.run(&[("x", &x)]).unwrap();
    assert_eq!(executor.read(constant("y")).unwrap().len(), 12);
    assert_eq!(executor.read(constant("l")).unwrap_err().to_string(), "`l` was not kept: list it in the options");
    assert_eq!(executor.codes(constant("y")).unwrap_err().to_string(), "`y` has no codes: only quantizers do");
    let mut ints = Graph::new("g");
    let x = ints.add_input("x", TensorType::plain(DType::F64, [2]));
    ints.add_output("y", x);
    let error = CpuExecutor::new(&ints, &CpuOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "input `x` is f64[2]; inputs of training are f32 or whole numbers");
    assert!(matches!(ints.ty(x).elem, Elem::Plain(DType::F64)));
}
