//! Equality of graphs: the same text and the same constants.
//!
//! Ids do not take part: a graph equals its copy that was printed and read.

use std::{collections::BTreeMap, sync::Arc};

use crate::{ConstData, Constant, Graph, NodeId, Op, ValueId};

/// Inputs in their order, then every other node, operands before users and ties
/// by age. A graph whose nodes were added in this order keeps it.
pub(crate) fn canonical_order(graph: &Graph) -> Vec<NodeId> {
    let mut order = graph.inputs().to_vec();
    order.extend(graph.topo().into_iter().filter(|&id| !matches!(graph.node(id).op, Op::Input(_))));
    order
}

impl PartialEq for Graph {
    /// The same names, operations, types, origins, outputs and metadata in the
    /// same order, and constants with the same elements, however stored.
    fn eq(&self, other: &Self) -> bool {
        let (left, right) = (canonical_order(self), canonical_order(other));
        let header = self.name == other.name
            && self.batch_axis == other.batch_axis
            && self.metadata == other.metadata
            && self.states == other.states
            && self.repeat == other.repeat
            && self.outputs.len() == other.outputs.len()
            && self.inputs().len() == other.inputs().len()
            && left.len() == right.len();
        if !header {
            return false;
        }
        let twin: BTreeMap<NodeId, NodeId> = left.iter().copied().zip(right.iter().copied()).collect();
        let same_value = |a: ValueId, b: ValueId| twin.get(&a.node) == Some(&b.node) && a.slot == b.slot;
        let same_node = |(&a, &b): (&NodeId, &NodeId)| {
            let (x, y) = (self.node(a), other.node(b));
            let (xs, ys) = (self.operands(a), other.operands(b));
            x.name == y.name
                && x.origin == y.origin
                && x.outputs == y.outputs
                && xs.len() == ys.len()
                && xs.into_iter().zip(ys).all(|(a, b)| same_value(a, b))
                && match (&x.op, &y.op) {
                    (Op::Const(c), Op::Const(d)) => same_constant(self.constant(c.id), other.constant(d.id)),
                    (a, b) => a == b,
                }
        };
        left.iter().zip(&right).all(same_node)
            && self.outputs.iter().zip(&other.outputs).all(|(a, b)| a.name == b.name && same_value(a.value, b.value))
    }
}

/// True if both have one type and the same elements, bit by bit. What cannot be
/// read equals nothing but itself.
fn same_constant(a: &Constant, b: &Constant) -> bool {
    if std::ptr::eq(a, b) {
        return true;
    }
    a.ty == b.ty && same_elements(a, b)
}

/// The same of elements in their order, whatever the shapes.
fn same_elements(a: &Constant, b: &Constant) -> bool {
    match (&a.data, &b.data) {
        (ConstData::Rand(x), ConstData::Rand(y)) if x == y => return true,
        (ConstData::Splat(x), ConstData::Splat(y)) => {
            return x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
        }
        (ConstData::Source(x), ConstData::Source(y)) if Arc::ptr_eq(x, y) => return true,
        _ => {}
    }
    const CHUNK: usize = 1 << 16;
    /// Constants that differ mostly do so at once, and elements may be dear.
    const FIRST: usize = 1 << 10;
    let n = a.ty.n_elements();
    std::iter::once(0..FIRST.min(n))
        .chain((FIRST..n).step_by(CHUNK).map(|start| start..start.saturating_add(CHUNK).min(n)))
        .all(|range| matches!((a.read_bytes(range.clone()), b.read_bytes(range)), (Ok(x), Ok(y)) if x == y))
}

impl Constant {
    /// True if both have the same elements of one type in the same order, bit by
    /// bit, whatever their shapes; they are read only as far as they agree. What
    /// cannot be read equals nothing but itself.
    pub fn has_elements_of(&self, other: &Self) -> bool {
        let known = self.ty.elem == other.ty.elem && self.ty.n_elements() == other.ty.n_elements();
        known && (std::ptr::eq(self, other) || same_elements(self, other))
    }
}
