//! From the constants of a model to constants of the graph.
//!
//! The number of elements is checked against the data before anything is made
//! of it. Small constants are copied; large ones stay in the file, the mapped
//! model or one beside it, and are read in ranges. Narrow integers become codes of the same width, also
//! those that lie several in a byte; bytes stay bytes. 16-bit floats are widened on the way, `f64` is narrowed:
//! the graph computes in `f32`.

use std::{fmt, io};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use prost::bytes::Bytes;
use qail_ir::{ConstData, ConstSource, Constant, DType, Elem, QuantScheme, TensorType};

use super::{
    proto::{TensorProto, data_type},
    region::Region,
};

/// Constants up to this size are copied out of the file.
const MAX_COPIED_BYTES: usize = 64 << 10;

/// Most elements of a constant: 32 GiB of `f32`.
const MAX_ELEMENTS: usize = 1 << 33;

/// Highest rank of a tensor.
pub(super) const MAX_RANK: usize = 16;

/// A constant that the graph cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TensorError {
    /// It contradicts itself.
    Invalid(String),
    /// It is sound, but of a type that is not supported.
    Unsupported(String),
}

/// Element type of the graph for an element type of ONNX, and whether numbers
/// are widened or narrowed.
pub(super) fn dtype(elem_type: i32) -> Option<(DType, bool)> {
    match elem_type {
        data_type::FLOAT => Some((DType::F32, false)),
        data_type::FLOAT16 | data_type::BFLOAT16 | data_type::DOUBLE => Some((DType::F32, true)),
        data_type::UINT8 => Some((DType::U8, false)),
        data_type::INT32 => Some((DType::I32, false)),
        data_type::INT64 => Some((DType::I64, false)),
        data_type::BOOL => Some((DType::Bool, false)),
        _ => None,
    }
}

/// Width and sign of an element type of ONNX that holds codes of a quantizer;
/// bytes are not among them, they may be anything.
fn scheme(elem_type: i32) -> Option<QuantScheme> {
    match elem_type {
        data_type::INT8 => Some(QuantScheme::signed(8)),
        data_type::INT16 => Some(QuantScheme::signed(16)),
        data_type::UINT16 => Some(QuantScheme::unsigned(16)),
        data_type::INT4 => Some(QuantScheme::signed(4)),
        data_type::UINT4 => Some(QuantScheme::unsigned(4)),
        data_type::INT2 => Some(QuantScheme::signed(2)),
        data_type::UINT2 => Some(QuantScheme::unsigned(2)),
        _ => None,
    }
}

/// Codes of less than a byte, which share bytes.
fn packed(elem_type: i32) -> Option<QuantScheme> {
    scheme(elem_type).filter(|scheme| scheme.bits < 8)
}

/// Makes a constant of `tensor`, whose bytes are `external` if they lie in
/// another file.
pub(super) fn constant(tensor: &TensorProto, external: Option<Region>) -> Result<Constant, TensorError> {
    let shape = shape(&tensor.dims)?;
    let plain = dtype(tensor.data_type).map(|(dtype, _)| Elem::Plain(dtype));
    let elem = plain
        .or_else(|| scheme(tensor.data_type).map(Elem::Code))
        .ok_or_else(|| TensorError::Unsupported(format!("{} constants", data_type::name(tensor.data_type))))?;
    let ty = TensorType { elem, shape };
    let n = ty.n_elements();
    let raw = match (external, &tensor.raw_data) {
        (Some(region), _) => Some(Stored::File(region)),
        (None, Some(bytes)) if !bytes.is_empty() || n == 0 || typed_len(tensor) == 0 => {
            Some(Stored::Mapped(bytes.clone()))
        }
        (None, _) => None,
    };
    let data = match raw {
        Some(stored) => from_raw(tensor.data_type, n, stored)?,
        None => from_typed(tensor, n)?,
    };
    Ok(Constant { ty, data })
}

/// The extents of a tensor, checked.
fn shape(dims: &[i64]) -> Result<Vec<usize>, TensorError> {
    if dims.len() > MAX_RANK {
        return Err(TensorError::Invalid(format!("rank {} is more than {MAX_RANK}", dims.len())));
    }
    let mut shape = Vec::with_capacity(dims.len());
    let mut n = 1usize;
    for &dim in dims {
        // A list of no integers is how an exporter writes "no axes".
        let zero = dim == 0 && dims.len() > 1;
        let extent = usize::try_from(dim).ok().filter(|_| !zero);
        let extent = extent.ok_or_else(|| TensorError::Invalid(format!("an extent is {dim} in {dims:?}")))?;
        n = n
            .checked_mul(extent)
            .filter(|&n| n <= MAX_ELEMENTS)
            .ok_or_else(|| TensorError::Invalid(format!("{dims:?} has more than {MAX_ELEMENTS} elements")))?;
        shape.push(extent);
    }
    Ok(shape)
}

/// Bytes of one element in the file.
fn size_bytes(elem_type: i32) -> usize {
    match elem_type {
        data_type::UINT8 | data_type::INT8 | data_type::BOOL => 1,
        data_type::FLOAT16 | data_type::BFLOAT16 | data_type::INT16 | data_type::UINT16 => 2,
        data_type::INT64 | data_type::DOUBLE => 8,
        _ => 4,
    }
}

fn mismatch(n: usize, found: usize, unit: &str) -> TensorError {
    TensorError::Invalid(format!("{n} elements are declared, {found} {unit} are given"))
}

fn from_raw(elem_type: i32, n: usize, stored: Stored) -> Result<ConstData, TensorError> {
    let n_bytes = match packed(elem_type) {
        Some(scheme) => Some(n.div_ceil(8 / usize::from(scheme.bits))),
        None => n.checked_mul(size_bytes(elem_type)),
    };
    let n_stored = stored.len();
    if n_bytes != Some(n_stored) {
        return Err(mismatch(n, n_stored, "bytes"));
    }
    if let Some(scheme) = packed(elem_type) {
        return shared(Packed { stored, scheme, n });
    }
    let encoding = match elem_type {
        data_type::FLOAT16 => Encoding::F16,
        data_type::BFLOAT16 => Encoding::Bf16,
        data_type::DOUBLE => Encoding::F64,
        data_type::BOOL => Encoding::Bool,
        _ => Encoding::Same,
    };
    let source = Elements { stored, encoding };
    let n_decoded = source.decoded_len(n_stored);
    in_place_or_copied(n_stored, n_decoded, source)
}

/// Codes that share bytes: copied apart if they are few.
fn shared(packed: Packed) -> Result<ConstData, TensorError> {
    in_place_or_copied(packed.n, packed.n, packed)
}

/// Elements that take `n_stored` bytes, `n_decoded` in the graph.
fn in_place_or_copied(
    n_stored: usize,
    n_decoded: usize,
    source: impl ConstSource + 'static,
) -> Result<ConstData, TensorError> {
    if n_stored > MAX_COPIED_BYTES {
        return Ok(ConstData::Source(std::sync::Arc::new(source)));
    }
    let mut copied = vec![0; n_decoded];
    source.read(0, &mut copied).map_err(|error| TensorError::Invalid(error.to_string()))?;
    Ok(ConstData::Bytes(copied.into()))
}

fn typed_len(tensor: &TensorProto) -> usize {
    match tensor.data_type {
        data_type::FLOAT => tensor.float_data.len(),
        data_type::DOUBLE => tensor.double_data.len(),
        data_type::INT64 => tensor.int64_data.len(),
        _ => tensor.int32_data.len(),
    }
}

fn from_typed(tensor: &TensorProto, n: usize) -> Result<ConstData, TensorError> {
    let ints = &tensor.int32_data;
    if let Some(scheme) = packed(tensor.data_type) {
        // One byte of several codes in each number.
        if ints.len() != n.div_ceil(8 / usize::from(scheme.bits)) {
            return Err(mismatch(n, ints.len(), "values of several codes"));
        }
        let bytes: Vec<u8> = ints.iter().map(|&x| x as u8).collect();
        return shared(Packed { stored: Stored::Mapped(bytes.into()), scheme, n });
    }
    if typed_len(tensor) != n {
        return Err(mismatch(n, typed_len(tensor), "values"));
    }
    let bytes: Vec<u8> = match tensor.data_type {
        data_type::FLOAT => tensor.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        data_type::DOUBLE => tensor.double_data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        data_type::INT64 => tensor.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        data_type::FLOAT16 => ints.iter().flat_map(|&x| f16::from_bits(x as u16).to_f32().to_le_bytes()).collect(),
        data_type::BFLOAT16 => ints.iter().flat_map(|&x| bf16::from_bits(x as u16).to_f32().to_le_bytes()).collect(),
        data_type::BOOL => ints.iter().map(|&x| u8::from(x != 0)).collect(),
        data_type::UINT8 | data_type::INT8 => ints.iter().map(|&x| x as u8).collect(),
        data_type::INT16 | data_type::UINT16 => ints.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect(),
        _ => ints.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Ok(ConstData::Bytes(bytes.into()))
}

/// How elements lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// As in the graph.
    Same,
    /// IEEE 754 binary16, `f32` in the graph.
    F16,
    /// The upper half of an `f32`, `f32` in the graph.
    Bf16,
    /// `f64`, `f32` in the graph.
    F64,
    /// One byte, any number but zero is true.
    Bool,
}

/// Where the bytes of a tensor lie.
#[derive(Clone)]
pub(super) enum Stored {
    /// In the model, which is mapped.
    Mapped(Bytes),
    /// In a file beside it.
    File(Region),
}

/// Bytes that are read at once where they have to be decoded.
const PIECE_BYTES: usize = 1 << 14;

impl Stored {
    /// Number of bytes; saturates.
    fn len(&self) -> usize {
        match self {
            Self::Mapped(bytes) => bytes.len(),
            Self::File(region) => usize::try_from(region.len()).unwrap_or(usize::MAX),
        }
    }

    /// Fills `out` from byte `start` on.
    fn read(&self, start: usize, out: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Mapped(bytes) => {
                let bytes = start.checked_add(out.len()).and_then(|stop| bytes.get(start..stop));
                out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::File(region) => region.read(start as u64, out),
        }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Self::Mapped(_) => "mapped",
            Self::File(_) => "in a file",
        };
        write!(f, "{} bytes, {place}", self.len())
    }
}

/// Elements that stay where they are stored.
#[derive(Debug)]
struct Elements {
    stored: Stored,
    encoding: Encoding,
}

impl Elements {
    /// Bytes in the file and in the graph of one element, for the encodings that differ.
    fn sizes(&self) -> (usize, usize) {
        match self.encoding {
            Encoding::Same | Encoding::Bool => (1, 1),
            Encoding::F16 | Encoding::Bf16 => (2, 4),
            Encoding::F64 => (8, 4),
        }
    }

    /// Bytes in the graph of as many in the file.
    fn decoded_len(&self, n_stored: usize) -> usize {
        let (stored, decoded) = self.sizes();
        n_stored / stored * decoded
    }
}

/// Codes of less than a byte, the first one in the lowest bits of its byte.
#[derive(Clone)]
pub(super) struct Packed {
    /// The bytes, each of `8 / bits` codes.
    pub(super) stored: Stored,
    /// Width and sign of a code: 2 or 4 bits.
    pub(super) scheme: QuantScheme,
    /// Number of codes.
    pub(super) n: usize,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} codes, {})", self.n, self.scheme)
    }
}

impl ConstSource for Packed {
    fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(start).ok().filter(|start| start.saturating_add(out.len()) <= self.n);
        let start = start.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bits = usize::from(self.scheme.bits);
        let per_byte = 8 / bits;
        let (first, stop) = (start / per_byte, (start + out.len()).div_ceil(per_byte));
        let mut bytes = vec![0; stop - first];
        self.stored.read(first, &mut bytes)?;
        for (i, to) in (start..).zip(out) {
            let byte = *bytes.get(i / per_byte - first).ok_or(io::ErrorKind::UnexpectedEof)?;
            // To the top of the byte, then back down with the sign or without it.
            let top = byte << (8 - bits - i % per_byte * bits);
            *to = if self.scheme.signed { (top as i8 >> (8 - bits)) as u8 } else { top >> (8 - bits) };
        }
        Ok(())
    }
}

impl ConstSource for Elements {
    fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let (stored, decoded) = self.sizes();
        let start = usize::try_from(start).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if !start.is_multiple_of(decoded) || !out.len().is_multiple_of(decoded) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a read cuts through an element"));
        }
        let mut first = (start / decoded).checked_mul(stored).ok_or(io::ErrorKind::UnexpectedEof)?;
        if self.encoding == Encoding::Same {
            return self.stored.read(first, out);
        }
        let mut piece = [0; PIECE_BYTES];
        for out in out.chunks_mut(PIECE_BYTES / stored * decoded) {
            let bytes = piece.get_mut(..out.len() / decoded * stored).unwrap_or_default();
            self.stored.read(first, bytes)?;
            self.encoding.decode(bytes, out);
            first = first.saturating_add(bytes.len());
        }
        Ok(())
    }
}

impl Encoding {
    /// Decodes whole elements.
    fn decode(self, bytes: &[u8], out: &mut [u8]) {
        match self {
            Self::Same => out.copy_from_slice(bytes),
            Self::Bool => bytes.iter().zip(out).for_each(|(&from, to)| *to = u8::from(from != 0)),
            Self::F16 => {
                // In runs: the conversion asks once a slice which instructions there are.
                const RUN: usize = 256;
                let (mut halves, mut floats) = ([f16::ZERO; RUN], [0.0f32; RUN]);
                for (bytes, out) in bytes.chunks(2 * RUN).zip(out.chunks_mut(4 * RUN)) {
                    let n = bytes.len() / 2;
                    for (half, from) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*from);
                    }
                    let (halves, floats) = (halves.get(..n).unwrap_or_default(), floats.get_mut(..n));
                    let floats = floats.unwrap_or_default();
                    halves.convert_to_f32_slice(floats);
                    for (to, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(floats) {
                        *to = x.to_le_bytes();
                    }
                }
            }
            Self::Bf16 => {
                for (from, to) in bytes.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                    *to = bf16::from_le_bytes(*from).to_f32().to_le_bytes();
                }
            }
            Self::F64 => {
                for (from, to) in bytes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                    *to = (f64::from_le_bytes(*from) as f32).to_le_bytes();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_constants_stay_where_they_are_and_read_the_same() {
        let elements: Vec<f32> = (0..20_000).map(|i| i as f32).collect();
        let constant = constant(&TensorProto::f32("w", [200, 100], &elements), None).unwrap();
        assert!(matches!(constant.data, ConstData::Source(_)));
        assert_eq!(constant.all_f32().unwrap(), elements);
        assert_eq!(constant.read_f32(777..779).unwrap(), [777.0, 778.0]);
    }

    #[test]
    fn half_precision_is_widened_in_ranges() {
        let bytes: Vec<u8> = (0..40_000).flat_map(|i| f16::from_f32(i as f32 / 64.0).to_le_bytes()).collect();
        let tensor = TensorProto::raw("w", data_type::FLOAT16, [40_000], bytes);
        let constant = constant(&tensor, None).unwrap();
        assert!(matches!(constant.data, ConstData::Source(_)));
        assert_eq!(constant.read_f32(64..66).unwrap(), [1.0, 1.015_625]);
        let expected: Vec<f32> = (0..40_000).map(|i| f16::from_f32(i as f32 / 64.0).to_f32()).collect();
        assert_eq!(constant.all_f32().unwrap(), expected);
    }

    #[test]
    fn codes_that_share_a_byte_come_apart() {
        let codes = |elem_type: i32, n: i64, bytes: &[u8]| {
            let tensor = TensorProto::raw("w", elem_type, [n], bytes.to_vec());
            constant(&tensor, None).map(|constant| constant.all_int().unwrap())
        };
        assert_eq!(codes(data_type::INT4, 3, &[0x8f, 0x07]).unwrap(), [-1, -8, 7]);
        assert_eq!(codes(data_type::UINT4, 3, &[0x8f, 0x07]).unwrap(), [15, 8, 7]);
        assert_eq!(codes(data_type::INT2, 4, &[0b10_01_11_00]).unwrap(), [0, -1, 1, -2]);
        assert_eq!(codes(data_type::INT8, 2, &[0x80, 5]).unwrap(), [-128, 5]);
        assert_eq!(codes(data_type::UINT16, 1, &[0xff, 0xff]).unwrap(), [65535]);
        assert!(codes(data_type::INT4, 3, &[0x8f]).is_err());
        let large: Vec<u8> = (0..50_000).map(|i| i as u8).collect();
        let tensor = TensorProto::raw("w", data_type::UINT4, [100_000], large);
        let lazy = constant(&tensor, None).unwrap();
        assert!(matches!(lazy.data, ConstData::Source(_)));
        assert_eq!(lazy.read_int(33..36).unwrap(), [1, 1, 1]);
        assert_eq!(lazy.read_int(99_998..100_000).unwrap(), [15, 4]);
    }

    #[test]
    fn the_number_of_elements_must_fit_the_data() {
        let mut tensor = TensorProto::f32("w", [2, 2], &[1.0; 3]);
        let invalid = |reason: &str| TensorError::Invalid(reason.to_owned());
        assert_eq!(constant(&tensor, None).unwrap_err(), invalid("4 elements are declared, 12 bytes are given"));
        tensor.raw_data = None;
        assert_eq!(constant(&tensor, None).unwrap_err(), invalid("4 elements are declared, 0 values are given"));
        tensor.dims = vec![1 << 40, 1 << 40];
        assert!(matches!(constant(&tensor, None), Err(TensorError::Invalid(_))));
        tensor.dims = vec![2, -2];
        assert_eq!(constant(&tensor, None).unwrap_err(), invalid("an extent is -2 in [2, -2]"));
    }
}
