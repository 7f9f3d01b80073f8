//! The graph intermediate representation of qailc.
//!
//! A [`Graph`] is a set of [`Node`]s joined by wires. Every node applies one
//! [`Op`] and defines one or more values; a [`ValueId`] names one of them.
//! Constants live beside the graph and are shared, so cloning a graph is cheap.
//!
//! - [`text`] prints a graph as `.qir` and reads it back,
//! - [`verify()`] states what a well-formed graph is,
//! - [`interp`] says what a graph means: a scalar executor, the judge of every
//!   other executor in the project and never the judged,
//! - [`fixed`] holds the one integer multiplier that requantization uses.

mod consts;
pub mod fixed;
mod graph;
mod op;
mod ty;

pub use consts::{ConstData, ConstError, ConstId, ConstSource, Constant};
pub use graph::{Graph, Node, NodeId, Origin, Output, ValueId};
pub use op::{
    Binary, BinaryFn, Cast, Concat, Const, Dequantize, Expand, FakeQuant, Input, Linear, LinearWq, Lookup,
    MatMul, Op, QLinear, Quantize, Reduce, ReduceFn, Requantize, Reshape, Slice, SliceAxis, Transpose, TypeError,
    Unary, UnaryFn,
};
pub use ty::{DType, Elem, QuantScheme, Shape, TensorType};
