//! Noise schedules: how much signal and how much noise a timestep has.
//!
//! Everything is computed in `f64`; PyTorch samplers compute the same tables in
//! `f32`, which differs by about 1e-7.

use std::f64::consts::FRAC_PI_2;

use super::SamplerError;

/// Most timesteps of training.
const MAX_TRAIN_STEPS: usize = 1 << 16;

/// How `beta`, the noise added at each timestep of training, grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BetaSchedule {
    /// `squaredcos_cap_v2`: the cosine schedule (arXiv 2102.09672, eq. 17).
    SquaredCosine,
    /// From `start` to `end` in equal steps (arXiv 2006.11239).
    Linear {
        /// First beta.
        start: f64,
        /// Last beta.
        end: f64,
    },
    /// `scaled_linear`: the square roots are in equal steps.
    ScaledLinear {
        /// First beta.
        start: f64,
        /// Last beta.
        end: f64,
    },
}

/// Which timesteps of training a sampler visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of `N / n`, from 0.
    #[default]
    Leading,
    /// Multiples of `N / n`, from the last timestep down.
    Trailing,
    /// `n` timesteps from first to last in equal steps.
    Linspace,
}

/// `alpha_bar` of each timestep: the part of the signal's variance that is left.
///
/// # Errors
/// Numbers outside of their range.
pub fn alpha_bars(schedule: BetaSchedule, n: usize) -> Result<Vec<f64>, SamplerError> {
    let wrong =
        |what: &'static str, found: String, expected: &'static str| SamplerError::Number { what, found, expected };
    if !(1..=MAX_TRAIN_STEPS).contains(&n) {
        return Err(wrong("train_steps", n.to_string(), "1 to 65536"));
    }
    if let BetaSchedule::Linear { start, end } | BetaSchedule::ScaledLinear { start, end } = schedule
        && !(start > 0.0 && end >= start && end < 1.0)
    {
        return Err(wrong("beta_start and beta_end", format!("{start} and {end}"), "ascending, between 0 and 1"));
    }
    let cosine = |t: f64| libm::pow(libm::cos((t + 0.008) / 1.008 * FRAC_PI_2), 2.0);
    let along = |start: f64, end: f64, i: usize| start + (end - start) * i as f64 / (n.max(2) - 1) as f64;
    let beta = |i: usize| match schedule {
        BetaSchedule::SquaredCosine => {
            (1.0 - cosine((i + 1) as f64 / n as f64) / cosine(i as f64 / n as f64)).min(0.999)
        }
        BetaSchedule::Linear { start, end } => along(start, end, i),
        BetaSchedule::ScaledLinear { start, end } => along(start.sqrt(), end.sqrt(), i).powi(2),
    };
    let mut left = 1.0;
    Ok((0..n)
        .map(|i| {
            left *= 1.0 - beta(i);
            left
        })
        .collect())
}

/// The timesteps that `n` turns visit out of `n_train`, first to last.
///
/// # Errors
/// More turns than timesteps, or none.
pub fn timesteps(spacing: Spacing, n_train: usize, n: usize) -> Result<Vec<usize>, SamplerError> {
    if n == 0 || n > n_train {
        let found = n.to_string();
        return Err(SamplerError::Number { what: "steps", found, expected: "at least 1, and at most train_steps" });
    }
    let ratio = n_train as f64 / n as f64;
    let at = |i: usize| match spacing {
        Spacing::Leading => (n - 1 - i) * (n_train / n),
        Spacing::Trailing => ((n_train as f64 - i as f64 * ratio).round_ties_even() as usize).saturating_sub(1),
        Spacing::Linspace if n == 1 => 0,
        Spacing::Linspace => {
            let step = (n_train - 1) as f64 / (n - 1) as f64;
            ((n - 1 - i) as f64 * step).round_ties_even() as usize
        }
    };
    Ok((0..n).map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_those_of_the_papers() {
        // The betas telescope: (cos((i + 1) / 100) / cos(0))^2 of shifted angles; the last one is capped.
        let cosine = alpha_bars(BetaSchedule::SquaredCosine, 100).unwrap();
        for (i, expected) in [(0, 0.999_369), (50, 0.478_26), (99, 2.429e-7)] {
            assert!((cosine[i] - expected).abs() <= 2e-3 * expected, "{i}: {}", cosine[i]);
        }
        let linear = alpha_bars(BetaSchedule::Linear { start: 1e-4, end: 0.02 }, 1000).unwrap();
        assert!((linear[0] - 0.9999).abs() < 1e-9 && (linear[999] - 4.036e-5).abs() < 1e-7, "{}", linear[999]);
        let scaled = alpha_bars(BetaSchedule::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap();
        assert!((scaled[999] - 0.004_660).abs() < 1e-5, "{}", scaled[999]);
        assert!(alpha_bars(BetaSchedule::Linear { start: 0.5, end: 0.1 }, 10).is_err());
        assert!(alpha_bars(BetaSchedule::SquaredCosine, 0).is_err());
    }

    #[test]
    fn timesteps_descend() {
        assert_eq!(timesteps(Spacing::Leading, 100, 10).unwrap(), [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]);
        assert_eq!(timesteps(Spacing::Trailing, 100, 4).unwrap(), [99, 74, 49, 24]);
        assert_eq!(timesteps(Spacing::Linspace, 100, 4).unwrap(), [99, 66, 33, 0]);
        assert_eq!(timesteps(Spacing::Leading, 100, 3).unwrap(), [66, 33, 0]);
        assert!(timesteps(Spacing::Leading, 10, 11).is_err());
    }
}
