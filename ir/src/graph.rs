//! Storage of the graph. The only module that knows petgraph.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use petgraph::{
    Direction,
    stable_graph::{NodeIndex, StableDiGraph},
    visit::EdgeRef,
};

use crate::eq::canonical_order;
use crate::{ConstId, Constant, Op, Repeat, State, TensorType, TypeError, op};

/// Stable id of a node: it outlives the removal of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex);

impl NodeId {
    /// The first result of the node.
    pub fn value(self) -> ValueId {
        ValueId { node: self, slot: 0 }
    }
}

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The node that defines the value.
    pub node: NodeId,
    /// Which of its results.
    pub slot: u16,
}

/// Names of the source model's nodes that a node comes from: the source span of
/// this compiler. Fusions merge origins; nobody drops them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin(Arc<BTreeSet<String>>);

impl Origin {
    /// One name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(BTreeSet::from([name.into()])))
    }

    /// Both sets of names.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        if other.0.is_subset(&self.0) {
            return self.clone();
        }
        Self(Arc::new(self.0.union(&other.0).cloned().collect()))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<String> for Origin {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self(Arc::new(names.into_iter().collect()))
    }
}

/// One operation, its name, the types of its results and where it comes from.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in the text form, unique in the graph.
    pub name: String,
    /// What is computed.
    pub op: Op,
    /// Types of the results.
    pub outputs: Vec<TensorType>,
    /// Nodes of the source model.
    pub origin: Origin,
}

/// A value handed back to the caller, under the name that the caller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name in the source model.
    pub name: String,
    /// The value.
    pub value: ValueId,
}

#[derive(Clone, Copy, Debug)]
struct Wire {
    from_slot: u16,
    to_slot: u16,
}

/// A model: nodes joined by wires, without cycles.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// Values handed back to the caller, in order.
    pub outputs: Vec<Output>,
    /// Axis of every input and output along which samples lie, if there is one.
    pub batch_axis: Option<usize>,
    /// Key-value pairs of the source model that survive into the artifact.
    pub metadata: BTreeMap<String, String>,
    /// Values that are kept from run to run.
    pub states: Vec<State>,
    /// How often the graph runs, if not once.
    pub repeat: Option<Repeat>,
    inner: StableDiGraph<Node, Wire>,
    inputs: Vec<NodeId>,
    consts: Vec<Arc<Constant>>,
    names: BTreeSet<String>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a node and infers the types of its results. A name that is taken
    /// gets a number, so that names stay unique.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[ValueId],
        origin: Origin,
    ) -> Result<NodeId, TypeError> {
        if inputs.len() > usize::from(u16::MAX) {
            return Err(TypeError::new(op.name(), "at most 65535 operands", &[]));
        }
        let operands: Vec<&TensorType> = inputs.iter().map(|&value| self.ty(value)).collect();
        let outputs = op.infer(&operands)?;
        let is_input = matches!(op, Op::Input(_));
        let name = self.claim_name(name.into());
        let node = self.inner.add_node(Node { name, op, outputs, origin });
        for (value, to_slot) in inputs.iter().zip(0u16..) {
            self.inner.add_edge(value.node.0, node, Wire { from_slot: value.slot, to_slot });
        }
        if is_input {
            self.inputs.push(NodeId(node));
        }
        Ok(NodeId(node))
    }

    /// Adds an input of the model; the type may hold anything.
    pub fn add_input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let name = name.into();
        let origin = Origin::new(name.clone());
        self.add_leaf(name, Op::Input(op::Input { ty }), origin)
    }

    /// Adds a constant and the node that reads it.
    pub fn add_const(&mut self, name: impl Into<String>, constant: Constant, origin: Origin) -> ValueId {
        let ty = constant.ty.clone();
        let id = ConstId(self.consts.len() as u32);
        self.consts.push(Arc::new(constant));
        self.add_leaf(name.into(), Op::Const(op::Const { id, ty }), origin)
    }

    /// A leaf carries its own type, so nothing can mismatch.
    fn add_leaf(&mut self, name: String, op: Op, origin: Origin) -> ValueId {
        let is_input = matches!(op, Op::Input(_));
        let outputs = op.infer(&[]).unwrap_or_default();
        let name = self.claim_name(name);
        let node = NodeId(self.inner.add_node(Node { name, op, outputs, origin }));
        if is_input {
            self.inputs.push(node);
        }
        node.value()
    }

    fn claim_name(&mut self, name: String) -> String {
        let base = if name.is_empty() { "v".to_owned() } else { name };
        let mut unique = base.clone();
        let mut n = 1u64;
        while !self.names.insert(unique.clone()) {
            unique = format!("{base}.{n}");
            n += 1;
        }
        unique
    }

    /// Hands a value back to the caller.
    pub fn add_output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Inputs of the model, in order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The node behind an id.
    ///
    /// # Panics
    /// If the node was removed: ids do not outlive their own node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.inner[id.0]
    }

    /// True if the node was not removed.
    pub fn contains(&self, id: NodeId) -> bool {
        self.inner.contains_node(id.0)
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.inner[value.node.0].outputs[usize::from(value.slot)]
    }

    /// The operation that defines a value.
    pub fn op(&self, value: ValueId) -> &Op {
        &self.inner[value.node.0].op
    }

    /// A constant of the graph.
    pub fn constant(&self, id: ConstId) -> &Arc<Constant> {
        &self.consts[id.0 as usize]
    }

    /// A constant, if the graph has it.
    pub fn get_constant(&self, id: ConstId) -> Option<&Arc<Constant>> {
        self.consts.get(id.0 as usize)
    }

    /// The constant behind a value, if a constant defines it.
    pub fn const_of(&self, value: ValueId) -> Option<&Arc<Constant>> {
        match self.op(value) {
            Op::Const(c) => Some(self.constant(c.id)),
            _ => None,
        }
    }

    /// Replaces the elements of a constant; the type stays.
    pub fn set_const(&mut self, id: ConstId, constant: Constant) -> Result<(), TypeError> {
        let slot = &mut self.consts[id.0 as usize];
        if slot.ty != constant.ty {
            return Err(TypeError::new("const", "a constant of the same type", &[&constant.ty]));
        }
        *slot = Arc::new(constant);
        Ok(())
    }

    /// Operands of a node, in order.
    pub fn operands(&self, id: NodeId) -> Vec<ValueId> {
        let mut wires: Vec<(u16, ValueId)> = self
            .inner
            .edges_directed(id.0, Direction::Incoming)
            .map(|e| (e.weight().to_slot, ValueId { node: NodeId(e.source()), slot: e.weight().from_slot }))
            .collect();
        wires.sort();
        wires.into_iter().map(|(_, value)| value).collect()
    }

    /// Nodes that read a value, with the operand slot, in a stable order.
    /// Outputs of the graph are not among them: see [`Graph::is_output`].
    pub fn users(&self, value: ValueId) -> Vec<(NodeId, u16)> {
        let mut users: Vec<(NodeId, u16)> = self
            .inner
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().from_slot == value.slot)
            .map(|e| (NodeId(e.target()), e.weight().to_slot))
            .collect();
        users.sort();
        users
    }

    /// True if the value is handed back to the caller.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.iter().any(|output| output.value == value)
    }

    /// The only reader of a value, if there is exactly one and the value is not
    /// handed back to the caller.
    pub fn sole_user(&self, value: ValueId) -> Option<NodeId> {
        if self.is_output(value) {
            return None;
        }
        match self.users(value)[..] {
            [(user, _)] => Some(user),
            _ => None,
        }
    }

    /// Lets one operand read another value.
    pub fn rewire(&mut self, user: NodeId, slot: u16, to: ValueId) {
        let old =
            self.inner.edges_directed(user.0, Direction::Incoming).find(|e| e.weight().to_slot == slot).map(|e| e.id());
        if let Some(old) = old {
            self.inner.remove_edge(old);
        }
        self.inner.add_edge(to.node.0, user.0, Wire { from_slot: to.slot, to_slot: slot });
    }

    /// Lets a node compute something else. Its id, name, origin and readers stay;
    /// its types are inferred again, those of its readers are not: whoever
    /// changes a type goes on with them, operands first. Inputs stay inputs.
    pub fn redefine(&mut self, id: NodeId, op: Op, inputs: &[ValueId]) -> Result<(), TypeError> {
        let is_input = |op: &Op| matches!(op, Op::Input(_));
        if is_input(&op) != is_input(&self.node(id).op) || inputs.len() > usize::from(u16::MAX) {
            return Err(TypeError::new(op.name(), "the place of another such operation", &[]));
        }
        let operands: Vec<&TensorType> = inputs.iter().map(|&value| self.ty(value)).collect();
        let outputs = op.infer(&operands)?;
        self.inner.retain_edges(|inner, wire| inner.edge_endpoints(wire).is_none_or(|(_, to)| to != id.0));
        for (value, to_slot) in inputs.iter().zip(0u16..) {
            self.inner.add_edge(value.node.0, id.0, Wire { from_slot: value.slot, to_slot });
        }
        let node = &mut self.inner[id.0];
        (node.op, node.outputs) = (op, outputs);
        Ok(())
    }

    /// Lets every reader of `from`, outputs included, read `to` instead.
    pub fn replace_uses(&mut self, from: ValueId, to: ValueId) {
        for (user, slot) in self.users(from) {
            self.rewire(user, slot, to);
        }
        for output in &mut self.outputs {
            if output.value == from {
                output.value = to;
            }
        }
    }

    /// Removes a node that nobody reads. Returns false, and does nothing, if
    /// somebody does or if the node is an input of the model.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let read = self.inner.edges_directed(id.0, Direction::Outgoing).next().is_some()
            || self.outputs.iter().any(|output| output.value.node == id);
        if read || self.inputs.contains(&id) {
            return false;
        }
        if let Some(node) = self.inner.remove_node(id.0) {
            self.names.remove(&node.name);
        }
        true
    }

    /// Takes an input away from the signature of the model. Returns false, and
    /// does nothing, if somebody reads it or if it is none.
    pub fn drop_input(&mut self, id: NodeId) -> bool {
        let Some(place) = self.inputs.iter().position(|&input| input == id) else { return false };
        self.inputs.remove(place);
        if self.remove(id) {
            return true;
        }
        self.inputs.insert(place, id);
        false
    }

    /// Number of samples along the batch axis; 1 without one.
    pub fn batch_size(&self) -> usize {
        let first = self.inputs.iter().find(|&&id| {
            let name = &self.node(id).name;
            self.state_of_input(name).is_none() && !self.is_turn(name)
        });
        let extent = self.batch_axis.zip(first).and_then(|(axis, first)| self.ty(first.value()).shape.get(axis));
        extent.copied().unwrap_or(1)
    }

    /// Gives a node another name; a name that is taken gets a number.
    pub fn rename(&mut self, id: NodeId, name: impl Into<String>) {
        let old = std::mem::take(&mut self.inner[id.0].name);
        self.names.remove(&old);
        self.inner[id.0].name = self.claim_name(name.into());
    }

    /// Adds names to the origin of a node.
    pub fn merge_origin(&mut self, id: NodeId, origin: &Origin) {
        let node = &mut self.inner[id.0];
        node.origin = node.origin.merge(origin);
    }

    /// Every node, by age; nodes on a cycle are among them.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.inner.node_indices().map(NodeId)
    }

    /// Every node, operands before users; ties by age, so the order is stable.
    /// Nodes on a cycle are left out.
    pub fn topo(&self) -> Vec<NodeId> {
        let bound = self.inner.node_indices().map(|n| n.index() + 1).max().unwrap_or(0);
        let mut missing: Vec<usize> = vec![0; bound];
        for n in self.inner.node_indices() {
            missing[n.index()] = self.inner.edges_directed(n, Direction::Incoming).count();
        }
        let mut ready: BTreeSet<NodeIndex> = self.inner.node_indices().filter(|n| missing[n.index()] == 0).collect();
        let mut order = Vec::with_capacity(self.len());
        while let Some(n) = ready.pop_first() {
            order.push(NodeId(n));
            for e in self.inner.edges_directed(n, Direction::Outgoing) {
                missing[e.target().index()] -= 1;
                if missing[e.target().index()] == 0 {
                    ready.insert(e.target());
                }
            }
        }
        order
    }

    /// The same graph with the ids that it has when it is read from its text:
    /// removals leave ids that later nodes take, and ties go by ids.
    ///
    /// # Errors
    /// A graph that is not well-formed.
    pub fn compact(&self) -> Result<Self, TypeError> {
        let mut new = Self {
            name: self.name.clone(),
            batch_axis: self.batch_axis,
            metadata: self.metadata.clone(),
            states: self.states.clone(),
            repeat: self.repeat.clone(),
            ..Self::default()
        };
        let mut places: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let place = |places: &BTreeMap<NodeId, NodeId>, value: ValueId| match places.get(&value.node) {
            Some(&node) => Ok(ValueId { node, slot: value.slot }),
            None => Err(TypeError::new("graph", "operands before their users", &[])),
        };
        for id in canonical_order(self) {
            let Node { name, op, origin, .. } = self.node(id).clone();
            let node = match op {
                Op::Input(_) => new.add_leaf(name, op, origin).node,
                Op::Const(c) => new.add_const(name, Constant::clone(self.constant(c.id)), origin).node,
                op => {
                    let operands = self.operands(id).into_iter().map(|value| place(&places, value));
                    new.add(name, op, &operands.collect::<Result<Vec<_>, _>>()?, origin)?
                }
            };
            places.insert(id, node);
        }
        for output in &self.outputs {
            new.add_output(output.name.clone(), place(&places, output.value)?);
        }
        Ok(new)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.inner.node_count()
    }

    /// True if the graph has no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Unary, UnaryFn};

    fn relu(graph: &mut Graph, name: &str, x: ValueId) -> ValueId {
        graph.add(name, Op::Unary(Unary { f: UnaryFn::Relu }), &[x], Origin::default()).unwrap().value()
    }

    #[test]
    fn order_is_operands_first_ties_by_age() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1, 2]));
        let a = relu(&mut graph, "a", x);
        let b = relu(&mut graph, "b", x);
        let c = relu(&mut graph, "c", a);
        assert_eq!(graph.topo(), [x, a, b, c].map(|v| v.node));
    }

    #[test]
    fn a_node_may_compute_something_else_under_its_id() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1, 2]));
        let a = relu(&mut graph, "a", x);
        let b = relu(&mut graph, "b", a);
        graph.redefine(a.node, Op::Binary(crate::Binary { f: crate::BinaryFn::Add }), &[x, x]).unwrap();
        assert_eq!((graph.operands(a.node), graph.node(a.node).name.as_str()), (vec![x, x], "a"));
        assert_eq!(graph.users(a), [(b.node, 0)]);
        graph.redefine(x.node, Op::Input(op::Input { ty: TensorType::f32([3, 2]) }), &[]).unwrap();
        assert_eq!(graph.inputs(), [x.node]);
        assert!(graph.redefine(a.node, Op::Input(op::Input { ty: TensorType::f32([1]) }), &[]).is_err());
        assert!(graph.redefine(a.node, Op::MatMul(crate::MatMul), &[x]).is_err());
        assert_eq!(graph.operands(a.node), [x, x]);
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1]));
        let y = relu(&mut graph, "x", x);
        assert_eq!(graph.node(y.node).name, "x.1");
    }

    #[test]
    fn a_compact_graph_has_the_ids_of_its_text() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1, 2]));
        let dead = relu(&mut graph, "dead", x);
        let a = relu(&mut graph, "a", x);
        assert!(graph.remove(dead.node));
        // Takes the place of `dead`, and so comes before `a`.
        let b = relu(&mut graph, "b", x);
        graph.add_output("y", a);
        graph.add_output("z", b);
        let compact = graph.compact().unwrap();
        assert!(compact == graph);
        let ids = |graph: &Graph| graph.nodes().map(|id| graph.node(id).name.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&compact), ids(&crate::text::parse(&crate::text::print(&graph)).unwrap()));
    }

    #[test]
    fn only_inputs_that_nobody_reads_are_dropped() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1]));
        let y = graph.add_input("y", TensorType::f32([1]));
        let a = relu(&mut graph, "a", x);
        graph.add_output("a", a);
        assert!(!graph.drop_input(x.node) && !graph.drop_input(a.node));
        assert!(graph.drop_input(y.node));
        assert_eq!(graph.inputs(), [x.node]);
    }

    #[test]
    fn a_value_that_is_read_is_not_removed() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1]));
        let a = relu(&mut graph, "a", x);
        let b = relu(&mut graph, "b", a);
        graph.add_output("y", b);
        assert!(!graph.remove(a.node));
        assert!(!graph.remove(b.node));
        graph.replace_uses(b, x);
        assert!(graph.remove(b.node) && graph.remove(a.node));
        assert_eq!(graph.outputs[0].value, x);
    }
}
