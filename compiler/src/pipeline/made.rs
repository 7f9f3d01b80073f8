//! Inputs that no recording holds, because the policy makes them itself.
//!
//! - *States* are what a step leaves for the next one. The full-precision policy
//!   runs over the episodes, from zero at the start of each, and what it leaves
//!   is as good as recorded. Where an episode is longer than a cache has places,
//!   it begins anew, as whoever runs the policy must.
//! - The *noisy action* and the *time* of a denoising step are made of recorded
//!   actions, see [`Denoise`].

use std::{collections::BTreeMap, ops::Range};

use qail_ir::{
    DType, Elem, Graph, TensorType,
    interp::{Interpreter, Tensor},
};
use qail_train::{
    batches::{Column, Rows},
    denoise::Denoise,
};

use super::{
    PipelineError, Sample,
    demonstrations::{read_blocks, rows},
};
use crate::data::Demos;

/// How the inputs of a policy come from a recording.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The policy, in full precision, at batch 1.
    pub graph: &'a Graph,
    /// It is one step of denoising.
    pub denoise: Option<&'a Denoise>,
    /// Actions in a chunk, if one action a step was recorded for it.
    pub window: Option<usize>,
    /// Steps of an episode in a row to train on.
    pub follow: usize,
}

impl<'a> From<&'a Graph> for Inputs<'a> {
    fn from(graph: &'a Graph) -> Self {
        Self { graph, denoise: None, window: None, follow: 1 }
    }
}

impl<'a> Inputs<'a> {
    /// Inputs that the recording must have, with their types.
    pub(super) fn recorded(&self) -> impl Iterator<Item = (&'a str, &'a TensorType)> {
        let (graph, inputs) = (self.graph, *self);
        let inputs = graph.inputs().iter().filter(move |&&id| inputs.is_recorded(&graph.node(id).name));
        inputs.map(|&id| (graph.node(id).name.as_str(), graph.ty(id.value())))
    }

    /// True for inputs that the recording must have.
    pub(super) fn is_recorded(&self, name: &str) -> bool {
        let is_noised = self.denoise.is_some_and(|denoise| denoise.sample == name || denoise.timestep == name);
        !is_noised && self.graph.state_of_input(name).is_none()
    }

    /// Adds what is made to samples of ascending steps; `draw` tells sets of
    /// samples apart.
    pub(super) fn complete(
        &self,
        demos: &Demos,
        steps: &[usize],
        samples: &mut [Sample],
        draw: u64,
    ) -> Result<(), PipelineError> {
        for (sample, states) in samples.iter_mut().zip(self.states(demos, steps)?) {
            sample.extend(states);
        }
        let Some(denoise) = self.denoise else { return Ok(()) };
        let noised = denoise.noised(self.rows(demos, steps)?, draw);
        for column in noised.observations.iter().filter(|column| self.is_noised(&column.name)) {
            let Some(ty) = self.graph.input_named(&column.name).map(|value| self.graph.ty(value)) else { continue };
            for (index, sample) in samples.iter_mut().enumerate() {
                sample.insert(column.name.clone(), tensor(ty, column.row(index)));
            }
        }
        Ok(())
    }

    fn is_noised(&self, name: &str) -> bool {
        self.graph.state_of_input(name).is_none() && !self.is_recorded(name)
    }

    /// Columns of ascending steps, in the order of the inputs; what becomes noise
    /// in each step of training is zero.
    pub(super) fn rows(&self, demos: &Demos, steps: &[usize]) -> Result<Rows, PipelineError> {
        let mut rows = match self.follow {
            0 | 1 => rows(demos, steps, self.window)?,
            follow => followed(demos, steps, follow)?,
        };
        if self.graph.inputs().iter().all(|&id| self.is_recorded(&self.graph.node(id).name)) {
            return Ok(rows);
        }
        let mut columns: BTreeMap<String, Column> =
            rows.observations.into_iter().map(|column| (column.name.clone(), column)).collect();
        for states in self.states(demos, steps)? {
            for (name, state) in states {
                let row: Vec<f32> = state.to_f64().into_iter().map(|x| x as f32).collect();
                let new = || Column { name: name.clone(), row_len: row.len(), data: Vec::new() };
                columns.entry(name.clone()).or_insert_with(new).data.extend(row);
            }
        }
        rows.observations = Vec::new();
        for &id in self.graph.inputs() {
            let name = &self.graph.node(id).name;
            let column = columns.remove(name).unwrap_or_else(|| {
                let row_len = self.graph.ty(id.value()).n_elements();
                Column { name: name.clone(), row_len, data: vec![0.0; row_len * steps.len()] }
            });
            rows.observations.push(column);
        }
        Ok(rows)
    }

    /// The states before each of some ascending steps.
    fn states(&self, demos: &Demos, steps: &[usize]) -> Result<Vec<Sample>, PipelineError> {
        if self.graph.states.is_empty() {
            return Ok(Vec::new());
        }
        let judge = Interpreter::new(self.graph)?;
        let mut found = Vec::with_capacity(steps.len());
        let mut wanted = steps.iter().copied().peekable();
        for episode in demos.episodes() {
            let last = steps.iter().copied().rev().find(|step| episode.contains(step));
            let Some(last) = last else { continue };
            let mut states = self.zeros();
            let mut failed = Ok(());
            let mut step = episode.start;
            read_blocks(demos, self.graph, episode.start..last + 1, |mut sample| {
                if failed.is_err() {
                    return;
                }
                if self.is_full(&states) {
                    states = self.zeros();
                }
                if wanted.next_if_eq(&step).is_some() {
                    found.push(states.clone());
                }
                step += 1;
                sample.extend(states.clone());
                match judge.run(&sample) {
                    Ok(outputs) => self.hand_on(&outputs, &mut states),
                    Err(error) => failed = Err(error),
                }
            })?;
            failed?;
        }
        Ok(found)
    }

    fn zeros(&self) -> Sample {
        let states = self.graph.states.iter().filter_map(|state| {
            let ty = self.graph.ty(self.graph.input_named(&state.input)?);
            Some((state.input.clone(), zero(ty)))
        });
        states.collect()
    }

    /// True if a state is beyond what a step may begin with.
    fn is_full(&self, states: &Sample) -> bool {
        self.graph.states.iter().any(|state| {
            let largest = states.get(&state.input).and_then(|tensor| tensor.as_ints()?.iter().copied().max());
            state.limit.zip(largest).is_some_and(|(limit, largest)| largest > limit)
        })
    }

    fn hand_on(&self, outputs: &BTreeMap<String, Tensor>, states: &mut Sample) {
        for state in &self.graph.states {
            if let Some(value) = outputs.get(&state.output) {
                states.insert(state.input.clone(), value.clone());
            }
        }
    }
}

/// The first step of each window of `n` steps: windows of an episode lie one
/// behind the other.
pub(super) fn starts(episodes: &[Range<usize>], n: usize) -> Vec<usize> {
    episodes.iter().flat_map(|episode| episode.clone().step_by(n.max(1))).collect()
}

/// Rows of `n` steps each, from ascending ones on: beyond the end of its episode
/// a row repeats the last step, and those do not count.
fn followed(demos: &Demos, starts: &[usize], n: usize) -> Result<Rows, PipelineError> {
    let mut followed = rows(demos, starts, Some(n))?;
    // Of a window the recorded steps are those that its actions are of.
    let Some(windows) = followed.windows.clone() else { return Ok(followed) };
    let mut steps: Vec<usize> = Vec::new();
    for (&start, &count) in starts.iter().zip(&windows.counts) {
        let first = steps.last().map_or(start, |&last| start.max(last + 1));
        steps.extend(first..start + count);
    }
    let all = rows(demos, &steps, None)?;
    for (column, all) in followed.observations.iter_mut().zip(&all.observations) {
        column.row_len = all.row_len.saturating_mul(n);
        column.data.clear();
        (0..starts.len()).for_each(|row| windows.gather(all, row, &mut column.data, &mut Vec::new()));
    }
    Ok(followed)
}

/// A tensor of zeros.
fn zero(ty: &TensorType) -> Tensor {
    tensor(ty, &vec![0.0; ty.n_elements()])
}

/// Numbers in the type of an input.
fn tensor(ty: &TensorType, row: &[f32]) -> Tensor {
    match ty.elem {
        Elem::Plain(DType::F32) => Tensor::f32(ty.shape.clone(), row.to_vec()),
        Elem::Plain(DType::F64) => Tensor::f64(ty.shape.clone(), row.iter().map(|&x| x.into()).collect()),
        Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => {
            Tensor::ints(ty.clone(), row.iter().map(|&x| x as i64).collect())
        }
    }
}
