//! Steps of plain numbers.

use super::{Check, EntryCheck, size, step_error};
use crate::{
    pack,
    schema::{Layout, Step, Storage, step},
};

impl EntryCheck<'_> {
    pub(super) fn linear(&self, step: &Step, op: &step::Linear) -> Check {
        let (k, n) = self.product_shape(step, op.x, op.out, [op.k, op.n, op.rows])?;
        self.section(step, op.weight, Layout::F32Rows8, pack::packed_len(Layout::F32Rows8, k, n), "weight")?;
        self.section(step, op.bias, Layout::F32, Some(n), "bias")?;
        function(step, op.act.as_ref())
    }

    pub(super) fn linear_wq(&self, step: &Step, op: &step::LinearWq) -> Check {
        let (k, n) = self.product_shape(step, op.x, op.out, [op.k, op.n, op.rows])?;
        let layout =
            self.manifest.sections.get(op.weight as usize).map_or(Layout::Unspecified, |section| section.layout());
        if !matches!(layout, Layout::W8Tile8x16 | Layout::W4Tile8x32) {
            return Err(step_error(step, format!("weights cannot have layout {layout:?}")));
        }
        self.section(step, op.weight, layout, pack::packed_len(layout, k, n), "weight")?;
        let group = size(step, op.group)?;
        if group == 0 {
            return Err(step_error(step, "has groups of no rows"));
        }
        self.section(step, op.scale, Layout::F32, k.div_ceil(group).checked_mul(n), "scale")?;
        self.section(step, op.bias, Layout::F32, Some(n), "bias")?;
        function(step, op.act.as_ref())
    }

    pub(super) fn unary(&self, step: &Step, op: &step::Unary) -> Check {
        function(step, Some(&op.f))?;
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.out, Storage::F32, Some(out.elements))?;
        let x = self.tensor(step, op.x)?;
        let storage_ok = match x.storage {
            Storage::F32 => true,
            Storage::I32 | Storage::U8 | Storage::I64 => op.f.kind() == step::FunctionKind::Identity,
            Storage::Unspecified | Storage::I8 | Storage::I16 => false,
        };
        if !storage_ok || x.elements != out.elements {
            return Err(step_error(step, format!("cannot be computed from tensor `{}`", x.name)));
        }
        Ok(())
    }

    /// Checks `x[rows, k]` and `out[rows, n]` of a float product; returns `k` and `n`.
    fn product_shape(
        &self,
        step: &Step,
        x: u32,
        out: u32,
        [k, n, rows]: [u64; 3],
    ) -> Result<(usize, usize), crate::ArtifactError> {
        let (k, n, rows) = (size(step, k)?, size(step, n)?, size(step, rows)?);
        self.dense(step, x, Storage::F32, rows.checked_mul(k))?;
        self.dense(step, out, Storage::F32, rows.checked_mul(n))?;
        Ok((k, n))
    }
}

fn function(step: &Step, f: Option<&step::Function>) -> Check {
    match f.map(|f| step::FunctionKind::try_from(f.kind)) {
        Some(Err(_) | Ok(step::FunctionKind::Unspecified)) => Err(step_error(step, "has an unknown function")),
        None | Some(Ok(_)) => Ok(()),
    }
}
