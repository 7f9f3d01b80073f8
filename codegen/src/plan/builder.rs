//! What a plan is made of while it is made: sections, tensors, steps, and where
//! the values of the graph are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use qail_artifact::schema::{Layout, Place, Step, Storage, Tensor, step};
use qail_ir::{ConstId, Constant, DType, Elem, Graph, NodeId, Op, TensorType, ValueId};

use super::{
    place::Placement,
    section::{Form, SectionBytes, SectionData},
    shape,
    view::View,
};
use crate::CodegenError;

/// Code rows are padded to a multiple of this many elements.
const CODE_ALIGN: u64 = 32;

/// Most axes of a tensor in a file.
const MAX_RANK: usize = 8;

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a tensor.
    Tensor(u32),
    /// In an `f32` or `i32` section: a constant.
    Section(u32),
}

/// A plan under construction.
pub(crate) struct Builder<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) placement: &'g Placement,
    pub(crate) sections: Vec<SectionData>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) steps: Vec<Step>,
    values: BTreeMap<ValueId, Source>,
    /// For a model input that device steps read: its copy in device memory.
    device_twins: BTreeMap<u32, u32>,
    section_names: BTreeSet<String>,
    /// Values that are copied together with what reads them.
    pub(crate) pending: BTreeMap<ValueId, View>,
    /// Constants as sections.
    const_sections: BTreeMap<ConstId, u32>,
}

impl<'g> Builder<'g> {
    pub(crate) fn new(graph: &'g Graph, placement: &'g Placement) -> Self {
        Self {
            graph,
            placement,
            sections: Vec::new(),
            tensors: Vec::new(),
            steps: Vec::new(),
            values: BTreeMap::new(),
            device_twins: BTreeMap::new(),
            section_names: BTreeSet::new(),
            pending: BTreeMap::new(),
            const_sections: BTreeMap::new(),
        }
    }

    /// Name of a node.
    pub(crate) fn name(&self, node: NodeId) -> String {
        self.graph.node(node).name.clone()
    }

    /// An `Unsupported` error about a node.
    pub(crate) fn unsupported(&self, node: NodeId, reason: impl Into<String>) -> CodegenError {
        let node = self.graph.node(node);
        CodegenError::Unsupported { node: node.name.clone(), op: node.op.name(), reason: reason.into() }
    }

    /// Adds a section. Equal bytes of one layout are one section, as in a file,
    /// so the indices of a plan are those of the file.
    pub(crate) fn section(
        &mut self,
        name: &str,
        layout: Layout,
        bytes: impl Into<SectionBytes>,
    ) -> Result<u32, CodegenError> {
        let bytes = bytes.into();
        let known = self.sections.iter().position(|section| section.layout == layout && section.bytes == bytes);
        let index = match known {
            Some(index) => index,
            None => {
                let mut unique = name.to_owned();
                let mut n = 1u32;
                while !self.section_names.insert(unique.clone()) {
                    unique = format!("{name}.{n}");
                    n = n.saturating_add(1);
                }
                self.sections.push(SectionData { name: unique, layout, bytes });
                self.sections.len() - 1
            }
        };
        u32::try_from(index).map_err(|_| CodegenError::internal("the number of sections fits into 32 bits"))
    }

    /// Adds a tensor for values of type `ty`.
    pub(crate) fn tensor(&mut self, node: NodeId, name: &str, ty: &TensorType) -> Result<u32, CodegenError> {
        self.tensor_as(node, name, ty, None)
    }

    /// [`Builder::tensor`], with another storage than callers of the model see.
    pub(crate) fn tensor_as(
        &mut self,
        node: NodeId,
        name: &str,
        ty: &TensorType,
        storage: Option<Storage>,
    ) -> Result<u32, CodegenError> {
        let (own, code_offset) = match ty.elem {
            Elem::Plain(DType::F32) => (Storage::F32, 0),
            Elem::Plain(DType::I32) => (Storage::I32, 0),
            Elem::Plain(DType::I64) => (Storage::I64, 0),
            Elem::Plain(DType::U8 | DType::Bool) => (Storage::U8, 0),
            Elem::Plain(DType::F64) => return Err(self.unsupported(node, "an intermediate value of type f64")),
            Elem::Code(scheme) => match (scheme.signed, scheme.bits) {
                (false, 8) => (Storage::I8, 128),
                (_, 2..=8) => (Storage::I8, 0),
                (true, 16) => (Storage::I16, 0),
                _ => {
                    return Err(
                        self.unsupported(node, format!("codes of type {scheme}; 2 to 8 bits and s16 are accepted"))
                    );
                }
            },
        };
        let storage = storage.unwrap_or(own);
        let shape: Vec<u64> = ty.shape.iter().map(|&extent| extent as u64).collect();
        if shape.contains(&0) {
            return Err(self.unsupported(node, format!("a value without elements, {ty}")));
        }
        if shape.len() > MAX_RANK {
            return Err(self.unsupported(node, format!("{} axes; at most {MAX_RANK} are accepted", shape.len())));
        }
        let last = shape.last().copied().unwrap_or(1);
        let over = || CodegenError::Limit {
            node: self.name(node),
            what: "size of a value in bytes",
            found: ty.to_string(),
            limit: u64::MAX.to_string(),
        };
        let (stride, bytes) = match storage {
            Storage::I8 => (last.checked_next_multiple_of(CODE_ALIGN).ok_or_else(over)?, 1),
            Storage::I16 => (last.checked_next_multiple_of(CODE_ALIGN).ok_or_else(over)?, 2),
            Storage::F32 | Storage::I32 => (last, 4),
            Storage::U8 => (last, 1),
            Storage::I64 => (last, 8),
            Storage::Unspecified => return Err(CodegenError::internal("a tensor has a storage")),
        };
        let rows = rows(&shape);
        let size =
            rows.checked_mul(stride).and_then(|n| n.checked_mul(bytes)).and_then(|n| n.checked_next_multiple_of(4));
        let size = size.filter(|&size| i64::try_from(size).is_ok()).ok_or_else(over)?;
        let tensor = Tensor {
            name: name.to_owned(),
            storage: storage.into(),
            shape,
            stride,
            arena: 0,
            offset: 0,
            size,
            code_offset,
        };
        self.tensors.push(tensor);
        u32::try_from(self.tensors.len() - 1)
            .map_err(|_| CodegenError::internal("the number of tensors fits into 32 bits"))
    }

    /// Adds the tensor of a node's result, named after it. Computed integers are
    /// 32 bits wide; inputs are what the caller gives.
    pub(crate) fn result(&mut self, node: NodeId) -> Result<u32, CodegenError> {
        let ty = self.graph.ty(node.value());
        let computed = !matches!(self.graph.node(node).op, Op::Input(_));
        let is_int = matches!(ty.dtype(), Some(DType::Bool | DType::U8 | DType::I32 | DType::I64));
        self.result_as(node, (computed && is_int).then_some(Storage::I32))
    }

    /// The result of a node that moves the elements of an operand: stored as they are.
    pub(crate) fn moved(&mut self, node: NodeId, x: &step::Operand) -> Result<u32, CodegenError> {
        match x.source {
            Some(step::Source::Tensor(x)) => {
                let storage = self.entry(x)?.storage();
                self.result_as(node, Some(storage))
            }
            Some(step::Source::Section(_)) | None => self.result(node),
        }
    }

    fn result_as(&mut self, node: NodeId, storage: Option<Storage>) -> Result<u32, CodegenError> {
        let graph = self.graph;
        let tensor = self.tensor_as(node, &graph.node(node).name, graph.ty(node.value()), storage)?;
        self.define(node.value(), Source::Tensor(tensor));
        Ok(tensor)
    }

    /// The tensor behind an index that this builder handed out.
    pub(crate) fn entry(&self, tensor: u32) -> Result<&Tensor, CodegenError> {
        usize::try_from(tensor)
            .ok()
            .and_then(|i| self.tensors.get(i))
            .ok_or_else(|| CodegenError::internal("an index names a tensor of the plan"))
    }

    /// Says where a value is.
    pub(crate) fn define(&mut self, value: ValueId, source: Source) {
        self.values.insert(value, source);
    }

    /// Adds the copy of a model input that device steps read.
    pub(crate) fn add_twin(&mut self, input: u32, twin: u32) {
        self.device_twins.insert(input, twin);
    }

    /// Where a value is, for a reader at `place`; constants become sections.
    pub(crate) fn source(&mut self, reader: NodeId, value: ValueId, place: Place) -> Result<Source, CodegenError> {
        if let Some(&source) = self.values.get(&value) {
            return Ok(match source {
                Source::Tensor(tensor) if place == Place::Device => {
                    Source::Tensor(self.device_twins.get(&tensor).copied().unwrap_or(tensor))
                }
                source => source,
            });
        }
        let Op::Const(constant) = self.graph.op(value) else {
            return Err(CodegenError::internal("a value is defined before it is read"));
        };
        if let Some(&section) = self.const_sections.get(&constant.id) {
            return Ok(Source::Section(section));
        }
        let section = self.number_section(reader, value)?;
        self.const_sections.insert(constant.id, section);
        Ok(Source::Section(section))
    }

    /// The tensor of a value; a constant is copied into one first.
    pub(crate) fn tensor_of(&mut self, reader: NodeId, value: ValueId, place: Place) -> Result<u32, CodegenError> {
        match self.source(reader, value, place)? {
            Source::Tensor(tensor) => Ok(tensor),
            Source::Section(_) => {
                let graph = self.graph;
                let ty = graph.ty(value);
                let storage = if ty.is_f32() { Storage::F32 } else { Storage::I32 };
                let tensor = self.tensor_as(reader, &graph.node(value.node).name, ty, Some(storage))?;
                self.copy(reader, value, place, tensor, graph.ty(value).shape.clone())?;
                Ok(tensor)
            }
        }
    }

    /// Adds a dense copy of a value, whose index space is `shape`, into a tensor.
    fn copy(
        &mut self,
        node: NodeId,
        value: ValueId,
        place: Place,
        out: u32,
        shape: Vec<usize>,
    ) -> Result<(), CodegenError> {
        let x = self.operand(node, value, place)?;
        let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
        let out_strides = self.strides(node, &shape, self.entry(out)?.stride)?;
        self.push(node, place, step::Op::Copy(step::Copy { x, out, shape, out_strides, out_offset: 0 }));
        Ok(())
    }

    /// An operand with the strides of its own shape.
    pub(crate) fn operand(
        &mut self,
        reader: NodeId,
        value: ValueId,
        place: Place,
    ) -> Result<step::Operand, CodegenError> {
        let shape: Vec<u64> = self.graph.ty(value).shape.iter().map(|&extent| extent as u64).collect();
        let (source, stride) = match self.source(reader, value, place)? {
            Source::Tensor(tensor) => (step::Source::Tensor(tensor), self.row_stride(tensor, &shape)?),
            Source::Section(section) => (step::Source::Section(section), shape.last().copied().unwrap_or(1)),
        };
        let strides = self.strides(reader, &shape, stride)?;
        Ok(step::Operand { source: Some(source), strides, offset: 0 })
    }

    /// Elements from row to row of a tensor that is seen in another shape: only
    /// codes have padding.
    pub(crate) fn row_stride(&self, tensor: u32, shape: &[u64]) -> Result<u64, CodegenError> {
        let entry = self.entry(tensor)?;
        Ok(match entry.storage() {
            Storage::I8 | Storage::I16 => entry.stride,
            Storage::F32 | Storage::I32 | Storage::U8 | Storage::I64 | Storage::Unspecified => {
                shape.last().copied().unwrap_or(1)
            }
        })
    }

    /// An operand that broadcasts to `shape`.
    pub(crate) fn broadcast(
        &mut self,
        reader: NodeId,
        value: ValueId,
        place: Place,
        shape: &[u64],
    ) -> Result<step::Operand, CodegenError> {
        let own: Vec<u64> = self.graph.ty(value).shape.iter().map(|&extent| extent as u64).collect();
        let mut operand = self.operand(reader, value, place)?;
        operand.strides = shape::broadcast(&own, &operand.strides, shape)
            .ok_or_else(|| CodegenError::internal("operands of a verified graph broadcast"))?;
        Ok(operand)
    }

    /// Strides of `shape`, checked.
    pub(crate) fn strides(&self, node: NodeId, shape: &[u64], stride: u64) -> Result<Vec<i64>, CodegenError> {
        shape::strides(shape, stride).ok_or_else(|| CodegenError::Limit {
            node: self.name(node),
            what: "number of elements",
            found: format!("{shape:?}"),
            limit: i64::MAX.to_string(),
        })
    }

    /// Adds a step of a node.
    pub(crate) fn push(&mut self, node: NodeId, place: Place, op: step::Op) {
        let name = self.name(node);
        self.push_named(name, place, op);
    }

    /// Adds a step with a name of its own.
    pub(crate) fn push_named(&mut self, name: String, place: Place, op: step::Op) {
        self.steps.push(Step { name, place: place.into(), dispatch: None, op: Some(op) });
    }

    /// The constant behind an operand that must be one.
    pub(crate) fn constant(&self, node: NodeId, value: ValueId, what: &str) -> Result<&'g Arc<Constant>, CodegenError> {
        match self.graph.const_of(value) {
            Some(constant) => Ok(constant),
            None => Err(self.unsupported(node, format!("{what} must be a constant"))),
        }
    }

    /// Elements of a constant as integers.
    pub(crate) fn read_int(&self, node: NodeId, constant: &Constant) -> Result<Vec<i64>, CodegenError> {
        constant.all_int().map_err(|source| CodegenError::Const { node: self.name(node), source })
    }

    /// A constant operand as an `f32` section, named after the reader.
    pub(crate) fn f32_section(&mut self, node: NodeId, value: ValueId, what: &str) -> Result<u32, CodegenError> {
        let name = format!("{}.{what}", self.name(node));
        let bytes = SectionBytes::of(self.constant(node, value, what)?, Form::Floats, &self.name(node))?;
        self.section(&name, Layout::F32, bytes)
    }

    /// Integers as an `i32` section.
    pub(crate) fn i32_section(
        &mut self,
        node: NodeId,
        what: &'static str,
        elements: &[i64],
    ) -> Result<u32, CodegenError> {
        let name = format!("{}.{what}", self.name(node));
        let mut bytes = Vec::with_capacity(elements.len().saturating_mul(4));
        for &x in elements {
            let x = i32::try_from(x).map_err(|_| CodegenError::BadValue {
                node: self.name(node),
                what,
                found: x.to_string(),
                accepted: "a 32-bit integer",
            })?;
            bytes.extend(x.to_le_bytes());
        }
        self.section(&name, Layout::I32, bytes)
    }
}

/// Product of all axes but the last; saturates.
pub(crate) fn rows(shape: &[u64]) -> u64 {
    shape::count(shape.split_last().map_or(&[], |(_, rows)| rows))
}

/// Little-endian bytes.
pub(crate) fn f32_bytes(elements: &[f32]) -> Vec<u8> {
    elements.iter().flat_map(|x| x.to_le_bytes()).collect()
}
