//! Small rewrites that many passes share.

use std::collections::BTreeSet;

use qail_ir::{Binary, BinaryFn, Constant, Graph, Linear, Node, NodeId, Op, Origin, TensorType, ValueId};

use crate::PassError;

/// Adds a node; a type error names it.
pub(crate) fn add(
    graph: &mut Graph,
    name: &str,
    op: Op,
    operands: &[ValueId],
    origin: Origin,
) -> Result<ValueId, PassError> {
    match graph.add(name, op, operands, origin) {
        Ok(node) => Ok(node.value()),
        Err(source) => Err(PassError::Type { node: name.to_owned(), source }),
    }
}

/// Puts another operation in the place of a node: it takes the name, the
/// origin and every reader. The old node stays, without readers, until
/// [`sweep`]: ids of removed nodes are used again.
pub(crate) fn replace(graph: &mut Graph, old: NodeId, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
    let Node { name, origin, .. } = graph.node(old).clone();
    let new = add(graph, &name, op, operands, origin)?;
    take_over(graph, old, new);
    Ok(new)
}

/// Lets `new` take the name, the origin and every reader of node `old`.
pub(crate) fn take_over(graph: &mut Graph, old: NodeId, new: ValueId) {
    let Node { name, origin, .. } = graph.node(old).clone();
    graph.rename(old, format!("{name}.old"));
    graph.rename(new.node, name);
    graph.merge_origin(new.node, &origin);
    graph.replace_uses(old.value(), new);
}

/// Removes those of `nodes` that nobody reads, and then what only they read.
pub(crate) fn sweep(graph: &mut Graph, nodes: impl IntoIterator<Item = NodeId>) {
    let mut queue: Vec<NodeId> = nodes.into_iter().collect();
    let mut gone = BTreeSet::new();
    while let Some(id) = queue.pop() {
        if gone.contains(&id) || !graph.contains(id) {
            continue;
        }
        let operands = graph.operands(id);
        if graph.remove(id) {
            gone.insert(id);
            queue.extend(operands.into_iter().map(|value| value.node));
        }
    }
}

/// True if `user` is the only reader of a value, apart from `dead` nodes that
/// wait for [`sweep`].
pub(crate) fn is_sole_reader(graph: &Graph, user: NodeId, value: ValueId, dead: &[NodeId]) -> bool {
    let mut alive = graph.users(value).into_iter().filter(|(reader, _)| !dead.contains(reader));
    !graph.is_output(value) && alive.next().is_some_and(|(reader, _)| reader == user) && alive.next().is_none()
}

/// Elements of a constant as `f64`.
pub(crate) fn const_f64(graph: &Graph, value: ValueId) -> Result<Option<Vec<f64>>, PassError> {
    let Some(constant) = graph.const_of(value) else { return Ok(None) };
    let all = constant.all();
    all.map(Some).map_err(|source| PassError::Const { node: graph.node(value.node).name.clone(), source })
}

/// Elements of a constant as `f32`.
pub(crate) fn const_f32(graph: &Graph, value: ValueId) -> Result<Option<Vec<f32>>, PassError> {
    let Some(constant) = graph.const_of(value) else { return Ok(None) };
    let all = constant.all_f32();
    all.map(Some).map_err(|source| PassError::Const { node: graph.node(value.node).name.clone(), source })
}

/// A `linear` whose weights and bias are constants.
#[derive(Clone, Debug)]
pub(crate) struct ConstLinear {
    pub(crate) id: NodeId,
    pub(crate) op: Linear,
    pub(crate) x: ValueId,
    pub(crate) w: ValueId,
    pub(crate) b: ValueId,
    /// Rows of the weights: input features of a group of channels.
    pub(crate) k: usize,
    /// Columns of the weights: output channels.
    pub(crate) n: usize,
}

impl ConstLinear {
    /// The node as such a layer, if it is one.
    pub(crate) fn matching(graph: &Graph, id: NodeId) -> Option<Self> {
        let Op::Linear(op) = &graph.node(id).op else { return None };
        let [x, w, b] = graph.operands(id)[..] else { return None };
        let [k, n] = graph.const_of(w)?.ty.shape[..] else { return None };
        graph.const_of(b)?;
        Some(Self { id, op: op.clone(), x, w, b, k, n })
    }

    /// Input features of all groups together.
    pub(crate) fn features(&self) -> usize {
        self.k.saturating_mul(self.op.groups)
    }

    /// The feature that row `k` of the weights of channel `n` multiplies.
    pub(crate) fn feature(&self, k: usize, n: usize) -> usize {
        feature(&self.op, self.k, self.n, k, n)
    }

    /// Weights `[K, N]` and bias `[N]` in `f64`.
    pub(crate) fn parameters(&self, graph: &Graph) -> Result<(Vec<f64>, Vec<f64>), PassError> {
        let missing = || PassError::Internal {
            node: graph.node(self.id).name.clone(),
            invariant: "weights and bias are constants",
        };
        let w = const_f64(graph, self.w)?.ok_or_else(missing)?;
        let b = const_f64(graph, self.b)?.ok_or_else(missing)?;
        Ok((w, b))
    }

    /// Lets the layer read other weights and another bias. Gives the old
    /// constants, which stay for whoever shares them, until [`sweep`].
    pub(crate) fn set_parameters(&self, graph: &mut Graph, w: &[f64], b: &[f64]) -> [NodeId; 2] {
        set_const_operand(graph, self.id, 1, Constant::f32([self.k, self.n], &round(w)));
        self.set_bias(graph, b);
        [self.w.node, self.b.node]
    }

    /// Lets the layer read another bias; the old one stays until [`sweep`].
    pub(crate) fn set_bias(&self, graph: &mut Graph, b: &[f64]) {
        set_const_operand(graph, self.id, 2, Constant::f32([self.n], &round(b)));
    }
}

/// The feature that row `k` of the weights `[K, N]` of channel `channel` multiplies.
pub(crate) fn feature(op: &Linear, n_rows: usize, n: usize, k: usize, channel: usize) -> usize {
    let channels_per_group = (n / op.groups.max(1)).max(1);
    channel / channels_per_group * n_rows + k
}

fn round(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Lets operand `slot` of a node read a new constant in the place of the old
/// one. Gives the old one, which stays until [`sweep`].
pub(crate) fn set_const_operand(graph: &mut Graph, user: NodeId, slot: u16, constant: Constant) -> Option<NodeId> {
    let &old = graph.operands(user).get(usize::from(slot))?;
    let Node { name, origin, .. } = graph.node(old.node).clone();
    let new = graph.add_const(name, constant, origin);
    graph.rewire(user, slot, new);
    inherit_name(graph, old.node, new, &[]);
    Some(old.node)
}

/// Lets `new` take the name of node `old` if nobody reads it except `dead` nodes.
pub(crate) fn inherit_name(graph: &mut Graph, old: NodeId, new: ValueId, dead: &[NodeId]) {
    let value = old.value();
    if !graph.is_output(value) && graph.users(value).iter().all(|(user, _)| dead.contains(user)) {
        let name = graph.node(old).name.clone();
        graph.rename(old, format!("{name}.old"));
        graph.rename(new.node, name);
    }
}

/// A constant that broadcasts along the last axis only: one number, or one a
/// feature. Gives `n` numbers.
pub(crate) fn per_feature(graph: &Graph, value: ValueId, n: usize) -> Result<Option<Vec<f64>>, PassError> {
    per_channel(graph, value, n, 0)
}

/// The same along the axis that has `behind` axes behind it.
fn per_channel(graph: &Graph, value: ValueId, n: usize, behind: usize) -> Result<Option<Vec<f64>>, PassError> {
    let TensorType { shape, .. } = graph.ty(value);
    let fits = |(i, &extent): (usize, &usize)| extent == 1 || (i == behind && extent == n);
    if !shape.iter().rev().enumerate().all(fits) {
        return Ok(None);
    }
    Ok(const_f64(graph, value)?.map(|all| spread(&all, n)))
}

fn spread(all: &[f64], n: usize) -> Vec<f64> {
    all.iter().copied().cycle().take(n).collect()
}

/// `scale * x + shift`, feature by feature: what a chain of `add`, `sub`, `mul`
/// and `div` with constants computes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Affine {
    pub(crate) scale: Vec<f64>,
    pub(crate) shift: Vec<f64>,
}

impl Affine {
    /// This one after `first`.
    pub(crate) fn after(&self, first: &Self) -> Self {
        let scale = self.scale.iter().zip(&first.scale).map(|(a, b)| a * b).collect();
        let shift = self.scale.iter().zip(&first.shift).zip(&self.shift).map(|((a, s), t)| a * s + t).collect();
        Self { scale, shift }
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.scale.iter().chain(&self.shift).all(|x| x.is_finite())
    }

    /// The node as an affine function of its one computed operand, if it is one
    /// and keeps the operand's shape.
    pub(crate) fn matching(graph: &Graph, id: NodeId) -> Result<Option<(ValueId, Self)>, PassError> {
        Self::along(graph, id, 0)
    }

    /// The same with features along the axis that has `behind` axes behind it.
    pub(crate) fn along(graph: &Graph, id: NodeId, behind: usize) -> Result<Option<(ValueId, Self)>, PassError> {
        let Op::Binary(Binary { f }) = &graph.node(id).op else { return Ok(None) };
        let [a, b] = graph.operands(id)[..] else { return Ok(None) };
        let (x, c, x_first) = match (graph.const_of(a).is_some(), graph.const_of(b).is_some()) {
            (false, true) => (a, b, true),
            (true, false) => (b, a, false),
            (true, true) | (false, false) => return Ok(None),
        };
        let ty = graph.ty(x);
        let Some(&n) = ty.shape.iter().rev().nth(behind) else { return Ok(None) };
        if ty != graph.ty(id.value()) || !ty.is_f32() {
            return Ok(None);
        }
        let Some(c) = per_channel(graph, c, n, behind)? else { return Ok(None) };
        let ones = vec![1.0; n];
        let zeros = vec![0.0; n];
        let map = |f: fn(f64) -> f64| c.iter().map(|&x| f(x)).collect::<Vec<f64>>();
        let affine = match (f, x_first) {
            (BinaryFn::Add, _) => Self { scale: ones, shift: c },
            (BinaryFn::Sub, true) => Self { scale: ones, shift: map(|c| -c) },
            (BinaryFn::Sub, false) => Self { scale: vec![-1.0; n], shift: c },
            (BinaryFn::Mul, _) => Self { scale: c, shift: zeros },
            (BinaryFn::Div, true) => Self { scale: map(|c| 1.0 / c), shift: zeros },
            (BinaryFn::Div, false)
            | (BinaryFn::Pow | BinaryFn::Min | BinaryFn::Max | BinaryFn::Mod | BinaryFn::Rem, _) => return Ok(None),
        };
        Ok(Some((x, affine)))
    }
}
