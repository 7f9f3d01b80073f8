//! One action a control step: a queue of chunk rows around a [`Session`].
//!
//! A policy of chunks gives the actions of several steps at once. The
//! [`Controller`] runs the session when its queue is empty and hands out one row
//! a step; with temporal ensembling it runs the session in every step and hands
//! out the weighed mean of everything that was said about the step. A policy
//! without chunks is run in every step, so a control loop need not know which
//! kind it has.
//!
//! ```no_run
//! use qail_runtime::{Controller, Session, TensorView};
//!
//! let mut controller = Controller::new(Session::open("policy.qail", "cpu".parse()?)?)?;
//! let mut action = vec![0.0; controller.action_len()];
//! controller.reset()?;
//! loop {
//!     let observation = [0.0; 17];
//!     controller.act(&[TensorView::F32(&observation)], &mut action)?;
//! #   break;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use qail_artifact::Storage;

use crate::{RunError, Session, TensorView};

/// How the actions of a chunk are given out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChunkPolicy {
    /// Actions in a chunk.
    pub length: usize,
    /// Actions given out before the next chunk is computed, 1 to `length`.
    pub execute: usize,
    /// `m` of temporal ensembling, see [`Controller::act`]; `execute` is then 1.
    pub ensemble: Option<f64>,
}

/// Where an action came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acted {
    /// The session ran on the observation of this step.
    Computed,
    /// A row of a chunk that was computed before; the observation was not looked at.
    Queued,
}

/// An action that was not given. The controller stays usable.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The session failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Several outputs, and neither the file nor a name says which is the action.
    #[error("it is not clear which output is the action; the outputs are {known}")]
    NoAction {
        /// Names of the outputs.
        known: String,
    },
    /// An action of another type.
    #[error("output `{name}` is {found:?}, and an action is F32")]
    Type {
        /// The output.
        name: String,
        /// Its type.
        found: Storage,
    },
    /// Room of another length.
    #[error("an action has {expected} numbers, found room for {found}")]
    Length {
        /// Numbers of an action.
        expected: usize,
        /// Numbers that there is room for.
        found: usize,
    },
    /// No robot can do anything with such an action.
    #[error("element {index} of the action is {value}")]
    NotFinite {
        /// Position in the output, row-major.
        index: usize,
        /// The element.
        value: f32,
    },
}

/// A session that gives one action a step.
#[derive(Debug)]
pub struct Controller {
    session: Session,
    /// Index of the output.
    action: usize,
    n_action: usize,
    chunk: Option<ChunkPolicy>,
    /// Room for an output that may turn out to be unusable.
    fresh: Vec<f32>,
    pending: Pending,
}

/// What was computed and not yet given out.
#[derive(Debug)]
enum Pending {
    Queue {
        chunk: Vec<f32>,
        /// The next row.
        next: usize,
        /// The first row that is not given out any more.
        end: usize,
    },
    Mean(Ensemble),
}

impl Controller {
    /// Around a session; which output is the action, and whether it is a chunk,
    /// is what the artifact says. Everything is allocated here.
    ///
    /// # Errors
    /// [`ControlError::NoAction`] if the artifact does not say which of several
    /// outputs it is and none is called `action`, [`ControlError::Type`] if it
    /// is not `f32`.
    pub fn new(session: Session) -> Result<Self, ControlError> {
        match session.action() {
            Some(action) => Self::with(session, action),
            None => Err(no_action(&session)),
        }
    }

    /// As [`Controller::new`], for the output of this name. If the artifact says
    /// that another one is the action, this one is given out whole.
    ///
    /// # Errors
    /// As [`Controller::new`].
    pub fn of_output(session: Session, name: &str) -> Result<Self, ControlError> {
        match session.outputs().iter().position(|port| port.name == name) {
            Some(action) => Self::with(session, action),
            None => Err(no_action(&session)),
        }
    }

    fn with(session: Session, action: usize) -> Result<Self, ControlError> {
        let Some(port) = session.outputs().get(action) else { return Err(no_action(&session)) };
        if port.storage != Storage::F32 {
            return Err(ControlError::Type { name: port.name.clone(), found: port.storage });
        }
        let chunk = session.chunk().filter(|_| session.action() == Some(action));
        let n_elements = port.elements();
        // The reader of the file has checked that a chunk has its rows.
        let n_action = n_elements / chunk.map_or(1, |chunk| chunk.length.max(1));
        let pending = match chunk {
            Some(ChunkPolicy { length, ensemble: Some(m), .. }) => Pending::Mean(Ensemble::new(length, n_action, m)),
            Some(ChunkPolicy { execute, .. }) => Pending::queue(n_elements, execute),
            None => Pending::queue(n_elements, 1),
        };
        Ok(Self { session, action, n_action, chunk, fresh: vec![0.0; n_elements], pending })
    }

    /// Forgets everything: the next step computes an action from its own
    /// observation alone, and the states of the session are zero. To be called at
    /// the start of each episode.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn reset(&mut self) -> Result<(), RunError> {
        match &mut self.pending {
            Pending::Queue { next, end, .. } => *next = *end,
            Pending::Mean(ensemble) => ensemble.reset(),
        }
        self.session.reset()
    }

    /// Gives the action of this step. On a CPU nothing is allocated unless an
    /// error is returned.
    ///
    /// The session runs if the queue is empty, and in every step when
    /// ensembling; else the inputs are not looked at, and may be empty. With
    /// ensembling the action is `sum w[i] a[i] / sum w[i]`, in `f64`, over the
    /// actions that the last chunks have for this step, with `w[i] =
    /// exp(-m * i)` and `i = 0` for the oldest one.
    ///
    /// # Errors
    /// If the session fails, or if what it computed is not finite. Then `action`
    /// keeps its old contents, and so do the actions of earlier steps: for them
    /// the step has not happened, and the next call is the same step again. What
    /// to do in the meantime is the caller's choice. Where the session computed
    /// something, its states and its noise have moved on: `reset` them if they
    /// may have taken in what is not finite.
    pub fn act(&mut self, inputs: &[TensorView<'_>], action: &mut [f32]) -> Result<Acted, ControlError> {
        if action.len() != self.n_action {
            return Err(ControlError::Length { expected: self.n_action, found: action.len() });
        }
        if let Pending::Queue { chunk, next, end } = &mut self.pending
            && next < end
        {
            give(chunk, *next, action);
            *next += 1;
            return Ok(Acted::Queued);
        }
        self.session.compute(inputs)?;
        self.session.read_output(self.action, &mut self.fresh)?;
        if let Some((index, &value)) = self.fresh.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(ControlError::NotFinite { index, value });
        }
        match &mut self.pending {
            Pending::Queue { chunk, next, .. } => {
                std::mem::swap(chunk, &mut self.fresh);
                give(chunk, 0, action);
                *next = 1;
            }
            Pending::Mean(ensemble) => {
                ensemble.add(&self.fresh);
                ensemble.take(action);
            }
        }
        Ok(Acted::Computed)
    }

    /// True if the next [`Controller::act`] runs the session, and so needs an
    /// observation.
    pub fn computes_next(&self) -> bool {
        match &self.pending {
            Pending::Queue { next, end, .. } => next >= end,
            Pending::Mean(_) => true,
        }
    }

    /// Numbers of an action.
    pub fn action_len(&self) -> usize {
        self.n_action
    }

    /// Name of the output that is the action.
    pub fn action_name(&self) -> &str {
        self.session.outputs().get(self.action).map_or("", |port| port.name.as_str())
    }

    /// How chunks are given out; `None` if the output is one action.
    pub fn chunk(&self) -> Option<ChunkPolicy> {
        self.chunk
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to be run beside the queue, which does not notice.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Pending {
    /// An empty queue of chunks of which `execute` rows are given out.
    fn queue(n_elements: usize, execute: usize) -> Self {
        Self::Queue { chunk: vec![0.0; n_elements], next: execute, end: execute }
    }
}

/// Copies a row of a chunk.
fn give(chunk: &[f32], row: usize, action: &mut [f32]) {
    let rows = chunk.iter().skip(row * action.len());
    action.iter_mut().zip(rows).for_each(|(to, &from)| *to = from);
}

fn no_action(session: &Session) -> ControlError {
    let known: Vec<String> = session.outputs().iter().map(|port| format!("`{}`", port.name)).collect();
    ControlError::NoAction { known: known.join(", ") }
}

/// Weighed sums for this step and those that follow, the oldest term first: the
/// same sums as over a table of all chunks, without the table.
#[derive(Debug)]
struct Ensemble {
    n_action: usize,
    /// `exp(-m * i)`.
    weights: Vec<f64>,
    /// `sum of weights[..=i]`.
    totals: Vec<f64>,
    /// A ring of rows, one a step.
    sums: Vec<f64>,
    /// Chunks that each row has seen.
    counts: Vec<usize>,
    /// The row of this step.
    head: usize,
}

impl Ensemble {
    fn new(length: usize, n_action: usize, m: f64) -> Self {
        let weights: Vec<f64> = (0..length).map(|i| libm::exp(-m * i as f64)).collect();
        let total = |sum: &mut f64, weight: &f64| {
            *sum += weight;
            Some(*sum)
        };
        let totals = weights.iter().scan(0.0, total).collect();
        Self { n_action, weights, totals, sums: vec![0.0; length * n_action], counts: vec![0; length], head: 0 }
    }

    fn reset(&mut self) {
        self.sums.fill(0.0);
        self.counts.fill(0);
        self.head = 0;
    }

    /// Takes in the chunk of this step.
    fn add(&mut self, chunk: &[f32]) {
        // Of the ring, this row to the last one, then the first to the one before this.
        let places = (self.head..self.counts.len()).chain(0..self.head);
        for (place, row) in places.zip(chunk.chunks_exact(self.n_action.max(1))) {
            let Some(count) = self.counts.get_mut(place) else { continue };
            let weight = self.weights.get(*count).copied().unwrap_or(0.0);
            let sums = self.sums.iter_mut().skip(place * self.n_action);
            sums.zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
            *count += 1;
        }
    }

    /// Gives the action of this step and goes on to the next one.
    fn take(&mut self, action: &mut [f32]) {
        let count = self.counts.get_mut(self.head).map(std::mem::take).unwrap_or(0);
        let total = count.checked_sub(1).and_then(|last| self.totals.get(last)).copied().unwrap_or(1.0);
        let sums = self.sums.iter_mut().skip(self.head * self.n_action);
        action.iter_mut().zip(sums).for_each(|(to, sum)| *to = (std::mem::take(sum) / total) as f32);
        self.head = (self.head + 1) % self.counts.len().max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunk row `j` of time `t`, element `a`.
    fn said(t: usize, j: usize, a: usize) -> f32 {
        ((t * 7 + j * 3 + a * 11) as f32 * 0.37).sin() * 2.0
    }

    /// The mean over a table of all chunks, as the paper writes it.
    fn mean_at(t: usize, a: usize, length: usize, m: f64) -> f64 {
        let from = (t + 1).saturating_sub(length);
        let terms = (from..=t)
            .enumerate()
            .map(|(i, made_at)| ((-m * i as f64).exp(), f64::from(said(made_at, t - made_at, a))));
        let (sum, total) = terms.fold((0.0, 0.0), |(sum, total), (w, x)| (sum + w * x, total + w));
        sum / total
    }

    #[test]
    fn running_sums_are_the_mean_over_a_table_of_all_chunks() {
        for (length, m) in [(1, 0.5), (2, 0.01), (7, 0.1), (7, -0.3), (5, 0.0), (100, 6.0)] {
            let n_action = 3;
            let mut ensemble = Ensemble::new(length, n_action, m);
            for episode in 0..2 {
                ensemble.reset();
                for t in 0..3 * length + 2 {
                    let chunk: Vec<f32> = (0..length).flat_map(|j| (0..n_action).map(move |a| said(t, j, a))).collect();
                    ensemble.add(&chunk);
                    let mut action = [0.0; 3];
                    ensemble.take(&mut action);
                    for (a, &found) in action.iter().enumerate() {
                        let expected = mean_at(t, a, length, m);
                        let error = (f64::from(found) - expected).abs();
                        assert!(
                            error <= 1e-6 * expected.abs().max(1e-3),
                            "{length} {m} {episode} {t}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}
