//! Folding of constants.
//!
//! Operations are evaluated by the interpreter, the judge of all executors: a
//! folded model computes what the unfolded one would, and the arithmetic of
//! shapes and indices is checked, never wrapped. Work and memory have a budget,
//! so that no small file becomes a large computation.

use std::collections::BTreeMap;

use qail_ir::{Constant, Graph, Op, Origin, TensorType, ValueId, interp};

use super::{OpError, builder::Tensor, cx::NodeCx};
use crate::frontend::tract;

/// Multiply-adds that folding may take in one model.
const MAX_WORK: usize = 1 << 26;

/// Most elements that windows over a constant are folded to.
const MAX_SHOWN: usize = 1 << 20;

/// What folding may still take.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: usize,
    work: usize,
}

impl Budget {
    /// Room for `bytes` of folded constants.
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, work: MAX_WORK }
    }

    /// Takes the bytes of one constant; false, and nothing taken, if there are too few.
    pub(super) fn take_bytes(&mut self, ty: &TensorType) -> bool {
        let rest = self.bytes.checked_sub(ty.n_elements().saturating_mul(ty.elem.size_bytes()));
        rest.map(|rest| self.bytes = rest).is_some()
    }

    /// Takes the work of one operation; false, and nothing taken, if there is too little.
    pub(super) fn take_work(&mut self, work: usize) -> bool {
        let rest = self.work.checked_sub(work);
        rest.map(|rest| self.work = rest).is_some()
    }
}

/// False for windows and lookups that show a constant more often than it is worth.
pub(super) fn is_small(op: &Op, ty: &TensorType) -> bool {
    !matches!(op, Op::Unfold(_) | Op::Gather(_) | Op::Attention(_)) || ty.n_elements() <= MAX_SHOWN
}

/// Multiply-adds, or elements read, of an operation on operands of these types.
pub(super) fn work(op: &Op, operands: &[&TensorType]) -> usize {
    let read = operands.iter().fold(0usize, |n, ty| n.saturating_add(ty.n_elements()));
    match (op, operands) {
        (Op::MatMul(_) | Op::Linear(_), [a, b, ..]) => {
            let columns = b.shape.last().copied().unwrap_or(1);
            a.n_elements().saturating_mul(columns).saturating_mul(batch(b)).max(read)
        }
        (Op::Attention(_), [q, k, ..]) => {
            let keys = k.shape.get(2).copied().unwrap_or(1);
            q.n_elements().saturating_mul(keys).max(read)
        }
        _ => read,
    }
}

fn batch(ty: &TensorType) -> usize {
    let outer = ty.shape.len().saturating_sub(2);
    ty.shape.iter().take(outer).fold(1, |n, &extent| n.saturating_mul(extent))
}

/// Applies an operation to constants; none if the interpreter declines.
pub(super) fn evaluate(op: &Op, constants: &[Constant]) -> Option<Constant> {
    let mut graph = Graph::new("fold");
    let operands: Vec<ValueId> =
        constants.iter().map(|constant| graph.add_const("operand", constant.clone(), Origin::default())).collect();
    let result = graph.add("result", op.clone(), &operands, Origin::default()).ok()?;
    graph.add_output("result", result.value());
    let result = interp::run(&graph, &BTreeMap::new()).ok()?.remove("result")?;
    result.to_constant().ok()
}

/// Applies an operator that the graph does not have to constants: it leaves no
/// trace, so any correct evaluator will do.
pub(super) fn by_tract(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let constants: Option<Vec<Option<&Constant>>> = cx
        .operands
        .iter()
        .map(|operand| operand.map(|tensor| cx.constant(tensor)).map_or(Some(None), |c| c.map(Some)))
        .collect();
    let folded = constants.and_then(|constants| tract::fold(cx.node, cx.opset, &constants));
    let refuse = || {
        let reason = "the operator is not supported, and its constant operands could not be folded";
        OpError::unsupported(reason, "fold constants when exporting, for example with `onnxsim`")
    };
    let constant = folded.ok_or_else(refuse)?;
    super::builder::check_size(&constant.ty)?;
    cx.builder.reserve(&constant.ty)?;
    Ok(vec![cx.known(constant)])
}
