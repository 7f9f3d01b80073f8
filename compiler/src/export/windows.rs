//! Windows that slide over a tensor, as Gather along each axis.
//!
//! What stands beyond the edges is one more element behind the last one, which
//! Pad appends and the indices name. So strides, dilations, spreading and crops
//! of every axis are the same: a list of indices.

use qail_ir::{NodeId, Unfold, Window};

use super::{
    ExportError,
    builder::{Tensor, dims},
    emit::Emitter,
};
use crate::frontend::proto::{AttributeProto, data_type};

/// Writes the windows over `x` of shape `shape` under the name `out`. `fill` is what
/// stands beyond the edges, in the numbers of `x`.
pub(super) fn emit(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    unfold: &Unfold,
    (x, shape): (&Tensor, &[usize]),
    fill: f64,
    out: &str,
) -> Result<Tensor, ExportError> {
    let several: Vec<usize> =
        unfold.windows.iter().enumerate().filter(|(_, window)| window.size > 1).map(|(axis, _)| axis).collect();
    let mut x = x.clone();
    for (axis, (window, &extent)) in unfold.windows.iter().zip(shape).enumerate() {
        if *window != Window::identity(extent) {
            x = gather(emitter, id, &x, (axis, shape.len()), window, extent, fill, out)?;
        }
    }
    let builder = &mut emitter.builder;
    if several.is_empty() {
        builder.node("Identity", &[&x.name], Vec::new(), out);
        return Ok(Tensor::new(out, x.ty));
    }
    // [.., out * size, ..] to [.., out, size, ..], then the sizes behind everything.
    let (mut split, mut outer, mut inner) = (Vec::new(), Vec::new(), Vec::new());
    for (axis, window) in unfold.windows.iter().enumerate() {
        outer.push(split.len());
        let keeps_batch = axis == 0 && emitter.batch_is_open;
        split.push(if keeps_batch { 0 } else { window.out });
        if several.contains(&axis) {
            inner.push(split.len());
            split.push(window.size);
        }
    }
    let split = builder.i64s(&format!("{out}/split"), &dims(&split));
    let apart = builder.step("Reshape", &[&x.name, &split], Vec::new(), &format!("{out}/apart"));
    let perm = AttributeProto::ints("perm", dims(&[outer, inner].concat()));
    builder.node("Transpose", &[&apart], vec![perm], out);
    Ok(Tensor::new(out, x.ty))
}

/// The elements that the windows of one axis show, in order.
#[allow(clippy::too_many_arguments, reason = "one axis of one tensor, and where it goes")]
fn gather(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    x: &Tensor,
    (axis, rank): (usize, usize),
    window: &Window,
    extent: usize,
    fill: f64,
    out: &str,
) -> Result<Tensor, ExportError> {
    emitter.builder.make_room(window.out.saturating_mul(window.size), 8)?;
    let shown = (0..window.out).flat_map(|o| (0..window.size).map(move |k| (o, k)));
    let indices: Vec<i64> = shown.map(|(o, k)| window.element(o, k, extent).unwrap_or(extent) as i64).collect();
    let mut x = x.clone();
    if indices.contains(&(extent as i64)) {
        let mut pads = vec![0; 2 * rank];
        pads.iter_mut().skip(rank + axis).take(1).for_each(|pad| *pad = 1);
        let pads = emitter.builder.i64s(&format!("{out}/pads"), &pads);
        let fill = fill_of(emitter, id, x.ty, fill, out)?;
        x.name = emitter.builder.step("Pad", &[&x.name, &pads, &fill], Vec::new(), &format!("{out}/padded"));
    }
    let indices = emitter.builder.i64s(&format!("{out}/indices"), &indices);
    let axis = vec![AttributeProto::int("axis", axis as i64)];
    x.name = emitter.builder.step("Gather", &[&x.name, &indices], axis, &format!("{out}/shown"));
    Ok(x)
}

fn fill_of(emitter: &mut Emitter<'_>, id: NodeId, ty: i32, fill: f64, out: &str) -> Result<String, ExportError> {
    let base = format!("{out}/fill");
    match ty {
        data_type::FLOAT | data_type::DOUBLE => Ok(emitter.builder.scalar(&base, ty, fill)),
        data_type::UINT8 | data_type::BOOL => Ok(emitter.builder.raw(&base, ty, &[], vec![fill as u8])),
        data_type::INT32 => Ok(emitter.builder.raw(&base, ty, &[], (fill as i32).to_le_bytes().to_vec())),
        data_type::INT64 => Ok(emitter.builder.i64_scalar(&base, fill as i64)),
        _ => Err(emitter.unsupported(id, "windows over elements of this type have no fill; convert them to f32 first")),
    }
}
