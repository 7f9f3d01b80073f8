//! LSTM, GRU and RNN, unrolled: every step is products, sums and functions of the graph, so their
//! gates are layers like others. The products of all inputs are one layer.

use qail_ir::{BinaryFn, Op, UnaryFn};

use super::{OpError, builder::Tensor, cx::NodeCx};
use crate::frontend::error::shown;

/// Longest sequence that is unrolled.
const MAX_STEPS: usize = 64;

/// Which layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Input, output, forget gate and candidate.
    Lstm,
    /// Update gate, reset gate and candidate.
    Gru,
    /// One function.
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Rnn => 1,
        }
    }

    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Lstm => &["Sigmoid", "Tanh", "Tanh"],
            Self::Gru => &["Sigmoid", "Tanh"],
            Self::Rnn => &["Tanh"],
        }
    }
}

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    steps: usize,
    batch: usize,
    hidden: usize,
}

/// What one direction computes with: weights are transposed, `[K, gates * H]`.
struct Direction {
    w: Tensor,
    r: Tensor,
    /// Both biases, `[gates * H]` each.
    bias: Option<(Tensor, Tensor)>,
    /// Of the cell, for the gates of an LSTM.
    peepholes: Option<Tensor>,
    functions: Vec<UnaryFn>,
}

/// A recurrent layer of one or two directions.
pub(super) fn layer(cx: &mut NodeCx<'_>, cell: Cell) -> Result<Vec<Tensor>, OpError> {
    let (mut x, w, r) = (cx.float(0)?, cx.float(1)?, cx.float(2)?);
    let bias = cx.optional(3);
    let lengths = cx.ints(4, "list of sequence lengths")?;
    let first_h = cx.optional(5);
    let first_c = if cell == Cell::Lstm { cx.optional(6) } else { None };
    let peepholes = if cell == Cell::Lstm { cx.optional(7) } else { None };
    let batch_first = if cx.opset < 14 { 0 } else { cx.int("layout")?.unwrap_or(0) } != 0;
    if batch_first {
        x = cx.permuted(x, [1, 0, 2])?;
    }
    let (steps, batch) = match cx.shape(x)[..] {
        [steps, batch, _] => (steps, batch),
        ref other => return Err(OpError::invalid(format!("it takes sequences, found {other:?}"))),
    };
    let hidden = cx.int("hidden_size")?.and_then(|n| usize::try_from(n).ok());
    let hidden = hidden.filter(|&n| n > 0).map_or_else(|| cx.extent(r, 2), Ok)?;
    if steps > MAX_STEPS {
        let reason = format!("it has {steps} steps, at most {MAX_STEPS} are unrolled");
        return Err(OpError::unsupported(reason, "export the layer for one step, with its state as input and output"));
    }
    if lengths.is_some_and(|lengths| lengths.iter().any(|&n| usize::try_from(n) != Ok(steps))) {
        let remedy = "export without sequence lengths";
        return Err(OpError::unsupported("sequences of different lengths are not supported", remedy));
    }
    let options = options(cx, cell)?;
    let backward: &[bool] = match cx.text("direction")?.as_deref() {
        None | Some("forward") => &[false],
        Some("reverse") => &[true],
        Some("bidirectional") => &[false, true],
        Some(other) => return Err(OpError::invalid(format!("its direction is {}", shown(other)))),
    };
    let sizes = Sizes { steps, batch, hidden };
    let expected = [backward.len(), cell.gates() * hidden, hidden];
    if cx.shape(r) != expected || cx.shape(w).get(..2) != Some(&expected[..2]) {
        return Err(OpError::invalid(format!("weights {} and {} for {hidden} cells", cx.ty(w), cx.ty(r))));
    }
    let functions = functions(cx, cell, backward.len())?;
    let (mut all, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for (d, (&reverse, functions)) in backward.iter().zip(functions).enumerate() {
        let weights = |cx: &mut NodeCx<'_>, w: Tensor| -> Result<Tensor, OpError> {
            let one = cx.sliced(w, 0, d, 1)?;
            let shape = cx.shape(one);
            let matrix = cx.reshaped(one, &shape[1..])?;
            let turned = cx.permuted(matrix, [1, 0])?;
            cx.builder.adopt(turned, w);
            Ok(turned)
        };
        let (w, r) = (weights(cx, w)?, weights(cx, r)?);
        let n = cell.gates() * hidden;
        let bias = match bias {
            Some(bias) => {
                cx.expect_float(bias)?;
                let one = cx.sliced(bias, 0, d, 1)?;
                let one = cx.reshaped(one, [2 * n])?;
                Some((cx.sliced(one, 0, 0, n)?, cx.sliced(one, 0, n, n)?))
            }
            None => None,
        };
        let peepholes = match peepholes {
            Some(peepholes) => {
                let one = cx.sliced(peepholes, 0, d, 1)?;
                Some(cx.reshaped(one, [3 * hidden])?)
            }
            None => None,
        };
        let direction = Direction { w, r, bias, peepholes, functions };
        let h = state(cx, first_h, d, batch_first, sizes)?;
        let c = if cell == Cell::Lstm { Some(state(cx, first_c, d, batch_first, sizes)?) } else { None };
        let (outputs, h, c) = unroll(cx, cell, x, &direction, sizes, options, reverse, (h, c))?;
        all.push(outputs);
        last_h.push(h);
        last_c.extend(c);
    }
    finish(cx, &all, &last_h, &last_c, batch_first, sizes)
}

/// What the attributes say of every step.
#[derive(Clone, Copy, Debug)]
struct Options {
    clip: Option<f32>,
    coupled: bool,
    reset_behind: bool,
}

fn options(cx: &NodeCx<'_>, cell: Cell) -> Result<Options, OpError> {
    let clip = cx.number("clip")?;
    if clip.is_some_and(|clip| clip.is_nan() || clip < 0.0) {
        return Err(OpError::invalid("its clip is not a bound"));
    }
    let coupled = cell == Cell::Lstm && cx.int("input_forget")?.unwrap_or(0) != 0;
    let reset_behind = cell == Cell::Gru && cx.int("linear_before_reset")?.unwrap_or(0) != 0;
    Ok(Options { clip, coupled, reset_behind })
}

/// The functions of each direction.
fn functions(cx: &NodeCx<'_>, cell: Cell, n: usize) -> Result<Vec<Vec<UnaryFn>>, OpError> {
    let defaults = cell.functions();
    let names = match cx.text_list("activations")? {
        Some(names) if names.len() == n * defaults.len() => names,
        Some(names) => return Err(OpError::invalid(format!("it has {} functions", names.len()))),
        None => (0..n).flat_map(|_| defaults.iter().map(|&name| name.to_owned())).collect(),
    };
    let alpha = cx.number_list("activation_alpha")?.unwrap_or_default();
    let beta = cx.number_list("activation_beta")?.unwrap_or_default();
    // Only functions with parameters take one from each list.
    let (mut alpha, mut beta) = (alpha.into_iter(), beta.into_iter());
    let mut found = Vec::with_capacity(names.len());
    for name in &names {
        found.push(match name.to_ascii_lowercase().as_str() {
            "sigmoid" => UnaryFn::Sigmoid,
            "tanh" => UnaryFn::Tanh,
            "relu" => UnaryFn::Relu,
            "softsign" => UnaryFn::Softsign,
            "softplus" => UnaryFn::Softplus,
            "leakyrelu" => UnaryFn::LeakyRelu { alpha: alpha.next().unwrap_or(0.01) },
            "elu" => UnaryFn::Elu { alpha: alpha.next().unwrap_or(1.0) },
            "hardsigmoid" => {
                UnaryFn::HardSigmoid { alpha: alpha.next().unwrap_or(0.2), beta: beta.next().unwrap_or(0.5) }
            }
            _ => {
                let reason = format!("its function {} is not supported", shown(name));
                return Err(OpError::unsupported(reason, "use sigmoid, tanh or relu"));
            }
        });
    }
    Ok(found.chunks(defaults.len()).map(<[UnaryFn]>::to_vec).collect())
}

/// The first state of a direction, `[batch, hidden]`; zeros if none is given.
fn state(
    cx: &mut NodeCx<'_>,
    given: Option<Tensor>,
    d: usize,
    batch_first: bool,
    sizes: Sizes,
) -> Result<Tensor, OpError> {
    let shape = [sizes.batch, sizes.hidden];
    let Some(given) = given else { return cx.numbers(&shape, |_| 0.0) };
    cx.expect_float(given)?;
    let one = cx.sliced(given, usize::from(batch_first), d, 1)?;
    cx.reshaped(one, shape)
}

fn clipped(cx: &mut NodeCx<'_>, x: Tensor, clip: Option<f32>) -> Result<Tensor, OpError> {
    match clip {
        Some(clip) => cx.map(UnaryFn::Clip { min: -clip, max: clip }, x),
        None => Ok(x),
    }
}

/// Rows times a matrix, with a bias: one layer if both are known.
fn affine(cx: &mut NodeCx<'_>, x: Tensor, w: Tensor, bias: Option<Tensor>) -> Result<Tensor, OpError> {
    let known = |tensor: Tensor| matches!(tensor, Tensor::Known(_));
    match bias {
        Some(bias) if known(w) && known(bias) && !known(x) => {
            cx.part(Op::Linear(qail_ir::Linear { act: None, groups: 1 }), &[x, w, bias])
        }
        Some(bias) => {
            let product = cx.product(x, w)?;
            cx.add(product, bias)
        }
        None => cx.product(x, w),
    }
}

/// The result of every step in order, and the last states.
type Unrolled = (Vec<Tensor>, Tensor, Option<Tensor>);

#[allow(clippy::too_many_arguments)]
fn unroll(
    cx: &mut NodeCx<'_>,
    cell: Cell,
    x: Tensor,
    direction: &Direction,
    sizes: Sizes,
    options: Options,
    reverse: bool,
    (mut h, mut c): (Tensor, Option<Tensor>),
) -> Result<Unrolled, OpError> {
    // The products of the inputs of all steps are one layer.
    let inputs = affine(cx, x, direction.w, direction.bias.map(|(w, _)| w))?;
    let n = cell.gates() * sizes.hidden;
    let mut outputs = vec![h; sizes.steps];
    for step in 0..sizes.steps {
        let at = if reverse { sizes.steps - 1 - step } else { step };
        let input = cx.sliced(inputs, 0, at, 1)?;
        let input = cx.reshaped(input, [sizes.batch, n])?;
        (h, c) = match (cell, c) {
            (Cell::Lstm, Some(c)) => {
                let (h, c) = lstm(cx, input, direction, sizes.hidden, options, h, c)?;
                (h, Some(c))
            }
            (Cell::Gru, _) => (gru(cx, input, direction, sizes.hidden, options, h)?, None),
            _ => {
                let recurrent = affine(cx, h, direction.r, direction.bias.map(|(_, r)| r))?;
                let sum = cx.add(input, recurrent)?;
                let sum = clipped(cx, sum, options.clip)?;
                (function(cx, direction, 0, sum)?, None)
            }
        };
        if let Some(output) = outputs.get_mut(at) {
            *output = h;
        }
    }
    Ok((outputs, h, c))
}

fn function(cx: &mut NodeCx<'_>, direction: &Direction, i: usize, x: Tensor) -> Result<Tensor, OpError> {
    let f = direction.functions.get(i).copied().ok_or_else(|| OpError::invalid("it has too few functions"))?;
    cx.map(f, x)
}

/// Gates come as input, output, forget, candidate.
fn lstm(
    cx: &mut NodeCx<'_>,
    input: Tensor,
    direction: &Direction,
    hidden: usize,
    options: Options,
    h: Tensor,
    c: Tensor,
) -> Result<(Tensor, Tensor), OpError> {
    let recurrent = affine(cx, h, direction.r, direction.bias.map(|(_, r)| r))?;
    let sum = cx.add(input, recurrent)?;
    let gate = |cx: &mut NodeCx<'_>, i: usize, peephole: Option<(usize, Tensor)>| -> Result<Tensor, OpError> {
        let mut gate = cx.sliced(sum, 1, i * hidden, hidden)?;
        if let (Some(weights), Some((which, cell))) = (direction.peepholes, peephole) {
            let weights = cx.sliced(weights, 0, which * hidden, hidden)?;
            let seen = cx.mul(weights, cell)?;
            gate = cx.add(gate, seen)?;
        }
        clipped(cx, gate, options.clip)
    };
    let i = gate(cx, 0, Some((0, c)))?;
    let i = function(cx, direction, 0, i)?;
    let candidate = gate(cx, 3, None)?;
    let candidate = function(cx, direction, 1, candidate)?;
    let f = if options.coupled {
        let one = cx.scalar(1.0);
        cx.zip(BinaryFn::Sub, one, i)?
    } else {
        let f = gate(cx, 2, Some((2, c)))?;
        function(cx, direction, 0, f)?
    };
    let (kept, new) = (cx.mul(f, c)?, cx.mul(i, candidate)?);
    let c = cx.add(kept, new)?;
    let o = gate(cx, 1, Some((1, c)))?;
    let o = function(cx, direction, 0, o)?;
    let shown = function(cx, direction, 2, c)?;
    Ok((cx.mul(o, shown)?, c))
}

/// Gates come as update, reset, candidate.
fn gru(
    cx: &mut NodeCx<'_>,
    input: Tensor,
    direction: &Direction,
    hidden: usize,
    options: Options,
    h: Tensor,
) -> Result<Tensor, OpError> {
    let part =
        |cx: &mut NodeCx<'_>, x: Tensor, axis: usize, i: usize, n: usize| cx.sliced(x, axis, i * hidden, n * hidden);
    let (z, candidate) = if options.reset_behind {
        let recurrent = affine(cx, h, direction.r, direction.bias.map(|(_, r)| r))?;
        let (a, b) = (part(cx, input, 1, 0, 2)?, part(cx, recurrent, 1, 0, 2)?);
        let gates = cx.add(a, b)?;
        let gates = clipped(cx, gates, options.clip)?;
        let gates = function(cx, direction, 0, gates)?;
        let (z, r) = (part(cx, gates, 1, 0, 1)?, part(cx, gates, 1, 1, 1)?);
        let behind = part(cx, recurrent, 1, 2, 1)?;
        (z, cx.mul(r, behind)?)
    } else {
        let (w, w_candidate) = (part(cx, direction.r, 1, 0, 2)?, part(cx, direction.r, 1, 2, 1)?);
        let (b, b_candidate) = match direction.bias {
            Some((_, b)) => (Some(part(cx, b, 0, 0, 2)?), Some(part(cx, b, 0, 2, 1)?)),
            None => (None, None),
        };
        let recurrent = affine(cx, h, w, b)?;
        let a = part(cx, input, 1, 0, 2)?;
        let gates = cx.add(a, recurrent)?;
        let gates = clipped(cx, gates, options.clip)?;
        let gates = function(cx, direction, 0, gates)?;
        let (z, r) = (part(cx, gates, 1, 0, 1)?, part(cx, gates, 1, 1, 1)?);
        let seen = cx.mul(r, h)?;
        (z, affine(cx, seen, w_candidate, b_candidate)?)
    };
    let new = part(cx, input, 1, 2, 1)?;
    let new = cx.add(new, candidate)?;
    let new = clipped(cx, new, options.clip)?;
    let new = function(cx, direction, 1, new)?;
    // (1 - z) * new + z * h
    let one = cx.scalar(1.0);
    let rest = cx.zip(BinaryFn::Sub, one, z)?;
    let (a, b) = (cx.mul(rest, new)?, cx.mul(z, h)?);
    cx.add(a, b)
}

/// Results in the layout that the node asks for.
fn finish(
    cx: &mut NodeCx<'_>,
    all: &[Vec<Tensor>],
    last_h: &[Tensor],
    last_c: &[Tensor],
    batch_first: bool,
    sizes: Sizes,
) -> Result<Vec<Tensor>, OpError> {
    let Sizes { steps, batch, hidden } = sizes;
    let needed = |cx: &NodeCx<'_>, i: usize| cx.needed.get(i).copied().unwrap_or(false);
    let mut rows = Vec::with_capacity(steps * all.len());
    if needed(cx, 0) {
        for step in 0..steps {
            for outputs in all {
                let Some(&output) = outputs.get(step) else { continue };
                rows.push(cx.reshaped(output, [1, 1, batch, hidden])?);
            }
        }
    }
    let n = all.len();
    let y = match rows.is_empty() {
        true => last_h.first().copied().ok_or_else(|| OpError::invalid("it has no direction"))?,
        false => {
            let joined = cx.joined(&rows, 0)?;
            let y = cx.reshaped(joined, [steps, n, batch, hidden])?;
            if batch_first { cx.permuted(y, [2, 0, 1, 3])? } else { y }
        }
    };
    let mut results = vec![y];
    for states in [last_h, last_c] {
        if states.is_empty() {
            continue;
        }
        let mut rows = Vec::with_capacity(n);
        for &state in states {
            rows.push(cx.reshaped(state, [1, batch, hidden])?);
        }
        let joined = cx.joined(&rows, 0)?;
        results.push(if batch_first { cx.permuted(joined, [1, 0, 2])? } else { joined });
    }
    Ok(results)
}
