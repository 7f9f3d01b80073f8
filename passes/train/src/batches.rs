//! Rows to train on and the order in which they come.
//!
//! State-sized data is kept in memory as flat arrays, capped by
//! [`MAX_BYTES`]; whoever reads the data chooses fewer steps if there are more.
//! Batches are shuffled anew in each epoch by a generator that is seeded with
//! (seed, epoch), so the batch of a step is a function of the step alone:
//! resuming needs no hidden state.

use std::ops::Range;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// The most that a set of rows takes in memory: 2 GiB.
pub const MAX_BYTES: usize = 2 << 30;

/// One array of a set of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Name of the input of a graph, or `actions`, or `weights`.
    pub name: String,
    /// Numbers in a row.
    pub row_len: usize,
    /// Row after row.
    pub data: Vec<f32>,
}

impl Column {
    /// One row; empty if there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        let start = index.saturating_mul(self.row_len);
        self.data.get(start..start.saturating_add(self.row_len)).unwrap_or_default()
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.data.len() / self.row_len.max(1)
    }
}

/// A data set in memory, with random access.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Observations, a column for every input of the policy.
    pub observations: Vec<Column>,
    /// Actions of the expert: one a row, or with [`Rows::windows`] one a
    /// recorded step, from which the windows of the rows are cut.
    pub actions: Option<Column>,
    /// Present if the policy gives chunks and one action a step was recorded.
    pub windows: Option<Windows>,
    /// How much each row counts in the loss, one number a row, 0 or more. Rows
    /// that are judged on all count the same.
    pub weights: Option<Column>,
}

impl Rows {
    /// Number of rows, one a recorded step.
    pub fn n_rows(&self) -> usize {
        self.observations.first().map_or(0, Column::n_rows)
    }

    /// The expert's numbers for a row, and for windows the mask of a row; both
    /// are added at the end.
    pub fn expert(&self, row: usize, out: &mut Vec<f32>, mask: &mut Vec<f32>) {
        match (&self.actions, &self.windows) {
            (Some(actions), Some(windows)) => windows.gather(actions, row, out, mask),
            (Some(actions), None) => out.extend_from_slice(actions.row(row)),
            (None, _) => {}
        }
    }

    /// Numbers of the expert in a row.
    pub fn expert_len(&self) -> Option<usize> {
        let length = self.windows.as_ref().map_or(1, |windows| windows.length);
        self.actions.as_ref().map(|actions| actions.row_len * length)
    }
}

/// Where the expert's next actions lie, for each row: neighbours share theirs, so
/// a window is only put together for the rows of a batch.
///
/// Beyond the end of its episode a window repeats the last action, and those do
/// not count: their mask is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Actions in a window.
    pub length: usize,
    /// Row of the column of actions that a window begins with.
    pub starts: Vec<usize>,
    /// Actions of a window before its episode ends, 1 to `length`.
    pub counts: Vec<usize>,
}

impl Windows {
    /// Windows of `length` actions from ascending `steps` on, and the steps whose
    /// actions they need, ascending. `episodes` are ranges of steps in order;
    /// steps of none of them are left out.
    pub fn new(length: usize, steps: &[usize], episodes: &[Range<usize>]) -> (Self, Vec<usize>) {
        let (mut windows, mut needed) = (Self { length, ..Self::default() }, Vec::<usize>::new());
        let mut episodes = episodes.iter().peekable();
        for &step in steps {
            while episodes.next_if(|episode| episode.end <= step).is_some() {}
            let Some(episode) = episodes.peek().filter(|episode| episode.contains(&step)) else { continue };
            let end = step.saturating_add(length).min(episode.end);
            let first = needed.last().map_or(step, |&last| step.max(last + 1));
            // What is there already of this window lies at the end.
            windows.starts.push(needed.len() - (first - step));
            windows.counts.push(end - step);
            needed.extend(first..end);
        }
        (windows, needed)
    }

    /// Puts a window together from a column with one action a row: the actions
    /// and, one number an action, whether they count. Nothing if there is no
    /// such row.
    pub fn gather(&self, actions: &Column, row: usize, out: &mut Vec<f32>, mask: &mut Vec<f32>) {
        let (Some(&start), Some(&count)) = (self.starts.get(row), self.counts.get(row)) else { return };
        for i in 0..self.length {
            out.extend_from_slice(actions.row(start + i.min(count.saturating_sub(1))));
            mask.push(if i < count { 1.0 } else { 0.0 });
        }
    }
}

/// Which rows make the batch of a step.
#[derive(Clone, Debug)]
pub struct Sampler {
    n_rows: usize,
    batch: usize,
    seed: u64,
    /// The order of one epoch.
    epoch: Option<u64>,
    order: Vec<u32>,
}

impl Sampler {
    /// Batches of `batch` rows out of `n_rows`. Rows that do not fill the last
    /// batch of an epoch are left out; they are others in the next one. With
    /// fewer rows than a batch takes, rows repeat inside the batch.
    pub fn new(n_rows: usize, batch: usize, seed: u64) -> Self {
        // Rows are counted in 32 bits: the cap on memory is smaller.
        Self { n_rows: n_rows.min(u32::MAX as usize), batch: batch.max(1), seed, epoch: None, order: Vec::new() }
    }

    /// Batches of an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.n_rows / self.batch).max(1) as u64
    }

    /// The rows of a step, from 0.
    pub fn rows(&mut self, step: u64) -> Vec<usize> {
        let (epoch, index) = (step / self.batches_per_epoch(), step % self.batches_per_epoch());
        if self.epoch != Some(epoch) {
            self.order = shuffled(self.n_rows, self.seed, epoch);
            self.epoch = Some(epoch);
        }
        let start = index as usize * self.batch;
        self.order.iter().cycle().skip(start).take(self.batch).map(|&row| row as usize).collect()
    }
}

/// What a generator is for; part of its seed, so that they are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// The order of an epoch.
    Order = 1,
    /// The noise of a step.
    Noise = 2,
    /// The noise of a draw of held-out rows.
    JudgeNoise = 3,
    /// Times and noise of actions that are to be denoised in a step.
    Denoise = 4,
    /// The same for rows that are judged on.
    JudgeDenoise = 5,
    /// The noise that a sampler begins with.
    Prior = 6,
}

/// The generator of (seed, purpose, counter).
pub(crate) fn generator(seed: u64, purpose: Purpose, counter: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(counter);
    generator
}

/// `0..n` in the order of an epoch (Fisher, Yates).
fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut generator = generator(seed, Purpose::Order, epoch);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..order.len()).rev() {
        // The bias of the multiplication is below 2^-32.
        let j = (u128::from(generator.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// Adds Gaussian noise to observations, feature by feature: `sigma` standard
/// deviations of the feature over the data.
#[derive(Clone, Debug)]
pub struct Noise {
    seed: u64,
    /// Standard deviation of the noise, column by column, feature by feature.
    deviations: Vec<Vec<f32>>,
}

impl Noise {
    /// Measures the features of a data set.
    pub fn new(data: &Rows, sigma: f64, seed: u64) -> Self {
        let deviations = data.observations.iter().map(|column| deviations(column, sigma)).collect();
        Self { seed, deviations }
    }

    /// Leaves the columns of `data` alone that `exact` names: integers, which
    /// are indices, flags and pixels.
    #[must_use]
    pub fn except(mut self, data: &Rows, exact: impl Fn(&str) -> bool) -> Self {
        for (deviations, column) in self.deviations.iter_mut().zip(&data.observations) {
            if exact(&column.name) {
                deviations.fill(0.0);
            }
        }
        self
    }

    /// Changes the rows of a step in place; `rows` holds whole rows of each
    /// observation, in the order of the data set.
    pub fn add(&self, step: u64, rows: &mut [Vec<f32>]) {
        self.add_by(generator(self.seed, Purpose::Noise, step), rows.iter_mut().map(Vec::as_mut_slice));
    }

    /// Changes a copy of held-out rows in place, one of several: the same kind
    /// of noise as in training, and never the same numbers.
    pub(crate) fn add_to_judged<'a>(&self, draw: u64, rows: impl Iterator<Item = &'a mut [f32]>) {
        self.add_by(generator(self.seed, Purpose::JudgeNoise, draw), rows);
    }

    fn add_by<'a>(&self, mut generator: ChaCha8Rng, rows: impl Iterator<Item = &'a mut [f32]>) {
        for (rows, deviations) in rows.zip(&self.deviations) {
            for row in rows.chunks_mut(deviations.len().max(1)) {
                for (x, &deviation) in row.iter_mut().zip(deviations) {
                    *x += deviation * normal(&mut generator);
                }
            }
        }
    }
}

fn deviations(column: &Column, sigma: f64) -> Vec<f32> {
    let n = column.n_rows().max(1) as f64;
    let mut sums = vec![(0.0f64, 0.0f64); column.row_len];
    for row in column.data.chunks_exact(column.row_len.max(1)) {
        for ((sum, squares), &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
            *squares += f64::from(x) * f64::from(x);
        }
    }
    let deviation = |(sum, squares): (f64, f64)| (squares / n - (sum / n) * (sum / n)).max(0.0).sqrt();
    sums.into_iter().map(|sums| (sigma * deviation(sums)) as f32).collect()
}

/// A standard normal number (Box, Muller 1958); `libm` gives the same bits on
/// every platform.
pub(crate) fn normal(generator: &mut ChaCha8Rng) -> f32 {
    let unit = |bits: u32| (f64::from(bits) + 0.5) / f64::from(u32::MAX);
    let (u, v) = (unit(generator.next_u32()).min(1.0), unit(generator.next_u32()));
    (libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_row_once() {
        let mut sampler = Sampler::new(12, 4, 7);
        let mut rows: Vec<usize> = (0..3).flat_map(|step| sampler.rows(step)).collect();
        assert_ne!(rows, (0..12).collect::<Vec<_>>());
        rows.sort_unstable();
        assert_eq!(rows, (0..12).collect::<Vec<_>>());
        assert_ne!(sampler.rows(3), sampler.rows(0));
    }

    #[test]
    fn the_batch_of_a_step_needs_no_history() {
        let mut from_the_start = Sampler::new(100, 8, 3);
        let all: Vec<Vec<usize>> = (0..40).map(|step| from_the_start.rows(step)).collect();
        assert_eq!(Sampler::new(100, 8, 3).rows(37), all[37]);
        assert_ne!(Sampler::new(100, 8, 4).rows(37), all[37]);
    }

    #[test]
    fn windows_end_with_their_episode() {
        let column = Column { name: "actions".to_owned(), row_len: 1, data: (0..9).map(|i| i as f32).collect() };
        let (windows, needed) = Windows::new(3, &(0..9).collect::<Vec<_>>(), &[0..5, 5..9]);
        assert_eq!(needed, (0..9).collect::<Vec<_>>());
        let window = |windows: &Windows, column: &Column, row| {
            let (mut out, mut mask) = (Vec::new(), Vec::new());
            windows.gather(column, row, &mut out, &mut mask);
            (out, mask)
        };
        assert_eq!(window(&windows, &column, 0), (vec![0.0, 1.0, 2.0], vec![1.0; 3]));
        assert_eq!(window(&windows, &column, 3), (vec![3.0, 4.0, 4.0], vec![1.0, 1.0, 0.0]));
        assert_eq!(window(&windows, &column, 4), (vec![4.0; 3], vec![1.0, 0.0, 0.0]));
        assert_eq!(window(&windows, &column, 5), (vec![5.0, 6.0, 7.0], vec![1.0; 3]));
        assert_eq!(window(&windows, &column, 9), (vec![], vec![]));
        // Few steps far apart need few actions, and neighbours share them.
        let (windows, needed) = Windows::new(3, &[1, 2, 7], &[0..5, 5..9]);
        assert_eq!(needed, [1, 2, 3, 4, 7, 8]);
        let some = Column { data: needed.iter().map(|&step| step as f32).collect(), ..column };
        assert_eq!(window(&windows, &some, 1), (vec![2.0, 3.0, 4.0], vec![1.0; 3]));
        assert_eq!(window(&windows, &some, 2), (vec![7.0, 8.0, 8.0], vec![1.0, 1.0, 0.0]));
    }

    #[test]
    fn few_rows_repeat_inside_a_batch() {
        let mut rows = Sampler::new(3, 7, 0).rows(5);
        rows.sort_unstable();
        assert_eq!(rows.len(), 7);
        assert!(rows.starts_with(&[0, 0]) && rows.ends_with(&[2, 2]));
    }

    #[test]
    fn noise_is_scaled_by_the_feature_and_seeded_by_the_step() {
        let data: Vec<f32> = (0..2000).flat_map(|i| [if i % 2 == 0 { 10.0 } else { -10.0 }, 5.0]).collect();
        let column = Column { name: "obs".to_owned(), row_len: 2, data };
        let rows = Rows { observations: vec![column.clone()], ..Rows::default() };
        let noise = Noise::new(&rows, 0.1, 5);
        let mut noisy = vec![column.data.clone()];
        noise.add(3, &mut noisy);
        let squares = |feature: usize| -> f64 {
            let pairs = noisy[0].iter().zip(&column.data).skip(feature).step_by(2);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / 2000.0
        };
        assert!((squares(0).sqrt() - 1.0).abs() < 0.05, "{}", squares(0));
        // A constant feature stays.
        assert_eq!(squares(1), 0.0);
        let mut again = vec![column.data.clone()];
        noise.add(3, &mut again);
        assert_eq!(again, noisy);
        noise.add(4, &mut again);
        assert_ne!(again, noisy);
        let mut judged = column.data.clone();
        noise.add_to_judged(3, std::iter::once(judged.as_mut_slice()));
        assert_ne!(judged, noisy[0]);
        let mut exact = vec![column.data.clone()];
        noise.except(&rows, |name| name == "obs").add(3, &mut exact);
        assert_eq!(exact[0], column.data);
    }
}
