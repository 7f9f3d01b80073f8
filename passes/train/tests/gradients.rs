//! Gradients against central differences of the interpreter, the shape of the
//! joint graph, and what is refused.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use insta::assert_snapshot;
use qail_ir::{Graph, NodeId, Op, interp::Tensor, text, verify};
use qail_train::differentiate;

use support::{run, value, with_loss};

/// Distinct numbers 0.2 apart, away from zero and from each other's kinks.
fn grid(n: usize, offset: f32) -> Vec<f32> {
    (0..n).map(|i| ((i * 11) % n) as f32 * 0.2 - (n / 2) as f32 * 0.2 + offset).collect()
}

/// Holds the gradients of `sum(y * c)` by every input to central differences.
///
/// With step `h`, the error of a difference is at most `h^2 / 6` times the third
/// derivative, bounded by 60 here, and the rounding of two results, each at most
/// 16 steps of 2^-24, divided by `h`.
fn check(lines: &str, positive: bool) {
    let header = lines.lines().next().unwrap();
    let body = &lines[header.len()..];
    let mut graph =
        text::parse(&format!("graph @g({header}) -> (%y) {{ {body} }}")).unwrap_or_else(|e| panic!("{e}\n{lines}"));
    let inputs: BTreeMap<String, Tensor> = graph
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, &id)| {
            let shape = graph.ty(id.value()).shape.clone();
            let numbers = grid(shape.iter().product(), 0.07 + 0.04 * i as f32);
            let numbers = numbers.into_iter().map(|x| if positive { x.abs() + 0.5 } else { x }).collect();
            (graph.node(id).name.clone(), Tensor::f32(shape, numbers))
        })
        .collect();
    let n = graph.ty(graph.outputs[0].value).n_elements();
    let c: Vec<f32> = grid(n, 0.03).into_iter().map(|c| c / 2.0).collect();
    let loss = with_loss(&mut graph, &c);
    let wrt: Vec<_> = graph.inputs().iter().map(|id| id.value()).collect();
    let joint = differentiate(&graph, loss, &wrt).unwrap_or_else(|error| panic!("{error}\n{lines}"));
    verify(&joint.graph).unwrap();
    let results = run(&joint.graph, &inputs);
    const H: f32 = 1.0 / 128.0;
    for (name, x) in &inputs {
        let gradient = &results[&format!("grad.{name}")];
        let elements = x.as_f32().unwrap();
        assert_eq!(gradient.len(), elements.len());
        for i in 0..elements.len() {
            let moved = |by: f32| {
                let mut elements = elements.to_vec();
                elements[i] += by;
                let mut inputs = inputs.clone();
                let step = f64::from(elements[i]);
                inputs.insert(name.clone(), Tensor::f32(x.ty.shape.clone(), elements));
                (run(&graph, &inputs)["y"].clone(), step)
            };
            let ((up, at_up), (down, at_down)) = (moved(H), moved(-H));
            let h = (at_up - at_down) / 2.0;
            let (mut slope, mut rounding, mut weight) = (0.0, 0.0, 0.0);
            for ((&up, &down), &c) in up.iter().zip(&down).zip(&c) {
                slope += f64::from(c) * (f64::from(up) - f64::from(down)) / (2.0 * h);
                rounding += f64::from((c * up).abs().max((c * down).abs())) * 16.0 * 2f64.powi(-24) / h;
                weight += if up == down { 0.0 } else { f64::from(c.abs()) };
            }
            let tolerance = h * h / 6.0 * 60.0 * weight + rounding + 1e-6;
            let exact = f64::from(gradient[i]);
            assert!((exact - slope).abs() <= tolerance, "{name}[{i}]: {exact}, slope {slope} +- {tolerance}\n{lines}");
        }
    }
}

#[test]
fn functions_of_one_number() {
    for f in ["relu %x", "leaky_relu %x {alpha = 0.1}", "elu %x {alpha = 1.3}", "tanh %x", "sigmoid %x", "silu %x"] {
        check(&format!("%x: f32[3, 5]\n%y = {f} : f32[3, 5]"), false);
    }
    for f in ["clip %x {min = -0.5, max = 0.74}", "abs %x", "neg %x", "exp %x"] {
        check(&format!("%x: f32[3, 3]\n%y = {f} : f32[3, 3]"), false);
    }
    for f in ["log %x", "sqrt %x", "reciprocal %x"] {
        check(&format!("%x: f32[7]\n%y = {f} : f32[7]"), true);
    }
}

#[test]
fn functions_of_two_numbers_broadcast() {
    for f in ["add", "sub", "mul", "min", "max"] {
        check(&format!("%a: f32[2, 1, 3], %b: f32[4, 1]\n%y = {f} %a, %b : f32[2, 4, 3]"), false);
    }
    for f in ["div", "pow"] {
        check(&format!("%a: f32[2, 3], %b: f32[]\n%y = {f} %a, %b : f32[2, 3]"), true);
        check(&format!("%a: f32[1, 3], %b: f32[2, 1]\n%y = {f} %a, %b : f32[2, 3]"), true);
    }
}

#[test]
fn products_of_matrices() {
    check("%a: f32[3, 4], %b: f32[4, 2]\n%y = matmul %a, %b : f32[3, 2]", false);
    check("%a: f32[2, 1, 3, 4], %b: f32[5, 4, 1]\n%y = matmul %a, %b : f32[2, 5, 3, 1]", false);
    check("%a: f32[3, 4], %b: f32[2, 4, 5]\n%y = matmul %a, %b : f32[2, 3, 5]", false);
    check("%a: f32[2, 2, 3, 4], %b: f32[4, 5]\n%y = matmul %a, %b : f32[2, 2, 3, 5]", false);
    for (x, y) in [("[4]", "[3]"), ("[2, 4]", "[2, 3]"), ("[2, 1, 4]", "[2, 1, 3]")] {
        let act = "{act = silu}";
        check(&format!("%x: f32{x}, %w: f32[4, 3], %b: f32[3]\n%y = linear %x, %w, %b {act} : f32{y}"), false);
    }
    for (x, k, n, groups, y) in [
        ("[2, 3, 6]", 2, 3, 3, "[2, 3, 3]"),
        ("[3, 4]", 2, 4, 2, "[3, 4]"),
        ("[4]", 1, 4, 4, "[4]"),
        ("[2, 6]", 3, 6, 2, "[2, 6]"),
    ] {
        let layer = format!("%y = linear %x, %w, %b {{act = tanh, groups = {groups}}} : f32{y}");
        check(&format!("%x: f32{x}, %w: f32[{k}, {n}], %b: f32[{n}]\n{layer}"), false);
    }
}

#[test]
fn movements_and_sums() {
    check("%x: f32[2, 6]\n%y = reshape %x : f32[3, 1, 4]", false);
    check("%x: f32[2, 3, 4]\n%y = transpose %x {perm = [2, 0, 1]} : f32[4, 2, 3]", false);
    check("%x: f32[3, 4]\n%y = slice %x {start = [2, 3], len = [2, 2], step = [-2, -3]} : f32[2, 2]", false);
    check("%a: f32[2, 1], %b: f32[2, 3]\n%y = concat %a, %b, %a {axis = 1} : f32[2, 5]", false);
    check("%x: f32[2, 1]\n%y = expand %x : f32[3, 2, 4]", false);
    for (axes, keep, shape) in [("[0, 2]", "", "[3]"), ("[1]", ", keep_dims", "[2, 1, 4]"), ("[0, 1, 2]", "", "[]")] {
        for f in ["reduce_sum", "reduce_mean", "reduce_min", "reduce_max"] {
            check(&format!("%x: f32[2, 3, 4]\n%y = {f} %x {{axes = {axes}{keep}}} : f32{shape}"), false);
        }
    }
    check("%x: f32[2, 3]\n%y = cast %x : f32[2, 3]", false);
}

#[test]
fn a_value_with_several_readers_gets_the_sum() {
    check(
        "%x: f32[2, 3]
        %h = tanh %x : f32[2, 3]
        %m = mul %h, %h : f32[2, 3]
        %n = sub %x, %h : f32[2, 3]
        %y = add %m, %n : f32[2, 3]",
        false,
    );
}

#[test]
fn more_functions_of_one_number() {
    for f in ["gelu", "gelu_tanh", "mish", "hard_swish", "softplus", "softsign", "erf", "sin", "atan", "asinh"] {
        check(&format!("%x: f32[3, 3]\n%y = {f} %x : f32[3, 3]"), false);
    }
    for f in ["swish %x {alpha = 1.702}", "hard_sigmoid %x {alpha = 0.3, beta = 0.5}", "celu %x {alpha = 0.7}"] {
        check(&format!("%x: f32[3, 3]\n%y = {f} : f32[3, 3]"), false);
    }
    for f in ["mod", "rem"] {
        check(&format!("%a: f32[2, 5], %b: f32[5]\n%y = {f} %a, %b : f32[2, 5]"), true);
    }
}

#[test]
fn choices_and_lookups() {
    check(
        "%a: f32[2, 1, 3], %b: f32[4, 1]\n%c = lt %a, %b : bool[2, 4, 3] %y = where %c, %b, %a : f32[2, 4, 3]",
        false,
    );
    // Indices from both ends, twice, and beyond the ends.
    let index = "%i = const [2, -1, 0, 2, 9, -9] : i64[2, 3]";
    check(&format!("%x: f32[4, 2]\n{index} %y = gather %x, %i {{axis = 0}} : f32[2, 3, 2]"), false);
    check(&format!("%x: f32[2, 4, 2]\n{index} %y = gather %x, %i {{axis = 1}} : f32[2, 2, 3, 2]"), false);
    check("%x: f32[2, 4]\n%i = const [1] : i32[] %y = gather %x, %i {axis = 1} : f32[2]", false);
    let computed = "%c = const [0.5] : f32[] %h = mul %x, %c : f32[2, 2] %n = floor %h : f32[2, 2]
        %i = cast %n : i64[2, 2]";
    check(&format!("%x: f32[2, 2]\n{computed} %y = gather %x, %i {{axis = 1}} : f32[2, 2, 2]"), false);
    for f in ["add", "replace", "mul", "min", "max"] {
        for index in ["[1, 0, 1, -1]", "[1, 5, 1, -9]"] {
            let line = format!("%i = const {index} : i32[4] %y = scatter %x, %i, %u {{f = {f}}} : f32[3, 2]");
            check(&format!("%x: f32[3, 2], %u: f32[4, 2]\n{line}"), false);
        }
    }
    check("%x: f32[2, 5, 2]\n%y = top_k %x {axis = 1, k = 3, largest} : f32[2, 3, 2]", false);
    check("%x: f32[2, 3]\n%y = top_k %x {axis = 0, k = 1} : f32[1, 3]", false);
    for (attributes, axis) in [("", 0), (", exclusive", 1), (", reverse", 2), (", exclusive, reverse", 1)] {
        check(&format!("%x: f32[2, 3, 2]\n%y = cum_sum %x {{axis = {axis}{attributes}}} : f32[2, 3, 2]"), false);
    }
}

#[test]
fn windows() {
    check(
        "%x: f32[2, 5]\n%y = unfold %x {out = [2, 3], size = [1, 3], stride = [1, 2], pad = [0, 1]} : f32[2, 3, 3]",
        false,
    );
    let spread = "size = [1, 2], dilation = [1, 2], spread = [1, 2], pad = [0, -1], fill = 3.0";
    check(&format!("%x: f32[2, 4]\n%y = unfold %x {{out = [2, 5], {spread}}} : f32[2, 5, 2]"), false);
    check(
        "%x: f32[1, 2, 4, 3], %w: f32[8, 3], %b: f32[3]
        %u = unfold %x {out = [1, 2, 3, 2], size = [1, 1, 2, 2]} : f32[1, 2, 3, 2, 2, 2]
        %t = transpose %u {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 3, 2, 2, 2, 2]
        %r = reshape %t : f32[1, 3, 2, 8] %y = linear %r, %w, %b : f32[1, 3, 2, 3]",
        false,
    );
}

#[test]
fn products_of_many_numbers() {
    check("%x: f32[2, 3]\n%y = reduce_prod %x {axes = [1]} : f32[2]", false);
    check("%x: f32[2, 3]\n%y = reduce_prod %x {axes = [0, 1], keep_dims} : f32[1, 1]", false);
    // One zero in the first row, two in the second.
    let zeros = "%m = const [1.0, 0.0, 1.0, 0.0, 1.0, 0.0] : f32[2, 3] %z = mul %x, %m : f32[2, 3]";
    check(&format!("%x: f32[2, 3]\n{zeros} %y = reduce_prod %z {{axes = [1]}} : f32[2]"), false);
}

#[test]
fn rows_of_transformers() {
    for attributes in ["axis = 0", "axis = 1", "axis = 1, log"] {
        check(&format!("%x: f32[3, 4]\n%y = softmax %x {{{attributes}}} : f32[3, 4]"), false);
    }
    for attributes in
        ["axes = [2], eps = 0.01, center", "axes = [1, 2], eps = 0.1", "axes = [0, 2], eps = 0.01, center"]
    {
        check(&format!("%x: f32[2, 3, 2]\n%y = normalize %x {{{attributes}}} : f32[2, 3, 2]"), false);
    }
    for (flag, angles) in
        [("", "[2, 1, 4]"), (" {interleaved}", "[2, 1, 4]"), ("", "[3, 1]"), (" {interleaved}", "[1]")]
    {
        let inputs = format!("%x: f32[2, 3, 4], %c: f32{angles}, %s: f32{angles}");
        check(&format!("{inputs}\n%y = rope %x, %c, %s{flag} : f32[2, 3, 4]"), false);
    }
    check("%x: f32[2, 3, 4], %a: f32[2, 3, 1], %b: f32[3, 1]\n%y = film %x, %a, %b : f32[2, 3, 4]", false);
    let attention = "attention %q, %k, %v";
    check(
        &format!(
            "%q: f32[1, 2, 2, 3], %k: f32[1, 2, 4, 3], %v: f32[1, 2, 4, 2]\n%y = {attention} {{scale = 0.3}} : f32[1, 2, 2, 2]"
        ),
        false,
    );
    check(
        &format!(
            "%q: f32[2, 4, 2, 2], %k: f32[2, 2, 3, 2], %v: f32[2, 2, 3, 1], %m: f32[4, 1, 3]\n
            %y = {attention}, %m {{scale = 0.3}} : f32[2, 4, 2, 1]"
        ),
        false,
    );
}

#[test]
fn conditions_and_indices_cut() {
    let graph = text::parse(
        "graph @g(%x: f32[3]) -> (%loss) {
            %i = arg_reduce %x {axis = 0, largest} : i64[] %k = top_k %x {axis = 0, k = 1, indices} : i64[1]
            %f = cast %i : f32[] %g = cast %k : f32[1] %y = add %f, %g : f32[1]
            %loss = reduce_sum %y {axes = [0]} : f32[] }",
    )
    .unwrap();
    let error = differentiate(&graph, value(&graph, "loss"), &[value(&graph, "x")]).unwrap_err().to_string();
    assert_eq!(error, "`x` has no gradient: node `i`, arg_reduce, cuts its path to the loss `loss`");
}

const MLP: &str = "graph @mlp(%x: f32[2, 3], %target: f32[2, 1]) -> (%y, %loss) {
    %w0 = const rand(1) : f32[3, 4]
    %b0 = const rand(2) : f32[4]
    %s0 = const splat(0.07) : f32[4]
    %w0q = fake_quant %w0, %s0 {s4, lo = -7, axis = 1} : f32[3, 4]
    %h = linear %x, %w0q, %b0 {act = relu} : f32[2, 4]
    %sh = const splat(0.11) : f32[]
    %hq = fake_quant %h, %sh {u4} : f32[2, 4]
    %w1 = const rand(3) : f32[4, 1]
    %b1 = const rand(4) : f32[1]
    %y = linear %hq, %w1, %b1 : f32[2, 1]
    %d = sub %y, %target : f32[2, 1]
    %square = mul %d, %d : f32[2, 1]
    %loss = reduce_mean %square {axes = [0, 1]} : f32[]
}";

fn joint(wrt: &[&str]) -> (Graph, Graph) {
    let graph = text::parse(MLP).unwrap();
    let wrt: Vec<_> = wrt.iter().map(|name| value(&graph, name)).collect();
    let joint = differentiate(&graph, value(&graph, "loss"), &wrt).unwrap();
    verify(&joint.graph).unwrap();
    (graph, joint.graph)
}

#[test]
fn the_joint_graph_of_a_quantized_policy() {
    assert_snapshot!(text::print(&joint(&["w0", "s0", "b0", "sh", "w1", "b1"]).1));
}

#[test]
fn ids_of_the_forward_graph_stay() {
    let (forward, joint) = joint(&["w0"]);
    for id in forward.nodes() {
        assert_eq!(forward.node(id).name, joint.node(id).name);
        assert_eq!(forward.node(id).outputs, joint.node(id).outputs);
    }
}

#[test]
fn nothing_is_computed_that_does_not_lead_to_a_parameter() {
    let (forward, joint) = joint(&["b1"]);
    let added: Vec<NodeId> = joint.nodes().filter(|&id| !forward.contains(id)).collect();
    let names: Vec<&str> = added.iter().map(|&id| joint.node(id).op.name()).collect();
    // The layer that was split, the loss back to `y`, and the sum over rows.
    assert_eq!(names, ["linear", "const", "const", "mul", "expand", "mul", "mul", "add", "reduce_sum"]);
    // The step of a quantizer does not need the gradient of what it quantizes.
    let (_, of_step) = self::joint(&["s0"]);
    assert_eq!(of_step.nodes().filter(|&id| of_step.node(id).op.name() == "fake_quant_grad").count(), 2);
    assert!(
        !of_step
            .nodes()
            .any(|id| matches!(&of_step.node(id).op, Op::MatMul(_)) && of_step.ty(id.value()).shape == [2, 3])
    );
}

fn error(lines: &str, wrt: &str) -> String {
    let graph = text::parse(&format!("graph @g(%x: f32[2], %i: i32[2]) -> () {{ {lines} }}")).unwrap();
    differentiate(&graph, value(&graph, "loss"), &[value(&graph, wrt)]).unwrap_err().to_string()
}

#[test]
fn what_has_no_gradient_is_named() {
    let sum = "%loss = reduce_sum %y {axes = [0]} : f32[]";
    assert_snapshot!(
        error(&format!("%c = cast %x : i32[2] %y = cast %c : f32[2] {sum}"), "x"),
        @"`x` has no gradient: node `c`, cast, cuts its path to the loss `loss`"
    );
    assert_snapshot!(
        error(&format!("%z = relu %x : f32[2] %y = cast %i : f32[2] {sum}"), "x"),
        @"`x` does not lead to the loss `loss`: leave it out of what is trained"
    );
    assert_snapshot!(
        error(&format!("%r = const splat(2.0) : f32[] %q = quantize %x, %r : qs8[2] %e = const splat(0.5) : f64[1] %y = dequantize %q, %e : f32[2] {sum}"), "x"),
        @"node `q`: quantize is not differentiable; differentiate before `lower-quant`, where quantizers are fake_quant"
    );
    assert_snapshot!(error(&format!("%y = cast %i : f32[2] {sum}"), "i"), @"`i` is i32[2]; only f32 has a gradient");
    assert_snapshot!(error("%loss = relu %x : f32[2]", "x"), @"the loss `loss` is f32[2], must be one number f32[]; reduce it first");
    assert_snapshot!(
        error(&format!("%d = cast %x : f64[2] %y = cast %d : f32[2] {sum}"), "x"),
        @"node `d`: cast is not differentiable; compute in f32"
    );
}

#[test]
fn a_cut_beside_another_path_is_no_error() {
    let graph = text::parse(
        "graph @g(%x: f32[2]) -> (%loss) {
            %c = cast %x : i32[2] %f = cast %c : f32[2] %y = mul %x, %f : f32[2]
            %loss = reduce_sum %y {axes = [0]} : f32[]
        }",
    )
    .unwrap();
    let joint = differentiate(&graph, value(&graph, "loss"), &[value(&graph, "x")]).unwrap();
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::f32([2], vec![2.5, -3.5]))]);
    assert_eq!(run(&joint.graph, &inputs)["grad.x"], [2.0, -3.0]);
}

#[test]
fn the_loss_itself_has_the_gradient_one() {
    let graph = text::parse("graph @g(%x: f32[]) -> (%x) { }").unwrap();
    let x = value(&graph, "x");
    let joint = differentiate(&graph, x, &[x]).unwrap();
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::f32([], vec![2.5]))]);
    assert_eq!(run(&joint.graph, &inputs)["grad.x"], [1.0]);
}
