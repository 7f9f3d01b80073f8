//! Steps of transformers over whole rows, in `f32`.

use super::step::Operand;

/// Softmax of rows of `n` elements that lie `inner` apart: with `m` the largest
/// (NaN wins), `e = exp(x - m)` and `s` their sum in order, `e / s`; or with
/// `log` `(x - m) - ln(s)`. Dense, in the shape `[outer, n, inner]`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Softmax {
    /// `f32`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Axes before the row.
    #[prost(uint64, tag = "3")]
    pub outer: u64,
    /// Elements of a row.
    #[prost(uint64, tag = "4")]
    pub n: u64,
    /// Axes behind the row.
    #[prost(uint64, tag = "5")]
    pub inner: u64,
    /// The logarithm of it.
    #[prost(bool, tag = "6")]
    pub log: bool,
}

/// Rows scaled to variance 1: with `center` `d = x - sum(x) / n`, else `d = x`;
/// then `d * (1 / sqrt(sum(d * d) / n + eps))`. Sums in index order of `inner`.
/// Dense; results lie where their numbers do.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Normalize {
    /// `f32`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Extents of the axes that number the rows.
    #[prost(uint64, repeated, tag = "3")]
    pub outer: Vec<u64>,
    /// Their strides.
    #[prost(sint64, repeated, tag = "4")]
    pub outer_strides: Vec<i64>,
    /// Extents of the axes of a row.
    #[prost(uint64, repeated, tag = "5")]
    pub inner: Vec<u64>,
    /// Their strides.
    #[prost(sint64, repeated, tag = "6")]
    pub inner_strides: Vec<i64>,
    /// Added to the variance.
    #[prost(float, tag = "7")]
    pub eps: f32,
    /// Subtract the mean.
    #[prost(bool, tag = "8")]
    pub center: bool,
}

/// `softmax(q . k * scale + mask) . v` for every head; dense `q[b, h, l, e]`,
/// `k[b, g, s, e]`, `v[b, g, s, width]`; head `h` reads group `h / (heads / groups)`.
/// Sums are sequential, every step is rounded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attention {
    /// `f32`.
    #[prost(uint32, tag = "1")]
    pub q: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub k: u32,
    /// `f32`.
    #[prost(uint32, tag = "3")]
    pub v: u32,
    /// `f32`, strides over `[b, h, l, s]`.
    #[prost(message, optional, tag = "4")]
    pub mask: Option<Operand>,
    /// `f32`, dense `[b, h, l, width]`.
    #[prost(uint32, tag = "5")]
    pub out: u32,
    /// Factor of the scores.
    #[prost(float, tag = "6")]
    pub scale: f32,
    /// `b`.
    #[prost(uint64, tag = "7")]
    pub batch: u64,
    /// `h`.
    #[prost(uint64, tag = "8")]
    pub heads: u64,
    /// `g`, a divisor of `h`.
    #[prost(uint64, tag = "9")]
    pub groups: u64,
    /// `l`.
    #[prost(uint64, tag = "10")]
    pub queries: u64,
    /// `s`.
    #[prost(uint64, tag = "11")]
    pub keys: u64,
    /// `e`.
    #[prost(uint64, tag = "12")]
    pub depth: u64,
    /// Elements of a row of `v`.
    #[prost(uint64, tag = "13")]
    pub width: u64,
}
