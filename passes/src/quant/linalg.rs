//! The little linear algebra that rounding needs, in `f64`.

/// Means and covariances of the features of rows, one row at a time.
#[derive(Clone, Debug)]
pub(crate) struct Covariance {
    k: usize,
    n: u64,
    /// The first row: sums are taken around it, so that large means cost no digits.
    origin: Vec<f64>,
    sums: Vec<f64>,
    /// Lower triangle, row-major in a square.
    products: Vec<f64>,
}

impl Covariance {
    pub(crate) fn new(k: usize) -> Self {
        Self { k, n: 0, origin: Vec::new(), sums: vec![0.0; k], products: vec![0.0; k.saturating_mul(k)] }
    }

    /// Counts rows of `k` features. Rows with a number that is not finite are skipped.
    pub(crate) fn add_rows(&mut self, elements: &[f32]) {
        for row in elements.chunks_exact(self.k.max(1)) {
            if !row.iter().all(|x| x.is_finite()) {
                continue;
            }
            if self.n == 0 {
                self.origin = row.iter().map(|&x| f64::from(x)).collect();
            }
            let x: Vec<f64> = row.iter().zip(&self.origin).map(|(&x, origin)| f64::from(x) - origin).collect();
            self.sums.iter_mut().zip(&x).for_each(|(sum, x)| *sum += x);
            for (i, (products, &a)) in self.products.chunks_exact_mut(self.k.max(1)).zip(&x).enumerate() {
                // Zeros are frequent behind a ReLU.
                if a != 0.0 {
                    products.iter_mut().zip(&x).take(i + 1).for_each(|(product, b)| *product += a * b);
                }
            }
            self.n += 1;
        }
    }

    /// Counts at most `limit` of the rows, evenly spread; `turn` says where to begin, so that other
    /// samples show other rows.
    pub(crate) fn add_some_rows(&mut self, elements: &[f32], limit: usize, turn: usize) {
        let n = elements.len() / self.k.max(1);
        if n <= limit.max(1) {
            return self.add_rows(elements);
        }
        let limit = limit.max(1);
        for i in 0..limit {
            // The places of `limit` rows, shifted by a part of their distance.
            let row = (i * n + turn.wrapping_mul(7) % n) / limit % n;
            if let Some(row) = elements.get(row * self.k..(row + 1) * self.k) {
                self.add_rows(row);
            }
        }
    }

    /// The means, and the covariances as a full square.
    pub(crate) fn finish(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.n.max(1) as f64;
        let shifts: Vec<f64> = self.sums.iter().map(|sum| sum / n).collect();
        let origins = self.origin.iter().copied().chain(std::iter::repeat(0.0));
        let means = shifts.iter().zip(origins).map(|(shift, origin)| shift + origin).collect();
        let mut square = vec![0.0; self.products.len()];
        for i in 0..self.k {
            for j in 0..=i {
                let (Some(product), Some(a), Some(b)) =
                    (self.products.get(i * self.k + j), shifts.get(i), shifts.get(j))
                else {
                    continue;
                };
                let covariance = product / n - a * b;
                for at in [i * self.k + j, j * self.k + i] {
                    if let Some(element) = square.get_mut(at) {
                        *element = covariance;
                    }
                }
            }
        }
        (means, square)
    }
}

/// The upper factor `U` of the inverse of a symmetric positive definite matrix:
/// `A^-1 = U^T U`. `None` if the matrix is not positive definite.
///
/// With `A = L' L'^T` taken from the last row up, `L'` upper, `U = L'^-1`.
pub(crate) fn upper_of_inverse(mut a: Vec<f64>, k: usize) -> Option<Vec<f64>> {
    if a.len() != k.checked_mul(k)? {
        return None;
    }
    // The reversed matrix has the usual lower factor; reversed back, it is an
    // upper factor R with A = R R^T, and the inverse is R^-T R^-1.
    a.reverse();
    let lower = cholesky(a, k)?;
    let inverse = invert_lower(&lower, k)?;
    let mut upper = inverse;
    upper.reverse();
    Some(upper)
}

/// The lower factor: `A = L L^T`.
fn cholesky(mut a: Vec<f64>, k: usize) -> Option<Vec<f64>> {
    for i in 0..k {
        let (above, below) = a.split_at_mut(i * k);
        let row = below.get_mut(..k)?;
        for j in 0..i {
            let other = above.get(j * k..j * k + j + 1)?;
            let sum: f64 = row.iter().zip(other).take(j).map(|(x, y)| x * y).sum();
            let pivot = *other.get(j)?;
            let element = row.get_mut(j)?;
            *element = (*element - sum) / pivot;
        }
        let sum: f64 = row.iter().take(i).map(|x| x * x).sum();
        let pivot = row.get_mut(i)?;
        let rest = *pivot - sum;
        if !(rest > 0.0 && rest.is_finite()) {
            return None;
        }
        *pivot = rest.sqrt();
        row.iter_mut().skip(i + 1).for_each(|x| *x = 0.0);
    }
    Some(a)
}

/// The inverse of a lower triangular matrix.
fn invert_lower(l: &[f64], k: usize) -> Option<Vec<f64>> {
    let mut inverse = vec![0.0; k * k];
    for i in 0..k {
        let row = l.get(i * k..(i + 1) * k)?;
        let pivot = *row.get(i)?;
        let (above, below) = inverse.split_at_mut(i * k);
        let out = below.get_mut(..k)?;
        // Row i of L X = I: X[i] = (e_i - sum_j L[i, j] X[j]) / L[i, i].
        for (factor, x) in row.iter().zip(above.chunks_exact(k)) {
            if *factor != 0.0 {
                out.iter_mut().zip(x).take(i).for_each(|(out, x)| *out -= factor * x);
            }
        }
        *out.get_mut(i)? = 1.0;
        out.iter_mut().take(i + 1).for_each(|out| *out /= pivot);
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_gives_the_inverse() {
        let a = vec![4.0, 1.0, 0.5, 1.0, 3.0, -0.25, 0.5, -0.25, 2.0];
        let u = upper_of_inverse(a.clone(), 3).unwrap();
        let inverse = |i: usize, j: usize| (0..3).map(|m| u[m * 3 + i] * u[m * 3 + j]).sum::<f64>();
        for i in 0..3 {
            for j in 0..3 {
                let product: f64 = (0..3).map(|m| a[i * 3 + m] * inverse(m, j)).sum();
                assert!((product - f64::from(i == j)).abs() < 1e-12, "{i} {j} {product}");
                assert!(i <= j || u[i * 3 + j] == 0.0);
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_is_refused() {
        assert_eq!(upper_of_inverse(vec![1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(upper_of_inverse(vec![f64::NAN], 1), None);
    }

    #[test]
    fn a_part_of_the_rows_is_spread_over_all() {
        let rows: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let mut covariance = Covariance::new(1);
        covariance.add_some_rows(&rows, 10, 3);
        assert_eq!(covariance.n, 10);
        assert!((covariance.finish().0[0] - 49.5).abs() < 10.0);
        covariance.add_some_rows(&rows, 1000, 3);
        assert_eq!(covariance.n, 110);
    }

    #[test]
    fn covariances_are_around_the_mean() {
        let mut covariance = Covariance::new(2);
        covariance.add_rows(&[1001.0, 1.0, 1003.0, 5.0, f32::NAN, 0.0]);
        let (means, square) = covariance.finish();
        assert_eq!(means, [1002.0, 3.0]);
        assert_eq!(square, [1.0, 2.0, 2.0, 4.0]);
    }
}
