//! Steps that compare, choose and look up by index.
//!
//! Computed integers and truth values are `i32`, whatever width the model gives
//! them; a result outside of its type is an error of the run.

use super::step::Operand;

/// Smallest and largest integer that a result may be.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct IntRange {
    /// Smallest.
    #[prost(sint32, tag = "1")]
    pub lo: i32,
    /// Largest.
    #[prost(sint32, tag = "2")]
    pub hi: i32,
}

/// Comparisons. With NaN only `Ne` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CompareKind {
    /// Not a valid comparison.
    Unspecified = 0,
    /// `a == b`.
    Eq = 1,
    /// `a != b`.
    Ne = 2,
    /// `a < b`.
    Lt = 3,
    /// `a <= b`.
    Le = 4,
    /// `a > b`.
    Gt = 5,
    /// `a >= b`.
    Ge = 6,
}

/// `out = f(a, b)` over the shape of `out`: 1 or 0.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Compare {
    /// First operand, `f32` or `i32`.
    #[prost(message, required, tag = "1")]
    pub a: Operand,
    /// Second operand, of the same type.
    #[prost(message, required, tag = "2")]
    pub b: Operand,
    /// `i32`.
    #[prost(uint32, tag = "3")]
    pub out: u32,
    /// The comparison.
    #[prost(enumeration = "CompareKind", tag = "4")]
    pub f: i32,
}

/// `out = a` where `truth` is not 0, else `b`, over the shape of `out`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Where {
    /// `i32`.
    #[prost(message, required, tag = "1")]
    pub truth: Operand,
    /// `f32` or `i32`.
    #[prost(message, required, tag = "2")]
    pub a: Operand,
    /// Of the same type.
    #[prost(message, required, tag = "3")]
    pub b: Operand,
    /// Of the same type.
    #[prost(uint32, tag = "4")]
    pub out: u32,
}

/// `out[i] = x[offset + i . strides + place(index[i . index strides]) * along]`
/// over the shape of `out`. `place` counts negative indices from the end and
/// takes the nearest of `extent` places for what lies beyond either end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gather {
    /// Any storage.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// `i32`.
    #[prost(message, required, tag = "2")]
    pub index: Operand,
    /// As `x`.
    #[prost(uint32, tag = "3")]
    pub out: u32,
    /// Places.
    #[prost(uint64, tag = "4")]
    pub extent: u64,
    /// Elements from place to place.
    #[prost(sint64, tag = "5")]
    pub along: i64,
}

/// What becomes of an element that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ScatterKind {
    /// Not a valid function.
    Unspecified = 0,
    /// The new one.
    Replace = 1,
    /// Their sum.
    Add = 2,
    /// Their product.
    Mul = 3,
    /// The smaller one.
    Min = 4,
    /// The larger one.
    Max = 5,
}

/// A copy of `x[extent, row]` whose row `index[m]` is combined with row `m` of
/// `update`, in order. Negative indices count from the end; rows beyond either
/// end are left out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scatter {
    /// `f32` or `i32`, dense.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `i32`, dense.
    #[prost(uint32, tag = "2")]
    pub index: u32,
    /// As `x`, dense.
    #[prost(uint32, tag = "3")]
    pub update: u32,
    /// As `x`.
    #[prost(uint32, tag = "4")]
    pub out: u32,
    /// Rows of `x`.
    #[prost(uint64, tag = "5")]
    pub extent: u64,
    /// Elements of a row.
    #[prost(uint64, tag = "6")]
    pub row: u64,
    /// How.
    #[prost(enumeration = "ScatterKind", tag = "7")]
    pub f: i32,
    /// Of integers.
    #[prost(message, optional, tag = "8")]
    pub range: Option<IntRange>,
}

/// The first `k` elements, sorted, of rows of `n` that lie `inner` apart, or
/// their indices. NaN comes before every number; of equal elements the first one
/// comes first, or with `last` the last one. Dense.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Order {
    /// `f32` or `i32`, `[outer, n, inner]`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// As `x`, or `i32`: `[outer, k, inner]`.
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
    /// How many.
    #[prost(uint64, tag = "6")]
    pub k: u64,
    /// Largest first.
    #[prost(bool, tag = "7")]
    pub largest: bool,
    /// Of equal elements the last one first.
    #[prost(bool, tag = "8")]
    pub last: bool,
    /// Indices, not elements.
    #[prost(bool, tag = "9")]
    pub indices: bool,
}

/// Running sums of rows of `n` elements that lie `inner` apart. Dense, in the
/// shape `[outer, n, inner]`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Scan {
    /// `f32` or `i32`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// As `x`.
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
    /// The element itself is not part of its sum.
    #[prost(bool, tag = "6")]
    pub exclusive: bool,
    /// From the end.
    #[prost(bool, tag = "7")]
    pub reverse: bool,
    /// Of integers.
    #[prost(message, optional, tag = "8")]
    pub range: Option<IntRange>,
}

/// What a cast makes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CastKind {
    /// Not a valid cast.
    Unspecified = 0,
    /// The same integer; one that `out` cannot hold is an error of the run.
    Same = 1,
    /// 1 if it is not 0, else 0.
    Bool = 2,
    /// Of integers the low 8 bits; of floats the nearest towards 0 in `0..=255`, NaN is 0.
    U8 = 3,
    /// Likewise with 32 bits and sign.
    I32 = 4,
    /// Likewise with 64 bits and sign; one that `out` cannot hold is an error of the run.
    I64 = 5,
    /// The nearest `f32`.
    F32 = 6,
}

/// `out = cast(x)`, element by element, dense. On the host only.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Cast {
    /// `f32` or plain integers.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32` or plain integers.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// How.
    #[prost(enumeration = "CastKind", tag = "3")]
    pub to: i32,
}

/// Sum of codes with one rounding, over the shape of `out`:
/// `clamp((((a - zero_a) * m_a + (b - zero_b) * m_b + 2^(shift-1)) >> shift) + zero_point, lo, hi)`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QAdd {
    /// Codes of 8 bits, or `i32` accumulators.
    #[prost(message, required, tag = "1")]
    pub a: Operand,
    /// Codes of 8 bits.
    #[prost(message, required, tag = "2")]
    pub b: Operand,
    /// Codes of 8 bits.
    #[prost(uint32, tag = "3")]
    pub out: u32,
    /// `i32[1]` or `i32[last axis]`, positive.
    #[prost(uint32, tag = "4")]
    pub m_a: u32,
    /// Positive.
    #[prost(sint32, tag = "5")]
    pub m_b: i32,
    /// 1 to 62.
    #[prost(uint32, tag = "6")]
    pub shift: u32,
    /// Code of zero of `a`.
    #[prost(sint32, tag = "7")]
    pub zero_a: i32,
    /// Code of zero of `b`.
    #[prost(sint32, tag = "8")]
    pub zero_b: i32,
    /// Code of zero of the result.
    #[prost(sint32, tag = "9")]
    pub zero_point: i32,
    /// Smallest code.
    #[prost(sint32, tag = "10")]
    pub lo: i32,
    /// Largest code.
    #[prost(sint32, tag = "11")]
    pub hi: i32,
}

/// Codes by code, over the shape of `out`: `out = table[x + 128]`, of stored bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lookup {
    /// Codes of 8 bits.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// Codes of 8 bits.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Layout `I8`, 256 stored bytes.
    #[prost(uint32, tag = "3")]
    pub table: u32,
}
