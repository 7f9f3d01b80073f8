//! The multiplier of requantization: `M = m * 2^-shift` with an odd 16-bit `m`.
//!
//! `M` is the truth and the float scale is derived from it, so the numbers that
//! training sees are those that every kernel computes. An odd `m >= 2^15` makes
//! ties impossible for unsaturated 4- and 8-bit results: a tie would need
//! `acc = j * 2^(shift-1)` with odd `j`, hence `|acc * M| >= m / 2 >= 2^14`.
//! Adding half and shifting is therefore round-half-to-even.

/// `m * 2^-shift`, `m` odd, `2^15 <= m < 2^16`, `1 <= shift <= 62`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Multiplier {
    m: u32,
    shift: u32,
}

impl Multiplier {
    /// Smallest mantissa.
    pub const M_MIN: u32 = (1 << 15) + 1;
    /// Largest mantissa.
    pub const M_MAX: u32 = (1 << 16) - 1;
    /// Largest shift: `|acc * m| + 2^(shift-1)` stays inside an `i64`.
    pub const SHIFT_MAX: u32 = 62;

    /// The nearest multiplier to a real factor, or `None` if the factor is not
    /// finite, not positive, `>= 2^15` or below `2^-47`.
    pub fn nearest(factor: f64) -> Option<Self> {
        if !factor.is_finite() || factor <= 0.0 {
            return None;
        }
        let exponent = libm::ilogb(factor);
        let m = odd_nearest(libm::ldexp(factor, 15 - exponent));
        let shift = u32::try_from(15 - exponent).ok()?;
        Self::new(m, shift)
    }

    /// The multiplier of the given parts, or `None` if they break an invariant.
    pub fn new(m: u32, shift: u32) -> Option<Self> {
        let ok = m % 2 == 1 && (Self::M_MIN..=Self::M_MAX).contains(&m) && (1..=Self::SHIFT_MAX).contains(&shift);
        ok.then_some(Self { m, shift })
    }

    /// The mantissa.
    pub fn m(self) -> u32 {
        self.m
    }

    /// The shift.
    pub fn shift(self) -> u32 {
        self.shift
    }

    /// The factor as a real number, exact.
    pub fn factor(self) -> f64 {
        libm::ldexp(f64::from(self.m), -(self.shift as i32))
    }

    /// `clamp((acc*m + 2^(shift-1)) >> shift, lo, hi)`, exact for every `acc`.
    pub fn requantize(self, acc: i32, lo: i32, hi: i32) -> i32 {
        let rounded = (i64::from(acc) * i64::from(self.m) + (1i64 << (self.shift - 1))) >> self.shift;
        rounded.clamp(i64::from(lo), i64::from(hi)) as i32
    }
}

/// The odd integer nearest to a number in `[2^15, 2^16)`.
fn odd_nearest(scaled: f64) -> u32 {
    (2.0 * (scaled / 2.0).floor() + 1.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_within_one_part_in_2_to_the_15() {
        let mut factor = 1.3e-9;
        while factor < 1e4 {
            let multiplier = Multiplier::nearest(factor).unwrap();
            assert!((multiplier.factor() / factor - 1.0).abs() <= 2f64.powi(-15), "{factor}");
            factor *= 1.000_37;
        }
    }

    #[test]
    fn nearest_of_its_own_factor_is_itself() {
        for m in (Multiplier::M_MIN..=Multiplier::M_MAX).step_by(2) {
            let multiplier = Multiplier::new(m, 20).unwrap();
            // The derived scale is stored as f32: that error must not move `m`.
            let stored = f64::from(multiplier.factor() as f32);
            assert_eq!(Multiplier::nearest(stored), Some(multiplier));
        }
    }

    #[test]
    fn a_shift_is_round_half_to_even_without_ties() {
        let multiplier = Multiplier::nearest(0.003_217).unwrap();
        for acc in -40_000..40_000 {
            let exact = f64::from(acc) * multiplier.factor();
            assert_eq!(f64::from(multiplier.requantize(acc, -128, 127)), exact.round_ties_even().clamp(-128.0, 127.0));
        }
    }

    #[test]
    fn extremes_do_not_wrap() {
        for shift in [1, 31, 47, 62] {
            let multiplier = Multiplier::new(65535, shift).unwrap();
            assert!(multiplier.requantize(i32::MAX, -128, 127) >= 0);
            assert!(multiplier.requantize(i32::MIN, -128, 127) <= 0);
        }
        assert_eq!(Multiplier::nearest(0.0), None);
        assert_eq!(Multiplier::nearest(f64::NAN), None);
        assert_eq!(Multiplier::nearest(1e9), None);
        assert_eq!(Multiplier::nearest(1e-30), None);
    }
}
