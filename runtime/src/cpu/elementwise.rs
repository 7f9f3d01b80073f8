//! Functions of one and of two numbers. In `f64` through `libm`, rounded once:
//! the same bits on every machine.

use qail_artifact::{
    Storage,
    schema::step::{self, BinaryKind, FunctionKind},
};

use super::{
    program::{Prepare, floats, floats_mut},
    strided::{FloatSource, Walk},
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
            FunctionKind::Unspecified | FunctionKind::Identity => x,
        }
    }
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
    a: FloatSource,
    b: FloatSource,
    out: usize,
    walk: Walk<2>,
    f: BinaryKind,
}

impl Binary {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Binary) -> Result<Self, RuntimeError> {
        let shape = cx.tensor(op.out)?.shape.clone();
        let walk = Walk::new(shape, [&op.a.strides, &op.b.strides], [op.a.offset, op.b.offset])?;
        let f = BinaryKind::try_from(op.f).map_err(|_| RuntimeError::Internal("a function is unknown"))?;
        Ok(Self { a: FloatSource::new(cx, &op.a)?, b: FloatSource::new(cx, &op.b)?, out: op.out as usize, walk, f })
    }

    pub(super) fn run(&self, file: &[u8], memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let out = floats_mut(out)?;
        let (a, b) = (self.a.bytes(file, &others), self.b.bytes(file, &others));
        match self.f {
            BinaryKind::Add => self.each(out, a, b, |a, b| a + b),
            BinaryKind::Sub => self.each(out, a, b, |a, b| a - b),
            BinaryKind::Mul => self.each(out, a, b, |a, b| a * b),
            BinaryKind::Div => self.each(out, a, b, |a, b| a / b),
            BinaryKind::Pow => self.each(out, a, b, |a, b| libm::pow(f64::from(a), f64::from(b)) as f32),
            BinaryKind::Min => self.each(out, a, b, f32::min),
            BinaryKind::Max => self.each(out, a, b, f32::max),
            BinaryKind::Unspecified => Err(RunError::Internal("a function is unknown")),
        }
    }

    fn each(&self, out: &mut [f32], a: &[u8], b: &[u8], f: impl Fn(f32, f32) -> f32) -> Result<(), RunError> {
        let mut out = out.iter_mut();
        self.walk.rows(|[a_start, b_start], len, [a_step, b_step]| {
            for i in 0..len as isize {
                let a = super::strided::float_at(a, a_start + i * a_step)?;
                let b = super::strided::float_at(b, b_start + i * b_step)?;
                *out.next()? = f(a, b);
            }
            Some(())
        })
    }
}
