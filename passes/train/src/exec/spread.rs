//! Functions of two and three tensors that broadcast in any way.

use qail_ir::{BinaryFn, Rope, Wrt};

use super::lanes::pieces;

/// How up to three operands lie below a result: extent of each axis, outermost
/// first, and the distance of neighbours along it in each operand. Axes that run
/// on in all of them are one.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    outer: Vec<(usize, [usize; 3])>,
    /// The last axis.
    n: usize,
    steps: [usize; 3],
}

impl Spread {
    /// Operands of these shapes below a result of shape `to`.
    pub(super) fn new(to: &[usize], operands: &[&[usize]]) -> Self {
        let rank = to.len();
        let mut strides = vec![[0usize; 3]; rank];
        for (slot, shape) in operands.iter().enumerate().take(3) {
            let mut stride = 1usize;
            for (back, &extent) in shape.iter().rev().enumerate() {
                if let Some(place) = rank.checked_sub(back + 1).and_then(|axis| strides.get_mut(axis))
                    && extent != 1
                {
                    place[slot] = stride;
                }
                stride = stride.saturating_mul(extent);
            }
        }
        let mut axes: Vec<(usize, [usize; 3])> = Vec::new();
        for (&extent, own) in to.iter().zip(strides).filter(|(extent, _)| **extent != 1) {
            let runs_on = |last: &[usize; 3]| last.iter().zip(&own).all(|(last, own)| *last == own * extent);
            match axes.last_mut() {
                Some(last) if runs_on(&last.1) => *last = (last.0 * extent, own),
                _ => axes.push((extent, own)),
            }
        }
        let (n, steps) = axes.pop().unwrap_or((1, [0; 3]));
        Self { outer: axes, n, steps }
    }

    /// Where row `i` begins in each operand.
    fn starts(&self, mut i: usize) -> [usize; 3] {
        let mut at = [0; 3];
        for (extent, strides) in self.outer.iter().rev() {
            let own = i % extent;
            i /= extent;
            at.iter_mut().zip(strides).for_each(|(at, stride)| *at += own * stride);
        }
        at
    }

    fn rows(&self, threads: usize, out: &mut [f32], f: impl Fn(&mut [f32], [usize; 3]) + Sync) {
        let n = self.n.max(1);
        pieces(threads, n, out, |start, out| {
            for (i, out) in out.chunks_mut(n).enumerate() {
                f(out, self.starts(start / n + i));
            }
        });
    }

    /// `out = f(places in the operands)`.
    pub(super) fn each(&self, threads: usize, out: &mut [f32], f: impl Fn([usize; 3]) -> f32 + Sync) {
        self.rows(threads, out, |out, mut at| {
            for out in out {
                *out = f(at);
                at.iter_mut().zip(self.steps).for_each(|(at, step)| *at += step);
            }
        });
    }

    /// `out = f(a, b)`.
    pub(super) fn zip(&self, threads: usize, f: BinaryFn, out: &mut [f32], a: &[f32], b: &[f32]) {
        match f {
            BinaryFn::Add => self.with(threads, out, a, b, |a, b| a + b),
            BinaryFn::Sub => self.with(threads, out, a, b, |a, b| a - b),
            BinaryFn::Mul => self.with(threads, out, a, b, |a, b| a * b),
            BinaryFn::Div => self.with(threads, out, a, b, |a, b| a / b),
            BinaryFn::Min | BinaryFn::Max | BinaryFn::Pow | BinaryFn::Mod | BinaryFn::Rem => {
                self.with(threads, out, a, b, |a, b| f.eval_f32(a, b));
            }
        }
    }

    fn with(&self, threads: usize, out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
        let [step_a, step_b, _] = self.steps;
        self.rows(threads, out, |out, [at_a, at_b, _]| {
            let (a, b) = (a.get(at_a..).unwrap_or_default(), b.get(at_b..).unwrap_or_default());
            match (step_a, step_b, a, b) {
                (1, 0, a, [b, ..]) => out.iter_mut().zip(a).for_each(|(out, &a)| *out = f(a, *b)),
                (0, 1, [a, ..], b) => out.iter_mut().zip(b).for_each(|(out, &b)| *out = f(*a, b)),
                (1, 1, a, b) => out.iter_mut().zip(a).zip(b).for_each(|((out, &a), &b)| *out = f(a, b)),
                (_, _, a, b) => {
                    let of = |x: &[f32], at: usize| x.get(at).copied().unwrap_or(f32::NAN);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = f(of(a, i * step_a), of(b, i * step_b));
                    }
                }
            }
        });
    }

    /// `out = ` the partial derivative times `g`.
    pub(super) fn grad(&self, threads: usize, (f, wrt): (BinaryFn, Wrt), out: &mut [f32], operands: [&[f32]; 3]) {
        self.rows(threads, out, |out, starts| {
            let of = |slot: usize, i: usize| {
                let at = starts[slot] + i * self.steps[slot];
                f64::from(operands[slot].get(at).copied().unwrap_or(f32::NAN))
            };
            for (i, out) in out.iter_mut().enumerate() {
                *out = (f.partial_f64(wrt, of(0, i), of(1, i)) * of(2, i)) as f32;
            }
        });
    }

    /// See [`Rope`], of rows of `width`; the first operand has the shape of the result.
    pub(super) fn rope(&self, threads: usize, (op, width): (Rope, usize), out: &mut [f32], [x, cos, sin]: [&[f32]; 3]) {
        let of = |all: &[f32], at: usize| all.get(at).copied().unwrap_or(f32::NAN);
        let width = width.max(1);
        self.each(threads, out, |[at, at_cos, at_sin]| {
            let i = at % width;
            let (partner, negated) = op.partner(i, width);
            let other = of(x, at - i + partner);
            let turned = if negated { -other } else { other };
            of(x, at) * of(cos, at_cos) + turned * of(sin, at_sin)
        });
    }

    /// See [`qail_ir::Film`].
    pub(super) fn film(&self, threads: usize, out: &mut [f32], [x, scale, shift]: [&[f32]; 3]) {
        let of = |all: &[f32], at: usize| all.get(at).copied().unwrap_or(f32::NAN);
        self.each(threads, out, |[at, at_scale, at_shift]| of(x, at) * of(scale, at_scale) + of(shift, at_shift));
    }

    /// `out = a` where `truth` is not 0, else `b`.
    pub(super) fn choose(&self, threads: usize, out: &mut [f32], truth: &[i64], [a, b]: [&[f32]; 2]) {
        self.rows(threads, out, |out, starts| {
            let at = |slot: usize, i: usize| starts[slot] + i * self.steps[slot];
            for (i, out) in out.iter_mut().enumerate() {
                let is_true = truth.get(at(0, i)).is_some_and(|&truth| truth != 0);
                let found = if is_true { a.get(at(1, i)) } else { b.get(at(2, i)) };
                *out = found.copied().unwrap_or(f32::NAN);
            }
        });
    }
}
