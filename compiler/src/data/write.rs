//! Writing npz files: the same arrays give the same bytes.
//!
//! Members are stored, not deflated, as `numpy.savez` does; time stamps are the
//! first moment of the format, so nothing depends on the clock.

use std::{
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, System, ZipWriter, result::ZipError, write::SimpleFileOptions};

use super::{ArrayInfo, DataError, NumberType, header};
use crate::files::{WriteError, write_atomic};

/// Collects arrays one after the other; nothing is written before [`NpzWriter::finish`].
pub struct NpzWriter {
    path: PathBuf,
    archive: ZipWriter<Cursor<Vec<u8>>>,
}

impl std::fmt::Debug for NpzWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NpzWriter").field("path", &self.path).finish_non_exhaustive()
    }
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

impl Element for bool {
    const TYPE: NumberType = NumberType::Bool;
    fn put(self, out: &mut Vec<u8>) {
        out.push(self.into());
    }
}

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
        Ok(Self { path: path.to_owned(), archive: ZipWriter::new(Cursor::default()) })
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
        let options = SimpleFileOptions::DEFAULT
            .compression_method(CompressionMethod::Stored)
            .system(System::Unix)
            .large_file(bytes.len() as u64 >= u64::from(u32::MAX));
        let mut add = || -> Result<(), ZipError> {
            self.archive.start_file(format!("{key}.npy"), options)?;
            Ok(self.archive.write_all(&bytes)?)
        };
        add().map_err(|error| failed(&self.path, error))
    }

    /// Writes everything, or nothing.
    pub fn finish(self) -> Result<(), DataError> {
        let Self { path, archive } = self;
        let bytes = archive.finish().map_err(|error| failed(&path, error))?.into_inner();
        write_atomic(&path, &bytes).map_err(|WriteError { path, source }| DataError::Write { path, source })
    }
}

fn failed(path: &Path, error: ZipError) -> DataError {
    DataError::Write { path: path.to_owned(), source: std::io::Error::other(error) }
}

/// Writes `f32` arrays, for example actions, in the given order.
pub fn write_npz(path: &Path, arrays: &[(&str, &[usize], &[f32])]) -> Result<(), DataError> {
    let mut writer = NpzWriter::create(path)?;
    for (key, shape, elements) in arrays {
        writer.add(key, shape, elements)?;
    }
    writer.finish()
}
