//! Errors of actions on held-out rows: what decides which parameters are kept.
//!
//! Two questions have two sets of rows. How good a policy is, is asked on the
//! rows as they were recorded; that is the figure of the report. Which of two is
//! better, is asked for what was trained: if observations got noise, so do the
//! judged ones, because on recorded states alone a policy may win that is lost a
//! little beside them.

use std::collections::BTreeMap;

use qail_ir::{
    Graph, TensorType,
    interp::{Interpreter, Tensor},
};

use super::TrainError;
use crate::{
    batches::{Column, Noise, Rows},
    forward::Forward,
    metrics::ActionError,
};

/// Noisy rows to choose by; fewer held-out rows are drawn several times.
const N_NOISY: usize = 4096;
/// The most numbers that noisy observations take: 64 MiB.
const MAX_NOISY: usize = 1 << 24;

/// Held-out rows and who judges on them.
pub(super) struct Judge {
    student: Forward,
    clean: Judged,
    noisy: Option<Judged>,
    action: String,
}

/// Rows and the actions that are right for them.
struct Judged {
    observations: Vec<Column>,
    /// Of the full-precision policy.
    teacher: Column,
    expert: Option<Column>,
    /// For windows, which actions of the expert count; one number an action.
    mask: Vec<f32>,
}

/// Distance from the actions of the full-precision policy and of the expert.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errors {
    pub(super) teacher: ActionError,
    pub(super) expert: Option<ActionError>,
}

/// What a judge finds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    /// On the rows as they were recorded.
    pub(super) clean: Errors,
    /// On the rows that decide.
    pub(super) judged: Errors,
}

impl Judge {
    /// Judges on `rows` as they are; `reference` are the teacher's actions.
    pub(super) fn new(student: Forward, rows: Rows, reference: Column, action: String) -> Self {
        let (expert, mask) = expert(&rows);
        let clean = Judged { observations: rows.observations, teacher: reference, expert, mask };
        Self { student, clean, noisy: None, action }
    }

    /// Chooses by rows with noise; `teacher` answers for them, and the expert's
    /// action moves with its answer.
    pub(super) fn with_noise(mut self, noise: &Noise, teacher: &mut Forward) -> Result<Self, TrainError> {
        let clean = &self.clean;
        let n_rows = clean.observations.first().map_or(0, Column::n_rows).max(1);
        let numbers: usize = clean.observations.iter().map(|column| column.data.len()).sum();
        let n_draws = N_NOISY.div_ceil(n_rows).min(MAX_NOISY / numbers.max(1)).max(1);
        let mut observations: Vec<Column> = clean.observations.clone();
        observations.iter_mut().for_each(|column| column.data = column.data.repeat(n_draws));
        for draw in 0..n_draws {
            let part = observations.iter_mut().map(|column| {
                let len = column.data.len() / n_draws;
                column.data.get_mut(draw * len..(draw + 1) * len).unwrap_or_default()
            });
            noise.add_to_judged(draw as u64, part);
        }
        let mut answer = |observations: &[Column]| -> Result<Column, TrainError> {
            let column = teacher.run(observations, &[&self.action])?.into_iter().next();
            column.ok_or_else(|| TrainError::NoOutput { name: self.action.clone() })
        };
        let before = answer(&clean.observations)?;
        let teacher = answer(&observations)?;
        let expert = clean.expert.as_ref().map(|expert| {
            let shifts = teacher.data.iter().zip(before.data.iter().cycle()).map(|(noisy, clean)| noisy - clean);
            let data = expert.data.iter().cycle().zip(shifts).map(|(expert, shift)| expert + shift).collect();
            Column { name: expert.name.clone(), row_len: expert.row_len, data }
        });
        let mask = clean.mask.repeat(n_draws);
        self.noisy = Some(Judged { observations, teacher, expert, mask });
        Ok(self)
    }

    pub(super) fn judge(&mut self, elements: &[Vec<f32>]) -> Result<Verdict, TrainError> {
        self.student.set(elements)?;
        let clean = self.clean.errors(&mut self.student, &self.action)?;
        let judged = match &self.noisy {
            Some(noisy) => noisy.errors(&mut self.student, &self.action)?,
            None => clean,
        };
        Ok(Verdict { clean, judged })
    }
}

impl Judged {
    fn errors(&self, student: &mut Forward, action: &str) -> Result<Errors, TrainError> {
        let actions = student.run(&self.observations, &[action])?.into_iter().next();
        let actions = actions.ok_or_else(|| TrainError::NoOutput { name: action.to_owned() })?;
        let from = |right: &Column| {
            let mut error = ActionError::new();
            error.add(&actions.data, &right.data);
            error
        };
        let from_expert = |right: &Column| match right.data.len() / self.mask.len().max(1) {
            n_action if !self.mask.is_empty() => masked(&actions.data, &right.data, &self.mask, n_action),
            _ => from(right),
        };
        Ok(Errors { teacher: from(&self.teacher), expert: self.expert.as_ref().map(from_expert) })
    }
}

/// The error of those actions of `n_action` numbers that count.
fn masked(actions: &[f32], right: &[f32], mask: &[f32], n_action: usize) -> ActionError {
    let mut error = ActionError::new();
    let n_action = n_action.max(1);
    for ((action, right), _) in
        actions.chunks_exact(n_action).zip(right.chunks_exact(n_action)).zip(mask).filter(|(_, counts)| **counts > 0.0)
    {
        error.add(action, right);
    }
    error
}

/// The expert's actions for every row, windows put together, and their mask.
fn expert(rows: &Rows) -> (Option<Column>, Vec<f32>) {
    let (Some(actions), Some(row_len)) = (&rows.actions, rows.expert_len()) else { return (None, Vec::new()) };
    let (mut data, mut mask) = (Vec::with_capacity(rows.n_rows() * row_len), Vec::new());
    (0..rows.n_rows()).for_each(|row| rows.expert(row, &mut data, &mut mask));
    (Some(Column { name: actions.name.clone(), row_len, data }), mask)
}

/// The actions of the full-precision policy by the interpreter, which the
/// report of a build uses too.
pub(super) fn reference(teacher: &Graph, rows: &Rows, action: &str) -> Result<Column, TrainError> {
    let judge = Interpreter::new(teacher)?;
    let types: Vec<(String, TensorType)> =
        teacher.inputs().iter().map(|&id| (teacher.node(id).name.clone(), teacher.ty(id.value()).clone())).collect();
    let mut out = Column { name: action.to_owned(), row_len: 0, data: Vec::new() };
    for index in 0..rows.n_rows() {
        let mut inputs = BTreeMap::new();
        for (name, ty) in &types {
            let column = rows.observations.iter().find(|column| column.name == *name);
            let column = column.ok_or_else(|| TrainError::NoColumn { name: name.clone() })?;
            inputs.insert(name.clone(), tensor(ty, column.row(index)));
        }
        let outputs = judge.run(&inputs)?;
        let action = outputs.get(action).and_then(Tensor::as_f32);
        let action = action.ok_or_else(|| TrainError::NoOutput { name: out.name.clone() })?;
        out.row_len = action.len();
        out.data.extend_from_slice(action);
    }
    Ok(out)
}

/// One row as an input of a graph at batch 1.
fn tensor(ty: &TensorType, row: &[f32]) -> Tensor {
    match ty.elem {
        qail_ir::Elem::Plain(qail_ir::DType::F32) => Tensor::f32(ty.shape.clone(), row.to_vec()),
        _ => Tensor::ints(ty.clone(), row.iter().map(|&x| x as i64).collect()),
    }
}
