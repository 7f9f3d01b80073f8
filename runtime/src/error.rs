//! What can go wrong: at load ([`RuntimeError`]) and in a run ([`RunError`]).

use qail_artifact::{ArtifactError, Storage};

/// A session that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The file is damaged, contradictory or of another version.
    #[error("the artifact cannot be used")]
    Artifact(#[from] ArtifactError),
    /// The file cannot be opened or mapped.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file has no entry point of that name, or none at all.
    #[error("the artifact has no entry point `{0}`")]
    NoEntry(String),
    /// The device does not exist, or this machine or file has nothing for it.
    #[error("device `{device}` cannot be used: {reason}")]
    NoDevice {
        /// The device as the caller wrote it.
        device: String,
        /// Why not.
        reason: String,
    },
    /// A step that the device cannot run.
    #[error("step `{step}` cannot run on {device}: {reason}")]
    Step {
        /// The step.
        step: String,
        /// The device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The machine has not enough memory.
    #[error("cannot allocate {size_bytes} bytes")]
    Memory {
        /// What was asked for.
        size_bytes: usize,
    },
    /// A condition that the reader of the file should have checked.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

/// A run that did not happen. The session stays usable.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The number of inputs or outputs is not that of the model.
    #[error("the model has {expected} {what}, found {found}")]
    Count {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// As many as the model has.
        expected: usize,
        /// As many as were given.
        found: usize,
    },
    /// An input or output of another element type.
    #[error("`{name}` is {expected:?}, found {found:?}")]
    Type {
        /// The input or output.
        name: String,
        /// Its type.
        expected: Storage,
        /// The type that was given.
        found: Storage,
    },
    /// An input or output of another length.
    #[error("`{name}` has {expected} elements, found {found}")]
    Length {
        /// The input or output.
        name: String,
        /// Its number of elements.
        expected: usize,
        /// As many as were given.
        found: usize,
    },
    /// An input element that is infinite or not a number.
    #[error("element {index} of input `{name}` is {value}")]
    NotFinite {
        /// The input.
        name: String,
        /// Position of the first such element, row-major.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A state at its limit: a cache without room for another step.
    #[error("state `{name}` is {found} and may be at most {limit} before a step; reset the session")]
    StateLimit {
        /// The state.
        name: String,
        /// Its largest element.
        found: i64,
        /// The limit.
        limit: i64,
    },
    /// A state that the model does not have.
    #[error("the model has no state `{0}`")]
    NoState(String),
    /// An element of a batch that the states do not tell apart.
    #[error("the states have {n_elements} element(s) of a batch, so element {element} cannot be reset alone")]
    NoElement {
        /// What was asked for.
        element: usize,
        /// As many as there are.
        n_elements: usize,
    },
    /// A computed integer that its type or 32 bits cannot hold, or that is not defined.
    #[error("step `{step}`: element {index} {problem}")]
    Integer {
        /// The step.
        step: String,
        /// Position of the first such element, row-major.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No tensor of that name, or its value is not kept.
    #[error("no value of tensor `{0}` can be read; intermediate values need `keep_intermediates`")]
    NoTensor(String),
    /// The device refused or was lost.
    #[error("device {device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// What it said.
        reason: String,
    },
    /// A condition that the load should have checked.
    #[error("internal error: {0}")]
    Internal(&'static str),
}
