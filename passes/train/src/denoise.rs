//! What a diffusion or flow policy is trained on: clean actions with noise, and
//! what the network should say to them.
//!
//! Each row of a batch gets a time and a noise of its own, from a generator that
//! is seeded by (seed, step): a batch is a function of the step, and the teacher
//! is asked about the very numbers that the student sees.
//!
//! - diffusion (arXiv 2006.11239, eq. 4): `x = sqrt(A) a + sqrt(1 - A) e`, `A` the
//!   `alpha_bar` of a timestep that is uniform over those of training;
//! - flow (arXiv 2210.02747, with the times of pi0 and SmolVLA):
//!   `x = s e + (1 - s) a`, `s = 0.001 + 0.999 u^(2/3)`, which is `Beta(1.5, 1)`,
//!   and the velocity `(e - a) / (start - end)`.

use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use qail_passes::sampler::{Prediction, Sampler, SamplerError, SamplerKind, alpha_bars};

use crate::batches::{Column, Purpose, Rows, generator, normal};

/// Makes rows to denoise out of clean actions.
#[derive(Clone, Debug, PartialEq)]
pub struct Denoise {
    /// Input of the network that is the noisy action.
    pub sample: String,
    /// Input of the network that is the time.
    pub timestep: String,
    process: Process,
    seed: u64,
}

/// Standard normal numbers of a seed and a draw.
pub fn standard_normal(seed: u64, draw: u64, n: usize) -> Vec<f32> {
    let mut generator = generator(seed, Purpose::Prior, draw);
    (0..n).map(|_| normal(&mut generator)).collect()
}

#[derive(Clone, Debug, PartialEq)]
enum Process {
    Diffusion { alpha_bars: Vec<f64>, prediction: Prediction },
    Flow { start: f64, end: f64 },
}

/// What clean actions become.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noised {
    /// The noisy actions.
    pub sample: Vec<f32>,
    /// Their times.
    pub timestep: Vec<f32>,
    /// What the network should say.
    pub target: Vec<f32>,
}

impl Denoise {
    /// The noise that a sampler takes away.
    ///
    /// # Errors
    /// Numbers of the sampler outside of their range.
    pub fn new(sampler: &Sampler, seed: u64) -> Result<Self, SamplerError> {
        let process = match &sampler.kind {
            SamplerKind::Ddim(diffusion) | SamplerKind::Ddpm(diffusion) => Process::Diffusion {
                alpha_bars: alpha_bars(diffusion.betas, diffusion.train_steps)?,
                prediction: diffusion.prediction,
            },
            SamplerKind::FlowEuler { start, end } => Process::Flow { start: *start, end: *end },
        };
        Ok(Self { sample: sampler.sample.clone(), timestep: sampler.timestep.clone(), process, seed })
    }

    /// Noise for the batch of a step: `actions` holds whole actions of `len`
    /// numbers, one behind the other.
    #[must_use]
    pub fn batch(&self, step: u64, actions: &[f32], len: usize) -> Noised {
        self.draw(generator(self.seed, Purpose::Denoise, step), actions, len)
    }

    /// Puts sample and time where the inputs of their names are, and gives the target.
    pub(crate) fn place<'a>(
        &self,
        noised: Noised,
        columns: impl Iterator<Item = (&'a str, &'a mut Vec<f32>)>,
    ) -> Vec<f32> {
        let Noised { mut sample, mut timestep, target } = noised;
        for (name, data) in columns {
            if name == self.sample {
                std::mem::swap(data, &mut sample);
            } else if name == self.timestep {
                std::mem::swap(data, &mut timestep);
            }
        }
        target
    }

    /// Rows with noise that is always the same, to judge or to calibrate on; the
    /// actions become what the network should say. Windows are put together.
    /// `draw` tells sets of rows apart.
    #[must_use]
    pub fn noised(&self, rows: Rows, draw: u64) -> Rows {
        let mut actions = Vec::new();
        (0..rows.n_rows()).for_each(|row| rows.expert(row, &mut actions, &mut Vec::new()));
        let len = rows.expert_len().unwrap_or(0);
        let noised = self.draw(generator(self.seed, Purpose::JudgeDenoise, draw), &actions, len);
        let mut rows = Rows { windows: None, ..rows };
        let columns = rows.observations.iter_mut().map(|column| (column.name.as_str(), &mut column.data));
        let target = self.place(noised, columns);
        rows.actions = Some(Column { name: "actions".to_owned(), row_len: len, data: target });
        rows
    }

    fn draw(&self, mut generator: ChaCha8Rng, actions: &[f32], len: usize) -> Noised {
        let Noised { mut sample, mut timestep, mut target } = Noised::default();
        for action in actions.chunks_exact(len.max(1)) {
            let unit = (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let time = self.process.time(unit);
            timestep.push(time.value as f32);
            for &a in action {
                let noise = f64::from(normal(&mut generator));
                let a = f64::from(a);
                sample.push((time.signal * a + time.noise * noise) as f32);
                target.push((time.target_signal * a + time.target_noise * noise) as f32);
            }
        }
        Noised { sample, timestep, target }
    }
}

/// A time, and what stands before action and noise at it.
struct Time {
    value: f64,
    signal: f64,
    noise: f64,
    target_signal: f64,
    target_noise: f64,
}

impl Process {
    /// The time of a number in [0, 1).
    fn time(&self, unit: f64) -> Time {
        match self {
            Self::Diffusion { alpha_bars, prediction } => {
                let t = ((unit * alpha_bars.len() as f64) as usize).min(alpha_bars.len().saturating_sub(1));
                let alpha = alpha_bars.get(t).copied().unwrap_or(1.0);
                let (signal, noise) = (alpha.sqrt(), (1.0 - alpha).sqrt());
                let (target_signal, target_noise) = match prediction {
                    Prediction::Epsilon => (0.0, 1.0),
                    Prediction::Sample => (1.0, 0.0),
                    Prediction::Velocity => (-noise, signal),
                };
                Time { value: t as f64, signal, noise, target_signal, target_noise }
            }
            Self::Flow { start, end } => {
                let s = 0.001 + 0.999 * libm::pow(unit, 2.0 / 3.0);
                let per_time = 1.0 / (start - end);
                let value = end + (start - end) * s;
                Time { value, signal: 1.0 - s, noise: s, target_signal: -per_time, target_noise: per_time }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use qail_passes::sampler::{BetaSchedule, Diffusion, Spacing};

    use super::*;

    fn denoise(kind: SamplerKind) -> Denoise {
        let [sample, timestep, output, action] = ["x", "t", "eps", "action"].map(str::to_owned);
        Denoise::new(&Sampler { kind, steps: 10, sample, timestep, output, action }, 3).unwrap()
    }

    fn ddim(prediction: Prediction) -> SamplerKind {
        let betas = BetaSchedule::SquaredCosine;
        SamplerKind::Ddim(Diffusion { train_steps: 100, betas, spacing: Spacing::Leading, prediction, clip: None })
    }

    /// Sample, time and target of 4000 rows of one action, 0.5.
    fn drawn(denoise: &Denoise, step: u64) -> [Vec<f32>; 3] {
        let Noised { sample, timestep, target } = denoise.batch(step, &[0.5; 4000], 1);
        [sample, timestep, target]
    }

    #[test]
    fn noise_and_time_make_the_sample() {
        let denoise = denoise(ddim(Prediction::Epsilon));
        let alpha_bars = alpha_bars(BetaSchedule::SquaredCosine, 100).unwrap();
        let [sample, timestep, noise] = drawn(&denoise, 0);
        for ((x, t), e) in sample.iter().zip(&timestep).zip(&noise) {
            let alpha = alpha_bars[*t as usize];
            let expected = alpha.sqrt() * 0.5 + (1.0 - alpha).sqrt() * f64::from(*e);
            assert!((f64::from(*x) - expected).abs() < 1e-6);
        }
        let mean = timestep.iter().sum::<f32>() / 4000.0;
        assert!((mean - 49.5).abs() < 2.0, "{mean}");
        assert_eq!(drawn(&denoise, 0)[0], sample);
        assert_ne!(drawn(&denoise, 1)[0], sample);
    }

    #[test]
    fn a_flow_leads_from_noise_to_the_action() {
        // Followed to its end, the velocity gives the action.
        for (start, end) in [(1.0, 0.0), (0.0, 1.0)] {
            let [sample, time, velocity] = drawn(&denoise(SamplerKind::FlowEuler { start, end }), 0);
            for ((x, t), v) in sample.iter().zip(&time).zip(&velocity) {
                let reached = f64::from(*x) + (end - f64::from(*t)) * f64::from(*v);
                assert!((reached - 0.5).abs() < 1e-5, "{reached}");
            }
        }
    }

    #[test]
    fn rows_are_put_together_and_keep_their_observations() {
        let denoise = denoise(ddim(Prediction::Sample));
        let column = |name: &str, row_len: usize| Column {
            name: name.to_owned(),
            row_len,
            data: (0..3 * row_len).map(|i| i as f32).collect(),
        };
        let rows = Rows {
            observations: vec![column("obs", 2), column("x", 4), column("t", 1)],
            actions: Some(column("actions", 4)),
            ..Rows::default()
        };
        let noised = denoise.noised(rows.clone(), 0);
        assert_eq!(noised.observations[0], rows.observations[0]);
        assert_ne!(noised.observations[1], rows.observations[1]);
        // The network should say what the clean action is.
        assert_eq!(noised.actions.unwrap().data, rows.actions.unwrap().data);
    }
}
