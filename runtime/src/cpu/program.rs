//! The steps of one place, prepared at load and run in order.

use std::ops::Range;

use qail_artifact::{
    Layout, Place, Storage,
    schema::{Step, step},
};

use super::{
    cast::Cast,
    elementwise::{Binary, Unary},
    groups::QGroups,
    integer::{Dequantize, QLinear, Quantize, Requantize},
    kernels::Kernels,
    linear::Linear,
    order::{Order, Scan, Scatter},
    reduce::Reduce,
    rope::{Film, Rope},
    rows::{Attention, Normalize, Softmax},
    select::{Compare, Gather, Lookup, QAdd, Where},
    strided::{Copy, MatMul},
    window::Unfold,
};
use crate::{
    ArtifactBytes, Isa, RunError, RuntimeError,
    device::DeviceContext,
    memory::HostMemory,
    plan::{Item, Plan, PlanTensor, Segment},
};

/// Prepared steps, the file that they read weights from, and their scratch memory.
pub(crate) struct Program {
    bytes: ArtifactBytes,
    kernels: Kernels,
    /// By index of `Plan::steps`; none for steps of the other place.
    steps: Vec<Option<Prepared>>,
    scratch: Scratch,
}

enum Prepared {
    Quantize(Quantize),
    QLinear(QLinear),
    QGroups(QGroups),
    Requantize(Requantize),
    Dequantize(Dequantize),
    Linear(Linear),
    Unary(Unary),
    Binary(Binary),
    Copy(Copy),
    Reduce(Reduce),
    MatMul(MatMul),
    Unfold(Unfold),
    Softmax(Softmax),
    Normalize(Normalize),
    Attention(Attention),
    Rope(Rope),
    Film(Film),
    Compare(Compare),
    Where(Where),
    Gather(Gather),
    Scatter(Scatter),
    Order(Order),
    Scan(Scan),
    Cast(Cast),
    QAdd(QAdd),
    Lookup(Lookup),
}

/// Memory for sums and byte planes of one row.
#[derive(Default)]
pub(super) struct Scratch {
    /// The two planes of a row of 16-bit codes.
    planes: Vec<i8>,
    sums: Vec<i32>,
    float_sums: Vec<f32>,
}

/// Scratch memory of an integer product.
pub(super) struct ScratchRows<'a> {
    /// The sums, or those of the low plane.
    pub(super) sums: &'a mut [i32],
    /// Sums of the high plane.
    pub(super) high_sums: &'a mut [i32],
    /// Both planes of a row.
    pub(super) planes: &'a mut [i8],
}

impl Scratch {
    /// Asks for room, while steps are prepared.
    pub(super) fn reserve(&mut self, planes: usize, sums: usize) {
        self.planes.resize(self.planes.len().max(planes), 0);
        self.sums.resize(self.sums.len().max(sums), 0);
        self.float_sums.resize(self.float_sums.len().max(sums), 0.0);
    }

    /// Room for a row of `n` sums of an integer product.
    pub(super) fn rows(&mut self, n: usize) -> Result<ScratchRows<'_>, RunError> {
        let short = RunError::Internal("scratch memory is short");
        match self.sums.split_at_mut_checked(n).map(|(sums, rest)| (sums, rest.get_mut(..n))) {
            Some((sums, Some(high_sums))) => Ok(ScratchRows { sums, high_sums, planes: &mut self.planes }),
            _ => Err(short),
        }
    }

    pub(super) fn float_sums(&mut self, n: usize) -> Result<&mut [f32], RunError> {
        self.float_sums.get_mut(..n).ok_or(RunError::Internal("scratch memory is short"))
    }
}

impl Program {
    /// Prepares the steps of a place.
    pub(crate) fn new(isa: Isa, place: Place, cx: &DeviceContext<'_>) -> Result<Self, RuntimeError> {
        let kernels = Kernels::of(isa);
        let mut scratch = Scratch::default();
        let mut prepare = Prepare { cx, kernels: &kernels, scratch: &mut scratch };
        let steps = cx
            .plan
            .steps
            .iter()
            .map(|step| if step.place() == place { Prepared::new(&mut prepare, step).map(Some) } else { Ok(None) });
        let steps = steps.collect::<Result<_, _>>()?;
        Ok(Self { bytes: cx.bytes.clone(), kernels, steps, scratch })
    }

    /// Runs a segment of its place.
    pub(crate) fn run(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), RunError> {
        for item in plan.order.get(segment.items.clone()).unwrap_or_default() {
            match *item {
                Item::Step(index) => self.step(index, memory)?,
                Item::Turn { tensor, turn } => write_turn(tensor, turn, memory)?,
            }
        }
        Ok(())
    }

    fn step(&mut self, index: usize, memory: &mut HostMemory) -> Result<(), RunError> {
        let (file, kernels, scratch) = (self.bytes.as_slice(), &self.kernels, &mut self.scratch);
        match self.steps.get(index) {
            Some(Some(Prepared::Quantize(op))) => op.run(memory),
            Some(Some(Prepared::QLinear(op))) => op.run(kernels, file, scratch, memory),
            Some(Some(Prepared::QGroups(op))) => op.run(kernels, file, scratch, memory),
            Some(Some(Prepared::Requantize(op))) => op.run(kernels, memory),
            Some(Some(Prepared::Dequantize(op))) => op.run(memory),
            Some(Some(Prepared::Linear(op))) => op.run(file, scratch, memory),
            Some(Some(Prepared::Unary(op))) => op.run(memory),
            Some(Some(Prepared::Binary(op))) => op.run(file, memory),
            Some(Some(Prepared::Copy(op))) => op.run(file, memory),
            Some(Some(Prepared::Reduce(op))) => op.run(file, memory),
            Some(Some(Prepared::MatMul(op))) => op.run(file, memory),
            Some(Some(Prepared::Unfold(op))) => op.run(file, memory),
            Some(Some(Prepared::Softmax(op))) => op.run(memory),
            Some(Some(Prepared::Normalize(op))) => op.run(memory),
            Some(Some(Prepared::Attention(op))) => op.run(file, scratch, memory),
            Some(Some(Prepared::Rope(op))) => op.run(file, memory),
            Some(Some(Prepared::Film(op))) => op.run(file, memory),
            Some(Some(Prepared::Compare(op))) => op.run(file, memory),
            Some(Some(Prepared::Where(op))) => op.run(file, memory),
            Some(Some(Prepared::Gather(op))) => op.run(file, memory),
            Some(Some(Prepared::Scatter(op))) => op.run(memory),
            Some(Some(Prepared::Order(op))) => op.run(memory),
            Some(Some(Prepared::Scan(op))) => op.run(memory),
            Some(Some(Prepared::Cast(op))) => op.run(memory),
            Some(Some(Prepared::QAdd(op))) => op.run(file, memory),
            Some(Some(Prepared::Lookup(op))) => op.run(file, memory),
            Some(None) | None => Err(RunError::Internal("a step was not prepared")),
        }
    }
}

fn write_turn(tensor: usize, turn: usize, memory: &mut HostMemory) -> Result<(), RunError> {
    let out = memory.bytes_mut(tensor).first_chunk_mut::<8>();
    *out.ok_or(RunError::Internal("a turn has no tensor"))? = (turn as i64).to_le_bytes();
    Ok(())
}

impl Prepared {
    fn new(cx: &mut Prepare<'_>, step: &Step) -> Result<Self, RuntimeError> {
        Ok(match &step.op {
            Some(step::Op::Quantize(op)) => Self::Quantize(Quantize::new(cx, op)?),
            Some(step::Op::QLinear(op)) => Self::QLinear(QLinear::new(cx, step, op)?),
            Some(step::Op::QGroups(op)) => Self::QGroups(QGroups::new(cx, step, op)?),
            Some(step::Op::Requantize(op)) => Self::Requantize(Requantize::new(cx, op)?),
            Some(step::Op::Dequantize(op)) => Self::Dequantize(Dequantize::new(cx, op)?),
            Some(step::Op::Linear(op)) => Self::Linear(Linear::new(cx, op)?),
            Some(step::Op::LinearWq(op)) => Self::Linear(Linear::quantized(cx, step, op)?),
            Some(step::Op::Unary(op)) => Self::Unary(Unary::new(cx, op)?),
            Some(step::Op::Binary(op)) => Self::Binary(Binary::new(cx, step, op)?),
            Some(step::Op::Copy(op)) => Self::Copy(Copy::new(cx, op)?),
            Some(step::Op::Reduce(op)) => Self::Reduce(Reduce::new(cx, step, op)?),
            Some(step::Op::MatMul(op)) => Self::MatMul(MatMul::new(cx, op)?),
            Some(step::Op::Unfold(op)) => Self::Unfold(Unfold::new(cx, op)?),
            Some(step::Op::Softmax(op)) => Self::Softmax(Softmax::new(cx, op)?),
            Some(step::Op::Normalize(op)) => Self::Normalize(Normalize::new(cx, op)?),
            Some(step::Op::Attention(op)) => Self::Attention(Attention::new(cx, op)?),
            Some(step::Op::Rope(op)) => Self::Rope(Rope::new(cx, op)?),
            Some(step::Op::Film(op)) => Self::Film(Film::new(cx, op)?),
            Some(step::Op::Compare(op)) => Self::Compare(Compare::new(cx, op)?),
            Some(step::Op::Where(op)) => Self::Where(Where::new(cx, op)?),
            Some(step::Op::Gather(op)) => Self::Gather(Gather::new(cx, op)?),
            Some(step::Op::Scatter(op)) => Self::Scatter(Scatter::new(cx, step, op)?),
            Some(step::Op::Order(op)) => Self::Order(Order::new(cx, op)?),
            Some(step::Op::Scan(op)) => Self::Scan(Scan::new(cx, step, op)?),
            Some(step::Op::Cast(op)) => Self::Cast(Cast::new(cx, step, op)?),
            Some(step::Op::QAdd(op)) => Self::QAdd(QAdd::new(cx, op)?),
            Some(step::Op::Lookup(op)) => Self::Lookup(Lookup::new(cx, op)?),
            Some(step::Op::Repeat(_)) | None => return Err(RuntimeError::Internal("a step has no operation")),
        })
    }
}

/// What steps are prepared from.
pub(super) struct Prepare<'a> {
    cx: &'a DeviceContext<'a>,
    pub(super) kernels: &'a Kernels,
    pub(super) scratch: &'a mut Scratch,
}

impl<'a> Prepare<'a> {
    pub(super) fn tensor(&self, index: u32) -> Result<&'a PlanTensor, RuntimeError> {
        self.cx.plan.tensors.get(index as usize).ok_or(RuntimeError::Internal("a step names no tensor"))
    }

    /// How the elements behind an operand are stored.
    pub(super) fn storage(&self, operand: &step::Operand) -> Result<Storage, RuntimeError> {
        match operand.source {
            Some(step::Source::Tensor(tensor)) => Ok(self.tensor(tensor)?.storage),
            Some(step::Source::Section(section)) => {
                Ok(if self.layout(section)? == Layout::I32 { Storage::I32 } else { Storage::F32 })
            }
            None => Err(RuntimeError::Internal("an operand has no source")),
        }
    }

    pub(super) fn section(&self, index: u32) -> Result<&'a [u8], RuntimeError> {
        self.cx.artifact.section(index).ok_or(RuntimeError::Internal("a step names no section"))
    }

    pub(super) fn section_range(&self, index: u32) -> Result<Range<usize>, RuntimeError> {
        self.cx.artifact.section_range(index).ok_or(RuntimeError::Internal("a step names no section"))
    }

    pub(super) fn layout(&self, index: u32) -> Result<Layout, RuntimeError> {
        let section = self.cx.artifact.manifest().sections.get(index as usize);
        section.map(|section| section.layout()).ok_or(RuntimeError::Internal("a step names no section"))
    }

    pub(super) fn ints(&self, section: u32) -> Result<Vec<i32>, RuntimeError> {
        let chunks = self.section(section)?.chunks_exact(4);
        Ok(chunks.filter_map(|b| b.first_chunk().map(|&b| i32::from_le_bytes(b))).collect())
    }

    pub(super) fn floats(&self, section: u32) -> Result<Vec<f32>, RuntimeError> {
        let chunks = self.section(section)?.chunks_exact(4);
        Ok(chunks.filter_map(|b| b.first_chunk().map(|&b| f32::from_le_bytes(b))).collect())
    }

    pub(super) fn doubles(&self, section: u32) -> Result<Vec<f64>, RuntimeError> {
        let chunks = self.section(section)?.chunks_exact(8);
        Ok(chunks.filter_map(|b| b.first_chunk().map(|&b| f64::from_le_bytes(b))).collect())
    }

    pub(super) fn extents(&self, extents: &[u64]) -> Result<Vec<usize>, RuntimeError> {
        let narrow = |&extent: &u64| usize::try_from(extent).map_err(|_| RuntimeError::Internal("an axis is too long"));
        extents.iter().map(narrow).collect()
    }
}

const MISALIGNED: RunError = RunError::Internal("a tensor is not aligned to its elements");

/// The floats of a dense tensor, with whatever its padding to four bytes holds.
pub(super) fn floats(bytes: &[u8]) -> Result<&[f32], RunError> {
    bytemuck::try_cast_slice(bytes).map_err(|_| MISALIGNED)
}

/// See [`floats`].
pub(super) fn floats_mut(bytes: &mut [u8]) -> Result<&mut [f32], RunError> {
    bytemuck::try_cast_slice_mut(bytes).map_err(|_| MISALIGNED)
}

/// The accumulators of a dense tensor.
pub(super) fn ints(bytes: &[u8]) -> Result<&[i32], RunError> {
    bytemuck::try_cast_slice(bytes).map_err(|_| MISALIGNED)
}

/// See [`ints`].
pub(super) fn ints_mut(bytes: &mut [u8]) -> Result<&mut [i32], RunError> {
    bytemuck::try_cast_slice_mut(bytes).map_err(|_| MISALIGNED)
}
