//! What all exports share: names of values, constants, inputs and outputs.

use std::{collections::BTreeMap, sync::Arc};

use qail_ir::{Constant, DType, Elem, Graph, NodeId, ValueId};

use super::{
    ExportError, FORMAT_KEY, INEXACT_KEY, batch,
    builder::{Builder, Tensor, dims},
};
use crate::frontend::proto::{
    Dim, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto, data_type,
};

/// One export under way.
pub(super) struct Emitter<'g> {
    pub(super) graph: &'g Graph,
    pub(super) builder: Builder,
    /// Name of the format in messages and metadata.
    pub(super) format: &'static str,
    /// The batch axis, 0, may have any extent.
    pub(super) batch_is_open: bool,
    /// Name of the tensor of each computed value, chosen before anything is written.
    names: BTreeMap<ValueId, String>,
    /// What was written of each value.
    tensors: BTreeMap<ValueId, Tensor>,
    constants: BTreeMap<(ValueId, i32), Tensor>,
    /// Nodes whose numbers are close to ours, but not equal.
    inexact: Vec<String>,
    /// Operator sets besides the standard's, with their versions.
    pub(super) domains: Vec<(&'static str, i64)>,
    /// Further entries of the metadata.
    pub(super) metadata: BTreeMap<String, String>,
}

impl<'g> Emitter<'g> {
    /// Chooses the names: those of inputs and outputs are the caller's, the
    /// others are those of the nodes as far as they are free.
    pub(super) fn new(graph: &'g Graph, format: &'static str, opset: i64) -> Result<Self, ExportError> {
        let mut builder = Builder::new(opset);
        let mut names = BTreeMap::new();
        for input in graph.inputs() {
            let name = graph.node(*input).name.clone();
            builder.reserve(&name);
            names.insert(input.value(), name);
        }
        for output in &graph.outputs {
            let same = names.get(&output.value) == Some(&output.name);
            if !same && !builder.reserve(&output.name) {
                return Err(ExportError::Name { name: output.name.clone() });
            }
        }
        for id in graph.topo() {
            let value = id.value();
            if names.contains_key(&value) || graph.const_of(value).is_some() {
                continue;
            }
            let name = &graph.node(id).name;
            let is_own_output = graph.outputs.iter().any(|output| output.value == value && output.name == *name);
            let name = if is_own_output { name.clone() } else { builder.claim(name) };
            names.insert(value, name);
        }
        let batch_is_open = batch::is_open(graph);
        Ok(Self {
            graph,
            builder,
            format,
            batch_is_open,
            names,
            tensors: BTreeMap::new(),
            constants: BTreeMap::new(),
            inexact: Vec::new(),
            domains: Vec::new(),
            metadata: BTreeMap::new(),
        })
    }

    /// The name that the result of a node will have.
    pub(super) fn name_of(&self, id: NodeId) -> String {
        self.names.get(&id.value()).cloned().unwrap_or_default()
    }

    /// Records what was written of a node's result.
    pub(super) fn define(&mut self, id: NodeId, tensor: Tensor) {
        self.tensors.insert(id.value(), tensor);
    }

    /// Notes that a node's result is only close to ours.
    pub(super) fn mark_inexact(&mut self, id: NodeId) {
        self.inexact.push(self.graph.node(id).name.clone());
    }

    /// The tensor of an operand; constants are written at their first use, plain
    /// numbers in their own type, codes as `f64`.
    pub(super) fn operand(&mut self, id: NodeId, slot: usize) -> Result<Tensor, ExportError> {
        let value = self.operand_value(id, slot)?;
        if let Some(constant) = self.graph.const_of(value) {
            let ty = match constant.ty.elem {
                Elem::Plain(dtype) => onnx_type(dtype),
                Elem::Code(_) => data_type::DOUBLE,
            };
            return self.constant_as(id, value, ty);
        }
        self.tensor_of(value, id)
    }

    /// What was written of a computed value.
    pub(super) fn written(&self, value: ValueId) -> Result<Tensor, ExportError> {
        self.tensor_of(value, value.node)
    }

    fn tensor_of(&self, value: ValueId, reader: NodeId) -> Result<Tensor, ExportError> {
        let tensor = self.tensors.get(&value).cloned();
        tensor.ok_or_else(|| self.unsupported(reader, "an operand has no exported form"))
    }

    pub(super) fn operand_value(&self, id: NodeId, slot: usize) -> Result<ValueId, ExportError> {
        let value = self.graph.operands(id).get(slot).copied();
        value.ok_or_else(|| self.unsupported(id, "an operand is missing"))
    }

    /// The constant behind an operand.
    pub(super) fn constant(&self, id: NodeId, slot: usize) -> Result<&'g Arc<Constant>, ExportError> {
        let node = self.graph.node(id);
        let not_const = || ExportError::NotConst { node: node.name.clone(), op: node.op.name(), slot };
        self.graph.const_of(self.operand_value(id, slot)?).ok_or_else(not_const)
    }

    /// The elements of a constant operand, exact for all but large `i64`.
    pub(super) fn numbers(&self, id: NodeId, slot: usize) -> Result<Vec<f64>, ExportError> {
        let constant = self.constant(id, slot)?;
        constant.all().map_err(|source| self.unreadable(id, source))
    }

    /// A constant operand in `f32` or `f64`, whatever its own type; equal uses share it.
    pub(super) fn constant_as(&mut self, id: NodeId, value: ValueId, ty: i32) -> Result<Tensor, ExportError> {
        if let Some(tensor) = self.constants.get(&(value, ty)) {
            return Ok(tensor.clone());
        }
        let Some(constant) = self.graph.const_of(value) else {
            return Err(self.unsupported(id, "an operand must be a constant"));
        };
        let name = self.graph.node(value.node).name.clone();
        let n = constant.ty.n_elements();
        let shape = &constant.ty.shape;
        // Room is made before the elements are read: a constant may be huge.
        let name = match ty {
            data_type::DOUBLE => {
                super::builder::check_size((n as u64).saturating_mul(8))?;
                let elements = constant.all().map_err(|source| self.unreadable(id, source))?;
                self.builder.f64s(&name, shape, &elements)?
            }
            data_type::FLOAT => {
                super::builder::check_size((n as u64).saturating_mul(4))?;
                let elements = constant.all_f32().map_err(|source| self.unreadable(id, source))?;
                self.builder.f32s(&name, shape, &elements)?
            }
            _ => {
                self.builder.make_room(n, constant.ty.elem.size_bytes())?;
                let bytes = constant.read_bytes(0..n).map_err(|source| self.unreadable(id, source))?;
                self.builder.raw(&name, ty, shape, bytes)
            }
        };
        let tensor = Tensor { name, ty };
        self.constants.insert((value, ty), tensor.clone());
        Ok(tensor)
    }

    pub(super) fn unsupported(&self, id: NodeId, reason: &'static str) -> ExportError {
        let node = self.graph.node(id);
        ExportError::Unsupported { node: node.name.clone(), op: node.op.name(), format: self.format, reason }
    }

    pub(super) fn unreadable(&self, id: NodeId, source: qail_ir::ConstError) -> ExportError {
        ExportError::Const { node: self.graph.node(id).name.clone(), source }
    }

    /// Type and extents of a tensor in the signature; the batch axis is open where it can be.
    fn value_info(&self, name: &str, ty: i32, shape: &[usize]) -> ValueInfoProto {
        let extents = dims(shape).into_iter().enumerate().map(|(axis, extent)| match axis {
            0 if self.batch_is_open => Dim::Param("batch".to_owned()),
            _ => Dim::Value(extent),
        });
        ValueInfoProto::with_dims(name, ty, extents.collect::<Vec<_>>())
    }

    /// Joins everything to a model. `exposed` are further outputs.
    pub(super) fn finish(mut self, exposed: &[(Tensor, ValueId)]) -> Result<ModelProto, ExportError> {
        let graph = self.graph;
        let mut inputs = Vec::new();
        for id in graph.inputs() {
            let ty = graph.ty(id.value());
            let elem = self.tensors.get(&id.value()).map_or(data_type::FLOAT, |tensor| tensor.ty);
            inputs.push(self.value_info(&self.name_of(*id), elem, &ty.shape));
        }
        let mut outputs = Vec::new();
        for output in &graph.outputs {
            let id = output.value.node;
            let tensor = match self.graph.const_of(output.value) {
                Some(_) => self.constant_output(id, output.value)?,
                None => self.written(output.value)?,
            };
            if tensor.name != output.name {
                self.builder.node("Identity", &[&tensor.name], Vec::new(), &output.name);
            }
            outputs.push(self.value_info(&output.name, tensor.ty, &graph.ty(output.value).shape));
        }
        for (tensor, value) in exposed {
            if outputs.iter().all(|output| output.name != tensor.name) {
                outputs.push(self.value_info(&tensor.name, tensor.ty, &graph.ty(*value).shape));
            }
        }
        let mut metadata: BTreeMap<String, String> = graph.metadata.clone();
        metadata.append(&mut self.metadata);
        metadata.insert(FORMAT_KEY.to_owned(), self.format.to_owned());
        if !self.inexact.is_empty() {
            metadata.insert(INEXACT_KEY.to_owned(), self.inexact.join(","));
        }
        let onnx_graph = GraphProto {
            node: self.builder.nodes,
            name: graph.name.clone(),
            initializer: self.builder.initializers,
            input: inputs,
            output: outputs,
            ..GraphProto::default()
        };
        let standard = OperatorSetIdProto { domain: String::new(), version: self.builder.opset };
        let others =
            self.domains.iter().map(|&(domain, version)| OperatorSetIdProto { domain: domain.to_owned(), version });
        let opset_import = [standard].into_iter().chain(others).collect();
        Ok(ModelProto {
            ir_version: ir_version(self.builder.opset),
            producer_name: "qailc".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(onnx_graph),
            opset_import,
            metadata_props: metadata.into_iter().map(|(key, value)| StringStringEntryProto { key, value }).collect(),
            ..ModelProto::default()
        })
    }

    fn constant_output(&mut self, id: NodeId, value: ValueId) -> Result<Tensor, ExportError> {
        match self.graph.ty(value).elem {
            Elem::Plain(dtype) => self.constant_as(id, value, onnx_type(dtype)),
            Elem::Code(_) => self.constant_as(id, value, data_type::DOUBLE),
        }
    }
}

/// The file format that came with a version of the operators.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=13 => 7,
        14..=18 => 8,
        19..=20 => 9,
        _ => 10,
    }
}

/// The ONNX number of an element type.
pub(super) fn onnx_type(dtype: DType) -> i32 {
    match dtype {
        DType::Bool => data_type::BOOL,
        DType::U8 => data_type::UINT8,
        DType::I32 => data_type::INT32,
        DType::I64 => data_type::INT64,
        DType::F32 => data_type::FLOAT,
        DType::F64 => data_type::DOUBLE,
    }
}
