//! `binary`: a function of two numbers, with broadcasting.
//!
//! Formula, buffers and what an invocation does: see `binary.wgsl`.

use qail_artifact::schema::step;

use super::{Param, Shader, grid};
use crate::{CodegenError, plan::shape};

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("binary.wgsl");

/// The shader of a step whose result has the shape `shape`; `ints` for `i32`, else `f32`.
pub(crate) fn specialize(node: &str, op: &step::Binary, shape: &[u64], ints: bool) -> Result<Shader, CodegenError> {
    let (extents, [a, b]) = shape::collapse(shape, [&op.a.strides, &op.b.strides])
        .ok_or_else(|| super::too_many_axes(node, "binary", shape))?;
    let n = shape::count(shape);
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("A_STRIDES", Param::Strides(&a)),
        ("B_STRIDES", Param::Strides(&b)),
        ("A_OFFSET", super::offset(op.a.offset)),
        ("B_OFFSET", super::offset(op.b.offset)),
        // The numbers of `BinaryKind` are those of the shader.
        ("FUNCTION", Param::U32(u64::try_from(op.f).unwrap_or(0))),
        ("INTS", Param::U32(ints.into())),
    ];
    Ok(Shader { name: "binary", text: super::specialize(node, SOURCE, &params)?, workgroups: grid(node, n)? })
}
