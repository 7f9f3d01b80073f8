//! Einsum: each pair of operands becomes a product of matrices.
//!
//! Labels of a product are of four kinds: those of both operands and the result are a batch,
//! those of both alone are summed by the product, the others are rows and columns. A label
//! of one operand that nobody else reads is summed first.

use std::collections::BTreeMap;

use qail_ir::ReduceFn;

use super::{OpError, builder::Tensor, cx::NodeCx};
use crate::frontend::error::shown;

/// Names an axis. The axes of an ellipsis have numbers beyond every letter, the last one first.
type Label = u32;

const ELLIPSIS: Label = 1 << 24;

/// A tensor whose axes have names.
#[derive(Clone, Debug)]
struct Term {
    tensor: Tensor,
    labels: Vec<Label>,
}

/// Sums of products by an equation.
pub(super) fn einsum(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let equation = cx.text("equation")?.ok_or_else(|| OpError::invalid("it has no equation"))?;
    let operands = cx.all_operands()?;
    operands.iter().try_for_each(|&operand| cx.expect_float(operand))?;
    let invalid = || OpError::invalid(format!("its equation is `{}`", shown(&equation)));
    let plain: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match plain.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (plain.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != operands.len() || operands.len() > 64 {
        return Err(invalid());
    }
    let mut extents: BTreeMap<Label, usize> = BTreeMap::new();
    let mut parsed = Vec::with_capacity(terms.len());
    for (text, &tensor) in terms.iter().zip(&operands) {
        let shape = cx.shape(tensor);
        let labels = labels(text, Some(shape.len())).ok_or_else(invalid)?;
        for (&label, &extent) in labels.iter().zip(&shape) {
            let known = extents.entry(label).or_insert(extent);
            if *known != extent && *known != 1 && extent != 1 {
                return Err(OpError::invalid(format!("extents {known} and {extent} meet in `{}`", shown(&equation))));
            }
            *known = extent.max(*known);
        }
        parsed.push(Term { tensor, labels });
    }
    let result = match right {
        Some(text) => {
            let n = extents.keys().filter(|&&label| label >= ELLIPSIS).count();
            let letters = text.chars().filter(char::is_ascii_alphabetic).count();
            labels(text, Some(letters + if text.contains("...") { n } else { 0 })).ok_or_else(invalid)?
        }
        None => implicit(&parsed),
    };
    let mut seen = result.clone();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != result.len() || result.iter().any(|label| !extents.contains_key(label)) {
        return Err(invalid());
    }
    let mut pending: Vec<Term> = Vec::with_capacity(parsed.len());
    for term in parsed {
        pending.push(full(cx, term, &extents)?);
    }
    let mut pending = pending.into_iter();
    let mut product = pending.next().ok_or_else(invalid)?;
    let rest: Vec<Term> = pending.collect();
    for (i, term) in rest.iter().enumerate() {
        let later: Vec<Label> =
            rest.iter().skip(i + 1).flat_map(|term| term.labels.clone()).chain(result.clone()).collect();
        product = contract(cx, product, term.clone(), &later, &extents)?;
    }
    product = summed(cx, product, &result)?;
    let order = positions(&product.labels, &result).ok_or_else(invalid)?;
    Ok(vec![cx.permuted(product.tensor, order)?])
}

/// The labels of a term of a tensor of this rank; `...` stands for what letters leave.
fn labels(text: &str, rank: Option<usize>) -> Option<Vec<Label>> {
    let letters = text.chars().filter(char::is_ascii_alphabetic).count();
    let n = rank?.checked_sub(letters)?;
    let mut labels = Vec::new();
    let (before, behind) = match text.split_once("...") {
        Some((before, behind)) => (before, Some(behind)),
        None if n == 0 => (text, None),
        None => return None,
    };
    let letter = |c: char| c.is_ascii_alphabetic().then_some(c as Label);
    labels.extend(before.chars().map(letter).collect::<Option<Vec<_>>>()?);
    if let Some(behind) = behind {
        labels.extend((0..n as Label).rev().map(|i| ELLIPSIS + i));
        labels.extend(behind.chars().map(letter).collect::<Option<Vec<_>>>()?);
    }
    Some(labels)
}

/// Without an arrow: the axes of an ellipsis, then the letters that stand once, in order.
fn implicit(terms: &[Term]) -> Vec<Label> {
    let mut counts: BTreeMap<Label, usize> = BTreeMap::new();
    for &label in terms.iter().flat_map(|term| &term.labels) {
        *counts.entry(label).or_default() += 1;
    }
    let spread = counts.keys().rev().filter(|&&label| label >= ELLIPSIS).copied();
    let letters = counts.iter().filter(|&(&label, &n)| label < ELLIPSIS && n == 1).map(|(&label, _)| label);
    spread.chain(letters).collect()
}

/// Each label once, each with its whole extent.
fn full(cx: &mut NodeCx<'_>, term: Term, extents: &BTreeMap<Label, usize>) -> Result<Term, OpError> {
    let Term { mut tensor, mut labels } = term;
    let whole: Vec<usize> = labels.iter().filter_map(|label| extents.get(label).copied()).collect();
    tensor = cx.expanded(tensor, whole)?;
    while let Some((i, j)) = repeated(&labels) {
        // A diagonal: element (i, i) of the two axes, flattened to one.
        let rank = labels.len();
        let mut order: Vec<usize> = (0..rank).filter(|&axis| axis != i && axis != j).collect();
        order.extend([i, j]);
        tensor = cx.permuted(tensor, order.clone())?;
        labels = order.iter().filter_map(|&axis| labels.get(axis).copied()).collect();
        let shape = cx.shape(tensor);
        let n = shape[rank - 1];
        tensor = cx.reshaped(tensor, [&shape[..rank - 2], &[n * n]].concat())?;
        let index = cx.table(&[n], |i| (i * (n + 1)) as i64)?;
        tensor = cx.looked_up(tensor, index, rank - 2)?;
        labels.pop();
    }
    Ok(Term { tensor, labels })
}

fn repeated(labels: &[Label]) -> Option<(usize, usize)> {
    (0..labels.len()).find_map(|i| (i + 1..labels.len()).find(|&j| labels[i] == labels[j]).map(|j| (i, j)))
}

/// Sums over the labels that are not kept.
fn summed(cx: &mut NodeCx<'_>, term: Term, kept: &[Label]) -> Result<Term, OpError> {
    let axes: Vec<usize> = (0..term.labels.len()).filter(|&axis| !kept.contains(&term.labels[axis])).collect();
    let tensor = cx.reduced(ReduceFn::Sum, term.tensor, &axes, false)?;
    let labels = term.labels.into_iter().filter(|label| kept.contains(label)).collect();
    Ok(Term { tensor, labels })
}

fn positions(labels: &[Label], order: &[Label]) -> Option<Vec<usize>> {
    order.iter().map(|wanted| labels.iter().position(|label| label == wanted)).collect()
}

/// The product of two terms; `later` still needs these labels.
fn contract(
    cx: &mut NodeCx<'_>,
    a: Term,
    b: Term,
    later: &[Label],
    extents: &BTreeMap<Label, usize>,
) -> Result<Term, OpError> {
    let keep_a: Vec<Label> = b.labels.iter().chain(later).copied().collect();
    let a = summed(cx, a, &keep_a)?;
    let keep_b: Vec<Label> = a.labels.iter().chain(later).copied().collect();
    let b = summed(cx, b, &keep_b)?;
    let both = |label: &Label| a.labels.contains(label) && b.labels.contains(label);
    let pick = |labels: &[Label], wanted: &dyn Fn(&Label) -> bool| -> Vec<Label> {
        labels.iter().filter(|label| wanted(label)).copied().collect()
    };
    let batch = pick(&a.labels, &|label| both(label) && later.contains(label));
    let inner = pick(&a.labels, &|label| both(label) && !later.contains(label));
    let rows = pick(&a.labels, &|label| !both(label));
    let columns = pick(&b.labels, &|label| !both(label));
    let size = |labels: &[Label]| labels.iter().filter_map(|label| extents.get(label)).product::<usize>();
    let sizes = |labels: &[Label]| labels.iter().filter_map(|label| extents.get(label).copied()).collect::<Vec<_>>();
    let lost = || OpError::invalid("a label is lost in its equation");
    let lead = sizes(&batch);
    let order = positions(&a.labels, &[&batch[..], &rows, &inner].concat()).ok_or_else(lost)?;
    let x = cx.permuted(a.tensor, order)?;
    let x = cx.reshaped(x, [&lead[..], &[size(&rows), size(&inner)]].concat())?;
    let order = positions(&b.labels, &[&batch[..], &inner, &columns].concat()).ok_or_else(lost)?;
    let w = cx.permuted(b.tensor, order)?;
    let w = cx.reshaped(w, [&lead[..], &[size(&inner), size(&columns)]].concat())?;
    let y = cx.product(x, w)?;
    let labels = [&batch[..], &rows, &columns].concat();
    let tensor = cx.reshaped(y, sizes(&labels))?;
    Ok(Term { tensor, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ellipsis_stands_for_what_letters_leave() {
        let a = 'a' as Label;
        assert_eq!(labels("a...b", Some(4)), Some(vec![a, ELLIPSIS + 1, ELLIPSIS, a + 1]));
        assert_eq!(labels("ab", Some(2)), Some(vec![a, a + 1]));
        assert_eq!(labels("ab", Some(3)), None);
        assert_eq!(labels("a!", Some(1)), None);
    }
}
