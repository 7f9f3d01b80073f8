//! Integer operations beside the matrix product: sums of codes.

use crate::{DType, Elem, Op, QuantScheme, TensorType, TypeError};

use super::infer::{broadcast, code_range_fits};

/// See [`Op::QAdd`]: `clamp((((a - zero_a) * m_a + (b - zero_b) * m_b + 2^(shift-1)) >> shift) + z, lo, hi)`
/// with one rounding, exact, in 64 bits.
///
/// `a` holds codes or accumulators, `b` codes; they broadcast. `m_a` is `i32[1]` or `i32[N]`, `N` the last axis,
/// `m_b` and `shift` are `i32[1]`. Multipliers are positive, shifts 1 to 62.
#[derive(Clone, Debug, PartialEq)]
pub struct QAdd {
    /// Width and sign of the codes.
    pub scheme: QuantScheme,
    /// Smallest code used.
    pub lo: i32,
    /// Largest code used.
    pub hi: i32,
    /// Code of zero of `a`; 0 if it holds accumulators.
    pub zero_a: i32,
    /// Code of zero of `b`.
    pub zero_b: i32,
    /// Code of zero of the result.
    pub zero_point: i32,
}

/// See [`Op::QSum`]: `acc = sum(q - zero_point)` over axes, exact in `i32`.
#[derive(Clone, Debug, PartialEq)]
pub struct QSum {
    /// Axes that disappear, ascending.
    pub axes: Vec<usize>,
    /// Keep them with extent 1 instead.
    pub keep_dims: bool,
    /// Code of zero.
    pub zero_point: i32,
}

impl Op {
    pub(super) fn infer_q_add(&self, op: &QAdd, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let expected = "codes or i32 a, codes b that broadcast, m_a i32[1] or i32[N], m_b i32[1], shift i32[1]";
        let error = || TypeError::new(self.name(), expected, operands);
        let [a, b, m_a, m_b, shift] = operands else { return Err(error()) };
        let shape = broadcast(&a.shape, &b.shape).ok_or_else(error)?;
        let i32s = [m_a, m_b, shift].iter().all(|ty| ty.elem == Elem::Plain(DType::I32));
        let one = |ty: &TensorType| ty.shape == [1];
        let m_a_fits = one(m_a) || m_a.shape.len() == 1 && m_a.shape.last() == shape.last();
        let a_fits = a.scheme().is_some() || a.elem == Elem::Plain(DType::I32) && op.zero_a == 0;
        let fits = i32s && one(m_b) && one(shift) && m_a_fits && a_fits && b.scheme().is_some();
        if !fits || !code_range_fits(op.scheme, op.lo, op.hi) {
            return Err(error());
        }
        Ok(TensorType::code(op.scheme, shape))
    }

    pub(super) fn infer_q_sum(&self, op: &QSum, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "one tensor of codes that has the axes", operands);
        let [x] = operands else { return Err(error()) };
        let ascending = op.axes.windows(2).all(|pair| pair[0] < pair[1]);
        if x.scheme().is_none() || !ascending || op.axes.iter().any(|&axis| axis >= x.shape.len()) {
            return Err(error());
        }
        let shape = super::infer::reduced(&x.shape, &op.axes, op.keep_dims);
        Ok(TensorType::plain(DType::I32, shape))
    }
}
