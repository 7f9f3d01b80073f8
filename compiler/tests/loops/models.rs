//! Two small policies with loops around them, and recordings for both.

use std::path::Path;

use prost::Message;
use qailc::{
    data::NpzWriter,
    frontend::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
    },
};

/// Seeded numbers around zero.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    pub(crate) fn list(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.next()).collect()
    }
}

struct Maker {
    graph: GraphProto,
    numbers: Numbers,
}

impl Maker {
    fn new(inputs: &[(&str, i32, &[i64])], outputs: &[&str]) -> Self {
        let mut graph = GraphProto { name: "loop".to_owned(), ..GraphProto::default() };
        graph.input = inputs.iter().map(|(name, ty, dims)| ValueInfoProto::tensor(*name, *ty, dims)).collect();
        let output = |name: &&str| ValueInfoProto { name: (*name).to_owned(), r#type: None };
        graph.output = outputs.iter().map(output).collect();
        Self { graph, numbers: Numbers(11) }
    }

    fn add(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            attribute,
            ..NodeProto::default()
        });
    }

    fn weight(&mut self, name: &str, dims: &[i64]) {
        let n: i64 = dims.iter().product();
        let scale = if dims.len() == 1 { 0.1 } else { 1.5 / (dims[dims.len() - 2] as f32).sqrt() };
        let elements = self.numbers.list(n as usize, scale);
        self.graph.initializer.push(TensorProto::f32(name, dims.to_vec(), &elements));
    }

    fn ints(&mut self, name: &str, elements: &[i64]) {
        self.graph.initializer.push(TensorProto::i64(name, vec![elements.len() as i64], elements));
    }

    /// `relu?(x w + b)`, named after the result.
    fn layer(&mut self, x: &str, y: &str, [k, n]: [i64; 2], relu: bool) {
        let [w, b, sum] = ["w", "b", "sum"].map(|part| format!("{y}.{part}"));
        self.weight(&w, &[k, n]);
        self.weight(&b, &[n]);
        self.add("Gemm", &[x, &w, &b], &[if relu { &sum } else { y }], vec![]);
        if relu {
            self.add("Relu", &[&sum], &[y], vec![]);
        }
    }

    fn write(self, path: &Path) {
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(self.graph), ..ModelProto::default() };
        std::fs::write(path, model.encode_to_vec()).unwrap();
    }
}

/// One step of denoising four actions of two numbers: an encoder, an embedding
/// of the time, and layers that see both. The time is `i64` of diffusion or
/// `f32` of a flow.
pub(crate) fn denoiser(path: &Path, is_flow: bool) {
    let time = if is_flow { data_type::FLOAT } else { data_type::INT64 };
    let inputs: [(&str, i32, &[i64]); 3] =
        [("x", data_type::FLOAT, &[1, 4, 2]), ("timestep", time, &[1]), ("cond", data_type::FLOAT, &[1, 3])];
    let mut make = Maker::new(&inputs, &["prediction"]);
    make.layer("cond", "code", [3, 8], true);
    let to_float = vec![AttributeProto::int("to", i64::from(data_type::FLOAT))];
    make.add("Cast", &["timestep"], &["t"], to_float);
    make.ints("one", &[1]);
    make.add("Unsqueeze", &["t", "one"], &["t2"], vec![]);
    make.graph.initializer.push(TensorProto::f32("freq", vec![1, 4], &[1.0, 0.5, 0.2, 0.05]));
    make.add("Mul", &["t2", "freq"], &["angle"], vec![]);
    make.add("Sin", &["angle"], &["sin"], vec![]);
    make.add("Cos", &["angle"], &["cos"], vec![]);
    make.add("Concat", &["sin", "cos"], &["waves"], vec![AttributeProto::int("axis", 1)]);
    make.layer("waves", "embedding", [8, 8], true);
    make.ints("flat.shape", &[1, 8]);
    make.add("Reshape", &["x", "flat.shape"], &["flat"], vec![]);
    make.add("Concat", &["flat", "embedding", "code"], &["all"], vec![AttributeProto::int("axis", 1)]);
    make.layer("all", "hidden", [24, 32], true);
    make.layer("hidden", "out", [32, 8], false);
    make.ints("out.shape", &[1, 4, 2]);
    make.add("Reshape", &["out", "out.shape"], &["prediction"], vec![]);
    make.write(path);
}

/// A gated recurrent unit between two layers; its state is an input and an output.
pub(crate) fn recurrent(path: &Path) {
    let inputs: [(&str, i32, &[i64]); 2] = [("obs", data_type::FLOAT, &[1, 3]), ("h_in", data_type::FLOAT, &[1, 1, 6])];
    let mut make = Maker::new(&inputs, &["action", "h_out"]);
    make.layer("obs", "code", [3, 5], true);
    make.ints("zero", &[0]);
    make.add("Unsqueeze", &["code", "zero"], &["sequence"], vec![]);
    make.weight("gru.w", &[1, 18, 5]);
    make.weight("gru.r", &[1, 18, 6]);
    make.weight("gru.b", &[36]);
    make.ints("bias.shape", &[1, 36]);
    make.add("Reshape", &["gru.b", "bias.shape"], &["gru.bias"], vec![]);
    let hidden = vec![AttributeProto::int("hidden_size", 6), AttributeProto::int("linear_before_reset", 1)];
    make.add("GRU", &["sequence", "gru.w", "gru.r", "gru.bias", "", "h_in"], &["", "h_out"], hidden);
    make.add("Squeeze", &["h_out", "zero"], &["state"], vec![]);
    make.layer("state", "action", [6, 2], false);
    make.write(path);
}

/// Steps of the recordings: two episodes.
pub(crate) const ENDS: [i64; 2] = [30, 50];

/// Observations by the name of an input, actions of two numbers.
pub(crate) fn record(path: &Path, input: &str) {
    let n = ENDS[1] as usize;
    let mut numbers = Numbers(5);
    let mut writer = NpzWriter::create(path).unwrap();
    writer.add(input, &[n, 3], &numbers.list(3 * n, 1.0)).unwrap();
    writer.add("actions", &[n, 2], &numbers.list(2 * n, 0.8)).unwrap();
    writer.add("episode_ends", &[2], &ENDS).unwrap();
    writer.finish().unwrap();
}

/// Attention of two heads over three tokens before and this one; the caches of
/// keys and values are inputs, and outputs that are longer by one token.
pub(crate) fn decoder(path: &Path) {
    let cache = [1i64, 2, 3, 4];
    let inputs: [(&str, i32, &[i64]); 3] = [
        ("obs", data_type::FLOAT, &[1, 3]),
        ("past_key", data_type::FLOAT, &cache),
        ("past_value", data_type::FLOAT, &cache),
    ];
    let mut make = Maker::new(&inputs, &["action", "present_key", "present_value"]);
    make.layer("obs", "token", [3, 8], true);
    make.ints("heads", &[1, 2, 1, 4]);
    for part in ["q", "k", "v"] {
        make.layer("token", &format!("{part}.flat"), [8, 8], false);
        make.add("Reshape", &[&format!("{part}.flat"), "heads"], &[part], vec![]);
    }
    let along = vec![AttributeProto::int("axis", 2)];
    make.add("Concat", &["past_key", "k"], &["present_key"], along.clone());
    make.add("Concat", &["past_value", "v"], &["present_value"], along);
    let perm = vec![AttributeProto::ints("perm", &[0, 1, 3, 2][..])];
    make.add("Transpose", &["present_key"], &["turned"], perm);
    make.add("MatMul", &["q", "turned"], &["scores"], vec![]);
    make.graph.initializer.push(TensorProto::f32("half", vec![], &[0.5]));
    make.add("Mul", &["scores", "half"], &["scaled"], vec![]);
    make.add("Softmax", &["scaled"], &["p"], vec![AttributeProto::int("axis", -1)]);
    make.add("MatMul", &["p", "present_value"], &["read"], vec![]);
    make.ints("flat", &[1, 8]);
    make.add("Reshape", &["read", "flat"], &["joined"], vec![]);
    make.layer("joined", "action", [8, 2], false);
    make.write(path);
}

/// The first stage of a policy: features of an observation.
pub(crate) fn encoder(path: &Path) {
    let mut make = Maker::new(&[("obs", data_type::FLOAT, &[1, 3])], &["features"]);
    make.numbers = Numbers(23);
    make.layer("obs", "hidden", [3, 6], true);
    make.layer("hidden", "features", [6, 3], false);
    make.write(path);
}
