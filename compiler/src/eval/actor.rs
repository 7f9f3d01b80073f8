//! A session as a function from observations to actions.

use std::collections::BTreeMap;

use qail_runtime::{PortInfo, RunError, Session, Storage, TensorView, TensorViewMut};

use super::protocol::Hello;
use crate::elements::Elements;

/// What acts in an environment.
pub trait Actor: Send {
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
    /// The session failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An observation that the type of its input cannot hold.
    #[error("input `{input}` of the policy holds whole numbers, and the observation has others")]
    Observation {
        /// The input.
        input: String,
    },
    /// No environment can do anything with such an action.
    #[error("element {index} of the action is {value}")]
    NotFinite {
        /// Position.
        index: usize,
        /// The element.
        value: f32,
    },
}

/// Names on the two sides, where they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wiring {
    /// Input of the model to observation of the environment.
    pub inputs: BTreeMap<String, String>,
    /// The output that is the action; the only one, or the one of the
    /// environment's name by default.
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
        "output `{output}` of the policy has {expected} elements of {storage:?}, the action of the environment has {found} of F32"
    )]
    Action {
        /// The output.
        output: String,
        /// Its elements.
        expected: usize,
        /// Its type.
        storage: Storage,
        /// Elements of the action.
        found: usize,
    },
}

/// A session, wired to an environment.
#[derive(Debug)]
pub struct SessionActor {
    session: Session,
    feeds: Vec<Feed>,
    rooms: Vec<Elements>,
    action: usize,
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
        let rooms = outputs.iter().map(room).collect::<Result<_, _>>()?;
        let action = action_output(outputs, wiring.action.as_deref().unwrap_or(&hello.action.name))
            .ok_or_else(|| WiringError::NoAction { known: names(outputs.iter().map(|port| &port.name)) })?;
        let found = hello.action.elements();
        if let Some(port) = outputs.get(action).filter(|p| p.storage != Storage::F32 || p.elements() != found) {
            let (output, expected, storage) = (port.name.clone(), port.elements(), port.storage);
            return Err(WiringError::Action { output, expected, storage, found });
        }
        Ok(Self { session, feeds, rooms, action })
    }
}

impl Actor for SessionActor {
    fn act(&mut self, observation: &[f32], action: &mut [f32]) -> Result<(), ActError> {
        for feed in &mut self.feeds {
            if !feed.room.set_f32(observation.get(feed.start..feed.end).unwrap_or_default()) {
                return Err(ActError::Observation { input: feed.name.clone() });
            }
        }
        let inputs: Vec<TensorView<'_>> = self.feeds.iter().map(|feed| feed.room.view()).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = self.rooms.iter_mut().map(Elements::view_mut).collect();
        self.session.run(&inputs, &mut outputs)?;
        if let Some(Elements::F32(found)) = self.rooms.get(self.action) {
            if let Some((index, &value)) = found.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                return Err(ActError::NotFinite { index, value });
            }
            action.iter_mut().zip(found).for_each(|(to, &from)| *to = from);
        }
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
