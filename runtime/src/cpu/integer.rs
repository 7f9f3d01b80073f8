//! Steps of a quantized region: quantize, integer product, requantize, dequantize.

use std::ops::Range;

use qail_artifact::{
    Layout, Storage, pack,
    schema::{Step, step},
};

use super::{
    kernels::{Dot, Kernels, QuantizeRow},
    program::{Prepare, Scratch, ScratchRows, floats, floats_mut, ints, ints_mut},
};
use crate::{RunError, RuntimeError, host, memory::HostMemory, plan::PlanTensor};

/// What the dot product of AVX-512 adds to signed codes to make them unsigned.
pub(super) const W8_OFFSET_VNNI: i32 = 128;

/// Multipliers and bounds of a requantization, one a channel, padded to tiles.
pub(crate) struct Requantizer {
    /// Mantissas; 1 in the padding.
    pub(super) m: Vec<i32>,
    /// Shifts less one, 0 to 61.
    pub(super) shift_less_one: Vec<i32>,
    /// Accumulators beyond it saturate whatever the bounds are, see [`bound`].
    pub(super) bound: Vec<i32>,
    /// Zero point, less the code offset (or the first code of the table).
    pub(super) zero_point: i32,
    /// Smallest stored byte, or index of the table.
    pub(super) lo: i32,
    /// Largest stored byte, or index of the table.
    pub(super) hi: i32,
    /// Stored bytes by code.
    pub(super) table: Option<Box<[u8; 256]>>,
}

/// The multiplier of a channel.
#[derive(Clone, Copy)]
pub(super) struct Channel {
    pub(super) m: i32,
    pub(super) shift_less_one: i32,
}

impl Requantizer {
    pub(super) fn new(cx: &Prepare<'_>, requantize: &step::Requantize, out: &PlanTensor) -> Result<Self, RuntimeError> {
        let m = cx.ints(requantize.m)?;
        let shift = cx.ints(requantize.shift)?;
        let table = match requantize.table {
            None => None,
            Some(table) => {
                let bytes = <[u8; 256]>::try_from(cx.section(table)?);
                Some(bytes.map_err(|_| RuntimeError::Internal("a table has no 256 bytes"))?)
            }
        };
        let first = if table.is_some() { requantize.table_lo } else { out.code_offset };
        let (lo, hi) = (requantize.lo - first, requantize.hi - first);
        Ok(Self::from_parts(&m, &shift, requantize.zero_point - first, lo, hi, table))
    }

    /// Bounds and zero point are those of stored bytes, or of indices of the table.
    pub(super) fn from_parts(
        m: &[i32],
        shift: &[i32],
        zero_point: i32,
        lo: i32,
        hi: i32,
        table: Option<[u8; 256]>,
    ) -> Self {
        let padded = m.len().next_multiple_of(pack::TILE_N);
        let mut m = m.to_vec();
        m.resize(padded, 1);
        let mut shift_less_one: Vec<i32> = shift.iter().map(|shift| shift - 1).collect();
        shift_less_one.resize(padded, 0);
        let bound = m.iter().zip(&shift_less_one).map(|(&m, &shift)| bound(m, shift)).collect();
        Self { bound, m, shift_less_one, zero_point, lo, hi, table: table.map(Box::new) }
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = Channel> {
        self.m.iter().zip(&self.shift_less_one).map(|(&m, &shift_less_one)| Channel { m, shift_less_one })
    }

    /// The stored byte of a clamped code.
    #[inline(always)]
    pub(super) fn stored(&self, code: i32) -> u8 {
        match &self.table {
            None => code as u8,
            Some(table) => table.get((code & 255) as usize).copied().unwrap_or(0),
        }
    }
}

/// Clamping an accumulator to `-bound..=bound` first changes no result, and then
/// `(acc * m) >> (shift - 1)` fits an `i32`: it lies within 2^30, far beyond any
/// sum of bound and zero point, of which none exceeds 2^18.
fn bound(m: i32, shift_less_one: i32) -> i32 {
    let bound = (1i128 << (30 + shift_less_one)) / i128::from(m.max(1));
    i32::try_from(bound).unwrap_or(i32::MAX)
}

/// Prepared [`step::Quantize`].
pub(super) struct Quantize {
    x: usize,
    out: usize,
    shape: RowShape,
    element_bytes: usize,
    kernel: QuantizeRow,
    quantizer: Quantizer,
}

/// The numbers of a quantization.
pub(crate) struct Quantizer {
    /// One a column.
    pub(super) factor: Vec<f32>,
    pub(super) zero_point: i32,
    pub(super) lo: i32,
    pub(super) hi: i32,
    /// Code minus stored byte.
    pub(super) code_offset: i32,
}

/// Rows of a tensor with padding.
#[derive(Clone, Copy)]
struct RowShape {
    cols: usize,
    stride: usize,
}

impl RowShape {
    fn of(tensor: &PlanTensor) -> Self {
        Self { cols: tensor.cols.max(1), stride: tensor.stride.max(1) }
    }
}

impl Quantize {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Quantize) -> Result<Self, RuntimeError> {
        let out = cx.tensor(op.out)?;
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            shape: RowShape::of(out),
            element_bytes: out.element_bytes(),
            kernel: if out.storage == Storage::I16 { cx.kernels.quantize_16 } else { cx.kernels.quantize_8 },
            quantizer: Quantizer {
                factor: spread(cx.floats(op.factor)?, out.cols),
                zero_point: op.zero_point,
                lo: op.lo,
                hi: op.hi,
                code_offset: out.code_offset,
            },
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = floats(others.bytes(self.x))?;
        let stride = self.shape.stride * self.element_bytes;
        for (x, out) in x.chunks_exact(self.shape.cols).zip(out.chunks_mut(stride)) {
            (self.kernel)(&self.quantizer, x, out);
        }
        Ok(())
    }
}

/// One factor a column.
fn spread<T: Copy>(factors: Vec<T>, cols: usize) -> Vec<T> {
    match factors[..] {
        [one] => vec![one; cols],
        _ => factors,
    }
}

/// Prepared [`step::Dequantize`].
pub(super) struct Dequantize {
    x: usize,
    out: usize,
    shape: RowShape,
    element_bytes: usize,
    code_offset: i32,
    scale: Vec<f64>,
    zero_point: i32,
}

impl Dequantize {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::Dequantize) -> Result<Self, RuntimeError> {
        let x = cx.tensor(op.x)?;
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            shape: RowShape::of(x),
            element_bytes: x.element_bytes(),
            code_offset: x.code_offset,
            scale: spread(cx.doubles(op.scale)?, x.cols),
            zero_point: op.zero_point,
        })
    }

    pub(super) fn run(&self, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        let element_bytes = self.element_bytes;
        let rows = x.chunks(self.shape.stride * element_bytes).zip(floats_mut(out)?.chunks_exact_mut(self.shape.cols));
        for (row, out) in rows {
            for ((x, out), &scale) in row.chunks_exact(element_bytes).zip(out).zip(&self.scale) {
                let code = match *x {
                    [a] => i32::from(a as i8) + self.code_offset,
                    [a, b] => i32::from(i16::from_le_bytes([a, b])),
                    [a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
                    _ => 0,
                };
                *out = host::dequantize(code, self.zero_point, scale);
            }
        }
        Ok(())
    }
}

/// Prepared [`step::RequantizeStep`].
pub(super) struct Requantize {
    x: usize,
    out: usize,
    shape: RowShape,
    requantizer: Requantizer,
}

impl Requantize {
    pub(super) fn new(cx: &Prepare<'_>, op: &step::RequantizeStep) -> Result<Self, RuntimeError> {
        let out = cx.tensor(op.out)?;
        let requantizer = Requantizer::new(cx, &op.requantize, out)?;
        Ok(Self { x: op.x as usize, out: op.out as usize, shape: RowShape::of(out), requantizer })
    }

    pub(super) fn run(&self, kernels: &Kernels, memory: &mut HostMemory) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = ints(others.bytes(self.x))?;
        for (row, out) in x.chunks_exact(self.shape.cols).zip(out.chunks_mut(self.shape.stride)) {
            (kernels.requantize)(&self.requantizer, row, out.get_mut(..self.shape.cols).unwrap_or_default());
        }
        Ok(())
    }
}

/// Where the accumulators of an integer product go, a row at a time.
pub(super) struct Results {
    n: usize,
    n_padded: usize,
    /// With the stride of the result, or none for accumulators.
    requantize: Option<(Requantizer, usize)>,
}

impl Results {
    pub(super) fn new(
        cx: &Prepare<'_>,
        op: Option<&step::Requantize>,
        out: &PlanTensor,
        (n, n_padded): (usize, usize),
    ) -> Result<Self, RuntimeError> {
        let requantize = match op {
            None => None,
            Some(op) => Some((Requantizer::new(cx, op, out)?, out.stride)),
        };
        Ok(Self { n, n_padded, requantize })
    }

    /// Codes, or the accumulators themselves.
    pub(super) fn write(&self, kernels: &Kernels, row: usize, acc: &[i32], out: &mut [u8]) -> Result<(), RunError> {
        let outside = RunError::Internal("a row of results lies outside its tensor");
        match &self.requantize {
            Some((requantizer, stride)) => {
                let out = out.get_mut(row * stride..row * stride + self.n_padded).ok_or(outside)?;
                (kernels.requantize)(requantizer, acc, out);
            }
            None => {
                let out = ints_mut(out)?.get_mut(row * self.n..(row + 1) * self.n).ok_or(outside)?;
                out.copy_from_slice(acc.get(..self.n).unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// Prepared [`step::QLinear`].
pub(super) struct QLinear {
    x: usize,
    out: usize,
    rows: usize,
    /// Columns of `x` in memory.
    x_stride: usize,
    x_storage: Storage,
    k_padded: usize,
    n_padded: usize,
    /// Bytes of the weights in the file.
    weight: Range<usize>,
    dot: Dot,
    /// Padded, less what the dot product adds.
    bias: Vec<i32>,
    results: Results,
}

impl QLinear {
    pub(super) fn new(cx: &mut Prepare<'_>, step: &Step, op: &step::QLinear) -> Result<Self, RuntimeError> {
        let internal = || RuntimeError::Internal("the shape of an integer product does not fit");
        let (x, out) = (cx.tensor(op.x)?, cx.tensor(op.out)?);
        let (k, n) = (x.cols, usize::try_from(op.n).map_err(|_| internal())?);
        let (k_padded, n_padded) = pack::padded_k(k).zip(pack::padded_n(n)).ok_or_else(internal)?;
        let layout = cx.layout(op.weight)?;
        let weight = cx.section(op.weight)?;
        if Some(weight.len()) != pack::packed_len(layout, k, n) || x.stride < k_padded {
            return Err(internal());
        }
        let (dot, offset) = match layout {
            Layout::W4Tile8x32 => (cx.kernels.dot_w4, 0),
            Layout::W8Tile8x16 if weight.contains(&0x80) => (cx.kernels.dot_w8_full, cx.kernels.w8_offset),
            Layout::W8Tile8x16 => (cx.kernels.dot_w8, cx.kernels.w8_offset),
            _ => {
                return Err(RuntimeError::Step {
                    step: step.name.clone(),
                    device: "the CPU".to_owned(),
                    reason: format!("no kernel reads weights of layout {layout:?}"),
                });
            }
        };
        let mut bias = cx.ints(op.bias)?;
        bias.resize(n_padded, 0);
        if offset != 0 {
            // A 16-bit code is 256 * hi + lo, and the offset goes into both planes.
            let weight_of_offset = if x.storage == Storage::I16 { 257 * offset } else { offset };
            let mut sums = vec![0; n_padded];
            // With codes of one the reference kernel sums the weights.
            super::generic::dot_w8(&vec![1; k_padded], weight, &mut sums);
            for (bias, sum) in bias.iter_mut().zip(sums) {
                *bias = bias.wrapping_sub(sum.wrapping_mul(weight_of_offset));
            }
        }
        let results = Results::new(cx, op.requantize.as_ref(), out, (n, n_padded))?;
        let planes = if x.storage == Storage::I16 { 2 } else { 0 };
        cx.scratch.reserve(planes * k_padded, 2 * n_padded);
        Ok(Self {
            x: op.x as usize,
            out: op.out as usize,
            rows: x.rows,
            x_stride: x.stride,
            x_storage: x.storage,
            k_padded,
            n_padded,
            weight: cx.section_range(op.weight)?,
            dot,
            bias,
            results,
        })
    }

    pub(super) fn run(
        &self,
        kernels: &Kernels,
        file: &[u8],
        scratch: &mut Scratch,
        memory: &mut HostMemory,
    ) -> Result<(), RunError> {
        let (out, others) = memory.split(self.out);
        let x = others.bytes(self.x);
        let weight = file.get(self.weight.clone()).ok_or(RunError::Internal("weights lie outside the file"))?;
        let ScratchRows { sums: acc, high_sums: acc_high, planes } = scratch.rows(self.n_padded)?;
        let element_bytes = if self.x_storage == Storage::I16 { 2 } else { 1 };
        for row in 0..self.rows {
            let start = row * self.x_stride * element_bytes;
            let x = x.get(start..start + self.k_padded * element_bytes);
            let x = x.ok_or(RunError::Internal("a row of codes lies outside its tensor"))?;
            if self.x_storage == Storage::I16 {
                let (low, high) = planes.split_at_mut(self.k_padded.min(planes.len()));
                let high = high.get_mut(..self.k_padded).unwrap_or_default();
                split_planes(x, low, high);
                (self.dot)(low, weight, acc);
                (self.dot)(high, weight, acc_high);
                for ((acc, &high), &bias) in acc.iter_mut().zip(&*acc_high).zip(&self.bias) {
                    *acc = high.wrapping_mul(256).wrapping_add(*acc).wrapping_add(bias);
                }
            } else {
                (self.dot)(bytemuck::cast_slice(x), weight, acc);
                for (acc, &bias) in acc.iter_mut().zip(&self.bias) {
                    *acc = acc.wrapping_add(bias);
                }
            }
            self.results.write(kernels, row, acc, out)?;
        }
        Ok(())
    }
}

/// Splits 16-bit codes into balanced bytes: `hi = (q + 128) >> 8`, `lo = q - 256 * hi`.
fn split_planes(x: &[u8], low: &mut [i8], high: &mut [i8]) {
    for ((q, low), high) in x.chunks_exact(2).zip(low).zip(high) {
        let q = q.first_chunk().map_or(0, |&b| i32::from(i16::from_le_bytes(b)));
        let hi = (q + 128) >> 8;
        // Padding may hold anything; it meets zero weights.
        (*low, *high) = ((q - 256 * hi) as i8, hi as i8);
    }
}
