//! A session as a function from observations to actions.

use std::collections::BTreeMap;

use qail_runtime::{PortInfo, RunError, Session, Storage, TensorView, TensorViewMut};

use super::protocol::Hello;

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
    rooms: Vec<Room>,
    action: usize,
}

/// One input: where it lies in the observation, and its elements as the session
/// takes them.
#[derive(Debug)]
struct Feed {
    start: usize,
    end: usize,
    storage: Storage,
    bytes: Vec<u8>,
    i64s: Vec<i64>,
}

/// Room for one output.
#[derive(Debug)]
enum Room {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

impl SessionActor {
    /// Joins a session and an environment.
    ///
    /// # Errors
    /// If names or sizes do not fit.
    pub fn new(session: Session, hello: &Hello, wiring: &Wiring) -> Result<Self, WiringError> {
        let feeds = session
            .inputs()
            .iter()
            .map(|port| feed(port, session.inputs().len() == 1, hello, wiring))
            .collect::<Result<_, _>>()?;
        let outputs = session.outputs();
        let action = action_output(outputs, wiring.action.as_deref().unwrap_or(&hello.action.name))
            .ok_or_else(|| WiringError::NoAction { known: names(outputs.iter().map(|port| &port.name)) })?;
        let found = hello.action.elements();
        if let Some(port) = outputs.get(action).filter(|p| p.storage != Storage::F32 || p.elements() != found) {
            let (output, expected, storage) = (port.name.clone(), port.elements(), port.storage);
            return Err(WiringError::Action { output, expected, storage, found });
        }
        let rooms = outputs
            .iter()
            .map(|port| match port.storage {
                Storage::I64 => Room::I64(vec![0; port.elements()]),
                _ => Room::F32(vec![0.0; port.elements()]),
            })
            .collect();
        Ok(Self { session, feeds, rooms, action })
    }
}

impl Actor for SessionActor {
    fn act(&mut self, observation: &[f32], action: &mut [f32]) -> Result<(), ActError> {
        for feed in &mut self.feeds {
            feed.convert(observation);
        }
        let inputs: Vec<TensorView<'_>> = self.feeds.iter().map(|feed| feed.view(observation)).collect();
        let mut outputs: Vec<TensorViewMut<'_>> = self
            .rooms
            .iter_mut()
            .map(|room| match room {
                Room::F32(room) => TensorViewMut::F32(room),
                Room::I64(room) => TensorViewMut::I64(room),
            })
            .collect();
        self.session.run(&inputs, &mut outputs)?;
        if let Some(Room::F32(room)) = self.rooms.get(self.action) {
            if let Some(index) = room.iter().position(|x| !x.is_finite()) {
                return Err(ActError::NotFinite { index, value: room.get(index).copied().unwrap_or(f32::NAN) });
            }
            action.iter_mut().zip(room).for_each(|(to, &from)| *to = from);
        }
        Ok(())
    }
}

impl Feed {
    fn convert(&mut self, observation: &[f32]) {
        let numbers = observation.get(self.start..self.end).unwrap_or_default();
        match self.storage {
            Storage::U8 => {
                self.bytes.clear();
                self.bytes.extend(numbers.iter().map(|&x| x as u8));
            }
            Storage::I64 => {
                self.i64s.clear();
                self.i64s.extend(numbers.iter().map(|&x| x as i64));
            }
            _ => {}
        }
    }

    fn view<'a>(&'a self, observation: &'a [f32]) -> TensorView<'a> {
        match self.storage {
            Storage::U8 => TensorView::U8(&self.bytes),
            Storage::I64 => TensorView::I64(&self.i64s),
            _ => TensorView::F32(observation.get(self.start..self.end).unwrap_or_default()),
        }
    }
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
    Ok(Feed { start, end, storage: port.storage, bytes: Vec::new(), i64s: Vec::new() })
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
