//! Reads a model file: mapped, capped, scanned, then decoded.
//!
//! The file stays mapped for as long as a constant refers to it, and constants
//! are borrowed from the map. Whoever shortens a file while it is being
//! compiled takes the consequence that every user of a map takes.

use std::{fs::File, io, path::Path};

use prost::{Message, bytes::Bytes};

use super::{error::ImportError, proto::ModelProto, scan};
use crate::files::open_regular;

/// Largest protobuf that any implementation writes.
const MAX_MODEL_BYTES: u64 = 1 << 31;

/// Maps a model file.
pub(super) fn read(path: &Path) -> Result<Bytes, ImportError> {
    let io = |source| ImportError::Io { path: path.to_owned(), source };
    let file = open_regular(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found > MAX_MODEL_BYTES {
        return Err(ImportError::TooLarge { path: path.to_owned(), found, limit: MAX_MODEL_BYTES });
    }
    map(&file).map_err(io)
}

/// Decodes a model; tensors borrow from `bytes`.
pub(super) fn decode(bytes: Bytes) -> Result<ModelProto, ImportError> {
    scan::scan(&bytes)?;
    Ok(ModelProto::decode(bytes)?)
}

/// Maps a whole file, read-only.
fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the map is private to this process, read-only, and lives inside
    // the returned `Bytes`. The bytes are only ever read as plain `u8`. What
    // remains is another process that changes or shortens the file meanwhile:
    // changed bytes are harmless, because everything derived from them is
    // checked after it is copied; a shortened file ends the process with a
    // signal, as it does for every program that maps its input.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
