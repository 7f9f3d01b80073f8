//! Functions of the IR in the schema.

use qail_artifact::schema::step;
use qail_ir::{BinaryFn, CompareFn, ReduceFn, ScatterFn, UnaryFn};

/// The number itself.
pub(crate) const IDENTITY: step::Function =
    step::Function { kind: step::FunctionKind::Identity as i32, p0: 0.0, p1: 0.0 };

/// A function of one number.
pub(crate) fn unary(f: UnaryFn) -> step::Function {
    use step::FunctionKind as Kind;
    let (kind, p0, p1) = match f {
        UnaryFn::Relu => (Kind::Relu, 0.0, 0.0),
        UnaryFn::LeakyRelu { alpha } => (Kind::LeakyRelu, alpha, 0.0),
        UnaryFn::Elu { alpha } => (Kind::Elu, alpha, 0.0),
        UnaryFn::Tanh => (Kind::Tanh, 0.0, 0.0),
        UnaryFn::Sigmoid => (Kind::Sigmoid, 0.0, 0.0),
        UnaryFn::Silu => (Kind::Silu, 0.0, 0.0),
        UnaryFn::Clip { min, max } => (Kind::Clip, min, max),
        UnaryFn::Abs => (Kind::Abs, 0.0, 0.0),
        UnaryFn::Neg => (Kind::Neg, 0.0, 0.0),
        UnaryFn::Exp => (Kind::Exp, 0.0, 0.0),
        UnaryFn::Log => (Kind::Log, 0.0, 0.0),
        UnaryFn::Sqrt => (Kind::Sqrt, 0.0, 0.0),
        UnaryFn::Reciprocal => (Kind::Reciprocal, 0.0, 0.0),
        UnaryFn::Gelu => (Kind::Gelu, 0.0, 0.0),
        UnaryFn::GeluTanh => (Kind::GeluTanh, 0.0, 0.0),
        UnaryFn::Mish => (Kind::Mish, 0.0, 0.0),
        UnaryFn::Swish { alpha } => (Kind::Swish, alpha, 0.0),
        UnaryFn::HardSigmoid { alpha, beta } => (Kind::HardSigmoid, alpha, beta),
        UnaryFn::HardSwish => (Kind::HardSwish, 0.0, 0.0),
        UnaryFn::Selu { alpha, gamma } => (Kind::Selu, alpha, gamma),
        UnaryFn::Celu { alpha } => (Kind::Celu, alpha, 0.0),
        UnaryFn::Softplus => (Kind::Softplus, 0.0, 0.0),
        UnaryFn::Softsign => (Kind::Softsign, 0.0, 0.0),
        UnaryFn::Erf => (Kind::Erf, 0.0, 0.0),
        UnaryFn::Sin => (Kind::Sin, 0.0, 0.0),
        UnaryFn::Cos => (Kind::Cos, 0.0, 0.0),
        UnaryFn::Tan => (Kind::Tan, 0.0, 0.0),
        UnaryFn::Asin => (Kind::Asin, 0.0, 0.0),
        UnaryFn::Acos => (Kind::Acos, 0.0, 0.0),
        UnaryFn::Atan => (Kind::Atan, 0.0, 0.0),
        UnaryFn::Sinh => (Kind::Sinh, 0.0, 0.0),
        UnaryFn::Cosh => (Kind::Cosh, 0.0, 0.0),
        UnaryFn::Asinh => (Kind::Asinh, 0.0, 0.0),
        UnaryFn::Acosh => (Kind::Acosh, 0.0, 0.0),
        UnaryFn::Atanh => (Kind::Atanh, 0.0, 0.0),
        UnaryFn::Floor => (Kind::Floor, 0.0, 0.0),
        UnaryFn::Ceil => (Kind::Ceil, 0.0, 0.0),
        UnaryFn::Round => (Kind::Round, 0.0, 0.0),
        UnaryFn::Sign => (Kind::Sign, 0.0, 0.0),
    };
    step::Function { kind: kind.into(), p0, p1 }
}

/// A function of two numbers.
pub(crate) fn binary(f: BinaryFn) -> step::BinaryKind {
    match f {
        BinaryFn::Add => step::BinaryKind::Add,
        BinaryFn::Sub => step::BinaryKind::Sub,
        BinaryFn::Mul => step::BinaryKind::Mul,
        BinaryFn::Div => step::BinaryKind::Div,
        BinaryFn::Pow => step::BinaryKind::Pow,
        BinaryFn::Min => step::BinaryKind::Min,
        BinaryFn::Max => step::BinaryKind::Max,
        BinaryFn::Mod => step::BinaryKind::Mod,
        BinaryFn::Rem => step::BinaryKind::Rem,
    }
}

/// A function of many numbers.
pub(crate) fn reduce(f: ReduceFn) -> step::ReduceKind {
    match f {
        ReduceFn::Sum => step::ReduceKind::Sum,
        ReduceFn::Mean => step::ReduceKind::Mean,
        ReduceFn::Min => step::ReduceKind::Min,
        ReduceFn::Max => step::ReduceKind::Max,
        ReduceFn::Prod => step::ReduceKind::Prod,
    }
}

/// A comparison.
pub(crate) fn compare(f: CompareFn) -> step::CompareKind {
    match f {
        CompareFn::Eq => step::CompareKind::Eq,
        CompareFn::Ne => step::CompareKind::Ne,
        CompareFn::Lt => step::CompareKind::Lt,
        CompareFn::Le => step::CompareKind::Le,
        CompareFn::Gt => step::CompareKind::Gt,
        CompareFn::Ge => step::CompareKind::Ge,
    }
}

/// What becomes of an element that is written to.
pub(crate) fn scatter(f: ScatterFn) -> step::ScatterKind {
    match f {
        ScatterFn::Replace => step::ScatterKind::Replace,
        ScatterFn::Add => step::ScatterKind::Add,
        ScatterFn::Mul => step::ScatterKind::Mul,
        ScatterFn::Min => step::ScatterKind::Min,
        ScatterFn::Max => step::ScatterKind::Max,
    }
}

/// True if shaders compute the function with a tolerance only.
pub(crate) fn is_curved(f: UnaryFn) -> bool {
    match f {
        UnaryFn::Elu { .. }
        | UnaryFn::Tanh
        | UnaryFn::Sigmoid
        | UnaryFn::Silu
        | UnaryFn::Exp
        | UnaryFn::Log
        | UnaryFn::Sqrt
        | UnaryFn::Reciprocal
        | UnaryFn::Gelu
        | UnaryFn::GeluTanh
        | UnaryFn::Mish
        | UnaryFn::Swish { .. }
        | UnaryFn::HardSigmoid { .. }
        | UnaryFn::HardSwish
        | UnaryFn::Selu { .. }
        | UnaryFn::Celu { .. }
        | UnaryFn::Softplus
        | UnaryFn::Softsign
        | UnaryFn::Erf
        | UnaryFn::Sin
        | UnaryFn::Cos
        | UnaryFn::Tan
        | UnaryFn::Asin
        | UnaryFn::Acos
        | UnaryFn::Atan
        | UnaryFn::Sinh
        | UnaryFn::Cosh
        | UnaryFn::Asinh
        | UnaryFn::Acosh
        | UnaryFn::Atanh => true,
        UnaryFn::Relu
        | UnaryFn::LeakyRelu { .. }
        | UnaryFn::Clip { .. }
        | UnaryFn::Abs
        | UnaryFn::Neg
        | UnaryFn::Floor
        | UnaryFn::Ceil
        | UnaryFn::Round
        | UnaryFn::Sign => false,
    }
}
