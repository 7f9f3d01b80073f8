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
    pattern::{self, Gate, Product, close},
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

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let replaced = pattern::lift_gates(graph, cx, gelu)?;
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// The function, if the value is `number * x * gate`.
fn gelu(graph: &Graph, x: ValueId, number: f64, gate: ValueId) -> Gate {
    if let Some(inner) = pattern::unary(graph, gate, UnaryFn::Sigmoid) {
        let Some(alpha) = Product::of(graph, inner).times(x) else { return Ok(None) };
        return match (close(number, 1.0), close(alpha, 1.0)) {
            (true, true) => Ok(Some(UnaryFn::Silu)),
            (true, false) => Ok(Some(UnaryFn::Swish { alpha: alpha as f32 })),
            (false, _) => Err("a swish is multiplied with a number"),
        };
    }
    let Some((function, one)) = pattern::with_number(graph, gate, BinaryFn::Add) else { return Ok(None) };
    let halves = close(one, 1.0) && close(number, 0.5);
    if let Some(inner) = pattern::unary(graph, function, UnaryFn::Erf) {
        let scale = Product::of(graph, inner).times(x);
        let Some(scale) = scale else { return Ok(None) };
        let fits = halves && close(scale, std::f64::consts::FRAC_1_SQRT_2);
        return if fits { Ok(Some(UnaryFn::Gelu)) } else { Err("its numbers are not those of gelu") };
    }
    let Some(inner) = pattern::unary(graph, function, UnaryFn::Tanh) else { return Ok(None) };
    let inner = Product::of(graph, inner);
    let &[sum] = &inner.factors[..] else { return Ok(None) };
    let Some([a, b]) = pattern::binary(graph, sum, BinaryFn::Add) else { return Ok(None) };
    let cube = Product::of(graph, if a == x { b } else { a });
    if !(a == x || b == x) || cube.factors != [x, x, x] {
        return Ok(None);
    }
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let fits = halves && close(cube.number, 0.044715) && close(inner.number, scale);
    if fits { Ok(Some(UnaryFn::GeluTanh)) } else { Err("its numbers are not those of gelu") }
}
