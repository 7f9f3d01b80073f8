//! The operations of the IR: a closed enum with one struct a variant.
//!
//! Three layers share it. *Float* operations come from the frontend;
//! [`FakeQuant`] marks where codes will be; the *integer* operations are what
//! `lower-quant` makes of both, and their results are defined by integer
//! arithmetic alone. [`Grad`] stands beside them: only backward graphs hold it,
//! and only the interpreter and the training executor run it. Matches over [`Op`] name every variant, so the compiler
//! lists the places that must decide when one is added.

mod grad;
mod infer;

use std::fmt;

use crate::{ConstId, DType, QuantScheme, TensorType};

pub use grad::{BinaryGrad, FakeQuantGrad, Grad, SliceGrad, Wrt};

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
    /// `act(x[.., K] * w[K, N] + b[N])`; leading axes are rows.
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
    /// Round to the grid of a quantizer and back: `(x, s)` or `(x, s, z)`.
    FakeQuant(FakeQuant),
    /// Entry of a quantized region: `clamp(rne(x * r) + z)`, on the host.
    Quantize(Quantize),
    /// `acc[.., N] = sum_k x[.., k] * w[k, N] + b[N]`, exact in `i32`.
    QLinear(QLinear),
    /// `clamp(((acc * m + 2^(shift-1)) >> shift) + z, lo, hi)`, per channel.
    Requantize(Requantize),
    /// `table[code - lowest code]`.
    Lookup(Lookup),
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

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryFn {
    /// `max(x, 0)`.
    Relu,
    /// `x` if `x >= 0`, else `alpha * x`.
    LeakyRelu {
        /// Slope for negative `x`.
        alpha: f32,
    },
    /// `x` if `x >= 0`, else `alpha * (exp(x) - 1)`.
    Elu {
        /// Negative limit is `-alpha`.
        alpha: f32,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// `min(max(x, min), max)`; NaN stays NaN. Infinite bounds mean no bound.
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// `|x|`.
    Abs,
    /// `-x`.
    Neg,
    /// `e^x`.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1 / x`.
    Reciprocal,
}

impl UnaryFn {
    /// Name in the text form, without parameters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::LeakyRelu { .. } => "leaky_relu",
            Self::Elu { .. } => "elu",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
            Self::Silu => "silu",
            Self::Clip { .. } => "clip",
            Self::Abs => "abs",
            Self::Neg => "neg",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Reciprocal => "reciprocal",
        }
    }

    /// The function in `f64`, through `libm`: the same bits on every platform.
    pub fn eval_f64(self, x: f64) -> f64 {
        match self {
            Self::Relu => {
                if x > 0.0 || x.is_nan() {
                    x
                } else {
                    0.0
                }
            }
            Self::LeakyRelu { alpha } => {
                if x >= 0.0 {
                    x
                } else {
                    f64::from(alpha) * x
                }
            }
            Self::Elu { alpha } => {
                if x >= 0.0 {
                    x
                } else {
                    f64::from(alpha) * libm::expm1(x)
                }
            }
            Self::Tanh => libm::tanh(x),
            Self::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Self::Silu => x / (1.0 + libm::exp(-x)),
            Self::Clip { min, max } => {
                let bounded = if x < f64::from(min) { f64::from(min) } else { x };
                if bounded > f64::from(max) { f64::from(max) } else { bounded }
            }
            Self::Abs => x.abs(),
            Self::Neg => -x,
            Self::Exp => libm::exp(x),
            Self::Log => libm::log(x),
            Self::Sqrt => libm::sqrt(x),
            Self::Reciprocal => 1.0 / x,
        }
    }

    /// The function in `f32`: `f64` arithmetic, rounded once. Every executor on
    /// the host uses this definition, so float actions agree bit for bit there.
    pub fn eval_f32(self, x: f32) -> f32 {
        self.eval_f64(f64::from(x)) as f32
    }
}

/// See [`Op::Unary`].
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// The function.
    pub f: UnaryFn,
}

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryFn {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// `a^b`.
    Pow,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl BinaryFn {
    /// Every function.
    pub const ALL: [Self; 7] = [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Pow, Self::Min, Self::Max];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Pow => "pow",
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// The function in `f32`; `pow` goes through `libm` in `f64`. Of `min` and
    /// `max`, NaN wins, and of two equal numbers (the zeros) the first.
    pub fn eval_f32(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Pow => libm::pow(f64::from(a), f64::from(b)) as f32,
            Self::Min => first_or_nan(a, b, b < a),
            Self::Max => first_or_nan(a, b, b > a),
        }
    }

    /// As [`BinaryFn::eval_f32`], in `f64`.
    pub fn eval_f64(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Pow => libm::pow(a, b),
            Self::Min => first_or_nan(a, b, b < a),
            Self::Max => first_or_nan(a, b, b > a),
        }
    }
}

/// `b` if it wins or is the only NaN, else `a`. Not `f32::min`, which ignores
/// NaN and leaves the sign of zero open.
fn first_or_nan<T: Copy + PartialOrd>(a: T, b: T, b_wins: bool) -> T {
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    if b_wins || is_nan(b) && !is_nan(a) { b } else { a }
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

/// A function of many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceFn {
    /// Sum, in index order.
    Sum,
    /// Sum in index order, divided by the count.
    Mean,
    /// The smallest one.
    Min,
    /// The largest one.
    Max,
}

impl ReduceFn {
    /// Every function.
    pub const ALL: [Self; 4] = [Self::Sum, Self::Mean, Self::Min, Self::Max];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "reduce_sum",
            Self::Mean => "reduce_mean",
            Self::Min => "reduce_min",
            Self::Max => "reduce_max",
        }
    }
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
pub struct QLinear;

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
            Self::FakeQuant(_) => "fake_quant",
            Self::Quantize(_) => "quantize",
            Self::QLinear(_) => "qlinear",
            Self::Requantize(_) => "requantize",
            Self::Lookup(_) => "lookup",
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
