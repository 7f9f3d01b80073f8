//! Steps of a 16-bit observation, one a feature.
//!
//! A step must be a power of two, so that it moves into the weights exactly,
//! and large enough for the range of the feature. It may be larger: 16 bits are
//! more than a feature needs, and the weights behind it have one step a channel,
//! set by the row with the largest folded weight `W[k, n] d[k]`. Features far
//! from zero in units of their deviation (positions, constants) make such rows.
//! Larger steps for the other rows bring them level, at the price of coarser
//! observations. The noise of both, in the result of the layers, decides.

/// What was seen of one feature.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Feature {
    pub(crate) max_abs: f64,
    pub(crate) sum: f64,
    pub(crate) sum_squares: f64,
    pub(crate) n: u64,
}

impl Feature {
    pub(crate) fn add(&mut self, x: f64) {
        self.max_abs = self.max_abs.max(x.abs());
        self.sum += x;
        self.sum_squares += x * x;
        self.n += 1;
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.n.max(1) as f64
    }

    pub(crate) fn mean_square(&self) -> f64 {
        self.sum_squares / self.n.max(1) as f64
    }

    /// Variance, plus a part of the mean in case the mean moves: what is left
    /// of a weight's error once its mean effect went into the bias.
    fn spread(&self) -> f64 {
        let mean = self.mean();
        (self.mean_square() - mean * mean).max(0.0) + mean * mean / 4096.0
    }
}

/// Weights `[K, N]` that read the observation, and their largest code.
pub(crate) struct Reader {
    pub(crate) w: Vec<f64>,
    pub(crate) n: usize,
    pub(crate) hi: i32,
}

/// Doublings of a step beyond what the range needs: 8 of 16 bits are left.
const MAX_DOUBLINGS: i32 = 8;

/// The step of each feature, for codes up to `hi`.
pub(crate) fn entry_steps(features: &[Feature], readers: &[Reader], hi: i32) -> Vec<f64> {
    let smallest: Vec<f64> = features.iter().map(|feature| smallest_step(feature.max_abs, hi)).collect();
    let magnitude = |k: usize, step: f64| -> f64 {
        let of_reader = |reader: &Reader| {
            let row = reader.w.iter().skip(k * reader.n).take(reader.n);
            row.fold(0.0f64, |a, w| a.max(w.abs())) / f64::from(reader.hi)
        };
        readers.iter().map(of_reader).fold(0.0f64, f64::max) * step
    };
    let rows: Vec<f64> = smallest.iter().enumerate().map(|(k, &step)| magnitude(k, step)).collect();
    let largest = rows.iter().fold(0.0f64, |a, &b| a.max(b));
    let mut best = (noise(features, readers, &smallest), smallest.clone());
    for halvings in 0..=MAX_DOUBLINGS {
        // Rows below the level rise to it, as far as they may.
        let level = libm::ldexp(largest, -halvings);
        let raised = |(&step, &row): (&f64, &f64)| {
            let doublings = if row > 0.0 && level >= row { libm::ilogb(level / row).min(MAX_DOUBLINGS) } else { 0 };
            libm::ldexp(step, doublings)
        };
        let steps: Vec<f64> = smallest.iter().zip(&rows).map(raised).collect();
        let of_steps = noise(features, readers, &steps);
        if of_steps < best.0 {
            best = (of_steps, steps);
        }
    }
    best.1
}

/// The smallest power of two that holds twice the largest magnitude in
/// `hi` codes. A feature that was always zero holds 8: nothing is known
/// about it.
pub(crate) fn smallest_step(max_abs: f64, hi: i32) -> f64 {
    let covered = if max_abs > 0.0 { 2.0 * max_abs } else { 8.0 };
    let smallest = covered / f64::from(hi.max(1));
    let power = libm::ldexp(1.0, libm::ilogb(smallest));
    let step = if power < smallest { 2.0 * power } else { power };
    // Reciprocals and products with weights stay normal.
    step.clamp(libm::ldexp(1.0, -60), libm::ldexp(1.0, 60))
}

/// Sum of the variances of the rounding errors in all results, times 12:
/// `sum_n (s_n^2 sum_k spread_k / d_k^2 + sum_k W[k, n]^2 d_k^2)`.
fn noise(features: &[Feature], readers: &[Reader], steps: &[f64]) -> f64 {
    let codes: f64 = features.iter().zip(steps).map(|(feature, step)| feature.spread() / (step * step)).sum();
    let of_reader = |reader: &Reader| -> f64 {
        let mut largest = vec![0.0f64; reader.n];
        let mut observed = 0.0;
        for (row, step) in reader.w.chunks_exact(reader.n.max(1)).zip(steps) {
            for (largest, w) in largest.iter_mut().zip(row) {
                let folded = w.abs() * step;
                *largest = largest.max(folded);
                observed += folded * folded;
            }
        }
        let s = |largest: &f64| largest / f64::from(reader.hi);
        largest.iter().map(|largest| s(largest) * s(largest) * codes).sum::<f64>() + observed
    };
    readers.iter().map(of_reader).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ENTRY_HI;

    fn feature(mean: f64, deviation: f64) -> Feature {
        let mut feature = Feature::default();
        [mean - deviation, mean + deviation].into_iter().for_each(|x| feature.add(x));
        feature
    }

    #[test]
    fn a_step_is_a_power_of_two_with_room_for_twice_the_largest() {
        for max_abs in [0.0, 1e-30, 1e-3, 0.7, 1.0, 31.9, 1e4] {
            let step = smallest_step(max_abs, ENTRY_HI);
            assert_eq!(libm::frexp(step).0, 0.5);
            assert!(2.0 * max_abs / step <= f64::from(ENTRY_HI));
        }
        assert_eq!(smallest_step(1.0, ENTRY_HI), libm::ldexp(1.0, -13));
    }

    #[test]
    fn rows_rise_beside_a_large_one() {
        // A feature at 1 with deviation 0.001, normalized: a weight of 1000.
        let features = [feature(1.0, 0.001), feature(0.0, 1.0)];
        let readers = [Reader { w: vec![1000.0, 1.0], n: 1, hi: 127 }];
        let steps = entry_steps(&features, &readers, ENTRY_HI);
        assert_eq!(steps[0], smallest_step(features[0].max_abs, ENTRY_HI));
        assert!(steps[1] >= 16.0 * smallest_step(1.0, ENTRY_HI), "{steps:?}");
    }

    #[test]
    fn level_rows_keep_the_finest_steps() {
        let features = [feature(0.0, 1.0), feature(0.0, 1.0)];
        let readers = [Reader { w: vec![1.0, 1.0], n: 1, hi: 127 }];
        assert_eq!(entry_steps(&features, &readers, ENTRY_HI), [smallest_step(1.0, ENTRY_HI); 2]);
    }
}
