//! The directory of a zip archive, as far as npz files use it.
//!
//! Members are stored or deflated; large files use the zip64 records. Encrypted
//! members, other methods and archives over several disks are refused. Only the
//! directory is read here, and only if it is small enough: what is inside a
//! member is left to [`RowReader`](super::RowReader).

use std::io::{self, Read, Seek, SeekFrom};

/// Most members of an archive.
const MAX_MEMBERS: u64 = 4096;
/// Longest directory that is read.
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
pub(super) enum ZipError {
    Io(io::Error),
    Broken(&'static str),
}

impl From<io::Error> for ZipError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Broken("it ends too early"),
            _ => Self::Io(error),
        }
    }
}

/// The members of an archive of `len` bytes, in the order of its directory.
pub(super) fn members(file: &mut (impl Read + Seek), len: u64) -> Result<Vec<Member>, ZipError> {
    let directory = find_directory(file, len)?;
    if directory.n_members > MAX_MEMBERS || directory.size_bytes > MAX_DIRECTORY_BYTES {
        return Err(ZipError::Broken("its directory is too large"));
    }
    let mut bytes = vec![0; directory.size_bytes as usize];
    file.seek(SeekFrom::Start(directory.start))?;
    file.read_exact(&mut bytes)?;
    let mut fields = Fields(&bytes);
    let mut members = Vec::new();
    for _ in 0..directory.n_members {
        let mut member = read_entry(&mut fields)?;
        member.start = data_start(file, member.start)?;
        let end = member.start.checked_add(member.stored_bytes);
        if end.is_none_or(|end| end > directory.start) {
            return Err(ZipError::Broken("a member reaches beyond its end"));
        }
        members.push(member);
    }
    Ok(members)
}

struct Directory {
    n_members: u64,
    start: u64,
    size_bytes: u64,
}

/// Finds the end record, which a comment of up to 65,535 bytes may follow.
fn find_directory(file: &mut (impl Read + Seek), len: u64) -> Result<Directory, ZipError> {
    const END_BYTES: u64 = 22;
    let tail_start = len.saturating_sub(END_BYTES + u64::from(u16::MAX));
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_start))?;
    file.take(END_BYTES + u64::from(u16::MAX)).read_to_end(&mut tail)?;
    let is_end = |window: &[u8]| window.starts_with(b"PK\x05\x06");
    let at = tail.windows(END_BYTES as usize).rposition(is_end).ok_or(ZipError::Broken("it has no zip directory"))?;
    let mut end = Fields(tail.get(at + 4..).unwrap_or_default());
    let disks = [end.u16()?, end.u16()?];
    let (n_here, n_members) = (end.u16()?, end.u16()?);
    let (size_bytes, start) = (end.u32()?, end.u32()?);
    let end_at = tail_start + at as u64;
    let directory = if n_members == u16::MAX || size_bytes == u32::MAX || start == u32::MAX {
        find_zip64_directory(file, end_at)?
    } else if disks != [0, 0] || n_here != n_members {
        return Err(ZipError::Broken("it is one of several parts"));
    } else {
        Directory { n_members: n_members.into(), start: start.into(), size_bytes: size_bytes.into() }
    };
    let fits = directory.start.checked_add(directory.size_bytes).is_some_and(|stop| stop <= end_at);
    if fits { Ok(directory) } else { Err(ZipError::Broken("its directory is out of place")) }
}

fn find_zip64_directory(file: &mut (impl Read + Seek), end_at: u64) -> Result<Directory, ZipError> {
    let broken = || ZipError::Broken("its zip64 directory is damaged");
    let mut locator = [0; 20];
    file.seek(SeekFrom::Start(end_at.checked_sub(20).ok_or_else(broken)?))?;
    file.read_exact(&mut locator)?;
    let mut fields = Fields(locator.strip_prefix(b"PK\x06\x07").ok_or_else(broken)?);
    fields.u32()?;
    let record_at = fields.u64()?;
    let mut record = [0; 56];
    file.seek(SeekFrom::Start(record_at))?;
    file.read_exact(&mut record)?;
    // After the signature: length, two versions, two disk numbers, members on this disk.
    let mut fields = Fields(record.strip_prefix(b"PK\x06\x06").ok_or_else(broken)?);
    fields.skip(8 + 2 + 2 + 4 + 4 + 8)?;
    Ok(Directory { n_members: fields.u64()?, size_bytes: fields.u64()?, start: fields.u64()? })
}

/// Reads one directory entry; its `start` is still that of the local header.
fn read_entry(fields: &mut Fields<'_>) -> Result<Member, ZipError> {
    if fields.take(4)? != b"PK\x01\x02" {
        return Err(ZipError::Broken("its directory is damaged"));
    }
    fields.skip(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.skip(4)?;
    let crc32 = fields.u32()?;
    let (mut stored_bytes, mut size_bytes) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
    let (name_len, extra_len, comment_len) = (fields.u16()?, fields.u16()?, fields.u16()?);
    fields.skip(2 + 2 + 4)?;
    let mut start = u64::from(fields.u32()?);
    let name = fields.take(name_len.into())?;
    let mut extra = Fields(fields.take(extra_len.into())?);
    fields.skip(comment_len.into())?;

    while !extra.0.is_empty() {
        let (id, len) = (extra.u16()?, extra.u16()?);
        let mut field = Fields(extra.take(len.into())?);
        // Zip64: only the numbers that did not fit, in this order.
        if id == 1 {
            for number in [&mut size_bytes, &mut stored_bytes, &mut start] {
                if *number == u64::from(u32::MAX) {
                    *number = field.u64()?;
                }
            }
        }
    }
    let deflated = match method {
        0 => false,
        8 => true,
        _ => return Err(ZipError::Broken("a member is packed by a method other than deflate")),
    };
    if flags & 1 != 0 {
        return Err(ZipError::Broken("a member is encrypted"));
    }
    let possible = if deflated {
        size_bytes <= stored_bytes.saturating_mul(MAX_DEFLATE_RATIO)
    } else {
        size_bytes == stored_bytes
    };
    if !possible {
        return Err(ZipError::Broken("a member claims more bytes than it can hold"));
    }
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= MAX_NAME_BYTES && !name.is_empty() && !name.chars().any(char::is_control));
    let name = name.ok_or(ZipError::Broken("a member has no readable name"))?.to_owned();
    Ok(Member { name, deflated, crc32, stored_bytes, size_bytes, start })
}

/// Where the bytes of a member begin: behind its local header, whose name and
/// extra field may differ in length from those of the directory.
fn data_start(file: &mut (impl Read + Seek), local_header: u64) -> Result<u64, ZipError> {
    let broken = || ZipError::Broken("a member is out of place");
    let mut header = [0; 30];
    file.seek(SeekFrom::Start(local_header))?;
    file.read_exact(&mut header)?;
    let mut fields = Fields(header.strip_prefix(b"PK\x03\x04").ok_or_else(broken)?);
    fields.skip(22)?;
    let (name_len, extra_len) = (fields.u16()?, fields.u16()?);
    let skipped = 30 + u64::from(name_len) + u64::from(extra_len);
    local_header.checked_add(skipped).ok_or_else(broken)
}

/// Little-endian numbers from the front of a byte string.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ZipError> {
        let (front, rest) = self.0.split_at_checked(n).ok_or(ZipError::Broken("its directory is cut off"))?;
        self.0 = rest;
        Ok(front)
    }

    fn skip(&mut self, n: usize) -> Result<(), ZipError> {
        self.take(n).map(|_| ())
    }

    fn number(&mut self, n: usize) -> Result<u64, ZipError> {
        Ok(self.take(n)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn u16(&mut self) -> Result<u16, ZipError> {
        Ok(self.number(2)? as u16)
    }

    fn u32(&mut self) -> Result<u32, ZipError> {
        Ok(self.number(4)? as u32)
    }

    fn u64(&mut self) -> Result<u64, ZipError> {
        self.number(8)
    }
}
