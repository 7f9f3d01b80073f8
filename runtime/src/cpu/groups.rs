//! Integer product in groups of channels.
//!
//! Every channel has a handful of weights, the window of a depthwise convolution,
//! so the loop runs over channels and the weights of one lie side by side.

use std::ops::Range;

use qail_artifact::{
    Storage, pack,
    schema::{Step, step},
};

use super::{
    integer::Results,
    kernels::Kernels,
    program::{Prepare, Scratch, ScratchRows},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::QGroups`].
pub(super) struct QGroups {
    x: usize,
    out: usize,
    rows: usize,
    /// Columns of `x` in memory.
    x_stride: usize,
    wide: bool,
    k: usize,
    n: usize,
    n_padded: usize,
    /// Channels of a group.
    channels: usize,
    /// Bytes of the weights in the file.
    weight: Range<usize>,
    bias: Vec<i32>,
    results: Results,
}

impl QGroups {
    pub(super) fn new(cx: &mut Prepare<'_>, step: &Step, op: &step::QGroups) -> Result<Self, RuntimeError> {
        let internal = || RuntimeError::Step {
            step: step.name.clone(),
            device: "the CPU".to_owned(),
            reason: "its groups do not fit its tensors".to_owned(),
        };
        let size = |value: u64| usize::try_from(value).map_err(|_| internal());
        let (x, out) = (cx.tensor(op.x)?, cx.tensor(op.out)?);
        let (k, n, groups) = (size(op.k)?, size(op.n)?, size(op.groups)?);
        let n_padded = pack::padded_n(n).ok_or_else(internal)?;
        let weight = cx.section_range(op.weight)?;
        let fits = groups > 0 && k.checked_mul(groups) == Some(x.cols) && k.checked_mul(n) <= Some(weight.len());
        if !fits || k == 0 || n == 0 || !n.is_multiple_of(groups) {
            return Err(internal());
        }
        let results = Results::new(cx, op.requantize.as_ref(), out, (n, n_padded))?;
        cx.scratch.reserve(0, 2 * n_padded);
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            rows: x.rows,
            x_stride: x.stride,
            wide: x.storage == Storage::I16,
            k,
            n,
            n_padded,
            channels: n / groups,
            weight,
            bias: cx.ints(op.bias)?,
            results,
        })
    }

    pub(super) fn run(
        &self,
        kernels: &Kernels,
        file: &[u8],
        scratch: &mut Scratch,
        memory: &mut HostMemory,
    ) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        let weight = file.get(self.weight.clone()).ok_or(RunError::Internal("weights lie outside the file"))?;
        let ScratchRows { sums: acc, .. } = scratch.rows(self.n_padded)?;
        let element_bytes = if self.wide { 2 } else { 1 };
        let row_bytes = self.n / self.channels * self.k * element_bytes;
        for row in 0..self.rows {
            let start = row * self.x_stride * element_bytes;
            let x = x.get(start..start + row_bytes);
            let x = x.ok_or(RunError::Internal("a row of codes lies outside its tensor"))?;
            if self.wide {
                let narrow = |b: &[u8]| b.first_chunk().map_or(0, |&b| i32::from(i16::from_le_bytes(b)));
                self.sums::<2>(x, weight, acc, narrow);
            } else {
                let narrow = |b: &[u8]| b.first().map_or(0, |&b| i32::from(b as i8));
                self.sums::<1>(x, weight, acc, narrow);
            }
            self.results.write(kernels, row, acc, out)?;
        }
        Ok(())
    }

    /// The accumulators of one row, of codes of `BYTES` bytes.
    #[inline(always)]
    fn sums<const BYTES: usize>(&self, x: &[u8], weight: &[u8], acc: &mut [i32], code: impl Fn(&[u8]) -> i32) {
        // Loading has proven that no sum leaves 32 bits.
        let dot = |x: &[u8], w: &[u8]| {
            let products = x.chunks_exact(BYTES).zip(w).map(|(x, &w)| code(x) * i32::from(w as i8));
            products.fold(0i32, i32::wrapping_add)
        };
        let groups = x.chunks_exact(self.k * BYTES);
        let weights = weight.chunks_exact(self.k * self.channels);
        let results = acc.chunks_exact_mut(self.channels).zip(self.bias.chunks_exact(self.channels));
        for ((x, weights), (acc, bias)) in groups.zip(weights).zip(results) {
            for ((acc, w), &bias) in acc.iter_mut().zip(weights.chunks_exact(self.k)).zip(bias) {
                *acc = dot(x, w).wrapping_add(bias);
            }
        }
    }
}
