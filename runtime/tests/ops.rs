//! One operation at a time, against numbers worked out by hand or by a plain loop.

#![allow(clippy::unwrap_used)]

#[path = "../artifact/tests/common/mod.rs"]
mod common;

use common::{Builder, DEVICE, HOST, families};
use qail_artifact::{
    Layout, Place, Storage,
    schema::step::{self, BinaryKind, FunctionKind, Op, ReduceKind, Source},
};
use qail_runtime::{LoadOptions, Session, TensorView, TensorViewMut};

fn operand(tensor: u32, strides: &[i64], offset: u64) -> step::Operand {
    step::Operand { source: Some(Source::Tensor(tensor)), strides: strides.to_vec(), offset }
}

fn section(section: u32, strides: &[i64]) -> step::Operand {
    step::Operand { source: Some(Source::Section(section)), strides: strides.to_vec(), offset: 0 }
}

fn session(file: Vec<u8>) -> Session {
    let options = LoadOptions { keep_intermediates: true, ..LoadOptions::default() };
    Session::load_with(file, "cpu".parse().unwrap(), &options).unwrap()
}

/// Runs a file of one float input and one float output.
fn run(file: Vec<u8>, x: &[f32]) -> Vec<f32> {
    let mut session = session(file);
    let mut y = vec![0.0; session.outputs()[0].elements()];
    session.run(&[TensorView::F32(x)], &mut [TensorViewMut::F32(&mut y)]).unwrap();
    y
}

/// A file of one device step over floats.
fn one_step(x: &[usize], y: &[usize], op: impl FnOnce(&mut Builder, u32, u32) -> Op) -> Vec<u8> {
    let mut b = Builder::default();
    let x = b.tensor("x", Storage::F32, x, DEVICE);
    let y = b.tensor("y", Storage::F32, y, DEVICE);
    let op = op(&mut b, x, y);
    b.step("op", Place::Device, op);
    b.finish(&[("x", x)], &[("y", y)])
}

#[test]
fn a_transpose_is_a_copy() {
    let file = one_step(&[2, 3], &[3, 2], |_, x, out| {
        Op::Copy(step::Copy {
            x: operand(x, &[1, 3], 0),
            out,
            shape: vec![3, 2],
            out_strides: vec![2, 1],
            out_offset: 0,
        })
    });
    assert_eq!(run(file, &[0., 1., 2., 3., 4., 5.]), [0., 3., 1., 4., 2., 5.]);
}

#[test]
fn a_backward_slice_into_a_part_leaves_the_rest() {
    let file = one_step(&[6], &[4], |_, x, out| {
        Op::Copy(step::Copy { x: operand(x, &[-2], 5), out, shape: vec![3], out_strides: vec![1], out_offset: 1 })
    });
    assert_eq!(run(file, &[0., 1., 2., 3., 4., 5.]), [0., 5., 3., 1.]);
}

#[test]
fn a_section_is_copied_and_broadcast() {
    let file = one_step(&[1], &[2, 2], |b, _, out| {
        let x = section(b.floats("c", &[7.0, 8.0]), &[0, 1]);
        Op::Copy(step::Copy { x, out, shape: vec![2, 2], out_strides: vec![2, 1], out_offset: 0 })
    });
    assert_eq!(run(file, &[0.]), [7., 8., 7., 8.]);
}

#[test]
fn binary_operands_broadcast_by_stride() {
    let cases = [
        (BinaryKind::Add, [11., 22., 13., 24.]),
        (BinaryKind::Sub, [-9., -18., -7., -16.]),
        (BinaryKind::Mul, [10., 40., 30., 80.]),
        (BinaryKind::Div, [0.1, 0.1, 0.3, 0.2]),
        (BinaryKind::Min, [1., 2., 3., 4.]),
        (BinaryKind::Max, [10., 20., 10., 20.]),
    ];
    for (f, expected) in cases {
        let file = one_step(&[2, 2], &[2, 2], |b, x, out| {
            let c = b.floats("c", &[10.0, 20.0]);
            Op::Binary(step::Binary {
                a: operand(x, &[2, 1], 0),
                b: section(c, &[0, 1]),
                out,
                f: f as i32,
                range: None,
            })
        });
        assert_eq!(run(file, &[1., 2., 3., 4.]), expected, "{f:?}");
    }
}

#[test]
fn powers_are_rounded_once() {
    let file = one_step(&[3], &[3], |_, x, out| {
        Op::Binary(step::Binary {
            a: operand(x, &[1], 0),
            b: operand(x, &[0], 1),
            out,
            f: BinaryKind::Pow as i32,
            range: None,
        })
    });
    let powers = [1.5f32, 2.5, 3.5].map(|x| libm::pow(f64::from(x), 2.5) as f32);
    assert_eq!(run(file, &[1.5, 2.5, 3.5]), powers);
}

#[test]
fn reductions_walk_inner_axes_in_order() {
    // x[2, 3, 2], the middle axis disappears.
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let cases = [
        (ReduceKind::Sum, [6., 9., 24., 27.]),
        (ReduceKind::Mean, [2., 3., 8., 9.]),
        (ReduceKind::Min, [0., 1., 6., 7.]),
        (ReduceKind::Max, [4., 5., 10., 11.]),
    ];
    for (f, expected) in cases {
        let file = one_step(&[2, 3, 2], &[2, 2], |_, x, out| {
            let x = operand(x, &[6, 1], 0);
            Op::Reduce(step::Reduce {
                x,
                out,
                f: f as i32,
                outer: vec![2, 2],
                inner: vec![3],
                inner_strides: vec![2],
                zero_point: 0,
                range: None,
            })
        });
        assert_eq!(run(file, &x), expected, "{f:?}");
    }
}

#[test]
fn products_broadcast_a_batch() {
    // a[2, 2, 3] times the same b[3, 2] for both batches.
    let a: Vec<f32> = (0..12).map(|i| i as f32 * 0.7).collect();
    let b: Vec<f32> = (0..6).map(|i| i as f32 * 0.3 - 1.0).collect();
    let section_of_b = b.clone();
    let file = one_step(&[2, 2, 3], &[2, 2, 2], |builder, x, out| {
        let b = section(builder.floats("b", &section_of_b), &[0]);
        Op::MatMul(step::MatMul { a: operand(x, &[6], 0), b, out, batch: vec![2], m: 2, n: 2, k: 3 })
    });
    let mut expected = Vec::new();
    for row in a.chunks(3) {
        for n in 0..2 {
            expected.push((0..3).fold(0f32, |sum, k| sum + row[k] * b[2 * k + n]));
        }
    }
    assert_eq!(run(file, &a), expected);
}

#[test]
fn functions_are_those_of_libm() {
    let x = [-2.5f32, -0.4, 0.0, 0.3, 1.7];
    let silu = |x: f64| x / (1.0 + libm::exp(-x));
    let cases: [(FunctionKind, &dyn Fn(f64) -> f64); 12] = [
        (FunctionKind::Relu, &|x| x.max(0.0)),
        (FunctionKind::LeakyRelu, &|x| if x < 0.0 { 0.5 * x } else { x }),
        (FunctionKind::Elu, &|x| if x < 0.0 { 0.5 * libm::expm1(x) } else { x }),
        (FunctionKind::Tanh, &libm::tanh),
        (FunctionKind::Sigmoid, &|x| 1.0 / (1.0 + libm::exp(-x))),
        (FunctionKind::Silu, &silu),
        (FunctionKind::Clip, &|x| x.clamp(0.5, 1.5)),
        (FunctionKind::Abs, &f64::abs),
        (FunctionKind::Neg, &|x| -x),
        (FunctionKind::Exp, &libm::exp),
        (FunctionKind::Reciprocal, &|x| 1.0 / x),
        (FunctionKind::Identity, &|x| x),
    ];
    for (kind, f) in cases {
        let file = one_step(&[5], &[5], |_, x, out| {
            Op::Unary(step::Unary { x, out, f: step::Function { kind: kind as i32, p0: 0.5, p1: 1.5 } })
        });
        assert_eq!(run(file, &x), x.map(|x| f(f64::from(x)) as f32), "{kind:?}");
    }
}

#[test]
fn plain_integers_become_floats() {
    let mut b = Builder::default();
    let image = b.tensor("image", Storage::U8, &[5], HOST);
    let step_index = b.tensor("step", Storage::I64, &[1], HOST);
    let (y, z) = (b.tensor("y", Storage::F32, &[5], HOST), b.tensor("z", Storage::F32, &[1], HOST));
    let f = step::Function { kind: FunctionKind::Identity as i32, p0: 0.0, p1: 0.0 };
    b.step("cast", Place::Host, Op::Unary(step::Unary { x: image, out: y, f }));
    b.step("cast", Place::Host, Op::Unary(step::Unary { x: step_index, out: z, f }));
    let mut session = session(b.finish(&[("image", image), ("step", step_index)], &[("y", y), ("z", z)]));
    let (mut y, mut z) = ([0.0; 5], [0.0]);
    let inputs = [TensorView::U8(&[0, 1, 2, 128, 255]), TensorView::I64(&[-1_000_000])];
    session.run(&inputs, &mut [TensorViewMut::F32(&mut y), TensorViewMut::F32(&mut z)]).unwrap();
    assert_eq!((y, z), ([0., 1., 2., 128., 255.], [-1e6]));
}

/// Quantize to bytes, copy a part of the codes, dequantize both.
#[test]
fn codes_keep_their_offset_through_copies() {
    let mut b = Builder::default();
    let x = b.tensor("x", Storage::F32, &[2, 3], HOST);
    let q = b.tensor("q", Storage::I8, &[2, 3], DEVICE);
    let part = b.tensor("part", Storage::I8, &[2, 2], DEVICE);
    let y = b.tensor("y", Storage::F32, &[2, 2], HOST);
    for tensor in [q, part] {
        b.manifest.tensors[tensor as usize].code_offset = 128;
    }
    let factor = b.floats("r", &[2.0, 4.0, 8.0]);
    b.step("in", Place::Host, Op::Quantize(step::Quantize { x, out: q, factor, lo: 0, hi: 255, zero_point: 100 }));
    let copy = step::Copy {
        x: operand(q, &[32, 1], 1),
        out: part,
        shape: vec![2, 2],
        out_strides: vec![32, 1],
        out_offset: 0,
    };
    b.step("copy", Place::Device, Op::Copy(copy));
    let scale = b.doubles("s", &[0.25, 0.125]);
    b.step("out", Place::Host, Op::Dequantize(step::Dequantize { x: part, out: y, scale, zero_point: 100 }));
    let mut session = session(b.finish(&[("x", x)], &[("y", y)]));
    let mut y = [0.0; 4];
    let x = [0.5, 1.0, 2.0, -300.0, 0.3, 300.0];
    session.run(&[TensorView::F32(&x)], &mut [TensorViewMut::F32(&mut y)]).unwrap();
    assert_eq!(session.read_codes("q").unwrap(), [101, 104, 116, 0, 101, 255]);
    assert_eq!(session.read_codes("part").unwrap(), [104, 116, 101, 255]);
    assert_eq!(y, [1.0, 2.0, 0.25, 19.375]);
    assert_eq!(session.read_f32("y").unwrap(), y);
}

/// Accumulators that are both requantized and dequantized.
#[test]
fn a_requantization_on_its_own_is_the_fused_one() {
    let mut b = Builder::default();
    let x = b.tensor("x", Storage::F32, &[1, 3], HOST);
    let q = b.tensor("q", Storage::I8, &[1, 3], DEVICE);
    let acc = b.tensor("acc", Storage::I32, &[1, 10], DEVICE);
    let apart = b.tensor("apart", Storage::I8, &[1, 10], DEVICE);
    let fused = b.tensor("fused", Storage::I8, &[1, 10], DEVICE);
    let y = b.tensor("y", Storage::F32, &[1, 10], HOST);
    let factor = b.floats("r", &[10.0]);
    b.step("in", Place::Host, Op::Quantize(step::Quantize { x, out: q, factor, lo: -128, hi: 127, zero_point: 0 }));
    let codes: Vec<i8> = (0..30).map(|i| (i * 37 % 255) as i8).collect();
    let packed = qail_artifact::pack::pack_codes(Layout::W8Tile8x16, &codes, 3, 10).unwrap();
    let weight = b.writer.add_section("w", Layout::W8Tile8x16, &packed).unwrap();
    let bias = b.ints("b", &[5; 10]);
    let requantize = step::Requantize {
        m: b.ints("m", &(0..10).map(|i| 40_001 + 2 * i).collect::<Vec<_>>()),
        shift: b.ints("shift", &[21; 10]),
        lo: -100,
        hi: 100,
        zero_point: 3,
        table: None,
        table_lo: 0,
    };
    let product = step::QLinear { x: q, out: acc, weight, bias, k: 3, n: 10, rows: 1, requantize: None };
    let fused_product = step::QLinear { out: fused, requantize: Some(requantize.clone()), ..product.clone() };
    b.step("product", Place::Device, Op::QLinear(product));
    b.step("fused", Place::Device, Op::QLinear(fused_product));
    b.step("apart", Place::Device, Op::Requantize(step::RequantizeStep { x: acc, out: apart, requantize }));
    let scale = b.doubles("s", &[1.0]);
    b.step("out", Place::Host, Op::Dequantize(step::Dequantize { x: acc, out: y, scale, zero_point: 0 }));
    let mut session = session(b.finish(&[("x", x)], &[("y", y)]));
    let mut y = [0.0; 10];
    session.run(&[TensorView::F32(&[1.0, -12.0, 9.9])], &mut [TensorViewMut::F32(&mut y)]).unwrap();
    let fused = session.read_codes("fused").unwrap();
    assert_eq!(session.read_codes("apart").unwrap(), fused);
    let expected: Vec<i32> = (y.iter().zip(0..))
        .map(|(&acc, i)| ((acc as i64 * (40_001 + 2 * i) + (1 << 20)) >> 21).saturating_add(3).clamp(-100, 100) as i32)
        .collect();
    assert_eq!(fused, expected);
}

#[test]
fn a_repeat_looks_up_its_constants_by_the_turn() {
    // y = ((x + 1) + 10) + 100, by two buffers.
    let mut b = Builder::default();
    b.manifest.required_features = vec!["repeat".to_owned()];
    b.manifest.min_reader = 3;
    let x = b.tensor("x", Storage::F32, &[1], DEVICE);
    let state = b.tensor("state", Storage::F32, &[1], DEVICE);
    let next = b.tensor("next", Storage::F32, &[1], DEVICE);
    let constant = b.tensor("constant", Storage::F32, &[1], DEVICE);
    let turn = b.tensor("turn", Storage::I64, &[], HOST);
    let copy = |from, out| {
        Op::Copy(step::Copy { x: operand(from, &[1], 0), out, shape: vec![1], out_strides: vec![1], out_offset: 0 })
    };
    b.step("begin", Place::Device, copy(x, state));
    let before = b.steps.len();
    let index = b.tensor("index", Storage::I32, &[], HOST);
    b.step("narrow", Place::Host, Op::Cast(step::Cast { x: turn, out: index, to: step::CastKind::Same.into() }));
    let table = b.floats("table", &[1.0, 10.0, 100.0]);
    let look_up =
        step::Gather { x: section(table, &[1]), index: operand(index, &[0], 0), out: constant, extent: 3, along: 1 };
    b.step("look up", Place::Host, Op::Gather(look_up));
    let (a, c) = (operand(state, &[1], 0), operand(constant, &[1], 0));
    b.step(
        "add",
        Place::Device,
        Op::Binary(step::Binary { a, b: c, out: next, f: BinaryKind::Add as i32, range: None }),
    );
    b.step("back", Place::Device, copy(next, state));
    let steps = b.steps.split_off(before);
    b.step("loop", Place::Device, Op::Repeat(step::Repeat { n: 3, steps, turn: Some(turn) }));
    assert_eq!(run(b.finish(&[("x", x)], &[("state", state)]), &[0.5]), [111.5]);
}

#[test]
fn a_group_of_channels_sees_its_own_codes() {
    // Two rows, two groups of three features, two channels each; bytes and 16 bits.
    for (storage, lo, hi) in [(Storage::I8, -128, 127), (Storage::I16, -32_639, 32_639)] {
        let mut b = Builder::default();
        b.manifest.required_features = vec!["groups".to_owned()];
        let x = b.tensor("x", Storage::F32, &[2, 6], HOST);
        let q = b.tensor("q", storage, &[2, 6], DEVICE);
        let acc = b.tensor("acc", Storage::I32, &[2, 4], DEVICE);
        let fused = b.tensor("fused", Storage::I8, &[2, 4], DEVICE);
        let y = b.tensor("y", Storage::F32, &[2, 4], HOST);
        let factor = b.floats("r", &[1.0]);
        b.step("in", Place::Host, Op::Quantize(step::Quantize { x, out: q, factor, lo, hi, zero_point: 0 }));
        let weights: [i8; 12] = [1, 2, 3, -1, -2, -3, 100, 0, -128, 7, 7, 7];
        let weight = b.writer.add_section("w", Layout::I8, &weights.map(|w| w as u8)).unwrap();
        let bias = b.ints("b", &[0, 1, 2, 3]);
        let requantize = step::Requantize {
            m: b.ints("m", &[32_769; 4]),
            shift: b.ints("shift", &[16; 4]),
            lo: -100,
            hi: 100,
            zero_point: 0,
            table: None,
            table_lo: 0,
        };
        let product = step::QGroups { x: q, out: acc, weight, bias, k: 3, n: 4, rows: 2, requantize: None, groups: 2 };
        let fused_product = step::QGroups { out: fused, requantize: Some(requantize), ..product.clone() };
        b.step("product", Place::Device, Op::QGroups(product));
        b.step("fused", Place::Device, Op::QGroups(fused_product));
        let scale = b.doubles("s", &[1.0]);
        b.step("out", Place::Host, Op::Dequantize(step::Dequantize { x: acc, out: y, scale, zero_point: 0 }));
        let mut session = session(b.finish(&[("x", x)], &[("y", y)]));
        let mut y = [0.0; 8];
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, 0.0, 1.0, 127.0, -128.0, 0.0];
        session.run(&[TensorView::F32(&rows)], &mut [TensorViewMut::F32(&mut y)]).unwrap();
        assert_eq!(y, [14.0, -13.0, 400.0 - 768.0 + 2.0, 7.0 * 15.0 + 3.0, 2.0, -1.0, 12_702.0, -4.0]);
        assert_eq!(session.read_codes("fused").unwrap(), [7, -7, -100, 54, 1, -1, 100, -2]);
    }
}

#[test]
fn indices_and_truths_are_no_codes() {
    assert_eq!(session(families::file()).code_names(), ["codes", "shown", "added", "acc", "looked"]);
}
