//! Steps with strides: every index that they can compute lies in its operand.

use super::{Check, EntryCheck, step_error};
use crate::{
    ArtifactError,
    schema::{Layout, Step, Storage, step},
};

impl EntryCheck<'_> {
    pub(super) fn binary(&self, step: &Step, op: &step::Binary) -> Check {
        if !matches!(step::BinaryKind::try_from(op.f), Ok(f) if f != step::BinaryKind::Unspecified) {
            return Err(step_error(step, "has an unknown function"));
        }
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.out, out.storage, Some(out.elements))?;
        for operand in [&op.a, &op.b] {
            if self.number_operand(step, operand, op.out)? != out.storage {
                return Err(step_error(step, "computes with numbers of two types"));
            }
        }
        Ok(())
    }

    pub(super) fn copy(&self, step: &Step, op: &step::Copy) -> Check {
        let out = self.tensor(step, op.out)?;
        let x = self.operand(step, &op.x)?;
        if (x.storage, x.code_offset) != (out.storage, out.code_offset) {
            return Err(step_error(step, format!("copies {:?} to {:?}", x.storage, out.storage)));
        }
        let len = x.len;
        // More turns than places would write a place twice; also a bound of the work.
        let elements = product(&op.shape).filter(|&n| n <= out.stored() as u64);
        if elements.is_none() {
            return Err(step_error(step, "copies more elements than its result has"));
        }
        in_range(step, op.x.offset, &op.shape, &op.x.strides, 0, len)?;
        in_range(step, op.out_offset, &op.shape, &op.out_strides, 0, out.stored())
    }

    pub(super) fn reduce(&self, step: &Step, op: &step::Reduce) -> Check {
        if !matches!(step::ReduceKind::try_from(op.f), Ok(f) if f != step::ReduceKind::Unspecified) {
            return Err(step_error(step, "has an unknown function"));
        }
        let outer = product(&op.outer).and_then(|n| usize::try_from(n).ok());
        let (x, out) = (self.operand(step, &op.x)?, self.tensor(step, op.out)?);
        let kind = step::ReduceKind::try_from(op.f).unwrap_or(step::ReduceKind::Unspecified);
        let extreme = matches!(kind, step::ReduceKind::Min | step::ReduceKind::Max);
        let fits = match (x.storage, out.storage) {
            (Storage::F32, Storage::F32) => true,
            (Storage::I32, Storage::I32) => kind != step::ReduceKind::Mean,
            (Storage::I8, Storage::I8) | (Storage::I16, Storage::I16) => extreme && x.code_offset == out.code_offset,
            (Storage::I8, Storage::I32) => kind == step::ReduceKind::Sum,
            _ => false,
        };
        if !fits || Some(out.elements) != outer {
            return Err(step_error(step, format!("cannot reduce {:?} to {:?}", x.storage, out.storage)));
        }
        if (x.storage, out.storage) == (Storage::I8, Storage::I32) {
            // Every code less its zero is below 2^17, and a sum must not wrap.
            let most = product(&op.inner).and_then(|n| n.checked_mul(256 + u64::from(op.zero_point.unsigned_abs())));
            if most.is_none_or(|most| most >= 1 << 31) {
                return Err(step_error(step, "has sums that can leave 32 bits"));
            }
        }
        let len = x.len;
        let inner = product(&op.inner).filter(|&n| 1 <= n && n <= len as u64);
        if inner.is_none() {
            return Err(step_error(step, "reduces no elements, or more than there are"));
        }
        let shape: Vec<u64> = op.outer.iter().chain(&op.inner).copied().collect();
        if op.x.strides.len() != op.outer.len() || op.inner_strides.len() != op.inner.len() {
            return Err(step_error(step, "has strides that do not match its axes"));
        }
        let strides: Vec<i64> = op.x.strides.iter().chain(&op.inner_strides).copied().collect();
        in_range(step, op.x.offset, &shape, &strides, 0, len)
    }

    pub(super) fn mat_mul(&self, step: &Step, op: &step::MatMul) -> Check {
        let too_large = || step_error(step, "is too large");
        let batch = product(&op.batch).ok_or_else(too_large)?;
        let elements = batch.checked_mul(op.m).and_then(|n| n.checked_mul(op.n)).and_then(|n| usize::try_from(n).ok());
        self.dense(step, op.out, Storage::F32, elements)?;
        for (operand, rows, cols) in [(&op.a, op.m, op.k), (&op.b, op.k, op.n)] {
            let matrix = rows.checked_mul(cols).filter(|&n| n > 0).ok_or_else(too_large)?;
            let len = self.float_operand(step, operand)?;
            in_range(step, operand.offset, &op.batch, &operand.strides, matrix - 1, len)?;
        }
        Ok(())
    }

    pub(super) fn rope(&self, step: &Step, op: &step::Rope) -> Check {
        // Pairs lie inside of a row, and rows inside of every operand.
        if !self.shape(op.out).last().is_some_and(|width| width.is_multiple_of(2)) {
            return Err(step_error(step, "has rows that do not divide into pairs"));
        }
        self.modulated(step, [&op.x, &op.cos, &op.sin], op.out)
    }

    pub(super) fn film(&self, step: &Step, op: &step::Film) -> Check {
        self.modulated(step, [&op.x, &op.scale, &op.shift], op.out)
    }

    /// `f32` operands over every index of a dense `f32` result.
    fn modulated(&self, step: &Step, operands: [&step::Operand; 3], out: u32) -> Check {
        let elements = self.tensor(step, out)?.elements;
        self.dense(step, out, Storage::F32, Some(elements))?;
        for operand in operands {
            if self.number_operand(step, operand, out)? != Storage::F32 {
                return Err(step_error(step, "has an operand that is not f32"));
            }
        }
        Ok(())
    }

    /// Number of elements behind an `f32` operand.
    fn float_operand(&self, step: &Step, operand: &step::Operand) -> Result<usize, ArtifactError> {
        let found = self.operand(step, operand)?;
        if found.storage == Storage::F32 {
            Ok(found.len)
        } else {
            Err(step_error(step, "has an operand that is not f32"))
        }
    }

    /// What stands behind an operand.
    pub(super) fn operand(&self, step: &Step, operand: &step::Operand) -> Result<Operand, ArtifactError> {
        match operand.source {
            Some(step::Source::Tensor(tensor)) => {
                let tensor = self.tensor(step, tensor)?;
                return Ok(Operand { storage: tensor.storage, len: tensor.stored(), code_offset: tensor.code_offset });
            }
            Some(step::Source::Section(index)) => {
                let section = self.manifest.sections.get(index as usize);
                let storage = match section.map(|section| section.layout()) {
                    Some(Layout::F32) => Some(Storage::F32),
                    Some(Layout::I32) => Some(Storage::I32),
                    Some(_) | None => None,
                };
                if let (Some(storage), Some(section)) = (storage, section) {
                    let len = usize::try_from(section.len).unwrap_or(usize::MAX) / 4;
                    return Ok(Operand { storage, len, code_offset: 0 });
                }
            }
            None => {}
        }
        Err(step_error(step, "has an operand without numbers"))
    }
}

/// What stands behind an operand.
pub(super) struct Operand {
    /// How an element is stored.
    pub(super) storage: Storage,
    /// Elements that strides may range over, padding included.
    pub(super) len: usize,
    /// Code minus stored byte.
    pub(super) code_offset: i32,
}

/// Product of extents, none if it is beyond 64 bits or an extent is 0.
pub(super) fn product(extents: &[u64]) -> Option<u64> {
    extents.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent).filter(|&p| p > 0))
}

/// Checks that `offset + i . strides + 0..=extra` lies in `0..len` for every
/// index `i` of `shape`.
pub(super) fn in_range(step: &Step, offset: u64, shape: &[u64], strides: &[i64], extra: u64, len: usize) -> Check {
    if shape.len() != strides.len() || shape.len() > 16 {
        return Err(step_error(step, "has strides that do not match its axes"));
    }
    // A product of a 64-bit extent and a 64-bit stride fits 128 bits; sums of
    // several may not.
    let mut smallest = i128::from(offset);
    let mut largest = i128::from(offset) + i128::from(extra);
    for (&extent, &stride) in shape.iter().zip(strides) {
        let reach = i128::from(extent.saturating_sub(1)) * i128::from(stride);
        let end = if reach < 0 { &mut smallest } else { &mut largest };
        *end = end.checked_add(reach).ok_or_else(|| step_error(step, "has strides beyond all bounds"))?;
    }
    if smallest < 0 || largest >= len as i128 {
        return Err(step_error(step, format!("reaches elements {smallest}..={largest} of {len}")));
    }
    Ok(())
}
