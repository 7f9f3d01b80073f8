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

/// Most elements of a range.
const MAX_RANGE: f64 = (1u64 << 24) as f64;

/// Numbers from a start to before a limit.
pub(super) fn range(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let mut bounds = Vec::with_capacity(3);
    let first = cx.operand(0)?;
    for index in 0..3 {
        let tensor = cx.operand(index)?;
        let Some(constant) = cx.constant(tensor) else {
            let remedy = "export with fixed shapes, or simplify the model first, for example with `onnxsim`";
            return Err(OpError::unsupported("its bounds are computed at run time", remedy));
        };
        match constant.all()?[..] {
            [x] if x.is_finite() && constant.ty.elem == cx.ty(first).elem => bounds.push(x),
            _ => return Err(OpError::invalid(format!("a bound is {}", constant.ty))),
        }
    }
    let &[start, limit, step] = &bounds[..] else { return Err(OpError::invalid("it has too few bounds")) };
    let n = ((limit - start) / step).ceil().max(0.0);
    if n.is_nan() || n > MAX_RANGE {
        return Err(OpError::invalid(format!("a range from {start} to {limit} in steps of {step}")));
    }
    let ty = TensorType { elem: cx.ty(first).elem, shape: vec![n as usize] };
    if !builder::is_empty_list(&ty) {
        builder::check_size(&ty)?;
    }
    cx.builder.reserve(&ty)?;
    let constant = if builder::is_integer(&ty) {
        let elements: Vec<i64> =
            (0..n as i64).map(|i| (start as i64).saturating_add(i.saturating_mul(step as i64))).collect();
        Constant::ints(ty, &elements)
    } else {
        let elements: Vec<f32> = (0..n as i64).map(|i| (start + i as f64 * step) as f32).collect();
        Constant::f32(ty.shape, &elements)
    };
    Ok(vec![cx.known(constant)])
}

/// Ones on a diagonal, in the shape of the operand.
pub(super) fn eye_like(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let diagonal = cx.int("k")?.unwrap_or(0);
    let dtype = match cx.int("dtype")? {
        Some(asked) => {
            let asked = i32::try_from(asked).unwrap_or(0);
            let found = tensor::dtype(asked).map(|(dtype, _)| dtype);
            found.ok_or_else(|| {
                OpError::unsupported(format!("{} is not supported", data_type::name(asked)), "use f32")
            })?
        }
        None => cx.ty(x).dtype().unwrap_or(DType::F32),
    };
    let &[rows, columns] = &cx.shape(x)[..] else {
        return Err(OpError::invalid(format!("it takes a matrix, found {}", cx.ty(x))));
    };
    let ty = TensorType::plain(dtype, [rows, columns]);
    builder::check_size(&ty)?;
    cx.builder.reserve(&ty)?;
    let on = |i: usize| i64::from((i % columns) as i64 - (i / columns) as i64 == diagonal);
    let elements: Vec<i64> = (0..rows * columns).map(on).collect();
    Ok(vec![cx.known(Constant::ints(ty, &elements))])
}

/// Weights of a window over a signal: `a - b * cos(x) + c * cos(2 * x)`.
pub(super) fn signal_window(cx: &mut NodeCx<'_>, [a, b, c]: [f64; 3]) -> Result<Vec<Tensor>, OpError> {
    let n = match cx.ints(0, "size")?.as_deref() {
        Some(&[n]) => usize::try_from(n).unwrap_or(0),
        found => return Err(OpError::invalid(format!("its size is {found:?}"))),
    };
    let periodic = cx.int("periodic")?.unwrap_or(1) != 0;
    if cx.int("output_datatype")?.is_some_and(|ty| ty != i64::from(data_type::FLOAT)) {
        return Err(OpError::unsupported("windows of other types are not supported", "use f32"));
    }
    let divisor = if periodic { n as f64 } else { n.saturating_sub(1) as f64 };
    let one = |i: usize| {
        let x = 2.0 * std::f64::consts::PI * i as f64 / divisor;
        (a - b * x.cos() + c * (2.0 * x).cos()) as f32
    };
    let window = cx.numbers(&[n], one)?;
    Ok(vec![window])
}
