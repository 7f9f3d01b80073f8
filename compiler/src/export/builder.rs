//! Nodes and initializers of an ONNX graph under construction.

use std::collections::BTreeSet;

use super::ExportError;
use crate::frontend::proto::{AttributeProto, NodeProto, TensorProto, data_type};

/// Protobuf's limit is 2 GiB; some room for everything that is not a tensor.
const MAX_BYTES: u64 = (1 << 31) - (1 << 20);

/// A model larger than protobuf allows is refused before it is built.
pub(super) fn check_size(n_bytes: u64) -> Result<(), ExportError> {
    if n_bytes > MAX_BYTES { Err(ExportError::TooLarge { n_bytes, limit: MAX_BYTES }) } else { Ok(()) }
}

/// A tensor of the ONNX graph: its name and element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) ty: i32,
}

impl Tensor {
    pub(super) fn new(name: impl Into<String>, ty: i32) -> Self {
        Self { name: name.into(), ty }
    }
}

/// Collects nodes in order. Every tensor name is given out once.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// Version of the ONNX operators that nodes are written for.
    pub(super) opset: i64,
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<TensorProto>,
    taken: BTreeSet<String>,
    n_bytes: u64,
}

impl Builder {
    /// Writes operators of version `opset`.
    pub(super) fn new(opset: i64) -> Self {
        Self { opset, ..Self::default() }
    }

    /// A name that is not used yet: `base`, or `base` with a number.
    pub(super) fn claim(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut n = 1u64;
        while !self.taken.insert(name.clone()) {
            name = format!("{base}.{n}");
            n += 1;
        }
        name
    }

    /// Keeps a name from being given out; false if it already was.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// Adds a node whose result has a name that was claimed before.
    pub(super) fn node(&mut self, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>, output: &str) {
        self.node_of("", op_type, inputs, attribute, &[output]);
    }

    /// Adds a node of an operator of `domain` with several results, whose names were claimed before.
    pub(super) fn node_of(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        outputs: &[&str],
    ) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            name: outputs.iter().find(|name| !name.is_empty()).map_or_else(String::new, |&name| name.to_owned()),
            op_type: op_type.to_owned(),
            attribute,
            domain: domain.to_owned(),
        });
    }

    /// Adds a node whose result has a new name near `base`.
    pub(super) fn step(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        base: &str,
    ) -> String {
        let output = self.claim(base);
        self.node(op_type, inputs, attributes, &output);
        output
    }

    /// Converts a tensor, if it is not of that type already.
    pub(super) fn cast(&mut self, x: &Tensor, ty: i32, base: &str) -> Tensor {
        if x.ty == ty {
            return x.clone();
        }
        let name = self.step("Cast", &[&x.name], vec![AttributeProto::int("to", ty.into())], base);
        Tensor { name, ty }
    }

    /// Makes room for `n` elements of `size` bytes, or refuses.
    pub(super) fn make_room(&mut self, n: usize, size: usize) -> Result<(), ExportError> {
        let total = (n as u64).saturating_mul(size as u64).saturating_add(self.n_bytes);
        check_size(total)?;
        self.n_bytes = total;
        Ok(())
    }

    /// A constant given by its bytes; the caller made room.
    pub(super) fn raw(&mut self, base: &str, ty: i32, shape: &[usize], bytes: Vec<u8>) -> String {
        let name = self.claim(base);
        self.initializers.push(TensorProto::raw(name.as_str(), ty, dims(shape), bytes));
        name
    }

    /// A constant of `f64`.
    pub(super) fn f64s(&mut self, base: &str, shape: &[usize], elements: &[f64]) -> Result<String, ExportError> {
        self.make_room(elements.len(), 8)?;
        let name = self.claim(base);
        self.initializers.push(TensorProto::f64(name.as_str(), dims(shape), elements));
        Ok(name)
    }

    /// A constant of `f32`.
    pub(super) fn f32s(&mut self, base: &str, shape: &[usize], elements: &[f32]) -> Result<String, ExportError> {
        self.make_room(elements.len(), 4)?;
        let name = self.claim(base);
        self.initializers.push(TensorProto::f32(name.as_str(), dims(shape), elements));
        Ok(name)
    }

    /// A constant list of `i64`: axes and shapes.
    pub(super) fn i64s(&mut self, base: &str, elements: &[i64]) -> String {
        let name = self.claim(base);
        self.initializers.push(TensorProto::i64(name.as_str(), vec![elements.len() as i64], elements));
        name
    }

    /// One whole number.
    pub(super) fn i64_scalar(&mut self, base: &str, x: i64) -> String {
        let name = self.claim(base);
        self.initializers.push(TensorProto::i64(name.as_str(), Vec::new(), &[x]));
        name
    }

    /// One number of type `ty`, which is `f32` or `f64`; `x` is representable in it.
    pub(super) fn scalar(&mut self, base: &str, ty: i32, x: f64) -> String {
        let name = self.claim(base);
        let tensor = match ty {
            data_type::DOUBLE => TensorProto::f64(name.as_str(), Vec::new(), &[x]),
            _ => TensorProto::f32(name.as_str(), Vec::new(), &[x as f32]),
        };
        self.initializers.push(tensor);
        name
    }
}

pub(super) fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&extent| extent as i64).collect()
}
