//! The graph under construction.
//!
//! A tensor is either known now or computed at run time. Known tensors are
//! placed into the graph when something computed reads them, once each, so that
//! shared weights stay shared; an operation on known tensors alone is folded.
//!
//! What a model computes on codes is computed here on the numbers that the
//! codes stand for. A tensor remembers that it holds codes, so that nobody
//! takes them for numbers; a known tensor that was read from codes remembers
//! them, so that a layer whose weight it becomes has exactly those.

use std::collections::BTreeMap;

use qail_ir::{
    Constant, DType, Elem, FakeQuant, Graph, Op, Origin, QuantScheme, Reduce, ReduceFn, TensorType, Transpose, ValueId,
    verify_node,
};

use super::{
    OpError, fold,
    quantized::{MatrixQuant, WeightQuant},
    transposed::transposed,
};
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
    /// Codes, computed at run time; the value is what they stand for.
    Codes(ValueId, CodesId),
}

/// Names the codes of one quantizer of one [`Builder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CodesId(usize);

/// What codes stand for: `scale * (code - zero_point)`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Codes {
    /// The step.
    pub(super) scale: f32,
    /// Code of zero, as the model has it.
    pub(super) zero_point: i64,
    /// Width and sign in the model.
    pub(super) scheme: QuantScheme,
    /// The node that makes the codes.
    pub(super) node: String,
}

impl Codes {
    /// True if the codes of both stand for the same numbers.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        (self.scale, self.zero_point, self.scheme) == (other.scale, other.zero_point, other.scheme)
    }
}

#[derive(Debug)]
struct Known {
    name: String,
    constant: Constant,
    origin: Origin,
    placed: Option<ValueId>,
    /// How it was quantized.
    quant: Option<WeightQuant>,
    /// Its place as a weight, quantized.
    placed_weight: Option<ValueId>,
}

/// The graph and the tensors that are known.
#[derive(Debug)]
pub(super) struct Builder {
    /// The graph so far.
    pub(super) graph: Graph,
    known: Vec<Known>,
    codes: Vec<Codes>,
    weights: BTreeMap<(KnownId, bool, u32), KnownId>,
    budget: fold::Budget,
}

impl Builder {
    /// An empty graph; folded constants may take `folded_bytes`.
    pub(super) fn new(name: &str, folded_bytes: usize) -> Self {
        Self {
            graph: Graph::new(name),
            known: Vec::new(),
            codes: Vec::new(),
            weights: BTreeMap::new(),
            budget: fold::Budget::new(folded_bytes),
        }
    }

    /// Adds a known tensor.
    pub(super) fn known(&mut self, name: impl Into<String>, constant: Constant, origin: Origin) -> Tensor {
        let name = name.into();
        self.known.push(Known { name, constant, origin, placed: None, quant: None, placed_weight: None });
        Tensor::Known(KnownId(self.known.len() - 1))
    }

    /// Remembers how a known tensor was quantized.
    pub(super) fn set_quant(&mut self, tensor: Tensor, quant: Option<WeightQuant>) {
        if let Tensor::Known(id) = tensor {
            self.known[id.0].quant = quant;
        }
    }

    /// How a known tensor was quantized.
    fn quant(&self, tensor: Tensor) -> Option<&WeightQuant> {
        match tensor {
            Tensor::Known(id) => self.known[id.0].quant.as_ref(),
            Tensor::Computed(_) | Tensor::Codes(..) => None,
        }
    }

    /// Marks a value as what codes stand for.
    pub(super) fn as_codes(&mut self, value: ValueId, codes: Codes) -> Tensor {
        self.codes.push(codes);
        Tensor::Codes(value, CodesId(self.codes.len() - 1))
    }

    /// What the codes of a tensor stand for, if it holds codes.
    pub(super) fn codes(&self, tensor: Tensor) -> Option<&Codes> {
        match tensor {
            Tensor::Codes(_, id) => self.codes.get(id.0),
            Tensor::Known(_) | Tensor::Computed(_) => None,
        }
    }

    /// Fails if a tensor holds codes that would be taken for numbers.
    pub(super) fn expect_numbers(&self, tensor: Tensor) -> Result<(), OpError> {
        match self.codes(tensor) {
            None => Ok(()),
            Some(codes) => Err(OpError::unsupported(
                format!("it takes the codes of `{}` for numbers", codes.node),
                "put a DequantizeLinear in front of it, or use the operator that takes scales",
            )),
        }
    }

    /// Type of a tensor.
    pub(super) fn ty(&self, tensor: Tensor) -> &TensorType {
        match tensor {
            Tensor::Known(id) => &self.known[id.0].constant.ty,
            Tensor::Computed(value) | Tensor::Codes(value, _) => self.graph.ty(value),
        }
    }

    /// The elements of a known tensor.
    pub(super) fn constant(&self, tensor: Tensor) -> Option<&Constant> {
        match tensor {
            Tensor::Known(id) => Some(&self.known[id.0].constant),
            Tensor::Computed(_) | Tensor::Codes(..) => None,
        }
    }

    /// The value of a tensor in the graph.
    pub(super) fn place(&mut self, tensor: Tensor) -> ValueId {
        match tensor {
            Tensor::Computed(value) | Tensor::Codes(value, _) => value,
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
            Tensor::Computed(value) | Tensor::Codes(value, _) => {
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

    /// The value of a weight `[K, N]` of a layer: behind its quantizer, if it was
    /// read from codes.
    fn place_weight(&mut self, tensor: Tensor) -> Result<ValueId, OpError> {
        let value = self.place(tensor);
        let Tensor::Known(id) = tensor else { return Ok(value) };
        let known = &self.known[id.0];
        if let Some(placed) = known.placed_weight {
            return Ok(placed);
        }
        let Some(MatrixQuant { scheme, group, scales }) = known.quant.as_ref().and_then(WeightQuant::of_matrix) else {
            return Ok(value);
        };
        let (name, origin) = (known.name.clone(), known.origin.clone());
        let n = self.graph.ty(value).shape.last().copied().unwrap_or(1);
        let shape = if group.is_some() { vec![scales.len() / n.max(1), n] } else { vec![n] };
        let fake = FakeQuant { scheme, lo: scheme.lo(), hi: scheme.hi(), axis: Some(1), group };
        let scales = self.graph.add_const(format!("{name}.s"), Constant::f32(shape, &scales), Origin::default());
        let quantized = self.graph.add(format!("{name}.q"), Op::FakeQuant(fake), &[value, scales], origin)?.value();
        self.known[id.0].placed_weight = Some(quantized);
        Ok(quantized)
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
        let codes = self.moved_codes(&op, operands)?;
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
                    let quant = self.moved_quant(&op, operands, &ty);
                    let moved = self.known(name, Constant { ty, data }, origin.clone());
                    self.set_quant(moved, quant);
                    return Ok(moved);
                }
            }
            (Op::Transpose(Transpose { perm }), Some(constants))
                if *perm == [1, 0] && ty.is_f32() && ty.n_elements() > MAX_COPIED_BYTES / 4 =>
            {
                // What is turned has the extents of the result the other way around.
                if let (Some(constant), &[columns, rows]) = (constants.into_iter().next(), &ty.shape[..]) {
                    let quant = self.moved_quant(&op, operands, &ty);
                    let turned = self.known(name, transposed(constant, rows, columns, 1.0), origin.clone());
                    self.set_quant(turned, quant);
                    return Ok(turned);
                }
            }
            (_, Some(constants)) => {
                // A weight that is only moved takes no more work than reading it.
                let quantized = operands.iter().any(|&tensor| self.quant(tensor).is_some());
                let work = if quantized && matches!(op, Op::Transpose(_)) { 0 } else { work };
                let affordable = self.budget.take_work(work) && self.budget.take_bytes(&ty) && fold::is_small(&op, &ty);
                if let Some(constant) = if affordable { fold::evaluate(&op, &constants) } else { None } {
                    let quant = self.moved_quant(&op, operands, &ty);
                    let folded = self.known(name, constant, origin.clone());
                    self.set_quant(folded, quant);
                    return Ok(folded);
                }
            }
        }
        let is_weight = |slot: usize| slot == 1 && matches!(op, Op::Linear(_));
        let values: Vec<ValueId> = operands
            .iter()
            .enumerate()
            .map(|(slot, &tensor)| if is_weight(slot) { self.place_weight(tensor) } else { Ok(self.place(tensor)) })
            .collect::<Result<_, OpError>>()?;
        let value = self.graph.add(name, op, &values, origin.clone())?.value();
        verify_node(&self.graph, value.node)?;
        Ok(codes.map_or(Tensor::Computed(value), |codes| Tensor::Codes(value, codes)))
    }

    /// The codes behind an operation that moves or selects codes; fails if it
    /// computes with them.
    fn moved_codes(&self, op: &Op, operands: &[Tensor]) -> Result<Option<CodesId>, OpError> {
        let ids = operands.iter().filter_map(|tensor| match tensor {
            Tensor::Codes(_, id) => Some(*id),
            Tensor::Known(_) | Tensor::Computed(_) => None,
        });
        let ids: Vec<CodesId> = ids.collect();
        let Some(&first) = ids.first() else { return Ok(None) };
        let zero_is_zero = self.codes.get(first.0).is_some_and(|codes| codes.zero_point == 0);
        let moves = match op {
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Gather(_) => ids.len() == 1,
            Op::Concat(_) => {
                let agree =
                    |id: &CodesId| self.codes.get(id.0).zip(self.codes.get(first.0)).is_some_and(|(a, b)| a.agrees(b));
                ids.len() == operands.len() && ids.iter().all(agree)
            }
            // What stands outside of a window is a code, too.
            Op::Unfold(unfold) => unfold.fill == f32::NEG_INFINITY || (unfold.fill == 0.0 && zero_is_zero),
            Op::Reduce(Reduce { f: ReduceFn::Max | ReduceFn::Min, .. }) => true,
            _ => false,
        };
        if moves {
            return Ok(Some(first));
        }
        operands.iter().try_for_each(|&tensor| self.expect_numbers(tensor)).map(|()| None)
    }

    /// How a known tensor that was moved is quantized, if it still is.
    fn moved_quant(&self, op: &Op, operands: &[Tensor], ty: &TensorType) -> Option<WeightQuant> {
        let &[x] = operands else { return None };
        let quant = self.quant(x)?;
        match op {
            Op::Reshape(_) => quant.reshaped(&ty.shape),
            Op::Transpose(Transpose { perm }) => quant.transposed(perm),
            Op::Slice(_) => quant.part(&ty.shape),
            _ => None,
        }
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
        // Without room for a copy it is read in place, which is slower.
        let made = if transpose && (size_bytes > MAX_COPIED_BYTES || !self.budget.take_bytes(&constant.ty)) {
            transposed(constant, rows, columns, scale)
        } else {
            if !transpose {
                self.reserve(&constant.ty)?;
            }
            let constant = if transpose { transposed(constant, rows, columns, scale) } else { constant };
            let factor = if transpose { 1.0 } else { scale };
            let elements: Vec<f32> = constant.all_f32()?.into_iter().map(|x| x * factor).collect();
            Constant::f32(constant.ty.shape, &elements)
        };
        let Known { name, origin, quant, .. } = &self.known[id.0];
        let quant = quant.as_ref().filter(|_| scale == 1.0).and_then(|quant| quant.transposed(&[1, 0]));
        let name = if scale == 1.0 { name.clone() } else { format!("{reader}.weight") };
        let origin = origin.clone();
        let made = self.known(name, made, origin);
        self.set_quant(made, quant);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_transposed_in_place_when_nothing_may_be_copied() {
        let mut builder = Builder::new("g", 0);
        let matrix = Constant::f32([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let matrix = builder.known("w", matrix, Origin::default());
        let turned = builder.weight(matrix, true, 2.0, "y").unwrap();
        assert_eq!(builder.constant(turned).unwrap().all_f32().unwrap(), [2.0, 8.0, 4.0, 10.0, 6.0, 12.0]);
        assert!(builder.weight(matrix, false, 2.0, "y").is_err());
    }
}
