//! What a step reads: rows drawn for it, and what the teacher says to them.

use super::TrainError;
use crate::{
    Head,
    batches::{Column, Noise, Rows, Sampler},
    forward::Forward,
    options::TrainOptions,
    setup::Source,
};

/// Rows to train on, the answers of the teacher, and the present batch.
pub(super) struct Data {
    pub(super) rows: Rows,
    /// The outputs of the head for every row; the first one is the action.
    pub(super) answers: Vec<Column>,
    /// Present if observations get noise.
    pub(super) noisy: Option<(Noise, Forward, Vec<String>)>,
    pub(super) sampler: Sampler,
    pub(super) observations: Vec<Vec<f32>>,
    pub(super) expert: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) teacher: Vec<Vec<f32>>,
}

impl Data {
    pub(super) fn new(
        rows: Rows,
        mut teacher: Forward,
        head: &Head,
        noise: Option<Noise>,
        options: &TrainOptions,
    ) -> Result<Self, TrainError> {
        let outputs = head.outputs();
        let answers = teacher.run(&rows.observations, &outputs)?;
        let names = outputs.iter().map(|name| (*name).to_owned()).collect();
        let noisy = noise.map(|noise| (noise, teacher, names));
        Ok(Self::with(rows, answers, noisy, options))
    }

    pub(super) fn with(
        rows: Rows,
        answers: Vec<Column>,
        noisy: Option<(Noise, Forward, Vec<String>)>,
        options: &TrainOptions,
    ) -> Self {
        let sampler = Sampler::new(rows.n_rows(), options.batch, options.seed);
        let observations = vec![Vec::new(); rows.observations.len()];
        let teacher = vec![Vec::new(); answers.len()];
        Self { rows, answers, noisy, sampler, observations, expert: Vec::new(), weights: Vec::new(), teacher }
    }

    /// The column behind a source.
    pub(super) fn column(&self, source: &Source) -> Result<&Column, TrainError> {
        let (column, name) = match source {
            Source::Observation(index) => (self.rows.observations.get(*index), "observations"),
            Source::Expert => (self.rows.actions.as_ref(), "actions"),
            Source::Teacher(index) => (self.answers.get(*index), "teacher"),
            Source::Weight => (self.rows.weights.as_ref(), "weights"),
        };
        column.ok_or_else(|| TrainError::NoColumn { name: name.to_owned() })
    }

    /// Gathers the batch of a step.
    pub(super) fn draw(&mut self, step: u64) -> Result<(), TrainError> {
        let rows = self.sampler.rows(step);
        for (batch, column) in self.observations.iter_mut().zip(&self.rows.observations) {
            gather(batch, column, &rows);
        }
        for (batch, column) in self.teacher.iter_mut().zip(&self.answers) {
            gather(batch, column, &rows);
        }
        if let Some(actions) = &self.rows.actions {
            gather(&mut self.expert, actions, &rows);
        }
        if let Some(weights) = &self.rows.weights {
            gather(&mut self.weights, weights, &rows);
        }
        let Some((noise, teacher, names)) = &mut self.noisy else { return Ok(()) };
        noise.add(step, &mut self.observations);
        let columns: Vec<Column> = self.rows.observations.iter().zip(&self.observations).map(noisy_column).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let answers = teacher.run(&columns, &names)?;
        if let (Some(clean), Some(noisy)) = (self.teacher.first(), answers.first()) {
            for (expert, (clean, noisy)) in self.expert.iter_mut().zip(clean.iter().zip(&noisy.data)) {
                *expert += noisy - clean;
            }
        }
        self.teacher = answers.into_iter().map(|column| column.data).collect();
        Ok(())
    }

    /// The numbers of run `run` of the batch, which has `rows` rows.
    pub(super) fn part(&self, source: &Source, run: usize, rows: usize) -> &[f32] {
        let (all, row_len) = match source {
            Source::Observation(index) => {
                (self.observations.get(*index), self.rows.observations.get(*index).map(|column| column.row_len))
            }
            Source::Expert => (Some(&self.expert), self.rows.actions.as_ref().map(|column| column.row_len)),
            Source::Teacher(index) => (self.teacher.get(*index), self.answers.get(*index).map(|column| column.row_len)),
            Source::Weight => (Some(&self.weights), Some(1)),
        };
        let len = rows * row_len.unwrap_or(0);
        all.and_then(|all| all.get(run * len..(run + 1) * len)).unwrap_or_default()
    }
}

fn gather(batch: &mut Vec<f32>, column: &Column, rows: &[usize]) {
    batch.clear();
    rows.iter().for_each(|&row| batch.extend_from_slice(column.row(row)));
}

fn noisy_column((column, rows): (&Column, &Vec<f32>)) -> Column {
    Column { name: column.name.clone(), row_len: column.row_len, data: rows.clone() }
}
