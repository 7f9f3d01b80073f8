//! Matrix products through the `gemm` crate, behind a checked interface: the one
//! place of this crate with `unsafe`.
//!
//! Sums run over `k` in an order that depends on the shapes alone: threads share
//! tiles of the result, never a sum. So results are the same bits for every
//! number of threads.

use gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` is `data[i * rows + j * columns]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a, T> {
    pub(super) data: &'a [T],
    /// Distance of two rows.
    pub(super) rows: usize,
    /// Distance of two columns.
    pub(super) columns: usize,
}

/// A matrix outside of its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfBounds;

/// Element types that have a product.
pub(super) trait Real: Copy + 'static {
    const ZERO: Self;
    const ONE: Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// `out[m, n] = alpha * a[m, k] * b[k, n]`, `out` dense and row-major.
pub(super) fn product<T: Real>(
    [m, n, k]: [usize; 3],
    out: &mut [T],
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: usize,
) -> Result<(), OutOfBounds> {
    let size = m.checked_mul(n).ok_or(OutOfBounds)?;
    let out = out.get_mut(..size).ok_or(OutOfBounds)?;
    if size == 0 {
        return Ok(());
    }
    if k == 0 {
        out.fill(T::ZERO);
        return Ok(());
    }
    let (a_rows, a_columns) = strides(&a, m, k)?;
    let (b_rows, b_columns) = strides(&b, k, n)?;
    let out_rows = isize::try_from(n).map_err(|_| OutOfBounds)?;
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: `strides` proved that every element of `a[m, k]` and `b[k, n]` lies
    // inside of its slice, and `out` holds `m * n` elements at the strides given
    // here. `out` is borrowed mutably, so it overlaps neither operand. `T` is
    // `f32` or `f64`, for which the crate has kernels. It reads `out` only if
    // told to, which it is not.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_rows,
            false,
            a.data.as_ptr(),
            a_columns,
            a_rows,
            b.data.as_ptr(),
            b_columns,
            b_rows,
            T::ZERO,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// Strides as the crate takes them, if all elements of `matrix[m, n]`, of which
/// there is at least one, lie inside of its slice.
fn strides<T>(matrix: &Matrix<'_, T>, m: usize, n: usize) -> Result<(isize, isize), OutOfBounds> {
    let last = |count: usize, stride: usize| count.checked_sub(1).and_then(|last| last.checked_mul(stride));
    let last = last(m, matrix.rows).zip(last(n, matrix.columns)).and_then(|(row, column)| row.checked_add(column));
    if last.is_none_or(|last| last >= matrix.data.len()) {
        return Err(OutOfBounds);
    }
    let stride = |stride: usize| isize::try_from(stride).map_err(|_| OutOfBounds);
    Ok((stride(matrix.rows)?, stride(matrix.columns)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(data: &[f32], n: usize) -> Matrix<'_, f32> {
        Matrix { data, rows: n, columns: 1 }
    }

    #[test]
    fn operands_may_be_transposed_and_scaled() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, -1.0, 0.5, 1.0]);
        let mut out = [f32::NAN; 4];
        product([2, 2, 3], &mut out, 2.0, dense(&a, 3), dense(&b, 2), 1).unwrap();
        assert_eq!(out, [13.0, 2.0, 34.0, 2.0]);
        // The same numbers, both matrices stored the other way round.
        let (at, bt) = ([1.0, 4.0, 2.0, 5.0, 3.0, 6.0], [1.0, 2.0, 0.5, 0.0, -1.0, 1.0]);
        let a = Matrix { data: &at[..], rows: 1, columns: 2 };
        let b = Matrix { data: &bt[..], rows: 1, columns: 3 };
        product([2, 2, 3], &mut out, 2.0, a, b, 1).unwrap();
        assert_eq!(out, [13.0, 2.0, 34.0, 2.0]);
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let mut out = [0.0f32; 4];
        let five = [0.0f32; 5];
        let six = [0.0f32; 6];
        assert_eq!(product([2, 2, 3], &mut out, 1.0, dense(&five, 3), dense(&six, 2), 1), Err(OutOfBounds));
        assert_eq!(product([2, 2, 3], &mut out, 1.0, dense(&six, 3), dense(&five, 2), 1), Err(OutOfBounds));
        assert_eq!(product([2, 2, 3], &mut out[..3], 1.0, dense(&six, 3), dense(&six, 2), 1), Err(OutOfBounds));
        let wide = Matrix { data: &six[..], rows: usize::MAX, columns: 1 };
        assert_eq!(product([2, 2, 3], &mut out, 1.0, wide, dense(&six, 2), 1), Err(OutOfBounds));
    }

    #[test]
    fn no_terms_are_zero() {
        let mut out = [f32::NAN; 4];
        product([2, 2, 0], &mut out, 1.0, dense(&[], 0), dense(&[], 2), 1).unwrap();
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let number = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.0 - 1.0;
        for [m, n, k] in [[256, 256, 256], [17, 300, 1500], [1, 512, 700], [600, 1, 90], [2000, 5, 3]] {
            let a: Vec<f32> = (0..m * k).map(number).collect();
            let b: Vec<f32> = (0..k * n).map(|i| number(i + 7)).collect();
            let mut one = vec![0.0; m * n];
            let mut three = vec![0.0; m * n];
            product([m, n, k], &mut one, 1.0, dense(&a, k), dense(&b, n), 1).unwrap();
            pool.install(|| product([m, n, k], &mut three, 1.0, dense(&a, k), dense(&b, n), 3)).unwrap();
            assert!(one.iter().zip(&three).all(|(a, b)| a.to_bits() == b.to_bits()), "{m} {n} {k}");
        }
    }
}
