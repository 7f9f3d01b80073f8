//! Every kernel of every instruction set that this machine has, against plain
//! sums over the codes.

use proptest::prelude::*;
use qail_artifact::{Layout, pack};

use super::wide::{self, Vector};
use crate::{
    Isa,
    cpu::{
        integer::Requantizer,
        kernels::{Groups, Kernels},
    },
};

/// Arrays in place of a register: what the processor does, word for word.
#[derive(Clone, Copy)]
struct Emulated([u8; 64]);

// SAFETY: needs no instruction set.
unsafe impl Vector for Emulated {
    type Sums = [i32; 16];

    unsafe fn zero() -> [i32; 16] {
        [0; 16]
    }
    unsafe fn load(bytes: &[u8; 64]) -> Self {
        Self(*bytes)
    }
    unsafe fn broadcast(bytes: &[u8; 16]) -> Self {
        Self(std::array::from_fn(|i| bytes[i % 16]))
    }
    unsafe fn broadcast_words(bytes: &[u8; 32]) -> (Self, Self) {
        let word = |i: usize, odd: usize| bytes[8 * (i % 16 / 4) + 4 * odd + i % 4];
        (Self(std::array::from_fn(|i| word(i, 0))), Self(std::array::from_fn(|i| word(i, 1))))
    }
    unsafe fn flip(self, bits: u8) -> Self {
        Self(self.0.map(|byte| byte ^ bits))
    }
    unsafe fn nibbles(self) -> (Self, Self) {
        (Self(self.0.map(|byte| byte & 15)), Self(self.0.map(|byte| byte >> 4)))
    }
    unsafe fn dot(sums: [i32; 16], unsigned: Self, signed: Self) -> [i32; 16] {
        std::array::from_fn(|i| {
            (4 * i..4 * i + 4)
                .fold(sums[i], |sum, b| sum.wrapping_add(i32::from(unsigned.0[b]) * i32::from(signed.0[b] as i8)))
        })
    }
    unsafe fn channels(sums: [i32; 16]) -> [i32; 4] {
        std::array::from_fn(|c| sums[4 * c..4 * c + 4].iter().fold(0i32, |sum, &x| sum.wrapping_add(x)))
    }
}

fn present() -> impl Iterator<Item = (Isa, Kernels)> {
    Isa::ALL.into_iter().filter(|isa| isa.is_present()).map(|isa| (isa, Kernels::of(isa)))
}

/// `sum_k (x[k] + offset) * w[k, n]` over row-major codes.
fn plain_dot(x: &[i8], codes: &[i8], n: usize, offset: i32) -> Vec<i32> {
    let column = |col: usize| {
        let terms = x.iter().zip(codes.chunks_exact(n)).map(|(&x, row)| (i32::from(x) + offset) * i32::from(row[col]));
        terms.sum()
    };
    (0..n).map(column).collect()
}

/// A row of codes and a matrix. The row is padded with garbage, as in an arena.
fn product(lo: i8, hi: i8) -> impl Strategy<Value = (usize, usize, Vec<i8>, Vec<i8>)> {
    (1usize..150, 1usize..30).prop_flat_map(move |(k, n)| {
        let x = proptest::collection::vec(
            prop_oneof![4 => any::<i8>(), 1 => Just(-128), 1 => Just(127)],
            k.next_multiple_of(32),
        );
        (Just(k), Just(n), x, proptest::collection::vec(prop_oneof![4 => lo..=hi, 1 => Just(lo), 1 => Just(hi)], k * n))
    })
}

fn check_w8(k: usize, n: usize, x: &[i8], codes: &[i8], full: bool) {
    let packed = pack::pack_codes(Layout::W8Tile8x16, codes, k, n).unwrap();
    for (isa, kernels) in present() {
        let mut acc = vec![0; n.next_multiple_of(8)];
        let dot = if full { kernels.dot_w8_full } else { kernels.dot_w8 };
        dot(x, &packed, &mut acc);
        assert_eq!(acc[..n], plain_dot(&x[..k], codes, n, kernels.w8_offset), "{isa:?}");
    }
    let mut acc = vec![0; n.next_multiple_of(8)];
    // SAFETY: the emulation needs no instruction set.
    unsafe { wide::dot_w8::<Emulated>(x, &packed, &mut acc) };
    assert_eq!(acc[..n], plain_dot(&x[..k], codes, n, 128), "emulated");
}

proptest! {
    #[test]
    fn bytes_are_summed_exactly((k, n, x, codes) in product(-127, 127)) {
        check_w8(k, n, &x, &codes, false);
    }

    #[test]
    fn bytes_of_minus_128_are_summed_exactly((k, n, x, codes) in product(-128, 127)) {
        check_w8(k, n, &x, &codes, true);
    }

    #[test]
    fn nibbles_are_summed_exactly((k, n, x, codes) in product(-8, 7)) {
        let packed = pack::pack_codes(Layout::W4Tile8x32, &codes, k, n).unwrap();
        let expected = plain_dot(&x[..k], &codes, n, 0);
        for (isa, kernels) in present() {
            let mut acc = vec![0; n.next_multiple_of(8)];
            (kernels.dot_w4)(&x, &packed, &mut acc);
            prop_assert_eq!(&acc[..n], &expected[..], "{:?}", isa);
        }
        let mut acc = vec![0; n.next_multiple_of(8)];
        // SAFETY: the emulation needs no instruction set.
        unsafe { wide::dot_w4::<Emulated>(&x, &packed, &mut acc) };
        prop_assert_eq!(&acc[..n], &expected[..], "emulated");
    }

    #[test]
    fn requantization_is_exact(
        channels in proptest::collection::vec((16_384i32..32_768, 1i32..=62, prop_oneof![any::<i32>(), -5000..5000, Just(i32::MIN), Just(i32::MAX)]), 1..40),
        zero_point in -200i32..200,
        (lo, hi) in prop_oneof![Just((-128, 127)), Just((-8, 7)), Just((0, 127)), Just((3, 3))],
        with_table in any::<bool>(),
    ) {
        let m: Vec<i32> = channels.iter().map(|c| 2 * c.0 + 1).collect();
        let shift: Vec<i32> = channels.iter().map(|c| c.1).collect();
        let acc: Vec<i32> = channels.iter().map(|c| c.2).collect();
        let table: Option<Vec<u8>> = with_table.then(|| (0..=255u8).map(|i| i.wrapping_mul(37)).collect());
        // The table is indexed by code + 128.
        let first = if with_table { -128 } else { 0 };
        let requantizer = Requantizer::from_parts(
            &m, &shift, zero_point - first, lo - first, hi - first,
            table.as_deref().map(|t| t.try_into().unwrap()),
        );
        let expected: Vec<u8> = channels.iter().zip(&m).map(|(c, &m)| {
            let q = (i128::from(c.2) * i128::from(m) + (1i128 << (c.1 - 1))) >> c.1;
            let q = (q + i128::from(zero_point)).clamp(lo.into(), hi.into()) as i32;
            table.as_ref().map_or(q as u8, |t| t[(q + 128) as usize])
        }).collect();
        for (isa, kernels) in present() {
            let mut out = vec![0; acc.len()];
            (kernels.requantize)(&requantizer, &acc, &mut out);
            prop_assert_eq!(&out, &expected, "{:?}", isa);
        }
    }

    #[test]
    fn float_products_have_the_bits_of_a_sequential_sum(
        (k, n) in (1usize..70, 1usize..90), seed in any::<u32>(),
    ) {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let x: Vec<f32> = (0..k).map(|_| next()).collect();
        let w: Vec<f32> = (0..k * n).map(|_| next()).collect();
        let packed = pack::pack_f32(&w, k, n).unwrap();
        let expected: Vec<u32> = (0..n).map(|col| {
            let mut sum = 0f32;
            for row in 0..k {
                sum += x[row] * w[row * n + col];
            }
            sum.to_bits()
        }).collect();
        for (isa, kernels) in present() {
            let mut out = vec![0.0; n.next_multiple_of(8)];
            (kernels.dot_f32)(&x, &packed, &mut out);
            let bits: Vec<u32> = out[..n].iter().map(|x| x.to_bits()).collect();
            prop_assert_eq!(&bits, &expected, "{:?}", isa);
        }
    }

    #[test]
    fn weight_only_products_have_the_bits_of_grouped_sums(
        (k, n, x, codes) in product(-8, 7), size in prop_oneof![Just(0usize), Just(32), Just(1), Just(7), Just(1000)],
    ) {
        let x: Vec<f32> = x[..k].iter().map(|&x| f32::from(x) * 0.37).collect();
        // Zero stands for one group a column.
        let size = if size == 0 { k } else { size };
        let n_groups = k.div_ceil(size);
        let scales: Vec<f32> = (0..n_groups * n).map(|i| 0.01 + i as f32 * 0.003).collect();
        let scale_bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let groups = Groups { scales: &scale_bytes, size, n };
        let expected: Vec<u32> = (0..n).map(|col| {
            let mut total = 0f32;
            for group in 0..n_groups {
                let mut sum = 0f32;
                for row in group * size..((group + 1) * size).min(k) {
                    sum += x[row] * f32::from(codes[row * n + col]);
                }
                total += sum * scales[group * n + col];
            }
            total.to_bits()
        }).collect();
        for layout in [Layout::W4Tile8x32, Layout::W8Tile8x16] {
            let packed = pack::pack_codes(layout, &codes, k, n).unwrap();
            for (isa, kernels) in present() {
                let dot = if layout == Layout::W4Tile8x32 { kernels.dot_wq4 } else { kernels.dot_wq8 };
                let mut out = vec![0.0; n.next_multiple_of(8)];
                dot(&x, &packed, &groups, &mut out);
                let bits: Vec<u32> = out[..n].iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(&bits, &expected, "{:?} {:?}", layout, isa);
            }
        }
    }
}
