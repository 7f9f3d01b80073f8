//! ONNX messages, written by hand: the fields that the compiler reads or writes.
//!
//! Field numbers are those of `onnx.proto`. Fields that only carry prose
//! (documentation, stack traces) are left out, so that they are skipped and
//! not kept. Enumerations are plain `i32`: a number from a newer version must
//! be refused with a message, not break the decoder. `raw_data` is [`Bytes`],
//! so that decoding a mapped file borrows the weights instead of copying them.

use prost::bytes::Bytes;

/// A model: a graph, the operator sets it uses, and where it comes from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// Version of the file format.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// Name of the tool that wrote the file.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// Version of that tool.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// Reverse domain name of the model's owner.
    #[prost(string, tag = "4")]
    pub domain: String,
    /// Version of the model itself.
    #[prost(int64, tag = "5")]
    pub model_version: i64,
    /// Prose.
    #[prost(string, tag = "6")]
    pub doc_string: String,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Operator sets.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Key-value pairs of the user.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Functions defined in the model.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

/// A set of operators and its version.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OperatorSetIdProto {
    /// Empty for the ONNX standard.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A key and a value.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StringStringEntryProto {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A function defined in the model; known only to be refused.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FunctionProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Domain.
    #[prost(string, tag = "10")]
    pub domain: String,
}

/// Nodes, constants, inputs and outputs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// Operations.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Prose.
    #[prost(string, tag = "10")]
    pub doc_string: String,
    /// Inputs; before format version 4 the constants are among them.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Types that the exporter declares for other tensors. Never trusted.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// Sparse constants; known only to be refused.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Names of the operands; empty where one is left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the results.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name, often empty.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Domain of the operator; empty for the ONNX standard.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A named attribute of an operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A number.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// An integer.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// Text.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<Bytes>,
    /// A tensor.
    #[prost(message, optional, boxed, tag = "5")]
    pub t: Option<Box<TensorProto>>,
    /// A graph.
    #[prost(message, optional, boxed, tag = "6")]
    pub g: Option<Box<GraphProto>>,
    /// Numbers.
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    /// Integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// Texts.
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<Bytes>,
    /// Tensors.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// Graphs.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// Which field holds the value: see [`attribute_type`].
    #[prost(int32, tag = "20")]
    pub r#type: i32,
    /// Name of an attribute of the enclosing function.
    #[prost(string, tag = "21")]
    pub ref_attr_name: String,
    /// A sparse tensor; known only to be refused.
    #[prost(message, optional, boxed, tag = "22")]
    pub sparse_tensor: Option<Box<SparseTensorProto>>,
}

/// Values of [`AttributeProto::type`](AttributeProto).
pub mod attribute_type {
    /// `f`.
    pub const FLOAT: i32 = 1;
    /// `i`.
    pub const INT: i32 = 2;
    /// `s`.
    pub const STRING: i32 = 3;
    /// `t`.
    pub const TENSOR: i32 = 4;
    /// `g`.
    pub const GRAPH: i32 = 5;
    /// `floats`.
    pub const FLOATS: i32 = 6;
    /// `ints`.
    pub const INTS: i32 = 7;
    /// `strings`.
    pub const STRINGS: i32 = 8;
}

impl AttributeProto {
    /// An attribute that is a number.
    pub fn float(name: impl Into<String>, f: f32) -> Self {
        Self { name: name.into(), f: Some(f), r#type: attribute_type::FLOAT, ..Self::default() }
    }

    /// An attribute that is an integer.
    pub fn int(name: impl Into<String>, i: i64) -> Self {
        Self { name: name.into(), i: Some(i), r#type: attribute_type::INT, ..Self::default() }
    }

    /// An attribute that is text.
    pub fn string(name: impl Into<String>, s: impl Into<String>) -> Self {
        let s = Some(Bytes::from(s.into()));
        Self { name: name.into(), s, r#type: attribute_type::STRING, ..Self::default() }
    }

    /// An attribute that is a list of numbers.
    pub fn floats(name: impl Into<String>, floats: impl Into<Vec<f32>>) -> Self {
        Self { name: name.into(), floats: floats.into(), r#type: attribute_type::FLOATS, ..Self::default() }
    }

    /// An attribute that is a list of integers.
    pub fn ints(name: impl Into<String>, ints: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), ints: ints.into(), r#type: attribute_type::INTS, ..Self::default() }
    }

    /// An attribute that is a tensor.
    pub fn tensor(name: impl Into<String>, t: TensorProto) -> Self {
        Self { name: name.into(), t: Some(Box::new(t)), r#type: attribute_type::TENSOR, ..Self::default() }
    }
}

/// A constant tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// Extent of every axis.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// Element type: see [`data_type`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Elements of type `float`.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Elements of the integer types of up to 32 bits, and the bits of the 16-bit floats.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Elements of type `string`.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<Bytes>,
    /// Elements of type `int64`.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// Name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Elements in row-major order, little-endian.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    /// Elements of type `double`.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// Elements of the unsigned types of 32 and 64 bits.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Keys `location`, `offset`, `length` of a file beside the model.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 1 if the elements lie in that file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

impl TensorProto {
    /// A tensor given by its bytes, row-major and little-endian.
    pub fn raw(name: impl Into<String>, data_type: i32, dims: impl Into<Vec<i64>>, bytes: impl Into<Bytes>) -> Self {
        Self { name: name.into(), data_type, dims: dims.into(), raw_data: Some(bytes.into()), ..Self::default() }
    }

    /// A tensor of `f32` elements.
    pub fn f32(name: impl Into<String>, dims: impl Into<Vec<i64>>, elements: &[f32]) -> Self {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::raw(name, data_type::FLOAT, dims, bytes)
    }

    /// A tensor of `f64` elements.
    pub fn f64(name: impl Into<String>, dims: impl Into<Vec<i64>>, elements: &[f64]) -> Self {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::raw(name, data_type::DOUBLE, dims, bytes)
    }

    /// A tensor of `i64` elements.
    pub fn i64(name: impl Into<String>, dims: impl Into<Vec<i64>>, elements: &[i64]) -> Self {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::raw(name, data_type::INT64, dims, bytes)
    }
}

/// Values of [`TensorProto::data_type`](TensorProto) and of element types.
pub mod data_type {
    /// `f32`.
    pub const FLOAT: i32 = 1;
    /// `u8`.
    pub const UINT8: i32 = 2;
    /// `i8`.
    pub const INT8: i32 = 3;
    /// `u16`.
    pub const UINT16: i32 = 4;
    /// `i16`.
    pub const INT16: i32 = 5;
    /// `i32`.
    pub const INT32: i32 = 6;
    /// `i64`.
    pub const INT64: i32 = 7;
    /// Text.
    pub const STRING: i32 = 8;
    /// Truth value, one byte.
    pub const BOOL: i32 = 9;
    /// IEEE 754 binary16.
    pub const FLOAT16: i32 = 10;
    /// `f64`.
    pub const DOUBLE: i32 = 11;
    /// `u32`.
    pub const UINT32: i32 = 12;
    /// `u64`.
    pub const UINT64: i32 = 13;
    /// The upper half of an `f32`.
    pub const BFLOAT16: i32 = 16;
    /// Unsigned 4-bit integer, two a byte, the first one in the low half.
    pub const UINT4: i32 = 21;
    /// Signed 4-bit integer, two a byte, the first one in the low half.
    pub const INT4: i32 = 22;
    /// Unsigned, 2 bits, four in a byte.
    pub const UINT2: i32 = 25;
    /// Signed, 2 bits, four in a byte.
    pub const INT2: i32 = 26;

    /// Name of an element type, as the ONNX standard writes it.
    pub fn name(data_type: i32) -> String {
        let name = match data_type {
            FLOAT => "float",
            UINT8 => "uint8",
            INT8 => "int8",
            UINT16 => "uint16",
            INT16 => "int16",
            INT32 => "int32",
            INT64 => "int64",
            STRING => "string",
            BOOL => "bool",
            FLOAT16 => "float16",
            DOUBLE => "double",
            UINT32 => "uint32",
            UINT64 => "uint64",
            14 => "complex64",
            15 => "complex128",
            BFLOAT16 => "bfloat16",
            17..=20 => "float8",
            UINT4 => "uint4",
            INT4 => "int4",
            23 => "float4e2m1",
            24 => "float8e8m0",
            UINT2 => "uint2",
            INT2 => "int2",
            _ => return format!("type {data_type}"),
        };
        name.to_owned()
    }
}

/// A constant with few elements that are not zero; known only to be refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SparseTensorProto {
    /// The elements, and the name.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
}

/// Name and type of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

impl ValueInfoProto {
    /// A tensor with fixed extents.
    pub fn tensor(name: impl Into<String>, elem_type: i32, dims: &[i64]) -> Self {
        let dims: Vec<Dim> = dims.iter().map(|&dim| Dim::Value(dim)).collect();
        Self::with_dims(name, elem_type, dims)
    }

    /// A tensor with fixed and named extents.
    pub fn with_dims(name: impl Into<String>, elem_type: i32, dims: impl IntoIterator<Item = Dim>) -> Self {
        let dim = dims.into_iter().map(|dim| Dimension { value: Some(dim) }).collect();
        let tensor = TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) };
        Self { name: name.into(), r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor)) }) }
    }
}

/// Type of a value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// Which kind of value.
    #[prost(oneof = "TypeValue", tags = "1, 4, 5, 7, 8, 9")]
    pub value: Option<TypeValue>,
}

/// Kinds of values. All but tensors are known only to be refused.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum TypeValue {
    /// A tensor.
    #[prost(message, tag = "1")]
    Tensor(TensorTypeProto),
    /// A sequence of values.
    #[prost(message, tag = "4")]
    Sequence(OtherTypeProto),
    /// A map.
    #[prost(message, tag = "5")]
    Map(OtherTypeProto),
    /// A type of a foreign library.
    #[prost(message, tag = "7")]
    Opaque(OtherTypeProto),
    /// A sparse tensor.
    #[prost(message, tag = "8")]
    Sparse(OtherTypeProto),
    /// A value that may be missing.
    #[prost(message, tag = "9")]
    Optional(OtherTypeProto),
}

/// A type whose content does not matter.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OtherTypeProto {}

/// Type of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorTypeProto {
    /// Element type: see [`data_type`].
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Extents, if known.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// Extents of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// One entry an axis.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// Extent of one axis.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    /// A number, a name, or nothing.
    #[prost(oneof = "Dim", tags = "1, 2")]
    pub value: Option<Dim>,
}

/// What is known of an extent.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Dim {
    /// A number.
    #[prost(int64, tag = "1")]
    Value(i64),
    /// A name that stands for a number.
    #[prost(string, tag = "2")]
    Param(String),
}
