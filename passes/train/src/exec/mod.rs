//! Runs a graph with float layers and quantizers, fast and again and again:
//! forward, and backward if the graph has a backward part.
//!
//! The law: a value of a quantized region is computed on integer codes, exactly
//! as the graph that `lower-quant` would make of the same constants. Which
//! values those are, and every formula that turns steps into integers, is
//! [`qail_passes::quant::region`], which `lower-quant` uses too. So the metric
//! printed while training is the metric of the artifact.
//!
//! - Codes are `f32` numbers without their zero point. A product of codes runs in
//!   `f32` while every partial sum is an integer below 2^24, else in `f64`; both
//!   are exact in any order. Requantization is in `f64`, exact: see `codes`.
//! - Floats read a quantizer as `code * step` and a layer as
//!   `(acc as f64 * (s_in * s_w)) as f32`, as behind `dequantize`. Gradients are
//!   computed from those numbers.
//! - Float operations agree with the interpreter up to the order of sums; movements, softmax,
//!   norms and extremes to the last bit. Attention runs as its products.
//! - Everything is the same bits for every number of threads. On another machine
//!   float sums may differ: their order follows the sizes of its caches.
//!
//! What changes an `f32` constant is [`TrainExecutor::set`]. Where numbers of a
//! step have no integers (a step that is not positive, a factor without a
//! multiplier, an accumulator beyond 32 bits) the run fails, naming node and channel.

mod codes;
mod error;
mod gemm;
mod groups;
mod lanes;
mod memory;
mod moves;
mod plan;
mod plan_codes;
mod plan_floats;
mod plan_moves;
mod rows;
mod run;
mod run_moves;
mod spread;
mod step;

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    Graph, TensorType, ValueId,
    interp::{self, Tensor, TensorError},
    verify,
};

use crate::expand::{ExpandError, expand_attention, has_attention};

pub use error::ExecError;
use memory::{Item, Memory};
use plan::{Form, Plan};
use run::State;

/// Runs a graph whose constants change.
pub trait TrainExecutor {
    /// Gives an `f32` constant new elements, row-major.
    fn set(&mut self, constant: ValueId, elements: &[f32]) -> Result<(), ExecError>;

    /// Computes every output and every kept value from the inputs, by name. Inputs of whole
    /// numbers, images of bytes for example, are given as `f32` too.
    fn run(&mut self, inputs: &[(&str, &[f32])]) -> Result<(), ExecError>;

    /// An output, a kept value or a constant, row-major.
    fn read(&self, value: ValueId) -> Result<&[f32], ExecError>;

    /// Codes of a kept quantizer, or of a movement of codes, without their zero point.
    fn codes(&self, value: ValueId) -> Result<&[f32], ExecError>;
}

/// What a [`CpuExecutor`] depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Number of threads; 0 and 1 mean the thread of the caller.
    pub threads: usize,
    /// Values to keep besides the outputs.
    pub keep: Vec<ValueId>,
}

/// Runs a graph on the processor. See the [module](self).
#[derive(Debug)]
pub struct CpuExecutor {
    plan: Plan,
    state: State,
    inputs: BTreeMap<String, (Option<Item>, TensorType)>,
    names: BTreeMap<ValueId, String>,
    /// Values that can be read, with their codes if they were asked for.
    kept: BTreeSet<Form>,
    constants: BTreeMap<ValueId, Item>,
    pool: Option<rayon::ThreadPool>,
    /// The values are those of one complete run.
    ran: bool,
}

impl CpuExecutor {
    /// Plans a verified graph, and takes all memory that it will need: at most
    /// 4 GiB, else [`ExecError::TooLarge`].
    pub fn new(graph: &Graph, options: &CpuOptions) -> Result<Self, ExecError> {
        verify(graph).map_err(interp::InterpError::from)?;
        let written;
        let graph = if has_attention(graph) {
            let mut copy = graph.clone();
            let internal = |error: ExpandError| ExecError::Internal {
                node: error.node,
                invariant: "attention can be written out",
            };
            expand_attention(&mut copy).map_err(internal)?;
            written = copy;
            &written
        } else {
            graph
        };
        let mut plan = Plan::new(graph, &options.keep)?;
        let memory = Memory::new(&plan.kinds, &plan.access, &plan.pinned)?;
        let threads = options.threads.max(1);
        let pool = if threads > 1 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            Some(pool.map_err(|source| ExecError::Threads { threads, source })?)
        } else {
            None
        };
        let mut state = State::new(memory, threads, [plan.n_quantizers, plan.n_layers, plan.n_weights]);
        for (item, tensor) in std::mem::take(&mut plan.tensors) {
            state.memory.set_tensor(item, tensor);
        }
        let real = |value: ValueId| plan.items.get(&Form::Real(value)).copied();
        let input = |&id: &qail_ir::NodeId| {
            let value = id.value();
            (graph.node(id).name.clone(), (real(value), graph.ty(value).clone()))
        };
        let inputs = graph.inputs().iter().map(input).collect();
        let kept = graph.outputs.iter().map(|output| output.value).chain(options.keep.iter().copied());
        let kept = kept.flat_map(|value| [Form::Real(value), Form::Codes(value)]).collect();
        let floats = |value: &ValueId| graph.const_of(*value).is_some_and(|constant| constant.ty.is_f32());
        let constants: BTreeMap<ValueId, Item> = (graph.nodes().map(qail_ir::NodeId::value).filter(floats))
            .filter_map(|value| Some((value, real(value)?)))
            .collect();
        let names = graph.nodes().map(|id| (id.value(), graph.node(id).name.clone())).collect();
        let mut executor = Self { plan, state, inputs, names, kept, constants, pool, ran: false };
        for value in executor.constants.keys().copied().collect::<Vec<_>>() {
            let Some(constant) = graph.const_of(value) else { continue };
            let elements = constant
                .all_f32()
                .map_err(|source| interp::InterpError::Const { name: executor.name(value), source })?;
            executor.write(value, &elements)?;
        }
        Ok(executor)
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.state.memory.bytes()
    }

    fn name(&self, value: ValueId) -> String {
        self.names.get(&value.node.value()).cloned().unwrap_or_else(|| format!("{value:?}"))
    }

    fn write(&mut self, constant: ValueId, elements: &[f32]) -> Result<(), ExecError> {
        let Some(&item) = self.constants.get(&constant) else {
            return Err(ExecError::NotSettable { name: self.name(constant) });
        };
        let expected = self.state.memory.f32(item).len();
        if elements.len() != expected {
            return Err(ExecError::Size { name: self.name(constant), expected, found: elements.len() });
        }
        self.state.memory.write(item, |_, out| out.copy_from_slice(elements));
        Ok(())
    }

    fn give(&mut self, inputs: &[(&str, &[f32])]) -> Result<(), ExecError> {
        let mut given = BTreeSet::new();
        for &(name, elements) in inputs {
            let Some((item, ty)) = self.inputs.get(name) else {
                let known: Vec<String> = self.inputs.keys().map(|name| format!("`{name}`")).collect();
                let known = if known.is_empty() { "no inputs".to_owned() } else { known.join(", ") };
                return Err(ExecError::UnknownInput { name: name.to_owned(), known });
            };
            if !given.insert(name) {
                return Err(ExecError::RepeatedInput { name: name.to_owned() });
            }
            let expected = ty.n_elements();
            if elements.len() != expected {
                return Err(ExecError::Size { name: name.to_owned(), expected, found: elements.len() });
            }
            match *item {
                Some(item) if ty.is_f32() => {
                    self.state.memory.write(item, |_, out| out.copy_from_slice(elements));
                }
                Some(item) => {
                    let tensor = whole(elements, ty).map_err(|index| ExecError::InputValue {
                        name: name.to_owned(),
                        index,
                        value: elements.get(index).copied().unwrap_or(f32::NAN),
                        ty: ty.clone(),
                    })?;
                    self.state.memory.set_tensor(item, tensor);
                }
                None => {}
            }
        }
        let missing = self.inputs.iter().find(|(name, (item, _))| item.is_some() && !given.contains(name.as_str()));
        match missing {
            Some((name, _)) => Err(ExecError::MissingInput { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn form(&self, form: Form, value: ValueId) -> Result<&[f32], ExecError> {
        if !self.kept.contains(&form) {
            return Err(ExecError::NotKept { name: self.name(value) });
        }
        let none = || match form {
            Form::Codes(_) => ExecError::NoCodes { name: self.name(value) },
            Form::Acc(_) | Form::Real(_) => ExecError::NotKept { name: self.name(value) },
        };
        let item = self.plan.items.get(&form).copied().ok_or_else(none)?;
        match self.plan.kinds.get(item.0) {
            Some(memory::Kind::F32(_)) if self.ran => Ok(self.state.memory.f32(item)),
            Some(memory::Kind::F32(_)) => Err(ExecError::NotRun),
            _ => Err(ExecError::NotKept { name: self.name(value) }),
        }
    }
}

/// Whole numbers as a tensor of their type, or the first one that is none.
fn whole(elements: &[f32], ty: &TensorType) -> Result<Tensor, usize> {
    if let Some(index) = elements.iter().position(|x| x.fract() != 0.0) {
        return Err(index);
    }
    let tensor = Tensor::ints(ty.clone(), elements.iter().map(|&x| x as i64).collect());
    match tensor.check() {
        Err(TensorError::Range { index, .. }) => Err(index),
        _ => Ok(tensor),
    }
}

impl TrainExecutor for CpuExecutor {
    fn set(&mut self, constant: ValueId, elements: &[f32]) -> Result<(), ExecError> {
        if let Some((index, &value)) = elements.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(ExecError::NotFinite { name: self.name(constant), index, value });
        }
        self.write(constant, elements)
    }

    fn run(&mut self, inputs: &[(&str, &[f32])]) -> Result<(), ExecError> {
        self.ran = false;
        self.give(inputs)?;
        let (state, steps) = (&mut self.state, &self.plan.steps);
        let mut all = || steps.iter().try_for_each(|step| state.take(step));
        match &self.pool {
            Some(pool) => pool.install(all)?,
            None => all()?,
        }
        self.ran = true;
        Ok(())
    }

    fn read(&self, value: ValueId) -> Result<&[f32], ExecError> {
        match self.constants.get(&value) {
            Some(&item) => Ok(self.state.memory.f32(item)),
            None => self.form(Form::Real(value), value),
        }
    }

    fn codes(&self, value: ValueId) -> Result<&[f32], ExecError> {
        self.form(Form::Codes(value), value)
    }
}
