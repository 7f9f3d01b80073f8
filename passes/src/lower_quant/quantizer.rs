//! A quantizer of an activation becomes `quantize`, `requantize` or `lookup`.

use qail_ir::{
    Binary, BinaryFn, Constant, DType, Graph, Lookup, NodeId, Op, Origin, QAdd, QSum, Quantize, Requantize, TensorType,
    UnaryFn, ValueId,
};

use super::{Lowering, MAX_BIAS_SHIFT, layer::checked_steps};
use crate::{
    PassContext, PassError,
    quant::{
        CodeInfo, LoweredRequantize, derived_scale,
        region::{self, ActivationQuantizer, Addend, Addition, CodesFrom, NoMultiplier, Route, SumOfCodes},
    },
    rewrite,
};

impl Lowering {
    /// Adds the counterpart of an old quantizer of an activation.
    pub(super) fn lower_quantizer(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        quantizer: &ActivationQuantizer,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let ActivationQuantizer { x, ref functions, .. } = *quantizer;
        let steps = checked_steps(graph, id, quantizer.scale)?;
        let out = quantizer.info(steps.first().copied().unwrap_or(1.0));
        match quantizer.from {
            CodesFrom::Floats => self.quantize(graph, id, x, out),
            CodesFrom::Layer(layer) if self.keeps_bias(layer, out.step) => {
                let why = "its bias is no whole number of accumulators; it is added and quantized on the host";
                cx.info(graph, layer, why);
                self.quantize(graph, id, x, out)
            }
            CodesFrom::Layer(layer) => match region::route(None, functions, &out) {
                Route::Requantize(out) => self.requantize(graph, id, layer, functions, out),
                Route::Same | Route::Lookup | Route::Quantize => {
                    let why = match out.scheme.bits {
                        ..=8 => "the functions in front leave one code; it is quantized on the host",
                        _ => "kernels make no codes of 16 bits; it is quantized on the host",
                    };
                    cx.declined(graph, id, why);
                    self.quantize(graph, id, x, out)
                }
            },
            CodesFrom::Sum(ref sum) => match region::route(None, functions, &out) {
                Route::Requantize(out) => self.sum(graph, id, sum, out),
                Route::Same | Route::Lookup | Route::Quantize => self.quantize(graph, id, x, out),
            },
            CodesFrom::Add(ref addition) => match region::route(None, functions, &out) {
                Route::Requantize(out) => self.add(graph, id, addition, out),
                Route::Same | Route::Lookup | Route::Quantize => self.quantize(graph, id, x, out),
            },
            CodesFrom::Codes(source) => {
                let (codes, info) = self.lowered(graph, source)?;
                match region::route(Some(&info), functions, &out) {
                    Route::Same => {
                        self.codes.insert(id.value(), (codes, info));
                        Ok(())
                    }
                    Route::Lookup => self.lookup(graph, id, functions, (codes, info), out),
                    Route::Requantize(_) | Route::Quantize => self.quantize(graph, id, x, out),
                }
            }
        }
    }

    /// True if a layer keeps a bias that integers would shift by too much of a step.
    fn keeps_bias(&mut self, layer: NodeId, step: f64) -> bool {
        let Some(layer) = self.layers.get_mut(&layer).filter(|_| self.is_given) else { return false };
        let keeps = layer.bias_shift(step) > MAX_BIAS_SHIFT;
        layer.report.keeps_bias |= keeps;
        keeps
    }

    /// Behind a layer.
    fn requantize(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        layer: NodeId,
        functions: &[UnaryFn],
        out: CodeInfo,
    ) -> Result<(), PassError> {
        let missing = || PassError::Internal { node: graph.node(id).name.clone(), invariant: "the layer was lowered" };
        let layer = self.layers.get_mut(&layer).ok_or_else(missing)?;
        let multipliers = region::multipliers(&layer.exit_scales, out.step).map_err(|none| {
            let NoMultiplier { channel, factor } = none;
            PassError::Multiplier { node: layer.report.name.clone(), channel, factor }
        })?;
        let m: Vec<i64> = multipliers.iter().map(|multiplier| i64::from(multiplier.m())).collect();
        let shift: Vec<i64> = multipliers.iter().map(|multiplier| i64::from(multiplier.shift())).collect();
        let name = graph.node(id).name.clone();
        let m = i32s(graph, format!("{name}.m"), &m);
        let shift = i32s(graph, format!("{name}.shift"), &shift);
        let op = Requantize { scheme: out.scheme, lo: out.lo, hi: out.hi, zero_point: out.zero_point };
        let codes = add_in_place(graph, id, Op::Requantize(op), &[layer.acc, m, shift])?;
        let s_in = layer.report.input_codes.step;
        layer.report.requantizes.push(LoweredRequantize {
            node: name,
            out: out.clone(),
            folded: functions.to_vec(),
            derived_scales: multipliers.iter().map(|&multiplier| derived_scale(multiplier, out.step, s_in)).collect(),
        });
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Behind a sum of codes.
    fn sum(&mut self, graph: &mut Graph, id: NodeId, sum: &SumOfCodes, out: CodeInfo) -> Result<(), PassError> {
        let (codes, info) = self.lowered(graph, sum.codes)?;
        let Op::Reduce(reduce) = graph.node(sum.node).op.clone() else {
            return Err(PassError::Internal {
                node: graph.node(sum.node).name.clone(),
                invariant: "a sum of codes is a reduction",
            });
        };
        let node = graph.node(sum.node).clone();
        if region::sum_bound(&info, sum.n).is_none() {
            let bound = i128::from(region::centered_bound(&info)) * sum.n as i128;
            return Err(PassError::Overflow { node: node.name, channel: 0, bound });
        }
        let op = QSum { axes: reduce.axes, keep_dims: reduce.keep_dims, zero_point: info.zero_point };
        let acc = rewrite::add(graph, &format!("{}.acc", node.name), Op::QSum(op), &[codes], node.origin)?;
        let n = graph.ty(acc).shape.last().copied().unwrap_or(1);
        let scale = region::sum_scale(info.step, sum.divisor);
        let multiplier = region::multipliers(&[scale], out.step)
            .map_err(|NoMultiplier { channel, factor }| PassError::Multiplier { node: node.name, channel, factor })?;
        let (m, shift) = multiplier.first().map_or((0, 0), |one| (i64::from(one.m()), i64::from(one.shift())));
        let name = graph.node(id).name.clone();
        let m = i32s(graph, format!("{name}.m"), &vec![m; n]);
        let shift = i32s(graph, format!("{name}.shift"), &vec![shift; n]);
        let op = Requantize { scheme: out.scheme, lo: out.lo, hi: out.hi, zero_point: out.zero_point };
        let codes = add_in_place(graph, id, Op::Requantize(op), &[acc, m, shift])?;
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Behind a sum of two values.
    fn add(&mut self, graph: &mut Graph, id: NodeId, addition: &Addition, out: CodeInfo) -> Result<(), PassError> {
        let (b, info_b) = self.lowered(graph, addition.b)?;
        let of_b = (info_b.step, region::centered_bound(&info_b));
        let (a, zero_a, scales, bound) = match addition.a {
            Addend::Codes(a) => {
                let (a, info) = self.lowered(graph, a)?;
                (a, info.zero_point, vec![info.step], region::centered_bound(&info))
            }
            Addend::Layer(layer) => {
                let missing =
                    || PassError::Internal { node: graph.node(id).name.clone(), invariant: "the layer was lowered" };
                let layer = self.layers.get(&layer).ok_or_else(missing)?;
                (layer.acc, 0, layer.exit_scales.clone(), layer.report.bound)
            }
        };
        let name = graph.node(id).name.clone();
        let region::AddNumbers { m_a, m_b, shift } =
            region::add_numbers((&scales, bound), of_b, out.step).map_err(|NoMultiplier { channel, factor }| {
                PassError::Multiplier { node: name.clone(), channel, factor }
            })?;
        let m_a: Vec<i64> = m_a.into_iter().map(i64::from).collect();
        let m_a = i32s(graph, format!("{name}.m"), &m_a);
        let m_b = i32s(graph, format!("{name}.n"), &[i64::from(m_b)]);
        let shift = i32s(graph, format!("{name}.shift"), &[i64::from(shift)]);
        let op = QAdd {
            scheme: out.scheme,
            lo: out.lo,
            hi: out.hi,
            zero_a,
            zero_b: info_b.zero_point,
            zero_point: out.zero_point,
        };
        let origin = graph.node(addition.node).origin.clone();
        let codes = add_in_place(graph, id, Op::QAdd(op), &[a, b, m_a, m_b, shift])?;
        graph.merge_origin(codes.node, &origin);
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Codes of an old value.
    fn lowered(&self, graph: &Graph, old: ValueId) -> Result<(ValueId, CodeInfo), PassError> {
        self.codes.get(&old).cloned().ok_or_else(|| PassError::Internal {
            node: graph.node(old.node).name.clone(),
            invariant: "codes are lowered before their readers",
        })
    }

    /// Behind 8-bit codes.
    fn lookup(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        functions: &[UnaryFn],
        (x, info): (ValueId, CodeInfo),
        out: CodeInfo,
    ) -> Result<(), PassError> {
        let (table, out) = region::table(functions, &info, &out);
        let table: Vec<i64> = table.into_iter().map(i64::from).collect();
        let name = graph.node(id).name.clone();
        let table = Constant::ints(TensorType::code(out.scheme, [256]), &table);
        let table = graph.add_const(format!("{name}.table"), table, Origin::default());
        let codes = add_in_place(graph, id, Op::Lookup(Lookup), &[x, table])?;
        self.tables.push((codes.node, functions.to_vec()));
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Behind floats.
    fn quantize(&mut self, graph: &mut Graph, id: NodeId, x: ValueId, out: CodeInfo) -> Result<(), PassError> {
        let name = graph.node(id).name.clone();
        let (x, factors) = match scaled_by(graph, x)? {
            // `fold-entry-steps` put the factors there.
            Some((inner, factors)) if out.step == 1.0 => (inner, Constant::f32([factors.len()], &factors)),
            _ => (x, Constant::f32([], &[region::entry_factor(out.step)])),
        };
        let factors = graph.add_const(format!("{name}.r"), factors, Origin::default());
        let op = Quantize { scheme: out.scheme, lo: out.lo, hi: out.hi, zero_point: out.zero_point };
        let codes = add_in_place(graph, id, Op::Quantize(op), &[x, factors])?;
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }
}

/// Adds a constant of 32-bit integers.
fn i32s(graph: &mut Graph, name: String, elements: &[i64]) -> ValueId {
    let constant = Constant::ints(TensorType::plain(DType::I32, [elements.len()]), elements);
    graph.add_const(name, constant, Origin::default())
}

/// Adds a node that takes the name and the origin of an old one, which stays.
fn add_in_place(graph: &mut Graph, old: NodeId, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
    let node = graph.node(old).clone();
    let new = rewrite::add(graph, &node.name, op, operands, node.origin)?;
    graph.rename(old, format!("{}.old", node.name));
    graph.rename(new.node, node.name);
    Ok(new)
}

/// The operand and the factors, if the value is `x * factors` with one constant
/// factor a feature.
fn scaled_by(graph: &Graph, value: ValueId) -> Result<Option<(ValueId, Vec<f32>)>, PassError> {
    let Op::Binary(Binary { f: BinaryFn::Mul }) = graph.op(value) else { return Ok(None) };
    let [x, factors] = graph.operands(value.node)[..] else { return Ok(None) };
    let Some(&n) = graph.ty(x).shape.last() else { return Ok(None) };
    if graph.ty(x) != graph.ty(value) || graph.const_of(factors).is_none() {
        return Ok(None);
    }
    let factors = rewrite::per_feature(graph, factors, n)?;
    Ok(factors.map(|factors| (x, factors.into_iter().map(|factor| factor as f32).collect())))
}
