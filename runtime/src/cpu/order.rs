//! Steps that order, sum up or change rows: no two elements are independent.

use std::cmp::Ordering;

use qail_artifact::{
    Storage,
    schema::{
        Step,
        step::{self, BinaryKind, ScatterKind},
    },
};

use super::{
    elementwise::{max, min},
    ints::Range,
    program::{Prepare, floats, floats_mut, ints, ints_mut},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

const OUTSIDE: RunError = RunError::Internal("a row leaves its tensor");

/// Prepared [`step::Order`].
pub(super) struct Order {
    x: usize,
    out: usize,
    floats: bool,
    n: usize,
    inner: usize,
    k: usize,
    largest: bool,
    last: bool,
    indices: bool,
}

impl Order {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Order) -> Result<Self, RuntimeError> {
        let &[n, inner, k] = &cx.extents(&[op.n, op.inner, op.k])?[..] else {
            return Err(RuntimeError::Internal("a row has no shape"));
        };
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            floats: cx.tensor(op.x)?.storage == Storage::F32,
            n,
            inner,
            k,
            largest: op.largest,
            last: op.last,
            indices: op.indices,
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        let done = if self.floats {
            let x = floats(x)?;
            // Elements move as the bits they are.
            self.pick(x, ints_mut(out)?, |x| x.to_bits() as i32)
        } else {
            self.pick(ints(x)?, ints_mut(out)?, |x| x)
        };
        done.ok_or(OUTSIDE)
    }

    /// Takes, for every row, one element after the other: the first of those
    /// behind the last one taken. Needs no memory.
    fn pick<T: Copy + PartialOrd>(&self, x: &[T], out: &mut [i32], bits: impl Fn(T) -> i32) -> Option<()> {
        let (block, out_block) = (self.n * self.inner, self.k * self.inner);
        for (x, out) in x.chunks_exact(block.max(1)).zip(out.chunks_exact_mut(out_block.max(1))) {
            for first in 0..self.inner {
                let at = |i: usize| x.get(first + i * self.inner).copied().map(|value| (value, i));
                let mut taken: Option<(T, usize)> = None;
                for place in 0..self.k {
                    let mut best: Option<(T, usize)> = None;
                    for i in 0..self.n {
                        let candidate = at(i)?;
                        let behind = taken.is_none_or(|taken| self.order(taken, candidate) == Ordering::Less);
                        if behind && best.is_none_or(|best| self.order(candidate, best) == Ordering::Less) {
                            best = Some(candidate);
                        }
                    }
                    let (value, i) = best?;
                    *out.get_mut(first + place * self.inner)? = if self.indices { i as i32 } else { bits(value) };
                    taken = best;
                }
            }
        }
        Some(())
    }

    /// A total order: NaN first, then by size, then by index.
    fn order<T: PartialOrd>(&self, a: (T, usize), b: (T, usize)) -> Ordering {
        let is_nan = |x: &T| x.partial_cmp(x).is_none();
        let by_size = match a.0.partial_cmp(&b.0) {
            Some(order) if self.largest => order.reverse(),
            Some(order) => order,
            None => is_nan(&b.0).cmp(&is_nan(&a.0)),
        };
        by_size.then(if self.last { b.1.cmp(&a.1) } else { a.1.cmp(&b.1) })
    }
}

/// Prepared [`step::Scan`].
pub(super) struct Scan {
    name: String,
    x: usize,
    out: usize,
    floats: bool,
    n: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
    range: Range,
}

impl Scan {
    pub(super) fn new(cx: &Prepare<'_>, step: &Step, op: &step::Scan) -> Result<Self, RuntimeError> {
        let &[n, inner] = &cx.extents(&[op.n, op.inner])?[..] else {
            return Err(RuntimeError::Internal("a row has no shape"));
        };
        Ok(Self {
            name: step.name.clone(),
            x: op.x as usize,
            out: op.out as usize,
            floats: cx.tensor(op.x)?.storage == Storage::F32,
            n,
            inner,
            exclusive: op.exclusive,
            reverse: op.reverse,
            range: Range::new(op.range),
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        if self.floats {
            return self.sums(floats(x)?, floats_mut(out)?, 0.0, |a, b| Ok(a + b));
        }
        self.sums(ints(x)?, ints_mut(out)?, 0, |a, b| self.range.binary(BinaryKind::Add, a, b))
    }

    fn sums<T: Copy>(
        &self,
        x: &[T],
        out: &mut [T],
        zero: T,
        add: impl Fn(T, T) -> Result<T, &'static str>,
    ) -> Result<(), RunError> {
        let block = (self.n * self.inner).max(1);
        for (outer, (x, out)) in x.chunks_exact(block).zip(out.chunks_exact_mut(block)).enumerate() {
            for first in 0..self.inner {
                let mut sum = zero;
                for i in 0..self.n {
                    let at = first + self.inner * if self.reverse { self.n - 1 - i } else { i };
                    let (Some(&x), Some(out)) = (x.get(at), out.get_mut(at)) else { return Err(OUTSIDE) };
                    let index = outer * block + at;
                    let next =
                        add(sum, x).map_err(|problem| RunError::Integer { step: self.name.clone(), index, problem })?;
                    *out = if self.exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
        Ok(())
    }
}

/// Prepared [`step::Scatter`].
pub(super) struct Scatter {
    name: String,
    x: usize,
    index: usize,
    update: usize,
    out: usize,
    floats: bool,
    extent: usize,
    row: usize,
    f: ScatterKind,
    range: Range,
}

impl Scatter {
    pub(super) fn new(cx: &Prepare<'_>, step: &Step, op: &step::Scatter) -> Result<Self, RuntimeError> {
        let &[extent, row] = &cx.extents(&[op.extent, op.row])?[..] else {
            return Err(RuntimeError::Internal("a row has no shape"));
        };
        Ok(Self {
            name: step.name.clone(),
            x: op.x as usize,
            index: op.index as usize,
            update: op.update as usize,
            out: op.out as usize,
            floats: cx.tensor(op.out)?.storage == Storage::F32,
            extent,
            row,
            f: ScatterKind::try_from(op.f).map_err(|_| RuntimeError::Internal("a function is unknown"))?,
            range: Range::new(op.range),
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let index = ints(others.bytes(self.index))?;
        let (x, update) = (others.bytes(self.x), others.bytes(self.update));
        out.get_mut(..x.len()).ok_or(OUTSIDE)?.copy_from_slice(x);
        if self.floats {
            self.write(index, floats(update)?, floats_mut(out)?, |a, b| {
                Ok(match self.f {
                    ScatterKind::Add => a + b,
                    ScatterKind::Mul => a * b,
                    ScatterKind::Min => min(a, b),
                    ScatterKind::Max => max(a, b),
                    ScatterKind::Replace | ScatterKind::Unspecified => b,
                })
            })
        } else {
            self.write(index, ints(update)?, ints_mut(out)?, |a, b| match self.f {
                ScatterKind::Add => self.range.binary(BinaryKind::Add, a, b),
                ScatterKind::Mul => self.range.binary(BinaryKind::Mul, a, b),
                ScatterKind::Min => self.range.binary(BinaryKind::Min, a, b),
                ScatterKind::Max => self.range.binary(BinaryKind::Max, a, b),
                ScatterKind::Replace | ScatterKind::Unspecified => Ok(b),
            })
        }
    }

    fn write<T: Copy>(
        &self,
        index: &[i32],
        update: &[T],
        out: &mut [T],
        f: impl Fn(T, T) -> Result<T, &'static str>,
    ) -> Result<(), RunError> {
        for (&index, update) in index.iter().zip(update.chunks_exact(self.row.max(1))) {
            let index = if index < 0 { i64::from(index) + self.extent as i64 } else { index.into() };
            let Some(place) = usize::try_from(index).ok().filter(|&place| place < self.extent) else { continue };
            let start = place * self.row;
            let out = out.get_mut(start..start + self.row).ok_or(OUTSIDE)?;
            for (i, (out, &new)) in out.iter_mut().zip(update).enumerate() {
                *out = f(*out, new).map_err(|problem| RunError::Integer {
                    step: self.name.clone(),
                    index: start + i,
                    problem,
                })?;
            }
        }
        Ok(())
    }
}
