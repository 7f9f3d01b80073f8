//! The bytes of an artifact, owned by the session or mapped from a file.

use std::{fs::File, io, path::Path, sync::Arc};

use crate::RuntimeError;

/// Bytes that sessions keep and read weights from.
#[derive(Clone, Debug)]
pub struct ArtifactBytes(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Owned(Arc<Vec<u8>>),
    Shared(Arc<[u8]>),
    Mapped(Arc<memmap2::Mmap>),
}

impl ArtifactBytes {
    /// Maps a file. Nothing is read before a session needs it, and several
    /// processes share the memory. The file must not change while it is in use;
    /// replacing it by renaming another one over it is fine.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Io`] if it is no regular file, or cannot be opened or mapped.
    #[allow(unsafe_code, reason = "the mapping of a file")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        let path = path.as_ref();
        let error = |source| RuntimeError::Io { path: path.display().to_string(), source };
        // Asked before the file is opened: opening a pipe can block.
        if !std::fs::metadata(path).map_err(error)?.is_file() {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(error)?;
        // SAFETY: the mapping is only read. That nobody else shortens or writes
        // the file is the documented condition of this function; the compiler
        // keeps it by renaming finished files into place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(error)?;
        Ok(Self(Inner::Mapped(Arc::new(map))))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Inner::Owned(bytes) => bytes,
            Inner::Shared(bytes) => bytes,
            Inner::Mapped(bytes) => bytes,
        }
    }
}

impl std::ops::Deref for ArtifactBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for ArtifactBytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl From<Vec<u8>> for ArtifactBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Inner::Owned(Arc::new(bytes)))
    }
}

impl From<Arc<[u8]>> for ArtifactBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(Inner::Shared(bytes))
    }
}

impl From<&[u8]> for ArtifactBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(Inner::Owned(Arc::new(bytes.to_vec())))
    }
}
