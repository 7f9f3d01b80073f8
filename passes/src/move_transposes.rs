//! `move-transposes`: moves transposes together until they cancel.
//!
//! A convolution is written as `unfold`, `transpose`, `reshape`, `linear`, `transpose`: its rows are
//! pixels. The transpose at the end moves behind everything that does not care about the order of
//! axes: functions of one number, quantizers with one step, arithmetic with constants (which are permuted) or with values
//! transposed alike, modulation by features, reductions, softmax, concatenations, slices, pooling windows. A transpose
//! behind the windows of the next convolution moves in front of them. There the two meet, and the
//! whole network keeps its channels last.
//!
//! Sums keep their order, so the numbers do not change. Exact.

use qail_ir::{
    Concat, FakeQuant, Graph, Node, NodeId, Normalize, Op, Origin, Reduce, ReduceFn, Reshape, Slice, Softmax,
    Transpose, Unfold, ValueId,
};

use crate::{Changed, Exactness, Pass, PassContext, PassError, fold_constants, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct MoveTransposes;

impl Pass for MoveTransposes {
    fn name(&self) -> &'static str {
        "move-transposes"
    }

    fn summary(&self) -> &'static str {
        "moves transposes over operations that do not care until they cancel"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        // Every step moves a transpose towards an end or merges two: a chain is as long as the graph.
        for _ in 0..2 * graph.len() + 2 {
            let mut dead = Vec::new();
            for id in graph.topo() {
                if !is_read(graph, id) {
                    continue;
                }
                if merge(graph, id)? || sink(graph, id, &mut dead)? || hoist(graph, id)? {
                    dead.push(id);
                }
            }
            if dead.is_empty() {
                break;
            }
            changed = Changed::Yes;
            rewrite::sweep(graph, dead);
        }
        Ok(changed)
    }
}

fn is_read(graph: &Graph, id: NodeId) -> bool {
    !graph.users(id.value()).is_empty() || graph.is_output(id.value())
}

/// Permutation and operand, if a transpose of a computed value defines it.
fn transpose_of(graph: &Graph, value: ValueId) -> Option<(Vec<usize>, ValueId)> {
    let Op::Transpose(Transpose { perm }) = graph.op(value) else { return None };
    let &x = graph.operands(value.node).first()?;
    graph.const_of(x).is_none().then(|| (perm.clone(), x))
}

fn is_identity(perm: &[usize]) -> bool {
    perm.iter().enumerate().all(|(i, &axis)| i == axis)
}

fn pick<T: Copy>(all: &[T], perm: &[usize]) -> Option<Vec<T>> {
    perm.iter().map(|&axis| all.get(axis).copied()).collect()
}

fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    for (i, &axis) in perm.iter().enumerate() {
        if let Some(place) = inverse.get_mut(axis) {
            *place = i;
        }
    }
    inverse
}

/// Transposes that do nothing, that follow each other, or that move axes of extent 1 only.
fn merge(graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Some((perm, x)) = transpose_of(graph, id.value()) else { return Ok(false) };
    let (perm, x) = match transpose_of(graph, x) {
        Some((inner, root)) => (pick(&inner, &perm).unwrap_or_default(), root),
        None => (perm, x),
    };
    if is_identity(&perm) {
        graph.replace_uses(id.value(), x);
        return Ok(true);
    }
    let shape = graph.ty(x).shape.clone();
    let longer: Vec<usize> = perm.iter().copied().filter(|&axis| shape.get(axis) != Some(&1)).collect();
    if longer.is_sorted() {
        let shape = graph.ty(id.value()).shape.clone();
        rewrite::replace(graph, id, Op::Reshape(Reshape { shape }), &[x])?;
        return Ok(true);
    }
    if graph.operands(id) == [x] {
        return Ok(false);
    }
    rewrite::replace(graph, id, Op::Transpose(Transpose { perm }), &[x])?;
    Ok(true)
}

/// Moves the transposes in front of a node behind it; adds nodes that may then be dead.
fn sink(graph: &mut Graph, id: NodeId, dead: &mut Vec<NodeId>) -> Result<bool, PassError> {
    let operands = graph.operands(id);
    let Some((perm, _)) = operands.iter().find_map(|&value| transpose_of(graph, value)) else { return Ok(false) };
    let Some((op, behind)) = permuted(graph, id, &perm) else { return Ok(false) };
    let is_film = matches!(op, Op::Film(_));
    // Features keep their place if the axes beside them have extent 1.
    let follows = |slot: usize, value: ValueId| {
        is_alike(graph, value, &perm) || (is_film && slot > 0 && reshaped_to_permute(graph, value, &perm).is_some())
    };
    if !operands.iter().enumerate().all(|(slot, &value)| follows(slot, value)) {
        return Ok(false);
    }
    let mut inner = Vec::with_capacity(operands.len());
    for &value in &operands {
        inner.push(match transpose_of(graph, value) {
            Some((other, x)) if other == perm => x,
            _ if is_alike(graph, value, &perm) => permuted_constant(graph, value, &perm, dead)?,
            _ => {
                let Some(shape) = reshaped_to_permute(graph, value, &perm) else { return Ok(false) };
                let Node { name, origin, .. } = graph.node(value.node).clone();
                rewrite::add(graph, &format!("{name}.t"), Op::Reshape(Reshape { shape }), &[value], origin)?
            }
        });
    }
    let transpose = operands.iter().find(|&&value| transpose_of(graph, value).is_some());
    let origin = transpose.map(|value| graph.node(value.node).origin.clone()).unwrap_or_default();
    let moved = add_in_place(graph, id, op, &inner)?;
    let name = format!("{}.t", graph.node(moved.node).name);
    let new = rewrite::add(graph, &name, Op::Transpose(Transpose { perm: behind }), &[moved], origin)?;
    graph.replace_uses(id.value(), new);
    Ok(true)
}

/// Adds a node that takes the name and the origin of an old one.
fn add_in_place(graph: &mut Graph, old: NodeId, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
    let Node { name, origin, .. } = graph.node(old).clone();
    graph.rename(old, format!("{name}.old"));
    rewrite::add(graph, &name, op, operands, origin)
}

/// True if the operand can do without the permutation: it is transposed alike, or constant, or one number.
fn is_alike(graph: &Graph, value: ValueId, perm: &[usize]) -> bool {
    match transpose_of(graph, value) {
        Some((other, _)) => other == perm,
        None => {
            let ty = graph.ty(value);
            let one = ty.n_elements() == 1 && ty.shape.len() <= perm.len();
            one || (graph.const_of(value).is_some() && ty.shape.len() <= perm.len())
        }
    }
}

/// The shape that a value of features has before the transpose, if a reshape is enough to get there.
fn reshaped_to_permute(graph: &Graph, value: ValueId, perm: &[usize]) -> Option<Vec<usize>> {
    let shape = &graph.ty(value).shape;
    let mut whole = vec![1; perm.len().checked_sub(shape.len())?];
    whole.extend(shape);
    let back = inverse(perm);
    let longer: Vec<usize> = back.iter().copied().filter(|&axis| whole.get(axis) != Some(&1)).collect();
    if longer.is_sorted() { pick(&whole, &back) } else { None }
}

/// A constant whose axes are in the order before the transpose.
fn permuted_constant(
    graph: &mut Graph,
    value: ValueId,
    perm: &[usize],
    dead: &mut Vec<NodeId>,
) -> Result<ValueId, PassError> {
    let ty = graph.ty(value).clone();
    if ty.n_elements() == 1 {
        return Ok(value);
    }
    let mut shape = vec![1; perm.len().saturating_sub(ty.shape.len())];
    shape.extend(&ty.shape);
    let Node { name, origin, .. } = graph.node(value.node).clone();
    let ops = match reshaped_to_permute(graph, value, perm) {
        Some(shape) => vec![Op::Reshape(Reshape { shape })],
        None => vec![Op::Reshape(Reshape { shape }), Op::Transpose(Transpose { perm: inverse(perm) })],
    };
    let mut new = value;
    for op in ops {
        dead.push(new.node);
        let moved = rewrite::add(graph, &name, op, &[new], origin.clone())?;
        dead.push(moved.node);
        new = fold_constants::fold(graph, moved.node)?;
    }
    Ok(new)
}

/// The operation on operands before the transpose `perm`, and the transpose behind it.
fn permuted(graph: &Graph, id: NodeId, perm: &[usize]) -> Option<(Op, Vec<usize>)> {
    let same = perm.to_vec();
    let axis = |axis: usize| perm.get(axis).copied();
    Some(match &graph.node(id).op {
        Op::Unary(_) | Op::Cast(_) | Op::FakeQuant(FakeQuant { axis: None, .. }) => (graph.node(id).op.clone(), same),
        // The result has the axes of the transposed operand.
        Op::Binary(_) | Op::Compare(_) | Op::Where(_) if graph.ty(id.value()).shape.len() == perm.len() => {
            (graph.node(id).op.clone(), same)
        }
        Op::Film(film)
            if graph
                .operands(id)
                .first()
                .is_some_and(|&x| transpose_of(graph, x).is_some_and(|(own, _)| own == perm)) =>
        {
            (Op::Film(*film), same)
        }
        Op::Softmax(softmax) => (Op::Softmax(Softmax { axis: axis(softmax.axis)?, ..softmax.clone() }), same),
        Op::Concat(concat) => {
            let whole = |value: &ValueId| graph.ty(*value).shape.len() == perm.len();
            graph.operands(id).iter().all(whole).then_some(())?;
            (Op::Concat(Concat { axis: axis(concat.axis)? }), same)
        }
        Op::Slice(slice) => (Op::Slice(Slice { axes: pick(&slice.axes, &inverse(perm))? }), same),
        Op::Normalize(normalize) => {
            let axes = pick(perm, &normalize.axes)?;
            axes.is_sorted().then_some(())?;
            (Op::Normalize(Normalize { axes, ..normalize.clone() }), same)
        }
        Op::Reduce(reduce) => {
            let mut axes = pick(perm, &reduce.axes)?;
            // Sums are taken in index order: another order would round otherwise.
            if !axes.is_sorted() && !matches!(reduce.f, ReduceFn::Min | ReduceFn::Max) {
                return None;
            }
            axes.sort_unstable();
            let behind = if reduce.keep_dims { same } else { without(perm, &axes) };
            (Op::Reduce(Reduce { axes, ..reduce.clone() }), behind)
        }
        Op::Unfold(unfold) => {
            // Windows of a pool. Those of a convolution have a transpose behind them, which comes here.
            let users = graph.users(id.value());
            let pools = users.iter().all(|&(user, _)| sinks_over(&graph.node(user).op)) && !users.is_empty();
            (pools && !graph.is_output(id.value())).then_some(())?;
            let windows = pick(&unfold.windows, &inverse(perm))?;
            let behind = with_windows(unfold, &windows, perm)?;
            (Op::Unfold(Unfold { windows, fill: unfold.fill }), behind)
        }
        _ => return None,
    })
}

/// True for operations that a transpose of their operand moves over.
fn sinks_over(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Reduce(_) | Op::FakeQuant(FakeQuant { axis: None, .. }))
}

/// The permutation of the axes that are left.
fn without(perm: &[usize], gone: &[usize]) -> Vec<usize> {
    let place = |axis: usize| axis - gone.iter().filter(|&&other| other < axis).count();
    perm.iter().filter(|axis| !gone.contains(axis)).map(|&axis| place(axis)).collect()
}

/// The transpose behind `windows` of untransposed axes that gives the result of `unfold` behind the
/// transpose `perm`: axes first, then the windows larger than 1 in the order of their axes.
fn with_windows(unfold: &Unfold, windows: &[qail_ir::Window], perm: &[usize]) -> Option<Vec<usize>> {
    let large: Vec<usize> = (0..windows.len()).filter(|&axis| windows.get(axis).is_some_and(|w| w.size > 1)).collect();
    let mut behind = perm.to_vec();
    for (window, axis) in unfold.windows.iter().zip(perm) {
        if window.size > 1 {
            behind.push(perm.len() + large.iter().position(|known| known == axis)?);
        }
    }
    Some(behind)
}

/// Moves a transpose behind windows in front of them: there are fewer elements there.
fn hoist(graph: &mut Graph, id: NodeId) -> Result<bool, PassError> {
    let Some((perm, x)) = transpose_of(graph, id.value()) else { return Ok(false) };
    let Op::Unfold(unfold) = graph.op(x).clone() else { return Ok(false) };
    let Some(&root) = graph.operands(x.node).first() else { return Ok(false) };
    let stays = graph.users(id.value()).iter().any(|&(user, _)| sinks_over(&graph.node(user).op));
    if graph.const_of(root).is_some() || graph.sole_user(x) != Some(id) || stays {
        return Ok(false);
    }
    let rank = unfold.windows.len();
    let outer: Vec<usize> = perm.iter().copied().take(rank).collect();
    let Some(windows) = pick(&unfold.windows, &outer) else { return Ok(false) };
    if outer.iter().any(|&axis| axis >= rank) || is_identity(&outer) {
        return Ok(false);
    }
    let permuted = Unfold { windows, fill: unfold.fill };
    if with_windows(&permuted, &unfold.windows, &outer) != Some(perm) {
        return Ok(false);
    }
    let Node { name, origin, .. } = graph.node(id).clone();
    let front = rewrite::add(graph, &format!("{name}.t"), Op::Transpose(Transpose { perm: outer }), &[root], origin)?;
    let old: Origin = graph.node(x.node).origin.clone();
    let new = rewrite::add(graph, &name, Op::Unfold(permuted), &[front], old)?;
    rewrite::take_over(graph, id, new);
    Ok(true)
}
