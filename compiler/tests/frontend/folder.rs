//! Whole models of a folder compute what ONNX Runtime computes.
//!
//! `fixtures/oracles/record_outputs.py` fills the folder: `NAME.onnx` beside `NAME.npz`, which
//! holds inputs under their names and outputs under `out:` and their names. `QAILC_MODELS` names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Instant,
};

use qail_ir::interp;
use qailc::{
    data::Npz,
    frontend::{ImportOptions, import},
};

/// Sums of `f32` in another order, relative to the largest number of an output.
const TOLERANCE: f64 = 1e-4;

/// Nodes of the graph and the largest difference, or what is wrong.
fn compare(model: &Path) -> Result<(usize, f64), String> {
    let recorded = Npz::open(&model.with_extension("npz")).map_err(|error| error.to_string())?;
    let outputs: Vec<String> = recorded.keys().filter_map(|key| key.strip_prefix("out:")).map(str::to_owned).collect();
    let options = ImportOptions { outputs: Some(outputs.clone()), ..ImportOptions::default() };
    let imported = import(model, &options).map_err(|error| error.to_string())?;
    let mut given = BTreeMap::new();
    for &id in imported.graph.inputs() {
        let name = imported.graph.node(id).name.clone();
        let ty = imported.graph.ty(id.value()).clone();
        let n_rows = recorded.info(&name).map_err(|error| error.to_string())?.n_rows();
        let tensor = if ty.is_f32() {
            interp::Tensor::f32(ty.shape, recorded.read_f32(&name, 0..n_rows).unwrap())
        } else {
            interp::Tensor::ints(ty, recorded.read_i64(&name, 0..n_rows).unwrap())
        };
        given.insert(name, tensor);
    }
    let found = interp::run(&imported.graph, &given).map_err(|error| error.to_string())?;
    let mut largest = 0.0f64;
    for name in outputs {
        let key = format!("out:{name}");
        let info = recorded.info(&key).unwrap().clone();
        let expected = recorded.read_f32(&key, 0..info.n_rows()).unwrap();
        let found = &found[&name];
        if found.ty.shape != info.shape {
            return Err(format!("output `{name}` has shape {:?}, not {:?}", found.ty.shape, info.shape));
        }
        let size = expected.iter().fold(1e-6f64, |size, &x| size.max(f64::from(x).abs()));
        for (x, y) in found.to_f64().into_iter().zip(expected) {
            let difference = (x - f64::from(y)).abs() / size;
            if difference.is_nan() || difference > TOLERANCE {
                return Err(format!("output `{name}` has {x} for {y}, the largest number is {size}"));
            }
            largest = largest.max(difference);
        }
    }
    Ok((imported.graph.len(), largest))
}

#[test]
fn models_of_a_folder_agree_with_onnx_runtime() {
    let Some(folder) = std::env::var_os("QAILC_MODELS").map(PathBuf::from) else {
        println!("skipped: QAILC_MODELS does not name a folder of models with recorded outputs");
        return;
    };
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let models: BTreeSet<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "onnx")).collect();
    let mut bad = Vec::new();
    for model in &models {
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let start = Instant::now();
        match compare(model) {
            Ok((n_nodes, difference)) => {
                println!("{name}: {n_nodes} nodes, difference {difference:.1e}, {:.1?}", start.elapsed());
            }
            Err(reason) => bad.push(format!("{name}: {reason}")),
        }
    }
    assert!(!models.is_empty(), "no models");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
