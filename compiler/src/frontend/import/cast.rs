//! Cast, also to the type of another tensor.

use qail_ir::{Cast, Constant, DType, Op, TensorType};

use super::{OpError, builder::Tensor, cx::NodeCx};
use crate::frontend::{proto::data_type, tensor};

/// Another element type.
pub(super) fn cast(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let asked = cx.int("to")?.and_then(|to| i32::try_from(to).ok());
    // Both only speak of narrow float types.
    cx.ignore("saturate");
    cx.ignore("round_mode");
    let asked = asked.ok_or_else(|| OpError::invalid("it has no type to cast to"))?;
    let refuse = || {
        let reason = format!("casts to {} are not supported", data_type::name(asked));
        OpError::unsupported(reason, "keep computed values float32")
    };
    let (to, converted) = tensor::dtype(asked).ok_or_else(refuse)?;
    if converted {
        cx.findings.note(format!("values of type {} are computed in f32", data_type::name(asked)));
    }
    to_type(cx, x, to)
}

/// To the element type of the second operand.
pub(super) fn cast_like(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, like) = (cx.operand(0)?, cx.operand(1)?);
    cx.ignore("saturate");
    cx.ignore("round_mode");
    let to = cx.ty(like).dtype().ok_or_else(|| OpError::invalid("its second operand has no plain type"))?;
    to_type(cx, x, to)
}

fn to_type(cx: &mut NodeCx<'_>, x: Tensor, to: DType) -> Result<Vec<Tensor>, OpError> {
    let ty = cx.ty(x).clone();
    if ty.dtype() == Some(to) {
        return Ok(vec![x]);
    }
    if let Some(constant) = cx.constant(x).cloned() {
        let ty = TensorType::plain(to, ty.shape);
        cx.builder.reserve(&ty)?;
        return Ok(vec![cx.known(converted_constant(&constant, to, ty)?)]);
    }
    Ok(vec![cx.emit(Op::Cast(Cast { to }), &[x])?])
}

fn converted_constant(constant: &Constant, to: DType, ty: TensorType) -> Result<Constant, OpError> {
    let from_float = constant.ty.dtype().is_some_and(DType::is_float);
    Ok(match to {
        DType::F32 => Constant::f32(ty.shape, &constant.all_f32()?),
        DType::F64 => Constant::f64(ty.shape, &constant.all()?),
        DType::Bool => {
            let bits: Vec<i64> = constant.all()?.iter().map(|&x| i64::from(x != 0.0)).collect();
            Constant::ints(ty, &bits)
        }
        DType::U8 | DType::I32 | DType::I64 => {
            let (lo, hi) = match to {
                DType::U8 => (0, 255),
                DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
                _ => (i64::MIN, i64::MAX),
            };
            let elements = constant.all_int()?;
            let lossy = from_float && constant.all()?.iter().any(|x| !x.is_finite());
            if lossy || elements.iter().any(|x| !(lo..=hi).contains(x)) {
                return Err(OpError::unsupported(
                    format!("a constant does not fit the type {}", to.name()),
                    "cast only numbers that the type can hold",
                ));
            }
            Constant::ints(ty, &elements)
        }
    })
}
