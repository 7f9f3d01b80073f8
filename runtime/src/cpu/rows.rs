//! Softmax, normalization and attention, every step rounded to `f32`.

use qail_artifact::schema::step;

use super::{
    elementwise::{max, via_f64},
    program::{Prepare, Scratch, floats, floats_mut},
    strided::{Source, Walk, float_at},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

const OUTSIDE: RunError = RunError::Internal("a row leaves its tensor");

fn exp(x: f32) -> f32 {
    via_f64(x, libm::exp)
}

/// Prepared [`step::Softmax`].
pub(super) struct Softmax {
    x: usize,
    out: usize,
    n: usize,
    inner: usize,
    log: bool,
}

impl Softmax {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Softmax) -> Result<Self, RuntimeError> {
        let &[n, inner] = &cx.extents(&[op.n, op.inner])?[..] else {
            return Err(RuntimeError::Internal("a row has no shape"));
        };
        Ok(Self { x: op.x as usize, out: op.out as usize, n, inner, log: op.log })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (out, x) = (floats_mut(out)?, floats(others.bytes(self.x))?);
        let block = (self.n * self.inner).max(1);
        for (x, out) in x.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
            for first in 0..self.inner {
                let row = || x.iter().skip(first).step_by(self.inner.max(1));
                let m = row().fold(f32::NEG_INFINITY, |m, &x| max(m, x));
                let mut sum = 0.0f32;
                for (out, &x) in out.iter_mut().skip(first).step_by(self.inner.max(1)).zip(row()) {
                    let e = exp(x - m);
                    sum += e;
                    *out = if self.log { x - m } else { e };
                }
                let log = via_f64(sum, libm::log);
                for out in out.iter_mut().skip(first).step_by(self.inner.max(1)) {
                    *out = if self.log { *out - log } else { *out / sum };
                }
            }
        }
        Ok(())
    }
}

/// Softmax of a row in place.
fn softmax(row: &mut [f32]) {
    let m = row.iter().fold(f32::NEG_INFINITY, |m, &x| max(m, x));
    let mut sum = 0.0f32;
    for x in row.iter_mut() {
        *x = exp(*x - m);
        sum += *x;
    }
    row.iter_mut().for_each(|e| *e /= sum);
}

/// Prepared [`step::Normalize`].
pub(super) struct Normalize {
    x: usize,
    out: usize,
    outer: Walk<1>,
    inner: Walk<1>,
    n: f32,
    eps: f32,
    center: bool,
}

impl Normalize {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Normalize) -> Result<Self, RuntimeError> {
        let inner = cx.extents(&op.inner)?;
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            outer: Walk::new(cx.extents(&op.outer)?, [&op.outer_strides], [0])?,
            n: inner.iter().product::<usize>() as f32,
            inner: Walk::new(inner, [&op.inner_strides], [0])?,
            eps: op.eps,
            center: op.center,
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (out, x) = (floats_mut(out)?, floats(others.bytes(self.x))?);
        self.outer.rows(|[base], len, [step]| {
            for i in 0..len as isize {
                self.row(base + i * step, x, out)?;
            }
            Some(())
        })
    }

    fn row(&self, base: isize, x: &[f32], out: &mut [f32]) -> Option<()> {
        let mut mean = 0.0f32;
        if self.center {
            self.each(base, |at| {
                mean += *x.get(at)?;
                Some(())
            })?;
            mean /= self.n;
        }
        let d = |at: usize| x.get(at).map(|&x| if self.center { x - mean } else { x });
        let mut squares = 0.0f32;
        self.each(base, |at| {
            let d = d(at)?;
            squares += d * d;
            Some(())
        })?;
        let factor = 1.0 / via_f64(squares / self.n + self.eps, libm::sqrt);
        self.each(base, |at| {
            *out.get_mut(at)? = d(at)? * factor;
            Some(())
        })
    }

    /// Calls `f` with the place of every element of a row.
    fn each(&self, base: isize, mut f: impl FnMut(usize) -> Option<()>) -> Option<()> {
        let walked = self.inner.rows(|[first], len, [step]| {
            for i in 0..len as isize {
                f(usize::try_from(base + first + i * step).ok()?)?;
            }
            Some(())
        });
        walked.ok()
    }
}

/// Prepared [`step::Attention`].
pub(super) struct Attention {
    q: usize,
    k: usize,
    v: usize,
    out: usize,
    mask: Option<(Source, Walk<1>, isize)>,
    scale: f32,
    /// Queries of all heads and batches.
    rows: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    width: usize,
}

impl Attention {
    pub(super) fn new(cx: &mut Prepare<'_>, op: &step::Attention) -> Result<Self, RuntimeError> {
        let shape = [op.batch, op.heads, op.groups, op.queries, op.keys, op.depth, op.width];
        let &[batch, heads, groups, queries, keys, depth, width] = &cx.extents(&shape)?[..] else {
            return Err(RuntimeError::Internal("attention has no shape"));
        };
        cx.scratch.reserve(0, keys);
        let mask = match &op.mask {
            None => None,
            Some(mask) => {
                let (Some(rows), Some(&step)) = (mask.strides.get(..3), mask.strides.get(3)) else {
                    return Err(RuntimeError::Internal("a mask has no strides"));
                };
                let step = isize::try_from(step).map_err(|_| RuntimeError::Internal("a mask is too large"))?;
                let walk = Walk::new(vec![batch, heads, queries], [rows], [mask.offset])?;
                Some((Source::new(cx, mask)?, walk, step))
            }
        };
        Ok(Self {
            q: op.q as usize,
            k: op.k as usize,
            v: op.v as usize,
            out: op.out as usize,
            mask,
            scale: op.scale,
            rows: batch.saturating_mul(heads).saturating_mul(queries),
            heads,
            groups,
            queries,
            keys,
            depth,
            width,
        })
    }

    pub(super) fn run(&self, file: &[u8], scratch: &mut Scratch, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let tensor = |index| floats(others.bytes(index));
        let (q, k, v) = (tensor(self.q)?, tensor(self.k)?, tensor(self.v)?);
        let scores = scratch.float_sums(self.keys)?;
        let mut rows = q.chunks_exact(self.depth.max(1)).zip(floats_mut(out)?.chunks_exact_mut(self.width.max(1)));
        let mut row = 0usize;
        let mut next = |bias: Option<(&[u8], isize, isize)>| -> Option<()> {
            let (query, out) = rows.next()?;
            let head = row / self.queries;
            row += 1;
            let group = head / self.heads * self.groups + head % self.heads / (self.heads / self.groups);
            let keys = k.get(group * self.keys * self.depth..)?.chunks_exact(self.depth.max(1));
            let values = v.get(group * self.keys * self.width..)?.chunks_exact(self.width.max(1));
            for (j, (score, key)) in (0isize..).zip(scores.iter_mut().zip(keys)) {
                *score = query.iter().zip(key).fold(0.0f32, |sum, (&q, &k)| sum + q * k) * self.scale;
                if let Some((mask, first, step)) = bias {
                    *score += float_at(mask, first + j * step)?;
                }
            }
            softmax(scores);
            out.fill(0.0);
            for (&p, value) in scores.iter().zip(values) {
                for (out, &v) in out.iter_mut().zip(value) {
                    *out += p * v;
                }
            }
            Some(())
        };
        match &self.mask {
            Some((mask, walk, step)) => {
                let mask = mask.bytes(file, &others);
                walk.rows(|[base], len, [row_step]| {
                    for i in 0..len as isize {
                        next(Some((mask, base + i * row_step, *step)))?;
                    }
                    Some(())
                })
            }
            None => {
                for _ in 0..self.rows {
                    next(None).ok_or(OUTSIDE)?;
                }
                Ok(())
            }
        }
    }
}
