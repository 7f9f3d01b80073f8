//! What a handful of episodes says about all of them.
//!
//! Returns get bootstrap intervals (percentile method, seeded), because they
//! are neither normal nor unimodal; success rates get Wilson's interval, which
//! does not collapse when every episode succeeds. Two policies on the same seeds
//! are compared by pairs: most of the spread of a return is the seed's.

use serde::Serialize;

/// Resamples of a bootstrap: the ends of an interval then move by about 1 % of
/// its width from seed to seed.
const N_RESAMPLES: usize = 10_000;
/// Standard normal quantile of 97.5 %.
const Z: f64 = 1.959_963_984_540_054;

/// An estimate and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The figure itself.
    pub estimate: f64,
    /// 2.5 % of the resamples lie below.
    pub lower: f64,
    /// 2.5 % of the resamples lie above.
    pub upper: f64,
}

/// Seeded numbers, the same on every machine: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The middle of the values: what returns are summed up by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistic {
    /// Mean.
    #[default]
    Mean,
    /// Median: for returns with two modes.
    Median,
}

impl std::str::FromStr for Statistic {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "mean" => Ok(Self::Mean),
            "median" => Ok(Self::Median),
            _ => Err("accepted are mean and median"),
        }
    }
}

impl Statistic {
    /// The statistic of some values, 0 without any. Reorders them.
    pub fn of(self, values: &mut [f64]) -> f64 {
        match self {
            Self::Mean => mean(values),
            Self::Median => median(values),
        }
    }
}

/// Mean; 0 without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample (n - 1); 0 for fewer than two values.
pub fn std_dev(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / values.len().saturating_sub(1).max(1) as f64).sqrt()
}

/// Median, the mean of the middle two if there are two; 0 without values.
/// Reorders the values.
pub fn median(values: &mut [f64]) -> f64 {
    let n = values.len();
    if n == 0 {
        return 0.0;
    }
    let (below, &mut upper, _) = values.select_nth_unstable_by(n / 2, f64::total_cmp);
    if n % 2 == 1 {
        return upper;
    }
    let lower = below.iter().copied().max_by(f64::total_cmp).unwrap_or(upper);
    lower + (upper - lower) / 2.0
}

/// The smallest value that at least a share `p` of the values does not exceed
/// (nearest rank). The values ascend.
pub fn quantile(ascending: &[f64], p: f64) -> f64 {
    let rank = (p * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1).min(ascending.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Bootstrap of any statistic of `n` episodes, given as a function of the
/// episodes drawn. None for fewer than two episodes, and if the estimate, or
/// more than 2.5 % of the resamples, have no value.
fn bootstrap_of(n: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> Option<f64>) -> Option<Interval> {
    if n < 2 {
        return None;
    }
    let mut drawn: Vec<usize> = (0..n).collect();
    let estimate = statistic(&drawn)?;
    let mut random = Random(seed);
    let mut values = Vec::with_capacity(N_RESAMPLES);
    for _ in 0..N_RESAMPLES {
        drawn.iter_mut().for_each(|index| *index = random.below(n));
        values.extend(statistic(&drawn));
    }
    // A resample without a value counts as the worst one.
    let n_missing = N_RESAMPLES - values.len();
    if n_missing * 40 > N_RESAMPLES {
        return None;
    }
    values.resize(N_RESAMPLES, f64::NEG_INFINITY);
    values.sort_unstable_by(f64::total_cmp);
    Some(Interval { estimate, lower: quantile(&values, 0.025), upper: quantile(&values, 0.975) })
}

/// Bootstrap interval of a statistic of one value an episode.
pub fn bootstrap(values: &[f64], statistic: Statistic, seed: u64) -> Option<Interval> {
    let mut room = Vec::with_capacity(values.len());
    bootstrap_of(values.len(), seed, |drawn| {
        pick(values, drawn, &mut room);
        Some(statistic.of(&mut room))
    })
}

/// Bootstrap interval of the statistic of the differences `a - b`, by pairs.
pub fn bootstrap_difference(a: &[f64], b: &[f64], statistic: Statistic, seed: u64) -> Option<Interval> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    bootstrap(&differences, statistic, seed)
}

/// Bootstrap interval of `(statistic(a) - floor) / (statistic(b) - floor)`, by
/// pairs: how much of `b` is left in `a`. None if `b` is not above the floor.
pub fn bootstrap_retention(a: &[f64], b: &[f64], floor: f64, statistic: Statistic, seed: u64) -> Option<Interval> {
    let mut room = Vec::with_capacity(a.len());
    bootstrap_of(a.len().min(b.len()), seed, |drawn| {
        pick(b, drawn, &mut room);
        let whole = statistic.of(&mut room) - floor;
        pick(a, drawn, &mut room);
        let kept = statistic.of(&mut room) - floor;
        (whole > 0.0).then(|| kept / whole)
    })
}

fn pick(values: &[f64], drawn: &[usize], room: &mut Vec<f64>) {
    room.clear();
    room.extend(drawn.iter().filter_map(|&index| values.get(index)));
}

/// Wilson's score interval of a share (Wilson 1927). Counts may be fractions,
/// to ask what more episodes of the same kind would say.
pub fn wilson(successes: f64, n: f64) -> Interval {
    if n <= 0.0 {
        return Interval { estimate: 0.0, lower: 0.0, upper: 1.0 };
    }
    let p = successes / n;
    let z2 = Z * Z;
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // Rounding must not move an end over the estimate at 0 and 1.
    Interval { estimate: p, lower: (middle - half).clamp(0.0, p), upper: (middle + half).clamp(p, 1.0) }
}

/// Successes of two policies on the same seeds. Fractions as in [`wilson`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Paired {
    /// Episodes in which both succeed.
    pub both: f64,
    /// Only the first.
    pub only_a: f64,
    /// Only the second.
    pub only_b: f64,
    /// Neither.
    pub neither: f64,
}

impl Paired {
    /// Number of pairs.
    pub fn n(&self) -> f64 {
        self.both + self.only_a + self.only_b + self.neither
    }

    /// The same shares of `k` times as many pairs.
    #[must_use]
    pub fn times(&self, k: f64) -> Self {
        Self { both: self.both * k, only_a: self.only_a * k, only_b: self.only_b * k, neither: self.neither * k }
    }

    /// Interval of the difference of the two shares, a - b (Newcombe 1998, method 10).
    pub fn difference(&self) -> Interval {
        let n = self.n();
        let (a, b) = (wilson(self.both + self.only_a, n), wilson(self.both + self.only_b, n));
        let estimate = a.estimate - b.estimate;
        let product = (self.both + self.only_a)
            * (self.only_b + self.neither)
            * (self.both + self.only_b)
            * (self.only_a + self.neither);
        let phi = if product > 0.0 {
            let cross = self.both * self.neither - self.only_a * self.only_b;
            // Newcombe's correction for continuity, where the correlation is positive.
            let cross = if cross > 0.0 { (cross - n / 2.0).max(0.0) } else { cross };
            cross / product.sqrt()
        } else {
            0.0
        };
        let half = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
        Interval {
            estimate,
            lower: estimate - half(a.estimate - a.lower, b.upper - b.estimate),
            upper: estimate + half(a.upper - a.estimate, b.estimate - b.lower),
        }
    }

    /// Interval of the ratio a / b: the difference, in units of b. None if b
    /// never succeeds.
    pub fn retention(&self) -> Option<Interval> {
        let share = (self.both + self.only_b) / self.n().max(1.0);
        let d = self.difference();
        (share > 0.0).then(|| Interval {
            estimate: 1.0 + d.estimate / share,
            lower: 1.0 + d.lower / share,
            upper: 1.0 + d.upper / share,
        })
    }
}

/// Episodes until the lower bound reaches `threshold`, if things stay as they
/// are; none if the estimate itself does not. `lower_at(k)` is the lower bound
/// with `k` times as many episodes.
pub fn episodes_needed(n: usize, estimate: f64, threshold: f64, lower_at: impl Fn(f64) -> f64) -> Option<u64> {
    if n == 0 || estimate <= threshold {
        return None;
    }
    let (mut enough, mut too_few) = (1.0, 0.0);
    while lower_at(enough) < threshold {
        too_few = enough;
        enough *= 2.0;
        if enough > 1e9 {
            return None;
        }
    }
    while (enough - too_few) * n as f64 > 0.5 {
        let middle = (enough + too_few) / 2.0;
        if lower_at(middle) < threshold { too_few = middle } else { enough = middle }
    }
    Some((enough * n as f64).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance
    }

    /// Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    #[test]
    fn wilson_gives_the_figures_of_the_textbook() {
        for (x, n, lower, upper) in [
            (81.0, 263.0, 0.2553, 0.3662),
            (15.0, 148.0, 0.0624, 0.1605),
            (0.0, 20.0, 0.0, 0.1611),
            (1.0, 29.0, 0.0061, 0.1718),
        ] {
            let interval = wilson(x, n);
            assert!(
                close(interval.lower, lower, 5e-5) && close(interval.upper, upper, 5e-5),
                "{x} of {n}: {interval:?}"
            );
        }
        assert_eq!(wilson(40.0, 40.0).upper, 1.0);
        assert!(close(wilson(40.0, 40.0).lower, 0.9124, 5e-5));
    }

    /// Newcombe, Statistics in Medicine 17 (1998) 2635, table III, method 10.
    #[test]
    fn paired_differences_give_the_figures_of_the_textbook() {
        for (both, only_a, only_b, neither, lower, upper) in [
            (36.0, 12.0, 2.0, 0.0, 0.0569, 0.3404),
            (43.0, 0.0, 0.0, 0.0, -0.0820, 0.0820),
            (54.0, 0.0, 0.0, 0.0, -0.0664, 0.0664),
        ] {
            let d = Paired { both, only_a, only_b, neither }.difference();
            assert!(close(d.lower, lower, 5e-4) && close(d.upper, upper, 5e-4), "{both} {only_a} {only_b}: {d:?}");
        }
    }

    #[test]
    fn perfect_success_is_not_certainty() {
        let retention = Paired { both: 40.0, ..Paired::default() }.retention().unwrap();
        assert_eq!(retention.estimate, 1.0);
        assert!(close(retention.lower, 0.9124, 1e-3), "{retention:?}");
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 500.0);
        assert_eq!(quantile(&values, 0.999), 999.0);
        assert_eq!(quantile(&values, 1.0), 1000.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    /// For many values of known spread the interval is mean -+ 1.96 s / sqrt(n).
    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval() {
        let mut random = Random(7);
        let values: Vec<f64> = (0..400).map(|_| random.below(1001) as f64).collect();
        let interval = bootstrap(&values, Statistic::Mean, 1).unwrap();
        let half = Z * std_dev(&values) / 20.0;
        assert_eq!(interval.estimate, mean(&values));
        assert!(close(interval.lower, interval.estimate - half, 0.06 * half), "{interval:?} {half}");
        assert!(close(interval.upper, interval.estimate + half, 0.06 * half), "{interval:?} {half}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values = [1.0, 5.0, 2.0, 8.0];
        let first = bootstrap(&values, Statistic::Median, 3);
        assert_eq!(first, bootstrap(&values, Statistic::Median, 3));
        assert!(first.unwrap().lower >= 1.0 && first.unwrap().upper <= 8.0);
        assert_eq!(bootstrap(&[], Statistic::Mean, 0), None);
    }

    #[test]
    fn pairs_cancel_what_the_seeds_have_in_common() {
        let b: Vec<f64> = (0..30).map(|i| 1000.0 + 100.0 * f64::from(i)).collect();
        let a: Vec<f64> = b.iter().map(|x| 0.99 * x).collect();
        let retention = bootstrap_retention(&a, &b, 0.0, Statistic::Mean, 0).unwrap();
        assert!(close(retention.lower, 0.99, 1e-9) && close(retention.upper, 0.99, 1e-9), "{retention:?}");
        let difference = bootstrap_difference(&a, &b, Statistic::Mean, 0).unwrap();
        assert!(difference.upper < 0.0);
    }

    #[test]
    fn retention_needs_a_positive_teacher() {
        assert_eq!(bootstrap_retention(&[-5.0, -6.0], &[-4.0, -5.0], 0.0, Statistic::Mean, 0), None);
        let floor = bootstrap_retention(&[-5.0, -5.0], &[-4.0, -4.0], -8.0, Statistic::Mean, 0).unwrap();
        assert_eq!(floor.estimate, 0.75);
    }

    /// n / (n + z^2) >= 0.98 for n >= 188.3; Newcombe's bound of a perfect pair is Wilson's.
    #[test]
    fn episodes_needed_are_those_that_suffice() {
        let pairs = Paired { both: 40.0, ..Paired::default() };
        let lower = |k: f64| pairs.times(k).retention().map_or(0.0, |r| r.lower);
        assert_eq!(episodes_needed(40, 1.0, 0.98, lower), Some(189));
        assert_eq!(episodes_needed(40, 0.97, 0.98, |_| 0.0), None);
    }
}
