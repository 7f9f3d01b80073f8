//! The loop: batches in, better parameters out.
//!
//! Every number of a step follows from the step's index and the state behind
//! the step before it, so a run that is cut and resumed ends in the same bits.
//! What is judged on held-out rows is the quantized policy as it will run; the
//! parameters that did best there are the result, those of the start included.
//!
//! With noise on observations (see [`Noise`]) the teacher answers for the noisy
//! rows, and the expert's action moves by as much as the teacher's does. What is
//! kept is chosen by rows with the same kind of noise; what is reported are
//! errors on the rows as they were recorded.

mod data;
mod judge;

use std::collections::BTreeMap;

use qail_ir::{
    Graph,
    interp::{InterpError, Tensor},
};

use crate::{
    GradientError, Head, LossError, Weighting,
    batches::{Noise, Rows},
    denoise::Denoise,
    exec::ExecError,
    forward::Forward,
    metrics::ActionError,
    optimizer::{AdamW, Average, Rates},
    options::{Method, TrainOptions},
    parameters::{Parameter, ParameterError, parameters},
    setup::Machine,
};
use data::Data;
use judge::{Errors, Judge, Verdict, reference};

/// A loss this much larger than the first one means that training diverges.
const DIVERGED: f64 = 1e3;
/// Rows of a batch when nothing but outputs is needed.
const FORWARD_BATCH: usize = 256;

/// What a trainer is made from.
pub struct Setup<'a> {
    /// The graph of `pipeline::prepare`, at batch 1.
    pub prepared: &'a Graph,
    /// The full-precision policy, at batch 1, with the same inputs and outputs.
    pub teacher: &'a Graph,
    /// Which outputs are the action.
    pub head: Head,
    /// Rows to train on.
    pub train: Rows,
    /// Rows to judge on.
    pub held_out: Rows,
    /// The policy predicts the noise of noisy actions: `rows.actions` are clean
    /// ones, and the inputs that it names get their numbers in each step.
    pub denoise: Option<Denoise>,
    /// Steps of an episode in a row of `train` and `held_out`, over which the
    /// states of a recurrent policy are followed; 1 for rows that are steps.
    pub window: usize,
    /// Some steps to measure the units of biases on.
    pub samples: &'a [BTreeMap<String, Tensor>],
    /// What the result depends on.
    pub options: TrainOptions,
    /// Threads, which the result does not depend on.
    pub threads: usize,
}

/// Training that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// There is nothing to train, or a constant is unsound.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A policy that cannot be followed over several steps.
    #[error(transparent)]
    Unroll(#[from] Box<crate::UnrollError>),
    /// The loss does not fit the policy.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The loss has no gradient.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// A graph does not run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The teacher does not run.
    #[error(transparent)]
    Interp(#[from] InterpError),
    /// An input without data.
    #[error("there is no data for input `{name}`")]
    NoColumn {
        /// Name of the input.
        name: String,
    },
    /// The head names an output that the policy does not have.
    #[error("the policy has no output `{name}`")]
    NoOutput {
        /// Name of the output.
        name: String,
    },
    /// The rows of a column have another length than the graph takes.
    #[error("`{name}` has {found} numbers a step, needed are {expected}")]
    RowLength {
        /// Name of the column.
        name: String,
        /// Numbers in a row.
        found: usize,
        /// Numbers that fit.
        expected: usize,
    },
    /// Nothing to train on.
    #[error("there are no steps to train on")]
    NoRows,
    /// The first batch has no loss.
    #[error(
        "the loss of the first batch is {loss}: recorded numbers are out of any proportion; \
         `qailc data inspect` shows their ranges"
    )]
    FirstLoss {
        /// The loss.
        loss: f64,
    },
    /// The loss exploded.
    #[error(
        "training diverged at step {step}: the loss is {loss:.3e} after {initial:.3e} at the start{}; \
         use a lower --lr, or -b with more bits",
        match .constant { Some(name) => format!(", and `{name}` is not finite"), None => String::new() }
    )]
    Diverged {
        /// Updates before it.
        step: u64,
        /// The loss.
        loss: f64,
        /// The loss of the first batch.
        initial: f64,
        /// The first parameter or gradient with NaN or an infinite number.
        constant: Option<String>,
    },
    /// Numbers that no integer graph has.
    #[error("training diverged at step {step}: its numbers cannot be executed any more; use a lower --lr")]
    Lost {
        /// Updates before it.
        step: u64,
        /// Which numbers.
        #[source]
        source: Box<TrainError>,
    },
    /// The state is of another model or other options.
    #[error("the state to resume from does not fit: {what}")]
    State {
        /// What does not fit.
        what: String,
    },
    /// Whoever watches could not save.
    #[error(transparent)]
    Save(Box<dyn std::error::Error + Send + Sync>),
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Updates so far, this one included.
    pub step: u64,
    /// The whole loss.
    pub loss: f64,
    /// Its imitation term.
    pub qail: Option<f64>,
    /// Its cloning term, without its weight.
    pub qbc: Option<f64>,
    /// Learning rate of weights.
    pub lr: f64,
    /// Norm of the gradients in units, before clipping.
    pub gradient_norm: f64,
}

/// How good parameters are on held-out rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Updates so far.
    pub step: u64,
    /// Distance from the actions of the full-precision policy.
    pub teacher: ActionError,
    /// Distance from the actions of the expert.
    pub expert: Option<ActionError>,
    /// What is compared to find the best: the mean squares of the terms that
    /// the method has, weighed like them, with the noise of training.
    pub score: f64,
    /// True if nothing before was better.
    pub is_best: bool,
}

/// Who hears about training and may stop it. Nothing here reads the clock.
pub trait Watch {
    /// Behind each update.
    fn step(&mut self, report: &StepReport);
    /// Behind each evaluation.
    fn evaluated(&mut self, evaluation: &Evaluation);
    /// Asked before each update: true ends training early.
    fn stop(&mut self) -> bool {
        false
    }
    /// Asked behind each update and before the first: true has [`Watch::save`] called.
    fn wants_state(&mut self, step: u64) -> bool {
        let _ = step;
        false
    }
    /// Keeps a state; training goes on from there if it is cut.
    fn save(
        &mut self,
        state: &State,
        parameters: &[Parameter],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _ = (state, parameters);
        Ok(())
    }
}

/// Everything that changes while training.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Updates so far.
    pub step: u64,
    /// Parameters, in their order.
    pub now: Vec<Vec<f32>>,
    /// First moments.
    pub m: Vec<Vec<f32>>,
    /// Second moments.
    pub v: Vec<Vec<f32>>,
    /// The moving average, if there is one.
    pub average: Option<Vec<Vec<f32>>>,
    /// The parameters that did best on held-out rows.
    pub best: Vec<Vec<f32>>,
    /// Updates behind them.
    pub best_step: u64,
    /// How good they are.
    pub best_score: f64,
    /// The loss of the first batch; NaN before it.
    pub initial_loss: f64,
}

/// A policy in training.
pub struct Trainer {
    options: TrainOptions,
    parameters: Vec<Parameter>,
    machine: Machine,
    judge: Judge,
    data: Data,
    adam: AdamW,
    average: Option<Average>,
    step: u64,
    initial_loss: f64,
    best: Vec<Vec<f32>>,
    best_step: u64,
    best_score: f64,
    notes: Vec<String>,
}

impl Trainer {
    /// Differentiates the loss, compiles the graphs, and asks the teacher about
    /// every row.
    ///
    /// # Errors
    /// A policy without quantized layers or with functions that have no
    /// gradient, and data that does not fit it.
    pub fn new(setup: Setup<'_>) -> Result<Self, TrainError> {
        let Setup { prepared, teacher, head, train, held_out, denoise, window, samples, options, threads } = setup;
        if train.n_rows() == 0 || held_out.n_rows() == 0 {
            return Err(TrainError::NoRows);
        }
        let held_out = match &denoise {
            Some(denoise) => denoise.noised(held_out, 0),
            None => held_out,
        };
        let mut notes = Vec::new();
        let mut parameters = parameters(prepared, samples)?;
        let (windows, of_teacher) = (unrolled(prepared, window)?, unrolled(teacher, window)?);
        let (prepared, teacher) = (windows.as_ref().unwrap_or(prepared), of_teacher.as_ref().unwrap_or(teacher));
        let weighting = if train.weights.is_some() { Weighting::All } else { Weighting::None };
        let masked = train.windows.as_ref().map(|windows| windows.length);
        let machine = Machine::new(prepared, &head, &mut parameters, &options, weighting, masked, threads, &mut notes)?;
        let action = head.outputs().first().map_or(String::new(), |name| (*name).to_owned());
        let batch = FORWARD_BATCH.min(held_out.n_rows());
        let student = Forward::new(prepared, &parameters, batch, threads, &mut notes)?;
        let reference = reference(teacher, &held_out, &action)?;
        let mut judge = Judge::new(student, held_out, reference, action);
        let noise = noise(&train, teacher, denoise.as_ref(), &options);
        let batch = FORWARD_BATCH.min(options.batch.max(1));
        let mut teacher = Forward::new(teacher, &[], batch, threads, &mut notes)?;
        if let Some(noise) = &noise {
            judge = judge.with_noise(noise, &mut teacher)?;
        }
        let data = Data::new(train, teacher, &head, noise, denoise, &options)?;
        let mut trainer = Self::with(options, parameters, machine, judge, data)?;
        trainer.notes = notes;
        Ok(trainer)
    }

    /// The loop around parts that are made.
    fn with(
        options: TrainOptions,
        parameters: Vec<Parameter>,
        machine: Machine,
        judge: Judge,
        data: Data,
    ) -> Result<Self, TrainError> {
        for feed in &machine.feeds {
            let (name, found) = data.row(&feed.source)?;
            if found != feed.row_len {
                return Err(TrainError::RowLength { name: name.to_owned(), found, expected: feed.row_len });
            }
        }
        let adam = AdamW::new(options.adamw(), &parameters);
        let average = (options.ema > 0.0).then(|| Average::new(options.ema, &parameters));
        let best = parameters.iter().map(|parameter| parameter.elements.clone()).collect();
        Ok(Self {
            options,
            parameters,
            machine,
            judge,
            data,
            adam,
            average,
            step: 0,
            initial_loss: f64::NAN,
            best,
            best_step: 0,
            best_score: f64::INFINITY,
            notes: Vec::new(),
        })
    }

    /// Remarks on how it runs.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What is trained, with its present numbers.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Updates so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Everything that changes while training.
    pub fn state(&self) -> State {
        State {
            step: self.step,
            now: self.parameters.iter().map(|parameter| parameter.elements.clone()).collect(),
            m: self.adam.m.clone(),
            v: self.adam.v.clone(),
            average: self.average.as_ref().map(|average| average.elements.clone()),
            best: self.best.clone(),
            best_step: self.best_step,
            best_score: self.best_score,
            initial_loss: self.initial_loss,
        }
    }

    /// Goes on from a state of the same model, data and options.
    pub fn restore(&mut self, state: State) -> Result<(), TrainError> {
        let misfit = |what: &str| TrainError::State { what: what.to_owned() };
        let fits = |elements: &[Vec<f32>]| {
            elements.len() == self.parameters.len()
                && elements.iter().zip(&self.parameters).all(|(a, b)| a.len() == b.elements.len())
        };
        if ![&state.now, &state.m, &state.v, &state.best].into_iter().all(|elements| fits(elements)) {
            return Err(misfit("it has parameters of other sizes"));
        }
        if state.step > self.options.steps || state.best_step > state.step {
            return Err(misfit("it is behind the last step"));
        }
        match (&mut self.average, state.average) {
            (Some(average), Some(elements)) if fits(&elements) => average.elements = elements,
            (None, None) => {}
            _ => return Err(misfit("it has another moving average")),
        }
        for (parameter, elements) in self.parameters.iter_mut().zip(state.now) {
            parameter.elements = elements;
        }
        (self.adam.m, self.adam.v, self.adam.t) = (state.m, state.v, state.step);
        (self.best, self.best_step, self.best_score) = (state.best, state.best_step, state.best_score);
        (self.step, self.initial_loss) = (state.step, state.initial_loss);
        Ok(())
    }

    /// Trains to the last step, or until the watcher stops it; true if the last
    /// step was reached.
    ///
    /// # Errors
    /// A loss that explodes, and states that cannot be saved.
    pub fn run(&mut self, watch: &mut dyn Watch) -> Result<bool, TrainError> {
        if self.step == 0 {
            self.evaluate(watch)?;
            self.offer_state(watch)?;
        }
        let mut judged = self.step;
        while self.step < self.options.steps {
            if watch.stop() {
                if judged != self.step {
                    self.evaluate(watch)?;
                }
                return Ok(false);
            }
            let step = self.step;
            // What ran once and does not run now was trained to death.
            let lost = |error: TrainError| match error {
                error @ TrainError::Exec(_) if step > 0 => TrainError::Lost { step, source: Box::new(error) },
                other => other,
            };
            let report = self.update().map_err(lost)?;
            watch.step(&report);
            if self.step.is_multiple_of(self.options.evaluate_every.max(1)) || self.step == self.options.steps {
                self.evaluate(watch).map_err(lost)?;
                judged = self.step;
            }
            self.offer_state(watch)?;
        }
        Ok(true)
    }

    fn offer_state(&self, watch: &mut dyn Watch) -> Result<(), TrainError> {
        if watch.wants_state(self.step) {
            watch.save(&self.state(), &self.parameters).map_err(TrainError::Save)?;
        }
        Ok(())
    }

    /// One update.
    fn update(&mut self) -> Result<StepReport, TrainError> {
        let Machine { executor, rows, feeds, constants, gradients, loss } = &mut self.machine;
        self.data.draw(self.step)?;
        for (&constant, parameter) in constants.iter().zip(&self.parameters) {
            executor.set(constant, &parameter.elements)?;
        }
        let n_runs = self.options.batch.div_ceil((*rows).max(1)).max(1);
        let mut sums: Vec<Vec<f32>> = Vec::new();
        let mut terms = [Some(0.0f64), loss.qail.map(|_| 0.0), loss.qbc.map(|_| 0.0)];
        for run in 0..n_runs {
            let feed: Vec<(&str, &[f32])> =
                feeds.iter().map(|feed| (feed.input.as_str(), self.data.part(&feed.source, run, *rows))).collect();
            executor.run(&feed)?;
            for (term, value) in terms.iter_mut().zip([Some(loss.total), loss.qail, loss.qbc]) {
                let Some((term, value)) = term.as_mut().zip(value) else { continue };
                *term += f64::from(executor.read(value)?.first().copied().unwrap_or(f32::NAN)) / n_runs as f64;
            }
            for (index, &gradient) in gradients.iter().enumerate() {
                let elements = executor.read(gradient)?;
                match sums.get_mut(index) {
                    Some(sum) => sum.iter_mut().zip(elements).for_each(|(sum, g)| *sum += g),
                    None => sums.push(elements.to_vec()),
                }
            }
        }
        if n_runs > 1 {
            sums.iter_mut().flatten().for_each(|g| *g /= n_runs as f32);
        }
        let [total, qail, qbc] = terms;
        let total = total.unwrap_or(f64::NAN);
        if self.initial_loss.is_nan() {
            self.initial_loss = total;
        }
        self.check(total, &sums)?;
        let factor = self.options.schedule().factor(self.step);
        let rates = Rates { weights: self.options.lr * factor, steps: self.options.lr_steps * factor };
        let gradient_norm = self.adam.update(&mut self.parameters, &sums, rates);
        self.check(total, &sums)?;
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.update(&self.parameters, self.step);
        }
        Ok(StepReport { step: self.step, loss: total, qail, qbc, lr: rates.weights, gradient_norm })
    }

    /// Refuses numbers that are not finite and a loss that has exploded.
    fn check(&self, loss: f64, gradients: &[Vec<f32>]) -> Result<(), TrainError> {
        // Next to nothing may grow a thousandfold: a loss up to 1, in units of the action, is
        // none that exploded. A likelihood has any sign.
        let limit = DIVERGED * self.initial_loss.abs().max(1e-3);
        let not_finite = |elements: &[f32]| elements.iter().any(|x| !x.is_finite());
        let bad = self.parameters.iter().position(|parameter| not_finite(&parameter.elements));
        let bad = bad.or_else(|| gradients.iter().position(|gradient| not_finite(gradient)));
        if loss.is_finite() && loss <= limit && bad.is_none() {
            return Ok(());
        }
        // Parameters that ran on the held-out rows are sound: it is the data.
        if self.step == 0 && !loss.is_finite() && !self.parameters.iter().any(|p| not_finite(&p.elements)) {
            return Err(TrainError::FirstLoss { loss });
        }
        let name = |index: usize| self.parameters.get(index).map(|parameter| parameter.name.clone());
        let (step, initial) = (self.step, self.initial_loss);
        Err(TrainError::Diverged { step, loss, initial, constant: bad.and_then(name) })
    }

    /// Judges the present parameters, or their average, and keeps the best.
    fn evaluate(&mut self, watch: &mut dyn Watch) -> Result<Evaluation, TrainError> {
        let now = match &self.average {
            Some(average) => average.elements.clone(),
            None => self.parameters.iter().map(|parameter| parameter.elements.clone()).collect(),
        };
        let Verdict { clean, judged } = self.judge.judge(&now)?;
        let method = self.options.method;
        let qail = judged.expert.filter(|_| method.needs_actions()).map_or(0.0, |error| error.mse());
        let qbc = if method.needs_teacher() { judged.teacher.mse() } else { 0.0 };
        let score = match method {
            Method::Qbc => qbc,
            Method::Ptq | Method::Qail | Method::QailQbc => qail + self.options.lambda * qbc,
        };
        let is_best = score < self.best_score;
        if is_best {
            (self.best, self.best_step, self.best_score) = (now, self.step, score);
        }
        let Errors { teacher, expert } = clean;
        let evaluation = Evaluation { step: self.step, teacher, expert, score, is_best };
        watch.evaluated(&evaluation);
        Ok(evaluation)
    }
}

/// Several steps of a recurrent policy as one graph; none for one step.
fn unrolled(graph: &Graph, window: usize) -> Result<Option<Graph>, TrainError> {
    if window <= 1 {
        return Ok(None);
    }
    let states =
        graph.states.iter().map(|state| crate::State { input: state.input.clone(), output: state.output.clone() });
    Ok(Some(crate::unroll(graph, &states.collect::<Vec<_>>(), window).map_err(Box::new)?))
}

/// The noise of a run; integers are left as they are.
fn noise(train: &Rows, teacher: &Graph, denoise: Option<&Denoise>, options: &TrainOptions) -> Option<Noise> {
    let is_exact = |name: &str| {
        if denoise.is_some_and(|denoise| denoise.sample == name || denoise.timestep == name) {
            return true;
        }
        teacher.input_named(name).is_some_and(|input| !teacher.ty(input).is_f32())
    };
    (options.obs_noise > 0.0).then(|| Noise::new(train, options.obs_noise, options.seed).except(train, is_exact))
}

#[cfg(test)]
mod tests;
