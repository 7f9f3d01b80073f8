//! What the importer of one operator sees: the node, its operands, the graph.
//!
//! Attributes and operands that nobody asked for are refused afterwards: an
//! attribute of a newer version must not be ignored silently.

use std::{cell::RefCell, collections::BTreeSet};

use qail_ir::{Constant, Op, Origin, Shape, TensorType};

use super::{
    OpError,
    builder::{Builder, Tensor},
};
use crate::frontend::{
    error::shown,
    findings::Findings,
    proto::{AttributeProto, NodeProto, TensorProto, attribute_type},
};

/// One node being imported.
pub(super) struct NodeCx<'a> {
    /// The graph so far.
    pub(super) builder: &'a mut Builder,
    /// The node.
    pub(super) node: &'a NodeProto,
    /// Version of the standard operators.
    pub(super) opset: i64,
    /// Where results come from.
    pub(super) origin: Origin,
    /// Where notes go.
    pub(super) findings: &'a mut Findings,
    /// The operands; nothing where one is left out.
    pub(super) operands: Vec<Option<Tensor>>,
    /// Results that somebody needs.
    pub(super) needed: Vec<bool>,
    read: RefCell<Read>,
}

#[derive(Debug, Default)]
struct Read {
    attributes: BTreeSet<&'static str>,
    operands: BTreeSet<usize>,
}

impl<'a> NodeCx<'a> {
    /// A node with its operands.
    pub(super) fn new(
        builder: &'a mut Builder,
        node: &'a NodeProto,
        opset: i64,
        origin: Origin,
        findings: &'a mut Findings,
        operands: Vec<Option<Tensor>>,
        needed: Vec<bool>,
    ) -> Self {
        Self { builder, node, opset, origin, findings, operands, needed, read: RefCell::default() }
    }

    /// An operand that must be there.
    pub(super) fn operand(&self, index: usize) -> Result<Tensor, OpError> {
        self.optional(index).ok_or_else(|| OpError::invalid(format!("operand {index} is missing")))
    }

    /// An operand that may be left out.
    pub(super) fn optional(&self, index: usize) -> Option<Tensor> {
        self.read.borrow_mut().operands.insert(index);
        self.operands.get(index).copied().flatten()
    }

    /// Every operand of an operator that takes any number of them.
    pub(super) fn all_operands(&self) -> Result<Vec<Tensor>, OpError> {
        (0..self.operands.len().max(1)).map(|i| self.operand(i)).collect()
    }

    /// An operand of floats that must be there.
    pub(super) fn float(&self, index: usize) -> Result<Tensor, OpError> {
        let tensor = self.operand(index)?;
        self.expect_float(tensor)?;
        Ok(tensor)
    }

    /// Fails unless the elements are floats.
    pub(super) fn expect_float(&self, tensor: Tensor) -> Result<(), OpError> {
        self.builder.expect_numbers(tensor)?;
        let ty = self.ty(tensor);
        if ty.is_f32() {
            return Ok(());
        }
        let remedy = "cast the operand to float32 in the model";
        Err(OpError::unsupported(format!("operands of type {ty} are not supported"), remedy))
    }

    /// A known operand of integers, for shapes and axes.
    pub(super) fn ints(&self, index: usize, what: &str) -> Result<Option<Vec<i64>>, OpError> {
        let Some(tensor) = self.optional(index) else { return Ok(None) };
        let Some(constant) = self.builder.constant(tensor) else {
            return Err(OpError::unsupported(
                format!("its {what} is computed at run time"),
                "export with fixed shapes, or simplify the model first, for example with `onnxsim`",
            ));
        };
        if !super::builder::is_integer(&constant.ty) || constant.ty.n_elements() > MAX_INTS {
            return Err(OpError::invalid(format!("its {what} is {}", constant.ty)));
        }
        Ok(Some(constant.all_int()?))
    }

    /// Type of a tensor.
    pub(super) fn ty(&self, tensor: Tensor) -> &TensorType {
        self.builder.ty(tensor)
    }

    /// Shape of a tensor.
    pub(super) fn shape(&self, tensor: Tensor) -> Shape {
        self.builder.ty(tensor).shape.clone()
    }

    /// Elements of a known tensor.
    pub(super) fn constant(&self, tensor: Tensor) -> Option<&Constant> {
        self.builder.constant(tensor)
    }

    /// Name of result `slot`.
    pub(super) fn result(&self, slot: usize) -> String {
        match self.node.output.get(slot) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => format!("{}.{slot}", self.node.output.first().map_or("", String::as_str)),
        }
    }

    /// Applies an operation; its result is the node's.
    pub(super) fn emit(&mut self, op: Op, operands: &[Tensor]) -> Result<Tensor, OpError> {
        let name = self.result(0);
        self.builder.emit(name, op, operands, &self.origin)
    }

    /// Applies an operation whose result is result `slot` of the node.
    pub(super) fn emit_result(&mut self, slot: usize, op: Op, operands: &[Tensor]) -> Result<Tensor, OpError> {
        let name = self.result(slot);
        self.builder.emit(name, op, operands, &self.origin)
    }

    /// Applies an operation on the way to the node's result.
    pub(super) fn emit_part(&mut self, part: &str, op: Op, operands: &[Tensor]) -> Result<Tensor, OpError> {
        let name = format!("{}.{part}", self.result(0));
        self.builder.emit(name, op, operands, &self.origin)
    }

    /// A constant that is the node's result.
    pub(super) fn known(&mut self, constant: Constant) -> Tensor {
        let name = self.result(0);
        self.builder.known(name, constant, self.origin.clone())
    }

    /// A constant on the way to the node's result.
    pub(super) fn known_part(&mut self, part: &str, constant: Constant) -> Tensor {
        let name = format!("{}.{part}", self.result(0));
        self.builder.known(name, constant, self.origin.clone())
    }

    /// The results, with the names of the node's results where this node made them.
    pub(super) fn finish(&mut self, results: Vec<Tensor>) -> Vec<Tensor> {
        let made = format!("{}.", self.result(0));
        for (slot, &tensor) in results.iter().enumerate() {
            self.builder.rename(tensor, &made, &self.origin, self.result(slot));
        }
        results
    }

    /// An attribute that is an integer.
    pub(super) fn int(&self, name: &'static str) -> Result<Option<i64>, OpError> {
        self.attribute(name, attribute_type::INT, |attribute| attribute.i.or(Some(0)))
    }

    /// An attribute that is a number.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<f32>, OpError> {
        self.attribute(name, attribute_type::FLOAT, |attribute| attribute.f.or(Some(0.0)))
    }

    /// An attribute that is text; bytes that are not text are replaced.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, OpError> {
        self.attribute(name, attribute_type::STRING, |attribute| {
            attribute.s.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        })
    }

    /// An attribute that is a list of texts.
    pub(super) fn text_list(&self, name: &'static str) -> Result<Option<Vec<String>>, OpError> {
        self.attribute(name, attribute_type::STRINGS, |attribute| {
            Some(attribute.strings.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect())
        })
    }

    /// Name of the node in messages.
    pub(super) fn node_name(&self) -> String {
        self.origin.names().collect::<Vec<_>>().join(" + ")
    }

    /// True unless an operand was left out.
    pub(super) fn is_given(&self, index: usize) -> bool {
        self.operands.get(index).is_some_and(Option::is_some)
    }

    /// An attribute that is a list of integers.
    pub(super) fn int_list(&self, name: &'static str) -> Result<Option<Vec<i64>>, OpError> {
        self.attribute(name, attribute_type::INTS, |attribute| Some(attribute.ints.clone()))
    }

    /// An attribute that is a list of numbers.
    pub(super) fn number_list(&self, name: &'static str) -> Result<Option<Vec<f32>>, OpError> {
        self.attribute(name, attribute_type::FLOATS, |attribute| Some(attribute.floats.clone()))
    }

    /// An attribute that is a tensor.
    pub(super) fn tensor(&self, name: &'static str) -> Result<Option<TensorProto>, OpError> {
        self.attribute(name, attribute_type::TENSOR, |attribute| attribute.t.as_deref().cloned())
    }

    /// Accepts an attribute that does not change what is computed here.
    pub(super) fn ignore(&self, name: &'static str) {
        self.read.borrow_mut().attributes.insert(name);
    }

    fn attribute<T>(
        &self,
        name: &'static str,
        ty: i32,
        get: impl Fn(&AttributeProto) -> Option<T>,
    ) -> Result<Option<T>, OpError> {
        self.read.borrow_mut().attributes.insert(name);
        let Some(attribute) = self.node.attribute.iter().find(|attribute| attribute.name == name) else {
            return Ok(None);
        };
        // Files of the first format version leave the type out.
        if attribute.r#type != ty && attribute.r#type != 0 {
            return Err(OpError::invalid(format!("attribute `{name}` has type {}, not {ty}", attribute.r#type)));
        }
        Ok(get(attribute))
    }

    /// Fails if an attribute or an operand was never asked for.
    pub(super) fn check_all_read(&self) -> Result<(), OpError> {
        let read = self.read.borrow();
        let remedy = "export with another opset or another exporter";
        for attribute in &self.node.attribute {
            if !read.attributes.contains(attribute.name.as_str()) {
                let reason = format!("its attribute `{}` is not supported", shown(&attribute.name));
                return Err(OpError::unsupported(reason, remedy));
            }
            if !attribute.ref_attr_name.is_empty() {
                return Err(OpError::invalid("an attribute refers to a function around it"));
            }
        }
        let unread = |&(i, operand): &(usize, &Option<Tensor>)| operand.is_some() && !read.operands.contains(&i);
        match self.operands.iter().enumerate().find(unread) {
            Some((i, _)) => Err(OpError::unsupported(format!("its operand {i} is not supported"), remedy)),
            None => Ok(()),
        }
    }
}

/// Longest list of axes, extents or indices that is read.
const MAX_INTS: usize = 1 << 20;

/// Axis `axis` of a tensor of rank `rank`, counted from the end if negative.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let rank = rank as i64;
    let from_start = if axis < 0 { axis.saturating_add(rank) } else { axis };
    if (0..rank).contains(&from_start) {
        Ok(from_start as usize)
    } else {
        Err(OpError::invalid(format!("axis {axis} of a tensor of rank {rank}")))
    }
}

/// Place `index` along an axis of `extent` elements, counted from the end if negative.
pub(super) fn place(index: i64, extent: usize) -> Result<usize, OpError> {
    let from_start = if index < 0 { index.saturating_add(extent as i64) } else { index };
    usize::try_from(from_start)
        .ok()
        .filter(|&place| place < extent)
        .ok_or_else(|| OpError::invalid(format!("index {index} along an axis of {extent} elements")))
}

/// Several axes, ascending, each once.
pub(super) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let set: BTreeSet<usize> = list.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?;
    if set.len() != list.len() {
        return Err(OpError::invalid(format!("axes {list:?} of a tensor of rank {rank} repeat")));
    }
    Ok(set.into_iter().collect())
}
