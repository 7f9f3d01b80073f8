//! Selection of the operations that move elements: copies with strides.
//!
//! A reshape that keeps the rows (all that changes is how many axes number them)
//! is another name for the same memory. Codes have padded rows, so a reshape
//! that changes their rows splits or joins them.

use qail_artifact::schema::{Place, step};
use qail_ir::{NodeId, ValueId};

use super::builder::{Builder, Source};
use crate::CodegenError;

impl Builder<'_> {
    /// The same elements in another shape.
    pub(crate) fn reshape(&mut self, node: NodeId, place: Place, inputs: &[u32]) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let source = self.source(node, x, place)?;
        let from = shape_of(self, x);
        let to = shape_of(self, node.value());
        let (old, new) = (last(&from), last(&to));
        match source {
            // Sections have no rows.
            Source::Section(_) => {
                self.alias(node, source);
                return Ok(());
            }
            // An input has to stay apart: device steps read a copy of it.
            Source::Tensor(tensor) if old == new && !inputs.contains(&tensor) => {
                self.alias(node, source);
                return Ok(());
            }
            Source::Tensor(_) => {}
        }
        // An index space that both sides can walk: rows of the shorter length,
        // and how many of them make the longer one.
        let (short, long) = (old.min(new), old.max(new));
        if long % short != 0 {
            let reason = format!("rows of {old} elements into rows of {new}; one must be a multiple of the other");
            return Err(self.unsupported(node, reason));
        }
        let parts = long / short;
        let long_rows = super::shape::count(&from) / long;
        let shape = vec![long_rows, parts, short];
        let operand = self.operand(node, x, place)?;
        let out = self.result(node)?;
        let x_stride = self.row_stride(&operand)?;
        let out_stride = self.entry(out)?.stride;
        let of = |row: u64, own: u64| -> Option<Vec<i64>> {
            let row = i64::try_from(row).ok()?;
            let (parts, short) = (i64::try_from(parts).ok()?, i64::try_from(short).ok()?);
            Some(if own == long { vec![row, short, 1] } else { vec![row.checked_mul(parts)?, row, 1] })
        };
        let over = || CodegenError::internal("strides of a tensor fit into 64 bits");
        let strides = of(x_stride, old).ok_or_else(over)?;
        let out_strides = of(out_stride, new).ok_or_else(over)?;
        let x = step::Operand { source: operand.source, strides, offset: 0 };
        self.push(node, place, step::Op::Copy(step::Copy { x, out, shape, out_strides, out_offset: 0 }));
        Ok(())
    }

    /// Axes in another order.
    pub(crate) fn transpose(&mut self, node: NodeId, perm: &[usize], place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let mut operand = self.operand(node, x, place)?;
        operand.strides = perm.iter().filter_map(|&axis| operand.strides.get(axis).copied()).collect();
        self.copy_all(node, operand, place)
    }

    /// Part of a tensor.
    pub(crate) fn slice(&mut self, node: NodeId, op: &qail_ir::Slice, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let mut operand = self.operand(node, x, place)?;
        let mut offset = 0i64;
        for (axis, stride) in op.axes.iter().zip(&mut operand.strides) {
            offset = offset.saturating_add((axis.start as i64).saturating_mul(*stride));
            *stride = stride.saturating_mul(axis.step as i64);
        }
        operand.offset =
            u64::try_from(offset).map_err(|_| CodegenError::internal("a slice starts inside its tensor"))?;
        self.copy_all(node, operand, place)
    }

    /// Broadcast to a larger shape.
    pub(crate) fn expand(&mut self, node: NodeId, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let shape = shape_of(self, node.value());
        let operand = self.broadcast(node, x, place, &shape)?;
        self.copy_all(node, operand, place)
    }

    /// Tensors joined along one axis: a copy each.
    pub(crate) fn concat(&mut self, node: NodeId, axis: usize, place: Place) -> Result<(), CodegenError> {
        let mut parts = Vec::new();
        for x in self.graph.operands(node) {
            parts.push((self.operand(node, x, place)?, shape_of(self, x)));
        }
        let out = self.result(node)?;
        let shape = shape_of(self, node.value());
        let out_strides = self.strides(node, &shape, self.entry(out)?.stride)?;
        let along = out_strides.get(axis).copied().and_then(|stride| u64::try_from(stride).ok()).unwrap_or(1);
        let mut start = 0u64;
        for (x, part) in parts {
            let out_offset = start.saturating_mul(along);
            start = start.saturating_add(part.get(axis).copied().unwrap_or(0));
            let out_strides = out_strides.clone();
            self.push(node, place, step::Op::Copy(step::Copy { x, out, shape: part, out_strides, out_offset }));
        }
        Ok(())
    }

    /// The result of a node as a copy: one element of the operand an index.
    fn copy_all(&mut self, node: NodeId, x: step::Operand, place: Place) -> Result<(), CodegenError> {
        let out = self.result(node)?;
        let shape = shape_of(self, node.value());
        let out_strides = self.strides(node, &shape, self.entry(out)?.stride)?;
        self.push(node, place, step::Op::Copy(step::Copy { x, out, shape, out_strides, out_offset: 0 }));
        Ok(())
    }

    fn row_stride(&self, operand: &step::Operand) -> Result<u64, CodegenError> {
        match operand.source {
            Some(step::Source::Tensor(tensor)) => Ok(self.entry(tensor)?.stride),
            Some(step::Source::Section(_)) | None => Err(CodegenError::internal("a reshaped value is a tensor")),
        }
    }
}

/// Shape of a value.
pub(crate) fn shape_of(builder: &Builder<'_>, value: ValueId) -> Vec<u64> {
    builder.graph.ty(value).shape.iter().map(|&extent| extent as u64).collect()
}

fn last(shape: &[u64]) -> u64 {
    shape.last().copied().unwrap_or(1)
}
