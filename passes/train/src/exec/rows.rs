//! Loops over rows: reductions, softmax and norms, in the order of the
//! interpreter, so forward values are its bits.

use qail_ir::{BinaryFn, ReduceFn, UnaryFn};

use super::lanes::pieces;

/// Where the elements of each row lie.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// Elements of a row.
    n: usize,
    /// Where each row begins, and its elements from there on, unless rows lie one behind the other.
    apart: Option<(Vec<usize>, Vec<usize>)>,
}

/// As `min` and `max` choose: NaN wins, of two equal numbers the first.
#[inline(always)]
fn wins(beyond: bool, a: f32, b: f32) -> bool {
    beyond || b.is_nan() && !a.is_nan()
}

impl Rows {
    /// Rows over `axes` of a tensor of this shape.
    pub(super) fn new(shape: &[usize], axes: &[usize]) -> Self {
        let mut stride = 1usize;
        let (mut inner, mut outer) = (Vec::<(usize, usize)>::new(), Vec::<(usize, usize)>::new());
        // Rows lie one behind the other if no other axis lies behind one of theirs.
        let mut dense = true;
        for (axis, &extent) in shape.iter().enumerate().rev() {
            if extent != 1 {
                if axes.contains(&axis) {
                    dense &= outer.is_empty();
                    inner.push((extent, stride));
                } else {
                    outer.push((extent, stride));
                }
            }
            stride = stride.saturating_mul(extent);
        }
        let n = inner.iter().map(|axis| axis.0).product();
        let offsets = |axes: &[(usize, usize)]| {
            axes.iter().rev().fold(vec![0usize], |all, &(extent, stride)| {
                all.iter().flat_map(|&at| (0..extent).map(move |i| at + i * stride)).collect()
            })
        };
        Self { n, apart: (!dense).then(|| (offsets(&outer), offsets(&inner))) }
    }

    /// Calls `f(row of x, row of out)` for each row.
    fn each(&self, threads: usize, out: &mut [f32], x: &[f32], f: impl Fn(usize, &[f32], &mut [f32]) + Sync) {
        let n = self.n.max(1);
        match &self.apart {
            None => pieces(threads, n, out, |start, out| {
                let x = x.get(start..).unwrap_or_default();
                for (i, (x, out)) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
                    f(start / n + i, x, out);
                }
            }),
            Some((outer, inner)) => {
                let (mut from, mut to) = (vec![0.0; n], vec![0.0; n]);
                for (i, &start) in outer.iter().enumerate() {
                    for (from, &at) in from.iter_mut().zip(inner) {
                        *from = x.get(start + at).copied().unwrap_or(f32::NAN);
                    }
                    f(i, &from, &mut to);
                    for (&to, &at) in to.iter().zip(inner) {
                        if let Some(out) = out.get_mut(start + at) {
                            *out = to;
                        }
                    }
                }
            }
        }
    }

    /// One number of each row.
    pub(super) fn reduce(&self, threads: usize, f: ReduceFn, out: &mut [f32], x: &[f32]) {
        let n = self.n as f32;
        match f {
            ReduceFn::Sum => self.fold(threads, out, x, 0.0, |sum, x| sum + x, |sum| sum),
            ReduceFn::Mean => self.fold(threads, out, x, 0.0, |sum, x| sum + x, |sum| sum / n),
            ReduceFn::Prod => self.fold(threads, out, x, 1.0, |product, x| product * x, |product| product),
            ReduceFn::Min => {
                self.fold(threads, out, x, f32::INFINITY, |a, b| if wins(b < a, a, b) { b } else { a }, |a| a)
            }
            ReduceFn::Max => {
                self.fold(threads, out, x, f32::NEG_INFINITY, |a, b| if wins(b > a, a, b) { b } else { a }, |a| a);
            }
        }
    }

    fn fold(
        &self,
        threads: usize,
        out: &mut [f32],
        x: &[f32],
        start: f32,
        step: impl Fn(f32, f32) -> f32 + Sync,
        end: impl Fn(f32) -> f32 + Sync,
    ) {
        let n = self.n;
        pieces(threads, 1, out, |first, out| match &self.apart {
            None => {
                let x = x.get(first * n..).unwrap_or_default();
                for (out, x) in out.iter_mut().zip(x.chunks_exact(n.max(1))) {
                    *out = end(x.iter().fold(start, |so_far, &x| step(so_far, x)));
                }
            }
            Some((outer, inner)) => {
                for (out, &row) in out.iter_mut().zip(outer.get(first..).unwrap_or_default()) {
                    let numbers = inner.iter().map(|at| x.get(row + at).copied().unwrap_or(f32::NAN));
                    *out = end(numbers.fold(start, &step));
                }
            }
        });
    }

    /// `f` of the sum of each row of whole numbers, exact.
    pub(super) fn sums(&self, threads: usize, out: &mut [f32], x: &[f32], f: impl Fn(f64) -> f32 + Sync) {
        let n = self.n;
        pieces(threads, 1, out, |first, out| match &self.apart {
            None => {
                let x = x.get(first * n..).unwrap_or_default();
                for (out, x) in out.iter_mut().zip(x.chunks_exact(n.max(1))) {
                    *out = f(x.iter().map(|&x| f64::from(x)).sum());
                }
            }
            Some((outer, inner)) => {
                for (out, &row) in out.iter_mut().zip(outer.get(first..).unwrap_or_default()) {
                    let numbers = inner.iter().map(|at| x.get(row + at).copied().unwrap_or(f32::NAN));
                    *out = f(numbers.map(f64::from).sum());
                }
            }
        });
    }

    /// The gradient of an extreme number, in equal shares where there are several.
    pub(super) fn extreme_grad(&self, threads: usize, largest: bool, out: &mut [f32], x: &[f32], g: &[f32]) {
        self.each(threads, out, x, |i, x, out| {
            let extreme = if largest {
                x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x))
            } else {
                x.iter().fold(f32::INFINITY, |min, &x| min.min(x))
            };
            let n_equal = x.iter().filter(|&&x| x == extreme).count();
            let share = g.get(i).copied().unwrap_or(f32::NAN) / n_equal as f32;
            out.iter_mut().zip(x).for_each(|(out, &x)| *out = if x == extreme { share } else { 0.0 });
        });
    }

    /// See `Softmax`.
    pub(super) fn softmax(&self, threads: usize, log: bool, out: &mut [f32], x: &[f32]) {
        self.each(threads, out, x, |_, x, out| {
            let m = x.iter().fold(f32::NEG_INFINITY, |m, &x| BinaryFn::Max.eval_f32(m, x));
            let mut sum = 0.0f32;
            for (out, &x) in out.iter_mut().zip(x) {
                let e = UnaryFn::Exp.eval_f32(x - m);
                sum += e;
                *out = e;
            }
            if log {
                let ln = UnaryFn::Log.eval_f32(sum);
                out.iter_mut().zip(x).for_each(|(out, &x)| *out = (x - m) - ln);
            } else {
                out.iter_mut().for_each(|out| *out /= sum);
            }
        });
    }

    /// See `Normalize`.
    pub(super) fn normalize(&self, threads: usize, (eps, center): (f32, bool), out: &mut [f32], x: &[f32]) {
        self.each(threads, out, x, |_, x, out| {
            let n = x.len() as f32;
            out.copy_from_slice(x);
            if center {
                let mean = x.iter().fold(0.0f32, |sum, &x| sum + x) / n;
                out.iter_mut().for_each(|x| *x -= mean);
            }
            let variance = out.iter().fold(0.0f32, |sum, &d| sum + d * d) / n;
            let factor = 1.0 / UnaryFn::Sqrt.eval_f32(variance + eps);
            out.iter_mut().for_each(|d| *d *= factor);
        });
    }
}
