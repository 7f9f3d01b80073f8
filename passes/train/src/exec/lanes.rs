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
pub(super) fn pieces<T: Send>(threads: usize, n: usize, out: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
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
        wide(
            #[inline(always)]
            || out.iter_mut().zip(from(a, start)).for_each(|(out, &a)| *out = f(a)),
        );
    });
}

/// `out = f(out)`.
pub(super) fn map_in_place(threads: usize, out: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    pieces(threads, 1, out, |_, out| {
        wide(
            #[inline(always)]
            || out.iter_mut().for_each(|out| *out = f(*out)),
        )
    });
}

/// `out = f(a, b)`.
pub(super) fn zip(threads: usize, out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    pieces(threads, 1, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                out.iter_mut().zip(from(a, start)).zip(from(b, start)).for_each(|((out, &a), &b)| *out = f(a, b));
            },
        );
    });
}

/// `out[i, j] = f(a[i, j], row[j])`.
pub(super) fn zip_row(threads: usize, out: &mut [f32], a: &[f32], row: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    let n = row.len().max(1);
    pieces(threads, n, out, |start, out| {
        wide(
            #[inline(always)]
            || {
                for (out, a) in out.chunks_exact_mut(n).zip(from(a, start).chunks_exact(n)) {
                    out.iter_mut().zip(a).zip(row).for_each(|((out, &a), &b)| *out = f(a, b));
                }
            },
        );
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
        (BinaryFn::Min | BinaryFn::Max | BinaryFn::Pow | BinaryFn::Mod | BinaryFn::Rem, false) => {
            with!(|a, b| f.eval_f32(a, b));
        }
        (BinaryFn::Min | BinaryFn::Max | BinaryFn::Pow | BinaryFn::Mod | BinaryFn::Rem, true) => {
            with!(|a, b| f.eval_f32(b, a));
        }
    }
}

/// `out = f(x)`, or `out = f(out)` without `x`. Those written out in `f32` are
/// exact in one operation, so they are the definition through `f64`, rounded once.
pub(super) fn unary(threads: usize, f: UnaryFn, out: &mut [f32], x: Option<&[f32]>) {
    macro_rules! with {
        ($f:expr) => {
            match x {
                Some(x) => map(threads, out, x, $f),
                None => map_in_place(threads, out, $f),
            }
        };
    }
    match f {
        // NaN stays.
        UnaryFn::Relu => with!(|x| if x <= 0.0 { 0.0 } else { x }),
        UnaryFn::LeakyRelu { alpha } => with!(|x| if x >= 0.0 { x } else { alpha * x }),
        UnaryFn::Clip { min, max } => with!(|x| {
            let x = if x < min { min } else { x };
            if x > max { max } else { x }
        }),
        UnaryFn::Abs => with!(f32::abs),
        UnaryFn::Neg => with!(|x: f32| -x),
        UnaryFn::Sqrt => with!(f32::sqrt),
        UnaryFn::Reciprocal => with!(|x| 1.0 / x),
        // The definition itself.
        f => {
            with!(|x| f.eval_f32(x));
        }
    }
}

/// `out = f'(x) * g`.
pub(super) fn unary_grad(threads: usize, f: UnaryFn, out: &mut [f32], x: &[f32], g: &[f32]) {
    match f {
        UnaryFn::Relu => zip(threads, out, x, g, |x, g| if x <= 0.0 { 0.0 } else { g }),
        UnaryFn::LeakyRelu { alpha } => zip(threads, out, x, g, |x, g| if x > 0.0 { g } else { alpha * g }),
        UnaryFn::Clip { min, max } => {
            zip(threads, out, x, g, |x, g| if (x >= min) & (x <= max) { g } else { 0.0 });
        }
        UnaryFn::Neg => map(threads, out, g, |g| -g),
        f => zip(threads, out, x, g, |x, g| (f.derivative_f64(f64::from(x)) * f64::from(g)) as f32),
    }
}

/// What happens to the gradient of a quantizer: see `FakeQuantGrad`.
#[inline(always)]
fn through(x: f32, g: f32, step: f32, lo: f32, hi: f32) -> (f32, f32) {
    let v = x / step;
    let inside = (v >= lo) & (v <= hi);
    // NaN is neither below nor above, as in the definition.
    let slope = v.round_ties_even() - v;
    let slope = if v < lo { lo } else { slope };
    let slope = if v > hi { hi } else { slope };
    (if inside { g } else { 0.0 }, g * slope)
}

/// Gradients of a quantizer with one step: by `x` into `by_x` unless it is
/// empty, and the sum by the step.
pub(super) fn quantizer_grad(
    threads: usize,
    by_x: &mut [f32],
    x: &[f32],
    g: &[f32],
    step: f32,
    [lo, hi]: [f32; 2],
) -> f64 {
    let one = |start: usize, by_x: &mut [f32]| -> f64 {
        let end = (start + PIECE).min(x.len());
        let (x, g) = (x.get(start..end).unwrap_or_default(), g.get(start..end).unwrap_or_default());
        wide(
            #[inline(always)]
            || {
                let mut sum = 0.0;
                for (i, (x, g)) in x.chunks(1024).zip(g.chunks(1024)).enumerate() {
                    let mut lanes = [0f32; 16];
                    let mut out = by_x.get_mut(i * 1024..).unwrap_or_default().chunks_exact_mut(16);
                    let (xs, gs) = (x.chunks_exact(16), g.chunks_exact(16));
                    let rest = xs.remainder().iter().zip(gs.remainder());
                    for (x, g) in xs.zip(gs) {
                        match out.next() {
                            Some(out) => {
                                for (((sum, &x), &g), out) in lanes.iter_mut().zip(x).zip(g).zip(out) {
                                    let (by_x, by_step) = through(x, g, step, lo, hi);
                                    *out = by_x;
                                    *sum += by_step;
                                }
                            }
                            None => {
                                for ((sum, &x), &g) in lanes.iter_mut().zip(x).zip(g) {
                                    *sum += through(x, g, step, lo, hi).1;
                                }
                            }
                        }
                    }
                    let mut last = out.into_remainder().iter_mut();
                    sum += f64::from(lanes.iter().sum::<f32>());
                    for (&x, &g) in rest {
                        let (by_x, by_step) = through(x, g, step, lo, hi);
                        if let Some(out) = last.next() {
                            *out = by_x;
                        }
                        sum += f64::from(by_step);
                    }
                }
                sum
            },
        )
    };
    let n_pieces = x.len().div_ceil(PIECE);
    let mut outs: Vec<&mut [f32]> = by_x.chunks_mut(PIECE).collect();
    outs.resize_with(n_pieces, Default::default);
    let work = outs.into_iter().enumerate().map(|(i, out)| (i * PIECE, out));
    if threads > 1 && n_pieces > 1 {
        let work: Vec<(usize, &mut [f32])> = work.collect();
        let parts: Vec<f64> = work.into_par_iter().map(|(start, out)| one(start, out)).collect();
        parts.into_iter().sum()
    } else {
        work.map(|(start, out)| one(start, out)).sum()
    }
}

/// Gradient by `x` of a quantizer with one step a column.
pub(super) fn columns_quantizer_grad(
    threads: usize,
    by_x: &mut [f32],
    x: &[f32],
    g: &[f32],
    steps: &[f32],
    [lo, hi]: [f32; 2],
) {
    let n = steps.len().max(1);
    pieces(threads, n, by_x, |start, out| {
        wide(
            #[inline(always)]
            || {
                let rows =
                    out.chunks_exact_mut(n).zip(from(x, start).chunks_exact(n)).zip(from(g, start).chunks_exact(n));
                for ((out, x), g) in rows {
                    for (((out, &x), &g), &step) in out.iter_mut().zip(x).zip(g).zip(steps) {
                        *out = through(x, g, step, lo, hi).0;
                    }
                }
            },
        );
    });
}

/// Gradients by the steps of a quantizer with one step a column.
pub(super) fn columns_step_grad(
    threads: usize,
    by_steps: &mut [f64],
    x: &[f32],
    g: &[f32],
    steps: &[f32],
    [lo, hi]: [f32; 2],
) {
    let n = steps.len().max(1);
    by_rows(
        threads,
        n,
        x.len(),
        by_steps,
        #[inline(always)]
        |range, sums| {
            let (x, g) = (x.get(range.clone()).unwrap_or_default(), g.get(range).unwrap_or_default());
            for (x, g) in x.chunks_exact(n).zip(g.chunks_exact(n)) {
                for (((sum, &x), &g), &step) in sums.iter_mut().zip(x).zip(g).zip(steps) {
                    *sum += through(x, g, step, lo, hi).1;
                }
            }
        },
    );
}

/// Sum of all elements.
pub(super) fn sum(threads: usize, x: &[f32]) -> f64 {
    let one = |piece: &[f32]| -> f64 {
        wide(
            #[inline(always)]
            || piece.chunks(1024).map(|part| f64::from(short_sum(part))).sum(),
        )
    };
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
    by_rows(
        threads,
        n,
        x.len(),
        out,
        #[inline(always)]
        |range, sums| {
            for row in x.get(range).unwrap_or_default().chunks_exact(n) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        },
    );
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
            wide(
                #[inline(always)]
                || f(range(i), &mut sums),
            );
            sums
        };
        let blocks: Vec<Vec<f32>> = (0..n_blocks).into_par_iter().map(block).collect();
        blocks.iter().for_each(|sums| add(out, sums));
    } else {
        let mut sums = vec![0f32; n];
        for i in 0..n_blocks {
            sums.fill(0.0);
            wide(
                #[inline(always)]
                || f(range(i), &mut sums),
            );
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
            unary(1, f, &mut out, None);
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
