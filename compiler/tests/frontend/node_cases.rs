//! The node cases of the ONNX standard: a model of one operator, inputs, and
//! the outputs that it must have.
//!
//! They come with the `onnx` package (1.20.1 has 1,653 of them, in
//! `onnx/backend/test/data/node`) and are not kept here; `QAILC_ONNX_NODE_CASES`
//! names the folder. `node_cases.txt` lists those in scope: each has to pass. Every other
//! case has to be refused with a reason, or be one of the few that ONNX Runtime overrules; a case
//! that begins to pass has to be listed.
//!
//! Numbers are inputs of the graph. Where an operator needs to know its integers (shapes and
//! axes, which every exporter stores as constants) or all of its operands (ranges), they are given
//! as constants: a case passes in the first of these ways that is not refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use prost::Message;
use qail_ir::{DType, TensorType, interp};
use qailc::frontend::{
    ImportOptions, import_bytes,
    proto::{ModelProto, TensorProto, data_type},
};

/// Names of the cases in scope, one a line.
const IN_SCOPE: &str = include_str!("node_cases.txt");

/// Cases whose outputs are not those of ONNX Runtime, which is followed instead. One that begins to
/// pass has to go to the others.
const OVERRULED: [(&str, &str); 5] = [
    // Later revisions of the standard cap the scores first.
    ("test_attention_3d_with_past_and_present_qk_matmul_softcap", "the mask is added before the cap"),
    ("test_attention_4d_with_qk_matmul_softcap", "the mask is added before the cap"),
    ("test_l2normalization_axis_0", "a row of zeros is not a number"),
    ("test_resize_downsample_scales_cubic_align_corners", "the last corner is that of a fractional extent"),
    ("test_resize_downsample_scales_linear_align_corners", "the last corner is that of a fractional extent"),
];

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Pass,
    /// A typed error.
    Refused(String),
    Wrong(String),
    /// The graph was read, but operands or results are of a kind that cannot be compared here.
    Unjudged,
}

/// Which operands are inputs of the graph; the others are constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Numbers,
    Floats,
    Nothing,
}

fn tensors(folder: &Path, kind: &str) -> Option<Vec<TensorProto>> {
    (0..)
        .map(|i| folder.join("test_data_set_0").join(format!("{kind}_{i}.pb")))
        .take_while(|path| path.exists())
        .map(|path| TensorProto::decode(fs::read(path).ok()?.as_slice()).ok())
        .collect()
}

/// Elements of a tensor as numbers, or nothing for types that are out of scope.
fn elements(tensor: &TensorProto) -> Option<Vec<f64>> {
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
    let wide = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).unwrap_or_default();
    let word = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).unwrap_or_default();
    Some(match tensor.data_type {
        data_type::FLOAT => raw.chunks(4).map(|b| f64::from(f32::from_le_bytes(word(b)))).collect(),
        data_type::INT64 => raw.chunks(8).map(|b| i64::from_le_bytes(wide(b)) as f64).collect(),
        data_type::INT32 => raw.chunks(4).map(|b| f64::from(i32::from_le_bytes(word(b)))).collect(),
        data_type::BOOL | data_type::UINT8 => raw.iter().map(|&b| f64::from(b)).collect(),
        data_type::DOUBLE => raw.chunks(8).map(|b| f64::from_le_bytes(wide(b))).collect(),
        data_type::FLOAT16 => raw.chunks(2).map(|b| f64::from(f16::from_le_bytes([b[0], b[1]]))).collect(),
        _ => return None,
    })
}

/// Type of an operand that is an input of the graph, if it is.
fn input_type(tensor: &TensorProto, given: Given) -> Option<DType> {
    match (tensor.data_type, given) {
        (_, Given::Nothing) => None,
        (data_type::FLOAT | data_type::DOUBLE | data_type::FLOAT16, _) => Some(DType::F32),
        (data_type::INT64, Given::Numbers) => Some(DType::I64),
        (data_type::INT32, Given::Numbers) => Some(DType::I32),
        (data_type::UINT8 | data_type::BOOL, Given::Numbers) => Some(DType::U8),
        _ => None,
    }
}

fn run_case(folder: &Path) -> Outcome {
    let bytes = fs::read(folder.join("model.onnx")).unwrap();
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    let operands = tensors(folder, "input").zip(tensors(folder, "output"));
    let readable = |tensors: &[TensorProto]| tensors.iter().all(|tensor| elements(tensor).is_some());
    let Some((inputs, outputs)) = operands.filter(|(inputs, outputs)| readable(inputs) && readable(outputs)) else {
        return match import_bytes(bytes, None, &ImportOptions::default()) {
            Ok(_) => Outcome::Unjudged,
            Err(error) => Outcome::Refused(error.to_string()),
        };
    };
    let mut refused = None;
    for given in [Given::Numbers, Given::Floats, Given::Nothing] {
        match run_given(model.clone(), &inputs, &outputs, given) {
            Outcome::Refused(reason) => refused = refused.or(Some(reason)),
            outcome => return outcome,
        }
    }
    Outcome::Refused(refused.unwrap_or_default())
}

fn run_given(mut model: ModelProto, inputs: &[TensorProto], outputs: &[TensorProto], way: Given) -> Outcome {
    let graph = model.graph.get_or_insert_default();
    let mut given = BTreeMap::new();
    let names: Vec<String> = graph.input.iter().map(|info| info.name.clone()).collect();
    for (name, tensor) in names.into_iter().zip(inputs) {
        let mut tensor = tensor.clone();
        if let Some(dtype) = input_type(&tensor, way) {
            let shape: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
            let data = elements(&tensor).unwrap_or_default();
            given.insert(
                name,
                match dtype {
                    DType::F32 => interp::Tensor::f32(shape, data.iter().map(|&x| x as f32).collect()),
                    _ => {
                        interp::Tensor::ints(TensorType::plain(dtype, shape), data.iter().map(|&x| x as i64).collect())
                    }
                },
            );
        } else {
            tensor.name = name.clone();
            graph.input.retain(|info| info.name != name);
            graph.initializer.push(tensor);
        }
    }
    let names: Vec<String> = graph.output.iter().map(|info| info.name.clone()).collect();
    let imported = match import_bytes(model.encode_to_vec(), None, &ImportOptions::default()) {
        Ok(imported) => imported,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let kept: BTreeSet<&str> =
        imported.graph.inputs().iter().map(|&id| imported.graph.node(id).name.as_str()).collect();
    given.retain(|name, _| kept.contains(name.as_str()));
    let found = match interp::run(&imported.graph, &given) {
        Ok(found) => found,
        Err(error) => return Outcome::Wrong(error.to_string()),
    };
    for (name, expected) in names.iter().zip(outputs) {
        let shape: Vec<usize> = expected.dims.iter().map(|&dim| dim as usize).collect();
        let (Some(found), Some(expected)) = (found.get(name), elements(expected)) else {
            return Outcome::Wrong(format!("{name} is missing"));
        };
        if found.ty.shape != shape {
            return Outcome::Wrong(format!("{name} has shape {:?}, not {shape:?}", found.ty.shape));
        }
        // The tolerance of the standard's own runner.
        let close = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-7 + 1e-3 * y.abs();
        if let Some((x, y)) = found.to_f64().into_iter().zip(expected).find(|&(x, y)| !close(x, y)) {
            return Outcome::Wrong(format!("{name} has {x} for {y}"));
        }
    }
    Outcome::Pass
}

#[test]
fn node_cases_in_scope_pass_and_the_others_are_refused() {
    let Some(root) = std::env::var_os("QAILC_ONNX_NODE_CASES").map(PathBuf::from) else {
        println!("skipped: QAILC_ONNX_NODE_CASES does not name the node cases of the onnx package");
        return;
    };
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let in_scope: BTreeSet<&str> = IN_SCOPE.lines().filter(|line| !line.is_empty()).collect();
    let (mut n_in_scope, mut n_passing, mut bad) = (0, 0, Vec::new());
    for folder in &folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let listed = in_scope.contains(name.as_str());
        n_in_scope += usize::from(listed);
        if let Some((_, reason)) = OVERRULED.iter().find(|(overruled, _)| *overruled == name) {
            match run_case(folder) {
                Outcome::Wrong(_) => println!("overruled {name}: {reason}"),
                outcome => bad.push(format!("overruled {name}: {outcome:?}")),
            }
            continue;
        }
        match (run_case(folder), listed) {
            (Outcome::Pass, true) => n_passing += 1,
            (Outcome::Pass, false) => bad.push(format!("unlisted {name} passes")),
            (Outcome::Wrong(reason), _) => bad.push(format!("wrong {name}: {reason}")),
            (Outcome::Refused(reason), true) => bad.push(format!("refused {name}: {reason}")),
            (Outcome::Unjudged, true) => bad.push(format!("{name} cannot be compared")),
            (Outcome::Refused(_) | Outcome::Unjudged, false) => {}
        }
    }
    println!("onnx node cases: {n_in_scope} in scope / {n_passing} passing / {} total", folders.len());
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
