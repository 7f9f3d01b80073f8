//! Exports: what the ONNX files look like, and what is refused.
//!
//! Whether ONNX Runtime computes our numbers from them is asked by the scripts in
//! `fixtures/oracles`. `QAILC_EXPORT_DIR` names a folder; then the models here are
//! written there with states, codes and actions, ready for those scripts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use prost::Message;
use qail_fixtures::Synthetic;
use qail_ir::{
    Graph,
    interp::{Data, Interpreter, Tensor},
    text,
};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, default_pipeline, quant::LoweringReport};
use qailc::{
    data::NpzWriter,
    export::{self, ExportOptions, exact, exposed_values, qdq},
    frontend::proto::{AttributeProto, Dim, ModelProto, NodeProto, TensorProto, TypeValue, data_type},
};

const EXPOSE: ExportOptions = ExportOptions { expose: true };

/// Policies of the shapes that matter: a normalizer in front and relu; tanh, which
/// needs tables; swish with a slice behind; a value that two layers read.
const POLICIES: [(&str, &str); 4] = [
    (
        "relu",
        r#"graph @relu(%obs: f32[1, 11]) -> (action = %action) {batch = 0} {
          %mean = const rand(1) : f32[11]
          %std = const splat(2.5) : f32[11]
          %centred = sub %obs, %mean : f32[1, 11]
          %normal = div %centred, %std : f32[1, 11]
          %w0 = const rand(2) : f32[11, 64]
          %b0 = const rand(3) : f32[64]
          %h0 = linear %normal, %w0, %b0 {act = relu} : f32[1, 64]
          %w1 = const rand(4) : f32[64, 64]
          %b1 = const rand(5) : f32[64]
          %h1 = linear %h0, %w1, %b1 {act = relu} : f32[1, 64]
          %w2 = const rand(6) : f32[64, 3]
          %b2 = const rand(7) : f32[3]
          %y = linear %h1, %w2, %b2 : f32[1, 3]
          %action = tanh %y : f32[1, 3]
        }"#,
    ),
    (
        "tanh",
        r#"graph @tanh(%obs: f32[1, 17]) -> (action = %action) {batch = 0} {
          %w0 = const rand(1) : f32[17, 48]
          %b0 = const rand(2) : f32[48]
          %h0 = linear %obs, %w0, %b0 {act = tanh} : f32[1, 48]
          %w1 = const rand(3) : f32[48, 33]
          %b1 = const rand(4) : f32[33]
          %h1 = linear %h0, %w1, %b1 {act = tanh} : f32[1, 33]
          %w2 = const rand(5) : f32[33, 6]
          %b2 = const rand(6) : f32[6]
          %y = linear %h1, %w2, %b2 : f32[1, 6]
          %action = clip %y {min = -1.0, max = 1.0} : f32[1, 6]
        }"#,
    ),
    (
        "silu",
        r#"graph @silu(%obs: f32[1, 20]) -> (action = %action) {batch = 0} {
          %w0 = const rand(1) : f32[20, 64]
          %b0 = const rand(2) : f32[64]
          %h0 = linear %obs, %w0, %b0 {act = silu} : f32[1, 64]
          %w1 = const rand(3) : f32[64, 32]
          %b1 = const rand(4) : f32[32]
          %h1 = linear %h0, %w1, %b1 {act = elu(0.7)} : f32[1, 32]
          %w2 = const rand(5) : f32[32, 8]
          %b2 = const rand(6) : f32[8]
          %y = linear %h1, %w2, %b2 : f32[1, 8]
          %mean = slice %y {start = [0, 0], len = [1, 4]} : f32[1, 4]
          %action = tanh %mean : f32[1, 4]
        }"#,
    ),
    (
        "branches",
        r#"graph @branches(%obs: f32[1, 9]) -> (left = %left, right = %right) {batch = 0} {
          %w0 = const rand(1) : f32[9, 40]
          %b0 = const rand(2) : f32[40]
          %h0 = linear %obs, %w0, %b0 {act = relu} : f32[1, 40]
          %w1 = const rand(3) : f32[40, 40]
          %b1 = const rand(4) : f32[40]
          %h1 = linear %h0, %w1, %b1 {act = relu} : f32[1, 40]
          %w2 = const rand(5) : f32[40, 2]
          %b2 = const rand(6) : f32[2]
          %left = linear %h1, %w2, %b2 : f32[1, 2]
          %w3 = const rand(7) : f32[40, 3]
          %b3 = const rand(8) : f32[3]
          %y3 = linear %h0, %w3, %b3 : f32[1, 3]
          %right = sigmoid %y3 : f32[1, 3]
        }"#,
    ),
];

fn policy(name: &str) -> Graph {
    let source = POLICIES.iter().find(|policy| policy.0 == name).unwrap().1;
    text::parse(source).unwrap()
}

/// States of a graph with one input.
fn states(graph: &Graph, seed: u64, n: usize) -> Vec<BTreeMap<String, Tensor>> {
    let input = graph.node(graph.inputs()[0]);
    let shape = &input.outputs[0].shape;
    let mut generator = Synthetic::new(seed, shape[1]);
    (0..n).map(|_| BTreeMap::from([(input.name.clone(), Tensor::f32(shape.clone(), generator.rows(1)))])).collect()
}

fn lowered(name: &str, precision: Precision) -> (Graph, LoweringReport) {
    let mut graph = policy(name);
    let samples = states(&graph, 1, 128);
    let mut cx = PassContext::with_samples(&samples);
    let passes = default_pipeline(&PipelineOptions::new(precision));
    PassManager::new(passes).run(&mut graph, &mut cx).unwrap();
    (graph, cx.lowering.unwrap_or_default())
}

/// What a reader of the file sees.
fn through_bytes(model: &ModelProto) -> ModelProto {
    let read = ModelProto::decode(model.encode_to_vec().as_slice()).unwrap();
    assert_eq!(*model, read);
    read
}

fn ops(model: &ModelProto) -> BTreeSet<&str> {
    model.graph.as_ref().unwrap().node.iter().map(|node| node.op_type.as_str()).collect()
}

fn output_names(model: &ModelProto) -> Vec<&str> {
    model.graph.as_ref().unwrap().output.iter().map(|output| output.name.as_str()).collect()
}

fn made_by<'m>(model: &'m ModelProto, output: &str) -> &'m NodeProto {
    model.graph.as_ref().unwrap().node.iter().find(|node| node.output == [output]).unwrap()
}

fn initializer<'m>(model: &'m ModelProto, name: &str) -> &'m TensorProto {
    model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name == name).unwrap()
}

fn scalar_f32(model: &ModelProto, name: &str) -> f32 {
    f32::from_le_bytes(initializer(model, name).raw_data.as_ref().unwrap()[..].try_into().unwrap())
}

/// Every tensor is made once, before it is read.
fn assert_ordered(model: &ModelProto) {
    let graph = model.graph.as_ref().unwrap();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let given = graph.input.iter().map(|value| &value.name).chain(graph.initializer.iter().map(|tensor| &tensor.name));
    for name in given {
        assert!(known.insert(name), "{name} twice");
    }
    for node in &graph.node {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            assert!(known.contains(name.as_str()), "{} reads {name} too early", node.name);
        }
        for name in &node.output {
            assert!(known.insert(name), "{name} twice");
        }
    }
    for output in &graph.output {
        assert!(known.contains(output.name.as_str()), "{} is never made", output.name);
    }
}

#[test]
fn every_policy_exports_in_both_forms_at_every_precision() {
    for (name, _) in POLICIES {
        for precision in Precision::ALL {
            let (graph, report) = lowered(name, precision);
            for model in [exact(&graph, &EXPOSE).unwrap(), qdq(&graph, &report, &EXPOSE).unwrap()] {
                let model = through_bytes(&model);
                assert_ordered(&model);
                assert_eq!((model.ir_version, model.opset_import[0].version), (10, 21));
            }
            if let Some(folder) = std::env::var_os("QAILC_EXPORT_DIR") {
                write_for_the_oracles(Path::new(&folder), &format!("{name}_{precision}"), &graph, &report);
            }
        }
    }
}

#[test]
fn the_exact_form_uses_six_operators_between_entry_and_exit() {
    let (graph, _) = lowered("relu", Precision::W4A4);
    let model = exact(&graph, &EXPOSE).unwrap();
    let used = ops(&model);
    let expected = ["Add", "Cast", "Clip", "MatMul", "Mul", "Round", "Tanh"];
    assert_eq!(used, expected.into_iter().collect());
    assert!(
        model
            .metadata_props
            .iter()
            .any(|entry| (entry.key.as_str(), entry.value.as_str()) == ("qailc.export", "exact"))
    );
    assert!(model.metadata_props.iter().all(|entry| entry.key != "qailc.inexact"));
}

#[test]
fn exposed_outputs_are_codes_and_accumulators_under_their_names() {
    let (graph, _) = lowered("relu", Precision::W4A4);
    let model = exact(&graph, &EXPOSE).unwrap();
    let mut expected = vec!["action".to_owned()];
    expected.extend(exposed_values(&graph).iter().map(|(value, _)| graph.node(value.node).name.clone()));
    assert_eq!(output_names(&model), expected);
    assert_eq!(expected.len(), 1 + 3 + 3, "three tensors of codes, three accumulators");
    assert_eq!(output_names(&exact(&graph, &ExportOptions::default()).unwrap()), ["action"]);
}

#[test]
fn the_batch_axis_is_open() {
    let (graph, report) = lowered("silu", Precision::W4A4);
    for model in [exact(&graph, &EXPOSE).unwrap(), qdq(&graph, &report, &EXPOSE).unwrap()] {
        let onnx = model.graph.as_ref().unwrap();
        for value in onnx.input.iter().chain(&onnx.output) {
            let Some(TypeValue::Tensor(tensor)) = &value.r#type.as_ref().unwrap().value else { panic!() };
            assert_eq!(tensor.shape.as_ref().unwrap().dim[0].value, Some(Dim::Param("batch".to_owned())));
        }
    }
}

#[test]
fn a_graph_that_mixes_rows_keeps_its_batch() {
    let source = r#"graph @g(%x: f32[1, 4]) -> (y = %y) {batch = 0} {
      %t = transpose %x {perm = [1, 0]} : f32[4, 1]
      %y = transpose %t {perm = [1, 0]} : f32[1, 4]
    }"#;
    let model = exact(&text::parse(source).unwrap(), &EXPOSE).unwrap();
    let Some(TypeValue::Tensor(tensor)) = &model.graph.unwrap().input[0].r#type.clone().unwrap().value else {
        panic!()
    };
    assert_eq!(tensor.shape.as_ref().unwrap().dim[0].value, Some(Dim::Value(1)));
}

/// One layer of each kind with numbers that can be checked by hand.
const BY_HAND: &str = r#"graph @g(%x: f32[1, 3]) -> (y = %y) {batch = 0} {
  %r = const [4.0] : f32[]
  %x.q = quantize %x, %r {lo = -32639, hi = 32639} : qs16[1, 3]
  %w.q = const [1, -2, 3, -4, 5, -7] : qs4[3, 2]
  %b.q = const [10, -20] : i32[2]
  %acc = qlinear %x.q, %w.q, %b.q : i32[1, 2]
  %m = const [40001, 50001] : i32[2]
  %s = const [20, 21] : i32[2]
  %h.q = requantize %acc, %m, %s {lo = 3, hi = 12, zero_point = 3} : qu4[1, 2]
  %w2.q = const [100, -127] : qs8[2, 1]
  %b2.q = const [7] : i32[1]
  %acc2 = qlinear %h.q, %w2.q, %b2.q : i32[1, 1]
  %s2 = const [0.001] : f64[1]
  %y = dequantize %acc2, %s2 : f32[1, 1]
}"#;

fn by_hand_report() -> LoweringReport {
    use qail_ir::{QuantScheme, fixed::Multiplier};
    use qail_passes::quant::{CodeInfo, LoweredLayer, LoweredRequantize, derived_scale};
    let entry = CodeInfo { scheme: QuantScheme::signed(16), step: 0.25, zero_point: 0, lo: -32639, hi: 32639 };
    let hidden = CodeInfo { scheme: QuantScheme::unsigned(4), step: 0.5, zero_point: 3, lo: 3, hi: 12 };
    let multipliers = [(40001, 20), (50001, 21)].map(|(m, shift)| Multiplier::new(m, shift).unwrap());
    let layer = |acc: &str, input: &str, codes: &CodeInfo, column_sums: Vec<i64>| LoweredLayer {
        name: acc.to_owned(),
        origin: Vec::new(),
        acc: acc.to_owned(),
        input: input.to_owned(),
        input_codes: codes.clone(),
        weights: String::new(),
        bias: String::new(),
        weight_scheme: QuantScheme::signed(4),
        nominal_scales: Vec::new(),
        k: 3,
        n: column_sums.len(),
        column_sums,
        bias_rounding: Vec::new(),
        keeps_bias: false,
        bound: 0,
        requantizes: Vec::new(),
        dequantize: None,
    };
    let mut first = layer("acc", "x.q", &entry, vec![9, -13]);
    first.requantizes.push(LoweredRequantize {
        node: "h.q".to_owned(),
        out: hidden.clone(),
        folded: Vec::new(),
        derived_scales: multipliers.map(|multiplier| derived_scale(multiplier, 0.5, 0.25)).to_vec(),
    });
    let second = layer("acc2", "h.q", &hidden, vec![-27]);
    LoweringReport {
        layers: vec![first, second],
        codes: [("x.q".to_owned(), entry), ("h.q".to_owned(), hidden)].into(),
        ..LoweringReport::default()
    }
}

#[test]
fn qdq_packs_weights_and_carries_derived_scales() {
    let graph = text::parse(BY_HAND).unwrap();
    let model = qdq(&graph, &by_hand_report(), &EXPOSE).unwrap();
    assert_ordered(&model);
    assert_eq!(output_names(&model), ["y", "x.q/real", "h.q/real"]);

    let weights = initializer(&model, "h.q/sum/codes");
    assert_eq!((weights.data_type, weights.dims.as_slice()), (data_type::INT4, &[3, 2][..]));
    // 1, -2 | 3, -4 | 5, -7: the first one in the low half.
    assert_eq!(weights.raw_data.as_ref().unwrap()[..], [0xE1, 0xC3, 0x95]);
    assert_eq!(made_by(&model, "h.q/sum/weights").attribute, [AttributeProto::int("axis", 1)]);

    let scale = |m: f64, shift: i32| (m * 2f64.powi(-shift) * 0.5 / 0.25) as f32;
    let scales: Vec<u8> = [scale(40001.0, 20), scale(50001.0, 21)].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(initializer(&model, "h.q/sum/scales").raw_data.as_ref().unwrap()[..], scales);

    // The lower end of the range is the zero point: a relu. The upper end is 12, not 15.
    assert_eq!(made_by(&model, "h.q/relu").op_type, "Relu");
    assert_eq!(scalar_f32(&model, "h.q/clip/hi"), (12.0 - 3.0) * 0.5);
    assert_eq!(made_by(&model, "h.q/clip").input[1], "");
    assert_eq!(scalar_f32(&model, "h.q/step"), 0.5);
    assert_eq!(initializer(&model, "h.q/zero_point").data_type, data_type::UINT4);

    // The observation keeps to 32,639, which the type alone would not do.
    assert_eq!((scalar_f32(&model, "x.q/clip/lo"), scalar_f32(&model, "x.q/clip/hi")), (-32639.0, 32639.0));

    // 7 + zero point 3 * column sum -27, times the exit scale 0.001.
    let bias = f32::from_le_bytes(initializer(&model, "y/sum/bias").raw_data.as_ref().unwrap()[..].try_into().unwrap());
    assert_eq!(bias, (-74.0 * (0.5 * (0.001 / 0.5))) as f32);
}

#[test]
fn weight_only_layers_keep_their_groups_of_rows() {
    let (graph, report) = lowered("relu", Precision::W4A16);
    let model = qdq(&graph, &report, &EXPOSE).unwrap();
    let (edge, inner) = (initializer(&model, "h0/codes"), initializer(&model, "h1/codes"));
    assert_eq!((edge.data_type, inner.data_type), (data_type::INT8, data_type::INT4));
    let blocks = [AttributeProto::int("axis", 0), AttributeProto::int("block_size", 32)];
    assert_eq!(made_by(&model, "h1/weights").attribute, blocks);
    assert_eq!(initializer(&model, "h1/scales").dims, [2, 64]);
    assert_eq!(made_by(&model, "h0/weights").attribute, [AttributeProto::int("axis", 1)]);
}

#[test]
fn an_output_keeps_its_name_whatever_nodes_are_called() {
    let source = r#"graph @g(%x: f32[1, 2]) -> (a = %b, b = %a, c = %x) {batch = 0} {
      %a = relu %x : f32[1, 2]
      %b = neg %a : f32[1, 2]
    }"#;
    let model = exact(&text::parse(source).unwrap(), &EXPOSE).unwrap();
    assert_ordered(&model);
    assert_eq!(output_names(&model), ["a", "b", "c"]);
    let behind = |output: &str| made_by(&model, &made_by(&model, output).input[0]).op_type.clone();
    assert_eq!((behind("a"), behind("b")), ("Neg".to_owned(), "Relu".to_owned()));
}

fn refused(source: &str) -> String {
    exact(&text::parse(source).unwrap(), &EXPOSE).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_exported_is_named() {
    assert_eq!(
        refused(
            r#"graph @g(%x: f32[1, 2]) -> (y = %y) {
              %s = const [0.5] : f32[]
              %y = fake_quant %x, %s {s8} : f32[1, 2]
            }"#
        ),
        "node `y`: fake_quant cannot be exported as exact: it has no codes yet; run the pass `lower-quant` first"
    );
    assert_eq!(
        refused(
            r#"graph @g(%acc: i32[1, 1]) -> (y = %y) {
              %m = const [40001] : i32[1]
              %s = const [20] : i32[1]
              %y = requantize %acc, %m, %s : qs16[1, 1]
            }"#
        ),
        "node `y`: requantize cannot be exported as exact: codes of more than 8 bits may round ties differently"
    );
    assert_eq!(
        refused(r#"graph @g(%x: f32[1, 2], %z: f32[1, 2]) -> (x = %z) {}"#),
        "output `x` has the name of an input; name the outputs differently"
    );
    let graph = text::parse(BY_HAND).unwrap();
    assert_eq!(
        qdq(&graph, &LoweringReport::default(), &EXPOSE).unwrap_err().to_string(),
        "node `x.q` is not in the report of the lowering; export the graph that `lower-quant` left"
    );
}

/// Files that `check_exact.py` and `check_qdq.py` read.
fn write_for_the_oracles(folder: &Path, name: &str, graph: &Graph, report: &LoweringReport) {
    const N: usize = 2000;
    std::fs::create_dir_all(folder).unwrap();
    let path = |what: &str| folder.join(format!("{name}.{what}"));
    export::write(&exact(graph, &EXPOSE).unwrap(), &path("exact.onnx")).unwrap();
    export::write(&qdq(graph, report, &EXPOSE).unwrap(), &path("qdq.onnx")).unwrap();
    let judge = Interpreter::new(graph).unwrap();
    let exposed: BTreeMap<_, _> = exposed_values(graph).into_iter().map(|(value, _)| (value.node, value)).collect();
    let mut codes: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let (mut observations, mut actions) = (BTreeMap::<_, Vec<f32>>::new(), BTreeMap::<_, Vec<f32>>::new());
    for state in states(graph, 2, N) {
        let outputs = judge
            .observe(&state, |id, tensor| {
                if let (true, Data::Int(values)) = (exposed.contains_key(&id), &tensor.data) {
                    let all = codes.entry(graph.node(id).name.clone()).or_default();
                    all.extend(values.iter().map(|&x| x as i32));
                }
            })
            .unwrap();
        for (from, to) in [(&state, &mut observations), (&outputs, &mut actions)] {
            for (name, tensor) in from {
                to.entry(name.clone()).or_default().extend(tensor.as_f32().unwrap());
            }
        }
    }
    let mut writer = NpzWriter::create(&path("codes.npz")).unwrap();
    for (name, values) in &codes {
        writer.add(name, &[N, values.len() / N], values).unwrap();
    }
    writer.finish().unwrap();
    for (what, arrays) in [("states.npz", &observations), ("actions.npz", &actions)] {
        let mut writer = NpzWriter::create(&path(what)).unwrap();
        for (name, values) in arrays {
            writer.add(name, &[N, values.len() / N], values).unwrap();
        }
        writer.finish().unwrap();
    }
}
