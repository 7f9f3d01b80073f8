//! What a step reads: rows drawn for it, and what the teacher says to them.

use super::TrainError;
use crate::{
    Head,
    batches::{Column, Noise, Rows, Sampler},
    denoise::Denoise,
    forward::Forward,
    options::TrainOptions,
    setup::Source,
};

/// Rows to train on, the answers of the teacher, and the present batch.
pub(super) struct Data {
    pub(super) rows: Rows,
    /// The outputs of the head for every row; the first one is the action.
    pub(super) answers: Vec<Column>,
    /// Present if the teacher has to be asked in every step.
    pub(super) changed: Option<Changed>,
    pub(super) sampler: Sampler,
    pub(super) observations: Vec<Vec<f32>>,
    pub(super) expert: Vec<f32>,
    /// For windows, which of the expert's actions count.
    pub(super) mask: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) teacher: Vec<Vec<f32>>,
}

/// What changes the rows of a batch, and the teacher that answers for them.
pub(super) struct Changed {
    /// Observations get noise.
    pub(super) noise: Option<Noise>,
    /// Actions get noise, which the policy predicts.
    pub(super) denoise: Option<Denoise>,
    pub(super) teacher: Forward,
    pub(super) outputs: Vec<String>,
}

impl Data {
    pub(super) fn new(
        rows: Rows,
        mut teacher: Forward,
        head: &Head,
        noise: Option<Noise>,
        denoise: Option<Denoise>,
        options: &TrainOptions,
    ) -> Result<Self, TrainError> {
        let outputs = head.outputs();
        let answers = match &denoise {
            None => teacher.run(&rows.observations, &outputs)?,
            // Nothing stays as it is: one row says how long an answer is.
            Some(_) => teacher.run(&first_row(&rows.observations), &outputs)?,
        };
        let outputs = outputs.iter().map(|name| (*name).to_owned()).collect();
        let is_changed = noise.is_some() || denoise.is_some();
        let changed = is_changed.then_some(Changed { noise, denoise, teacher, outputs });
        Ok(Self::with(rows, answers, changed, options))
    }

    pub(super) fn with(rows: Rows, answers: Vec<Column>, changed: Option<Changed>, options: &TrainOptions) -> Self {
        let sampler = Sampler::new(rows.n_rows(), options.batch, options.seed);
        let observations = vec![Vec::new(); rows.observations.len()];
        let teacher = vec![Vec::new(); answers.len()];
        let [expert, mask, weights] = [(); 3].map(|()| Vec::new());
        Self { rows, answers, changed, sampler, observations, expert, mask, weights, teacher }
    }

    /// Name and length of the rows behind a source.
    pub(super) fn row(&self, source: &Source) -> Result<(&str, usize), TrainError> {
        let of = |column: &'_ Column| column.row_len;
        let (name, row_len) = match source {
            Source::Observation(index) => match self.rows.observations.get(*index) {
                Some(column) => (column.name.as_str(), Some(column.row_len)),
                None => ("observations", None),
            },
            Source::Expert => ("actions", self.rows.expert_len()),
            Source::Teacher(index) => ("teacher", self.answers.get(*index).map(of)),
            Source::Weight => ("weights", self.rows.weights.as_ref().map(of)),
            Source::Mask => ("windows", self.rows.windows.as_ref().map(|windows| windows.length)),
        };
        row_len.map(|row_len| (name, row_len)).ok_or_else(|| TrainError::NoColumn { name: name.to_owned() })
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
        self.expert.clear();
        self.mask.clear();
        rows.iter().for_each(|&row| self.rows.expert(row, &mut self.expert, &mut self.mask));
        if let Some(weights) = &self.rows.weights {
            gather(&mut self.weights, weights, &rows);
        }
        let Some(changed) = &mut self.changed else { return Ok(()) };
        if let Some(denoise) = &changed.denoise {
            let len = self.rows.expert_len().unwrap_or(0);
            let columns = self.rows.observations.iter().map(|column| column.name.as_str()).zip(&mut self.observations);
            self.expert = denoise.place(denoise.batch(step, &self.expert, len), columns);
        }
        if let Some(noise) = &changed.noise {
            noise.add(step, &mut self.observations);
        }
        let columns: Vec<Column> = self.rows.observations.iter().zip(&self.observations).map(noisy_column).collect();
        let outputs: Vec<&str> = changed.outputs.iter().map(String::as_str).collect();
        let answers = changed.teacher.run(&columns, &outputs)?;
        // The expert's action moves with the teacher's; what is to be predicted stays.
        if let (Some(clean), Some(noisy), None) = (self.teacher.first(), answers.first(), &changed.denoise) {
            for (expert, (clean, noisy)) in self.expert.iter_mut().zip(clean.iter().zip(&noisy.data)) {
                *expert += noisy - clean;
            }
        }
        self.teacher = answers.into_iter().map(|column| column.data).collect();
        Ok(())
    }

    /// The numbers of run `run` of the batch, which has `rows` rows.
    pub(super) fn part(&self, source: &Source, run: usize, rows: usize) -> &[f32] {
        let all = match source {
            Source::Observation(index) => self.observations.get(*index),
            Source::Expert => Some(&self.expert),
            Source::Teacher(index) => self.teacher.get(*index),
            Source::Weight => Some(&self.weights),
            Source::Mask => Some(&self.mask),
        };
        // Sources were looked at when the trainer was made.
        let len = rows * self.row(source).map_or(0, |(_, row_len)| row_len);
        all.and_then(|all| all.get(run * len..(run + 1) * len)).unwrap_or_default()
    }
}

fn gather(batch: &mut Vec<f32>, column: &Column, rows: &[usize]) {
    batch.clear();
    rows.iter().for_each(|&row| batch.extend_from_slice(column.row(row)));
}

fn first_row(columns: &[Column]) -> Vec<Column> {
    let first = |column: &Column| Column { data: column.row(0).to_vec(), ..column.clone() };
    columns.iter().map(first).collect()
}

fn noisy_column((column, rows): (&Column, &Vec<f32>)) -> Column {
    Column { name: column.name.clone(), row_len: column.row_len, data: rows.clone() }
}
