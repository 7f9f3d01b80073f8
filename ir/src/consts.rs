//! Constants: weights, scales and tables, shared beside the graph.
//!
//! A constant is a type and a way to its bytes. Large weights stay where they
//! are (a mapped file) and are read in ranges; tests write `splat` and `rand`.

use std::{fmt, ops::Range, sync::Arc};

use crate::{DType, Elem, TensorType};

/// Names a constant of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstId(pub(crate) u32);

/// Bytes that live elsewhere, for example in a mapped weights file.
pub trait ConstSource: fmt::Debug + Send + Sync {
    /// Reads `out.len()` bytes from byte offset `start`, little-endian, row-major.
    fn read(&self, start: u64, out: &mut [u8]) -> std::io::Result<()>;

    /// Reads part of a matrix, row-major: `out` has room for it. Whoever can
    /// read columns in another way than row by row says so here.
    fn read_block(&self, block: &Block, out: &mut [u8]) -> std::io::Result<()> {
        let row_bytes = block.columns.len().saturating_mul(block.elem_bytes);
        for (row, out) in block.rows.clone().zip(out.chunks_exact_mut(row_bytes.max(1))) {
            self.read(block.start(row), out)?;
        }
        Ok(())
    }
}

/// Part of a matrix: some rows, and some columns of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of the part.
    pub rows: Range<usize>,
    /// Columns of the part.
    pub columns: Range<usize>,
    /// Columns of the matrix.
    pub n_columns: usize,
    /// Bytes of an element.
    pub elem_bytes: usize,
}

impl Block {
    /// Byte offset of the part of a row.
    fn start(&self, row: usize) -> u64 {
        let first = (row as u64).saturating_mul(self.n_columns as u64).saturating_add(self.columns.start as u64);
        first.saturating_mul(self.elem_bytes as u64)
    }
}

/// Where the elements of a constant come from.
#[derive(Clone, Debug)]
pub enum ConstData {
    /// Little-endian, row-major. Codes of up to 8 bits take one byte (two's
    /// complement when signed), wider codes two.
    Bytes(Arc<[u8]>),
    /// Every element is this number.
    Splat(f64),
    /// Seeded numbers, uniform in [-1, 1) for floats and over the whole range
    /// for codes (4-bit and 8-bit signed weights stay symmetric); for tests.
    Rand(u64),
    /// Bytes that stay where they are until read.
    Source(Arc<dyn ConstSource>),
}

/// A constant tensor.
#[derive(Clone, Debug)]
pub struct Constant {
    /// Element type and shape.
    pub ty: TensorType,
    /// The elements.
    pub data: ConstData,
}

/// A constant that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConstError {
    /// The data behind a source is gone or short.
    #[error("constant of type {ty} cannot be read")]
    Io {
        /// Type of the constant.
        ty: TensorType,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The range leaves the tensor, or the bytes are fewer than the type says.
    #[error("constant of type {ty} has no elements {start}..{end}")]
    Range {
        /// Type of the constant.
        ty: TensorType,
        /// First element asked for.
        start: usize,
        /// One past the last element asked for.
        end: usize,
    },
}

impl Constant {
    /// A constant of `f32` elements.
    pub fn f32(shape: impl Into<Vec<usize>>, elements: &[f32]) -> Self {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { ty: TensorType::f32(shape), data: ConstData::Bytes(bytes.into()) }
    }

    /// A constant of `f64` elements.
    pub fn f64(shape: impl Into<Vec<usize>>, elements: &[f64]) -> Self {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { ty: TensorType::plain(DType::F64, shape), data: ConstData::Bytes(bytes.into()) }
    }

    /// A constant of integers or codes; elements outside the type are clamped.
    pub fn ints(ty: TensorType, elements: &[i64]) -> Self {
        let mut bytes = Vec::with_capacity(elements.len().saturating_mul(ty.elem.size_bytes()));
        for &x in elements {
            match ty.elem {
                Elem::Plain(DType::Bool) => bytes.push(u8::from(x != 0)),
                Elem::Plain(DType::U8) => bytes.push(x.clamp(0, 255) as u8),
                Elem::Plain(DType::I32) => {
                    bytes.extend((x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32).to_le_bytes());
                }
                Elem::Plain(DType::I64) => bytes.extend(x.to_le_bytes()),
                Elem::Plain(DType::F32) => bytes.extend((x as f32).to_le_bytes()),
                Elem::Plain(DType::F64) => bytes.extend((x as f64).to_le_bytes()),
                Elem::Code(scheme) => {
                    let code = x.clamp(i64::from(scheme.lo()), i64::from(scheme.hi())) as i32;
                    let two = (code as i16).to_le_bytes();
                    bytes.extend(&two[..scheme.size_bytes()]);
                }
            }
        }
        Self { ty, data: ConstData::Bytes(bytes.into()) }
    }

    /// Elements `range`, in row-major order, as `f64`: exact for every type
    /// except `i64` beyond 2^53.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<f64>, ConstError> {
        Ok(self.decode(&self.read_bytes(range)?, |x| x, |x| x as f64))
    }

    /// Elements `range` as `f32`; integers and `f64` are rounded.
    pub fn read_f32(&self, range: Range<usize>) -> Result<Vec<f32>, ConstError> {
        Ok(self.decode(&self.read_bytes(range)?, |x| x as f32, |x| x as f32))
    }

    /// Elements `range` as integers; floats are truncated.
    pub fn read_int(&self, range: Range<usize>) -> Result<Vec<i64>, ConstError> {
        Ok(self.decode(&self.read_bytes(range)?, |x| x as i64, |x| x))
    }

    /// Every element, as [`Constant::read`].
    pub fn all(&self) -> Result<Vec<f64>, ConstError> {
        self.read(0..self.ty.n_elements())
    }

    /// Every element, as [`Constant::read_f32`].
    pub fn all_f32(&self) -> Result<Vec<f32>, ConstError> {
        self.read_f32(0..self.ty.n_elements())
    }

    /// Every element, as [`Constant::read_int`].
    pub fn all_int(&self) -> Result<Vec<i64>, ConstError> {
        self.read_int(0..self.ty.n_elements())
    }

    /// Raw bytes of elements `range`, little-endian.
    pub fn read_bytes(&self, range: Range<usize>) -> Result<Vec<u8>, ConstError> {
        let out_of_range = || ConstError::Range { ty: self.ty.clone(), start: range.start, end: range.end };
        if range.start > range.end || range.end > self.ty.n_elements() {
            return Err(out_of_range());
        }
        let size = self.ty.elem.size_bytes();
        let start = range.start.checked_mul(size).ok_or_else(out_of_range)?;
        let end = range.end.checked_mul(size).ok_or_else(out_of_range)?;
        match &self.data {
            ConstData::Bytes(bytes) => bytes.get(start..end).map(<[u8]>::to_vec).ok_or_else(out_of_range),
            ConstData::Source(source) => {
                let mut out = vec![0; end - start];
                source.read(start as u64, &mut out).map_err(|source| ConstError::Io { ty: self.ty.clone(), source })?;
                Ok(out)
            }
            ConstData::Splat(value) => {
                let n = range.len();
                let one = Self::ints_or_floats(&self.ty, &[*value]);
                Ok(one.iter().copied().cycle().take(n.saturating_mul(size)).collect())
            }
            ConstData::Rand(seed) => {
                let elements: Vec<f64> = range.map(|i| rand_element(self.ty.elem, *seed, i as u64)).collect();
                Ok(Self::ints_or_floats(&self.ty, &elements))
            }
        }
    }

    /// Elements of some columns of some rows of a matrix, row-major, as
    /// [`Constant::read_f32`].
    ///
    /// # Errors
    /// As reading a range, and constants that are no matrices.
    pub fn read_block_f32(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Vec<f32>, ConstError> {
        let bytes = self.read_block_bytes(rows, columns)?;
        if self.ty.is_f32() {
            let (words, _) = bytes.as_chunks::<4>();
            return Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect());
        }
        Ok(self.decode(&bytes, |x| x as f32, |x| x as f32))
    }

    /// Raw bytes of some columns of some rows of a matrix, row-major, little-endian.
    ///
    /// # Errors
    /// As reading a range, and constants that are no matrices.
    pub fn read_block_bytes(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Vec<u8>, ConstError> {
        let out_of_range = || ConstError::Range {
            ty: self.ty.clone(),
            start: rows.start.saturating_mul(columns.len()),
            end: rows.end.saturating_mul(columns.len()),
        };
        let fits = |range: &Range<usize>, extent: usize| range.start <= range.end && range.end <= extent;
        let &[n_rows, n_columns] = &self.ty.shape[..] else { return Err(out_of_range()) };
        if !fits(&rows, n_rows) || !fits(&columns, n_columns) {
            return Err(out_of_range());
        }
        if let ConstData::Source(source) = &self.data {
            let elem_bytes = self.ty.elem.size_bytes();
            let n = rows.len().checked_mul(columns.len()).and_then(|n| n.checked_mul(elem_bytes));
            let mut out = vec![0; n.ok_or_else(out_of_range)?];
            let block = Block { rows, columns, n_columns, elem_bytes };
            source.read_block(&block, &mut out).map_err(|source| ConstError::Io { ty: self.ty.clone(), source })?;
            return Ok(out);
        }
        let mut out = Vec::new();
        for row in rows {
            let first = row.saturating_mul(n_columns);
            out.extend(self.read_bytes(first.saturating_add(columns.start)..first.saturating_add(columns.end))?);
        }
        Ok(out)
    }

    fn ints_or_floats(ty: &TensorType, elements: &[f64]) -> Vec<u8> {
        match ty.elem {
            Elem::Plain(DType::F32) => elements.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Elem::Plain(DType::F64) => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => {
                let ints: Vec<i64> = elements.iter().map(|&x| x as i64).collect();
                match Self::ints(ty.clone(), &ints).data {
                    ConstData::Bytes(bytes) => bytes.to_vec(),
                    ConstData::Splat(_) | ConstData::Rand(_) | ConstData::Source(_) => Vec::new(),
                }
            }
        }
    }

    fn decode<T>(&self, bytes: &[u8], float: impl Fn(f64) -> T, int: impl Fn(i64) -> T) -> Vec<T> {
        bytes
            .chunks_exact(self.ty.elem.size_bytes())
            .map(|b| match (self.ty.elem, b) {
                (Elem::Plain(DType::F32), &[a, b, c, d]) => float(f64::from(f32::from_le_bytes([a, b, c, d]))),
                (Elem::Plain(DType::F64), &[a, b, c, d, e, f, g, h]) => {
                    float(f64::from_le_bytes([a, b, c, d, e, f, g, h]))
                }
                (Elem::Plain(DType::I32), &[a, b, c, d]) => int(i64::from(i32::from_le_bytes([a, b, c, d]))),
                (Elem::Plain(DType::I64), &[a, b, c, d, e, f, g, h]) => {
                    int(i64::from_le_bytes([a, b, c, d, e, f, g, h]))
                }
                (Elem::Code(scheme), &[a]) if scheme.signed => int(i64::from(a as i8)),
                (Elem::Code(scheme), &[a, b]) if scheme.signed => int(i64::from(i16::from_le_bytes([a, b]))),
                (_, &[a, b]) => int(i64::from(u16::from_le_bytes([a, b]))),
                (_, b) => int(i64::from(b.first().copied().unwrap_or(0))),
            })
            .collect()
    }
}

/// Element `i` of `rand(seed)`.
fn rand_element(elem: Elem, seed: u64, i: u64) -> f64 {
    let bits = split_mix_64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i));
    let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
    match elem {
        Elem::Plain(DType::F32 | DType::F64) => f64::from((2.0 * unit - 1.0) as f32),
        Elem::Plain(DType::Bool) => (bits & 1) as f64,
        Elem::Plain(DType::U8) => (bits & 255) as f64,
        Elem::Plain(DType::I32 | DType::I64) => (2000.0 * unit).floor() - 1000.0,
        Elem::Code(scheme) => {
            let lo = if scheme.signed { -scheme.hi() } else { 0 };
            f64::from(lo) + (unit * f64::from(scheme.hi() - lo + 1)).floor()
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a counter-based generator.
fn split_mix_64(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QuantScheme;

    #[test]
    fn codes_survive_the_bytes() {
        for scheme in [QuantScheme::signed(4), QuantScheme::unsigned(8), QuantScheme::signed(16)] {
            let elements: Vec<i64> = (i64::from(scheme.lo())..=i64::from(scheme.hi())).collect();
            let constant = Constant::ints(TensorType::code(scheme, [elements.len()]), &elements);
            assert_eq!(constant.all_int().unwrap(), elements);
        }
    }

    #[test]
    fn a_range_of_random_numbers_is_the_same_as_all_of_them() {
        let constant = Constant { ty: TensorType::f32([10]), data: ConstData::Rand(7) };
        assert_eq!(constant.read(3..6).unwrap(), constant.all().unwrap()[3..6]);
    }

    #[test]
    fn a_block_of_a_matrix_is_its_rows_and_columns() {
        #[derive(Debug)]
        struct Memory(Vec<u8>);
        impl ConstSource for Memory {
            fn read(&self, start: u64, out: &mut [u8]) -> std::io::Result<()> {
                let start = start as usize;
                let bytes = self.0.get(start..start + out.len());
                out.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
        let held = Constant::f32([3, 4], &(0..12).map(|i| i as f32).collect::<Vec<_>>());
        let source = ConstData::Source(Arc::new(Memory(held.read_bytes(0..12).unwrap())));
        for constant in [held.clone(), Constant { data: source, ..held }] {
            assert_eq!(constant.read_block_f32(1..3, 1..3).unwrap(), [5.0, 6.0, 9.0, 10.0]);
            assert_eq!(constant.read_block_bytes(1..2, 2..2).unwrap(), []);
            assert!(constant.read_block_f32(2..4, 0..1).is_err());
            assert!(constant.read_block_f32(0..1, 3..5).is_err());
        }
        assert!(Constant::f32([12], &[0.0; 12]).read_block_f32(0..1, 0..1).is_err());
    }

    #[test]
    fn short_bytes_are_an_error() {
        let constant = Constant { ty: TensorType::f32([4]), data: ConstData::Bytes(vec![0; 12].into()) };
        assert_eq!(constant.all().unwrap_err().to_string(), "constant of type f32[4] has no elements 0..4");
    }
}
