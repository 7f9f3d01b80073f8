//! Operations of transformers that see whole rows: always in `f32`.

use crate::{Op, TensorType, TypeError};

use super::infer::broadcast;

/// See [`Op::Softmax`]. With `m` the largest element along the axis (NaN wins), `e_i = exp(x_i - m)`
/// and `s` the sum of the `e_i` in index order: `e_i / s`, or with `log` `(x_i - m) - ln(s)`.
/// Each step is rounded to `f32`; functions as in [`UnaryFn::eval_f32`](crate::UnaryFn::eval_f32).
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// The logarithm of it.
    pub log: bool,
}

/// See [`Op::Normalize`]. Over the elements of the axes, in index order, in `f32`: with `center`,
/// `d = x - sum(x) / n`, else `d = x`; then `d * (1 / sqrt(sum(d * d) / n + eps))`.
///
/// Scale and shift of a layer norm are the `mul` and `add` behind it; a group norm has the channels
/// of a group as an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    /// Axes that are one row together, ascending.
    pub axes: Vec<usize>,
    /// Added to the variance; positive.
    pub eps: f32,
    /// Subtract the mean: layer, group and instance norm. Not so in an RMS norm.
    pub center: bool,
}

/// See [`Op::Attention`]. `q[B, H, L, E]`, `k[B, G, S, E]`, `v[B, G, S, V]` and perhaps a mask
/// that broadcasts to `[B, H, L, S]`; head `h` reads group `h / (H / G)`. The product `q . k` (in order of
/// `E`, from 0) times `scale`, plus the mask, through [`Softmax`] over `S`, times `v` (in order of `S`).
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Factor of the scores.
    pub scale: f32,
}

impl Op {
    pub(super) fn infer_softmax(&self, op: &Softmax, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        match operands {
            [x] if x.is_f32() && op.axis < x.shape.len() => Ok((*x).clone()),
            _ => Err(TypeError::new(self.name(), "one f32 tensor that has the axis", operands)),
        }
    }

    pub(super) fn infer_normalize(&self, op: &Normalize, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "one f32 tensor that has the axes", operands);
        let [x] = operands else { return Err(error()) };
        let ascending = op.axes.windows(2).all(|pair| pair[0] < pair[1]) && !op.axes.is_empty();
        let eps = op.eps.is_finite() && op.eps >= 0.0;
        if !x.is_f32() || !ascending || !eps || op.axes.iter().any(|&axis| axis >= x.shape.len()) {
            return Err(error());
        }
        Ok((*x).clone())
    }

    pub(super) fn infer_attention(&self, op: &Attention, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let expected = "q[B, H, L, E], k[B, G, S, E], v[B, G, S, V] of f32 and perhaps a mask, G a divisor of H";
        let error = || TypeError::new(self.name(), expected, operands);
        let [q, k, v, mask @ ..] = operands else { return Err(error()) };
        let (&[b, h, l, e], &[b_k, g, s, e_k], &[b_v, g_v, s_v, width]) = (&q.shape[..], &k.shape[..], &v.shape[..])
        else {
            return Err(error());
        };
        let fits = (b, g, s, e) == (b_k, g_v, s_v, e_k) && b == b_v && g > 0 && h % g == 0;
        let floats = operands.iter().all(|operand| operand.is_f32());
        let scores = vec![b, h, l, s];
        let masked = match mask {
            [] => true,
            [mask] => broadcast(&mask.shape, &scores).as_ref() == Some(&scores),
            _ => false,
        };
        if !fits || !floats || !masked || op.scale.is_nan() {
            return Err(error());
        }
        Ok(TensorType::f32([b, h, l, width]))
    }
}
