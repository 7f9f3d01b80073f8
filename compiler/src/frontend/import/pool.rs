//! Pools: windows, then one number for each.

use qail_ir::{BinaryFn, DType, ReduceFn, UnaryFn, Window};

use super::{
    OpError,
    builder::Tensor,
    cx::NodeCx,
    places::{self, Place},
};

/// The operand, what the attributes say of its places, and its shape.
fn read(cx: &NodeCx<'_>) -> Result<(Tensor, Vec<Place>, Vec<usize>), OpError> {
    let x = cx.operand(0)?;
    let shape = cx.shape(x);
    let kernel = cx.int_list("kernel_shape")?.ok_or_else(|| OpError::invalid("it has no kernel"))?;
    let kernel: Vec<usize> = kernel.iter().map(|&k| usize::try_from(k).unwrap_or(0)).collect();
    let ceil = cx.int("ceil_mode")?.unwrap_or(0) != 0;
    let extents = shape.get(2..).ok_or_else(|| OpError::invalid(format!("it takes channels, found {}", cx.ty(x))))?;
    let places = places::read(cx, extents, &kernel, ceil)?;
    Ok((x, places, shape))
}

/// Windows `[N, C, out.., kernel..]` and the axes of the kernel.
fn shown(cx: &mut NodeCx<'_>, x: Tensor, places: &[Place], fill: f32) -> Result<(Tensor, Vec<usize>), OpError> {
    let shape = cx.shape(x);
    let windows = places::windows(&shape, places.iter().map(Place::window));
    let shown = cx.windows(x, windows, fill)?;
    let rank = cx.ty(shown).shape.len();
    Ok((shown, (shape.len()..rank).collect()))
}

/// The largest number of each window.
pub(super) fn max(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, places, shape) = read(cx)?;
    let by_rows = cx.int("storage_order")?.unwrap_or(0) == 0;
    let least = match cx.ty(x).dtype() {
        Some(DType::F32) => f32::NEG_INFINITY,
        Some(DType::U8) => 0.0,
        _ => {
            return Err(OpError::unsupported(
                format!("operands of type {} are not supported", cx.ty(x)),
                "pool numbers",
            ));
        }
    };
    let (seen, axes) = shown(cx, x, &places, least)?;
    let y = cx.reduced(ReduceFn::Max, seen, &axes, false)?;
    let mut results = vec![y];
    if cx.needed.get(1).copied().unwrap_or(false) {
        results.push(where_from(cx, seen, &places, &shape, by_rows)?);
    }
    Ok(results)
}

/// The place of each largest number in the whole operand, counted along its last axis first, or
/// (a relic) along its first place first.
fn where_from(
    cx: &mut NodeCx<'_>,
    seen: Tensor,
    places: &[Place],
    shape: &[usize],
    by_rows: bool,
) -> Result<Tensor, OpError> {
    let out: Vec<usize> = places.iter().map(|place| place.out).collect();
    let kernel: Vec<usize> = places.iter().map(|place| place.kernel).collect();
    let taps: usize = kernel.iter().product();
    let n_places: usize = out.iter().product();
    let lead: usize = shape.iter().take(2).product();
    let rows = cx.reshaped(seen, [lead, n_places, taps])?;
    let first = qail_ir::ArgReduce { largest: true, axis: 2, keep_dims: false, last: false };
    let tap = cx.extreme(rows, first)?;
    // A table of places, one row a window; which row is known, which column is computed.
    let whole: i64 = shape.iter().skip(2).product::<usize>() as i64;
    let table = cx.table(&[n_places, taps], |i| {
        let (mut o, mut k) = (i / taps, i % taps);
        let mut at = vec![0i64; places.len()];
        for (axis, place) in places.iter().enumerate().rev() {
            let (position, element) = (o % place.out, k % place.kernel);
            (o, k) = (o / place.out, k / place.kernel);
            at[axis] = (position * place.stride + element * place.dilation) as i64 - place.before as i64;
        }
        let by_axis = places.iter().zip(&at);
        if by_rows {
            by_axis.fold(0, |sum, (place, at)| sum * place.extent as i64 + at)
        } else {
            by_axis.rev().fold(0, |sum, (place, at)| sum * place.extent as i64 + at)
        }
    })?;
    let flat = cx.reshaped(table, [n_places * taps])?;
    let row = cx.table(&[1, n_places], |i| (i * taps) as i64)?;
    let at = cx.add(tap, row)?;
    let place = cx.looked_up(flat, at, 0)?;
    let channel = cx.table(&[lead, 1], |i| i as i64 * whole)?;
    let place = cx.add(place, channel)?;
    cx.reshaped(place, [&shape[..2], &out[..]].concat())
}

/// Most parts that an average pool is cut into: the corners, edges and inside of two axes are 9.
const MAX_PARTS: usize = 16;

/// Most windows along an axis of an average pool: each of them is counted.
const MAX_WINDOWS: usize = 1 << 20;

/// Windows next to each other that see the same part of the kernel inside the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first window.
    first: usize,
    /// Number of windows.
    n: usize,
    /// Elements of the kernel in front of the operand.
    skipped: usize,
    /// Elements of the kernel inside.
    count: usize,
}

impl Run {
    /// The windows of an axis; none if one of them sees nothing.
    fn all(place: &Place, padding: bool) -> Option<Vec<Self>> {
        let mut runs: Vec<Self> = Vec::new();
        for o in 0..place.out {
            let (skipped, count) = place.seen(o, padding);
            if count == 0 {
                return None;
            }
            match runs.last_mut() {
                Some(run) if (run.skipped, run.count) == (skipped, count) => run.n += 1,
                _ => runs.push(Self { first: o, n: 1, skipped, count }),
            }
        }
        Some(runs)
    }

    /// What its windows see.
    fn window(&self, place: &Place) -> Window {
        // Both products are positions inside of the padded operand.
        let ahead = self.first * place.stride + self.skipped * place.dilation;
        let pad = place.before as isize - ahead as isize;
        Window { size: self.count, pad, out: self.n, ..place.window() }
    }
}

/// The mean of each window, by parts whose windows see equally many elements: so a part is a mean,
/// which has integers behind it, and nothing is divided place by place.
fn in_parts(
    cx: &mut NodeCx<'_>,
    x: Tensor,
    places: &[Place],
    runs: &[Vec<Run>],
    chosen: &mut Vec<Window>,
) -> Result<Tensor, OpError> {
    let axis = chosen.len();
    let (Some(place), Some(of_axis)) = (places.get(axis), runs.get(axis)) else {
        let shape = cx.shape(x);
        let seen = cx.windows(x, places::windows(&shape, chosen.iter().copied()), 0.0)?;
        let axes: Vec<usize> = (shape.len()..cx.ty(seen).shape.len()).collect();
        return if axes.is_empty() { Ok(seen) } else { cx.reduced(ReduceFn::Mean, seen, &axes, false) };
    };
    let mut parts = Vec::with_capacity(of_axis.len());
    for run in of_axis {
        chosen.push(run.window(place));
        parts.push(in_parts(cx, x, places, runs, chosen)?);
        chosen.pop();
    }
    cx.joined(&parts, 2 + axis)
}

/// The mean of each window, of what lies inside the operand or the padding, too.
pub(super) fn average(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    cx.float(0)?;
    let padding = cx.int("count_include_pad")?.unwrap_or(0) != 0;
    let (x, places, _) = read(cx)?;
    if let Some(place) = places.iter().find(|place| place.out > MAX_WINDOWS) {
        return Err(OpError::unsupported(
            format!("it has {} windows along an axis, more than {MAX_WINDOWS}", place.out),
            "pool smaller operands",
        ));
    }
    let runs: Option<Vec<Vec<Run>>> = places.iter().map(|place| Run::all(place, padding)).collect();
    let n_parts = |runs: &[Vec<Run>]| runs.iter().fold(1usize, |n, of_axis| n.saturating_mul(of_axis.len()));
    if let Some(runs) = runs.filter(|runs| (2..=MAX_PARTS).contains(&n_parts(runs))) {
        return Ok(vec![in_parts(cx, x, &places, &runs, &mut Vec::new())?]);
    }
    let (shown, axes) = shown(cx, x, &places, 0.0)?;
    let counts: Vec<Vec<usize>> =
        places.iter().map(|place| (0..place.out).map(|o| place.count(o, padding)).collect()).collect();
    let taps: usize = places.iter().map(|place| place.kernel).product();
    if places.iter().zip(&counts).all(|(place, counts)| counts.iter().all(|&count| count == place.kernel)) {
        return Ok(vec![cx.reduced(ReduceFn::Mean, shown, &axes, false)?]);
    }
    let sum = if taps > 1 { cx.reduced(ReduceFn::Sum, shown, &axes, false)? } else { shown };
    let out: Vec<usize> = places.iter().map(|place| place.out).collect();
    let divisor = cx.numbers(&[&[1, 1], &out[..]].concat(), |mut i| {
        counts.iter().rev().fold(1.0, |product, counts| {
            let count = counts.get(i % counts.len()).copied().unwrap_or(1);
            i /= counts.len();
            product * count as f32
        })
    })?;
    Ok(vec![cx.zip(BinaryFn::Div, sum, divisor)?])
}

/// `(sum |x|^p)^(1 / p)` of each window, or of everything.
pub(super) fn lp(cx: &mut NodeCx<'_>, global: bool) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let p = cx.int("p")?.unwrap_or(2);
    if !(1..=64).contains(&p) {
        return Err(OpError::invalid(format!("its p is {p}")));
    }
    let size = cx.map(UnaryFn::Abs, x)?;
    let exponent = cx.scalar(p as f32);
    let power = if p == 1 { size } else { cx.zip(BinaryFn::Pow, size, exponent)? };
    let sum = if global {
        let rank = cx.ty(x).shape.len();
        cx.reduced(ReduceFn::Sum, power, &(2..rank).collect::<Vec<_>>(), true)?
    } else {
        let (_, places, _) = read(cx)?;
        let (shown, axes) = shown(cx, power, &places, 0.0)?;
        cx.reduced(ReduceFn::Sum, shown, &axes, false)?
    };
    if p == 1 {
        return Ok(vec![sum]);
    }
    let root = cx.scalar(1.0 / p as f32);
    Ok(vec![cx.zip(BinaryFn::Pow, sum, root)?])
}

/// One number for all places of a channel.
pub(super) fn global(cx: &mut NodeCx<'_>, f: ReduceFn) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let rank = cx.ty(x).shape.len();
    Ok(vec![cx.reduced(f, x, &(2..rank).collect::<Vec<_>>(), true)?])
}
