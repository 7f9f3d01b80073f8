//! Lowered graphs with every tensor of codes as the real values it stands for.
//!
//! The forms `qdq`, `qcdq` and `fake-quant` are one walk over the graph; what
//! differs, how a value is rounded and how weights are held, is a [`Form`].
//!
//! `s_w' = M * s_out / s_in` is the scale that a multiplier stands for, so engine
//! and runtime round the same numbers but for the error of `f32`. An accumulator
//! that several nodes read is written once for each of them, as its multipliers,
//! and therefore `s_w'`, differ. Sums of codes have no weights that could carry
//! their multiplier: they are written with the steps of their operands, from
//! which it was rounded.

use std::collections::BTreeMap;

use qail_ir::{
    Dequantize, Elem, Graph, Linear, LinearWq, NodeId, Op, QAdd, QLinear, Quantize, Reduce, ReduceFn, Requantize,
    Unfold, ValueId,
};
use qail_passes::quant::{CodeInfo, LoweredLayer, LoweringReport};

use super::{
    ExportError, ExportOptions, ExposedKind,
    builder::{Tensor, check_size},
    conv::{self, Conv, Convs},
    described::Described,
    emit::Emitter,
    exact::multipliers,
    exposed_values, float,
    form::{Bias, CodeTable, Form, Rounded, Rounding, Weights},
    windows,
};
use crate::frontend::proto::{ModelProto, data_type};

const F32: i32 = data_type::FLOAT;

/// A multiplier is an odd number of 16 bits: it is this close to the factor that it was rounded from.
const MULTIPLIER_ERROR: f64 = 1.0 / 32768.0;

/// Writes a lowered graph in a form. `report` is that of the `lower-quant` run that made it.
pub(super) fn export(
    form: &dyn Form,
    graph: &Graph,
    report: &LoweringReport,
    options: &ExportOptions,
) -> Result<ModelProto, ExportError> {
    let shows_zero = |id: NodeId, unfold: &Unfold| match graph.ty(id.value()).elem {
        Elem::Plain(_) => unfold.fill == 0.0,
        Elem::Code(_) => {
            let info = report.codes.get(&graph.node(id).name);
            info.is_some_and(|info| f64::from(unfold.fill) == f64::from(info.zero_point))
        }
    };
    // Groups of rows do not lie along the axes of a kernel.
    let may_be_conv = |id: NodeId| match &graph.node(id).op {
        Op::LinearWq(linear) => {
            let k = graph.operands(id).get(1).and_then(|&w| graph.ty(w).shape.first().copied());
            !form.holds_groups() || k.is_some_and(|k| linear.group >= k)
        }
        _ => true,
    };
    let mut export = Export {
        form,
        emitter: Emitter::new(graph, form.name(), form.opset())?,
        report,
        layers: report.layers.iter().map(|layer| (layer.acc.as_str(), layer)).collect(),
        convs: Convs::of(graph, may_be_conv, shows_zero),
        codes: BTreeMap::new(),
        described: Described::default(),
    };
    for id in graph.topo() {
        match &graph.node(id).op {
            Op::Linear(Linear { groups: 2.., .. }) | Op::QLinear(QLinear { groups: 2.. })
                if !export.convs.layers.contains_key(&id) =>
            {
                let reason = "groups of channels are written as Conv, and its rows are no windows that a Conv has; \
                              use --format exact";
                return Err(export.emitter.unsupported(id, reason));
            }
            // Written by those that read the accumulator.
            Op::Const(_) | Op::QLinear(_) | Op::QSum(_) => {}
            _ if export.convs.inside.contains(&id) => {}
            _ => {
                let tensor = export.node(id)?;
                export.emitter.define(id, tensor);
            }
        }
    }
    let mut exposed = Vec::new();
    if options.expose {
        for (value, kind) in exposed_values(graph) {
            if kind == ExposedKind::Codes && !export.convs.inside.contains(&value.node) {
                exposed.push((export.emitter.written(value)?, value));
            }
        }
        export.described.write(&mut export.emitter.metadata);
    }
    export.emitter.finish(&exposed)
}

struct Export<'g> {
    form: &'g dyn Form,
    emitter: Emitter<'g>,
    report: &'g LoweringReport,
    /// By the name of the accumulator.
    layers: BTreeMap<&'g str, &'g LoweredLayer>,
    convs: Convs,
    /// The integer tensor of each code, where there is one.
    codes: BTreeMap<NodeId, Tensor>,
    described: Described,
}

impl<'g> Export<'g> {
    fn node(&mut self, id: NodeId) -> Result<Tensor, ExportError> {
        let graph = self.emitter.graph;
        let out = self.emitter.name_of(id);
        match &graph.node(id).op {
            Op::Quantize(quantize) => self.quantize(id, quantize),
            Op::Requantize(requantize) => self.requantize(id, requantize),
            Op::QAdd(add) => self.add(id, add),
            Op::Lookup(_) => self.lookup(id),
            Op::Dequantize(dequantize) => self.dequantize(id, dequantize),
            Op::LinearWq(linear) => self.linear_wq(id, linear),
            Op::Linear(linear) => match self.convs.layers.get(&id).cloned() {
                None => float::emit(&mut self.emitter, id, &out),
                Some(conv) => {
                    let n = graph.ty(id.value()).shape.last().copied().unwrap_or(1);
                    let w = self.emitter.operand(id, 1)?.name;
                    let w = conv::turned(&mut self.emitter, &conv, &w, n, &out);
                    self.product(id, &w, &out, (linear.act, 2))
                }
            },
            Op::Unfold(unfold) => self.unfold(id, unfold),
            // Codes are moved as the real values that they stand for.
            _ => match graph.ty(id.value()).elem {
                Elem::Code(_) => {
                    let real = self.emitter.builder.claim(&format!("{out}/real"));
                    self.described.moved(self.info(id)?, &out, &real);
                    float::emit(&mut self.emitter, id, &real)
                }
                Elem::Plain(_) => float::emit(&mut self.emitter, id, &out),
            },
        }
    }

    /// How the codes of a node read, from the report.
    fn info(&self, id: NodeId) -> Result<&'g CodeInfo, ExportError> {
        let name = &self.emitter.graph.node(id).name;
        self.report.codes.get(name).ok_or_else(|| ExportError::NotInReport { node: name.clone() })
    }

    /// Keeps what was rounded: readers take the real values.
    fn rounded(&mut self, id: NodeId, rounded: Rounded) -> Tensor {
        if let Some(codes) = rounded.codes {
            self.codes.insert(id, codes);
        }
        Tensor::new(rounded.real, F32)
    }

    fn quantize(&mut self, id: NodeId, quantize: &Quantize) -> Result<Tensor, ExportError> {
        let to = Rounding::of_entry(quantize, self.info(id)?.step);
        let out = self.emitter.name_of(id);
        let (x, r) = (self.emitter.operand(id, 0)?, self.emitter.operand(id, 1)?);
        let per_feature = !self.emitter.graph.ty(self.emitter.operand_value(id, 1)?).shape.is_empty();
        let rounded = self.form.entry(&mut self.emitter.builder, &x.name, (&r.name, per_feature), &to, &out)?;
        self.described.entry(&to, &out, &rounded.real);
        Ok(self.rounded(id, rounded))
    }

    /// A layer or a sum of codes, rounded.
    fn requantize(&mut self, id: NodeId, requantize: &Requantize) -> Result<Tensor, ExportError> {
        let to = Rounding::new(self.info(id)?, (requantize.lo, requantize.hi));
        let out = self.emitter.name_of(id);
        let acc = self.emitter.operand_value(id, 0)?;
        let numbers = multipliers(&self.emitter, id)?;
        if let Op::QSum(sum) = self.emitter.graph.op(acc) {
            let axes = sum.axes.clone();
            let real = self.sum(id, acc.node, &to, &format!("{out}/sum"))?;
            let read = self.emitter.operand_value(acc.node, 0)?;
            let rounded = self.form.round(&mut self.emitter.builder, &real, &to, &out)?;
            let shape = &self.emitter.graph.ty(read).shape;
            let source = self.emitter.graph.node(read.node).name.clone();
            self.described.sum(&to, &out, &rounded.real, (&source, sum.zero_point, shape, &axes), &numbers);
            return Ok(self.rounded(id, rounded));
        }
        let node = &self.emitter.graph.node(id).name;
        let (acc, layer) = self.layer_behind(id)?;
        let lowered = layer.requantizes.iter().find(|lowered| lowered.node == *node);
        let lowered = lowered.ok_or_else(|| ExportError::NotInReport { node: node.clone() })?;
        let scales: Vec<f64> = lowered.derived_scales.iter().map(|&scale| scale.into()).collect();
        let sum = self.layer(acc, layer, &scales, &format!("{out}/sum"))?;
        let rounded = self.form.round(&mut self.emitter.builder, &sum, &to, &out)?;
        self.described.layer(&to, &out, &rounded.real, layer, &numbers);
        Ok(self.rounded(id, rounded))
    }

    /// `sum` or mean of the real values, whichever the multiplier was rounded from.
    fn sum(&mut self, id: NodeId, acc: NodeId, to: &Rounding, out: &str) -> Result<String, ExportError> {
        let graph = self.emitter.graph;
        let Op::QSum(sum) = &graph.node(acc).op else {
            return Err(self.emitter.unsupported(id, "it sums no codes; use --format exact"));
        };
        let read = self.emitter.operand_value(acc, 0)?;
        let n: usize = sum.axes.iter().filter_map(|&axis| graph.ty(read).shape.get(axis)).product();
        let step = self.info(read.node)?.step;
        let factor = multipliers(&self.emitter, id)?.first().map_or(0.0, |one| one.factor());
        let is = |divisor: usize| (factor * to.step * divisor as f64 / step - 1.0).abs() <= MULTIPLIER_ERROR;
        let f = match (is(n), is(1)) {
            (true, _) => ReduceFn::Mean,
            (false, true) => ReduceFn::Sum,
            (false, false) => {
                return Err(self.emitter.unsupported(
                    id,
                    "its factor is neither that of a sum nor of a mean of codes; use --format exact",
                ));
            }
        };
        let x = self.emitter.operand(acc, 0)?;
        let reduce = Reduce { f, axes: sum.axes.clone(), keep_dims: sum.keep_dims };
        let name = self.emitter.builder.claim(out);
        Ok(super::shapes::emit_reduce(&mut self.emitter, &reduce, &x, &name).name)
    }

    /// The sum of two values, rounded once.
    fn add(&mut self, id: NodeId, add: &QAdd) -> Result<Tensor, ExportError> {
        let to = Rounding::new(self.info(id)?, (add.lo, add.hi));
        let out = self.emitter.name_of(id);
        let [m_a, m_b, shift] = [2, 3, 4].map(|slot| self.emitter.numbers(id, slot));
        let (m_a, m_b, shift) = (m_a?, m_b?, shift?.first().copied().unwrap_or(0.0) as i32);
        let a = self.emitter.operand_value(id, 0)?;
        let of_acc = matches!(self.emitter.graph.op(a), Op::QLinear(_));
        let behind = if of_acc { Some(self.layer_behind(id)?) } else { None };
        let left = if let Some((acc, layer)) = behind {
            let unit = to.step * 2f64.powi(-shift) / layer.input_codes.step;
            let scales: Vec<f64> =
                (0..layer.n).map(|at| m_a.get(at % m_a.len().max(1)).copied().unwrap_or(0.0) * unit).collect();
            self.layer(acc, layer, &scales, &format!("{out}/left"))?
        } else {
            self.emitter.operand(id, 0)?.name
        };
        let right = self.emitter.operand(id, 1)?.name;
        let builder = &mut self.emitter.builder;
        let sum = builder.step("Add", &[&left, &right], Vec::new(), &format!("{out}/sum"));
        let rounded = self.form.round(builder, &sum, &to, &out)?;
        let b = self.emitter.operand_value(id, 1)?;
        let name = |value: ValueId| self.emitter.graph.node(value.node).name.clone();
        let steps = [a, b].map(|value| self.report.codes.get(&name(value)).map_or(0.0, |info| info.step));
        let layer = behind.map(|(_, layer)| layer);
        let operands = [(name(a), add.zero_a), (name(b), add.zero_b)];
        self.described.add(&to, &out, &rounded.real, operands, (&m_a, &m_b, shift), (steps, layer));
        Ok(self.rounded(id, rounded))
    }

    /// The accumulator that a node reads and its layer.
    fn layer_behind(&self, id: NodeId) -> Result<(NodeId, &'g LoweredLayer), ExportError> {
        let acc = self.emitter.operand_value(id, 0)?.node;
        let name = &self.emitter.graph.node(acc).name;
        let layer = self.layers.get(name.as_str());
        layer.map(|&layer| (acc, layer)).ok_or_else(|| ExportError::NotInReport { node: name.clone() })
    }

    /// The real values of a layer; the scales say what an accumulator is worth.
    fn layer(
        &mut self,
        acc: NodeId,
        layer: &LoweredLayer,
        weight_scales: &[f64],
        out: &str,
    ) -> Result<String, ExportError> {
        let s_in = layer.input_codes.step;
        let zero_point = i64::from(layer.input_codes.zero_point);
        let stored = self.emitter.constant(acc, 2)?.all_int().map_err(|source| self.emitter.unreadable(acc, source))?;
        let bias = Bias {
            // The stored bias has the zero point of the input folded in.
            codes: stored.iter().zip(&layer.column_sums).map(|(&code, &sum)| code + zero_point * sum).collect(),
            scales: weight_scales.iter().map(|&scale| s_in * scale).collect(),
        };
        let scales = weight_scales.iter().map(|&scale| scale as f32).collect();
        let w = self.weights(acc, scales, out)?;
        let bias = self.form.bias(&mut self.emitter.builder, &bias, out)?;
        let (x, conv) = self.rows_of(acc)?;
        let builder = &mut self.emitter.builder;
        match conv {
            Some(conv) => {
                let name = builder.claim(out);
                conv.emit(builder, [&x, &w, &bias], &name);
                Ok(name)
            }
            None => {
                let products = builder.step("MatMul", &[&x, &w], Vec::new(), &format!("{out}/products"));
                Ok(builder.step("Add", &[&products, &bias], Vec::new(), out))
            }
        }
    }

    /// The first operand of a product, and how it slides over it if it is a convolution.
    fn rows_of(&mut self, product: NodeId) -> Result<(String, Option<Conv>), ExportError> {
        match self.convs.layers.get(&product).cloned() {
            None => Ok((self.emitter.operand(product, 0)?.name, None)),
            Some(conv) => Ok((self.emitter.written(conv.source)?.name, Some(conv))),
        }
    }

    /// The weights of a product with a scale a column, in the shape that it wants.
    fn weights(&mut self, product: NodeId, scales: Vec<f32>, out: &str) -> Result<String, ExportError> {
        let mut weights = self.matrix(product, scales)?;
        if let Some(conv) = self.convs.layers.get(&product) {
            let n = weights.scales.len();
            weights = Weights { shape: conv.kernel(n), codes: Conv::in_order(&weights.codes, n), axis: 0, ..weights };
        }
        self.form.weights(&mut self.emitter.builder, &weights, out)
    }

    fn matrix(&self, product: NodeId, scales: Vec<f32>) -> Result<Weights, ExportError> {
        let constant = self.emitter.constant(product, 1)?;
        let Some(scheme) = constant.ty.scheme() else {
            return Err(self.emitter.unsupported(product, "its weights are not codes"));
        };
        check_size(constant.ty.n_elements() as u64)?;
        let codes = constant.all_int().map_err(|source| self.emitter.unreadable(product, source))?;
        Ok(Weights { scheme, shape: constant.ty.shape.clone(), codes, scales, axis: 1 })
    }

    fn lookup(&mut self, id: NodeId) -> Result<Tensor, ExportError> {
        let (info, source) = (self.info(id)?, self.emitter.operand_value(id, 0)?);
        let read = self.info(source.node)?;
        let out = self.emitter.name_of(id);
        let name = &self.emitter.graph.node(id).name;
        let functions = self.report.tables.get(name);
        let functions = functions.ok_or_else(|| ExportError::NotInReport { node: name.clone() })?;
        let table = self.emitter.constant(id, 1)?;
        let table = table.all_int().map_err(|source| self.emitter.unreadable(id, source))?;
        // The entries themselves keep to a range, which only those that are reached have in the report.
        let (lo, hi) = (table.iter().min().copied(), table.iter().max().copied());
        let bound = |code: Option<i64>, other| code.and_then(|code| i32::try_from(code).ok()).unwrap_or(other);
        let lookup = CodeTable {
            read: Rounded { real: self.emitter.operand(id, 0)?.name, codes: self.codes.get(&source.node).cloned() },
            from: Rounding::new(read, (read.lo, read.hi)),
            table,
            functions,
            to: Rounding::new(info, (bound(lo, info.lo), bound(hi, info.hi))),
        };
        let rounded = self.form.lookup(&mut self.emitter.builder, &lookup, &out)?;
        let source = self.emitter.graph.node(source.node).name.clone();
        self.described.table(&lookup, &out, &rounded.real, &source);
        Ok(self.rounded(id, rounded))
    }

    /// The exit: a layer whose sums leave as floats, or codes that do.
    fn dequantize(&mut self, id: NodeId, dequantize: &Dequantize) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let scales = self.emitter.numbers(id, 1)?;
        let acc = self.emitter.operand_value(id, 0)?.node;
        let name = if matches!(self.emitter.graph.node(acc).op, Op::QLinear(_)) {
            if dequantize.zero_point != 0 {
                return Err(self.emitter.unsupported(id, "an accumulator has no zero point"));
            }
            let (acc, layer) = self.layer_behind(id)?;
            let s_in = layer.input_codes.step;
            let one = [scales.first().copied().unwrap_or(1.0)];
            let all = if scales.len() == layer.n { &scales[..] } else { &one.repeat(layer.n)[..] };
            let weight_scales: Vec<f64> = all.iter().map(|scale| scale / s_in).collect();
            self.layer(acc, layer, &weight_scales, &format!("{out}/sum"))?
        } else {
            let info = self.info(acc)?;
            if scales != [info.step] || dequantize.zero_point != info.zero_point {
                return Err(self
                    .emitter
                    .unsupported(id, "it reads codes with another step than theirs; use --format exact"));
            }
            self.emitter.operand(id, 0)?.name
        };
        self.emitter.builder.node("Identity", &[&name], Vec::new(), &out);
        Ok(Tensor::new(out, F32))
    }

    /// Weight-only: a scale a column, or a scale for some rows of a column.
    fn linear_wq(&mut self, id: NodeId, linear: &LinearWq) -> Result<Tensor, ExportError> {
        let out = self.emitter.name_of(id);
        let k = self.emitter.constant(id, 1)?.ty.shape.first().copied().unwrap_or(1);
        let scales = self.emitter.constant(id, 2)?;
        let scales = scales.all_f32().map_err(|source| self.emitter.unreadable(id, source))?;
        let w = if linear.group >= k {
            self.weights(id, scales, &out)?
        } else {
            let weights = self.matrix(id, scales)?;
            let n = weights.shape.last().copied().unwrap_or(1);
            let w = self.form.grouped(&mut self.emitter.builder, &weights, linear.group, &out)?;
            match self.convs.layers.get(&id).cloned() {
                None => w,
                Some(conv) => conv::turned(&mut self.emitter, &conv, &w, n, &out),
            }
        };
        self.product(id, &w, &out, (linear.act, 3))
    }

    /// The product of a float layer with the weights `w`, its bias and its function.
    fn product(
        &mut self,
        id: NodeId,
        w: &str,
        out: &str,
        (act, bias_slot): (Option<qail_ir::UnaryFn>, usize),
    ) -> Result<Tensor, ExportError> {
        let b = self.emitter.operand(id, bias_slot)?.name;
        let (x, conv) = self.rows_of(id)?;
        let Some(conv) = conv else {
            let builder = &mut self.emitter.builder;
            let products = builder.step("MatMul", &[&x, w], Vec::new(), &format!("{out}/products"));
            return Ok(float::biased(&mut self.emitter, &products, &b, act, out));
        };
        let builder = &mut self.emitter.builder;
        let Some(f) = act else {
            conv.emit(builder, [&x, w, &b], out);
            return Ok(Tensor::new(out, F32));
        };
        let sum = builder.claim(&format!("{out}/sum"));
        conv.emit(builder, [&x, w, &b], &sum);
        let sum = Tensor::new(sum, F32);
        Ok(super::functions::emit_unary(builder, super::functions::Math::Plain, f, &sum, out))
    }

    fn unfold(&mut self, id: NodeId, unfold: &Unfold) -> Result<Tensor, ExportError> {
        let graph = self.emitter.graph;
        let out = self.emitter.name_of(id);
        let x = self.emitter.operand(id, 0)?;
        let shape = graph.ty(self.emitter.operand_value(id, 0)?).shape.clone();
        let (name, fill) = match graph.ty(id.value()).elem {
            Elem::Plain(_) => (out, f64::from(unfold.fill)),
            Elem::Code(_) => {
                let info = self.info(id)?;
                let name = self.emitter.builder.claim(&format!("{out}/real"));
                self.described.moved(info, &out, &name);
                (name, Rounding::new(info, (info.lo, info.hi)).real(unfold.fill as i32))
            }
        };
        windows::emit(&mut self.emitter, id, unfold, (&x, &shape), fill, &name)
    }
}
