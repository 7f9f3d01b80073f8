//! Selection of the operations that move elements: copies with strides.
//!
//! A reshape of floats, or one that keeps the rows (all that changes is how many
//! axes number them) is another name for the same memory. Codes have padded rows,
//! so a reshape that changes their rows copies. Windows, transposes and reshapes
//! that follow each other are one copy: see [`View`].

use qail_artifact::schema::{Place, Storage, step};
use qail_ir::{NodeId, Op, Unfold, ValueId};

use super::{
    builder::{Builder, Source},
    view::View,
};
use crate::CodegenError;

impl Builder<'_> {
    /// The same elements in another shape.
    pub(crate) fn reshape(&mut self, node: NodeId, place: Place, inputs: &[u32]) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let from = shape_of(self, x);
        let to = shape_of(self, node.value());
        if let Some(view) = self.view_of(node, x, place)? {
            match view.clone().reshaped(&to) {
                Some(reshaped) => return self.show(node, reshaped, place),
                None => self.materialize(x.node, view)?,
            }
        }
        self.only_wide_on_devices(node, x, place)?;
        let source = self.source(node, x, place)?;
        let (old, new) = (last(&from), last(&to));
        match source {
            // Sections have no rows.
            Source::Section(_) => {
                self.alias(node, source);
                return Ok(());
            }
            // An input has to stay apart: device steps read a copy of it.
            Source::Tensor(tensor)
                if !inputs.contains(&tensor) && (old == new || self.entry(tensor)?.storage() == Storage::F32) =>
            {
                self.alias(node, source);
                return Ok(());
            }
            Source::Tensor(_) => {}
        }
        // Rows of codes are padded: the elements move.
        let x = self.operand(node, x, place)?;
        let view = View::of(&x, &from, place);
        self.materialize(node, view)
    }

    /// Axes in another order.
    pub(crate) fn transpose(&mut self, node: NodeId, perm: &[usize], place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let from = shape_of(self, x);
        if let Some(view) = self.view_of(node, x, place)? {
            let view = view.transposed(perm).ok_or_else(|| CodegenError::internal("a transpose names every axis"))?;
            return self.show(node, view, place);
        }
        self.only_wide_on_devices(node, x, place)?;
        let mut operand = self.operand(node, x, place)?;
        if self.folds_into_user(node, place) {
            let view = View::of(&operand, &from, place).transposed(perm);
            let view = view.ok_or_else(|| CodegenError::internal("a transpose names every axis"))?;
            return self.show(node, view, place);
        }
        operand.strides = perm.iter().filter_map(|&axis| operand.strides.get(axis).copied()).collect();
        self.copy_all(node, operand, place)
    }

    /// Part of a tensor.
    pub(crate) fn slice(&mut self, node: NodeId, op: &qail_ir::Slice, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        self.only_wide_on_devices(node, x, place)?;
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
        self.only_wide_on_devices(node, x, place)?;
        let operand = self.broadcast(node, x, place, &shape)?;
        self.copy_all(node, operand, place)
    }

    /// Tensors joined along one axis: a copy each.
    pub(crate) fn concat(&mut self, node: NodeId, axis: usize, place: Place) -> Result<(), CodegenError> {
        let mut parts = Vec::new();
        let graph = self.graph;
        let is_float = graph.ty(node.value()).is_f32();
        for x in graph.operands(node) {
            if !is_float && graph.ty(x).dtype().is_some() {
                // Parts have one storage: computed integers are 32 bits wide.
                self.widened(node, x, place)?;
            }
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
        let out = self.moved(node, &x)?;
        let shape = shape_of(self, node.value());
        let out_strides = self.strides(node, &shape, self.entry(out)?.stride)?;
        self.push(node, place, step::Op::Copy(step::Copy { x, out, shape, out_strides, out_offset: 0 }));
        Ok(())
    }

    /// Windows that slide over a tensor.
    pub(crate) fn unfold(&mut self, node: NodeId, op: &Unfold, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        if let Some(view) = self.view_of(node, x, place)? {
            match view.clone().unfolded(op) {
                Some(view) => return self.show(node, view, place),
                None => self.materialize(x.node, view)?,
            }
        }
        self.only_wide_on_devices(node, x, place)?;
        let operand = self.operand(node, x, place)?;
        let view = View::of(&operand, &shape_of(self, x), place).unfolded(op);
        let view = view.ok_or_else(|| self.unsupported(node, "windows beyond 64 bits"))?;
        self.show(node, view, place)
    }

    /// True if a view of the node's result can become part of what its only
    /// reader shows.
    fn folds_into_user(&self, node: NodeId, place: Place) -> bool {
        let user = self.graph.sole_user(node.value());
        user.is_some_and(|user| {
            matches!(self.graph.node(user).op, Op::Reshape(_) | Op::Transpose(_) | Op::Unfold(_))
                && self.placement.place(user) == place
        })
    }

    /// Keeps a view for its only reader, or writes it.
    fn show(&mut self, node: NodeId, view: View, place: Place) -> Result<(), CodegenError> {
        if self.folds_into_user(node, place) {
            self.pending.insert(node.value(), view);
            return Ok(());
        }
        self.materialize(node, view)
    }

    /// The view behind an operand that is not written yet.
    fn view_of(&mut self, reader: NodeId, x: ValueId, place: Place) -> Result<Option<View>, CodegenError> {
        match self.pending.remove(&x) {
            Some(view) if view.place == place => Ok(Some(view)),
            Some(_) => Err(CodegenError::internal(format!("`{}` reads a view of its own place", self.name(reader)))),
            None => Ok(None),
        }
    }

    /// Writes a view into the tensor of its node.
    fn materialize(&mut self, node: NodeId, view: View) -> Result<(), CodegenError> {
        let out = self.moved(node, &view.operand())?;
        let place = view.place;
        let fill = (view.fill as i32).saturating_sub(self.entry(out)?.code_offset);
        let step = view
            .step(out, fill)
            .ok_or_else(|| self.unsupported(node, "windows over more than 8 axes, or beyond 64 bits"))?;
        self.push(node, place, step::Op::Unfold(step));
        Ok(())
    }

    /// A device knows integers of 32 bits only.
    fn only_wide_on_devices(&mut self, node: NodeId, x: ValueId, place: Place) -> Result<(), CodegenError> {
        if place == Place::Device && self.graph.ty(x).dtype().is_some() && !self.graph.ty(x).is_f32() {
            self.widened(node, x, place)?;
        }
        Ok(())
    }
}

/// Shape of a value.
pub(crate) fn shape_of(builder: &Builder<'_>, value: ValueId) -> Vec<u64> {
    builder.graph.ty(value).shape.iter().map(|&extent| extent as u64).collect()
}

fn last(shape: &[u64]) -> u64 {
    shape.last().copied().unwrap_or(1)
}
