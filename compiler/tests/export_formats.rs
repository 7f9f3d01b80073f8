//! The forms that other tools read: what they look like, and that the compiler
//! reads its own files back with the same codes.
//!
//! Whether ONNX Runtime computes our numbers from them is asked by
//! `fixtures/oracles/check_formats.py`, which `oracles.rs` runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use qail_fixtures::Synthetic;
use qail_ir::{
    Graph, Op,
    interp::{self, Tensor},
    text,
};
use qail_passes::{
    PassContext, PassManager, PipelineOptions, Precision, default_pipeline, pipeline::given_pipeline,
    quant::LoweringReport,
};
use qailc::{
    export::{self, ExportOptions, exact, fake_quant, nbits, qcdq, qdq},
    frontend::{
        self, ImportOptions,
        proto::{AttributeProto, ModelProto, NodeProto, TensorProto, data_type},
    },
};
use support::IMAGES;

const PLAIN: ExportOptions = ExportOptions { expose: false };
const EXPOSE: ExportOptions = ExportOptions { expose: true };

/// Functions between layers: none, tables, and one that opset 13 has no operator for.
fn mlp(first: &str, second: &str) -> Graph {
    let source = format!(
        "graph @mlp(%obs: f32[1, 20]) -> (action = %action) {{batch = 0}} {{
          %w0 = const rand(1) : f32[20, 64]
          %b0 = const rand(2) : f32[64]
          %h0 = linear %obs, %w0, %b0 {{act = {first}}} : f32[1, 64]
          %w1 = const rand(3) : f32[64, 48]
          %b1 = const rand(4) : f32[48]
          %h1 = linear %h0, %w1, %b1 {{act = {second}}} : f32[1, 48]
          %w2 = const rand(5) : f32[48, 4]
          %b2 = const rand(6) : f32[4]
          %y = linear %h1, %w2, %b2 : f32[1, 4]
          %action = tanh %y : f32[1, 4]
        }}"
    );
    text::parse(&source).unwrap()
}

fn states(graph: &Graph, seed: u64, n: usize) -> Vec<BTreeMap<String, Tensor>> {
    let input = graph.node(graph.inputs()[0]);
    let shape = &input.outputs[0].shape;
    let mut generator = Synthetic::new(seed, shape.iter().product());
    (0..n).map(|_| BTreeMap::from([(input.name.clone(), Tensor::f32(shape.clone(), generator.rows(1)))])).collect()
}

fn lowered(graph: &Graph, options: &PipelineOptions) -> (Graph, LoweringReport) {
    let mut graph = graph.clone();
    let samples = states(&graph, 1, 64);
    let mut cx = PassContext::with_samples(&samples);
    PassManager::new(default_pipeline(options)).run(&mut graph, &mut cx).unwrap();
    (graph, cx.lowering.unwrap_or_default())
}

fn integers(precision: Precision, edge_bits: u8) -> PipelineOptions {
    PipelineOptions { edge_bits, ..PipelineOptions::new(precision) }
}

/// The model as `compile` reads it from a file, with its own codes.
fn read_back(model: &ModelProto) -> (Graph, LoweringReport) {
    let mut graph = imported(model);
    let mut cx = PassContext::new();
    PassManager::new(given_pipeline()).run(&mut graph, &mut cx).unwrap();
    (graph, cx.lowering.unwrap_or_default())
}

fn imported(model: &ModelProto) -> Graph {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exported.onnx");
    export::write(model, &path).unwrap();
    frontend::import(&path, &ImportOptions::default()).unwrap().graph
}

/// Operand `slot` of every layer of a kind, operands first.
fn constants(graph: &Graph, slot: usize, is_layer: fn(&Op) -> bool) -> Vec<Vec<i64>> {
    let layers = graph.topo().into_iter().filter(|&id| is_layer(&graph.node(id).op));
    layers.map(|id| graph.const_of(graph.operands(id)[slot]).unwrap().all_int().unwrap()).collect()
}

fn is_qlinear(op: &Op) -> bool {
    matches!(op, Op::QLinear(_))
}

fn is_linear_wq(op: &Op) -> bool {
    matches!(op, Op::LinearWq(_))
}

fn ops(model: &ModelProto) -> BTreeSet<&str> {
    model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type.as_str()).collect()
}

fn made_by<'m>(model: &'m ModelProto, output: &str) -> &'m NodeProto {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().find(|node| node.output.iter().any(|name| name == output)).unwrap()
}

fn initializer<'m>(model: &'m ModelProto, name: &str) -> &'m TensorProto {
    model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name == name).unwrap()
}

fn bytes(tensor: &TensorProto) -> &[u8] {
    tensor.raw_data.as_ref().unwrap()
}

#[test]
fn integer_models_come_back_from_qcdq_with_their_codes_and_scales() {
    for graph in [mlp("relu", "relu"), mlp("tanh", "silu"), mlp("gelu", "mish"), text::parse(IMAGES).unwrap()] {
        for (precision, edge_bits) in
            [(Precision::W8A8, 8), (Precision::W4A8, 8), (Precision::W4A4, 8), (Precision::W4A4, 4)]
        {
            let (ours, report) = lowered(&graph, &integers(precision, edge_bits));
            let (back, back_report) = read_back(&qcdq(&ours, &report, &PLAIN).unwrap());
            let what = format!("{} {precision} e{edge_bits}", graph.name);
            for slot in [1, 2] {
                assert_eq!(constants(&back, slot, is_qlinear), constants(&ours, slot, is_qlinear), "{what}: {slot}");
            }
            let widths = |graph: &Graph| -> Vec<_> {
                let layers = graph.topo().into_iter().filter(|&id| is_qlinear(&graph.node(id).op));
                layers.map(|id| graph.ty(graph.operands(id)[1]).scheme().unwrap()).collect()
            };
            assert_eq!(widths(&back), widths(&ours), "{what}: 4-bit codes in 8-bit integers are 4-bit codes");
            let steps = |report: &LoweringReport| -> Vec<(u64, i32)> {
                let mut all: Vec<(u64, i32)> =
                    report.layers.iter().map(|l| (l.input_codes.step.to_bits(), l.input_codes.zero_point)).collect();
                all.sort_unstable();
                all
            };
            assert_eq!(steps(&back_report), steps(&report), "{what}");
            for state in states(&graph, 5, 20) {
                // The same integers, and behind the exit the same scales to one rounding.
                let (a, b) = (interp::run(&ours, &state).unwrap(), interp::run(&back, &state).unwrap());
                for (x, y) in a["action"].as_f32().unwrap().iter().zip(b["action"].as_f32().unwrap()) {
                    assert!((x - y).abs() <= 1e-6 * x.abs().max(1.0), "{what}: {x} {y}");
                }
            }
        }
    }
}

#[test]
fn weights_come_back_from_every_form_of_weight_only_models() {
    for graph in [mlp("relu", "gelu"), text::parse(IMAGES).unwrap()] {
        for precision in [Precision::W4A16, Precision::W8A16] {
            for edge_bits in [4, 8] {
                let (ours, report) = lowered(&graph, &integers(precision, edge_bits));
                let expected = constants(&ours, 1, is_linear_wq);
                assert_eq!(expected.len(), 3);
                for model in [qcdq(&ours, &report, &PLAIN), nbits(&ours, &PLAIN)] {
                    let (back, _) = read_back(&model.unwrap());
                    assert_eq!(constants(&back, 1, is_linear_wq), expected, "{} {precision} e{edge_bits}", graph.name);
                    for state in states(&graph, 5, 4) {
                        let (a, b) = (interp::run(&ours, &state).unwrap(), interp::run(&back, &state).unwrap());
                        let (a, b) = (a["action"].as_f32().unwrap(), b["action"].as_f32().unwrap());
                        for (x, y) in a.iter().zip(b) {
                            assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{x} {y}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn convolutions_are_written_as_convolutions() {
    let graph = text::parse(IMAGES).unwrap();
    let (ours, report) = lowered(&graph, &integers(Precision::W4A4, 8));
    for model in [qdq(&ours, &report, &EXPOSE), qcdq(&ours, &report, &EXPOSE), fake_quant(&ours, &report, &EXPOSE)] {
        let model = model.unwrap();
        let convs = model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type == "Conv");
        let group =
            |conv: &NodeProto| conv.attribute.iter().find(|a| a.name == "group").map_or(1, |a| a.i.unwrap_or(1));
        assert_eq!(convs.map(group).collect::<Vec<_>>(), [1, 1, 8]);
        assert!(ops(&model).contains("ReduceMean"));
    }
    let model = exact(&ours, &EXPOSE).unwrap();
    assert!(ops(&model).is_superset(&["Gather", "ReduceMax", "ReduceSum", "Floor", "Pad"].into()));
    assert!(!ops(&model).contains("Conv"));
}

#[test]
fn a_float_export_computes_what_its_graph_computes() {
    let source = "graph @floats(%x: f32[2, 6, 8]) -> (%y, %best, %sums, %picked, %scattered) {
      %n = normalize %x {axes = [2], eps = 1e-5, center} : f32[2, 6, 8]
      %w = const rand(1) : f32[8, 8]
      %b = const rand(2) : f32[8]
      %l = linear %n, %w, %b {act = gelu_tanh} : f32[2, 6, 8]
      %h = reshape %l : f32[2, 6, 4, 2]
      %q = transpose %h {perm = [0, 2, 1, 3]} : f32[2, 4, 6, 2]
      %k = slice %q {start = [0, 0, 0, 0], len = [2, 2, 6, 2]} : f32[2, 2, 6, 2]
      %a = attention %q, %k, %k {scale = 0.7} : f32[2, 4, 6, 2]
      %t = transpose %a {perm = [0, 2, 1, 3]} : f32[2, 6, 4, 2]
      %o = reshape %t : f32[2, 6, 8]
      %p = softmax %o {axis = 2} : f32[2, 6, 8]
      %zero = const [0.1] : f32[]
      %m = gt %p, %zero : bool[2, 6, 8]
      %e = mish %o : f32[2, 6, 8]
      %s = hard_swish %x : f32[2, 6, 8]
      %y = where %m, %e, %s : f32[2, 6, 8]
      %best = top_k %y {axis = 2, k = 3, largest} : f32[2, 6, 3]
      %sums = cum_sum %y {axis = 1, exclusive} : f32[2, 6, 8]
      %i = const [5, 0, 3] : i64[3]
      %picked = gather %y, %i {axis = 1} : f32[2, 3, 8]
      %rows = const [1] : i64[1]
      %update = const rand(3) : f32[1, 6, 8]
      %scattered = scatter %y, %rows, %update {f = replace} : f32[2, 6, 8]
    }";
    let graph = text::parse(source).unwrap_or_else(|error| panic!("{error}"));
    let model = fake_quant(&graph, &LoweringReport::default(), &PLAIN).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (7, 13));
    let back = imported(&model);
    for state in states(&graph, 3, 4) {
        let (a, b) = (interp::run(&graph, &state).unwrap(), interp::run(&back, &state).unwrap());
        for (name, a) in &a {
            for (x, y) in a.as_f32().unwrap().iter().zip(b[name].as_f32().unwrap()) {
                assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{name}: {x} {y}");
            }
        }
    }
}

/// One layer of each kind with numbers that can be checked by hand.
fn by_hand() -> (Graph, LoweringReport) {
    let graph = text::parse(
        "graph @g(%x: f32[1, 2]) -> (y = %y) {batch = 0} {
          %sx = const [0.25] : f32[]
          %x.q = fake_quant %x, %sx {s16, lo = -32639, hi = 32639} : f32[1, 2]
          %w = const [0.5, -1.0, 1.5, -3.5] : f32[2, 2]
          %s = const [0.5, 0.5] : f32[2]
          %w.q = fake_quant %w, %s {s4, lo = -7, axis = 1} : f32[2, 2]
          %b = const [1.25, -2.5] : f32[2]
          %h = linear %x.q, %w.q, %b : f32[1, 2]
          %sh = const [1.0] : f32[]
          %zh = const [3] : i32[]
          %h.q = fake_quant %h, %sh, %zh {u4, lo = 3, hi = 12} : f32[1, 2]
          %w2 = const [1.0, -127.0] : f32[2, 1]
          %s2 = const [1.0] : f32[1]
          %w2.q = fake_quant %w2, %s2 {s8, lo = -127, axis = 1} : f32[2, 1]
          %b2 = const [7.0] : f32[1]
          %y = linear %h.q, %w2.q, %b2 : f32[1, 1]
        }",
    )
    .unwrap();
    let (mut graph, mut cx) = (graph, PassContext::new());
    PassManager::new(given_pipeline()).run(&mut graph, &mut cx).unwrap();
    (graph, cx.lowering.unwrap())
}

#[test]
fn qcdq_holds_narrow_codes_in_8_bits_behind_clip() {
    let (graph, report) = by_hand();
    let model = qcdq(&graph, &report, &EXPOSE).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (7, 13));
    let weights = initializer(&model, "h.q/sum/codes");
    assert_eq!((weights.data_type, bytes(weights)), (data_type::INT8, &[1, 0xFE, 3, 0xF9][..]));
    let narrow = made_by(&model, "h.q/sum/narrow");
    assert_eq!(narrow.op_type, "Clip");
    let bounds = [&narrow.input[1], &narrow.input[2]].map(|name| bytes(initializer(&model, name))[0] as i8);
    assert_eq!(bounds, [-8, 7]);
    assert_eq!(made_by(&model, "h.q/sum/weights").attribute, [AttributeProto::int("axis", 1)]);
    // 1.25 and -2.5 in units of 0.25 * 0.5.
    let bias = initializer(&model, "h.q/sum/bias/codes");
    assert_eq!((bias.data_type, bytes(bias)), (data_type::INT32, &[10, 0, 0, 0, 0xEC, 0xFF, 0xFF, 0xFF][..]));
    // Unsigned codes 3 to 12 around 3.
    let codes = made_by(&model, "h.q");
    assert_eq!((codes.op_type.as_str(), codes.input[0].as_str()), ("Clip", "h.q/wide"));
    assert_eq!([1, 2].map(|at| bytes(initializer(&model, &codes.input[at]))[0]), [3, 12]);
    assert_eq!(initializer(&model, "h.q/zero_point").data_type, data_type::UINT8);
    // 16 bits are floats.
    let chain = ["x.q/scaled", "x.q/rounded", "x.q", "x.q/real"].map(|name| made_by(&model, name).op_type.as_str());
    assert_eq!(chain, ["Mul", "Round", "Clip", "Mul"]);
    let outputs: Vec<&str> = model.graph.as_ref().unwrap().output.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(outputs, ["y", "x.q/real", "h.q/real"]);
}

#[test]
fn fake_quant_has_nothing_but_floats() {
    let (graph, report) = by_hand();
    let model = fake_quant(&graph, &report, &EXPOSE).unwrap();
    assert_eq!(ops(&model), ["Add", "Clip", "Div", "Identity", "MatMul", "Mul", "Round"].into());
    let floats = |tensor: &TensorProto| -> Vec<f32> {
        bytes(tensor).chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    };
    // 0.5 is no odd multiplier: 32769 * 2^-18 * s_out / s_in is next to it.
    let scale = 32769.0 / 65536.0;
    assert_eq!(floats(initializer(&model, "h.q/sum/weights")), [1.0, -2.0, 3.0, -7.0].map(|code: f32| code * scale));
    // Codes minus their zero point.
    assert_eq!(floats(initializer(&model, "h.q/hi")), [9.0]);
    let graph = model.graph.as_ref().unwrap();
    assert!(graph.initializer.iter().all(|tensor| tensor.data_type == data_type::FLOAT));
}

#[test]
fn the_metadata_says_where_codes_come_from() {
    let (graph, report) = by_hand();
    let model = qcdq(&graph, &report, &EXPOSE).unwrap();
    let entry = model.metadata_props.iter().find(|entry| entry.key == "qailc.codes").unwrap();
    let all: serde_json::Value = serde_json::from_str(&entry.value).unwrap();
    assert_eq!(all["x.q"]["from"]["kind"], "entry");
    let hidden = &all["h.q"];
    assert_eq!((hidden["zero_point"].as_i64(), hidden["step"].as_f64()), (Some(3), Some(1.0)));
    assert_eq!((hidden["from"]["kind"].as_str(), hidden["from"]["acc"].as_str()), (Some("layer"), Some("h.acc")));
    assert_eq!(hidden["from"]["factors"][0].as_f64(), Some(32769.0 / 262_144.0));
    assert!(qcdq(&graph, &report, &PLAIN).unwrap().metadata_props.iter().all(|entry| entry.key != "qailc.codes"));
}

#[test]
fn nbits_packs_blocks_of_columns_around_the_middle() {
    let graph = text::parse(
        "graph @g(%x: f32[1, 18]) -> (y = %y) {batch = 0} {
          %w = const rand(1) : f32[18, 2]
          %b = const [0.5, 1.0] : f32[2]
          %y = linear %x, %w, %b : f32[1, 2]
        }",
    )
    .unwrap();
    let (ours, _) = lowered(&graph, &integers(Precision::W4A16, 4));
    let model = nbits(&ours, &PLAIN).unwrap();
    let domains: Vec<(&str, i64)> =
        model.opset_import.iter().map(|opset| (opset.domain.as_str(), opset.version)).collect();
    assert_eq!(domains, [("", 13), ("com.microsoft", 1)]);
    let node = made_by(&model, "y/products");
    assert_eq!((node.op_type.as_str(), node.domain.as_str()), ("MatMulNBits", "com.microsoft"));
    let number = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).unwrap().i;
    assert_eq!(["K", "N", "bits", "block_size"].map(number), [18, 2, 4, 32].map(Some));
    let codes = initializer(&model, "y/codes");
    assert_eq!(codes.dims, [2, 1, 16]);
    // Column 1: rows 0 and 1 are in the first byte behind those of column 0; the rest of the block is code 0.
    let w = &constants(&ours, 1, is_linear_wq)[0];
    let byte = |low: i64, high: i64| ((high + 8) << 4 | (low + 8)) as u8;
    assert_eq!(bytes(codes)[16], byte(w[1], w[3]));
    assert_eq!(bytes(codes)[16 + 8], byte(w[16 * 2 + 1], w[17 * 2 + 1]));
    assert_eq!(bytes(codes)[16 + 9..], [0x88; 7]);
}

#[test]
fn nbits_refuses_what_it_cannot_hold() {
    let (graph, _) = lowered(&mlp("relu", "relu"), &integers(Precision::W8A8, 8));
    assert_eq!(
        nbits(&graph, &PLAIN).unwrap_err().to_string(),
        "node `obs.q`: quantize cannot be exported as nbits: MatMulNBits has float activations; use -b w4a16 or \
         w8a16, or --format qcdq for integer activations"
    );
    assert_eq!(
        nbits(&mlp("relu", "relu"), &PLAIN).unwrap_err().to_string(),
        "no layer has quantized weights, which nbits is for; use -b w4a16 or w8a16"
    );
    let graph = text::parse(
        "graph @g(%x: f32[1, 4]) -> (y = %y) {
          %w = const [1, 2, 3, 4] : qs4[4, 1]
          %s = const [0.5, 0.25] : f32[2, 1]
          %b = const [0.0] : f32[1]
          %y = linear_wq %x, %w, %s, %b {group = 2} : f32[1, 1]
        }",
    )
    .unwrap();
    assert_eq!(
        nbits(&graph, &PLAIN).unwrap_err().to_string(),
        "node `y`: linear_wq cannot be exported as nbits: MatMulNBits has blocks of 16, 32, 64, .. rows; use --format \
         qcdq, which has any"
    );
    assert!(qcdq(&graph, &LoweringReport::default(), &PLAIN).is_ok());
}
