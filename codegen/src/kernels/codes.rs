//! `qadd`, `reduce_codes`, `lookup`: sums, extremes and tables of codes, exact.
//!
//! Formula, buffers and what an invocation does: see the `.wgsl` files.

use qail_artifact::schema::{Storage, Tensor, step};

use super::{Param, Shader, grid, specialize, unfold::lines};
use crate::{CodegenError, plan::shape};

/// The sum of two as it stands.
pub(crate) const QADD: &str = include_str!("qadd.wgsl");
/// The reduction as it stands.
pub(crate) const REDUCE: &str = include_str!("reduce_codes.wgsl");

/// The table as it stands.
pub(crate) const LOOKUP: &str = include_str!("lookup.wgsl");

/// What [`q_add`] has to know of the operands.
pub(crate) struct Operands {
    /// `a` holds accumulators.
    pub(crate) wide: bool,
    /// Every column has a multiplier.
    pub(crate) m_cols: bool,
    /// Code minus stored byte of `a`.
    pub(crate) offset_a: i32,
    /// Code minus stored byte of `b`.
    pub(crate) offset_b: i32,
}

/// The shader of a sum of two.
pub(crate) fn q_add(node: &str, op: &step::QAdd, out: &Tensor, operands: &Operands) -> Result<Shader, CodegenError> {
    let (extents, [a, b]) = shape::collapse(&out.shape, [&op.a.strides, &op.b.strides])
        .ok_or_else(|| super::too_many_axes(node, "qadd", &out.shape))?;
    let ([words, line, cols, _], n) = lines(out);
    let zero = i64::from(op.zero_point);
    let params = [
        words,
        line,
        cols,
        ("SHAPE", Param::Extents(&extents)),
        ("A_STRIDES", Param::Strides(&a)),
        ("B_STRIDES", Param::Strides(&b)),
        ("A_OFFSET", super::offset(op.a.offset)),
        ("B_OFFSET", super::offset(op.b.offset)),
        ("WIDE", Param::U32(operands.wide.into())),
        ("M_COLS", Param::U32(operands.m_cols.into())),
        ("M_B", Param::U32(u64::try_from(op.m_b).unwrap_or(0))),
        ("SHIFT", Param::U32(op.shift.into())),
        ("ZERO_A", Param::I32(i64::from(op.zero_a) - i64::from(operands.offset_a))),
        ("ZERO_B", Param::I32(i64::from(op.zero_b) - i64::from(operands.offset_b))),
        ("LO", Param::I32(i64::from(op.lo) - zero)),
        ("HI", Param::I32(i64::from(op.hi) - zero)),
        ("ADD", Param::I32(zero - i64::from(out.code_offset))),
    ];
    Ok(Shader { name: "qadd", text: specialize(node, QADD, &params)?, workgroups: grid(node, n)? })
}

/// The shader of a reduction of codes, whose storage offset is `code_offset`.
pub(crate) fn reduce(node: &str, op: &step::Reduce, out: &Tensor, code_offset: i32) -> Result<Shader, CodegenError> {
    let axes = |shape: &[u64]| super::too_many_axes(node, "reduce", shape);
    let (outer, [strides]) = shape::collapse(&op.outer, [&op.x.strides]).ok_or_else(|| axes(&op.outer))?;
    let (inner, [inner_strides]) = shape::collapse(&op.inner, [&op.inner_strides]).ok_or_else(|| axes(&op.inner))?;
    let ([words, line, cols, _], n) = lines(out);
    let is_sum = out.storage() == Storage::I32;
    let n = if is_sum { shape::count(&op.outer) } else { n };
    let params = [
        if is_sum { ("WORDS", Param::U32(n)) } else { words },
        // Sums have no rows of bytes.
        if is_sum { ("LINE", Param::U32(1)) } else { line },
        cols,
        ("COUNT", Param::U32(shape::count(&op.inner))),
        ("SHAPE", Param::Extents(&outer)),
        ("STRIDES", Param::Strides(&strides)),
        ("INNER", Param::Extents(&inner)),
        ("INNER_STRIDES", Param::Strides(&inner_strides)),
        ("OFFSET", super::offset(op.x.offset)),
        ("FUNCTION", Param::U32(u64::try_from(op.f).unwrap_or(0))),
        ("ADD", Param::I32(i64::from(code_offset) - i64::from(op.zero_point))),
    ];
    Ok(Shader { name: "reduce_codes", text: specialize(node, REDUCE, &params)?, workgroups: grid(node, n)? })
}

/// The shader of a table of codes.
pub(crate) fn lookup(node: &str, op: &step::Lookup, out: &Tensor) -> Result<Shader, CodegenError> {
    let (extents, [strides]) =
        shape::collapse(&out.shape, [&op.x.strides]).ok_or_else(|| super::too_many_axes(node, "lookup", &out.shape))?;
    let ([words, line, cols, _], n) = lines(out);
    let params = [
        words,
        line,
        cols,
        ("SHAPE", Param::Extents(&extents)),
        ("STRIDES", Param::Strides(&strides)),
        ("OFFSET", super::offset(op.x.offset)),
    ];
    Ok(Shader { name: "lookup", text: specialize(node, LOOKUP, &params)?, workgroups: grid(node, n)? })
}
