//! Movements of elements as tables: which element of one tensor stands at each
//! place of another, and the sums that run the other way.
//!
//! A chain of movements is one table, so that windows, their transposition and
//! their shape as a matrix are one loop. Where the first axis is a batch that all
//! of them leave alone, the table is that of one sample.

use qail_ir::{Op, Slice, Unfold};

use super::lanes::pieces;

/// What stands at a place that shows no element.
pub(super) const NONE: u32 = u32::MAX;

/// Longest tables: larger movements are left to the interpreter.
pub(super) const MAX_LEN: usize = 1 << 28;

/// Runs that are copied at once.
const RUN: usize = 8;

/// Which element stands at each place.
#[derive(Clone, Debug)]
pub(super) struct Picks {
    /// First element of each run of one block, or [`NONE`].
    at: Vec<u32>,
    /// Elements of a run.
    run: usize,
    /// Elements of a block of what is read.
    block: usize,
}

/// Which elements are summed at each place, in their order.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// Where the elements of each place begin in `list`, and where the last ones end.
    starts: Vec<u32>,
    list: Vec<u32>,
    /// Elements of a block of what is read.
    block: usize,
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Offsets of a strided view, row-major: `(extent, stride)` of each axis, outermost first.
fn offsets(start: usize, axes: &[(usize, isize)]) -> Vec<usize> {
    axes.iter().fold(vec![start], |outer, &(extent, stride)| {
        let inner = |at: usize| (0..extent).map(move |i| at.wrapping_add_signed(stride.wrapping_mul(i as isize)));
        outer.into_iter().flat_map(inner).collect()
    })
}

fn slice_offsets(slice: &Slice, shape: &[usize]) -> Vec<usize> {
    let strides = strides(shape);
    let start = slice.axes.iter().zip(&strides).map(|(axis, stride)| axis.start.saturating_mul(*stride)).sum();
    let axis = |(axis, &stride): (&qail_ir::SliceAxis, &usize)| (axis.len, axis.step.wrapping_mul(stride as isize));
    if slice.axes.iter().any(|axis| axis.len == 0) {
        return Vec::new();
    }
    offsets(start, &slice.axes.iter().zip(&strides).map(axis).collect::<Vec<_>>())
}

/// `at` of the operand, moved as an operation moves its elements; `None` for other operations.
/// `index` are the elements of the constant index of a `gather`.
pub(super) fn moved(op: &Op, [from, to]: [&[usize]; 2], at: &[u32], index: &[i64]) -> Option<Vec<u32>> {
    let pick = |places: Vec<usize>| places.into_iter().map(|i| at.get(i).copied()).collect::<Option<Vec<u32>>>();
    let n: usize = to.iter().product();
    if n > MAX_LEN {
        return None;
    }
    if n == 0 {
        return Some(Vec::new());
    }
    let strides = strides(from);
    let signed = |axis: usize| strides.get(axis).map(|&stride| stride as isize);
    match op {
        Op::Reshape(_) => Some(at.to_vec()),
        Op::Transpose(transpose) => {
            let axis = |&axis: &usize| Some((*from.get(axis)?, signed(axis)?));
            pick(offsets(0, &transpose.perm.iter().map(axis).collect::<Option<Vec<_>>>()?))
        }
        Op::Slice(slice) => pick(slice_offsets(slice, from)),
        Op::Expand(_) => {
            let lead = to.len().checked_sub(from.len())?;
            let axis = |(axis, &extent): (usize, &usize)| {
                let own = axis.checked_sub(lead).filter(|&own| from.get(own) != Some(&1));
                (extent, own.and_then(signed).unwrap_or(0))
            };
            pick(offsets(0, &to.iter().enumerate().map(axis).collect::<Vec<_>>()))
        }
        Op::Unfold(unfold) => {
            let places = windows(unfold, from, to);
            Some(places.into_iter().map(|i| at.get(i).copied().unwrap_or(NONE)).collect())
        }
        Op::Gather(gather) => {
            let extent = *from.get(gather.axis)? as i64;
            let (lead, row): (usize, usize) =
                (from.iter().take(gather.axis).product(), from.iter().skip(gather.axis + 1).product());
            let place = |index: i64| (if index < 0 { index + extent } else { index }).clamp(0, extent - 1) as usize;
            let places: Vec<usize> = index.iter().map(|&index| place(index)).collect();
            let rows =
                (0..lead).flat_map(|outer| places.iter().map(move |place| (outer * extent as usize + place) * row));
            pick(rows.flat_map(|start| start..start + row).collect())
        }
        Op::Grad(qail_ir::Grad::Slice(grad)) => {
            let mut out = vec![NONE; n];
            for (&at, place) in at.iter().zip(slice_offsets(&grad.slice, &grad.shape)) {
                *out.get_mut(place)? = at;
            }
            Some(out)
        }
        _ => None,
    }
}

/// The element that stands at each place of the windows; beyond all of them where there is none.
fn windows(unfold: &Unfold, from: &[usize], to: &[usize]) -> Vec<usize> {
    const BEYOND: usize = 1 << 40;
    let strides = strides(from);
    let rank = from.len();
    // For each axis, by position and place in the window.
    let table: Vec<Vec<usize>> = (unfold.windows.iter().zip(from).zip(&strides))
        .map(|((window, &extent), &stride)| {
            let one = |o: usize, k: usize| window.element(o, k, extent).map_or(BEYOND, |at| at * stride);
            (0..window.out).flat_map(|o| (0..window.size).map(move |k| one(o, k))).collect()
        })
        .collect();
    let sizes: Vec<usize> = unfold.windows.iter().map(|window| window.size).collect();
    // Axis of the result that counts the places in a window.
    let mut next = rank;
    let inner: Vec<Option<usize>> = (sizes.iter())
        .map(|&size| {
            (size > 1).then(|| {
                next += 1;
                next - 1
            })
        })
        .collect();
    let mut at = vec![0usize; to.len()];
    let n: usize = to.iter().product();
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        let place = |axis: usize| {
            let k = inner.get(axis).copied().flatten().and_then(|i| at.get(i).copied()).unwrap_or(0);
            let o = at.get(axis).copied().unwrap_or(0);
            table.get(axis).and_then(|table| table.get(o * sizes.get(axis).copied().unwrap_or(1) + k)).copied()
        };
        out.push((0..rank).map(|axis| place(axis).unwrap_or(BEYOND)).sum());
        for (at, &extent) in at.iter_mut().zip(to).rev() {
            *at += 1;
            if *at < extent {
                break;
            }
            *at = 0;
        }
    }
    out
}

/// The length of one block of `at`, if its `n` blocks read `n` blocks of `block` elements each.
fn one_block(at: &[u32], n: usize, block: usize) -> Option<usize> {
    if n <= 1 || !at.len().is_multiple_of(n) {
        return None;
    }
    let len = at.len() / n;
    let (first, rest) = at.split_at(len);
    let shifted = |(j, piece): (usize, &[u32])| {
        let by = (j + 1) * block;
        piece.iter().zip(first).all(|(&at, &first)| match first {
            NONE => at == NONE,
            first => at != NONE && at as usize == first as usize + by,
        })
    };
    let inside = first.iter().all(|&at| at == NONE || (at as usize) < block);
    (len > 0 && inside && rest.chunks_exact(len).enumerate().all(shifted)).then_some(len)
}

/// Blocks of a tensor of `n_elements` that may be those of a batch.
fn blocks(n_elements: usize, batch: usize) -> (usize, usize) {
    if batch > 1 && n_elements.is_multiple_of(batch) { (batch, n_elements / batch) } else { (1, n_elements) }
}

impl Picks {
    /// From the element at each place. `n_elements` are read; `batch` is their first axis.
    pub(super) fn new(mut at: Vec<u32>, n_elements: usize, batch: usize) -> Self {
        let (n, block) = blocks(n_elements, batch);
        let block = match one_block(&at, n, block) {
            Some(len) => {
                at.truncate(len);
                block
            }
            None => n_elements,
        };
        let follows = |pair: &[u32]| match pair {
            [NONE, b] => *b == NONE,
            [a, b] => *b != NONE && *a + 1 == *b,
            _ => false,
        };
        // Lengths of runs between two jumps; what divides all of them is copied at once.
        let (mut run, mut since) = (at.len(), 0);
        for (i, pair) in at.windows(2).enumerate() {
            if !follows(pair) {
                run = gcd(run, i + 1 - since);
                since = i + 1;
            }
        }
        run = gcd(run, at.len() - since);
        if run < RUN {
            run = 1;
        }
        let at = at.iter().step_by(run.max(1)).copied().collect();
        Self { at, run: run.max(1), block }
    }

    /// `out = x` at the places, `fill` where there is none.
    pub(super) fn copy(&self, threads: usize, out: &mut [f32], x: &[f32], fill: f32) {
        let (run, len) = (self.run, self.at.len().max(1));
        pieces(threads, run, out, |start, out| {
            let (mut block, mut first) = (start / run / len, start / run % len);
            let mut rest = out;
            while !rest.is_empty() {
                let n = ((len - first) * run).min(rest.len());
                let (now, later) = std::mem::take(&mut rest).split_at_mut(n);
                let x = x.get(block * self.block..).and_then(|x| x.get(..self.block)).unwrap_or_default();
                let at = self.at.get(first..).unwrap_or_default();
                if run == 1 {
                    for (out, &at) in now.iter_mut().zip(at) {
                        // None lies outside of every block.
                        *out = x.get(at as usize).copied().unwrap_or(fill);
                    }
                } else {
                    for (out, &at) in now.chunks_mut(run).zip(at) {
                        match x.get(at as usize..).and_then(|x| x.get(..out.len())) {
                            Some(x) => out.copy_from_slice(x),
                            None => out.fill(fill),
                        }
                    }
                }
                (rest, block, first) = (later, block + 1, 0);
            }
        });
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Sums {
    /// Element `from[i]` of `n_read` is added at place `to[i]` of `n_out`, for each `i` in order.
    /// `batch` is the first axis of both.
    pub(super) fn new(to: &[u32], from: &[u32], [n_out, n_read]: [usize; 2], batch: usize) -> Self {
        let ((n, own), (_, block)) = (blocks(n_out, batch), blocks(n_read, batch));
        let of_one = |at: &[u32], block: usize| one_block(at, n, block);
        let (len, n_out, block) = match (of_one(to, own), of_one(from, block)) {
            (Some(len), Some(same)) if len == same && n_read.is_multiple_of(n) => (len, own, block),
            _ => (to.len(), n_out, n_read),
        };
        let pairs = || to.iter().zip(from).take(len).filter(|(to, from)| **to != NONE && **from != NONE);
        let mut starts = vec![0u32; n_out + 1];
        for (&to, _) in pairs() {
            if let Some(count) = starts.get_mut(to as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut list = vec![NONE; sum as usize];
        for (&to, &from) in pairs() {
            if let Some(next) = next.get_mut(to as usize) {
                if let Some(slot) = list.get_mut(*next as usize) {
                    *slot = from;
                }
                *next += 1;
            }
        }
        Self { starts, list, block }
    }

    /// `out =` the sums of the elements of each place, from 0.
    pub(super) fn add(&self, threads: usize, out: &mut [f32], x: &[f32]) {
        let len = self.starts.len().saturating_sub(1).max(1);
        pieces(threads, 1, out, |start, out| {
            let (mut block, mut first) = (start / len, start % len);
            let mut rest = out;
            while !rest.is_empty() {
                let n = (len - first).min(rest.len());
                let (now, later) = std::mem::take(&mut rest).split_at_mut(n);
                let x = x.get(block * self.block..).unwrap_or_default();
                let bounds = self.starts.get(first..).unwrap_or_default();
                for (out, pair) in now.iter_mut().zip(bounds.windows(2)) {
                    let own = match pair {
                        [a, b] => self.list.get(*a as usize..*b as usize).unwrap_or_default(),
                        _ => &[],
                    };
                    *out = own.iter().fold(0.0, |sum, &at| sum + x.get(at as usize).copied().unwrap_or(0.0));
                }
                (rest, block, first) = (later, block + 1, 0);
            }
        });
    }
}

/// Blocks of rows of each part side by side: `parts` are elements and elements of a row.
pub(super) fn join(threads: usize, out: &mut [f32], parts: &[(&[f32], usize)]) {
    let row: usize = parts.iter().map(|part| part.1).sum();
    pieces(threads, row, out, |start, out| {
        for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
            let i = start / row.max(1) + i;
            let mut rest = out;
            for &(x, len) in parts {
                let (own, later) = std::mem::take(&mut rest).split_at_mut(len);
                if let Some(x) = x.get(i * len..(i + 1) * len) {
                    own.copy_from_slice(x);
                }
                rest = later;
            }
        }
    });
}

/// An index that may count from the end.
fn place(index: i64, extent: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(extent).ok()?)? } else { index };
    usize::try_from(index).ok().filter(|&index| index < extent)
}

/// `x[lead, extent, row]` at computed places of the middle axis; beyond an end, the element there.
pub(super) fn gather(threads: usize, out: &mut [f32], x: &[f32], index: &[i64], [extent, row]: [usize; 2]) {
    let n = index.len().max(1);
    pieces(threads, row, out, |start, out| {
        for (i, out) in out.chunks_exact_mut(row.max(1)).enumerate() {
            let i = start / row.max(1) + i;
            let Some(&index) = index.get(i % n) else { continue };
            let end = if index < 0 { 0 } else { extent.saturating_sub(1) };
            let from = (i / n * extent + place(index, extent).unwrap_or(end)) * row;
            if let Some(x) = x.get(from..from + row) {
                out.copy_from_slice(x);
            }
        }
    });
}

/// Rows of an update combined into `out`, which holds what is written to, in their order.
pub(super) fn scatter(out: &mut [f32], index: &[i64], update: &[f32], row: usize, f: impl Fn(f32, f32) -> f32) {
    let extent = out.len() / row.max(1);
    for (&index, update) in index.iter().zip(update.chunks_exact(row.max(1))) {
        let Some(place) = place(index, extent) else { continue };
        let own = out.get_mut(place * row..(place + 1) * row).unwrap_or_default();
        own.iter_mut().zip(update).for_each(|(out, &new)| *out = f(*out, new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_a_batch_are_those_of_one_sample() {
        // Two samples of [3, 4], transposed.
        let at: Vec<u32> = (0..24).collect();
        let transpose = Op::Transpose(qail_ir::Transpose { perm: vec![0, 2, 1] });
        let at = moved(&transpose, [&[2, 3, 4], &[2, 4, 3]], &at, &[]).unwrap();
        let picks = Picks::new(at, 24, 2);
        assert_eq!((picks.at.len(), picks.block, picks.run), (12, 12, 1));
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut out = vec![0.0; 24];
        picks.copy(1, &mut out, &x, 0.0);
        assert_eq!(out[..4], [0.0, 4.0, 8.0, 1.0]);
        assert_eq!(out[12..16], [12.0, 16.0, 20.0, 13.0]);
    }

    #[test]
    fn runs_are_copied_at_once() {
        let at: Vec<u32> = (16..32).chain(0..16).chain([NONE; 8]).collect();
        let picks = Picks::new(at, 32, 1);
        assert_eq!((picks.run, &picks.at[..]), (8, &[16, 24, 0, 8, NONE][..]));
        let x: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let mut out = vec![0.0; 40];
        picks.copy(1, &mut out, &x, -1.0);
        assert_eq!((out[0], out[15], out[16], out[31], out[32], out[39]), (16.0, 31.0, 0.0, 15.0, -1.0, -1.0));
    }
}
