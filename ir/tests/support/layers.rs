//! Operations of convolutional, recurrent and transformer policies in random graphs.

use qail_ir::{
    ArgReduce, Attention, Compare, CompareFn, Constant, CumSum, DType, Film, Gather, Grad, Normalize, Op, Origin, QAdd,
    QSum, QuantScheme, Rope, Scatter, ScatterFn, Softmax, TensorType, TopK, TopKPart, Unfold, UnfoldGrad, ValueId,
    Where, Window,
};

use super::Builder;

impl Builder {
    /// One of them, on `x` of the type `ty`.
    pub(super) fn layer(&mut self, x: ValueId, ty: &TensorType, scheme: QuantScheme) {
        let axis = self.dice.below(ty.shape.len());
        let extent = ty.shape.get(axis).copied().unwrap_or(1);
        match self.dice.below(16) {
            0 => {
                let (f, y) = (self.dice.pick(&CompareFn::ALL), self.value());
                self.add(Op::Compare(Compare { f }), &[x, y]);
                self.add(Op::Compare(Compare { f }), &[x, x]);
            }
            1 => {
                let c = self.constant(TensorType::plain(DType::Bool, ty.shape.clone()), true);
                let y = if self.dice.flip() { x } else { self.value() };
                self.add(Op::Where(Where), &[c, x, y]);
            }
            2 => {
                let shape = self.dice.pick(&[vec![], vec![2], vec![2, 3]]);
                let index = self.indices(shape);
                self.add(Op::Gather(Gather { axis }), &[x, index]);
            }
            3 => {
                let index = self.indices(vec![2]);
                let row = ty.shape.get(1..).unwrap_or_default();
                let update = self.constant(TensorType { elem: ty.elem, shape: [&[2], row].concat() }, true);
                let f = self.dice.pick(&ScatterFn::ALL);
                self.add(Op::Scatter(Scatter { f }), &[x, index, update]);
            }
            4 => {
                let (largest, keep_dims, last) = (self.dice.flip(), self.dice.flip(), self.dice.flip());
                self.add(Op::ArgReduce(ArgReduce { largest, axis, keep_dims, last }), &[x]);
            }
            5 => {
                let (k, largest) = (1 + self.dice.below(extent), self.dice.flip());
                let part = self.dice.pick(&[TopKPart::Values, TopKPart::Indices]);
                self.add(Op::TopK(TopK { axis, k, largest, part }), &[x]);
            }
            6 => {
                let (exclusive, reverse) = (self.dice.flip(), self.dice.flip());
                self.add(Op::CumSum(CumSum { axis, exclusive, reverse }), &[x]);
            }
            7 => {
                let unfold = self.unfold(ty);
                self.add(Op::Unfold(unfold), &[x]);
            }
            8 => {
                let unfold = self.unfold(ty);
                let shape = Op::Unfold(unfold.clone()).infer(&[&TensorType::f32(ty.shape.clone())]);
                if let Some(shown) = shape.ok().and_then(|types| types.first().cloned())
                    && shown.n_elements() <= 4096
                {
                    let g = self.constant(shown, true);
                    self.add(Op::Grad(Grad::Unfold(UnfoldGrad { unfold, shape: ty.shape.clone() })), &[g]);
                }
            }
            9 => {
                let log = self.dice.flip();
                self.add(Op::Softmax(Softmax { axis, log }), &[x]);
            }
            10 => {
                let axes = (0..ty.shape.len()).filter(|&other| other == axis || self.dice.flip()).collect();
                let (eps, center) = (self.dice.pick(&[0.0, 1e-5, 1.0]), self.dice.flip());
                self.add(Op::Normalize(Normalize { axes, eps, center }), &[x]);
            }
            11 => self.attention(),
            12 => {
                let axes = (0..ty.shape.len()).filter(|_| self.dice.flip()).collect();
                let codes = self.constant(TensorType::code(scheme, ty.shape.clone()), true);
                let codes = if ty.scheme().is_some() { x } else { codes };
                let (keep_dims, zero_point) = (self.dice.flip(), self.dice.below(2) as i32);
                self.add(Op::QSum(QSum { axes, keep_dims, zero_point }), &[codes]);
            }
            13 => {
                let interleaved = self.dice.flip();
                let (cos, sin) = (self.narrowed(ty), self.narrowed(ty));
                self.add(Op::Rope(Rope { interleaved }), &[x, cos, sin]);
            }
            14 => {
                let (scale, shift) = (self.narrowed(ty), self.narrowed(ty));
                self.add(Op::Film(Film), &[x, scale, shift]);
            }
            _ => {
                let codes = self.constant(TensorType::code(scheme, ty.shape.clone()), true);
                let zero_a = if ty.scheme().is_some() { self.dice.below(2) as i32 } else { 0 };
                let (hi, zero_b) = (if self.dice.flip() { scheme.hi() } else { 1 }, self.dice.below(2) as i32);
                let op = QAdd { scheme, lo: 0, hi, zero_a, zero_b, zero_point: self.dice.below(2) as i32 };
                let last = ty.shape.last().copied().unwrap_or(1);
                let n = if self.dice.flip() { 1 } else { last };
                let (m_a, m_b, shift) = (1 + self.dice.below(1000), 1 + self.dice.below(1000), 1 + self.dice.below(40));
                let (m_a, m_b, shift) = (self.ints(n, m_a), self.ints(1, m_b), self.ints(1, shift));
                self.add(Op::QAdd(op), &[x, codes, m_a, m_b, shift]);
            }
        }
    }

    /// Indices from both ends, and beyond them.
    fn indices(&mut self, shape: Vec<usize>) -> ValueId {
        let ty = TensorType::plain(self.dice.pick(&[DType::I32, DType::I64]), shape);
        let elements: Vec<i64> = (0..ty.n_elements()).map(|_| self.dice.below(10) as i64 - 5).collect();
        self.graph.add_const("index", Constant::ints(ty, &elements), Origin::default())
    }

    /// A value that broadcasts to the type.
    fn narrowed(&mut self, ty: &TensorType) -> ValueId {
        let skipped = self.dice.below(ty.shape.len() + 1);
        let shape = ty.shape.iter().skip(skipped).map(|&extent| if self.dice.flip() { extent } else { 1 }).collect();
        self.constant(TensorType { elem: ty.elem, shape }, true)
    }

    fn unfold(&mut self, ty: &TensorType) -> Unfold {
        let windows = ty.shape.iter().map(|&extent| match self.dice.below(3) {
            0 => Window::identity(extent.max(1)),
            _ => Window {
                size: 1 + self.dice.below(3),
                stride: 1 + self.dice.below(2),
                dilation: 1 + self.dice.below(2),
                pad: self.dice.below(4) as isize - 2,
                spread: 1 + self.dice.below(2),
                out: 1 + self.dice.below(3),
            },
        });
        let windows = windows.collect();
        Unfold { windows, fill: self.dice.pick(&[0.0, 0.0, 1.0, -1.0, f32::NEG_INFINITY]) }
    }

    fn attention(&mut self) {
        let (b, g, l, s, e, v) = (1 + self.dice.below(2), 1, 1 + self.dice.below(3), 1 + self.dice.below(3), 2, 3);
        let (g, h) = self.dice.pick(&[(g, 2), (2, 2), (2, 4), (3, 3)]);
        let [q, k, v] = [[b, h, l, e], [b, g, s, e], [b, g, s, v]].map(|shape| {
            let ty = TensorType::f32(shape);
            let values: Vec<ValueId> =
                self.values.iter().copied().filter(|&value| *self.graph.ty(value) == ty).collect();
            if values.is_empty() { self.constant(ty, true) } else { self.dice.pick(&values) }
        });
        let mut operands = vec![q, k, v];
        if self.dice.flip() {
            operands.push(self.constant(TensorType::f32([l, s]), true));
        }
        let scale = self.dice.pick(&[1.0, 0.5, 0.125]);
        self.add(Op::Attention(Attention { scale }), &operands);
    }
}
