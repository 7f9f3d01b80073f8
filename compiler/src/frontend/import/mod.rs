//! From nodes to operations, one file for each family of operators.
//!
//! Nodes come operands first. A node that cannot be imported is written down
//! and its results are marked as failed; nodes behind it are skipped in
//! silence, but an operator that is not known is named wherever it stands.

mod activation;
mod arithmetic;
mod attention;
mod bias;
mod branch;
mod builder;
mod cast;
mod concat;
mod constant;
mod conv;
mod cx;
mod einsum;
mod fold;
mod gather;
mod linear;
mod logic;
mod loss;
mod make;
mod normalization;
mod pad;
mod places;
mod pool;
mod quantized;
mod recurrent;
mod reduce;
mod remedy;
mod resize;
mod scatter;
mod select;
mod shape;
mod slice;
mod softmax;
mod transposed;

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    BinaryFn, Cast, CompareFn, ConstError, DType, Graph, Op, Origin, ReduceFn, TensorType, TypeError, UnaryFn,
    VerifyError,
};

use self::{
    builder::{Builder, Tensor},
    cx::NodeCx,
    logic::Bits,
    recurrent::Cell,
    reduce::Norm,
};
use super::{
    error::shown,
    findings::Findings,
    proto::NodeProto,
    tract,
    validate::{Checked, label},
};

/// Why a node is not imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OpError {
    /// It is sound, but not supported.
    Unsupported {
        /// What is missing.
        reason: String,
        /// What the user can do.
        remedy: String,
    },
    /// It contradicts the standard or its operands.
    Invalid(String),
}

impl OpError {
    fn unsupported(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into(), remedy: remedy.into() }
    }

    fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}

impl From<VerifyError> for OpError {
    fn from(error: VerifyError) -> Self {
        match error {
            // The node is named by whoever reports this.
            VerifyError::Value { what, found, expected, .. } => {
                Self::Invalid(format!("{what} is {found}, must be {expected}"))
            }
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl From<TypeError> for OpError {
    fn from(error: TypeError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ConstError> for OpError {
    fn from(error: ConstError) -> Self {
        Self::Invalid(error.to_string())
    }
}

type Import = fn(&mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError>;

/// The importers of the standard operators, sorted by name.
const IMPORTERS: [(&str, Import); 156] = [
    ("Abs", activation::abs),
    ("Acos", |cx| activation::unary(cx, UnaryFn::Acos)),
    ("Acosh", |cx| activation::unary(cx, UnaryFn::Acosh)),
    ("Add", |cx| arithmetic::binary(cx, BinaryFn::Add)),
    ("And", |cx| logic::combine(cx, BinaryFn::Min)),
    ("ArgMax", |cx| select::arg_reduce(cx, true)),
    ("ArgMin", |cx| select::arg_reduce(cx, false)),
    ("Asin", |cx| activation::unary(cx, UnaryFn::Asin)),
    ("Asinh", |cx| activation::unary(cx, UnaryFn::Asinh)),
    ("Atan", |cx| activation::unary(cx, UnaryFn::Atan)),
    ("Atanh", |cx| activation::unary(cx, UnaryFn::Atanh)),
    ("Attention", attention::attention),
    ("AveragePool", pool::average),
    ("BatchNormalization", normalization::batch),
    ("BitShift", logic::shift),
    ("BitwiseAnd", |cx| logic::bits(cx, Bits::And)),
    ("BitwiseNot", logic::bits_not),
    ("BitwiseOr", |cx| logic::bits(cx, Bits::Or)),
    ("BitwiseXor", |cx| logic::bits(cx, Bits::Xor)),
    ("BlackmanWindow", |cx| constant::signal_window(cx, [0.42, 0.5, 0.08])),
    ("Cast", cast::cast),
    ("CastLike", cast::cast_like),
    ("Ceil", |cx| activation::unary(cx, UnaryFn::Ceil)),
    ("Celu", activation::celu),
    ("CenterCropPad", pad::center),
    ("Clip", |cx| quantized::clip(cx)?.map_or_else(|| activation::clip(cx), |codes| Ok(vec![codes]))),
    ("Concat", concat::concat),
    ("Constant", constant::constant),
    ("ConstantOfShape", constant::constant_of_shape),
    ("Conv", conv::conv),
    ("ConvInteger", quantized::conv_integer),
    ("ConvTranspose", conv::conv_transpose),
    ("Cos", |cx| activation::unary(cx, UnaryFn::Cos)),
    ("Cosh", |cx| activation::unary(cx, UnaryFn::Cosh)),
    ("CumSum", select::cum_sum),
    ("DepthToSpace", pad::depth_to_space),
    ("DequantizeLinear", quantized::dequantize_linear),
    ("Div", |cx| arithmetic::binary(cx, BinaryFn::Div)),
    ("Dropout", shape::dropout),
    ("DynamicQuantizeLinear", quantized::dynamic),
    ("Einsum", einsum::einsum),
    ("Elu", activation::elu),
    ("Equal", |cx| logic::compare(cx, CompareFn::Eq)),
    ("Erf", |cx| activation::unary(cx, UnaryFn::Erf)),
    ("Exp", |cx| activation::unary(cx, UnaryFn::Exp)),
    ("Expand", shape::expand),
    ("EyeLike", constant::eye_like),
    ("Flatten", shape::flatten),
    ("Floor", |cx| activation::unary(cx, UnaryFn::Floor)),
    ("GRU", |cx| recurrent::layer(cx, Cell::Gru)),
    ("Gather", gather::gather),
    ("GatherElements", gather::gather_elements),
    ("GatherND", gather::gather_nd),
    ("Gelu", activation::gelu),
    ("Gemm", linear::gemm),
    ("GlobalAveragePool", |cx| pool::global(cx, ReduceFn::Mean)),
    ("GlobalLpPool", |cx| pool::lp(cx, true)),
    ("GlobalMaxPool", |cx| pool::global(cx, ReduceFn::Max)),
    ("Greater", |cx| logic::compare(cx, CompareFn::Gt)),
    ("GreaterOrEqual", |cx| logic::compare(cx, CompareFn::Ge)),
    ("GroupNormalization", normalization::group),
    ("HammingWindow", |cx| constant::signal_window(cx, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
    ("HannWindow", |cx| constant::signal_window(cx, [0.5, 0.5, 0.0])),
    ("HardSigmoid", activation::hard_sigmoid),
    ("HardSwish", |cx| activation::unary(cx, UnaryFn::HardSwish)),
    ("Hardmax", softmax::hardmax),
    ("Identity", shape::identity),
    ("InstanceNormalization", normalization::instance),
    ("IsInf", logic::is_inf),
    ("IsNaN", logic::is_nan),
    ("LRN", normalization::local_response),
    ("LSTM", |cx| recurrent::layer(cx, Cell::Lstm)),
    ("LayerNormalization", normalization::layer),
    ("LeakyRelu", activation::leaky_relu),
    ("Less", |cx| logic::compare(cx, CompareFn::Lt)),
    ("LessOrEqual", |cx| logic::compare(cx, CompareFn::Le)),
    ("Log", |cx| activation::unary(cx, UnaryFn::Log)),
    ("LogSoftmax", |cx| softmax::softmax(cx, true)),
    ("LpNormalization", normalization::lp),
    ("LpPool", |cx| pool::lp(cx, false)),
    ("MatMul", linear::matmul),
    ("MatMulInteger", quantized::matmul_integer),
    ("Max", |cx| arithmetic::variadic(cx, BinaryFn::Max)),
    ("MaxPool", pool::max),
    ("Mean", arithmetic::mean),
    ("MeanVarianceNormalization", normalization::mean_variance),
    ("Min", |cx| arithmetic::variadic(cx, BinaryFn::Min)),
    ("Mish", |cx| activation::unary(cx, UnaryFn::Mish)),
    ("Mod", arithmetic::modulo),
    ("Mul", |cx| arithmetic::binary(cx, BinaryFn::Mul)),
    ("Neg", arithmetic::neg),
    ("NegativeLogLikelihoodLoss", loss::negative_log_likelihood),
    ("Not", logic::not),
    ("OneHot", select::one_hot),
    ("Or", |cx| logic::combine(cx, BinaryFn::Max)),
    ("PRelu", activation::prelu),
    ("Pad", pad::pad),
    ("Pow", arithmetic::pow),
    ("QLinearConv", quantized::qlinear_conv),
    ("QLinearMatMul", quantized::qlinear_matmul),
    ("QuantizeLinear", quantized::quantize_linear),
    ("RMSNormalization", normalization::root_mean_square),
    ("RNN", |cx| recurrent::layer(cx, Cell::Rnn)),
    ("Range", constant::range),
    ("Reciprocal", |cx| activation::unary(cx, UnaryFn::Reciprocal)),
    ("ReduceL1", |cx| reduce::norm(cx, Norm::L1)),
    ("ReduceL2", |cx| reduce::norm(cx, Norm::L2)),
    ("ReduceLogSum", |cx| reduce::norm(cx, Norm::LogSum)),
    ("ReduceLogSumExp", |cx| reduce::norm(cx, Norm::LogSumExp)),
    ("ReduceMax", |cx| reduce::reduce(cx, ReduceFn::Max, 18)),
    ("ReduceMean", |cx| reduce::reduce(cx, ReduceFn::Mean, 18)),
    ("ReduceMin", |cx| reduce::reduce(cx, ReduceFn::Min, 18)),
    ("ReduceProd", |cx| reduce::reduce(cx, ReduceFn::Prod, 18)),
    ("ReduceSum", |cx| reduce::reduce(cx, ReduceFn::Sum, 13)),
    ("ReduceSumSquare", |cx| reduce::norm(cx, Norm::SumSquare)),
    ("Relu", |cx| activation::unary(cx, UnaryFn::Relu)),
    ("Reshape", shape::reshape),
    ("Resize", resize::resize),
    ("ReverseSequence", select::reverse_sequence),
    ("RotaryEmbedding", attention::rotary),
    ("Round", |cx| activation::unary(cx, UnaryFn::Round)),
    ("Scatter", scatter::scatter_elements),
    ("ScatterElements", scatter::scatter_elements),
    ("ScatterND", scatter::scatter_nd),
    ("Selu", activation::selu),
    ("Shape", constant::shape),
    ("Shrink", activation::shrink),
    ("Sigmoid", |cx| activation::unary(cx, UnaryFn::Sigmoid)),
    ("Sign", |cx| activation::unary(cx, UnaryFn::Sign)),
    ("Sin", |cx| activation::unary(cx, UnaryFn::Sin)),
    ("Sinh", |cx| activation::unary(cx, UnaryFn::Sinh)),
    ("Size", constant::size),
    ("Slice", slice::slice),
    ("Softmax", |cx| softmax::softmax(cx, false)),
    ("SoftmaxCrossEntropyLoss", loss::cross_entropy),
    ("Softplus", |cx| activation::unary(cx, UnaryFn::Softplus)),
    ("Softsign", |cx| activation::unary(cx, UnaryFn::Softsign)),
    ("SpaceToDepth", pad::space_to_depth),
    ("Split", slice::split),
    ("Sqrt", |cx| activation::unary(cx, UnaryFn::Sqrt)),
    ("Squeeze", shape::squeeze),
    ("Sub", |cx| arithmetic::binary(cx, BinaryFn::Sub)),
    ("Sum", |cx| arithmetic::variadic(cx, BinaryFn::Add)),
    ("Swish", activation::swish),
    ("Tan", |cx| activation::unary(cx, UnaryFn::Tan)),
    ("Tanh", |cx| activation::unary(cx, UnaryFn::Tanh)),
    ("TensorScatter", scatter::into_cache),
    ("ThresholdedRelu", activation::thresholded_relu),
    ("Tile", pad::tile),
    ("TopK", select::top_k),
    ("Transpose", shape::transpose),
    ("Trilu", pad::triangle),
    ("Unsqueeze", shape::unsqueeze),
    ("Upsample", resize::upsample),
    ("Where", logic::choose),
    ("Xor", logic::xor),
];

/// Standard operators that are imported; others are refused.
pub(super) fn operators() -> impl Iterator<Item = &'static str> {
    IMPORTERS.iter().map(|&(name, _)| name)
}

fn importer(op_type: &str) -> Option<Import> {
    let at = IMPORTERS.binary_search_by_key(&op_type, |&(name, _)| name).ok()?;
    IMPORTERS.get(at).map(|&(_, import)| import)
}

/// Bytes that folded constants may take beyond four times the model.
const FOLD_SLACK_BYTES: usize = 64 << 20;

/// Builds the graph of a checked model of `model_bytes` bytes.
pub(super) fn build(checked: &Checked<'_>, model_bytes: usize, findings: &mut Findings) -> Option<Graph> {
    let name = if checked.graph.name.is_empty() { "model" } else { &checked.graph.name };
    let mut builder = Builder::new(name, model_bytes.saturating_mul(4).saturating_add(FOLD_SLACK_BYTES));
    let mut scope = Scope { outer: None, tensors: BTreeMap::new() };
    let tensors = &mut scope.tensors;
    for (name, ty) in &checked.inputs {
        match input(&mut builder, name, ty, findings) {
            Ok(tensor) => drop(tensors.insert(name, tensor)),
            Err(OpError::Unsupported { reason, remedy }) => findings.blocker("input", name, reason, remedy),
            Err(OpError::Invalid(reason)) => findings.problem(format!("input `{}`", shown(name)), reason),
        }
    }
    for (name, constant) in &checked.constants {
        tensors.insert(name, builder.known(*name, constant.clone(), Origin::new(*name)));
    }
    for &i in &checked.order {
        let Some(node) = checked.graph.node.get(i) else { continue };
        let results = import_node(&mut builder, checked.opset, &checked.needed, i, node, &scope, findings);
        for (name, tensor) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
            scope.tensors.insert(name, tensor);
        }
    }
    for &name in &checked.outputs {
        // A missing one was written down where it failed.
        let tensor = scope.get(name)?;
        if builder.ty(tensor).shape.contains(&0) {
            findings.blocker("output", name, "it has no elements", "name other outputs with --output");
            continue;
        }
        if let Err(OpError::Unsupported { reason, .. }) = builder.expect_numbers(tensor) {
            let remedy = "name the result of the DequantizeLinear behind it with --output";
            findings.blocker("output", name, reason, remedy);
            continue;
        }
        let value = builder.place(tensor);
        builder.graph.add_output(name, value);
    }
    let mut graph = builder.graph;
    bias::fuse(&mut graph);
    Some(graph)
}

/// An input of the graph. Truth values come in bytes, which hold more than two numbers.
fn input(builder: &mut Builder, name: &str, ty: &TensorType, findings: &mut Findings) -> Result<Tensor, OpError> {
    if ty.dtype() != Some(DType::Bool) {
        return Ok(Tensor::Computed(builder.graph.add_input(name, ty.clone())));
    }
    let bytes = builder.graph.add_input(name, TensorType::plain(DType::U8, ty.shape.clone()));
    findings.note(format!("input `{}` is bool in the model and u8 here: 0 is false, all else is true", shown(name)));
    let truth = Op::Cast(Cast { to: DType::Bool });
    builder.emit(format!("{name}.bool"), truth, &[Tensor::Computed(bytes)], &Origin::new(name))
}

/// Tensors by name: those of a graph, and of the graphs around it.
struct Scope<'o, 'm> {
    outer: Option<&'o Scope<'o, 'm>>,
    tensors: BTreeMap<&'m str, Tensor>,
}

impl Scope<'_, '_> {
    fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).copied().or_else(|| self.outer?.get(name))
    }
}

/// Results of a node; none if it, or one before it, is not imported.
fn import_node<'m>(
    builder: &mut Builder,
    opset: i64,
    needed: &BTreeSet<&str>,
    index: usize,
    node: &'m NodeProto,
    scope: &Scope<'_, 'm>,
    findings: &mut Findings,
) -> Vec<Tensor> {
    let label = label(index, node);
    let standard = node.domain.is_empty() || node.domain == "ai.onnx";
    let import = match node.domain.as_str() {
        _ if standard => importer(&node.op_type),
        "com.microsoft" => quantized::contributed(&node.op_type),
        _ => None,
    };
    let present = |name: &&String| !name.is_empty();
    let branches = standard && node.op_type == "If";
    let is_known = |name: &String| matches!(scope.get(name), Some(Tensor::Known(_)));
    let known_operands = node.input.iter().filter(present).all(is_known);
    if import.is_none() && !branches && !(standard && known_operands && tract::folds(&node.op_type)) {
        let (reason, remedy) = remedy::unknown_operator(node);
        findings.blocker(&node.op_type, &label, reason, remedy);
        return Vec::new();
    }
    if node.input.iter().filter(present).any(|name| scope.get(name).is_none()) {
        return Vec::new();
    }
    if branches {
        return branch::inline(builder, opset, node, scope, findings)
            .unwrap_or_else(|error| written_down(error, node, &label, findings));
    }
    let operands: Vec<Option<Tensor>> = node.input.iter().map(|name| scope.get(name)).collect();
    let needed: Vec<bool> = node.output.iter().map(|name| needed.contains(name.as_str())).collect();
    let origin = Origin::new(label.clone());
    let mut cx = NodeCx::new(builder, node, opset, origin, findings, operands, needed);
    let results = match import {
        Some(import) => import(&mut cx).and_then(|results| {
            cx.check_all_read()?;
            match cx.needed.iter().skip(results.len()).position(|&needed| needed) {
                Some(i) => Err(OpError::unsupported(
                    format!("its result {} is not supported", i + results.len()),
                    "export without that result",
                )),
                None => Ok(cx.finish(results)),
            }
        }),
        None => fold::by_tract(&mut cx),
    };
    results.unwrap_or_else(|error| written_down(error, node, &label, findings))
}

/// No results, and the reason among the findings.
fn written_down(error: OpError, node: &NodeProto, label: &str, findings: &mut Findings) -> Vec<Tensor> {
    match error {
        OpError::Unsupported { reason, remedy } => findings.blocker(&node.op_type, label, reason, remedy),
        OpError::Invalid(reason) => {
            findings.problem(format!("node `{}` ({})", shown(label), shown(&node.op_type)), reason);
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importers_are_sorted_so_that_all_are_found() {
        assert!(operators().is_sorted());
        assert!(operators().all(|name| importer(name).is_some()));
    }
}
