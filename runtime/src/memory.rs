//! Scratch memory of a session: every arena, allocated once at load.
//!
//! One buffer holds all arenas one after the other, so that a step can borrow
//! its result mutably and its operands immutably without `unsafe`: the buffer is
//! split around the result.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::{RuntimeError, plan::Plan};

/// Sixty-four bytes, aligned so that any element type can be read in place.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// The mirror of every arena, and where each tensor lies in it.
///
/// Bytes of a tensor are in the form of a CPU session: rows `stride` elements
/// apart, `i16` little-endian for 16-bit codes.
pub(crate) struct HostMemory {
    lines: Vec<Line>,
    /// Byte range of each tensor of the plan.
    ranges: Vec<Range<usize>>,
    /// The part of it that holds rows.
    rows: Vec<Range<usize>>,
}

/// The memory beside the tensor that a step writes.
pub(crate) struct Others<'a> {
    before: &'a [u8],
    after: &'a [u8],
    /// First byte of `after` in the whole buffer.
    after_start: usize,
    rows: &'a [Range<usize>],
}

impl HostMemory {
    /// Zeroed memory for a plan.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Memory`] if the machine has not enough, or
    /// [`RuntimeError::Internal`] if a tensor leaves its arena.
    pub(crate) fn new(plan: &Plan) -> Result<Self, RuntimeError> {
        let outside = || RuntimeError::Internal("a tensor lies outside its arena");
        let mut starts = Vec::with_capacity(plan.arenas.len());
        let mut n_lines = 0usize;
        for arena in &plan.arenas {
            starts.push(n_lines.checked_mul(size_of::<Line>()).ok_or_else(outside)?);
            n_lines = n_lines.checked_add(arena.size.div_ceil(size_of::<Line>())).ok_or_else(outside)?;
        }
        let mut ranges = Vec::with_capacity(plan.tensors.len());
        let mut rows = Vec::with_capacity(plan.tensors.len());
        for tensor in &plan.tensors {
            let (arena, start) = plan.arenas.get(tensor.arena).zip(starts.get(tensor.arena)).ok_or_else(outside)?;
            let end = tensor.offset.checked_add(tensor.size).filter(|&end| end <= arena.size).ok_or_else(outside)?;
            let used = tensor.rows.checked_mul(tensor.stride).and_then(|n| n.checked_mul(tensor.element_bytes()));
            let used = used.filter(|&used| used <= tensor.size).ok_or_else(outside)?;
            ranges.push(start + tensor.offset..start + end);
            rows.push(start + tensor.offset..start + tensor.offset + used);
        }
        let size_bytes = n_lines.checked_mul(size_of::<Line>()).ok_or_else(outside)?;
        // Zeroed by the system: pages that no step touches cost nothing.
        let lines = bytemuck::allocation::try_zeroed_vec(n_lines).map_err(|()| RuntimeError::Memory { size_bytes })?;
        Ok(Self { lines, ranges, rows })
    }

    /// The bytes of a tensor, all of `PlanTensor::size`; empty for an index that
    /// the plan does not have.
    pub(crate) fn bytes(&self, tensor: usize) -> &[u8] {
        let all: &[u8] = bytemuck::cast_slice(&self.lines);
        self.ranges.get(tensor).and_then(|range| all.get(range.clone())).unwrap_or_default()
    }

    /// The bytes of a tensor, all of `PlanTensor::size`, to write.
    pub(crate) fn bytes_mut(&mut self, tensor: usize) -> &mut [u8] {
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        self.ranges.get(tensor).and_then(|range| all.get_mut(range.clone())).unwrap_or_default()
    }

    /// The rows of the tensor that a step writes, and everything else.
    pub(crate) fn split(&mut self, write: usize) -> (&mut [u8], Others<'_>) {
        let range = self.rows.get(write).cloned().unwrap_or(0..0);
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        // The ranges lie inside the buffer since `new`.
        let (head, after) = all.split_at_mut(range.end.min(all.len()));
        let (before, out) = head.split_at_mut(range.start.min(head.len()));
        (out, Others { before, after, after_start: range.end, rows: &self.rows })
    }
}

impl<'a> Others<'a> {
    /// The rows of a tensor that does not overlap the written one, else nothing.
    pub(crate) fn bytes(&self, tensor: usize) -> &'a [u8] {
        let Some(range) = self.rows.get(tensor) else { return &[] };
        if range.end <= self.before.len() {
            return self.before.get(range.clone()).unwrap_or_default();
        }
        match range.start.checked_sub(self.after_start) {
            Some(start) => self.after.get(start..range.end - self.after_start).unwrap_or_default(),
            None => &[],
        }
    }
}
