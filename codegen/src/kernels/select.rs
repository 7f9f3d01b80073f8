//! `compare`, `choose`, `gather_words`, `gather_bytes`: comparing, choosing and
//! looking up.
//!
//! Formula, buffers and what an invocation does: see the `.wgsl` files.

use qail_artifact::schema::{Storage, Tensor, step};

use super::{Param, Shader, grid, specialize, unfold::lines};
use crate::{CodegenError, plan::shape};

/// The comparison as it stands.
pub(crate) const COMPARE: &str = include_str!("compare.wgsl");
/// The choice as it stands.
pub(crate) const CHOOSE: &str = include_str!("choose.wgsl");
/// The look-up of 32-bit elements as it stands.
pub(crate) const WORDS: &str = include_str!("gather_words.wgsl");
/// The look-up of codes as it stands.
pub(crate) const BYTES: &str = include_str!("gather_bytes.wgsl");

/// The shader of a comparison; `ints` for `i32`, else `f32`.
pub(crate) fn compare(node: &str, op: &step::Compare, shape: &[u64], ints: bool) -> Result<Shader, CodegenError> {
    let (extents, [a, b]) = shape::collapse(shape, [&op.a.strides, &op.b.strides])
        .ok_or_else(|| super::too_many_axes(node, "compare", shape))?;
    let n = shape::count(shape);
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("A_STRIDES", Param::Strides(&a)),
        ("B_STRIDES", Param::Strides(&b)),
        ("A_OFFSET", super::offset(op.a.offset)),
        ("B_OFFSET", super::offset(op.b.offset)),
        // The numbers of `CompareKind` are those of the shader.
        ("FUNCTION", Param::U32(u64::try_from(op.f).unwrap_or(0))),
        ("INTS", Param::U32(ints.into())),
    ];
    Ok(Shader { name: "compare", text: specialize(node, COMPARE, &params)?, workgroups: grid(node, n)? })
}

/// The shader of a choice.
pub(crate) fn choose(node: &str, op: &step::Where, shape: &[u64]) -> Result<Shader, CodegenError> {
    let (extents, [truth, a, b]) = shape::collapse(shape, [&op.truth.strides, &op.a.strides, &op.b.strides])
        .ok_or_else(|| super::too_many_axes(node, "where", shape))?;
    let n = shape::count(shape);
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("T_STRIDES", Param::Strides(&truth)),
        ("A_STRIDES", Param::Strides(&a)),
        ("B_STRIDES", Param::Strides(&b)),
        ("T_OFFSET", super::offset(op.truth.offset)),
        ("A_OFFSET", super::offset(op.a.offset)),
        ("B_OFFSET", super::offset(op.b.offset)),
    ];
    Ok(Shader { name: "choose", text: specialize(node, CHOOSE, &params)?, workgroups: grid(node, n)? })
}

/// The shader of a look-up; `x_stride` is that of the rows of `x`.
pub(crate) fn gather(node: &str, op: &step::Gather, out: &Tensor, x_stride: u64) -> Result<Shader, CodegenError> {
    let (extents, [x, index]) = shape::collapse(&out.shape, [&op.x.strides, &op.index.strides])
        .ok_or_else(|| super::too_many_axes(node, "gather", &out.shape))?;
    let mut params = vec![
        ("SHAPE", Param::Extents(&extents)),
        ("STRIDES", Param::Strides(&x)),
        ("INDEX_STRIDES", Param::Strides(&index)),
        ("OFFSET", super::offset(op.x.offset)),
        ("INDEX_OFFSET", super::offset(op.index.offset)),
        ("EXTENT", super::offset(op.extent)),
        ("ALONG", Param::I32(op.along)),
    ];
    if matches!(out.storage(), Storage::F32 | Storage::I32) {
        let n = shape::count(&out.shape);
        params.push(("N", Param::U32(n)));
        let text = specialize(node, WORDS, &params)?;
        return Ok(Shader { name: "gather_words", text, workgroups: grid(node, n)? });
    }
    let (list, words) = lines(out);
    params.extend(list);
    params.push(("X_STRIDE", Param::U32(x_stride)));
    Ok(Shader { name: "gather_bytes", text: specialize(node, BYTES, &params)?, workgroups: grid(node, words)? })
}
