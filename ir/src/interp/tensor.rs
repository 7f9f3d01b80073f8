//! A value in memory: what flows along a wire when a graph runs.

use crate::{ConstError, Constant, DType, Elem, Shape, TensorType};

/// Elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Elements of [`DType::F32`].
    F32(Vec<f32>),
    /// Elements of [`DType::F64`].
    F64(Vec<f64>),
    /// Codes and elements of every integer type; truth values are 0 and 1.
    Int(Vec<i64>),
}

/// Elements and their type.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type and shape.
    pub ty: TensorType,
    /// The elements.
    pub data: Data,
}

/// Elements that do not match their type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Too few or too many.
    #[error("a tensor of type {ty} has {expected} elements, found {found}")]
    Count {
        /// The type.
        ty: TensorType,
        /// What the type says.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Floats for integers, or the other way round.
    #[error("a tensor of type {ty} cannot hold {found}")]
    Kind {
        /// The type.
        ty: TensorType,
        /// What there is.
        found: &'static str,
    },
    /// An integer outside of its type.
    #[error("element {index} is {value}, which is not a {elem}")]
    Range {
        /// Index of the element, row-major.
        index: usize,
        /// The element.
        value: i64,
        /// The type.
        elem: Elem,
    },
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::Int(x) => x.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No elements, of the kind that a type needs.
    pub(super) fn empty(elem: Elem) -> Self {
        match elem {
            Elem::Plain(DType::F32) => Self::F32(Vec::new()),
            Elem::Plain(DType::F64) => Self::F64(Vec::new()),
            Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => Self::Int(Vec::new()),
        }
    }
}

impl Tensor {
    /// A tensor of `f32`.
    pub fn f32(shape: impl Into<Shape>, elements: Vec<f32>) -> Self {
        Self { ty: TensorType::f32(shape), data: Data::F32(elements) }
    }

    /// A tensor of `f64`.
    pub fn f64(shape: impl Into<Shape>, elements: Vec<f64>) -> Self {
        Self { ty: TensorType::plain(DType::F64, shape), data: Data::F64(elements) }
    }

    /// A tensor of integers or codes.
    pub fn ints(ty: TensorType, elements: Vec<i64>) -> Self {
        Self { ty, data: Data::Int(elements) }
    }

    /// The elements of a constant, all of them.
    pub fn from_constant(constant: &Constant) -> Result<Self, ConstError> {
        let data = match constant.ty.elem {
            Elem::Plain(DType::F32) => Data::F32(constant.all_f32()?),
            Elem::Plain(DType::F64) => Data::F64(constant.all()?),
            Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64) | Elem::Code(_) => {
                Data::Int(constant.all_int()?)
            }
        };
        Ok(Self { ty: constant.ty.clone(), data })
    }

    /// A constant with these elements.
    pub fn to_constant(&self) -> Result<Constant, TensorError> {
        self.check()?;
        Ok(match &self.data {
            Data::F32(x) => Constant::f32(self.ty.shape.clone(), x),
            Data::F64(x) => Constant::f64(self.ty.shape.clone(), x),
            Data::Int(x) => Constant::ints(self.ty.clone(), x),
        })
    }

    /// The elements, if they are `f32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(x) => Some(x),
            Data::F64(_) | Data::Int(_) => None,
        }
    }

    /// The elements, if they are `f64`.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.data {
            Data::F64(x) => Some(x),
            Data::F32(_) | Data::Int(_) => None,
        }
    }

    /// The elements, if they are integers or codes.
    pub fn as_ints(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Int(x) => Some(x),
            Data::F32(_) | Data::F64(_) => None,
        }
    }

    /// Every element as `f64`: exact except for `i64` beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Data::F64(x) => x.clone(),
            Data::Int(x) => x.iter().map(|&x| x as f64).collect(),
        }
    }

    /// Checks that the elements match the type.
    pub fn check(&self) -> Result<(), TensorError> {
        let expected = self.ty.n_elements();
        if self.data.len() != expected {
            return Err(TensorError::Count { ty: self.ty.clone(), expected, found: self.data.len() });
        }
        let kind = |found| Err(TensorError::Kind { ty: self.ty.clone(), found });
        match (self.ty.elem, &self.data) {
            (Elem::Plain(DType::F32), Data::F32(_)) | (Elem::Plain(DType::F64), Data::F64(_)) => Ok(()),
            (Elem::Plain(DType::F32 | DType::F64), Data::Int(_)) => kind("integers"),
            (_, Data::F32(_)) => kind("f32"),
            (_, Data::F64(_)) => kind("f64"),
            (elem, Data::Int(x)) => {
                let (lo, hi) = int_range(elem);
                match x.iter().position(|x| !(lo..=hi).contains(x)) {
                    Some(index) => Err(TensorError::Range { index, value: x[index], elem }),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Smallest and largest element of an integer type.
pub(super) fn int_range(elem: Elem) -> (i64, i64) {
    match elem {
        Elem::Plain(DType::Bool) => (0, 1),
        Elem::Plain(DType::U8) => (0, 255),
        Elem::Plain(DType::I32) => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Elem::Plain(DType::I64 | DType::F32 | DType::F64) => (i64::MIN, i64::MAX),
        Elem::Code(scheme) => (i64::from(scheme.lo()), i64::from(scheme.hi())),
    }
}
