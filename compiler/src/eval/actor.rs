//! A session as a function from observations to actions, one a step: of a
//! policy of chunks the rows that a controller gives out.

use std::collections::BTreeMap;

use qail_runtime::{ControlError, Controller, PortInfo, Session, Storage, TensorView};

use super::protocol::Hello;
use crate::elements::Elements;

/// What acts in an environment.
pub trait Actor: Send {
    /// Forgets everything, at the start of an episode; noise that the actor draws
    /// begins anew from the seed of the episode.
    ///
    /// # Errors
    /// If the device fails.
    fn reset(&mut self, seed: u64) -> Result<(), ActError> {
        let _ = seed;
        Ok(())
    }

    /// The action for an observation: all observations of the environment, one
    /// behind the other.
    ///
    /// # Errors
    /// If it cannot be computed or is not finite.
    fn act(&mut self, observation: &[f32], action: &mut [f32]) -> Result<(), ActError>;
}

/// An action that was not computed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The session failed, or no environment can do anything with what it gave.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An observation that the type of its input cannot hold.
    #[error("input `{input}` of the policy holds whole numbers, and the observation has others")]
    Observation {
        /// The input.
        input: String,
    },
}

/// Names on the two sides, where they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wiring {
    /// Input of the model to observation of the environment.
    pub inputs: BTreeMap<String, String>,
    /// The output that is the action; by default the one that the artifact
    /// names, the only one, or the one of the environment's name.
    pub action: Option<String>,
}

/// A model that does not fit an environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WiringError {
    /// No observation for an input.
    #[error(
        "input `{input}` of the policy is no observation of the environment, which has {known}; name it with --map {input}=OBSERVATION"
    )]
    NoObservation {
        /// The input.
        input: String,
        /// Names of the observations.
        known: String,
    },
    /// An observation of another size.
    #[error(
        "input `{input}` of the policy has {expected} elements, observation `{observation}` of the environment has {found}"
    )]
    Input {
        /// The input.
        input: String,
        /// Its elements.
        expected: usize,
        /// The observation.
        observation: String,
        /// Its elements.
        found: usize,
    },
    /// Codes are not handed over.
    #[error("`{name}` of the policy holds codes of type {storage:?}")]
    Codes {
        /// The input or output.
        name: String,
        /// Its type.
        storage: Storage,
    },
    /// Several outputs, and none is named.
    #[error("the policy has the outputs {known}; name the one that is the action with --action")]
    NoAction {
        /// Names of the outputs.
        known: String,
    },
    /// An action of another size or type.
    #[error(
        "output `{output}` of the policy has {expected} elements{} of {storage:?}, the action of the environment has {found} of F32",
        if *chunk > 1 { format!(" in each of {chunk} actions") } else { String::new() }
    )]
    Action {
        /// The output.
        output: String,
        /// Its elements, of one step.
        expected: usize,
        /// Actions in a chunk.
        chunk: usize,
        /// Its type.
        storage: Storage,
        /// Elements of the action.
        found: usize,
    },
}

/// A session, wired to an environment.
#[derive(Debug)]
pub struct SessionActor {
    controller: Controller,
    feeds: Vec<Feed>,
}

/// One input: where it lies in the observation, and room for it.
#[derive(Debug)]
struct Feed {
    name: String,
    start: usize,
    end: usize,
    room: Elements,
}

impl SessionActor {
    /// Joins a session and an environment.
    ///
    /// # Errors
    /// If names, sizes or types do not fit.
    pub fn new(session: Session, hello: &Hello, wiring: &Wiring) -> Result<Self, WiringError> {
        let only_input = session.inputs().len() == 1;
        let inputs = session.inputs().iter();
        let feeds = inputs.map(|port| feed(port, only_input, hello, wiring)).collect::<Result<_, _>>()?;
        let outputs = session.outputs();
        let by_name = |name: &str| action_output(outputs, name);
        let index = match &wiring.action {
            Some(named) => by_name(named),
            None if session.chunk().is_some() => session.action(),
            None => by_name(&hello.action.name).or(session.action()),
        };
        let port = index.and_then(|index| outputs.get(index));
        let port =
            port.ok_or_else(|| WiringError::NoAction { known: names(outputs.iter().map(|port| &port.name)) })?.clone();
        let misfit = |expected: usize, chunk: usize| {
            let (output, storage, found) = (port.name.clone(), port.storage, hello.action.elements());
            WiringError::Action { output, expected, chunk, storage, found }
        };
        let n_elements = port.elements();
        let controller = Controller::of_output(session, &port.name).map_err(|_| misfit(n_elements, 1))?;
        if controller.action_len() != hello.action.elements() {
            return Err(misfit(controller.action_len(), controller.chunk().map_or(1, |chunk| chunk.length)));
        }
        Ok(Self { controller, feeds })
    }
}

impl Actor for SessionActor {
    fn reset(&mut self, seed: u64) -> Result<(), ActError> {
        self.controller.reset().map_err(ControlError::from)?;
        self.controller.session_mut().reseed(seed);
        Ok(())
    }

    fn act(&mut self, observation: &[f32], action: &mut [f32]) -> Result<(), ActError> {
        // What is in the queue was decided before; nothing is observed for it.
        let observes = self.controller.computes_next();
        for feed in self.feeds.iter_mut().filter(|_| observes) {
            if !feed.room.set_f32(observation.get(feed.start..feed.end).unwrap_or_default()) {
                return Err(ActError::Observation { input: feed.name.clone() });
            }
        }
        let inputs: Vec<TensorView<'_>> = self.feeds.iter().map(|feed| feed.room.view()).collect();
        self.controller.act(&inputs, action)?;
        Ok(())
    }
}

fn room(port: &PortInfo) -> Result<Elements, WiringError> {
    Elements::zeros(port).ok_or_else(|| WiringError::Codes { name: port.name.clone(), storage: port.storage })
}

/// The output that is the action: the one of this name, or the only one.
pub fn action_output(outputs: &[PortInfo], name: &str) -> Option<usize> {
    let named = outputs.iter().position(|port| port.name == name);
    named.or(if outputs.len() == 1 { Some(0) } else { None })
}

fn feed(port: &PortInfo, only_input: bool, hello: &Hello, wiring: &Wiring) -> Result<Feed, WiringError> {
    let named = wiring.inputs.get(&port.name);
    let wanted = named.unwrap_or(&port.name);
    let by_name = hello.observations.iter().position(|observation| observation.name == *wanted);
    let only = named.is_none() && only_input && hello.observations.len() == 1;
    let index = by_name.or(if only { Some(0) } else { None });
    let (index, observation) = index
        .and_then(|index| hello.observations.get(index).map(|observation| (index, observation)))
        .ok_or_else(|| WiringError::NoObservation {
            input: port.name.clone(),
            known: names(hello.observations.iter().map(|observation| &observation.name)),
        })?;
    if port.elements() != observation.elements() {
        return Err(WiringError::Input {
            input: port.name.clone(),
            expected: port.elements(),
            observation: observation.name.clone(),
            found: observation.elements(),
        });
    }
    let start: usize = hello.observations.iter().take(index).map(super::protocol::Port::elements).sum();
    let end = start + observation.elements();
    Ok(Feed { name: port.name.clone(), start, end, room: room(port)? })
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
