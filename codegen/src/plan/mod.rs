//! A lowered graph becomes a plan: steps over tensors at fixed places.
//!
//! 1. `place` decides who computes a node and orders the nodes,
//! 2. `quant`, `float` and `movement` select steps, node by node,
//! 3. inputs and outputs get tensors in host memory, with a copy where a device
//!    step works on the value; `schedule` hands on what turns and runs leave for
//!    the next ones,
//! 4. `memory` assigns arenas and offsets,
//! 5. `dispatch` gives every device step its kernel.

mod builder;
mod dispatch;
mod float;
mod function;
mod memory;
mod movement;
mod place;
mod quant;
mod rope;
mod rows;
mod schedule;
mod section;
mod select;
pub(crate) mod shape;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use qail_artifact::{
    WriteError, Writer,
    schema::{EntryPoint, GROUPS_FEATURE, Manifest, Place, Port, REPEAT_FEATURE, Section, Step, Storage, step},
};
use qail_ir::{DType, Graph, NodeId, Op};

pub use section::{SectionBytes, SectionData, Sink};

use self::{
    builder::{Builder, Source},
    place::Placement,
    quant::Fusions,
    schedule::Turns,
};
use crate::CodegenError;

/// Allowed values of an input or output, one number an element of the last axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bounds {
    /// Smallest values.
    pub lower: Vec<f64>,
    /// Largest values.
    pub upper: Vec<f64>,
}

/// What the caller chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildOptions {
    /// Bounds of inputs and outputs, by name.
    pub bounds: BTreeMap<String, Bounds>,
    /// Emit a kernel for every device step. Without, the plan runs on a CPU only
    /// and is free of the limits of a GPU.
    pub shaders: bool,
    /// Inputs, by name, that are standard normal noise.
    pub noise: BTreeSet<String>,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { bounds: BTreeMap::new(), shaders: true, noise: BTreeSet::new(), seed: 0 }
    }
}

/// A manifest and the bytes of its sections.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Complete except for what the caller knows: precision, provenance, layers,
    /// rate, evaluation. Offsets and checksums of sections are those of a file.
    pub manifest: Manifest,
    /// The sections, in the order of the manifest.
    pub sections: Vec<SectionData>,
}

impl Plan {
    /// The finished file. Sections keep their indices: a plan has no two with
    /// equal contents.
    ///
    /// # Errors
    ///
    /// As [`Plan::write`], and if the file would be refused by its own reader.
    pub fn to_file(&self) -> Result<Vec<u8>, CodegenError> {
        let mut writer = Writer::new();
        self.write(&mut writer, &mut |_| {})?;
        Ok(writer.finish(self.manifest.clone())?)
    }

    /// Writes the sections, with the indices that they have in the plan, and
    /// tells `progress` how many bytes have been written so far.
    ///
    /// # Errors
    ///
    /// Constants that cannot be read, and a file that cannot be written.
    pub fn write<W: io::Write + io::Seek>(
        &self,
        writer: &mut Writer<W>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CodegenError> {
        let mut done = 0u64;
        for section in &self.sections {
            writer.add_parts::<CodegenError>(&section.name, section.layout, |sink| {
                section.bytes.write(&section.name, &mut |part: &[u8]| -> Result<(), WriteError> {
                    done = done.saturating_add(part.len() as u64);
                    progress(done);
                    sink(part)
                })
            })?;
        }
        Ok(())
    }

    /// Bytes of all sections.
    pub fn n_bytes(&self) -> u64 {
        self.sections.iter().fold(0, |n, section| n.saturating_add(section.bytes.len()))
    }
}

/// Turns a lowered graph into a plan.
///
/// # Errors
///
/// [`CodegenError`], which names the node.
pub fn build(graph: &Graph, options: &BuildOptions) -> Result<Plan, CodegenError> {
    let placement = Placement::new(graph);
    let fusions = Fusions::new(graph);
    let mut builder = Builder::new(graph, &placement);
    let mut inputs: Vec<u32> = Vec::new();
    let mut turns = Turns::default();
    for &node in &placement.order {
        if placement.varies(node) && turns.first.is_none() {
            turns.first = Some(builder.steps.len());
        }
        if let Op::Input(_) = graph.node(node).op {
            inputs.push(builder.input(node, &placement)?);
        } else {
            builder.node(node, &placement, &fusions, &inputs)?;
        }
    }
    // The graph numbers its inputs; the plan made them in the order of the steps.
    let input_nodes = placement.order.iter().copied().filter(|node| matches!(graph.node(*node).op, Op::Input(_)));
    let by_node: BTreeMap<NodeId, u32> = input_nodes.zip(inputs.iter().copied()).collect();
    builder.carries(&by_node)?;
    turns.last = builder.steps.len();
    // An output may be what a state was: it is copied before the new state is.
    let outputs = builder.outputs(&inputs)?;
    let states = builder.states(&by_node)?;

    let port = |name: &str, tensor: u32| {
        let bounds = options.bounds.get(name).cloned().unwrap_or_default();
        Port { name: name.to_owned(), tensor, lower: bounds.lower, upper: bounds.upper }
    };
    let mut entry = EntryPoint { name: "main".to_owned(), states, ..EntryPoint::default() };
    if !options.noise.is_empty() {
        entry.seed = options.seed;
    }
    for node in graph.inputs() {
        let name = &graph.node(*node).name;
        if graph.is_turn(name) || graph.state_of_input(name).is_some() {
            continue;
        }
        let tensor = by_node.get(node).copied().ok_or_else(|| CodegenError::internal("every input has a tensor"))?;
        let list = if options.noise.contains(name) { &mut entry.noise } else { &mut entry.inputs };
        list.push(port(name, tensor));
    }
    for (output, &tensor) in
        graph.outputs.iter().filter(|output| graph.state_of_output(&output.name).is_none()).zip(&outputs)
    {
        entry.outputs.push(port(&output.name, tensor));
    }

    let ports: BTreeSet<u32> = inputs.into_iter().chain(outputs).collect();
    let arenas = memory::plan(&builder.steps, &mut builder.tensors, &ports, turns.range())?;
    let kernels = if options.shaders { dispatch::assign(&mut builder)? } else { Vec::new() };
    let Builder { sections, tensors, steps, .. } = builder;
    let is_scheduled = graph.repeat.is_some() || !graph.states.is_empty() || !entry.noise.is_empty();
    let min_reader = if is_scheduled { 3 } else { min_reader(&steps) };
    let mut required_features = required_features(&steps);
    if graph.repeat.is_some() {
        required_features.push(REPEAT_FEATURE.to_owned());
    }
    let turn = graph.repeat.as_ref().and_then(|repeat| repeat.turn.as_deref());
    let turn = turn.and_then(|name| by_node.get(&graph.input_named(name)?.node)).copied();
    entry.steps = turns.fold(steps, graph.repeat.as_ref(), turn)?;
    let manifest = Manifest {
        min_reader,
        required_features,
        name: graph.name.clone(),
        sections: sections
            .iter()
            .map(|section| Section {
                name: section.name.clone(),
                layout: section.layout.into(),
                offset: 0,
                len: section.bytes.len(),
                sha256: Vec::new(),
            })
            .collect(),
        arenas,
        tensors,
        kernels,
        entries: vec![entry],
        metadata: graph.metadata.clone(),
        ..Manifest::default()
    };
    Ok(Plan { manifest, sections })
}

/// What a reader must know beside its version.
fn required_features(steps: &[Step]) -> Vec<String> {
    let in_groups = steps.iter().any(|step| matches!(step.op, Some(step::Op::QGroups(_))));
    in_groups.then(|| GROUPS_FEATURE.to_owned()).into_iter().collect()
}

/// Oldest reader that knows every step: 1 for what matrix products and functions
/// of numbers take, 3 for rotary embeddings, modulation, products in groups,
/// tables on codes, and rows that a device sorts or changes.
fn min_reader(steps: &[Step]) -> u32 {
    let since = |is_old: bool| if is_old { 1 } else { 2 };
    let reader = |op: &step::Op, place: Place| match op {
        step::Op::Quantize(_)
        | step::Op::QLinear(_)
        | step::Op::Requantize(_)
        | step::Op::Dequantize(_)
        | step::Op::MatMul(_)
        | step::Op::Copy(_)
        | step::Op::Repeat(_) => 1,
        step::Op::Linear(step::Linear { act, .. }) | step::Op::LinearWq(step::LinearWq { act, .. }) => {
            since(act.is_none_or(|f| f.kind <= step::FunctionKind::Identity.into()))
        }
        step::Op::Unary(op) => since(op.f.kind <= step::FunctionKind::Identity.into()),
        step::Op::Binary(op) => since(op.range.is_none() && op.f <= step::BinaryKind::Max.into()),
        step::Op::Reduce(op) => since(op.range.is_none() && op.f <= step::ReduceKind::Max.into()),
        step::Op::Unfold(_)
        | step::Op::Softmax(_)
        | step::Op::Normalize(_)
        | step::Op::Attention(_)
        | step::Op::Compare(_)
        | step::Op::Where(_)
        | step::Op::Gather(_)
        | step::Op::Cast(_)
        | step::Op::QAdd(_) => 2,
        // Older readers know them as host code.
        step::Op::Scatter(_) | step::Op::Order(_) | step::Op::Scan(_) if place == Place::Host => 2,
        step::Op::Scatter(_) | step::Op::Order(_) | step::Op::Scan(_) => 3,
        step::Op::Rope(_) | step::Op::Film(_) | step::Op::QGroups(_) | step::Op::Lookup(_) => 3,
    };
    steps.iter().filter_map(|step| Some(reader(step.op.as_ref()?, step.place()))).max().unwrap_or(1)
}

impl Builder<'_> {
    /// The tensor of a model input and, if device steps read it, its twin.
    fn input(&mut self, node: NodeId, placement: &Placement) -> Result<u32, CodegenError> {
        self.require_plain(node)?;
        let tensor = self.result(node)?;
        let value = node.value();
        let is_f32 = self.graph.ty(value).is_f32();
        // What a turn or a run hands on stays where it is used.
        let is_port = !schedule::is_handed(self.graph, &self.name(node));
        if is_f32 && is_port && self.graph.users(value).iter().any(|(user, _)| placement.place(*user) == Place::Device)
        {
            let x = self.operand(node, value, Place::Host)?;
            let graph = self.graph;
            let twin = self.tensor(node, &format!("{}.device", self.name(node)), graph.ty(value))?;
            let shape = movement::shape_of(self, value);
            let out_strides = x.strides.clone();
            self.push(
                node,
                Place::Host,
                step::Op::Copy(step::Copy { x, out: twin, shape, out_strides, out_offset: 0 }),
            );
            self.add_twin(tensor, twin);
        }
        Ok(tensor)
    }

    /// Fails for codes: what they stand for is known inside of the model only.
    fn require_plain(&self, node: NodeId) -> Result<(), CodegenError> {
        let ty = self.graph.ty(node.value());
        match ty.dtype() {
            Some(_) => Ok(()),
            None => Err(self.unsupported(node, format!("an input or output of type {ty}; plain numbers are accepted"))),
        }
    }

    /// The steps of a node.
    fn node(
        &mut self,
        node: NodeId,
        placement: &Placement,
        fusions: &Fusions,
        inputs: &[u32],
    ) -> Result<(), CodegenError> {
        let graph = self.graph;
        let place = placement.place(node);
        let op = &graph.node(node).op;
        match op {
            Op::Input(_) => Err(CodegenError::internal("inputs come before other nodes")),
            Op::Const(_) => Ok(()),
            Op::Unary(op) => self.unary(node, function::unary(op.f), place),
            Op::Binary(op) => self.binary(node, op.f, place),
            Op::MatMul(_) => self.matmul(node),
            Op::Linear(op) if op.groups > 1 => {
                Err(self.unsupported(node, "groups of channels in floats; run `expand-groups` first"))
            }
            Op::Linear(op) => self.linear(node, op.act, placement),
            Op::Reshape(_) => self.reshape(node, place, inputs),
            Op::Transpose(op) => self.transpose(node, &op.perm, place),
            Op::Slice(op) => self.slice(node, op, place),
            Op::Concat(op) => self.concat(node, op.axis, place),
            Op::Expand(_) => self.expand(node, place),
            Op::Reduce(op) => self.reduce(node, op, place),
            Op::Cast(_) => self.cast(node, place),
            Op::FakeQuant(_) => Err(self.unsupported(node, "lower the graph to integers first")),
            Op::Quantize(op) => self.quantize(node, op),
            Op::QLinear(op) => self.qlinear(node, op.groups, fusions),
            Op::Requantize(_) => self.requantize(node, fusions),
            Op::Lookup(_) => self.lookup(node, fusions),
            Op::Dequantize(op) => self.dequantize(node, op),
            Op::LinearWq(op) => self.linear_wq(node, op, placement),
            Op::Compare(op) => self.compare(node, op.f, place),
            Op::Where(_) => self.choose(node, place),
            Op::Gather(op) => self.gather(node, op, place),
            Op::Scatter(op) => self.scatter(node, op.f, place),
            Op::ArgReduce(op) => self.arg_reduce(node, op, place),
            Op::TopK(op) => self.top_k(node, op, place),
            Op::CumSum(op) => self.cum_sum(node, op, place),
            Op::Unfold(op) => self.unfold(node, op, place),
            Op::Softmax(op) => self.softmax(node, op, place),
            Op::Normalize(op) => self.normalize(node, op, place),
            Op::Attention(op) => self.attention(node, op, place),
            Op::Rope(op) => self.rope(node, op, place),
            Op::Film(_) => self.film(node, place),
            Op::QAdd(op) => self.q_add(node, op, place),
            Op::QSum(op) => self.q_sum(node, op, place),
            Op::Grad(_) => {
                Err(self.unsupported(node, "an artifact holds no backward graph; compile the graph without gradients"))
            }
        }
    }

    /// The tensors of the outputs: in host memory, of the right shape, and not
    /// those of inputs.
    fn outputs(&mut self, inputs: &[u32]) -> Result<Vec<u32>, CodegenError> {
        let mut on_device: BTreeSet<u32> = BTreeSet::new();
        for step in self.steps.iter().filter(|step| step.place() == Place::Device) {
            let operands = step.operands();
            on_device.extend(operands.reads.into_iter().chain(operands.write));
        }
        let mut result: Vec<u32> = Vec::new();
        let graph = self.graph;
        for output in graph.outputs.iter().filter(|output| graph.state_of_output(&output.name).is_none()) {
            let (node, value) = (output.value.node, output.value);
            self.require_plain(node)?;
            let shape = movement::shape_of(self, value);
            let out_name = format!("{}.output", output.name);
            let is_wide = match self.source(node, value, Place::Host)? {
                Source::Tensor(tensor) => self.entry(tensor)?.storage() == Storage::I32,
                Source::Section(_) => true,
            };
            if is_wide && matches!(graph.ty(value).dtype(), Some(DType::Bool | DType::U8 | DType::I64)) {
                // Computed integers get the type that the caller knows.
                let x = self.tensor_of(node, value, Place::Host)?;
                let out = self.tensor(node, &out_name, graph.ty(value))?;
                let cast = step::Cast { x, out, to: step::CastKind::Same.into() };
                self.push_named(output.name.clone(), Place::Host, step::Op::Cast(cast));
                result.push(out);
                continue;
            }
            if let Source::Tensor(tensor) = self.source(node, value, Place::Host)? {
                let fits = self.entry(tensor)?.shape == shape;
                if fits && !on_device.contains(&tensor) && !inputs.contains(&tensor) && !result.contains(&tensor) {
                    result.push(tensor);
                    continue;
                }
            }
            let x = self.operand(node, value, Place::Host)?;
            let out = self.tensor(node, &out_name, graph.ty(value))?;
            let out_strides = self.strides(node, &shape, self.entry(out)?.stride)?;
            let copy = step::Copy { x, out, shape, out_strides, out_offset: 0 };
            self.push_named(output.name.clone(), Place::Host, step::Op::Copy(copy));
            result.push(out);
        }
        Ok(result)
    }
}
