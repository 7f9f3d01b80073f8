//! `lift-fake-quant`: makes `fake_quant` of numbers that are rounded and clamped to whole numbers.
//!
//! The spelling of quantizers that operator sets without 16-bit codes need, for
//! models that bring other quantizers too:
//!
//! - `clip(round(x / s)) * s`, one constant `s`: a quantizer with step `s`,
//! - `clip(round(x * r)) * s`, `s` a power of two and `r` its reciprocal: the same,
//! - `clip(round(x))`: a quantizer with step 1; another factor behind it stays.
//!
//! Exact: by the definition of `fake_quant`, and because a power of two divides
//! as its reciprocal multiplies.

use qail_ir::{BinaryFn, Constant, FakeQuant, Graph, NodeId, Op, Origin, QuantScheme, Unary, UnaryFn, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, pipeline, rewrite};

/// Largest magnitude of a 16-bit code: two balanced bytes hold it.
const WIDE_HI: i32 = 32639;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftFakeQuant;

impl Pass for LiftFakeQuant {
    fn name(&self) -> &'static str {
        "lift-fake-quant"
    }

    fn summary(&self) -> &'static str {
        "makes quantizers of numbers that are rounded and clamped"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        // A model without quantizers may round for reasons of its own.
        if !pipeline::is_quantized(graph) {
            return Ok(Changed::No);
        }
        let mut dead = Vec::new();
        for id in graph.topo() {
            dead.extend(lift(graph, id)?);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// Puts a quantizer in the place of a Clip, or of a Mul behind it; gives what it replaced.
fn lift(graph: &mut Graph, clip: NodeId) -> Result<Option<NodeId>, PassError> {
    let Op::Unary(Unary { f: UnaryFn::Clip { min, max } }) = graph.node(clip).op else { return Ok(None) };
    let Some((scheme, lo, hi)) = range(min, max) else { return Ok(None) };
    let Some(&round) = graph.operands(clip).first() else { return Ok(None) };
    let Some(x) = pattern::unary(graph, round, UnaryFn::Round) else { return Ok(None) };
    let (old, x, step) = around(graph, clip, x).unwrap_or((clip, x, 1.0));
    let node = graph.node(old).clone();
    let scale = graph.add_const(format!("{}.s", node.name), Constant::f32([], &[step]), Origin::default());
    let op = Op::FakeQuant(FakeQuant { scheme, lo, hi, axis: None, group: None });
    // Everything between what is rounded and what is left.
    let origins = pattern::inner_origins(graph, old.value(), &[x]);
    let new = rewrite::replace(graph, old, op, &[x, scale])?;
    for origin in &origins {
        graph.merge_origin(new.node, origin);
    }
    Ok(Some(old))
}

/// The Mul that reads the codes, what is rounded, and the step, if both sides agree on one.
fn around(graph: &Graph, clip: NodeId, scaled: ValueId) -> Option<(NodeId, ValueId, f32)> {
    let mul = graph.sole_user(clip.value()).filter(|_| !graph.is_output(clip.value()))?;
    let (_, step) = by_number(graph, mul.value(), BinaryFn::Mul)?;
    if !(step.is_normal() && step > 0.0) {
        return None;
    }
    if step == 1.0 {
        return Some((mul, scaled, step));
    }
    if let Some((x, divisor)) = by_number(graph, scaled, BinaryFn::Div) {
        return (divisor == step).then_some((mul, x, step));
    }
    let is_power = step.to_bits().trailing_zeros() >= f32::MANTISSA_DIGITS - 1;
    let (x, factor) = by_number(graph, scaled, BinaryFn::Mul)?;
    (is_power && factor.is_normal() && factor * step == 1.0).then_some((mul, x, step))
}

/// The operand and the one number, if the value is `f(operand, number)`.
fn by_number(graph: &Graph, value: ValueId, f: BinaryFn) -> Option<(ValueId, f32)> {
    let (x, number) = match f {
        // A number over a value is none of this.
        BinaryFn::Div => {
            let [x, number] = pattern::binary(graph, value, f)?;
            (x, pattern::number(graph, number)?)
        }
        _ => pattern::with_number(graph, value, f)?,
    };
    let fits = graph.const_of(x).is_none() && graph.ty(x) == graph.ty(value) && graph.ty(x).is_f32();
    fits.then_some((x, number as f32))
}

/// Codes between two whole numbers around zero.
fn range(min: f32, max: f32) -> Option<(QuantScheme, i32, i32)> {
    let whole = |x: f32| (x.fract() == 0.0 && x.abs() <= WIDE_HI as f32).then_some(x as i32);
    let (lo, hi) = (whole(min)?, whole(max)?);
    let schemes = [QuantScheme::signed(8), QuantScheme::unsigned(8), QuantScheme::signed(16)];
    let scheme = schemes.into_iter().find(|scheme| scheme.lo() <= lo && hi <= scheme.hi())?;
    (lo <= 0 && 0 <= hi && lo < hi).then_some((scheme, lo, hi))
}
