//! `lift-rope`: makes `rope` of rotary position embeddings that are spelled out.
//!
//! `x * cos + r * sin` where `r` is `x` with its halves exchanged and the one in front negated,
//! `concat(-x[D/2..], x[..D/2])`; or with neighbours exchanged, joined along a new axis behind
//! them. The sign as a negation or a product with -1, operands in any order. Halves that others
//! read stay for them.
//!
//! The operation rounds as its parts do. Exact.

use qail_ir::{BinaryFn, Concat, Graph, NodeId, Op, Rope, Slice, SliceAxis, UnaryFn, ValueId};

use crate::{Changed, Exactness, Pass, PassContext, PassError, pattern, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct LiftRope;

impl Pass for LiftRope {
    fn name(&self) -> &'static str {
        "lift-rope"
    }

    fn summary(&self) -> &'static str {
        "makes rope of rotary position embeddings that are spelled out"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut replaced = Vec::new();
        for id in graph.topo() {
            let Some(sum) = sum_with_turned(graph, id) else { continue };
            match embedding(graph, id, &sum) {
                Ok((op, operands)) => {
                    let origins = pattern::inner_origins(graph, id.value(), &[sum.turned.x]);
                    let new = rewrite::replace(graph, id, Op::Rope(op), &operands)?;
                    origins.into_iter().for_each(|origin| graph.merge_origin(new.node, &origin));
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

/// Two parts of a value, the one in front negated.
struct Turned {
    x: ValueId,
    interleaved: bool,
    /// Where the parts of a row lie in it, in the order in which they are joined.
    parts: [SliceAxis; 2],
}

/// `other + turned * sin`.
struct Sum {
    other: ValueId,
    turned: Turned,
    sin: ValueId,
}

fn sum_with_turned(graph: &Graph, id: NodeId) -> Option<Sum> {
    let [a, b] = pattern::binary(graph, id.value(), BinaryFn::Add)?;
    [(a, b), (b, a)].into_iter().find_map(|(other, product)| {
        let [p, q] = pattern::binary(graph, product, BinaryFn::Mul)?;
        [(p, q), (q, p)]
            .into_iter()
            .find_map(|(turned, sin)| Some(Sum { other, turned: turned_of(graph, turned)?, sin }))
    })
}

fn turned_of(graph: &Graph, value: ValueId) -> Option<Turned> {
    let whole = |value: ValueId| graph.ty(value).shape.clone();
    // Neighbours are joined along an axis of their own, which a reshape drops again.
    let (joined, interleaved) = match graph.op(value) {
        Op::Reshape(_) => (*graph.operands(value.node).first()?, true),
        _ => (value, false),
    };
    let Op::Concat(Concat { axis }) = *graph.op(joined) else { return None };
    let [front, back] = graph.operands(joined.node)[..] else { return None };
    if axis + 1 != graph.ty(joined).shape.len() {
        return None;
    }
    let part = |value: ValueId| -> Option<ValueId> {
        let Op::Reshape(_) = graph.op(value) else { return None };
        let &inner = graph.operands(value.node).first()?;
        (whole(value) == [&whole(inner)[..], &[1]].concat()).then_some(inner)
    };
    // The sign may stand on either side of the new axis.
    let (front, back) = if interleaved {
        let inside = part(front).and_then(|front| negated(graph, front));
        let outside = || negated(graph, front).and_then(part);
        (inside.or_else(outside)?, part(back)?)
    } else {
        (negated(graph, front)?, back)
    };
    let ((x, second), (of_back, first)) = (part_of_row(graph, front)?, part_of_row(graph, back)?);
    (x == of_back && graph.ty(value) == graph.ty(x)).then_some(Turned { x, interleaved, parts: [second, first] })
}

/// What is negated, if the value is that.
fn negated(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let product = || {
        let (x, factor) = pattern::with_number(graph, value, BinaryFn::Mul)?;
        (factor == -1.0 && graph.ty(x) == graph.ty(value)).then_some(x)
    };
    pattern::unary(graph, value, UnaryFn::Neg).or_else(product)
}

/// The value whose rows are cut, and how.
fn part_of_row(graph: &Graph, value: ValueId) -> Option<(ValueId, SliceAxis)> {
    let Op::Slice(Slice { axes }) = graph.op(value) else { return None };
    let &x = graph.operands(value.node).first()?;
    let (&last, lead) = axes.split_last()?;
    let whole = |(axis, &len): (&SliceAxis, &usize)| *axis == SliceAxis { start: 0, len, step: 1 };
    lead.iter().zip(&graph.ty(x).shape).all(whole).then_some((x, last))
}

/// The operation and its operands, `Err` if it only nearly is one.
fn embedding(graph: &Graph, id: NodeId, sum: &Sum) -> Result<(Rope, [ValueId; 3]), &'static str> {
    let Sum { other, turned: Turned { x, interleaved, parts }, sin } = *sum;
    let width = graph.ty(x).shape.last().copied().unwrap_or(0);
    let half = width / 2;
    let wanted = match interleaved {
        true => [SliceAxis { start: 1, len: half, step: 2 }, SliceAxis { start: 0, len: half, step: 2 }],
        false => [SliceAxis { start: half, len: half, step: 1 }, SliceAxis { start: 0, len: half, step: 1 }],
    };
    // The step of a part of one element does not matter.
    let same =
        |(a, b): (&SliceAxis, &SliceAxis)| a.start == b.start && a.len == b.len && (a.step == b.step || half == 1);
    if width == 0 || width % 2 != 0 || !parts.iter().zip(&wanted).all(same) {
        return Err("what it turns is not cut into two halves, or into elements and their neighbours");
    }
    let Some([a, b]) = pattern::binary(graph, other, BinaryFn::Mul) else {
        return Err("what is added to its turned halves is not a product");
    };
    let cos = if a == x {
        b
    } else if b == x {
        a
    } else {
        return Err("what is added to its turned halves is a product of another value");
    };
    let (cos, sin) = (pattern::before_expand(graph, cos), pattern::before_expand(graph, sin));
    if graph.ty(id.value()) != graph.ty(x) {
        return Err("its cosines or sines have more elements than what they turn");
    }
    Ok((Rope { interleaved }, [x, cos, sin]))
}
