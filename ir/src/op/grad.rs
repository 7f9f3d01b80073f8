//! Operations that only backward graphs hold: what the chain rule needs and the
//! other operations cannot say.
//!
//! Each multiplies the gradient `g` of its result into a derivative. Where a
//! function has no derivative (a kink, two equal numbers), the choice is that of
//! PyTorch, so that the stored gradients of one judge the other.

use crate::{BinaryFn, FakeQuant, Op, Reduce, ReduceFn, Slice, TensorType, TypeError, Unary, UnaryFn, UnfoldGrad};

use super::infer::broadcast;

/// See [`Op::Grad`].
#[derive(Clone, Debug, PartialEq)]
pub enum Grad {
    /// Of `f(x)`: `f'(x) * g`, from `(x, g)`. In `f64`, rounded once.
    Unary(Unary),
    /// Of `f(a, b)`, from `(a, b, g)`, `g` and the result in the broadcast shape.
    Binary(BinaryGrad),
    /// Of a minimum or maximum, from `(x, g)`: `g`, in equal shares, where `x`
    /// is the extreme number, and 0 elsewhere.
    Reduce(Reduce),
    /// Of a slice, from `g`: `g` in its place in a tensor of zeros.
    Slice(SliceGrad),
    /// Of a quantizer, from `(x, s, g)` or `(x, s, z, g)`.
    FakeQuant(FakeQuantGrad),
    /// Of windows, from `g`: for each element the sum of `g` over the places that show it, in index order of `g`.
    Unfold(UnfoldGrad),
}

/// The operand that a gradient is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrt {
    /// Operand 0: `a`, or the `x` of a quantizer.
    First,
    /// Operand 1: `b`, or the `s` of a quantizer.
    Second,
}

impl Wrt {
    /// Number of the operand.
    pub fn slot(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }
}

/// See [`Grad::Binary`]: the partial derivative times `g`, in `f64`, rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryGrad {
    /// The function.
    pub f: BinaryFn,
    /// By which operand.
    pub wrt: Wrt,
}

/// See [`Grad::Slice`].
#[derive(Clone, Debug, PartialEq)]
pub struct SliceGrad {
    /// What was read.
    pub slice: Slice,
    /// Shape of what it was read from.
    pub shape: Vec<usize>,
}

/// See [`Grad::FakeQuant`]: the straight-through estimator and LSQ (Esser et al.,
/// arXiv 1902.08153, eq. 3 and 5) with a zero point.
///
/// With `v = x / s` in `f32`, *inside* means `lo - z <= v <= hi - z`:
/// - by `x`: `g` inside, 0 outside;
/// - by `s`, summed over the elements that share the step, in index order, in
///   `f64`, rounded once: `g * (rne(v) - v)` inside, `g * (lo - z)` below and
///   `g * (hi - z)` above. The factor `1 / sqrt(N * Qp)` of LSQ is not part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct FakeQuantGrad {
    /// The quantizer.
    pub fake: FakeQuant,
    /// By `x` or by `s`.
    pub wrt: Wrt,
}

impl UnaryFn {
    /// The derivative. At a kink: 0 for `relu` and `abs`, the slope of the left
    /// side for `leaky_relu` and `elu`, 1 at the bounds of `clip`.
    pub fn derivative_f64(self, x: f64) -> f64 {
        match self {
            Self::Relu => step(x > 0.0 || x.is_nan()),
            Self::LeakyRelu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    f64::from(alpha)
                }
            }
            Self::Elu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    f64::from(alpha) * libm::exp(x)
                }
            }
            Self::Tanh => {
                let y = libm::tanh(x);
                1.0 - y * y
            }
            Self::Sigmoid => {
                let y = Self::Sigmoid.eval_f64(x);
                y * (1.0 - y)
            }
            Self::Silu => {
                let y = Self::Sigmoid.eval_f64(x);
                y * (1.0 + x * (1.0 - y))
            }
            Self::Clip { min, max } => step(x >= f64::from(min) && x <= f64::from(max)),
            Self::Abs if x == 0.0 => 0.0,
            Self::Abs => libm::copysign(1.0, x),
            Self::Neg => -1.0,
            Self::Exp => libm::exp(x),
            Self::Log => 1.0 / x,
            Self::Sqrt => 0.5 / libm::sqrt(x),
            Self::Reciprocal => -1.0 / (x * x),
            Self::Gelu => {
                let density = libm::exp(-0.5 * x * x) / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
            }
            Self::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = libm::tanh(c * (x + 0.044715 * x * x * x));
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
            }
            Self::Mish => {
                let t = libm::tanh(Self::Softplus.eval_f64(x));
                t + x * (1.0 - t * t) * Self::Sigmoid.eval_f64(x)
            }
            Self::Swish { alpha } => {
                let alpha = f64::from(alpha);
                let y = Self::Sigmoid.eval_f64(alpha * x);
                y * (1.0 + alpha * x * (1.0 - y))
            }
            Self::HardSigmoid { alpha, beta } => {
                let y = f64::from(alpha) * x + f64::from(beta);
                f64::from(alpha) * step(y > 0.0 && y < 1.0)
            }
            Self::HardSwish if x <= -3.0 => 0.0,
            Self::HardSwish if x >= 3.0 => 1.0,
            Self::HardSwish => x / 3.0 + 0.5,
            Self::Selu { alpha, gamma } => {
                let (alpha, gamma) = (f64::from(alpha), f64::from(gamma));
                if x > 0.0 { gamma } else { gamma * alpha * libm::exp(x) }
            }
            Self::Celu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    libm::exp(x / f64::from(alpha))
                }
            }
            Self::Softplus => Self::Sigmoid.eval_f64(x),
            Self::Softsign => 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs())),
            Self::Erf => 2.0 / std::f64::consts::PI.sqrt() * libm::exp(-x * x),
            Self::Sin => libm::cos(x),
            Self::Cos => -libm::sin(x),
            Self::Tan => 1.0 + libm::tan(x) * libm::tan(x),
            Self::Asin => 1.0 / libm::sqrt(1.0 - x * x),
            Self::Acos => -1.0 / libm::sqrt(1.0 - x * x),
            Self::Atan => 1.0 / (1.0 + x * x),
            Self::Sinh => libm::cosh(x),
            Self::Cosh => libm::sinh(x),
            Self::Asinh => 1.0 / libm::sqrt(x * x + 1.0),
            Self::Acosh => 1.0 / libm::sqrt(x * x - 1.0),
            Self::Atanh => 1.0 / (1.0 - x * x),
            // Flat, with jumps.
            Self::Floor | Self::Ceil | Self::Round | Self::Sign => 0.0,
        }
    }
}

impl BinaryFn {
    /// The partial derivative by one operand. Two equal numbers share that of
    /// `min` and `max`; `0^b` has the derivative 0 by a `b` that is not negative.
    pub fn partial_f64(self, wrt: Wrt, a: f64, b: f64) -> f64 {
        match (self, wrt) {
            (Self::Add, _) | (Self::Sub, Wrt::First) => 1.0,
            (Self::Sub, Wrt::Second) => -1.0,
            (Self::Mul, Wrt::First) => b,
            (Self::Mul, Wrt::Second) => a,
            (Self::Div, Wrt::First) => 1.0 / b,
            (Self::Div, Wrt::Second) => -a / (b * b),
            (Self::Pow, Wrt::First) if b == 0.0 => 0.0,
            (Self::Pow, Wrt::First) => b * libm::pow(a, b - 1.0),
            (Self::Pow, Wrt::Second) if a == 0.0 && b >= 0.0 => 0.0,
            (Self::Pow, Wrt::Second) => libm::pow(a, b) * libm::log(a),
            (Self::Min | Self::Max, _) if a == b => 0.5,
            (Self::Min, _) => step((a < b || a.is_nan()) == (wrt == Wrt::First)),
            (Self::Mod | Self::Rem, Wrt::First) => 1.0,
            (Self::Mod, Wrt::Second) => -libm::floor(a / b),
            (Self::Rem, Wrt::Second) => -libm::trunc(a / b),
            (Self::Max, _) => step((a > b || a.is_nan()) == (wrt == Wrt::First)),
        }
    }
}

fn step(is_one: bool) -> f64 {
    if is_one { 1.0 } else { 0.0 }
}

impl Grad {
    /// Name of the operation in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unary(_) => "unary_grad",
            Self::Binary(_) => "binary_grad",
            Self::Reduce(_) => "reduce_grad",
            Self::Slice(_) => "slice_grad",
            Self::FakeQuant(_) => "fake_quant_grad",
            Self::Unfold(_) => "unfold_grad",
        }
    }

    /// Type of the result: that of the operand that the gradient is of.
    pub(super) fn infer(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        match self {
            Self::Unary(_) => match operands {
                [x, g] if x.is_f32() && x == g => Ok((*x).clone()),
                _ => Err(self.mismatch("x and g of f32, of one shape", operands)),
            },
            Self::Binary(_) => match operands {
                [a, b, g]
                    if a.is_f32()
                        && b.is_f32()
                        && g.is_f32()
                        && broadcast(&a.shape, &b.shape).as_ref() == Some(&g.shape) =>
                {
                    Ok((*g).clone())
                }
                _ => Err(self.mismatch("a, b and g of f32, g in their broadcast shape", operands)),
            },
            Self::Reduce(reduce) => self.infer_reduce(reduce, operands),
            Self::Slice(grad) => {
                let x = TensorType::f32(grad.shape.clone());
                match operands {
                    [g] if Op::Slice(grad.slice.clone()).infer(&[&x])? == [(*g).clone()] => Ok(x),
                    _ => Err(self.mismatch("g of f32, in the shape of the slice", operands)),
                }
            }
            Self::Unfold(grad) => grad.infer(operands),
            Self::FakeQuant(grad) => {
                let error = || self.mismatch("x, a scale, perhaps a zero point i32[], and g of f32", operands);
                let [quantizer @ .., g] = operands else { return Err(error()) };
                let [x, s, ..] = quantizer else { return Err(error()) };
                Op::FakeQuant(grad.fake.clone()).infer(quantizer)?;
                if x != g {
                    return Err(error());
                }
                Ok(match grad.wrt {
                    Wrt::First => (*x).clone(),
                    Wrt::Second => (*s).clone(),
                })
            }
        }
    }

    fn infer_reduce(&self, reduce: &Reduce, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || self.mismatch("x and g of f32, g in the shape of the minimum or maximum", operands);
        let has_extreme = match reduce.f {
            ReduceFn::Min | ReduceFn::Max => true,
            ReduceFn::Sum | ReduceFn::Mean | ReduceFn::Prod => false,
        };
        match operands {
            [x, g] if has_extreme && Op::Reduce(reduce.clone()).infer(&[x])? == [(*g).clone()] => Ok((*x).clone()),
            _ => Err(error()),
        }
    }

    fn mismatch(&self, expected: &'static str, operands: &[&TensorType]) -> TypeError {
        TypeError::new(self.name(), expected, operands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of the functions themselves.
    fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
        let h = 1e-5 * x.abs().max(1.0);
        (f(x + h) - f(x - h)) / (2.0 * h)
    }

    #[test]
    fn derivatives_are_the_slopes_of_the_functions() {
        let smooth = [
            UnaryFn::Relu,
            UnaryFn::LeakyRelu { alpha: 0.1 },
            UnaryFn::Elu { alpha: 1.3 },
            UnaryFn::Tanh,
            UnaryFn::Sigmoid,
            UnaryFn::Silu,
            UnaryFn::Clip { min: -0.5, max: 1.5 },
            UnaryFn::Abs,
            UnaryFn::Neg,
            UnaryFn::Exp,
            UnaryFn::Log,
            UnaryFn::Sqrt,
            UnaryFn::Reciprocal,
            UnaryFn::Gelu,
            UnaryFn::GeluTanh,
            UnaryFn::Mish,
            UnaryFn::Swish { alpha: 1.702 },
            UnaryFn::HardSigmoid { alpha: 0.2, beta: 0.5 },
            UnaryFn::HardSwish,
            UnaryFn::Selu { alpha: 1.67, gamma: 1.05 },
            UnaryFn::Celu { alpha: 1.3 },
            UnaryFn::Softplus,
            UnaryFn::Softsign,
            UnaryFn::Erf,
            UnaryFn::Sin,
            UnaryFn::Cos,
            UnaryFn::Tan,
            UnaryFn::Asin,
            UnaryFn::Acos,
            UnaryFn::Atan,
            UnaryFn::Sinh,
            UnaryFn::Cosh,
            UnaryFn::Asinh,
            UnaryFn::Acosh,
            UnaryFn::Atanh,
            UnaryFn::Floor,
            UnaryFn::Ceil,
            UnaryFn::Round,
            UnaryFn::Sign,
        ];
        for f in smooth {
            for x in [-2.3, -0.7, 0.3, 0.9, 2.1] {
                if f.eval_f64(x).is_nan() {
                    continue;
                }
                let (exact, slope) = (f.derivative_f64(x), slope(|x| f.eval_f64(x), x));
                // Truncation h^2 f'''/6 and rounding 2^-52 |f| / h.
                assert!((exact - slope).abs() < 1e-8 * (1.0 + exact.abs() * 40.0), "{} {x}: {exact} {slope}", f.name());
            }
        }
    }

    #[test]
    fn partial_derivatives_are_slopes_too() {
        for f in BinaryFn::ALL {
            for (a, b) in [(1.3, 2.2), (2.2, -1.3), (0.4, 0.7)] {
                let by_a = slope(|a| f.eval_f64(a, b), a);
                let by_b = slope(|b| f.eval_f64(a, b), b);
                assert!((f.partial_f64(Wrt::First, a, b) - by_a).abs() < 1e-7, "{} {a} {b}", f.name());
                assert!((f.partial_f64(Wrt::Second, a, b) - by_b).abs() < 1e-7, "{} {a} {b}", f.name());
            }
        }
    }

    #[test]
    fn kinks_are_decided_as_in_pytorch() {
        assert_eq!(UnaryFn::Relu.derivative_f64(0.0), 0.0);
        assert_eq!(UnaryFn::Abs.derivative_f64(-0.0), 0.0);
        assert_eq!(UnaryFn::LeakyRelu { alpha: 0.1 }.derivative_f64(0.0), f64::from(0.1f32));
        assert_eq!(UnaryFn::Elu { alpha: 2.0 }.derivative_f64(0.0), 2.0);
        let clip = UnaryFn::Clip { min: -1.0, max: 1.0 };
        assert_eq!([-1.0, 1.0, 1.5].map(|x| clip.derivative_f64(x)), [1.0, 1.0, 0.0]);
        assert_eq!(BinaryFn::Max.partial_f64(Wrt::Second, 3.0, 3.0), 0.5);
        assert_eq!(BinaryFn::Pow.partial_f64(Wrt::First, 0.0, 0.0), 0.0);
        assert_eq!(BinaryFn::Pow.partial_f64(Wrt::Second, 0.0, 2.0), 0.0);
        assert_eq!(BinaryFn::Min.partial_f64(Wrt::First, f64::NAN, 1.0), 1.0);
    }
}
