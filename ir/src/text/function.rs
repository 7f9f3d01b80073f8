//! Functions of one number: their parameters by name.

use std::fmt::Write as _;

use crate::UnaryFn;

/// The function of a name, or `None` if there is none. `param` gives the
/// parameters, asked for in the order in which they print.
pub(super) fn by_name<E>(
    name: &str,
    mut param: impl FnMut(&'static str) -> Result<f32, E>,
) -> Result<Option<UnaryFn>, E> {
    Ok(Some(match name {
        "relu" => UnaryFn::Relu,
        "leaky_relu" => UnaryFn::LeakyRelu { alpha: param("alpha")? },
        "elu" => UnaryFn::Elu { alpha: param("alpha")? },
        "tanh" => UnaryFn::Tanh,
        "sigmoid" => UnaryFn::Sigmoid,
        "silu" => UnaryFn::Silu,
        "clip" => UnaryFn::Clip { min: param("min")?, max: param("max")? },
        "abs" => UnaryFn::Abs,
        "neg" => UnaryFn::Neg,
        "exp" => UnaryFn::Exp,
        "log" => UnaryFn::Log,
        "sqrt" => UnaryFn::Sqrt,
        "reciprocal" => UnaryFn::Reciprocal,
        "swish" => UnaryFn::Swish { alpha: param("alpha")? },
        "hard_sigmoid" => UnaryFn::HardSigmoid { alpha: param("alpha")?, beta: param("beta")? },
        "selu" => UnaryFn::Selu { alpha: param("alpha")?, gamma: param("gamma")? },
        "celu" => UnaryFn::Celu { alpha: param("alpha")? },
        "gelu" => UnaryFn::Gelu,
        "gelu_tanh" => UnaryFn::GeluTanh,
        "mish" => UnaryFn::Mish,
        "hard_swish" => UnaryFn::HardSwish,
        "softplus" => UnaryFn::Softplus,
        "softsign" => UnaryFn::Softsign,
        "erf" => UnaryFn::Erf,
        "sin" => UnaryFn::Sin,
        "cos" => UnaryFn::Cos,
        "tan" => UnaryFn::Tan,
        "asin" => UnaryFn::Asin,
        "acos" => UnaryFn::Acos,
        "atan" => UnaryFn::Atan,
        "sinh" => UnaryFn::Sinh,
        "cosh" => UnaryFn::Cosh,
        "asinh" => UnaryFn::Asinh,
        "acosh" => UnaryFn::Acosh,
        "atanh" => UnaryFn::Atanh,
        "floor" => UnaryFn::Floor,
        "ceil" => UnaryFn::Ceil,
        "round" => UnaryFn::Round,
        "sign" => UnaryFn::Sign,
        _ => return Ok(None),
    }))
}

/// `relu` or `clip(-1.0, 1.0)`.
pub(super) fn call(f: UnaryFn) -> String {
    let mut out = f.name().to_owned();
    for (i, (_, value)) in f.params().into_iter().enumerate() {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{}{}", if i == 0 { "(" } else { ", " }, float(value));
    }
    if !f.params().is_empty() {
        out.push(')');
    }
    out
}

/// The shortest text that reads back as the same number; `nan` has no sign.
pub(super) fn float(x: impl std::fmt::Debug) -> String {
    let text = format!("{x:?}");
    if text == "NaN" { "nan".to_owned() } else { text }
}
