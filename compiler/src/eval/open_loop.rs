//! A policy on recorded states: how far its actions are from the teacher's and
//! from the expert's.
//!
//! The states are the expert's, so errors do not feed back; what shows is where
//! in an episode they are large (quarters) and whether they add up (bias). A
//! chunk is compared with the expert's next actions, as far as its episode goes.

use std::{collections::VecDeque, ops::Range};

use qail_runtime::{PortInfo, RunError, Session, Storage, TensorView, TensorViewMut};
use serde::Serialize;

use super::{
    actor::action_output,
    metrics::{ActionError, ErrorSummary},
};
use crate::{
    data::{DataError, Demos, StepReader},
    elements::Elements,
};

/// Why a policy cannot be compared on recorded states.
#[derive(Debug, thiserror::Error)]
pub enum OpenLoopError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A session failed.
    #[error("step {step} of the data")]
    Run {
        /// The step.
        step: usize,
        /// Why.
        #[source]
        source: RunError,
    },
    /// The two policies have different inputs or outputs.
    #[error("{0}")]
    Different(String),
    /// Codes are not handed over.
    #[error("`{name}` holds codes of type {storage:?}")]
    Type {
        /// The input or output.
        name: String,
        /// Its type.
        storage: Storage,
    },
    /// Neither a teacher nor recorded actions of the right size.
    #[error("there is nothing to compare with: no teacher is given, and the data has no actions that fit an output")]
    Nothing,
}

/// Errors of one output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputErrors {
    /// Name of the output.
    pub output: String,
    /// What it is compared with: `teacher` or `expert`.
    pub against: &'static str,
    /// All elements of all steps, in the order of the data.
    pub all: ErrorSummary,
    /// Each element of the output by itself.
    pub elements: Vec<ErrorSummary>,
    /// Mean squared error in the four quarters of the episodes: drift.
    pub quarters: [f64; 4],
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpenLoop {
    /// Steps compared.
    pub steps: usize,
    /// Episodes they come from.
    pub episodes: usize,
    /// Outputs, against the teacher first.
    pub outputs: Vec<OutputErrors>,
}

/// Sums for one output.
struct Sums {
    all: ActionError,
    elements: Vec<ActionError>,
    quarters: [ActionError; 4],
}

impl Sums {
    fn new(n: usize) -> Self {
        Self {
            all: ActionError::default(),
            elements: vec![ActionError::default(); n],
            quarters: [ActionError::default(); 4],
        }
    }

    fn add(&mut self, actual: &[f64], target: &[f64], quarter: usize) {
        self.all.add_numbers(actual.iter().copied(), target.iter().copied());
        for ((sum, &y), &t) in self.elements.iter_mut().zip(actual).zip(target) {
            sum.add_numbers([y], [t]);
        }
        if let Some(sum) = self.quarters.get_mut(quarter) {
            sum.add_numbers(actual.iter().copied(), target.iter().copied());
        }
    }

    fn finish(&self, output: &str, against: &'static str) -> OutputErrors {
        OutputErrors {
            output: output.to_owned(),
            against,
            all: (&self.all).into(),
            elements: self.elements.iter().map(ErrorSummary::from).collect(),
            quarters: self.quarters.map(|sum| sum.mse()),
        }
    }
}

/// The expert's actions for a step: one, or the next ones of a chunk. Holds as
/// many as a chunk has.
struct Expert {
    reader: StepReader,
    row_len: usize,
    /// Rows from the present step on, one behind the other.
    ahead: VecDeque<f32>,
    /// The step behind the last row that was read.
    next: usize,
    /// Rows of a chunk.
    length: usize,
    block: Vec<f32>,
}

impl Expert {
    fn new(reader: StepReader, row_len: usize, length: usize) -> Self {
        Self { reader, row_len, ahead: VecDeque::new(), next: 0, length, block: Vec::new() }
    }

    /// The actions from a step on, inside its episode. Steps come in order.
    fn at(&mut self, step: usize, episode: &Range<usize>) -> Result<Vec<f64>, DataError> {
        let end = step.saturating_add(self.length).min(episode.end);
        while self.next < end {
            self.block.clear();
            if self.reader.next(1, &mut self.block)? == 0 {
                break;
            }
            self.ahead.extend(&self.block);
            self.next += 1;
        }
        let n = (end - step) * self.row_len;
        let actions = self.ahead.iter().take(n).map(|&x| x.into()).collect();
        self.ahead.drain(..self.row_len.min(self.ahead.len()));
        Ok(actions)
    }
}

/// A session with room for its outputs.
struct Runner<'a> {
    session: &'a mut Session,
    rooms: Vec<Elements>,
}

impl<'a> Runner<'a> {
    fn new(session: &'a mut Session) -> Result<Self, OpenLoopError> {
        let rooms = session.outputs().iter().map(room).collect::<Result<_, _>>()?;
        Ok(Self { session, rooms })
    }

    /// At the start of an episode: what is remembered is gone.
    fn reset(&mut self, step: usize) -> Result<(), OpenLoopError> {
        self.session.reset().map_err(|source| OpenLoopError::Run { step, source })
    }

    fn run(&mut self, inputs: &[TensorView<'_>], step: usize) -> Result<Vec<Vec<f64>>, OpenLoopError> {
        let mut outputs: Vec<TensorViewMut<'_>> = self.rooms.iter_mut().map(Elements::view_mut).collect();
        self.session.run(inputs, &mut outputs).map_err(|source| OpenLoopError::Run { step, source })?;
        Ok(self.rooms.iter().map(Elements::to_f64).collect())
    }
}

fn room(port: &PortInfo) -> Result<Elements, OpenLoopError> {
    Elements::zeros(port).ok_or_else(|| OpenLoopError::Type { name: port.name.clone(), storage: port.storage })
}

/// Runs the policy, and the teacher if there is one, over all steps.
///
/// `action` names the output that the recorded actions are compared with.
///
/// # Errors
/// If the data cannot be read, a session fails or there is nothing to compare.
pub fn open_loop(
    policy: &mut Session,
    teacher: Option<&mut Session>,
    demos: &Demos,
    action: Option<&str>,
    progress: &mut dyn FnMut(usize),
) -> Result<OpenLoop, OpenLoopError> {
    let outputs = policy.outputs().to_vec();
    let twins = match &teacher {
        Some(teacher) => twins(policy, teacher)?,
        None => Vec::new(),
    };
    let recorded = demos.actions().map(|field| field.info.row_len());
    // Rows of a chunk that one recorded action each is compared with.
    let rows_of = |index: usize| -> Option<usize> {
        let (n, recorded) = (outputs.get(index)?.elements(), recorded.filter(|&n| n > 0)?);
        let length = policy.chunk().filter(|_| policy.action() == Some(index)).map_or(1, |chunk| chunk.length);
        [1, length].into_iter().find(|&rows| recorded.checked_mul(rows) == Some(n))
    };
    let index = match (action, policy.chunk()) {
        (None, Some(_)) => policy.action(),
        (name, _) => action_output(&outputs, name.unwrap_or("action")),
    };
    let expert = index.and_then(|index| Some((index, rows_of(index)?)));
    if twins.is_empty() && expert.is_none() {
        return Err(OpenLoopError::Nothing);
    }
    let mut given = policy.inputs().iter().map(room).collect::<Result<Vec<_>, _>>()?;
    let mut policy = Runner::new(policy)?;
    let mut teacher = teacher.map(Runner::new).transpose()?;
    let mut against_teacher: Vec<Sums> = policy.rooms.iter().map(|room| Sums::new(room.len())).collect();
    let mut against_expert = Sums::new(expert.and_then(|(index, _)| outputs.get(index)).map_or(0, PortInfo::elements));
    let mut streams: Vec<StepReader> =
        demos.observations().iter().map(|field| demos.stream(field)).collect::<Result<_, _>>()?;
    let mut actions = match (demos.actions(), expert) {
        (Some(field), Some((index, rows))) => {
            Some((Expert::new(demos.stream(field)?, field.info.row_len(), rows), index))
        }
        _ => None,
    };
    for episode in demos.episodes() {
        policy.reset(episode.start)?;
        if let Some(teacher) = &mut teacher {
            teacher.reset(episode.start)?;
        }
        for step in episode.clone() {
            for (stream, given) in streams.iter_mut().zip(&mut given) {
                given.read(stream)?;
            }
            let quarter = 4 * (step - episode.start) / episode.len().max(1);
            let inputs: Vec<TensorView<'_>> = given.iter().map(Elements::view).collect();
            let found = policy.run(&inputs, step)?;
            if let Some(teacher) = &mut teacher {
                let target = teacher.run(&inputs, step)?;
                for ((found, &twin), sums) in found.iter().zip(&twins).zip(&mut against_teacher) {
                    sums.add(found, target.get(twin).map(Vec::as_slice).unwrap_or_default(), quarter);
                }
            }
            if let Some((actions, index)) = &mut actions {
                let wanted = actions.at(step, episode)?;
                against_expert.add(found.get(*index).map(Vec::as_slice).unwrap_or_default(), &wanted, quarter);
            }
            progress(step + 1);
        }
    }
    let mut errors = Vec::new();
    if teacher.is_some() {
        errors.extend(outputs.iter().zip(&against_teacher).map(|(port, sums)| sums.finish(&port.name, "teacher")));
    }
    if let Some(port) = expert.and_then(|(index, _)| outputs.get(index)) {
        errors.push(against_expert.finish(&port.name, "expert"));
    }
    Ok(OpenLoop { steps: demos.n_steps(), episodes: demos.episodes().len(), outputs: errors })
}

/// For each output of the policy the same one of the teacher. The inputs are
/// the same in the same order.
fn twins(policy: &Session, teacher: &Session) -> Result<Vec<usize>, OpenLoopError> {
    let shapes = |ports: &[PortInfo]| -> Vec<(String, usize)> {
        ports.iter().map(|port| (port.name.clone(), port.elements())).collect()
    };
    let (ours, theirs) = (shapes(policy.inputs()), shapes(teacher.inputs()));
    if ours != theirs {
        return Err(OpenLoopError::Different(format!("the policy has the inputs {ours:?}, the teacher {theirs:?}")));
    }
    let (ours, theirs) = (shapes(policy.outputs()), shapes(teacher.outputs()));
    ours.iter()
        .map(|port| {
            theirs.iter().position(|other| other == port).ok_or_else(|| {
                OpenLoopError::Different(format!("the policy has the outputs {ours:?}, the teacher {theirs:?}"))
            })
        })
        .collect()
}
