//! What can be wrong with a file. Every variant is a matter of integrity or of
//! version: exit code 8 of the command line.

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The first bytes are not those of a `.qail` file.
    #[error("not a .qail file")]
    Magic,
    /// Written by a later version.
    #[error("the file needs version {needed} of the reader, this is version {supported}")]
    Version {
        /// What the file asks for.
        needed: u32,
        /// What this reader is.
        supported: u32,
    },
    /// The file uses features that this reader does not know.
    #[error("the file needs features that this reader does not have: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The file is shorter or longer than it says.
    #[error("the file is cut off or has extra bytes: {found} bytes, its header says {expected}")]
    Length {
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be there.
        expected: u64,
    },
    /// A manifest beyond the cap.
    #[error("the manifest has {found} bytes, at most {limit} are accepted")]
    ManifestSize {
        /// Bytes of the manifest.
        found: u64,
        /// Largest size accepted.
        limit: u64,
    },
    /// Bytes that changed after the file was written.
    #[error("{0} is damaged: its checksum does not match")]
    Checksum(String),
    /// The manifest is no valid protobuf message.
    #[error("the manifest cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// The manifest contradicts itself or the file.
    #[error("{item}: {problem}")]
    Invalid {
        /// Part of the file, by the name that the file gives it.
        item: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ArtifactError {
    pub(crate) fn invalid(item: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { item: item.into(), problem: problem.into() }
    }
}

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Two sections of one name and different contents.
    #[error("two sections are called `{0}`")]
    DuplicateName(String),
    /// More sections than an index can name.
    #[error("too many sections")]
    TooManySections,
    /// The manifest is larger than readers accept.
    #[error("the manifest has {found} bytes, at most {limit} are accepted")]
    ManifestSize {
        /// Bytes of the manifest.
        found: usize,
        /// Largest size accepted.
        limit: usize,
    },
    /// The file cannot be written.
    #[error("the file cannot be written")]
    Io(#[from] std::io::Error),
    /// The finished file does not pass its own reader.
    #[error("the file would be refused by its reader")]
    Refused(#[source] ArtifactError),
}
