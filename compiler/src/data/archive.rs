//! The members of a zip archive, as far as npz files use them.
//!
//! `zip` reads the directory; what is inside a member is left to
//! [`RowReader`](super::RowReader), because a reader of `zip` borrows the archive
//! and cannot outlive it. Members are stored or deflated. `zip` sets no limits,
//! so they are set here: on the bytes read for the directory, on the number of
//! members, and on what a member may claim to hold.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
    result::ZipError,
};

/// Most members of an archive.
const MAX_MEMBERS: usize = 4096;
/// The most that is read to find the members.
const MAX_DIRECTORY_BYTES: u64 = 4 << 20;
/// Longest member name.
const MAX_NAME_BYTES: usize = 256;
/// Deflate cannot do better than 1032 : 1 (zlib's technical details).
const MAX_DEFLATE_RATIO: u64 = 1032;

/// One member of an archive.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) deflated: bool,
    pub(super) crc32: u32,
    pub(super) stored_bytes: u64,
    pub(super) size_bytes: u64,
    /// Where the stored bytes begin in the file.
    pub(super) start: u64,
}

/// Why an archive is refused; the caller knows the file.
#[derive(Debug)]
pub(super) enum ArchiveError {
    Io(io::Error),
    Broken(String),
}

impl ArchiveError {
    fn broken(what: &'static str) -> Self {
        Self::Broken(what.to_owned())
    }
}

impl From<ZipError> for ArchiveError {
    fn from(error: ZipError) -> Self {
        match error {
            ZipError::Io(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::broken("it ends too early"),
                io::ErrorKind::FileTooLarge => Self::broken("its directory is too large"),
                _ => Self::Io(error),
            },
            ZipError::InvalidArchive(what) => Self::Broken(format!("its zip directory is wrong ({what})")),
            other => Self::Broken(format!("it cannot be read as zip ({other})")),
        }
    }
}

/// The members of an archive, in the order of its directory.
pub(super) fn members(file: &File) -> Result<Vec<Member>, ArchiveError> {
    let reader = Limited { file, left: MAX_DIRECTORY_BYTES };
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, reader)?;
    if archive.len() > MAX_MEMBERS {
        return Err(ArchiveError::broken("its directory is too large"));
    }
    if archive.has_duplicate_names() {
        return Err(ArchiveError::broken("two members have the same name"));
    }
    let end = archive.central_directory_start();
    (0..archive.len()).map(|index| member(&mut archive, index, end)).collect()
}

fn member(archive: &mut ZipArchive<Limited<'_>>, index: usize, end: u64) -> Result<Member, ArchiveError> {
    let member = archive.by_index_raw(index)?;
    let deflated = match member.compression() {
        CompressionMethod::STORE => false,
        CompressionMethod::DEFLATE => true,
        _ => return Err(ArchiveError::broken("a member is packed by a method other than deflate")),
    };
    if member.encrypted() {
        return Err(ArchiveError::broken("a member is encrypted"));
    }
    let (stored_bytes, size_bytes) = (member.compressed_size(), member.size());
    let possible = if deflated {
        size_bytes <= stored_bytes.saturating_mul(MAX_DEFLATE_RATIO)
    } else {
        size_bytes == stored_bytes
    };
    if !possible {
        return Err(ArchiveError::broken("a member claims more bytes than it can hold"));
    }
    let start = member.data_start().ok_or(ArchiveError::broken("a member is out of place"))?;
    if start.checked_add(stored_bytes).is_none_or(|stop| stop > end) {
        return Err(ArchiveError::broken("a member reaches beyond its end"));
    }
    let name = std::str::from_utf8(member.name_raw())
        .ok()
        .filter(|name| name.len() <= MAX_NAME_BYTES && !name.is_empty() && !name.chars().any(char::is_control));
    let name = name.ok_or(ArchiveError::broken("a member has no readable name"))?.to_owned();
    Ok(Member { name, deflated, crc32: member.crc32(), stored_bytes, size_bytes, start })
}

/// A file of which only so many bytes are read.
struct Limited<'a> {
    file: &'a File,
    left: u64,
}

impl Read for Limited<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.left = self.left.checked_sub(n as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(n)
    }
}

impl Seek for Limited<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
