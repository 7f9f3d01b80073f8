//! Types of the values that flow along the wires.

use std::fmt;

/// Extent of every axis, outermost first.
pub type Shape = Vec<usize>;

/// A plain element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// Truth value, one byte.
    Bool,
    /// Unsigned byte: camera images.
    U8,
    /// 32-bit signed integer: accumulators.
    I32,
    /// 64-bit signed integer: indices and shapes.
    I64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64: exit scales.
    F64,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 6] = [Self::Bool, Self::U8, Self::I32, Self::I64, Self::F32, Self::F64];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 => 1,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// True for [`DType::F32`] and [`DType::F64`].
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Width and sign of integer codes.
///
/// Scales and zero points are values in the graph, not part of the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QuantScheme {
    /// Width of one code: 2, 3, 4, 8 or 16.
    pub bits: u8,
    /// Signed codes (`-8..=7` for 4 bits) or unsigned (`0..=15`).
    pub signed: bool,
}

impl QuantScheme {
    /// Signed codes of `bits` bits.
    pub const fn signed(bits: u8) -> Self {
        Self { bits, signed: true }
    }

    /// Unsigned codes of `bits` bits.
    pub const fn unsigned(bits: u8) -> Self {
        Self { bits, signed: false }
    }

    /// Smallest code that the width can hold.
    pub fn lo(self) -> i32 {
        if self.signed { -(1 << (self.bits - 1)) } else { 0 }
    }

    /// Largest code that the width can hold.
    pub fn hi(self) -> i32 {
        if self.signed { (1 << (self.bits - 1)) - 1 } else { (1 << self.bits) - 1 }
    }

    /// Bytes that one code takes in a [`Constant`](crate::Constant).
    pub fn size_bytes(self) -> usize {
        if self.bits <= 8 { 1 } else { 2 }
    }
}

impl fmt::Display for QuantScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.signed { 's' } else { 'u' }, self.bits)
    }
}

/// Element type of a tensor: plain numbers or integer codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Plain numbers.
    Plain(DType),
    /// Integer codes of a quantized region.
    Code(QuantScheme),
}

impl Elem {
    /// Bytes that one element takes in a [`Constant`](crate::Constant).
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size_bytes(),
            Self::Code(scheme) => scheme.size_bytes(),
        }
    }
}

impl fmt::Display for Elem {
    /// Codes print with a leading `q`, so that `u8` bytes and `qu8` codes differ.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype}"),
            Self::Code(scheme) => write!(f, "q{scheme}"),
        }
    }
}

/// Element type and shape of one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub elem: Elem,
    /// Extent of every axis, outermost first.
    pub shape: Shape,
}

impl TensorType {
    /// A tensor of plain numbers.
    pub fn plain(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { elem: Elem::Plain(dtype), shape: shape.into() }
    }

    /// A tensor of `f32`.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self::plain(DType::F32, shape)
    }

    /// A tensor of codes.
    pub fn code(scheme: QuantScheme, shape: impl Into<Shape>) -> Self {
        Self { elem: Elem::Code(scheme), shape: shape.into() }
    }

    /// Number of elements; saturates instead of wrapping.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &extent| n.saturating_mul(extent))
    }

    /// The plain element type, if there is one.
    pub fn dtype(&self) -> Option<DType> {
        match self.elem {
            Elem::Plain(dtype) => Some(dtype),
            Elem::Code(_) => None,
        }
    }

    /// The scheme of the codes, if the tensor holds codes.
    pub fn scheme(&self) -> Option<QuantScheme> {
        match self.elem {
            Elem::Plain(_) => None,
            Elem::Code(scheme) => Some(scheme),
        }
    }

    /// True for a tensor of `f32`.
    pub fn is_f32(&self) -> bool {
        self.elem == Elem::Plain(DType::F32)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.elem, self.shape)
    }
}
