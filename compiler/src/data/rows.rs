//! Rows of one array, in order, with memory for one portion only.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take},
    ops::Range,
    path::PathBuf,
};

use flate2::{Crc, read::DeflateDecoder};

use super::{ArrayInfo, DataError, NumberType};

/// The most that one call returns.
const MAX_PORTION_BYTES: usize = 1 << 30;
/// Bytes decoded at a time; a multiple of every element size.
const CHUNK_BYTES: usize = 1 << 16;

/// Streams the rows of an array: each call continues where the last one ended.
///
/// When the last row of a zip member was read and none was skipped by seeking,
/// its checksum is verified.
#[derive(Debug)]
pub struct RowReader {
    path: PathBuf,
    key: String,
    info: ArrayInfo,
    bytes: Bytes,
    crc: Crc,
    crc_expected: Option<u32>,
    next_row: usize,
}

/// The bytes of an npy file or member.
#[derive(Debug)]
pub(super) enum Bytes {
    Plain(Take<BufReader<File>>),
    Deflated(Box<DeflateDecoder<Take<BufReader<File>>>>),
}

impl Read for Bytes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(out),
            Self::Deflated(reader) => reader.read(out),
        }
    }
}

/// Reads bytes and their checksum.
pub(super) struct Checked<'a> {
    pub(super) bytes: &'a mut Bytes,
    pub(super) crc: &'a mut Crc,
}

impl Read for Checked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(out)?;
        self.crc.update(out.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl RowReader {
    /// The header was read from `bytes` and went into `crc`.
    pub(super) fn new(
        path: PathBuf,
        key: String,
        info: ArrayInfo,
        bytes: Bytes,
        crc: Crc,
        crc_expected: Option<u32>,
    ) -> Self {
        Self { path, key, info, bytes, crc, crc_expected, next_row: 0 }
    }

    /// Type and shape of the whole array.
    pub fn info(&self) -> &ArrayInfo {
        &self.info
    }

    /// The row that the next call begins with.
    pub fn next_row(&self) -> usize {
        self.next_row
    }

    /// Appends up to `n_rows` rows as `f32`; returns how many, 0 at the end.
    /// Integers and `f64` are rounded.
    pub fn next_f32(&mut self, n_rows: usize, out: &mut Vec<f32>) -> Result<usize, DataError> {
        self.next(n_rows, |ty, bytes| out.extend(numbers(ty, bytes).map(|x| x.as_f32())))
    }

    /// Appends up to `n_rows` rows as `f64`, exact for every type but large `i64`.
    pub fn next_f64(&mut self, n_rows: usize, out: &mut Vec<f64>) -> Result<usize, DataError> {
        self.next(n_rows, |ty, bytes| out.extend(numbers(ty, bytes).map(|x| x.as_f64())))
    }

    /// Appends up to `n_rows` rows as `i64`; floats are truncated.
    pub fn next_i64(&mut self, n_rows: usize, out: &mut Vec<i64>) -> Result<usize, DataError> {
        self.next(n_rows, |ty, bytes| out.extend(numbers(ty, bytes).map(|x| x.as_i64())))
    }

    /// Goes `n_rows` rows ahead, or to the end.
    pub fn skip(&mut self, n_rows: usize) -> Result<(), DataError> {
        let n_rows = n_rows.min(self.info.n_rows() - self.next_row);
        let mut n_bytes = n_rows as u64 * self.row_bytes() as u64;
        if let Bytes::Plain(take) = &mut self.bytes {
            let step = i64::try_from(n_bytes).unwrap_or(i64::MAX);
            let moved = take.get_mut().seek_relative(step);
            take.set_limit(take.limit().saturating_sub(n_bytes));
            // Bytes that were not read have no checksum.
            self.crc_expected = self.crc_expected.filter(|_| n_bytes == 0);
            moved.map_err(|source| self.failed(source))?;
        } else {
            let mut chunk = [0; 4096];
            while n_bytes > 0 {
                let n = n_bytes.min(chunk.len() as u64) as usize;
                self.fill(&mut chunk[..n])?;
                n_bytes -= n as u64;
            }
        }
        self.next_row += n_rows;
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        self.info.row_len().saturating_mul(self.info.ty.size_bytes())
    }

    fn next(&mut self, n_rows: usize, mut take: impl FnMut(NumberType, &[u8])) -> Result<usize, DataError> {
        let n_rows = n_rows.min(self.info.n_rows() - self.next_row);
        let range = self.next_row..self.next_row + n_rows;
        let mut left = self.checked_size(&range)?;
        let mut chunk = vec![0; CHUNK_BYTES.min(left)];
        while left > 0 {
            let n = left.min(CHUNK_BYTES);
            let part = &mut chunk[..n];
            self.fill(part)?;
            take(self.info.ty, part);
            left -= n;
        }
        self.next_row = range.end;
        if self.next_row == self.info.n_rows() && n_rows > 0 {
            self.finish()?;
        }
        Ok(n_rows)
    }

    fn checked_size(&self, rows: &Range<usize>) -> Result<usize, DataError> {
        let size = rows.len().checked_mul(self.row_bytes()).filter(|&size| size <= MAX_PORTION_BYTES);
        size.ok_or_else(|| DataError::TooMuch {
            path: self.path.clone(),
            key: self.key.clone(),
            start: rows.start,
            end: rows.end,
            limit_mib: MAX_PORTION_BYTES >> 20,
        })
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), DataError> {
        let read = Checked { bytes: &mut self.bytes, crc: &mut self.crc }.read_exact(out);
        read.map_err(|source| self.failed(source))
    }

    /// Behind the last row nothing follows, and the checksum is right.
    fn finish(&mut self) -> Result<(), DataError> {
        let mut one = [0];
        match self.bytes.read(&mut one) {
            Ok(0) => {}
            Ok(_) => return Err(self.damaged("bytes follow its last element")),
            Err(source) => return Err(self.failed(source)),
        }
        if self.crc_expected.is_some_and(|expected| expected != self.crc.sum()) {
            return Err(self.damaged("its checksum is wrong"));
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> DataError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends before its last element"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => self.damaged("it does not inflate"),
            _ => DataError::Read { path: self.path.clone(), source },
        }
    }

    fn damaged(&self, what: &str) -> DataError {
        DataError::Array { path: self.path.clone(), key: self.key.clone(), what: what.to_owned() }
    }
}

/// One element of any type.
enum Number {
    Int(i64),
    F32(f32),
    F64(f64),
}

impl Number {
    fn as_f32(&self) -> f32 {
        match *self {
            Self::Int(x) => x as f32,
            Self::F32(x) => x,
            Self::F64(x) => x as f32,
        }
    }

    fn as_f64(&self) -> f64 {
        match *self {
            Self::Int(x) => x as f64,
            Self::F32(x) => x.into(),
            Self::F64(x) => x,
        }
    }

    fn as_i64(&self) -> i64 {
        match *self {
            Self::Int(x) => x,
            Self::F32(x) => x as i64,
            Self::F64(x) => x as i64,
        }
    }
}

fn numbers(ty: NumberType, bytes: &[u8]) -> impl Iterator<Item = Number> {
    bytes.chunks_exact(ty.size_bytes()).map(move |element| {
        // Little-endian; the chunk has the size of the type.
        let bits = element.iter().rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        match ty {
            NumberType::Bool => Number::Int(i64::from(bits != 0)),
            NumberType::U8 => Number::Int(bits as i64),
            NumberType::I8 => Number::Int(i64::from(bits as u8 as i8)),
            NumberType::I16 => Number::Int(i64::from(bits as u16 as i16)),
            NumberType::I32 => Number::Int(i64::from(bits as u32 as i32)),
            NumberType::I64 => Number::Int(bits as i64),
            NumberType::F32 => Number::F32(f32::from_bits(bits as u32)),
            NumberType::F64 => Number::F64(f64::from_bits(bits)),
        }
    })
}

/// Opens the bytes `start..start + len` of a file.
pub(super) fn open_bytes(file: File, start: u64, len: u64, deflated: bool) -> io::Result<Bytes> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    reader.seek(SeekFrom::Start(start))?;
    let reader = reader.take(len);
    Ok(if deflated { Bytes::Deflated(Box::new(DeflateDecoder::new(reader))) } else { Bytes::Plain(reader) })
}
