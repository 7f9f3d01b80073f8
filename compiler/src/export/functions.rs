//! Functions of one or two numbers.
//!
//! Ours are `f64` arithmetic through `libm`, rounded once to `f32`. [`Precise`]
//! writes the same: operations that IEEE 754 fixes stay in `f32`, the others go
//! through `f64`, where an engine's `exp` differs from `libm`'s by a few units
//! of the 53rd bit. After rounding to 24 bits the results are equal but for about
//! one number in 10^8. [`Plain`] writes the usual `f32` operators.
//!
//! [`Precise`]: Math::Precise
//! [`Plain`]: Math::Plain

use qail_ir::{BinaryFn, UnaryFn};

use super::{
    builder::{Builder, Tensor},
    older,
};
use crate::frontend::proto::{AttributeProto, data_type};

/// How to write a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Math {
    /// Through `f64`, rounded once.
    Precise,
    /// One `f32` operator where there is one.
    Plain,
}

/// True if [`Math::Precise`] writes the function as it is defined: in one exact
/// operation, or in `f64` and rounded once.
pub(super) fn is_precise(f: UnaryFn) -> bool {
    matches!(
        f,
        UnaryFn::Relu
            | UnaryFn::LeakyRelu { .. }
            | UnaryFn::Elu { .. }
            | UnaryFn::Tanh
            | UnaryFn::Sigmoid
            | UnaryFn::Silu
            | UnaryFn::Clip { .. }
            | UnaryFn::Abs
            | UnaryFn::Neg
            | UnaryFn::Exp
            | UnaryFn::Log
            | UnaryFn::Sqrt
            | UnaryFn::Reciprocal
            | UnaryFn::Floor
            | UnaryFn::Ceil
            | UnaryFn::Round
            | UnaryFn::Sign
    )
}

/// Writes `f(x)` for an `f32` tensor, under a name claimed before.
pub(super) fn emit_unary(builder: &mut Builder, math: Math, f: UnaryFn, x: &Tensor, out: &str) -> Tensor {
    let result = Tensor::new(out, data_type::FLOAT);
    if older::emit(builder, f, x, out) {
        return result;
    }
    let mut direct = |op: &str, attributes| builder.node(op, &[&x.name], attributes, out);
    match (f, math) {
        // One correctly rounded operation, or a choice between two numbers.
        (UnaryFn::Relu, _) => direct("Relu", Vec::new()),
        (UnaryFn::LeakyRelu { alpha }, _) => direct("LeakyRelu", vec![AttributeProto::float("alpha", alpha)]),
        (UnaryFn::Abs, _) => direct("Abs", Vec::new()),
        (UnaryFn::Neg, _) => direct("Neg", Vec::new()),
        (UnaryFn::Sqrt, _) => direct("Sqrt", Vec::new()),
        (UnaryFn::Clip { min, max }, _) => emit_clip(builder, x, f64::from(min), f64::from(max), out),
        (UnaryFn::Elu { alpha }, Math::Plain) => direct("Elu", vec![AttributeProto::float("alpha", alpha)]),
        (UnaryFn::Tanh, Math::Plain) => direct("Tanh", Vec::new()),
        (UnaryFn::Sigmoid, Math::Plain) => direct("Sigmoid", Vec::new()),
        (UnaryFn::Exp, Math::Plain) => direct("Exp", Vec::new()),
        (UnaryFn::Log, Math::Plain) => direct("Log", Vec::new()),
        (UnaryFn::Reciprocal, Math::Plain) => direct("Reciprocal", Vec::new()),
        (UnaryFn::Silu, Math::Plain) => {
            let sigmoid = builder.step("Sigmoid", &[&x.name], Vec::new(), &format!("{out}/sigmoid"));
            builder.node("Mul", &[&x.name, &sigmoid], Vec::new(), out);
        }
        (UnaryFn::Gelu, _) => direct("Gelu", Vec::new()),
        (UnaryFn::GeluTanh, _) => direct("Gelu", vec![AttributeProto::string("approximate", "tanh")]),
        (UnaryFn::Mish, _) => direct("Mish", Vec::new()),
        (UnaryFn::Swish { alpha }, _) => {
            let alpha = builder.scalar(&format!("{out}/alpha"), data_type::FLOAT, alpha.into());
            let slope = builder.step("Mul", &[&x.name, &alpha], Vec::new(), &format!("{out}/slope"));
            let sigmoid = builder.step("Sigmoid", &[&slope], Vec::new(), &format!("{out}/sigmoid"));
            builder.node("Mul", &[&x.name, &sigmoid], Vec::new(), out);
        }
        (UnaryFn::HardSigmoid { alpha, beta }, _) => {
            let attributes = vec![AttributeProto::float("alpha", alpha), AttributeProto::float("beta", beta)];
            direct("HardSigmoid", attributes);
        }
        (UnaryFn::HardSwish, _) => direct("HardSwish", Vec::new()),
        (UnaryFn::Selu { alpha, gamma }, _) => {
            direct("Selu", vec![AttributeProto::float("alpha", alpha), AttributeProto::float("gamma", gamma)]);
        }
        (UnaryFn::Celu { alpha }, _) => direct("Celu", vec![AttributeProto::float("alpha", alpha)]),
        (UnaryFn::Softplus, _) => direct("Softplus", Vec::new()),
        (UnaryFn::Softsign, _) => direct("Softsign", Vec::new()),
        (UnaryFn::Erf, _) => direct("Erf", Vec::new()),
        (UnaryFn::Sin, _) => direct("Sin", Vec::new()),
        (UnaryFn::Cos, _) => direct("Cos", Vec::new()),
        (UnaryFn::Tan, _) => direct("Tan", Vec::new()),
        (UnaryFn::Asin, _) => direct("Asin", Vec::new()),
        (UnaryFn::Acos, _) => direct("Acos", Vec::new()),
        (UnaryFn::Atan, _) => direct("Atan", Vec::new()),
        (UnaryFn::Sinh, _) => direct("Sinh", Vec::new()),
        (UnaryFn::Cosh, _) => direct("Cosh", Vec::new()),
        (UnaryFn::Asinh, _) => direct("Asinh", Vec::new()),
        (UnaryFn::Acosh, _) => direct("Acosh", Vec::new()),
        (UnaryFn::Atanh, _) => direct("Atanh", Vec::new()),
        (UnaryFn::Floor, _) => direct("Floor", Vec::new()),
        (UnaryFn::Ceil, _) => direct("Ceil", Vec::new()),
        (UnaryFn::Round, _) => direct("Round", Vec::new()),
        (UnaryFn::Sign, _) => direct("Sign", Vec::new()),
        (UnaryFn::Elu { .. }, Math::Precise)
        | (UnaryFn::Tanh | UnaryFn::Sigmoid | UnaryFn::Silu, Math::Precise)
        | (UnaryFn::Exp | UnaryFn::Log | UnaryFn::Reciprocal, Math::Precise) => {
            let wide = builder.cast(x, data_type::DOUBLE, &format!("{out}/x64"));
            let y = emit_f64(builder, f, &wide.name, out);
            round_to_f32(builder, &y, out);
        }
    }
    result
}

/// `f(x)` of an `f64` tensor; only the functions that [`emit_unary`] sends here.
fn emit_f64(builder: &mut Builder, f: UnaryFn, x: &str, out: &str) -> String {
    let base = format!("{out}/f64");
    match f {
        UnaryFn::Tanh => builder.step("Tanh", &[x], Vec::new(), &base),
        UnaryFn::Exp => builder.step("Exp", &[x], Vec::new(), &base),
        UnaryFn::Log => builder.step("Log", &[x], Vec::new(), &base),
        UnaryFn::Reciprocal => {
            let one = builder.scalar(&base, data_type::DOUBLE, 1.0);
            builder.step("Div", &[&one, x], Vec::new(), &base)
        }
        UnaryFn::Sigmoid | UnaryFn::Silu => {
            let one = builder.scalar(&base, data_type::DOUBLE, 1.0);
            let negative = builder.step("Neg", &[x], Vec::new(), &base);
            let exp = builder.step("Exp", &[&negative], Vec::new(), &base);
            let denominator = builder.step("Add", &[&one, &exp], Vec::new(), &base);
            let numerator = if f == UnaryFn::Silu { x } else { one.as_str() };
            builder.step("Div", &[numerator, &denominator], Vec::new(), &base)
        }
        UnaryFn::Elu { alpha } => {
            // expm1(x) = 2 t / (1 - t) with t = tanh(x / 2): no cancellation for x <= 0.
            let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(|x| builder.scalar(&base, data_type::DOUBLE, x));
            let below = builder.step("Min", &[x, &zero], Vec::new(), &base);
            let halved = builder.step("Mul", &[&below, &half], Vec::new(), &base);
            let t = builder.step("Tanh", &[&halved], Vec::new(), &base);
            let numerator = builder.step("Mul", &[&t, &two], Vec::new(), &base);
            let denominator = builder.step("Sub", &[&one, &t], Vec::new(), &base);
            let expm1 = builder.step("Div", &[&numerator, &denominator], Vec::new(), &base);
            let alpha = builder.scalar(&base, data_type::DOUBLE, alpha.into());
            let curved = builder.step("Mul", &[&expm1, &alpha], Vec::new(), &base);
            let above = builder.step("Max", &[x, &zero], Vec::new(), &base);
            builder.step("Add", &[&curved, &above], Vec::new(), &base)
        }
        // These are written in `f32`.
        _ => x.to_owned(),
    }
}

/// Writes `min(max(x, lo), hi)` in the type of `x`; an infinite bound is left out.
pub(super) fn emit_clip(builder: &mut Builder, x: &Tensor, lo: f64, hi: f64, out: &str) {
    let [lo, hi] = [("lo", lo), ("hi", hi)].map(|(what, bound)| {
        if bound.is_finite() { builder.scalar(&format!("{out}/{what}"), x.ty, bound) } else { String::new() }
    });
    builder.node("Clip", &[&x.name, &lo, &hi], Vec::new(), out);
}

/// Writes `f(a, b)`. Sums, differences, products and quotients are correctly
/// rounded in any type; a power goes through `f64` if asked for.
pub(super) fn emit_binary(builder: &mut Builder, math: Math, f: BinaryFn, [a, b]: [&Tensor; 2], out: &str) -> Tensor {
    let op = match f {
        BinaryFn::Add => "Add",
        BinaryFn::Sub => "Sub",
        BinaryFn::Mul => "Mul",
        BinaryFn::Div => "Div",
        BinaryFn::Pow => "Pow",
        BinaryFn::Min => "Min",
        BinaryFn::Max => "Max",
        BinaryFn::Mod | BinaryFn::Rem => {
            if f == BinaryFn::Mod && a.ty == data_type::FLOAT {
                // ONNX has no floored remainder of floats.
                let quotient = builder.step("Div", &[&a.name, &b.name], Vec::new(), &format!("{out}/quotient"));
                let floor = builder.step("Floor", &[&quotient], Vec::new(), &format!("{out}/floor"));
                let whole = builder.step("Mul", &[&floor, &b.name], Vec::new(), &format!("{out}/whole"));
                builder.node("Sub", &[&a.name, &whole], Vec::new(), out);
            } else {
                let fmod = AttributeProto::int("fmod", i64::from(f == BinaryFn::Rem));
                builder.node("Mod", &[&a.name, &b.name], vec![fmod], out);
            }
            return Tensor::new(out, a.ty);
        }
    };
    if (f, math, a.ty) == (BinaryFn::Pow, Math::Precise, data_type::FLOAT) {
        let [a, b] = [a, b].map(|x| builder.cast(x, data_type::DOUBLE, &format!("{out}/x64")));
        let power = builder.step(op, &[&a.name, &b.name], Vec::new(), &format!("{out}/f64"));
        round_to_f32(builder, &power, out);
    } else {
        builder.node(op, &[&a.name, &b.name], Vec::new(), out);
    }
    Tensor::new(out, a.ty)
}

/// Writes the conversion of an `f64` tensor that ends an exact computation.
pub(super) fn round_to_f32(builder: &mut Builder, x: &str, out: &str) {
    builder.node("Cast", &[x], vec![AttributeProto::int("to", data_type::FLOAT.into())], out);
}
