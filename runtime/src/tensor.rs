//! Borrowed inputs and outputs of a run.

use qail_artifact::Storage;

/// The elements of an input, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorView<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// 32-bit integers.
    I32(&'a [i32]),
    /// Bytes: camera images.
    U8(&'a [u8]),
    /// 64-bit integers: indices.
    I64(&'a [i64]),
}

impl TensorView<'_> {
    /// Type of an element.
    pub fn storage(&self) -> Storage {
        match self {
            Self::F32(_) => Storage::F32,
            Self::I32(_) => Storage::I32,
            Self::U8(_) => Storage::U8,
            Self::I64(_) => Storage::I64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::I32(x) => x.len(),
            Self::U8(x) => x.len(),
            Self::I64(x) => x.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::I32(x) => bytemuck::cast_slice(x),
            Self::U8(x) => x,
            Self::I64(x) => bytemuck::cast_slice(x),
        }
    }
}

/// Room for the elements of an output, row-major.
#[derive(Debug, PartialEq)]
pub enum TensorViewMut<'a> {
    /// Floats.
    F32(&'a mut [f32]),
    /// 32-bit integers: accumulators.
    I32(&'a mut [i32]),
    /// Bytes.
    U8(&'a mut [u8]),
    /// Stored codes.
    I8(&'a mut [i8]),
    /// 64-bit integers.
    I64(&'a mut [i64]),
}

impl TensorViewMut<'_> {
    /// Type of an element.
    pub fn storage(&self) -> Storage {
        match self {
            Self::F32(_) => Storage::F32,
            Self::I32(_) => Storage::I32,
            Self::U8(_) => Storage::U8,
            Self::I8(_) => Storage::I8,
            Self::I64(_) => Storage::I64,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::I32(x) => x.len(),
            Self::U8(x) => x.len(),
            Self::I8(x) => x.len(),
            Self::I64(x) => x.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice_mut(x),
            Self::I32(x) => bytemuck::cast_slice_mut(x),
            Self::U8(x) => x,
            Self::I8(x) => bytemuck::cast_slice_mut(x),
            Self::I64(x) => bytemuck::cast_slice_mut(x),
        }
    }
}

/// An input or output of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct PortInfo {
    /// Name.
    pub name: String,
    /// Type of an element.
    pub storage: Storage,
    /// Extents, outermost axis first.
    pub shape: Vec<usize>,
    /// Smallest allowed value an element of the last axis, or empty.
    pub lower: Vec<f64>,
    /// Largest allowed value an element of the last axis, or empty.
    pub upper: Vec<f64>,
    pub(crate) tensor: usize,
}

impl PortInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
