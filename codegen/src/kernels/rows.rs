//! `softmax`, `normalize`, `attention`: whole rows.
//!
//! Formula, buffers and what a workgroup does: see the `.wgsl` files.

use qail_artifact::schema::step;

use super::{Param, Shader, fold, grid, specialize};
use crate::{CodegenError, plan::shape};

/// Softmax as it stands.
pub(crate) const SOFTMAX: &str = include_str!("softmax.wgsl");
/// Normalization as it stands.
pub(crate) const NORMALIZE: &str = include_str!("normalize.wgsl");
/// Attention as it stands.
pub(crate) const ATTENTION: &str = include_str!("attention.wgsl");

/// Most keys whose scores fit into workgroup memory.
const MAX_KEYS: u64 = 3968;

/// The shader of a softmax.
pub(crate) fn softmax(node: &str, op: &step::Softmax) -> Result<Shader, CodegenError> {
    let rows = op.outer.saturating_mul(op.inner);
    let params = [
        ("ROWS", Param::U32(rows)),
        ("COUNT", Param::U32(op.n)),
        ("INNER", Param::U32(op.inner)),
        ("LOG", Param::U32(op.log.into())),
    ];
    Ok(Shader { name: "softmax", text: specialize(node, SOFTMAX, &params)?, workgroups: grid(node, rows)? })
}

/// The shader of a normalization.
pub(crate) fn normalize(node: &str, op: &step::Normalize) -> Result<Shader, CodegenError> {
    let axes = |shape: &[u64]| super::too_many_axes(node, "normalize", shape);
    let (outer, [strides]) = shape::collapse(&op.outer, [&op.outer_strides]).ok_or_else(|| axes(&op.outer))?;
    let (inner, [inner_strides]) = shape::collapse(&op.inner, [&op.inner_strides]).ok_or_else(|| axes(&op.inner))?;
    let rows = shape::count(&op.outer);
    let params = [
        ("ROWS", Param::U32(rows)),
        ("COUNT", Param::U32(shape::count(&op.inner))),
        ("SHAPE", Param::Extents(&outer)),
        ("STRIDES", Param::Strides(&strides)),
        ("INNER", Param::Extents(&inner)),
        ("INNER_STRIDES", Param::Strides(&inner_strides)),
        ("EPS", Param::F32(op.eps)),
        ("CENTER", Param::U32(op.center.into())),
    ];
    let [x, y] = fold(node, rows)?;
    Ok(Shader { name: "normalize", text: specialize(node, NORMALIZE, &params)?, workgroups: [x, y, 1] })
}

/// The shader of an attention.
pub(crate) fn attention(node: &str, op: &step::Attention) -> Result<Shader, CodegenError> {
    if op.keys > MAX_KEYS {
        return Err(CodegenError::Limit {
            node: node.to_owned(),
            what: "number of keys",
            found: op.keys.to_string(),
            limit: MAX_KEYS.to_string(),
        });
    }
    let rows = op.batch.saturating_mul(op.heads).saturating_mul(op.queries);
    let (strides, offset) = match &op.mask {
        Some(mask) => (mask.strides.clone(), mask.offset),
        None => (vec![0; 4], 0),
    };
    let params = [
        ("ROWS", Param::U32(rows)),
        ("HEADS", Param::U32(op.heads)),
        ("GROUPS", Param::U32(op.groups)),
        ("QUERIES", Param::U32(op.queries)),
        ("KEYS", Param::U32(op.keys)),
        ("DEPTH", Param::U32(op.depth)),
        ("WIDTH", Param::U32(op.width)),
        ("SCALE", Param::F32(op.scale)),
        ("MASK", Param::U32(op.mask.is_some().into())),
        ("M_STRIDES", Param::I32s(strides)),
        ("M_OFFSET", super::offset(offset)),
    ];
    let [x, y] = fold(node, rows)?;
    Ok(Shader { name: "attention", text: specialize(node, ATTENTION, &params)?, workgroups: [x, y, 1] })
}
