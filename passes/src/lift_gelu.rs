//! `lift-gelu`: makes `gelu` of its decomposed forms.
//!
//! - `x / 2 * (1 + erf(x / sqrt(2)))`,
//! - `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`,
//! - `x * sigmoid(a * x)`, the "quick" form with `a = 1.702`.
//!
//! Factors may come in any order, divisions as products, the cube as a power or as products.
//! The function rounds once where the pieces rounded each.

use qail_ir::{BinaryFn, Graph, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, Product, close},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftGelu;

impl Pass for LiftGelu {
    fn name(&self) -> &'static str {
        "lift-gelu"
    }

    fn summary(&self) -> &'static str {
        "makes gelu, gelu_tanh and swish of their decomposed forms"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, gelu)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn gelu(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Option<UnaryFn> {
    if let Some(inner) = pattern::unary(graph, gate, UnaryFn::Sigmoid) {
        let alpha = Product::of(graph, inner).times(x)?;
        return match (close(number, 1.0), close(alpha, 1.0)) {
            (true, true) => Some(UnaryFn::Silu),
            (true, false) => Some(UnaryFn::Swish { alpha: alpha as f32 }),
            (false, _) => None,
        };
    }
    let (function, one) = pattern::with_number(graph, gate, BinaryFn::Add)?;
    if !close(one, 1.0) || !close(number, 0.5) {
        return None;
    }
    if let Some(inner) = pattern::unary(graph, function, UnaryFn::Erf) {
        let scale = Product::of(graph, inner).times(x)?;
        return close(scale, std::f64::consts::FRAC_1_SQRT_2).then_some(UnaryFn::Gelu);
    }
    let inner = Product::of(graph, pattern::unary(graph, function, UnaryFn::Tanh)?);
    let &[sum] = &inner.factors[..] else { return None };
    let [a, b] = pattern::binary(graph, sum, BinaryFn::Add)?;
    let cube = if a == x { b } else { a };
    let cube = Product::of(graph, cube);
    let is_gelu = (a == x || b == x)
        && cube.factors == [x, x, x]
        && close(cube.number, 0.044715)
        && close(inner.number, (2.0 / std::f64::consts::PI).sqrt());
    is_gelu.then_some(UnaryFn::GeluTanh)
}
