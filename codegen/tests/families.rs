//! Operations of convolutional and transformer policies: plans on the CPU equal
//! the interpreter bit for bit, and on every adapter within the tolerance of its
//! functions; codes and integers are equal everywhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod common;

use common::{check, devices, graph, list, plan};
use qail_artifact::schema::step;

/// CPU exact, adapters within `tolerance`.
fn agree(source: &str, tolerance: f32) {
    let graph = graph(source);
    let plan = plan(&graph);
    for (seed, isa) in [(1, "cpu:generic"), (2, "cpu")] {
        assert!(check(&graph, &plan, isa.parse().unwrap(), seed, 0.0) > 3, "{source}");
    }
    for &device in devices() {
        check(&graph, &plan, device, 3, tolerance);
    }
}

fn n_steps(source: &str, of: impl Fn(&step::Op) -> bool) -> usize {
    let plan = plan(&graph(source));
    plan.manifest.entries[0].steps.iter().filter(|step| step.op.as_ref().is_some_and(&of)).count()
}

fn is_copy(op: &step::Op) -> bool {
    matches!(op, step::Op::Copy(_) | step::Op::Unfold(_))
}

/// Convolution 3 x 3 with padding and stride 2, ReLU, max pooling, head.
const CONV: &str = "graph @conv(%image: f32[2, 3, 9, 7]) -> (%y) {
    %u = unfold %image {out = [2, 3, 5, 4], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1]} : f32[2, 3, 5, 4, 3, 3]
    %t = transpose %u {perm = [0, 2, 3, 1, 4, 5]} : f32[2, 5, 4, 3, 3, 3]
    %r = reshape %t : f32[40, 27]
    %w = const rand(1) : f32[27, 5]
    %b = const rand(2) : f32[5]
    %c = linear %r, %w, %b {act = relu} : f32[40, 5]
    %n = reshape %c : f32[2, 5, 4, 5]
    %nchw = transpose %n {perm = [0, 3, 1, 2]} : f32[2, 5, 5, 4]
    %p = unfold %nchw {out = [2, 5, 2, 2], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1], fill = -inf} : f32[2, 5, 2, 2, 3, 3]
    %m = reduce_max %p {axes = [4, 5]} : f32[2, 5, 2, 2]
    %f = reshape %m : f32[2, 20]
    %w1 = const rand(3) : f32[20, 4]
    %b1 = const rand(4) : f32[4]
    %y = linear %f, %w1, %b1 : f32[2, 4]
}";

#[test]
fn a_convolutional_policy_agrees_and_its_windows_are_one_copy() {
    agree(CONV, 0.0);
    // The input goes to the device and the output comes back; between them are the
    // windows of the convolution, and those of the pooling together with the
    // transpose before them.
    assert_eq!(n_steps(CONV, is_copy), 4);
}

/// A quantized convolution: codes in, windows with a code as fill, codes out.
fn quantized_conv(entry: &str, lo: i64, hi: i64, fill: i64) -> String {
    let bias = list((0..5).map(|i| i * 100 - 200));
    format!(
        "graph @qconv(%image: f32[1, 3, 6, 5]) -> (%y) {{
           %r = const splat(16.0) : f32[]
           %q = quantize %image, %r {{lo = {lo}, hi = {hi}}} : {entry}[1, 3, 6, 5]
           %u = unfold %q {{out = [1, 3, 6, 5], size = [1, 1, 3, 3], pad = [0, 0, 1, 1], fill = {fill}.0}} : {entry}[1, 3, 6, 5, 3, 3]
           %t = transpose %u {{perm = [0, 2, 3, 1, 4, 5]}} : {entry}[1, 6, 5, 3, 3, 3]
           %x = reshape %t : {entry}[30, 27]
           %w = const rand(1) : qs8[27, 5]
           %b = const {bias} : i32[5]
           %a = qlinear %x, %w, %b : i32[30, 5]
           %m = const splat(40001) : i32[5]
           %s = const splat(26) : i32[5]
           %h = requantize %a, %m, %s {{lo = 3, zero_point = 3}} : qu8[30, 5]
           %n = reshape %h : qu8[1, 6, 5, 5]
           %c = transpose %n {{perm = [0, 3, 1, 2]}} : qu8[1, 5, 6, 5]
           %p = unfold %c {{out = [1, 5, 3, 2], size = [1, 1, 2, 2], stride = [1, 1, 2, 2], fill = 0.0}} : qu8[1, 5, 3, 2, 2, 2]
           %mp = reduce_max %p {{axes = [4, 5]}} : qu8[1, 5, 3, 2]
           %gp = qsum %mp {{axes = [2, 3], zero_point = 3}} : i32[1, 5]
           %f = reshape %mp : qu8[1, 30]
           %w1 = const rand(3) : qs4[30, 5]
           %b1 = const splat(7) : i32[5]
           %a1 = qlinear %f, %w1, %b1 : i32[1, 5]
           %e = const splat(0.001) : f64[1]
           %sum = dequantize %gp, %e : f32[1, 5]
           %z = dequantize %a1, %e : f32[1, 5]
           %y = add %sum, %z : f32[1, 5]
         }}"
    )
}

#[test]
fn quantized_convolutions_agree_on_every_code() {
    for (entry, lo, hi, fill) in [
        ("qs8", -128, 127, 0),
        ("qu8", 0, 255, 9),
        ("qs4", -8, 7, -3),
        ("qs16", -32639, 32639, 0),
        ("qs16", -32639, 32639, -300),
        ("qs16", -32768, 32639, -32768),
    ] {
        let source = quantized_conv(entry, lo, hi, fill);
        agree(&source, 0.0);
        assert_eq!(n_steps(&source, is_copy), 3, "{entry}");
    }
}

#[test]
fn codes_of_an_entry_may_be_cut_joined_and_compared() {
    // Shaders have no such steps for codes of 16 bits: they are host code.
    for (codes, lo, hi) in [("qs8", -128, 127), ("qs16", -32768, 32639)] {
        agree(
            &format!(
                "graph @entry(%x: f32[1, 4, 8, 2]) -> (%y) {{
                   %r = const splat(4096.0) : f32[]
                   %q = quantize %x, %r {{lo = {lo}, hi = {hi}}} : {codes}[1, 4, 8, 2]
                   %u = unfold %q {{out = [1, 2, 4, 2], size = [1, 2, 2, 1], stride = [1, 2, 2, 1], fill = {lo}}} : {codes}[1, 2, 4, 2, 2, 2]
                   %m = reduce_max %u {{axes = [4, 5]}} : {codes}[1, 2, 4, 2]
                   %n = reduce_min %u {{axes = [4, 5]}} : {codes}[1, 2, 4, 2]
                   %s = slice %m {{start = [0, 0, 1, 0], len = [1, 2, 3, 2]}} : {codes}[1, 2, 3, 2]
                   %c = concat %s, %n {{axis = 2}} : {codes}[1, 2, 7, 2]
                   %v = unfold %c {{out = [1, 2, 6, 2], size = [1, 1, 2, 1]}} : {codes}[1, 2, 6, 2, 2]
                   %f = reshape %v : {codes}[12, 4]
                   %w = const rand(1) : qs8[4, 5]
                   %b = const splat(3) : i32[5]
                   %a = qlinear %f, %w, %b : i32[12, 5]
                   %e = const splat(0.001) : f64[1]
                   %y = dequantize %a, %e : f32[12, 5]
                 }}"
            ),
            0.0,
        );
    }
}

#[test]
fn transposed_and_dilated_windows_agree() {
    agree(
        "graph @up(%x: f32[1, 2, 4, 3]) -> (%y, %z) {
           %u = unfold %x {out = [1, 2, 9, 7], size = [1, 1, 3, 3], pad = [0, 0, 2, 2], spread = [1, 1, 2, 2], fill = 0.5} : f32[1, 2, 9, 7, 3, 3]
           %t = transpose %u {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 9, 7, 2, 3, 3]
           %r = reshape %t : f32[63, 18]
           %w = const rand(1) : f32[18, 3]
           %b = const rand(2) : f32[3]
           %y = linear %r, %w, %b : f32[63, 3]
           %d = unfold %x {out = [1, 3, 2, 3], size = [1, 1, 2, 1], dilation = [1, 1, 2, 1], pad = [0, -1, 0, 1]} : f32[1, 3, 2, 3, 2]
           %z = reduce_sum %d {axes = [4]} : f32[1, 3, 2, 3]
         }",
        0.0,
    );
}

/// Attention with a mask, a layer norm, GELU, residuals.
const TRANSFORMER: &str = "graph @block(%x: f32[2, 5, 12], %keep: bool[2, 5]) -> (%y) {
    %n0 = normalize %x {axes = [2], eps = 1e-5, center} : f32[2, 5, 12]
    %wq = const rand(1) : f32[12, 12]
    %wk = const rand(2) : f32[12, 6]
    %wv = const rand(3) : f32[12, 6]
    %b0 = const rand(4) : f32[12]
    %b1 = const rand(5) : f32[6]
    %q0 = linear %n0, %wq, %b0 : f32[2, 5, 12]
    %k0 = linear %n0, %wk, %b1 : f32[2, 5, 6]
    %v0 = linear %n0, %wv, %b1 : f32[2, 5, 6]
    %q1 = reshape %q0 : f32[2, 5, 4, 3]
    %q = transpose %q1 {perm = [0, 2, 1, 3]} : f32[2, 4, 5, 3]
    %k1 = reshape %k0 : f32[2, 5, 2, 3]
    %k = transpose %k1 {perm = [0, 2, 1, 3]} : f32[2, 2, 5, 3]
    %v1 = reshape %v0 : f32[2, 5, 2, 3]
    %v = transpose %v1 {perm = [0, 2, 1, 3]} : f32[2, 2, 5, 3]
    %one = const splat(0.0) : f32[]
    %low = const splat(-100000.0) : f32[]
    %m0 = where %keep, %one, %low : f32[2, 5]
    %m = reshape %m0 : f32[2, 1, 1, 5]
    %a = attention %q, %k, %v, %m {scale = 0.57735} : f32[2, 4, 5, 3]
    %a1 = transpose %a {perm = [0, 2, 1, 3]} : f32[2, 5, 4, 3]
    %a2 = reshape %a1 : f32[2, 5, 12]
    %o = linear %a2, %wq, %b0 : f32[2, 5, 12]
    %h = add %o, %x : f32[2, 5, 12]
    %rms = normalize %h {axes = [2], eps = 1e-6} : f32[2, 5, 12]
    %f = linear %rms, %wq, %b0 {act = gelu} : f32[2, 5, 12]
    %g = gelu_tanh %f : f32[2, 5, 12]
    %s = softmax %g {axis = 1} : f32[2, 5, 12]
    %l = softmax %s {axis = 2, log} : f32[2, 5, 12]
    %y = linear %l, %wv, %b1 : f32[2, 5, 6]
}";

#[test]
fn a_transformer_block_agrees() {
    agree(TRANSFORMER, 2e-4);
}

/// Queries and keys turned by looked-up angles, one of them by neighbours; then modulated features.
const MODULATED: &str = "graph @modulated(%x: f32[2, 3, 8], %at: i64[1, 3], %g: f32[2, 4]) -> (%y) {
    %w = const rand(1) : f32[8, 8]
    %b = const rand(2) : f32[8]
    %table = const rand(3) : f32[16, 4]
    %shifted = const rand(4) : f32[16, 4]
    %c0 = gather %table, %at {axis = 0} : f32[1, 3, 4]
    %s0 = gather %shifted, %at {axis = 0} : f32[1, 3, 4]
    %cos = reshape %c0 : f32[1, 1, 3, 4]
    %sin = reshape %s0 : f32[1, 1, 3, 4]
    %q0 = linear %x, %w, %b : f32[2, 3, 8]
    %q1 = reshape %q0 : f32[2, 3, 2, 4]
    %q2 = transpose %q1 {perm = [0, 2, 1, 3]} : f32[2, 2, 3, 4]
    %q = rope %q2, %cos, %sin : f32[2, 2, 3, 4]
    %few = const [0.5, -0.25] : f32[2, 1, 1]
    %k = rope %q2, %sin, %few {interleaved} : f32[2, 2, 3, 4]
    %a = attention %q, %k, %q2 {scale = 0.5} : f32[2, 2, 3, 4]
    %wg = const rand(5) : f32[4, 4]
    %bg = const rand(6) : f32[4]
    %e = linear %g, %wg, %bg : f32[2, 4]
    %scale0 = slice %e {start = [0, 0], len = [2, 2]} : f32[2, 2]
    %shift0 = slice %e {start = [0, 2], len = [2, 2]} : f32[2, 2]
    %scale = reshape %scale0 : f32[2, 2, 1, 1]
    %shift = reshape %shift0 : f32[2, 2, 1, 1]
    %f = film %a, %scale, %shift : f32[2, 2, 3, 4]
    %h = film %f, %cos, %few : f32[2, 2, 3, 4]
    %wy = const rand(7) : f32[4, 3]
    %by = const rand(8) : f32[3]
    %y = linear %h, %wy, %by : f32[2, 2, 3, 3]
}";

#[test]
fn turned_rows_and_modulated_features_agree_and_are_one_kernel_each() {
    agree(MODULATED, 2e-5);
    assert_eq!(n_steps(MODULATED, |op| matches!(op, step::Op::Rope(_) | step::Op::Film(_))), 4);
    assert_eq!(n_steps(MODULATED, |op| matches!(op, step::Op::Binary(_))), 0);
}

#[test]
fn group_norms_over_several_axes_agree() {
    agree(
        "graph @norm(%x: f32[2, 4, 5, 3]) -> (%y) {
           %w = const rand(1) : f32[3, 3]
           %b = const rand(2) : f32[3]
           %h = linear %x, %w, %b : f32[2, 4, 5, 3]
           %g = reshape %h : f32[2, 2, 2, 5, 3]
           %n = normalize %g {axes = [2, 3, 4], eps = 1e-3, center} : f32[2, 2, 2, 5, 3]
           %m = normalize %n {axes = [1, 3], eps = 0.5} : f32[2, 2, 2, 5, 3]
           %f = reshape %m : f32[2, 4, 5, 3]
           %y = linear %f, %w, %b : f32[2, 4, 5, 3]
         }",
        2e-5,
    );
}

#[test]
fn every_function_agrees() {
    let functions = [
        ("gelu", 1e-5),
        ("gelu_tanh", 1e-5),
        ("mish", 1e-5),
        ("swish {alpha = 1.702}", 1e-5),
        ("hard_sigmoid {alpha = 0.2, beta = 0.5}", 1e-6),
        ("hard_swish", 1e-5),
        ("selu {alpha = 1.6732, gamma = 1.0507}", 1e-5),
        ("celu {alpha = 0.7}", 1e-5),
        ("softplus", 1e-5),
        ("softsign", 1e-6),
        ("erf", 1e-5),
        ("sin", 1e-5),
        ("cos", 1e-5),
        ("atan", 1e-3),
        ("sinh", 1e-5),
        ("cosh", 1e-5),
        ("asinh", 1e-5),
        ("floor", 1e-6),
        ("ceil", 1e-6),
        ("round", 1e-6),
        ("sign", 0.0),
        ("exp", 1e-5),
    ];
    for (f, tolerance) in functions {
        let (name, rest) = f.split_once(' ').unwrap_or((f, ""));
        agree(
            &format!(
                "graph @f(%x: f32[3, 7]) -> (%y, %z) {{
                   %i = const [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0] : f32[3, 3]
                   %b = const splat(0.0) : f32[3]
                   %t = transpose %x {{perm = [1, 0]}} : f32[7, 3]
                   %h = linear %t, %i, %b : f32[7, 3]
                   %y = {name} %h {rest} : f32[7, 3]
                   %z = linear %y, %i, %b : f32[7, 3]
                 }}"
            ),
            tolerance,
        );
    }
    // Functions with a domain, on (0.05, 0.95) or above 1.
    for (f, shift) in
        [("tan", 0.0), ("asin", 0.0), ("acos", 0.0), ("atanh", 0.0), ("acosh", 1.0), ("log", 0.0), ("sqrt", 0.0)]
    {
        agree(
            &format!(
                "graph @f(%x: f32[3, 7]) -> (%y, %z) {{
                   %s = sigmoid %x : f32[3, 7]
                   %lo = const splat(0.05) : f32[]
                   %nine = const splat(0.9) : f32[]
                   %k = mul %s, %nine : f32[3, 7]
                   %u0 = add %k, %lo : f32[3, 7]
                   %d = const splat({shift:.1}) : f32[]
                   %u = add %u0, %d : f32[3, 7]
                   %w = const [1.0] : f32[1, 1]
                   %b = const splat(0.0) : f32[1]
                   %c = reshape %u : f32[21, 1]
                   %h = linear %c, %w, %b : f32[21, 1]
                   %y = {f} %h : f32[21, 1]
                   %z = linear %y, %w, %b : f32[21, 1]
                 }}"
            ),
            1e-3,
        );
    }
}

#[test]
fn remainders_products_and_extremes_agree() {
    agree(
        "graph @rest(%x: f32[4, 6]) -> (%y) {
           %w = const rand(1) : f32[6, 6]
           %b = const rand(2) : f32[6]
           %h = linear %x, %w, %b : f32[4, 6]
           %d = const [1.5, -2.0, 0.75, 3.0, -0.5, 8.0] : f32[6]
           %m = mod %h, %d : f32[4, 6]
           %r = rem %h, %d : f32[4, 6]
           %s = sub %m, %r : f32[4, 6]
           %p = reduce_prod %m {axes = [0]} : f32[6]
           %z = min %s, %p : f32[4, 6]
           %y = linear %z, %w, %b : f32[4, 6]
         }",
        1e-4,
    );
}

/// Tokens and positions from integers, choices by comparison.
const INTEGERS: &str = "graph @ints(%tokens: i64[2, 4], %x: f32[2, 4, 3], %on: bool[2, 1]) -> (%y, %best, %ids, %truth, %top, %sums, %pos) {
    %table = const rand(1) : f32[7, 3]
    %emb = gather %table, %tokens {axis = 0} : f32[2, 4, 3]
    %h0 = add %emb, %x : f32[2, 4, 3]
    %w = const rand(2) : f32[3, 3]
    %b = const rand(3) : f32[3]
    %h = linear %h0, %w, %b {act = relu} : f32[2, 4, 3]
    %zero = const splat(0) : i64[]
    %pad = lt %tokens, %zero : bool[2, 4]
    %truth = max %pad, %on : bool[2, 4]
    %col = reshape %truth : bool[2, 4, 1]
    %low = const splat(-1.0) : f32[]
    %masked = where %col, %low, %h : f32[2, 4, 3]
    %small = gt %masked, %low : bool[2, 4, 3]
    %g = cast %small : f32[2, 4, 3]
    %g1 = mul %g, %masked : f32[2, 4, 3]
    %y = linear %g1, %w, %b : f32[2, 4, 3]
    %best = arg_reduce %y {axis = 1, largest} : i64[2, 3]
    %three = const splat(3) : i64[]
    %ids = mod %tokens, %three : i64[2, 4]
    %top = top_k %y {axis = 2, k = 2, largest} : f32[2, 4, 2]
    %sums = cum_sum %ids {axis = 1} : i64[2, 4]
    %sum = reduce_sum %ids {axes = [1]} : i64[2]
    %rows = const splat(9) : i64[3]
    %pos = scatter %rows, %sum, %sum {f = add} : i64[3]
}";

#[test]
fn integers_comparisons_and_look_ups_agree() {
    agree(INTEGERS, 1e-5);
}

#[test]
fn codes_are_looked_up_and_added() {
    for (a, zero_a) in [("qs8", 3), ("qu8", 131)] {
        agree(
            &format!(
                "graph @res(%obs: f32[3, 10]) -> (%y) {{
                   %r = const splat(16.0) : f32[]
                   %q = quantize %obs, %r {{zero_point = {zero_a}}} : {a}[3, 10]
                   %i = const [2, -1, 0, 7, 7, -99] : i64[6]
                   %g = gather %q, %i {{axis = 1}} : {a}[3, 6]
                   %w = const rand(1) : qs4[6, 6]
                   %b = const splat(5) : i32[6]
                   %acc = qlinear %g, %w, %b : i32[3, 6]
                   %ma = const [40001, 50001, 60001, 65535, 33333, 2147483647] : i32[6]
                   %mb = const [1234567] : i32[1]
                   %s = const [23] : i32[1]
                   %sum = qadd %acc, %g, %ma, %mb, %s {{lo = -100, zero_b = {zero_a}, zero_point = -7}} : qs8[3, 6]
                   %m1 = const [70001] : i32[1]
                   %s1 = const [18] : i32[1]
                   %twice = qadd %sum, %g, %m1, %m1, %s1 {{zero_a = -7, zero_b = {zero_a}, zero_point = 120}} : qu8[3, 6]
                   %big = const [2147483647] : i32[1]
                   %s2 = const [40] : i32[1]
                   %far = qadd %acc, %twice, %big, %big, %s2 {{zero_b = 120}} : qs8[3, 6]
                   %least = reduce_min %twice {{axes = [0], keep_dims}} : qu8[1, 6]
                   %c = concat %twice, %least {{axis = 0}} : qu8[4, 6]
                   %t = transpose %c {{perm = [1, 0]}} : qu8[6, 4]
                   %f = reshape %t : qu8[3, 8]
                   %w1 = const rand(3) : qs8[8, 6]
                   %a1 = qlinear %f, %w1, %b : i32[3, 6]
                   %e = const splat(0.1) : f64[1]
                   %y0 = dequantize %a1, %e : f32[3, 6]
                   %y1 = dequantize %far, %e : f32[3, 6]
                   %y = add %y0, %y1 : f32[3, 6]
                 }}"
            ),
            0.0,
        );
    }
}

#[test]
fn codes_behind_pools_sums_and_movements_go_through_tables() {
    for (codes, table, fill) in [("qs8", "qs4", "-128"), ("qu8", "qu8", "0"), ("qu8", "qs8", "0")] {
        let source = format!(
            "graph @tables(%image: f32[1, 3, 5, 5]) -> (%y) {{
               %r = const splat(16.0) : f32[]
               %q = quantize %image, %r {{zero_point = 7}} : {codes}[1, 3, 5, 5]
               %u = unfold %q {{out = [1, 3, 3, 3], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1], fill = {fill}.0}} : {codes}[1, 3, 3, 3, 3, 3]
               %p = reduce_max %u {{axes = [4, 5]}} : {codes}[1, 3, 3, 3]
               %t = const rand(5) : {table}[256]
               %pooled = lookup %p, %t : {table}[1, 3, 3, 3]
               %m = const [70001] : i32[1]
               %s = const [18] : i32[1]
               %sum = qadd %p, %p, %m, %m, %s {{zero_a = 7, zero_b = 7}} : qs8[1, 3, 3, 3]
               %t1 = const rand(6) : {table}[256]
               %summed = lookup %sum, %t1 : {table}[1, 3, 3, 3]
               %v = transpose %p {{perm = [0, 2, 3, 1]}} : {codes}[1, 3, 3, 3]
               %w = slice %v {{start = [0, 2, 0, 2], len = [1, 3, 3, 3], step = [1, -1, 1, -1]}} : {codes}[1, 3, 3, 3]
               %moved = lookup %w, %t : {table}[1, 3, 3, 3]
               %c = concat %pooled, %summed, %moved {{axis = 3}} : {table}[1, 3, 3, 9]
               %f = reshape %c : {table}[9, 9]
               %k = const rand(1) : qs8[9, 5]
               %b = const splat(3) : i32[5]
               %a = qlinear %f, %k, %b : i32[9, 5]
               %e = const splat(0.1) : f64[1]
               %y = dequantize %a, %e : f32[9, 5]
             }}"
        );
        agree(&source, 0.0);
        // Movements are no copies of their own.
        assert_eq!(n_steps(&source, |op| matches!(op, step::Op::Lookup(_))), 3);
    }
}

#[test]
fn rows_are_sorted_summed_up_and_changed_on_the_device() {
    let order = |f: &str, attributes: &str| format!("{f} %h {{axis = 1, {attributes}}}");
    for (what, ty) in [
        (order("top_k", "k = 3, largest"), "f32[4, 3, 5]"),
        (order("top_k", "k = 2"), "f32[4, 2, 5]"),
        ("cum_sum %h {axis = 0, reverse}".to_owned(), "f32[4, 6, 5]"),
        ("cum_sum %h {axis = 2, exclusive}".to_owned(), "f32[4, 6, 5]"),
        ("scatter %h, %i, %u {f = add}".to_owned(), "f32[4, 6, 5]"),
        ("scatter %h, %i, %u {f = mul}".to_owned(), "f32[4, 6, 5]"),
        ("scatter %h, %i, %u {f = min}".to_owned(), "f32[4, 6, 5]"),
        ("scatter %h, %i, %u {f = max}".to_owned(), "f32[4, 6, 5]"),
        ("scatter %h, %i, %u {f = replace}".to_owned(), "f32[4, 6, 5]"),
    ] {
        let source = format!(
            "graph @rows(%x: f32[4, 6, 5]) -> (%y) {{
               %w = const rand(1) : f32[5, 5]
               %b = const rand(2) : f32[5]
               %g = linear %x, %w, %b : f32[4, 6, 5]
               // Equal elements, zeros of both signs among them.
               %h = round %g : f32[4, 6, 5]
               %i = const [2, -1, 9, 2, -9] : i64[5]
               %u = const rand(3) : f32[5, 6, 5]
               %t = {what} : {ty}
               %y = linear %t, %w, %b : {ty}
             }}"
        );
        agree(&source, 0.0);
        let plan = plan(&graph(&source));
        let on_host = |step: &qail_artifact::schema::Step| {
            step.place() == qail_artifact::Place::Host && !matches!(step.op, Some(step::Op::Copy(_)))
        };
        assert!(!plan.manifest.entries[0].steps.iter().any(on_host), "{what}");
    }
    // A row that one invocation would sort for a second is left to the host.
    let long = "graph @long(%x: f32[1, 700]) -> (%y) {
        %w = const rand(1) : f32[700, 700]
        %b = const rand(2) : f32[700]
        %h = linear %x, %w, %b : f32[1, 700]
        %t = top_k %h {axis = 1, k = 700} : f32[1, 700]
        %y = linear %t, %w, %b : f32[1, 700]
    }";
    let is_order = |step: &&qail_artifact::schema::Step| matches!(step.op, Some(step::Op::Order(_)));
    let plan = plan(&graph(long));
    let sorted = plan.manifest.entries[0].steps.iter().find(is_order).unwrap();
    assert_eq!(sorted.place(), qail_artifact::Place::Host);
    // Indices are numbers that other steps look up with.
    let source = "graph @best(%x: f32[3, 7]) -> (%y, best = %i) {
        %w = const rand(1) : f32[7, 7]
        %b = const rand(2) : f32[7]
        %g = linear %x, %w, %b : f32[3, 7]
        %h = round %g : f32[3, 7]
        %i = arg_reduce %h {axis = 0, largest, last} : i64[7]
        %t = gather %g, %i {axis = 0} : f32[7, 7]
        %y = linear %t, %w, %b : f32[7, 7]
    }";
    agree(source, 0.0);
}
