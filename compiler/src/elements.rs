//! The elements of one input or output of a session, in the type it asks for.
//!
//! Recorded numbers and samples of a graph both become what a session takes
//! here, and what a session gives lands here: one place decides about types. A
//! number that a type cannot hold is an error, never rounded or wrapped.

use qail_ir::interp::{Data, Tensor};
use qail_runtime::{PortInfo, Storage, TensorView, TensorViewMut};
use serde::Serialize;

use crate::data::{DataError, NpzWriter, StepReader};

/// Elements, row-major.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Elements {
    /// Floats.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// Bytes: camera images, and truth values.
    U8(Vec<u8>),
    /// 64-bit integers: indices.
    I64(Vec<i64>),
}

impl Elements {
    /// Room for one value of an input or output, all zero; `None` for codes,
    /// which are not handed over.
    pub fn zeros(port: &PortInfo) -> Option<Self> {
        let n = port.elements();
        match port.storage {
            Storage::F32 => Some(Self::F32(vec![0.0; n])),
            Storage::I32 => Some(Self::I32(vec![0; n])),
            Storage::U8 => Some(Self::U8(vec![0; n])),
            Storage::I64 => Some(Self::I64(vec![0; n])),
            Storage::Unspecified | Storage::I8 | Storage::I16 => None,
        }
    }

    /// Takes over the next recorded step.
    ///
    /// # Errors
    /// As [`StepReader::next`], and for integers as [`StepReader::next_ints`].
    pub fn read(&mut self, reader: &mut StepReader) -> Result<(), DataError> {
        if let Self::F32(elements) = self {
            elements.clear();
            return reader.next(1, elements).map(|_| ());
        }
        let (lo, hi) = match self {
            Self::U8(_) => (0, u8::MAX.into()),
            Self::I32(_) => (i32::MIN.into(), i32::MAX.into()),
            Self::F32(_) | Self::I64(_) => (i64::MIN, i64::MAX),
        };
        let mut numbers = Vec::new();
        reader.next_ints(1, lo..=hi, &mut numbers)?;
        self.set_ints(&numbers);
        Ok(())
    }

    /// Takes over a value of a graph; false if its elements are of another kind
    /// or out of range.
    #[must_use]
    pub fn set(&mut self, tensor: &Tensor) -> bool {
        match (self, &tensor.data) {
            (Self::F32(elements), Data::F32(given)) => {
                elements.clone_from(given);
                true
            }
            (Self::F32(_), _) | (_, Data::F32(_) | Data::F64(_)) => false,
            (integers, Data::Int(given)) => integers.set_ints(given),
        }
    }

    /// Takes over plain numbers; false if the type cannot hold one of them.
    #[must_use]
    pub fn set_f32(&mut self, given: &[f32]) -> bool {
        if let Self::F32(elements) = self {
            elements.clear();
            elements.extend_from_slice(given);
            return true;
        }
        // Between these bounds the conversion is exact for whole numbers.
        let whole = |x: &f32| x.fract() == 0.0 && x.abs() < 9.0e18;
        given.iter().all(whole) && self.set_ints(&given.iter().map(|&x| x as i64).collect::<Vec<_>>())
    }

    /// False if there is a number that the type cannot hold.
    fn set_ints(&mut self, given: &[i64]) -> bool {
        match self {
            Self::F32(_) => false,
            Self::I32(elements) => convert(given, elements),
            Self::U8(elements) => convert(given, elements),
            Self::I64(elements) => convert(given, elements),
        }
    }

    /// Adds elements of the same type behind these; others are left out.
    pub fn append(&mut self, more: &Self) {
        match (self, more) {
            (Self::F32(all), Self::F32(more)) => all.extend(more),
            (Self::I32(all), Self::I32(more)) => all.extend(more),
            (Self::U8(all), Self::U8(more)) => all.extend(more),
            (Self::I64(all), Self::I64(more)) => all.extend(more),
            (Self::F32(_) | Self::I32(_) | Self::U8(_) | Self::I64(_), _) => {}
        }
    }

    /// Drops the elements and keeps the type.
    pub fn clear(&mut self) {
        match self {
            Self::F32(x) => x.clear(),
            Self::I32(x) => x.clear(),
            Self::U8(x) => x.clear(),
            Self::I64(x) => x.clear(),
        }
    }

    /// As an input of a session.
    pub fn view(&self) -> TensorView<'_> {
        match self {
            Self::F32(x) => TensorView::F32(x),
            Self::I32(x) => TensorView::I32(x),
            Self::U8(x) => TensorView::U8(x),
            Self::I64(x) => TensorView::I64(x),
        }
    }

    /// As room for an output of a session.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        match self {
            Self::F32(x) => TensorViewMut::F32(x),
            Self::I32(x) => TensorViewMut::I32(x),
            Self::U8(x) => TensorViewMut::U8(x),
            Self::I64(x) => TensorViewMut::I64(x),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every element as `f64`: exact except for `i64` beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.iter().map(|&x| x.into()).collect(),
            Self::I32(x) => x.iter().map(|&x| x.into()).collect(),
            Self::U8(x) => x.iter().map(|&x| x.into()).collect(),
            Self::I64(x) => x.iter().map(|&x| x as f64).collect(),
        }
    }

    /// Every element as text, in its shortest form that reads back.
    pub fn to_text(&self) -> Vec<String> {
        match self {
            Self::F32(x) => x.iter().map(f32::to_string).collect(),
            Self::I32(x) => x.iter().map(i32::to_string).collect(),
            Self::U8(x) => x.iter().map(u8::to_string).collect(),
            Self::I64(x) => x.iter().map(i64::to_string).collect(),
        }
    }

    /// Adds these elements to a file, in their own type.
    ///
    /// # Errors
    /// As [`NpzWriter::add`].
    pub fn write(&self, writer: &mut NpzWriter, key: &str, shape: &[usize]) -> Result<(), DataError> {
        match self {
            Self::F32(x) => writer.add(key, shape, x),
            Self::I32(x) => writer.add(key, shape, x),
            Self::U8(x) => writer.add(key, shape, x),
            Self::I64(x) => writer.add(key, shape, x),
        }
    }
}

/// False, and only what came before, at the first number that does not fit.
fn convert<T: TryFrom<i64>>(given: &[i64], elements: &mut Vec<T>) -> bool {
    elements.clear();
    elements.extend(given.iter().map_while(|&x| T::try_from(x).ok()));
    elements.len() == given.len()
}

#[cfg(test)]
mod tests {
    use qail_ir::{DType, TensorType};

    use super::*;

    #[test]
    fn a_byte_holds_no_300() {
        let tensor = |numbers: &[i64]| Tensor::ints(TensorType::plain(DType::I64, [2]), numbers.to_vec());
        let mut bytes = Elements::U8(Vec::new());
        assert!(bytes.set(&tensor(&[0, 255])));
        assert_eq!(bytes, Elements::U8(vec![0, 255]));
        assert!(!bytes.set(&tensor(&[0, 300])));
        assert!(bytes.set_f32(&[255.0, 0.0]) && !bytes.set_f32(&[0.5]) && !bytes.set_f32(&[-1.0]));
        assert!(!Elements::F32(Vec::new()).set(&tensor(&[0, 1])), "integers are no floats");
    }
}
