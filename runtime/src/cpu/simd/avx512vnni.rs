//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 bytes and adds groups of four to
//! 16 sums, without saturation. The loops are those of `wide.rs`.

use std::arch::x86_64::*;

use super::wide::{self, Vector};
use crate::{Isa, cpu::generic};

/// `acc[n] = sum_k (x[k] + 128) * w[k, n]`; see `Kernels::w8_offset`.
pub(in crate::cpu) fn dot_w8(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    if Isa::Avx512Vnni.is_present() {
        // SAFETY: the processor has the instruction set.
        unsafe { dot_w8_vnni(x, weight, acc) }
    } else {
        generic::dot_w8(x, weight, acc);
        let mut sums = vec![0; acc.len()];
        generic::dot_w8(&vec![1; x.len()], weight, &mut sums);
        for (acc, sum) in acc.iter_mut().zip(sums) {
            *acc = acc.wrapping_add(sum.wrapping_mul(128));
        }
    }
}

/// `acc[n] = sum_k x[k] * w[k, n]`, 4-bit weights.
pub(in crate::cpu) fn dot_w4(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    if Isa::Avx512Vnni.is_present() {
        // SAFETY: the processor has the instruction set.
        unsafe { dot_w4_vnni(x, weight, acc) }
    } else {
        generic::dot_w4(x, weight, acc);
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
fn dot_w8_vnni(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    // SAFETY: the features of this function are those of `Zmm`.
    unsafe { wide::dot_w8::<Zmm>(x, weight, acc) }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
fn dot_w4_vnni(x: &[i8], weight: &[u8], acc: &mut [i32]) {
    // SAFETY: the features of this function are those of `Zmm`.
    unsafe { wide::dot_w4::<Zmm>(x, weight, acc) }
}

/// A 512-bit register.
#[derive(Clone, Copy)]
struct Zmm(__m512i);

// SAFETY: every function uses AVX2, AVX-512 F, BW and VNNI only, and touches no
// memory but the arrays given, whose sizes are those of the vectors.
unsafe impl Vector for Zmm {
    type Sums = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller has AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(bytes: &[u8; 64]) -> Self {
        // SAFETY: the caller has AVX-512 F; 64 bytes, no alignment needed.
        Self(unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn broadcast(bytes: &[u8; 16]) -> Self {
        // SAFETY: the caller has AVX-512 F; 16 bytes, no alignment needed.
        Self(unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) })
    }

    #[inline(always)]
    unsafe fn broadcast_words(bytes: &[u8; 32]) -> (Self, Self) {
        // SAFETY: the caller has AVX-512 F; 32 bytes, no alignment needed. The
        // indices name words 0 to 7, so the undefined upper half is not read.
        unsafe {
            let words = _mm512_castsi256_si512(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7);
            (Self(_mm512_permutexvar_epi32(even, words)), Self(_mm512_permutexvar_epi32(odd, words)))
        }
    }

    #[inline(always)]
    unsafe fn flip(self, bits: u8) -> Self {
        // SAFETY: the caller has AVX-512 F.
        Self(unsafe { _mm512_xor_si512(self.0, _mm512_set1_epi8(bits as i8)) })
    }

    #[inline(always)]
    unsafe fn nibbles(self) -> (Self, Self) {
        // SAFETY: the caller has AVX-512 F and BW.
        unsafe {
            let mask = _mm512_set1_epi8(0x0F);
            (Self(_mm512_and_si512(self.0, mask)), Self(_mm512_and_si512(_mm512_srli_epi16::<4>(self.0), mask)))
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, unsigned: Self, signed: Self) -> __m512i {
        // SAFETY: the caller has AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, unsigned.0, signed.0) }
    }

    #[inline(always)]
    unsafe fn channels(sums: __m512i) -> [i32; 4] {
        let mut lanes = [0i32; 16];
        // SAFETY: the caller has AVX-512 F; 64 bytes, no alignment needed.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums) };
        let mut out = [0; 4];
        for (out, lanes) in out.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *out = lanes.iter().fold(0i32, |sum, &lane| sum.wrapping_add(lane));
        }
        out
    }
}
