//! `tabulate-turns`: what depends on the turn of a repeat alone becomes a table.
//!
//! A sampler knows its timesteps when it is compiled, so whatever a network makes
//! of a timestep (sines, an embedding, its layers) is computed here, once a turn,
//! and looked up when the policy runs. The numbers are those that the interpreter
//! gives, codes included: what leaves the tabulated part is always `f32`, so an
//! integer region that the turn alone decides is tabulated up to its exit, or not
//! at all. Exact.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    ConstData, Constant, DType, Gather, Graph, NodeId, Op, TensorType, ValueId,
    interp::{self, Tensor},
};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// Most elements of one table: 64 MiB.
const MAX_ELEMENTS: usize = 1 << 24;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct TabulateTurns;

impl Pass for TabulateTurns {
    fn name(&self) -> &'static str {
        "tabulate-turns"
    }

    fn summary(&self) -> &'static str {
        "computes what depends on the turn of a repeat alone, as a table"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(repeat) = graph.repeat.clone() else { return Ok(Changed::No) };
        let Some(turn) = repeat.turn.as_deref().and_then(|name| graph.input_named(name)) else {
            return Ok(Changed::No);
        };
        let tabulated = decided_by(graph, turn, repeat.n);
        let frontier: Vec<NodeId> = graph
            .topo()
            .into_iter()
            .filter(|&id| tabulated.contains(&id) && is_frontier(graph, id, &tabulated))
            .filter(|&id| !is_table(graph, id, turn))
            .collect();
        if frontier.is_empty() {
            return Ok(Changed::No);
        }
        let tables = compute(graph, turn, repeat.n, &tabulated, &frontier)?;
        for (id, elements) in frontier.iter().copied().zip(tables) {
            let ty = graph.ty(id.value()).clone();
            let mut shape = ty.shape.clone();
            shape.insert(0, repeat.n);
            let name = format!("{}.turns", graph.node(id).name);
            let origin = graph.node(id).origin.clone();
            let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
            let table = Constant { ty: TensorType::f32(shape), data: ConstData::Bytes(bytes.into()) };
            let table = graph.add_const(name, table, origin);
            rewrite::replace(graph, id, Op::Gather(Gather { axis: 0 }), &[table, turn])?;
        }
        rewrite::sweep(graph, frontier);
        Ok(Changed::Yes)
    }
}

/// Nodes that the turn and constants decide, apart from those whose results
/// others would have to read as something else than `f32`.
fn decided_by(graph: &Graph, turn: ValueId, n: usize) -> BTreeSet<NodeId> {
    let mut decided = BTreeSet::new();
    for id in graph.topo() {
        let operands = graph.operands(id);
        let is_known =
            |value: &ValueId| *value == turn || graph.const_of(*value).is_some() || decided.contains(&value.node);
        let varies = operands.iter().any(|value| *value == turn || decided.contains(&value.node));
        if varies && operands.iter().all(is_known) {
            decided.insert(id);
        }
    }
    loop {
        let refused: Vec<NodeId> = decided
            .iter()
            .copied()
            .filter(|&id| {
                let ty = graph.ty(id.value());
                let fits = ty.is_f32() && ty.n_elements().saturating_mul(n) <= MAX_ELEMENTS;
                !fits && is_frontier(graph, id, &decided)
            })
            .collect();
        if refused.is_empty() {
            return decided;
        }
        refused.iter().for_each(|id| {
            decided.remove(id);
        });
    }
}

/// True if somebody outside of the tabulated part reads the node.
fn is_frontier(graph: &Graph, id: NodeId, tabulated: &BTreeSet<NodeId>) -> bool {
    graph.is_output(id.value()) || graph.users(id.value()).iter().any(|(user, _)| !tabulated.contains(user))
}

/// True for a look-up by the turn that stands there already.
fn is_table(graph: &Graph, id: NodeId, turn: ValueId) -> bool {
    let operands = graph.operands(id);
    matches!(graph.node(id).op, Op::Gather(Gather { axis: 0 }))
        && operands.get(1) == Some(&turn)
        && operands.first().is_some_and(|&table| graph.const_of(table).is_some())
}

/// The numbers of the frontier, turn after turn.
fn compute(
    graph: &Graph,
    turn: ValueId,
    n: usize,
    tabulated: &BTreeSet<NodeId>,
    frontier: &[NodeId],
) -> Result<Vec<Vec<f32>>, PassError> {
    let failed = |source| PassError::Interp(Box::new(source));
    let mut needed = BTreeSet::new();
    let mut queue = frontier.to_vec();
    while let Some(id) = queue.pop() {
        if needed.insert(id) {
            queue.extend(graph.operands(id).into_iter().map(|value| value.node));
        }
    }
    let order: Vec<NodeId> = graph.topo().into_iter().filter(|id| needed.contains(id)).collect();
    let mut values: BTreeMap<NodeId, Tensor> = BTreeMap::new();
    for &id in &order {
        if let Some(constant) = graph.const_of(id.value()) {
            let node = || graph.node(id).name.clone();
            let tensor = Tensor::from_constant(constant).map_err(|source| PassError::Const { node: node(), source })?;
            values.insert(id, tensor);
        }
    }
    let mut tables: Vec<Vec<f32>> = vec![Vec::new(); frontier.len()];
    for k in 0..n {
        let number = TensorType::plain(DType::I64, Vec::<usize>::new());
        values.insert(turn.node, Tensor::ints(number, vec![k as i64]));
        for &id in order.iter().filter(|id| tabulated.contains(id)) {
            let operands = graph.operands(id);
            let operands: Vec<&Tensor> = operands.iter().filter_map(|value| values.get(&value.node)).collect();
            let value = interp::eval(graph.node(id), &operands).map_err(failed)?;
            values.insert(id, value);
        }
        for (table, id) in tables.iter_mut().zip(frontier) {
            table.extend_from_slice(values.get(id).and_then(Tensor::as_f32).unwrap_or_default());
        }
    }
    Ok(tables)
}
