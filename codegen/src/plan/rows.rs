//! Selection of the operations over whole rows.

use qail_artifact::schema::{Place, step};
use qail_ir::{Attention, NodeId, Normalize, Softmax};

use super::{
    builder::Builder,
    movement::shape_of,
    shape::{self, count},
};
use crate::CodegenError;

/// Product of the axes before an axis, the axis itself, product of those behind it.
pub(crate) fn around(shape: &[u64], axis: usize) -> (u64, u64, u64) {
    let before = shape.get(..axis).map_or(1, count);
    let behind = shape.get(axis.saturating_add(1)..).map_or(1, count);
    (before, shape.get(axis).copied().unwrap_or(1), behind)
}

impl Builder<'_> {
    /// Softmax along an axis.
    pub(crate) fn softmax(&mut self, node: NodeId, op: &Softmax, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let (outer, n, inner) = around(&shape_of(self, x), op.axis);
        let x = self.tensor_of(node, x, place)?;
        let out = self.result(node)?;
        self.push(node, place, step::Op::Softmax(step::Softmax { x, out, outer, n, inner, log: op.log }));
        Ok(())
    }

    /// Rows scaled to variance 1.
    pub(crate) fn normalize(&mut self, node: NodeId, op: &Normalize, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let extents = shape_of(self, x);
        let own = shape::strides(&extents, extents.last().copied().unwrap_or(1))
            .ok_or_else(|| CodegenError::internal("strides of a tensor fit into 64 bits"))?;
        let x = self.tensor_of(node, x, place)?;
        let out = self.result(node)?;
        let mut result = step::Normalize { x, out, eps: op.eps, center: op.center, ..step::Normalize::default() };
        for (axis, (&extent, &stride)) in extents.iter().zip(&own).enumerate() {
            if op.axes.contains(&axis) {
                result.inner.push(extent);
                result.inner_strides.push(stride);
            } else {
                result.outer.push(extent);
                result.outer_strides.push(stride);
            }
        }
        self.push(node, place, step::Op::Normalize(result));
        Ok(())
    }

    /// Scaled dot-product attention.
    pub(crate) fn attention(&mut self, node: NodeId, op: &Attention, place: Place) -> Result<(), CodegenError> {
        let graph = self.graph;
        let operands = graph.operands(node);
        let [q, k, v, mask @ ..] = &operands[..] else {
            return Err(CodegenError::internal("attention has three operands"));
        };
        let (&[batch, heads, queries, depth], &[_, groups, keys, width]) =
            (&shape_of(self, *q)[..], &shape_of(self, *v)[..])
        else {
            return Err(CodegenError::internal("attention has four axes"));
        };
        let mask = match mask.first() {
            Some(&mask) => Some(self.broadcast(node, mask, place, &[batch, heads, queries, keys])?),
            None => None,
        };
        let (q, k, v) =
            (self.tensor_of(node, *q, place)?, self.tensor_of(node, *k, place)?, self.tensor_of(node, *v, place)?);
        let out = self.result(node)?;
        let scale = op.scale;
        let step = step::Attention { q, k, v, mask, out, scale, batch, heads, groups, queries, keys, depth, width };
        self.push(node, place, step::Op::Attention(step));
        Ok(())
    }
}
