//! Names of precisions: `f32`, `w8a8`, `w4a8`, `w4a4`, `w8a16`, `w4a16`.

use std::{fmt, str::FromStr};

/// Width of weights and activations inside the network.
///
/// In `wXa16` activations are floats. Edge layers and the observation may be
/// wider: see [`Precision::effective`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// Nothing is quantized.
    F32,
    /// 8-bit weights and activations.
    W8A8,
    /// 4-bit weights, 8-bit activations.
    W4A8,
    /// 4-bit weights and activations.
    W4A4,
    /// 8-bit weights, float activations.
    W8A16,
    /// 4-bit weights, float activations.
    W4A16,
}

/// A name that is not a precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no precision is called `{found}`; known are f32, w8a8, w4a8, w4a4, w8a16, w4a16")]
pub struct ParsePrecisionError {
    found: String,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 6] = [Self::F32, Self::W8A8, Self::W4A8, Self::W4A4, Self::W8A16, Self::W4A16];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::W8A8 => "w8a8",
            Self::W4A8 => "w4a8",
            Self::W4A4 => "w4a4",
            Self::W8A16 => "w8a16",
            Self::W4A16 => "w4a16",
        }
    }

    /// Bits of a weight, if weights are quantized.
    pub fn weight_bits(self) -> Option<u8> {
        match self {
            Self::F32 => None,
            Self::W8A8 | Self::W8A16 => Some(8),
            Self::W4A8 | Self::W4A4 | Self::W4A16 => Some(4),
        }
    }

    /// Bits of an activation, if activations are quantized.
    pub fn activation_bits(self) -> Option<u8> {
        match self {
            Self::F32 | Self::W8A16 | Self::W4A16 => None,
            Self::W8A8 | Self::W4A8 => Some(8),
            Self::W4A4 => Some(4),
        }
    }

    /// True if steps of activations have to be found from data.
    pub fn needs_data(self) -> bool {
        self.activation_bits().is_some()
    }

    /// What really runs, for example `w4a4+e8+o16`: `e8` for edge layers wider
    /// than the inside, `o16` for the observation.
    pub fn effective(self, edge_bits: u8) -> String {
        let narrower = |bits: Option<u8>| bits.is_some_and(|bits| bits < edge_bits);
        let edges = narrower(self.weight_bits()) || narrower(self.activation_bits());
        let edges = if edges { format!("+e{edge_bits}") } else { String::new() };
        let observation = if self.activation_bits().is_some() { "+o16" } else { "" };
        format!("{}{edges}{observation}", self.name())
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = ParsePrecisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|precision| precision.name() == text.to_ascii_lowercase());
        known.ok_or_else(|| ParsePrecisionError { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert_eq!(
            "w3a3".parse::<Precision>().unwrap_err().to_string(),
            "no precision is called `w3a3`; known are f32, w8a8, w4a8, w4a4, w8a16, w4a16"
        );
    }

    #[test]
    fn the_effective_name_says_what_is_wider() {
        assert_eq!(Precision::W4A4.effective(8), "w4a4+e8+o16");
        assert_eq!(Precision::W4A4.effective(4), "w4a4+o16");
        assert_eq!(Precision::W4A8.effective(8), "w4a8+e8+o16");
        assert_eq!(Precision::W8A8.effective(8), "w8a8+o16");
        assert_eq!(Precision::W4A16.effective(8), "w4a16+e8");
        assert_eq!(Precision::F32.effective(8), "f32");
    }
}
