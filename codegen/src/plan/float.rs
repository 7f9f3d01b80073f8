//! Selection of the float operations.

use qail_artifact::schema::{Layout, Place, step};
use qail_ir::{BinaryFn, NodeId, UnaryFn};

use super::{
    builder::{Builder, rows},
    function,
    movement::shape_of,
    place::Placement,
    quant::weight_layout,
    section::{Form, SectionBytes},
    select::int_range,
};
use crate::CodegenError;

impl Builder<'_> {
    /// A function of one number.
    pub(crate) fn unary(&mut self, node: NodeId, f: step::Function, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let x = self.tensor_of(node, x, place)?;
        let out = self.result(node)?;
        self.push(node, place, step::Op::Unary(step::Unary { x, out, f }));
        Ok(())
    }

    /// A function of two numbers.
    pub(crate) fn binary(&mut self, node: NodeId, f: BinaryFn, place: Place) -> Result<(), CodegenError> {
        let [a, b] = self.operands(node)?;
        let shape = shape_of(self, node.value());
        let (a, b) = (self.number(node, a, place, &shape)?, self.number(node, b, place, &shape)?);
        let range = int_range(self.graph.ty(node.value()));
        let out = self.result(node)?;
        let f = function::binary(f).into();
        self.push(node, place, step::Op::Binary(step::Binary { a, b, out, f, range }));
        Ok(())
    }

    /// A float matrix product. Where nothing but host steps follow, a curved
    /// activation becomes a host step too, so that actions do not depend on the
    /// `tanh` of a driver.
    pub(crate) fn linear(
        &mut self,
        node: NodeId,
        act: Option<UnaryFn>,
        placement: &Placement,
    ) -> Result<(), CodegenError> {
        let [x, w, b] = self.operands(node)?;
        let weights = self.constant(node, w, "weight")?;
        let &[k, n] = &weights.ty.shape[..] else {
            return Err(self.unsupported(node, format!("weights of type {}", weights.ty)));
        };
        let bytes = SectionBytes::of(weights, Form::FloatRows, &self.name(node))?;
        let x = self.tensor_of(node, x, Place::Device)?;
        let weight = self.section(&format!("{}.weight", self.name(node)), Layout::F32Rows8, bytes)?;
        let bias = self.f32_section(node, b, "bias")?;
        let (out, act) = self.activated(node, act, placement)?;
        let rows = rows(&self.entry(out.linear)?.shape);
        let (k, n) = (k as u64, n as u64);
        let step = step::Linear { x, out: out.linear, weight, bias, k, n, rows, act };
        self.push(node, Place::Device, step::Op::Linear(step));
        self.push_activation(node, &out);
        Ok(())
    }

    /// A float matrix product with quantized weights.
    pub(crate) fn linear_wq(
        &mut self,
        node: NodeId,
        op: &qail_ir::LinearWq,
        placement: &Placement,
    ) -> Result<(), CodegenError> {
        let [x, w, s, b] = self.operands(node)?;
        let constant = self.constant(node, w, "weight")?;
        let &[k, n] = &constant.ty.shape[..] else {
            return Err(self.unsupported(node, "weights that are no matrix"));
        };
        let x = self.tensor_of(node, x, Place::Device)?;
        let weight = match constant.ty.scheme() {
            Some(scheme) if scheme.signed && scheme.bits <= 8 => {
                let layout = weight_layout(scheme);
                let bytes = SectionBytes::of(constant, Form::Codes(layout), &self.name(node))?;
                self.section(&format!("{}.weight", self.name(node)), layout, bytes)?
            }
            Some(_) | None => {
                let codes = self.weight_codes(node, w)?;
                self.weight_section(node, w, &codes, k, n)?
            }
        };
        let scale = self.f32_section(node, s, "scale")?;
        let bias = self.f32_section(node, b, "bias")?;
        let (out, act) = self.activated(node, op.act, placement)?;
        let rows = rows(&self.entry(out.linear)?.shape);
        let (k, n, group) = (k as u64, n as u64, op.group as u64);
        let step = step::LinearWq { x, out: out.linear, weight, scale, bias, k, n, rows, group, act };
        self.push(node, Place::Device, step::Op::LinearWq(step));
        self.push_activation(node, &out);
        Ok(())
    }

    /// A reduction.
    pub(crate) fn reduce(&mut self, node: NodeId, op: &qail_ir::Reduce, place: Place) -> Result<(), CodegenError> {
        self.reduction(node, op, 0, place)
    }

    /// A reduction of numbers or codes; `zero_point` is subtracted from codes.
    pub(crate) fn reduction(
        &mut self,
        node: NodeId,
        op: &qail_ir::Reduce,
        zero_point: i32,
        place: Place,
    ) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let shape = shape_of(self, x);
        self.widened(node, x, place)?;
        let mut operand = self.operand(node, x, place)?;
        let (mut outer, mut outer_strides) = (Vec::new(), Vec::new());
        let (mut inner, mut inner_strides) = (Vec::new(), Vec::new());
        for (axis, (&extent, &stride)) in shape.iter().zip(&operand.strides).enumerate() {
            if op.axes.contains(&axis) {
                inner.push(extent);
                inner_strides.push(stride);
            } else {
                outer.push(extent);
                outer_strides.push(stride);
            }
        }
        operand.strides = outer_strides;
        let out = self.result(node)?;
        let range = int_range(self.graph.ty(x));
        let f = function::reduce(op.f).into();
        let step = step::Reduce { x: operand, out, f, outer, inner, inner_strides, zero_point, range };
        self.push(node, place, step::Op::Reduce(step));
        Ok(())
    }

    /// A product of two computed values.
    pub(crate) fn matmul(&mut self, node: NodeId) -> Result<(), CodegenError> {
        let [a, b] = self.operands(node)?;
        let shape: Vec<u64> = self.graph.ty(node.value()).shape.iter().map(|&extent| extent as u64).collect();
        let Some(&k) = self.graph.ty(a).shape.last() else {
            return Err(self.unsupported(node, "an operand without axes"));
        };
        let [batch @ .., m, n] = &shape[..] else {
            return Err(self.unsupported(node, "a result of less than two axes"));
        };
        let mut operands = Vec::with_capacity(2);
        for value in [a, b] {
            let own = &self.graph.ty(value).shape;
            let own: Vec<u64> = own.iter().take(own.len().saturating_sub(2)).map(|&extent| extent as u64).collect();
            let mut operand = self.operand(node, value, Place::Device)?;
            operand.strides.truncate(own.len());
            operand.strides = super::shape::broadcast(&own, &operand.strides, batch)
                .ok_or_else(|| CodegenError::internal("operands of a verified graph broadcast"))?;
            operands.push(operand);
        }
        let (Some(b), Some(a)) = (operands.pop(), operands.pop()) else {
            return Err(CodegenError::internal("a product has two operands"));
        };
        let out = self.result(node)?;
        let step = step::MatMul { a, b, out, batch: batch.to_vec(), m: *m, n: *n, k: k as u64 };
        self.push(node, Place::Device, step::Op::MatMul(step));
        Ok(())
    }

    /// Tensors of a matrix product with activation, and the part of the
    /// activation that stays in its step.
    fn activated(
        &mut self,
        node: NodeId,
        act: Option<UnaryFn>,
        placement: &Placement,
    ) -> Result<(Activated, Option<step::Function>), CodegenError> {
        match act {
            Some(f) if function::is_curved(f) && placement.is_last(node) => {
                let name = format!("{}.sum", self.name(node));
                let graph = self.graph;
                let linear = self.tensor(node, &name, graph.ty(node.value()))?;
                let out = self.result(node)?;
                Ok((Activated { linear, host: Some((out, function::unary(f))) }, None))
            }
            act => Ok((Activated { linear: self.result(node)?, host: None }, act.map(function::unary))),
        }
    }

    fn push_activation(&mut self, node: NodeId, out: &Activated) {
        if let Some((result, f)) = out.host {
            let name = format!("{}.act", self.name(node));
            self.push_named(name, Place::Host, step::Op::Unary(step::Unary { x: out.linear, out: result, f }));
        }
    }
}

/// Tensors of a matrix product whose activation may be a step of its own.
struct Activated {
    /// What the product writes.
    linear: u32,
    /// What the host step writes, and its function.
    host: Option<(u32, step::Function)>,
}
