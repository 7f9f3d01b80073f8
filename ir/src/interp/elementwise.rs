//! Operations that treat every element on its own.

use crate::{Binary, BinaryFn, Cast, DType, Elem, TensorType, Unary};

use super::{Data, Fault, Tensor, f32s, shape::broadcast_offsets, tensor, tensor::int_range};

pub(super) fn unary(unary: &Unary, operands: &[&Tensor]) -> Result<Data, Fault> {
    Ok(Data::F32(f32s(operands, 0)?.iter().map(|&x| unary.f.eval_f32(x)).collect()))
}

pub(super) fn binary(binary: &Binary, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let (a, b) = (tensor(operands, 0)?, tensor(operands, 1)?);
    match (&a.data, &b.data) {
        (Data::F32(x), Data::F32(y)) => pairs(a, b, x, y, ty, |_, x, y| Ok(binary.f.eval_f32(x, y))).map(Data::F32),
        (Data::F64(x), Data::F64(y)) => pairs(a, b, x, y, ty, |_, x, y| Ok(binary.f.eval_f64(x, y))).map(Data::F64),
        (Data::Int(x), Data::Int(y)) => {
            pairs(a, b, x, y, ty, |index, x, y| int_binary(binary.f, x, y, index, ty.elem)).map(Data::Int)
        }
        _ => Err(Fault::Internal("operands of different types")),
    }
}

/// `f(index, x, y)` of every pair, after broadcasting.
fn pairs<T: Copy>(
    a: &Tensor,
    b: &Tensor,
    x: &[T],
    y: &[T],
    ty: &TensorType,
    f: impl Fn(usize, T, T) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    if a.ty.shape == b.ty.shape {
        return x.iter().zip(y).enumerate().map(|(i, (&x, &y))| f(i, x, y)).collect();
    }
    let (at_x, at_y) = (broadcast_offsets(&a.ty.shape, &ty.shape), broadcast_offsets(&b.ty.shape, &ty.shape));
    let pair = |(index, (&i, &j)): (usize, (&usize, &usize))| match (x.get(i), y.get(j)) {
        (Some(&x), Some(&y)) => f(index, x, y),
        _ => Err(Fault::Internal("a view leaves its tensor")),
    };
    at_x.iter().zip(&at_y).enumerate().map(pair).collect()
}

/// Exact: a result outside of the type is an error. Division truncates, as in
/// ONNX.
pub(super) fn int_binary(f: BinaryFn, x: i64, y: i64, index: usize, elem: Elem) -> Result<i64, Fault> {
    let undefined = |what| Err(Fault::Undefined { index, what });
    let value = match f {
        BinaryFn::Add => x.checked_add(y),
        BinaryFn::Sub => x.checked_sub(y),
        BinaryFn::Mul => x.checked_mul(y),
        BinaryFn::Div if y == 0 => return undefined("division of an integer by zero"),
        BinaryFn::Div => x.checked_div(y),
        BinaryFn::Pow if y < 0 => return undefined("negative power of an integer"),
        BinaryFn::Pow => int_pow(x, y),
        BinaryFn::Min => Some(x.min(y)),
        BinaryFn::Max => Some(x.max(y)),
        BinaryFn::Mod | BinaryFn::Rem if y == 0 => return undefined("remainder of an integer by zero"),
        BinaryFn::Mod => x.checked_rem(y).map(|rest| if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }),
        BinaryFn::Rem => x.checked_rem(y),
    };
    let (lo, hi) = int_range(elem);
    value.filter(|value| (lo..=hi).contains(value)).ok_or(Fault::Overflow { index, elem })
}

fn int_pow(x: i64, y: i64) -> Option<i64> {
    match x {
        // These stay small for every exponent, also beyond 32 bits.
        0 | 1 => Some(if y == 0 { 1 } else { x }),
        -1 => Some(if y % 2 == 0 { 1 } else { -1 }),
        _ => x.checked_pow(u32::try_from(y).ok()?),
    }
}

/// Numbers become truth values by `x != 0`. Floats become integers by
/// truncation, saturating, NaN becomes 0; wide integers become narrow ones by
/// dropping bits. ONNX leaves both of these open.
pub(super) fn cast(cast: &Cast, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    Ok(match (&x.data, cast.to) {
        (Data::F32(x), DType::F32) => Data::F32(x.clone()),
        (Data::F32(x), DType::F64) => Data::F64(x.iter().map(|&x| f64::from(x)).collect()),
        (Data::F64(x), DType::F32) => Data::F32(x.iter().map(|&x| x as f32).collect()),
        (Data::F64(x), DType::F64) => Data::F64(x.clone()),
        (Data::Int(x), DType::F32) => Data::F32(x.iter().map(|&x| x as f32).collect()),
        (Data::Int(x), DType::F64) => Data::F64(x.iter().map(|&x| x as f64).collect()),
        (Data::F32(x), to) => Data::Int(x.iter().map(|&x| float_to_int(f64::from(x), to)).collect()),
        (Data::F64(x), to) => Data::Int(x.iter().map(|&x| float_to_int(x, to)).collect()),
        (Data::Int(x), DType::Bool) => Data::Int(x.iter().map(|&x| i64::from(x != 0)).collect()),
        (Data::Int(x), DType::U8) => Data::Int(x.iter().map(|&x| i64::from(x as u8)).collect()),
        (Data::Int(x), DType::I32) => Data::Int(x.iter().map(|&x| i64::from(x as i32)).collect()),
        (Data::Int(x), DType::I64) => Data::Int(x.clone()),
    })
}

fn float_to_int(x: f64, to: DType) -> i64 {
    match to {
        DType::Bool => i64::from(x != 0.0),
        DType::U8 => i64::from(x as u8),
        DType::I32 => i64::from(x as i32),
        DType::I64 | DType::F32 | DType::F64 => x as i64,
    }
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{error, f32, run, y};

    #[test]
    fn functions_are_computed_in_f64_and_rounded_once() {
        let out = y("tanh %x : f32[3]", &[f32("x", [3], &[0.5, -0.0, f32::NAN])]);
        let out = out.as_f32().unwrap();
        assert_eq!(out[0], 0.462_117_16);
        assert!(out[1] == 0.0 && out[1].is_sign_negative() && out[2].is_nan());
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        let inputs = [f32("x", [2, 1], &[10.0, 20.0]), f32("z", [3], &[1.0, 2.0, 3.0])];
        assert_eq!(y("sub %x, %z : f32[2, 3]", &inputs).as_f32().unwrap(), [9.0, 8.0, 7.0, 19.0, 18.0, 17.0]);
        assert_eq!(y("sub %z, %x : f32[2, 3]", &inputs).as_f32().unwrap(), [-9.0, -8.0, -7.0, -19.0, -18.0, -17.0]);
    }

    #[test]
    fn nan_wins_and_the_first_zero_stays() {
        let inputs = [f32("x", [4], &[f32::NAN, 1.0, 0.0, -0.0]), f32("z", [4], &[1.0, f32::NAN, -0.0, 0.0])];
        for op in ["min", "max"] {
            let out = y(&format!("{op} %x, %z : f32[4]"), &inputs);
            let out = out.as_f32().unwrap();
            assert!(out[0].is_nan() && out[1].is_nan());
            assert!(out[2].is_sign_positive() && out[3].is_sign_negative(), "{op}");
        }
    }

    #[test]
    fn integers_are_exact_or_an_error() {
        let on = |op: &str, a: i64, b: i64, ty: &str| {
            run(&format!("graph @g() -> (%y) {{ %a = const [{a}] : {ty}[1] %b = const [{b}] : {ty}[1] %y = {op} %a, %b : {ty}[1] }}"), &[])
                .map(|y| y.as_ints().unwrap()[0])
                .map_err(|error| error.to_string())
        };
        assert_eq!(on("add", 2_147_483_647, 1, "i32"), Err("node `y`: element 0 does not fit i32".to_owned()));
        assert_eq!(on("sub", 0, 1, "u8"), Err("node `y`: element 0 does not fit u8".to_owned()));
        assert_eq!(on("mul", i64::MIN, -1, "i64"), Err("node `y`: element 0 does not fit i64".to_owned()));
        assert_eq!(on("div", -7, 2, "i32"), Ok(-3));
        assert_eq!(on("div", 7, 0, "i64"), Err("node `y`: element 0: division of an integer by zero".to_owned()));
        assert_eq!(on("pow", -1, 1 << 40, "i64"), Ok(1));
        assert_eq!(on("pow", 3, 4, "u8"), Ok(81));
        assert_eq!(on("max", -3, 4, "i64"), Ok(4));
        assert_eq!(on("min", 1, 0, "bool"), Ok(0));
    }

    #[test]
    fn casts_truncate_saturate_and_drop_bits() {
        let x = [f32("x", [5], &[-1.7, 300.9, f32::NAN, f32::INFINITY, 0.25])];
        assert_eq!(y("cast %x : i32[5]", &x).as_ints().unwrap(), [-1, 300, 0, i64::from(i32::MAX), 0]);
        assert_eq!(y("cast %x : u8[5]", &x).as_ints().unwrap(), [0, 255, 0, 255, 0]);
        assert_eq!(y("cast %x : bool[5]", &x).as_ints().unwrap(), [1, 1, 1, 1, 1]);
        let wide = "graph @g() -> (%y) { %x = const [257, -1] : i64[2] %y = cast %x : u8[2] }";
        assert_eq!(run(wide, &[]).unwrap().as_ints().unwrap(), [1, 255]);
    }

    #[test]
    fn f64_stays_f64() {
        let text =
            "graph @g() -> (%y) { %a = const [0.1] : f64[1] %b = const [0.2] : f64[1] %y = add %a, %b : f64[1] }";
        assert_eq!(run(text, &[]).unwrap().as_f64().unwrap(), [0.1 + 0.2]);
        assert!(error("relu %x : f64[1]", &[f32("x", [1], &[0.0])]).contains("declared"));
    }
}
