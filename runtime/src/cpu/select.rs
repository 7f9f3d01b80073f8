//! Comparisons, choices and look-ups, and sums of codes.

use qail_artifact::{
    Storage,
    schema::step::{self, CompareKind},
};

use super::{
    program::{Prepare, ints_mut},
    reduce::byte_at,
    strided::{Source, Walk, float_at, int_at},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::Compare`].
pub(super) struct Compare {
    a: Source,
    b: Source,
    out: usize,
    walk: Walk<2>,
    floats: bool,
    f: CompareKind,
}

impl Compare {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Compare) -> Result<Self, RuntimeError> {
        let shape = cx.tensor(op.out)?.shape.clone();
        Ok(Self {
            a: Source::new(cx, &op.a)?,
            b: Source::new(cx, &op.b)?,
            out: op.out as usize,
            walk: Walk::new(shape, [&op.a.strides, &op.b.strides], [op.a.offset, op.b.offset])?,
            floats: cx.storage(&op.a)? == Storage::F32,
            f: CompareKind::try_from(op.f).map_err(|_| RuntimeError::Internal("a comparison is unknown"))?,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (a, b) = (self.a.bytes(file, &others), self.b.bytes(file, &others));
        let mut out = ints_mut(out)?.iter_mut();
        self.walk.rows(|[a_start, b_start], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let (i, j) = (a_start + i * a_step, b_start + i * b_step);
                *out.next()? = i32::from(if self.floats {
                    holds(self.f, float_at(a, i)?, float_at(b, j)?)
                } else {
                    holds(self.f, int_at(a, i)?, int_at(b, j)?)
                });
            }
            Some(())
        })
    }
}

fn holds<T: PartialOrd>(f: CompareKind, a: T, b: T) -> bool {
    match f {
        CompareKind::Eq => a == b,
        CompareKind::Ne => a != b,
        CompareKind::Lt => a < b,
        CompareKind::Le => a <= b,
        CompareKind::Gt => a > b,
        CompareKind::Ge => a >= b,
        CompareKind::Unspecified => false,
    }
}

/// Prepared [`step::Where`].
pub(super) struct Where {
    truth: Source,
    a: Source,
    b: Source,
    out: usize,
    walk: Walk<3>,
}

impl Where {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Where) -> Result<Self, RuntimeError> {
        let strides: [&[i64]; 3] = [&op.truth.strides, &op.a.strides, &op.b.strides];
        let offsets = [op.truth.offset, op.a.offset, op.b.offset];
        Ok(Self {
            truth: Source::new(cx, &op.truth)?,
            a: Source::new(cx, &op.a)?,
            b: Source::new(cx, &op.b)?,
            out: op.out as usize,
            walk: Walk::new(cx.tensor(op.out)?.shape.clone(), strides, offsets)?,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let [truth, a, b] = [&self.truth, &self.a, &self.b].map(|source| source.bytes(file, &others));
        // Floats move as the bits they are.
        let mut out = ints_mut(out)?.iter_mut();
        self.walk.rows(|[at, a_at, b_at], len, [step, a_step, b_step]| {
            for i in 0..len as isize {
                let chosen = int_at(truth, at + i * step)? != 0;
                *out.next()? = if chosen { int_at(a, a_at + i * a_step)? } else { int_at(b, b_at + i * b_step)? };
            }
            Some(())
        })
    }
}

/// Prepared [`step::Gather`].
pub(super) struct Gather {
    x: Source,
    index: Source,
    out: usize,
    walk: Walk<2>,
    element_bytes: usize,
    cols: usize,
    stride: usize,
    extent: i32,
    along: isize,
}

impl Gather {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Gather) -> Result<Self, RuntimeError> {
        let bad = |_| RuntimeError::Internal("a look-up is too large");
        let out = cx.tensor(op.out)?;
        let strides: [&[i64]; 2] = [&op.x.strides, &op.index.strides];
        Ok(Self {
            x: Source::new(cx, &op.x)?,
            index: Source::new(cx, &op.index)?,
            out: op.out as usize,
            walk: Walk::new(out.shape.clone(), strides, [op.x.offset, op.index.offset])?,
            element_bytes: out.element_bytes(),
            cols: out.cols,
            stride: out.stride,
            extent: i32::try_from(op.extent).map_err(bad)?,
            along: isize::try_from(op.along).map_err(bad)?,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (x, index) = (self.x.bytes(file, &others), self.index.bytes(file, &others));
        match self.element_bytes {
            1 => self.walk::<1>(x, index, out),
            2 => self.walk::<2>(x, index, out),
            4 => self.walk::<4>(x, index, out),
            _ => self.walk::<8>(x, index, out),
        }
    }

    fn walk<const N: usize>(&self, x: &[u8], index: &[u8], out: &mut [u8]) -> Result<(), RunError> {
        let x = x.as_chunks::<N>().0;
        let rows = out.as_chunks_mut::<N>().0.chunks_mut(self.stride.max(1));
        let mut out = rows.flat_map(|row| row.iter_mut().take(self.cols));
        self.walk.rows(|[at, index_at], len, [step, index_step]| {
            for i in 0..len as isize {
                let index = int_at(index, index_at + i * index_step)?;
                let index = if index < 0 { index.saturating_add(self.extent) } else { index };
                let place = index.clamp(0, self.extent - 1) as isize;
                *out.next()? = *x.get(usize::try_from(at + i * step + place * self.along).ok()?)?;
            }
            Some(())
        })
    }
}

/// Prepared [`step::QAdd`].
pub(super) struct QAdd {
    a: Source,
    b: Source,
    out: usize,
    walk: Walk<2>,
    cols: usize,
    stride: usize,
    /// Accumulators, not codes.
    wide: bool,
    /// One, or one a column.
    m_a: Vec<i32>,
    m_b: i64,
    shift: u32,
    /// What is subtracted from what is stored.
    zero_a: i64,
    zero_b: i64,
    /// Zero point, bounds, and code minus stored byte.
    zero_point: i64,
    lo: i64,
    hi: i64,
    code_offset: i64,
}

impl QAdd {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::QAdd) -> Result<Self, RuntimeError> {
        let out = cx.tensor(op.out)?;
        let zero = |operand: &step::Operand, zero: i32| -> Result<i64, RuntimeError> {
            let offset = match operand.source {
                Some(step::Source::Tensor(tensor)) => cx.tensor(tensor)?.code_offset,
                Some(step::Source::Section(_)) | None => 0,
            };
            Ok(i64::from(zero) - i64::from(offset))
        };
        Ok(Self {
            a: Source::new(cx, &op.a)?,
            b: Source::new(cx, &op.b)?,
            out: op.out as usize,
            walk: Walk::new(out.shape.clone(), [&op.a.strides, &op.b.strides], [op.a.offset, op.b.offset])?,
            cols: out.cols.max(1),
            stride: out.stride,
            wide: cx.storage(&op.a)? == Storage::I32,
            m_a: cx.ints(op.m_a)?,
            m_b: op.m_b.into(),
            shift: op.shift,
            zero_a: zero(&op.a, op.zero_a)?,
            zero_b: zero(&op.b, op.zero_b)?,
            zero_point: op.zero_point.into(),
            lo: op.lo.into(),
            hi: op.hi.into(),
            code_offset: out.code_offset.into(),
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (a, b) = (self.a.bytes(file, &others), self.b.bytes(file, &others));
        let mut out = out.chunks_mut(self.stride.max(1)).flat_map(|row| row.iter_mut().take(self.cols).enumerate());
        let half = 1i64.checked_shl(self.shift.saturating_sub(1)).unwrap_or(0);
        self.walk.rows(|[a_start, b_start], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let at = a_start + i * a_step;
                let a = if self.wide { int_at(a, at)? } else { byte_at(a, at)?.into() };
                let b = i64::from(byte_at(b, b_start + i * b_step)?);
                let (col, out) = out.next()?;
                let m_a = i64::from(*self.m_a.get(if self.m_a.len() == 1 { 0 } else { col })?);
                // Proven to fit when the file was read.
                let sum = (i64::from(a) - self.zero_a)
                    .wrapping_mul(m_a)
                    .wrapping_add((b - self.zero_b).wrapping_mul(self.m_b))
                    .wrapping_add(half);
                let code = ((sum >> self.shift.min(63)) + self.zero_point).clamp(self.lo, self.hi);
                *out = (code - self.code_offset) as u8;
            }
            Some(())
        })
    }
}

/// Prepared [`step::Lookup`].
pub(super) struct Lookup {
    x: Source,
    out: usize,
    walk: Walk<1>,
    cols: usize,
    stride: usize,
    /// By stored byte, as unsigned.
    table: Box<[u8; 256]>,
}

impl Lookup {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Lookup) -> Result<Self, RuntimeError> {
        let out = cx.tensor(op.out)?;
        let table = <[u8; 256]>::try_from(cx.section(op.table)?);
        let mut table = table.map_err(|_| RuntimeError::Internal("a table has no 256 bytes"))?;
        // The file begins with the stored byte -128.
        table.rotate_left(128);
        Ok(Self {
            x: Source::new(cx, &op.x)?,
            out: op.out as usize,
            walk: Walk::new(out.shape.clone(), [&op.x.strides], [op.x.offset])?,
            cols: out.cols.max(1),
            stride: out.stride,
            table: Box::new(table),
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = self.x.bytes(file, &others);
        let mut out = out.chunks_mut(self.stride.max(1)).flat_map(|row| row.iter_mut().take(self.cols));
        self.walk.rows(|[start], len, [step]| {
            for i in 0..len as isize {
                let stored = byte_at(x, start + i * step)?;
                *out.next()? = *self.table.get(usize::from(stored as u8))?;
            }
            Some(())
        })
    }
}
