//! Part of an open file, read where it lies.
//!
//! Weights beside a model can be larger than memory. They are read at offsets
//! when somebody asks for elements, and not mapped: pages of a map count as
//! memory of this process until it ends, and a file that somebody shortens
//! meanwhile is an error here and not the end of the process.

use std::{fs::File, io, sync::Arc};

/// Bytes of an open file.
#[derive(Clone, Debug)]
pub(super) struct Region {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl Region {
    /// A whole file.
    pub(super) fn whole(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, len })
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes `start..end` of this region, if it has them.
    pub(super) fn part(&self, start: u64, end: u64) -> Option<Self> {
        let len = end.checked_sub(start).filter(|_| end <= self.len)?;
        Some(Self { file: self.file.clone(), offset: self.offset.checked_add(start)?, len })
    }

    /// Fills `out` from byte `start` on.
    pub(super) fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let fits = start.checked_add(out.len() as u64).is_some_and(|end| end <= self.len);
        let at = self.offset.checked_add(start).filter(|_| fits);
        read_exact_at(&self.file, out, at.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => (out, at) = (out.get_mut(n..).unwrap_or_default(), at + n as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn parts_of_parts_read_what_lies_there_and_no_further() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let part = Region::whole(file).unwrap().part(2, 8).unwrap().part(1, 5).unwrap();
        let mut out = [0; 3];
        part.read(1, &mut out).unwrap();
        assert_eq!((&out, part.len()), (b"456", 4));
        assert_eq!(part.read(2, &mut out).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(part.read(u64::MAX, &mut out).is_err());
        assert!(part.part(0, 5).is_none() && part.part(3, 2).is_none());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        let region = Region::whole(file.try_clone().unwrap()).unwrap();
        file.set_len(50).unwrap();
        assert_eq!(region.read(40, &mut [0; 20]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
