//! Several steps of a recurrent policy as one graph: backpropagation through
//! time is differentiating that.
//!
//! Weights, their quantizers and whatever else depends on constants alone are
//! there once, so their gradients are sums over the steps. Everything else is
//! there once a step. Exact: each step computes what it computed. Where a state
//! is rounded when a step reads it, it leaves the integers of the step before as a
//! number, as it does between two runs of an artifact.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    Concat, ConstData, Constant, Film, Graph, Input, NodeId, Op, Origin, Reshape, Slice, SliceAxis, TensorType,
    TypeError, ValueId,
};

/// Most steps of a window.
pub const MAX_STEPS: usize = 1024;

/// A value that a step hands to the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name of the input.
    pub input: String,
    /// Name of the output that the next step reads there.
    pub output: String,
}

/// A graph that cannot be unrolled.
#[derive(Debug, thiserror::Error)]
pub enum UnrollError {
    /// No step, or too many.
    #[error("cannot unroll {steps} steps: a window has 1 to {MAX_STEPS}")]
    Steps {
        /// How many.
        steps: usize,
    },
    /// A state that is no input.
    #[error("there is no input `{name}`; the graph takes {known}")]
    NoInput {
        /// The state.
        name: String,
        /// What the graph takes.
        known: String,
    },
    /// A state that is no output.
    #[error("there is no output `{name}`; the graph gives {known}")]
    NoOutput {
        /// The state.
        name: String,
        /// What the graph gives.
        known: String,
    },
    /// An input or output of two states.
    #[error("`{name}` belongs to two states")]
    Twice {
        /// The input or output.
        name: String,
    },
    /// A state that comes back as something else.
    #[error("state `{input}` is {expected}, but `{output}` is {found}: a state has one type")]
    StateType {
        /// The input.
        input: String,
        /// Its type.
        expected: TensorType,
        /// The output.
        output: String,
        /// Its type.
        found: TensorType,
    },
    /// A node that does not fit into its new place: a bug.
    #[error("internal error: cannot unroll node `{node}`")]
    Node {
        /// The node.
        node: String,
        /// What does not fit.
        #[source]
        source: TypeError,
    },
}

/// Joins `steps` steps of a graph. States begin as inputs of their name and end
/// as outputs of theirs. Every other input and output has all steps along a new
/// axis behind the batch axis (`obs[B, D]` becomes `obs[B, T, D]`), or in front if there is no batch.
///
/// # Errors
/// See [`UnrollError`].
pub fn unroll(graph: &Graph, states: &[State], steps: usize) -> Result<Graph, UnrollError> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(UnrollError::Steps { steps });
    }
    let carried = carried(graph, states)?;
    let mut unrolled = Unrolled {
        old: graph,
        new: Graph::new(graph.name.clone()),
        time: graph.batch_axis.map_or(0, |axis| axis + 1),
        places: BTreeMap::new(),
    };
    unrolled.new.metadata = graph.metadata.clone();
    unrolled.new.batch_axis = graph.batch_axis;
    unrolled.new.states = graph.states.clone();
    let varies = behind_inputs(graph);
    let mut inputs: BTreeMap<NodeId, ValueId> = BTreeMap::new();
    for &id in graph.inputs() {
        let mut ty = graph.ty(id.value()).clone();
        if !carried.contains_key(&id) {
            ty.shape.insert(unrolled.time.min(ty.shape.len()), steps);
        }
        inputs.insert(id, unrolled.new.add_input(graph.node(id).name.clone(), ty));
    }
    let order = graph.topo();
    for &id in order.iter().filter(|id| !varies.contains(id)) {
        unrolled.copy(id, None)?;
    }
    let mut outputs: Vec<Vec<ValueId>> = vec![Vec::new(); graph.outputs.len()];
    let mut state: BTreeMap<NodeId, ValueId> = BTreeMap::new();
    for step in 0..steps {
        for &id in order.iter().filter(|id| varies.contains(id)) {
            match (inputs.get(&id), carried.get(&id)) {
                (Some(&input), Some(_)) => {
                    let value = match state.get(&id) {
                        Some(&handed) if is_rounded(graph, id) => unrolled.border(id, handed, step)?,
                        Some(&handed) => handed,
                        None => input,
                    };
                    unrolled.places.insert(id.value(), value);
                }
                (Some(&input), None) => unrolled.one_of(id, input, step)?,
                (None, _) => unrolled.copy(id, Some(step))?,
            }
        }
        state = carried.iter().map(|(&id, &output)| (id, unrolled.place(output))).collect();
        for (all, output) in outputs.iter_mut().zip(&graph.outputs) {
            all.push(unrolled.place(output.value));
        }
    }
    for (output, all) in graph.outputs.iter().zip(outputs) {
        let is_state = states.iter().any(|state| state.output == output.name);
        let value = match all.last() {
            Some(&last) if is_state => last,
            _ => unrolled.stack(&output.name, output.value, &all)?,
        };
        unrolled.new.add_output(output.name.clone(), value);
    }
    Ok(unrolled.new)
}

/// The output that each input of a state is read from in the next step.
fn carried(graph: &Graph, states: &[State]) -> Result<BTreeMap<NodeId, ValueId>, UnrollError> {
    let list = |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut carried = BTreeMap::new();
    let mut outputs = BTreeSet::new();
    for State { input, output } in states {
        let id = graph.inputs().iter().copied().find(|&id| graph.node(id).name == *input);
        let id = id.ok_or_else(|| UnrollError::NoInput {
            name: input.clone(),
            known: list(graph.inputs().iter().map(|&id| graph.node(id).name.as_str()).collect()),
        })?;
        let found = graph.outputs.iter().find(|found| found.name == *output).map(|found| found.value);
        let value = found.ok_or_else(|| UnrollError::NoOutput {
            name: output.clone(),
            known: list(graph.outputs.iter().map(|output| output.name.as_str()).collect()),
        })?;
        let (expected, found) = (graph.ty(id.value()).clone(), graph.ty(value).clone());
        if expected != found {
            return Err(UnrollError::StateType { input: input.clone(), expected, output: output.clone(), found });
        }
        if carried.insert(id, value).is_some() {
            return Err(UnrollError::Twice { name: input.clone() });
        }
        if !outputs.insert(output.as_str()) {
            return Err(UnrollError::Twice { name: output.clone() });
        }
    }
    Ok(carried)
}

/// True if a quantizer reads an input.
fn is_rounded(graph: &Graph, input: NodeId) -> bool {
    graph.users(input.value()).iter().any(|(user, _)| matches!(graph.node(*user).op, Op::FakeQuant(_)))
}

/// Inputs and what depends on them.
fn behind_inputs(graph: &Graph) -> BTreeSet<NodeId> {
    let mut varies = BTreeSet::new();
    for id in graph.topo() {
        let is_input = matches!(graph.node(id).op, Op::Input(Input { .. }));
        if is_input || graph.operands(id).iter().any(|operand| varies.contains(&operand.node)) {
            varies.insert(id);
        }
    }
    varies
}

struct Unrolled<'g> {
    old: &'g Graph,
    new: Graph,
    /// The axis of the steps.
    time: usize,
    /// Where the values of the present step are.
    places: BTreeMap<ValueId, ValueId>,
}

impl Unrolled<'_> {
    /// Operands come before their users, so every value has a place.
    fn place(&self, value: ValueId) -> ValueId {
        self.places.get(&value).copied().unwrap_or(value)
    }

    fn add(&mut self, old: NodeId, name: String, op: Op, operands: &[ValueId]) -> Result<ValueId, UnrollError> {
        let node = self.old.node(old);
        let error = |source| UnrollError::Node { node: node.name.clone(), source };
        Ok(self.new.add(name, op, operands, node.origin.clone()).map_err(error)?.value())
    }

    /// A node, once or for one step.
    fn copy(&mut self, id: NodeId, step: Option<usize>) -> Result<(), UnrollError> {
        let node = self.old.node(id);
        let value = match &node.op {
            Op::Const(c) => {
                let constant = Constant::clone(self.old.constant(c.id));
                self.new.add_const(node.name.clone(), constant, node.origin.clone())
            }
            op => {
                let operands: Vec<ValueId> = self.old.operands(id).into_iter().map(|value| self.place(value)).collect();
                let name = step.map_or(node.name.clone(), |step| format!("{}.t{step}", node.name));
                self.add(id, name, op.clone(), &operands)?
            }
        };
        self.places.insert(id.value(), value);
        Ok(())
    }

    /// The state as a number: `x * 1 + 0`, which no region of codes goes through.
    fn border(&mut self, id: NodeId, handed: ValueId, step: usize) -> Result<ValueId, UnrollError> {
        let name = self.old.node(id).name.clone();
        let number = |x: f64| Constant { ty: TensorType::f32([]), data: ConstData::Splat(x) };
        let one = self.new.add_const(format!("{name}.one{step}"), number(1.0), Origin::default());
        let zero = self.new.add_const(format!("{name}.zero{step}"), number(0.0), Origin::default());
        self.add(id, format!("{name}.t{step}"), Op::Film(Film), &[handed, one, zero])
    }

    /// What one step sees of an input.
    fn one_of(&mut self, id: NodeId, input: ValueId, step: usize) -> Result<(), UnrollError> {
        let shape = self.new.ty(input).shape.clone();
        let own = self.old.ty(id.value()).shape.clone();
        let time = self.time.min(own.len());
        let axis = |(axis, &extent): (usize, &usize)| match axis == time {
            true => SliceAxis { start: step, len: 1, step: 1 },
            false => SliceAxis { start: 0, len: extent, step: 1 },
        };
        let name = self.old.node(id).name.clone();
        let axes = shape.iter().enumerate().map(axis).collect();
        let slice = self.add(id, format!("{name}.at{step}"), Op::Slice(Slice { axes }), &[input])?;
        let value = self.add(id, format!("{name}.t{step}"), Op::Reshape(Reshape { shape: own }), &[slice])?;
        self.places.insert(id.value(), value);
        Ok(())
    }

    /// The values of all steps along the axis of the steps.
    fn stack(&mut self, name: &str, old: ValueId, all: &[ValueId]) -> Result<ValueId, UnrollError> {
        let mut shape = self.old.ty(old).shape.clone();
        let time = self.time.min(shape.len());
        shape.insert(time, 1);
        let mut parts = Vec::with_capacity(all.len());
        for (step, &value) in all.iter().enumerate() {
            let op = Op::Reshape(Reshape { shape: shape.clone() });
            parts.push(self.add(old.node, format!("{name}.of{step}"), op, &[value])?);
        }
        match parts[..] {
            [one] => Ok(one),
            _ => self.add(old.node, format!("{name}.steps"), Op::Concat(Concat { axis: time }), &parts),
        }
    }
}
