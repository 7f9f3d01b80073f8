//! Writing npz files: the same arrays give the same bytes.
//!
//! Members are stored, not deflated, as `numpy.savez` does; time stamps are the
//! first moment of the format, so nothing depends on the clock.

use std::path::{Path, PathBuf};

use flate2::Crc;

use super::{ArrayInfo, DataError, NumberType, header};
use crate::files::{WriteError, write_atomic};

/// 1 January 1980, the first date of the zip format.
const DOS_DATE: u16 = 0x21;

/// Collects arrays one after the other; nothing is written before [`NpzWriter::finish`].
#[derive(Debug)]
pub struct NpzWriter {
    path: PathBuf,
    bytes: Vec<u8>,
    directory: Vec<u8>,
    n_members: u16,
}

/// Elements that can be written.
pub trait Element: Copy {
    /// How NumPy calls the type.
    const TYPE: NumberType;
    /// Appends the little-endian bytes.
    fn put(self, out: &mut Vec<u8>);
}

macro_rules! element {
    ($($ty:ty => $number_type:ident),*) => {$(
        impl Element for $ty {
            const TYPE: NumberType = NumberType::$number_type;
            fn put(self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}

element!(u8 => U8, i8 => I8, i16 => I16, i32 => I32, i64 => I64, f32 => F32, f64 => F64);

impl NpzWriter {
    /// Begins a file that will be called `path`. Its folder must exist: that is
    /// found out here, before long work, and not in [`NpzWriter::finish`].
    pub fn create(path: &Path) -> Result<Self, DataError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let found = std::fs::metadata(folder).and_then(|folder| match folder.is_dir() {
            true => Ok(()),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        });
        found.map_err(|source| DataError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes: Vec::new(), directory: Vec::new(), n_members: 0 })
    }

    /// Adds an array; `elements` are in row-major order and as many as `shape` says.
    pub fn add<T: Element>(&mut self, key: &str, shape: &[usize], elements: &[T]) -> Result<(), DataError> {
        let info = ArrayInfo { ty: T::TYPE, shape: shape.to_vec() };
        let expected = info.size_bytes();
        if expected != Some((elements.len() as u64).saturating_mul(T::TYPE.size_bytes() as u64)) {
            let (path, key) = (self.path.clone(), key.to_owned());
            let expected = format!("one of {} elements", elements.len());
            return Err(DataError::Shape { path, key, found: info.shape, expected });
        }
        let mut bytes = header::write(&info);
        for &element in elements {
            element.put(&mut bytes);
        }
        self.add_member(&format!("{key}.npy"), &bytes).ok_or_else(|| self.too_large())
    }

    /// Writes everything, or nothing.
    pub fn finish(mut self) -> Result<(), DataError> {
        self.add_directory().ok_or_else(|| self.too_large())?;
        write_atomic(&self.path, &self.bytes).map_err(|WriteError { path, source }| DataError::Write { path, source })
    }

    fn too_large(&self) -> DataError {
        DataError::TooLarge { path: self.path.clone() }
    }

    /// `None` if a number does not fit into its field.
    fn add_member(&mut self, name: &str, bytes: &[u8]) -> Option<()> {
        let size = u32::try_from(bytes.len()).ok().filter(|&size| size < u32::MAX)?;
        let start = u32::try_from(self.bytes.len()).ok()?;
        let name_len = u16::try_from(name.len()).ok()?;
        self.n_members = self.n_members.checked_add(1).filter(|&n| n < u16::MAX)?;
        let mut crc = Crc::new();
        crc.update(bytes);

        // The same in the local header and in the directory: version 2.0 needed,
        // UTF-8 name, stored, no time, first date, checksum, both sizes.
        let mut common = Vec::new();
        for half in [20, 1 << 11, 0, 0, DOS_DATE] {
            common.extend(u16::to_le_bytes(half));
        }
        for word in [crc.sum(), size, size] {
            common.extend(word.to_le_bytes());
        }
        common.extend(name_len.to_le_bytes());
        common.extend([0; 2]);

        for part in [b"PK\x03\x04", &common[..], name.as_bytes(), bytes] {
            self.bytes.extend(part);
        }
        for part in [b"PK\x01\x02", &20u16.to_le_bytes()[..], &common] {
            self.directory.extend(part);
        }
        // No comment, first disk, no attributes.
        self.directory.extend([0; 10]);
        self.directory.extend(start.to_le_bytes());
        self.directory.extend(name.as_bytes());
        Some(())
    }

    fn add_directory(&mut self) -> Option<()> {
        let start = u32::try_from(self.bytes.len()).ok()?;
        let size = u32::try_from(self.directory.len()).ok()?;
        let count = self.n_members.to_le_bytes();
        let (start, size) = (start.to_le_bytes(), size.to_le_bytes());
        for part in [&self.directory[..], b"PK\x05\x06", &[0; 4], &count, &count, &size, &start, &[0; 2]] {
            self.bytes.extend(part);
        }
        Some(())
    }
}

/// Writes `f32` arrays, for example actions, in the given order.
pub fn write_npz(path: &Path, arrays: &[(&str, &[usize], &[f32])]) -> Result<(), DataError> {
    let mut writer = NpzWriter::create(path)?;
    for (key, shape, elements) in arrays {
        writer.add(key, shape, elements)?;
    }
    writer.finish()
}
