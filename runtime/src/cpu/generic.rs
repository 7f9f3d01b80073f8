//! The reference kernels: plain loops over the layouts of `qail_artifact::pack`.
//!
//! Integer sums use wrapping arithmetic: that they do not wrap is proven when
//! the file is read, and the proof does not belong into an inner loop.

use super::{
    integer::{Quantizer, Requantizer},
    kernels::Groups,
};
use crate::host;

/// Bytes of a tile row: 8 channels of one block.
pub(super) const TILE_ROW: usize = 128;
/// Bytes of one channel in a tile row.
const BLOCK: usize = 16;

/// The two codes of a byte of a 4-bit block: rows `j` and `j + 4` of its word.
fn nibbles(byte: u8) -> (i8, i8) {
    (((byte << 4) as i8) >> 4, (byte as i8) >> 4)
}

/// See [`Dot`](super::kernels::Dot), 8-bit weights.
pub(super) fn dot_w8(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    let (rows, _) = weight.as_chunks::<TILE_ROW>();
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc.as_chunks_mut::<8>().0) {
        let mut sums = [[0; BLOCK]; 8];
        for (row, x) in tile.iter().zip(x) {
            for (sums, block) in sums.iter_mut().zip(row.as_chunks::<BLOCK>().0) {
                add_products(sums, &block.map(|w| w as i8), x);
            }
        }
        *acc = sums.map(|sums| sums.into_iter().fold(0, i32::wrapping_add));
    }
}

/// See [`Dot`](super::kernels::Dot), 4-bit weights.
pub(super) fn dot_w4(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = x.as_chunks::<32>();
    let (rows, _) = weight.as_chunks::<TILE_ROW>();
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc.as_chunks_mut::<8>().0) {
        let mut sums = [[0; BLOCK]; 8];
        for (row, x) in tile.iter().zip(x) {
            // Byte 4i + j of a block holds rows 8i + j and 8i + 4 + j.
            let x_low: [i8; BLOCK] = std::array::from_fn(|byte| x[byte / 4 * 8 + byte % 4]);
            let x_high: [i8; BLOCK] = std::array::from_fn(|byte| x[byte / 4 * 8 + 4 + byte % 4]);
            for (sums, block) in sums.iter_mut().zip(row.as_chunks::<BLOCK>().0) {
                add_products(sums, &block.map(|byte| nibbles(byte).0), &x_low);
                add_products(sums, &block.map(|byte| nibbles(byte).1), &x_high);
            }
        }
        *acc = sums.map(|sums| sums.into_iter().fold(0, i32::wrapping_add));
    }
}

/// Adds 16 products, each to a sum of its own: arrays of known size let a
/// compiler use whatever vectors the processor has.
#[inline(always)]
fn add_products(sums: &mut [i32; BLOCK], w: &[i8; BLOCK], x: &[i8; BLOCK]) {
    for ((sum, &w), &x) in sums.iter_mut().zip(w).zip(x) {
        // A product of bytes is at most 2^14 and fits 16 bits.
        *sum = sum.wrapping_add(i32::from(i16::from(w) * i16::from(x)));
    }
}

/// `clamp(((acc * m + 2^(s-1)) >> s) + z, lo, hi)`, through the table if there is one.
pub(super) fn requantize(requantizer: &Requantizer, acc: &[i32], out: &mut [u8]) {
    for ((channel, &acc), out) in requantizer.channels().zip(acc).zip(out) {
        let rounded =
            (i64::from(acc) * i64::from(channel.m) + (1i64 << channel.shift_less_one)) >> channel.shift_less_one >> 1;
        let code =
            (rounded + i64::from(requantizer.zero_point)).clamp(i64::from(requantizer.lo), i64::from(requantizer.hi));
        *out = requantizer.stored(code as i32);
    }
}

/// Floats to stored bytes.
#[inline(always)]
pub(super) fn quantize_8(quantizer: &Quantizer, x: &[f32], out: &mut [u8]) {
    for ((&x, &factor), out) in x.iter().zip(&quantizer.factor).zip(out) {
        let code = host::quantize(x, factor, quantizer.zero_point, quantizer.lo, quantizer.hi);
        *out = (code - quantizer.code_offset) as u8;
    }
}

/// Floats to little-endian `i16`.
#[inline(always)]
pub(super) fn quantize_16(quantizer: &Quantizer, x: &[f32], out: &mut [u8]) {
    for ((&x, &factor), out) in x.iter().zip(&quantizer.factor).zip(out.as_chunks_mut::<2>().0) {
        let code = host::quantize(x, factor, quantizer.zero_point, quantizer.lo, quantizer.hi);
        *out = (code as i16).to_le_bytes();
    }
}

/// See [`DotF32`](super::kernels::DotF32).
pub(super) fn dot_f32(x: &[f32], weight: &[u8], out: &mut [f32]) {
    out.fill(0.0);
    for (x, row) in x.iter().zip(weight.chunks_exact((out.len() * 4).max(1))) {
        for (out, w) in out.iter_mut().zip(row.chunks_exact(4)) {
            // Multiply and add are rounded separately, on every machine.
            *out += x * float(w);
        }
    }
}

/// See [`DotWq`](super::kernels::DotWq), 8-bit weights.
#[inline(always)]
pub(super) fn dot_wq8(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]) {
    dot_wq::<16>(x, weight, groups, out, |block, codes| {
        for (code, &byte) in codes.iter_mut().zip(block) {
            *code = f32::from(byte as i8);
        }
    });
}

/// See [`DotWq`](super::kernels::DotWq), 4-bit weights.
#[inline(always)]
pub(super) fn dot_wq4(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]) {
    dot_wq::<32>(x, weight, groups, out, |block, codes| {
        for (word, codes) in block.chunks_exact(4).zip(codes.chunks_exact_mut(8)) {
            let (low, high) = codes.split_at_mut(4);
            for ((&byte, low), high) in word.iter().zip(low).zip(high) {
                let (w_low, w_high) = nibbles(byte);
                (*low, *high) = (f32::from(w_low), f32::from(w_high));
            }
        }
    });
}

/// The loop of both widths: `KB` rows a block. For each group the sequential sum
/// over its rows, times the scale, added to the result.
#[inline(always)]
pub(super) fn dot_wq<const KB: usize>(
    x: &[f32],
    weight: &[u8],
    groups: &Groups<'_>,
    out: &mut [f32],
    unpack: impl Fn(&[u8], &mut [f32; KB]),
) {
    let tile_bytes = (x.len().next_multiple_of(32) / KB * TILE_ROW).max(1);
    for (tile_idx, (tile, out)) in weight.chunks_exact(tile_bytes).zip(out.chunks_exact_mut(8)).enumerate() {
        let mut total = [0f32; 8];
        let mut sum = [0f32; 8];
        let mut left = groups.size;
        let mut group = 0;
        let mut flush = |sum: &mut [f32; 8], group: usize| {
            let scales = groups.scales.get((group * groups.n + tile_idx * 8) * 4..).unwrap_or_default();
            for ((total, sum), scale) in total.iter_mut().zip(sum).zip(scales.chunks_exact(4)) {
                *total += *sum * float(scale);
                *sum = 0.0;
            }
        };
        for (row, x) in tile.chunks_exact(TILE_ROW).zip(x.chunks(KB)) {
            let mut codes = [[0f32; KB]; 8];
            for (block, codes) in row.chunks_exact(BLOCK).zip(&mut codes) {
                unpack(block, codes);
            }
            for (k, &x) in x.iter().enumerate() {
                for (sum, codes) in sum.iter_mut().zip(&codes) {
                    *sum += x * codes.get(k).copied().unwrap_or(0.0);
                }
                left -= 1;
                if left == 0 {
                    flush(&mut sum, group);
                    (left, group) = (groups.size, group + 1);
                }
            }
        }
        if left != groups.size {
            flush(&mut sum, group);
        }
        out.copy_from_slice(&total);
    }
}

/// A little-endian `f32` of four bytes.
#[inline(always)]
pub(super) fn float(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |&b| f32::from_le_bytes(b))
}
