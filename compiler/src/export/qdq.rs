//! The QDQ export: QuantizeLinear and DequantizeLinear around `f32` layers.
//!
//! ```text
//! x/real --MatMul-- DQ(w codes, s_w') --Add-- b --[Relu, Clip]-- Q --> name --DQ--> name/real
//! ```
//! A tensor of codes has two ONNX tensors: the codes under the name of the node
//! and, behind DequantizeLinear, their real values under `name/real`, which the
//! readers use. With [`expose`](ExportOptions::expose) the real values are
//! outputs: many engines cannot hand out 4-bit tensors, and nothing is lost.
//!
//! `s_w' = M * s_out / s_in` is the scale that the multiplier stands for, so
//! engine and runtime round the same numbers but for the error of `f32`. An
//! accumulator that several nodes read is written once for each of them, as its
//! multipliers, and therefore `s_w'`, differ.
//!
//! Tables are Gather on the codes: the table is what the runtime reads, while a
//! function behind DequantizeLinear would round again.

use std::collections::BTreeMap;

use qail_ir::{Dequantize, Elem, Graph, Linear, LinearWq, NodeId, Op, QuantScheme, Quantize, Requantize, UnaryFn};
use qail_passes::quant::{CodeInfo, LoweredLayer, LoweringReport};

use super::{
    ExportError, ExportOptions, ExposedKind,
    builder::{Builder, Tensor, check_size},
    emit::{Emitter, onnx_type},
    exposed_values,
    functions::{Math, emit_binary, emit_clip, emit_unary},
    shapes,
};
use crate::frontend::proto::{AttributeProto, ModelProto, data_type};

const F32: i32 = data_type::FLOAT;

/// Writes a lowered graph with QuantizeLinear and DequantizeLinear, opset 21.
///
/// `report` is that of the `lower-quant` run that made the graph.
pub fn qdq(graph: &Graph, report: &LoweringReport, options: &ExportOptions) -> Result<ModelProto, ExportError> {
    let layers = report.layers.iter().map(|layer| (layer.acc.as_str(), layer)).collect();
    let mut export = Qdq { emitter: Emitter::new(graph, "qdq")?, report, layers, codes: BTreeMap::new() };
    for id in graph.topo() {
        match &graph.node(id).op {
            // Written by those that read the accumulator.
            Op::Const(_) | Op::QLinear(_) => {}
            _ => {
                let tensor = export.node(id)?;
                export.emitter.define(id, tensor);
            }
        }
    }
    let mut exposed = Vec::new();
    if options.expose {
        for (value, kind) in exposed_values(graph) {
            if kind == ExposedKind::Codes {
                exposed.push((export.emitter.written(value)?, value));
            }
        }
    }
    export.emitter.finish(&exposed)
}

struct Qdq<'g> {
    emitter: Emitter<'g>,
    report: &'g LoweringReport,
    /// By the name of the accumulator.
    layers: BTreeMap<&'g str, &'g LoweredLayer>,
    /// The integer tensor of each code, where there is one.
    codes: BTreeMap<NodeId, Tensor>,
}

impl<'g> Qdq<'g> {
    fn node(&mut self, id: NodeId) -> Result<Tensor, ExportError> {
        let graph = self.emitter.graph;
        let out = self.emitter.name_of(id);
        match &graph.node(id).op {
            Op::Input(input) => match input.ty.elem {
                Elem::Plain(dtype) => Ok(Tensor::new(out, onnx_type(dtype))),
                Elem::Code(_) => Err(self.emitter.unsupported(id, "a model takes numbers, not codes")),
            },
            Op::Unary(unary) => {
                let x = self.emitter.operand(id, 0)?;
                Ok(emit_unary(&mut self.emitter.builder, Math::Plain, unary.f, &x, &out))
            }
            Op::Binary(binary) => {
                let (a, b) = (self.emitter.operand(id, 0)?, self.emitter.operand(id, 1)?);
                Ok(emit_binary(&mut self.emitter.builder, Math::Plain, binary.f, [&a, &b], &out))
            }
            Op::MatMul(_) => {
                let (a, b) = (self.emitter.operand(id, 0)?, self.emitter.operand(id, 1)?);
                self.emitter.builder.node("MatMul", &[&a.name, &b.name], Vec::new(), &out);
                Ok(Tensor::new(out, F32))
            }
            Op::Linear(Linear { groups: 2.., .. }) => Err(self
                .emitter
                .unsupported(id, "this export does not write groups of channels yet; use another format")),
            Op::Linear(linear) => self.linear(id, linear),
            Op::LinearWq(linear) => self.linear_wq(id, linear),
            Op::Reduce(reduce) => {
                let x = self.emitter.operand(id, 0)?;
                Ok(shapes::emit_reduce(&mut self.emitter, reduce, &x, &out))
            }
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_) | Op::Expand(_) | Op::Cast(_) => {
                let n_operands = graph.operands(id).len();
                let operands = (0..n_operands).map(|slot| self.emitter.operand(id, slot));
                let xs = operands.collect::<Result<Vec<_>, _>>()?;
                // Codes are moved as the real values that they stand for.
                let out = match graph.ty(id.value()).elem {
                    Elem::Code(_) => self.emitter.builder.claim(&format!("{out}/real")),
                    Elem::Plain(_) => out,
                };
                shapes::emit(&mut self.emitter, id, &xs, &out)
            }
            Op::Quantize(quantize) => self.quantize(id, quantize),
            Op::Requantize(requantize) => self.requantize(id, requantize),
            Op::Lookup(_) => self.lookup(id),
            Op::Dequantize(dequantize) => self.dequantize(id, dequantize),
            Op::FakeQuant(_) => {
                Err(self.emitter.unsupported(id, "it has no codes yet; run the pass `lower-quant` first"))
            }
            Op::Compare(_)
            | Op::Where(_)
            | Op::Gather(_)
            | Op::Scatter(_)
            | Op::ArgReduce(_)
            | Op::TopK(_)
            | Op::CumSum(_)
            | Op::Unfold(_)
            | Op::Softmax(_)
            | Op::Normalize(_)
            | Op::Attention(_)
            | Op::Rope(_)
            | Op::Film(_)
            | Op::QAdd(_)
            | Op::QSum(_) => Err(self.emitter.unsupported(id, "this export does not write it yet; use another format")),
            Op::Grad(_) => {
                Err(self.emitter.unsupported(id, "ONNX has no operation for gradients; export the graph without them"))
            }
            Op::Const(_) | Op::QLinear(_) => Err(self.emitter.unsupported(id, "it is written by its readers")),
        }
    }

    /// How the codes of a node read, from the report.
    fn info(&self, id: NodeId) -> Result<&'g CodeInfo, ExportError> {
        let name = &self.emitter.graph.node(id).name;
        self.report.codes.get(name).ok_or_else(|| ExportError::NotInReport { node: name.clone() })
    }

    /// The entry: the factor in front, then QuantizeLinear with scale 1. `x / 1`
    /// is exact, so the codes are those of the runtime.
    fn quantize(&mut self, id: NodeId, quantize: &Quantize) -> Result<Tensor, ExportError> {
        let info = self.info(id)?;
        let out = self.emitter.name_of(id);
        let (x, r) = (self.emitter.operand(id, 0)?, self.emitter.operand(id, 1)?);
        let builder = &mut self.emitter.builder;
        let scaled = builder.step("Mul", &[&x.name, &r.name], Vec::new(), &format!("{out}/scaled"));
        let range = (quantize.lo, quantize.hi);
        let clipped = clip_to_range(builder, &scaled, quantize.scheme, range, quantize.zero_point, 1.0, &out);
        let one = builder.scalar(&format!("{out}/one"), F32, 1.0);
        self.round_and_back(id, &clipped, &one, info)
    }

    /// A layer, its bias and its clamping, then QuantizeLinear.
    fn requantize(&mut self, id: NodeId, requantize: &Requantize) -> Result<Tensor, ExportError> {
        let info = self.info(id)?;
        let out = self.emitter.name_of(id);
        let node = &self.emitter.graph.node(id).name;
        let (acc, layer) = self.layer_behind(id)?;
        let lowered = layer.requantizes.iter().find(|lowered| lowered.node == *node);
        let lowered = lowered.ok_or_else(|| ExportError::NotInReport { node: node.clone() })?;
        let scales: Vec<f64> = lowered.derived_scales.iter().map(|&scale| scale.into()).collect();
        let sum = self.layer(acc, layer, &scales, &format!("{out}/sum"))?;
        let builder = &mut self.emitter.builder;
        let range = (requantize.lo, requantize.hi);
        let clipped = clip_to_range(builder, &sum, requantize.scheme, range, requantize.zero_point, info.step, &out);
        let step = builder.scalar(&format!("{out}/step"), F32, info.step);
        self.round_and_back(id, &clipped, &step, info)
    }

    /// The accumulator that a node reads and its layer.
    fn layer_behind(&self, id: NodeId) -> Result<(NodeId, &'g LoweredLayer), ExportError> {
        let acc = self.emitter.operand_value(id, 0)?.node;
        let name = &self.emitter.graph.node(acc).name;
        let layer = self.layers.get(name.as_str());
        layer.map(|&layer| (acc, layer)).ok_or_else(|| ExportError::NotInReport { node: name.clone() })
    }

    /// `MatMul(x/real, DQ(w)) + b` in `f32`; the scales say what an accumulator is worth.
    fn layer(
        &mut self,
        acc: NodeId,
        layer: &LoweredLayer,
        weight_scales: &[f64],
        out: &str,
    ) -> Result<String, ExportError> {
        let x = self.emitter.operand(acc, 0)?;
        let s_in = layer.input_codes.step;
        let zero_point = i64::from(layer.input_codes.zero_point);
        let bias: Vec<f32> = self
            .emitter
            .constant(acc, 2)?
            .all_int()
            .map_err(|source| self.emitter.unreadable(acc, source))?
            .iter()
            .zip(&layer.column_sums)
            .zip(weight_scales)
            // The stored bias has the zero point of the input folded in.
            .map(|((&code, &sum), &scale)| ((code + zero_point * sum) as f64 * (s_in * scale)) as f32)
            .collect();
        let scales: Vec<f32> = weight_scales.iter().map(|&scale| scale as f32).collect();
        let per_channel = vec![AttributeProto::int("axis", 1)];
        let scales = self.emitter.builder.f32s(&format!("{out}/scales"), &[scales.len()], &scales)?;
        let weights = self.weights(acc, 1, &scales, per_channel, out)?;
        let builder = &mut self.emitter.builder;
        let bias = builder.f32s(&format!("{out}/bias"), &[bias.len()], &bias)?;
        let products = builder.step("MatMul", &[&x.name, &weights], Vec::new(), &format!("{out}/products"));
        Ok(builder.step("Add", &[&products, &bias], Vec::new(), out))
    }

    /// Integer weights and DequantizeLinear.
    fn weights(
        &mut self,
        id: NodeId,
        slot: usize,
        scales: &str,
        attributes: Vec<AttributeProto>,
        out: &str,
    ) -> Result<String, ExportError> {
        let constant = self.emitter.constant(id, slot)?;
        let Some(scheme) = constant.ty.scheme() else {
            return Err(self.emitter.unsupported(id, "its weights are not codes"));
        };
        check_size(constant.ty.n_elements() as u64)?;
        let codes = constant.all_int().map_err(|source| self.emitter.unreadable(id, source))?;
        let shape = constant.ty.shape.clone();
        let codes = integers(&mut self.emitter.builder, &format!("{out}/codes"), scheme, &shape, &codes)?;
        let base = format!("{out}/weights");
        Ok(self.emitter.builder.step("DequantizeLinear", &[&codes, scales], attributes, &base))
    }

    /// QuantizeLinear under the name of the node and DequantizeLinear behind it.
    fn round_and_back(&mut self, id: NodeId, x: &str, step: &str, info: &CodeInfo) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let ty = integer_type(info.scheme);
        let zero_point = self.zero_point(info, info.scheme, &out)?;
        self.emitter.builder.node("QuantizeLinear", &[x, step, &zero_point], Vec::new(), &out);
        self.back(id, Tensor::new(out, ty), &zero_point, info)
    }

    fn back(&mut self, id: NodeId, codes: Tensor, zero_point: &str, info: &CodeInfo) -> Result<Tensor, ExportError> {
        let builder = &mut self.emitter.builder;
        let base = format!("{}/real", codes.name);
        let step = builder.scalar(&format!("{base}/step"), F32, info.step);
        let real = builder.step("DequantizeLinear", &[&codes.name, &step, zero_point], Vec::new(), &base);
        self.codes.insert(id, codes);
        Ok(Tensor::new(real, F32))
    }

    fn zero_point(&mut self, info: &CodeInfo, scheme: QuantScheme, out: &str) -> Result<String, ExportError> {
        let base = format!("{out}/zero_point");
        integers(&mut self.emitter.builder, &base, scheme, &[], &[info.zero_point.into()])
    }

    /// The codes of an operand; values that were only moved are rounded once
    /// more, which changes nothing as they lie on the grid.
    fn codes_of(&mut self, id: NodeId, slot: usize) -> Result<(Tensor, &'g CodeInfo), ExportError> {
        let node = self.emitter.operand_value(id, slot)?.node;
        let info = self.info(node)?;
        if let Some(codes) = self.codes.get(&node) {
            return Ok((codes.clone(), info));
        }
        let real = self.emitter.operand(id, slot)?;
        let base = format!("{}/codes", real.name);
        let zero_point = self.zero_point(info, info.scheme, &base)?;
        let step = self.emitter.builder.scalar(&format!("{base}/step"), F32, info.step);
        let inputs = [real.name.as_str(), &step, &zero_point];
        let name = self.emitter.builder.step("QuantizeLinear", &inputs, Vec::new(), &base);
        Ok((Tensor::new(name, integer_type(info.scheme)), info))
    }

    /// Gather on the codes. The table has 8-bit entries even if its codes have 4.
    fn lookup(&mut self, id: NodeId) -> Result<Tensor, ExportError> {
        let info = self.info(id)?;
        let out = self.emitter.name_of(id);
        let (x, x_info) = self.codes_of(id, 0)?;
        let table = self.emitter.constant(id, 1)?;
        let table = table.all_int().map_err(|source| self.emitter.unreadable(id, source))?;
        let entries = QuantScheme { bits: 8, signed: info.scheme.signed };
        let lowest = i64::from(x_info.scheme.lo());
        let zero_point = self.zero_point(info, entries, &out)?;
        let builder = &mut self.emitter.builder;
        let table = integers(builder, &format!("{out}/table"), entries, &[table.len()], &table)?;
        let index = builder.cast(&x, data_type::INT64, &format!("{out}/index"));
        let index = if lowest == 0 {
            index.name
        } else {
            let lowest = builder.i64s(&format!("{out}/lowest"), &[lowest]);
            builder.step("Sub", &[&index.name, &lowest], Vec::new(), &format!("{out}/index"))
        };
        builder.node("Gather", &[&table, &index], vec![AttributeProto::int("axis", 0)], &out);
        self.back(id, Tensor::new(out, integer_type(entries)), &zero_point, info)
    }

    /// The exit: a layer whose sums leave as floats, or codes that do.
    fn dequantize(&mut self, id: NodeId, dequantize: &Dequantize) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let scales = self.emitter.numbers(id, 1)?;
        let acc = self.emitter.operand_value(id, 0)?.node;
        if matches!(self.emitter.graph.node(acc).op, Op::QLinear(_)) {
            if dequantize.zero_point != 0 {
                return Err(self.emitter.unsupported(id, "an accumulator has no zero point"));
            }
            let (acc, layer) = self.layer_behind(id)?;
            let s_in = layer.input_codes.step;
            let one = [scales.first().copied().unwrap_or(1.0)];
            let all = if scales.len() == layer.n { &scales[..] } else { &one.repeat(layer.n)[..] };
            let weight_scales: Vec<f64> = all.iter().map(|scale| scale / s_in).collect();
            let name = self.layer(acc, layer, &weight_scales, &format!("{out}/sum"))?;
            self.emitter.builder.node("Identity", &[&name], Vec::new(), &out);
            return Ok(Tensor::new(out, F32));
        }
        let (codes, info) = self.codes_of(id, 0)?;
        let shape: &[usize] = if scales.len() == 1 { &[] } else { &[scales.len()] };
        let steps: Vec<f32> = scales.iter().map(|&scale| scale as f32).collect();
        let zero_points = vec![i64::from(dequantize.zero_point); steps.len()];
        let held = QuantScheme { bits: if is_4_bit(codes.ty) { 4 } else { info.scheme.bits.max(8) }, ..info.scheme };
        let builder = &mut self.emitter.builder;
        let zero_point = integers(builder, &format!("{out}/zero_point"), held, shape, &zero_points)?;
        let steps = builder.f32s(&format!("{out}/step"), shape, &steps)?;
        builder.node(
            "DequantizeLinear",
            &[&codes.name, &steps, &zero_point],
            vec![AttributeProto::int("axis", -1)],
            &out,
        );
        Ok(Tensor::new(out, F32))
    }

    fn linear(&mut self, id: NodeId, linear: &Linear) -> Result<Tensor, ExportError> {
        let w = self.emitter.operand(id, 1)?;
        self.float_layer(id, &w.name, linear.act, 2)
    }

    /// Weight-only: DequantizeLinear by blocks of rows, or by channel.
    fn linear_wq(&mut self, id: NodeId, linear: &LinearWq) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let k = self.emitter.constant(id, 1)?.ty.shape.first().copied().unwrap_or(1);
        let scales = self.emitter.constant(id, 2)?;
        let steps = scales.all_f32().map_err(|source| self.emitter.unreadable(id, source))?;
        let builder = &mut self.emitter.builder;
        let (shape, attributes) = if linear.group >= k {
            (vec![steps.len()], vec![AttributeProto::int("axis", 1)])
        } else {
            let block = AttributeProto::int("block_size", linear.group as i64);
            (scales.ty.shape.clone(), vec![AttributeProto::int("axis", 0), block])
        };
        let steps = builder.f32s(&format!("{out}/scales"), &shape, &steps)?;
        let weights = self.weights(id, 1, &steps, attributes, &out)?;
        self.float_layer(id, &weights, linear.act, 3)
    }

    fn float_layer(
        &mut self,
        id: NodeId,
        w: &str,
        act: Option<UnaryFn>,
        bias_slot: usize,
    ) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let (x, b) = (self.emitter.operand(id, 0)?, self.emitter.operand(id, bias_slot)?);
        let builder = &mut self.emitter.builder;
        let products = builder.step("MatMul", &[&x.name, w], Vec::new(), &format!("{out}/products"));
        let Some(f) = act else {
            builder.node("Add", &[&products, &b.name], Vec::new(), &out);
            return Ok(Tensor::new(out, F32));
        };
        let sum = builder.step("Add", &[&products, &b.name], Vec::new(), &format!("{out}/sum"));
        Ok(emit_unary(builder, Math::Plain, f, &Tensor::new(sum, F32), &out))
    }
}

/// Clamps real values to a range of codes where QuantizeLinear would not: the
/// range is narrower than the type. A lower bound of zero is written as Relu.
fn clip_to_range(
    builder: &mut Builder,
    x: &str,
    scheme: QuantScheme,
    (lo, hi): (i32, i32),
    zero_point: i32,
    step: f64,
    out: &str,
) -> String {
    let held = held_scheme(scheme);
    let bound = |code: i32| f64::from(((code - zero_point) as f64 * step) as f32);
    let (mut below, above) = (lo > held.lo(), hi < held.hi());
    let mut x = x.to_owned();
    if below && lo == zero_point {
        x = builder.step("Relu", &[&x], Vec::new(), &format!("{out}/relu"));
        below = false;
    }
    if !below && !above {
        return x;
    }
    let name = builder.claim(&format!("{out}/clip"));
    let lo = if below { bound(lo) } else { f64::NEG_INFINITY };
    let hi = if above { bound(hi) } else { f64::INFINITY };
    emit_clip(builder, &Tensor::new(x, F32), lo, hi, &name);
    name
}

/// The codes that the ONNX type of a scheme holds: 2 and 3 bits live in 4.
fn held_scheme(scheme: QuantScheme) -> QuantScheme {
    QuantScheme { bits: scheme.bits.max(4), ..scheme }
}

fn integer_type(scheme: QuantScheme) -> i32 {
    match (scheme.bits, scheme.signed) {
        (..=4, true) => data_type::INT4,
        (..=4, false) => data_type::UINT4,
        (5..=8, true) => data_type::INT8,
        (5..=8, false) => data_type::UINT8,
        (_, true) => data_type::INT16,
        (_, false) => data_type::UINT16,
    }
}

fn is_4_bit(ty: i32) -> bool {
    matches!(ty, data_type::INT4 | data_type::UINT4)
}

/// An integer constant. Two 4-bit codes share a byte, the first one in its low half.
fn integers(
    builder: &mut Builder,
    base: &str,
    scheme: QuantScheme,
    shape: &[usize],
    codes: &[i64],
) -> Result<String, ExportError> {
    let ty = integer_type(scheme);
    builder.make_room(codes.len(), scheme.size_bytes())?;
    let bytes: Vec<u8> = if is_4_bit(ty) {
        codes.chunks(2).map(|pair| pair.iter().rev().fold(0, |byte, &code| byte << 4 | (code as u8 & 0xF))).collect()
    } else if scheme.bits <= 8 {
        codes.iter().map(|&code| code as u8).collect()
    } else {
        codes.iter().flat_map(|&code| (code as u16).to_le_bytes()).collect()
    };
    Ok(builder.raw(base, ty, shape, bytes))
}
