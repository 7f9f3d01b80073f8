//! Steps of a quantized region, and the proof that their sums do not wrap.

use super::{Check, EntryCheck, ints, size, step_error};
use crate::{
    ArtifactError, pack,
    schema::{GROUPS_FEATURE, Layout, Step, Storage, step},
};

/// Codes of 16 bits, as far as two balanced planes of bytes hold them.
const O16: std::ops::RangeInclusive<i32> = -32_768..=32_639;
/// Largest zero point; keeps the sum with a requantized code inside an `i32`.
const ZERO_POINT_MAX: u32 = 1 << 16;

impl EntryCheck<'_> {
    pub(super) fn quantize(&self, step: &Step, op: &step::Quantize) -> Check {
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.x, Storage::F32, Some(out.elements))?;
        let factor = self.vector(step, op.factor, Layout::F32, out.cols, "factor")?;
        let mut factors = factor.chunks_exact(4).filter_map(|b| b.first_chunk().map(|&b| f32::from_le_bytes(b)));
        if !factors.all(|factor| factor.is_finite() && factor > 0.0) {
            return Err(step_error(step, "has a factor that is not a positive number"));
        }
        match out.storage {
            Storage::I8 => self.byte_codes(step, op.out, op.lo, op.hi)?,
            Storage::I16 if O16.contains(&op.lo) && op.lo <= op.hi && O16.contains(&op.hi) => {}
            _ => {
                return Err(step_error(step, format!("cannot quantize to {:?} in {}..={}", out.storage, op.lo, op.hi)));
            }
        }
        zero_point(step, op.zero_point)
    }

    pub(super) fn q_linear(&self, step: &Step, op: &step::QLinear) -> Check {
        let (k, n, rows) = (size(step, op.k)?, size(step, op.n)?, size(step, op.rows)?);
        let x = self.tensor(step, op.x)?;
        if !matches!(x.storage, Storage::I8 | Storage::I16) || x.cols != k || x.rows != rows || k == 0 || n == 0 {
            return Err(step_error(step, format!("tensor `{}` is no matrix of codes {rows} x {k}", x.name)));
        }
        let layout =
            self.manifest.sections.get(op.weight as usize).map_or(Layout::Unspecified, |section| section.layout());
        if !matches!(layout, Layout::W8Tile8x16 | Layout::W4Tile8x32) {
            return Err(step_error(step, format!("weights cannot have layout {layout:?}")));
        }
        let weight = self.section(step, op.weight, layout, pack::packed_len(layout, k, n), "weight")?;
        let bias = self.section(step, op.bias, Layout::I32, Some(n), "bias")?;
        self.product(step, op.requantize.as_ref(), op.out, [rows, n])?;
        sums_fit(step, layout, weight, bias, k, self.largest_stored(op.x, x.storage))
    }

    pub(super) fn q_groups(&self, step: &Step, op: &step::QGroups) -> Check {
        if !self.manifest.requires(GROUPS_FEATURE) {
            return Err(step_error(step, "has groups without the feature `groups`"));
        }
        let (k, n, rows) = (size(step, op.k)?, size(step, op.n)?, size(step, op.rows)?);
        let groups = size(step, op.groups)?;
        if groups == 0 || n == 0 || k == 0 || !n.is_multiple_of(groups) {
            return Err(step_error(step, format!("cannot part {n} channels of {k} features into {groups} groups")));
        }
        let x = self.tensor(step, op.x)?;
        let features = k.checked_mul(groups);
        if !matches!(x.storage, Storage::I8 | Storage::I16) || Some(x.cols) != features || x.rows != rows {
            let reason = format!("tensor `{}` is no matrix of codes {rows} x {groups} groups of {k}", x.name);
            return Err(step_error(step, reason));
        }
        let used = k.checked_mul(n);
        let padded = used.and_then(|used| used.checked_next_multiple_of(4));
        let weight = self.section(step, op.weight, Layout::I8, padded, "weight")?;
        let bias = self.section(step, op.bias, Layout::I32, Some(n), "bias")?;
        self.product(step, op.requantize.as_ref(), op.out, [rows, n])?;
        let largest = self.largest_stored(op.x, x.storage);
        for (channel, (weight, bias)) in weight.chunks_exact(k).zip(ints(bias)).enumerate() {
            let sum: u64 = weight.iter().map(|&byte| absolute(Layout::I8, byte)).sum();
            if !sum_fits(sum, largest, bias) {
                return Err(wraps(step, channel));
            }
        }
        Ok(())
    }

    /// The result of an integer product: codes or accumulators.
    fn product(&self, step: &Step, requantize: Option<&step::Requantize>, out: u32, [rows, n]: [usize; 2]) -> Check {
        let Some(requantize) = requantize else {
            return self.dense(step, out, Storage::I32, rows.checked_mul(n)).map(|_| ());
        };
        let found = self.tensor(step, out)?;
        if found.rows != rows || found.cols != n {
            return Err(step_error(step, format!("tensor `{}` is no matrix {rows} x {n}", found.name)));
        }
        self.requantize(step, requantize, out, n)
    }

    /// Largest magnitude of the stored codes of a tensor.
    fn largest_stored(&self, x: u32, storage: Storage) -> u32 {
        let largest = self.largest.get(x as usize).copied().unwrap_or(u32::MAX);
        match storage {
            Storage::I8 => largest.min(128),
            _ => largest.min(O16.start().unsigned_abs()),
        }
    }

    pub(super) fn requantize_step(&self, step: &Step, op: &step::RequantizeStep) -> Check {
        let out = self.tensor(step, op.out)?;
        self.dense(step, op.x, Storage::I32, Some(out.elements))?;
        self.requantize(step, &op.requantize, op.out, out.cols)
    }

    pub(super) fn dequantize(&self, step: &Step, op: &step::Dequantize) -> Check {
        let x = self.tensor(step, op.x)?;
        if !matches!(x.storage, Storage::I32 | Storage::I8 | Storage::I16) {
            return Err(step_error(step, format!("cannot dequantize {:?}", x.storage)));
        }
        self.dense(step, op.out, Storage::F32, Some(x.elements))?;
        let scale = self.vector(step, op.scale, Layout::F64, x.cols, "scale")?;
        let mut scales = scale.chunks_exact(8).filter_map(|b| b.first_chunk().map(|&b| f64::from_le_bytes(b)));
        if !scales.all(f64::is_finite) {
            return Err(step_error(step, "has a scale that is no number"));
        }
        Ok(())
    }

    /// Multipliers, bounds and table of a requantization of `n` channels.
    fn requantize(&self, step: &Step, requantize: &step::Requantize, out: u32, n: usize) -> Check {
        let m = self.section(step, requantize.m, Layout::I32, Some(n), "m")?;
        let shift = self.section(step, requantize.shift, Layout::I32, Some(n), "shift")?;
        for (m, shift) in ints(m).zip(ints(shift)) {
            if m % 2 == 0 || !(1 << 15..1 << 16).contains(&m) || !(1..=62).contains(&shift) {
                return Err(step_error(step, format!("{m} * 2^-{shift} is no multiplier of a requantization")));
            }
        }
        match requantize.table {
            None => self.byte_codes(step, out, requantize.lo, requantize.hi)?,
            Some(table) => {
                self.section(step, table, Layout::I8, Some(256), "table")?;
                let (lo, hi, first) =
                    (i64::from(requantize.lo), i64::from(requantize.hi), i64::from(requantize.table_lo));
                if !(first <= lo && lo <= hi && hi <= first + 255 && (-128..=0).contains(&first)) {
                    return Err(step_error(
                        step,
                        format!("codes {lo}..={hi} do not index a table that begins at {first}"),
                    ));
                }
                if self.tensor(step, out)?.storage != Storage::I8 {
                    return Err(step_error(step, "a table gives bytes"));
                }
            }
        }
        zero_point(step, requantize.zero_point)
    }

    /// A tensor of bytes that holds the codes `lo..=hi`.
    pub(super) fn byte_codes(&self, step: &Step, out: u32, lo: i32, hi: i32) -> Check {
        let out = self.tensor(step, out)?;
        let stored = |code: i32| i64::from(code) - i64::from(out.code_offset);
        if out.storage != Storage::I8 || lo > hi || stored(lo) < -128 || stored(hi) > 127 {
            return Err(step_error(step, format!("tensor `{}` does not hold codes {lo}..={hi}", out.name)));
        }
        Ok(())
    }

    /// A section with one element or one a channel.
    pub(super) fn vector(
        &self,
        step: &Step,
        section: u32,
        layout: Layout,
        cols: usize,
        what: &str,
    ) -> Result<&[u8], ArtifactError> {
        let one = self.section(step, section, layout, Some(1), what);
        one.or_else(|_| self.section(step, section, layout, Some(cols), what))
    }
}

fn zero_point(step: &Step, zero_point: i32) -> Check {
    if zero_point.unsigned_abs() > ZERO_POINT_MAX {
        return Err(step_error(step, format!("zero point {zero_point} is out of range")));
    }
    Ok(())
}

/// Proves `sum_k |w[k, n]| * largest + |bias[n]| < 2^31` for every channel.
///
/// Padding rows are left out: their weights are checked to be zero, so that
/// whatever the padding of a row of codes holds does not matter.
fn sums_fit(step: &Step, layout: Layout, weight: &[u8], bias: &[u8], k: usize, largest: u32) -> Check {
    let rows_per_byte = if layout == Layout::W4Tile8x32 { 2 } else { 1 };
    let padded_k = pack::padded_k(k).unwrap_or(k);
    let tile_bytes = (padded_k / rows_per_byte).saturating_mul(pack::TILE_N).max(1);
    let mut bias = ints(bias);
    for (tile_idx, tile) in weight.chunks_exact(tile_bytes).enumerate() {
        let mut sums = [0u64; pack::TILE_N];
        for row in tile.chunks_exact(pack::BLOCK_BYTES * pack::TILE_N) {
            for (sum, block) in sums.iter_mut().zip(row.chunks_exact(pack::BLOCK_BYTES)) {
                *sum += block.iter().map(|&byte| absolute(layout, byte)).sum::<u64>();
            }
        }
        let padding_ok =
            (k..padded_k).all(|row| (0..pack::TILE_N).all(|col| pack::code_at(layout, tile, k, row, col) == Some(0)));
        if !padding_ok {
            return Err(step_error(step, format!("weights below row {k} are not zero")));
        }
        for (col, sum) in sums.into_iter().enumerate() {
            // Channels of the padding have no bias.
            if !sum_fits(sum, largest, bias.next().unwrap_or(0)) {
                return Err(wraps(step, tile_idx * pack::TILE_N + col));
            }
        }
    }
    Ok(())
}

/// `magnitude * largest + |bias| < 2^31`.
fn sum_fits(magnitude: u64, largest: u32, bias: i32) -> bool {
    let sum = magnitude.checked_mul(u64::from(largest));
    sum.and_then(|sum| sum.checked_add(u64::from(bias.unsigned_abs()))).is_some_and(|sum| sum < 1 << 31)
}

/// Sum of the absolute codes in a byte.
fn absolute(layout: Layout, byte: u8) -> u64 {
    match layout {
        Layout::W4Tile8x32 => {
            let nibble = |shift: u32| u64::from((((byte << shift) as i8) >> 4).unsigned_abs());
            nibble(0) + nibble(4)
        }
        _ => u64::from((byte as i8).unsigned_abs()),
    }
}

fn wraps(step: &Step, channel: usize) -> ArtifactError {
    step_error(step, format!("the sum of channel {channel} can leave 32 bits"))
}
