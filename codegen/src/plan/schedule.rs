//! What is around the steps: turns of a repeat, and states that outlive a run.
//!
//! Steps that no turn changes come first and run once: a policy that encodes an
//! image and then denoises an action encodes once. Behind the steps of a turn,
//! copies hand its results to the next one; behind all steps, copies put the new
//! states where the next run reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use qail_artifact::schema::{Place, State, Step, Storage, step};
use qail_ir::{Graph, NodeId, Op, Repeat, ValueId};

use super::{
    builder::{Builder, Source},
    movement::shape_of,
};
use crate::CodegenError;

/// Nodes that a repeat computes anew in each turn: inputs that change, and what
/// depends on them.
pub(crate) fn varying(graph: &Graph) -> BTreeSet<NodeId> {
    let mut varying = BTreeSet::new();
    if graph.repeat.is_none() {
        return varying;
    }
    for node in graph.topo() {
        let name = &graph.node(node).name;
        let is_input = matches!(graph.node(node).op, Op::Input(_));
        let changes = (is_input && is_carried(graph, name))
            || graph.operands(node).iter().any(|operand| varying.contains(&operand.node));
        if changes {
            varying.insert(node);
        }
    }
    varying
}

/// True for inputs that take over the value of an output, and for turns.
pub(crate) fn is_handed(graph: &Graph, input: &str) -> bool {
    is_carried(graph, input) || graph.state_of_input(input).is_some()
}

/// True for inputs that change from turn to turn.
fn is_carried(graph: &Graph, input: &str) -> bool {
    let mut carries = graph.repeat.iter().flat_map(|repeat| &repeat.carries);
    graph.is_turn(input) || carries.any(|carry| carry.input == input)
}

/// The node whose elements a value holds, in whatever shape and order.
fn root_of(graph: &Graph, value: ValueId) -> NodeId {
    let moved = |node: NodeId| {
        let is_moved = matches!(graph.node(node).op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_));
        graph.operands(node).first().filter(|_| is_moved).map(|operand| operand.node)
    };
    let nodes = std::iter::successors(Some(value.node), |&node| moved(node));
    nodes.last().unwrap_or(value.node)
}

/// Which steps are those of a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// The first one, if there is a repeat and something changes in it.
    pub(crate) first: Option<usize>,
    /// One past the last one.
    pub(crate) last: usize,
}

impl Turns {
    /// The steps of a turn; empty without a repeat.
    pub(crate) fn range(self) -> Range<usize> {
        self.first.map_or(0..0, |first| first..self.last)
    }

    /// Makes one step of those of a turn.
    pub(crate) fn fold(
        self,
        mut steps: Vec<Step>,
        repeat: Option<&Repeat>,
        turn: Option<u32>,
    ) -> Result<Vec<Step>, CodegenError> {
        let Some((repeat, range)) = repeat.zip(self.first.map(|_| self.range())) else { return Ok(steps) };
        let n = u32::try_from(repeat.n).map_err(|_| CodegenError::internal("turns are counted in 32 bits"))?;
        let body = steps.splice(range.clone(), []).collect();
        let op = Some(step::Op::Repeat(step::Repeat { n, steps: body, turn }));
        let step = Step { name: "repeat".to_owned(), place: Place::Host.into(), dispatch: None, op };
        steps.insert(range.start, step);
        Ok(steps)
    }
}

impl Builder<'_> {
    /// Hands the results of a turn to the next one.
    pub(crate) fn carries(&mut self, inputs: &BTreeMap<NodeId, u32>) -> Result<(), CodegenError> {
        let graph = self.graph;
        let Some(repeat) = &graph.repeat else { return Ok(()) };
        for output in &graph.outputs {
            let root = root_of(graph, output.value);
            let name = &graph.node(root).name;
            let carry = repeat.carries.iter().find(|carry| carry.input == *name);
            if matches!(graph.node(root).op, Op::Input(_)) && carry.is_some_and(|carry| carry.output != output.name) {
                let reason = format!(
                    "output `{}` is what the last turn began with, and the next turn takes its place; leave it out",
                    output.name
                );
                return Err(self.unsupported(root, reason));
            }
        }
        let pairs = repeat.carries.iter().map(|carry| (carry.input.as_str(), carry.output.as_str()));
        self.hand_on(&pairs.collect::<Vec<_>>(), inputs)
    }

    /// Keeps what the next run reads, and lists it.
    pub(crate) fn states(&mut self, inputs: &BTreeMap<NodeId, u32>) -> Result<Vec<State>, CodegenError> {
        let graph = self.graph;
        let pairs = graph.states.iter().map(|state| (state.input.as_str(), state.output.as_str()));
        self.hand_on(&pairs.collect::<Vec<_>>(), inputs)?;
        let mut states = Vec::with_capacity(graph.states.len());
        for state in &graph.states {
            let axis = state.element_axis.map(u32::try_from).transpose();
            let (_, tensor) = self.input_of(&state.input, inputs)?;
            states.push(State {
                name: state.input.clone(),
                tensor,
                element_axis: axis.map_err(|_| CodegenError::internal("axes are counted in 32 bits"))?,
                limit: state.limit,
            });
        }
        Ok(states)
    }

    fn input_of(&self, name: &str, inputs: &BTreeMap<NodeId, u32>) -> Result<(ValueId, u32), CodegenError> {
        let value = self.graph.input_named(name);
        let found = value.and_then(|value| Some((value, *inputs.get(&value.node)?)));
        found.ok_or_else(|| CodegenError::internal("every input that takes over a value has a tensor"))
    }

    /// Copies outputs into the tensors of inputs, all at once: an output that is
    /// itself one of the inputs is put aside first.
    fn hand_on(&mut self, pairs: &[(&str, &str)], inputs: &BTreeMap<NodeId, u32>) -> Result<(), CodegenError> {
        let mut copies = Vec::new();
        for &(input, output) in pairs {
            let (to_value, to) = self.input_of(input, inputs)?;
            let value = self.graph.output_named(output);
            let value = value.ok_or_else(|| CodegenError::internal("every output of a verified graph exists"))?;
            if value == to_value {
                continue;
            }
            let source = self.source(value.node, value, Place::Host)?;
            let is_input = matches!(source, Source::Tensor(tensor) if inputs.values().any(|&input| input == tensor));
            let mut from = self.tensor_of(value.node, value, Place::Host)?;
            if is_input {
                let aside = self.tensor(value.node, &format!("{input}.next"), self.graph.ty(to_value))?;
                self.hand(input, value, from, aside)?;
                from = aside;
            }
            copies.push((input, value, from, to));
        }
        for (input, value, from, to) in copies {
            self.hand(input, value, from, to)?;
        }
        Ok(())
    }

    /// One copy, where both tensors are used.
    fn hand(&mut self, input: &str, value: ValueId, from: u32, to: u32) -> Result<(), CodegenError> {
        let (a, b) = (self.entry(from)?.storage(), self.entry(to)?.storage());
        let name = format!("{input}.next");
        if a != b {
            // Computed integers are 32 bits wide, an input is what it says.
            let cast = step::Cast { x: from, out: to, to: step::CastKind::Same.into() };
            self.push_named(name, Place::Host, step::Op::Cast(cast));
            return Ok(());
        }
        let shape = shape_of(self, value);
        let strides = self.strides(value.node, &shape, shape.last().copied().unwrap_or(1))?;
        let x = step::Operand { source: Some(step::Source::Tensor(from)), strides: strides.clone(), offset: 0 };
        let on_device = a == Storage::F32 && self.is_on_device(from) && self.is_on_device(to);
        let place = if on_device { Place::Device } else { Place::Host };
        let copy = step::Copy { x, out: to, shape, out_strides: strides, out_offset: 0 };
        self.push_named(name, place, step::Op::Copy(copy));
        Ok(())
    }

    /// True if a device step names the tensor.
    fn is_on_device(&self, tensor: u32) -> bool {
        self.steps.iter().filter(|step| step.place() == Place::Device).any(|step| {
            let operands = step.operands();
            operands.write == Some(tensor) || operands.reads.contains(&tensor)
        })
    }
}
