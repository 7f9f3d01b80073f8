//! A `linear` on quantized operands becomes `qlinear`.

use qail_ir::{Constant, DType, FakeQuant, Graph, NodeId, Op, Origin, QLinear, TensorType, UnaryFn, ValueId};

use super::Lowering;
use crate::{
    PassError,
    quant::{
        LoweredLayer, is_placeholder,
        region::{self, BiasCodes, ColumnSums, Overflow, QuantizedLayer},
        weight_code,
    },
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

impl Layer {
    /// What rounding took from the bias of each channel.
    pub(super) fn bias_rest(&self) -> impl Iterator<Item = f64> {
        self.report.bias_rounding.iter().zip(&self.exit_scales).map(|(rest, scale)| rest * scale)
    }

    /// The mean shift of that in codes of this step.
    pub(super) fn bias_shift(&self, step: f64) -> f64 {
        self.bias_rest().map(f64::abs).sum::<f64>() / step / self.exit_scales.len().max(1) as f64
    }
}

/// Numbers of an old layer.
struct Parameters {
    w: Vec<f64>,
    steps: Vec<f32>,
    b: Vec<f64>,
}

impl Lowering {
    /// Adds the `qlinear` of an old `linear` whose operands are quantized.
    pub(super) fn lower_layer(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        quantized: &QuantizedLayer,
        act: Option<UnaryFn>,
    ) -> Result<(), PassError> {
        let missing = || PassError::Internal {
            node: graph.node(id).name.clone(),
            invariant: "the input of a layer on codes was lowered",
        };
        let input = graph.operands(id).first().and_then(|x| self.codes.get(x)).cloned();
        let (codes, info) = input.ok_or_else(missing)?;
        let parameters = Parameters::read(graph, id, quantized)?;
        let node = graph.node(id).clone();
        let QuantizedLayer { k, n, groups, quantizer, ref fake, .. } = *quantized;
        let scheme = fake.scheme;
        let exit_scales = region::exit_scales(info.step, &parameters.steps);
        let w: Vec<i64> = parameters.codes(fake).collect();
        let columns = column_sums(&w, n);
        let BiasCodes { codes: b, bound } =
            region::bias_codes(&parameters.b, &exit_scales, &columns, &info).map_err(|overflow| {
                let Overflow { channel, bound } = overflow;
                PassError::Overflow { node: node.name.clone(), channel, bound }
            })?;

        let z_in = i64::from(info.zero_point);
        let alone = b.iter().zip(&columns).map(|(&code, column)| (code + z_in * column.sum) as f64);
        let exact = parameters.b.iter().zip(&exit_scales).map(|(b, scale)| b / scale);
        let bias_rounding = exact.zip(alone).map(|(exact, alone)| exact - alone).collect();

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
        let op = Op::QLinear(QLinear { groups });
        let acc = rewrite::add(graph, &acc_name, op, &[codes, weights, bias], node.origin.clone())?;
        let report = LoweredLayer {
            origin: node.origin.names().map(str::to_owned).collect(),
            acc: graph.node(acc.node).name.clone(),
            input: graph.node(codes.node).name.clone(),
            input_codes: info,
            weights: graph.node(weights.node).name.clone(),
            bias: graph.node(bias.node).name.clone(),
            weight_scheme: scheme,
            nominal_scales: parameters.steps,
            column_sums: columns.iter().map(|column| column.sum).collect(),
            bias_rounding,
            keeps_bias: false,
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

impl Parameters {
    fn read(graph: &Graph, id: NodeId, layer: &QuantizedLayer) -> Result<Self, PassError> {
        let missing = || PassError::Internal {
            node: graph.node(id).name.clone(),
            invariant: "weights and bias of a layer on codes are constants",
        };
        let w = rewrite::const_f64(graph, layer.w)?.ok_or_else(missing)?;
        let b = rewrite::const_f64(graph, layer.bias)?.ok_or_else(missing)?;
        let steps = checked_steps(graph, layer.quantizer.node, layer.scale)?;
        Ok(Self { w, steps, b })
    }

    fn codes(&self, fake: &FakeQuant) -> impl Iterator<Item = i64> {
        let (lo, hi) = (fake.lo, fake.hi);
        let steps = self.steps.iter().cycle();
        self.w.iter().zip(steps).map(move |(&w, &step)| i64::from(weight_code(w, step, lo, hi)))
    }
}

fn column_sums(w: &[i64], n: usize) -> Vec<ColumnSums> {
    let mut sums = vec![ColumnSums::default(); n];
    for row in w.chunks_exact(n.max(1)) {
        for (w, column) in row.iter().zip(&mut sums) {
            column.sum += w;
            column.magnitude += w.abs();
        }
    }
    sums
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
    match region::wrong_step(&steps) {
        Some((index, step)) => Err(PassError::Step { node: node(), index, step: f64::from(step) }),
        None => Ok(steps),
    }
}
