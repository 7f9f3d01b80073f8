//! Resize and Upsample: one axis after the other, a few lookups with known weights each.
//!
//! Extents and coordinates are computed in `f32`, in the order of ONNX Runtime: a scale such as 0.7
//! is a little less or more than the number that it was written as, and the rounding of the product
//! with an extent decides which element is the nearest, and how many there are.

use super::{
    OpError,
    builder::{self, Tensor},
    cx::{self, NodeCx},
};
use crate::frontend::error::shown;
use qail_ir::TensorType;

/// Most lookups of one axis; what needs more is a product with a matrix of weights.
const MAX_TAPS: usize = 4;

/// Distance from the middle between two elements that counts as none: what `f32` makes of a tie.
const TIE: f64 = 1e-6;

/// How a place of the result becomes a place of the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coordinates {
    HalfPixel,
    Symmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    Crop,
}

/// What stands between places.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nearest(Nearest),
    Linear,
    Cubic(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearest {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
    /// Before opset 11: up where elements are left out, else down.
    Simple,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Options {
    coordinates: Coordinates,
    mode: Mode,
    antialias: bool,
    exclude_outside: bool,
    extrapolation: f32,
}

/// One axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    extent: usize,
    out: usize,
    scale: f32,
    roi: (f32, f32),
}

/// Another size.
pub(super) fn resize(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let shape = cx.shape(x);
    let options = options(cx)?;
    let (roi, scales, sizes) = match cx.opset {
        ..11 => (None, known(cx, 1, "list of scales")?, None),
        _ => (known(cx, 1, "region")?, known(cx, 2, "list of scales")?, cx.ints(3, "new size")?),
    };
    let asked = if cx.opset < 18 { None } else { cx.int_list("axes")? };
    let policy = if cx.opset < 18 { None } else { cx.text("keep_aspect_ratio_policy")? };
    let axes: Vec<usize> = match asked {
        Some(axes) => axes.iter().map(|&axis| cx::axis(axis, shape.len())).collect::<Result<_, _>>()?,
        None => (0..shape.len()).collect(),
    };
    let scales = scales.filter(|scales| !scales.is_empty());
    let sizes = sizes.filter(|sizes| !sizes.is_empty());
    let mut plan: Vec<Axis> =
        shape.iter().map(|&extent| Axis { extent, out: extent, scale: 1.0, roi: (0.0, 1.0) }).collect();
    match (scales, sizes) {
        (Some(scales), None) if scales.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(&scales) {
                plan[axis].scale = scale;
                plan[axis].out = extent((plan[axis].extent as f32 * scale).floor())?;
            }
        }
        (None, Some(sizes)) if sizes.len() == axes.len() => {
            for (&axis, &size) in axes.iter().zip(&sizes) {
                plan[axis].out = extent(size as f32)?;
                plan[axis].scale = plan[axis].out as f32 / plan[axis].extent as f32;
            }
            let factors = axes.iter().map(|&axis| plan[axis].scale);
            let common = match policy.as_deref() {
                None | Some("stretch") => None,
                Some("not_larger") => Some(factors.fold(f32::INFINITY, f32::min)),
                Some("not_smaller") => Some(factors.fold(0.0, f32::max)),
                Some(other) => return Err(OpError::invalid(format!("its aspect policy is {}", shown(other)))),
            };
            if let Some(scale) = common {
                for &axis in &axes {
                    plan[axis].scale = scale;
                    plan[axis].out = extent((scale * plan[axis].extent as f32).round())?;
                }
            }
        }
        _ => return Err(OpError::invalid("it needs scales or a new size for every axis")),
    }
    if options.coordinates == Coordinates::Crop {
        let roi = roi.filter(|roi| roi.len() == 2 * axes.len());
        let roi = roi.ok_or_else(|| OpError::invalid("it needs a region with two numbers for every axis"))?;
        for (i, &axis) in axes.iter().enumerate() {
            plan[axis].roi = (roi[i], roi[axes.len() + i]);
        }
    }
    apply(cx, x, &plan, options)
}

/// Another size, in the way of opset 9.
pub(super) fn upsample(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let shape = cx.shape(x);
    let mode = mode(cx)?;
    let scales = known(cx, 1, "list of scales")?.filter(|scales| scales.len() == shape.len());
    let scales = scales.ok_or_else(|| OpError::invalid("it needs a scale for every axis"))?;
    let axis = |(&extent, &scale): (&usize, &f32)| -> Result<Axis, OpError> {
        Ok(Axis { extent, out: self::extent((extent as f32 * scale).floor())?, scale, roi: (0.0, 1.0) })
    };
    let plan: Vec<Axis> = shape.iter().zip(&scales).map(axis).collect::<Result<_, _>>()?;
    apply(cx, x, &plan, old(mode))
}

fn old(mode: Mode) -> Options {
    let mode = if matches!(mode, Mode::Nearest(_)) { Mode::Nearest(Nearest::Simple) } else { mode };
    let coordinates = Coordinates::Asymmetric;
    Options { coordinates, mode, antialias: false, exclude_outside: false, extrapolation: 0.0 }
}

fn extent(x: f32) -> Result<usize, OpError> {
    if (1.0..=(1u64 << 30) as f32).contains(&x) {
        return Ok(x as usize);
    }
    Err(OpError::invalid(format!("a new extent of {x}")))
}

fn known(cx: &NodeCx<'_>, index: usize, what: &str) -> Result<Option<Vec<f32>>, OpError> {
    let Some(tensor) = cx.optional(index) else { return Ok(None) };
    let Some(constant) = cx.constant(tensor) else {
        return Err(OpError::unsupported(format!("its {what} is computed at run time"), "export with fixed sizes"));
    };
    if constant.ty.n_elements() > 64 {
        return Err(OpError::invalid(format!("its {what} is {}", constant.ty)));
    }
    let found = constant.all_f32()?;
    match found.iter().all(|x| x.is_finite()) {
        true => Ok(Some(found)),
        false => Err(OpError::invalid(format!("its {what} is not finite"))),
    }
}

fn mode(cx: &NodeCx<'_>) -> Result<Mode, OpError> {
    match cx.text("mode")?.as_deref() {
        None | Some("nearest") => Ok(Mode::Nearest(Nearest::PreferFloor)),
        Some("linear" | "bilinear") => Ok(Mode::Linear),
        Some("cubic") => Ok(Mode::Cubic(-0.75)),
        Some(other) => Err(OpError::invalid(format!("its mode is {}", shown(other)))),
    }
}

fn options(cx: &NodeCx<'_>) -> Result<Options, OpError> {
    let mode = mode(cx)?;
    if cx.opset < 11 {
        return Ok(old(mode));
    }
    let coordinates = match cx.text("coordinate_transformation_mode")?.as_deref() {
        None | Some("half_pixel") => Coordinates::HalfPixel,
        Some("half_pixel_symmetric") => Coordinates::Symmetric,
        Some("pytorch_half_pixel") => Coordinates::PytorchHalfPixel,
        Some("align_corners") => Coordinates::AlignCorners,
        Some("asymmetric") => Coordinates::Asymmetric,
        Some("tf_crop_and_resize") => Coordinates::Crop,
        Some(other) => return Err(OpError::invalid(format!("its coordinates are {}", shown(other)))),
    };
    let nearest = match cx.text("nearest_mode")?.as_deref() {
        None | Some("round_prefer_floor") => Nearest::PreferFloor,
        Some("round_prefer_ceil") => Nearest::PreferCeil,
        Some("floor") => Nearest::Floor,
        Some("ceil") => Nearest::Ceil,
        Some(other) => return Err(OpError::invalid(format!("its rounding is {}", shown(other)))),
    };
    let a = f64::from(cx.number("cubic_coeff_a")?.unwrap_or(-0.75));
    let mode = match mode {
        Mode::Nearest(_) => Mode::Nearest(nearest),
        Mode::Linear => Mode::Linear,
        Mode::Cubic(_) => Mode::Cubic(a),
    };
    let antialias = cx.int("antialias")?.unwrap_or(0) != 0;
    let exclude_outside = cx.int("exclude_outside")?.unwrap_or(0) != 0;
    let extrapolation = cx.number("extrapolation_value")?.unwrap_or(0.0);
    Ok(Options { coordinates, mode, antialias, exclude_outside, extrapolation })
}

/// Place in the operand of place `i` of the result; none outside of a cropped region.
fn place(axis: &Axis, i: usize, coordinates: Coordinates) -> Option<f32> {
    let (x, n, out, scale) = (i as f32, axis.extent as f32, axis.out as f32, axis.scale);
    Some(match coordinates {
        Coordinates::PytorchHalfPixel if axis.out == 1 => 0.0,
        Coordinates::HalfPixel | Coordinates::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
        Coordinates::Symmetric => {
            let offset = n / 2.0 * (1.0 - out / (scale * n));
            (f64::from(offset) + (f64::from(x) + 0.5) / f64::from(scale) - 0.5) as f32
        }
        Coordinates::AlignCorners if axis.out == 1 => 0.0,
        Coordinates::AlignCorners => x * (n - 1.0) / (out - 1.0),
        Coordinates::Asymmetric => x / scale,
        Coordinates::Crop => {
            let (start, end) = axis.roi;
            let at = if axis.out == 1 {
                (0.5 * f64::from(start + end) * f64::from(n - 1.0)) as f32
            } else {
                start * (n - 1.0) + (x * (end - start) * (n - 1.0)) / (out - 1.0)
            };
            return (0.0..=n - 1.0).contains(&at).then_some(at);
        }
    })
}

/// Weights of the neighbours of a place, the first of which stands at the returned index.
fn taps(axis: &Axis, at: f32, options: Options) -> (i64, Vec<f64>) {
    let at = f64::from(at);
    let floor = at.floor();
    // On a place itself the neighbour before it counts as the left one.
    let (left, ratio) = if at == floor { (floor as i64 - 1, 1.0) } else { (floor as i64, at - floor) };
    let scale = if options.antialias { f64::from(axis.scale).min(1.0) } else { 1.0 };
    let spread = |reach: f64, f: &dyn Fn(f64) -> f64| {
        let start = (-reach / scale).floor() as i64 + 1;
        let n = (2 - 2 * start).max(1) as usize;
        let weights: Vec<f64> = (0..n).map(|k| f((start as f64 + k as f64 - ratio) * scale)).collect();
        let sum: f64 = weights.iter().sum();
        (left + start, weights.into_iter().map(|w| w / sum).collect::<Vec<f64>>())
    };
    match options.mode {
        Mode::Nearest(nearest) => {
            let right = match nearest {
                _ if at == floor => true,
                Nearest::PreferFloor => ratio > 0.5 + TIE,
                Nearest::PreferCeil => ratio >= 0.5 - TIE,
                Nearest::Simple => axis.scale < 1.0,
                Nearest::Floor => false,
                Nearest::Ceil => true,
            };
            (left + i64::from(right), vec![1.0])
        }
        Mode::Linear if options.antialias => spread(1.0, &|x| (1.0 - x.abs()).clamp(0.0, 1.0)),
        Mode::Linear => (left, vec![1.0 - ratio, ratio]),
        Mode::Cubic(a) => {
            let kernel = move |x: f64| match x.abs() {
                x if x <= 1.0 => (a + 2.0) * x * x * x - (a + 3.0) * x * x + 1.0,
                x if x < 2.0 => a * x * x * x - 5.0 * a * x * x + 8.0 * a * x - 4.0 * a,
                _ => 0.0,
            };
            spread(2.0, &kernel)
        }
    }
}

fn apply(cx: &mut NodeCx<'_>, x: Tensor, plan: &[Axis], options: Options) -> Result<Vec<Tensor>, OpError> {
    // As in ONNX Runtime nothing moves along an axis of scale 1, whatever its region, nor along any
    // if no extent changes, whatever the scales.
    let moves = plan.iter().any(|axis| axis.out != axis.extent);
    let mut y = x;
    for (at, axis) in plan.iter().enumerate().filter(|(_, axis)| moves && axis.scale != 1.0) {
        y = along(cx, y, at, axis, options)?;
    }
    Ok(vec![y])
}

/// One axis.
fn along(cx: &mut NodeCx<'_>, x: Tensor, at: usize, axis: &Axis, options: Options) -> Result<Tensor, OpError> {
    // An antialiasing window has a few elements for each element of the result.
    let per_place = if options.antialias { (4.0 / f64::from(axis.scale).min(1.0)).ceil() + 2.0 } else { 4.0 };
    let work = axis.out as f64 * per_place;
    if work.is_nan() || work > (1u64 << 26) as f64 {
        return Err(OpError::invalid("its result is too large"));
    }
    builder::check_size(&TensorType::f32([axis.out]))?;
    cx.builder.reserve(&TensorType::f32([axis.out, per_place as usize * 2]))?;
    let last = axis.extent as i64 - 1;
    let mut rows: Vec<Option<Vec<(usize, f64)>>> = Vec::with_capacity(axis.out);
    for i in 0..axis.out {
        let Some(position) = place(axis, i, options.coordinates) else {
            rows.push(None);
            continue;
        };
        let (first, mut weights) = taps(axis, position, options);
        if options.exclude_outside {
            for (k, weight) in (0i64..).zip(&mut weights) {
                if !(0..=last).contains(&first.saturating_add(k)) {
                    *weight = 0.0;
                }
            }
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let one = |(k, weight): (i64, f64)| (first.saturating_add(k).clamp(0, last) as usize, weight);
        rows.push(Some((0i64..).zip(weights).map(one).collect()));
    }
    let n_taps = rows.iter().flatten().map(Vec::len).max().unwrap_or(1);
    let tap = |i: usize, k: usize| {
        rows.get(i).and_then(Option::as_ref).and_then(|row| row.get(k)).copied().unwrap_or((0, 0.0))
    };
    let rank = cx.ty(x).shape.len();
    let mut counted = vec![1; rank];
    counted[at] = axis.out;
    let mut y = if n_taps > MAX_TAPS {
        let (extent, out) = (axis.extent, axis.out);
        builder::check_size(&TensorType::f32([extent, out]))?;
        let mut matrix = vec![0.0; extent.saturating_mul(out)];
        for (i, row) in rows.iter().enumerate() {
            for &(from, weight) in row.iter().flatten() {
                matrix[from * out + i] += weight;
            }
        }
        let w = cx.numbers(&[extent, out], |i| matrix[i] as f32)?;
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(at, rank - 1);
        let turned = cx.permuted(x, perm.clone())?;
        let product = cx.product(turned, w)?;
        cx.permuted(product, perm)?
    } else {
        let mut sum: Option<Tensor> = None;
        for k in 0..n_taps {
            let index = cx.table(&[axis.out], |i| tap(i, k).0 as i64)?;
            let mut part = cx.looked_up(x, index, at)?;
            if n_taps > 1 {
                let weights = cx.numbers(&counted, |i| tap(i, k).1 as f32)?;
                part = cx.mul(part, weights)?;
            }
            sum = Some(match sum {
                Some(sum) => cx.add(sum, part)?,
                None => part,
            });
        }
        sum.unwrap_or(x)
    };
    if rows.iter().any(Option::is_none) {
        let inside = cx.truths(&counted, |i| rows.get(i).is_some_and(Option::is_some))?;
        let outside = cx.scalar(options.extrapolation);
        y = cx.choose(inside, y, outside)?;
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(extent: usize, out: usize) -> Axis {
        Axis { extent, out, scale: out as f32 / extent as f32, roi: (0.0, 1.0) }
    }

    #[test]
    fn weights_of_every_place_sum_to_one() {
        for mode in [Mode::Linear, Mode::Cubic(-0.75)] {
            for antialias in [false, true] {
                let options = Options { mode, antialias, ..old(mode) };
                for (extent, out) in [(3, 7), (7, 3), (5, 5), (1, 4)] {
                    for i in 0..out {
                        let axis = axis(extent, out);
                        let at = place(&axis, i, Coordinates::HalfPixel).unwrap();
                        let sum: f64 = taps(&axis, at, options).1.iter().sum();
                        assert!((sum - 1.0).abs() < 1e-12, "{mode:?} {extent} to {out} at {i}: {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn corners_stay_corners() {
        let axis = axis(4, 7);
        assert_eq!(place(&axis, 0, Coordinates::AlignCorners), Some(0.0));
        assert_eq!(place(&axis, 6, Coordinates::AlignCorners), Some(3.0));
    }
}
