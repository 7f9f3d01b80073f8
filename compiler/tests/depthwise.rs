//! Networks whose channels have windows of their own: every layer and every pool
//! runs on codes, and interpreter, CPU and shaders agree in all of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

#[path = "loops/models.rs"]
#[allow(dead_code, reason = "each test crate uses a part of it")]
mod models;
mod support;

use std::path::Path;

use models::Numbers;
use prost::Message;
use qail_ir::{Op, interp::Interpreter};
use qail_passes::Precision;
use qail_runtime::{DeviceSpec, Isa, LoadOptions, Session, TensorView, TensorViewMut};
use qailc::{
    data::NpzWriter,
    frontend::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
    },
    pipeline::{self, BuildOptions, Built, Silent},
};

/// Channels, height and width of an image.
const IMAGE: [usize; 3] = [2, 10, 10];
const N_STEPS: usize = 40;

/// A convolution, a pool in front of a residual block, then depthwise ones between pointwise ones, pools with both kinds
/// of padding.
fn model() -> Vec<u8> {
    let mut graph = GraphProto { name: "separable".to_owned(), ..GraphProto::default() };
    graph.input.push(ValueInfoProto::tensor("image", data_type::FLOAT, &[1, 2, 10, 10]));
    graph.output.push(ValueInfoProto { name: "action".to_owned(), r#type: None });
    let mut numbers = Numbers(7);
    let mut add = |op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>| {
        graph.node.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        });
    };
    let window = |kernel: i64, stride: i64, pad: i64| {
        vec![
            AttributeProto::ints("kernel_shape", [kernel, kernel]),
            AttributeProto::ints("strides", [stride, stride]),
            AttributeProto::ints("pads", [pad; 4]),
        ]
    };
    let conv = |stride: i64, groups: i64| [window(3, stride, 1), vec![AttributeProto::int("group", groups)]].concat();
    add("Conv", &["image", "w0", "b0"], "c0", conv(1, 1));
    add("Relu", &["c0"], "h0", vec![]);
    add("MaxPool", &["h0"], "p0", window(3, 1, 1));
    add("Conv", &["p0", "w5"], "c5", conv(1, 1));
    add("Add", &["p0", "c5"], "s5", vec![]);
    add("Relu", &["s5"], "h5", vec![]);
    add("Conv", &["h5", "w1", "b1"], "c1", conv(2, 6));
    add("Relu", &["c1"], "h1", vec![]);
    add("Conv", &["h1", "w2", "b2"], "c2", window(1, 1, 0));
    add("AveragePool", &["c2"], "p2", window(3, 1, 1));
    // Two results a channel.
    add("Conv", &["p2", "w3"], "c3", conv(1, 8));
    add("Sigmoid", &["c3"], "s3", vec![]);
    add("Mul", &["c3", "s3"], "h3", vec![]);
    let counted = [window(3, 2, 1), vec![AttributeProto::int("count_include_pad", 1)]].concat();
    add("AveragePool", &["h3"], "p3", counted);
    add("GlobalAveragePool", &["p3"], "g", vec![]);
    add("Flatten", &["g"], "f", vec![]);
    add("Gemm", &["f", "w4", "b4"], "action", vec![]);
    for (name, dims) in [
        ("w0", vec![6, 2, 3, 3]),
        ("b0", vec![6]),
        ("w1", vec![6, 1, 3, 3]),
        ("b1", vec![6]),
        ("w2", vec![8, 6, 1, 1]),
        ("b2", vec![8]),
        ("w3", vec![16, 1, 3, 3]),
        ("w4", vec![16, 3]),
        ("w5", vec![6, 6, 3, 3]),
        ("b4", vec![3]),
    ] {
        let n: i64 = dims.iter().product();
        let elements = numbers.list(n as usize, if dims.len() == 1 { 0.2 } else { 0.7 });
        graph.initializer.push(TensorProto::f32(name, dims, &elements));
    }
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

fn compile(folder: &Path, precision: Precision) -> Built {
    std::fs::write(folder.join("separable.onnx"), model()).unwrap();
    let mut writer = NpzWriter::create(&folder.join("demos.npz")).unwrap();
    let images = Numbers(3).list(N_STEPS * IMAGE.iter().product::<usize>(), 1.0);
    writer.add("image", &[N_STEPS, IMAGE[0], IMAGE[1], IMAGE[2]], &images).unwrap();
    writer.add("episode_ends", &[2], &[20i64, N_STEPS as i64]).unwrap();
    writer.finish().unwrap();
    let options =
        BuildOptions { demos: Some(folder.join("demos.npz")), n_calibration: 100, ..BuildOptions::new(precision) };
    pipeline::compile(&folder.join("separable.onnx"), &options, &mut Silent).unwrap()
}

fn devices() -> Vec<DeviceSpec> {
    let mut specs: Vec<DeviceSpec> =
        Isa::ALL.into_iter().filter(|isa| isa.is_present()).map(|isa| DeviceSpec::Cpu(Some(isa))).collect();
    specs.extend(support::vulkan());
    specs
}

#[test]
fn every_layer_and_pool_runs_on_codes_and_agrees_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    for precision in [Precision::W8A8, Precision::W4A8, Precision::W4A4] {
        let built = compile(folder.path(), precision);
        let graph = &built.quantized.graph;
        let lowering = built.quantized.lowering.as_ref().unwrap();
        assert!(lowering.float_layers.is_empty() && lowering.islands.is_empty(), "{precision}: {lowering:?}");
        let groups: Vec<usize> = (graph.topo().into_iter())
            .filter_map(|id| match &graph.node(id).op {
                Op::QLinear(linear) => Some(linear.groups),
                _ => None,
            })
            .collect();
        assert_eq!(groups, [1, 1, 6, 1, 8, 1]);
        // The residual sum reads 8-bit codes of the pool; who reads it in 4 bits has a table behind it.
        let is_pooled = |id| {
            let of = graph.operands(id).first().map(|x| &graph.node(x.node).op);
            matches!(graph.node(id).op, Op::Lookup(_)) && matches!(of, Some(Op::Reduce(_)))
        };
        assert_eq!(graph.topo().into_iter().any(is_pooled), precision == Precision::W4A4);

        let judge = Interpreter::new(graph).unwrap();
        let states = &built.quantized.demonstrations.as_ref().unwrap().held_out;
        let options = LoadOptions { keep_intermediates: true, ..LoadOptions::default() };
        let mut sessions: Vec<Session> = devices()
            .into_iter()
            .map(|device| Session::load_with(built.bytes.as_slice(), device, &options).unwrap())
            .collect();
        for state in states.iter().take(3) {
            let mut integers = Vec::new();
            let outputs = judge
                .observe(state, |id, tensor| {
                    let constant = matches!(graph.node(id).op, Op::Const(_));
                    if let Some(codes) = tensor.as_ints().filter(|_| !constant) {
                        let codes: Vec<i32> = codes.iter().map(|&code| code as i32).collect();
                        integers.push((graph.node(id).name.clone(), codes));
                    }
                })
                .unwrap();
            let expected: Vec<u32> = outputs["action"].as_f32().unwrap().iter().map(|x| x.to_bits()).collect();
            for session in &mut sessions {
                let name = session.device_name().to_owned();
                let mut action = vec![0f32; 3];
                let image = state["image"].as_f32().unwrap();
                session.run(&[TensorView::F32(image)], &mut [TensorViewMut::F32(&mut action)]).unwrap();
                let found: Vec<u32> = action.iter().map(|x| x.to_bits()).collect();
                assert_eq!(found, expected, "{precision} on {name}");
                // Accumulators that a step keeps to itself are in no memory.
                let mut n_compared = 0;
                for (tensor, codes) in &integers {
                    let Ok(found) = session.read_codes(tensor) else { continue };
                    assert_eq!(&found, codes, "{precision} on {name}: `{tensor}`");
                    n_compared += 1;
                }
                assert!(n_compared > 15, "{n_compared} tensors are in memory");
            }
        }
    }
}

#[test]
fn what_stays_in_floats_is_exact_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    for precision in [Precision::F32, Precision::W8A16] {
        let built = compile(folder.path(), precision);
        let graph = &built.quantized.graph;
        assert!(!graph.topo().into_iter().any(|id| matches!(&graph.node(id).op, Op::Linear(l) if l.groups > 1)));
        let state = &built.quantized.demonstrations.as_ref().unwrap().held_out[0];
        let outputs = Interpreter::new(graph).unwrap().run(state).unwrap();
        let mut session = Session::load(built.bytes.as_slice(), DeviceSpec::Cpu(None)).unwrap();
        let mut action = vec![0f32; 3];
        let image = state["image"].as_f32().unwrap();
        session.run(&[TensorView::F32(image)], &mut [TensorViewMut::F32(&mut action)]).unwrap();
        assert_eq!(action, outputs["action"].as_f32().unwrap());
    }
}
