//! Loops over elements, for the widest instruction set of the machine.
//!
//! Each loop is plain code that the compiler vectorizes inside of a dispatch of
//! `pulp`. Work is cut into pieces whose size does not depend on the number of
//! threads, and sums of pieces are added in their order, so results are the same
//! bits for every number of threads.

use qail_ir::{BinaryFn, UnaryFn};
use rayon::prelude::*;

/// Elements of a piece.
pub(super) const PIECE: usize = 1 << 13;

/// Rows whose sum is taken in `f32` before it is added to the others.
const ROWS: usize = 64;

/// Runs a loop with the widest instructions.
#[inline(always)]
pub(super) fn wide<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Calls `f(first element, piece)` for pieces of whole rows of `n` elements.
pub(super) fn pieces(threads: usize, n: usize, out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let size = (PIECE / n.max(1)).max(1) * n.max(1);
    if threads > 1 && out.len() > size {
        out.par_chunks_mut(size).enumerate().for_each(|(i, piece)| f(i * size, piece));
    } else {
        f(0, out);
    }
}

fn from<T>(x: &[T], start: usize) -> &[T] {
    x.get(start..).unwrap_or_default()
}

/// `out = f(a)`.
pub(super) fn map(threads: usize, out: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    pieces(threads, 1, out, |start, out| {
        wide(|| out.iter_mut().zip(from(a, start)).for_each(|(out, &a)| *out = f(a)));
    });
}

/// `out = f(out)`.
pub(super) fn map_in_place(threads: usize, out: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    pieces(threads, 1, out, |_, out| wide(|| out.iter_mut().for_each(|out| *out = f(*out))));
}

/// `out = f(a, b)`.
pub(super) fn zip(threads: usize, out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    pieces(threads, 1, out, |start, out| {
        wide(|| {
            out.iter_mut().zip(from(a, start)).zip(from(b, start)).for_each(|((out, &a), &b)| *out = f(a, b));
        });
    });
}

/// `out[i, j] = f(a[i, j], row[j])`.
pub(super) fn zip_row(threads: usize, out: &mut [f32], a: &[f32], row: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    let n = row.len().max(1);
    pieces(threads, n, out, |start, out| {
        wide(|| {
            for (out, a) in out.chunks_exact_mut(n).zip(from(a, start).chunks_exact(n)) {
                out.iter_mut().zip(a).zip(row).for_each(|((out, &a), &b)| *out = f(a, b));
            }
        });
    });
}

/// How the second operand of a function of two numbers lies beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// The same shape.
    Equal,
    /// One number.
    Scalar,
    /// One row, the same for all.
    Row,
}

/// `out = f(a, b)`, or `f(b, a)` if `flipped`: `b` is the operand that spreads.
pub(super) fn binary(
    threads: usize,
    f: BinaryFn,
    beside: Beside,
    flipped: bool,
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
) {
    macro_rules! with {
        ($f:expr) => {{
            let f = $f;
            match (beside, b.first()) {
                (Beside::Equal, _) => zip(threads, out, a, b, f),
                (Beside::Row, _) => zip_row(threads, out, a, b, f),
                (Beside::Scalar, Some(&b)) => map(threads, out, a, |a| f(a, b)),
                (Beside::Scalar, None) => {}
            }
        }};
    }
    match (f, flipped) {
        (BinaryFn::Add, _) => with!(|a: f32, b: f32| a + b),
        (BinaryFn::Mul, _) => with!(|a: f32, b: f32| a * b),
        (BinaryFn::Sub, false) => with!(|a: f32, b: f32| a - b),
        (BinaryFn::Sub, true) => with!(|a: f32, b: f32| b - a),
        (BinaryFn::Div, false) => with!(|a: f32, b: f32| a / b),
        (BinaryFn::Div, true) => with!(|a: f32, b: f32| b / a),
        (BinaryFn::Min | BinaryFn::Max | BinaryFn::Pow, false) => with!(|a, b| f.eval_f32(a, b)),
        (BinaryFn::Min | BinaryFn::Max | BinaryFn::Pow, true) => with!(|a, b| f.eval_f32(b, a)),
    }
}

/// `x = f(x)`. Those written out in `f32` are exact in one operation, so they
/// are the definition through `f64`, rounded once.
pub(super) fn unary_in_place(threads: usize, f: UnaryFn, x: &mut [f32]) {
    match f {
        // NaN stays.
        UnaryFn::Relu => map_in_place(threads, x, |x| if x <= 0.0 { 0.0 } else { x }),
        UnaryFn::LeakyRelu { alpha } => map_in_place(threads, x, |x| if x >= 0.0 { x } else { alpha * x }),
        UnaryFn::Clip { min, max } => map_in_place(threads, x, |x| {
            let x = if x < min { min } else { x };
            if x > max { max } else { x }
        }),
        UnaryFn::Abs => map_in_place(threads, x, f32::abs),
        UnaryFn::Neg => map_in_place(threads, x, |x| -x),
        UnaryFn::Sqrt => map_in_place(threads, x, f32::sqrt),
        UnaryFn::Reciprocal => map_in_place(threads, x, |x| 1.0 / x),
        UnaryFn::Elu { .. } | UnaryFn::Tanh | UnaryFn::Sigmoid | UnaryFn::Silu | UnaryFn::Exp | UnaryFn::Log => {
            map_in_place(threads, x, |x| f.eval_f32(x));
        }
    }
}

/// Sum of all elements.
pub(super) fn sum(threads: usize, x: &[f32]) -> f64 {
    let one = |piece: &[f32]| -> f64 { wide(|| piece.chunks(1024).map(|part| f64::from(short_sum(part))).sum()) };
    if threads > 1 && x.len() > PIECE {
        let parts: Vec<f64> = x.par_chunks(PIECE).map(one).collect();
        parts.into_iter().sum()
    } else {
        x.chunks(PIECE).map(one).sum()
    }
}

#[inline(always)]
fn short_sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    lanes.iter().sum::<f32>() + rest
}

/// Sums of the columns of `x[.., n]`, `n = out.len()`.
pub(super) fn column_sums(threads: usize, out: &mut [f64], x: &[f32]) {
    let n = out.len().max(1);
    by_rows(threads, n, x.len(), out, |range, sums| {
        for row in x.get(range).unwrap_or_default().chunks_exact(n) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    });
}

/// Adds, for each block of rows of `n` elements, `n` sums that `f` finds in
/// `f32`, in the order of the blocks.
pub(super) fn by_rows(
    threads: usize,
    n: usize,
    len: usize,
    out: &mut [f64],
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    out.fill(0.0);
    let size = ROWS.saturating_mul(n.max(1));
    let n_blocks = len.div_ceil(size.max(1));
    let range = |i: usize| i * size..((i + 1) * size).min(len);
    let add = |out: &mut [f64], sums: &[f32]| out.iter_mut().zip(sums).for_each(|(out, &sum)| *out += f64::from(sum));
    if threads > 1 && n_blocks > 1 && len > PIECE {
        let block = |i: usize| {
            let mut sums = vec![0f32; n];
            wide(|| f(range(i), &mut sums));
            sums
        };
        let blocks: Vec<Vec<f32>> = (0..n_blocks).into_par_iter().map(block).collect();
        blocks.iter().for_each(|sums| add(out, sums));
    } else {
        let mut sums = vec![0f32; n];
        for i in 0..n_blocks {
            sums.fill(0.0);
            wide(|| f(range(i), &mut sums));
            add(out, &sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_in_f32_are_the_definition() {
        let x: Vec<f32> = (-4000..4000).map(|i| (i as f32) * 0.731e-3 * (1.0 + (i as f32).sin().abs())).collect();
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE, 1e-40, f32::MAX];
        for f in [
            UnaryFn::Relu,
            UnaryFn::LeakyRelu { alpha: 0.01 },
            UnaryFn::Clip { min: -0.5, max: 1.25 },
            UnaryFn::Abs,
            UnaryFn::Neg,
            UnaryFn::Sqrt,
            UnaryFn::Reciprocal,
            UnaryFn::Tanh,
        ] {
            let mut out: Vec<f32> = x.iter().chain(&odd).copied().collect();
            let expected: Vec<f32> = out.iter().map(|&x| f.eval_f32(x)).collect();
            unary_in_place(1, f, &mut out);
            for (a, b) in out.iter().zip(&expected) {
                assert!(a == b || a.is_nan() && b.is_nan(), "{}: {a} {b}", f.name());
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let x: Vec<f32> = (0..100_000).map(|i| ((i * 7919) % 10_007) as f32 * 1e-3 - 5.0).collect();
        let one = sum(1, &x);
        assert_eq!(one.to_bits(), pool.install(|| sum(3, &x)).to_bits());
        let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
        assert!((one - exact).abs() < 1e-2);
        let (mut a, mut b) = (vec![0.0; 100], vec![0.0; 100]);
        column_sums(1, &mut a, &x);
        pool.install(|| column_sums(3, &mut b, &x));
        assert_eq!(a, b);
    }
}
