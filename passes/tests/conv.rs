//! Convolutional networks on the whole way to codes.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use qail_ir::{
    Graph, Op,
    interp::{Interpreter, Tensor, run},
    text,
};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, pipeline, quant::LoweringReport};
use support::{
    floats,
    network::{image_of_bytes, image_of_floats, samples, separable},
};

fn quantize(graph: &Graph, precision: Precision) -> (Graph, Graph, LoweringReport) {
    let data = samples(graph, 1, 40);
    let options = PipelineOptions::new(precision);
    let mut cx = PassContext::with_samples(&data);
    let mut fake = graph.clone();
    PassManager::new(pipeline::prepare(&options)).run(&mut fake, &mut cx).unwrap();
    let mut integer = fake.clone();
    PassManager::new(pipeline::finish(&options)).run(&mut integer, &mut cx).unwrap();
    (fake, integer, cx.lowering.unwrap())
}

/// Energy of the error over that of the result.
fn noise(a: &Graph, b: &Graph, data: &[BTreeMap<String, Tensor>]) -> f64 {
    let (mut squares, mut noise) = (0.0, 0.0);
    let (a, b) = (Interpreter::new(a).unwrap(), Interpreter::new(b).unwrap());
    for sample in data {
        let (truth, found) = (a.run(sample).unwrap(), b.run(sample).unwrap());
        for (a, b) in floats(&truth["y"]).iter().zip(floats(&found["y"])) {
            squares += f64::from(*a).powi(2);
            noise += f64::from(a - b).powi(2);
        }
    }
    noise / squares
}

#[test]
fn everything_between_image_and_action_runs_on_codes() {
    for graph in [image_of_floats(), image_of_bytes()] {
        let data = samples(&graph, 9, 40);
        let mut last = 0.0;
        for (precision, bound) in [(Precision::W8A8, 1e-3), (Precision::W4A8, 0.1), (Precision::W4A4, 0.3)] {
            let (fake, integer, report) = quantize(&graph, precision);
            assert!(report.float_layers.is_empty() && report.islands.is_empty(), "{report:?}");
            assert_eq!((report.layers.len(), report.sums.len()), (5, 2));
            let inside = integer.topo().into_iter().filter(|&id| {
                let ty = integer.ty(id.value());
                ty.is_f32() && !matches!(integer.node(id).op, Op::Input(_) | Op::Const(_) | Op::Dequantize(_))
            });
            let names: Vec<&str> = inside.map(|id| integer.node(id).name.as_str()).collect();
            assert!(names.is_empty() || names == ["cast"], "{names:?}");
            let loss = noise(&graph, &integer, &data);
            println!("{precision}: {loss:.1e}, of the simulation {:.1e}", noise(&fake, &integer, &data));
            assert!(loss < bound && loss > last, "{precision}: {loss}");
            assert!(noise(&fake, &integer, &data) < loss / 4.0);
            last = loss;
        }
    }
}

#[test]
fn channels_with_windows_of_their_own_run_on_codes() {
    let graph = separable();
    let data = samples(&graph, 9, 40);
    for (precision, bound) in [(Precision::W8A8, 1e-3), (Precision::W4A8, 0.1), (Precision::W4A4, 0.3)] {
        let (fake, integer, report) = quantize(&graph, precision);
        assert!(report.float_layers.is_empty() && report.islands.is_empty(), "{report:?}");
        let groups = integer.topo().into_iter().filter_map(|id| match &integer.node(id).op {
            Op::QLinear(linear) => Some(linear.groups),
            _ => None,
        });
        assert_eq!(groups.collect::<Vec<_>>(), [1, 6, 1, 8, 1]);
        assert_eq!(report.sums.len(), 4, "{:?}", report.sums);
        let loss = noise(&graph, &integer, &data);
        println!("{precision}: {loss:.1e}, of the simulation {:.1e}", noise(&fake, &integer, &data));
        assert!(loss < bound, "{precision}: {loss}");
        assert!(noise(&fake, &integer, &data) < loss / 4.0);
    }
}

#[test]
fn bytes_enter_as_codes() {
    let (_, integer, report) = quantize(&image_of_bytes(), Precision::W4A4);
    let entry = &report.layers[0].input_codes;
    assert_eq!((entry.scheme.to_string().as_str(), entry.step, entry.lo, entry.hi), ("u8", 1.0, 0, 255));
    let quantizes = integer.topo().into_iter().filter(|&id| matches!(integer.node(id).op, Op::Quantize(_)));
    assert_eq!(quantizes.count(), 1);
}

#[test]
fn a_lowered_network_stays_as_it_is() {
    let graph = image_of_floats();
    let (fake, integer, _) = quantize(&graph, Precision::W4A8);
    let mut again = fake.clone();
    let options = PipelineOptions::new(Precision::W4A8);
    PassManager::new(pipeline::finish(&options)).run(&mut again, &mut PassContext::new()).unwrap();
    assert_eq!(text::print(&again), text::print(&integer));
    PassManager::new(pipeline::finish(&options)).run(&mut again, &mut PassContext::new()).unwrap();
    assert_eq!(text::print(&again), text::print(&integer));
}

#[test]
fn floats_keep_the_results_of_the_source() {
    for graph in [image_of_floats(), separable()] {
        let mut floats = graph.clone();
        let options = PipelineOptions::new(Precision::F32);
        PassManager::new(pipeline::prepare(&options)).run(&mut floats, &mut PassContext::new()).unwrap();
        PassManager::new(pipeline::finish(&options)).run(&mut floats, &mut PassContext::new()).unwrap();
        for sample in samples(&graph, 3, 5) {
            assert_eq!(run(&graph, &sample).unwrap(), run(&floats, &sample).unwrap());
        }
        let ops = || floats.topo().into_iter().map(|id| &floats.node(id).op);
        assert!(!ops().any(|op| matches!(op, Op::Linear(linear) if linear.groups > 1)));
        let of_images = ops().filter(|op| matches!(op, Op::Transpose(transpose) if transpose.perm.len() == 4));
        assert_eq!(of_images.count(), 1, "only that of the image");
    }
}
