//! What is known about quantized values and layers beside the graph.

use std::collections::BTreeMap;

use qail_ir::{QuantScheme, UnaryFn};

/// What `calibrate` saw of one quantized value and what it chose.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueStats {
    /// Numbers seen.
    pub n: u64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Mean of the squares.
    pub mean_square: f64,
    /// Width and sign of the chosen codes.
    pub scheme: QuantScheme,
    /// The chosen steps: one, or one a feature.
    pub steps: Vec<f32>,
    /// Code of zero.
    pub zero_point: i32,
    /// Mean square error of the codes on the data (for a curved activation's
    /// operand: behind the activation).
    pub mse: f64,
}

impl ValueStats {
    /// Signal to quantization noise in dB; infinite without noise.
    pub fn sqnr_db(&self) -> f64 {
        if self.mse > 0.0 { 10.0 * libm::log10(self.mean_square / self.mse) } else { f64::INFINITY }
    }
}

/// How a tensor of codes reads as real numbers: `(code - zero_point) * step`.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeInfo {
    /// Width and sign.
    pub scheme: QuantScheme,
    /// The step.
    pub step: f64,
    /// Code of zero.
    pub zero_point: i32,
    /// Smallest code that occurs.
    pub lo: i32,
    /// Largest code that occurs.
    pub hi: i32,
}

impl CodeInfo {
    /// The largest magnitude of a code.
    pub fn max_abs(&self) -> i64 {
        i64::from(self.lo).abs().max(i64::from(self.hi).abs())
    }
}

/// One requantization of an accumulator.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredRequantize {
    /// Name of the `requantize` node.
    pub node: String,
    /// Codes that it makes.
    pub out: CodeInfo,
    /// Clamping functions that were folded into its range, in order.
    pub folded: Vec<UnaryFn>,
    /// `M * s_out / s_in` of each channel: see [`derived_scale`](super::derived_scale).
    pub derived_scales: Vec<f32>,
}

/// One layer that runs on codes.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredLayer {
    /// Name of the `linear` that it was.
    pub name: String,
    /// Names of the source model's nodes.
    pub origin: Vec<String>,
    /// Name of the `qlinear` node.
    pub acc: String,
    /// Name of the node whose codes it reads.
    pub input: String,
    /// Those codes.
    pub input_codes: CodeInfo,
    /// Name of the constant of weight codes `[K, N]`.
    pub weights: String,
    /// Name of the constant of bias codes `[N]`, the input's zero point folded in.
    pub bias: String,
    /// Width and sign of the weights.
    pub weight_scheme: QuantScheme,
    /// Steps of the weights before multipliers were rounded.
    pub nominal_scales: Vec<f32>,
    /// Sum of each column of weight codes: `bias + zero_point * sum` is the bias alone.
    pub column_sums: Vec<i64>,
    /// What rounding took from the bias of each channel, in accumulators: at most 0.5.
    pub bias_rounding: Vec<f64>,
    /// True if that is added behind the layer, in floats.
    pub keeps_bias: bool,
    /// Input features.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// Largest magnitude that an accumulator may reach, over all channels.
    pub bound: i64,
    /// Requantizations of the accumulator; none for a layer that only leaves.
    pub requantizes: Vec<LoweredRequantize>,
    /// Name of the `dequantize` node, if the result also leaves as floats.
    pub dequantize: Option<String>,
}

/// What `lower-quant` did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoweringReport {
    /// Layers on codes, operands first.
    pub layers: Vec<LoweredLayer>,
    /// Every tensor of codes by the name of its node.
    pub codes: BTreeMap<String, CodeInfo>,
    /// What each table was made from, by the name of its node: functions of one number, first one first.
    pub tables: BTreeMap<String, Vec<UnaryFn>>,
    /// Layers that stayed in floats.
    pub float_layers: Vec<String>,
    /// Sums of codes: residual additions and average pools, with the width of their results.
    pub sums: Vec<(String, QuantScheme)>,
    /// Everything else that computes in floats behind the first codes, by name, with its operation:
    /// norms, softmax, products of two values.
    pub islands: Vec<(String, String)>,
}

impl LoweringReport {
    /// Mean bits of a weight over the layers on codes; `None` without any.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let weights: f64 = self.layers.iter().map(|layer| layer.k as f64 * layer.n as f64).sum();
        let bits: f64 =
            self.layers.iter().map(|layer| layer.k as f64 * layer.n as f64 * f64::from(layer.weight_scheme.bits)).sum();
        (weights > 0.0).then_some(bits / weights)
    }
}
