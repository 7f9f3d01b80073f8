//! Loops over integer codes, stored as `f32` with the zero point taken off.
//!
//! Why `f64` is exact here. An accumulator is an integer below 2^31 and a
//! multiplier `m * 2^-s` has 16 bits, so their product has at most 47 and lies in
//! the 53 of an `f64`; scaling by a power of two moves the exponent alone. Adding
//! one half is exact while `|acc * m| + 2^(s-1)` stays below 2^53, that is for
//! `s <= 53`; for larger `s` the product is below `2^47 / 2^54`, and the sum,
//! rounded or not, has floor 0 as the shift has. So `floor(acc * M + 0.5)` is
//! `(acc * m + 2^(s-1)) >> s`. The bounds of the clamp are integers, which floor
//! leaves alone, and floor is monotone: clamping before it is the same.

use qail_passes::quant::weight_code;

use super::lanes::{by_rows, pieces, wide};

fn from<T>(x: &[T], start: usize) -> &[T] {
    x.get(start..).unwrap_or_default()
}

/// `out = clamp(floor((acc + bias) * factor + 0.5), lo, hi)`, by column.
pub(super) fn requantize<A: Copy + Into<f64> + Sync>(
    threads: usize,
    out: &mut [f32],
    acc: &[A],
    bias: &[f64],
    factors: &[f64],
    [lo, hi]: [f64; 2],
) {
    let n = bias.len().max(1);
    pieces(threads, n, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for (out, acc) in out.chunks_exact_mut(n).zip(from(acc, start).chunks_exact(n)) {
                    for (((out, &acc), &b), &m) in out.iter_mut().zip(acc).zip(bias).zip(factors) {
                        let x = (acc.into() + b) * m + 0.5;
                        let x = if x < lo { lo } else { x };
                        let x = if x > hi { hi } else { x };
                        *out = x.floor() as f32;
                    }
                }
            },
        );
    });
}

/// `out = ((acc + bias) * scale) as f32`, by column: what floats read.
pub(super) fn leave<A: Copy + Into<f64> + Sync>(
    threads: usize,
    out: &mut [f32],
    acc: &[A],
    bias: &[f64],
    scales: &[f64],
) {
    let n = bias.len().max(1);
    pieces(threads, n, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for (out, acc) in out.chunks_exact_mut(n).zip(from(acc, start).chunks_exact(n)) {
                    for (((out, &acc), &b), &s) in out.iter_mut().zip(acc).zip(bias).zip(scales) {
                        *out = ((acc.into() + b) * s) as f32;
                    }
                }
            },
        );
    });
}

/// `out = clamp(rne(out * r), lo, hi)` in place, the product rounded to `f32`:
/// from floats to codes. NaN stays NaN.
pub(super) fn quantize(threads: usize, out: &mut [f32], r: f32, [lo, hi]: [f32; 2]) {
    pieces(threads, 1, out, |_, out| {
        wide(
            #[inline(always)]
            || {
                for out in out {
                    let x = (*out * r).round_ties_even();
                    let x = if x < lo { lo } else { x };
                    // Plus zero: there is one code 0, not two.
                    *out = if x > hi { hi } else { x } + 0.0;
                }
            },
        );
    });
}

/// The first element that is NaN.
pub(super) fn nan(x: &[f32]) -> Option<usize> {
    let any = wide(
        #[inline(always)]
        || x.iter().fold(0u32, |any, x| any | u32::from(x.is_nan())),
    );
    if any == 0 { None } else { x.iter().position(|x| x.is_nan()) }
}

/// `out = table[code]`: `offset` is what a code without its zero point needs to
/// become an index below 256.
pub(super) fn look_up(threads: usize, out: &mut [f32], codes: &[f32], table: &[f32; 256], offset: i32) {
    // 2^23 and an index add to a number whose last bits are the index.
    let magic = 8_388_608.0 + offset as f32;
    pieces(threads, 1, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for (out, &code) in out.iter_mut().zip(from(codes, start)) {
                    *out = table[usize::from((code + magic).to_bits() as u8)];
                }
            },
        );
    });
}

/// As [`look_up`], times another tensor.
pub(super) fn look_up_times(
    threads: usize,
    out: &mut [f32],
    codes: &[f32],
    g: &[f32],
    table: &[f32; 256],
    offset: i32,
) {
    let magic = 8_388_608.0 + offset as f32;
    pieces(threads, 1, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for ((out, &code), &g) in out.iter_mut().zip(from(codes, start)).zip(from(g, start)) {
                    *out = table[usize::from((code + magic).to_bits() as u8)] * g;
                }
            },
        );
    });
}

/// Codes of weights `w[.., N]`, `N` the number of steps: [`weight_code`], which
/// divides in `f64`.
///
/// A quotient rounded to `f32` rounds to the same integer unless it is halfway
/// between two: rounding is monotone and halves are `f32` numbers, so it cannot
/// step over one. Rows with such a quotient are done again in `f64`.
pub(super) fn weight_codes(threads: usize, out: &mut [f32], w: &[f32], steps: &[f32], lo: i32, hi: i32) {
    let n = steps.len().max(1);
    let (low, high) = (lo as f32, hi as f32);
    pieces(threads, n, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for (out, w) in out.chunks_exact_mut(n).zip(from(w, start).chunks_exact(n)) {
                    let mut ties = 0u32;
                    for ((out, &w), &step) in out.iter_mut().zip(w).zip(steps) {
                        let x = w / step;
                        let x = if x < low { low } else { x };
                        let x = if x > high { high } else { x };
                        let code = x.round_ties_even();
                        ties |= u32::from((x - code).abs() == 0.5);
                        *out = code + 0.0;
                    }
                    if ties != 0 {
                        for ((out, &w), &step) in out.iter_mut().zip(w).zip(steps) {
                            *out = weight_code(f64::from(w), step, lo, hi) as f32;
                        }
                    }
                }
            },
        );
    });
}

/// Sums of the columns of weight codes and of their magnitudes: exact, since
/// 64 codes of 16 bits add in the 24 of an `f32`.
pub(super) fn code_sums(threads: usize, codes: &[f32], sums: &mut [f64], magnitudes: &mut [f64]) {
    let n = sums.len().max(1);
    by_rows(
        threads,
        n,
        codes.len(),
        sums,
        #[inline(always)]
        |range, sums| {
            for row in codes.get(range).unwrap_or_default().chunks_exact(n) {
                sums.iter_mut().zip(row).for_each(|(sum, code)| *sum += code);
            }
        },
    );
    by_rows(
        threads,
        n,
        codes.len(),
        magnitudes,
        #[inline(always)]
        |range, sums| {
            for row in codes.get(range).unwrap_or_default().chunks_exact(n) {
                sums.iter_mut().zip(row).for_each(|(sum, code)| *sum += code.abs());
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use qail_ir::fixed::Multiplier;

    #[test]
    fn requantization_is_the_shift() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for _ in 0..20_000 {
            let multiplier = Multiplier::new(32_769 + 2 * (next() % 16_383) as u32, 1 + (next() % 62) as u32).unwrap();
            let (lo, hi) = (-((next() % 129) as i32), (next() % 256) as i32);
            // Near the middle of the range of codes, and anywhere.
            let near = (f64::from((next() % 512) as i32 - 256) / multiplier.factor()).round();
            let any = f64::from((next() as i32).wrapping_sub(1 << 30).wrapping_mul(2));
            for acc in [near, any, f64::from(i32::MAX), f64::from(i32::MIN)] {
                if acc.abs() > f64::from(i32::MAX) {
                    continue;
                }
                let mut out = [0.0];
                requantize(1, &mut out, &[acc], &[0.0], &[multiplier.factor()], [f64::from(lo), f64::from(hi)]);
                assert_eq!(out[0], multiplier.requantize(acc as i32, lo, hi) as f32, "{acc} {multiplier:?}");
            }
        }
    }

    #[test]
    fn weights_beside_a_tie_are_divided_in_f64() {
        // Steps and weights whose quotients are halves, or as near as can be.
        let mut n_ties = 0;
        for i in 1..400u32 {
            let step = f32::from_bits(0x3d00_0000 + i * 7_919);
            for half in [-7.5f32, -6.5, -0.5, 0.5, 1.5, 3.5, 6.5, 126.5] {
                let w = half * step;
                for w in [w, w.next_up(), w.next_down()] {
                    let mut out = [0.0];
                    weight_codes(1, &mut out, &[w], &[step], -127, 127);
                    assert_eq!(out[0], weight_code(f64::from(w), step, -127, 127) as f32, "{w} {step}");
                    n_ties += u32::from((w / step).fract().abs() == 0.5);
                }
            }
        }
        assert!(n_ties > 1000);
    }

    #[test]
    fn tables_are_read_by_code() {
        let mut table = [0f32; 256];
        table.iter_mut().enumerate().for_each(|(i, entry)| *entry = i as f32);
        let codes: Vec<f32> = (-128..128).map(|code| code as f32).collect();
        let mut out = vec![0.0; 256];
        look_up(1, &mut out, &codes, &table, 128);
        assert_eq!(out, table);
    }
}
