//! Computed integers: exact in their type, or an error of the run.

use qail_artifact::schema::step::{BinaryKind, IntRange};

/// Smallest and largest integer of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    lo: i64,
    hi: i64,
}

impl Range {
    /// What a step says, or all 32-bit integers.
    pub(super) fn new(range: Option<IntRange>) -> Self {
        let range = range.unwrap_or(IntRange { lo: i32::MIN, hi: i32::MAX });
        Self { lo: range.lo.into(), hi: range.hi.into() }
    }

    /// The integer, if it is one of the type.
    pub(super) fn fit(self, value: Option<i64>) -> Result<i32, &'static str> {
        let fits = value.filter(|value| (self.lo..=self.hi).contains(value));
        fits.and_then(|value| i32::try_from(value).ok()).ok_or("does not fit its type of at most 32 bits")
    }

    /// A function of two integers. Division truncates.
    pub(super) fn binary(self, f: BinaryKind, a: i32, b: i32) -> Result<i32, &'static str> {
        let (x, y) = (i64::from(a), i64::from(b));
        // Neither a product nor a quotient of 32-bit integers leaves 64 bits.
        let value = match f {
            BinaryKind::Add => Some(x + y),
            BinaryKind::Sub => Some(x - y),
            BinaryKind::Mul => Some(x * y),
            BinaryKind::Div if y == 0 => return Err("is the quotient of an integer and zero"),
            BinaryKind::Div => Some(x / y),
            BinaryKind::Pow if y < 0 => return Err("is a negative power of an integer"),
            BinaryKind::Pow => power(x, y),
            BinaryKind::Min => Some(x.min(y)),
            BinaryKind::Max => Some(x.max(y)),
            BinaryKind::Mod | BinaryKind::Rem if y == 0 => return Err("is the remainder of an integer and zero"),
            BinaryKind::Mod => {
                let rest = x % y;
                Some(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest })
            }
            BinaryKind::Rem => Some(x % y),
            BinaryKind::Unspecified => return Err("has no function"),
        };
        self.fit(value)
    }
}

fn power(x: i64, y: i64) -> Option<i64> {
    match x {
        0 | 1 => Some(if y == 0 { 1 } else { x }),
        -1 => Some(if y % 2 == 0 { 1 } else { -1 }),
        _ => x.checked_pow(u32::try_from(y).ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact_or_an_error() {
        let all = Range::new(None);
        assert_eq!(all.binary(BinaryKind::Div, -7, 2), Ok(-3));
        assert_eq!(all.binary(BinaryKind::Mod, -7, 3), Ok(2));
        assert_eq!(all.binary(BinaryKind::Rem, -7, 3), Ok(-1));
        assert_eq!(all.binary(BinaryKind::Pow, -1, i32::MAX), Ok(-1));
        assert!(all.binary(BinaryKind::Add, i32::MAX, 1).is_err());
        assert!(all.binary(BinaryKind::Div, i32::MIN, -1).is_err());
        assert!(all.binary(BinaryKind::Rem, 1, 0).is_err());
        let bytes = Range::new(Some(IntRange { lo: 0, hi: 255 }));
        assert!(bytes.binary(BinaryKind::Sub, 0, 1).is_err());
    }
}
