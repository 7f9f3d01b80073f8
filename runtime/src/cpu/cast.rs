//! Casts between plain numbers, see [`step::Cast`].

use qail_artifact::{
    Storage,
    schema::{
        Step,
        step::{self, CastKind},
    },
};

use super::program::Prepare;
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::Cast`].
pub(super) struct Cast {
    name: String,
    x: usize,
    out: usize,
    from: Storage,
    into: Storage,
    to: CastKind,
}

/// A number of any plain type.
#[derive(Clone, Copy)]
enum Number {
    Float(f32),
    Int(i64),
}

impl Cast {
    pub(super) fn new(cx: &Prepare<'_>, step: &Step, op: &step::Cast) -> Result<Self, RuntimeError> {
        Ok(Self {
            name: step.name.clone(),
            x: op.x as usize,
            out: op.out as usize,
            from: cx.tensor(op.x)?.storage,
            into: cx.tensor(op.out)?.storage,
            to: CastKind::try_from(op.to).map_err(|_| RuntimeError::Internal("a cast is unknown"))?,
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        let size = |storage: Storage| match storage {
            Storage::U8 => 1,
            Storage::I64 => 8,
            _ => 4,
        };
        let numbers = x.chunks_exact(size(self.from)).zip(out.chunks_exact_mut(size(self.into)));
        for (index, (x, out)) in numbers.enumerate() {
            let stored = self.store(self.cast(self.read(x)), out);
            stored.ok_or_else(|| RunError::Integer {
                step: self.name.clone(),
                index,
                problem: "does not fit its type of at most 32 bits",
            })?;
        }
        Ok(())
    }

    fn read(&self, bytes: &[u8]) -> Number {
        match (self.from, bytes) {
            (_, &[byte]) => Number::Int(byte.into()),
            (Storage::F32, &[a, b, c, d]) => Number::Float(f32::from_le_bytes([a, b, c, d])),
            (_, &[a, b, c, d]) => Number::Int(i32::from_le_bytes([a, b, c, d]).into()),
            (_, &[a, b, c, d, e, f, g, h]) => Number::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h])),
            _ => Number::Int(0),
        }
    }

    /// Float to integer saturates, and NaN is 0.
    fn cast(&self, x: Number) -> Number {
        match (self.to, x) {
            (CastKind::F32, Number::Int(x)) => Number::Float(x as f32),
            (CastKind::Bool, Number::Int(x)) => Number::Int(i64::from(x != 0)),
            (CastKind::Bool, Number::Float(x)) => Number::Int(i64::from(x != 0.0)),
            (CastKind::U8, Number::Int(x)) => Number::Int(i64::from(x as u8)),
            (CastKind::U8, Number::Float(x)) => Number::Int(i64::from(x as u8)),
            (CastKind::I32, Number::Int(x)) => Number::Int(i64::from(x as i32)),
            (CastKind::I32, Number::Float(x)) => Number::Int(i64::from(x as i32)),
            (CastKind::I64, Number::Float(x)) => Number::Int(x as i64),
            (CastKind::F32 | CastKind::I64 | CastKind::Same | CastKind::Unspecified, x) => x,
        }
    }

    /// None if the number does not fit.
    fn store(&self, x: Number, out: &mut [u8]) -> Option<()> {
        match (x, out, self.into) {
            (Number::Float(x), out, Storage::F32) => out.copy_from_slice(&x.to_le_bytes()),
            (Number::Int(x), [out], _) => *out = u8::try_from(x).ok()?,
            (Number::Int(x), out, Storage::I64) => out.copy_from_slice(&x.to_le_bytes()),
            (Number::Int(x), out, Storage::I32) => out.copy_from_slice(&i32::try_from(x).ok()?.to_le_bytes()),
            _ => return None,
        }
        Some(())
    }
}
