//! Samplers: a network that predicts noise or a velocity becomes a policy.
//!
//! A diffusion or flow policy is exported as one denoising step. [`Sampler::attach`]
//! appends the update of the sample to such a graph and lets it [repeat](qail_ir::Repeat):
//! the sample is carried from turn to turn, and what varies by the turn (the
//! timestep, the coefficients of the update) is looked up in tables.
//!
//! All updates have one form, with `y` what the network predicts from `x`:
//!
//! ```text
//! x0 = clip(a x + b y)                      the clean sample that y stands for
//! e  = c x + d y                            the noise that y stands for
//! x' = p x0 + q e + r x + s noise           the next sample
//! ```
//! - `ddim`, eta 0 (arXiv 2010.02502, eq. 12): `p = sqrt(A'), q = sqrt(1 - A')`, with `A` the `alpha_bar` of this
//!   timestep and `A'` that of the next one.
//! - `ddpm` (arXiv 2006.11239, eq. 6 and 7): the posterior mean, `p = sqrt(A') B / (1 - A)`,
//!   `r = sqrt(A / A') (1 - A') / (1 - A)`, `B = 1 - A / A'`, and `s = sqrt((1 - A') / (1 - A) B)`.
//! - `flow-euler` (arXiv 2210.02747; the loop of pi0 and SmolVLA): `x' = x + dt y`.

mod attach;
mod schedule;

use qail_ir::TypeError;

pub use schedule::{BetaSchedule, Spacing, alpha_bars, timesteps};

/// What turns a denoising step into a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// The rule of the update.
    pub kind: SamplerKind,
    /// Turns.
    pub steps: usize,
    /// Input that is the noisy sample; what the caller gives is the noise that it begins as.
    pub sample: String,
    /// Input that is the timestep.
    pub timestep: String,
    /// Output that is predicted from them, of the type of the sample.
    pub output: String,
    /// Name of the output that the clean sample leaves by.
    pub action: String,
}

/// See [`Sampler`].
#[derive(Clone, Debug, PartialEq)]
pub enum SamplerKind {
    /// Without noise between turns.
    Ddim(Diffusion),
    /// With noise between turns: input [`Sampler::NOISE`], `[batch, steps, ..]`, has it.
    Ddpm(Diffusion),
    /// The flow from noise, at time `start`, to the sample, at time `end`.
    FlowEuler {
        /// Time of pure noise: 1 in pi0 and SmolVLA.
        start: f64,
        /// Time of the clean sample.
        end: f64,
    },
}

/// How the network was trained to denoise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diffusion {
    /// Timesteps of training.
    pub train_steps: usize,
    /// How noise grows with them.
    pub betas: BetaSchedule,
    /// Which of them are visited.
    pub spacing: Spacing,
    /// What the output is.
    pub prediction: Prediction,
    /// The clean sample is clipped to `-clip..=clip` in each turn.
    pub clip: Option<f64>,
}

/// What a network predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The clean sample.
    Sample,
    /// `sqrt(A) noise - sqrt(1 - A) sample` (arXiv 2202.00512, appendix D).
    Velocity,
}

/// A sampler that does not fit its graph.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// No such input.
    #[error("the model has no input `{name}`; its inputs are {known}")]
    NoInput {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No such output.
    #[error("the model has no output `{name}`; its outputs are {known}")]
    NoOutput {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A value of a type that a sampler has no use for.
    #[error("`{name}` is {found}, must be {expected}")]
    Type {
        /// The input or output.
        name: String,
        /// Its type.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A number outside of its range.
    #[error("`{what}` of the sampler is {found}, must be {expected}")]
    Number {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The graph repeats already.
    #[error("the graph repeats already")]
    Repeats,
    /// A node that does not fit: a bug.
    #[error("internal error: a node of the sampler")]
    Node(#[from] TypeError),
}

/// The coefficients of one turn; see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Turn {
    /// What the network is told.
    pub timestep: f64,
    /// `x` in `x0`.
    pub a: f64,
    /// `y` in `x0`.
    pub b: f64,
    /// `x` in the noise.
    pub c: f64,
    /// `y` in the noise.
    pub d: f64,
    /// `x0` in the next sample.
    pub p: f64,
    /// The noise in the next sample.
    pub q: f64,
    /// `x` in the next sample.
    pub r: f64,
    /// Fresh noise in the next sample.
    pub s: f64,
}

impl Sampler {
    /// The coefficients of every turn.
    ///
    /// # Errors
    /// Numbers outside of their range.
    pub fn turns(&self) -> Result<Vec<Turn>, SamplerError> {
        match &self.kind {
            SamplerKind::Ddim(diffusion) => diffusion.turns(self.steps, false),
            SamplerKind::Ddpm(diffusion) => diffusion.turns(self.steps, true),
            SamplerKind::FlowEuler { start, end } => flow(*start, *end, self.steps),
        }
    }
}

fn flow(start: f64, end: f64, steps: usize) -> Result<Vec<Turn>, SamplerError> {
    if !(start.is_finite() && end.is_finite() && start != end) {
        let found = format!("{start} and {end}");
        return Err(SamplerError::Number { what: "start and end", found, expected: "two times that differ" });
    }
    if !(1..=qail_ir::MAX_TURNS).contains(&steps) {
        return Err(SamplerError::Number { what: "steps", found: steps.to_string(), expected: "1 to 65536" });
    }
    let dt = (end - start) / steps as f64;
    // The prediction is used as it is: it takes the place of the noise.
    let turn = |i| Turn { timestep: start + dt * i as f64, d: 1.0, q: dt, r: 1.0, ..Turn::default() };
    Ok((0..steps).map(turn).collect())
}

impl Diffusion {
    fn turns(&self, steps: usize, is_ddpm: bool) -> Result<Vec<Turn>, SamplerError> {
        let alpha_bars = alpha_bars(self.betas, self.train_steps)?;
        let timesteps = timesteps(self.spacing, self.train_steps, steps)?;
        let stride = self.train_steps / steps;
        let of = |t: usize| alpha_bars.get(t).copied().unwrap_or(1.0);
        Ok(timesteps.into_iter().map(|t| self.turn(t, of(t), t.checked_sub(stride).map_or(1.0, of), is_ddpm)).collect())
    }

    fn turn(&self, t: usize, now: f64, next: f64, is_ddpm: bool) -> Turn {
        let (signal, noise) = (now.sqrt(), (1.0 - now).sqrt());
        let (a, b, c, d) = match self.prediction {
            Prediction::Epsilon => (1.0 / signal, -noise / signal, 0.0, 1.0),
            Prediction::Sample => (0.0, 1.0, 1.0 / noise, -signal / noise),
            Prediction::Velocity => (signal, -noise, noise, signal),
        };
        let turn = Turn { timestep: t as f64, a, b, c, d, ..Turn::default() };
        if !is_ddpm {
            return Turn { p: next.sqrt(), q: (1.0 - next).sqrt(), ..turn };
        }
        let beta = 1.0 - now / next;
        Turn {
            p: next.sqrt() * beta / (1.0 - now),
            r: (now / next).sqrt() * (1.0 - next) / (1.0 - now),
            s: if t == 0 { 0.0 } else { ((1.0 - next) / (1.0 - now) * beta).max(1e-20).sqrt() },
            ..turn
        }
    }
}

#[cfg(test)]
mod tests;
