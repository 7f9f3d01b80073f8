//! Copies through windows, see [`step::Unfold`].

use qail_artifact::{Storage, schema::step};

use super::{program::Prepare, strided::Source};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Most axes and coordinates.
const MAX_AXES: usize = 8;

/// One axis of the index space.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    coordinate: usize,
    step: isize,
}

/// One coordinate of the operand.
#[derive(Clone, Copy)]
struct Coordinate {
    extent: isize,
    spread: isize,
    stride: isize,
}

impl Coordinate {
    /// Distance of the element that a position shows from the first one.
    #[inline(always)]
    fn place(self, position: isize) -> Option<isize> {
        if self.spread == 1 {
            return (0 <= position && position < self.extent).then(|| position * self.stride);
        }
        let element = position / self.spread;
        let shown = 0 <= position && element < self.extent && element * self.spread == position;
        shown.then(|| element * self.stride)
    }
}

/// Prepared [`step::Unfold`].
pub(super) struct Unfold {
    x: Source,
    offset: isize,
    out: usize,
    element_bytes: usize,
    cols: usize,
    stride: usize,
    outer: Vec<Axis>,
    inner: Axis,
    coordinates: Vec<Coordinate>,
    start: [isize; MAX_AXES],
    fill: [u8; 8],
}

impl Unfold {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Unfold) -> Result<Self, RuntimeError> {
        let bad = || RuntimeError::Internal("windows are out of range");
        let out = cx.tensor(op.out)?;
        let narrow = |n: i64| isize::try_from(n).map_err(|_| bad());
        let extents = cx.extents(&op.extents)?;
        let mut coordinates = Vec::with_capacity(extents.len());
        for ((extent, &spread), &stride) in extents.into_iter().zip(&op.spread).zip(&op.x.strides) {
            let (extent, spread) = (isize::try_from(extent), isize::try_from(spread));
            let (Ok(extent), Ok(spread @ 1..)) = (extent, spread) else { return Err(bad()) };
            coordinates.push(Coordinate { extent, spread, stride: narrow(stride)? });
        }
        let mut start = [0; MAX_AXES];
        for (to, &from) in start.iter_mut().zip(&op.start) {
            *to = narrow(from)?;
        }
        let mut axes = Vec::with_capacity(op.shape.len());
        for ((extent, &coordinate), &step) in cx.extents(&op.shape)?.into_iter().zip(&op.coordinates).zip(&op.steps) {
            axes.push(Axis { extent, coordinate: coordinate as usize, step: narrow(step)? });
        }
        if axes.iter().any(|axis| axis.coordinate >= coordinates.len()) || coordinates.len() > MAX_AXES {
            return Err(bad());
        }
        // Without axes there is one element; its coordinates need a walk all the same.
        let inner = axes.pop().unwrap_or(Axis { extent: 1, coordinate: 0, step: 0 });
        if coordinates.is_empty() {
            coordinates.push(Coordinate { extent: 1, spread: 1, stride: 0 });
        }
        let mut fill = [0; 8];
        let stored = match out.storage {
            Storage::F32 => i64::from(op.fill.to_bits()),
            _ => i64::from(op.fill_stored),
        };
        fill.copy_from_slice(&stored.to_le_bytes());
        Ok(Self {
            x: Source::new(cx, &op.x)?,
            offset: isize::try_from(op.x.offset).map_err(|_| bad())?,
            out: op.out as usize,
            element_bytes: out.element_bytes(),
            cols: out.cols,
            stride: out.stride,
            outer: axes,
            inner,
            coordinates,
            start,
            fill,
        })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = self.x.bytes(file, &others);
        let done = match self.element_bytes {
            1 => self.walk::<1>(x, out),
            2 => self.walk::<2>(x, out),
            4 => self.walk::<4>(x, out),
            _ => self.walk::<8>(x, out),
        };
        done.ok_or(RunError::Internal("a window leaves its tensor"))
    }

    /// Writes element by element; none if a window leaves its operand.
    fn walk<const N: usize>(&self, x: &[u8], out: &mut [u8]) -> Option<()> {
        let x = x.as_chunks::<N>().0;
        let fill: [u8; N] = *self.fill.first_chunk()?;
        let mut rows = out.as_chunks_mut::<N>().0.chunks_mut(self.stride.max(1));
        let mut row = rows.next()?.iter_mut().take(self.cols);
        let mut index = [0usize; MAX_AXES];
        let mut positions = self.start;
        let moving = *self.coordinates.get(self.inner.coordinate)?;
        loop {
            let mut base = Some(self.offset);
            for (i, (coordinate, &position)) in self.coordinates.iter().zip(&positions).enumerate() {
                if i != self.inner.coordinate {
                    base = base.zip(coordinate.place(position)).map(|(base, place)| base + place);
                }
            }
            let mut position = *positions.get(self.inner.coordinate)?;
            for _ in 0..self.inner.extent {
                let value = match base.zip(moving.place(position)) {
                    Some((base, place)) => *x.get(usize::try_from(base + place).ok()?)?,
                    None => fill,
                };
                match row.next() {
                    Some(to) => *to = value,
                    None => {
                        row = rows.next()?.iter_mut().take(self.cols);
                        *row.next()? = value;
                    }
                }
                position += self.inner.step;
            }
            // The odometer: advance the last outer axis that has room.
            let mut axis = self.outer.len();
            loop {
                let Some(next) = axis.checked_sub(1) else { return Some(()) };
                axis = next;
                let at = self.outer.get(axis)?;
                let (i, position) = (index.get_mut(axis)?, positions.get_mut(at.coordinate)?);
                *i += 1;
                if *i < at.extent {
                    *position += at.step;
                    break;
                }
                *position -= at.step * (at.extent as isize - 1);
                *i = 0;
            }
        }
    }
}
