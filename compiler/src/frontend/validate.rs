//! Checks the structure of a model before anything is built from it.
//!
//! Every tensor has one definition and every name that is read has one, nodes
//! form no cycle, constants are as long as they say. What outputs do not need
//! is pruned here: a random branch beside a deterministic output disappears.
//! Declared types of inner tensors and outputs are not read: they may be wrong.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Constant, TensorType};

use super::{
    ImportOptions,
    dims::Dims,
    error::{ImportError, shown},
    external::{self, Folder},
    findings::Findings,
    proto::{GraphProto, ModelProto, NodeProto, TensorProto, data_type},
    tensor::{self, TensorError},
};

/// Operator sets whose meaning is known.
pub(super) const OPSETS: std::ops::RangeInclusive<i64> = 9..=25;

/// A model whose structure is sound.
#[derive(Debug)]
pub(super) struct Checked<'m> {
    /// The graph as decoded.
    pub(super) graph: &'m GraphProto,
    /// Version of the standard operators.
    pub(super) opset: i64,
    /// Inputs that the outputs need, in the order of the model.
    pub(super) inputs: Vec<(&'m str, TensorType)>,
    /// Constants that the outputs need.
    pub(super) constants: BTreeMap<&'m str, Constant>,
    /// Nodes that the outputs need, operands first, ties in the order of the model.
    pub(super) order: Vec<usize>,
    /// Tensors that the outputs need.
    pub(super) needed: BTreeSet<&'m str>,
    /// Names of the outputs.
    pub(super) outputs: Vec<&'m str>,
    /// Extents bound to names.
    pub(super) dims: BTreeMap<String, usize>,
}

/// What defines a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Definition {
    Input(usize),
    Constant(usize),
    Node(usize),
}

/// Name of a node in messages and origins: its own, or operator and position.
pub(super) fn label(index: usize, node: &NodeProto) -> String {
    if node.name.is_empty() { format!("{}_{index}", node.op_type) } else { node.name.clone() }
}

/// Checks `model` and selects what the outputs need.
pub(super) fn check<'m>(
    model: &'m ModelProto,
    folder: &mut Folder,
    options: &'m ImportOptions,
    findings: &mut Findings,
) -> Result<Checked<'m>, ImportError> {
    let Some(graph) = &model.graph else {
        findings.problem("model", "it has no graph");
        findings.stop_if_invalid()?;
        return Err(ImportError::Internal("a problem was not reported".to_owned()));
    };
    let opset = opset(model, findings);
    for function in &model.functions {
        let remedy = "inline functions when exporting, for example with `onnx.inliner`";
        findings.blocker("function", &function.name, "functions defined in the model are not supported", remedy);
    }
    for sparse in &graph.sparse_initializer {
        let name = sparse.values.as_ref().map_or("", |values| values.name.as_str());
        findings.blocker("constant", name, "sparse constants are not supported", "export dense weights");
    }
    let definitions = definitions(graph, findings);
    check_reads(graph, &definitions, findings);
    let order = topological_order(graph, &definitions, findings);
    findings.stop_if_invalid()?;

    let outputs = select_outputs(graph, options, &definitions)?;
    let mut dims = Dims::new(graph, &options.dims)?;
    let (needed, needed_nodes) = reachable(graph, &definitions, &outputs);
    let mut inputs = Vec::new();
    for (i, info) in graph.input.iter().enumerate() {
        let name = info.name.as_str();
        if definitions.get(name) != Some(&Definition::Input(i)) {
            continue;
        }
        if !needed.contains(name) {
            findings.note(format!("input `{}` does not reach the outputs and is dropped", shown(name)));
            continue;
        }
        inputs.extend(dims.input_type(info, findings).map(|ty| (name, ty)));
    }
    let used = graph.initializer.iter().filter(|tensor| needed.contains(tensor.name.as_str()));
    let constants = used.filter_map(|tensor| Some((tensor.name.as_str(), read_constant(tensor, folder, findings)?)));
    let constants = constants.collect();
    findings.stop_if_invalid()?;
    let n_pruned = graph.node.len() - needed_nodes.len();
    if n_pruned > 0 {
        findings.note(format!("{n_pruned} nodes do not reach the outputs and are dropped"));
    }
    let order = order.into_iter().filter(|node| needed_nodes.contains(node)).collect();
    Ok(Checked { graph, opset, inputs, constants, order, needed, outputs, dims: dims.bound })
}

fn opset(model: &ModelProto, findings: &mut Findings) -> i64 {
    let standard = model.opset_import.iter().find(|set| set.domain.is_empty() || set.domain == "ai.onnx");
    let Some(standard) = standard else {
        findings.problem("model", "it does not say which operator set it uses");
        return 0;
    };
    if !OPSETS.contains(&standard.version) {
        let (first, last) = (OPSETS.start(), OPSETS.end());
        let reason = format!("version {} is not supported", standard.version);
        findings.blocker("opset", "ai.onnx", reason, format!("export with an opset from {first} to {last}"));
    }
    standard.version
}

fn definitions<'m>(graph: &'m GraphProto, findings: &mut Findings) -> BTreeMap<&'m str, Definition> {
    let mut definitions = BTreeMap::new();
    let mut define = |name: &'m str, definition: Definition, findings: &mut Findings| {
        match definitions.insert(name, definition) {
            // Before format version 4, constants are listed among the inputs, too.
            None | Some(Definition::Input(_)) if matches!(definition, Definition::Constant(_)) => {}
            None => {}
            Some(_) => findings.problem(format!("tensor `{}`", shown(name)), "it is defined twice"),
        }
    };
    for (i, info) in graph.input.iter().enumerate() {
        if info.name.is_empty() {
            findings.problem(format!("input {i}"), "it has no name");
        }
        define(&info.name, Definition::Input(i), findings);
    }
    for (i, tensor) in graph.initializer.iter().enumerate() {
        if tensor.name.is_empty() {
            findings.problem(format!("initializer {i}"), "it has no name");
        }
        define(&tensor.name, Definition::Constant(i), findings);
    }
    for (i, node) in graph.node.iter().enumerate() {
        if node.op_type.is_empty() {
            findings.problem(format!("node `{}`", shown(&label(i, node))), "it has no operator");
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            define(name, Definition::Node(i), findings);
        }
    }
    definitions
}

fn check_reads(graph: &GraphProto, definitions: &BTreeMap<&str, Definition>, findings: &mut Findings) {
    let values = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let sparse: BTreeSet<&str> = values.map(|values| values.name.as_str()).collect();
    for (i, node) in graph.node.iter().enumerate() {
        let mut attributes = BTreeSet::new();
        if let Some(twice) = node.attribute.iter().find(|attribute| !attributes.insert(&attribute.name)) {
            let place = format!("node `{}`", shown(&label(i, node)));
            findings.problem(place, format!("it has two attributes `{}`", shown(&twice.name)));
        }
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if !definitions.contains_key(name.as_str()) && !sparse.contains(name.as_str()) {
                let place = format!("node `{}`", shown(&label(i, node)));
                findings.problem(place, format!("it reads `{}`, which nothing defines", shown(name)));
            }
        }
    }
    if graph.output.is_empty() {
        findings.problem("model", "it has no outputs");
    }
    let mut seen = BTreeSet::new();
    for info in &graph.output {
        if !definitions.contains_key(info.name.as_str()) {
            findings.problem(format!("output `{}`", shown(&info.name)), "nothing defines it");
        }
        if !seen.insert(&info.name) {
            findings.problem(format!("output `{}`", shown(&info.name)), "it is listed twice");
        }
    }
}

fn topological_order(
    graph: &GraphProto,
    definitions: &BTreeMap<&str, Definition>,
    findings: &mut Findings,
) -> Vec<usize> {
    let mut missing = vec![0usize; graph.node.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (i, node) in graph.node.iter().enumerate() {
        for name in node.input.iter().map(String::as_str).chain(captures(node)) {
            if let Some(&Definition::Node(from)) = definitions.get(name) {
                missing[i] += 1;
                readers[from].push(i);
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..graph.node.len()).filter(|&i| missing[i] == 0).collect();
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(i) = ready.pop_first() {
        order.push(i);
        for &reader in &readers[i] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    for (i, node) in graph.node.iter().enumerate().filter(|&(i, _)| missing[i] > 0) {
        findings.problem(format!("node `{}`", shown(&label(i, node))), "it is on a cycle, or reads one that is");
    }
    order
}

/// Names that the graphs inside of a node read; some of them are their own.
pub(super) fn captures(node: &NodeProto) -> Vec<&str> {
    fn inside(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
        node.attribute.iter().flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
    }
    let mut pending: Vec<&GraphProto> = inside(node).collect();
    let mut names = Vec::new();
    while let Some(graph) = pending.pop() {
        names.extend(graph.output.iter().map(|info| info.name.as_str()));
        for node in &graph.node {
            names.extend(node.input.iter().map(String::as_str));
            pending.extend(inside(node));
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn select_outputs<'m>(
    graph: &'m GraphProto,
    options: &'m ImportOptions,
    definitions: &BTreeMap<&str, Definition>,
) -> Result<Vec<&'m str>, ImportError> {
    let known = || graph.output.iter().map(|info| info.name.as_str());
    let Some(asked) = &options.outputs else { return Ok(known().collect()) };
    let mut outputs: Vec<&str> = Vec::new();
    for name in asked {
        if !definitions.contains_key(name.as_str()) || name.is_empty() {
            return Err(ImportError::UnknownOutput { name: name.clone(), known: known().map(shown).collect() });
        }
        if !outputs.contains(&name.as_str()) {
            outputs.push(name);
        }
    }
    Ok(outputs)
}

/// Tensors and nodes that lead to `outputs`.
fn reachable<'m>(
    graph: &'m GraphProto,
    definitions: &BTreeMap<&'m str, Definition>,
    outputs: &[&'m str],
) -> (BTreeSet<&'m str>, BTreeSet<usize>) {
    let mut tensors = BTreeSet::new();
    let mut nodes = BTreeSet::new();
    let mut pending: Vec<&str> = outputs.to_vec();
    while let Some(name) = pending.pop() {
        if !tensors.insert(name) {
            continue;
        }
        if let Some(&Definition::Node(i)) = definitions.get(name)
            && nodes.insert(i)
        {
            let node = &graph.node[i];
            pending.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
            pending.extend(captures(node).into_iter().filter(|name| definitions.contains_key(name)));
        }
    }
    (tensors, nodes)
}

fn read_constant(tensor: &TensorProto, folder: &mut Folder, findings: &mut Findings) -> Option<Constant> {
    let region = match tensor.data_location {
        external::EXTERNAL => match folder.resolve(tensor) {
            Ok(region) => Some(region),
            Err(error) => {
                findings.external(error);
                return None;
            }
        },
        _ => None,
    };
    match tensor::constant(tensor, region) {
        Ok(constant) => {
            if tensor::dtype(tensor.data_type).is_some_and(|(_, converted)| converted) {
                let ty = data_type::name(tensor.data_type);
                findings.note(format!("constants of type {ty} are converted to f32"));
            }
            Some(constant)
        }
        Err(TensorError::Invalid(reason)) => {
            findings.problem(format!("initializer `{}`", shown(&tensor.name)), reason);
            None
        }
        Err(TensorError::Unsupported(what)) => {
            let reason = format!("{what} are not supported");
            findings.blocker("constant", &tensor.name, reason, remedy_for(tensor.data_type));
            None
        }
    }
}

/// What to do about a constant of an element type that is not supported.
pub(super) fn remedy_for(elem_type: i32) -> &'static str {
    match elem_type {
        data_type::STRING => "move text processing out of the exported model",
        _ => "export weights as float32",
    }
}
