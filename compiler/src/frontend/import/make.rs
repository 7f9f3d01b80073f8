//! Short ways to say what an operator is made of.
//!
//! Every method applies one operation, now if its operands are known, and names
//! the result after the node and the operation. What an operator hands back at
//! the end gets the name of the node's result: see `finish`.

use qail_ir::{
    ArgReduce, Binary, BinaryFn, Cast, Compare, CompareFn, Concat, ConstData, Constant, DType, Expand, Gather, Linear,
    MatMul, Op, Reduce, ReduceFn, Reshape, Slice, SliceAxis, Softmax, TensorType, Transpose, Unary, UnaryFn, Unfold,
    Where, Window,
};

use super::{
    OpError,
    builder::{self, Tensor},
    cx::NodeCx,
    slice,
};

impl NodeCx<'_> {
    /// Applies an operation on the way to the result.
    pub(super) fn part(&mut self, op: Op, operands: &[Tensor]) -> Result<Tensor, OpError> {
        let part = op.name();
        self.emit_part(part, op, operands)
    }

    /// `f(x)`.
    pub(super) fn map(&mut self, f: UnaryFn, x: Tensor) -> Result<Tensor, OpError> {
        self.part(Op::Unary(Unary { f }), &[x])
    }

    /// `f(a, b)`.
    pub(super) fn zip(&mut self, f: BinaryFn, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        self.part(Op::Binary(Binary { f }), &[a, b])
    }

    /// `a + b`.
    pub(super) fn add(&mut self, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        self.zip(BinaryFn::Add, a, b)
    }

    /// `a * b`.
    pub(super) fn mul(&mut self, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        self.zip(BinaryFn::Mul, a, b)
    }

    /// The truth of a comparison.
    pub(super) fn compare(&mut self, f: CompareFn, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        self.part(Op::Compare(Compare { f }), &[a, b])
    }

    /// `a` where `truth`, else `b`.
    pub(super) fn choose(&mut self, truth: Tensor, a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
        self.part(Op::Where(Where), &[truth, a, b])
    }

    /// Another element type.
    pub(super) fn cast_to(&mut self, x: Tensor, to: DType) -> Result<Tensor, OpError> {
        if self.ty(x).dtype() == Some(to) {
            return Ok(x);
        }
        self.part(Op::Cast(Cast { to }), &[x])
    }

    /// Another shape.
    pub(super) fn reshaped(&mut self, x: Tensor, shape: impl Into<Vec<usize>>) -> Result<Tensor, OpError> {
        let shape = shape.into();
        if self.ty(x).shape == shape {
            return Ok(x);
        }
        self.part(Op::Reshape(Reshape { shape }), &[x])
    }

    /// Axes in another order.
    pub(super) fn permuted(&mut self, x: Tensor, perm: impl Into<Vec<usize>>) -> Result<Tensor, OpError> {
        let perm = perm.into();
        if perm.iter().enumerate().all(|(i, &axis)| i == axis) && perm.len() == self.ty(x).shape.len() {
            return Ok(x);
        }
        self.part(Op::Transpose(Transpose { perm }), &[x])
    }

    /// Broadcast to a larger shape.
    pub(super) fn expanded(&mut self, x: Tensor, shape: impl Into<Vec<usize>>) -> Result<Tensor, OpError> {
        let shape = shape.into();
        if self.ty(x).shape == shape {
            return Ok(x);
        }
        self.part(Op::Expand(Expand { shape }), &[x])
    }

    /// Elements `start..start + len` of an axis.
    pub(super) fn sliced(&mut self, x: Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor, OpError> {
        self.strided(x, axis, SliceAxis { start, len, step: 1 })
    }

    /// Some elements of an axis.
    pub(super) fn strided(&mut self, x: Tensor, axis: usize, part: SliceAxis) -> Result<Tensor, OpError> {
        let shape = self.shape(x);
        let mut axes = slice::whole(&shape);
        match axes.get_mut(axis) {
            Some(whole) if *whole == part => return Ok(x),
            Some(whole) => *whole = part,
            None => return Err(OpError::invalid(format!("axis {axis} of {shape:?}"))),
        }
        self.part(Op::Slice(Slice { axes }), &[x])
    }

    /// An axis backwards.
    pub(super) fn reversed(&mut self, x: Tensor, axis: usize) -> Result<Tensor, OpError> {
        let len = self.extent(x, axis)?;
        if len < 2 {
            return Ok(x);
        }
        self.strided(x, axis, SliceAxis { start: len - 1, len, step: -1 })
    }

    /// Tensors joined along an axis.
    pub(super) fn joined(&mut self, parts: &[Tensor], axis: usize) -> Result<Tensor, OpError> {
        match parts {
            [one] => Ok(*one),
            _ => self.part(Op::Concat(Concat { axis }), parts),
        }
    }

    /// Many numbers become one.
    pub(super) fn reduced(
        &mut self,
        f: ReduceFn,
        x: Tensor,
        axes: &[usize],
        keep_dims: bool,
    ) -> Result<Tensor, OpError> {
        if axes.is_empty() {
            return Ok(x);
        }
        self.part(Op::Reduce(Reduce { f, axes: axes.to_vec(), keep_dims }), &[x])
    }

    /// Parts by index along an axis.
    pub(super) fn looked_up(&mut self, x: Tensor, index: Tensor, axis: usize) -> Result<Tensor, OpError> {
        self.part(Op::Gather(Gather { axis }), &[x, index])
    }

    /// Where the extreme element of an axis stands.
    pub(super) fn extreme(&mut self, x: Tensor, op: ArgReduce) -> Result<Tensor, OpError> {
        self.part(Op::ArgReduce(op), &[x])
    }

    /// Softmax along an axis, or its logarithm.
    pub(super) fn softmax(&mut self, x: Tensor, axis: usize, log: bool) -> Result<Tensor, OpError> {
        self.part(Op::Softmax(Softmax { axis, log }), &[x])
    }

    /// Windows over a tensor; the same tensor if they change nothing.
    pub(super) fn windows(&mut self, x: Tensor, windows: Vec<Window>, fill: f32) -> Result<Tensor, OpError> {
        let shape = self.shape(x);
        if windows.iter().zip(&shape).all(|(window, &extent)| *window == Window::identity(extent)) {
            return Ok(x);
        }
        self.part(Op::Unfold(Unfold { windows, fill }), &[x])
    }

    /// Rows times a matrix; a `linear` if the matrix is known.
    pub(super) fn product(&mut self, x: Tensor, w: Tensor) -> Result<Tensor, OpError> {
        let known = matches!((x, w), (Tensor::Computed(_), Tensor::Known(_)));
        match self.ty(w).shape[..] {
            [_, n] if known => {
                let zero = self.known_part("bias", Constant { ty: TensorType::f32([n]), data: ConstData::Splat(0.0) });
                self.part(Op::Linear(Linear { act: None, groups: 1 }), &[x, w, zero])
            }
            _ => self.part(Op::MatMul(MatMul), &[x, w]),
        }
    }

    /// The extent of an axis that the tensor must have.
    pub(super) fn extent(&self, x: Tensor, axis: usize) -> Result<usize, OpError> {
        let shape = &self.ty(x).shape;
        shape
            .get(axis)
            .copied()
            .ok_or_else(|| OpError::invalid(format!("a tensor of shape {shape:?} has no axis {axis}")))
    }

    /// One number.
    pub(super) fn scalar(&mut self, x: f32) -> Tensor {
        self.known_part("number", Constant::f32([], &[x]))
    }

    /// One number of the type of `x`.
    pub(super) fn scalar_like(&mut self, x: Tensor, value: f64) -> Tensor {
        let ty = TensorType { elem: self.ty(x).elem, shape: vec![] };
        self.known_part("number", Constant { ty, data: ConstData::Splat(value) })
    }

    /// Integers that are made here.
    pub(super) fn table(&mut self, shape: &[usize], at: impl Fn(usize) -> i64) -> Result<Tensor, OpError> {
        let ty = TensorType::plain(DType::I64, shape);
        builder::check_size(&ty)?;
        self.builder.reserve(&ty)?;
        let elements: Vec<i64> = (0..ty.n_elements()).map(at).collect();
        Ok(self.known_part("table", Constant::ints(ty, &elements)))
    }

    /// Truth values that are made here.
    pub(super) fn truths(&mut self, shape: &[usize], at: impl Fn(usize) -> bool) -> Result<Tensor, OpError> {
        let ty = TensorType::plain(DType::Bool, shape);
        builder::check_size(&ty)?;
        self.builder.reserve(&ty)?;
        let elements: Vec<i64> = (0..ty.n_elements()).map(|i| i64::from(at(i))).collect();
        Ok(self.known_part("truths", Constant::ints(ty, &elements)))
    }

    /// Numbers that are made here.
    pub(super) fn numbers(&mut self, shape: &[usize], at: impl Fn(usize) -> f32) -> Result<Tensor, OpError> {
        let ty = TensorType::f32(shape);
        builder::check_size(&ty)?;
        self.builder.reserve(&ty)?;
        let elements: Vec<f32> = (0..ty.n_elements()).map(at).collect();
        Ok(self.known_part("numbers", Constant::f32(ty.shape, &elements)))
    }

    /// `x` with its axes in the places that follow the first `lead` ones of rank `rank`:
    /// a scale `[C]` beside `[N, C, ..]`.
    pub(super) fn beside(&mut self, x: Tensor, lead: usize, rank: usize) -> Result<Tensor, OpError> {
        let shape = self.shape(x);
        let behind = rank.saturating_sub(lead.saturating_add(shape.len()));
        self.reshaped(x, [vec![1; lead], shape, vec![1; behind]].concat())
    }
}
