//! Into codes, out of them, and the linear layers on them.

/// `clamp(rne(x * factor) + zero_point, lo, hi)`, `f32` to codes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Quantize {
    /// `f32` tensor.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// Codes.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// `f32[1]` or `f32[last axis]`.
    #[prost(uint32, tag = "3")]
    pub factor: u32,
    /// Smallest code.
    #[prost(sint32, tag = "4")]
    pub lo: i32,
    /// Largest code.
    #[prost(sint32, tag = "5")]
    pub hi: i32,
    /// Code of zero.
    #[prost(sint32, tag = "6")]
    pub zero_point: i32,
}

/// How accumulators become codes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Requantize {
    /// `i32[n]`: odd mantissas.
    #[prost(uint32, tag = "1")]
    pub m: u32,
    /// `i32[n]`: shifts, 1 to 62.
    #[prost(uint32, tag = "2")]
    pub shift: u32,
    /// Smallest code.
    #[prost(sint32, tag = "3")]
    pub lo: i32,
    /// Largest code.
    #[prost(sint32, tag = "4")]
    pub hi: i32,
    /// Code of zero, added after the shift.
    #[prost(sint32, tag = "5")]
    pub zero_point: i32,
    /// 256 stored bytes of the result, indexed by `code - table_lo`.
    #[prost(uint32, optional, tag = "6")]
    pub table: Option<u32>,
    /// Smallest code of the 8-bit scheme that indexes the table.
    #[prost(sint32, tag = "7")]
    pub table_lo: i32,
}

/// `acc[row, n] = sum_k x[row, k] * w[k, n] + bias[n]`, exact in `i32`,
/// `x` as stored (bytes, without `code_offset`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct QLinear {
    /// Codes, `K` the last axis.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// Codes if `requantize` is present, else `i32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Packed weights.
    #[prost(uint32, tag = "3")]
    pub weight: u32,
    /// `i32[n]`, with zero points and storage offsets folded in.
    #[prost(uint32, tag = "4")]
    pub bias: u32,
    /// Rows of the weight matrix.
    #[prost(uint64, tag = "5")]
    pub k: u64,
    /// Columns of the weight matrix.
    #[prost(uint64, tag = "6")]
    pub n: u64,
    /// Number of rows of `x`.
    #[prost(uint64, tag = "7")]
    pub rows: u64,
    /// How accumulators become codes.
    #[prost(message, optional, tag = "8")]
    pub requantize: Option<Requantize>,
}

/// `acc[row, n] = sum_k x[row, g * K + k] * w[n, k] + bias[n]`, exact in `i32`,
/// where `g = n / (N / groups)` is the group of channel `n`; `x` as stored.
///
/// The weights of a channel are few, so they are bytes of a section of layout
/// `I8`, `[N][K]`, with zeros up to a multiple of 4 bytes: tiles pad K to 32.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QGroups {
    /// Codes, `groups * K` the last axis.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// Codes if `requantize` is present, else `i32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Weights.
    #[prost(uint32, tag = "3")]
    pub weight: u32,
    /// `i32[n]`, with zero points and storage offsets folded in.
    #[prost(uint32, tag = "4")]
    pub bias: u32,
    /// Features of a group.
    #[prost(uint64, tag = "5")]
    pub k: u64,
    /// Channels of all groups.
    #[prost(uint64, tag = "6")]
    pub n: u64,
    /// Number of rows of `x`.
    #[prost(uint64, tag = "7")]
    pub rows: u64,
    /// How accumulators become codes.
    #[prost(message, optional, tag = "8")]
    pub requantize: Option<Requantize>,
    /// Groups; a divisor of `n`.
    #[prost(uint64, tag = "9")]
    pub groups: u64,
}

/// A requantization on its own: accumulators with several readers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequantizeStep {
    /// `i32` accumulators.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// Codes.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// How.
    #[prost(message, required, tag = "3")]
    pub requantize: Requantize,
}

/// `((q - zero_point) as f64 * scale) as f32`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dequantize {
    /// `i32` accumulators or codes.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// `f64[1]` or `f64[last axis]`.
    #[prost(uint32, tag = "3")]
    pub scale: u32,
    /// Code of zero.
    #[prost(sint32, tag = "4")]
    pub zero_point: i32,
}
