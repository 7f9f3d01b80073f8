//! Conformance: plans on the CPU and on every adapter against the interpreter.
//!
//! Integer values are compared bit for bit. Shapes are odd and small, so that
//! software drivers stay quick; every shape is a kernel of its own, and their
//! compilation is most of the time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod common;

use common::{Rng, check, devices, graph, list, multipliers, plan};
use qail_artifact::Layout;
use qail_runtime::{DeviceSpec, RuntimeError, Session, TensorView, TensorViewMut};

/// The CPU and every adapter.
fn everywhere() -> Vec<DeviceSpec> {
    let mut all: Vec<DeviceSpec> = vec!["cpu:generic".parse().unwrap(), "cpu".parse().unwrap()];
    all.extend(devices());
    all
}

fn check_everywhere(source: &str, seed: u64, tolerance: f32) {
    let graph = graph(source);
    let plan = plan(&graph);
    for device in everywhere() {
        assert!(check(&graph, &plan, device, seed, tolerance) > 3, "{source}");
    }
}

/// Two quantized layers of random shapes and types, with one accumulator kept.
fn two_layers(seed: u64) -> String {
    let mut rng = Rng(seed);
    let rows = rng.range(1, 5);
    let (k, n, n2) = (rng.range(1, 70), rng.range(1, 40), rng.range(1, 11));
    // Codes of the entry: type, smallest and largest.
    let (entry, lo, hi, factor) = rng.pick(&[
        ("qs16", -32639i64, 32639i64, 4096),
        ("qs8", -128, 127, 32),
        ("qu8", 0, 255, 32),
        ("qs4", -8, 7, 2),
        ("qu4", 0, 15, 4),
    ]);
    let zero = if entry == "qs16" { 0 } else { rng.range(lo / 2, hi / 2) };
    // Type of the weights, largest code; the second layer has the other width.
    let (w0, w0_max, w1) = rng.pick(&[("qs4", 7.0, "qs8"), ("qs8", 127.0, "qs4"), ("qs2", 1.0, "qs3")]);
    let (hidden, h_lo, h_hi) = rng.pick(&[("qs8", -128i64, 127i64), ("qu8", 0, 255), ("qs4", -8, 7), ("qu4", 0, 15)]);
    let h_zero = rng.range(0, 3);
    let spread = |max: f64, size: i64| max * size as f64 * (k as f64).sqrt() / 3.0;
    let (m, s) = multipliers(&mut rng, n as usize, spread(w0_max, hi.min(8000)), if h_hi > 15 { 100.0 } else { 8.0 });
    let bias = list((0..n).map(|_| rng.range(-2000, 2000)));
    let table = rng.range(0, 1) == 1;
    let behind = if table {
        // The table is indexed by an 8-bit code of either sign.
        let index = rng.pick(&["qs8", "qu8"]);
        format!(
            "%pre = requantize %acc0, %m, %s {{zero_point = {h_zero}}} : {index}[{rows}, {n}]
             %t = const rand({seed}) : {hidden}[256]
             %h = lookup %pre, %t : {hidden}[{rows}, {n}]"
        )
    } else {
        let (lo, hi) = if rng.range(0, 1) == 1 { (h_lo, h_hi) } else { (h_lo / 2, h_hi - 1) };
        format!("%h = requantize %acc0, %m, %s {{lo = {lo}, hi = {hi}, zero_point = {h_zero}}} : {hidden}[{rows}, {n}]")
    };
    format!(
        "graph @two(%obs: f32[{rows}, {k}]) -> (action = %y, raw = %acc1) {{
           %r = const splat({factor}) : f32[{k}]
           %q = quantize %obs, %r {{lo = {lo}, hi = {hi}, zero_point = {zero}}} : {entry}[{rows}, {k}]
           %w0 = const rand({seed}) : {w0}[{k}, {n}]
           %b0 = const {bias} : i32[{n}]
           %acc0 = qlinear %q, %w0, %b0 : i32[{rows}, {n}]
           %m = const {m} : i32[{n}]
           %s = const {s} : i32[{n}]
           {behind}
           %w1 = const rand({seed}) : {w1}[{n}, {n2}]
           %b1 = const splat(-17) : i32[{n2}]
           %acc1 = qlinear %h, %w1, %b1 : i32[{rows}, {n2}]
           %e = const splat(0.001) : f64[1]
           %y = dequantize %acc1, %e : f32[{rows}, {n2}]
         }}",
    )
}

#[test]
fn quantized_layers_agree_on_every_code() {
    for seed in 0..16 {
        check_everywhere(&two_layers(seed), seed, 0.0);
    }
}

#[test]
fn extreme_accumulators_are_requantized_exactly() {
    // Weights of zero: the accumulators are the biases. Every shift meets
    // mantissas and accumulators at their ends, saturation beyond 32 bits included.
    let accs = [2_147_483_647, -2_147_483_647, 1 << 30, -(1 << 30), 65_536, -65_535, 1, -1, 0];
    let mantissas = [32_769, 65_535, 40_001];
    let n = 62 * 9;
    let bias = list((0..n).map(|i| accs[i as usize % 9]));
    let m = list((0..n).map(|i| mantissas[i as usize / 9 % 3]));
    let s = list((0..n).map(|i| 1 + i / 9));
    for (codes, zero) in [("qs8", -100), ("qu8", 200)] {
        check_everywhere(
            &format!(
                "graph @extreme(%obs: f32[1, 1]) -> (%y) {{
                   %r = const splat(1.0) : f32[]
                   %q = quantize %obs, %r : qs8[1, 1]
                   %w = const splat(0) : qs8[1, {n}]
                   %b = const {bias} : i32[{n}]
                   %a = qlinear %q, %w, %b : i32[1, {n}]
                   %m = const {m} : i32[{n}]
                   %s = const {s} : i32[{n}]
                   %h = requantize %a, %m, %s {{zero_point = {zero}}} : {codes}[1, {n}]
                   %w1 = const rand(1) : qs8[{n}, 1]
                   %b1 = const [0] : i32[1]
                   %a1 = qlinear %h, %w1, %b1 : i32[1, 1]
                   %e = const splat(1.0) : f64[1]
                   %y = dequantize %a1, %e : f32[1, 1]
                 }}"
            ),
            0,
            0.0,
        );
    }
}

#[test]
fn many_plans_agree_on_the_cpu() {
    let mut n_different = 0;
    for seed in 100..160 {
        let graph = graph(&two_layers(seed));
        n_different += check(&graph, &plan(&graph), "cpu".parse().unwrap(), seed, 0.0);
    }
    assert!(n_different > 60 * 100, "{n_different} different numbers: the shapes test too little");
}

#[test]
fn accumulators_with_many_readers_and_moved_codes_agree() {
    check_everywhere(
        "graph @moved(%obs: f32[3, 10]) -> (%y, %z, %x) {
           %r = const splat(16.0) : f32[]
           %q = quantize %obs, %r : qu8[3, 10]
           %w = const rand(1) : qs4[10, 6]
           %b = const splat(5) : i32[6]
           %a = qlinear %q, %w, %b : i32[3, 6]
           %m = const splat(40001) : i32[6]
           %s = const [20, 21, 22, 23, 24, 25] : i32[6]
           %p = requantize %a, %m, %s {zero_point = 7} : qs8[3, 6]
           %t = const rand(2) : qs8[256]
           %u = lookup %p, %t : qs8[3, 6]
           %c = concat %p, %u, %p {axis = 1} : qs8[3, 18]
           %d = transpose %c {perm = [1, 0]} : qs8[18, 3]
           %f = slice %d {start = [17, 1], len = [6, 2], step = [-3, 1]} : qs8[6, 2]
           %g = reshape %f : qs8[1, 12]
           %h = reshape %g : qs8[3, 4]
           %w1 = const rand(3) : qs8[4, 3]
           %b1 = const [1, 2, 3] : i32[3]
           %a1 = qlinear %h, %w1, %b1 : i32[3, 3]
           %e = const splat(0.1) : f64[1]
           %y = dequantize %a1, %e : f32[3, 3]
           %z = dequantize %a, %e : f32[3, 6]
           %x = dequantize %u, %e : f32[3, 6]
         }",
        3,
        0.0,
    );
}

#[test]
fn a_float_island_between_two_regions_agrees() {
    // Every float operation here is exact, so the second region sees equal codes.
    check_everywhere(
        "graph @twice(%obs: f32[2, 9]) -> (%y, sum = %z) {
           %r = const splat(16.0) : f32[]
           %q = quantize %obs, %r : qs8[2, 9]
           %w = const rand(1) : qs8[9, 5]
           %b = const splat(3) : i32[5]
           %a = qlinear %q, %w, %b : i32[2, 5]
           %e = const splat(0.000244140625) : f64[1]
           %f = dequantize %a, %e : f32[2, 5]
           %g = abs %f : f32[2, 5]
           %h = slice %obs {start = [0, 2], len = [2, 5]} : f32[2, 5]
           %i = max %g, %h : f32[2, 5]
           %q1 = quantize %i, %r : qu8[2, 5]
           %w1 = const rand(2) : qs4[5, 7]
           %b1 = const splat(-3) : i32[7]
           %a1 = qlinear %q1, %w1, %b1 : i32[2, 7]
           %y = dequantize %a1, %e : f32[2, 7]
           %z = add %f, %h : f32[2, 5]
         }",
        11,
        0.0,
    );
}

#[test]
fn curved_functions_between_codes_have_the_same_bits_everywhere() {
    // A gate, a norm and windows between two products: only host code surrounds them.
    check_everywhere(
        "graph @gates(%obs: f32[2, 9], %c: f32[2, 5]) -> (%y, state = %k) {
           %r = const splat(16.0) : f32[]
           %q = quantize %obs, %r : qs8[2, 9]
           %w = const rand(1) : qs8[9, 5]
           %b = const splat(3) : i32[5]
           %a = qlinear %q, %w, %b : i32[2, 5]
           %e = const splat(0.0003) : f64[1]
           %f = dequantize %a, %e : f32[2, 5]
           %s = sigmoid %f : f32[2, 5]
           %k = mul %s, %c : f32[2, 5]
           %t = tanh %k : f32[2, 5]
           %n = normalize %t {axes = [1], eps = 1e-5, center} : f32[2, 5]
           %m = softmax %n {axis = 1} : f32[2, 5]
           %large = const splat(300.0) : f32[]
           %u = unfold %m {out = [2, 5], size = [1, 3], pad = [0, 1], fill = 0.3} : f32[2, 5, 3]
           %q1 = quantize %u, %large {zero_point = -128} : qs8[2, 5, 3]
           %x1 = reshape %q1 : qs8[2, 15]
           %w1 = const rand(2) : qs4[15, 7]
           %b1 = const splat(-3) : i32[7]
           %a1 = qlinear %x1, %w1, %b1 : i32[2, 7]
           %y = dequantize %a1, %e : f32[2, 7]
         }",
        13,
        0.0,
    );
}

#[test]
fn inputs_and_constants_may_be_outputs_and_have_readers_everywhere() {
    check_everywhere(
        "graph @ports(%obs: f32[2, 4], %unused: f32[3]) -> (same = %obs, again = %y, twice = %y, fixed = %b, flat = %n) {
           %w = const rand(1) : f32[4, 4]
           %b = const rand(2) : f32[4]
           %h = linear %obs, %w, %b {act = relu} : f32[2, 4]
           %i = linear %h, %w, %b : f32[2, 4]
           %y = add %i, %obs : f32[2, 4]
           %n = reshape %obs : f32[8]
         }",
        12,
        0.0,
    );
}

#[test]
fn float_products_agree_bit_for_bit_where_drivers_do_not_contract() {
    check_everywhere(
        "graph @float(%obs: f32[3, 37]) -> (%y) {
           %mean = const rand(9) : f32[37]
           %x = sub %obs, %mean : f32[3, 37]
           %w0 = const rand(1) : f32[37, 70]
           %b0 = const rand(2) : f32[70]
           %h = linear %x, %w0, %b0 {act = relu} : f32[3, 70]
           %w1 = const rand(3) : f32[70, 5]
           %b1 = const rand(4) : f32[5]
           %i = linear %h, %w1, %b1 {act = leaky_relu(0.1)} : f32[3, 5]
           %w2 = const rand(5) : f32[5, 3]
           %b2 = const rand(6) : f32[3]
           %y = linear %i, %w2, %b2 {act = tanh} : f32[3, 3]
         }",
        5,
        0.0,
    );
}

#[test]
fn weight_only_products_agree() {
    // The scales of the groups of 32 rows differ; 75 rows leave a short group.
    let scales = |n: i64| format!("[{}]", (1..=n).map(|i| format!("{}.{i}e-2", i % 7)).collect::<Vec<_>>().join(", "));
    let (s4, s8) = (scales(33), scales(9));
    check_everywhere(
        &format!(
            "graph @wq(%obs: f32[2, 75]) -> (%y) {{
           %w4 = const rand(1) : qs4[75, 11]
           %s4 = const {s4} : f32[3, 11]
           %b0 = const rand(3) : f32[11]
           %h = linear_wq %obs, %w4, %s4, %b0 {{group = 32, act = relu}} : f32[2, 11]
           %w8 = const rand(4) : qs8[11, 9]
           %s8 = const {s8} : f32[1, 9]
           %b1 = const rand(6) : f32[9]
           %y = linear_wq %h, %w8, %s8, %b1 {{group = 11}} : f32[2, 9]
         }}"
        ),
        6,
        0.0,
    );
}

#[test]
fn curved_functions_and_movement_agree_within_the_tolerance_of_drivers() {
    // tanh and exp of the drivers are within some 1e-7 of the host's.
    check_everywhere(
        "graph @island(%obs: f32[2, 3, 4]) -> (%y, %sum) {
           %w = const rand(1) : f32[4, 6]
           %b = const rand(2) : f32[6]
           %h = linear %obs, %w, %b {act = tanh} : f32[2, 3, 6]
           %t = transpose %h {perm = [0, 2, 1]} : f32[2, 6, 3]
           %mm = matmul %h, %t : f32[2, 3, 3]
           %mx = reduce_max %mm {axes = [2], keep_dims} : f32[2, 3, 1]
           %d = sub %mm, %mx : f32[2, 3, 3]
           %x = exp %d : f32[2, 3, 3]
           %s = reduce_sum %x {axes = [2], keep_dims} : f32[2, 3, 1]
           %p = div %x, %s : f32[2, 3, 3]
           %o = matmul %p, %h : f32[2, 3, 6]
           %two = const splat(2.0) : f32[]
           %c = pow %o, %two : f32[2, 3, 6]
           %g = sigmoid %c : f32[2, 3, 6]
           %f = reshape %g : f32[2, 18]
           %mean = reduce_mean %f {axes = [0, 1]} : f32[]
           %e = expand %mean : f32[2, 2]
           %j = concat %f, %e {axis = 1} : f32[2, 20]
           %w1 = const rand(3) : f32[20, 3]
           %b1 = const rand(4) : f32[3]
           %y = linear %j, %w1, %b1 : f32[2, 3]
           %sum = reduce_sum %y {axes = [0]} : f32[3]
         }",
        7,
        2e-6,
    );
}

#[test]
fn a_session_stays_usable_after_a_refused_input() {
    let graph = graph(
        "graph @one(%obs: f32[1, 2]) -> (%y) {
           %w = const [1.0, 2.0] : f32[2, 1]
           %b = const [0.5] : f32[1]
           %y = linear %obs, %w, %b : f32[1, 1]
         }",
    );
    let file = plan(&graph).to_file().unwrap();
    for device in everywhere() {
        let mut session = Session::load(file.clone(), device).unwrap();
        let mut y = [0.0f32];
        assert!(session.run(&[TensorView::F32(&[f32::NAN, 0.0])], &mut [TensorViewMut::F32(&mut y)]).is_err());
        session.run(&[TensorView::F32(&[1.0, 3.0])], &mut [TensorViewMut::F32(&mut y)]).unwrap();
        assert_eq!(y, [7.5]);
    }
}

#[test]
fn rows_beyond_one_axis_of_workgroups_agree() {
    // 65535 rows lie along y, the others along z.
    let graph = graph(
        "graph @tall(%obs: f32[65540, 1]) -> (%y) {
           %w = const [3.0] : f32[1, 1]
           %b = const [-5.0] : f32[1]
           %y = linear %obs, %w, %b : f32[65540, 1]
         }",
    );
    let plan = plan(&graph);
    for &device in devices() {
        check(&graph, &plan, device, 9, 0.0);
    }
}

#[test]
fn a_damaged_shader_is_a_typed_error() {
    let graph = graph(
        "graph @one(%obs: f32[1, 2]) -> (%y) {
           %w = const [1.0, 2.0] : f32[2, 1]
           %b = const [0.5] : f32[1]
           %y = linear %obs, %w, %b : f32[1, 1]
         }",
    );
    let damages: [fn(&str) -> String; 5] = [
        |_| "not a shader".to_owned(),
        |text| text.replace("fn main", "fn other"),
        |text| text.replace("@binding(1)", "@binding(7)"),
        |text| text.replace("var<storage, read> bias", "var<storage, read_write> bias"),
        |text| text.replace("@workgroup_size(64)", "@workgroup_size(1024)"),
    ];
    for damage in damages {
        let mut plan = plan(&graph);
        let kernel = plan.sections.iter_mut().find(|section| section.layout == Layout::Wgsl).unwrap();
        let text = String::from_utf8(kernel.bytes.to_vec("").unwrap()).unwrap();
        let damaged = damage(&text);
        assert_ne!(damaged, text);
        kernel.bytes = damaged.into_bytes().into();
        let file = plan.to_file().unwrap();
        for &device in devices() {
            match Session::load(file.clone(), device) {
                Err(RuntimeError::Step { step, .. }) => assert_eq!(step, "y"),
                other => panic!("{device}: {other:?}"),
            }
        }
    }
}
