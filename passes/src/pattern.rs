//! Words for patterns: what passes that lift operations out of their decomposed forms share.

use std::collections::BTreeMap;

use qail_ir::{Binary, BinaryFn, Graph, NodeId, Op, Reduce, ReduceFn, Transpose, Unary, UnaryFn, ValueId};

use crate::{PassContext, PassError, rewrite};

/// The operand, if the value is `f` of it.
pub(crate) fn unary(graph: &Graph, value: ValueId, f: UnaryFn) -> Option<ValueId> {
    let found = matches!(graph.op(value), Op::Unary(Unary { f: found }) if *found == f);
    found.then(|| graph.operands(value.node).first().copied()).flatten()
}

/// Both operands, if the value is `f` of them.
pub(crate) fn binary(graph: &Graph, value: ValueId, f: BinaryFn) -> Option<[ValueId; 2]> {
    match (graph.op(value), &graph.operands(value.node)[..]) {
        (Op::Binary(Binary { f: found }), &[a, b]) if *found == f => Some([a, b]),
        _ => None,
    }
}

/// Axes and operand, if the value is a reduction along them that keeps them.
pub(crate) fn kept_reduce(graph: &Graph, value: ValueId, f: ReduceFn) -> Option<(Vec<usize>, ValueId)> {
    match graph.op(value) {
        Op::Reduce(Reduce { f: found, axes, keep_dims: true }) if *found == f => {
            Some((axes.clone(), graph.operands(value.node).first().copied()?))
        }
        _ => None,
    }
}

/// The number, if a constant of one element defines the value.
pub(crate) fn number(graph: &Graph, value: ValueId) -> Option<f64> {
    let constant = graph.const_of(value).filter(|constant| constant.ty.n_elements() == 1)?;
    constant.read(0..1).ok()?.first().copied()
}

/// True if two numbers are the same but for rounding of `f32`.
pub(crate) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

/// What is left of a sum or product of two with a constant of one element: the other operand and the number.
pub(crate) fn with_number(graph: &Graph, value: ValueId, f: BinaryFn) -> Option<(ValueId, f64)> {
    let [a, b] = binary(graph, value, f)?;
    match (number(graph, a), number(graph, b)) {
        (None, Some(c)) => Some((a, c)),
        (Some(c), None) => Some((b, c)),
        _ => None,
    }
}

/// The value that an `expand` repeats, if the value is that; else itself.
pub(crate) fn before_expand(graph: &Graph, value: ValueId) -> ValueId {
    match (graph.op(value), &graph.operands(value.node)[..]) {
        (Op::Expand(_), &[x]) => x,
        _ => value,
    }
}

/// A product: one number times values. Powers with whole exponents are products too.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Product {
    pub(crate) number: f64,
    /// Sorted.
    pub(crate) factors: Vec<ValueId>,
}

/// Largest number of factors of a product.
const MAX_FACTORS: usize = 8;

impl Product {
    /// The value as a product; a value that is none is the product of itself alone.
    pub(crate) fn of(graph: &Graph, value: ValueId) -> Self {
        let mut product = Self { number: 1.0, factors: Vec::new() };
        let mut queue = vec![value];
        while let Some(value) = queue.pop() {
            // Factors that broadcast change the shape: they stay factors.
            let whole = |x: ValueId| graph.ty(x) == graph.ty(value);
            let room = product.factors.len() + queue.len() < MAX_FACTORS;
            if let Some(c) = number(graph, value) {
                product.number *= c;
                continue;
            }
            let parts = |&x: &ValueId| whole(x) || number(graph, x).is_some();
            if let Some(both) = binary(graph, value, BinaryFn::Mul).filter(|both| room && both.iter().all(parts)) {
                queue.extend(both);
                continue;
            }
            let by_number = |f: BinaryFn| {
                let [x, c] = binary(graph, value, f).filter(|&[x, _]| whole(x))?;
                Some((x, number(graph, c)?))
            };
            if let Some((x, c)) = by_number(BinaryFn::Div) {
                product.number /= c;
                queue.push(x);
                continue;
            }
            if let Some((x, n)) = by_number(BinaryFn::Pow).filter(|(_, n)| room && matches!(n, 2.0 | 3.0)) {
                queue.extend(std::iter::repeat_n(x, n as usize));
                continue;
            }
            if let Some(x) = unary(graph, value, UnaryFn::Neg) {
                product.number = -product.number;
                queue.push(x);
                continue;
            }
            product.factors.push(value);
        }
        product.factors.sort();
        product
    }

    /// The number and the other factor, if the product is of `x` and one other value.
    pub(crate) fn beside(&self, x: ValueId) -> Option<(f64, ValueId)> {
        match self.factors[..] {
            [a, b] if a == x => Some((self.number, b)),
            [a, b] if b == x => Some((self.number, a)),
            _ => None,
        }
    }

    /// Factors of the square of a product without a number.
    pub(crate) fn squared(&self) -> Vec<ValueId> {
        let mut twice = [&self.factors[..], &self.factors[..]].concat();
        twice.sort();
        twice
    }

    /// The number, if the product is of `x` alone.
    pub(crate) fn times(&self, x: ValueId) -> Option<f64> {
        (self.factors == [x]).then_some(self.number)
    }
}

/// What a gate is: a function, something else, or nearly a function, and what is wrong.
pub(crate) type Gate = Result<Option<UnaryFn>, &'static str>;

/// Gates: nodes `c * x * g(x)` become what `function` makes of `x`, the number and the other factor.
pub(crate) fn lift_gates(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    function: impl Fn(&Graph, ValueId, f64, ValueId) -> Gate,
) -> Result<Vec<NodeId>, PassError> {
    let mut replaced = Vec::new();
    // Users first: the last product of a gate has all of its factors.
    for id in graph.topo().into_iter().rev() {
        let products = is_product(graph, id);
        let read = graph.is_output(id.value()) || !graph.users(id.value()).is_empty();
        if !products || !read || !graph.ty(id.value()).is_f32() {
            continue;
        }
        let product = Product::of(graph, id.value());
        let mut found = None;
        let mut reason = None;
        for &x in &product.factors {
            let Some((number, other)) = product.beside(x) else { continue };
            match function(graph, x, number, other) {
                Ok(Some(f)) => found = Some((x, f)),
                Ok(None) => {}
                Err(why) => reason = Some(why),
            }
        }
        let Some((x, f)) = found else {
            // A part of a longer product is not yet all of a gate.
            let part = graph.sole_user(id.value()).is_some_and(|user| is_product(graph, user));
            if let Some(reason) = reason.filter(|_| !part) {
                cx.declined(graph, id, reason);
            }
            continue;
        };
        if graph.ty(x) != graph.ty(id.value()) {
            continue;
        }
        let origins = inner_origins(graph, id.value(), &[x]);
        let new = rewrite::replace(graph, id, Op::Unary(Unary { f }), &[x])?;
        origins.into_iter().for_each(|origin| graph.merge_origin(new.node, &origin));
        replaced.push(id);
    }
    Ok(replaced)
}

fn is_product(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Binary(Binary { f: BinaryFn::Mul | BinaryFn::Div }))
}

/// Origins of everything between a value and those that it is made of.
pub(crate) fn inner_origins(graph: &Graph, from: ValueId, to: &[ValueId]) -> Vec<qail_ir::Origin> {
    let mut seen: BTreeMap<NodeId, qail_ir::Origin> = BTreeMap::new();
    let mut queue = vec![from];
    while let Some(value) = queue.pop() {
        let leaf = graph.const_of(value).is_some() || matches!(graph.op(value), Op::Input(_));
        if to.contains(&value) || leaf || seen.contains_key(&value.node) || seen.len() > 32 {
            continue;
        }
        seen.insert(value.node, graph.node(value.node).origin.clone());
        queue.extend(graph.operands(value.node));
    }
    seen.into_values().collect()
}

/// A transpose of the last two axes.
pub(crate) fn swap_last(rank: usize) -> Op {
    let mut perm: Vec<usize> = (0..rank).collect();
    if rank >= 2 {
        perm.swap(rank - 1, rank - 2);
    }
    Op::Transpose(Transpose { perm })
}
