//! `copy_words`, `copy_bytes`: strided copies.
//!
//! Formula, buffers and what an invocation does: see `copy_bytes.wgsl`.

use qail_artifact::schema::step;

use super::{Param, Shader, grid};
use crate::{CodegenError, plan::shape};

/// The shader for bytes as it stands.
pub(crate) const BYTES: &str = include_str!("copy_bytes.wgsl");
/// The shader for 32-bit elements as it stands.
pub(crate) const WORDS: &str = include_str!("copy_words.wgsl");

/// The shader of a step; `words` for 32-bit elements, else bytes.
pub(crate) fn specialize(node: &str, op: &step::Copy, words: bool) -> Result<Shader, CodegenError> {
    let (name, source) = if words { ("copy_words", WORDS) } else { ("copy_bytes", BYTES) };
    let (extents, [from, to]) = shape::collapse(&op.shape, [&op.x.strides, &op.out_strides])
        .ok_or_else(|| super::too_many_axes(node, "copy", &op.shape))?;
    let n = shape::count(&op.shape);
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("STRIDES", Param::Strides(&from)),
        ("OUT_STRIDES", Param::Strides(&to)),
        ("OFFSET", super::offset(op.x.offset)),
        ("OUT_OFFSET", super::offset(op.out_offset)),
    ];
    Ok(Shader { name, text: super::specialize(node, source, &params)?, workgroups: grid(node, n)? })
}
