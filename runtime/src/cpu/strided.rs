//! Walks over strided operands: copies, reductions, products of computed values.

use std::ops::Range;

use qail_artifact::schema::step;

use super::{
    generic::float,
    program::{Prepare, floats_mut},
};
use crate::{
    RunError, RuntimeError,
    memory::{HostMemory, Others},
};

/// Most axes of a walk.
const MAX_AXES: usize = 16;

/// A walk over an index space, with one running element position in each of `N` operands.
pub(super) struct Walk<const N: usize> {
    shape: Vec<usize>,
    strides: Vec<[isize; N]>,
    offsets: [isize; N],
}

impl<const N: usize> Walk<N> {
    pub(super) fn new(shape: Vec<usize>, strides: [&[i64]; N], offsets: [u64; N]) -> Result<Self, RuntimeError> {
        let bad = || RuntimeError::Internal("strides do not match their axes");
        if shape.len() > MAX_AXES || strides.iter().any(|s| s.len() != shape.len()) {
            return Err(bad());
        }
        let narrow = |stride: i64| isize::try_from(stride).map_err(|_| bad());
        let mut by_axis = Vec::with_capacity(shape.len());
        for axis in 0..shape.len() {
            let mut strides_of_axis = [0; N];
            for (to, from) in strides_of_axis.iter_mut().zip(strides) {
                *to = narrow(from.get(axis).copied().unwrap_or(0))?;
            }
            by_axis.push(strides_of_axis);
        }
        let mut starts = [0; N];
        for (to, from) in starts.iter_mut().zip(offsets) {
            *to = isize::try_from(from).map_err(|_| bad())?;
        }
        Ok(Self { shape, strides: by_axis, offsets: starts })
    }

    /// Calls `f(positions, length, steps)` for every run of the innermost axis,
    /// in index order. `f` returns none if it leaves an operand.
    pub(super) fn rows(&self, mut f: impl FnMut([isize; N], usize, [isize; N]) -> Option<()>) -> Result<(), RunError> {
        let outside = RunError::Internal("a strided operand leaves its tensor");
        let (len, outer) = self.shape.split_last().map_or((1, &[][..]), |(&len, outer)| (len, outer));
        let steps = self.strides.last().copied().unwrap_or([0; N]);
        let mut index = [0usize; MAX_AXES];
        let mut positions = self.offsets;
        loop {
            if f(positions, len, steps).is_none() {
                return Err(outside);
            }
            // The odometer: advance the last outer axis that has room.
            let mut axis = outer.len();
            loop {
                let Some(next) = axis.checked_sub(1) else { return Ok(()) };
                axis = next;
                let (Some(i), Some(&extent), Some(strides)) =
                    (index.get_mut(axis), outer.get(axis), self.strides.get(axis))
                else {
                    return Err(outside);
                };
                *i += 1;
                if *i < extent {
                    add(&mut positions, strides, 1);
                    break;
                }
                add(&mut positions, strides, 1 - extent as isize);
                *i = 0;
            }
        }
    }
}

fn add<const N: usize>(positions: &mut [isize; N], strides: &[isize; N], times: isize) {
    for (position, stride) in positions.iter_mut().zip(strides) {
        // Within the operand at every index, as checked at load; wrapping only
        // where a stride of an axis of extent 1 is never used.
        *position = position.wrapping_add(stride.wrapping_mul(times));
    }
}

/// A tensor or a section of numbers.
pub(super) enum Source {
    Tensor(usize),
    Section(Range<usize>),
}

impl Source {
    pub(super) fn new(cx: &Prepare<'_>, operand: &step::Operand) -> Result<Self, RuntimeError> {
        match operand.source {
            Some(step::Source::Tensor(tensor)) => Ok(Self::Tensor(tensor as usize)),
            Some(step::Source::Section(section)) => Ok(Self::Section(cx.section_range(section)?)),
            None => Err(RuntimeError::Internal("an operand has no source")),
        }
    }

    pub(super) fn bytes<'a>(&self, file: &'a [u8], others: &Others<'a>) -> &'a [u8] {
        match self {
            Self::Tensor(tensor) => others.bytes(*tensor),
            Self::Section(range) => file.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// Element `position` of little-endian floats.
#[inline(always)]
pub(super) fn float_at(bytes: &[u8], position: isize) -> Option<f32> {
    let start = usize::try_from(position).ok()?.checked_mul(4)?;
    Some(f32::from_le_bytes(*bytes.get(start..)?.first_chunk()?))
}

/// Element `position` of little-endian 32-bit integers.
#[inline(always)]
pub(super) fn int_at(bytes: &[u8], position: isize) -> Option<i32> {
    let start = usize::try_from(position).ok()?.checked_mul(4)?;
    Some(i32::from_le_bytes(*bytes.get(start..)?.first_chunk()?))
}

/// Prepared [`step::Copy`].
pub(super) struct Copy {
    x: Source,
    out: usize,
    element_bytes: usize,
    walk: Walk<2>,
}

impl Copy {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Copy) -> Result<Self, RuntimeError> {
        let shape = cx.extents(&op.shape)?;
        let element_bytes = cx.tensor(op.out)?.element_bytes();
        let walk = Walk::new(shape, [&op.x.strides, &op.out_strides], [op.x.offset, op.out_offset])?;
        Ok(Self { x: Source::new(cx, &op.x)?, out: op.out as usize, element_bytes, walk })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = self.x.bytes(file, &others);
        let size = self.element_bytes;
        let byte = |position: isize| usize::try_from(position).ok()?.checked_mul(size);
        self.walk.rows(|[from, to], len, steps| {
            if steps == [1, 1] {
                let (from, to, len) = (byte(from)?, byte(to)?, len.checked_mul(size)?);
                out.get_mut(to..to.checked_add(len)?)?.copy_from_slice(x.get(from..from.checked_add(len)?)?);
                return Some(());
            }
            for i in 0..len as isize {
                let (from, to) = (byte(from + i * steps[0])?, byte(to + i * steps[1])?);
                out.get_mut(to..to.checked_add(size)?)?.copy_from_slice(x.get(from..from.checked_add(size)?)?);
            }
            Some(())
        })
    }
}

/// Prepared [`step::MatMul`].
pub(super) struct MatMul {
    a: Source,
    b: Source,
    out: usize,
    batch: Walk<2>,
    n: usize,
    m: usize,
    k: usize,
}

impl MatMul {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::MatMul) -> Result<Self, RuntimeError> {
        let [m, n, k] = <[usize; 3]>::try_from(cx.extents(&[op.m, op.n, op.k])?)
            .map_err(|_| RuntimeError::Internal("a product has no shape"))?;
        Ok(Self {
            a: Source::new(cx, &op.a)?,
            b: Source::new(cx, &op.b)?,
            out: op.out as usize,
            batch: Walk::new(cx.extents(&op.batch)?, [&op.a.strides, &op.b.strides], [op.a.offset, op.b.offset])?,
            n,
            m,
            k,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (a, b) = (self.a.bytes(file, &others), self.b.bytes(file, &others));
        let mut matrices = floats_mut(out)?.chunks_exact_mut((self.m * self.n).max(1));
        self.batch.rows(|[a_base, b_base], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let a = elements(a, a_base + i * a_step, self.m * self.k)?;
                let b = elements(b, b_base + i * b_step, self.k * self.n)?;
                self.product(a, b, matrices.next()?);
            }
            Some(())
        })
    }

    /// Row by row; each element is summed in the order of `k`, so the loops may
    /// run over whole rows of `b`.
    fn product(&self, a: &[u8], b: &[u8], out: &mut [f32]) {
        for (a, out) in a.chunks_exact((self.k * 4).max(1)).zip(out.chunks_exact_mut(self.n.max(1))) {
            out.fill(0.0);
            for (a, b) in a.chunks_exact(4).zip(b.chunks_exact((self.n * 4).max(1))) {
                let a = float(a);
                for (out, b) in out.iter_mut().zip(b.chunks_exact(4)) {
                    *out += a * float(b);
                }
            }
        }
    }
}

/// The bytes of `len` floats from element `position`.
fn elements(bytes: &[u8], position: isize, len: usize) -> Option<&[u8]> {
    let start = usize::try_from(position).ok()?.checked_mul(4)?;
    bytes.get(start..start.checked_add(len.checked_mul(4)?)?)
}
