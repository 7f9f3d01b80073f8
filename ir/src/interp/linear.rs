//! Sums of products in `f32`: sequential over `k` from 0, multiply and add
//! rounded separately. Every other executor has to give the same bits.

use crate::{Linear, LinearWq, TensorType, UnaryFn};

use super::{Data, Fault, Tensor, f32s, ints, shape::broadcast_offsets, tensor};

/// `out[n] += x[k] * w[k, n]` for each `k` in turn: for every `n` this is the
/// sequential sum, and the inner loop runs along memory.
fn accumulate(out: &mut [f32], x: &[f32], w: &[f32]) {
    for (&x, w) in x.iter().zip(w.chunks_exact(out.len().max(1))) {
        for (out, &w) in out.iter_mut().zip(w) {
            *out += x * w;
        }
    }
}

/// As [`accumulate`], in groups: every part of `out` sees its own part of `x`.
fn accumulate_groups(out: &mut [f32], x: &[f32], w: &[f32], groups: usize) {
    if groups <= 1 {
        return accumulate(out, x, w);
    }
    let (n, k) = (out.len(), x.len() / groups);
    let per_group = n / groups;
    for (group, out) in out.chunks_exact_mut(per_group.max(1)).enumerate() {
        for (&x, w) in x.iter().skip(group * k).take(k).zip(w.chunks_exact(n.max(1))) {
            for (out, &w) in out.iter_mut().zip(w.iter().skip(group * per_group)) {
                *out += x * w;
            }
        }
    }
}

/// Bias and function, in place.
fn finish(out: &mut [f32], b: &[f32], act: Option<UnaryFn>) {
    for (out, &b) in out.iter_mut().zip(b) {
        let sum = *out + b;
        *out = act.map_or(sum, |f| f.eval_f32(sum));
    }
}

/// Number of rows, all leading axes flattened, and the extent of the last axis.
pub(super) fn rows(x: &Tensor) -> (usize, usize) {
    match x.ty.shape.split_last() {
        Some((&k, lead)) => (lead.iter().product(), k),
        None => (1, 1),
    }
}

/// Row `i` of `k` elements.
pub(super) fn row<T>(x: &[T], i: usize, k: usize) -> Result<&[T], Fault> {
    x.get(i * k..(i + 1) * k).ok_or(Fault::Internal("a tensor is shorter than its type"))
}

pub(super) fn linear(linear: &Linear, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (x, w, b) = (f32s(operands, 0)?, f32s(operands, 1)?, f32s(operands, 2)?);
    let (n_rows, k) = rows(tensor(operands, 0)?);
    let n = b.len();
    let mut out = vec![0.0; n_rows * n];
    for (i, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
        accumulate_groups(out, row(x, i, k)?, w, linear.groups);
        finish(out, b, linear.act);
    }
    Ok(Data::F32(out))
}

pub(super) fn linear_wq(linear: &LinearWq, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (x, s, b) = (f32s(operands, 0)?, f32s(operands, 2)?, f32s(operands, 3)?);
    // Codes have at most 16 bits, so they are exact in `f32`.
    let w: Vec<f32> = ints(operands, 1)?.iter().map(|&w| w as f32).collect();
    let (n_rows, k) = rows(tensor(operands, 0)?);
    let (n, group) = (b.len(), linear.group);
    let mut out = vec![0.0f32; n_rows * n];
    let mut partial = vec![0.0f32; n];
    for (i, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
        let groups = row(x, i, k)?.chunks(group).zip(w.chunks(group.saturating_mul(n).max(1)));
        for ((x, w), s) in groups.zip(s.chunks_exact(n.max(1))) {
            partial.fill(0.0);
            accumulate(&mut partial, x, w);
            for ((out, &partial), &s) in out.iter_mut().zip(&partial).zip(s) {
                *out += partial * s;
            }
        }
        finish(out, b, linear.act);
    }
    Ok(Data::F32(out))
}

pub(super) fn matmul(operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let (a, b) = (tensor(operands, 0)?, tensor(operands, 1)?);
    let (x, y) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let ([batch_a @ .., m, k], [batch_b @ .., _, n], [batch @ .., _, _]) =
        (&a.ty.shape[..], &b.ty.shape[..], &ty.shape[..])
    else {
        return Err(Fault::Internal("a matrix without two axes"));
    };
    let (m, k, n) = (*m, *k, *n);
    let mut out = vec![0.0; ty.n_elements()];
    let matrices = broadcast_offsets(batch_a, batch).into_iter().zip(broadcast_offsets(batch_b, batch));
    for ((a, b), out) in matrices.zip(out.chunks_exact_mut((m * n).max(1))) {
        let (x, y) = (row(x, a, m * k)?, row(y, b, k * n)?);
        for (i, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
            accumulate(out, row(x, i, k)?, y);
        }
    }
    Ok(Data::F32(out))
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{f32, y};

    #[test]
    fn linear_adds_the_bias_last_and_then_applies_the_function() {
        let inputs = [
            f32("x", [2, 2], &[1.0, 2.0, -1.0, 0.5]),
            f32("w", [2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            f32("b", [3], &[0.5, -100.0, 1.0]),
        ];
        assert_eq!(y("linear %x, %w, %b : f32[2, 3]", &inputs).as_f32().unwrap(), [9.5, -88.0, 16.0, 1.5, -99.5, 1.0]);
        let relu = y("linear %x, %w, %b {act = relu} : f32[2, 3]", &inputs);
        assert_eq!(relu.as_f32().unwrap(), [9.5, 0.0, 16.0, 1.5, 0.0, 1.0]);
    }

    #[test]
    fn a_group_of_channels_sees_its_own_features() {
        let inputs = [
            f32("x", [1, 4], &[1.0, 2.0, 10.0, 20.0]),
            f32("w", [2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
            f32("b", [4], &[0.5, 0.0, 0.0, 0.0]),
        ];
        let out = y("linear %x, %w, %b {groups = 2} : f32[1, 4]", &inputs);
        // 1*1 + 2*5 + 0.5, 1*2 + 2*6, 10*3 + 20*7, 10*4 + 20*8.
        assert_eq!(out.as_f32().unwrap(), [11.5, 14.0, 170.0, 200.0]);
        // One feature a channel: a product.
        let inputs =
            [f32("x", [2, 2], &[1.0, 2.0, 3.0, 4.0]), f32("w", [1, 2], &[10.0, -1.0]), f32("b", [2], &[0.0; 2])];
        let out = y("linear %x, %w, %b {groups = 2} : f32[2, 2]", &inputs);
        assert_eq!(out.as_f32().unwrap(), [10.0, -2.0, 30.0, -4.0]);
    }

    #[test]
    fn sums_run_over_k_without_fused_multiply_add() {
        let sum = |x: &[f32], w: &[f32]| {
            let (k, b) = (x.len(), f32("b", [1], &[0.0]));
            let out = y("linear %x, %w, %b : f32[1, 1]", &[f32("x", [1, k], x), f32("w", [k, 1], w), b]);
            out.as_f32().unwrap()[0]
        };
        // 1e8 swallows the 1 in front of it.
        assert_eq!(sum(&[1.0, 1e8, -1e8, 1.0], &[1.0; 4]), 1.0);
        // The product is 1 - 2^-46, which rounds to 1 on its own.
        let e = f32::EPSILON;
        assert_eq!(sum(&[-1.0, 1.0 + e], &[1.0, 1.0 - e]), 0.0);
        assert_ne!((1.0 + e).mul_add(1.0 - e, -1.0), 0.0);
    }

    #[test]
    fn a_scalar_row_and_an_empty_sum_are_defined() {
        let inputs = [f32("x", [2], &[3.0, 4.0]), f32("w", [2, 1], &[1.0, 1.0]), f32("b", [1], &[1.0])];
        assert_eq!(y("linear %x, %w, %b : f32[1]", &inputs).as_f32().unwrap(), [8.0]);
        let inputs = [f32("x", [2, 0], &[]), f32("w", [0, 1], &[]), f32("b", [1], &[1.5])];
        assert_eq!(y("linear %x, %w, %b : f32[2, 1]", &inputs).as_f32().unwrap(), [1.5, 1.5]);
        let inputs = [f32("x", [0, 2], &[]), f32("w", [2, 1], &[1.0, 1.0]), f32("b", [1], &[1.5])];
        assert!(y("linear %x, %w, %b : f32[0, 1]", &inputs).data.is_empty());
    }

    #[test]
    fn matrices_broadcast_over_leading_axes() {
        let a = f32("x", [2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
        let b = f32("w", [3, 2, 1], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let out = y("matmul %x, %w : f32[2, 3, 1, 1]", &[a, b]);
        assert_eq!(out.as_f32().unwrap(), [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
    }

    #[test]
    fn groups_are_scaled_one_after_the_other() {
        let inputs = [
            f32("x", [1, 3], &[1.0, 2.0, 3.0]),
            f32("s", [2, 2], &[0.5, 1.0, 10.0, 100.0]),
            f32("b", [2], &[0.25, 0.0]),
        ];
        let lines = "const [1, -1, 2, 3, -7, 7] : qs4[3, 2] %y = linear_wq %x, %w, %s, %b {group = 2} : f32[1, 2]";
        let text = format!("graph @g(%x: f32[1, 3], %s: f32[2, 2], %b: f32[2]) -> (%y) {{ %w = {lines} }}");
        let out = crate::interp::testing::run(&text, &inputs).unwrap();
        // (1*1 + 2*2) * 0.5 + (3*-7) * 10 + 0.25 and (-1 + 6) * 1 + 21 * 100.
        assert_eq!(out.as_f32().unwrap(), [-207.25, 2105.0]);
    }
}
