//! Losses as nodes of the graph that is trained.
//!
//! QAIL is the distance of the policy's action from the expert's, or the
//! negative log-likelihood of the expert's action; QBC is the distance from the
//! full-precision policy on the same observation (arXiv 2412.01034). The
//! equations are in `METHOD.md` beside this crate.
//!
//! A loss adds inputs to the graph: `target.<output>` is what the expert did,
//! `teacher.<output>` what the full-precision policy computed, `weight`,
//! `[B, 1]`, one number a sample, and `mask`, `[B, L]`, one number an action of
//! a chunk, which multiplies the first term. It adds the outputs `loss`, `loss.qail` and
//! `loss.qbc`, each one number: means over the batch and over features.

mod head;
mod terms;

use qail_ir::{BinaryFn, Graph, ReduceFn, TensorType, TypeError, ValueId};

pub use head::Head;
use terms::Terms;

/// How far two actions are apart. `d` is their difference, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distance {
    /// `|d|`.
    L1,
    /// `d^2`.
    L2,
    /// `d^2 / 2` up to `|d| = delta`, then `delta * (|d| - delta / 2)`.
    Huber {
        /// Where the parabola becomes a line; positive.
        delta: f32,
    },
    /// Negative log-likelihood of the expert's action; Gaussian heads, QAIL only.
    Nll,
    /// Kullback-Leibler divergence `KL(teacher || student)`; Gaussian heads, QBC only.
    Kl,
}

/// What the `weight` of a sample multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weighting {
    /// Nothing: there is no such input.
    #[default]
    None,
    /// The QBC term alone, as saliency does (arXiv 2505.15304, eq. 7).
    Qbc,
    /// Both terms.
    All,
}

/// What a policy is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct LossSpec {
    /// What the outputs mean.
    pub head: Head,
    /// Distance from the expert's action.
    pub qail: Option<Distance>,
    /// Weight lambda of the term, and distance from the teacher.
    pub qbc: Option<(f32, Distance)>,
    /// Per-sample weights.
    pub weighting: Weighting,
    /// Actions in a chunk, if those beyond the end of an episode shall not count
    /// in the first term. The head's output is then `[B, length, A]` or
    /// `[length, A]`.
    pub masked: Option<usize>,
}

/// The values that a loss adds; each is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossValues {
    /// `qail + lambda * qbc`: what is minimized.
    pub total: ValueId,
    /// The first term.
    pub qail: Option<ValueId>,
    /// The second term, without lambda.
    pub qbc: Option<ValueId>,
}

/// A loss that does not fit the graph.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// No output of this name.
    #[error("the policy has no output `{name}`; its outputs are {known}")]
    NoOutput {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// An output of another type.
    #[error("output `{name}` is {found}, must be {expected}")]
    Output {
        /// The output.
        name: String,
        /// Its type.
        found: TensorType,
        /// What is accepted.
        expected: &'static str,
    },
    /// A distance that the head or the term does not have.
    #[error("a {head} head has no {distance} as {term}: choose {accepted}")]
    Distance {
        /// Name of the head.
        head: &'static str,
        /// Name of the distance.
        distance: &'static str,
        /// `qail` or `qbc`.
        term: &'static str,
        /// What is accepted.
        accepted: &'static str,
    },
    /// A number outside of its range.
    #[error("{what} is {found}, must be {expected}")]
    Number {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: f32,
        /// What is accepted.
        expected: &'static str,
    },
    /// Neither QAIL nor QBC.
    #[error("nothing to train on: choose qail, qbc or both")]
    NoTerm,
    /// A mask for something that is no chunk.
    #[error("`{name}` is {found}, and a chunk of {length} actions is [batch, {length}, A]")]
    Chunk {
        /// The output, or the node behind it.
        name: String,
        /// Its type.
        found: TensorType,
        /// Actions in a chunk.
        length: usize,
    },
    /// A name that the loss needs.
    #[error("the graph has an input or output `{name}` already; rename it")]
    Taken {
        /// The name.
        name: String,
    },
    /// A node of the wrong types: a bug in the loss.
    #[error("internal error: a node of the loss")]
    Node(#[from] TypeError),
}

impl Distance {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::Huber { .. } => "huber",
            Self::Nll => "nll",
            Self::Kl => "kl",
        }
    }
}

/// Appends a loss to a graph; the outputs that it has stay. The batch axis is
/// given up, because losses have none: `rebatch` goes before.
///
/// # Errors
/// See [`LossError`]; then the graph is as it was.
pub fn attach(graph: &mut Graph, spec: &LossSpec) -> Result<LossValues, LossError> {
    check(spec)?;
    let mut extended = graph.clone();
    let values = Terms::new(&mut extended, spec.weighting).build(spec)?;
    extended.batch_axis = None;
    *graph = extended;
    Ok(values)
}

fn check(spec: &LossSpec) -> Result<(), LossError> {
    let head = spec.head.name();
    let refused = |distance: Distance, term, accepted| {
        Err(LossError::Distance { head, distance: distance.name(), term, accepted })
    };
    let gaussian = matches!(spec.head, Head::Gaussian { .. });
    match spec.qail {
        Some(distance @ Distance::Kl) if gaussian => return refused(distance, "qail", "nll, l1, l2 or huber"),
        Some(distance @ (Distance::Kl | Distance::Nll)) if !gaussian => {
            return refused(distance, "qail", "l1, l2 or huber");
        }
        _ => {}
    }
    match spec.qbc {
        Some((_, distance @ Distance::Nll)) if gaussian => return refused(distance, "qbc", "kl, l1, l2 or huber"),
        Some((_, distance @ (Distance::Kl | Distance::Nll))) if !gaussian => {
            return refused(distance, "qbc", "l1, l2 or huber");
        }
        Some((lambda, _)) if !(lambda.is_finite() && lambda >= 0.0) => {
            return Err(LossError::Number { what: "lambda", found: lambda, expected: "finite and not negative" });
        }
        _ => {}
    }
    if spec.qail.is_none() && spec.qbc.is_none() {
        return Err(LossError::NoTerm);
    }
    for distance in spec.qail.into_iter().chain(spec.qbc.map(|(_, distance)| distance)) {
        if let Distance::Huber { delta } = distance
            && !(delta.is_finite() && delta > 0.0)
        {
            return Err(LossError::Number { what: "delta of huber", found: delta, expected: "finite and positive" });
        }
    }
    Ok(())
}

impl Terms<'_> {
    fn build(&mut self, spec: &LossSpec) -> Result<LossValues, LossError> {
        let qail = spec.qail.map(|distance| self.qail(spec, distance)).transpose()?;
        let qbc = spec.qbc.map(|(_, distance)| self.qbc(&spec.head, distance)).transpose()?;
        let lambda = spec.qbc.map_or(1.0, |(lambda, _)| lambda);
        let total = match (qail, qbc) {
            (Some(qail), Some(qbc)) => {
                let qbc = self.scaled("loss.weighted", qbc, lambda)?;
                self.binary("loss", BinaryFn::Add, qail, qbc)?
            }
            (None, Some(qbc)) => self.scaled("loss", qbc, lambda)?,
            (Some(qail), None) => qail,
            (None, None) => return Err(LossError::NoTerm),
        };
        self.output("loss", total)?;
        for (name, term) in [("loss.qail", qail), ("loss.qbc", qbc)] {
            if let Some(term) = term {
                self.output(name, term)?;
            }
        }
        Ok(LossValues { total, qail, qbc })
    }

    /// Distance from the expert's action.
    fn qail(&mut self, spec: &LossSpec, distance: Distance) -> Result<ValueId, LossError> {
        let each = match (&spec.head, distance) {
            (Head::Gaussian { mean, log_std }, Distance::Nll) => self.nll("loss.qail", mean, log_std)?,
            (Head::Gaussian { mean: output, .. } | Head::Deterministic { output }, _) => {
                self.distance("loss.qail", "target", output, distance)?
            }
        };
        let each = match spec.masked {
            Some(length) => self.masked("loss.qail", each, length)?,
            None => each,
        };
        self.mean("loss.qail", each, self.weighting == Weighting::All)
    }

    /// Distance from the teacher: of a Gaussian's mean and of its `log_std`.
    fn qbc(&mut self, head: &Head, distance: Distance) -> Result<ValueId, LossError> {
        let is_weighted = self.weighting != Weighting::None;
        match (head, distance) {
            (Head::Gaussian { mean, log_std }, Distance::Kl) => {
                let each = self.kl("loss.qbc", mean, log_std)?;
                self.mean("loss.qbc", each, is_weighted)
            }
            (Head::Gaussian { mean, log_std }, _) => {
                let each = self.distance("loss.qbc.mean", "teacher", mean, distance)?;
                let of_mean = self.mean("loss.qbc.mean", each, is_weighted)?;
                let each = self.distance("loss.qbc.log_std", "teacher", log_std, distance)?;
                let of_log_std = self.mean("loss.qbc.log_std", each, is_weighted)?;
                Ok(self.binary("loss.qbc", BinaryFn::Add, of_mean, of_log_std)?)
            }
            (Head::Deterministic { output }, _) => {
                let each = self.distance("loss.qbc", "teacher", output, distance)?;
                self.mean("loss.qbc", each, is_weighted)
            }
        }
    }

    /// One number of many: the mean, of each element times the weight of its
    /// sample if there are weights. The weights do not divide the sum.
    fn mean(&mut self, name: &str, each: ValueId, is_weighted: bool) -> Result<ValueId, LossError> {
        let each = if is_weighted { self.weighted(name, each)? } else { each };
        Ok(self.reduce(name, ReduceFn::Mean, each)?)
    }
}
