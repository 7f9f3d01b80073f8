//! Selection of the operations that turn or scale a value by others.

use qail_artifact::schema::{Place, step};
use qail_ir::{NodeId, Rope};

use super::{builder::Builder, movement::shape_of};
use crate::CodegenError;

impl Builder<'_> {
    /// Rotary position embedding.
    pub(crate) fn rope(&mut self, node: NodeId, op: &Rope, place: Place) -> Result<(), CodegenError> {
        let [x, cos, sin] = self.modulated(node, place)?;
        let out = self.result(node)?;
        self.push(node, place, step::Op::Rope(step::Rope { x, cos, sin, out, interleaved: op.interleaved }));
        Ok(())
    }

    /// Feature-wise modulation.
    pub(crate) fn film(&mut self, node: NodeId, place: Place) -> Result<(), CodegenError> {
        let [x, scale, shift] = self.modulated(node, place)?;
        let out = self.result(node)?;
        self.push(node, place, step::Op::Film(step::Film { x, scale, shift, out }));
        Ok(())
    }

    /// Three operands, broadcast to the result.
    fn modulated(&mut self, node: NodeId, place: Place) -> Result<[step::Operand; 3], CodegenError> {
        let [x, a, b] = self.operands(node)?;
        let shape = shape_of(self, node.value());
        Ok([
            self.broadcast(node, x, place, &shape)?,
            self.broadcast(node, a, place, &shape)?,
            self.broadcast(node, b, place, &shape)?,
        ])
    }
}
