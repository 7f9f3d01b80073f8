//! Models that were quantized by ONNX Runtime, compiled with their own scales,
//! against what ONNX Runtime computes on recorded states.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{collections::BTreeMap, path::PathBuf};

use qail_ir::{Graph, Op};
use qail_passes::{PipelineOptions, Precision};
use qail_runtime::{DeviceSpec, Session, TensorView, TensorViewMut};
use qailc::{
    data::Npz,
    frontend::{self, ImportOptions},
    pipeline::{self, BuildOptions, PipelineError, Silent},
};

fn folder() -> PathBuf {
    qail_fixtures::root().join("quantized/hopper_expert")
}

fn options() -> BuildOptions {
    BuildOptions {
        passes: PipelineOptions { is_default: true, ..PipelineOptions::new(Precision::W4A4) },
        ..BuildOptions::new(Precision::W4A4)
    }
}

/// Steps of the outputs that a quantizer defines, by name.
fn steps(graph: &Graph) -> BTreeMap<String, f64> {
    let step = |output: &qail_ir::Output| {
        let Op::FakeQuant(_) = graph.op(output.value) else { return None };
        let scale = graph.const_of(*graph.operands(output.value.node).get(1)?)?;
        Some((output.name.clone(), scale.all().ok()?[0]))
    };
    graph.outputs.iter().filter_map(step).collect()
}

/// Codes that differ and codes in all, and the largest difference of outputs
/// that are no codes.
fn compared(model: &str) -> (usize, usize, f64) {
    let path = folder().join(format!("{model}.onnx"));
    let built = pipeline::compile(&path, &options(), &mut Silent).unwrap();
    assert_eq!(built.quantized.precision, "given");
    let steps = steps(&frontend::import(&path, &ImportOptions::default()).unwrap().graph);
    let mut session = Session::load(&built.bytes[..], DeviceSpec::Cpu(None)).unwrap();
    let expected = Npz::open(&folder().join("expected.npz")).unwrap();
    let n_rows = expected.info("observations").unwrap().n_rows();
    let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    let mut rooms: Vec<Vec<f32>> =
        names.iter().map(|name| vec![0.0; expected.info(&format!("{model}:{name}")).unwrap().row_len()]).collect();
    let (mut differing, mut n_codes, mut worst) = (0, 0, 0.0f64);
    for row in 0..n_rows {
        let observation = expected.read_f32("observations", row..row + 1).unwrap();
        let mut outputs: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(|room| TensorViewMut::F32(room)).collect();
        session.run(&[TensorView::F32(&observation)], &mut outputs).unwrap();
        for (name, found) in names.iter().zip(&rooms) {
            let theirs = expected.read_f32(&format!("{model}:{name}"), row..row + 1).unwrap();
            for (a, b) in found.iter().zip(&theirs) {
                let difference = f64::from(a - b).abs();
                match steps.get(name) {
                    Some(step) => {
                        differing += usize::from(difference > 0.5 * step);
                        n_codes += 1;
                    }
                    None => worst = worst.max(difference),
                }
            }
        }
    }
    (differing, n_codes, worst)
}

#[test]
fn at_most_one_code_in_a_thousand_differs_from_onnx_runtime() {
    for model in ["qdq_s8", "qdq_u8", "qoperator"] {
        let (differing, n_codes, _) = compared(model);
        println!("{model}: {differing} of {n_codes} codes differ");
        assert!(n_codes > 8000, "{model}: {n_codes} codes");
        assert!(differing * 1000 <= n_codes, "{model}: {differing} of {n_codes} codes differ");
    }
}

#[test]
fn packed_weights_compute_what_onnx_runtime_computes() {
    let (_, n_codes, worst) = compared("nbits");
    assert_eq!(n_codes, 0);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn a_quantized_model_has_its_precision() {
    let path = folder().join("qdq_s8.onnx");
    let asked = BuildOptions { passes: PipelineOptions::new(Precision::W4A4), ..options() };
    let error = pipeline::compile(&path, &asked, &mut Silent).unwrap_err();
    assert!(matches!(error, PipelineError::AlreadyQuantized { .. }), "{error}");
    assert!(error.to_string().contains("-b w4a4"), "{error}");
    let checked = pipeline::check(&path, &options()).unwrap();
    assert_eq!((checked.precision.as_str(), checked.needs_data), ("given", false));
    let rows: Vec<(u32, u32)> =
        checked.layers.iter().filter(|l| l.n_weights > 0).map(|l| (l.weight_bits, l.activation_bits)).collect();
    assert_eq!(rows, [(8, 8); 3]);
}
