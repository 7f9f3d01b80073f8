//! `If` with a condition that is known: the branch that is taken becomes part of the graph.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Constant, Origin};

use super::{OpError, Scope, import_node};
use crate::frontend::{
    error::shown,
    external,
    findings::Findings,
    import::builder::{Builder, Tensor},
    proto::{GraphProto, NodeProto},
    tensor::{self, TensorError},
    validate,
};

/// Results of the branch that is taken; none if something in it is not imported.
pub(super) fn inline<'m>(
    builder: &mut Builder,
    opset: i64,
    node: &'m NodeProto,
    scope: &Scope<'_, 'm>,
    findings: &mut Findings,
) -> Result<Vec<Tensor>, OpError> {
    let graph = taken(builder, node, scope)?;
    let mut inner = Scope { outer: Some(scope), tensors: BTreeMap::new() };
    for proto in &graph.initializer {
        if proto.data_location == external::EXTERNAL {
            let remedy = "store the constants of branches in the model";
            return Err(OpError::unsupported("constants of branches in other files are not supported", remedy));
        }
        let constant: Constant = tensor::constant(proto, None).map_err(|error| match error {
            TensorError::Invalid(reason) => OpError::invalid(reason),
            TensorError::Unsupported(what) => {
                OpError::unsupported(format!("{what} are not supported"), validate::remedy_for(proto.data_type))
            }
        })?;
        let tensor = builder.known(&*proto.name, constant, Origin::new(&*proto.name));
        inner.tensors.insert(&proto.name, tensor);
    }
    let outputs = graph.output.iter().map(|info| info.name.as_str());
    let mut needed: BTreeSet<&str> = outputs.clone().collect();
    for node in &graph.node {
        needed.extend(node.input.iter().map(String::as_str));
        needed.extend(validate::captures(node));
    }
    for (i, node) in graph.node.iter().enumerate() {
        if !node.output.iter().any(|name| needed.contains(name.as_str())) {
            continue;
        }
        let results = import_node(builder, opset, &needed, i, node, &inner, findings);
        for (name, tensor) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
            inner.tensors.insert(name, tensor);
        }
    }
    // What is missing was written down where it failed, or is not there at all.
    let results: Vec<Option<Tensor>> = outputs.clone().map(|name| inner.get(name)).collect();
    let defined = |name: &str| graph.node.iter().any(|node| node.output.iter().any(|output| output == name));
    match outputs.clone().zip(&results).find(|(name, result)| result.is_none() && !defined(name)) {
        Some((name, _)) => {
            Err(OpError::invalid(format!("its branch hands back `{}`, which nothing defines", shown(name))))
        }
        None => Ok(results.into_iter().map_while(|result| result).collect()),
    }
}

fn taken<'m>(builder: &Builder, node: &'m NodeProto, scope: &Scope<'_, 'm>) -> Result<&'m GraphProto, OpError> {
    let condition = node.input.first().and_then(|name| scope.get(name));
    let condition = condition.and_then(|tensor| builder.constant(tensor));
    let Some(condition) = condition else {
        let remedy = "export by tracing with fixed conditions, or unroll the loop";
        return Err(OpError::unsupported("control flow is not supported", remedy));
    };
    let name = match condition.all_int()?[..] {
        [0] => "else_branch",
        [_] => "then_branch",
        _ => return Err(OpError::invalid(format!("its condition is {}", condition.ty))),
    };
    let attribute = node.attribute.iter().find(|attribute| attribute.name == name);
    let graph = attribute.and_then(|attribute| attribute.g.as_deref());
    let graph = graph.ok_or_else(|| OpError::invalid(format!("it has no `{name}`")))?;
    if graph.output.len() != node.output.len() {
        return Err(OpError::invalid(format!("its branch hands back {} tensors", graph.output.len())));
    }
    Ok(graph)
}
