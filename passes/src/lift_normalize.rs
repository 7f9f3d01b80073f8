//! `lift-normalize`: makes `normalize` of layer norms and RMS norms that are spelled out.
//!
//! `d / sqrt(mean(d^2) + eps)` with `d = x - mean(x)`, or `d = x` in an RMS norm: the square as a
//! product or a power, the root as `sqrt`, its reciprocal or a power, the last step as a division
//! or a product. Group and instance norms are the same behind a `reshape`. Scale and shift stay
//! the `mul` and `add` that they are. A mean that others read stays for them.

use qail_ir::{BinaryFn, Graph, NodeId, Normalize, Op, ReduceFn, UnaryFn, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    pattern::{self, Product},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftNormalize;

impl Pass for LiftNormalize {
    fn name(&self) -> &'static str {
        "lift-normalize"
    }

    fn summary(&self) -> &'static str {
        "makes normalize of layer norms and RMS norms that are spelled out"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some(inner) = scaled_by_root(graph, id) else { continue };
            let norm = match norm(graph, &inner) {
                Ok(Some(norm)) => norm,
                Ok(None) => continue,
                Err(reason) => {
                    cx.declined(graph, id, reason);
                    continue;
                }
            };
            let origins = pattern::inner_origins(graph, id.value(), &[norm.x]);
            let op = Normalize { axes: norm.axes, eps: norm.eps, center: norm.center };
            let new = rewrite::replace(graph, id, Op::Normalize(op), &[norm.x])?;
            origins.into_iter().for_each(|origin| graph.merge_origin(new.node, &origin));
            replaced.push(id);
        }
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// `d / sqrt(under)`.
struct ScaledByRoot {
    d: ValueId,
    under: ValueId,
}

fn scaled_by_root(graph: &Graph, id: NodeId) -> Option<ScaledByRoot> {
    if let Some([d, root]) = pattern::binary(graph, id.value(), BinaryFn::Div) {
        return Some(ScaledByRoot { d, under: under_root(graph, root)? });
    }
    let [a, b] = pattern::binary(graph, id.value(), BinaryFn::Mul)?;
    [(a, b), (b, a)]
        .into_iter()
        .find_map(|(d, inverse)| Some(ScaledByRoot { d, under: under_inverse(graph, inverse)? }))
}

/// What the root is taken of.
fn under_root(graph: &Graph, value: ValueId) -> Option<ValueId> {
    pattern::unary(graph, value, UnaryFn::Sqrt).or_else(|| power(graph, value, 0.5))
}

/// What the reciprocal root is taken of.
fn under_inverse(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if let Some(root) = pattern::unary(graph, value, UnaryFn::Reciprocal) {
        return under_root(graph, root);
    }
    if let Some([one, root]) = pattern::binary(graph, value, BinaryFn::Div) {
        return (pattern::number(graph, one) == Some(1.0)).then(|| under_root(graph, root)).flatten();
    }
    power(graph, value, -0.5)
}

fn power(graph: &Graph, value: ValueId, exponent: f64) -> Option<ValueId> {
    let [x, n] = pattern::binary(graph, value, BinaryFn::Pow)?;
    (pattern::number(graph, n) == Some(exponent)).then_some(x)
}

struct Norm {
    x: ValueId,
    axes: Vec<usize>,
    eps: f32,
    center: bool,
}

/// The norm, `None` if it is something else under a root, `Err` if it nearly is one.
fn norm(graph: &Graph, &ScaledByRoot { d, under }: &ScaledByRoot) -> Result<Option<Norm>, &'static str> {
    let (variance, eps) = pattern::with_number(graph, under, BinaryFn::Add).unwrap_or((under, 0.0));
    let Some((axes, squares)) = pattern::kept_reduce(graph, variance, ReduceFn::Mean) else { return Ok(None) };
    let squares = Product::of(graph, squares);
    if squares.number != 1.0 || squares.factors != Product::of(graph, d).squared() {
        return Err("it divides by the root of a mean square, but not of what it divides");
    }
    let eps = eps as f32;
    if !(eps.is_finite() && eps >= 0.0) {
        return Err("what is added to its variance is negative or not finite");
    }
    let Some([x, mean]) = pattern::binary(graph, d, BinaryFn::Sub) else {
        return Ok(Some(Norm { x: d, axes, eps, center: false }));
    };
    match pattern::kept_reduce(graph, mean, ReduceFn::Mean) {
        Some((of_mean, operand)) if operand == x && of_mean == axes => Ok(Some(Norm { x, axes, eps, center: true })),
        Some((_, operand)) if operand == x => Err("its mean and its variance are taken along different axes"),
        _ => Ok(Some(Norm { x: d, axes, eps, center: false })),
    }
}
