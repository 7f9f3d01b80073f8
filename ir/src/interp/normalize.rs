//! Rows of transformers, every step rounded to `f32`.

use crate::{Attention, BinaryFn, Normalize, Softmax, TensorType, UnaryFn};

use super::{Data, Fault, Tensor, f32s, reduce::Views, shape::broadcast_offsets, tensor};

/// Softmax of one row in place.
fn softmax_row(row: &mut [f32], log: bool) {
    let m = row.iter().fold(f32::NEG_INFINITY, |m, &x| BinaryFn::Max.eval_f32(m, x));
    let shifted: Vec<f32> = row.iter().map(|&x| x - m).collect();
    let exps: Vec<f32> = shifted.iter().map(|&d| UnaryFn::Exp.eval_f32(d)).collect();
    let sum = exps.iter().fold(0.0f32, |sum, &e| sum + e);
    for ((out, d), e) in row.iter_mut().zip(shifted).zip(exps) {
        *out = if log { d - UnaryFn::Log.eval_f32(sum) } else { e / sum };
    }
}

/// Every row over some axes, changed by `change`.
fn by_row(x: &Tensor, elements: &[f32], axes: &[usize], change: impl Fn(&mut [f32])) -> Result<Vec<f32>, Fault> {
    let outside = Fault::Internal("a view leaves its tensor");
    let views = Views::new(&x.ty.shape, axes);
    let mut out = vec![0.0; elements.len()];
    for &outer in &views.outer {
        let row: Option<Vec<f32>> = views.inner.iter().map(|&i| elements.get(outer + i).copied()).collect();
        let mut row = row.ok_or(outside.clone())?;
        change(&mut row);
        for (&i, y) in views.inner.iter().zip(row) {
            *out.get_mut(outer + i).ok_or(outside.clone())? = y;
        }
    }
    Ok(out)
}

pub(super) fn softmax(op: &Softmax, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    by_row(x, f32s(operands, 0)?, &[op.axis], |row| softmax_row(row, op.log)).map(Data::F32)
}

pub(super) fn normalize(op: &Normalize, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let change = |row: &mut [f32]| {
        let n = row.len() as f32;
        if op.center {
            let mean = row.iter().fold(0.0f32, |sum, &x| sum + x) / n;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        let variance = row.iter().fold(0.0f32, |sum, &d| sum + d * d) / n;
        let factor = 1.0 / UnaryFn::Sqrt.eval_f32(variance + op.eps);
        row.iter_mut().for_each(|d| *d *= factor);
    };
    by_row(x, f32s(operands, 0)?, &op.axes, change).map(Data::F32)
}

pub(super) fn attention(op: &Attention, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let internal = || Fault::Internal("attention over other shapes than verified");
    let (q, k, v) = (f32s(operands, 0)?, f32s(operands, 1)?, f32s(operands, 2)?);
    let &[batch, heads, length, e] = &tensor(operands, 0)?.ty.shape[..] else { return Err(internal()) };
    let &[_, groups, s, width] = &tensor(operands, 2)?.ty.shape[..] else { return Err(internal()) };
    let mask = match operands.get(3) {
        Some(mask) => Some((f32s(operands, 3)?, broadcast_offsets(&mask.ty.shape, &[batch, heads, length, s]))),
        None => None,
    };
    let matrix = |x: &'_ [f32], at: usize, len: usize| x.get(at * len..(at + 1) * len).map(<[f32]>::to_vec);
    let mut out = Vec::with_capacity(ty.n_elements());
    for row in 0..batch * heads * length {
        let head = row / length.max(1);
        let group = head / heads * groups + head % heads / (heads / groups);
        let keys = matrix(k, group, s * e).ok_or_else(internal)?;
        let values = matrix(v, group, s * width).ok_or_else(internal)?;
        let query = matrix(q, row, e).ok_or_else(internal)?;
        let dot = |key: &[f32]| query.iter().zip(key).fold(0.0f32, |sum, (&q, &k)| sum + q * k);
        let mut scores: Vec<f32> = (0..s).map(|j| dot(&keys[j * e..(j + 1) * e]) * op.scale).collect();
        if let Some((mask, at)) = &mask {
            for (score, &at) in scores.iter_mut().zip(at.get(row * s..(row + 1) * s).ok_or_else(internal)?) {
                *score += mask.get(at).copied().ok_or_else(internal)?;
            }
        }
        softmax_row(&mut scores, false);
        let mut sums = vec![0.0f32; width];
        for (p, value) in scores.iter().zip(values.chunks_exact(width.max(1))) {
            sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += p * v);
        }
        out.extend(sums);
    }
    Ok(Data::F32(out))
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{f32, y};

    fn near(out: &[f32], expected: &[f64]) {
        assert_eq!(out.len(), expected.len());
        assert!(
            out.iter().zip(expected).all(|(&a, &b)| (f64::from(a) - b).abs() < 1e-6 * (1.0 + b.abs())),
            "{out:?} {expected:?}"
        );
    }

    #[test]
    fn softmax_survives_large_numbers() {
        let x = [f32("x", [2, 2], &[1000.0, 1000.0, 0.0, f32::NEG_INFINITY])];
        near(y("softmax %x {axis = 1} : f32[2, 2]", &x).as_f32().unwrap(), &[0.5, 0.5, 1.0, 0.0]);
        let log = y("softmax %x {axis = 1, log} : f32[2, 2]", &x);
        near(&log.as_f32().unwrap()[..3], &[-std::f64::consts::LN_2, -std::f64::consts::LN_2, 0.0]);
    }

    #[test]
    fn rows_get_variance_one() {
        let x = [f32("x", [2, 2], &[1.0, 3.0, 4.0, 4.0])];
        near(
            y("normalize %x {axes = [1], eps = 0.0, center} : f32[2, 2]", &x).as_f32().unwrap()[..2].as_ref(),
            &[-1.0, 1.0],
        );
        let rms = y("normalize %x {axes = [0, 1], eps = 0.5} : f32[2, 2]", &x);
        let factor = 1.0 / f64::sqrt(42.0 / 4.0 + 0.5);
        near(rms.as_f32().unwrap(), &[factor, 3.0 * factor, 4.0 * factor, 4.0 * factor]);
    }

    #[test]
    fn heads_of_a_group_share_keys_and_values() {
        // Two heads, one group; the mask leaves each query one key.
        let inputs = [
            f32("q", [1, 2, 1, 2], &[1.0, 0.0, 0.0, 1.0]),
            f32("k", [1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]),
            f32("v", [1, 1, 2, 1], &[10.0, 20.0]),
            f32("m", [2, 1, 2], &[0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]),
        ];
        let masked = y("attention %q, %k, %v, %m {scale = 0.5} : f32[1, 2, 1, 1]", &inputs);
        near(masked.as_f32().unwrap(), &[10.0, 20.0]);
        let open = y("attention %q, %k, %v {scale = 0.5} : f32[1, 2, 1, 1]", &inputs[..3]);
        let p = 1.0 / (1.0 + f64::exp(-1.0));
        near(open.as_f32().unwrap(), &[10.0 + 10.0 * p, 10.0 + 10.0 * p]);
    }
}
