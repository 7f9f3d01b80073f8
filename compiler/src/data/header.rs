//! The header of an npy array: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
//!
//! The grammar is that of NumPy's `format.py`, versions 1 to 3: a Python dict
//! with these three keys. Anything else is refused, so nothing is evaluated.
//!
//! Read by hand: `npyz` and `ndarray-npy` allocate whatever length a header
//! claims, up to 4 GiB, before they look at it, and bring a grammar of all Python
//! literals with a compiled-in stack guard for three keys.

use std::io::{self, Read};

/// Longest header text; NumPy itself refuses longer ones by default.
const MAX_TEXT_BYTES: usize = 10_000;
/// Most axes of an array.
const MAX_RANK: usize = 8;
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Type of the elements of an array, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberType {
    /// Truth value, one byte.
    Bool,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 16-bit signed integer.
    I16,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl NumberType {
    /// Name as numpy prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The type as NumPy writes it, for example `<f4`.
    pub fn descr(self) -> &'static str {
        match self {
            Self::Bool => "|b1",
            Self::U8 => "|u1",
            Self::I8 => "|i1",
            Self::I16 => "<i2",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
            Self::F32 => "<f4",
            Self::F64 => "<f8",
        }
    }

    fn parse(descr: &str) -> Option<Self> {
        let all = [Self::Bool, Self::U8, Self::I8, Self::I16, Self::I32, Self::I64, Self::F32, Self::F64];
        // NumPy writes one-byte types with `|`, other programs with `<`.
        let one_byte = descr.strip_prefix(['<', '|']).filter(|rest| matches!(*rest, "b1" | "u1" | "i1"));
        all.into_iter().find(|ty| match one_byte {
            Some(rest) => ty.descr().strip_prefix('|') == Some(rest),
            None => ty.descr() == descr,
        })
    }
}

/// Type and shape of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayInfo {
    /// Type of the elements.
    pub ty: NumberType,
    /// Extent of every axis; the first one counts rows. A scalar has none.
    pub shape: Vec<usize>,
}

impl ArrayInfo {
    /// Extent of the first axis; 1 for a scalar.
    pub fn n_rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row. Cannot overflow for an array that [`Npz`](super::Npz) opened.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).fold(1, |n, &extent| n.saturating_mul(extent))
    }

    /// Bytes of all elements, or `None` if that does not fit.
    pub fn size_bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.ty.size_bytes() as u64, |n, &extent| n.checked_mul(extent as u64))
    }
}

/// Why a header is refused; the caller knows file and array.
#[derive(Debug)]
pub(super) enum HeaderError {
    Io(io::Error),
    Damaged(String),
    Type(String),
    FortranOrder,
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it ends inside the header".to_owned()),
            _ => Self::Io(error),
        }
    }
}

/// Reads a header; returns it with its length in bytes.
pub(super) fn read(reader: &mut impl Read) -> Result<(ArrayInfo, u64), HeaderError> {
    let damaged = |what: &str| HeaderError::Damaged(what.to_owned());
    let mut start = [0; 8];
    reader.read_exact(&mut start)?;
    let [magic @ .., major, _minor] = start;
    if magic != *MAGIC {
        return Err(damaged("it does not begin as npy"));
    }
    let (text_len, prefix_len) = match major {
        1 => {
            let mut len = [0; 2];
            reader.read_exact(&mut len)?;
            (usize::from(u16::from_le_bytes(len)), 10)
        }
        2 | 3 => {
            let mut len = [0; 4];
            reader.read_exact(&mut len)?;
            (u32::from_le_bytes(len) as usize, 12)
        }
        _ => return Err(HeaderError::Damaged(format!("npy version {major} is not known"))),
    };
    if text_len > MAX_TEXT_BYTES {
        return Err(HeaderError::Damaged(format!(
            "its header has {text_len} bytes, at most {MAX_TEXT_BYTES} are read"
        )));
    }
    let mut text = vec![0; text_len];
    reader.read_exact(&mut text)?;
    let text = std::str::from_utf8(&text).map_err(|_| damaged("its header is not text"))?;
    Ok((parse(text)?, (prefix_len + text_len) as u64))
}

/// The header text of an array, padded so that the elements begin at a multiple of 64.
pub(super) fn write(info: &ArrayInfo) -> Vec<u8> {
    let extents: Vec<String> = info.shape.iter().map(usize::to_string).collect();
    let shape = match &extents[..] {
        [one] => format!("({one},)"),
        all => format!("({})", all.join(", ")),
    };
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}", info.ty.descr());
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + text.len());
    bytes.extend(MAGIC);
    bytes.extend([1, 0]);
    // At most 8 axes of 20 digits: far below 2^16.
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn parse(text: &str) -> Result<ArrayInfo, HeaderError> {
    let damaged = || HeaderError::Damaged("its header is not that of a plain array".to_owned());
    let mut scanner = Scanner { rest: text };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    scanner.expect("{").ok_or_else(damaged)?;
    while scanner.expect("}").is_none() {
        match scanner.string().ok_or_else(damaged)? {
            "descr" if descr.is_none() => {
                scanner.expect(":").ok_or_else(damaged)?;
                // Records have a list here.
                descr = Some(scanner.string().ok_or_else(|| HeaderError::Type("a record".to_owned()))?);
            }
            "fortran_order" if fortran.is_none() => {
                scanner.expect(":").ok_or_else(damaged)?;
                fortran = scanner.expect("True").map(|()| true).or_else(|| scanner.expect("False").map(|()| false));
                fortran.ok_or_else(damaged)?;
            }
            "shape" if shape.is_none() => {
                scanner.expect(":").ok_or_else(damaged)?;
                shape = Some(scanner.tuple().ok_or_else(damaged)?);
            }
            _ => return Err(damaged()),
        }
        if scanner.expect(",").is_none() {
            scanner.expect("}").ok_or_else(damaged)?;
            break;
        }
    }
    let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else { return Err(damaged()) };
    if !scanner.rest.trim().is_empty() {
        return Err(damaged());
    }
    let ty = NumberType::parse(descr).ok_or_else(|| HeaderError::Type(descr.escape_default().to_string()))?;
    // With at most one axis longer than 1 both orders are the same.
    if fortran && shape.iter().filter(|&&extent| extent != 1).count() > 1 {
        return Err(HeaderError::FortranOrder);
    }
    let info = ArrayInfo { ty, shape };
    let too_large = || HeaderError::Damaged(format!("shape {:?} is too large", info.shape));
    info.size_bytes().filter(|&size| size <= i64::MAX as u64).ok_or_else(too_large)?;
    Ok(info)
}

/// Reads the few Python literals that a header is made of.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn expect(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (string, rest) = rest.get(1..)?.split_once(quote)?;
        if string.contains('\\') {
            return None;
        }
        self.rest = rest;
        Some(string)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        self.expect("(")?;
        let mut extents = Vec::new();
        while self.expect(")").is_none() {
            if extents.len() == MAX_RANK {
                return None;
            }
            let rest = self.rest.trim_start();
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, rest) = rest.split_at(n_digits);
            extents.push(digits.parse().ok()?);
            self.rest = rest;
            if self.expect(",").is_none() {
                self.expect(")")?;
                break;
            }
        }
        Some(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ArrayInfo {
        parse(text).unwrap()
    }

    #[test]
    fn headers_of_numpy_are_read() {
        let info = parsed("{'descr': '<f4', 'fortran_order': False, 'shape': (18519, 11), }      \n");
        assert_eq!(info, ArrayInfo { ty: NumberType::F32, shape: vec![18519, 11] });
        assert_eq!(parsed("{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }\n").shape, [3]);
        assert_eq!(parsed("{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n").shape, [0usize; 0]);
        assert_eq!(parsed("{\"shape\":(2,2),\"descr\":\"<u1\",\"fortran_order\":False}").ty, NumberType::U8);
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [vec![], vec![7], vec![10_000, 11], vec![1, 2, 3, 4]] {
            let info = ArrayInfo { ty: NumberType::I16, shape };
            let bytes = write(&info);
            assert_eq!(bytes.len() % 64, 0);
            let (read_back, len) = read(&mut &bytes[..]).unwrap();
            assert_eq!((read_back, len), (info, bytes.len() as u64));
        }
    }

    #[test]
    fn fortran_order_counts_only_where_it_matters() {
        let text = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}");
        assert!(matches!(parse(&text("(2, 3)")), Err(HeaderError::FortranOrder)));
        assert_eq!(parsed(&text("(5, 1)")).shape, [5, 1]);
    }

    #[test]
    fn other_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } trailing",
        ] {
            assert!(matches!(parse(text), Err(HeaderError::Damaged(_))), "{text}");
        }
        for ty in ["'>f4'", "'|O'", "'<c8'", "[('a', '<f4')]"] {
            let text = format!("{{'descr': {ty}, 'fortran_order': False, 'shape': (1,), }}");
            assert!(matches!(parse(&text), Err(HeaderError::Type(_))), "{text}");
        }
    }
}
