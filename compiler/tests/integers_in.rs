//! Models that read images and commands: inputs and outputs that are not `f32`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod support;

use std::path::Path;

use prost::Message;
use qail_passes::Precision;
use qailc::{
    data::{Npz, NpzWriter, NumberType},
    frontend::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
    },
    pipeline::{self, BuildOptions, Silent},
};

fn node(op: &str, inputs: &[&str], output: &str, to: Option<i64>) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: to.map(|to| AttributeProto::int("to", to)).into_iter().collect(),
        ..NodeProto::default()
    }
}

/// `act = tanh(image * w + command)`, and the image and the command turned around.
fn model() -> Vec<u8> {
    let value = |name: &str| ValueInfoProto { name: name.to_owned(), r#type: None };
    let weights: Vec<f32> = (0..8).map(|i| (i as f32 - 3.5) / 1000.0).collect();
    let graph = GraphProto {
        name: "camera".to_owned(),
        input: vec![
            ValueInfoProto::tensor("image", data_type::UINT8, &[1, 4]),
            ValueInfoProto::tensor("command", data_type::INT64, &[1, 2]),
        ],
        output: vec![value("act"), value("picture"), value("order")],
        initializer: vec![TensorProto::f32("w", [4, 2], &weights), TensorProto::i64("shape", [2], &[1, -1])],
        node: vec![
            node("Cast", &["image"], "pixels", Some(1)),
            node("Cast", &["command"], "wanted", Some(1)),
            node("MatMul", &["pixels", "w"], "seen", None),
            node("Add", &["seen", "wanted"], "sum", None),
            node("Tanh", &["sum"], "act", None),
            node("Transpose", &["image"], "picture", None),
            node("Transpose", &["command"], "order", None),
        ],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

const N_STEPS: usize = 6;
/// Needs more bits than an `f32` has.
const LARGE: i64 = (1 << 30) + 1;

fn write_files(folder: &Path) {
    std::fs::write(folder.join("camera.onnx"), model()).unwrap();
    let images: Vec<u8> = (0..N_STEPS * 4).map(|i| (i * 37 % 256) as u8).collect();
    let commands: Vec<i64> = (0..N_STEPS * 2).map(|i| if i == 0 { LARGE } else { i as i64 % 3 - 1 }).collect();
    let mut writer = NpzWriter::create(&folder.join("demos.npz")).unwrap();
    writer.add("image", &[N_STEPS, 4], &images).unwrap();
    writer.add("command", &[N_STEPS, 2], &commands).unwrap();
    writer.add("episode_ends", &[2], &[3i64, N_STEPS as i64]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn images_and_commands_compile_in_every_precision() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path());
    for precision in [Precision::F32, Precision::W8A16, Precision::W4A16, Precision::W8A8, Precision::W4A4] {
        let options = BuildOptions {
            demos: Some(folder.path().join("demos.npz")),
            n_calibration: 100,
            ..BuildOptions::new(precision)
        };
        let built = pipeline::compile(&folder.path().join("camera.onnx"), &options, &mut Silent);
        let built = built.unwrap_or_else(|error| panic!("{precision}: {error}"));
        let held_out = &built.quantized.demonstrations.unwrap().held_out;
        assert_eq!(held_out[0]["image"].as_ints().unwrap().len(), 4);
    }
}

#[test]
fn outputs_keep_their_types() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path());
    let args = ["compile", "camera.onnx", "-b", "f32", "--demos", "demos.npz", "-o", "camera.qail"];
    let (code, out, err) = support::say(folder.path(), &args);
    assert_eq!(code, 0, "{err}");
    // What is only moved is not changed.
    for output in ["picture", "order"] {
        assert!(out.contains(&format!("output `{output}` against the teacher, 3 samples: mse 0.000e0")), "{out}");
    }
    let (code, _, err) = support::say(folder.path(), &["run", "camera.qail", "--input", "demos.npz", "-o", "out.npz"]);
    assert_eq!(code, 0, "{err}");
    let (given, found) =
        (Npz::open(&folder.path().join("demos.npz")).unwrap(), Npz::open(&folder.path().join("out.npz")).unwrap());
    for (input, output, ty) in [("image", "picture", NumberType::U8), ("command", "order", NumberType::I64)] {
        assert_eq!(found.info(output).unwrap().ty, ty);
        let all = 0..N_STEPS;
        let rows = found.info(output).unwrap().n_rows();
        assert_eq!(found.read_i64(output, 0..rows).unwrap(), given.read_i64(input, all).unwrap());
    }
    let (_, out, _) = support::say(folder.path(), &["run", "camera.qail", "--input", "demos.npz", "--rows", "1"]);
    assert!(out.ends_with(&format!("0 37 74 111 {LARGE} 0\n")), "{out}");
}

#[test]
fn a_number_that_an_input_cannot_hold_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path());
    let mut writer = NpzWriter::create(&folder.path().join("wrong.npz")).unwrap();
    writer.add("image", &[2, 4], &[1f32, 2.0, 3.0, 4.0, 5.0, 0.5, 7.0, 8.0]).unwrap();
    writer.add("command", &[2, 2], &[1i64; 4]).unwrap();
    writer.finish().unwrap();
    let (code, _, err) = support::say(folder.path(), &["compile", "camera.onnx", "--demos", "wrong.npz"]);
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("array `image` has 0.5 at row 1, column 1"), "{err}");
}

/// `act = where(mask, x * w, -9)`: which commands are allowed comes from outside.
fn masked() -> Vec<u8> {
    let graph = GraphProto {
        name: "masked".to_owned(),
        input: vec![
            ValueInfoProto::tensor("x", data_type::FLOAT, &[1, 4]),
            ValueInfoProto::tensor("mask", data_type::BOOL, &[1, 2]),
        ],
        output: vec![ValueInfoProto { name: "act".to_owned(), r#type: None }],
        initializer: vec![TensorProto::f32("w", [4, 2], &[0.5; 8]), TensorProto::f32("off", [], &[-9.0])],
        node: vec![node("MatMul", &["x", "w"], "free", None), node("Where", &["mask", "free", "off"], "act", None)],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

#[test]
fn truth_values_come_from_arrays_of_bool_and_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("masked.onnx"), masked()).unwrap();
    let write = |name: &str, mask: &dyn Fn(&mut NpzWriter)| {
        let mut writer = NpzWriter::create(&folder.path().join(name)).unwrap();
        writer.add("x", &[3, 4], &[1f32, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0]).unwrap();
        mask(&mut writer);
        writer.finish().unwrap();
    };
    write("bytes.npz", &|writer| writer.add("mask", &[3, 2], &[1u8, 0, 0, 1, 255, 2]).unwrap());
    write("bools.npz", &|writer| writer.add("mask", &[3, 2], &[true, false, false, true, true, true]).unwrap());
    for precision in ["f32", "w8a8", "w4a4"] {
        let args =
            ["compile", "masked.onnx", "-b", precision, "--method", "ptq", "--demos", "bools.npz", "-o", "m.qail"];
        let (code, _, err) = support::say(folder.path(), &args);
        assert_eq!(code, 0, "{precision}: {err}");
        for devices in [vec!["cpu".to_owned()], support::vulkan().iter().map(|device| device.to_string()).collect()] {
            for device in devices {
                let of = |data: &str| {
                    let args = ["run", "m.qail", "--input", data, "--device", &device];
                    let (code, out, err) = support::say(folder.path(), &args);
                    assert_eq!(code, 0, "{precision} on {device}: {err}");
                    out
                };
                let found = of("bools.npz");
                assert_eq!(found, of("bytes.npz"), "{precision} on {device}");
                let numbers: Vec<f64> = found.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                let expected = [2.0, -9.0, -9.0, 4.0, 6.0, 6.0];
                let near = |(x, y): (&f64, &f64)| (x - y).abs() < 0.6;
                assert!(numbers.len() == 6 && numbers.iter().zip(&expected).all(near), "{precision} {device}: {found}");
            }
        }
    }
}
