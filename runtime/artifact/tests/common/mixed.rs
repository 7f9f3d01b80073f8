//! A file that has every operation that an [`Mlp`](super::Mlp) has not.

use qail_artifact::{
    Layout, Place, Storage, pack,
    schema::step::{self, BinaryKind, FunctionKind, Op, ReduceKind, Source},
};

use super::{Builder, DEVICE, HOST};

fn tensor(tensor: u32, strides: &[i64]) -> step::Operand {
    step::Operand { source: Some(Source::Tensor(tensor)), strides: strides.to_vec(), offset: 0 }
}

/// `x[2, 6]`: copy, binary, product, reduction in a loop; then quantize,
/// product, requantization on its own with a table, dequantize.
pub fn file() -> Vec<u8> {
    let mut b = Builder::default();
    b.manifest.required_features = vec!["repeat".to_owned()];
    let x = b.tensor("x", Storage::F32, &[2, 6], DEVICE);
    let turned = b.tensor("turned", Storage::F32, &[6, 2], DEVICE);
    let constant = b.tensor("constant", Storage::F32, &[2], DEVICE);
    let sum = b.tensor("sum", Storage::F32, &[6, 2], DEVICE);
    let product = b.tensor("product", Storage::F32, &[2, 2, 2], DEVICE);
    let least = b.tensor("least", Storage::F32, &[2, 2], DEVICE);
    let codes = b.tensor("codes", Storage::I8, &[2, 2], DEVICE);
    let acc = b.tensor("acc", Storage::I32, &[2, 9], DEVICE);
    let hidden = b.tensor("hidden", Storage::I8, &[2, 9], DEVICE);
    let y = b.tensor("y", Storage::F32, &[2, 9], HOST);

    let shape = vec![6, 2];
    let copy = step::Copy { x: tensor(x, &[1, 6]), out: turned, shape, out_strides: vec![2, 1], out_offset: 0 };
    b.step("turn", Place::Device, Op::Copy(copy));
    let add = BinaryKind::Add as i32;
    let binary =
        step::Binary { a: tensor(turned, &[2, 1]), b: tensor(constant, &[0, 1]), out: sum, f: add, range: None };
    b.step("add", Place::Device, Op::Binary(binary));
    let (a, c) = (tensor(x, &[0]), tensor(sum, &[0]));
    let mat_mul = step::MatMul { a, b: c, out: product, batch: vec![2], m: 2, n: 2, k: 6 };
    b.step("product", Place::Device, Op::MatMul(mat_mul));
    let reduce = step::Reduce {
        x: tensor(product, &[4, 1]),
        out: least,
        f: ReduceKind::Min as i32,
        outer: vec![2, 2],
        inner: vec![2],
        inner_strides: vec![2],
        zero_point: 0,
        range: None,
    };
    b.step("least", Place::Device, Op::Reduce(reduce));
    let mut steps = std::mem::take(&mut b.steps);
    // The constants of a turn: row `turn` of a table.
    let turn = b.tensor("turn", Storage::I64, &[], HOST);
    let index = b.tensor("index", Storage::I32, &[], HOST);
    let table = b.floats("turns", &[0.1, 0.2, 0.3, 0.4]);
    b.step("narrow", Place::Host, Op::Cast(step::Cast { x: turn, out: index, to: step::CastKind::Same.into() }));
    let rows = step::Operand { source: Some(step::Source::Section(table)), strides: vec![1], offset: 0 };
    let look_up = step::Gather { x: rows, index: tensor(index, &[0]), out: constant, extent: 2, along: 2 };
    b.step("look up", Place::Host, Op::Gather(look_up));
    steps.splice(0..0, std::mem::take(&mut b.steps));
    b.step("loop", Place::Device, Op::Repeat(step::Repeat { n: 2, steps, turn: Some(turn) }));

    let factor = b.floats("factor", &[3.0]);
    let quantize = step::Quantize { x: least, out: codes, factor, lo: -128, hi: 127, zero_point: 1 };
    b.step("in", Place::Host, Op::Quantize(quantize));
    let weights: Vec<i8> = (0..18).map(|i| (i * 11 % 16) as i8 - 8).collect();
    let packed = pack::pack_codes(Layout::W4Tile8x32, &weights, 2, 9).unwrap();
    let weight = b.writer.add_section("weight", Layout::W4Tile8x32, &packed).unwrap();
    let bias = b.ints("bias", &[-3; 9]);
    let q_linear = step::QLinear { x: codes, out: acc, weight, bias, k: 2, n: 9, rows: 2, requantize: None };
    b.step("fc", Place::Device, Op::QLinear(q_linear));
    let table: Vec<u8> = (0..=255).rev().collect();
    let requantize = step::Requantize {
        m: b.ints("m", &[40_001; 9]),
        shift: b.ints("shift", &[18; 9]),
        lo: -128,
        hi: 127,
        zero_point: -1,
        table: Some(b.writer.add_section("table", Layout::I8, &table).unwrap()),
        table_lo: -128,
    };
    let requantize = step::RequantizeStep { x: acc, out: hidden, requantize };
    b.step("requantize", Place::Device, Op::Requantize(requantize));
    let scale = b.doubles("scale", &[0.5]);
    b.step("out", Place::Host, Op::Dequantize(step::Dequantize { x: hidden, out: y, scale, zero_point: 2 }));
    let z = b.tensor("z", Storage::F32, &[2, 9], HOST);
    let f = step::Function { kind: FunctionKind::Clip as i32, p0: -30.0, p1: 30.0 };
    b.step("clip", Place::Host, Op::Unary(step::Unary { x: y, out: z, f }));
    b.finish(&[("x", x)], &[("z", z)])
}
