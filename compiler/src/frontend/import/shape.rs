//! Operators that rearrange elements and change none.

use qail_ir::{ConstData, Constant, DType, Expand, Op, Reshape, TensorType, Transpose};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
};

/// Another shape: 0 copies an extent, -1 is inferred.
pub(super) fn reshape(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let asked = cx.ints(1, "new shape")?.ok_or_else(|| OpError::invalid("it has no new shape"))?;
    let keep_zeros = cx.int("allowzero")?.unwrap_or(0) != 0;
    let old = cx.shape(x);
    let mut shape = Vec::with_capacity(asked.len());
    let mut inferred = None;
    for (i, &extent) in asked.iter().enumerate() {
        let extent = match extent {
            0 if keep_zeros => {
                let remedy = "export the model with extents of at least 1";
                return Err(OpError::unsupported("its new shape has no elements", remedy));
            }
            0 => *old.get(i).ok_or_else(|| OpError::invalid(format!("no extent {i} to copy from {old:?}")))?,
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            _ => usize::try_from(extent).map_err(|_| OpError::invalid(format!("its new shape is {asked:?}")))?,
        };
        shape.push(extent);
    }
    if let Some(i) = inferred {
        let rest = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent));
        let n = cx.ty(x).n_elements();
        let extent = rest.filter(|&rest| rest > 0 && n.is_multiple_of(rest)).map(|rest| n / rest);
        shape[i] = extent.ok_or_else(|| OpError::invalid(format!("{old:?} does not fit {asked:?}")))?;
    }
    reshaped(cx, x, shape)
}

fn reshaped(cx: &mut NodeCx<'_>, x: Tensor, shape: Vec<usize>) -> Result<Vec<Tensor>, OpError> {
    if cx.ty(x).shape == shape {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Op::Reshape(Reshape { shape }), &[x])?])
}

/// Two axes: those before `axis`, and the rest.
pub(super) fn flatten(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let old = cx.shape(x);
    let asked = cx.int("axis")?.unwrap_or(1);
    // The axis may be one past the last.
    let axis = if asked == old.len() as i64 { old.len() } else { cx::axis(asked, old.len())? };
    let (outer, inner) = old.split_at(axis);
    reshaped(cx, x, vec![outer.iter().product(), inner.iter().product()])
}

/// Axes from an attribute before opset 13, then from an operand.
fn axes_of(cx: &NodeCx<'_>) -> Result<Option<Vec<i64>>, OpError> {
    if cx.opset < 13 { cx.int_list("axes") } else { cx.ints(1, "list of axes") }
}

/// Removes axes of extent 1.
pub(super) fn squeeze(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let old = cx.shape(x);
    let axes = match axes_of(cx)? {
        Some(axes) => cx::axes(&axes, old.len())?,
        None => (0..old.len()).filter(|&i| old[i] == 1).collect(),
    };
    if let Some(&axis) = axes.iter().find(|&&axis| old[axis] != 1) {
        return Err(OpError::invalid(format!("axis {axis} of {old:?} is not 1")));
    }
    let shape = old.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &extent)| extent).collect();
    reshaped(cx, x, shape)
}

/// Adds axes of extent 1; they count in the result.
pub(super) fn unsqueeze(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let old = cx.shape(x);
    let axes = axes_of(cx)?.ok_or_else(|| OpError::invalid("it has no axes"))?;
    let rank = old.len().saturating_add(axes.len());
    if rank > crate::frontend::tensor::MAX_RANK {
        return Err(OpError::invalid(format!("its result has rank {rank}")));
    }
    let axes = cx::axes(&axes, rank)?;
    let mut extents = old.iter().copied();
    let shape = (0..rank).map(|i| if axes.contains(&i) { 1 } else { extents.next().unwrap_or(1) }).collect();
    reshaped(cx, x, shape)
}

/// Axes in another order, reversed if none is given.
pub(super) fn transpose(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let rank = cx.ty(x).shape.len();
    let perm = match cx.int_list("perm")? {
        Some(perm) => {
            if cx::axes(&perm, rank)?.len() != rank {
                return Err(OpError::invalid(format!("its permutation {perm:?} leaves out axes of {}", cx.ty(x))));
            }
            perm.iter().map(|&axis| cx::axis(axis, rank)).collect::<Result<_, _>>()?
        }
        None => (0..rank).rev().collect::<Vec<usize>>(),
    };
    if perm.iter().enumerate().all(|(i, &axis)| i == axis) && perm.len() == rank {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Op::Transpose(Transpose { perm }), &[x])?])
}

/// Broadcast in both directions.
pub(super) fn expand(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let asked = cx.ints(1, "new shape")?.ok_or_else(|| OpError::invalid("it has no new shape"))?;
    let old = cx.shape(x);
    let rank = old.len().max(asked.len());
    let from_end = |n: usize, i: usize| (i + n).checked_sub(rank);
    let mut shape = Vec::with_capacity(rank);
    for i in 0..rank {
        let have = from_end(old.len(), i).and_then(|at| old.get(at)).copied().unwrap_or(1);
        let want = from_end(asked.len(), i).and_then(|at| asked.get(at)).copied().unwrap_or(1);
        let want = usize::try_from(want).map_err(|_| OpError::invalid(format!("its new shape is {asked:?}")))?;
        shape.push(match (have, want) {
            (have, 1) => have,
            (1, want) => want,
            (have, want) if have == want => have,
            _ => return Err(OpError::invalid(format!("{old:?} does not broadcast to {asked:?}"))),
        });
    }
    if shape == old {
        return Ok(vec![x]);
    }
    Ok(vec![cx.emit(Op::Expand(Expand { shape }), &[x])?])
}

/// The operand itself.
pub(super) fn identity(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    Ok(vec![cx.operand(0)?])
}

/// The operand itself: nothing is dropped when a policy acts.
pub(super) fn dropout(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    cx.ignore("ratio");
    cx.ignore("seed");
    cx.optional(1);
    if cx.ints(2, "training mode")?.is_some_and(|mode| mode.iter().any(|&on| on != 0)) {
        return Err(OpError::unsupported("it is in training mode", "export the model in evaluation mode"));
    }
    let kept = cx.operand(0)?;
    let mut results = vec![kept];
    if cx.needed.get(1).copied().unwrap_or(false) {
        let ty = TensorType::plain(DType::Bool, cx.shape(kept));
        cx.builder.reserve(&ty)?;
        results.push(cx.known_part("mask", Constant { ty, data: ConstData::Splat(1.0) }));
    }
    Ok(results)
}
