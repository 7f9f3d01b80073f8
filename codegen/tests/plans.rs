//! What plans look like, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod common;

use common::{graph, plan};
use insta::assert_snapshot;
use qail_codegen::{BuildOptions, build, explain};

fn explained(source: &str) -> String {
    let plan = plan(&graph(source));
    let file = plan.to_file().unwrap_or_else(|error| panic!("{error:?}\n{}", explain(&plan.manifest)));
    assert!(!file.is_empty());
    explain(&plan.manifest)
}

fn refused(source: &str) -> String {
    build(&graph(source), &BuildOptions::default()).unwrap_err().to_string()
}

const MLP: &str = "graph @mlp(%obs: f32[1, 5]) -> (action = %act) {
    %r = const [256.0, 256.0, 512.0, 256.0, 64.0] : f32[5]
    %q = quantize %obs, %r {lo = -32639, hi = 32639} : qs16[1, 5]
    %w0 = const rand(1) : qs8[5, 12]
    %b0 = const splat(40) : i32[12]
    %a0 = qlinear %q, %w0, %b0 : i32[1, 12]
    %m = const splat(40001) : i32[12]
    %s = const splat(26) : i32[12]
    %p0 = requantize %a0, %m, %s : qs8[1, 12]
    %t = const rand(2) : qs4[256]
    %h0 = lookup %p0, %t : qs4[1, 12]
    %w1 = const rand(3) : qs4[12, 12]
    %a1 = qlinear %h0, %w1, %b0 : i32[1, 12]
    %s1 = const splat(18) : i32[12]
    %h1 = requantize %a1, %m, %s1 {lo = 0} : qu8[1, 12]
    %w2 = const rand(4) : qs8[12, 3]
    %b2 = const [1, 2, 3] : i32[3]
    %a2 = qlinear %h1, %w2, %b2 : i32[1, 3]
    %e = const [0.1, 0.2, 0.3] : f64[3]
    %y = dequantize %a2, %e : f32[1, 3]
    %act = tanh %y : f32[1, 3]
}";

#[test]
fn a_quantized_policy_is_one_device_segment() {
    assert_snapshot!(explained(MLP));
}

#[test]
fn the_last_activation_of_a_float_policy_runs_on_the_host() {
    assert_snapshot!(explained(
        "graph @float(%obs: f32[2, 3]) -> (action = %act) {
           %mean = const [0.5, 0.25, 0.0] : f32[3]
           %x = sub %obs, %mean : f32[2, 3]
           %w0 = const rand(1) : f32[3, 4]
           %b0 = const rand(2) : f32[4]
           %h = linear %x, %w0, %b0 {act = tanh} : f32[2, 4]
           %w1 = const rand(3) : f32[4, 2]
           %b1 = const rand(4) : f32[2]
           %y = linear %h, %w1, %b1 {act = tanh} : f32[2, 2]
           %act = clip %y {min = -0.5, max = 0.5} : f32[2, 2]
         }"
    ));
}

#[test]
fn a_shared_accumulator_is_requantized_by_each_reader() {
    assert_snapshot!(explained(
        "graph @shared(%obs: f32[1, 4]) -> (%y, %z) {
           %r = const splat(16) : f32[]
           %q = quantize %obs, %r : qs8[1, 4]
           %w = const rand(1) : qs4[4, 4]
           %b = const splat(0) : i32[4]
           %a = qlinear %q, %w, %b : i32[1, 4]
           %m = const splat(40001) : i32[4]
           %s = const splat(20) : i32[4]
           %p = requantize %a, %m, %s : qs8[1, 4]
           %t = const rand(2) : qs8[256]
           %u = lookup %p, %t : qs8[1, 4]
           %c = concat %p, %u {axis = 1} : qs8[1, 8]
           %e = const splat(0.1) : f64[1]
           %y = dequantize %c, %e : f32[1, 8]
           %z = dequantize %a, %e : f32[1, 4]
         }"
    ));
}

#[test]
fn movement_between_products_stays_on_the_device() {
    assert_snapshot!(explained(
        "graph @move(%obs: f32[1, 6]) -> (%y, flat = %f) {
           %w = const rand(1) : f32[6, 6]
           %b = const rand(2) : f32[6]
           %h = linear %obs, %w, %b {act = relu} : f32[1, 6]
           %g = reshape %h : f32[2, 3]
           %t = transpose %g {perm = [1, 0]} : f32[3, 2]
           %i = slice %t {start = [2, 0], len = [2, 2], step = [-2, 1]} : f32[2, 2]
           %j = concat %i, %g {axis = 1} : f32[2, 5]
           %k = reduce_mean %j {axes = [1], keep_dims} : f32[2, 1]
           %l = sub %j, %k : f32[2, 5]
           %n = transpose %l {perm = [1, 0]} : f32[5, 2]
           %y = matmul %l, %n : f32[2, 2]
           %f = reshape %y : f32[4]
         }"
    ));
}

/// Two products of codes, and between them what `island` makes of `%f` as `%g`.
fn between_products(island: &str) -> String {
    format!(
        "graph @island(%obs: f32[2, 9]) -> (%y) {{
           %r = const splat(16.0) : f32[]
           %q = quantize %obs, %r : qs8[2, 9]
           %w = const rand(1) : qs8[9, 6]
           %b = const splat(3) : i32[6]
           %a = qlinear %q, %w, %b : i32[2, 6]
           %e = const splat(0.0003) : f64[1]
           %f = dequantize %a, %e : f32[2, 6]
           {island}
           %q1 = quantize %g, %r : qs8[2, 6]
           %w1 = const rand(2) : qs4[6, 4]
           %b1 = const splat(-3) : i32[4]
           %a1 = qlinear %q1, %w1, %b1 : i32[2, 4]
           %y = dequantize %a1, %e : f32[2, 4]
         }}"
    )
}

#[test]
fn an_island_that_only_host_code_surrounds_stays_on_the_host() {
    assert_snapshot!(explained(&between_products(
        "%s = sigmoid %f : f32[2, 6]
           %n = normalize %s {axes = [1], eps = 1e-5, center} : f32[2, 6]
           %g = mul %n, %f : f32[2, 6]"
    )));
}

#[test]
fn an_island_around_a_product_of_floats_runs_on_the_device() {
    assert_snapshot!(explained(&between_products(
        "%s = sigmoid %f : f32[2, 6]
           %t = transpose %s {perm = [1, 0]} : f32[6, 2]
           %mm = matmul %f, %t : f32[2, 2]
           %p = softmax %mm {axis = 1} : f32[2, 2]
           %g = matmul %p, %f : f32[2, 6]"
    )));
}

#[test]
fn shared_weights_are_one_section() {
    let plan = plan(&graph(
        "graph @tied(%obs: f32[1, 4]) -> (%y) {
           %w = const rand(1) : f32[4, 4]
           %b = const rand(2) : f32[4]
           %h = linear %obs, %w, %b {act = relu} : f32[1, 4]
           %y = linear %h, %w, %b {act = relu} : f32[1, 4]
         }",
    ));
    let weights: Vec<&str> = plan.sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(weights, ["h.weight", "h.bias", "kernel.linear_f32.0"]);
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    let graph = graph(MLP);
    assert_eq!(plan(&graph).to_file().unwrap(), plan(&graph).to_file().unwrap());
}

#[test]
fn without_shaders_no_step_has_a_kernel() {
    let options = BuildOptions { shaders: false, ..BuildOptions::default() };
    let plan = build(&graph(MLP), &options).unwrap();
    assert!(plan.manifest.kernels.is_empty());
    assert!(plan.manifest.entries[0].steps.iter().all(|step| step.dispatch.is_none()));
    plan.to_file().unwrap();
}

#[test]
fn a_sum_that_could_leave_32_bits_is_refused() {
    let message = refused(
        "graph @big(%obs: f32[1, 1]) -> (%y) {
           %r = const splat(1.0) : f32[]
           %q = quantize %obs, %r : qu8[1, 1]
           %w = const [100] : qs8[1, 1]
           %b = const [2147470000] : i32[1]
           %a = qlinear %q, %w, %b : i32[1, 1]
           %e = const splat(0.1) : f64[1]
           %y = dequantize %a, %e : f32[1, 1]
         }",
    );
    assert_snapshot!(message, @"node `a`: channel 0 can reach 2147495600, an accumulator holds 2147483647");
}

#[test]
fn a_graph_that_was_not_lowered_is_refused() {
    let message = refused(
        "graph @fake(%obs: f32[1, 4]) -> (%y) {
           %s = const splat(0.1) : f32[]
           %y = fake_quant %obs, %s {s8} : f32[1, 4]
         }",
    );
    assert_snapshot!(message, @"node `y`: fake_quant is not supported: lower the graph to integers first");
    let gradient = refused("graph @g(%x: f32[1, 2]) -> (%y) { %y = unary_grad %x, %x {f = tanh} : f32[1, 2] }");
    assert_snapshot!(
        gradient,
        @"node `y`: unary_grad is not supported: an artifact holds no backward graph; compile the graph without gradients"
    );
}

#[test]
fn weights_beyond_a_binding_are_left_to_the_device() {
    let graph = graph(
        "graph @wide(%x: f32[1, 8192]) -> (%y) {
           %w = const splat(0.0) : f32[8192, 4104]
           %b = const splat(0.0) : f32[4104]
           %y = linear %x, %w, %b : f32[1, 4104]
         }",
    );
    let weight = &plan(&graph).sections[0];
    assert_eq!((weight.name.as_str(), weight.bytes.len()), ("y.weight", 134_479_872));
}

#[test]
fn values_beyond_a_binding_are_refused() {
    let message = refused(
        "graph @tall(%x: f32[8388609, 4]) -> (%y) {
           %w = const splat(0.0) : f32[4, 4]
           %b = const splat(0.0) : f32[4]
           %y = linear %x, %w, %b : f32[8388609, 4]
         }",
    );
    assert_snapshot!(message, @"node `y`: size of a buffer in bytes is 134217744, the limit is 134217728");
}

#[test]
fn codes_are_no_inputs() {
    let message = refused(
        "graph @codes(%x: qs8[1, 4]) -> (%y) {
           %e = const splat(0.1) : f64[1]
           %y = dequantize %x, %e : f32[1, 4]
         }",
    );
    assert_snapshot!(message, @"node `x`: input is not supported: an input or output of type qs8[1, 4]; plain numbers are accepted");
}
