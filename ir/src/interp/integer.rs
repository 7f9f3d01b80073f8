//! Sums of codes, exact.

use crate::{DType, Elem, QAdd, QSum, TensorType};

use super::{Data, Fault, Tensor, ints, reduce::Views, shape::broadcast_offsets, tensor};

/// In 128 bits, so that nothing can wrap; what a device computes in 64 is proven to fit when lowering.
pub(super) fn q_add(op: &QAdd, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let internal = || Fault::Internal("a sum over other shapes than verified");
    let (a, b) = (ints(operands, 0)?, ints(operands, 1)?);
    let (m_a, m_b, shift) = (ints(operands, 2)?, ints(operands, 3)?, ints(operands, 4)?);
    let at = |i: usize| tensor(operands, i).map(|x| broadcast_offsets(&x.ty.shape, &ty.shape));
    let (&[m_b], &[shift]) = (m_b, shift) else { return Err(internal()) };
    let one = |(index, (i, j)): (usize, (usize, usize))| {
        let (a, b) = (*a.get(i)?, *b.get(j)?);
        let m_a = *m_a.get(index % m_a.len().max(1))?;
        let sum = i128::from(a - i64::from(op.zero_a)) * i128::from(m_a)
            + i128::from(b - i64::from(op.zero_b)) * i128::from(m_b);
        let code = ((sum + (1i128 << (shift - 1))) >> shift) + i128::from(op.zero_point);
        i64::try_from(code.clamp(i128::from(op.lo), i128::from(op.hi))).ok()
    };
    let codes: Option<Vec<i64>> = at(0)?.into_iter().zip(at(1)?).enumerate().map(one).collect();
    codes.map(Data::Int).ok_or_else(internal)
}

pub(super) fn q_sum(op: &QSum, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = ints(operands, 0)?;
    let views = Views::new(&tensor(operands, 0)?.ty.shape, &op.axes);
    let one = |(index, &outer): (usize, &usize)| {
        let codes = views.inner.iter().filter_map(|&i| x.get(outer + i));
        let sum: i64 = codes.map(|&q| q - i64::from(op.zero_point)).sum();
        match i32::try_from(sum) {
            Ok(_) => Ok(sum),
            Err(_) => Err(Fault::Overflow { index, elem: Elem::Plain(DType::I32) }),
        }
    };
    views.outer.iter().enumerate().map(one).collect::<Result<_, _>>().map(Data::Int)
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::run;

    #[test]
    fn a_sum_is_rounded_once() {
        // (3 * 3 + 2 * 1 + 2) >> 2 = 3; two roundings would give (3 * 3 + 2 >> 2) + (2 + 2 >> 2) = 2 + 1.
        // (5 * 3 + 1 * 1 + 2) >> 2 = 4; two roundings would give 4 + 0.
        let text = "graph @g() -> (%y) { %a = const [3, 1, -100] : i32[3] %b = const [4, 4, 2] : qs8[3]
            %ma = const [3] : i32[1] %mb = const [1] : i32[1] %s = const [2] : i32[1]
            %y = qadd %a, %b, %ma, %mb, %s {lo = -7, zero_b = 2, zero_point = 1} : qs4[3] }";
        assert_eq!(run(text, &[]).unwrap().as_ints().unwrap(), [4, 2, -7]);
    }

    #[test]
    fn codes_are_summed_without_their_zero() {
        let text = "graph @g() -> (%y) { %q = const [1, 2, 3, 255] : qu8[2, 2]
            %y = qsum %q {axes = [1], zero_point = 1} : i32[2] }";
        assert_eq!(run(text, &[]).unwrap().as_ints().unwrap(), [1, 256]);
    }
}
