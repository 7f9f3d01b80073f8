//! Values that are turned or scaled by others, every step rounded to `f32`.

use qail_artifact::schema::step;

use super::{
    program::{Prepare, floats_mut},
    strided::{Source, Walk, float_at},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::Rope`].
pub(super) struct Rope {
    operands: [Source; 3],
    out: usize,
    /// Elements of a row of the result.
    width: usize,
    /// Over the first elements of all pairs, in the three operands.
    pairs: Walk<3>,
    /// From the first element of a pair to the second, in the three operands.
    second: [isize; 3],
    /// From a pair to the next one, and inside of a pair, in a row of the result.
    steps: [usize; 2],
}

impl Rope {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Rope) -> Result<Self, RuntimeError> {
        let bad = || RuntimeError::Internal("a row has no pairs");
        let mut shape = cx.tensor(op.out)?.shape.clone();
        let last = shape.last_mut().ok_or_else(bad)?;
        let (width, half) = (*last, *last / 2);
        if half == 0 {
            return Err(bad());
        }
        *last = half;
        let steps = if op.interleaved { [2, 1] } else { [1, half] };
        let [step, apart] = steps.map(i64::try_from);
        let (step, apart) = (step.map_err(|_| bad())?, apart.map_err(|_| bad())?);
        let mut strides = [op.x.strides.clone(), op.cos.strides.clone(), op.sin.strides.clone()];
        let mut second = [0isize; 3];
        for (strides, second) in strides.iter_mut().zip(&mut second) {
            let last = strides.last_mut().ok_or_else(bad)?;
            let between = last.checked_mul(apart).ok_or_else(bad)?;
            *second = isize::try_from(between).map_err(|_| bad())?;
            *last = last.checked_mul(step).ok_or_else(bad)?;
        }
        let offsets = [op.x.offset, op.cos.offset, op.sin.offset];
        let operands = [Source::new(cx, &op.x)?, Source::new(cx, &op.cos)?, Source::new(cx, &op.sin)?];
        let pairs = Walk::new(shape, strides.each_ref().map(Vec::as_slice), offsets)?;
        Ok(Self { operands, out: op.out as usize, width, pairs, second, steps })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let [x, cos, sin] = self.operands.each_ref().map(|operand| operand.bytes(file, &others));
        let mut rows = floats_mut(out)?.chunks_exact_mut(self.width);
        let [step, apart] = self.steps;
        self.pairs.rows(|[x_start, cos_start, sin_start], len, [x_step, cos_step, sin_step]| {
            let row = rows.next()?;
            for i in 0..len {
                let pair = |bytes, start: isize, step: isize, second: isize| {
                    let at = start + i as isize * step;
                    Some((float_at(bytes, at)?, float_at(bytes, at + second)?))
                };
                let (x0, x1) = pair(x, x_start, x_step, self.second[0])?;
                let (cos0, cos1) = pair(cos, cos_start, cos_step, self.second[1])?;
                let (sin0, sin1) = pair(sin, sin_start, sin_step, self.second[2])?;
                let at = i * step;
                *row.get_mut(at)? = x0 * cos0 + -x1 * sin0;
                *row.get_mut(at + apart)? = x1 * cos1 + x0 * sin1;
            }
            Some(())
        })
    }
}

/// Prepared [`step::Film`].
pub(super) struct Film {
    operands: [Source; 3],
    out: usize,
    walk: Walk<3>,
}

impl Film {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Film) -> Result<Self, RuntimeError> {
        let shape = cx.tensor(op.out)?.shape.clone();
        let strides = [&op.x.strides[..], &op.scale.strides, &op.shift.strides];
        let walk = Walk::new(shape, strides, [op.x.offset, op.scale.offset, op.shift.offset])?;
        let operands = [Source::new(cx, &op.x)?, Source::new(cx, &op.scale)?, Source::new(cx, &op.shift)?];
        Ok(Self { operands, out: op.out as usize, walk })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let [x, scale, shift] = self.operands.each_ref().map(|operand| operand.bytes(file, &others));
        let mut out = floats_mut(out)?.iter_mut();
        self.walk.rows(|[x_start, scale_start, shift_start], len, [x_step, scale_step, shift_step]| {
            for i in 0..len as isize {
                let x = float_at(x, x_start + i * x_step)?;
                let scale = float_at(scale, scale_start + i * scale_step)?;
                let shift = float_at(shift, shift_start + i * shift_step)?;
                *out.next()? = x * scale + shift;
            }
            Some(())
        })
    }
}
