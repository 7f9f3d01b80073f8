//! Steps and codes of weights that are larger than memory.
//!
//! The matrix `w[K, N]` is read in blocks of columns, which are worked on by
//! several threads; what comes out is the same for any number of them, and the
//! same as [`group_steps`](super::group_steps) and
//! [`weight_code`](super::weight_code) give. Codes are not stored at all: they
//! are computed from the weights, where they lie, whenever somebody reads them.

use std::{fmt, io, ops::Range, sync::Arc};

use qail_ir::{Block, ConstData, ConstError, ConstSource, Constant, QuantScheme, TensorType};
use rayon::prelude::*;

use super::weights::{steps_of_channels, weight_code};

/// Columns of a block: a multiple of [`LANES`].
const BLOCK_COLUMNS: usize = 256;
/// Weights that a block has about, at most.
const BLOCK_WEIGHTS: usize = 1 << 18;
/// Columns that the search goes through together.
const LANES: usize = 8;

/// The steps of `w[K, N]` for codes `-hi..=hi`, one for each `group` rows of a
/// column: `[ceil(K / group), N]`, NaN where a weight is not finite. `progress`
/// hears of weights that are done.
///
/// # Errors
/// Weights that cannot be read.
pub(crate) fn steps_of(
    w: &Constant,
    [k, n]: [usize; 2],
    group: usize,
    hi: i32,
    progress: &mut dyn FnMut(usize),
) -> Result<Constant, ConstError> {
    let group = group.max(1);
    let n_groups = k.div_ceil(group);
    // What is found for a column depends on that column alone; `steps_of_channels`
    // then looks at all of a group.
    let mut found = vec![0.0f64; n_groups.saturating_mul(n)];
    let columns: Vec<Range<usize>> = (0..n).step_by(BLOCK_COLUMNS).map(|at| at..(at + BLOCK_COLUMNS).min(n)).collect();
    for columns in columns.chunks(4 * rayon::current_num_threads()) {
        let blocks: Vec<Vec<f64>> =
            columns.par_iter().map(|columns| of_columns(w, k, columns.clone(), group, hi)).collect::<Result<_, _>>()?;
        for (columns, block) in columns.iter().zip(&blocks) {
            for (row, steps) in block.chunks_exact(columns.len().max(1)).enumerate() {
                let at = row * n + columns.start;
                if let Some(to) = found.get_mut(at..at + steps.len()) {
                    to.copy_from_slice(steps);
                }
            }
            progress(k.saturating_mul(columns.len()));
        }
    }
    let mut steps: Vec<f32> = found.chunks_exact(n.max(1)).flat_map(|found| steps_of_channels(found, None)).collect();
    for (step, found) in steps.iter_mut().zip(&found).filter(|(_, found)| found.is_nan()) {
        *step = *found as f32;
    }
    Ok(Constant::f32([n_groups, n], &steps))
}

/// What is found for some columns, `[groups, columns]`; NaN for weights that are not finite.
fn of_columns(w: &Constant, k: usize, columns: Range<usize>, group: usize, hi: i32) -> Result<Vec<f64>, ConstError> {
    let n = columns.len();
    let mut found = Vec::with_capacity(k.div_ceil(group).saturating_mul(n));
    let rows_at_once = (BLOCK_WEIGHTS / n.max(1)).max(1);
    if hi > 63 {
        // The largest magnitude of each group: a group may be longer than a block.
        for first in (0..k).step_by(group) {
            let end = first.saturating_add(group).min(k);
            let (mut largest, mut taint) = (vec![0.0f32; n], vec![0.0f32; n]);
            for start in (first..end).step_by(rows_at_once) {
                let rows = w.read_block_f32(start..start.saturating_add(rows_at_once).min(end), columns.clone())?;
                for row in rows.chunks_exact(n.max(1)) {
                    largest.iter_mut().zip(row).for_each(|(a, b)| *a = a.max(b.abs()));
                    // Zero times an infinity, or what is no number, is NaN.
                    taint.iter_mut().zip(row).for_each(|(a, b)| *a += b * 0.0);
                }
            }
            found
                .extend(largest.iter().zip(&taint).map(|(&x, &taint)| f64::from(x) / f64::from(hi) + f64::from(taint)));
        }
        return Ok(found);
    }
    let mut lanes: Vec<[f64; LANES]> = Vec::with_capacity(group);
    let groups_at_once = (rows_at_once / group).max(1).saturating_mul(group);
    for start in (0..k).step_by(groups_at_once) {
        let rows = w.read_block_f32(start..start.saturating_add(groups_at_once).min(k), columns.clone())?;
        for group in rows.chunks(group.saturating_mul(n).max(1)) {
            for first in (0..n).step_by(LANES) {
                let width = LANES.min(n - first);
                let mut taint = [0.0; LANES];
                lanes.clear();
                lanes.extend(group.chunks_exact(n).map(|row| {
                    let mut lane = [0.0; LANES];
                    let row = row.get(first..first + width).unwrap_or_default();
                    lane.iter_mut().zip(row).for_each(|(to, &x)| *to = f64::from(x));
                    taint.iter_mut().zip(&lane).for_each(|(a, x)| *a += x * 0.0);
                    lane
                }));
                let steps = pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || search(&lanes, f64::from(hi)),
                );
                found.extend(steps.iter().zip(&taint).take(width).map(|(step, taint)| step + taint));
            }
        }
    }
    Ok(found)
}

/// The steps with the least square error of [`LANES`] columns, 0 for one without
/// weights: 30 to 100 % of what the largest weight asks for.
///
/// Smaller steps clip more. Once the error of the largest weight alone is not
/// below the best sum so far, that is so for all the smaller ones.
#[inline(always)]
fn search(rows: &[[f64; LANES]], hi: f64) -> [f64; LANES] {
    let mut largest = [0.0f64; LANES];
    for row in rows {
        largest.iter_mut().zip(row).for_each(|(a, b)| *a = a.max(b.abs()));
    }
    let widest = largest.map(|x| x / hi);
    let mut best = widest;
    let mut least = square_errors(rows, &widest, hi);
    for percent in (30..100).rev() {
        let step = widest.map(|widest| widest * f64::from(percent) / 100.0);
        let alone = square_errors(&[largest], &step, hi);
        if !alone.iter().zip(&least).any(|(alone, least)| alone < least) {
            break;
        }
        let errors = square_errors(rows, &step, hi);
        for lane in 0..LANES {
            if errors[lane] < least[lane] {
                (best[lane], least[lane]) = (step[lane], errors[lane]);
            }
        }
    }
    best
}

#[inline(always)]
fn square_errors(rows: &[[f64; LANES]], step: &[f64; LANES], hi: f64) -> [f64; LANES] {
    /// Added to a number below `2^51` and taken away again, it leaves the
    /// nearest integer, ties to even.
    const TO_INTEGER: f64 = 1.5 * (1u64 << 52) as f64;
    let mut sums = [0.0; LANES];
    for row in rows {
        for lane in 0..LANES {
            let code = (row[lane] / step[lane]).clamp(-hi, hi) + TO_INTEGER - TO_INTEGER;
            let error = code * step[lane] - row[lane];
            sums[lane] += error * error;
        }
    }
    sums
}

/// Codes of a weight matrix, computed when they are read.
struct Codes {
    w: Arc<Constant>,
    /// One for each group of rows and column, little-endian: those of the graph.
    steps: Arc<[u8]>,
    group: usize,
    n: usize,
    hi: i32,
}

/// The codes of `w[K, N]` with [steps](steps_of) for groups of `group` rows. They
/// stay uncomputed until somebody asks for them if the weights lie elsewhere.
///
/// # Errors
/// Weights and steps that cannot be read.
pub(crate) fn codes_of(
    w: &Arc<Constant>,
    steps: &Constant,
    group: usize,
    scheme: QuantScheme,
) -> Result<Constant, ConstError> {
    let n = w.ty.shape.last().copied().unwrap_or(1);
    let ty = TensorType::code(scheme, w.ty.shape.clone());
    let steps = match &steps.data {
        ConstData::Bytes(bytes) => bytes.clone(),
        ConstData::Splat(_) | ConstData::Rand(_) | ConstData::Source(_) => {
            steps.read_bytes(0..steps.ty.n_elements())?.into()
        }
    };
    let source: Arc<dyn ConstSource> = Arc::new(Codes { w: w.clone(), steps, group: group.max(1), n, hi: scheme.hi() });
    let lazy = Constant { ty, data: ConstData::Source(source) };
    match w.data {
        ConstData::Source(_) => Ok(lazy),
        ConstData::Bytes(_) | ConstData::Splat(_) | ConstData::Rand(_) => {
            let bytes = lazy.read_bytes(0..lazy.ty.n_elements())?;
            Ok(Constant { data: ConstData::Bytes(bytes.into()), ..lazy })
        }
    }
}

impl Codes {
    /// The code of each weight of part of row `row`, from column `first` on.
    fn of_row(&self, w: &[f32], row: usize, first: usize, out: &mut [u8]) {
        let start = (row / self.group).saturating_mul(self.n).saturating_add(first).saturating_mul(4);
        let (steps, _) = self.steps.get(start..).unwrap_or_default().as_chunks::<4>();
        // Instructions that round are not among those that every machine has.
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for ((&w, &step), out) in w.iter().zip(steps).zip(out) {
                    *out = weight_code(f64::from(w), f32::from_le_bytes(step), -self.hi, self.hi) as u8;
                }
            },
        );
    }
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codes({:?})", self.w.data)
    }
}

fn invalid(error: ConstError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

impl ConstSource for Codes {
    fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(start).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let w = self.w.read_f32(start..start.saturating_add(out.len())).map_err(invalid)?;
        let (mut at, mut w, mut out) = (start, &w[..], out);
        while !out.is_empty() {
            let (row, first) = (at / self.n.max(1), at % self.n.max(1));
            let n = (self.n - first).min(out.len());
            let (of_row, rest) = w.split_at_checked(n).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (to, more) = out.split_at_mut(n);
            self.of_row(of_row, row, first, to);
            (at, w, out) = (at + n, rest, more);
        }
        Ok(())
    }

    fn read_block(&self, block: &Block, out: &mut [u8]) -> io::Result<()> {
        let n = block.columns.len().max(1);
        let w = self.w.read_block_f32(block.rows.clone(), block.columns.clone()).map_err(invalid)?;
        for ((row, w), out) in block.rows.clone().zip(w.chunks_exact(n)).zip(out.chunks_exact_mut(n)) {
            self.of_row(w, row, block.columns.start, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_that_is_no_number_leaves_no_step() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = vec![0.25f32; 64 * 9];
            w[40 * 9 + 8] = broken;
            for (group, hi) in [(32, 7), (64, 127)] {
                let steps = steps_of(&Constant::f32([64, 9], &w), [64, 9], group, hi, &mut |_| {}).unwrap();
                let steps = steps.all_f32().unwrap();
                let broken: Vec<usize> = (0..steps.len()).filter(|&i| !steps[i].is_finite()).collect();
                assert_eq!(broken, [steps.len() - 1], "groups of {group}");
            }
        }
    }
    use crate::quant::group_steps;

    /// Seeded weights, some columns dead, some with one outlier, some tiny.
    fn matrix(k: usize, n: usize) -> Constant {
        let rand = Constant { ty: TensorType::f32([k, n]), data: ConstData::Rand(11) };
        let mut w = rand.all_f32().unwrap();
        for (i, x) in w.iter_mut().enumerate() {
            match (i % n) % 7 {
                0 => *x = 0.0,
                1 if i / n == 3 => *x *= 40.0,
                2 => *x *= 1e-20,
                3 => *x = (*x * 4.0).round() / 4.0,
                _ => *x *= x.abs(),
            }
        }
        Constant::f32([k, n], &w)
    }

    #[derive(Debug)]
    struct Elsewhere(Constant);

    impl ConstSource for Elsewhere {
        fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
            let start = start as usize;
            out.copy_from_slice(&self.0.read_bytes(start / 4..(start + out.len()) / 4).map_err(invalid)?);
            Ok(())
        }
    }

    #[test]
    fn blocks_give_the_steps_of_the_whole() {
        for (k, n, group, hi) in [(70, 9, 32, 7), (64, 600, 32, 7), (5, 3, 32, 7), (300, 20, 300, 127), (40, 8, 16, 1)]
        {
            let w = matrix(k, n);
            let mut done = 0;
            let steps = steps_of(&w, [k, n], group, hi, &mut |n| done += n).unwrap();
            assert_eq!(
                steps.all_f32().unwrap(),
                group_steps(&w.all().unwrap(), n, group, hi),
                "{k} x {n}, group {group}, hi {hi}"
            );
            assert_eq!(done, k * n);
        }
    }

    #[test]
    fn codes_are_the_same_whether_they_wait_or_not() {
        let (k, n) = (70, 19);
        let held = Arc::new(matrix(k, n));
        let data = ConstData::Source(Arc::new(Elsewhere(held.as_ref().clone())));
        let elsewhere = Arc::new(Constant { data, ..held.as_ref().clone() });
        let scheme = QuantScheme::signed(4);
        let codes = |w: &Arc<Constant>| {
            let steps = steps_of(w, [k, n], 32, scheme.hi(), &mut |_| {}).unwrap();
            codes_of(w, &steps, 32, scheme).unwrap()
        };
        let (now, later) = (codes(&held), codes(&elsewhere));
        assert!(matches!(now.data, ConstData::Bytes(_)) && matches!(later.data, ConstData::Source(_)));
        let whole = now.all_int().unwrap();
        assert_eq!(later.all_int().unwrap(), whole);
        assert_eq!(later.read_int(30..61).unwrap(), whole[30..61]);
        let part = later.read_block_bytes(31..33, 2..5).unwrap();
        let expected: Vec<u8> =
            (31..33).flat_map(|row| (2..5).map(move |c| row * n + c)).map(|i| whole[i] as u8).collect();
        assert_eq!(part, expected);
    }
}
