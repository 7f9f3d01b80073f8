//! Windows: every element that an index shows lies in its operand.

use super::{
    Check, EntryCheck, step_error,
    strided::{in_range, product},
};
use crate::schema::{Step, Storage, step};

/// Most axes and coordinates of windows.
const MAX_AXES: usize = 8;
/// Bound of every position: a GPU computes them in 32 bits.
const MAX_POSITION: i128 = (1 << 31) - 1;

impl EntryCheck<'_> {
    pub(super) fn unfold(&self, step: &Step, op: &step::Unfold) -> Check {
        let out = self.tensor(step, op.out)?;
        let x = self.operand(step, &op.x)?;
        if (x.storage, x.code_offset) != (out.storage, out.code_offset) {
            return Err(step_error(step, format!("copies {:?} to {:?}", x.storage, out.storage)));
        }
        let (axes, coordinates) = (op.shape.len(), op.extents.len());
        let lists_ok = op.coordinates.len() == axes
            && op.steps.len() == axes
            && op.start.len() == coordinates
            && op.spread.len() == coordinates
            && axes <= MAX_AXES
            && coordinates <= MAX_AXES;
        if !lists_ok {
            return Err(step_error(step, "has windows whose lists do not match"));
        }
        if product(&op.shape) != Some(out.elements as u64) {
            return Err(step_error(step, "shows another number of elements than its result has"));
        }
        if op.extents.contains(&0) || op.spread.contains(&0) {
            return Err(step_error(step, "has a coordinate without elements"));
        }
        // Positions and the elements that they show stay within 32 bits.
        let mut reach: Vec<(i128, i128)> =
            op.start.iter().map(|&start| (i128::from(start), i128::from(start))).collect();
        for ((&extent, &coordinate), &stride) in op.shape.iter().zip(&op.coordinates).zip(&op.steps) {
            let Some((least, largest)) = reach.get_mut(coordinate as usize) else {
                return Err(step_error(step, format!("has no coordinate {coordinate}")));
            };
            let far = i128::from(extent - 1) * i128::from(stride);
            let end = if far < 0 { least } else { largest };
            // At most 8 products of 128 bits, each below 2^127.
            *end = end.checked_add(far).ok_or_else(|| step_error(step, "has positions beyond all bounds"))?;
        }
        let bounded = |n: i128| (-MAX_POSITION..=MAX_POSITION).contains(&n);
        let sizes = op.extents.iter().chain(&op.spread).all(|&n| bounded(i128::from(n)));
        let spans = op.extents.iter().zip(&op.spread).all(|(&n, &by)| bounded(i128::from(n) * i128::from(by)));
        if !sizes || !spans || !reach.iter().all(|&(least, largest)| bounded(least) && bounded(largest)) {
            return Err(step_error(step, "has positions beyond 32 bits"));
        }
        let fill_ok = match out.storage {
            Storage::F32 => !op.fill.is_nan(),
            Storage::I8 => (-128..=127).contains(&op.fill_stored),
            Storage::I16 => (-32_768..=32_639).contains(&op.fill_stored),
            Storage::U8 => (0..=255).contains(&op.fill_stored),
            Storage::I32 | Storage::I64 => true,
            Storage::Unspecified => false,
        };
        if !fill_ok {
            return Err(step_error(step, "has a fill that its elements cannot be"));
        }
        in_range(step, op.x.offset, &op.extents, &op.x.strides, 0, x.len)
    }
}
