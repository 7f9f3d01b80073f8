//! Tensors with some elements changed by index.

use qail_ir::{BinaryFn, Op, Scatter, ScatterFn};

use super::{
    OpError,
    builder::Tensor,
    cx::{self, NodeCx},
    gather,
};
use crate::frontend::error::shown;

fn reduction(cx: &NodeCx<'_>) -> Result<ScatterFn, OpError> {
    match cx.text("reduction")?.as_deref() {
        None | Some("none") => Ok(ScatterFn::Replace),
        Some("add") => Ok(ScatterFn::Add),
        Some("mul") => Ok(ScatterFn::Mul),
        Some("min") => Ok(ScatterFn::Min),
        Some("max") => Ok(ScatterFn::Max),
        Some(other) => Err(OpError::invalid(format!("its reduction is {}", shown(other)))),
    }
}

/// Rows, by tuples of indices.
pub(super) fn scatter_nd(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, index, update) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let f = reduction(cx)?;
    let shape = cx.shape(x);
    let (place, indexed) = gather::tuple_places(cx, &shape, index, 0)?;
    let (lead, row) = shape.split_at(indexed);
    let n: usize = cx.shape(place).iter().product();
    let place = cx.reshaped(place, [n])?;
    let rows = cx.reshaped(x, [&[lead.iter().product()], row].concat())?;
    let update = cx.reshaped(update, [&[n], row].concat())?;
    let y = cx.part(Op::Scatter(Scatter { f }), &[rows, place, update])?;
    Ok(vec![cx.reshaped(y, shape)?])
}

/// Element by element along an axis.
pub(super) fn scatter_elements(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, index, update) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let f = reduction(cx)?;
    let shape = cx.shape(x);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), shape.len())?;
    if cx.shape(index) != cx.shape(update) {
        return Err(OpError::invalid("its indices and its update have different shapes"));
    }
    let place = gather::flat_places(cx, &shape, index, axis)?;
    let n: usize = cx.shape(place).iter().product();
    let place = cx.reshaped(place, [n])?;
    let update = cx.reshaped(update, [n])?;
    let flat = cx.reshaped(x, [shape.iter().product::<usize>()])?;
    let y = cx.part(Op::Scatter(Scatter { f }), &[flat, place, update])?;
    Ok(vec![cx.reshaped(y, shape)?])
}

/// Steps written into a cache of keys or values, from a place for each sample.
pub(super) fn into_cache(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (cache, update) = (cx.operand(0)?, cx.operand(1)?);
    let first = cx.optional(2);
    let shape = cx.shape(cache);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(-2), shape.len())?;
    let circular = match cx.text("mode")?.as_deref() {
        None | Some("linear") => false,
        Some("circular") => true,
        Some(other) => return Err(OpError::invalid(format!("its mode is {}", shown(other)))),
    };
    let new = cx.shape(update);
    let fits = new.len() == shape.len() && new.iter().zip(&shape).enumerate().all(|(i, (a, b))| i == axis || a == b);
    if axis == 0 || !fits || new[axis] > shape[axis] {
        return Err(OpError::invalid(format!("an update of shape {new:?} for {shape:?} along axis {axis}")));
    }
    let (lead, row) = (&shape[..axis], &shape[axis + 1..]);
    let (n_lead, steps, whole) = (lead.iter().product::<usize>(), new[axis], shape[axis]);
    let a_sample = n_lead / shape[0].max(1);
    let mut place = cx.table(&[n_lead, steps], |i| (i % steps) as i64)?;
    if let Some(first) = first {
        let first = gather::from_start(cx, first, whole)?;
        let first = cx.reshaped(first, [shape[0], 1])?;
        let first = cx.expanded(first, [shape[0], a_sample])?;
        let first = cx.reshaped(first, [n_lead, 1])?;
        place = cx.add(place, first)?;
    }
    if circular {
        let whole = cx.scalar_like(place, whole as f64);
        place = cx.zip(BinaryFn::Mod, place, whole)?;
    }
    let base = cx.table(&[n_lead, 1], |i| (i * whole) as i64)?;
    let place = cx.add(place, base)?;
    let place = cx.reshaped(place, [n_lead * steps])?;
    let rows = cx.reshaped(cache, [&[n_lead * whole], row].concat())?;
    let update = cx.reshaped(update, [&[n_lead * steps], row].concat())?;
    let y = cx.part(Op::Scatter(Scatter { f: ScatterFn::Replace }), &[rows, place, update])?;
    Ok(vec![cx.reshaped(y, shape)?])
}
