//! `rope`, `film`: values that are turned or scaled by others.
//!
//! Formula, buffers and what an invocation does: see the `.wgsl` files.

use qail_artifact::schema::step;

use super::{Param, Shader, grid, specialize, too_many_axes};
use crate::{CodegenError, plan::shape};

/// The rotary embedding as it stands.
pub(crate) const ROPE: &str = include_str!("rope.wgsl");
/// The modulation as it stands.
pub(crate) const FILM: &str = include_str!("film.wgsl");

/// The shader of a rotary embedding whose result has the shape `shape`.
pub(crate) fn rope(node: &str, op: &step::Rope, shape: &[u64]) -> Result<Shader, CodegenError> {
    let no_pairs = || CodegenError::internal("a verified row divides into pairs");
    let width = shape.last().copied().unwrap_or(1);
    let (step, apart) = if op.interleaved { (2, 1) } else { (1, width / 2) };
    let apart = i64::try_from(apart).map_err(|_| no_pairs())?;
    let mut pairs = shape.to_vec();
    *pairs.last_mut().ok_or_else(no_pairs)? = width / 2;
    let out = shape::strides(shape, width).ok_or_else(no_pairs)?;
    let mut strides = [op.x.strides.clone(), op.cos.strides.clone(), op.sin.strides.clone(), out];
    let mut second = [0i64; 4];
    for (strides, second) in strides.iter_mut().zip(&mut second) {
        let last = strides.last_mut().ok_or_else(no_pairs)?;
        *second = last.checked_mul(apart).ok_or_else(no_pairs)?;
        *last = last.checked_mul(step).ok_or_else(no_pairs)?;
    }
    let (extents, [x, cos, sin, out]) = shape::collapse(&pairs, strides.each_ref().map(Vec::as_slice))
        .ok_or_else(|| too_many_axes(node, "rope", shape))?;
    let n = shape::count(&pairs);
    let [x_second, cos_second, sin_second, out_second] = second;
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("X_STRIDES", Param::Strides(&x)),
        ("COS_STRIDES", Param::Strides(&cos)),
        ("SIN_STRIDES", Param::Strides(&sin)),
        ("OUT_STRIDES", Param::Strides(&out)),
        ("X_OFFSET", super::offset(op.x.offset)),
        ("COS_OFFSET", super::offset(op.cos.offset)),
        ("SIN_OFFSET", super::offset(op.sin.offset)),
        ("X_SECOND", Param::I32(x_second)),
        ("COS_SECOND", Param::I32(cos_second)),
        ("SIN_SECOND", Param::I32(sin_second)),
        ("OUT_SECOND", Param::I32(out_second)),
    ];
    Ok(Shader { name: "rope", text: specialize(node, ROPE, &params)?, workgroups: grid(node, n)? })
}

/// The shader of a modulation whose result has the shape `shape`.
pub(crate) fn film(node: &str, op: &step::Film, shape: &[u64]) -> Result<Shader, CodegenError> {
    let (extents, [x, scale, shift]) = shape::collapse(shape, [&op.x.strides, &op.scale.strides, &op.shift.strides])
        .ok_or_else(|| too_many_axes(node, "film", shape))?;
    let n = shape::count(shape);
    let params = [
        ("N", Param::U32(n)),
        ("SHAPE", Param::Extents(&extents)),
        ("X_STRIDES", Param::Strides(&x)),
        ("SCALE_STRIDES", Param::Strides(&scale)),
        ("SHIFT_STRIDES", Param::Strides(&shift)),
        ("X_OFFSET", super::offset(op.x.offset)),
        ("SCALE_OFFSET", super::offset(op.scale.offset)),
        ("SHIFT_OFFSET", super::offset(op.shift.offset)),
    ];
    Ok(Shader { name: "film", text: specialize(node, FILM, &params)?, workgroups: grid(node, n)? })
}
