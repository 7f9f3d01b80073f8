//! A convolutional policy with quantizers of learned steps, as training sees it:
//! windows, layers, a pool, a residual sum, a mean, a head; and a loss.
// Each test crate uses a part of it.
#![allow(dead_code)]

use qail_ir::{Graph, ValueId, text};
use qail_train::differentiate;

/// Sizes of the policy.
pub(crate) struct Cnn {
    pub(crate) batch: usize,
    /// Channels, height and width of an image.
    pub(crate) image: [usize; 3],
    /// Channels of the two convolutions.
    pub(crate) channels: [usize; 2],
    /// Distance of the windows of the first convolution.
    pub(crate) stride: usize,
    pub(crate) actions: usize,
}

pub(crate) const SMALL: Cnn = Cnn { batch: 5, image: [2, 9, 8], channels: [4, 4], stride: 1, actions: 3 };

impl Cnn {
    /// The text of the graph without its last brace: `x[B, C, H, W]`, `t[B, A]`, `y`, `loss`.
    pub(crate) fn text(&self) -> String {
        let Self { batch: b, image: [c, h, w], channels: [n1, n2], stride, actions: a } = *self;
        let (h1, w1) = ((h + 2 - 3) / stride + 1, (w + 2 - 3) / stride + 1);
        let (h2, w2) = (h1.div_ceil(2), w1.div_ceil(2));
        let weights = |i: usize, k: usize, n: usize, step: f32| {
            format!(
                "%w{i} = const rand({seed}) : f32[{k}, {n}]
                %w{i}s = const splat({step}) : f32[{n}]
                %b{i} = const rand({bias}) : f32[{n}]
                %wq{i} = fake_quant %w{i}, %w{i}s {{s4, lo = -7, axis = 1}} : f32[{k}, {n}]\n",
                seed = i + 1,
                bias = i + 11,
            )
        };
        let (k0, k1) = (c * 9, n1 * 9);
        let all = [
            weights(0, k0, n1, 0.1434),
            weights(1, k1, n2, 0.1523),
            weights(2, n2, a, 0.1371),
            format!(
                "%s0 = const [0.0173] : f32[] %s1 = const [0.2913] : f32[] %s2 = const [0.8123] : f32[]
                %s3 = const [0.4127] : f32[]
                %xt = transpose %x {{perm = [0, 2, 3, 1]}} : f32[{b}, {h}, {w}, {c}]
                %q0 = fake_quant %xt, %s0 {{s8}} : f32[{b}, {h}, {w}, {c}]
                %u0 = unfold %q0 {{out = [{b}, {h1}, {w1}, {c}], size = [1, 3, 3, 1],
                    stride = [1, {stride}, {stride}, 1], pad = [0, 1, 1, 0]}} : f32[{b}, {h1}, {w1}, {c}, 3, 3]
                %r0 = reshape %u0 : f32[{b}, {h1}, {w1}, {k0}]
                %l0 = linear %r0, %wq0, %b0 : f32[{b}, {h1}, {w1}, {n1}]
                %a0 = relu %l0 : f32[{b}, {h1}, {w1}, {n1}]
                %q1 = fake_quant %a0, %s1 {{u4}} : f32[{b}, {h1}, {w1}, {n1}]
                %p = unfold %q1 {{out = [{b}, {h2}, {w2}, {n1}], size = [1, 3, 3, 1], stride = [1, 2, 2, 1],
                    pad = [0, 1, 1, 0], fill = -inf}} : f32[{b}, {h2}, {w2}, {n1}, 3, 3]
                %m = reduce_max %p {{axes = [4, 5]}} : f32[{b}, {h2}, {w2}, {n1}]
                %u1 = unfold %m {{out = [{b}, {h2}, {w2}, {n1}], size = [1, 3, 3, 1],
                    pad = [0, 1, 1, 0]}} : f32[{b}, {h2}, {w2}, {n1}, 3, 3]
                %r1 = reshape %u1 : f32[{b}, {h2}, {w2}, {k1}]
                %l1 = linear %r1, %wq1, %b1 : f32[{b}, {h2}, {w2}, {n2}]
                REST"
            ),
        ]
        .concat();
        let residual = if n1 == n2 {
            format!("%sum = add %l1, %m : f32[{b}, {h2}, {w2}, {n2}]\n")
        } else {
            format!("%zero = const splat(0.0) : f32[] %sum = add %l1, %zero : f32[{b}, {h2}, {w2}, {n2}]\n")
        };
        let rest = format!(
            "{residual} %a1 = relu %sum : f32[{b}, {h2}, {w2}, {n2}]
            %q2 = fake_quant %a1, %s2 {{u4}} : f32[{b}, {h2}, {w2}, {n2}]
            %mean = reduce_mean %q2 {{axes = [1, 2]}} : f32[{b}, {n2}]
            %q3 = fake_quant %mean, %s3 {{u8}} : f32[{b}, {n2}]
            %y = linear %q3, %wq2, %b2 : f32[{b}, {a}]
            %d = sub %y, %t : f32[{b}, {a}]
            %square = mul %d, %d : f32[{b}, {a}]
            %loss = reduce_mean %square {{axes = [0, 1]}} : f32[]"
        );
        let head = format!("graph @cnn(%x: f32[{b}, {c}, {h}, {w}], %t: f32[{b}, {a}]) -> (%y, %loss) {{\n");
        format!("{head}{}", all.replace("REST", &rest))
    }

    /// The forward graph.
    pub(crate) fn graph(&self) -> Graph {
        let text = format!("{} }}", self.text());
        text::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// With the gradients of all parameters.
    pub(crate) fn joint(&self) -> Graph {
        let graph = self.graph();
        let value = |name: &str| -> ValueId { graph.nodes().find(|&id| graph.node(id).name == name).unwrap().value() };
        let names = ["w0", "w0s", "b0", "w1", "w1s", "b1", "w2", "w2s", "b2", "s0", "s1", "s2", "s3"];
        let wrt: Vec<ValueId> = names.into_iter().map(value).collect();
        differentiate(&graph, value("loss"), &wrt).unwrap().graph
    }
}
