//! `unfold_words`, `unfold_bytes`: copies through windows.
//!
//! Formula, buffers and what an invocation does: see the `.wgsl` files.

use qail_artifact::schema::{Storage, Tensor, step};

use super::{Param, Shader, grid, specialize as fill_in};
use crate::{CodegenError, plan::shape};

/// The shader for 32-bit elements as it stands.
pub(crate) const WORDS: &str = include_str!("unfold_words.wgsl");
/// The shader for codes as it stands.
pub(crate) const BYTES: &str = include_str!("unfold_bytes.wgsl");

/// A list of 8, the first one or the last one of them those of the step.
fn eight<T: Copy>(own: &[T], rest: T, at_end: bool) -> Vec<T> {
    let missing = std::iter::repeat_n(rest, 8usize.saturating_sub(own.len()));
    if at_end { missing.chain(own.iter().copied()).collect() } else { own.iter().copied().chain(missing).collect() }
}

/// Parameters of a result of codes, which is written word by word: `WORDS`,
/// `LINE`, `COLS`, `PLANES`, and how many words there are.
pub(crate) fn lines(out: &Tensor) -> ([(&'static str, Param<'static>); 4], u64) {
    let cols = out.shape.last().copied().unwrap_or(1);
    let planes = if out.storage() == Storage::I16 { 2 } else { 1 };
    let line = out.stride / 4;
    let rows = shape::count(out.shape.split_last().map_or(&[], |(_, rows)| rows));
    let words = rows.saturating_mul(planes).saturating_mul(line);
    let params = [
        ("WORDS", Param::U32(words)),
        ("LINE", Param::U32(line)),
        ("COLS", Param::U32(cols)),
        ("PLANES", Param::U32(planes)),
    ];
    (params, words)
}

/// The shader of a step; `x_stride` is that of the rows of `x`.
pub(crate) fn specialize(node: &str, op: &step::Unfold, out: &Tensor, x_stride: u64) -> Result<Shader, CodegenError> {
    let signed = |list: &[u64]| list.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect::<Vec<i64>>();
    let coordinates: Vec<u64> = op.coordinates.iter().map(|&c| u64::from(c)).collect();
    let mut params = vec![
        ("SHAPE", Param::U32s(eight(&op.shape, 1, true))),
        ("COORDINATES", Param::U32s(eight(&coordinates, 0, true))),
        ("STEPS", Param::I32s(eight(&op.steps, 0, true))),
        ("EXTENTS", Param::I32s(eight(&signed(&op.extents), 1, false))),
        ("START", Param::I32s(eight(&op.start, 0, false))),
        ("SPREAD", Param::I32s(eight(&signed(&op.spread), 1, false))),
        ("STRIDES", Param::I32s(eight(&op.x.strides, 0, false))),
        ("OFFSET", super::offset(op.x.offset)),
    ];
    if matches!(out.storage(), Storage::F32 | Storage::I32) {
        let n = shape::count(&out.shape);
        let fill = if out.storage() == Storage::F32 { op.fill.to_bits() } else { op.fill_stored as u32 };
        params.extend([("N", Param::U32(n)), ("FILL", Param::U32(fill.into()))]);
        return Ok(Shader { name: "unfold_words", text: fill_in(node, WORDS, &params)?, workgroups: grid(node, n)? });
    }
    let (list, words) = lines(out);
    params.extend(list);
    let fill = op.fill_stored;
    let bytes = if out.storage() == Storage::I16 { [(fill + 128) >> 8, fill] } else { [fill, 0] };
    params.push(("X_STRIDE", Param::U32(x_stride)));
    params.push(("FILL", Param::U32s(bytes.map(|byte| u64::from(byte as u8)).to_vec())));
    Ok(Shader { name: "unfold_bytes", text: fill_in(node, BYTES, &params)?, workgroups: grid(node, words)? })
}
