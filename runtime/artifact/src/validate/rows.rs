//! Steps over whole rows.

use super::{
    Check, EntryCheck, step_error,
    strided::{in_range, product},
};
use crate::{
    ArtifactError,
    schema::{Step, Storage, step},
};

impl EntryCheck<'_> {
    pub(super) fn softmax(&self, step: &Step, op: &step::Softmax) -> Check {
        let elements = self.elements(step, &[op.outer, op.n, op.inner])?;
        self.dense(step, op.x, Storage::F32, Some(elements))?;
        self.dense(step, op.out, Storage::F32, Some(elements))?;
        Ok(())
    }

    pub(super) fn normalize(&self, step: &Step, op: &step::Normalize) -> Check {
        let shape: Vec<u64> = op.outer.iter().chain(&op.inner).copied().collect();
        let strides: Vec<i64> = op.outer_strides.iter().chain(&op.inner_strides).copied().collect();
        if op.outer.len() != op.outer_strides.len() || op.inner.len() != op.inner_strides.len() {
            return Err(step_error(step, "has strides that do not match its axes"));
        }
        let elements = self.elements(step, &shape)?;
        self.dense(step, op.x, Storage::F32, Some(elements))?;
        self.dense(step, op.out, Storage::F32, Some(elements))?;
        if !(op.eps.is_finite() && op.eps >= 0.0) {
            return Err(step_error(step, format!("adds {} to a variance", op.eps)));
        }
        in_range(step, 0, &shape, &strides, 0, elements)
    }

    pub(super) fn attention(&self, step: &Step, op: &step::Attention) -> Check {
        if op.groups == 0 || !op.heads.is_multiple_of(op.groups) {
            return Err(step_error(step, format!("{} heads do not share {} groups", op.heads, op.groups)));
        }
        if op.scale.is_nan() {
            return Err(step_error(step, "has a scale that is no number"));
        }
        for (tensor, shape) in [
            (op.q, [op.batch, op.heads, op.queries, op.depth]),
            (op.k, [op.batch, op.groups, op.keys, op.depth]),
            (op.v, [op.batch, op.groups, op.keys, op.width]),
            (op.out, [op.batch, op.heads, op.queries, op.width]),
        ] {
            self.dense(step, tensor, Storage::F32, Some(self.elements(step, &shape)?))?;
        }
        let Some(mask) = &op.mask else { return Ok(()) };
        let found = self.operand(step, mask)?;
        if found.storage != Storage::F32 {
            return Err(step_error(step, "has a mask that is not f32"));
        }
        in_range(step, mask.offset, &[op.batch, op.heads, op.queries, op.keys], &mask.strides, 0, found.len)
    }

    /// Product of extents, all of them at least 1.
    pub(super) fn elements(&self, step: &Step, extents: &[u64]) -> Result<usize, ArtifactError> {
        product(extents)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| step_error(step, "has an empty axis or is too large"))
    }
}
