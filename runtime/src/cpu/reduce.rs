//! Reductions of floats, integers and codes, in index order.

use qail_artifact::{
    Storage,
    schema::{
        Step,
        step::{self, BinaryKind, ReduceKind},
    },
};

use super::{
    elementwise::{max, min},
    ints::Range,
    program::{Prepare, floats_mut, ints_mut},
    strided::{Source, Walk, float_at, int_at},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::Reduce`].
pub(super) struct Reduce {
    name: String,
    x: Source,
    out: usize,
    outer: Walk<1>,
    inner: Walk<1>,
    count: f32,
    f: ReduceKind,
    kind: Kind,
}

/// What is reduced to what.
enum Kind {
    Floats,
    Ints(Range),
    /// Codes to one of them: columns and stride of the result.
    Extremes(usize, usize),
    /// The same for codes of 16 bits.
    WideExtremes(usize, usize),
    /// Codes to their sum: what every stored byte lacks to its code less the zero.
    CodeSums(i32),
}

impl Reduce {
    pub(super) fn new(cx: &Prepare<'_>, step: &Step, op: &step::Reduce) -> Result<Self, RuntimeError> {
        let inner = cx.extents(&op.inner)?;
        let out = cx.tensor(op.out)?;
        let kind = match (op.x.source, out.storage) {
            (_, Storage::F32) => Kind::Floats,
            (_, Storage::I8) => Kind::Extremes(out.cols, out.stride),
            (_, Storage::I16) => Kind::WideExtremes(out.cols, out.stride),
            (Some(step::Source::Tensor(x)), _) if cx.tensor(x)?.storage == Storage::I8 => {
                Kind::CodeSums(cx.tensor(x)?.code_offset.saturating_sub(op.zero_point))
            }
            _ => Kind::Ints(Range::new(op.range)),
        };
        Ok(Self {
            name: step.name.clone(),
            x: Source::new(cx, &op.x)?,
            out: op.out as usize,
            outer: Walk::new(cx.extents(&op.outer)?, [&op.x.strides], [op.x.offset])?,
            count: inner.iter().product::<usize>() as f32,
            inner: Walk::new(inner, [&op.inner_strides], [0])?,
            f: ReduceKind::try_from(op.f).map_err(|_| RuntimeError::Internal("a function is unknown"))?,
            kind,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = self.x.bytes(file, &others);
        match self.kind {
            Kind::Floats => self.floats(x, floats_mut(out)?),
            Kind::Ints(range) => self.ints(x, ints_mut(out)?, range),
            Kind::Extremes(cols, stride) => {
                let rows = out.chunks_mut(stride.max(1));
                self.extremes(
                    rows.flat_map(|row| row.iter_mut().take(cols)),
                    |at| byte_at(x, at),
                    |out, code| {
                        *out = code as u8;
                    },
                )
            }
            Kind::WideExtremes(cols, stride) => {
                let rows = out.as_chunks_mut::<2>().0.chunks_mut(stride.max(1));
                self.extremes(
                    rows.flat_map(|row| row.iter_mut().take(cols)),
                    |at| short_at(x, at),
                    |out, code| {
                        *out = i16::to_le_bytes(code);
                    },
                )
            }
            Kind::CodeSums(add) => {
                let mut out = ints_mut(out)?.iter_mut();
                self.each(|base| {
                    let mut sum = 0i32;
                    self.numbers(base, |at| {
                        sum = sum.wrapping_add(i32::from(byte_at(x, at)?).wrapping_add(add));
                        Some(())
                    })?;
                    *out.next()? = sum;
                    Some(())
                })
            }
        }
    }

    fn floats(&self, x: &[u8], out: &mut [f32]) -> Result<(), RunError> {
        let (start, fold): (f32, fn(f32, f32) -> f32) = match self.f {
            ReduceKind::Sum | ReduceKind::Mean => (0.0, |a, b| a + b),
            ReduceKind::Min => (f32::INFINITY, min),
            ReduceKind::Max => (f32::NEG_INFINITY, max),
            ReduceKind::Prod => (1.0, |a, b| a * b),
            ReduceKind::Unspecified => return Err(RunError::Internal("a function is unknown")),
        };
        let mut out = out.iter_mut();
        self.each(|base| {
            let mut result = start;
            self.numbers(base, |at| {
                result = fold(result, float_at(x, at)?);
                Some(())
            })?;
            *out.next()? = if self.f == ReduceKind::Mean { result / self.count } else { result };
            Some(())
        })
    }

    fn ints(&self, x: &[u8], out: &mut [i32], range: Range) -> Result<(), RunError> {
        let (mut so_far, f) = match self.f {
            ReduceKind::Sum => (Some(0), BinaryKind::Add),
            ReduceKind::Prod => (Some(1), BinaryKind::Mul),
            ReduceKind::Min => (None, BinaryKind::Min),
            ReduceKind::Max => (None, BinaryKind::Max),
            ReduceKind::Mean | ReduceKind::Unspecified => return Err(RunError::Internal("a function is unknown")),
        };
        let start = so_far;
        let mut fault = None;
        let mut out = out.iter_mut().enumerate();
        let walked = self.each(|base| {
            so_far = start;
            let (index, out) = out.next()?;
            self.numbers(base, |at| {
                let number = int_at(x, at)?;
                match so_far.map_or(Ok(number), |so_far| range.binary(f, so_far, number)) {
                    Ok(next) => so_far = Some(next),
                    Err(problem) => {
                        fault = Some((index, problem));
                        return None;
                    }
                }
                Some(())
            })?;
            *out = so_far?;
            Some(())
        });
        match fault {
            Some((index, problem)) => Err(RunError::Integer { step: self.name.clone(), index, problem }),
            None => walked,
        }
    }

    /// The smallest or the largest of the codes that `code` reads, which `write` stores.
    fn extremes<'o, T: 'o, C: Ord + Copy>(
        &self,
        mut out: impl Iterator<Item = &'o mut T>,
        code: impl Fn(isize) -> Option<C>,
        write: impl Fn(&mut T, C),
    ) -> Result<(), RunError> {
        let largest = self.f == ReduceKind::Max;
        self.each(|base| {
            let mut result: Option<C> = None;
            self.numbers(base, |at| {
                let code = code(at)?;
                result = Some(match result {
                    Some(so_far) if largest => so_far.max(code),
                    Some(so_far) => so_far.min(code),
                    None => code,
                });
                Some(())
            })?;
            write(out.next()?, result?);
            Some(())
        })
    }

    /// Calls `f` with the first place of every result.
    fn each(&self, mut f: impl FnMut(isize) -> Option<()>) -> Result<(), RunError> {
        self.outer.rows(|[base], len, [step]| {
            for i in 0..len as isize {
                f(base + i * step)?;
            }
            Some(())
        })
    }

    /// Calls `f` with the place of every number of a result.
    fn numbers(&self, base: isize, mut f: impl FnMut(isize) -> Option<()>) -> Option<()> {
        let walked = self.inner.rows(|[first], len, [step]| {
            for i in 0..len as isize {
                f(base + first + i * step)?;
            }
            Some(())
        });
        walked.ok()
    }
}

/// Stored byte `position`.
#[inline(always)]
pub(super) fn byte_at(bytes: &[u8], position: isize) -> Option<i8> {
    bytes.get(usize::try_from(position).ok()?).map(|&byte| byte as i8)
}

/// Code `position` of 16 bits.
#[inline(always)]
fn short_at(bytes: &[u8], position: isize) -> Option<i16> {
    bytes.as_chunks::<2>().0.get(usize::try_from(position).ok()?).map(|&code| i16::from_le_bytes(code))
}
