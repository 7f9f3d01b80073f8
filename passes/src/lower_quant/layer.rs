//! A `linear` on quantized operands becomes `qlinear`.

use qail_ir::{Constant, DType, FakeQuant, Graph, NodeId, Op, Origin, QLinear, TensorType, UnaryFn, ValueId};

use super::Lowering;
use crate::{
    PassContext, PassError,
    quant::{CodeInfo, LoweredLayer, is_placeholder, weight_code},
    rewrite,
};

/// A layer on codes.
pub(super) struct Layer {
    /// Its accumulators.
    pub(super) acc: ValueId,
    /// `s_in * s_w` of each channel: what one unit of the accumulator is.
    pub(super) exit_scales: Vec<f64>,
    /// The function that was fused into the `linear`.
    pub(super) act: Option<UnaryFn>,
    /// The node that gives its result as floats.
    pub(super) dequantize: Option<NodeId>,
    pub(super) report: LoweredLayer,
}

/// Quantized weights and bias of an old layer.
struct Parameters {
    quantizer: ValueId,
    fake: FakeQuant,
    k: usize,
    n: usize,
    w: Vec<f64>,
    steps: Vec<f32>,
    b: Vec<f64>,
}

impl Lowering {
    /// Adds the `qlinear` of an old `linear`, if its operands are quantized.
    pub(super) fn lower_layer(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        act: Option<UnaryFn>,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let [x, _, _] = graph.operands(id)[..] else { return Ok(()) };
        let parameters = parameters(graph, id)?;
        let input = self.codes.get(&x).cloned();
        let (Some((codes, info)), Some(parameters)) = (input, parameters) else {
            cx.declined(graph, id, "its input or its weights are not quantized; it stays in floats");
            self.float_layers.push(graph.node(id).name.clone());
            return Ok(());
        };
        let node = graph.node(id).clone();
        let Parameters { k, n, .. } = parameters;
        let scheme = parameters.fake.scheme;
        let exit_scales: Vec<f64> = parameters.steps.iter().map(|&s_w| info.step * f64::from(s_w)).collect();
        let w: Vec<i64> = codes_of(&parameters).collect();
        let (b, bound, column_sums) = bias(&node.name, &w, &parameters.b, &exit_scales, &info)?;

        let quantizer = parameters.quantizer;
        let weights = match self.weights.get(&quantizer) {
            Some(&known) => known,
            None => {
                let constant = Constant::ints(TensorType::code(scheme, [k, n]), &w);
                let old = graph.node(quantizer.node).clone();
                let weights = graph.add_const(old.name.clone(), constant, old.origin);
                graph.rename(quantizer.node, format!("{}.old", old.name));
                graph.rename(weights.node, old.name);
                self.weights.insert(quantizer, weights);
                weights
            }
        };
        let bias = Constant::ints(TensorType::plain(DType::I32, [n]), &b);
        let bias = graph.add_const(format!("{}.bias", node.name), bias, Origin::default());
        let acc_name = format!("{}.acc", node.name);
        let acc = rewrite::add(graph, &acc_name, Op::QLinear(QLinear), &[codes, weights, bias], node.origin.clone())?;
        let report = LoweredLayer {
            origin: node.origin.names().map(str::to_owned).collect(),
            acc: graph.node(acc.node).name.clone(),
            input: graph.node(codes.node).name.clone(),
            input_codes: info,
            weights: graph.node(weights.node).name.clone(),
            bias: graph.node(bias.node).name.clone(),
            weight_scheme: scheme,
            nominal_scales: parameters.steps,
            column_sums,
            k,
            n,
            bound,
            requantizes: Vec::new(),
            dequantize: None,
            name: node.name,
        };
        self.layers.insert(id, Layer { acc, exit_scales, act, dequantize: None, report });
        self.order.push(id);
        Ok(())
    }
}

/// Quantized weights and constant bias of a layer; `None` if they are not that.
fn parameters(graph: &Graph, id: NodeId) -> Result<Option<Parameters>, PassError> {
    let [_, quantizer, b] = graph.operands(id)[..] else { return Ok(None) };
    let Op::FakeQuant(fake @ FakeQuant { axis: Some(1), group: None, .. }) = graph.op(quantizer) else {
        return Ok(None);
    };
    let operands = graph.operands(quantizer.node);
    let (w, scale) = match operands[..] {
        [w, scale] => (w, scale),
        [w, scale, z] if rewrite::const_f64(graph, z)?.is_some_and(|z| z.iter().all(|z| *z == 0.0)) => (w, scale),
        _ => return Ok(None),
    };
    let [k, n] = graph.ty(w).shape[..] else { return Ok(None) };
    let (Some(elements), Some(b)) = (rewrite::const_f64(graph, w)?, rewrite::const_f64(graph, b)?) else {
        return Ok(None);
    };
    let steps = checked_steps(graph, quantizer.node, scale)?;
    Ok(Some(Parameters { quantizer, fake: fake.clone(), k, n, w: elements, steps, b }))
}

/// The steps of a quantizer: constant, calibrated, positive.
pub(super) fn checked_steps(graph: &Graph, quantizer: NodeId, scale: ValueId) -> Result<Vec<f32>, PassError> {
    let node = || graph.node(quantizer).name.clone();
    let Some(constant) = graph.const_of(scale) else {
        return Err(PassError::Unsupported { node: node(), reason: "its step is computed, not constant".to_owned() });
    };
    if is_placeholder(constant) {
        let reason = "it has no step yet; run `calibrate` first".to_owned();
        return Err(PassError::Unsupported { node: node(), reason });
    }
    let steps = constant.all_f32().map_err(|source| PassError::Const { node: node(), source })?;
    match steps.iter().position(|step| !(step.is_normal() && *step > 0.0)) {
        Some(index) => {
            Err(PassError::Step { node: node(), index, step: steps.get(index).copied().map_or(f64::NAN, f64::from) })
        }
        None => Ok(steps),
    }
}

fn codes_of(parameters: &Parameters) -> impl Iterator<Item = i64> {
    let FakeQuant { lo, hi, .. } = parameters.fake;
    let steps = parameters.steps.iter().cycle();
    parameters.w.iter().zip(steps).map(move |(&w, &step)| i64::from(weight_code(w, step, lo, hi)))
}

/// Bias codes, the largest bound of an accumulator, and the sums of the columns.
fn bias(
    node: &str,
    w: &[i64],
    b: &[f64],
    exit_scales: &[f64],
    input: &CodeInfo,
) -> Result<(Vec<i64>, i64, Vec<i64>), PassError> {
    let n = exit_scales.len();
    let mut sums = vec![0i64; n];
    let mut magnitudes = vec![0i64; n];
    for row in w.chunks_exact(n.max(1)) {
        for ((w, sum), magnitude) in row.iter().zip(&mut sums).zip(&mut magnitudes) {
            *sum += w;
            *magnitude += w.abs();
        }
    }
    let mut codes = Vec::with_capacity(n);
    let mut largest = 0i64;
    for (channel, ((b, scale), (sum, magnitude))) in
        b.iter().zip(exit_scales).zip(sums.iter().zip(&magnitudes)).enumerate()
    {
        let code = (b / scale).round_ties_even();
        // Far outside of 32 bits is as wrong as just outside; NaN is caught too.
        let code = if code.abs() < 1e18 { code as i128 } else { i128::from(i64::MAX) };
        let code = code - i128::from(input.zero_point) * i128::from(*sum);
        let bound = i128::from(*magnitude) * i128::from(input.max_abs()) + code.abs();
        match i64::try_from(bound) {
            Ok(fits) if fits <= i64::from(i32::MAX) => {
                largest = largest.max(fits);
                codes.push(code as i64);
            }
            _ => return Err(PassError::Overflow { node: node.to_owned(), channel, bound }),
        }
    }
    Ok((codes, largest, sums))
}
