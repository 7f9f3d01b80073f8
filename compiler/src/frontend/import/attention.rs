//! Attention and rotary embeddings.
//!
//! Plain attention is the operation of the graph, with the mask as an addend. With a soft cap, or
//! when the scores are asked for, it is written out.
//!
//! The cap bends the scores before the mask is added: the cap of a masked score would be finite, and
//! what is masked would be seen. A query that sees nothing at all gets zeros. Both as in ONNX Runtime
//! and in later revisions of the standard than the first of opset 23.

use qail_ir::{Attention, BinaryFn, CompareFn, DType, MatMul, Op, ReduceFn, Rope, UnaryFn};

use super::{OpError, builder::Tensor, cx::NodeCx};

/// What is added to the scores.
#[derive(Clone, Copy, Debug)]
struct Mask {
    addend: Tensor,
    /// Queries that see something, `[.., L, 1]`; nothing if all do.
    seeing: Option<Tensor>,
}

/// `[B, L, H * E]` as `[B, H, L, E]`.
fn heads(cx: &mut NodeCx<'_>, x: Tensor, attribute: &'static str) -> Result<Tensor, OpError> {
    let n_heads = cx.int(attribute)?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let shape = cx.shape(x);
    match shape[..] {
        [_, declared, _, _] => match n_heads {
            Some(n_heads) if n_heads != declared => {
                Err(OpError::invalid(format!("`{attribute}` is {n_heads}, found {declared} heads")))
            }
            _ => Ok(x),
        },
        [b, l, width] => {
            let n = n_heads.filter(|&n| width.is_multiple_of(n));
            let n =
                n.ok_or_else(|| OpError::invalid(format!("{shape:?} has no heads: `{attribute}` is {n_heads:?}")))?;
            let split = cx.reshaped(x, [b, l, n, width / n])?;
            cx.permuted(split, [0, 2, 1, 3])
        }
        _ => Err(OpError::invalid(format!("it takes queries, keys and values of rank 3 or 4, found {shape:?}"))),
    }
}

/// Scaled dot-product attention.
pub(super) fn attention(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (q, k, v) = (cx.float(0)?, cx.float(1)?, cx.float(2)?);
    let flat = cx.ty(q).shape.len() == 3;
    let q = heads(cx, q, "q_num_heads")?;
    let (new_k, new_v) = (heads(cx, k, "kv_num_heads")?, heads(cx, v, "kv_num_heads")?);
    // Everything is f32 here.
    cx.ignore("softmax_precision");
    let past = (cx.optional(4), cx.optional(5));
    let (k, v, n_past) = match past {
        (Some(past_k), Some(past_v)) => {
            let n_past = cx.extent(past_k, 2)?;
            (cx.joined(&[past_k, new_k], 2)?, cx.joined(&[past_v, new_v], 2)?, n_past)
        }
        (None, None) => (new_k, new_v, 0),
        _ => return Err(OpError::invalid("it has past keys without values, or values without keys")),
    };
    let (b, h, l, e) = match (&cx.shape(q)[..], &cx.shape(k)[..]) {
        (&[b, h, l, e], &[_, _, _, _]) => (b, h, l, e),
        (q, k) => return Err(OpError::invalid(format!("queries {q:?} with keys {k:?}"))),
    };
    let (g, s) = (cx.extent(k, 1)?, cx.extent(k, 2)?);
    if g == 0 || !h.is_multiple_of(g) {
        return Err(OpError::invalid(format!("{h} heads of queries do not share {g} heads of keys")));
    }
    let scale = cx.number("scale")?.unwrap_or((1.0 / (e as f64).sqrt()) as f32);
    let cap = cx.number("softcap")?.unwrap_or(0.0);
    let mode = cx.int("qk_matmul_output_mode")?.unwrap_or(0);
    let mask = mask(cx, l, s, n_past, b)?;
    let wants_scores = cx.needed.get(3).copied().unwrap_or(false);
    let mut results = Vec::with_capacity(4);
    let y = if cap == 0.0 && !wants_scores {
        let operands: Vec<Tensor> = [q, k, v].into_iter().chain(mask.map(|mask| mask.addend)).collect();
        let y = cx.part(Op::Attention(Attention { scale }), &operands)?;
        zero_unless_seeing(cx, y, mask)?
    } else {
        let (k, v) = (repeated(cx, k, h)?, repeated(cx, v, h)?);
        let turned = cx.permuted(k, [0, 1, 3, 2])?;
        let product = cx.part(Op::MatMul(MatMul), &[q, turned])?;
        let factor = cx.scalar(scale);
        let raw = cx.mul(product, factor)?;
        let capped = if cap > 0.0 {
            let (inverse, cap) = (cx.scalar(1.0 / cap), cx.scalar(cap));
            let small = cx.mul(raw, inverse)?;
            let bent = cx.map(UnaryFn::Tanh, small)?;
            cx.mul(bent, cap)?
        } else {
            raw
        };
        let masked = match mask {
            Some(mask) => cx.add(capped, mask.addend)?,
            None => capped,
        };
        let weights = cx.softmax(masked, 3, false)?;
        let weights = zero_unless_seeing(cx, weights, mask)?;
        let y = cx.part(Op::MatMul(MatMul), &[weights, v])?;
        let scores = match mode {
            0 => raw,
            // Scores with the mask in one revision of the standard, with the cap in the next.
            1 if cap > 0.0 && wants_scores => {
                let remedy = "ask for another `qk_matmul_output_mode`: 0, 2 or 3";
                return Err(OpError::unsupported(
                    "the scores that it hands out are of mode 1, with a soft cap",
                    remedy,
                ));
            }
            1 | 2 => masked,
            3 => weights,
            _ => return Err(OpError::invalid(format!("its score output mode is {mode}"))),
        };
        results.push(scores);
        y
    };
    let y = if flat {
        let turned = cx.permuted(y, [0, 2, 1, 3])?;
        let width = cx.extent(turned, 3)?;
        cx.reshaped(turned, [b, l, h * width])?
    } else {
        y
    };
    let scores = results.pop();
    Ok([y, k, v].into_iter().chain(scores).collect())
}

/// Every head of keys once for each head of queries that reads it.
fn repeated(cx: &mut NodeCx<'_>, x: Tensor, heads: usize) -> Result<Tensor, OpError> {
    let shape = cx.shape(x);
    let &[b, g, s, e] = &shape[..] else { return Err(OpError::invalid(format!("heads of shape {shape:?}"))) };
    if g == heads {
        return Ok(x);
    }
    let one = cx.reshaped(x, [b, g, 1, s, e])?;
    let copies = cx.expanded(one, [b, g, heads / g, s, e])?;
    cx.reshaped(copies, [b, heads, s, e])
}

/// Masks of all kinds as one.
fn mask(cx: &mut NodeCx<'_>, l: usize, s: usize, n_past: usize, b: usize) -> Result<Option<Mask>, OpError> {
    let mut mask = None;
    if let Some(given) = cx.optional(3) {
        let mut given = given;
        let seen = cx.ty(given).dtype() == Some(DType::Bool);
        if seen {
            given = hidden_unless(cx, given)?;
        }
        cx.expect_float(given)?;
        let have = cx.shape(given).last().copied().unwrap_or(1);
        if have < s && have > 1 {
            let mut windows: Vec<qail_ir::Window> =
                cx.shape(given).iter().map(|&extent| qail_ir::Window::identity(extent)).collect();
            if let Some(last) = windows.last_mut() {
                last.out = s;
            }
            given = cx.windows(given, windows, f32::NEG_INFINITY)?;
        }
        mask = Some(given);
    }
    let causal = cx.int("is_causal")?.unwrap_or(0) != 0;
    let lengths = cx.optional(6);
    let more = match lengths {
        Some(_) if cx.is_given(4) => {
            return Err(OpError::invalid("it has past keys and a number of keys that count; one excludes the other"));
        }
        Some(lengths) => {
            let lengths = cx.cast_to(lengths, DType::I64)?;
            let mut end = cx.reshaped(lengths, [b, 1, 1, 1])?;
            if causal {
                // The last query stands at the last key that counts.
                let behind = cx.table(&[l, 1], |i| i as i64 + 1 - l as i64)?;
                end = cx.add(end, behind)?;
            }
            let places = cx.table(&[s], |i| i as i64)?;
            let seen = cx.compare(CompareFn::Lt, places, end)?;
            Some(hidden_unless(cx, seen)?)
        }
        None if causal => Some(cx.numbers(&[l, s], |i| if i % s > n_past + i / s { f32::NEG_INFINITY } else { 0.0 })?),
        None => None,
    };
    let addend = match (mask, more) {
        (Some(mask), Some(more)) => cx.add(mask, more)?,
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Ok(None),
    };
    bounded(cx, addend).map(Some)
}

/// The mask of an addend. If a row may hide everything, infinities become the lowest number: the
/// softmax of nothing but infinities, and with it every gradient, is not a number.
fn bounded(cx: &mut NodeCx<'_>, addend: Tensor) -> Result<Mask, OpError> {
    let shape = cx.shape(addend);
    if let Some(constant) = cx.constant(addend) {
        let width = shape.last().copied().unwrap_or(1).max(1);
        if constant.all_f32()?.chunks(width).all(|row| row.iter().any(|&x| x > f32::MIN)) {
            return Ok(Mask { addend, seeing: None });
        }
    }
    let lowest = cx.scalar(f32::MIN);
    let addend = cx.zip(BinaryFn::Max, addend, lowest)?;
    let last: Vec<usize> = shape.len().checked_sub(1).into_iter().collect();
    let most = cx.reduced(ReduceFn::Max, addend, &last, true)?;
    let seeing = cx.compare(CompareFn::Gt, most, lowest)?;
    Ok(Mask { addend, seeing: Some(seeing) })
}

/// Rows of queries, zero for those that see nothing.
fn zero_unless_seeing(cx: &mut NodeCx<'_>, rows: Tensor, mask: Option<Mask>) -> Result<Tensor, OpError> {
    let Some(seeing) = mask.and_then(|mask| mask.seeing) else { return Ok(rows) };
    let zero = cx.scalar(0.0);
    cx.choose(seeing, rows, zero)
}

fn hidden_unless(cx: &mut NodeCx<'_>, seen: Tensor) -> Result<Tensor, OpError> {
    let (zero, hidden) = (cx.scalar(0.0), cx.scalar(f32::NEG_INFINITY));
    cx.choose(seen, zero, hidden)
}

/// Pairs of elements turned by an angle for each place.
pub(super) fn rotary(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, cos, sin) = (cx.float(0)?, cx.float(1)?, cx.float(2)?);
    let ids = cx.optional(3);
    let interleaved = cx.int("interleaved")?.unwrap_or(0) != 0;
    let shape = cx.shape(x);
    let flat = shape.len() == 3;
    let x = if flat { heads(cx, x, "num_heads")? } else { x };
    cx.ignore("num_heads");
    let (width, rank) = (cx.extent(x, 3)?, cx.ty(x).shape.len());
    let turned = match cx.int("rotary_embedding_dim")?.unwrap_or(0) {
        0 => width,
        n => usize::try_from(n).ok().filter(|&n| n <= width).unwrap_or(1),
    };
    if rank != 4 || turned % 2 != 0 {
        return Err(OpError::invalid(format!("{turned} of {width} elements in {shape:?} do not form pairs")));
    }
    let (cos, sin) = (angles(cx, cos, ids)?, angles(cx, sin, ids)?);
    let (cos, sin) = (beside(cx, cos, interleaved)?, beside(cx, sin, interleaved)?);
    let pairs = cx.sliced(x, 3, 0, turned)?;
    let mut y = cx.part(Op::Rope(Rope { interleaved }), &[pairs, cos, sin])?;
    if turned < width {
        let rest = cx.sliced(x, 3, turned, width - turned)?;
        y = cx.joined(&[y, rest], 3)?;
    }
    if flat {
        y = cx.permuted(y, [0, 2, 1, 3])?;
        y = cx.reshaped(y, shape)?;
    }
    Ok(vec![y])
}

/// Numbers of pairs `[B, 1, L, half]` once for both of their elements.
fn beside(cx: &mut NodeCx<'_>, x: Tensor, interleaved: bool) -> Result<Tensor, OpError> {
    if !interleaved {
        return cx.joined(&[x, x], 3);
    }
    let shape = cx.shape(x);
    let &[b, one, l, half] = &shape[..] else { return Err(OpError::invalid(format!("angles of shape {shape:?}"))) };
    let apart = cx.reshaped(x, [b, one, l, half, 1])?;
    let twice = cx.expanded(apart, [b, one, l, half, 2])?;
    cx.reshaped(twice, [b, one, l, 2 * half])
}

/// Cosines or sines as `[B, 1, L, half]`.
fn angles(cx: &mut NodeCx<'_>, cache: Tensor, ids: Option<Tensor>) -> Result<Tensor, OpError> {
    let rows = match ids {
        Some(ids) => cx.looked_up(cache, ids, 0)?,
        None => cache,
    };
    match cx.shape(rows)[..] {
        [b, l, half] => cx.reshaped(rows, [b, 1, l, half]),
        ref other => Err(OpError::invalid(format!("angles of shape {other:?}"))),
    }
}
