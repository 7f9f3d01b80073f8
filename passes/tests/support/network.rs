//! A small convolutional network, as ONNX writes it.

use std::collections::BTreeMap;

use qail_ir::{DType, Elem, Graph, TensorType, interp::Tensor, text};

use super::Rng;

/// A stem, a max pool, a residual block with a shortcut, an average pool and a head, as ONNX writes
/// them: channels first, batch norms as products and sums. `stem` reads `%img`.
fn network(input: &str, stem: &str) -> Graph {
    let body = "
      %w0 = const file(\"w0\") : f32[18, 6]
      %b0 = const splat(0.0) : f32[6]
      %u0 = unfold %img {out = [1, 2, 8, 8], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 2, 8, 8, 3, 3]
      %t0 = transpose %u0 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 8, 8, 2, 3, 3]
      %r0 = reshape %t0 : f32[1, 8, 8, 18]
      %l0 = linear %r0, %w0, %b0 : f32[1, 8, 8, 6]
      %c0 = transpose %l0 {perm = [0, 3, 1, 2]} : f32[1, 6, 8, 8]
      %s0 = const [0.5, 0.75, 1.0, 0.5, 0.25, 1.5] : f32[1, 6, 1, 1]
      %m0 = mul %c0, %s0 : f32[1, 6, 8, 8]
      %o0 = const [0.25, -0.5, 0.0, 0.125, 0.5, 0.0] : f32[1, 6, 1, 1]
      %a0 = add %m0, %o0 : f32[1, 6, 8, 8]
      %pu = unfold %a0 {out = [1, 6, 4, 4], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1], fill = -inf} : f32[1, 6, 4, 4, 3, 3]
      %p = reduce_max %pu {axes = [4, 5]} : f32[1, 6, 4, 4]
      %h0 = relu %p : f32[1, 6, 4, 4]
      %w1 = const file(\"w1\") : f32[54, 6]
      %u1 = unfold %h0 {out = [1, 6, 4, 4], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 6, 4, 4, 3, 3]
      %t1 = transpose %u1 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 4, 4, 6, 3, 3]
      %r1 = reshape %t1 : f32[1, 4, 4, 54]
      %l1 = linear %r1, %w1, %b0 : f32[1, 4, 4, 6]
      %c1 = transpose %l1 {perm = [0, 3, 1, 2]} : f32[1, 6, 4, 4]
      %h1 = relu %c1 : f32[1, 6, 4, 4]
      %w2 = const file(\"w2\") : f32[54, 6]
      %u2 = unfold %h1 {out = [1, 6, 2, 2], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1]} : f32[1, 6, 2, 2, 3, 3]
      %t2 = transpose %u2 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 2, 2, 6, 3, 3]
      %r2 = reshape %t2 : f32[1, 2, 2, 54]
      %l2 = linear %r2, %w2, %b0 : f32[1, 2, 2, 6]
      %c2 = transpose %l2 {perm = [0, 3, 1, 2]} : f32[1, 6, 2, 2]
      %w3 = const file(\"w3\") : f32[6, 6]
      %u3 = unfold %h0 {out = [1, 6, 2, 2], stride = [1, 1, 2, 2]} : f32[1, 6, 2, 2]
      %t3 = transpose %u3 {perm = [0, 2, 3, 1]} : f32[1, 2, 2, 6]
      %l3 = linear %t3, %w3, %b0 : f32[1, 2, 2, 6]
      %c3 = transpose %l3 {perm = [0, 3, 1, 2]} : f32[1, 6, 2, 2]
      %s3 = add %c2, %c3 : f32[1, 6, 2, 2]
      %h3 = silu %s3 : f32[1, 6, 2, 2]
      %g = reduce_mean %h3 {axes = [2, 3], keep_dims} : f32[1, 6, 1, 1]
      %f = reshape %g : f32[1, 6]
      %w4 = const file(\"w4\") : f32[6, 3]
      %b4 = const splat(0.1) : f32[3]
      %y = linear %f, %w4, %b4 : f32[1, 3]";
    parse(&format!("graph @net({input}) -> (%y) {{batch = 0}} {{ {stem} {body} }}"))
}

/// A graph whose weights have the size that a network is trained from.
fn parse(source: &str) -> Graph {
    let rng = std::cell::RefCell::new(Rng(5));
    let weights = |_: &str, ty: &TensorType| {
        let gain = (2.0 / ty.shape[0] as f64).sqrt();
        let elements: Vec<f32> = (0..ty.n_elements()).map(|_| (gain * rng.borrow_mut().normal()) as f32).collect();
        Some(qail_ir::Constant::f32(ty.shape.clone(), &elements))
    };
    text::parse_with_weights(source, &weights).unwrap()
}

/// Depthwise convolutions between pointwise ones, a pool that its padding counts in, and one cut
/// into parts of equal windows, as the importer writes them.
pub(crate) fn separable() -> Graph {
    parse(
        "graph @separable(%img: f32[1, 2, 8, 8]) -> (%y) {batch = 0} {
      %w0 = const file(\"w0\") : f32[18, 6]
      %b0 = const splat(0.0) : f32[6]
      %u0 = unfold %img {out = [1, 2, 8, 8], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 2, 8, 8, 3, 3]
      %t0 = transpose %u0 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 8, 8, 2, 3, 3]
      %r0 = reshape %t0 : f32[1, 8, 8, 18]
      %l0 = linear %r0, %w0, %b0 : f32[1, 8, 8, 6]
      %c0 = transpose %l0 {perm = [0, 3, 1, 2]} : f32[1, 6, 8, 8]
      %h0 = relu %c0 : f32[1, 6, 8, 8]
      %w1 = const file(\"w1\") : f32[9, 6]
      %b1 = const [0.1, -0.2, 0.3, 0.0, 0.2, -0.1] : f32[6]
      %u1 = unfold %h0 {out = [1, 6, 4, 4], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1]} : f32[1, 6, 4, 4, 3, 3]
      %t1 = transpose %u1 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 4, 4, 6, 3, 3]
      %r1 = reshape %t1 : f32[1, 4, 4, 54]
      %l1 = linear %r1, %w1, %b1 {groups = 6} : f32[1, 4, 4, 6]
      %c1 = transpose %l1 {perm = [0, 3, 1, 2]} : f32[1, 6, 4, 4]
      %s1 = const [0.5, 0.75, 1.0, 0.5, 0.25, 1.5] : f32[1, 6, 1, 1]
      %m1 = mul %c1, %s1 : f32[1, 6, 4, 4]
      %h1 = clip %m1 {min = 0.0, max = 6.0} : f32[1, 6, 4, 4]
      %w2 = const file(\"w2\") : f32[6, 8]
      %b2 = const splat(0.1) : f32[8]
      %t2 = transpose %h1 {perm = [0, 2, 3, 1]} : f32[1, 4, 4, 6]
      %l2 = linear %t2, %w2, %b2 : f32[1, 4, 4, 8]
      %c2 = transpose %l2 {perm = [0, 3, 1, 2]} : f32[1, 8, 4, 4]
      %p2 = unfold %c2 {out = [1, 8, 4, 4], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 8, 4, 4, 3, 3]
      %a2 = reduce_mean %p2 {axes = [4, 5]} : f32[1, 8, 4, 4]
      %w3 = const file(\"w3\") : f32[9, 16]
      %b3 = const splat(0.0) : f32[16]
      %u3 = unfold %a2 {out = [1, 8, 4, 4], size = [1, 1, 3, 3], pad = [0, 0, 1, 1]} : f32[1, 8, 4, 4, 3, 3]
      %t3 = transpose %u3 {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 4, 4, 8, 3, 3]
      %r3 = reshape %t3 : f32[1, 4, 4, 72]
      %l3 = linear %r3, %w3, %b3 {groups = 8} : f32[1, 4, 4, 16]
      %c3 = transpose %l3 {perm = [0, 3, 1, 2]} : f32[1, 16, 4, 4]
      %h3 = silu %c3 : f32[1, 16, 4, 4]
      %eu = unfold %h3 {out = [1, 16, 4, 1], size = [1, 1, 1, 2]} : f32[1, 16, 4, 1, 2]
      %e = reduce_mean %eu {axes = [4]} : f32[1, 16, 4, 1]
      %iu = unfold %h3 {out = [1, 16, 4, 2], size = [1, 1, 1, 3]} : f32[1, 16, 4, 2, 3]
      %i = reduce_mean %iu {axes = [4]} : f32[1, 16, 4, 2]
      %parts = concat %e, %i {axis = 3} : f32[1, 16, 4, 3]
      %g = reduce_mean %parts {axes = [2, 3], keep_dims} : f32[1, 16, 1, 1]
      %f = reshape %g : f32[1, 16]
      %w4 = const file(\"w4\") : f32[16, 3]
      %b4 = const splat(0.1) : f32[3]
      %y = linear %f, %w4, %b4 : f32[1, 3]
    }",
    )
}

pub(crate) fn image_of_floats() -> Graph {
    network("%img: f32[1, 2, 8, 8]", "")
}

pub(crate) fn image_of_bytes() -> Graph {
    let stem = "%cast = cast %x : f32[1, 2, 8, 8] %n = const [64.0] : f32[] %img = div %cast, %n : f32[1, 2, 8, 8]";
    network("%x: u8[1, 2, 8, 8]", stem)
}

/// Images for it.
pub(crate) fn samples(graph: &Graph, seed: u64, n: usize) -> Vec<BTreeMap<String, Tensor>> {
    let mut rng = Rng(seed);
    let input = graph.inputs()[0];
    let ty = graph.ty(input.value()).clone();
    let sample = |_| {
        let n = ty.n_elements();
        let tensor = match ty.elem {
            Elem::Plain(DType::U8) => Tensor::ints(ty.clone(), (0..n).map(|_| (rng.next_u64() % 256) as i64).collect()),
            _ => Tensor::f32(ty.shape.clone(), (0..n).map(|_| rng.normal() as f32).collect()),
        };
        BTreeMap::from([(graph.node(input).name.clone(), tensor)])
    };
    (0..n).map(sample).collect()
}
