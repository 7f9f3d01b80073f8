//! `lift-attention`: makes `attention` of two products with a softmax between them.
//!
//! `softmax(scale * q k^T + mask) v`: the scale as a product or quotient behind the first product,
//! or on either of its operands (then all of them are multiplied); the mask as any value that
//! broadcasts; `k` transposed by whatever transpose makes it so. Keys and values that were repeated
//! for several heads (`reshape`, `expand`, `reshape`) are read once for each group.
//!
//! Operands of two or three axes get leading axes of extent 1.

use qail_ir::{Attention, BinaryFn, Expand, Graph, MatMul, NodeId, Op, Origin, Reshape, Softmax, TensorType, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftAttention;

impl Pass for LiftAttention {
    fn name(&self) -> &'static str {
        "lift-attention"
    }

    fn summary(&self) -> &'static str {
        "makes attention of two products with a softmax between them"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some((softmax, v)) = product_of_softmax(graph, id) else { continue };
            match found(graph, softmax, v) {
                Ok(parts) => {
                    let made_of: Vec<ValueId> = [parts.q, parts.k].into_iter().chain(parts.mask).collect();
                    let origins = pattern::inner_origins(graph, softmax, &made_of);
                    let made = build(graph, id, parts)?;
                    // The last of them is in the place of the product; others may not be needed.
                    if let Some(&new) = made.last() {
                        origins.into_iter().for_each(|origin| graph.merge_origin(new, &origin));
                    }
                    replaced.extend(made);
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

/// The softmax and the other operand, if the node multiplies them.
fn product_of_softmax(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId)> {
    let Op::MatMul(MatMul) = graph.node(id).op else { return None };
    let [p, v] = graph.operands(id)[..] else { return None };
    matches!(graph.op(p), Op::Softmax(_)).then_some((p, v))
}

/// What attention is made of.
struct Parts {
    q: ValueId,
    /// Transposed: `[.., E, S]`.
    k: ValueId,
    v: ValueId,
    mask: Option<ValueId>,
    scale: f64,
}

fn found(graph: &Graph, softmax: ValueId, v: ValueId) -> Result<Parts, &'static str> {
    let Op::Softmax(Softmax { axis, log: false }) = *graph.op(softmax) else {
        return Err("the softmax in front is a logarithm");
    };
    let rank = graph.ty(softmax).shape.len();
    if axis + 1 != rank || !(2..=4).contains(&rank) {
        return Err("the softmax in front does not run along the last of two to four axes");
    }
    let &scores = graph.operands(softmax.node).first().ok_or("the softmax in front has no operand")?;
    let mut parts = None;
    if let Some((q, k, scale)) = scaled_product(graph, scores) {
        parts = Some(Parts { q, k, v, mask: None, scale });
    } else if let Some([a, b]) = pattern::binary(graph, scores, BinaryFn::Add) {
        parts = [(a, b), (b, a)].into_iter().find_map(|(scores, mask)| {
            let (q, k, scale) = scaled_product(graph, scores)?;
            Some(Parts { q, k, v, mask: Some(mask), scale })
        });
    }
    let parts = parts.ok_or("the scores in front are not a scaled product with at most a mask")?;
    let shape = |value: ValueId| graph.ty(value).shape.clone();
    let lead = |value: ValueId| shape(value).split_at(shape(value).len().saturating_sub(2)).0.to_vec();
    if [parts.q, parts.k, v].iter().any(|&value| shape(value).len() != rank) {
        return Err("its operands have different numbers of axes");
    }
    if lead(parts.q) != lead(parts.k) || lead(parts.k) != lead(v) || lead(parts.q) != lead(softmax) {
        return Err("its operands are broadcast along leading axes");
    }
    if parts.mask.is_some_and(|mask| shape(mask).len() > rank || !graph.ty(mask).is_f32()) {
        return Err("its mask has more axes than its scores");
    }
    if graph.const_of(parts.k).is_some() || graph.const_of(v).is_some() {
        return Err("its keys or values are constants; they are weights of a linear layer");
    }
    Ok(parts)
}

/// Operands and factor, if the value is `scale * (q k)`.
fn scaled_product(graph: &Graph, value: ValueId) -> Option<(ValueId, ValueId, f64)> {
    let (product, mut scale) = scaled(graph, value);
    let Op::MatMul(MatMul) = graph.op(product) else { return None };
    let [q, k] = graph.operands(product.node)[..] else { return None };
    let ((q, of_q), (k, of_k)) = (scaled(graph, q), scaled(graph, k));
    scale *= of_q * of_k;
    (scale as f32).is_finite().then_some((q, k, scale))
}

/// The value without numbers that it is multiplied with, and their product.
fn scaled(graph: &Graph, mut value: ValueId) -> (ValueId, f64) {
    let mut scale = 1.0;
    for _ in 0..8 {
        let by = pattern::with_number(graph, value, BinaryFn::Mul);
        let divided = pattern::binary(graph, value, BinaryFn::Div);
        let divided = divided.and_then(|[x, c]| Some((x, 1.0 / pattern::number(graph, c)?)));
        let Some((x, factor)) = by.or(divided).filter(|(x, _)| graph.ty(*x) == graph.ty(value)) else { break };
        (value, scale) = (x, scale * factor);
    }
    (value, scale)
}

/// Puts attention in the place of a product; gives the nodes that it made.
fn build(graph: &mut Graph, id: NodeId, parts: Parts) -> Result<Vec<NodeId>, PassError> {
    let Parts { q, k, v, mask, scale } = parts;
    let name = graph.node(id).name.clone();
    let rank = graph.ty(q).shape.len();
    let k = rewrite::add(graph, &format!("{name}.k"), pattern::swap_last(rank), &[k], Origin::default())?;
    let mut made = vec![k.node];
    let mut operands = Vec::new();
    for value in [q, k, v] {
        operands.push(with_four_axes(graph, value)?);
    }
    if let [_, k, v] = &mut operands[..] {
        let (fewer_k, fewer_v) = (ungrouped(graph, *k)?, ungrouped(graph, *v)?);
        made.extend([k.node, v.node, fewer_k.node, fewer_v.node]);
        // Both or none: keys and values have one number of groups.
        let groups = |value: ValueId| graph.ty(value).shape.get(1).copied();
        if groups(fewer_k) == groups(fewer_v) {
            (*k, *v) = (fewer_k, fewer_v);
        }
    }
    operands.extend(mask);
    let shape = graph.ty(id.value()).shape.clone();
    let op = Op::Attention(Attention { scale: scale as f32 });
    let new = if rank == 4 {
        rewrite::replace(graph, id, op, &operands)?
    } else {
        let origin = graph.node(id).origin.clone();
        let four = rewrite::add(graph, &format!("{name}.heads"), op, &operands, origin)?;
        rewrite::replace(graph, id, Op::Reshape(Reshape { shape }), &[four])?
    };
    made.push(new.node);
    Ok(made)
}

fn with_four_axes(graph: &mut Graph, value: ValueId) -> Result<ValueId, PassError> {
    let TensorType { shape, .. } = graph.ty(value).clone();
    if shape.len() == 4 {
        return Ok(value);
    }
    let mut longer = vec![1; 4usize.saturating_sub(shape.len())];
    longer.extend(shape);
    let name = format!("{}.heads", graph.node(value.node).name);
    rewrite::add(graph, &name, Op::Reshape(Reshape { shape: longer }), &[value], Origin::default())
}

/// Keys or values `[B, G, S, E]` of which `[B, H, S, E]` are repetitions; the value itself if it is
/// none. A transpose of the last two axes may stand behind the repetition.
fn ungrouped(graph: &mut Graph, value: ValueId) -> Result<ValueId, PassError> {
    let swap = pattern::swap_last(4);
    let mut inner = value;
    let mut swaps = 0;
    while graph.node(inner.node).op == swap {
        let Some(&x) = graph.operands(inner.node).first() else { break };
        (inner, swaps) = (x, swaps + 1);
    }
    let Some(mut x) = repeated(graph, inner) else { return Ok(value) };
    if swaps % 2 == 1 {
        x = rewrite::add(graph, "groups", swap, &[x], Origin::default())?;
    }
    Ok(x)
}

/// `[B, G, S, E]` behind `reshape`, `expand` along a new axis behind the groups, `reshape`.
fn repeated(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let Op::Reshape(_) = graph.op(value) else { return None };
    let &expanded = graph.operands(value.node).first()?;
    let Op::Expand(Expand { shape }) = graph.op(expanded) else { return None };
    let &split = graph.operands(expanded.node).first()?;
    let Op::Reshape(_) = graph.op(split) else { return None };
    let &x = graph.operands(split.node).first()?;
    let [b, g, s, e] = graph.ty(x).shape[..] else { return None };
    let &[_, _, n, _, _] = &shape[..] else { return None };
    let fits = graph.ty(split).shape == [b, g, 1, s, e]
        && *shape == [b, g, n, s, e]
        && graph.ty(value).shape == [b, g.checked_mul(n)?, s, e];
    fits.then_some(x)
}
