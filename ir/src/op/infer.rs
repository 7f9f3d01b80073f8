//! Types of results from types of operands.

use crate::{
    Concat, DType, Elem, Expand, FakeQuant, LinearWq, Op, QuantScheme, Quantize, Reduce, ReduceFn, Requantize, Reshape,
    Slice, TensorType, Transpose, TypeError,
};

impl Op {
    /// Types of the results for operands of the types `operands`.
    pub fn infer(&self, operands: &[&TensorType]) -> Result<Vec<TensorType>, TypeError> {
        let one = match self {
            Self::Input(input) => leaf(self, operands, &input.ty),
            Self::Const(constant) => leaf(self, operands, &constant.ty),
            Self::Unary(_) => match operands {
                [x] if x.is_f32() => Ok((*x).clone()),
                _ => Err(self.mismatch("one f32 tensor", operands)),
            },
            Self::Binary(_) => match operands {
                [a, b] if a.elem == b.elem && a.dtype().is_some() => broadcast(&a.shape, &b.shape)
                    .map(|shape| TensorType { elem: a.elem, shape })
                    .ok_or_else(|| self.mismatch("two tensors that broadcast", operands)),
                _ => Err(self.mismatch("two tensors of one plain type", operands)),
            },
            Self::MatMul(_) => self.infer_matmul(operands),
            Self::Linear(linear) => match operands {
                [x, w, b] if x.is_f32() && w.is_f32() && b.is_f32() => self.infer_rows(operands, x.elem, linear.groups),
                _ => Err(self.mismatch("x[.., K], w[K, N], b[N] of f32", operands)),
            },
            Self::Reshape(reshape) => self.infer_reshape(reshape, operands),
            Self::Transpose(transpose) => self.infer_transpose(transpose, operands),
            Self::Slice(slice) => self.infer_slice(slice, operands),
            Self::Concat(concat) => self.infer_concat(concat, operands),
            Self::Expand(expand) => self.infer_expand(expand, operands),
            Self::Reduce(reduce) => self.infer_reduce(reduce, operands),
            Self::Cast(cast) => match operands {
                [x] if x.dtype().is_some() => Ok(TensorType::plain(cast.to, x.shape.clone())),
                _ => Err(self.mismatch("one tensor of plain numbers", operands)),
            },
            Self::Compare(_) => self.infer_compare(operands),
            Self::Where(_) => self.infer_where(operands),
            Self::Gather(gather) => self.infer_gather(gather, operands),
            Self::Scatter(_) => self.infer_scatter(operands),
            Self::ArgReduce(op) => self.infer_arg_reduce(op, operands),
            Self::TopK(op) => self.infer_top_k(op, operands),
            Self::CumSum(op) => self.infer_cum_sum(op, operands),
            Self::Unfold(unfold) => unfold.infer(operands),
            Self::Softmax(op) => self.infer_softmax(op, operands),
            Self::Normalize(op) => self.infer_normalize(op, operands),
            Self::Attention(op) => self.infer_attention(op, operands),
            Self::Rope(_) => self.infer_rope(operands),
            Self::Film(_) => self.infer_film(operands),
            Self::QAdd(op) => self.infer_q_add(op, operands),
            Self::QSum(op) => self.infer_q_sum(op, operands),
            Self::FakeQuant(fake) => self.infer_fake_quant(fake, operands),
            Self::Quantize(quantize) => self.infer_quantize(quantize, operands),
            Self::QLinear(linear) => match operands {
                [x, w, b] if x.scheme().is_some() && w.scheme().is_some() && b.elem == Elem::Plain(DType::I32) => {
                    self.infer_rows(operands, Elem::Plain(DType::I32), linear.groups)
                }
                _ => Err(self.mismatch("codes x[.., K], codes w[K, N], b[N] of i32", operands)),
            },
            Self::Requantize(requantize) => self.infer_requantize(requantize, operands),
            Self::Lookup(_) => match operands {
                [x, table]
                    if x.scheme().is_some_and(|scheme| scheme.bits == 8)
                        && table.shape == [256]
                        && table.scheme().is_some() =>
                {
                    Ok(TensorType { elem: table.elem, shape: x.shape.clone() })
                }
                _ => Err(self.mismatch("8-bit codes and a table of 256 codes", operands)),
            },
            Self::Dequantize(_) => match operands {
                [q, s]
                    if (q.scheme().is_some() || q.elem == Elem::Plain(DType::I32))
                        && s.elem == Elem::Plain(DType::F64)
                        && (s.shape == [1] || (s.shape.len() == 1 && s.shape.last() == q.shape.last())) =>
                {
                    Ok(TensorType::f32(q.shape.clone()))
                }
                _ => Err(self.mismatch("codes or i32 and a scale f64[1] or f64[N]", operands)),
            },
            Self::LinearWq(linear) => self.infer_linear_wq(linear, operands),
            Self::Grad(grad) => grad.infer(operands),
        }?;
        Ok(vec![one])
    }

    fn mismatch(&self, expected: &'static str, operands: &[&TensorType]) -> TypeError {
        TypeError::new(self.name(), expected, operands)
    }

    fn infer_matmul(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("a[.., M, K] and b[.., K, N] of f32", operands);
        let [a, b] = operands else { return Err(error()) };
        let ([batch_a @ .., m, k], [batch_b @ .., k_b, n]) = (&a.shape[..], &b.shape[..]) else { return Err(error()) };
        if !a.is_f32() || !b.is_f32() || k != k_b {
            return Err(error());
        }
        let mut shape = broadcast(batch_a, batch_b).ok_or_else(error)?;
        shape.extend([*m, *n]);
        Ok(TensorType::f32(shape))
    }

    /// `x[.., G * K]`, `w[K, N]`, `b[N]` to `[.., N]` for `G` groups.
    fn infer_rows(&self, operands: &[&TensorType], elem: Elem, groups: usize) -> Result<TensorType, TypeError> {
        let expected = match groups {
            1 => "x[.., K], w[K, N], b[N]",
            _ => "x[.., groups * K], w[K, N], b[N] with a multiple of groups channels",
        };
        let error = || self.mismatch(expected, operands);
        let [x, w, b] = operands else { return Err(error()) };
        let ([rows @ .., k], [k_w, n]) = (&x.shape[..], &w.shape[..]) else { return Err(error()) };
        if groups == 0 || !n.is_multiple_of(groups) || k_w.checked_mul(groups) != Some(*k) || b.shape != [*n] {
            return Err(error());
        }
        let mut shape = rows.to_vec();
        shape.push(*n);
        Ok(TensorType { elem, shape })
    }

    fn infer_reshape(&self, reshape: &Reshape, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = operands else { return Err(self.mismatch("one tensor", operands)) };
        let ty = TensorType { elem: x.elem, shape: reshape.shape.clone() };
        if ty.n_elements() != x.n_elements() {
            return Err(self.mismatch("a tensor with as many elements as the new shape", operands));
        }
        Ok(ty)
    }

    fn infer_transpose(&self, transpose: &Transpose, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x] = operands else { return Err(self.mismatch("one tensor", operands)) };
        let mut seen = transpose.perm.clone();
        seen.sort_unstable();
        if seen.len() != x.shape.len() || seen.iter().enumerate().any(|(i, &axis)| i != axis) {
            return Err(self.mismatch("a tensor whose rank is that of the permutation", operands));
        }
        let shape: Vec<usize> = transpose.perm.iter().map(|&axis| x.shape[axis]).collect();
        Ok(TensorType { elem: x.elem, shape })
    }

    fn infer_slice(&self, slice: &Slice, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("a tensor that the slice fits into", operands);
        let [x] = operands else { return Err(error()) };
        if slice.axes.len() != x.shape.len() {
            return Err(error());
        }
        for (axis, &extent) in slice.axes.iter().zip(&x.shape) {
            if axis.len == 0 {
                continue;
            }
            let reach = isize::try_from(axis.len - 1).ok().and_then(|n| n.checked_mul(axis.step));
            let last = reach.and_then(|reach| axis.start.checked_add_signed(reach)).ok_or_else(error)?;
            if axis.step == 0 || axis.start >= extent || last >= extent {
                return Err(error());
            }
        }
        Ok(TensorType { elem: x.elem, shape: slice.axes.iter().map(|axis| axis.len).collect() })
    }

    fn infer_concat(&self, concat: &Concat, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("tensors that differ only along the axis", operands);
        let [first, rest @ ..] = operands else { return Err(error()) };
        let mut shape = first.shape.clone();
        if concat.axis >= shape.len() {
            return Err(error());
        }
        for x in rest {
            let fits = x.elem == first.elem
                && x.shape.len() == shape.len()
                && x.shape.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == concat.axis || a == b);
            if !fits {
                return Err(error());
            }
            shape[concat.axis] = shape[concat.axis].checked_add(x.shape[concat.axis]).ok_or_else(error)?;
        }
        Ok(TensorType { elem: first.elem, shape })
    }

    fn infer_expand(&self, expand: &Expand, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        match operands {
            [x] if broadcast(&x.shape, &expand.shape).as_ref() == Some(&expand.shape) => {
                Ok(TensorType { elem: x.elem, shape: expand.shape.clone() })
            }
            _ => Err(self.mismatch("one tensor that broadcasts to the shape", operands)),
        }
    }

    fn infer_reduce(&self, reduce: &Reduce, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("one tensor of numbers that has the axes", operands);
        let [x] = operands else { return Err(error()) };
        let ascending = reduce.axes.windows(2).all(|pair| pair[0] < pair[1]);
        // Extremes exist for everything that is ordered; sums of codes are `qsum`.
        let accepted = match (reduce.f, x.elem) {
            (ReduceFn::Min | ReduceFn::Max, Elem::Code(_)) => true,
            (ReduceFn::Mean, Elem::Plain(dtype)) => dtype == DType::F32,
            (_, Elem::Plain(dtype)) => dtype != DType::Bool && dtype != DType::F64,
            (_, Elem::Code(_)) => false,
        };
        if !accepted || !ascending || reduce.axes.iter().any(|&axis| axis >= x.shape.len()) {
            return Err(error());
        }
        Ok(TensorType { elem: x.elem, shape: reduced(&x.shape, &reduce.axes, reduce.keep_dims) })
    }

    fn infer_fake_quant(&self, fake: &FakeQuant, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("x and a scale of f32, and perhaps a zero point i32[]", operands);
        let (x, s) = match operands {
            [x, s] => (x, s),
            [x, s, z] if **z == TensorType::plain(DType::I32, []) => (x, s),
            _ => return Err(error()),
        };
        let scale_shape = match (fake.axis, fake.group) {
            (None, None) => vec![],
            (Some(axis), None) => vec![*x.shape.get(axis).ok_or_else(error)?],
            (Some(1), Some(group)) if x.shape.len() == 2 && group > 0 => vec![x.shape[0].div_ceil(group), x.shape[1]],
            _ => return Err(error()),
        };
        let in_range = code_range_fits(fake.scheme, fake.lo, fake.hi);
        if !x.is_f32() || !s.is_f32() || s.shape != scale_shape || !in_range {
            return Err(error());
        }
        Ok((*x).clone())
    }

    fn infer_quantize(&self, quantize: &Quantize, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        match operands {
            [x, r]
                if x.is_f32()
                    && r.is_f32()
                    && (r.shape.is_empty() || (r.shape.len() == 1 && r.shape.last() == x.shape.last()))
                    && code_range_fits(quantize.scheme, quantize.lo, quantize.hi) =>
            {
                Ok(TensorType::code(quantize.scheme, x.shape.clone()))
            }
            _ => Err(self.mismatch("x and a factor f32[] or f32[N]", operands)),
        }
    }

    fn infer_requantize(&self, requantize: &Requantize, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let i32 = Elem::Plain(DType::I32);
        match operands {
            [acc, m, shift]
                if acc.elem == i32
                    && m.elem == i32
                    && shift.elem == i32
                    && m.shape.len() == 1
                    && m.shape.last() == acc.shape.last()
                    && shift.shape == m.shape
                    && code_range_fits(requantize.scheme, requantize.lo, requantize.hi) =>
            {
                Ok(TensorType::code(requantize.scheme, acc.shape.clone()))
            }
            _ => Err(self.mismatch("acc[.., N], m[N] and shift[N] of i32", operands)),
        }
    }

    fn infer_linear_wq(&self, linear: &LinearWq, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("x[.., K] of f32, codes w[K, N], s[G, N] and b[N] of f32", operands);
        let [x, w, s, b] = operands else { return Err(error()) };
        if !x.is_f32() || w.scheme().is_none() || !s.is_f32() || !b.is_f32() || linear.group == 0 || w.shape.len() != 2
        {
            return Err(error());
        }
        if s.shape != [w.shape[0].div_ceil(linear.group), w.shape[1]] {
            return Err(error());
        }
        self.infer_rows(&[x, w, b], x.elem, 1)
    }
}

fn leaf(op: &Op, operands: &[&TensorType], ty: &TensorType) -> Result<TensorType, TypeError> {
    if operands.is_empty() { Ok(ty.clone()) } else { Err(op.mismatch("no operands", operands)) }
}

/// A shape without some axes, or with extent 1 there.
pub(super) fn reduced(shape: &[usize], axes: &[usize], keep_dims: bool) -> Vec<usize> {
    let kept = |(axis, &extent): (usize, &usize)| match (axes.contains(&axis), keep_dims) {
        (false, _) => Some(extent),
        (true, true) => Some(1),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(kept).collect()
}

/// True if the codes from `lo` to `hi` are codes of the scheme.
pub(super) fn code_range_fits(scheme: QuantScheme, lo: i32, hi: i32) -> bool {
    matches!(scheme.bits, 2 | 3 | 4 | 8 | 16) && scheme.lo() <= lo && lo < hi && hi <= scheme.hi()
}

/// NumPy broadcasting of two shapes.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let extent = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|i| match (extent(a, i), extent(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
