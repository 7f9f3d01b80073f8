//! `reduce`: sum, mean, minimum or maximum over axes.
//!
//! Formula, buffers and what an invocation does: see `reduce.wgsl`.

use qail_artifact::schema::step;

use super::{Param, Shader, grid};
use crate::{CodegenError, plan::shape};

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("reduce.wgsl");

/// The shader of a step.
pub(crate) fn specialize(node: &str, op: &step::Reduce) -> Result<Shader, CodegenError> {
    let axes = |shape: &[u64]| super::too_many_axes(node, "reduce", shape);
    let (outer, [strides]) = shape::collapse(&op.outer, [&op.x.strides]).ok_or_else(|| axes(&op.outer))?;
    let (inner, [inner_strides]) = shape::collapse(&op.inner, [&op.inner_strides]).ok_or_else(|| axes(&op.inner))?;
    let n = shape::count(&op.outer);
    let params = [
        ("N", Param::U32(n)),
        ("COUNT", Param::U32(shape::count(&op.inner))),
        ("SHAPE", Param::Extents(&outer)),
        ("STRIDES", Param::Strides(&strides)),
        ("INNER", Param::Extents(&inner)),
        ("INNER_STRIDES", Param::Strides(&inner_strides)),
        ("OFFSET", super::offset(op.x.offset)),
        // The numbers of `ReduceKind` are those of the shader.
        ("FUNCTION", Param::U32(u64::try_from(op.f).unwrap_or(0))),
    ];
    Ok(Shader { name: "reduce", text: super::specialize(node, SOURCE, &params)?, workgroups: grid(node, n)? })
}
