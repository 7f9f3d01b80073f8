//! The graph under construction.
//!
//! A tensor is either known now or computed at run time. Known tensors are
//! placed into the graph when something computed reads them, once each, so that
//! shared weights stay shared; an operation on known tensors alone is folded.

use std::collections::BTreeMap;

use qail_ir::{Constant, DType, Elem, Graph, Op, Origin, TensorType, ValueId};

use super::{OpError, fold, transposed::transposed};
use crate::frontend::{dims::MAX_VALUE_ELEMENTS, tensor::MAX_RANK};

/// Weights above this size are transposed when they are read, not before.
const MAX_COPIED_BYTES: usize = 16 << 20;

/// Most operands of one operation.
const MAX_OPERANDS: usize = u16::MAX as usize;

/// Names a known tensor of one [`Builder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KnownId(usize);

/// A tensor of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tensor {
    /// Its elements are known now.
    Known(KnownId),
    /// It is computed at run time.
    Computed(ValueId),
}

#[derive(Debug)]
struct Known {
    name: String,
    constant: Constant,
    origin: Origin,
    placed: Option<ValueId>,
}

/// The graph and the tensors that are known.
#[derive(Debug)]
pub(super) struct Builder {
    /// The graph so far.
    pub(super) graph: Graph,
    known: Vec<Known>,
    weights: BTreeMap<(KnownId, bool, u32), KnownId>,
    budget: fold::Budget,
}

impl Builder {
    /// An empty graph; folded constants may take `folded_bytes`.
    pub(super) fn new(name: &str, folded_bytes: usize) -> Self {
        Self {
            graph: Graph::new(name),
            known: Vec::new(),
            weights: BTreeMap::new(),
            budget: fold::Budget::new(folded_bytes),
        }
    }

    /// Adds a known tensor.
    pub(super) fn known(&mut self, name: impl Into<String>, constant: Constant, origin: Origin) -> Tensor {
        self.known.push(Known { name: name.into(), constant, origin, placed: None });
        Tensor::Known(KnownId(self.known.len() - 1))
    }

    /// Type of a tensor.
    pub(super) fn ty(&self, tensor: Tensor) -> &TensorType {
        match tensor {
            Tensor::Known(id) => &self.known[id.0].constant.ty,
            Tensor::Computed(value) => self.graph.ty(value),
        }
    }

    /// The elements of a known tensor.
    pub(super) fn constant(&self, tensor: Tensor) -> Option<&Constant> {
        match tensor {
            Tensor::Known(id) => Some(&self.known[id.0].constant),
            Tensor::Computed(_) => None,
        }
    }

    /// The value of a tensor in the graph.
    pub(super) fn place(&mut self, tensor: Tensor) -> ValueId {
        match tensor {
            Tensor::Computed(value) => value,
            Tensor::Known(id) => {
                let Self { graph, known, .. } = self;
                let known = &mut known[id.0];
                *known.placed.get_or_insert_with(|| {
                    graph.add_const(known.name.clone(), known.constant.clone(), known.origin.clone())
                })
            }
        }
    }

    /// Lets a known tensor go by the name and origin of the one that it was made of.
    pub(super) fn adopt(&mut self, made: Tensor, of: Tensor) {
        if let (Tensor::Known(made), Tensor::Known(of)) = (made, of)
            && let Some((name, origin)) = self.known.get(of.0).map(|of| (of.name.clone(), of.origin.clone()))
            && let Some(made) = self.known.get_mut(made.0)
        {
            (made.name, made.origin) = (name, origin);
        }
    }

    /// Gives a tensor of this origin another name, if the one that it has begins with `made`.
    pub(super) fn rename(&mut self, tensor: Tensor, made: &str, origin: &Origin, name: String) {
        match tensor {
            Tensor::Computed(value) => {
                let node = self.graph.node(value.node);
                if node.origin == *origin && node.name.starts_with(made) && !matches!(node.op, Op::Input(_)) {
                    self.graph.rename(value.node, name);
                }
            }
            Tensor::Known(id) => {
                if let Some(known) = self.known.get_mut(id.0)
                    && known.origin == *origin
                    && known.placed.is_none()
                    && known.name.starts_with(made)
                {
                    known.name = name;
                }
            }
        }
    }

    /// Sets memory aside for a constant that is made here and not in the file.
    pub(super) fn reserve(&mut self, ty: &TensorType) -> Result<(), OpError> {
        if self.budget.take_bytes(ty) {
            return Ok(());
        }
        Err(OpError::unsupported(
            format!("constant expressions would grow far beyond the size of the model (here {ty})"),
            "compute large tables at run time or store them as initializers",
        ))
    }

    /// Applies an operation, now if every operand is known.
    pub(super) fn emit(
        &mut self,
        name: String,
        op: Op,
        operands: &[Tensor],
        origin: &Origin,
    ) -> Result<Tensor, OpError> {
        if operands.len() > MAX_OPERANDS {
            let remedy = "join the operands in several steps";
            return Err(OpError::unsupported(format!("it has {} operands", operands.len()), remedy));
        }
        let types: Vec<&TensorType> = operands.iter().map(|&tensor| self.ty(tensor)).collect();
        let ty = op.infer(&types)?.into_iter().next().unwrap_or_else(|| TensorType::f32([]));
        if is_empty_list(&ty) && operands.iter().all(|&tensor| self.constant(tensor).is_some()) {
            return Ok(self.known(name, Constant::ints(ty, &[]), origin.clone()));
        }
        check_size(&ty)?;
        types.iter().filter(|ty| ty.shape.contains(&0)).try_for_each(|ty| check_size(ty))?;
        let work = fold::work(&op, &types);
        let constants: Option<Vec<Constant>> = operands.iter().map(|&tensor| self.constant(tensor).cloned()).collect();
        match (&op, constants) {
            (_, None) => {}
            (Op::Reshape(_), Some(constants)) => {
                if let Some(Constant { data, .. }) = constants.into_iter().next() {
                    return Ok(self.known(name, Constant { ty, data }, origin.clone()));
                }
            }
            (_, Some(constants)) => {
                let affordable = self.budget.take_work(work) && self.budget.take_bytes(&ty) && fold::is_small(&op, &ty);
                if let Some(constant) = if affordable { fold::evaluate(&op, &constants) } else { None } {
                    return Ok(self.known(name, constant, origin.clone()));
                }
            }
        }
        let values: Vec<ValueId> = operands.iter().map(|&tensor| self.place(tensor)).collect();
        Ok(Tensor::Computed(self.graph.add(name, op, &values, origin.clone())?.value()))
    }

    /// A weight matrix `[K, N]` from a known matrix, transposed and scaled.
    /// Made once for every reader that asks for the same; `reader` names what is
    /// scaled for it.
    pub(super) fn weight(
        &mut self,
        matrix: Tensor,
        transpose: bool,
        scale: f32,
        reader: &str,
    ) -> Result<Tensor, OpError> {
        let Tensor::Known(id) = matrix else {
            return Err(OpError::invalid("a weight that is computed"));
        };
        if !transpose && scale == 1.0 {
            return Ok(matrix);
        }
        let key = (id, transpose, scale.to_bits());
        if let Some(&made) = self.weights.get(&key) {
            return Ok(Tensor::Known(made));
        }
        let constant = self.known[id.0].constant.clone();
        let &[rows, columns] = &constant.ty.shape[..] else {
            return Err(OpError::invalid(format!("a weight of type {}", constant.ty)));
        };
        let size_bytes = constant.ty.n_elements().saturating_mul(4);
        let made = if size_bytes > MAX_COPIED_BYTES && transpose {
            transposed(constant, rows, columns, scale)
        } else {
            self.reserve(&constant.ty)?;
            let constant = if transpose { transposed(constant, rows, columns, scale) } else { constant };
            let factor = if transpose { 1.0 } else { scale };
            let elements: Vec<f32> = constant.all_f32()?.into_iter().map(|x| x * factor).collect();
            Constant::f32(constant.ty.shape, &elements)
        };
        let Known { name, origin, .. } = &self.known[id.0];
        let name = if scale == 1.0 { name.clone() } else { format!("{reader}.weight") };
        let origin = origin.clone();
        let made = self.known(name, made, origin);
        if let Tensor::Known(made) = made {
            self.weights.insert(key, made);
        }
        Ok(made)
    }
}

/// Refuses values that no run-time could hold and extents that mean nothing.
pub(super) fn check_size(ty: &TensorType) -> Result<(), OpError> {
    if ty.shape.contains(&0) {
        return Err(OpError::unsupported(
            format!("a tensor has no elements: {ty}"),
            "export the model with extents of at least 1",
        ));
    }
    if ty.n_elements() > MAX_VALUE_ELEMENTS || ty.shape.len() > MAX_RANK {
        return Err(OpError::unsupported(
            format!("its result {ty} is too large: at most {MAX_VALUE_ELEMENTS} elements and rank {MAX_RANK}"),
            "export the model with smaller extents",
        ));
    }
    Ok(())
}

/// True for a list of no integers: shape arithmetic says "no axes" with it.
pub(super) fn is_empty_list(ty: &TensorType) -> bool {
    is_integer(ty) && ty.shape == [0]
}

/// True if the elements are integers or truth values.
pub(super) fn is_integer(ty: &TensorType) -> bool {
    matches!(ty.elem, Elem::Plain(DType::Bool | DType::U8 | DType::I32 | DType::I64))
}
