//! Constants, and what is known of a tensor before it is computed.

use qail_ir::{ConstData, Constant, DType, TensorType};

use super::{
    OpError,
    builder::{self, Tensor},
    cx::NodeCx,
};
use crate::frontend::{
    external,
    proto::{TensorProto, data_type},
    tensor::{self, TensorError},
    validate,
};

/// A constant in one of its forms.
pub(super) fn constant(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let constant = if let Some(value) = cx.tensor("value")? {
        convert(cx, &value)?
    } else if let Some(x) = cx.number("value_float")? {
        Constant::f32([], &[x])
    } else if let Some(list) = cx.number_list("value_floats")? {
        Constant::f32([list.len()], &list)
    } else if let Some(x) = cx.int("value_int")? {
        Constant::ints(TensorType::plain(DType::I64, []), &[x])
    } else if let Some(list) = cx.int_list("value_ints")? {
        Constant::ints(TensorType::plain(DType::I64, [list.len()]), &list)
    } else {
        let remedy = "export dense constants of numbers";
        return Err(OpError::unsupported("constants that are sparse or text are not supported", remedy));
    };
    Ok(vec![cx.known(constant)])
}

fn convert(cx: &mut NodeCx<'_>, value: &TensorProto) -> Result<Constant, OpError> {
    if value.data_location == external::EXTERNAL {
        return Err(OpError::unsupported(
            "constants of nodes in other files are not supported",
            "store the constant as an initializer",
        ));
    }
    if tensor::dtype(value.data_type).is_some_and(|(_, converted)| converted) {
        let ty = data_type::name(value.data_type);
        cx.findings.note(format!("constants of type {ty} are converted to f32"));
    }
    tensor::constant(value, None).map_err(|error| match error {
        TensorError::Invalid(reason) => OpError::invalid(reason),
        TensorError::Unsupported(what) => {
            OpError::unsupported(format!("{what} are not supported"), validate::remedy_for(value.data_type))
        }
    })
}

/// One number in a shape that is known; zero if no number is given.
pub(super) fn constant_of_shape(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let asked = cx.ints(0, "shape")?.ok_or_else(|| OpError::invalid("it has no shape"))?;
    let shape: Result<Vec<usize>, _> = asked.iter().map(|&extent| usize::try_from(extent)).collect();
    let shape = shape.map_err(|_| OpError::invalid(format!("its shape is {asked:?}")))?;
    let (elem, value) = match cx.tensor("value")? {
        Some(value) => {
            let constant = convert(cx, &value)?;
            match constant.all()?[..] {
                [one] => (constant.ty.elem, one),
                _ => return Err(OpError::invalid(format!("its value is {}, not one number", constant.ty))),
            }
        }
        None => (TensorType::f32([]).elem, 0.0),
    };
    let ty = TensorType { elem, shape };
    if !builder::is_empty_list(&ty) {
        builder::check_size(&ty)?;
    }
    cx.builder.reserve(&ty)?;
    Ok(vec![cx.known(Constant { ty, data: ConstData::Splat(value) })])
}

/// The extents of the operand, all or some of them.
pub(super) fn shape(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let extents = cx.shape(x);
    let rank = extents.len() as i64;
    let (start, end) = (cx.int("start")?.unwrap_or(0), cx.int("end")?.unwrap_or(rank));
    let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let extents: Vec<i64> = extents.get(clamp(start)..clamp(end)).unwrap_or(&[]).iter().map(|&n| n as i64).collect();
    Ok(vec![cx.known(Constant::ints(TensorType::plain(DType::I64, [extents.len()]), &extents))])
}

/// The number of elements.
pub(super) fn size(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let n = cx.ty(x).n_elements() as i64;
    Ok(vec![cx.known(Constant::ints(TensorType::plain(DType::I64, []), &[n]))])
}
