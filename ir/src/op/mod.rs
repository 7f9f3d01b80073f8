//! The operations of the IR: a closed enum with one struct a variant.
//!
//! Three layers share it. *Float* operations come from the frontend;
//! [`FakeQuant`] marks where codes will be; the *integer* operations are what
//! `lower-quant` makes of both, and their results are defined by integer
//! arithmetic alone. [`Grad`] stands beside them: only backward graphs hold it,
//! and only the interpreter and the training executor run it. Matches over [`Op`] name every variant, so the compiler
//! lists the places that must decide when one is added.

mod function;
mod grad;
mod infer;
mod integer;
mod normalize;
mod rope;
mod select;
mod window;

use std::fmt;

use crate::{ConstId, DType, QuantScheme, TensorType};

pub use function::{BinaryFn, CompareFn, ReduceFn, UnaryFn};
pub use grad::{BinaryGrad, FakeQuantGrad, Grad, SliceGrad, Wrt};
pub use integer::{QAdd, QSum};
pub use normalize::{Attention, Normalize, Softmax};
pub use rope::{Film, Rope};
pub use select::{ArgReduce, Compare, CumSum, Gather, Scatter, ScatterFn, TopK, TopKPart, Where};
pub use window::{Unfold, UnfoldGrad, Window};

/// What a [`Node`](crate::Node) computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A value given at run time.
    Input(Input),
    /// A constant.
    Const(Const),
    /// `f(x)`, element by element.
    Unary(Unary),
    /// `f(a, b)`, element by element, with NumPy broadcasting.
    Binary(Binary),
    /// `a[.., M, K] * b[.., K, N]` of two computed values, batch axes broadcast.
    MatMul(MatMul),
    /// `act(x[.., K] * w[K, N] + b[N])`; leading axes are rows. In groups:
    /// `x[.., G, K]`, see [`Linear::groups`].
    Linear(Linear),
    /// The same elements in another shape.
    Reshape(Reshape),
    /// Axes in another order.
    Transpose(Transpose),
    /// A strided part of a tensor.
    Slice(Slice),
    /// Tensors joined along one axis.
    Concat(Concat),
    /// Broadcast to a larger shape.
    Expand(Expand),
    /// Sum, mean, minimum or maximum over axes.
    Reduce(Reduce),
    /// Another element type.
    Cast(Cast),
    /// Truth of a comparison, element by element, with NumPy broadcasting.
    Compare(Compare),
    /// `a` where the first operand is true, else `b`, with NumPy broadcasting.
    Where(Where),
    /// Parts of a tensor by computed index.
    Gather(Gather),
    /// A tensor with some rows changed, by computed index.
    Scatter(Scatter),
    /// Index of the extreme element along an axis.
    ArgReduce(ArgReduce),
    /// The extreme elements along an axis, or their indices.
    TopK(TopK),
    /// Running sums along an axis.
    CumSum(CumSum),
    /// Windows that slide over a tensor.
    Unfold(Unfold),
    /// Softmax along an axis, or its logarithm.
    Softmax(Softmax),
    /// Rows scaled to variance 1.
    Normalize(Normalize),
    /// Scaled dot-product attention of several heads.
    Attention(Attention),
    /// Rotary position embedding: `(x, cos, sin)`.
    Rope(Rope),
    /// Feature-wise modulation `x * scale + shift`: `(x, scale, shift)`.
    Film(Film),
    /// Round to the grid of a quantizer and back: `(x, s)` or `(x, s, z)`.
    FakeQuant(FakeQuant),
    /// Entry of a quantized region: `clamp(rne(x * r) + z)`, on the host.
    Quantize(Quantize),
    /// `acc[.., N] = sum_k x[.., k] * w[k, N] + b[N]`, exact in `i32`; in groups
    /// as [`Op::Linear`].
    QLinear(QLinear),
    /// `clamp(((acc * m + 2^(shift-1)) >> shift) + z, lo, hi)`, per channel.
    Requantize(Requantize),
    /// `table[code - lowest code]`.
    Lookup(Lookup),
    /// Sum of codes or accumulators and codes, requantized with one rounding.
    QAdd(QAdd),
    /// Sum of codes over axes, exact in `i32`.
    QSum(QSum),
    /// Exit of a quantized region: `((q - z) as f64 * s) as f32`, on the host.
    Dequantize(Dequantize),
    /// Weight-only quantization: `act(sum_k x[.., k] * (w[k, N] * s[k / G, N]) + b[N])`.
    LinearWq(LinearWq),
    /// A piece of a backward graph: a derivative times the gradient of a result.
    Grad(Grad),
}

/// See [`Op::Input`].
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Type of the value.
    pub ty: TensorType,
}

/// See [`Op::Const`].
#[derive(Clone, Debug, PartialEq)]
pub struct Const {
    /// Which constant of the graph.
    pub id: ConstId,
    /// Its type.
    pub ty: TensorType,
}

/// See [`Op::Unary`].
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// The function.
    pub f: UnaryFn,
}

/// See [`Op::Binary`].
#[derive(Clone, Debug, PartialEq)]
pub struct Binary {
    /// The function.
    pub f: BinaryFn,
}

/// See [`Op::MatMul`].
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul;

/// See [`Op::Linear`].
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Function of the result.
    pub act: Option<UnaryFn>,
    /// Groups of channels, 1 if every channel sees all features. With `G` groups the operand is
    /// `x[.., G * K]`, and channel `n` of `w[K, N]` sees features `g * K .. (g + 1) * K`, where
    /// `g = n / (N / G)`: the convolution of a channel with its own kernel is `N` groups.
    pub groups: usize,
}

/// See [`Op::Reshape`].
#[derive(Clone, Debug, PartialEq)]
pub struct Reshape {
    /// The new shape.
    pub shape: Vec<usize>,
}

/// See [`Op::Transpose`].
#[derive(Clone, Debug, PartialEq)]
pub struct Transpose {
    /// Axis `i` of the result is axis `perm[i]` of the operand.
    pub perm: Vec<usize>,
}

/// Part of one axis: `start, start + step, ..`, `len` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceAxis {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
    /// Distance between elements; may be negative.
    pub step: isize,
}

/// See [`Op::Slice`].
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// One entry an axis.
    pub axes: Vec<SliceAxis>,
}

/// See [`Op::Concat`].
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// The axis that grows.
    pub axis: usize,
}

/// See [`Op::Expand`].
#[derive(Clone, Debug, PartialEq)]
pub struct Expand {
    /// The new shape.
    pub shape: Vec<usize>,
}

/// See [`Op::Reduce`].
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// The function.
    pub f: ReduceFn,
    /// Axes that disappear, ascending.
    pub axes: Vec<usize>,
    /// Keep them with extent 1 instead.
    pub keep_dims: bool,
}

/// See [`Op::Cast`]. Numbers become truth values by `x != 0`; floats become
/// integers by truncation, saturating, and NaN becomes 0; wide integers become
/// narrow ones by dropping bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Cast {
    /// The new element type.
    pub to: DType,
}

/// See [`Op::FakeQuant`]: `s * (clamp(rne(x / s) + z, lo, hi) - z)`.
///
/// The scale is a scalar (`[]`), one number a channel (`[C]`, `axis` set), or
/// for a weight `[K, N]` one number a group of `group` rows and a channel
/// (`[ceil(K / group), N]`, `axis = 1` and `group` set).
#[derive(Clone, Debug, PartialEq)]
pub struct FakeQuant {
    /// Width and sign of the codes.
    pub scheme: QuantScheme,
    /// Smallest code used: -7 for our 4-bit weights.
    pub lo: i32,
    /// Largest code used.
    pub hi: i32,
    /// Axis of the channels, or none for one scale.
    pub axis: Option<usize>,
    /// Rows that share a scale.
    pub group: Option<usize>,
}

/// See [`Op::Quantize`]. The factor `r` has shape `[]` or that of the last axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    /// Width and sign of the codes.
    pub scheme: QuantScheme,
    /// Smallest code used.
    pub lo: i32,
    /// Largest code used: 32639 for 16 bits, so that two balanced byte planes hold it.
    pub hi: i32,
    /// Code of zero.
    pub zero_point: i32,
}

/// See [`Op::QLinear`].
#[derive(Clone, Debug, PartialEq)]
pub struct QLinear {
    /// See [`Linear::groups`].
    pub groups: usize,
}

/// See [`Op::Requantize`]. `m` and `shift` are `i32[N]`, each pair a
/// [`Multiplier`](crate::fixed::Multiplier).
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// Width and sign of the codes.
    pub scheme: QuantScheme,
    /// Smallest code used: 0 where a ReLU was folded in.
    pub lo: i32,
    /// Largest code used.
    pub hi: i32,
    /// Code of zero.
    pub zero_point: i32,
}

/// See [`Op::Lookup`]. The table has 256 codes; the operand has 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup;

/// See [`Op::Dequantize`]. The scale is `f64[1]` or `f64[N]`, `N` the last axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Dequantize {
    /// Code of zero.
    pub zero_point: i32,
}

/// See [`Op::LinearWq`]. `w` holds codes, `s` is `f32[ceil(K / group), N]`.
///
/// In `f32`, in this order: for each group `g` the sum over `k` of `x[k] * w[k]`,
/// times `s[g]`, added to the result; then the bias; then the function.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearWq {
    /// Rows of `w` that share a scale.
    pub group: usize,
    /// Function of the result.
    pub act: Option<UnaryFn>,
}

impl LinearWq {
    /// What kernels take for [`group`](Self::group): multiples of this, or `K` and
    /// more. They read whole words of codes, 4 bytes or 8 nibbles.
    pub const GROUP_MULTIPLE: usize = 8;
}

/// Operands that do not fit an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} takes {expected}, found {found}")]
pub struct TypeError {
    op: &'static str,
    expected: &'static str,
    found: String,
}

impl TypeError {
    /// An error of operation `op`.
    pub fn new(op: &'static str, expected: &'static str, found: &[&TensorType]) -> Self {
        let found: Vec<String> = found.iter().map(|ty| ty.to_string()).collect();
        Self { op, expected, found: if found.is_empty() { "nothing".to_owned() } else { found.join(", ") } }
    }
}

impl Op {
    /// Name of the operation in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Input(_) => "input",
            Self::Const(_) => "const",
            Self::Unary(unary) => unary.f.name(),
            Self::Binary(binary) => binary.f.name(),
            Self::MatMul(_) => "matmul",
            Self::Linear(_) => "linear",
            Self::Reshape(_) => "reshape",
            Self::Transpose(_) => "transpose",
            Self::Slice(_) => "slice",
            Self::Concat(_) => "concat",
            Self::Expand(_) => "expand",
            Self::Reduce(reduce) => reduce.f.name(),
            Self::Cast(_) => "cast",
            Self::Compare(compare) => compare.f.name(),
            Self::Where(_) => "where",
            Self::Gather(_) => "gather",
            Self::Scatter(_) => "scatter",
            Self::ArgReduce(_) => "arg_reduce",
            Self::TopK(_) => "top_k",
            Self::CumSum(_) => "cum_sum",
            Self::Unfold(_) => "unfold",
            Self::Softmax(_) => "softmax",
            Self::Normalize(_) => "normalize",
            Self::Attention(_) => "attention",
            Self::Rope(_) => "rope",
            Self::Film(_) => "film",
            Self::FakeQuant(_) => "fake_quant",
            Self::Quantize(_) => "quantize",
            Self::QLinear(_) => "qlinear",
            Self::Requantize(_) => "requantize",
            Self::Lookup(_) => "lookup",
            Self::QAdd(_) => "qadd",
            Self::QSum(_) => "qsum",
            Self::Dequantize(_) => "dequantize",
            Self::LinearWq(_) => "linear_wq",
            Self::Grad(grad) => grad.name(),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
