//! Names of element types, and elements of constants.

use crate::{ConstData, Constant, DType, Elem, QuantScheme, TensorType};

use super::error::ParseErrorKind;

/// The element type of a name: `f32` or `qs4`.
pub(super) fn elem(name: &str) -> Option<Elem> {
    if let Some(dtype) = DType::ALL.into_iter().find(|dtype| dtype.name() == name) {
        return Some(Elem::Plain(dtype));
    }
    scheme(name.strip_prefix('q')?).map(Elem::Code)
}

/// The scheme of a name: `s4`, `u8`.
pub(super) fn scheme(name: &str) -> Option<QuantScheme> {
    let (signed, bits) = match name.split_at_checked(1)? {
        ("s", bits) => (true, bits),
        ("u", bits) => (false, bits),
        _ => return None,
    };
    let bits = match bits {
        "2" => 2,
        "3" => 3,
        "4" => 4,
        "8" => 8,
        "16" => 16,
        _ => return None,
    };
    Some(QuantScheme { bits, signed })
}

/// A constant from a list of numbers; the bad one is named by its index.
pub(super) fn constant(ty: &TensorType, elements: &[&str]) -> Result<Constant, (usize, ParseErrorKind)> {
    let bad = |i: usize| {
        let found = elements.get(i).copied().unwrap_or("");
        (i, ParseErrorKind::expected(format!("an element of {}", ty.elem), found))
    };
    let ints = |lo: i64, hi: i64| {
        let parse = |(i, text): (usize, &&str)| {
            text.parse::<i64>().ok().filter(|x| (lo..=hi).contains(x)).ok_or_else(|| bad(i))
        };
        let parsed: Result<Vec<i64>, _> = elements.iter().enumerate().map(parse).collect();
        parsed.map(|parsed| Constant::ints(ty.clone(), &parsed))
    };
    match ty.elem {
        Elem::Plain(DType::Bool) => ints(0, 1),
        Elem::Plain(DType::U8) => ints(0, 255),
        Elem::Plain(DType::I32) => ints(i64::from(i32::MIN), i64::from(i32::MAX)),
        Elem::Plain(DType::I64) => ints(i64::MIN, i64::MAX),
        Elem::Code(scheme) => ints(i64::from(scheme.lo()), i64::from(scheme.hi())),
        Elem::Plain(DType::F32) => {
            let mut bytes = Vec::with_capacity(elements.len().saturating_mul(4));
            for (i, text) in elements.iter().enumerate() {
                bytes.extend(f32_of(text).ok_or_else(|| bad(i))?.to_le_bytes());
            }
            Ok(Constant { ty: ty.clone(), data: ConstData::Bytes(bytes.into()) })
        }
        Elem::Plain(DType::F64) => {
            let mut bytes = Vec::with_capacity(elements.len().saturating_mul(8));
            for (i, text) in elements.iter().enumerate() {
                bytes.extend(f64_of(text).ok_or_else(|| bad(i))?.to_le_bytes());
            }
            Ok(Constant { ty: ty.clone(), data: ConstData::Bytes(bytes.into()) })
        }
    }
}

/// A number in the spelling of the printer: `infinity` and `+1` are not, nor is
/// what rounds to infinity, such as `1e999`.
pub(super) fn f32_of(text: &str) -> Option<f32> {
    let x: f32 = is_number(text).then(|| text.parse().ok()).flatten()?;
    (x.is_finite() || is_special(text)).then_some(x)
}

/// As [`f32_of`].
pub(super) fn f64_of(text: &str) -> Option<f64> {
    let x: f64 = is_number(text).then(|| text.parse().ok()).flatten()?;
    (x.is_finite() || is_special(text)).then_some(x)
}

/// Rust also reads `.5`, `+inf`, `infinity` and `NaN`; one spelling is enough.
fn is_number(text: &str) -> bool {
    is_special(text) || text.strip_prefix('-').unwrap_or(text).starts_with(|c: char| c.is_ascii_digit())
}

fn is_special(text: &str) -> bool {
    matches!(text, "inf" | "-inf" | "nan")
}

/// The elements of a constant as text, or `None` if reading that text back
/// would not give the same bytes (codes out of range, NaN with a payload).
pub(super) fn elements(constant: &Constant) -> Option<Vec<String>> {
    let n = constant.ty.n_elements();
    let texts: Vec<String> = match constant.ty.elem {
        Elem::Plain(DType::F32) => constant.read_f32(0..n).ok()?.into_iter().map(super::function::float).collect(),
        Elem::Plain(DType::F64) => constant.read(0..n).ok()?.into_iter().map(super::function::float).collect(),
        Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => {
            constant.read_int(0..n).ok()?.into_iter().map(|x| x.to_string()).collect()
        }
    };
    let views: Vec<&str> = texts.iter().map(String::as_str).collect();
    let again = self::constant(&constant.ty, &views).ok()?;
    (again.read_bytes(0..n).ok()? == constant.read_bytes(0..n).ok()?).then_some(texts)
}
