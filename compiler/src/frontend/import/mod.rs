//! From nodes to operations, one file for each family of operators.
//!
//! Nodes come operands first. A node that cannot be imported is written down
//! and its results are marked as failed; nodes behind it are skipped in
//! silence, but an operator that is not known is named wherever it stands.

mod activation;
mod arithmetic;
mod bias;
mod builder;
mod cast;
mod concat;
mod constant;
mod cx;
mod fold;
mod gather;
mod linear;
mod reduce;
mod remedy;
mod shape;
mod slice;
mod transposed;

use std::collections::BTreeMap;

use qail_ir::{BinaryFn, ConstError, Graph, Origin, ReduceFn, TypeError, UnaryFn};

use self::{
    builder::{Builder, Tensor},
    cx::NodeCx,
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
const IMPORTERS: [(&str, Import); 43] = [
    ("Abs", |cx| activation::unary(cx, UnaryFn::Abs)),
    ("Add", |cx| arithmetic::binary(cx, BinaryFn::Add)),
    ("Cast", cast::cast),
    ("Clip", activation::clip),
    ("Concat", concat::concat),
    ("Constant", constant::constant),
    ("ConstantOfShape", constant::constant_of_shape),
    ("Div", |cx| arithmetic::binary(cx, BinaryFn::Div)),
    ("Dropout", shape::dropout),
    ("Elu", activation::elu),
    ("Exp", |cx| activation::unary(cx, UnaryFn::Exp)),
    ("Expand", shape::expand),
    ("Flatten", shape::flatten),
    ("Gather", gather::gather),
    ("Gemm", linear::gemm),
    ("Identity", shape::identity),
    ("LeakyRelu", activation::leaky_relu),
    ("Log", |cx| activation::unary(cx, UnaryFn::Log)),
    ("MatMul", linear::matmul),
    ("Max", |cx| arithmetic::variadic(cx, BinaryFn::Max)),
    ("Min", |cx| arithmetic::variadic(cx, BinaryFn::Min)),
    ("Mul", |cx| arithmetic::binary(cx, BinaryFn::Mul)),
    ("Neg", arithmetic::neg),
    ("Pow", arithmetic::pow),
    ("Reciprocal", |cx| activation::unary(cx, UnaryFn::Reciprocal)),
    ("ReduceMax", |cx| reduce::reduce(cx, ReduceFn::Max, 18)),
    ("ReduceMean", |cx| reduce::reduce(cx, ReduceFn::Mean, 18)),
    ("ReduceMin", |cx| reduce::reduce(cx, ReduceFn::Min, 18)),
    ("ReduceSum", |cx| reduce::reduce(cx, ReduceFn::Sum, 13)),
    ("Relu", |cx| activation::unary(cx, UnaryFn::Relu)),
    ("Reshape", shape::reshape),
    ("Shape", constant::shape),
    ("Sigmoid", |cx| activation::unary(cx, UnaryFn::Sigmoid)),
    ("Size", constant::size),
    ("Slice", slice::slice),
    ("Split", slice::split),
    ("Sqrt", |cx| activation::unary(cx, UnaryFn::Sqrt)),
    ("Squeeze", shape::squeeze),
    ("Sub", |cx| arithmetic::binary(cx, BinaryFn::Sub)),
    ("Sum", |cx| arithmetic::variadic(cx, BinaryFn::Add)),
    ("Tanh", |cx| activation::unary(cx, UnaryFn::Tanh)),
    ("Transpose", shape::transpose),
    ("Unsqueeze", shape::unsqueeze),
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
    let mut tensors: BTreeMap<&str, Tensor> = BTreeMap::new();
    for (name, ty) in &checked.inputs {
        tensors.insert(name, Tensor::Computed(builder.graph.add_input(*name, ty.clone())));
    }
    for (name, constant) in &checked.constants {
        tensors.insert(name, builder.known(*name, constant.clone(), Origin::new(*name)));
    }
    for &i in &checked.order {
        let Some(node) = checked.graph.node.get(i) else { continue };
        let results = import_node(&mut builder, checked, i, node, &tensors, findings);
        for (name, tensor) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
            tensors.insert(name, tensor);
        }
    }
    for &name in &checked.outputs {
        // A missing one was written down where it failed.
        let tensor = *tensors.get(name)?;
        if builder.ty(tensor).shape.contains(&0) {
            findings.blocker("output", name, "it has no elements", "name other outputs with --output");
            continue;
        }
        let value = builder.place(tensor);
        builder.graph.add_output(name, value);
    }
    let mut graph = builder.graph;
    bias::fuse(&mut graph);
    Some(graph)
}

/// Results of a node; none if it, or one before it, is not imported.
fn import_node<'m>(
    builder: &mut Builder,
    checked: &Checked<'m>,
    index: usize,
    node: &'m NodeProto,
    tensors: &BTreeMap<&str, Tensor>,
    findings: &mut Findings,
) -> Vec<Tensor> {
    let label = label(index, node);
    let standard = node.domain.is_empty() || node.domain == "ai.onnx";
    let import = if standard { importer(&node.op_type) } else { None };
    let present = |name: &&String| !name.is_empty();
    let known_operands = node
        .input
        .iter()
        .filter(present)
        .all(|name| tensors.get(name.as_str()).is_some_and(|tensor| matches!(tensor, Tensor::Known(_))));
    if import.is_none() && !(standard && known_operands && tract::folds(&node.op_type)) {
        let (reason, remedy) = remedy::unknown_operator(node);
        findings.blocker(&node.op_type, &label, reason, remedy);
        return Vec::new();
    }
    if node.input.iter().filter(present).any(|name| !tensors.contains_key(name.as_str())) {
        return Vec::new();
    }
    let operands: Vec<Option<Tensor>> = node.input.iter().map(|name| tensors.get(name.as_str()).copied()).collect();
    let needed: Vec<bool> = node.output.iter().map(|name| checked.needed.contains(name.as_str())).collect();
    let origin = Origin::new(label.clone());
    let mut cx = NodeCx::new(builder, node, checked.opset, origin, findings, operands, needed);
    let results = match import {
        Some(import) => import(&mut cx).and_then(|results| {
            cx.check_all_read()?;
            match cx.needed.iter().skip(results.len()).position(|&needed| needed) {
                Some(i) => Err(OpError::unsupported(
                    format!("its result {} is not supported", i + results.len()),
                    "export without that result",
                )),
                None => Ok(results),
            }
        }),
        None => fold::by_tract(&mut cx),
    };
    match results {
        Ok(results) => results,
        Err(OpError::Unsupported { reason, remedy }) => {
            findings.blocker(&node.op_type, &label, reason, remedy);
            Vec::new()
        }
        Err(OpError::Invalid(reason)) => {
            findings.problem(format!("node `{}` ({})", shown(&label), shown(&node.op_type)), reason);
            Vec::new()
        }
    }
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
