//! Operations that compare, choose and look up by index.

use crate::{CompareFn, DType, Elem, Op, TensorType, TypeError};

use super::infer::broadcast;

/// See [`Op::Compare`].
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// The comparison.
    pub f: CompareFn,
}

/// See [`Op::Where`].
#[derive(Clone, Debug, PartialEq)]
pub struct Where;

/// See [`Op::Gather`]. Axis `axis` of `x` gives way to the axes of the index. A negative index
/// counts from the end; one beyond either end reads the element there.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// The axis that is looked up.
    pub axis: usize,
}

/// What becomes of an element that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScatterFn {
    /// The new one.
    Replace,
    /// Their sum.
    Add,
    /// Their product.
    Mul,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl ScatterFn {
    /// Every function.
    pub const ALL: [Self; 5] = [Self::Replace, Self::Add, Self::Mul, Self::Min, Self::Max];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// See [`Op::Scatter`]. `x[D, ..]`, `index[M]`, `update[M, ..]`: row `index[m]` of a copy of `x` is
/// combined with row `m` of the update, in the order of `m`. A negative index counts from the end;
/// rows beyond either end are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    /// How.
    pub f: ScatterFn,
}

/// See [`Op::ArgReduce`]: the index, `i64`, of the largest or smallest element along an axis. NaN
/// wins over every number.
#[derive(Clone, Debug, PartialEq)]
pub struct ArgReduce {
    /// The largest, or the smallest.
    pub largest: bool,
    /// The axis that disappears.
    pub axis: usize,
    /// Keep it with extent 1 instead.
    pub keep_dims: bool,
    /// Of equal elements the last one, not the first one.
    pub last: bool,
}

/// Which result of [`Op::TopK`] a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopKPart {
    /// The elements.
    Values,
    /// Where they stood, `i64`.
    Indices,
}

/// See [`Op::TopK`]: the first `k` elements along an axis, sorted; of equal ones the first comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// The axis.
    pub axis: usize,
    /// How many.
    pub k: usize,
    /// Largest first, or smallest first.
    pub largest: bool,
    /// Elements or indices.
    pub part: TopKPart,
}

/// See [`Op::CumSum`], in index order from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct CumSum {
    /// The axis.
    pub axis: usize,
    /// The element itself is not part of its sum.
    pub exclusive: bool,
    /// From the end.
    pub reverse: bool,
}

fn is_index(ty: &TensorType) -> bool {
    matches!(ty.elem, Elem::Plain(DType::I32 | DType::I64))
}

impl Op {
    pub(super) fn infer_compare(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "two tensors of one plain type that broadcast", operands);
        match operands {
            [a, b] if a.elem == b.elem && a.dtype().is_some() => {
                Ok(TensorType::plain(DType::Bool, broadcast(&a.shape, &b.shape).ok_or_else(error)?))
            }
            _ => Err(error()),
        }
    }

    pub(super) fn infer_where(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "bool and two tensors of one plain type that broadcast", operands);
        match operands {
            [c, a, b] if c.elem == Elem::Plain(DType::Bool) && a.elem == b.elem && a.dtype().is_some() => {
                let shape = broadcast(&a.shape, &b.shape).and_then(|shape| broadcast(&c.shape, &shape));
                Ok(TensorType { elem: a.elem, shape: shape.ok_or_else(error)? })
            }
            _ => Err(error()),
        }
    }

    pub(super) fn infer_gather(&self, gather: &Gather, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "a tensor that has the axis, and an index of i32 or i64", operands);
        let [x, index] = operands else { return Err(error()) };
        let (Some(before), Some(behind)) = (x.shape.get(..gather.axis), x.shape.get(gather.axis + 1..)) else {
            return Err(error());
        };
        if !is_index(index) || x.shape.get(gather.axis).is_none_or(|&extent| extent == 0) {
            return Err(error());
        }
        Ok(TensorType { elem: x.elem, shape: [before, &index.shape, behind].concat() })
    }

    pub(super) fn infer_scatter(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "x[D, ..], an index [M] of i32 or i64, an update [M, ..]", operands);
        let [x, index, update] = operands else { return Err(error()) };
        let ([_, row @ ..], [m], [m_update, row_update @ ..]) = (&x.shape[..], &index.shape[..], &update.shape[..])
        else {
            return Err(error());
        };
        if !is_index(index) || x.elem != update.elem || x.dtype().is_none() || m != m_update || row != row_update {
            return Err(error());
        }
        Ok((*x).clone())
    }

    pub(super) fn infer_arg_reduce(&self, op: &ArgReduce, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error = || TypeError::new(self.name(), "one plain tensor that has the axis", operands);
        let [x] = operands else { return Err(error()) };
        if x.dtype().is_none() || x.shape.get(op.axis).is_none_or(|&extent| extent == 0) {
            return Err(error());
        }
        let mut shape = x.shape.clone();
        if op.keep_dims {
            shape[op.axis] = 1;
        } else {
            shape.remove(op.axis);
        }
        Ok(TensorType::plain(DType::I64, shape))
    }

    pub(super) fn infer_top_k(&self, op: &TopK, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let error =
            || TypeError::new(self.name(), "one plain tensor with at least k elements along the axis", operands);
        let [x] = operands else { return Err(error()) };
        if x.dtype().is_none() || op.k == 0 || x.shape.get(op.axis).is_none_or(|&extent| extent < op.k) {
            return Err(error());
        }
        let mut ty = (*x).clone();
        ty.shape[op.axis] = op.k;
        if op.part == TopKPart::Indices {
            ty.elem = Elem::Plain(DType::I64);
        }
        Ok(ty)
    }

    pub(super) fn infer_cum_sum(&self, op: &CumSum, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        match operands {
            [x] if op.axis < x.shape.len() && x.dtype().is_some_and(|dtype| dtype != DType::Bool) => Ok((*x).clone()),
            _ => Err(TypeError::new(self.name(), "one tensor of numbers that has the axis", operands)),
        }
    }
}
