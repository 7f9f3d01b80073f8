//! AVX2, floats: eight columns a vector.
//!
//! Each column is summed in the order of `k`, multiply and add rounded
//! separately, so the bits are those of the reference. Speed comes from many
//! columns at a time: an addition takes three cycles, and two start in each.
//! Streaming several rows at once past columns in memory was slower (8.7 against
//! 6.3 us for 17-256-256-6 on a Zen 3), and prefetching rows changed nothing.

use std::arch::x86_64::*;

use super::avx2::{load_16, load_32};
use crate::cpu::{generic, kernels::Groups};

/// See [`DotF32`](crate::cpu::kernels::DotF32).
pub(super) fn dot_f32(x: &[f32], weight: &[u8], out: &mut [f32]) {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { dot_f32_avx2(x, weight, out) }
    } else {
        generic::dot_f32(x, weight, out);
    }
}

/// See [`DotWq`](crate::cpu::kernels::DotWq), 8-bit weights.
pub(super) fn dot_wq8(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]) {
    if has_whole_blocks(x, groups, 16) && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { dot_wq_avx2::<16>(x, weight, groups, out) }
    } else {
        generic::dot_wq8(x, weight, groups, out);
    }
}

/// See [`DotWq`](crate::cpu::kernels::DotWq), 4-bit weights.
pub(super) fn dot_wq4(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]) {
    if has_whole_blocks(x, groups, 32) && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { dot_wq_avx2::<32>(x, weight, groups, out) }
    } else {
        generic::dot_wq4(x, weight, groups, out);
    }
}

/// 64 columns at a time, then 8.
#[target_feature(enable = "avx2")]
fn dot_f32_avx2(x: &[f32], weight: &[u8], out: &mut [f32]) {
    let row_bytes = (out.len() * 4).max(1);
    let (wide, narrow) = out.as_chunks_mut::<64>();
    let n_wide = wide.len();
    for (block_idx, out) in wide.iter_mut().enumerate() {
        columns::<8>(x, weight.get(block_idx * 256..).unwrap_or_default(), row_bytes, out.as_chunks_mut::<8>().0);
    }
    for (block_idx, out) in narrow.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let start = n_wide * 256 + block_idx * 32;
        columns::<1>(x, weight.get(start..).unwrap_or_default(), row_bytes, std::slice::from_mut(out));
    }
}

/// `V` vectors of columns; `weight` begins with their first row.
#[target_feature(enable = "avx2")]
fn columns<const V: usize>(x: &[f32], weight: &[u8], row_bytes: usize, out: &mut [[f32; 8]]) {
    let mut sums = [_mm256_setzero_ps(); V];
    for (x, row) in x.iter().zip(weight.chunks(row_bytes)) {
        let x = _mm256_set1_ps(*x);
        for (sum, w) in sums.iter_mut().zip(row.as_chunks::<32>().0) {
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, _mm256_castsi256_ps(load_32(w))));
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        store_ps(out, sum);
    }
}

/// True if a group ends where a block does, or with the matrix.
fn has_whole_blocks(x: &[f32], groups: &Groups<'_>, rows_per_block: usize) -> bool {
    groups.size.is_multiple_of(rows_per_block) || groups.size >= x.len()
}

/// Blocks of `KB` rows, four tiles at a time, then one.
#[target_feature(enable = "avx2")]
fn dot_wq_avx2<const KB: usize>(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]) {
    let rows_per_tile = x.len().next_multiple_of(32) / KB;
    let (rows, _) = weight.as_chunks::<128>();
    let (out, _) = out.as_chunks_mut::<8>();
    let n_wide = out.len() / 4 * 4;
    let (wide, narrow) = out.split_at_mut(n_wide);
    for (i, out) in wide.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        tiles::<KB, 4>(x, rows, rows_per_tile, 4 * i, groups, out);
    }
    for (i, out) in narrow.iter_mut().enumerate() {
        tiles::<KB, 1>(x, rows, rows_per_tile, n_wide + i, groups, std::array::from_mut(out));
    }
}

/// `T` tiles from tile `first`.
#[target_feature(enable = "avx2")]
fn tiles<const KB: usize, const T: usize>(
    x: &[f32],
    rows: &[[u8; 128]],
    rows_per_tile: usize,
    first: usize,
    groups: &Groups<'_>,
    out: &mut [[f32; 8]; T],
) {
    let mut totals = [_mm256_setzero_ps(); T];
    let mut sums = [_mm256_setzero_ps(); T];
    let mut codes = [[[0f32; 8]; KB]; T];
    let n_blocks = x.len().div_ceil(KB);
    let blocks_per_group = if groups.size >= x.len() { n_blocks } else { (groups.size / KB).max(1) };
    for (block, x) in x.chunks(KB).enumerate() {
        for (t, codes) in codes.iter_mut().enumerate() {
            let Some(row) = rows.get((first + t) * rows_per_tile + block) else { return };
            widen(row, codes);
        }
        for (k, x) in x.iter().enumerate() {
            let x = _mm256_set1_ps(*x);
            for (sum, codes) in sums.iter_mut().zip(&codes) {
                *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, load_ps(&codes[k % KB])));
            }
        }
        if (block + 1).is_multiple_of(blocks_per_group) || block + 1 == n_blocks {
            let group = block / blocks_per_group;
            for (t, (total, sum)) in totals.iter_mut().zip(&mut sums).enumerate() {
                let scales = scales(groups, group, (first + t) * 8);
                *total = _mm256_add_ps(*total, _mm256_mul_ps(*sum, load_ps(&scales)));
                *sum = _mm256_setzero_ps();
            }
        }
    }
    for (out, total) in out.iter_mut().zip(totals) {
        store_ps(out, total);
    }
}

/// Scales of eight columns, zeros beyond the last one.
fn scales(groups: &Groups<'_>, group: usize, col: usize) -> [f32; 8] {
    let mut scales = [0.0; 8];
    let row = groups.scales.get((group * groups.n + col) * 4..).unwrap_or_default();
    let n = groups.n.saturating_sub(col);
    for (to, from) in scales.iter_mut().zip(row.as_chunks::<4>().0.iter().take(n)) {
        *to = f32::from_le_bytes(*from);
    }
    scales
}

/// The codes of a block of eight channels, turned so that a row is a vector.
#[target_feature(enable = "avx2")]
#[inline]
fn widen<const KB: usize>(row: &[u8; 128], codes: &mut [[f32; 8]; KB]) {
    let (blocks, _) = row.as_chunks::<16>();
    let c: [__m128i; 8] = std::array::from_fn(|i| load_16(&blocks[i]));
    let pairs: [[__m128i; 4]; 2] = [
        std::array::from_fn(|i| _mm_unpacklo_epi8(c[i], c[i + 4])),
        std::array::from_fn(|i| _mm_unpackhi_epi8(c[i], c[i + 4])),
    ];
    for (half, p) in pairs.iter().enumerate() {
        let quads = [
            [_mm_unpacklo_epi8(p[0], p[2]), _mm_unpacklo_epi8(p[1], p[3])],
            [_mm_unpackhi_epi8(p[0], p[2]), _mm_unpackhi_epi8(p[1], p[3])],
        ];
        for (quad, [even, odd]) in quads.into_iter().enumerate() {
            let byte = 8 * half + 4 * quad;
            let (first, second) = (_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd));
            for (i, channels) in
                [first, _mm_srli_si128::<8>(first), second, _mm_srli_si128::<8>(second)].into_iter().enumerate()
            {
                let code = _mm256_cvtepi8_epi32(channels);
                if KB == 16 {
                    store_ps(&mut codes[byte + i], _mm256_cvtepi32_ps(code));
                } else {
                    // Byte 4i + j holds rows 8i + j and 8i + 4 + j.
                    let low = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(code));
                    store_ps(&mut codes[2 * byte + i], _mm256_cvtepi32_ps(low));
                    store_ps(&mut codes[2 * byte + 4 + i], _mm256_cvtepi32_ps(_mm256_srai_epi32::<4>(code)));
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_ps(numbers: &[f32; 8]) -> __m256 {
    // SAFETY: the array has the size of the vector; the load needs no alignment.
    unsafe { _mm256_loadu_ps(numbers.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_ps(to: &mut [f32; 8], vector: __m256) {
    // SAFETY: the array has the size of the vector; the store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), vector) }
}
