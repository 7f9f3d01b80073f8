//! The graph intermediate representation of qailc.
//!
//! A [`Graph`] is a set of [`Node`]s joined by wires. Every node applies one
//! [`Op`] and defines one or more values; a [`ValueId`] names one of them.
//! Constants live beside the graph and are shared, so cloning a graph is cheap.
//!
//! - [`text`] prints a graph as `.qir` and reads it back,
//! - [`verify()`] states what a well-formed graph is,
//! - a [`State`] is handed from run to run, a [`Repeat`] runs a graph several times,
//! - [`interp`] says what a graph means: a scalar executor, the judge of every
//!   other executor in the project and never the judged,
//! - [`fixed`] holds the one integer multiplier that requantization uses.
//!
//! ```
//! use std::collections::BTreeMap;
//! use qail_ir::{interp, text, verify};
//!
//! let graph = text::parse("
//!     graph @policy(%obs: f32[1, 2]) -> (action = %act) {batch = 0} {
//!       %w   = const [1.0, -1.0, 0.5, 2.0] : f32[2, 2]
//!       %b   = const splat(0.25) : f32[2]
//!       %act = linear %obs, %w, %b {act = relu} : f32[1, 2]
//!     }
//! ")?;
//! verify(&graph)?;
//!
//! let obs = interp::Tensor::f32([1, 2], vec![2.0, 1.0]);
//! let outputs = interp::run(&graph, &BTreeMap::from([("obs".to_owned(), obs)]))?;
//! assert_eq!(outputs["action"].as_f32(), Some(&[2.75, 0.25][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod consts;
mod eq;
pub mod fixed;
mod graph;
pub mod interp;
mod op;
mod schedule;
pub mod text;
mod ty;
mod verify;

pub use consts::{Block, ConstData, ConstError, ConstId, ConstSource, Constant};
pub use graph::{Graph, Node, NodeId, Origin, Output, ValueId};
pub use op::{
    ArgReduce, Attention, Binary, BinaryFn, BinaryGrad, Cast, Compare, CompareFn, Concat, Const, CumSum, Dequantize,
    Expand, FakeQuant, FakeQuantGrad, Film, Gather, Grad, Input, Linear, LinearWq, Lookup, MatMul, Normalize, Op, QAdd,
    QLinear, QSum, Quantize, Reduce, ReduceFn, Requantize, Reshape, Rope, Scatter, ScatterFn, Slice, SliceAxis,
    SliceGrad, Softmax, TopK, TopKPart, Transpose, TypeError, Unary, UnaryFn, Unfold, UnfoldGrad, Where, Window, Wrt,
};
pub use schedule::{Carry, MAX_TURNS, Repeat, State};
pub use ty::{DType, Elem, QuantScheme, Shape, TensorType};
pub use verify::{VerifyError, verify, verify_node};
