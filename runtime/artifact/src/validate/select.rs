//! Steps that compare, choose and look up by index.

use super::{Check, EntryCheck, ints, step_error, strided::in_range};
use crate::{
    ArtifactError,
    schema::{Layout, Place, Step, Storage, step},
};

/// Largest zero point of a sum of codes.
const ZERO_MAX: u32 = 1 << 16;

impl EntryCheck<'_> {
    pub(super) fn compare(&self, step: &Step, op: &step::Compare) -> Check {
        if !matches!(step::CompareKind::try_from(op.f), Ok(f) if f != step::CompareKind::Unspecified) {
            return Err(step_error(step, "has an unknown comparison"));
        }
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.out, Storage::I32, Some(out.elements))?;
        let storage = self.number_operand(step, &op.a, op.out)?;
        if self.number_operand(step, &op.b, op.out)? != storage {
            return Err(step_error(step, "compares numbers of two types"));
        }
        Ok(())
    }

    pub(super) fn choose(&self, step: &Step, op: &step::Where) -> Check {
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.out, out.storage, Some(out.elements))?;
        if self.number_operand(step, &op.truth, op.out)? != Storage::I32 {
            return Err(step_error(step, "chooses by numbers that are not i32"));
        }
        for operand in [&op.a, &op.b] {
            if self.number_operand(step, operand, op.out)? != out.storage {
                return Err(step_error(step, format!("chooses {:?} of another type", out.storage)));
            }
        }
        Ok(())
    }

    pub(super) fn gather(&self, step: &Step, op: &step::Gather) -> Check {
        let out = self.tensor(step, op.out)?;
        let x = self.operand(step, &op.x)?;
        if (x.storage, x.code_offset) != (out.storage, out.code_offset) {
            return Err(step_error(step, format!("copies {:?} to {:?}", x.storage, out.storage)));
        }
        if self.number_operand(step, &op.index, op.out)? != Storage::I32 {
            return Err(step_error(step, "has an index that is not i32"));
        }
        if op.extent == 0 || i32::try_from(op.extent).is_err() {
            return Err(step_error(step, format!("looks up one of {} places", op.extent)));
        }
        // The places are one more axis.
        let shape: Vec<u64> = self.shape(op.out).iter().copied().chain([op.extent]).collect();
        let strides: Vec<i64> = op.x.strides.iter().copied().chain([op.along]).collect();
        in_range(step, op.x.offset, &shape, &strides, 0, x.len)
    }

    pub(super) fn scatter(&self, step: &Step, op: &step::Scatter) -> Check {
        if !matches!(step::ScatterKind::try_from(op.f), Ok(f) if f != step::ScatterKind::Unspecified) {
            return Err(step_error(step, "has an unknown function"));
        }
        let out = self.tensor(step, op.out)?;
        self.plain_number(step, out.storage)?;
        let elements = self.elements(step, &[op.extent, op.row])?;
        self.dense(step, op.x, out.storage, Some(elements))?;
        self.dense(step, op.out, out.storage, Some(elements))?;
        let index = self.tensor(step, op.index)?;
        self.dense(step, op.index, Storage::I32, Some(index.elements))?;
        let row = usize::try_from(op.row).unwrap_or(usize::MAX);
        self.dense(step, op.update, out.storage, index.elements.checked_mul(row))?;
        Ok(())
    }

    pub(super) fn order(&self, step: &Step, op: &step::Order) -> Check {
        let x = self.tensor(step, op.x)?;
        self.plain_number(step, x.storage)?;
        if op.k > op.n || i32::try_from(op.n).is_err() {
            return Err(step_error(step, format!("takes {} of {} elements", op.k, op.n)));
        }
        self.dense(step, op.x, x.storage, Some(self.elements(step, &[op.outer, op.n, op.inner])?))?;
        let storage = if op.indices { Storage::I32 } else { x.storage };
        self.dense(step, op.out, storage, Some(self.elements(step, &[op.outer, op.k, op.inner])?))?;
        Ok(())
    }

    pub(super) fn scan(&self, step: &Step, op: &step::Scan) -> Check {
        let x = self.tensor(step, op.x)?;
        self.plain_number(step, x.storage)?;
        let elements = self.elements(step, &[op.outer, op.n, op.inner])?;
        self.dense(step, op.x, x.storage, Some(elements))?;
        self.dense(step, op.out, x.storage, Some(elements))?;
        Ok(())
    }

    pub(super) fn cast(&self, step: &Step, op: &step::Cast) -> Check {
        self.host_only(step)?;
        let (x, out) = (self.tensor(step, op.x)?, self.tensor(step, op.out)?);
        let plain = |storage| matches!(storage, Storage::F32 | Storage::I32 | Storage::U8 | Storage::I64);
        let is_float = |storage| storage == Storage::F32;
        let fits = match step::CastKind::try_from(op.to) {
            Err(_) | Ok(step::CastKind::Unspecified) => false,
            Ok(step::CastKind::F32) => is_float(out.storage),
            Ok(step::CastKind::Same) => !is_float(x.storage) && !is_float(out.storage),
            Ok(step::CastKind::Bool | step::CastKind::U8 | step::CastKind::I32 | step::CastKind::I64) => {
                !is_float(out.storage)
            }
        };
        if !fits || !plain(x.storage) || !plain(out.storage) || x.elements != out.elements {
            return Err(step_error(step, format!("cannot cast {:?} to {:?}", x.storage, out.storage)));
        }
        Ok(())
    }

    pub(super) fn q_add(&self, step: &Step, op: &step::QAdd) -> Check {
        let out = self.tensor(step, op.out)?;
        self.byte_codes(step, op.out, op.lo, op.hi)?;
        for (operand, accumulators) in [(&op.a, true), (&op.b, false)] {
            let found = self.operand(step, operand)?;
            if !(found.storage == Storage::I8 || accumulators && found.storage == Storage::I32) {
                return Err(step_error(step, format!("adds {:?}", found.storage)));
            }
            in_range(step, operand.offset, self.shape(op.out), &operand.strides, 0, found.len)?;
        }
        let m_a = self.vector(step, op.m_a, Layout::I32, out.cols, "m_a")?;
        // |a| < 2^32, |m_a| < 2^31, half of the last place < 2^62, |b| * m_b < 2^49: 64 bits hold the sum.
        if !ints(m_a).all(|m| m > 0) || op.m_b <= 0 || !(1..=62).contains(&op.shift) {
            return Err(step_error(step, "has a multiplier that is not positive, or a shift outside 1 to 62"));
        }
        if [op.zero_a, op.zero_b, op.zero_point].iter().any(|zero| zero.unsigned_abs() > ZERO_MAX) {
            return Err(step_error(step, "has a zero point out of range"));
        }
        Ok(())
    }

    pub(super) fn lookup(&self, step: &Step, op: &step::Lookup) -> Check {
        let (x, out) = (self.operand(step, &op.x)?, self.tensor(step, op.out)?);
        if [x.storage, out.storage] != [Storage::I8; 2] {
            return Err(step_error(step, format!("looks up {:?} by {:?}", out.storage, x.storage)));
        }
        in_range(step, op.x.offset, self.shape(op.out), &op.x.strides, 0, x.len)?;
        self.section(step, op.table, Layout::I8, Some(256), "table")?;
        Ok(())
    }

    /// Checks an operand of `f32` or `i32` over the shape of `out`; its storage.
    pub(super) fn number_operand(
        &self,
        step: &Step,
        operand: &step::Operand,
        out: u32,
    ) -> Result<Storage, ArtifactError> {
        let found = self.operand(step, operand)?;
        self.plain_number(step, found.storage)?;
        in_range(step, operand.offset, self.shape(out), &operand.strides, 0, found.len)?;
        Ok(found.storage)
    }

    fn plain_number(&self, step: &Step, storage: Storage) -> Check {
        match storage {
            Storage::F32 | Storage::I32 => Ok(()),
            Storage::Unspecified | Storage::I8 | Storage::I16 | Storage::U8 | Storage::I64 => {
                Err(step_error(step, format!("computes with {storage:?}")))
            }
        }
    }

    fn host_only(&self, step: &Step) -> Check {
        if step.place() == Place::Host { Ok(()) } else { Err(step_error(step, "is no step of a device")) }
    }

    pub(super) fn shape(&self, tensor: u32) -> &[u64] {
        self.manifest.tensors.get(tensor as usize).map_or(&[][..], |tensor| &tensor.shape)
    }
}
