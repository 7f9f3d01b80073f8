//! The inner loops of one instruction set, chosen once at load.

use super::{
    generic,
    integer::{Quantizer, Requantizer, W8_OFFSET_VNNI},
};
use crate::Isa;

/// A row of codes times packed weights: `acc[n] = sum_k (x[k] + offset) * w[k, n]`.
///
/// `x` has the padded K, `acc` the padded N. A length that does not fit leaves
/// `acc` unchanged; callers have checked it at load.
pub(crate) type Dot = fn(x: &[i8], weight: &[u8], acc: &mut [i32]);

/// One row of `f32` times a matrix `[K][N rounded up to 8]`, without bias.
pub(crate) type DotF32 = fn(x: &[f32], weight: &[u8], out: &mut [f32]);

/// One row of `f32` times packed codes with a scale a group, without bias.
pub(crate) type DotWq = fn(x: &[f32], weight: &[u8], groups: &Groups<'_>, out: &mut [f32]);

/// A row of floats to stored codes; bytes beyond the row are left alone.
pub(crate) type QuantizeRow = fn(&Quantizer, x: &[f32], out: &mut [u8]);

/// Scales of weight-only quantization.
pub(crate) struct Groups<'a> {
    /// `f32[ceil(K / size)][n]`, little-endian.
    pub(crate) scales: &'a [u8],
    /// Rows of a group.
    pub(crate) size: usize,
    /// Columns without padding.
    pub(crate) n: usize,
}

/// The inner loops.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// 8-bit weights in -127..=127.
    pub(crate) dot_w8: Dot,
    /// 8-bit weights, -128 included.
    pub(crate) dot_w8_full: Dot,
    /// What `dot_w8` and `dot_w8_full` add to every code of `x`.
    pub(crate) w8_offset: i32,
    /// 4-bit weights, offset 0.
    pub(crate) dot_w4: Dot,
    /// Accumulators to stored codes.
    pub(crate) requantize: fn(&Requantizer, acc: &[i32], out: &mut [u8]),
    /// Floats to bytes.
    pub(crate) quantize_8: QuantizeRow,
    /// Floats to `i16`.
    pub(crate) quantize_16: QuantizeRow,
    /// Float weights.
    pub(crate) dot_f32: DotF32,
    /// 8-bit weights, float arithmetic.
    pub(crate) dot_wq8: DotWq,
    /// 4-bit weights, float arithmetic.
    pub(crate) dot_wq4: DotWq,
}

impl Kernels {
    /// The reference.
    pub(crate) const GENERIC: Self = Self {
        dot_w8: generic::dot_w8,
        dot_w8_full: generic::dot_w8,
        w8_offset: 0,
        dot_w4: generic::dot_w4,
        requantize: generic::requantize,
        quantize_8: generic::quantize_8,
        quantize_16: generic::quantize_16,
        dot_f32: generic::dot_f32,
        dot_wq8: generic::dot_wq8,
        dot_wq4: generic::dot_wq4,
    };

    /// The kernels of an instruction set that this machine has; of any other,
    /// the reference.
    pub(crate) fn of(isa: Isa) -> Self {
        if !isa.is_present() {
            return Self::GENERIC;
        }
        match isa {
            Isa::Generic => Self::GENERIC,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::simd::avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Self {
                dot_w8: super::simd::avx512vnni::dot_w8,
                dot_w8_full: super::simd::avx512vnni::dot_w8,
                w8_offset: W8_OFFSET_VNNI,
                dot_w4: super::simd::avx512vnni::dot_w4,
                ..super::simd::avx2::KERNELS
            },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni => Self::GENERIC,
        }
    }
}
