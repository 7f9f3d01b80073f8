//! The manifest of a `.qail` file: protobuf messages, written by prost.
//!
//! A manifest describes one or more [`EntryPoint`]s. Each is a list of
//! [`Step`]s over tensors that live at fixed places of a few arenas. A step says
//! *what* is computed ([`step::Op`]); a device step also carries the
//! [`Dispatch`] of the WGSL kernel that computes it on a GPU. So a CPU session
//! reads the operations and a GPU session the dispatches, and both mean the
//! same. Field numbers are never reused.

mod codes;
mod control;
mod rope;
mod rows;
mod select;
pub mod step;
mod window;

pub use control::{CHUNK_FEATURE, Chunk, Control, MAX_ENSEMBLE_EXPONENT};

/// Steps of a graph may run several times, see [`step::Repeat`].
pub const REPEAT_FEATURE: &str = "repeat";
/// Integer products in groups of channels, see [`step::QGroups`].
pub const GROUPS_FEATURE: &str = "groups";

/// Root of the manifest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Manifest {
    /// Oldest reader version that understands the file.
    #[prost(uint32, tag = "1")]
    pub min_reader: u32,
    /// Features that a reader must know by name; an unknown one refuses the file.
    #[prost(string, repeated, tag = "2")]
    pub required_features: Vec<String>,
    /// Name of the model.
    #[prost(string, tag = "3")]
    pub name: String,
    /// What was asked for and what was done, for example `w4a4+e8+o16`.
    #[prost(string, tag = "4")]
    pub precision: String,
    /// Byte ranges of the file: weights, tables, scales, shaders.
    #[prost(message, repeated, tag = "5")]
    pub sections: Vec<Section>,
    /// Scratch memory, allocated once at load.
    #[prost(message, repeated, tag = "6")]
    pub arenas: Vec<Arena>,
    /// Every intermediate value, input and output.
    #[prost(message, repeated, tag = "7")]
    pub tensors: Vec<Tensor>,
    /// GPU kernels, shared by the steps that use the same text.
    #[prost(message, repeated, tag = "8")]
    pub kernels: Vec<Kernel>,
    /// What can be called. The first one is the default.
    #[prost(message, repeated, tag = "9")]
    pub entries: Vec<EntryPoint>,
    /// Where the file comes from.
    #[prost(message, optional, tag = "10")]
    pub provenance: Option<Provenance>,
    /// What became of every layer.
    #[prost(message, repeated, tag = "11")]
    pub layers: Vec<Layer>,
    /// Key-value pairs of the source model.
    #[prost(btree_map = "string, string", tag = "12")]
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Rate of the control loop in Hz, 0 if unknown.
    #[prost(double, tag = "13")]
    pub control_rate_hz: f64,
    /// Named figures measured at compile time, for example `action_mse`.
    #[prost(btree_map = "string, double", tag = "14")]
    pub evaluation: std::collections::BTreeMap<String, f64>,
    /// What a control loop makes of the outputs, if anything was said about it.
    #[prost(message, optional, tag = "17")]
    pub control: Option<Control>,
}

impl Manifest {
    /// True if a reader has to know the feature.
    pub fn requires(&self, feature: &str) -> bool {
        self.required_features.iter().any(|required| required == feature)
    }
}

/// A checked byte range of the file, 64-byte aligned.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Section {
    /// Name, unique in the file: `fc1.weight`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How the bytes are laid out.
    #[prost(enumeration = "Layout", tag = "2")]
    pub layout: i32,
    /// Byte offset from the start of the file.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Length in bytes, without padding.
    #[prost(uint64, tag = "4")]
    pub len: u64,
    /// SHA-256 of the bytes.
    #[prost(bytes = "vec", tag = "5")]
    pub sha256: Vec<u8>,
}

/// Layout ids. Packed layouts are defined in `pack.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Layout {
    /// Not a valid layout.
    Unspecified = 0,
    /// `f32`, little-endian.
    F32 = 1,
    /// `f64`, little-endian.
    F64 = 2,
    /// `i32`, little-endian.
    I32 = 3,
    /// `i8`, one byte an element: tables in storage form.
    I8 = 4,
    /// UTF-8 text of a WGSL module.
    Wgsl = 5,
    /// Signed bytes in tiles of 8 channels by 16 rows of K.
    W8Tile8x16 = 6,
    /// Signed nibbles in tiles of 8 channels by 32 rows of K.
    W4Tile8x32 = 7,
    /// `f32` matrix `[K][N rounded up to 8]`.
    F32Rows8 = 8,
}

/// Scratch memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Arena {
    /// Size in bytes, a multiple of 256.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Where it lives.
    #[prost(enumeration = "Place", tag = "2")]
    pub place: i32,
}

/// Who computes a step, or where an arena lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Place {
    /// Host code on every device: entry and exit of quantized regions.
    Host = 0,
    /// The CPU kernels of a CPU session, shaders of a GPU session.
    Device = 1,
}

/// A value at a fixed place of an arena.
///
/// Rows are `stride` elements apart; elements between the last axis and the
/// stride are padding that only zero weights meet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Tensor {
    /// Name of the value in the graph.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How an element is stored.
    #[prost(enumeration = "Storage", tag = "2")]
    pub storage: i32,
    /// Logical shape, outermost axis first.
    #[prost(uint64, repeated, tag = "3")]
    pub shape: Vec<u64>,
    /// Elements from one row (all axes but the last) to the next.
    #[prost(uint64, tag = "4")]
    pub stride: u64,
    /// Index of the arena.
    #[prost(uint32, tag = "5")]
    pub arena: u32,
    /// Byte offset in the arena, a multiple of 256.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Size in bytes, padding included, a multiple of 4.
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// Code minus stored byte: 128 for unsigned 8-bit codes, else 0.
    #[prost(int32, tag = "8")]
    pub code_offset: i32,
}

/// How an element of a [`Tensor`] is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Storage {
    /// Not a valid storage.
    Unspecified = 0,
    /// `f32`.
    F32 = 1,
    /// `i32`: accumulators.
    I32 = 2,
    /// One signed byte a code; the code is the byte plus `code_offset`.
    I8 = 3,
    /// A 16-bit code, two bytes an element. A CPU session stores `i16` in place;
    /// a GPU session stores each row as two planes of `stride` bytes, first
    /// `hi = (q + 128) >> 8`, then `lo = q - 256 * hi`.
    I16 = 4,
    /// Unsigned byte, plain numbers: camera images.
    U8 = 5,
    /// `i64`, plain numbers: indices.
    I64 = 6,
}

/// A list of steps that a session can run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntryPoint {
    /// Name, `main` for the only one.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Values that the caller gives.
    #[prost(message, repeated, tag = "2")]
    pub inputs: Vec<Port>,
    /// Values that the caller gets.
    #[prost(message, repeated, tag = "3")]
    pub outputs: Vec<Port>,
    /// Scalars that vary from step to step: position, valid length, timestep.
    #[prost(message, repeated, tag = "4")]
    pub args: Vec<StepArg>,
    /// What to do, in order.
    #[prost(message, repeated, tag = "5")]
    pub steps: Vec<Step>,
    /// Values that a run leaves for the next one.
    #[prost(message, repeated, tag = "6")]
    pub states: Vec<State>,
    /// Inputs that are standard normal noise: a session draws them unless the
    /// caller wants to give them.
    #[prost(message, repeated, tag = "7")]
    pub noise: Vec<Port>,
    /// Seed of the noise.
    #[prost(uint64, tag = "8")]
    pub seed: u64,
}

/// A value that is kept from run to run; zero at first and after a reset.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// Name of the input of the model that it was.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Index of the tensor, which no other value shares memory with.
    #[prost(uint32, tag = "2")]
    pub tensor: u32,
    /// Axis along which the elements of a batch lie.
    #[prost(uint32, optional, tag = "3")]
    pub element_axis: Option<u32>,
    /// Largest number that a run may begin with, for integers.
    #[prost(int64, optional, tag = "4")]
    pub limit: Option<i64>,
}

/// An input or output.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Port {
    /// Name that the caller uses.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Index of the tensor, in host memory.
    #[prost(uint32, tag = "2")]
    pub tensor: u32,
    /// Smallest allowed value an element of the last axis, or empty.
    #[prost(double, repeated, tag = "3")]
    pub lower: Vec<f64>,
    /// Largest allowed value an element of the last axis, or empty.
    #[prost(double, repeated, tag = "4")]
    pub upper: Vec<f64>,
}

/// A scalar argument of an entry point.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StepArg {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Smallest value.
    #[prost(int64, tag = "2")]
    pub min: i64,
    /// Largest value.
    #[prost(int64, tag = "3")]
    pub max: i64,
}

/// One computation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Step {
    /// Name of the graph node.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Who computes it.
    #[prost(enumeration = "Place", tag = "2")]
    pub place: i32,
    /// How a GPU computes it; absent for host steps.
    #[prost(message, optional, tag = "3")]
    pub dispatch: Option<Dispatch>,
    /// What is computed. None if the file uses an operation of a later version.
    #[prost(
        oneof = "step::Op",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37"
    )]
    pub op: Option<step::Op>,
}

/// A WGSL module with one entry point.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Kernel {
    /// Name, for example `qlinear_w4a8`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Section with the text.
    #[prost(uint32, tag = "2")]
    pub section: u32,
    /// Name of the entry point.
    #[prost(string, tag = "3")]
    pub entry: String,
    /// Device features that the variant needs; the base variant needs none.
    #[prost(string, repeated, tag = "4")]
    pub features: Vec<String>,
}

/// How a GPU computes a step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dispatch {
    /// Index of the kernel.
    #[prost(uint32, tag = "1")]
    pub kernel: u32,
    /// Number of workgroups.
    #[prost(uint32, repeated, tag = "2")]
    pub workgroups: Vec<u32>,
    /// Binding `i` of group 0.
    #[prost(message, repeated, tag = "3")]
    pub bindings: Vec<Binding>,
}

/// A buffer that a kernel sees.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Binding {
    /// Which.
    #[prost(oneof = "BindingSource", tags = "1, 2")]
    pub source: Option<BindingSource>,
    /// True if the kernel writes it.
    #[prost(bool, tag = "3")]
    pub write: bool,
}

/// What stands behind a [`Binding`].
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum BindingSource {
    /// A tensor.
    #[prost(uint32, tag = "1")]
    Tensor(u32),
    /// A section.
    #[prost(uint32, tag = "2")]
    Section(u32),
}

/// Where a file comes from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Provenance {
    /// Version of the compiler.
    #[prost(string, tag = "1")]
    pub version: String,
    /// SHA-256 of the model and its external data.
    #[prost(string, tag = "2")]
    pub model_sha256: String,
    /// SHA-256 of the demonstrations, empty without.
    #[prost(string, tag = "3")]
    pub data_sha256: String,
    /// Flags that change the result, in canonical order.
    #[prost(string, repeated, tag = "4")]
    pub flags: Vec<String>,
    /// Seed.
    #[prost(uint64, tag = "5")]
    pub seed: u64,
    /// Method: `ptq`, `qail`, ...
    #[prost(string, tag = "6")]
    pub method: String,
    /// True if nothing depended on the clock.
    #[prost(bool, tag = "7")]
    pub reproducible: bool,
    /// Instruction-set class of the compiling machine, where results depend on it.
    #[prost(string, tag = "8")]
    pub isa: String,
}

/// What became of a layer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Layer {
    /// Name in the source model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Operation.
    #[prost(string, tag = "2")]
    pub op: String,
    /// Bits of a weight, 32 for float, 0 without weights.
    #[prost(uint32, tag = "3")]
    pub weight_bits: u32,
    /// Bits of an input activation, 32 for float.
    #[prost(uint32, tag = "4")]
    pub activation_bits: u32,
    /// Number of weights.
    #[prost(uint64, tag = "5")]
    pub n_weights: u64,
    /// Bytes as f32.
    #[prost(uint64, tag = "6")]
    pub size_before: u64,
    /// Bytes in this file.
    #[prost(uint64, tag = "7")]
    pub size_after: u64,
    /// Why it is not quantized, empty if it is.
    #[prost(string, tag = "8")]
    pub reason: String,
}
