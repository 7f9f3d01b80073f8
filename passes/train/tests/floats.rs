//! Float operations and whole backward passes against the interpreter, and
//! against themselves with other numbers of threads.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/cnn.rs"]
mod cnn;
#[path = "support/joint.rs"]
mod joint;

use std::collections::BTreeMap;

use qail_ir::{
    Graph, Op, ValueId,
    interp::{self, Tensor},
    text,
};
use qail_train::{CpuExecutor, CpuOptions, TrainExecutor};

fn number(i: usize) -> f32 {
    ((i.wrapping_mul(2_654_435_761) >> 7) % 20_011) as f32 / 10_005.0 - 1.0
}

fn inputs(graph: &Graph, seed: usize) -> BTreeMap<String, Tensor> {
    let one = |(i, &id): (usize, &qail_ir::NodeId)| {
        let ty = graph.ty(id.value()).clone();
        let elements = (0..ty.n_elements()).map(|j| number(j + 7919 * (i + seed))).collect();
        (graph.node(id).name.clone(), Tensor::f32(ty.shape, elements))
    };
    graph.inputs().iter().enumerate().map(one).collect()
}

fn execute(graph: &Graph, inputs: &BTreeMap<String, Tensor>, threads: usize) -> BTreeMap<String, Vec<f32>> {
    let mut executor = CpuExecutor::new(graph, &CpuOptions { threads, keep: Vec::new() }).unwrap();
    let given: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_f32().unwrap())).collect();
    // Twice: no run may see what the last one left.
    executor.run(&given).unwrap();
    executor.run(&given).unwrap();
    let read = |value: ValueId| executor.read(value).unwrap().to_vec();
    graph.outputs.iter().map(|output| (output.name.clone(), read(output.value))).collect()
}

/// `tolerance` is relative to the largest magnitude of the output.
fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}, element {i}: {a}, expected {b}");
    }
}

#[test]
fn float_operations_are_those_of_the_interpreter() {
    for body in [
        "%y = matmul %a, %b : f32[70, 90]",
        "%at = transpose %c {perm = [1, 0]} : f32[40, 70] %y = matmul %c, %at : f32[70, 70]",
        "%at = transpose %c {perm = [1, 0]} : f32[40, 70] %y = matmul %at, %c : f32[40, 40]",
        "%r = reshape %c : f32[5, 14, 40] %p = transpose %r {perm = [2, 0, 1]} : f32[40, 5, 14]
            %q = transpose %p {perm = [0, 2, 1]} : f32[40, 14, 5] %y = matmul %q, %p : f32[40, 14, 14]",
        "%r = reshape %b : f32[1, 4, 10, 90] %l = reshape %c : f32[14, 1, 20, 10]
            %y = matmul %l, %r : f32[14, 4, 20, 90]",
        "%y = linear %a, %b, %row {act = relu} : f32[70, 90]",
        "%y = linear %a, %b, %row {act = silu} : f32[70, 90]",
        "%w = slice %b {start = [0, 0], len = [4, 90], step = [1, 1]} : f32[4, 90]
            %y = linear %a, %w, %row {act = relu, groups = 10} : f32[70, 90]",
        "%w = slice %b {start = [0, 0], len = [1, 40], step = [1, 1]} : f32[1, 40]
            %r = slice %row {start = [3], len = [40], step = [1]} : f32[40]
            %y = linear %a, %w, %r {groups = 40} : f32[70, 40]",
        "%y = add %m, %row : f32[70, 90]",
        "%y = sub %row, %m : f32[70, 90]",
        "%y = div %m, %one : f32[70, 90]",
        "%y = div %one, %m : f32[70, 90]",
        "%y = pow %m, %two : f32[70, 90]",
        "%y = max %m, %row : f32[70, 90]",
        "%col = reduce_mean %m {axes = [1], keep_dims} : f32[70, 1] %y = sub %m, %col : f32[70, 90]",
        "%y = reduce_sum %m {axes = [0, 1]} : f32[]",
        "%y = reduce_mean %m {axes = [0]} : f32[90]",
        "%y = reduce_sum %m {axes = [1], keep_dims} : f32[70, 1]",
        "%r = reshape %m : f32[7, 10, 90] %y = reduce_sum %r {axes = [1]} : f32[7, 90]",
        "%y = reduce_max %m {axes = [0]} : f32[90]",
        "%y = expand %row : f32[3, 70, 90]",
        "%y = expand %one : f32[4, 5]",
        "%y = slice %m {start = [1, 80], len = [30, 10], step = [2, -3]} : f32[30, 10]",
        "%y = concat %m, %m {axis = 0} : f32[140, 90]",
        "%y = tanh %m : f32[70, 90]",
        "%y = unary_grad %m, %g {f = silu} : f32[70, 90]",
        "%y = unary_grad %m, %g {f = leaky_relu(0.1)} : f32[70, 90]",
        "%y = unary_grad %m, %g {f = clip(-0.5, 0.25)} : f32[70, 90]",
        "%y = binary_grad %m, %row, %g {f = max, wrt = 0} : f32[70, 90]",
        "%s = const splat(0.0713) : f32[] %y = fake_quant_grad %m, %s, %g {s4, lo = -7, wrt = 0} : f32[70, 90]",
        "%s = const splat(0.0713) : f32[] %y = fake_quant_grad %m, %s, %g {s4, lo = -7, wrt = 1} : f32[]",
        "%s = const splat(0.0713) : f32[] %z = const [3] : i32[]
            %y = fake_quant_grad %m, %s, %z, %g {u4, wrt = 1} : f32[]",
        "%s = const splat(0.0713) : f32[90] %y = fake_quant_grad %m, %s, %g {s4, axis = 1, wrt = 1} : f32[90]",
        "%s = const splat(0.0713) : f32[70] %y = fake_quant_grad %m, %s, %g {s4, axis = 0, wrt = 1} : f32[70]",
        "%s = const splat(0.0713) : f32[70] %y = fake_quant %m, %s {s8, axis = 0} : f32[70, 90]",
        "%i = cast %m : i64[70, 90] %y = cast %i : f32[70, 90]",
    ] {
        let whole = format!(
            "graph @g(%a: f32[70, 40], %b: f32[40, 90], %c: f32[70, 40], %m: f32[70, 90], %g: f32[70, 90],
            %row: f32[90]) -> (%y) {{ %one = const splat(0.7) : f32[] %two = const splat(2.0) : f32[] {body} }}"
        );
        let graph = text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{body}"));
        let inputs = inputs(&graph, 1);
        let expected = interp::run(&graph, &inputs).unwrap();
        let expected = expected["y"].as_f32().unwrap();
        let needed: BTreeMap<String, Tensor> = inputs;
        // A sum of up to n = 6300 terms in another order: at most n * 2^-24 of the
        // sum of magnitudes, which here is at most 100 times the largest sum.
        close(&execute(&graph, &needed, 1)["y"], expected, 1e-4, body);
    }
}

#[test]
fn movements_rows_and_choices_are_the_interpreter_to_the_last_bit() {
    for body in [
        "%y = transpose %x {perm = [0, 3, 1, 2]} : f32[3, 5, 4, 6]",
        "%y = transpose %x {perm = [1, 0, 2, 3]} : f32[4, 3, 6, 5]",
        "%y = slice %x {start = [0, 3, 1, 4], len = [3, 2, 5, 2], step = [1, -2, 1, -3]} : f32[3, 2, 5, 2]",
        "%t = transpose %x {perm = [3, 2, 1, 0]} : f32[5, 6, 4, 3] %r = reshape %t : f32[30, 12]
            %y = slice %r {start = [2, 1], len = [9, 11], step = [3, 1]} : f32[9, 11]",
        "%y = slice_grad %x {start = [1, 0, 5, 0], len = [3, 4, 6, 5], step = [1, 2, -1, 1]} : f32[4, 9, 7, 5]",
        "%r = reshape %x : f32[3, 4, 1, 30] %y = expand %r : f32[2, 3, 4, 7, 30]",
        "%i = const [3, -1, 0, 9] : i64[2, 2] %y = gather %x, %i {axis = 1} : f32[3, 2, 2, 6, 5]",
        "%f = floor %x : f32[3, 4, 6, 5] %c = cast %f : i64[3, 4, 6, 5]
            %s = slice %c {start = [0, 0, 0, 0], len = [1, 1, 6, 5]} : i64[1, 1, 6, 5] %i = reshape %s : i64[30]
            %y = gather %x, %i {axis = 2} : f32[3, 4, 30, 5]",
        "%y = unfold %x {out = [3, 4, 3, 4], size = [1, 1, 3, 2], stride = [1, 1, 2, 1], pad = [0, 0, 1, 0], fill = 7.0}
            : f32[3, 4, 3, 4, 3, 2]",
        "%u = unfold %x {out = [3, 4, 9, 5], size = [1, 1, 2, 2], dilation = [1, 1, 2, 1], spread = [1, 1, 2, 1],
                pad = [0, 0, 1, -1], fill = -inf} : f32[3, 4, 9, 5, 2, 2]
            %t = transpose %u {perm = [0, 2, 3, 1, 4, 5]} : f32[3, 9, 5, 4, 2, 2] %y = reshape %t : f32[135, 16]",
        "%u = unfold %x {out = [5, 4, 6, 5], pad = [1, 0, 0, 0]} : f32[5, 4, 6, 5]
            %y = unfold %u {out = [5, 4, 8, 5], pad = [0, 0, 1, 0], fill = 1.0} : f32[5, 4, 8, 5]",
        "%y = unfold_grad %x {out = [3, 4], size = [6, 5], stride = [2, 3]} : f32[10, 14]",
        "%r = reshape %x : f32[3, 4, 5, 6] %t = transpose %r {perm = [0, 1, 3, 2]} : f32[3, 4, 6, 5]
            %y = unfold_grad %t {out = [3, 4, 6], size = [1, 1, 5], pad = [0, 0, 2]} : f32[3, 4, 6]",
        "%y = concat %x, %row, %x {axis = 2} : f32[3, 4, 13, 5]",
        "%i = const [2, 0, -1, 2, 9] : i32[5] %u = slice %x {start = [0, 0, 0, 0], len = [1, 1, 5, 5]} : f32[1, 1, 5, 5]
            %v = reshape %u : f32[5, 5] %r = reshape %row : f32[12, 5] %y = scatter %r, %i, %v {f = add} : f32[12, 5]",
        "%i = const [2, 0] : i64[2] %u = slice %x {start = [0, 0, 0, 0], len = [2, 4, 6, 5]} : f32[2, 4, 6, 5]
            %y = scatter %x, %i, %u {f = replace} : f32[3, 4, 6, 5]",
        "%c = gt %x, %row : bool[3, 4, 6, 5] %y = where %c, %x, %col : f32[3, 4, 6, 5]",
        "%c = gt %col, %half : bool[4, 1, 1] %y = where %c, %half, %x : f32[3, 4, 6, 5]",
        "%y = softmax %x {axis = 3} : f32[3, 4, 6, 5]",
        "%y = softmax %x {axis = 1, log} : f32[3, 4, 6, 5]",
        "%y = normalize %x {axes = [2, 3], eps = 1e-5, center} : f32[3, 4, 6, 5]",
        "%y = normalize %x {axes = [1], eps = 1e-5} : f32[3, 4, 6, 5]",
        "%y = film %x, %col, %row : f32[3, 4, 6, 5]",
        "%y = film %x, %half, %col : f32[3, 4, 6, 5]",
        "%t = transpose %x {perm = [0, 1, 3, 2]} : f32[3, 4, 5, 6] %y = rope %t, %col, %half : f32[3, 4, 5, 6]",
        "%t = transpose %x {perm = [0, 1, 3, 2]} : f32[3, 4, 5, 6] %c = const rand(3) : f32[5, 6]
            %s = const rand(4) : f32[4, 1, 6] %y = rope %t, %c, %s {interleaved} : f32[3, 4, 5, 6]",
        "%y = reduce_max %x {axes = [2, 3]} : f32[3, 4]",
        "%y = reduce_min %x {axes = [0, 2], keep_dims} : f32[1, 4, 1, 5]",
        "%y = reduce_sum %x {axes = [1, 3]} : f32[3, 6]",
        "%y = reduce_mean %x {axes = [0, 2]} : f32[4, 5]",
        "%y = reduce_prod %x {axes = [3]} : f32[3, 4, 6]",
        "%g = reduce_sum %x {axes = [0, 1]} : f32[6, 5] %m = reduce_max %x {axes = [2, 3]} : f32[3, 4]
            %y = reduce_grad %x, %m {f = reduce_max, axes = [2, 3]} : f32[3, 4, 6, 5]",
        "%f = floor %x : f32[3, 4, 6, 5] %m = reduce_min %x {axes = [1]} : f32[3, 6, 5]
            %y = reduce_grad %f, %m {f = reduce_min, axes = [1]} : f32[3, 4, 6, 5]",
        "%y = sub %x, %col : f32[3, 4, 6, 5]",
        "%y = div %col, %x : f32[3, 4, 6, 5]",
        "%y = pow %col, %row : f32[3, 4, 1, 5]",
        "%y = binary_grad %x, %col, %x {f = div, wrt = 1} : f32[3, 4, 6, 5]",
        "%y = binary_grad %col, %x, %x {f = max, wrt = 0} : f32[3, 4, 6, 5]",
    ] {
        let whole = format!(
            "graph @g(%x: f32[3, 4, 6, 5], %row: f32[3, 4, 1, 5], %col: f32[4, 1, 1]) -> (%y) {{
            %half = const splat(0.25) : f32[] {body} }}"
        );
        let graph = text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{body}"));
        let inputs = inputs(&graph, 1);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let expected = interp::run(&graph, &inputs).unwrap();
        for threads in [1, 3] {
            let found = execute(&graph, &inputs, threads);
            assert_eq!(bits(&found["y"]), bits(expected["y"].as_f32().unwrap()), "{body}");
        }
    }
}

#[test]
fn attention_runs_as_its_products() {
    let text = "graph @g(%q: f32[2, 4, 3, 6], %k: f32[2, 2, 5, 6], %v: f32[2, 2, 5, 3], %m: f32[3, 5]) -> (%y) {
        %y = attention %q, %k, %v, %m {scale = 0.4} : f32[2, 4, 3, 3] }";
    let graph = text::parse(text).unwrap();
    let inputs = inputs(&graph, 2);
    let expected = interp::run(&graph, &inputs).unwrap();
    close(&execute(&graph, &inputs, 1)["y"], expected["y"].as_f32().unwrap(), 1e-6, "attention");
}

/// Every node of a graph from the executor's own operands; gives how many were checked.
fn check_nodes(graph: &Graph, skip: impl Fn(&Op) -> bool) -> usize {
    let inputs = inputs(graph, 3);
    let keep: Vec<ValueId> = graph.nodes().map(|id| id.value()).filter(|&value| graph.ty(value).is_f32()).collect();
    let mut executor = CpuExecutor::new(graph, &CpuOptions { threads: 1, keep }).unwrap();
    let given: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_f32().unwrap())).collect();
    executor.run(&given).unwrap();
    let mut n_checked = 0;
    for id in graph.topo() {
        let node = graph.node(id);
        if matches!(node.op, Op::Input(_) | Op::Const(_)) || skip(&node.op) {
            continue;
        }
        let operands: Vec<Tensor> = (graph.operands(id).into_iter())
            .map(|value| Tensor::f32(graph.ty(value).shape.clone(), executor.read(value).unwrap().to_vec()))
            .collect();
        let expected = interp::eval(node, &operands.iter().collect::<Vec<_>>()).unwrap();
        let found = executor.read(id.value()).unwrap();
        let magnitudes: f32 = match &node.op {
            Op::Grad(_) | Op::Reduce(_) | Op::MatMul(_) => operands
                .iter()
                .fold(1.0, |product, x| product * x.as_f32().unwrap().iter().map(|x| 1.0 + x.abs()).sum::<f32>()),
            _ => expected.as_f32().unwrap().iter().fold(0.0, |largest, x| x.abs().max(largest)),
        };
        for (a, b) in found.iter().zip(expected.as_f32().unwrap()) {
            assert!(a == b || (a - b).abs() <= 1e-6 * magnitudes, "{}: {a}, expected {b}", node.name);
        }
        n_checked += 1;
    }
    n_checked
}

#[test]
fn every_node_of_a_convolutional_backward_pass_is_that_of_the_interpreter() {
    // On codes: `law.rs` judges these. Windows of a pool show the lowest code, not an infinity.
    let on_codes = |op: &Op| matches!(op, Op::FakeQuant(_) | Op::Linear(_) | Op::Unfold(_));
    assert!(check_nodes(&cnn::SMALL.joint(), on_codes) > 40);
}

#[test]
fn a_convolutional_step_does_not_depend_on_threads_or_on_what_is_kept() {
    let graph = cnn::Cnn { batch: 37, image: [3, 21, 17], channels: [8, 8], stride: 2, actions: 4 }.joint();
    let inputs = inputs(&graph, 5);
    let bits = |outputs: BTreeMap<String, Vec<f32>>| -> BTreeMap<String, Vec<u32>> {
        outputs.into_iter().map(|(name, x)| (name, x.into_iter().map(f32::to_bits).collect())).collect()
    };
    let one = bits(execute(&graph, &inputs, 1));
    for gradient in ["grad.w0", "grad.w1", "grad.s0", "grad.s1"] {
        assert!(one[gradient].iter().any(|&x| x != 0), "{gradient}");
    }
    assert_eq!(bits(execute(&graph, &inputs, 3)), one);
}

#[test]
fn every_node_of_a_backward_pass_is_that_of_the_interpreter() {
    for (act, bits) in [("relu", 4), ("tanh", 8), ("silu", 8)] {
        let graph = joint::joint(37, &[7, 33, 20, 5], act, bits);
        let inputs = inputs(&graph, 3);
        let keep: Vec<ValueId> = graph.nodes().map(|id| id.value()).collect();
        let mut executor = CpuExecutor::new(&graph, &CpuOptions { threads: 1, keep }).unwrap();
        let given: Vec<(&str, &[f32])> = inputs.iter().map(|(name, x)| (name.as_str(), x.as_f32().unwrap())).collect();
        executor.run(&given).unwrap();
        let mut n_checked = 0;
        for id in graph.topo() {
            let node = graph.node(id);
            // On codes: `law.rs` judges these.
            if matches!(node.op, Op::Input(_) | Op::Const(_) | Op::FakeQuant(_) | Op::Linear(_)) {
                continue;
            }
            let operands: Vec<Tensor> = (graph.operands(id).into_iter())
                .map(|value| Tensor::f32(graph.ty(value).shape.clone(), executor.read(value).unwrap().to_vec()))
                .collect();
            let expected = interp::eval(node, &operands.iter().collect::<Vec<_>>()).unwrap();
            let found = executor.read(id.value()).unwrap();
            // A sum of n numbers in another order is off by at most n units of
            // the sum of magnitudes, in practice by the root of that. Codes have
            // magnitudes up to 15; operand 0 or the last one is what is summed.
            let magnitudes: f32 = match &node.op {
                Op::Grad(_) | Op::Reduce(_) => {
                    operands.last().unwrap().as_f32().unwrap().iter().map(|g| 15.0 * g.abs()).sum()
                }
                _ => expected.as_f32().unwrap().iter().fold(0.0, |largest, x| x.abs().max(largest)),
            };
            for (a, b) in found.iter().zip(expected.as_f32().unwrap()) {
                assert!((a - b).abs() <= 1e-6 * magnitudes, "{act}, {}: {a}, expected {b}", node.name);
            }
            n_checked += 1;
        }
        // The loss both ways, activations, gradients of layers, and what runs between layers.
        assert_eq!(n_checked, 8 + 2 + 3 * 8 + 2 * 2);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let graph = joint::joint(300, &[17, 256, 200, 6], "relu", 4);
    let inputs = inputs(&graph, 5);
    let bits = |threads: usize| -> BTreeMap<String, Vec<u32>> {
        let outputs = execute(&graph, &inputs, threads);
        outputs.into_iter().map(|(name, x)| (name, x.into_iter().map(f32::to_bits).collect())).collect()
    };
    let one = bits(1);
    assert!(one["grad.w1"].iter().any(|&x| x != 0));
    for threads in [2, 3] {
        assert_eq!(bits(threads), one, "{threads} threads");
    }
}
