//! Functions of one and of two numbers. In `f64` through `libm`, rounded once:
//! the same bits on every machine.

use qail_artifact::{
    Storage,
    schema::{
        Step,
        step::{self, BinaryKind, FunctionKind},
    },
};

use super::{
    ints::Range,
    program::{Prepare, floats, floats_mut, ints_mut},
    strided::{Source, Walk, float_at, int_at},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// A function of one number with its parameters.
#[derive(Clone, Copy)]
pub(super) struct Function {
    kind: FunctionKind,
    p0: f32,
    p1: f32,
}

impl Function {
    pub(super) fn new(f: &step::Function) -> Result<Self, RuntimeError> {
        match FunctionKind::try_from(f.kind) {
            Ok(kind) if kind != FunctionKind::Unspecified => Ok(Self { kind, p0: f.p0, p1: f.p1 }),
            _ => Err(RuntimeError::Internal("a function is unknown")),
        }
    }

    /// Applies the function in place.
    pub(super) fn apply(self, x: &mut [f32]) {
        match self.kind {
            // Exact in `f32`, and common: no need to widen.
            FunctionKind::Relu => x.iter_mut().for_each(|x| *x = if *x > 0.0 || x.is_nan() { *x } else { 0.0 }),
            FunctionKind::Identity => {}
            _ => x.iter_mut().for_each(|x| *x = self.eval(f64::from(*x)) as f32),
        }
    }

    fn eval(self, x: f64) -> f64 {
        let (p0, p1) = (f64::from(self.p0), f64::from(self.p1));
        match self.kind {
            FunctionKind::Relu => {
                if x > 0.0 || x.is_nan() {
                    x
                } else {
                    0.0
                }
            }
            FunctionKind::LeakyRelu => {
                if x >= 0.0 {
                    x
                } else {
                    p0 * x
                }
            }
            FunctionKind::Elu => {
                if x >= 0.0 {
                    x
                } else {
                    p0 * libm::expm1(x)
                }
            }
            FunctionKind::Tanh => libm::tanh(x),
            FunctionKind::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            FunctionKind::Silu => x / (1.0 + libm::exp(-x)),
            FunctionKind::Clip => {
                let bounded = if x < p0 { p0 } else { x };
                if bounded > p1 { p1 } else { bounded }
            }
            FunctionKind::Abs => x.abs(),
            FunctionKind::Neg => -x,
            FunctionKind::Exp => libm::exp(x),
            FunctionKind::Log => libm::log(x),
            FunctionKind::Sqrt => libm::sqrt(x),
            FunctionKind::Reciprocal => 1.0 / x,
            FunctionKind::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            FunctionKind::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + libm::tanh(inner))
            }
            FunctionKind::Mish => x * libm::tanh(softplus(x)),
            FunctionKind::Swish => x / (1.0 + libm::exp(-p0 * x)),
            FunctionKind::HardSigmoid => (p0 * x + p1).clamp(0.0, 1.0),
            FunctionKind::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            FunctionKind::Selu => {
                if x > 0.0 {
                    p1 * x
                } else {
                    p1 * p0 * libm::expm1(x)
                }
            }
            FunctionKind::Celu => {
                if x > 0.0 {
                    x
                } else {
                    p0 * libm::expm1(x / p0)
                }
            }
            FunctionKind::Softplus => softplus(x),
            FunctionKind::Softsign => x / (1.0 + x.abs()),
            FunctionKind::Erf => libm::erf(x),
            FunctionKind::Sin => libm::sin(x),
            FunctionKind::Cos => libm::cos(x),
            FunctionKind::Tan => libm::tan(x),
            FunctionKind::Asin => libm::asin(x),
            FunctionKind::Acos => libm::acos(x),
            FunctionKind::Atan => libm::atan(x),
            FunctionKind::Sinh => libm::sinh(x),
            FunctionKind::Cosh => libm::cosh(x),
            FunctionKind::Asinh => libm::asinh(x),
            FunctionKind::Acosh => libm::acosh(x),
            FunctionKind::Atanh => libm::atanh(x),
            FunctionKind::Floor => libm::floor(x),
            FunctionKind::Ceil => libm::ceil(x),
            FunctionKind::Round => libm::rint(x),
            FunctionKind::Sign => {
                if x == 0.0 || x.is_nan() {
                    x
                } else {
                    libm::copysign(1.0, x)
                }
            }
            FunctionKind::Unspecified | FunctionKind::Identity => x,
        }
    }
}

/// `ln(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// A function in `f64`, rounded once.
pub(super) fn via_f64(x: f32, f: impl Fn(f64) -> f64) -> f32 {
    f(f64::from(x)) as f32
}

/// The smaller one. NaN wins, and of two equal numbers (the zeros) the first:
/// `f32::min` ignores NaN and leaves the sign of zero open.
pub(super) fn min(a: f32, b: f32) -> f32 {
    if b < a || b.is_nan() && !a.is_nan() { b } else { a }
}

/// The larger one, see [`min`].
pub(super) fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() && !a.is_nan() { b } else { a }
}

/// The remainder with the sign of the divisor.
fn floor_mod(a: f64, b: f64) -> f64 {
    let rest = libm::fmod(a, b);
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

/// Prepared [`step::Unary`].
pub(super) struct Unary {
    x: usize,
    out: usize,
    storage: Storage,
    f: Function,
}

impl Unary {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Unary) -> Result<Self, RuntimeError> {
        Ok(Self { x: op.x as usize, out: op.out as usize, storage: cx.tensor(op.x)?.storage, f: Function::new(&op.f)? })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (out, x) = (floats_mut(out)?, others.bytes(self.x));
        match self.storage {
            Storage::F32 => {
                let x = floats(x)?;
                let n = out.len().min(x.len());
                let out = out.get_mut(..n).unwrap_or_default();
                out.copy_from_slice(x.get(..n).unwrap_or_default());
                self.f.apply(out);
            }
            Storage::U8 => out.iter_mut().zip(x).for_each(|(out, &x)| *out = f32::from(x)),
            Storage::I32 => {
                let numbers = x.chunks_exact(4).filter_map(|b| b.first_chunk());
                out.iter_mut().zip(numbers).for_each(|(out, &b)| *out = i32::from_le_bytes(b) as f32);
            }
            _ => {
                let numbers = x.chunks_exact(8).filter_map(|b| b.first_chunk());
                out.iter_mut().zip(numbers).for_each(|(out, &b)| *out = i64::from_le_bytes(b) as f32);
            }
        }
        Ok(())
    }
}

/// Prepared [`step::Binary`].
pub(super) struct Binary {
    name: String,
    a: Source,
    b: Source,
    out: usize,
    walk: Walk<2>,
    f: BinaryKind,
    /// Of integers; none for floats.
    range: Option<Range>,
}

impl Binary {
    pub(super) fn new(cx: &Prepare<'_>, step: &Step, op: &step::Binary) -> Result<Self, RuntimeError> {
        let out = cx.tensor(op.out)?;
        let walk = Walk::new(out.shape.clone(), [&op.a.strides, &op.b.strides], [op.a.offset, op.b.offset])?;
        let f = BinaryKind::try_from(op.f).map_err(|_| RuntimeError::Internal("a function is unknown"))?;
        let range = (out.storage == Storage::I32).then(|| Range::new(op.range));
        let (a, b) = (Source::new(cx, &op.a)?, Source::new(cx, &op.b)?);
        Ok(Self { name: step.name.clone(), a, b, out: op.out as usize, walk, f, range })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let (a, b) = (self.a.bytes(file, &others), self.b.bytes(file, &others));
        if let Some(range) = self.range {
            return self.ints(ints_mut(out)?, a, b, range);
        }
        let out = floats_mut(out)?;
        match self.f {
            BinaryKind::Add => self.each(out, a, b, |a, b| a + b),
            BinaryKind::Sub => self.each(out, a, b, |a, b| a - b),
            BinaryKind::Mul => self.each(out, a, b, |a, b| a * b),
            BinaryKind::Div => self.each(out, a, b, |a, b| a / b),
            BinaryKind::Pow => self.each(out, a, b, |a, b| libm::pow(f64::from(a), f64::from(b)) as f32),
            BinaryKind::Min => self.each(out, a, b, min),
            BinaryKind::Max => self.each(out, a, b, max),
            BinaryKind::Mod => self.each(out, a, b, |a, b| floor_mod(f64::from(a), f64::from(b)) as f32),
            BinaryKind::Rem => self.each(out, a, b, |a, b| libm::fmod(f64::from(a), f64::from(b)) as f32),
            BinaryKind::Unspecified => Err(RunError::Internal("a function is unknown")),
        }
    }

    fn each(&self, out: &mut [f32], a: &[u8], b: &[u8], f: impl Fn(f32, f32) -> f32) -> Result<(), RunError> {
        let mut out = out.iter_mut();
        self.walk.rows(|[a_start, b_start], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let a = float_at(a, a_start + i * a_step)?;
                let b = float_at(b, b_start + i * b_step)?;
                *out.next()? = f(a, b);
            }
            Some(())
        })
    }

    fn ints(&self, out: &mut [i32], a: &[u8], b: &[u8], range: Range) -> Result<(), RunError> {
        let mut out = out.iter_mut().enumerate();
        let mut fault = None;
        let walked = self.walk.rows(|[a_start, b_start], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let (a, b) = (int_at(a, a_start + i * a_step)?, int_at(b, b_start + i * b_step)?);
                let (index, out) = out.next()?;
                match range.binary(self.f, a, b) {
                    Ok(value) => *out = value,
                    Err(problem) => {
                        fault = Some((index, problem));
                        return None;
                    }
                }
            }
            Some(())
        });
        match fault {
            Some((index, problem)) => Err(RunError::Integer { step: self.name.clone(), index, problem }),
            None => walked,
        }
    }
}
