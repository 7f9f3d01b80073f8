//! AVX2, integers: 32 products of bytes an instruction.
//!
//! A vector of 32 bytes of a tile holds two channels of 16 rows. `vpmaddubsw`
//! multiplies unsigned by signed bytes and adds pairs in 16 bits:
//! - 8-bit weights: `|x|` times `w` with the sign of `x`. A pair is at most
//!   `2 * 128 * 127 = 32512`, so it does not saturate, unless a weight is -128;
//!   those go through 16-bit products.
//! - 4-bit weights: `w + 8` in 0..=15 times `x`, then `8 * sum(x)` is taken off.
//!   A pair is at most `2 * 15 * 128 = 3840`, the sum of eight fits 16 bits.

use std::arch::x86_64::*;

use super::avx2_float;
use crate::cpu::{
    generic,
    integer::{Quantizer, Requantizer},
    kernels::Kernels,
};

/// Every loop for this instruction set.
pub(in crate::cpu) const KERNELS: Kernels = Kernels {
    dot_w8,
    dot_w8_full,
    w8_offset: 0,
    dot_w4,
    requantize,
    quantize_8,
    quantize_16,
    dot_f32: avx2_float::dot_f32,
    dot_wq8: avx2_float::dot_wq8,
    dot_wq4: avx2_float::dot_wq4,
};

/// Calls the function of the instruction set if the processor has it, else the reference.
macro_rules! dispatch {
    ($name:ident, $fast:ident, $($arg:ident: $ty:ty),*) => {
        pub(super) fn $name($($arg: $ty),*) {
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                unsafe { $fast($($arg),*) }
            } else {
                generic::$name($($arg),*)
            }
        }
    };
}

dispatch!(dot_w8, dot_w8_avx2, x: &[i8], weight: &[u8], acc: &mut [i32]);
dispatch!(dot_w4, dot_w4_avx2, x: &[i8], weight: &[u8], acc: &mut [i32]);
dispatch!(quantize_8, quantize_8_avx2, quantizer: &Quantizer, x: &[f32], out: &mut [u8]);
dispatch!(quantize_16, quantize_16_avx2, quantizer: &Quantizer, x: &[f32], out: &mut [u8]);
dispatch!(requantize, requantize_avx2, requantizer: &Requantizer, acc: &[i32], out: &mut [u8]);

fn dot_w8_full(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { dot_w8_full_avx2(x, weight, acc) }
    } else {
        generic::dot_w8(x, weight, acc);
    }
}

/// `acc[n] = sum_k x[k] * w[k, n]`, no weight is -128.
#[target_feature(enable = "avx2")]
fn dot_w8_avx2(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = bytemuck::cast_slice::<i8, u8>(x).as_chunks::<16>();
    let (rows, _) = weight.as_chunks::<128>();
    let (acc, _) = acc.as_chunks_mut::<8>();
    let ones = _mm256_set1_epi16(1);
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc) {
        let mut sums = [_mm256_setzero_si256(); 4];
        for (row, x) in tile.iter().zip(x) {
            let x = _mm256_broadcastsi128_si256(load_16(x));
            let magnitude = _mm256_abs_epi8(x);
            for (sum, w) in sums.iter_mut().zip(row.as_chunks::<32>().0) {
                let signed = _mm256_sign_epi8(load_32(w), x);
                let pairs = _mm256_maddubs_epi16(magnitude, signed);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        store_8(acc, channels(sums));
    }
}

/// As [`dot_w8_avx2`], for all weights: products of 16 bits.
#[target_feature(enable = "avx2")]
fn dot_w8_full_avx2(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = bytemuck::cast_slice::<i8, u8>(x).as_chunks::<16>();
    let (rows, _) = weight.as_chunks::<128>();
    let (acc, _) = acc.as_chunks_mut::<8>();
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc) {
        let mut sums = [_mm256_setzero_si256(); 8];
        for (row, x) in tile.iter().zip(x) {
            let x = _mm256_cvtepi8_epi16(load_16(x));
            for (sum, w) in sums.iter_mut().zip(row.as_chunks::<16>().0) {
                let w = _mm256_cvtepi8_epi16(load_16(w));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, x));
            }
        }
        // Eight partial sums a channel: fold the halves of two channels into one vector.
        let [a, b, c, d, e, f, g, h] = sums;
        store_8(acc, channels([fold(a, b), fold(c, d), fold(e, f), fold(g, h)]));
    }
}

/// `acc[n] = sum_k x[k] * w[k, n]`, 4-bit weights.
#[target_feature(enable = "avx2")]
fn dot_w4_avx2(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    let (x, _) = bytemuck::cast_slice::<i8, u8>(x).as_chunks::<32>();
    let (rows, _) = weight.as_chunks::<128>();
    let (acc, _) = acc.as_chunks_mut::<8>();
    let ones = _mm256_set1_epi16(1);
    let low = _mm256_set1_epi8(0x0F);
    // The top bit of a nibble flipped is the nibble plus 8, unsigned.
    let flip = _mm256_set1_epi8(0x88_u8 as i8);
    let even_words = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    let odd_words = _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7);
    let eight_times_x = _mm256_set1_epi32(sum_of_codes(x).wrapping_mul(8));
    for (tile, acc) in rows.chunks_exact(x.len().max(1)).zip(acc) {
        let mut sums = [_mm256_setzero_si256(); 4];
        for (row, x) in tile.iter().zip(x) {
            let x = load_32(x);
            let x_low = _mm256_permutevar8x32_epi32(x, even_words);
            let x_high = _mm256_permutevar8x32_epi32(x, odd_words);
            for (sum, w) in sums.iter_mut().zip(row.as_chunks::<32>().0) {
                let w = _mm256_xor_si256(load_32(w), flip);
                let w_low = _mm256_and_si256(w, low);
                let w_high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w_low, x_low), _mm256_maddubs_epi16(w_high, x_high));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        store_8(acc, _mm256_sub_epi32(channels(sums), eight_times_x));
    }
}

/// Sum of all bytes, signed.
#[target_feature(enable = "avx2")]
pub(super) fn sum_of_codes(x: &[[u8; 32]]) -> i32 {
    let (unsigned, ones) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let mut sum = _mm256_setzero_si256();
    for x in x {
        let pairs = _mm256_maddubs_epi16(unsigned, load_32(x));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    let mut lanes = [0; 8];
    store_8(&mut lanes, sum);
    lanes.into_iter().fold(0, i32::wrapping_add)
}

/// Adds the four partial sums of each channel; vector `i` holds channels `2i`
/// and `2i + 1`.
#[target_feature(enable = "avx2")]
fn channels([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// Adds the halves of each vector: those of `a` below, those of `b` above.
#[target_feature(enable = "avx2")]
fn fold(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// The reference, compiled for AVX2.
#[target_feature(enable = "avx2")]
fn quantize_8_avx2(quantizer: &Quantizer, x: &[f32], out: &mut [u8]) {
    generic::quantize_8(quantizer, x, out);
}

/// The reference, compiled for AVX2.
#[target_feature(enable = "avx2")]
fn quantize_16_avx2(quantizer: &Quantizer, x: &[f32], out: &mut [u8]) {
    generic::quantize_16(quantizer, x, out);
}

/// Eight channels at a time. Even and odd lanes are multiplied apart in 64 bits.
///
/// AVX2 has no arithmetic shift of 64 bits: 2^62 is added before a logical shift
/// and what became of it is taken off after it, which is exact because the shift
/// divides it. Then `(acc * m + 2^(s-1)) >> s` is `(((acc * m) >> (s-1)) + 1) >> 1`,
/// and that fits 32 bits thanks to `Requantizer::bound`.
#[target_feature(enable = "avx2")]
fn requantize_avx2(requantizer: &Requantizer, acc: &[i32], out: &mut [u8]) {
    let (lo, hi) = (_mm256_set1_epi32(requantizer.lo), _mm256_set1_epi32(requantizer.hi));
    let zero_point = _mm256_set1_epi32(requantizer.zero_point);
    let positive = _mm256_set1_epi64x(1 << 62);
    let low_half = _mm256_set1_epi64x(0xFFFF_FFFF);
    let shift_right = |product: __m256i, shift: __m256i| {
        let shifted = _mm256_srlv_epi64(_mm256_add_epi64(product, positive), shift);
        _mm256_sub_epi64(shifted, _mm256_srlv_epi64(positive, shift))
    };
    let channels = requantizer.m.as_chunks::<8>().0.iter().zip(requantizer.shift_less_one.as_chunks::<8>().0);
    let channels = channels.zip(requantizer.bound.as_chunks::<8>().0);
    for ((acc, out), ((m, shift), bound)) in acc.chunks(8).zip(out.chunks_mut(8)).zip(channels) {
        let acc = match acc.first_chunk::<8>() {
            Some(acc) => load_8(acc),
            None => {
                let mut padded = [0; 8];
                for (to, from) in padded.iter_mut().zip(acc) {
                    *to = *from;
                }
                load_8(&padded)
            }
        };
        let (m, shift, bound) = (load_8(m), load_8(shift), load_8(bound));
        let acc = _mm256_min_epi32(acc, bound);
        let acc = _mm256_max_epi32(acc, _mm256_sub_epi32(_mm256_setzero_si256(), bound));
        let even = _mm256_mul_epi32(acc, m);
        let odd = _mm256_mul_epi32(_mm256_srli_epi64::<32>(acc), _mm256_srli_epi64::<32>(m));
        let even = shift_right(even, _mm256_and_si256(shift, low_half));
        let odd = shift_right(odd, _mm256_srli_epi64::<32>(shift));
        let doubled = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let rounded = _mm256_srai_epi32::<1>(_mm256_add_epi32(doubled, _mm256_set1_epi32(1)));
        let code = _mm256_add_epi32(rounded, zero_point);
        let code = _mm256_max_epi32(_mm256_min_epi32(code, hi), lo);
        match (&requantizer.table, out.first_chunk_mut::<8>()) {
            (None, Some(out)) => *out = low_bytes(code),
            (None, None) => {
                for (out, code) in out.iter_mut().zip(low_bytes(code)) {
                    *out = code;
                }
            }
            (Some(table), _) => {
                // Indices are in 0..=255.
                for (out, index) in out.iter_mut().zip(low_bytes(code)) {
                    *out = table[usize::from(index)];
                }
            }
        }
    }
}

/// The low byte of each number.
#[target_feature(enable = "avx2")]
#[inline]
fn low_bytes(numbers: __m256i) -> [u8; 8] {
    // Bytes 0, 4, 8 and 12 of each half to its front, zeros behind them.
    let order = _mm256_setr_epi64x(0x8080_8080_0C08_0400_u64 as i64, -1, 0x8080_8080_0C08_0400_u64 as i64, -1);
    let packed = _mm256_shuffle_epi8(numbers, order);
    let words = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm256_extract_epi64::<0>(words).to_le_bytes()
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array has the size of the vector; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the size of the vector; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_8(numbers: &[i32; 8]) -> __m256i {
    // SAFETY: the array has the size of the vector; the load needs no alignment.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_8(to: &mut [i32; 8], vector: __m256i) {
    // SAFETY: the array has the size of the vector; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
}
