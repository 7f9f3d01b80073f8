//! `order`, `scan`, `scatter`: rows whose elements depend on each other.
//!
//! Formula, buffers and what an invocation does: see the `.wgsl` files.

use qail_artifact::schema::step;

use super::{Param, Shader, grid, specialize};
use crate::CodegenError;

/// The order as it stands.
pub(crate) const ORDER: &str = include_str!("order.wgsl");
/// The running sums as they stand.
pub(crate) const SCAN: &str = include_str!("scan.wgsl");
/// The changed rows as they stand.
pub(crate) const SCATTER: &str = include_str!("scatter.wgsl");

/// The shader of the first elements of rows; `floats` for `f32`, else `i32`.
pub(crate) fn order(node: &str, op: &step::Order, floats: bool) -> Result<Shader, CodegenError> {
    let rows = op.outer.saturating_mul(op.inner);
    let params = [
        ("ROWS", Param::U32(rows)),
        ("N", Param::U32(op.n)),
        ("INNER", Param::U32(op.inner.max(1))),
        ("K", Param::U32(op.k)),
        ("FLOATS", Param::U32(floats.into())),
        ("LARGEST", Param::U32(op.largest.into())),
        ("LAST", Param::U32(op.last.into())),
        ("INDICES", Param::U32(op.indices.into())),
    ];
    Ok(Shader { name: "order", text: specialize(node, ORDER, &params)?, workgroups: grid(node, rows)? })
}

/// The shader of running sums.
pub(crate) fn scan(node: &str, op: &step::Scan) -> Result<Shader, CodegenError> {
    let rows = op.outer.saturating_mul(op.inner);
    let params = [
        ("ROWS", Param::U32(rows)),
        ("N", Param::U32(op.n)),
        ("INNER", Param::U32(op.inner.max(1))),
        ("EXCLUSIVE", Param::U32(op.exclusive.into())),
        ("REVERSE", Param::U32(op.reverse.into())),
    ];
    Ok(Shader { name: "scan", text: specialize(node, SCAN, &params)?, workgroups: grid(node, rows)? })
}

/// The shader of changed rows, `updates` of them; `ints` for `i32`, else `f32`.
pub(crate) fn scatter(node: &str, op: &step::Scatter, updates: u64, ints: bool) -> Result<Shader, CodegenError> {
    let n = op.extent.saturating_mul(op.row);
    let params = [
        ("N", Param::U32(n)),
        ("EXTENT", super::offset(op.extent)),
        ("ROW", Param::U32(op.row.max(1))),
        ("M", Param::U32(updates)),
        // The numbers of `ScatterKind` are those of the shader.
        ("FUNCTION", Param::U32(u64::try_from(op.f).unwrap_or(0))),
        ("INTS", Param::U32(ints.into())),
    ];
    Ok(Shader { name: "scatter", text: specialize(node, SCATTER, &params)?, workgroups: grid(node, n)? })
}
