//! Normalizations. What divides by a measured deviation is one `normalize`, with scale and shift
//! as `mul` and `add` behind it; what divides by a stored one is a scale and a shift.

use qail_ir::{BinaryFn, CompareFn, Normalize, Op, ReduceFn, UnaryFn, Window};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// With the stored mean and variance: `x * a + b` for each channel.
pub(super) fn batch(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let (scale, shift, mean, variance) = (cx.float(1)?, cx.float(2)?, cx.float(3)?, cx.float(4)?);
    let eps = cx.number("epsilon")?.unwrap_or(1e-5);
    cx.ignore("momentum");
    let one_a_channel = cx.int("spatial")?.unwrap_or(1) != 0;
    if cx.int("training_mode")?.unwrap_or(0) != 0 || !one_a_channel {
        return Err(OpError::unsupported("it is in training mode", "export the model in evaluation mode"));
    }
    let rank = cx.ty(x).shape.len();
    if rank < 2 || cx.ty(scale).shape.len() != 1 {
        return Err(OpError::invalid(format!("it takes channels, found {} and {}", cx.ty(x), cx.ty(scale))));
    }
    let eps = cx.scalar(eps);
    let variance = cx.add(variance, eps)?;
    let deviation = cx.map(UnaryFn::Sqrt, variance)?;
    let a = cx.zip(BinaryFn::Div, scale, deviation)?;
    let moved = cx.mul(mean, a)?;
    let b = cx.zip(BinaryFn::Sub, shift, moved)?;
    let (a, b) = (cx.beside(a, 1, rank)?, cx.beside(b, 1, rank)?);
    let scaled = cx.mul(x, a)?;
    Ok(vec![cx.add(scaled, b)?])
}

fn normalized(cx: &mut NodeCx<'_>, x: Tensor, axes: Vec<usize>, eps: f32, center: bool) -> Result<Tensor, OpError> {
    cx.part(Op::Normalize(Normalize { axes, eps, center }), &[x])
}

fn trailing(cx: &NodeCx<'_>, x: Tensor) -> Result<Vec<usize>, OpError> {
    let rank = cx.ty(x).shape.len();
    let first = cx::axis(cx.int("axis")?.unwrap_or(-1), rank)?;
    Ok((first..rank).collect())
}

/// Over the last axes; the mean and the inverse deviation are results, too.
pub(super) fn layer(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale) = (cx.float(0)?, cx.float(1)?);
    let shift = cx.optional(2);
    let eps = cx.number("epsilon")?.unwrap_or(1e-5);
    // Everything is f32 here.
    cx.ignore("stash_type");
    let axes = trailing(cx, x)?;
    let rows = normalized(cx, x, axes.clone(), eps, true)?;
    let mut y = cx.mul(rows, scale)?;
    if let Some(shift) = shift {
        cx.expect_float(shift)?;
        y = cx.add(y, shift)?;
    }
    let mut results = vec![y];
    if cx.needed.iter().skip(1).any(|&needed| needed) {
        let mean = cx.reduced(ReduceFn::Mean, x, &axes, true)?;
        let distance = cx.zip(BinaryFn::Sub, x, mean)?;
        let square = cx.mul(distance, distance)?;
        let variance = cx.reduced(ReduceFn::Mean, square, &axes, true)?;
        let eps = cx.scalar(eps);
        let variance = cx.add(variance, eps)?;
        let deviation = cx.map(UnaryFn::Sqrt, variance)?;
        results.extend([mean, cx.map(UnaryFn::Reciprocal, deviation)?]);
    }
    Ok(results)
}

/// Over the last axes, without the mean.
pub(super) fn root_mean_square(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale) = (cx.float(0)?, cx.float(1)?);
    let eps = cx.number("epsilon")?.unwrap_or(1e-5);
    cx.ignore("stash_type");
    let axes = trailing(cx, x)?;
    let rows = normalized(cx, x, axes, eps, false)?;
    Ok(vec![cx.mul(rows, scale)?])
}

/// Over the places of each channel.
pub(super) fn instance(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, shift) = (cx.float(0)?, cx.float(1)?, cx.float(2)?);
    let eps = cx.number("epsilon")?.unwrap_or(1e-5);
    let rank = cx.ty(x).shape.len();
    if rank < 3 {
        return Err(OpError::invalid(format!("it takes channels with places, found {}", cx.ty(x))));
    }
    let rows = normalized(cx, x, (2..rank).collect(), eps, true)?;
    let (scale, shift) = (cx.beside(scale, 1, rank)?, cx.beside(shift, 1, rank)?);
    let scaled = cx.mul(rows, scale)?;
    Ok(vec![cx.add(scaled, shift)?])
}

/// Over the places of the channels of each group. Scale and shift belong to groups before opset
/// 21, then to channels.
pub(super) fn group(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale, shift) = (cx.float(0)?, cx.float(1)?, cx.float(2)?);
    let eps = cx.number("epsilon")?.unwrap_or(1e-5);
    cx.ignore("stash_type");
    let n_groups = cx.int("num_groups")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let shape = cx.shape(x);
    let &[n, channels, ref places @ ..] = &shape[..] else {
        return Err(OpError::invalid(format!("it takes channels, found {}", cx.ty(x))));
    };
    if n_groups == 0 || !channels.is_multiple_of(n_groups) {
        return Err(OpError::invalid(format!("{channels} channels do not form {n_groups} groups")));
    }
    let grouped = [&[n, n_groups, channels / n_groups], places].concat();
    let rank = grouped.len();
    let rows = cx.reshaped(x, grouped)?;
    let mut rows = normalized(cx, rows, (2..rank).collect(), eps, true)?;
    let a_group = cx.opset < 21;
    if !a_group {
        rows = cx.reshaped(rows, shape.clone())?;
    }
    let rank = cx.ty(rows).shape.len();
    let (scale, shift) = (cx.beside(scale, 1, rank)?, cx.beside(shift, 1, rank)?);
    let scaled = cx.mul(rows, scale)?;
    let y = cx.add(scaled, shift)?;
    Ok(vec![cx.reshaped(y, shape)?])
}

/// `x / |x|` along an axis; zeros stay zeros.
pub(super) fn lp(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let axis = cx::axis(cx.int("axis")?.unwrap_or(-1), cx.ty(x).shape.len())?;
    let p = cx.int("p")?.unwrap_or(2);
    let part = match p {
        1 => cx.map(UnaryFn::Abs, x)?,
        2 => cx.mul(x, x)?,
        p => return Err(OpError::invalid(format!("its p is {p}"))),
    };
    let sum = cx.reduced(ReduceFn::Sum, part, &[axis], true)?;
    // Replaced before the root: its slope at zero is infinite.
    let (zero, one) = (cx.scalar(0.0), cx.scalar(1.0));
    let positive = cx.compare(CompareFn::Gt, sum, zero)?;
    let sum = cx.choose(positive, sum, one)?;
    let norm = if p == 2 { cx.map(UnaryFn::Sqrt, sum)? } else { sum };
    Ok(vec![cx.zip(BinaryFn::Div, x, norm)?])
}

/// `(x - mean) / (deviation + 1e-9)`.
pub(super) fn mean_variance(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let axes = cx.int_list("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = cx::axes(&axes, cx.ty(x).shape.len())?;
    let mean = cx.reduced(ReduceFn::Mean, x, &axes, true)?;
    let distance = cx.zip(BinaryFn::Sub, x, mean)?;
    let square = cx.mul(distance, distance)?;
    let variance = cx.reduced(ReduceFn::Mean, square, &axes, true)?;
    let deviation = cx.map(UnaryFn::Sqrt, variance)?;
    let eps = cx.scalar(1e-9);
    let deviation = cx.add(deviation, eps)?;
    Ok(vec![cx.zip(BinaryFn::Div, distance, deviation)?])
}

/// Local response: `x / (bias + alpha / size * sum of squares of near channels) ^ beta`.
pub(super) fn local_response(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    let alpha = cx.number("alpha")?.unwrap_or(1e-4);
    let beta = cx.number("beta")?.unwrap_or(0.75);
    let bias = cx.number("bias")?.unwrap_or(1.0);
    let shape = cx.shape(x);
    let size = cx.int("size")?.and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    let (Some(size), Some(&channels)) = (size, shape.get(1)) else {
        return Err(OpError::invalid("it has no size, or its operand no channels"));
    };
    let square = cx.mul(x, x)?;
    let mut windows: Vec<Window> = shape.iter().map(|&extent| Window::identity(extent)).collect();
    windows[1] = Window { size, pad: ((size - 1) / 2) as isize, ..Window::identity(channels) };
    let near = cx.windows(square, windows, 0.0)?;
    let sum = if size > 1 { cx.reduced(ReduceFn::Sum, near, &[shape.len()], false)? } else { near };
    let (factor, bias, beta) = (cx.scalar(alpha / size as f32), cx.scalar(bias), cx.scalar(beta));
    let scaled = cx.mul(sum, factor)?;
    let base = cx.add(scaled, bias)?;
    let divisor = cx.zip(BinaryFn::Pow, base, beta)?;
    Ok(vec![cx.zip(BinaryFn::Div, x, divisor)?])
}
