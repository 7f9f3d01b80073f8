//! Convolutions: windows times weights.
//!
//! With known weights the windows become rows of a `linear`, channels last, so
//! everything that serves a fully connected layer serves them: `unfold`,
//! `transpose`, `reshape`, `linear`, `transpose`. A transposed convolution is a
//! convolution over spread elements with the kernel turned around.

use qail_ir::{ConstData, Constant, Linear, MatMul, Op, ReduceFn, TensorType, Window};

use super::{
    OpError,
    builder::Tensor,
    cx::NodeCx,
    places::{self, AutoPad},
};

/// Most groups of several channels that become layers of their own.
const MAX_LAYERS: usize = 32;

/// Convolution of `[N, C, ..]` with `[M, C / groups, ..]`.
pub(super) fn conv(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (cx.float(0)?, cx.float(1)?);
    let bias = bias(cx)?;
    Ok(vec![of_tensors(cx, x, w, bias)?])
}

/// The convolution of three tensors, with the attributes of the node.
pub(super) fn of_tensors(cx: &mut NodeCx<'_>, x: Tensor, w: Tensor, bias: Option<Tensor>) -> Result<Tensor, OpError> {
    let groups = groups(cx)?;
    let (shape, kernel) = (cx.shape(x), cx.shape(w));
    let (Some(extents), Some(kernel)) = (shape.get(2..), kernel.get(2..)) else {
        return Err(OpError::invalid(format!("it takes channels with places, found {}", cx.ty(x))));
    };
    if let Some(declared) = cx.int_list("kernel_shape")? {
        let same = declared.len() == kernel.len() && declared.iter().zip(kernel).all(|(&a, &b)| a == b as i64);
        if !same {
            return Err(OpError::invalid(format!("its kernel is declared as {declared:?} and is {kernel:?}")));
        }
    }
    let windows: Vec<Window> = places::read(cx, extents, kernel, false)?.iter().map(places::Place::window).collect();
    convolve(cx, x, w, bias, &windows, groups)
}

fn groups(cx: &NodeCx<'_>) -> Result<usize, OpError> {
    let groups = cx.int("group")?.unwrap_or(1);
    usize::try_from(groups).ok().filter(|&n| n > 0).ok_or_else(|| OpError::invalid(format!("it has {groups} groups")))
}

fn bias(cx: &NodeCx<'_>) -> Result<Option<Tensor>, OpError> {
    let bias = cx.optional(2);
    bias.map(|bias| cx.expect_float(bias)).transpose()?;
    Ok(bias)
}

/// The sum over channels and windows, and the bias.
fn convolve(
    cx: &mut NodeCx<'_>,
    x: Tensor,
    w: Tensor,
    bias: Option<Tensor>,
    windows: &[Window],
    groups: usize,
) -> Result<Tensor, OpError> {
    let (shape, weights) = (cx.shape(x), cx.shape(w));
    let (&[n, c, ..], &[m, per_group, ..]) = (&shape[..], &weights[..]) else {
        return Err(OpError::invalid("it takes channels with places"));
    };
    let fits = c.is_multiple_of(groups) && m.is_multiple_of(groups) && c / groups == per_group;
    if !fits || m == 0 {
        return Err(OpError::invalid(format!("weights {weights:?} for {c} channels in {groups} groups")));
    }
    if let Some(bias) = bias.filter(|&bias| cx.ty(bias).shape != [m]) {
        return Err(OpError::invalid(format!("a bias of type {} for {m} channels", cx.ty(bias))));
    }
    let known = matches!((x, w), (Tensor::Computed(_), Tensor::Known(_)));
    let known_bias = bias.is_none_or(|bias| matches!(bias, Tensor::Known(_)));
    let shown = cx.windows(x, places::windows(&shape, windows.iter().copied()), 0.0)?;
    let layout = Layout {
        n,
        out: windows.iter().map(|window| window.out).collect(),
        kernel: windows.iter().map(|window| window.size).filter(|&size| size > 1).collect(),
    };
    // A channel with a window of its own is a group; a few wide groups are layers of their own.
    if known && known_bias && (groups == 1 || per_group == 1 || groups > MAX_LAYERS) {
        return layer(cx, shown, c, &layout, w, bias, groups);
    }
    if known && known_bias {
        let mut parts = Vec::with_capacity(groups);
        for group in 0..groups {
            let x = cx.sliced(shown, 1, group * per_group, per_group)?;
            let whole = w;
            let w = cx.sliced(whole, 0, group * (m / groups), m / groups)?;
            cx.builder.adopt(w, whole);
            let b = bias.map(|bias| cx.sliced(bias, 0, group * (m / groups), m / groups)).transpose()?;
            parts.push(layer(cx, x, per_group, &layout, w, b, 1)?);
        }
        return cx.joined(&parts, 1);
    }
    let sum = if per_group == 1 {
        depthwise(cx, shown, c, &layout, w, m / groups)?
    } else {
        batched(cx, shown, groups, per_group, &layout, w, m / groups)?
    };
    let Some(bias) = bias else { return Ok(sum) };
    let bias = cx.beside(bias, 1, layout.out.len() + 2)?;
    cx.add(sum, bias)
}

/// Axes of the windows of a convolution: `[N, C, out.., kernel..]`.
struct Layout {
    n: usize,
    out: Vec<usize>,
    kernel: Vec<usize>,
}

/// Rows of windows, channels last, times weights. The windows of a channel stand
/// side by side, and so do the channels of a group.
fn layer(
    cx: &mut NodeCx<'_>,
    shown: Tensor,
    c: usize,
    layout: &Layout,
    w: Tensor,
    bias: Option<Tensor>,
    groups: usize,
) -> Result<Tensor, OpError> {
    let (d, taps) = (layout.out.len(), layout.kernel.len());
    let m = cx.extent(w, 0)?;
    let perm: Vec<usize> = [0].into_iter().chain(2..2 + d).chain([1]).chain(2 + d..2 + d + taps).collect();
    let rows = cx.permuted(shown, perm)?;
    let k = layout.kernel.iter().product::<usize>() * c;
    let rows = cx.reshaped(rows, [&[layout.n], &layout.out[..], &[k]].concat())?;
    let matrix = cx.reshaped(w, [m, k / groups.max(1)])?;
    cx.builder.adopt(matrix, w);
    let w = matrix;
    let reader = cx.result(0);
    let w = cx.builder.weight(w, true, 1.0, &reader)?;
    let bias = match bias {
        Some(bias) => bias,
        None => cx.known_part("bias", Constant { ty: TensorType::f32([m]), data: ConstData::Splat(0.0) }),
    };
    let y = cx.part(Op::Linear(Linear { act: None, groups }), &[rows, w, bias])?;
    cx.permuted(y, [0, d + 1].into_iter().chain(1..=d).collect::<Vec<usize>>())
}

/// One channel a group, weights computed: products, then sums over the windows.
fn depthwise(
    cx: &mut NodeCx<'_>,
    shown: Tensor,
    c: usize,
    layout: &Layout,
    w: Tensor,
    copies: usize,
) -> Result<Tensor, OpError> {
    let d = layout.out.len();
    let ones = vec![1; d];
    let several: &[usize] = if copies == 1 { &[] } else { &[copies] };
    let w = cx.reshaped(w, [&[1, c], several, &ones[..], &layout.kernel[..]].concat())?;
    let shown = if copies == 1 {
        shown
    } else {
        cx.reshaped(shown, [&[layout.n, c, 1], &layout.out[..], &layout.kernel[..]].concat())?
    };
    let products = cx.mul(shown, w)?;
    let first = cx.ty(products).shape.len() - layout.kernel.len();
    let sum = cx.reduced(ReduceFn::Sum, products, &(first..first + layout.kernel.len()).collect::<Vec<_>>(), false)?;
    cx.reshaped(sum, [&[layout.n, c * copies], &layout.out[..]].concat())
}

/// Every group a matrix of a batch; weights may be computed.
fn batched(
    cx: &mut NodeCx<'_>,
    shown: Tensor,
    groups: usize,
    per_group: usize,
    layout: &Layout,
    w: Tensor,
    m: usize,
) -> Result<Tensor, OpError> {
    let (d, taps) = (layout.out.len(), layout.kernel.len());
    let grouped = cx.reshaped(shown, [&[layout.n, groups, per_group], &layout.out[..], &layout.kernel[..]].concat())?;
    let perm: Vec<usize> = [0, 1].into_iter().chain(3..3 + d).chain([2]).chain(3 + d..3 + d + taps).collect();
    let rows = cx.permuted(grouped, perm)?;
    let k = layout.kernel.iter().product::<usize>() * per_group;
    let places = layout.out.iter().product::<usize>();
    let rows = cx.reshaped(rows, [layout.n, groups, places, k])?;
    let w = cx.reshaped(w, [groups, m, k])?;
    let w = cx.permuted(w, [0, 2, 1])?;
    let y = cx.part(Op::MatMul(MatMul), &[rows, w])?;
    let y = cx.permuted(y, [0, 1, 3, 2])?;
    cx.reshaped(y, [&[layout.n, groups * m], &layout.out[..]].concat())
}

/// Transposed convolution of `[N, C, ..]` with `[C, M / groups, ..]`.
pub(super) fn conv_transpose(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (cx.float(0)?, cx.float(1)?);
    let bias = bias(cx)?;
    let groups = groups(cx)?;
    let (shape, weights) = (cx.shape(x), cx.shape(w));
    let (Some(extents), &[c, per_group, ref kernel @ ..]) = (shape.get(2..), &weights[..]) else {
        return Err(OpError::invalid(format!("it takes channels with places, found {}", cx.ty(x))));
    };
    if kernel.len() != extents.len() || kernel.is_empty() || kernel.contains(&0) || !c.is_multiple_of(groups) {
        return Err(OpError::invalid(format!("weights {weights:?} in {groups} groups for {shape:?}")));
    }
    cx.ignore("kernel_shape");
    let windows = transposed_windows(cx, extents, kernel)?;
    // [C, M / G, ..] to [M, C / G, ..], the kernel turned around.
    let given = w;
    let mut w = cx.reshaped(w, [&[groups, c / groups, per_group], kernel].concat())?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..3 + kernel.len()).collect();
    w = cx.permuted(w, perm)?;
    for axis in 3..3 + kernel.len() {
        w = cx.reversed(w, axis)?;
    }
    let turned = cx.reshaped(w, [&[groups * per_group, c / groups], kernel].concat())?;
    cx.builder.adopt(turned, given);
    let w = turned;
    Ok(vec![convolve(cx, x, w, bias, &windows, groups)?])
}

fn transposed_windows(cx: &NodeCx<'_>, extents: &[usize], kernel: &[usize]) -> Result<Vec<Window>, OpError> {
    let n = extents.len();
    let strides = places::list(cx, "strides", n, 1, 1)?;
    let dilations = places::list(cx, "dilations", n, 1, 1)?;
    let pads = places::list(cx, "pads", 2 * n, 0, 0)?;
    let more = places::list(cx, "output_padding", n, 0, 0)?;
    let asked = cx.int_list("output_shape")?;
    let auto = places::auto_pad(cx)?;
    // Only the places count, but some exporters list batch and channel, too.
    let asked = asked.map(|asked| asked.get(asked.len().saturating_sub(n)..).unwrap_or(&[]).to_vec());
    (0..n)
        .map(|i| {
            let (extent, stride, dilation) = (extents[i], strides[i], dilations[i]);
            let span = dilation.saturating_mul(kernel[i].saturating_sub(1));
            let whole = (extent.saturating_sub(1)).saturating_mul(stride).saturating_add(span + 1 + more[i]);
            let wanted = match (&asked, auto) {
                (Some(asked), _) => Some(asked.get(i).and_then(|&out| usize::try_from(out).ok()).unwrap_or(0)),
                (None, AutoPad::Same { .. }) => Some(extent.saturating_mul(stride)),
                (None, AutoPad::No | AutoPad::Valid) => None,
            };
            let (before, out) = match wanted {
                Some(out) => {
                    let total = whole.saturating_sub(out);
                    let upper = matches!(auto, AutoPad::Same { upper: true });
                    (if upper { total / 2 } else { total - total / 2 }, out)
                }
                None if auto == AutoPad::Valid => (0, whole),
                None => (pads[i], whole.saturating_sub(pads[i] + pads[n + i])),
            };
            if out == 0 {
                return Err(OpError::invalid("its result has no elements"));
            }
            let pad = span as isize - before as isize;
            Ok(Window { size: kernel[i], stride: 1, dilation, pad, spread: stride, out })
        })
        .collect()
}
