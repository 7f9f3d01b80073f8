//! Finds the step of an activation from its histogram.

use std::{fmt, str::FromStr};

use qail_ir::QuantScheme;

use super::{Histogram, code};

/// How a range becomes a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// Every number seen fits.
    MinMax,
    /// This percentage of all magnitudes fits, for example 99.99.
    Percentile(f64),
    /// The step with the least mean square error.
    Mse,
}

impl fmt::Display for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile(percent) => write!(f, "percentile:{percent}"),
            Self::Mse => f.write_str("mse"),
        }
    }
}

impl FromStr for Observer {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "min-max" => Ok(Self::MinMax),
            "mse" => Ok(Self::Mse),
            "percentile" => Ok(Self::Percentile(99.99)),
            _ => {
                let percent: f64 = text.strip_prefix("percentile:").and_then(|p| p.parse().ok()).ok_or(())?;
                if percent > 50.0 && percent <= 100.0 { Ok(Self::Percentile(percent)) } else { Err(()) }
            }
        }
    }
}

/// Which quantizers may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// Bits of a code.
    pub bits: u8,
    /// Unsigned codes are possible: never for the operand of a table of signed codes.
    pub unsigned: bool,
    /// A zero point is possible.
    pub zero_point: bool,
}

/// A quantizer of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    /// Width and sign.
    pub scheme: QuantScheme,
    /// The step, a positive normal number.
    pub step: f32,
    /// Code of zero.
    pub zero_point: i32,
    /// Mean square error on the histogram, behind the function of the search.
    pub mse: f64,
}

/// The smallest step: below it, factors of requantization leave their range.
const STEP_MIN: f64 = 1e-12;

/// The best quantizer of the values in `histogram`, judged by the error behind
/// `through`: the function that the codes feed, or the identity.
///
/// A zero point is chosen only if it lowers the mean square error by a tenth:
/// symmetric codes are cheaper to read for people and for kernels.
pub(crate) fn search(
    histogram: &Histogram,
    candidates: Candidates,
    observer: Observer,
    through: &dyn Fn(f64) -> f64,
) -> Quantizer {
    let Candidates { bits, unsigned, zero_point } = candidates;
    let task = Search { points: points(histogram, through), observer, histogram, through };
    if unsigned && histogram.min() >= 0.0 {
        return task.symmetric(QuantScheme::unsigned(bits));
    }
    let signed = task.symmetric(QuantScheme::signed(bits));
    if !(unsigned && zero_point) {
        return signed;
    }
    let shifted = task.shifted(QuantScheme::unsigned(bits));
    if shifted.mse < 0.9 * signed.mse { shifted } else { signed }
}

/// Number, how often, and the function of it.
fn points(histogram: &Histogram, through: &dyn Fn(f64) -> f64) -> Vec<(f64, f64, f64)> {
    histogram.centers().into_iter().map(|(x, n)| (x, n, through(x))).collect()
}

struct Search<'a> {
    points: Vec<(f64, f64, f64)>,
    observer: Observer,
    histogram: &'a Histogram,
    through: &'a dyn Fn(f64) -> f64,
}

impl Search<'_> {
    /// Codes whose zero is code 0.
    fn symmetric(&self, scheme: QuantScheme) -> Quantizer {
        let widest = |below: f64, above: f64| {
            let of_negative = if scheme.signed { -below / f64::from(-scheme.lo()) } else { 0.0 };
            of_negative.max(above / f64::from(scheme.hi()))
        };
        let step = match self.observer {
            Observer::MinMax | Observer::Mse => widest(self.histogram.min(), self.histogram.max()),
            Observer::Percentile(percent) => {
                let tail = 1.0 - percent / 100.0;
                widest(self.histogram.quantile(tail).min(0.0), self.histogram.quantile(1.0 - tail))
            }
        };
        self.best(scheme, self.ratios().into_iter().map(|ratio| (step * ratio, 0)))
    }

    /// Unsigned codes with a zero point: for `silu` and `elu`, whose negative
    /// side is short.
    fn shifted(&self, scheme: QuantScheme) -> Quantizer {
        let (below, above) = match self.observer {
            Observer::MinMax | Observer::Mse => (self.histogram.min(), self.histogram.max()),
            Observer::Percentile(percent) => {
                let tail = 1.0 - percent / 100.0;
                (self.histogram.quantile(tail).min(0.0), self.histogram.quantile(1.0 - tail))
            }
        };
        let widest = (above - below) / f64::from(scheme.hi());
        // How much of the negative side is kept.
        let kept: &[f64] = if self.observer == Observer::Mse { &[1.0, 0.8, 0.6, 0.4, 0.2] } else { &[1.0] };
        let ratios = self.ratios();
        let pairs = ratios.iter().flat_map(|ratio| kept.iter().map(move |kept| (widest * ratio, kept)));
        let steps = pairs.map(|(step, kept)| (step, code(-below * kept, step.max(STEP_MIN), 0, 0, scheme.hi())));
        self.best(scheme, steps)
    }

    fn ratios(&self) -> Vec<f64> {
        match self.observer {
            Observer::Mse => (8..=100).rev().map(|percent| f64::from(percent) / 100.0).collect(),
            Observer::MinMax | Observer::Percentile(_) => vec![1.0],
        }
    }

    /// The pair of step and zero point with the least error; the first of equals.
    fn best(&self, scheme: QuantScheme, pairs: impl Iterator<Item = (f64, i32)>) -> Quantizer {
        let mut best: Option<Quantizer> = None;
        for (step, zero_point) in pairs {
            // An activation that is always zero has no range: any step will do.
            let step = if step > STEP_MIN { step } else { STEP_MIN.max(1.0 / f64::from(scheme.hi())) } as f32;
            let mse = self.mse(scheme, step, zero_point);
            if best.is_none_or(|best| mse < best.mse) {
                best = Some(Quantizer { scheme, step, zero_point, mse });
            }
        }
        best.unwrap_or(Quantizer { scheme, step: 1.0, zero_point: 0, mse: f64::INFINITY })
    }

    fn mse(&self, scheme: QuantScheme, step: f32, zero_point: i32) -> f64 {
        let step = f64::from(step);
        let sum: f64 = self
            .points
            .iter()
            .map(|&(x, n, y)| {
                let code = code(x, step, zero_point, scheme.lo(), scheme.hi());
                let error = (self.through)(f64::from(code - zero_point) * step) - y;
                n * error * error
            })
            .sum();
        // Zeros have an exact code.
        sum / self.histogram.n().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::UnaryFn;

    use super::*;

    fn histogram(numbers: impl Iterator<Item = f64>) -> Histogram {
        let mut histogram = Histogram::default();
        numbers.for_each(|x| histogram.add(x));
        histogram
    }

    /// Nearly normal numbers: the sum of four uniform ones.
    fn bell(n: u32) -> impl Iterator<Item = f64> {
        (0..n).map(|i| (0..4).map(|j| (f64::from(i * 4 + j) * 12.9898).sin() * 43758.5453 % 1.0).sum())
    }

    const FOUR: Candidates = Candidates { bits: 4, unsigned: true, zero_point: true };

    #[test]
    fn the_search_beats_the_extremes() {
        let histogram = histogram(bell(4000).map(|x| x * x * x));
        let identity = |x: f64| x;
        let mse = search(&histogram, FOUR, Observer::Mse, &identity);
        let min_max = search(&histogram, FOUR, Observer::MinMax, &identity);
        assert!(mse.mse < 0.6 * min_max.mse, "{} {}", mse.mse, min_max.mse);
    }

    #[test]
    fn numbers_above_zero_are_unsigned() {
        let quantizer = search(&histogram(bell(500).map(f64::abs)), FOUR, Observer::Mse, &|x| x);
        assert_eq!((quantizer.scheme, quantizer.zero_point), (QuantScheme::unsigned(4), 0));
    }

    #[test]
    fn a_short_negative_side_gets_a_zero_point() {
        let silu = |x: f64| UnaryFn::Silu.eval_f64(x);
        let quantizer = search(&histogram(bell(2000).map(silu)), FOUR, Observer::Mse, &|x| x);
        assert_eq!(quantizer.scheme, QuantScheme::unsigned(4));
        assert!((1..4).contains(&quantizer.zero_point), "{quantizer:?}");
    }

    #[test]
    fn a_saturated_side_costs_no_codes() {
        let wide = histogram(bell(2000).map(|x| 20.0 * x));
        let signed = Candidates { bits: 8, unsigned: false, zero_point: false };
        let of_tanh = search(&wide, signed, Observer::Mse, &libm::tanh);
        let of_itself = search(&wide, signed, Observer::Mse, &|x| x);
        assert!(of_tanh.step < 0.25 * of_itself.step, "{of_tanh:?} {of_itself:?}");
    }

    #[test]
    fn zeros_alone_have_a_step() {
        let quantizer = search(&histogram([0.0; 10].into_iter()), FOUR, Observer::Mse, &|x| x);
        assert!(quantizer.step.is_normal() && quantizer.step > 0.0);
    }

    #[test]
    fn names_of_observers_read_back() {
        for observer in [Observer::MinMax, Observer::Mse, Observer::Percentile(99.9)] {
            assert_eq!(observer.to_string().parse(), Ok(observer));
        }
        assert!("percentile:0".parse::<Observer>().is_err());
    }
}
