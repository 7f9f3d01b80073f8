//! The exact export: integers in `f64`.
//!
//! Every code and accumulator is an `f64` tensor that holds an integer. Sums of
//! products stay below 2^31 (proven when the graph was lowered), so they are
//! exact in any order; `acc * m` needs at most 31 + 16 = 47 bits, so `acc * M`
//! with `M = m * 2^-shift` is exact as well.
//!
//! Requantization adds half and shifts, ONNX's `Round` rounds ties to even. They
//! differ on ties alone, and `m` is odd: a tie needs `acc = j * 2^(shift-1)`
//! with an odd `j`, hence `|acc * M| >= m / 2 >= 2^14`, which both clamp to the
//! same end of an 8-bit range. Wider results are refused.

use qail_ir::{
    Dequantize, Graph, Linear, LinearWq, NodeId, Op, QAdd, QLinear, QSum, Quantize, Reduce, ReduceFn, Requantize,
    UnaryFn, ValueId, fixed::Multiplier,
};

use super::{
    ExportError, ExportOptions, OPSET,
    builder::{Tensor, check_size},
    emit::Emitter,
    exposed_values, float,
    functions::{Math, emit_binary, emit_clip, emit_unary, is_precise, round_to_f32},
    shapes,
};
use crate::frontend::proto::{AttributeProto, ModelProto, data_type};

const F64: i32 = data_type::DOUBLE;
const F32: i32 = data_type::FLOAT;

/// Writes a lowered graph so that ONNX Runtime gives every code and accumulator.
///
/// Codes are `f64` tensors under the names of their nodes. Functions behind the
/// exit go through `f64` and are rounded once. Float layers are sums in
/// `f64`, close to ours but not equal: the metadata entry
/// [`INEXACT_KEY`](super::INEXACT_KEY) lists them.
pub fn exact(graph: &Graph, options: &ExportOptions) -> Result<ModelProto, ExportError> {
    let mut emitter = Emitter::new(graph, "exact", OPSET)?;
    let mut exposed = Vec::new();
    for id in graph.topo() {
        if matches!(graph.node(id).op, Op::Const(_)) {
            continue;
        }
        let tensor = emit_node(&mut emitter, id)?;
        emitter.define(id, tensor);
    }
    if options.expose {
        for (value, _) in exposed_values(graph) {
            exposed.push((Tensor::new(emitter.name_of(value.node), F64), value));
        }
    }
    emitter.finish(&exposed)
}

fn emit_node(emitter: &mut Emitter<'_>, id: NodeId) -> Result<Tensor, ExportError> {
    let graph = emitter.graph;
    let out = emitter.name_of(id);
    match &graph.node(id).op {
        Op::Unary(unary) => {
            let x = emitter.operand(id, 0)?;
            if !is_precise(unary.f) {
                emitter.mark_inexact(id);
            }
            Ok(emit_unary(&mut emitter.builder, Math::Precise, unary.f, &x, &out))
        }
        Op::Binary(binary) => {
            let (a, b) = (emitter.operand(id, 0)?, emitter.operand(id, 1)?);
            Ok(emit_binary(&mut emitter.builder, Math::Precise, binary.f, [&a, &b], &out))
        }
        Op::MatMul(_) => {
            let operands = [emitter.operand(id, 0)?, emitter.operand(id, 1)?];
            let [a, b] = operands.map(|x| emitter.builder.cast(&x, F64, &format!("{out}/x64")));
            let sum = emitter.builder.step("MatMul", &[&a.name, &b.name], Vec::new(), &format!("{out}/f64"));
            emitter.mark_inexact(id);
            round_to_f32(&mut emitter.builder, &sum, &out);
            Ok(Tensor::new(out, F32))
        }
        // `expand-groups` takes them apart where they stay in floats.
        Op::Linear(Linear { groups: 2.., .. }) => {
            Err(emitter.unsupported(id, "groups of channels in floats are not written as one layer"))
        }
        Op::QLinear(QLinear { groups: groups @ 2.. }) => emit_groups(emitter, id, *groups),
        Op::Linear(linear) => {
            let w = emitter.operand_value(id, 1)?;
            let w = emitter.operand_as_f64(id, 1, w)?;
            emit_float_linear(emitter, id, &w, linear.act, 2)
        }
        Op::LinearWq(linear) => {
            let w = dequantized_weights(emitter, id, linear)?;
            emit_float_linear(emitter, id, &w, linear.act, 3)
        }
        Op::Reduce(reduce) => {
            let x = emitter.operand(id, 0)?;
            if !matches!(reduce.f, ReduceFn::Min | ReduceFn::Max) {
                emitter.mark_inexact(id);
            }
            Ok(shapes::emit_reduce(emitter, reduce, &x, &out))
        }
        Op::Quantize(quantize) => emit_quantize(emitter, id, quantize),
        Op::QLinear(_) => {
            let x = emitter.operand(id, 0)?;
            let w = emitter.operand_value(id, 1)?;
            let w = emitter.operand_as_f64(id, 1, w)?;
            let b = emitter.operand_value(id, 2)?;
            let b = emitter.operand_as_f64(id, 2, b)?;
            let sum = emitter.builder.step("MatMul", &[&x.name, &w.name], Vec::new(), &format!("{out}/products"));
            emitter.builder.node("Add", &[&sum, &b.name], Vec::new(), &out);
            Ok(Tensor::new(out, F64))
        }
        Op::Requantize(requantize) => emit_requantize(emitter, id, requantize),
        Op::Lookup(_) => emit_lookup(emitter, id),
        Op::Dequantize(dequantize) => emit_dequantize(emitter, id, dequantize),
        Op::QAdd(add) => emit_add(emitter, id, add),
        Op::QSum(sum) => emit_sum(emitter, id, sum),
        // Nothing is rounded here, or it is refused.
        Op::Input(_)
        | Op::Const(_)
        | Op::FakeQuant(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Expand(_)
        | Op::Cast(_)
        | Op::Unfold(_)
        | Op::Gather(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Scatter(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::Grad(_) => float::emit(emitter, id, &out),
        // In the arithmetic of the engine.
        Op::CumSum(_) | Op::Softmax(_) | Op::Normalize(_) | Op::Attention(_) | Op::Rope(_) | Op::Film(_) => {
            emitter.mark_inexact(id);
            float::emit(emitter, id, &out)
        }
    }
}

impl Emitter<'_> {
    /// An operand as `f64`: constants are written so, others converted.
    fn operand_as_f64(&mut self, id: NodeId, slot: usize, value: ValueId) -> Result<Tensor, ExportError> {
        if self.graph.const_of(value).is_some() {
            return self.constant_as(id, value, F64);
        }
        let x = self.operand(id, slot)?;
        let base = format!("{}/x64", x.name);
        Ok(self.builder.cast(&x, F64, &base))
    }
}

/// A layer in groups: `x[.., G, 1, K] * w[G, K, N / G]`, then `[.., N]`.
fn emit_groups(emitter: &mut Emitter<'_>, id: NodeId, groups: usize) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let x = emitter.operand(id, 0)?;
    let constant = emitter.constant(id, 1)?;
    check_size(constant.ty.n_elements() as u64)?;
    let &[k, n] = &constant.ty.shape[..] else {
        return Err(emitter.unsupported(id, "its weights are no matrix"));
    };
    let w = constant.all_int().map_err(|source| emitter.unreadable(id, source))?;
    let of_group = n / groups.max(1);
    let at = |g: usize| (0..k).flat_map(move |row| (0..of_group).map(move |column| row * n + g * of_group + column));
    let w: Vec<f64> = (0..groups).flat_map(at).map(|i| w.get(i).copied().unwrap_or(0) as f64).collect();
    let b = emitter.operand_value(id, 2)?;
    let b = emitter.operand_as_f64(id, 2, b)?;
    let n_lead = emitter.graph.ty(id.value()).shape.len().saturating_sub(1);
    let builder = &mut emitter.builder;
    // 0 keeps the extent of the operand.
    let apart = [&vec![0; n_lead][..], &[groups as i64, 1, k as i64]].concat();
    let apart = builder.i64s(&format!("{out}/apart"), &apart);
    let rows = builder.step("Reshape", &[&x.name, &apart], Vec::new(), &format!("{out}/rows"));
    let w = builder.f64s(&format!("{out}/groups"), &[groups, k, of_group], &w)?;
    let products = builder.step("MatMul", &[&rows, &w], Vec::new(), &format!("{out}/products"));
    let shape = builder.i64s(&format!("{out}/shape"), &[&vec![0; n_lead][..], &[n as i64]].concat());
    let sum = builder.step("Reshape", &[&products, &shape], Vec::new(), &format!("{out}/sums"));
    builder.node("Add", &[&sum, &b.name], Vec::new(), &out);
    Ok(Tensor::new(out, F64))
}

/// `clamp(rne(x * r) + z)`: the product in `f32`, where `r` is a power of two and
/// the runtime computes it; everything behind the rounding in `f64`.
fn emit_quantize(emitter: &mut Emitter<'_>, id: NodeId, quantize: &Quantize) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let (x, r) = (emitter.operand(id, 0)?, emitter.operand(id, 1)?);
    let builder = &mut emitter.builder;
    let scaled = builder.step("Mul", &[&x.name, &r.name], Vec::new(), &format!("{out}/scaled"));
    let rounded = builder.step("Round", &[&scaled], Vec::new(), &format!("{out}/rounded"));
    let code = builder.cast(&Tensor::new(rounded, F32), F64, &format!("{out}/f64"));
    emit_offset_and_clip(emitter, code, (quantize.zero_point, quantize.lo, quantize.hi), out)
}

/// `floor(((a - zero_a) m_a + (b - zero_b) m_b + 2^(shift-1)) 2^-shift)`: below `2^52`, so
/// that every step is exact.
fn emit_add(emitter: &mut Emitter<'_>, id: NodeId, add: &QAdd) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let mut terms = Vec::with_capacity(2);
    for (slot, zero, name) in [(0, add.zero_a, "left"), (1, add.zero_b, "right")] {
        let x = emitter.operand_value(id, slot)?;
        let x = emitter.operand_as_f64(id, slot, x)?;
        let m = emitter.numbers(id, slot + 2)?;
        let builder = &mut emitter.builder;
        let m = builder.f64s(&format!("{out}/{name}/m"), &[m.len()], &m)?;
        let zero = builder.scalar(&format!("{out}/{name}/zero"), F64, zero.into());
        let centred = builder.step("Sub", &[&x.name, &zero], Vec::new(), &format!("{out}/{name}/centred"));
        terms.push(builder.step("Mul", &[&centred, &m], Vec::new(), &format!("{out}/{name}")));
    }
    let shift = emitter.numbers(id, 4)?.first().copied().unwrap_or(1.0) as i32;
    let [a, b] = [0, 1].map(|at| terms.get(at).map(String::as_str).unwrap_or_default());
    let builder = &mut emitter.builder;
    let sum = builder.step("Add", &[a, b], Vec::new(), &format!("{out}/sum"));
    let half = builder.scalar(&format!("{out}/half"), F64, 2f64.powi(shift - 1));
    let sum = builder.step("Add", &[&sum, &half], Vec::new(), &format!("{out}/raised"));
    let unit = builder.scalar(&format!("{out}/unit"), F64, 2f64.powi(-shift));
    let scaled = builder.step("Mul", &[&sum, &unit], Vec::new(), &format!("{out}/scaled"));
    let floor = builder.step("Floor", &[&scaled], Vec::new(), &format!("{out}/floor"));
    emit_offset_and_clip(emitter, Tensor::new(floor, F64), (add.zero_point, add.lo, add.hi), out)
}

/// `sum(q - zero_point)`.
fn emit_sum(emitter: &mut Emitter<'_>, id: NodeId, sum: &QSum) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let x = emitter.operand_value(id, 0)?;
    let x = emitter.operand_as_f64(id, 0, x)?;
    let builder = &mut emitter.builder;
    let zero = builder.scalar(&format!("{out}/zero_point"), F64, sum.zero_point.into());
    let centred = builder.step("Sub", &[&x.name, &zero], Vec::new(), &format!("{out}/centred"));
    let reduce = Reduce { f: ReduceFn::Sum, axes: sum.axes.clone(), keep_dims: sum.keep_dims };
    Ok(shapes::emit_reduce(emitter, &reduce, &Tensor::new(centred, F64), &out))
}

fn emit_requantize(emitter: &mut Emitter<'_>, id: NodeId, requantize: &Requantize) -> Result<Tensor, ExportError> {
    if requantize.scheme.bits > 8 {
        return Err(emitter.unsupported(id, "codes of more than 8 bits may round ties differently"));
    }
    let out = emitter.name_of(id);
    let acc = emitter.operand_value(id, 0)?;
    let acc = emitter.operand_as_f64(id, 0, acc)?;
    let factors: Vec<f64> = multipliers(emitter, id)?.into_iter().map(Multiplier::factor).collect();
    let factors = emitter.builder.f64s(&format!("{out}/M"), &[factors.len()], &factors)?;
    let builder = &mut emitter.builder;
    let scaled = builder.step("Mul", &[&acc.name, &factors], Vec::new(), &format!("{out}/scaled"));
    let rounded = builder.step("Round", &[&scaled], Vec::new(), &format!("{out}/rounded"));
    let range = (requantize.zero_point, requantize.lo, requantize.hi);
    emit_offset_and_clip(emitter, Tensor::new(rounded, F64), range, out)
}

/// The multipliers of a `requantize`, one a channel.
pub(super) fn multipliers(emitter: &Emitter<'_>, id: NodeId) -> Result<Vec<Multiplier>, ExportError> {
    let (ms, shifts) = (emitter.numbers(id, 1)?, emitter.numbers(id, 2)?);
    let pairs = ms.iter().zip(&shifts).enumerate();
    pairs
        .map(|(channel, (&m, &shift))| {
            let exact = u32::try_from(m as i64).ok().zip(u32::try_from(shift as i64).ok());
            exact.and_then(|(m, shift)| Multiplier::new(m, shift)).ok_or_else(|| ExportError::Multiplier {
                node: emitter.graph.node(id).name.clone(),
                channel,
                m: m as i64,
                shift: shift as i64,
            })
        })
        .collect()
}

fn emit_offset_and_clip(
    emitter: &mut Emitter<'_>,
    code: Tensor,
    (zero_point, lo, hi): (i32, i32, i32),
    out: String,
) -> Result<Tensor, ExportError> {
    let builder = &mut emitter.builder;
    let code = if zero_point == 0 {
        code
    } else {
        let offset = builder.scalar(&format!("{out}/zero_point"), F64, zero_point.into());
        let moved = builder.step("Add", &[&code.name, &offset], Vec::new(), &format!("{out}/moved"));
        Tensor::new(moved, F64)
    };
    emit_clip(builder, &code, lo.into(), hi.into(), &out);
    Ok(Tensor::new(out, F64))
}

/// `table[code - lowest code]`.
fn emit_lookup(emitter: &mut Emitter<'_>, id: NodeId) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let x = emitter.operand(id, 0)?;
    let x_value = emitter.operand_value(id, 0)?;
    let Some(scheme) = emitter.graph.ty(x_value).scheme() else {
        return Err(emitter.unsupported(id, "a table is read by codes"));
    };
    let table = emitter.numbers(id, 1)?;
    let table = emitter.builder.f64s(&format!("{out}/table"), &[table.len()], &table)?;
    let builder = &mut emitter.builder;
    let lowest = builder.scalar(&format!("{out}/lowest"), F64, scheme.lo().into());
    let index = builder.step("Sub", &[&x.name, &lowest], Vec::new(), &format!("{out}/index"));
    let index = builder.cast(&Tensor::new(index, F64), data_type::INT64, &format!("{out}/index"));
    builder.node("Gather", &[&table, &index.name], vec![AttributeProto::int("axis", 0)], &out);
    Ok(Tensor::new(out, F64))
}

/// `((q - z) as f64 * s) as f32`: one rounding in each step, as in the runtime.
fn emit_dequantize(emitter: &mut Emitter<'_>, id: NodeId, dequantize: &Dequantize) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let q = emitter.operand_value(id, 0)?;
    let mut q = emitter.operand_as_f64(id, 0, q)?;
    let s = emitter.operand_value(id, 1)?;
    let s = emitter.operand_as_f64(id, 1, s)?;
    let builder = &mut emitter.builder;
    if dequantize.zero_point != 0 {
        let offset = builder.scalar(&format!("{out}/zero_point"), F64, dequantize.zero_point.into());
        q.name = builder.step("Sub", &[&q.name, &offset], Vec::new(), &format!("{out}/moved"));
    }
    let wide = builder.step("Mul", &[&q.name, &s.name], Vec::new(), &format!("{out}/f64"));
    round_to_f32(builder, &wide, &out);
    Ok(Tensor::new(out, F32))
}

/// A float layer, summed in `f64` and rounded once.
fn emit_float_linear(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    w: &Tensor,
    act: Option<UnaryFn>,
    bias_slot: usize,
) -> Result<Tensor, ExportError> {
    let out = emitter.name_of(id);
    let x = emitter.operand_value(id, 0)?;
    let x = emitter.operand_as_f64(id, 0, x)?;
    let b = emitter.operand_value(id, bias_slot)?;
    let b = emitter.operand_as_f64(id, bias_slot, b)?;
    emitter.mark_inexact(id);
    let builder = &mut emitter.builder;
    let products = builder.step("MatMul", &[&x.name, &w.name], Vec::new(), &format!("{out}/products"));
    let sum = builder.step("Add", &[&products, &b.name], Vec::new(), &format!("{out}/sum"));
    match act {
        None => {
            round_to_f32(builder, &sum, &out);
            Ok(Tensor::new(out, F32))
        }
        Some(f) => {
            let before = builder.claim(&format!("{out}/before"));
            round_to_f32(builder, &sum, &before);
            Ok(emit_unary(builder, Math::Precise, f, &Tensor::new(before, F32), &out))
        }
    }
}

/// `w[k, n] * s[k / G, n]` in `f64`, exact.
fn dequantized_weights(emitter: &mut Emitter<'_>, id: NodeId, linear: &LinearWq) -> Result<Tensor, ExportError> {
    let shape = emitter.constant(id, 1)?.ty.shape.clone();
    let n_elements = emitter.constant(id, 1)?.ty.n_elements();
    super::builder::check_size((n_elements as u64).saturating_mul(8))?;
    let (w, s) = (emitter.numbers(id, 1)?, emitter.numbers(id, 2)?);
    let n = shape.last().copied().unwrap_or(1).max(1);
    let group = linear.group.max(1);
    let real: Vec<f64> = w
        .iter()
        .enumerate()
        .map(|(at, code)| code * s.get(at / n / group * n + at % n).copied().unwrap_or(0.0))
        .collect();
    let name = emitter.builder.f64s(&format!("{}/weights", emitter.name_of(id)), &shape, &real)?;
    Ok(Tensor::new(name, F64))
}
