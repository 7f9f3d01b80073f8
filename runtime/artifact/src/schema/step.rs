//! Operations. Operands are indices of tensors (`x`, `a`, `b`, `out`) and of
//! sections (everything else).

pub use super::{
    codes::{Dequantize, QGroups, QLinear, Quantize, Requantize, RequantizeStep},
    rope::{Film, Rope},
    rows::{Attention, Normalize, Softmax},
    select::{
        Cast, CastKind, Compare, CompareKind, Gather, IntRange, Lookup, Order, QAdd, Scan, Scatter, ScatterKind, Where,
    },
    window::Unfold,
};

/// What a step computes.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Op {
    /// Entry of a quantized region.
    #[prost(message, tag = "10")]
    Quantize(Quantize),
    /// Integer matrix product with an optional requantization.
    #[prost(message, tag = "11")]
    QLinear(QLinear),
    /// Requantization on its own.
    #[prost(message, tag = "12")]
    Requantize(RequantizeStep),
    /// Exit of a quantized region.
    #[prost(message, tag = "13")]
    Dequantize(Dequantize),
    /// Float matrix product.
    #[prost(message, tag = "14")]
    Linear(Linear),
    /// Float matrix product with quantized weights.
    #[prost(message, tag = "15")]
    LinearWq(LinearWq),
    /// Function of one number.
    #[prost(message, tag = "16")]
    Unary(Unary),
    /// Function of two numbers.
    #[prost(message, tag = "17")]
    Binary(Binary),
    /// Strided copy: slice, transpose, expand, one operand of a concat.
    #[prost(message, tag = "18")]
    Copy(Copy),
    /// Reduction.
    #[prost(message, tag = "19")]
    Reduce(Reduce),
    /// Product of two computed values.
    #[prost(message, tag = "20")]
    MatMul(MatMul),
    /// A list of steps, several times over. Feature `repeat`.
    #[prost(message, tag = "21")]
    Repeat(Repeat),
    /// A copy through windows, with a fill beyond the edges.
    #[prost(message, tag = "22")]
    Unfold(Unfold),
    /// Softmax along an axis.
    #[prost(message, tag = "23")]
    Softmax(Softmax),
    /// Rows scaled to variance 1.
    #[prost(message, tag = "24")]
    Normalize(Normalize),
    /// Scaled dot-product attention.
    #[prost(message, tag = "25")]
    Attention(Attention),
    /// Truth of a comparison.
    #[prost(message, tag = "26")]
    Compare(Compare),
    /// One of two values.
    #[prost(message, tag = "27")]
    Where(Where),
    /// Parts by computed index.
    #[prost(message, tag = "28")]
    Gather(Gather),
    /// A copy with some rows changed.
    #[prost(message, tag = "29")]
    Scatter(Scatter),
    /// The extreme elements along an axis.
    #[prost(message, tag = "30")]
    Order(Order),
    /// Running sums.
    #[prost(message, tag = "31")]
    Scan(Scan),
    /// Another element type.
    #[prost(message, tag = "32")]
    Cast(Cast),
    /// Sum of codes.
    #[prost(message, tag = "33")]
    QAdd(QAdd),
    /// Integer product in groups of channels. Feature `groups`.
    #[prost(message, tag = "34")]
    QGroups(QGroups),
    /// Rotary position embedding.
    #[prost(message, tag = "35")]
    Rope(Rope),
    /// Feature-wise modulation.
    #[prost(message, tag = "36")]
    Film(Film),
    /// Codes by code.
    #[prost(message, tag = "37")]
    Lookup(Lookup),
}

/// `act(sum_k x[row, k] * w[k, n] + bias[n])` in `f32`: a sequential sum
/// from zero over `k`, multiply and add rounded separately, then the bias.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Linear {
    /// `f32`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Layout `F32Rows8`.
    #[prost(uint32, tag = "3")]
    pub weight: u32,
    /// `f32[n]`.
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
    /// Function of the result.
    #[prost(message, optional, tag = "8")]
    pub act: Option<Function>,
}

/// Weight-only quantization, `f32` arithmetic: for each group the sequential
/// sum over its `k` of `x * q`, times the scale, added to the result; then
/// the bias; then the function. No step is fused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinearWq {
    /// `f32`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Packed codes.
    #[prost(uint32, tag = "3")]
    pub weight: u32,
    /// `f32[ceil(k / group)][n]`.
    #[prost(uint32, tag = "4")]
    pub scale: u32,
    /// `f32[n]`.
    #[prost(uint32, tag = "5")]
    pub bias: u32,
    /// Rows of the weight matrix.
    #[prost(uint64, tag = "6")]
    pub k: u64,
    /// Columns of the weight matrix.
    #[prost(uint64, tag = "7")]
    pub n: u64,
    /// Number of rows of `x`.
    #[prost(uint64, tag = "8")]
    pub rows: u64,
    /// Rows of the weight matrix that share a scale.
    #[prost(uint64, tag = "9")]
    pub group: u64,
    /// Function of the result.
    #[prost(message, optional, tag = "10")]
    pub act: Option<Function>,
}

/// A function and its parameters.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Function {
    /// Which.
    #[prost(enumeration = "FunctionKind", tag = "1")]
    pub kind: i32,
    /// `alpha`, or the lower bound of a clip.
    #[prost(float, tag = "2")]
    pub p0: f32,
    /// The upper bound of a clip, `beta` of a hard sigmoid, `gamma` of a selu.
    #[prost(float, tag = "3")]
    pub p1: f32,
}

/// Functions of one number, evaluated in `f64` through `libm` on the host
/// and rounded once to `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FunctionKind {
    /// Not a valid function.
    Unspecified = 0,
    /// `max(x, 0)`.
    Relu = 1,
    /// `x` or `p0 * x`.
    LeakyRelu = 2,
    /// `x` or `p0 * expm1(x)`.
    Elu = 3,
    /// Hyperbolic tangent.
    Tanh = 4,
    /// Logistic function.
    Sigmoid = 5,
    /// `x * sigmoid(x)`.
    Silu = 6,
    /// `min(max(x, p0), p1)`.
    Clip = 7,
    /// Absolute value.
    Abs = 8,
    /// Negation.
    Neg = 9,
    /// Exponential.
    Exp = 10,
    /// Natural logarithm.
    Log = 11,
    /// Square root.
    Sqrt = 12,
    /// `1 / x`.
    Reciprocal = 13,
    /// The number itself: casts between plain types.
    Identity = 14,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu = 15,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh = 16,
    /// `x * tanh(ln(1 + exp(x)))`.
    Mish = 17,
    /// `x * sigmoid(p0 * x)`.
    Swish = 18,
    /// `min(max(p0 * x + p1, 0), 1)`.
    HardSigmoid = 19,
    /// `x * min(max(x / 6 + 1 / 2, 0), 1)`.
    HardSwish = 20,
    /// `p1 * x` or `p1 * p0 * expm1(x)`.
    Selu = 21,
    /// `x` or `p0 * expm1(x / p0)`.
    Celu = 22,
    /// `ln(1 + exp(x))`.
    Softplus = 23,
    /// `x / (1 + |x|)`.
    Softsign = 24,
    /// The error function.
    Erf = 25,
    /// Sine.
    Sin = 26,
    /// Cosine.
    Cos = 27,
    /// Tangent.
    Tan = 28,
    /// Inverse sine.
    Asin = 29,
    /// Inverse cosine.
    Acos = 30,
    /// Inverse tangent.
    Atan = 31,
    /// Hyperbolic sine.
    Sinh = 32,
    /// Hyperbolic cosine.
    Cosh = 33,
    /// Inverse hyperbolic sine.
    Asinh = 34,
    /// Inverse hyperbolic cosine.
    Acosh = 35,
    /// Inverse hyperbolic tangent.
    Atanh = 36,
    /// The largest whole number that is not above.
    Floor = 37,
    /// The smallest whole number that is not below.
    Ceil = 38,
    /// The nearest whole number, of two the even one.
    Round = 39,
    /// -1, 0 or 1.
    Sign = 40,
}

/// `out = f(x)`, element by element.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Unary {
    /// `f32`, or a plain integer type with `Identity`.
    #[prost(uint32, tag = "1")]
    pub x: u32,
    /// `f32`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// The function.
    #[prost(message, required, tag = "3")]
    pub f: Function,
}

/// Functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum BinaryKind {
    /// Not a valid function.
    Unspecified = 0,
    /// `a + b`.
    Add = 1,
    /// `a - b`.
    Sub = 2,
    /// `a * b`.
    Mul = 3,
    /// `a / b`.
    Div = 4,
    /// `a^b`.
    Pow = 5,
    /// The smaller one.
    Min = 6,
    /// The larger one.
    Max = 7,
    /// The remainder of the floored quotient.
    Mod = 8,
    /// The remainder of the truncated quotient.
    Rem = 9,
}

/// Where an operand comes from.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum Source {
    /// A tensor.
    #[prost(uint32, tag = "1")]
    Tensor(u32),
    /// An `f32` section, or an `i32` one where integers are accepted.
    #[prost(uint32, tag = "2")]
    Section(u32),
}

/// An operand with its strides.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operand {
    /// Where.
    #[prost(oneof = "Source", tags = "1, 2")]
    pub source: Option<Source>,
    /// Elements from one index to the next, one an axis of the result; 0 broadcasts.
    #[prost(sint64, repeated, tag = "3")]
    pub strides: Vec<i64>,
    /// First element.
    #[prost(uint64, tag = "4")]
    pub offset: u64,
}

/// `out = f(a, b)` over the shape of `out`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Binary {
    /// First operand, `f32` or `i32`.
    #[prost(message, required, tag = "1")]
    pub a: Operand,
    /// Second operand, of the same type.
    #[prost(message, required, tag = "2")]
    pub b: Operand,
    /// Of the same type.
    #[prost(uint32, tag = "3")]
    pub out: u32,
    /// The function.
    #[prost(enumeration = "BinaryKind", tag = "4")]
    pub f: i32,
    /// Of integers.
    #[prost(message, optional, tag = "5")]
    pub range: Option<IntRange>,
}

/// `out[out_offset + i . out_strides] = x[offset + i . strides]` for every
/// index `i` of `shape`. Any storage, the same on both sides.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Copy {
    /// What is read.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// Where it goes.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// Index space.
    #[prost(uint64, repeated, tag = "3")]
    pub shape: Vec<u64>,
    /// Strides of the result in elements.
    #[prost(sint64, repeated, tag = "4")]
    pub out_strides: Vec<i64>,
    /// First element of the result.
    #[prost(uint64, tag = "5")]
    pub out_offset: u64,
}

/// Functions of many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ReduceKind {
    /// Not a valid function.
    Unspecified = 0,
    /// Sum in index order.
    Sum = 1,
    /// Sum divided by the count.
    Mean = 2,
    /// The smallest one.
    Min = 3,
    /// The largest one.
    Max = 4,
    /// Product in index order.
    Prod = 5,
}

/// Reduces the indices `inner` for every index `outer`: `f32` and `i32` to
/// themselves, codes of 8 bits to their extremes, or with `Sum` to `i32`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reduce {
    /// A tensor; `strides` are those of the outer axes.
    #[prost(message, required, tag = "1")]
    pub x: Operand,
    /// In the shape `outer`.
    #[prost(uint32, tag = "2")]
    pub out: u32,
    /// The function.
    #[prost(enumeration = "ReduceKind", tag = "3")]
    pub f: i32,
    /// Extents of the axes that stay.
    #[prost(uint64, repeated, tag = "4")]
    pub outer: Vec<u64>,
    /// Extents of the axes that disappear.
    #[prost(uint64, repeated, tag = "5")]
    pub inner: Vec<u64>,
    /// Strides of the axes that disappear.
    #[prost(sint64, repeated, tag = "6")]
    pub inner_strides: Vec<i64>,
    /// Subtracted from every code of a sum.
    #[prost(sint32, tag = "7")]
    pub zero_point: i32,
    /// Of integers.
    #[prost(message, optional, tag = "8")]
    pub range: Option<IntRange>,
}

/// `out[batch, m, n] = sum_k a[batch, m, k] * b[batch, k, n]` in `f32`,
/// sequential over `k`, dense operands; a batch of 1 broadcasts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MatMul {
    /// First operand; `strides` are those of the batch axes of the result.
    #[prost(message, required, tag = "1")]
    pub a: Operand,
    /// Second operand; likewise.
    #[prost(message, required, tag = "2")]
    pub b: Operand,
    /// `f32`.
    #[prost(uint32, tag = "3")]
    pub out: u32,
    /// Batch extents of the result.
    #[prost(uint64, repeated, tag = "4")]
    pub batch: Vec<u64>,
    /// Rows.
    #[prost(uint64, tag = "5")]
    pub m: u64,
    /// Columns.
    #[prost(uint64, tag = "6")]
    pub n: u64,
    /// Terms of each sum.
    #[prost(uint64, tag = "7")]
    pub k: u64,
}

/// Steps that run `n` times. What a turn hands to the next one stays in its
/// tensors; constants that vary by the turn are gathered with its number.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Repeat {
    /// How often.
    #[prost(uint32, tag = "1")]
    pub n: u32,
    /// What.
    #[prost(message, repeated, tag = "2")]
    pub steps: Vec<super::Step>,
    /// Tensor, one `i64`, that holds the number of the turn, from 0.
    #[prost(uint32, optional, tag = "5")]
    pub turn: Option<u32>,
}

impl Repeat {
    /// Turns of this repeat inside of `outer` ones, times the steps of a turn.
    pub fn turns(&self, outer: u64) -> u64 {
        outer.saturating_mul(self.n.into()).saturating_mul(self.steps.len().max(1) as u64)
    }
}
