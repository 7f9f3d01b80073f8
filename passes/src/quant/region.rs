//! Which values are codes, and by which formulas: the one definition behind
//! `lower-quant` and the forward pass of training.
//!
//! [`Region::of`] says from the graph alone which layers run on codes and what
//! each quantizer of an activation reads. The functions beside it turn steps
//! into numbers: bias codes, multipliers, tables, factors of an entry. Steps
//! change while a policy trains, so what depends on them ([`route`], for one)
//! is asked again for each set of steps.

use std::collections::BTreeMap;

use qail_ir::{FakeQuant, Graph, Linear, NodeId, Op, UnaryFn, ValueId, fixed::Multiplier};

use super::{CodeInfo, code, flow};
use crate::{PassError, rewrite};

/// What a quantizer of an activation reads.
#[derive(Clone, Debug, PartialEq)]
pub enum CodesFrom {
    /// The accumulator of a layer on codes, through functions that only clamp.
    Layer(NodeId),
    /// Other codes, through functions of one number.
    Codes(ValueId),
    /// A sum of codes, through functions that only clamp: see [`sum_scale`].
    Sum(SumOfCodes),
    /// A sum of two values, through functions that only clamp: see [`add_numbers`].
    Add(Addition),
    /// Floats.
    Floats,
}

/// `sum(q - z)` over axes of codes: `qsum`, then `requantize` with [`sum_scale`] as the factor of
/// every channel.
#[derive(Clone, Debug, PartialEq)]
pub struct SumOfCodes {
    /// The node that sums or averages.
    pub node: NodeId,
    /// The codes.
    pub codes: ValueId,
    /// Elements in a sum.
    pub n: usize,
    /// What the sum is divided by: 1, or `n` for a mean.
    pub divisor: usize,
}

/// `a + b`: `qadd` with [`add_numbers`].
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    /// The node that adds.
    pub node: NodeId,
    /// The operand in the shape of the result.
    pub a: Addend,
    /// Codes of the other one, which may be broadcast.
    pub b: ValueId,
}

/// The first operand of an addition.
#[derive(Clone, Debug, PartialEq)]
pub enum Addend {
    /// The accumulators of a layer.
    Layer(NodeId),
    /// Codes.
    Codes(ValueId),
}

/// A quantizer of an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationQuantizer {
    /// Width, sign and range.
    pub fake: FakeQuant,
    /// Its operand.
    pub x: ValueId,
    /// Its step, a constant of one element.
    pub scale: ValueId,
    /// Code of zero.
    pub zero_point: i32,
    /// What it reads.
    pub from: CodesFrom,
    /// Functions between that and the quantizer, first one first.
    pub functions: Vec<UnaryFn>,
}

impl ActivationQuantizer {
    /// How its codes read with a step.
    pub fn info(&self, step: f32) -> CodeInfo {
        CodeInfo {
            scheme: self.fake.scheme,
            step: f64::from(step),
            zero_point: self.zero_point,
            lo: self.fake.lo,
            hi: self.fake.hi,
        }
    }
}

/// A `linear` with quantized weights, one step a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayer {
    /// The quantizer of the weights.
    pub quantizer: ValueId,
    /// Width, sign and range of the weights.
    pub fake: FakeQuant,
    /// Constant weights `[K, N]`.
    pub w: ValueId,
    /// Constant steps `[N]`.
    pub scale: ValueId,
    /// Constant bias `[N]`.
    pub bias: ValueId,
    /// Input features of a group of channels: rows of the weights.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// Groups of channels, see [`Linear::groups`].
    pub groups: usize,
}

/// Everything in a graph that is computed on codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Region {
    /// Quantizers of activations.
    pub quantizers: BTreeMap<NodeId, ActivationQuantizer>,
    /// Layers whose input and weights are codes.
    pub layers: BTreeMap<NodeId, QuantizedLayer>,
    /// Movements of codes, and what they move. Windows show the code of zero for a fill of 0, the
    /// first or last code for an infinity. A concatenation moves all of its operands, whose
    /// quantizers share one step; the first is given here.
    pub moved: BTreeMap<NodeId, ValueId>,
    /// Layers whose input or weights are no codes.
    pub float_layers: Vec<NodeId>,
    /// Quantizers of activations that codes cannot replace, and why.
    pub left: BTreeMap<NodeId, &'static str>,
}

impl Region {
    /// The region of a graph.
    pub fn of(graph: &Graph) -> Result<Self, PassError> {
        let mut region = Self::default();
        for id in graph.topo() {
            let operands = graph.operands(id);
            let Some(&x) = operands.first() else { continue };
            match graph.node(id).op.clone() {
                Op::FakeQuant(fake) if graph.const_of(x).is_none() => match parts(graph, &operands, &fake)? {
                    Ok((scale, zero_point)) => {
                        let (from, functions) = region.from(graph, x);
                        let quantizer = ActivationQuantizer { fake, x, scale, zero_point, from, functions };
                        region.quantizers.insert(id, quantizer);
                    }
                    Err(reason) => drop(region.left.insert(id, reason)),
                },
                Op::Linear(linear) => match quantized_layer(graph, &operands, linear.groups)? {
                    Some(layer) if region.has_codes(x) => drop(region.layers.insert(id, layer)),
                    _ => region.float_layers.push(id),
                },
                op if flow::joins(&op) && region.share_a_step(&operands) => drop(region.moved.insert(id, x)),
                _ if flow::moves(graph, id) && region.has_codes(x) => drop(region.moved.insert(id, x)),
                _ => {}
            }
        }
        Ok(region)
    }

    /// True if a value is codes.
    pub fn has_codes(&self, value: ValueId) -> bool {
        value.slot == 0 && (self.quantizers.contains_key(&value.node) || self.moved.contains_key(&value.node))
    }

    /// The quantizer whose codes a value holds, if it holds codes.
    pub fn quantizer_of(&self, mut value: ValueId) -> Option<&ActivationQuantizer> {
        while let Some(&moved) = self.moved.get(&value.node) {
            value = moved;
        }
        self.quantizers.get(&value.node)
    }

    /// True if all values are codes with one meaning.
    fn share_a_step(&self, values: &[ValueId]) -> bool {
        let quantizers: Option<Vec<&ActivationQuantizer>> =
            values.iter().map(|&value| self.quantizer_of(value).filter(|_| self.has_codes(value))).collect();
        let Some(quantizers) = quantizers else { return false };
        let meaning = |quantizer: &ActivationQuantizer| (quantizer.fake.clone(), quantizer.scale, quantizer.zero_point);
        quantizers.windows(2).all(|pair| pair.first().map(|q| meaning(q)) == pair.last().map(|q| meaning(q)))
    }

    fn from(&self, graph: &Graph, x: ValueId) -> (CodesFrom, Vec<UnaryFn>) {
        let flow::Chain { source, functions, .. } = flow::chain_behind(graph, x);
        if self.has_codes(source) {
            return (CodesFrom::Codes(source), functions);
        }
        let from = match graph.op(source) {
            _ if !functions.iter().all(|&f| flow::clamps(f)) => CodesFrom::Floats,
            Op::Linear(_) if self.layers.contains_key(&source.node) => CodesFrom::Layer(source.node),
            Op::Reduce(_) => self.sum(graph, source.node).map_or(CodesFrom::Floats, CodesFrom::Sum),
            Op::Binary(_) => self.addition(graph, source).map_or(CodesFrom::Floats, CodesFrom::Add),
            _ => CodesFrom::Floats,
        };
        (from, functions)
    }

    fn sum(&self, graph: &Graph, node: NodeId) -> Option<SumOfCodes> {
        let flow::Sum { x, n, divisor } = flow::sum_of(graph, node)?;
        self.has_small_codes(x).then_some(SumOfCodes { node, codes: x, n, divisor })
    }

    fn addition(&self, graph: &Graph, value: ValueId) -> Option<Addition> {
        let [a, b] = flow::addends(graph, value)?;
        let is_layer = |value: ValueId| {
            self.layers.contains_key(&value.node) && matches!(graph.op(value), Op::Linear(Linear { act: None, .. }))
        };
        let whole = graph.ty(a) == graph.ty(b);
        let (a, b) = if whole && !is_layer(a) && is_layer(b) { (b, a) } else { (a, b) };
        let first = if is_layer(a) { Addend::Layer(a.node) } else { Addend::Codes(a) };
        let codes = is_layer(a) || self.has_small_codes(a);
        (codes && self.has_small_codes(b)).then_some(Addition { node: value.node, a: first, b })
    }

    /// True for codes of at most 8 bits.
    fn has_small_codes(&self, value: ValueId) -> bool {
        self.has_codes(value) && self.quantizer_of(value).is_some_and(|quantizer| quantizer.fake.scheme.bits <= 8)
    }
}

/// Step and zero point of a quantizer of an activation, or why it has no codes.
fn parts(
    graph: &Graph,
    operands: &[ValueId],
    fake: &FakeQuant,
) -> Result<Result<(ValueId, i32), &'static str>, PassError> {
    let (scale, zero_point) = match *operands {
        [_, scale] => (scale, 0.0),
        [_, scale, z] => match rewrite::const_f64(graph, z)?.and_then(|z| z.first().copied()) {
            Some(z) => (scale, z),
            None => return Ok(Err("its zero point is computed, not constant")),
        },
        _ => return Ok(Err("it has neither two nor three operands")),
    };
    if !(f64::from(fake.scheme.lo())..=f64::from(fake.scheme.hi())).contains(&zero_point) {
        return Ok(Err("its zero point is not one of its codes"));
    }
    let Some(constant) = graph.const_of(scale) else { return Ok(Err("its step is computed, not constant")) };
    if fake.axis.is_some() || constant.ty.n_elements() != 1 {
        return Ok(Err("it has one step a feature; run `fold-entry-steps` first, or use one step"));
    }
    Ok(Ok((scale, zero_point as i32)))
}

/// Constant quantized weights and constant bias; `None` if they are not that.
fn quantized_layer(graph: &Graph, operands: &[ValueId], groups: usize) -> Result<Option<QuantizedLayer>, PassError> {
    let &[_, quantizer, bias] = operands else { return Ok(None) };
    let Op::FakeQuant(fake @ FakeQuant { axis: Some(1), group: None, .. }) = graph.op(quantizer) else {
        return Ok(None);
    };
    let (w, scale) = match graph.operands(quantizer.node)[..] {
        [w, scale] => (w, scale),
        [w, scale, z] if rewrite::const_f64(graph, z)?.is_some_and(|z| z.iter().all(|z| *z == 0.0)) => (w, scale),
        _ => return Ok(None),
    };
    let [k, n] = graph.ty(w).shape[..] else { return Ok(None) };
    if graph.const_of(w).is_none() || graph.const_of(bias).is_none() {
        return Ok(None);
    }
    Ok(Some(QuantizedLayer { quantizer, fake: fake.clone(), w, scale, bias, k, n, groups }))
}

/// How a quantizer gets its codes.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// From the accumulator: clamping functions are in the range of these codes.
    Requantize(CodeInfo),
    /// They are the codes that it reads.
    Same,
    /// By a [`table`].
    Lookup,
    /// From floats, `clamp(rne(x * r) + z)` with [`entry_factor`].
    Quantize,
}

/// How a quantizer with codes `out` gets them: behind a layer if `codes` is
/// `None`, else behind `codes`; through `functions`. Codes of 16 bits come from
/// floats: kernels make none.
pub fn route(codes: Option<&CodeInfo>, functions: &[UnaryFn], out: &CodeInfo) -> Route {
    match codes {
        Some(info) if functions.is_empty() && info == out => Route::Same,
        _ if out.scheme.bits > 8 => Route::Quantize,
        None => fold_clamps(functions, out).map_or(Route::Quantize, Route::Requantize),
        Some(info) if info.scheme.bits == 8 && functions.iter().all(|&f| flow::fits_a_table(f)) => Route::Lookup,
        Some(_) => Route::Quantize,
    }
}

/// The range of codes behind functions that clamp; `None` if one code is left.
fn fold_clamps(functions: &[UnaryFn], out: &CodeInfo) -> Option<CodeInfo> {
    let code = |x: f32| (f64::from(x) / out.step).round_ties_even() + f64::from(out.zero_point);
    let mut range = (f64::NEG_INFINITY, f64::INFINITY);
    let bounds = functions.iter().map(|f| match f {
        UnaryFn::Relu => (code(0.0), f64::INFINITY),
        UnaryFn::Clip { min, max } => (code(*min), code(*max)),
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    });
    for (lo, hi) in bounds.chain([(f64::from(out.lo), f64::from(out.hi))]) {
        // As the function does it: first the lower bound, then the upper one.
        range = (range.0.max(lo).min(hi), range.1.max(lo).min(hi));
    }
    (range.0 < range.1).then(|| CodeInfo { lo: range.0 as i32, hi: range.1 as i32, ..out.clone() })
}

/// Codes behind 8-bit codes and functions, for each of the 256 codes from the
/// lowest on; and how they read, with the range that can be reached.
pub fn table(functions: &[UnaryFn], input: &CodeInfo, out: &CodeInfo) -> (Vec<i32>, CodeInfo) {
    let first = input.scheme.lo();
    let entry = |code_in: i32| {
        let x = f64::from(code_in - input.zero_point) * input.step;
        let y = functions.iter().fold(x, |y, f| f.eval_f64(y));
        code(y, out.step, out.zero_point, out.lo, out.hi)
    };
    let table: Vec<i32> = (first..first + 256).map(entry).collect();
    let index = |code: i32| usize::try_from(code.saturating_sub(first)).unwrap_or(0).min(256);
    let reached = table.get(index(input.lo)..(index(input.hi) + 1).min(256)).unwrap_or_default();
    let (lo, hi) = (reached.iter().min().copied(), reached.iter().max().copied());
    let info = CodeInfo { lo: lo.unwrap_or(out.lo), hi: hi.unwrap_or(out.hi), ..out.clone() };
    (table, info)
}

/// The factor of [`Route::Quantize`].
pub fn entry_factor(step: f64) -> f32 {
    (1.0 / step) as f32
}

/// The first step that is no positive normal number.
pub fn wrong_step(steps: &[f32]) -> Option<(usize, f32)> {
    steps.iter().copied().enumerate().find(|(_, step)| !(step.is_normal() && *step > 0.0))
}

/// `s_in * s_w` of each channel: what one unit of the accumulator is.
pub fn exit_scales(s_in: f64, weight_steps: &[f32]) -> Vec<f64> {
    weight_steps.iter().map(|&s_w| s_in * f64::from(s_w)).collect()
}

/// Sums over the weight codes of one output channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSums {
    /// `sum w`.
    pub sum: i64,
    /// `sum |w|`.
    pub magnitude: i64,
}

/// Bias codes of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BiasCodes {
    /// `rne(b / (s_in s_w)) - z_in sum(w)` of each channel.
    pub codes: Vec<i64>,
    /// Largest magnitude that an accumulator may reach, over all channels.
    pub bound: i64,
}

/// An accumulator that may leave 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// Output channel.
    pub channel: usize,
    /// The bound `sum |w||a| + |B|`.
    pub bound: i128,
}

/// Bias codes, with the proof that no accumulator leaves 32 bits.
pub fn bias_codes(
    b: &[f64],
    exit_scales: &[f64],
    columns: &[ColumnSums],
    input: &CodeInfo,
) -> Result<BiasCodes, Overflow> {
    let mut bias = BiasCodes { codes: Vec::with_capacity(b.len()), bound: 0 };
    for (channel, ((b, scale), columns)) in b.iter().zip(exit_scales).zip(columns).enumerate() {
        let code = (b / scale).round_ties_even();
        // Far outside of 32 bits is as wrong as just outside; NaN is caught too.
        let code = if code.abs() < 1e18 { code as i128 } else { i128::from(i64::MAX) };
        let code = code - i128::from(input.zero_point) * i128::from(columns.sum);
        let bound = i128::from(columns.magnitude) * i128::from(input.max_abs()) + code.abs();
        match i64::try_from(bound) {
            Ok(fits) if fits <= i64::from(i32::MAX) => {
                bias.bound = bias.bound.max(fits);
                bias.codes.push(code as i64);
            }
            _ => return Err(Overflow { channel, bound }),
        }
    }
    Ok(bias)
}

/// A rescaling factor that has no multiplier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoMultiplier {
    /// Output channel.
    pub channel: usize,
    /// The factor `s_in * s_w / s_out`.
    pub factor: f64,
}

/// `M = nearest(s_in s_w / s_out)` of each channel.
pub fn multipliers(exit_scales: &[f64], s_out: f64) -> Result<Vec<Multiplier>, NoMultiplier> {
    let one = |(channel, scale): (usize, &f64)| {
        let factor = scale / s_out;
        Multiplier::nearest(factor).ok_or(NoMultiplier { channel, factor })
    };
    exit_scales.iter().enumerate().map(one).collect()
}

/// The code that windows show beyond the edges. An infinity is the first or last code, so the
/// extreme of a pool is never the edge.
pub fn fill_code(fill: f32, info: &CodeInfo) -> i32 {
    match fill {
        f32::NEG_INFINITY => info.lo,
        f32::INFINITY => info.hi,
        fill => code(f64::from(fill), info.step, info.zero_point, info.scheme.lo(), info.scheme.hi()),
    }
}

/// What one unit of a sum of codes is: the step over what the sum is divided by.
pub fn sum_scale(step: f64, divisor: usize) -> f64 {
    step / divisor.max(1) as f64
}

/// Largest magnitude of a sum of `n` codes without their zero; `None` if it may leave 32 bits.
pub fn sum_bound(input: &CodeInfo, n: usize) -> Option<i64> {
    let bound = centered_bound(input).checked_mul(i64::try_from(n).ok()?)?;
    (bound <= i64::from(i32::MAX)).then_some(bound)
}

/// Largest magnitude of a code without its zero.
pub fn centered_bound(info: &CodeInfo) -> i64 {
    let centered = |code: i32| (i64::from(code) - i64::from(info.zero_point)).abs();
    centered(info.lo).max(centered(info.hi))
}

/// Multipliers of an addition: `(a m_a + b m_b + 2^(shift-1)) >> shift`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddNumbers {
    /// Of the first operand: one, or one a channel.
    pub m_a: Vec<i32>,
    /// Of the second operand.
    pub m_b: i32,
    /// The shift of both.
    pub shift: u32,
}

/// Largest shift of an addition.
const ADD_SHIFT_MAX: i32 = 40;
/// Multipliers of additions stay below this power of two.
const ADD_M_BITS: i32 = 30;
/// Sums of additions stay below this power of two, so that `f64` is exact too.
const ADD_SUM_BITS: i32 = 52;

/// The multipliers of `a + b`, `a` with a scale a channel (or one), both with the largest magnitude
/// that they reach, in units of `s_out`: `m = rne(s / s_out 2^shift)`, at least 1.
///
/// The shift is the largest for which no multiplier reaches `2^30` and the sum, rounding included,
/// stays below `2^52`: `bound_a m_a + bound_b m_b + 2^(shift-1) < 2^52`. So neither 64-bit integers
/// nor `f64` lose a bit. `Err` has the factor that is out of range.
pub fn add_numbers(
    (scales_a, bound_a): (&[f64], i64),
    (scale_b, bound_b): (f64, i64),
    s_out: f64,
) -> Result<AddNumbers, NoMultiplier> {
    let factors: Vec<f64> = scales_a.iter().map(|scale| scale / s_out).collect();
    let (factor_a, factor_b) = (factors.iter().copied().fold(0.0, f64::max), scale_b / s_out);
    for (channel, &factor) in factors.iter().chain([&factor_b]).enumerate() {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(NoMultiplier { channel, factor });
        }
    }
    let largest = factor_a.max(factor_b);
    let reach = factor_a * bound_a as f64 + factor_b * bound_b as f64 + 1.0;
    // Rounding may raise a multiplier by one half: the exponents leave a factor of two of room.
    let of_m = ADD_M_BITS - 2 - libm::ilogb(largest);
    let of_sum = ADD_SUM_BITS - 2 - libm::ilogb(reach);
    let shift = of_m.min(of_sum).min(ADD_SHIFT_MAX);
    if shift < 1 {
        return Err(NoMultiplier { channel: 0, factor: largest });
    }
    let m = |factor: f64| libm::ldexp(factor, shift).round_ties_even().max(1.0) as i32;
    let numbers = AddNumbers { m_a: factors.into_iter().map(m).collect(), m_b: m(factor_b), shift: shift as u32 };
    // The proof, from the numbers themselves.
    let m_a = numbers.m_a.iter().copied().max().unwrap_or(1);
    let sum = i128::from(bound_a) * i128::from(m_a) + i128::from(bound_b) * i128::from(numbers.m_b);
    if sum + (1i128 << (shift - 1)) >= 1i128 << ADD_SUM_BITS {
        return Err(NoMultiplier { channel: 0, factor: largest });
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use qail_ir::{QuantScheme, text};

    use super::*;

    fn info(scheme: QuantScheme, step: f64, zero_point: i32) -> CodeInfo {
        CodeInfo { scheme, step, zero_point, lo: scheme.lo(), hi: scheme.hi() }
    }

    #[test]
    fn quantizers_know_what_they_read() {
        let graph = text::parse(
            "graph @g(%x: f32[1, 2]) -> (%y) {
              %sx = const [0.5] : f32[]
              %xq = fake_quant %x, %sx {s8} : f32[1, 2]
              %w = const [1.0, 2.0, 3.0, 4.0] : f32[2, 2]
              %ws = const [0.5, 0.25] : f32[2]
              %wq = fake_quant %w, %ws {s8, lo = -127, axis = 1} : f32[2, 2]
              %b = const splat(0.5) : f32[2]
              %l = linear %xq, %wq, %b {act = relu} : f32[1, 2]
              %q = fake_quant %l, %sx {s8} : f32[1, 2]
              %t = tanh %q : f32[1, 2]
              %tq = fake_quant %t, %sx {s8} : f32[1, 2]
              %m = linear %l, %wq, %b : f32[1, 2]
              %s = sigmoid %m : f32[1, 2]
              %y = fake_quant %s, %sx {s8} : f32[1, 2]
            }",
        )
        .unwrap();
        let region = Region::of(&graph).unwrap();
        let node = |name: &str| graph.topo().into_iter().find(|&id| graph.node(id).name == name).unwrap();
        let from = |name: &str| region.quantizers[&node(name)].from.clone();
        assert_eq!(from("xq"), CodesFrom::Floats);
        assert_eq!(from("q"), CodesFrom::Layer(node("l")));
        assert_eq!(region.quantizers[&node("q")].functions, [UnaryFn::Relu]);
        assert_eq!(from("tq"), CodesFrom::Codes(node("q").value()));
        assert_eq!(from("y"), CodesFrom::Floats);
        assert_eq!(region.layers.keys().copied().collect::<Vec<_>>(), [node("l")]);
        assert_eq!(region.float_layers, [node("m")]);
    }

    #[test]
    fn sums_of_additions_stay_exact_in_floats() {
        let mut factor = 1e-9;
        while factor < 1e3 {
            for bound in [1 << 10, 1 << 20, i64::from(i32::MAX)] {
                let Ok(numbers) = add_numbers((&[factor, factor / 300.0], bound), (1.0, 255), 1.0) else { continue };
                let m = i128::from(numbers.m_a[0]);
                assert!(m * i128::from(bound) + i128::from(numbers.m_b) * 255 + (1 << numbers.shift) < 1 << 53);
                // What is rounded is less than a part of a code for what can be reached.
                let real = libm::ldexp(f64::from(numbers.m_b), -(numbers.shift as i32));
                assert!((real - 1.0).abs() * 255.0 < 0.1 || factor * bound as f64 > 1e6, "{factor} {bound} {real}");
            }
            factor *= 3.7;
        }
        assert!(add_numbers((&[f64::NAN], 1), (1.0, 1), 1.0).is_err());
        assert!(add_numbers((&[1e30], 1), (1.0, 1), 1.0).is_err());
    }

    #[test]
    fn a_range_of_one_code_is_not_folded() {
        let out = info(QuantScheme::unsigned(4), 0.5, 0);
        let clip = |max: f32| [UnaryFn::Clip { min: 0.0, max }];
        assert_eq!(route(None, &clip(1.0), &out), Route::Requantize(CodeInfo { hi: 2, ..out.clone() }));
        assert_eq!(route(None, &clip(0.2), &out), Route::Quantize);
    }

    #[test]
    fn tables_know_the_codes_that_they_reach() {
        let input = CodeInfo { lo: 0, hi: 64, ..info(QuantScheme::signed(8), 0.125, 0) };
        let (codes, reached) = table(&[UnaryFn::Neg], &input, &info(QuantScheme::signed(8), 0.25, 0));
        assert_eq!((codes.len(), codes[128 + 64], codes[128]), (256, -32, 0));
        assert_eq!((reached.lo, reached.hi), (-32, 0));
    }

    #[test]
    fn what_is_not_finite_overflows() {
        let columns = [ColumnSums { sum: 1, magnitude: 1 }];
        let input = info(QuantScheme::signed(8), 1.0, 0);
        assert!(bias_codes(&[f64::NAN], &[1.0], &columns, &input).is_err());
        assert_eq!(bias_codes(&[2.5], &[1.0], &columns, &input).unwrap(), BiasCodes { codes: vec![2], bound: 130 });
    }
}
