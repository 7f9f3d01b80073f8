//! A histogram of fixed size over a range that grows by doubling.
//!
//! The bins depend on the numbers alone, not on how they were batched, up to
//! the order of additions, which are of integers: the same numbers in any order
//! give the same histogram once the range is final.

/// Bins on each side of zero.
const HALF: usize = 8192;

/// How often which numbers occurred. Zeros are counted apart: behind a ReLU
/// they are the most frequent number, and they have no error.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Bin `i` holds `[i - HALF, i - HALF + 1) * bound / HALF`.
    bins: Vec<u64>,
    /// A power of two above every magnitude, 0 before the first number.
    bound: f64,
    zeros: u64,
    n: u64,
    min: f64,
    max: f64,
    sum_squares: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            bins: vec![0; 2 * HALF],
            bound: 0.0,
            zeros: 0,
            n: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            sum_squares: 0.0,
        }
    }
}

impl Histogram {
    /// Counts a finite number; others are ignored.
    pub fn add(&mut self, x: f64) {
        if !x.is_finite() {
            return;
        }
        self.n += 1;
        self.min = self.min.min(x);
        self.max = self.max.max(x);
        self.sum_squares += x * x;
        if x == 0.0 {
            self.zeros += 1;
            return;
        }
        self.cover(x.abs());
        let at = (x / self.bound * HALF as f64).floor() + HALF as f64;
        if let Some(bin) = self.bins.get_mut(at.clamp(0.0, (2 * HALF - 1) as f64) as usize) {
            *bin += 1;
        }
    }

    /// Doubles the range until it holds `magnitude`, merging pairs of bins.
    fn cover(&mut self, magnitude: f64) {
        if self.bound == 0.0 {
            self.bound = libm::ldexp(1.0, libm::ilogb(magnitude) + 1);
        }
        while magnitude >= self.bound {
            let mut merged = vec![0; 2 * HALF];
            for (pair, bin) in self.bins.chunks_exact(2).zip(merged.iter_mut().skip(HALF / 2)) {
                *bin = pair.iter().sum();
            }
            self.bins = merged;
            self.bound *= 2.0;
        }
    }

    /// Numbers counted.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// The smallest number, 0 if there are none.
    pub fn min(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.min }
    }

    /// The largest number, 0 if there are none.
    pub fn max(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.max }
    }

    /// The largest magnitude.
    pub fn max_abs(&self) -> f64 {
        self.max().abs().max(self.min().abs())
    }

    /// Mean of the squares.
    pub fn mean_square(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.sum_squares / self.n as f64 }
    }

    /// Centers of the bins that are not empty and how many numbers each holds,
    /// in ascending order, zeros left out.
    pub fn centers(&self) -> Vec<(f64, f64)> {
        let width = self.bound / HALF as f64;
        let center = |i: usize| (i as f64 - HALF as f64 + 0.5) * width;
        let bins = self.bins.iter().enumerate().filter(|(_, n)| **n > 0);
        // The outermost numbers are known exactly: no center lies beyond them.
        bins.map(|(i, &n)| (center(i).clamp(self.min, self.max), n as f64)).collect()
    }

    /// The number below which the share `p` in `[0, 1]` of all numbers lies.
    pub fn quantile(&self, p: f64) -> f64 {
        let target = p * self.n as f64;
        let mut zeros = self.zeros as f64;
        let mut seen = 0.0;
        for (center, n) in self.centers() {
            if center > 0.0 {
                seen += zeros;
                zeros = 0.0;
                if seen >= target {
                    return 0.0;
                }
            }
            seen += n;
            if seen >= target {
                return center;
            }
        }
        self.max()
    }

    /// Mean of `error(x)^2` over all numbers, each taken as the center of its bin.
    pub fn mean_square_of(&self, error: impl Fn(f64) -> f64) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        let at_zero = error(0.0);
        let zeros = at_zero * at_zero * self.zeros as f64;
        let others: f64 = self.centers().iter().map(|&(x, n)| error(x) * error(x) * n).sum();
        (zeros + others) / self.n as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_numbers_does_not_matter() {
        let numbers: Vec<f64> = (1..2000).map(|i| (f64::from(i) * 0.37).sin() * f64::from(i)).collect();
        let mut forward = Histogram::default();
        let mut backward = Histogram::default();
        numbers.iter().for_each(|&x| forward.add(x));
        numbers.iter().rev().for_each(|&x| backward.add(x));
        assert_eq!(forward.centers(), backward.centers());
        assert_eq!(forward.n(), 1999);
    }

    #[test]
    fn centers_are_within_half_a_bin() {
        let mut histogram = Histogram::default();
        [-3.0, 0.0, 0.001, 5.0].into_iter().for_each(|x| histogram.add(x));
        let centers: Vec<f64> = histogram.centers().iter().map(|&(x, _)| x).collect();
        for (center, x) in centers.iter().zip([-3.0, 0.001, 5.0]) {
            assert!((center - x).abs() <= 8.0 / 8192.0 / 2.0 + 1e-12, "{center} {x}");
        }
        assert_eq!(histogram.quantile(0.5), 0.0);
        assert_eq!((histogram.min(), histogram.max()), (-3.0, 5.0));
    }

    #[test]
    fn nothing_counted_is_zero() {
        let histogram = Histogram::default();
        assert_eq!((histogram.max_abs(), histogram.mean_square(), histogram.quantile(0.9)), (0.0, 0.0, 0.0));
    }
}
