//! `MatMulNBits` of ONNX Runtime: float rows times weights of 2, 4 or 8 bits,
//! one scale for a block of each column.
//!
//! The weight is stored by column, `[N, K]`, in blocks whose codes share bytes;
//! the first code is in the lowest bits. Without zero points a code counts from
//! the middle of its range. With zero points it does too, so that it keeps its
//! width, and the rest is a product of its own: with `m` the middle and `B` a
//! block of rows,
//!
//! `sum_k x[k] s (q[k] - z) = sum_k x[k] s (q[k] - m) + sum_B s[B] (m - z[B]) sum_(k in B) x[k]`.

use std::sync::Arc;

use prost::bytes::Bytes;
use qail_ir::{
    Binary, BinaryFn, Concat, ConstData, ConstSource, Constant, DType, Elem, Linear, MatMul, Op, QuantScheme, Reduce,
    ReduceFn, Reshape, TensorType,
};

use super::{
    super::{OpError, builder::Tensor, cx::NodeCx},
    grid::{Dequantized, Grid, WeightQuant},
    parameters::known,
    weight,
};
use crate::frontend::{
    dims::MAX_VALUE_ELEMENTS,
    tensor::{Packed, Stored},
};

/// Attributes, checked.
struct Layout {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
    n_blocks: usize,
}

impl Layout {
    fn read(cx: &NodeCx<'_>) -> Result<Self, OpError> {
        let extent = |name: &'static str, default: Option<i64>| {
            let found = cx.int(name)?.or(default);
            let fits = found.and_then(|n| usize::try_from(n).ok()).filter(|&n| (1..=1 << 24).contains(&n));
            fits.ok_or_else(|| OpError::invalid(format!("its attribute `{name}` is {found:?}")))
        };
        let (k, n) = (extent("K", None)?, extent("N", None)?);
        let (bits, block) = (extent("bits", Some(4))?, extent("block_size", None)?);
        // Says how exact the sums have to be at least.
        cx.ignore("accuracy_level");
        if !matches!(bits, 2 | 4 | 8) {
            let reason = format!("weights of {bits} bits are not supported");
            return Err(OpError::unsupported(reason, "quantize weights to 2, 4 or 8 bits"));
        }
        if k.checked_mul(n).is_none_or(|size| size > MAX_VALUE_ELEMENTS) || !block.is_power_of_two() || block < 16 {
            return Err(OpError::invalid(format!("a weight [{k}, {n}] in blocks of {block}")));
        }
        Ok(Self { k, n, bits, block, n_blocks: k.div_ceil(block) })
    }

    /// Unsigned codes of `per_row` in each of N rows, every row in bytes of its own.
    fn codes(&self, cx: &NodeCx<'_>, slot: usize, per_row: usize, what: &str) -> Result<Constant, OpError> {
        let constant = known(cx, cx.operand(slot)?, what)?.clone();
        let row_bytes = (per_row * self.bits).div_ceil(8);
        if constant.ty.elem != Elem::Plain(DType::U8) || constant.ty.n_elements() != row_bytes * self.n {
            let reason = format!("its {what} are {}, not {} bytes", constant.ty, row_bytes * self.n);
            return Err(OpError::invalid(reason));
        }
        let bits = u8::try_from(self.bits).unwrap_or(8);
        let codes_in_row = row_bytes * 8 / self.bits;
        let rows = Rows { bytes: constant, bits, codes_in_row, per_row };
        let ty = TensorType { elem: Elem::Code(QuantScheme::unsigned(bits)), shape: vec![self.n, per_row] };
        Ok(Constant { ty, data: ConstData::Source(Arc::new(rows)) })
    }
}

/// Codes whose rows begin with a byte, unpacked when they are read.
#[derive(Debug)]
struct Rows {
    bytes: Constant,
    bits: u8,
    codes_in_row: usize,
    per_row: usize,
}

impl ConstSource for Rows {
    fn read(&self, start: u64, out: &mut [u8]) -> std::io::Result<()> {
        let error = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, what);
        let mut i = usize::try_from(start).map_err(|e| error(e.to_string()))?;
        let per_byte = 8 / usize::from(self.bits);
        let mut out = out;
        // Row by row: the ends of rows are not read.
        while !out.is_empty() {
            let (row, column) = (i / self.per_row.max(1), i % self.per_row.max(1));
            let n = (self.per_row - column).min(out.len());
            let first = row * self.codes_in_row + column;
            let (from, to) = (first / per_byte, (first + n).div_ceil(per_byte));
            let bytes = self.bytes.read_bytes(from..to).map_err(|e| error(e.to_string()))?;
            let n_codes = bytes.len() * per_byte;
            let stored = Stored::Mapped(Bytes::from(bytes));
            let packed = Packed { stored, scheme: QuantScheme::unsigned(self.bits), n: n_codes };
            let (head, rest) = std::mem::take(&mut out).split_at_mut(n);
            packed.read((first - from * per_byte) as u64, head)?;
            (out, i) = (rest, i + n);
        }
        Ok(())
    }
}

/// `MatMulNBits(A, B, scales, zero_points, g_idx, bias)`.
pub(super) fn matmul(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let layout = Layout::read(cx)?;
    let Layout { k, n, bits, block, n_blocks } = layout;
    let a = cx.float(0)?;
    if cx.ty(a).shape.last() != Some(&k) {
        return Err(OpError::invalid(format!("it multiplies {} with a weight [{k}, {n}]", cx.ty(a))));
    }
    if cx.is_given(4) {
        let remedy = "quantize without reordering rows (no act-order)";
        return Err(OpError::unsupported("blocks of rows in another order are not supported", remedy));
    }
    // Blocks are padded to their full size.
    let codes = layout.codes(cx, 1, n_blocks * block, "weights")?;
    let codes = if n_blocks * block == k { codes } else { cut(&codes, k) };
    let scales = known(cx, cx.operand(2)?, "scales")?;
    if !scales.ty.is_f32() || scales.ty.n_elements() != n * n_blocks {
        return Err(OpError::invalid(format!("its scales are {}, not {n} x {n_blocks} numbers", scales.ty)));
    }
    let scales = scales.all_f32()?;
    if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
        return Err(OpError::invalid(format!("a scale is {scale}")));
    }
    let scales = positive(&scales);
    let zeros = zeros(cx, &layout)?;
    let middle = 1i64 << (bits - 1);
    // `[n_blocks, N]`, as `m - z` for each block of a column.
    let offsets = (0..n_blocks).flat_map(|b| (0..n).map(move |column| column * n_blocks + b));
    let offset = |i: usize| middle - zeros.get(if zeros.len() == 1 { 0 } else { i }).copied().unwrap_or(middle);
    let is_centered = zeros.iter().all(|&zero| zero == middle);
    let offsets: Vec<f32> = if is_centered {
        Vec::new()
    } else {
        offsets.map(|i| (offset(i) as f64 * f64::from(scales.get(i).copied().unwrap_or(0.0))) as f32).collect()
    };
    let grid = Grid::new(vec![n, k], vec![1, block]);
    let dequantized = Dequantized { codes, grid, zeros: vec![middle], scales: scales.into() };
    let scheme = QuantScheme::unsigned(u8::try_from(bits).unwrap_or(8));
    let quant = weight::centered_scheme(&dequantized, scheme)?.ok().map(|scheme| WeightQuant {
        scheme,
        grid: dequantized.grid.clone(),
        scales: dequantized.scales.clone(),
    });
    let name = format!("{}.b", cx.result(0));
    let stored = weight::known(cx, name, dequantized, quant)?;
    let reader = cx.result(0);
    let w = cx.builder.weight(stored, true, 1.0, &reader)?;
    let bias = match cx.optional(5) {
        Some(bias) if cx.ty(bias).is_f32() && cx.shape(bias) == [n] => bias,
        Some(bias) => return Err(OpError::invalid(format!("its bias is {}, not {n} numbers", cx.ty(bias)))),
        None => cx.known_part("bias", Constant { ty: TensorType::f32([n]), data: ConstData::Splat(0.0) }),
    };
    let product = Op::Linear(Linear { act: None, groups: 1 });
    if is_centered {
        return Ok(vec![cx.emit(product, &[a, w, bias])?]);
    }
    let centered = cx.emit_part("centered", product, &[a, w, bias])?;
    let sums = block_sums(cx, a, &layout)?;
    let offsets = cx.known_part("offsets", Constant::f32([n_blocks, n], &offsets));
    let rest = cx.emit_part("rest", Op::MatMul(MatMul), &[sums, offsets])?;
    Ok(vec![cx.emit(Op::Binary(Binary { f: BinaryFn::Add }), &[centered, rest])?])
}

/// Sums of `x[.., K]` over blocks of features: `[.., n_blocks]`.
fn block_sums(cx: &mut NodeCx<'_>, x: Tensor, layout: &Layout) -> Result<Tensor, OpError> {
    let Layout { k, block, n_blocks, .. } = *layout;
    let lead = cx.shape(x).split_last().map(|(_, lead)| lead.to_vec()).unwrap_or_default();
    let shape = |tail: &[usize]| [&lead[..], tail].concat();
    let mut padded = x;
    if n_blocks * block > k {
        let zeros = TensorType::f32(shape(&[n_blocks * block - k]));
        let zeros = cx.known_part("padding", Constant { ty: zeros, data: ConstData::Splat(0.0) });
        padded = cx.emit_part("padded", Op::Concat(Concat { axis: lead.len() }), &[x, zeros])?;
    }
    let blocks = cx.emit_part("blocks", Op::Reshape(Reshape { shape: shape(&[n_blocks, block]) }), &[padded])?;
    let sum = Reduce { f: ReduceFn::Sum, axes: vec![lead.len() + 1], keep_dims: false };
    cx.emit_part("sums", Op::Reduce(sum), &[blocks])
}

/// Blocks of zeros may have scale 0, which says nothing; any scale does.
fn positive(scales: &[f32]) -> Vec<f32> {
    scales.iter().map(|&scale| if scale.is_normal() { scale } else { f32::MIN_POSITIVE }).collect()
}

/// A zero point for each block, or the one of all.
fn zeros(cx: &NodeCx<'_>, layout: &Layout) -> Result<Vec<i64>, OpError> {
    let Some(tensor) = cx.optional(3) else { return Ok(vec![1 << (layout.bits - 1)]) };
    if cx.ty(tensor).is_f32() {
        let zeros = known(cx, tensor, "zero points")?.all_f32()?;
        if zeros.len() != layout.n * layout.n_blocks || zeros.iter().any(|zero| zero.fract() != 0.0) {
            let reason = "zero points that are no whole numbers are not supported";
            return Err(OpError::unsupported(reason, "quantize symmetrically, or with integer zero points"));
        }
        return Ok(zeros.iter().map(|&zero| zero as i64).collect());
    }
    Ok(layout.codes(cx, 3, layout.n_blocks, "zero points")?.all_int()?)
}

/// The first `k` codes of every row.
fn cut(codes: &Constant, k: usize) -> Constant {
    #[derive(Debug)]
    struct Cut {
        inner: Constant,
        width: usize,
        k: usize,
    }
    impl ConstSource for Cut {
        fn read(&self, start: u64, out: &mut [u8]) -> std::io::Result<()> {
            let error = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidInput, what);
            let mut i = usize::try_from(start).map_err(|e| error(e.to_string()))?;
            let mut out = out;
            while !out.is_empty() {
                let n = (self.k - i % self.k).min(out.len());
                let from = i / self.k * self.width + i % self.k;
                let bytes = self.inner.read_bytes(from..from + n).map_err(|e| error(e.to_string()))?;
                let (head, rest) = std::mem::take(&mut out).split_at_mut(n);
                head.copy_from_slice(&bytes);
                (out, i) = (rest, i + n);
            }
            Ok(())
        }
    }
    let &[n, width] = &codes.ty.shape[..] else { return codes.clone() };
    let ty = TensorType { elem: codes.ty.elem, shape: vec![n, k] };
    Constant { ty, data: ConstData::Source(Arc::new(Cut { inner: codes.clone(), width, k: k.max(1) })) }
}
