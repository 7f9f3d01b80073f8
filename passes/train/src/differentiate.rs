//! Reverse-mode differentiation of a graph, as a graph.
//!
//! The joint graph is the forward graph with backward nodes behind it. Every id
//! of the forward graph stays valid, so an executor computes losses and
//! gradients in one sweep and a trainer finds its constants where they were.
//!
//! - Nothing is computed that does not lead to a parameter: only values that
//!   depend on one and lead to the loss get a gradient.
//! - Every value gets one gradient. Those of several readers are added in the
//!   order in which the readers come back, so the result is deterministic.
//! - A parameter without a gradient is an error, never a silent zero.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{ConstData, Constant, Graph, Linear, NodeId, Op, TensorType, TypeError, Unary, ValueId};

use crate::{
    expand::{ExpandError, expand_attention, has_attention},
    rules::{self, Builder, Flow},
};

/// A forward graph and its gradients.
#[derive(Clone, Debug)]
pub struct Joint {
    /// The forward graph, then the backward nodes. Beside the outputs of the
    /// forward graph it hands back `grad.<name>` for every parameter. It has no
    /// batch axis: its outputs are losses and parameters, not samples.
    pub graph: Graph,
    /// The gradient of each parameter, in its type and in the order of `wrt`.
    pub gradients: Vec<ValueId>,
}

/// A loss that has no gradient by some parameter.
#[derive(Debug, thiserror::Error)]
pub enum GradientError {
    /// A value that the graph does not define.
    #[error("a value to differentiate is not in the graph")]
    NoSuchValue,
    /// A loss of many numbers.
    #[error("the loss `{name}` is {found}, must be one number f32[]; reduce it first")]
    Loss {
        /// Name of the loss.
        name: String,
        /// Its type.
        found: TensorType,
    },
    /// A parameter of another type.
    #[error("`{name}` is {found}; only f32 has a gradient")]
    Parameter {
        /// Name of the parameter.
        name: String,
        /// Its type.
        found: TensorType,
    },
    /// No path at all.
    #[error("`{name}` does not lead to the loss `{loss}`: leave it out of what is trained")]
    NoPath {
        /// Name of the parameter.
        name: String,
        /// Name of the loss.
        loss: String,
    },
    /// Only paths that an operation without a derivative cuts.
    #[error("`{name}` has no gradient: node `{node}`, {op}, cuts its path to the loss `{loss}`")]
    Cut {
        /// Name of the parameter.
        name: String,
        /// Name of the loss.
        loss: String,
        /// The node that cuts.
        node: String,
        /// Its operation.
        op: &'static str,
    },
    /// An operation on the way that is not differentiated.
    #[error("node `{node}`: {op} is not differentiable; {remedy}")]
    NotDifferentiable {
        /// Name of the node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An output of the forward graph has the name of a gradient.
    #[error("the graph has an output `{name}` already; rename it")]
    OutputName {
        /// The name.
        name: String,
    },
    /// A rule that made a node of the wrong types: a bug in the rule.
    #[error("internal error: the gradient of node `{node}`")]
    Rule {
        /// Name of the forward node.
        node: String,
        /// What does not fit.
        #[source]
        source: TypeError,
    },
}

/// Appends the gradients of `loss`, one number, by each value of `wrt`.
///
/// A layer with a function is split in two, so that the backward nodes see what
/// stood in front of the function; its id names the result of both. Attention is
/// written out, so that both directions share the probabilities.
///
/// # Errors
/// See [`GradientError`]. Nothing is returned unless every parameter has a gradient.
pub fn differentiate(graph: &Graph, loss: ValueId, wrt: &[ValueId]) -> Result<Joint, GradientError> {
    check(graph, loss, wrt)?;
    let mut graph = graph.clone();
    graph.batch_axis = None;
    split_functions(&mut graph)?;
    if has_attention(&graph) {
        expand_attention(&mut graph).map_err(|ExpandError { node, source }| GradientError::Rule { node, source })?;
    }
    let active = active(&graph, loss, wrt)?;
    let mut tape = Tape { open: BTreeMap::new(), done: BTreeMap::new() };
    let one = Constant { ty: graph.ty(loss).clone(), data: ConstData::Splat(1.0) };
    let origin = graph.node(loss.node).origin.clone();
    let seed = graph.add_const(format!("grad.{}", graph.node(loss.node).name), one, origin);
    tape.open.insert(loss, vec![seed]);
    let order: Vec<NodeId> = graph.topo().into_iter().rev().filter(|id| active.contains(id)).collect();
    for id in order {
        tape.step(&mut graph, id, &active)?;
    }
    let mut gradients = Vec::with_capacity(wrt.len());
    for &value in wrt {
        let name = graph.node(value.node).name.clone();
        let missing = || GradientError::NoPath { name: name.clone(), loss: graph.node(loss.node).name.clone() };
        let gradient = tape.done.get(&value).copied().ok_or_else(missing)?;
        gradients.push(gradient);
        let name = format!("grad.{name}");
        match graph.outputs.iter().find(|output| output.name == name) {
            // A parameter that is named twice.
            Some(output) if output.value == gradient => {}
            Some(_) => return Err(GradientError::OutputName { name }),
            None => graph.add_output(name, gradient),
        }
    }
    Ok(Joint { graph, gradients })
}

/// Gradients while the order is walked from the loss to the parameters.
struct Tape {
    /// What the readers of a value sent back so far.
    open: BTreeMap<ValueId, Vec<ValueId>>,
    /// Gradients that are complete.
    done: BTreeMap<ValueId, ValueId>,
}

impl Tape {
    /// Completes the gradient of the results of a node and sends it on.
    fn step(&mut self, graph: &mut Graph, id: NodeId, active: &BTreeSet<NodeId>) -> Result<(), GradientError> {
        let value = id.value();
        let node = graph.node(id).clone();
        let rule = |source| GradientError::Rule { node: node.name.clone(), source };
        // Nothing came back if every reader cut.
        let Some(parts) = self.open.remove(&value) else { return Ok(()) };
        let gradient = Builder::new(graph, id, id).sum(&parts).map_err(rule)?;
        let Some(gradient) = gradient else { return Ok(()) };
        self.done.insert(value, gradient);
        let operands = graph.operands(id);
        let wanted = |graph: &Graph, slot: usize, operand: ValueId| {
            active.contains(&operand.node) && rules::flow(graph, id, slot) == Flow::Through
        };
        let needs: Vec<bool> = operands.iter().enumerate().map(|(slot, &x)| wanted(graph, slot, x)).collect();
        for (slot, &operand) in operands.iter().enumerate() {
            if !needs[slot] {
                continue;
            }
            let mut builder = Builder::new(graph, id, operand.node);
            let part = rules::backward(&mut builder, &node.op, &operands, slot, gradient).map_err(rule)?;
            self.open.entry(operand).or_default().push(part);
        }
        Ok(())
    }
}

fn check(graph: &Graph, loss: ValueId, wrt: &[ValueId]) -> Result<(), GradientError> {
    let exists =
        |value: &ValueId| graph.contains(value.node) && usize::from(value.slot) < graph.node(value.node).outputs.len();
    if !exists(&loss) || !wrt.iter().all(exists) {
        return Err(GradientError::NoSuchValue);
    }
    let name = |value: ValueId| graph.node(value.node).name.clone();
    if *graph.ty(loss) != TensorType::f32([]) {
        return Err(GradientError::Loss { name: name(loss), found: graph.ty(loss).clone() });
    }
    match wrt.iter().find(|&&value| !graph.ty(value).is_f32()) {
        Some(&value) => Err(GradientError::Parameter { name: name(value), found: graph.ty(value).clone() }),
        None => Ok(()),
    }
}

/// `linear {act = f}` becomes `f(linear)`; the id of the layer names `f`.
fn split_functions(graph: &mut Graph) -> Result<(), GradientError> {
    for id in graph.topo() {
        let Op::Linear(Linear { act: Some(f), groups }) = graph.node(id).op else { continue };
        let node = graph.node(id).clone();
        let rule = |source| GradientError::Rule { node: node.name.clone(), source };
        let operands = graph.operands(id);
        let name = format!("{}.pre", node.name);
        let linear =
            graph.add(name, Op::Linear(Linear { act: None, groups }), &operands, node.origin.clone()).map_err(rule)?;
        graph.redefine(id, Op::Unary(Unary { f }), &[linear.value()]).map_err(rule)?;
    }
    Ok(())
}

/// Nodes that depend on a parameter and lead to the loss, both by operands that
/// have a derivative.
fn active(graph: &Graph, loss: ValueId, wrt: &[ValueId]) -> Result<BTreeSet<NodeId>, GradientError> {
    // By any operand at all: tells what lies beside the way from what cuts it.
    let ancestors = leading_to(graph, loss.node, |_, _| true);
    let reaching = leading_to(graph, loss.node, |id, slot| rules::flow(graph, id, slot) == Flow::Through);
    let mut depends = BTreeSet::new();
    for &parameter in wrt {
        let mut seen = BTreeSet::from([parameter.node]);
        let mut queue = vec![parameter.node];
        let mut cut = None;
        while let Some(at) = queue.pop() {
            for (user, slot) in graph.users(at.value()) {
                if !ancestors.contains(&user) {
                    continue;
                }
                match rules::flow(graph, user, usize::from(slot)) {
                    Flow::Through if seen.insert(user) => queue.push(user),
                    Flow::Through => {}
                    // The oldest, so that the message does not depend on the walk.
                    Flow::Cut => cut = Some(cut.map_or(user, |old: NodeId| old.min(user))),
                    Flow::Refused(remedy) => {
                        let node = graph.node(user);
                        return Err(GradientError::NotDifferentiable {
                            node: node.name.clone(),
                            op: node.op.name(),
                            remedy,
                        });
                    }
                }
            }
        }
        if !seen.contains(&loss.node) {
            let (name, loss) = (graph.node(parameter.node).name.clone(), graph.node(loss.node).name.clone());
            return Err(match cut.map(|id| graph.node(id)) {
                Some(node) => GradientError::Cut { name, loss, node: node.name.clone(), op: node.op.name() },
                None => GradientError::NoPath { name, loss },
            });
        }
        depends.extend(seen);
    }
    Ok(depends.intersection(&reaching).copied().collect())
}

/// Nodes that move `value` when they move: none that only choices lead away from.
pub(crate) fn moving(graph: &Graph, value: ValueId) -> BTreeSet<NodeId> {
    leading_to(graph, value.node, |id, slot| rules::flow(graph, id, slot) != Flow::Cut)
}

/// Nodes from which `last` is reached over operands that `follows` accepts.
pub(crate) fn leading_to(graph: &Graph, last: NodeId, follows: impl Fn(NodeId, usize) -> bool) -> BTreeSet<NodeId> {
    let mut seen = BTreeSet::from([last]);
    let mut queue = vec![last];
    while let Some(id) = queue.pop() {
        for (slot, operand) in graph.operands(id).into_iter().enumerate() {
            if follows(id, slot) && seen.insert(operand.node) {
                queue.push(operand.node);
            }
        }
    }
    seen
}
