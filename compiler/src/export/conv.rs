//! Convolutions: windows, their rows and a product are one Conv again.
//!
//! The compiler has no convolution: it is `unfold`, `transpose`, `reshape` and a
//! product with a matrix, channels last (see `frontend/import/conv.rs`). Other
//! engines want the Conv, so a product whose rows are windows in that order is
//! written as one. Everything else stays as it is and goes through Gather.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Graph, NodeId, Op, Unfold, ValueId, Window};

use super::{
    builder::{Builder, dims},
    emit::Emitter,
};
use crate::frontend::proto::AttributeProto;

/// A product over windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conv {
    /// What the windows slide over.
    pub(super) source: ValueId,
    /// Order of its axes as Conv wants them, `[N, C, ..]`, if another.
    to_channels_first: Option<Vec<usize>>,
    /// Channels of a group and extents of the kernel: rows of the weights.
    rows: Vec<usize>,
    /// Groups of channels.
    groups: usize,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    /// In front of each axis, then behind each.
    pads: Vec<usize>,
}

/// Convolutions of a graph.
#[derive(Clone, Debug, Default)]
pub(super) struct Convs {
    /// By the product.
    pub(super) layers: BTreeMap<NodeId, Conv>,
    /// Nodes that only convolutions read.
    pub(super) inside: BTreeSet<NodeId>,
}

impl Convs {
    /// Finds them among the products that `may_be` one. `shows_zero` says whether windows
    /// show zero beyond the edges.
    pub(super) fn of(
        graph: &Graph,
        may_be: impl Fn(NodeId) -> bool,
        shows_zero: impl Fn(NodeId, &Unfold) -> bool,
    ) -> Self {
        let mut convs = Self::default();
        let mut chains = BTreeSet::new();
        let order = graph.topo();
        for &id in &order {
            if let Some((conv, chain)) = matching(graph, id, &shows_zero).filter(|_| may_be(id)) {
                convs.layers.insert(id, conv);
                chains.extend(chain);
            }
        }
        for &id in order.iter().rev().filter(|id| chains.contains(id)) {
            let users = graph.users(id.value());
            let only_convs = users
                .iter()
                .all(|&(user, slot)| convs.inside.contains(&user) || slot == 0 && convs.layers.contains_key(&user));
            if only_convs && !graph.is_output(id.value()) {
                convs.inside.insert(id);
            }
        }
        convs
    }
}

/// The convolution that a product is, and the nodes between it and its source.
fn matching(graph: &Graph, id: NodeId, shows_zero: &impl Fn(NodeId, &Unfold) -> bool) -> Option<(Conv, Vec<NodeId>)> {
    let groups = match &graph.node(id).op {
        Op::QLinear(linear) => linear.groups,
        Op::Linear(linear) => linear.groups,
        Op::LinearWq(_) => 1,
        _ => return None,
    };
    let operand = |value: ValueId| graph.operands(value.node).first().copied();
    let rows = operand(id.value())?;
    let Op::Reshape(reshape) = graph.op(rows) else { return None };
    let mut chain = vec![rows.node];
    let mut windows = operand(rows)?;
    let mut perm: Option<Vec<usize>> = None;
    if let Op::Transpose(transpose) = graph.op(windows) {
        chain.push(windows.node);
        perm = Some(transpose.perm.clone());
        windows = operand(windows)?;
    }
    let Op::Unfold(unfold) = graph.op(windows) else { return None };
    chain.push(windows.node);
    let x = operand(windows)?;
    let shape = &graph.ty(x).shape;
    let rank = shape.len();
    let taps: Vec<usize> =
        unfold.windows.iter().enumerate().filter(|(_, window)| window.size > 1).map(|(axis, _)| axis).collect();
    // [N, places.., C, taps..].
    let order = perm.unwrap_or_else(|| (0..rank + taps.len()).collect());
    let d = rank.checked_sub(2).filter(|d| (1..=3).contains(d))?;
    let (&[batch, ref places @ ..], &[channel, ref behind @ ..]) = (order.get(..=d)?, order.get(d + 1..)?) else {
        return None;
    };
    let kept = |axis: usize| Some(*unfold.windows.get(axis)? == Window::identity(*shape.get(axis)?));
    let in_order = places.windows(2).all(|pair| pair.first() < pair.last()) && places.iter().all(|&axis| axis < rank);
    if batch != 0 || !in_order || !kept(0)? || !kept(channel)? || !behind.iter().copied().eq(rank..rank + taps.len()) {
        return None;
    }
    let shown = places.iter().map(|&axis| unfold.windows.get(axis).copied()).collect::<Option<Vec<Window>>>()?;
    let channels = *shape.get(channel)?;
    let taps_size: usize = shown.iter().map(|window| window.size).product();
    let outs: Vec<usize> = shown.iter().map(|window| window.out).collect();
    let in_group = channels.checked_div(groups).filter(|of_one| of_one * groups == channels)?;
    if reshape.shape != [&[*shape.first()?], &outs[..], &[channels.checked_mul(taps_size)?]].concat() {
        return None;
    }
    let extents = places.iter().map(|&axis| shape.get(axis).copied()).collect::<Option<Vec<usize>>>()?;
    let pads = shown.iter().zip(&extents).map(|(window, &extent)| pads(window, extent)).collect::<Option<Vec<_>>>()?;
    if pads.iter().any(|&(front, back)| front > 0 || back > 0) && !shows_zero(windows.node, unfold) {
        return None;
    }
    let wanted: Vec<usize> = [0, channel].into_iter().chain(places.iter().copied()).collect();
    let (source, to_channels_first) = channels_first(graph, x, wanted, &mut chain);
    let conv = Conv {
        source,
        to_channels_first,
        groups,
        rows: [in_group].into_iter().chain(shown.iter().map(|window| window.size)).collect(),
        strides: shown.iter().map(|window| window.stride).collect(),
        dilations: shown.iter().map(|window| window.dilation).collect(),
        pads: pads.iter().map(|pad| pad.0).chain(pads.iter().map(|pad| pad.1)).collect(),
    };
    Some((conv, chain))
}

/// The value that has its channels in front already, or the order that puts them there.
fn channels_first(
    graph: &Graph,
    x: ValueId,
    wanted: Vec<usize>,
    chain: &mut Vec<NodeId>,
) -> (ValueId, Option<Vec<usize>>) {
    if wanted.iter().copied().eq(0..wanted.len()) {
        return (x, None);
    }
    if let (Op::Transpose(transpose), Some(&inner)) = (graph.op(x), graph.operands(x.node).first()) {
        let both = wanted.iter().map(|&axis| transpose.perm.get(axis).copied());
        if both.eq((0..wanted.len()).map(Some)) {
            chain.push(x.node);
            return (inner, None);
        }
    }
    (x, Some(wanted))
}

/// Elements beyond both ends that the windows of an axis show.
fn pads(window: &Window, extent: usize) -> Option<(usize, usize)> {
    let front = usize::try_from(window.pad).ok()?;
    if window.spread != 1 {
        return None;
    }
    let reach = (window.size - 1).checked_mul(window.dilation)?.checked_add(1)?;
    let needed = (window.out - 1).checked_mul(window.stride)?.checked_add(reach)?;
    let back = needed.saturating_sub(extent.checked_add(front)?);
    // Conv shows as many windows as fit.
    let room = extent.checked_add(front)?.checked_add(back)?.checked_sub(reach)?;
    (room / window.stride + 1 == window.out).then_some((front, back))
}

impl Conv {
    /// Shape of the weights as Conv wants them.
    pub(super) fn kernel(&self, n: usize) -> Vec<usize> {
        [&[n], &self.rows[..]].concat()
    }

    /// The elements of weights `[K, N]` in that shape.
    pub(super) fn in_order<T: Copy>(w: &[T], n: usize) -> Vec<T> {
        let n = n.max(1);
        (0..n).flat_map(|column| w.iter().skip(column).step_by(n).copied()).collect()
    }

    /// Writes the convolution of `x` under the name `out`, channels last.
    pub(super) fn emit(&self, builder: &mut Builder, [x, w, b]: [&str; 3], out: &str) {
        let x = match &self.to_channels_first {
            None => x.to_owned(),
            Some(perm) => {
                let perm = vec![AttributeProto::ints("perm", dims(perm))];
                builder.step("Transpose", &[x], perm, &format!("{out}/channels_first"))
            }
        };
        let lists = [("strides", &self.strides), ("dilations", &self.dilations), ("pads", &self.pads)];
        let mut attributes = lists.map(|(name, list)| AttributeProto::ints(name, dims(list))).to_vec();
        if self.groups > 1 {
            attributes.push(AttributeProto::int("group", self.groups as i64));
        }
        let size = self.rows.get(1..).unwrap_or_default();
        attributes.push(AttributeProto::ints("kernel_shape", dims(size)));
        let y = builder.step("Conv", &[&x, w, b], attributes, &format!("{out}/conv"));
        let last = [0].into_iter().chain(2..2 + size.len()).chain([1]).collect::<Vec<usize>>();
        builder.node("Transpose", &[&y], vec![AttributeProto::ints("perm", dims(&last))], out);
    }
}

/// Weights `[K, N]` that nodes compute, in the shape that a convolution wants.
pub(super) fn turned(emitter: &mut Emitter<'_>, conv: &Conv, w: &str, n: usize, out: &str) -> String {
    let builder = &mut emitter.builder;
    let perm = vec![AttributeProto::ints("perm", vec![1, 0])];
    let columns = builder.step("Transpose", &[w], perm, &format!("{out}/columns"));
    let shape = builder.i64s(&format!("{out}/kernel_shape"), &dims(&conv.kernel(n)));
    builder.step("Reshape", &[&columns, &shape], Vec::new(), &format!("{out}/kernel"))
}
