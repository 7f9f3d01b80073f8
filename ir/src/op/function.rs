//! Functions of one, two and many numbers.

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
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
    /// `x * tanh(ln(1 + exp(x)))`.
    Mish,
    /// `x * sigmoid(alpha * x)`; with 1.702 the "quick" GELU.
    Swish {
        /// Slope inside of the sigmoid.
        alpha: f32,
    },
    /// `min(max(alpha * x + beta, 0), 1)`.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `x * min(max(x / 6 + 1 / 2, 0), 1)`.
    HardSwish,
    /// `gamma * x` if `x > 0`, else `gamma * alpha * (exp(x) - 1)`.
    Selu {
        /// Scale of the negative part.
        alpha: f32,
        /// Scale of everything.
        gamma: f32,
    },
    /// `max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)`.
    Celu {
        /// Negative limit is `-alpha`.
        alpha: f32,
    },
    /// `ln(1 + exp(x))`.
    Softplus,
    /// `x / (1 + |x|)`.
    Softsign,
    /// The error function.
    Erf,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Tangent of radians.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
    /// The largest whole number that is not above `x`.
    Floor,
    /// The smallest whole number that is not below `x`.
    Ceil,
    /// The nearest whole number, of two the even one.
    Round,
    /// -1, 0 or 1.
    Sign,
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
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Mish => "mish",
            Self::Swish { .. } => "swish",
            Self::HardSigmoid { .. } => "hard_sigmoid",
            Self::HardSwish => "hard_swish",
            Self::Selu { .. } => "selu",
            Self::Celu { .. } => "celu",
            Self::Softplus => "softplus",
            Self::Softsign => "softsign",
            Self::Erf => "erf",
            Self::Sin => "sin",
            Self::Cos => "cos",
            Self::Tan => "tan",
            Self::Asin => "asin",
            Self::Acos => "acos",
            Self::Atan => "atan",
            Self::Sinh => "sinh",
            Self::Cosh => "cosh",
            Self::Asinh => "asinh",
            Self::Acosh => "acosh",
            Self::Atanh => "atanh",
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Round => "round",
            Self::Sign => "sign",
        }
    }

    /// Parameters of a function, in the order in which they print.
    pub fn params(self) -> Vec<(&'static str, f32)> {
        match self {
            Self::LeakyRelu { alpha } | Self::Elu { alpha } | Self::Swish { alpha } | Self::Celu { alpha } => {
                vec![("alpha", alpha)]
            }
            Self::HardSigmoid { alpha, beta } => vec![("alpha", alpha), ("beta", beta)],
            Self::Selu { alpha, gamma } => vec![("alpha", alpha), ("gamma", gamma)],
            Self::Clip { min, max } => vec![("min", min), ("max", max)],
            Self::Relu
            | Self::Tanh
            | Self::Sigmoid
            | Self::Silu
            | Self::Abs
            | Self::Neg
            | Self::Exp
            | Self::Log
            | Self::Sqrt
            | Self::Reciprocal
            | Self::Gelu
            | Self::GeluTanh
            | Self::Mish
            | Self::HardSwish
            | Self::Softplus
            | Self::Softsign
            | Self::Erf
            | Self::Sin
            | Self::Cos
            | Self::Tan
            | Self::Asin
            | Self::Acos
            | Self::Atan
            | Self::Sinh
            | Self::Cosh
            | Self::Asinh
            | Self::Acosh
            | Self::Atanh
            | Self::Floor
            | Self::Ceil
            | Self::Round
            | Self::Sign => vec![],
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
            Self::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + libm::tanh(inner))
            }
            Self::Mish => x * libm::tanh(softplus(x)),
            Self::Swish { alpha } => x / (1.0 + libm::exp(-f64::from(alpha) * x)),
            Self::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::Selu { alpha, gamma } => {
                let gamma = f64::from(gamma);
                if x > 0.0 { gamma * x } else { gamma * f64::from(alpha) * libm::expm1(x) }
            }
            Self::Celu { alpha } => {
                let alpha = f64::from(alpha);
                if x > 0.0 { x } else { alpha * libm::expm1(x / alpha) }
            }
            Self::Softplus => softplus(x),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Erf => libm::erf(x),
            Self::Sin => libm::sin(x),
            Self::Cos => libm::cos(x),
            Self::Tan => libm::tan(x),
            Self::Asin => libm::asin(x),
            Self::Acos => libm::acos(x),
            Self::Atan => libm::atan(x),
            Self::Sinh => libm::sinh(x),
            Self::Cosh => libm::cosh(x),
            Self::Asinh => libm::asinh(x),
            Self::Acosh => libm::acosh(x),
            Self::Atanh => libm::atanh(x),
            Self::Floor => libm::floor(x),
            Self::Ceil => libm::ceil(x),
            Self::Round => libm::rint(x),
            Self::Sign => {
                if x == 0.0 || x.is_nan() {
                    x
                } else {
                    libm::copysign(1.0, x)
                }
            }
        }
    }

    /// The function in `f32`: `f64` arithmetic, rounded once. Every executor on
    /// the host uses this definition, so float actions agree bit for bit there.
    pub fn eval_f32(self, x: f32) -> f32 {
        self.eval_f64(f64::from(x)) as f32
    }
}

/// `ln(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
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
    /// The remainder of the floored quotient: it has the sign of `b`.
    Mod,
    /// The remainder of the truncated quotient: it has the sign of `a`.
    Rem,
}

impl BinaryFn {
    /// Every function.
    pub const ALL: [Self; 9] =
        [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Pow, Self::Min, Self::Max, Self::Mod, Self::Rem];

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
            Self::Mod => "mod",
            Self::Rem => "rem",
        }
    }

    /// The function in `f32`; `pow` and remainders go through `libm` in `f64`. Of `min` and
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
            Self::Mod => floor_mod(f64::from(a), f64::from(b)) as f32,
            Self::Rem => libm::fmod(f64::from(a), f64::from(b)) as f32,
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
            Self::Mod => floor_mod(a, b),
            Self::Rem => libm::fmod(a, b),
        }
    }
}

/// The remainder with the sign of the divisor.
fn floor_mod(a: f64, b: f64) -> f64 {
    let rest = libm::fmod(a, b);
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

/// `b` if it wins or is the only NaN, else `a`. Not `f32::min`, which ignores
/// NaN and leaves the sign of zero open.
fn first_or_nan<T: Copy + PartialOrd>(a: T, b: T, b_wins: bool) -> T {
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    if b_wins || is_nan(b) && !is_nan(a) { b } else { a }
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
    /// Product, in index order.
    Prod,
}

impl ReduceFn {
    /// Every function.
    pub const ALL: [Self; 5] = [Self::Sum, Self::Mean, Self::Min, Self::Max, Self::Prod];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "reduce_sum",
            Self::Mean => "reduce_mean",
            Self::Min => "reduce_min",
            Self::Max => "reduce_max",
            Self::Prod => "reduce_prod",
        }
    }
}

/// A comparison of two numbers. With NaN only `ne` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareFn {
    /// `a == b`.
    Eq,
    /// `a != b`.
    Ne,
    /// `a < b`.
    Lt,
    /// `a <= b`.
    Le,
    /// `a > b`.
    Gt,
    /// `a >= b`.
    Ge,
}

impl CompareFn {
    /// Every comparison.
    pub const ALL: [Self; 6] = [Self::Eq, Self::Ne, Self::Lt, Self::Le, Self::Gt, Self::Ge];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Lt => "lt",
            Self::Le => "le",
            Self::Gt => "gt",
            Self::Ge => "ge",
        }
    }

    /// The truth of it.
    pub fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            Self::Eq => a == b,
            Self::Ne => a != b,
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::Gt => a > b,
            Self::Ge => a >= b,
        }
    }
}
