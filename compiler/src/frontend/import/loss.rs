//! Losses of classifiers: rarely part of a policy, often part of what trained it.

use qail_ir::{BinaryFn, CompareFn, DType, ReduceFn, UnaryFn};

use super::{OpError, builder::Tensor, cx::NodeCx, gather};
use crate::frontend::error::shown;

/// `-x[target]`, weighted.
pub(super) fn negative_log_likelihood(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    Ok(vec![loss(cx, x)?])
}

/// As above, of the logarithm of a softmax, which is a result, too.
pub(super) fn cross_entropy(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.float(0)?;
    if cx.ty(x).shape.len() < 2 {
        return Err(OpError::invalid(format!("it takes scores of classes, found {}", cx.ty(x))));
    }
    let log = cx.softmax(x, 1, true)?;
    Ok(vec![loss(cx, log)?, log])
}

fn loss(cx: &mut NodeCx<'_>, x: Tensor) -> Result<Tensor, OpError> {
    let (target, weights) = (cx.operand(1)?, cx.optional(2));
    let ignored = cx.int("ignore_index")?;
    let reduction = cx.text("reduction")?;
    let shape = cx.shape(x);
    let &[n, _, ref places @ ..] = &shape[..] else {
        return Err(OpError::invalid(format!("it takes scores of classes, found {}", cx.ty(x))));
    };
    let target = cx.cast_to(target, DType::I64)?;
    let kept = [&[n], places].concat();
    if cx.shape(target) != kept {
        return Err(OpError::invalid(format!("classes {} for scores {shape:?}", cx.ty(target))));
    }
    let mut seen = None;
    let mut class = target;
    if let Some(ignored) = ignored {
        let ignored = cx.table(&[1], |_| ignored)?;
        let skip = cx.compare(CompareFn::Eq, target, ignored)?;
        let zero = cx.scalar_like(target, 0.0);
        class = cx.choose(skip, zero, target)?;
        seen = Some(skip);
    }
    let index = cx.reshaped(class, [&[n, 1], places].concat())?;
    let picked = gather::elements(cx, x, index, 1)?;
    let picked = cx.reshaped(picked, kept.clone())?;
    let mut each = cx.map(UnaryFn::Neg, picked)?;
    let mut weight = match weights {
        Some(weights) => {
            cx.expect_float(weights)?;
            Some(cx.looked_up(weights, class, 0)?)
        }
        None => None,
    };
    if let Some(skip) = seen {
        let one = cx.scalar(1.0);
        let (have, zero) = (weight.unwrap_or(one), cx.scalar(0.0));
        weight = Some(cx.choose(skip, zero, have)?);
    }
    if let Some(weight) = weight {
        each = cx.mul(each, weight)?;
    }
    let all: Vec<usize> = (0..kept.len()).collect();
    match reduction.as_deref() {
        Some("none") => Ok(each),
        Some("sum") => cx.reduced(ReduceFn::Sum, each, &all, false),
        None | Some("mean") => match weight {
            Some(weight) => {
                let sum = cx.reduced(ReduceFn::Sum, each, &all, false)?;
                let total = cx.reduced(ReduceFn::Sum, weight, &all, false)?;
                cx.zip(BinaryFn::Div, sum, total)
            }
            None => cx.reduced(ReduceFn::Mean, each, &all, false),
        },
        Some(other) => Err(OpError::invalid(format!("its reduction is {}", shown(other)))),
    }
}
