//! `matmul_f32`: product of two computed values.
//!
//! Formula, buffers and what a workgroup does: see `matmul_f32.wgsl`.

use qail_artifact::schema::step;

use super::{Param, Shader, grid, specialize};
use crate::{CodegenError, plan::shape};

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("matmul_f32.wgsl");

/// Parameters.
pub(crate) struct MatMulF32<'a> {
    /// The step.
    pub(crate) op: &'a step::MatMul,
}

impl MatMulF32<'_> {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let op = self.op;
        let (extents, [a, b]) = shape::collapse(&op.batch, [&op.a.strides, &op.b.strides])
            .ok_or_else(|| super::too_many_axes(node, "matmul", &op.batch))?;
        let total = shape::count(&op.batch).saturating_mul(op.m).saturating_mul(op.n);
        let params = [
            ("TOTAL", Param::U32(total)),
            ("M", Param::U32(op.m)),
            ("N", Param::U32(op.n)),
            ("K", Param::U32(op.k)),
            ("SHAPE", Param::Extents(&extents)),
            ("A_STRIDES", Param::Strides(&a)),
            ("B_STRIDES", Param::Strides(&b)),
            ("A_OFFSET", super::offset(op.a.offset)),
            ("B_OFFSET", super::offset(op.b.offset)),
        ];
        Ok(Shader { name: "matmul_f32", text: specialize(node, SOURCE, &params)?, workgroups: grid(node, total)? })
    }
}
