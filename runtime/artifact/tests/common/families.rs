//! A file that has every step of convolutional and transformer policies.

use qail_artifact::{
    Place, Storage,
    schema::step::{self, CastKind, CompareKind, Op, ReduceKind, ScatterKind, Source},
};

use super::{Builder, DEVICE, HOST};

fn tensor(tensor: u32, strides: &[i64]) -> step::Operand {
    step::Operand { source: Some(Source::Tensor(tensor)), strides: strides.to_vec(), offset: 0 }
}

/// `x[1, 2, 4, 4]` through windows, softmax, normalization and attention; rows of
/// it by index `i[3]`; then codes of them through windows, added and summed up; last, what was
/// chosen turned and modulated.
pub fn file() -> Vec<u8> {
    let mut b = Builder::default();
    b.manifest.min_reader = 2;
    let x = b.tensor("x", Storage::F32, &[1, 2, 4, 4], DEVICE);
    let i = b.tensor("i", Storage::I64, &[3], HOST);
    let [windows, soft, norm, heads, chosen] =
        ["windows", "soft", "norm", "heads", "chosen"].map(|name| b.tensor(name, Storage::F32, &[16, 18], DEVICE));
    let unfold = step::Unfold {
        x: tensor(x, &[16, 4, 1]),
        out: windows,
        shape: vec![4, 4, 2, 3, 3],
        coordinates: vec![1, 2, 0, 1, 2],
        steps: vec![1, 1, 1, 1, 1],
        extents: vec![2, 4, 4],
        start: vec![0, -1, -1],
        spread: vec![1, 1, 1],
        fill: 0.5,
        fill_stored: 0,
    };
    b.step("windows", Place::Device, Op::Unfold(unfold));
    let softmax = step::Softmax { x: windows, out: soft, outer: 16, n: 18, inner: 1, log: true };
    b.step("soft", Place::Device, Op::Softmax(softmax));
    let normalize = step::Normalize {
        x: soft,
        out: norm,
        outer: vec![16],
        outer_strides: vec![18],
        inner: vec![2, 9],
        inner_strides: vec![9, 1],
        eps: 0.125,
        center: true,
    };
    b.step("norm", Place::Device, Op::Normalize(normalize));
    let mask = b.floats("mask", &(0..16).map(|i| i as f32 * 0.1).collect::<Vec<_>>());
    let mask = step::Operand { source: Some(Source::Section(mask)), strides: vec![0, 0, 0, 1], offset: 0 };
    let attention = step::Attention {
        q: norm,
        k: soft,
        v: norm,
        mask: Some(mask),
        out: heads,
        scale: 0.25,
        batch: 1,
        heads: 1,
        groups: 1,
        queries: 16,
        keys: 16,
        depth: 18,
        width: 18,
    };
    b.step("heads", Place::Device, Op::Attention(attention));
    let truth = b.tensor("truth", Storage::I32, &[16, 18], DEVICE);
    let dense = |t| tensor(t, &[18, 1]);
    let compare = step::Compare { a: dense(heads), b: dense(soft), out: truth, f: CompareKind::Gt as i32 };
    b.step("truth", Place::Device, Op::Compare(compare));
    let choose = step::Where { truth: dense(truth), a: dense(heads), b: dense(norm), out: chosen };
    b.step("chosen", Place::Device, Op::Where(choose));
    let index = b.tensor("index", Storage::I32, &[3], HOST);
    b.step("index", Place::Host, Op::Cast(step::Cast { x: i, out: index, to: CastKind::Same as i32 }));
    let [rows, changed] = ["rows", "changed"].map(|name| b.tensor(name, Storage::F32, &[3, 18], HOST));
    let gather =
        step::Gather { x: tensor(chosen, &[0, 1]), index: tensor(index, &[1, 0]), out: rows, extent: 16, along: 18 };
    b.step("rows", Place::Host, Op::Gather(gather));
    let scatter = step::Scatter {
        x: rows,
        index,
        update: rows,
        out: changed,
        extent: 3,
        row: 18,
        f: ScatterKind::Add as i32,
        range: None,
    };
    b.step("changed", Place::Host, Op::Scatter(scatter));
    let [top, sums] = ["top", "sums"].map(|name| b.tensor(name, Storage::F32, &[3, 2], HOST));
    let order = step::Order {
        x: changed,
        out: top,
        outer: 3,
        n: 18,
        inner: 1,
        k: 2,
        largest: true,
        last: false,
        indices: false,
    };
    b.step("top", Place::Host, Op::Order(order));
    let scan = step::Scan { x: top, out: sums, outer: 3, n: 2, inner: 1, exclusive: false, reverse: true, range: None };
    b.step("sums", Place::Host, Op::Scan(scan));
    let codes = b.tensor("codes", Storage::I8, &[3, 2], DEVICE);
    let factor = b.floats("factor", &[8.0]);
    let quantize = step::Quantize { x: sums, out: codes, factor, lo: -128, hi: 127, zero_point: 1 };
    b.step("codes", Place::Host, Op::Quantize(quantize));
    let [shown, added] = ["shown", "added"].map(|name| b.tensor(name, Storage::I8, &[6, 2], DEVICE));
    let unfold = step::Unfold {
        x: tensor(codes, &[32, 1]),
        out: shown,
        shape: vec![3, 2, 2],
        coordinates: vec![0, 1, 1],
        steps: vec![1, 1, 1],
        extents: vec![3, 2],
        start: vec![0, 0],
        spread: vec![1, 1],
        fill: 0.0,
        fill_stored: -7,
    };
    b.step("shown", Place::Device, Op::Unfold(unfold));
    let (a, c) = (tensor(shown, &[32, 1]), tensor(codes, &[0, 1]));
    let m_a = b.ints("m_a", &[40_001, 50_001]);
    let q_add = step::QAdd {
        a,
        b: c,
        out: added,
        m_a,
        m_b: 65_537,
        shift: 17,
        zero_a: 1,
        zero_b: 1,
        zero_point: -3,
        lo: -100,
        hi: 100,
    };
    b.step("added", Place::Device, Op::QAdd(q_add));
    let acc = b.tensor("acc", Storage::I32, &[6], DEVICE);
    let reduce = step::Reduce {
        x: tensor(added, &[32]),
        out: acc,
        f: ReduceKind::Sum as i32,
        outer: vec![6],
        inner: vec![2],
        inner_strides: vec![1],
        zero_point: -3,
        range: None,
    };
    b.step("acc", Place::Device, Op::Reduce(reduce));
    let y = b.tensor("y", Storage::F32, &[6], HOST);
    let scale = b.doubles("scale", &[0.5]);
    b.step("out", Place::Host, Op::Dequantize(step::Dequantize { x: acc, out: y, scale, zero_point: 0 }));
    let [turned, modulated] = ["turned", "modulated"].map(|name| b.tensor(name, Storage::F32, &[16, 18], DEVICE));
    let angles = b.floats("angles", &(0..18).map(|i| i as f32 * 0.05).collect::<Vec<_>>());
    let row = |offset| step::Operand { source: Some(Source::Section(angles)), strides: vec![0, 1], offset };
    let rope = step::Rope { x: dense(chosen), cos: row(0), sin: row(0), out: turned, interleaved: false };
    b.step("turned", Place::Device, Op::Rope(rope));
    let column = step::Operand { source: Some(Source::Section(angles)), strides: vec![1, 0], offset: 2 };
    let film = step::Film { x: dense(turned), scale: column, shift: row(0), out: modulated };
    b.step("modulated", Place::Device, Op::Film(film));
    let entries = b.bytes("table", &(0..=255).collect::<Vec<u8>>());
    let looked = b.tensor("looked", Storage::I8, &[6, 2], DEVICE);
    b.step(
        "looked",
        Place::Device,
        Op::Lookup(step::Lookup { x: tensor(added, &[32, 1]), out: looked, table: entries }),
    );
    let z = b.tensor("z", Storage::F32, &[16, 18], HOST);
    let copy = step::Copy { x: dense(modulated), out: z, shape: vec![16, 18], out_strides: vec![18, 1], out_offset: 0 };
    b.step("z", Place::Host, Op::Copy(copy));
    b.finish(&[("x", x), ("i", i)], &[("y", y), ("z", z)])
}
