//! Float products: `linear` and weight-only quantization.

use std::ops::Range;

use qail_artifact::{
    Layout, pack,
    schema::{Step, step},
};

use super::{
    elementwise::Function,
    kernels::{DotF32, DotWq, Groups},
    program::{Prepare, Scratch, floats, floats_mut},
};
use crate::{RunError, RuntimeError, memory::HostMemory};

/// Prepared [`step::Linear`] or [`step::LinearWq`].
pub(super) struct Linear {
    x: usize,
    out: usize,
    k: usize,
    n: usize,
    n_padded: usize,
    weight: Range<usize>,
    dot: FloatDot,
    bias: Vec<f32>,
    act: Option<Function>,
}

enum FloatDot {
    F32(DotF32),
    Wq { dot: DotWq, scales: Range<usize>, group: usize },
}

impl Linear {
    pub(super) fn new(cx: &mut Prepare<'_>, op: &step::Linear) -> Result<Self, RuntimeError> {
        let dot = FloatDot::F32(cx.kernels.dot_f32);
        Self::prepare(cx, [op.x, op.out, op.weight, op.bias], [op.k, op.n], dot, op.act.as_ref())
    }

    pub(super) fn quantized(cx: &mut Prepare<'_>, step: &Step, op: &step::LinearWq) -> Result<Self, RuntimeError> {
        let layout = cx.layout(op.weight)?;
        let dot = match layout {
            Layout::W8Tile8x16 => cx.kernels.dot_wq8,
            Layout::W4Tile8x32 => cx.kernels.dot_wq4,
            _ => {
                return Err(RuntimeError::Step {
                    step: step.name.clone(),
                    device: "the CPU".to_owned(),
                    reason: format!("no kernel reads weights of layout {layout:?}"),
                });
            }
        };
        let group = usize::try_from(op.group).map_err(|_| RuntimeError::Internal("a group is too large"))?;
        let dot = FloatDot::Wq { dot, scales: cx.section_range(op.scale)?, group };
        Self::prepare(cx, [op.x, op.out, op.weight, op.bias], [op.k, op.n], dot, op.act.as_ref())
    }

    fn prepare(
        cx: &mut Prepare<'_>,
        [x, out, weight, bias]: [u32; 4],
        [k, n]: [u64; 2],
        dot: FloatDot,
        act: Option<&step::Function>,
    ) -> Result<Self, RuntimeError> {
        let internal = || RuntimeError::Internal("the shape of a product does not fit");
        let k = usize::try_from(k).ok().filter(|&k| k > 0).ok_or_else(internal)?;
        let n = usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(internal)?;
        let n_padded = pack::padded_n(n).ok_or_else(internal)?;
        cx.scratch.reserve(0, n_padded);
        Ok(Self {
            x: x as usize,
            out: out as usize,
            k,
            n,
            n_padded,
            weight: cx.section_range(weight)?,
            dot,
            bias: cx.floats(bias)?,
            act: act.map(Function::new).transpose()?,
        })
    }

    pub(super) fn run(&self, file: &[u8], scratch: &mut Scratch, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = floats(others.bytes(self.x))?;
        let weight = file.get(self.weight.clone()).ok_or(RunError::Internal("weights lie outside the file"))?;
        let sums = scratch.float_sums(self.n_padded)?;
        for (x, out) in x.chunks_exact(self.k).zip(floats_mut(out)?.chunks_exact_mut(self.n)) {
            match &self.dot {
                FloatDot::F32(dot) => dot(x, weight, sums),
                FloatDot::Wq { dot, scales, group } => {
                    let scales = file.get(scales.clone()).unwrap_or_default();
                    dot(x, weight, &Groups { scales, size: *group, n: self.n }, sums);
                }
            }
            for ((out, &sum), &bias) in out.iter_mut().zip(&*sums).zip(&self.bias) {
                *out = sum + bias;
            }
            if let Some(act) = self.act {
                act.apply(out);
            }
        }
        Ok(())
    }
}
