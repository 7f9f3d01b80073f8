//! The node cases of the ONNX standard: a model of one operator, inputs, and
//! the outputs that it must have.
//!
//! They come with the `onnx` package (1.20.1 has 1,653 of them, in
//! `onnx/backend/test/data/node`) and are not kept here; `QAILC_ONNX_NODE_CASES`
//! names the folder. Operands of integers are given as constants, as every
//! exporter gives shapes and axes; floats are inputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use qail_ir::interp;
use qailc::frontend::{
    ImportOptions, import_bytes, operators,
    proto::{ModelProto, TensorProto, data_type},
};

/// Cases of these operators that are refused, and why.
const REFUSED: [(&str, &str); 7] = [
    ("test_constantofshape_int_shape_zero", "outputs without elements"),
    ("test_pow_types_int", "integer powers of two types"),
    ("test_reduce_max_bool", "arithmetic on truth values"),
    ("test_reduce_min_bool", "arithmetic on truth values"),
    ("test_shape_start_greater_than_end", "outputs without elements"),
    ("test_split_zero_size", "tensors without elements"),
    ("test_training_dropout", "dropout in training mode"),
];

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    OutOfScope,
    Pass,
    Refused(String),
    Wrong(String),
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
        _ => return None,
    })
}

fn run_case(folder: &Path) -> Option<Outcome> {
    let mut model = ModelProto::decode(fs::read(folder.join("model.onnx")).ok()?.as_slice()).ok()?;
    let (inputs, outputs) = (tensors(folder, "input")?, tensors(folder, "output")?);
    let graph = model.graph.as_mut()?;
    let in_scope = graph.node.iter().all(|node| operators().any(|name| name == node.op_type) && node.domain.is_empty());
    let simple = |tensor: &TensorProto| elements(tensor).is_some_and(|e| !e.is_empty() || tensor.dims == [0]);
    if !in_scope || !inputs.iter().chain(&outputs).all(simple) {
        return Some(Outcome::OutOfScope);
    }
    let mut given = BTreeMap::new();
    let names: Vec<String> = graph.input.iter().map(|info| info.name.clone()).collect();
    for (name, mut tensor) in names.into_iter().zip(inputs) {
        if tensor.data_type == data_type::FLOAT {
            let shape: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
            let data = elements(&tensor)?.iter().map(|&x| x as f32).collect();
            given.insert(name, interp::Tensor::f32(shape, data));
        } else {
            tensor.name = name.clone();
            graph.input.retain(|info| info.name != name);
            graph.initializer.push(tensor);
        }
    }
    let names: Vec<String> = graph.output.iter().map(|info| info.name.clone()).collect();
    let imported = match import_bytes(model.encode_to_vec(), None, &ImportOptions::default()) {
        Ok(imported) => imported,
        Err(error) => return Some(Outcome::Refused(error.to_string())),
    };
    let kept: BTreeSet<&str> =
        imported.graph.inputs().iter().map(|&id| imported.graph.node(id).name.as_str()).collect();
    given.retain(|name, _| kept.contains(name.as_str()));
    let found = match interp::run(&imported.graph, &given) {
        Ok(found) => found,
        Err(error) => return Some(Outcome::Wrong(error.to_string())),
    };
    for (name, expected) in names.iter().zip(&outputs) {
        let shape: Vec<usize> = expected.dims.iter().map(|&dim| dim as usize).collect();
        let (found, expected) = (found.get(name)?, elements(expected)?);
        if found.ty.shape != shape {
            return Some(Outcome::Wrong(format!("{name} has shape {:?}, not {shape:?}", found.ty.shape)));
        }
        // The tolerance of the standard's own runner.
        let close = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-7 + 1e-3 * y.abs();
        if let Some((x, y)) = found.to_f64().into_iter().zip(expected).find(|&(x, y)| !close(x, y)) {
            return Some(Outcome::Wrong(format!("{name} has {x} for {y}")));
        }
    }
    Some(Outcome::Pass)
}

#[test]
fn node_cases_in_scope_pass() {
    let Some(root) = std::env::var_os("QAILC_ONNX_NODE_CASES").map(PathBuf::from) else {
        println!("skipped: QAILC_ONNX_NODE_CASES does not name the node cases of the onnx package");
        return;
    };
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut n_in_scope, mut n_passing, mut bad) = (0, 0, Vec::new());
    let mut unused: BTreeSet<&str> = REFUSED.iter().map(|&(prefix, _)| prefix).collect();
    for folder in &folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match run_case(folder).unwrap_or(Outcome::OutOfScope) {
            Outcome::OutOfScope => {}
            Outcome::Pass => (n_in_scope, n_passing) = (n_in_scope + 1, n_passing + 1),
            Outcome::Refused(_) if REFUSED.iter().any(|(prefix, _)| name.starts_with(prefix)) => {
                unused.retain(|prefix| !name.starts_with(prefix));
            }
            Outcome::Refused(reason) | Outcome::Wrong(reason) => {
                n_in_scope += 1;
                bad.push(format!("{name}: {reason}"));
            }
        }
    }
    println!("onnx node cases: {n_in_scope} in scope / {n_passing} passing / {} total", folders.len());
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(unused.is_empty(), "no case is refused any more: {unused:?}");
}
