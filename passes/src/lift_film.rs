//! `lift-film`: makes `film` of a product and a sum with features that are computed.
//!
//! `x * scale + shift` where scale and shift broadcast to `x` and neither is a constant: what a
//! conditioning network says about the features of another one. In `(1 + scale) * x + shift` the
//! sum in parentheses is the scale, and stays a node of its own. Operands in any order; an `expand`
//! in front of scale or shift is not needed any more.
//!
//! A scale without a broadcast is a gate, and constants are part of a layer or of a norm: both
//! stay. The operation rounds as its parts do. Exact.

use qail_ir::{BinaryFn, Film, Graph, NodeId, Op, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftFilm;

impl Pass for LiftFilm {
    fn name(&self) -> &'static str {
        "lift-film"
    }

    fn summary(&self) -> &'static str {
        "makes film of a product and a sum with features that are computed"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some(scaled) = scaled(graph, id) else { continue };
            match modulation(graph, id, &scaled) {
                Ok(operands) => {
                    let product = graph.node(scaled.product.node).origin.clone();
                    let new = rewrite::replace(graph, id, Op::Film(Film), &operands)?;
                    graph.merge_origin(new.node, &product);
                    replaced.push(id);
                }
                Err(reason) => cx.declined(graph, id, reason),
            }
        }
        let changed = Changed::when(!replaced.is_empty());
        rewrite::sweep(graph, replaced);
        Ok(changed)
    }
}

/// `x * scale + shift`, with a scale that is repeated over `x`.
struct Scaled {
    product: ValueId,
    x: ValueId,
    scale: ValueId,
    shift: ValueId,
}

fn scaled(graph: &Graph, id: NodeId) -> Option<Scaled> {
    let [a, b] = pattern::binary(graph, id.value(), BinaryFn::Add).filter(|_| graph.ty(id.value()).is_f32())?;
    let n_elements = |value: ValueId| graph.ty(value).n_elements();
    [(a, b), (b, a)].into_iter().find_map(|(product, shift)| {
        let [p, q] = pattern::binary(graph, product, BinaryFn::Mul)?;
        [(p, q), (q, p)].into_iter().find_map(|(x, scale)| {
            let scale = pattern::before_expand(graph, scale);
            let repeated = n_elements(scale) < n_elements(x) && graph.ty(x) == graph.ty(product);
            let computed = |value: ValueId| graph.const_of(value).is_none();
            (repeated && computed(scale) && computed(x)).then_some(Scaled { product, x, scale, shift })
        })
    })
}

/// Operands of the operation, `Err` if it only nearly is one.
fn modulation(graph: &Graph, id: NodeId, scaled: &Scaled) -> Result<[ValueId; 3], &'static str> {
    let &Scaled { product, x, scale, shift } = scaled;
    let shift = pattern::before_expand(graph, shift);
    if graph.ty(id.value()) != graph.ty(x) {
        return Err("its shift has more elements than what it shifts");
    }
    if graph.ty(shift).n_elements() == graph.ty(x).n_elements() {
        return Err("its shift is not repeated as its scale is: it is a sum of two values");
    }
    if graph.const_of(shift).is_some() {
        return Err("its scale is computed, but its shift is a constant");
    }
    if graph.sole_user(product) != Some(id) {
        return Err("the product in front of its shift has other readers");
    }
    Ok([x, scale, shift])
}
