//! Products in groups: every group of channels has its own part of a row.
//!
//! `out[m, n] = sum_k x[m, g K + k] w[k, n]`, where `g` is the group of channel
//! `n`. Sums run over `k` from 0, one element at a time, so they are the same bits
//! for every number of threads, and exact for codes.

use super::{
    gemm,
    gemm::Matrix,
    lanes::{pieces, wide},
};

/// The product; one group is a product of matrices. `dims` are rows, channels
/// and the features of a group.
pub(super) fn product<T: gemm::Real + Send + Sync + std::ops::AddAssign + std::ops::Mul<Output = T>>(
    dims: [usize; 3],
    groups: usize,
    out: &mut [T],
    x: &[T],
    w: &[T],
    threads: usize,
) -> Result<(), gemm::OutOfBounds> {
    let [m, n, k] = dims;
    if groups <= 1 {
        let x = Matrix { data: x, rows: k, columns: 1 };
        let w = Matrix { data: w, rows: n, columns: 1 };
        return gemm::product(dims, out, T::ONE, x, w, threads);
    }
    let size = |a: usize, b: usize| a.checked_mul(b).ok_or(gemm::OutOfBounds);
    let features = size(k, groups)?;
    let (out_len, x_len, w_len) = (size(m, n)?, size(m, features)?, size(k, n)?);
    let (Some(out), Some(x), Some(w)) = (out.get_mut(..out_len), x.get(..x_len), w.get(..w_len)) else {
        return Err(gemm::OutOfBounds);
    };
    if out_len == 0 {
        return Ok(());
    }
    let channels = (n / groups).max(1);
    pieces(threads, n, out, |start, out| {
        let first = start / n;
        wide(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(n).enumerate() {
                    let x = x.get((first + row) * features..).unwrap_or_default();
                    out.fill(T::ZERO);
                    for (term, w) in w.chunks_exact(n).enumerate() {
                        let x = x.iter().skip(term).step_by(k.max(1));
                        for ((out, w), &x) in out.chunks_exact_mut(channels).zip(w.chunks_exact(channels)).zip(x) {
                            out.iter_mut().zip(w).for_each(|(out, &w)| *out += x * w);
                        }
                    }
                }
            },
        );
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_sees_its_own_features() {
        // Two rows, two groups of two channels, two features each.
        let x = [1.0f32, 2.0, 10.0, 20.0, 0.0, 1.0, 1.0, 0.0];
        let w = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut out = [f32::NAN; 8];
        product([2, 4, 2], 2, &mut out, &x, &w, 1).unwrap();
        assert_eq!(out, [11.0, 14.0, 170.0, 200.0, 5.0, 6.0, 3.0, 4.0]);
        assert_eq!(product([2, 4, 2], 2, &mut out, &x[..7], &w, 1), Err(gemm::OutOfBounds));
        assert_eq!(product([2, 4, 2], 2, &mut out, &x, &w[..7], 1), Err(gemm::OutOfBounds));
        product([2, 4, 0], 2, &mut out, &[], &[], 1).unwrap();
        assert_eq!(out, [0.0; 8]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let number = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.0 - 1.0;
        let (m, groups, k) = (700, 40, 9);
        let x: Vec<f32> = (0..m * groups * k).map(number).collect();
        let w: Vec<f32> = (0..k * groups).map(|i| number(i + 7)).collect();
        let mut one = vec![0.0; m * groups];
        let mut three = one.clone();
        product([m, groups, k], groups, &mut one, &x, &w, 1).unwrap();
        pool.install(|| product([m, groups, k], groups, &mut three, &x, &w, 3)).unwrap();
        assert!(one.iter().zip(&three).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(one.iter().any(|x| *x != 0.0));
    }
}
