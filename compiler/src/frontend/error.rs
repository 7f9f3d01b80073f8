//! What can be wrong with a model, and what to do about it.
//!
//! Three families, told apart by [`ImportError::kind`]: the request names
//! something that the model does not have, the model is sound but asks for
//! something that this version cannot do, or the file is broken or hostile.

use std::{fmt, io, path::PathBuf};

use super::external::ExternalError;

/// Something that a model needs and this version does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Name of the node, or of the input or constant; `model` if it is neither.
    pub node: String,
    /// Operator, or `input`, `constant`, `output`, `opset`.
    pub op: String,
    /// What is missing.
    pub reason: String,
    /// What the user can do.
    pub remedy: String,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {}; {}", self.op, self.node, self.reason, self.remedy)
    }
}

/// Something that no sound model contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: ``node `x` ``, ``initializer `w` ``, `model`.
    pub place: String,
    /// What.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// Whose fault an [`ImportError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request: an unknown output or dimension.
    Usage,
    /// Ours: the model is sound, but something in it is not supported.
    Unsupported,
    /// The file's: unreadable, broken or hostile.
    Invalid,
    /// An invariant of the compiler does not hold.
    Internal,
}

/// A model that is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is larger than a protobuf can be.
    #[error("`{}` has {found} bytes, at most {limit} are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest size in bytes.
        limit: u64,
    },
    /// The bytes are not a protobuf of the right shape.
    #[error("not an ONNX model")]
    Decode(#[from] prost::DecodeError),
    /// The bytes are not a protobuf, or one that would take far more memory than the file.
    #[error("not an ONNX model: {reason} at byte {offset}")]
    Malformed {
        /// Position in the file.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// Constants in other files that cannot be used.
    #[error("{}", list("the external data of the model cannot be used", errors, 0))]
    External {
        /// All of them.
        errors: Vec<ExternalError>,
    },
    /// The model contradicts itself or the standard.
    #[error("{}", list("the model is invalid", problems, 0))]
    Invalid {
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
    /// The model is sound, but parts of it are not supported.
    #[error("{}", list("the model needs what is not supported", blockers, *n_more))]
    Blocked {
        /// Every such part, up to a limit.
        blockers: Vec<Blocker>,
        /// Number of those beyond the limit.
        n_more: usize,
    },
    /// The request names an output that the model does not have.
    #[error("the model has no tensor `{name}`; its outputs are {}", known.join(", "))]
    UnknownOutput {
        /// The name asked for.
        name: String,
        /// Outputs of the model.
        known: Vec<String>,
    },
    /// The request binds a dimension that no input has.
    #[error("no input has a dimension `{name}`; {}", dims_known(known))]
    UnknownDim {
        /// The name asked for.
        name: String,
        /// Named dimensions of the inputs.
        known: Vec<String>,
    },
    /// An invariant of the importer does not hold.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ImportError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownOutput { .. } | Self::UnknownDim { .. } => ErrorKind::Usage,
            Self::Blocked { .. } => ErrorKind::Unsupported,
            Self::Io { .. }
            | Self::TooLarge { .. }
            | Self::Decode(_)
            | Self::Malformed { .. }
            | Self::External { .. }
            | Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

/// Longest list in a message: a hostile file can be wrong a million times.
const MAX_LISTED: usize = 50;

fn list<T: fmt::Display>(head: &str, items: &[T], n_more: usize) -> String {
    let mut text = head.to_owned();
    for item in items.iter().take(MAX_LISTED) {
        text.push_str(&format!("\n  {item}"));
    }
    let n_unlisted = items.len().saturating_sub(MAX_LISTED).saturating_add(n_more);
    if n_unlisted > 0 {
        text.push_str(&format!("\n  and {n_unlisted} more"));
    }
    text
}

fn dims_known(known: &[String]) -> String {
    if known.is_empty() { "all dimensions are fixed".to_owned() } else { format!("known are {}", known.join(", ")) }
}

/// Text from a file, fit for a message: short and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(120).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(120).is_some() {
        out.push_str("..");
    }
    out
}
