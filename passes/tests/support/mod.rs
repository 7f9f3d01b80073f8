//! Graphs and data that tests share.
// Each test crate uses a part of them.
#![allow(dead_code)]

pub(crate) mod bounds;
pub(crate) mod network;

use std::collections::BTreeMap;

use qail_ir::{
    Binary, BinaryFn, Constant, Graph, Linear, Op, Origin, TensorType, Unary, UnaryFn, ValueId,
    interp::{Data, Tensor},
};

/// Seeded numbers: SplitMix64.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Nearly normal: variance 1, magnitude below 6.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() * 0.5
    }
}

/// A multi-layer perceptron.
pub(crate) struct Mlp {
    pub(crate) widths: &'static [usize],
    pub(crate) act: UnaryFn,
    pub(crate) last: Option<UnaryFn>,
    pub(crate) normalizer: bool,
}

impl Mlp {
    /// The graph, with He-initialized weights: `obs[1, D] -> action[1, A]`.
    pub(crate) fn graph(&self, seed: u64) -> Graph {
        let mut rng = Rng(seed);
        let mut graph = Graph::new("policy");
        let n_in = self.widths[0];
        let mut x = graph.add_input("obs", TensorType::f32([1, n_in]));
        graph.batch_axis = Some(0);
        if self.normalizer {
            let mean: Vec<f32> = (0..n_in).map(|k| (scale(k) * rng.uniform()) as f32).collect();
            let std: Vec<f32> = (0..n_in).map(|k| (scale(k) * (0.7 + 0.3 * rng.uniform())) as f32).collect();
            x = affine(&mut graph, "centered", BinaryFn::Sub, x, &mean);
            x = affine(&mut graph, "normalized", BinaryFn::Div, x, &std);
        }
        let n_layers = self.widths.len() - 1;
        for (i, pair) in self.widths.windows(2).enumerate() {
            let [k, n] = pair else { unreachable!() };
            let gain = (2.0 / *k as f64).sqrt();
            let w: Vec<f32> = (0..k * n).map(|_| (gain * rng.normal()) as f32).collect();
            let b: Vec<f32> = (0..*n).map(|_| (0.1 * rng.normal()) as f32).collect();
            let w = graph.add_const(format!("w{i}"), Constant::f32([*k, *n], &w), Origin::default());
            let b = graph.add_const(format!("b{i}"), Constant::f32([*n], &b), Origin::default());
            let name = format!("l{i}");
            x = graph
                .add(name, Op::Linear(Linear { act: None, groups: 1 }), &[x, w, b], Origin::new(format!("/Gemm_{i}")))
                .unwrap()
                .value();
            let act = if i + 1 < n_layers { Some(self.act) } else { self.last };
            if let Some(f) = act {
                x = graph
                    .add(format!("h{i}"), Op::Unary(Unary { f }), &[x], Origin::new(format!("/Act_{i}")))
                    .unwrap()
                    .value();
            }
        }
        graph.add_output("action", x);
        graph
    }

    /// Observations whose features have different magnitudes, one of them constant.
    pub(crate) fn samples(&self, seed: u64, n: usize) -> Vec<BTreeMap<String, Tensor>> {
        let mut rng = Rng(seed);
        let n_in = self.widths[0];
        let mut sample = || {
            let x: Vec<f32> = (0..n_in).map(|k| if k == 1 { 0.25 } else { (scale(k) * rng.normal()) as f32 }).collect();
            BTreeMap::from([("obs".to_owned(), Tensor::f32([1, n_in], x))])
        };
        (0..n).map(|_| sample()).collect()
    }
}

/// Magnitude of feature `k`: from 0.1 to 10, as in real observations.
fn scale(k: usize) -> f64 {
    [1.0, 0.25, 10.0, 0.1, 3.0][k % 5]
}

fn affine(graph: &mut Graph, name: &str, f: BinaryFn, x: ValueId, c: &[f32]) -> ValueId {
    let c = graph.add_const(format!("{name}.c"), Constant::f32([c.len()], c), Origin::default());
    graph.add(name, Op::Binary(Binary { f }), &[x, c], Origin::new(format!("/{name}"))).unwrap().value()
}

/// Elements of an `f32` tensor.
pub(crate) fn floats(tensor: &Tensor) -> &[f32] {
    match &tensor.data {
        Data::F32(x) => x,
        Data::F64(_) | Data::Int(_) => panic!("not f32"),
    }
}

/// Elements of a tensor of integers.
pub(crate) fn ints(tensor: &Tensor) -> &[i64] {
    match &tensor.data {
        Data::Int(x) => x,
        Data::F64(_) | Data::F32(_) => panic!("not integers"),
    }
}
