//! Steps that turn or scale a value by others, in `f32`. Strides are over the axes of `out`.

use super::step::Operand;

/// `out = x * cos + r * sin`, where `r` holds the other element of every pair of
/// a row (the last axis), the first of the two with a minus: pairs `(i, i + D / 2)`
/// or neighbours. Two products and a sum, each rounded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rope {
    /// `f32`.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// `f32`.
    #[prost(message, required, tag = "2")]
    pub cos: Operand,
    /// `f32`.
    #[prost(message, required, tag = "3")]
    pub sin: Operand,
    /// `f32`, dense, an even number of elements a row.
    #[prost(uint32, tag = "4")]
    pub out: u32,
    /// Pairs are neighbours.
    #[prost(bool, tag = "5")]
    pub interleaved: bool,
}

/// `out = x * scale + shift`, product and sum rounded separately.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Film {
    /// `f32`.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// `f32`.
    #[prost(message, required, tag = "2")]
    pub scale: Operand,
    /// `f32`.
    #[prost(message, required, tag = "3")]
    pub shift: Operand,
    /// `f32`, dense.
    #[prost(uint32, tag = "4")]
    pub out: u32,
}
