//! `fold-normalizer`: folds `(x - mean) / std` and the like in front of a
//! `linear` into its weights.
//!
//! The chain may hold any `add`, `sub`, `mul` and `div` with one constant a
//! feature; its value must feed the first operand of `linear` only. With
//! `x' = a x + c`, in `f64` and rounded once:
//! `W'[k, n] = a[k] W[k, n]`, `b'[n] = b[n] + sum_k c[k] W[k, n]`.
//!
//! Windows and other movements may stand between: the features are then the
//! channels of an image, and each row of the weights has one. What stands beyond
//! the edges of a window was a normalized number; it becomes the number that is
//! normalized to it, which must be one for all channels, and a byte where the
//! image is of bytes. Otherwise the chain stays.
//!
//! An observation that enters in 16 bits needs this: its steps then fold into
//! the same weights, and the device never sees the normalizer. Bytes become
//! their own codes.

use qail_ir::{Graph, NodeId, Op, Origin, Unfold, ValueId, Window};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    quant::flow,
    rewrite::{self, Affine, ConstLinear},
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldNormalizer;

impl Pass for FoldNormalizer {
    fn name(&self) -> &'static str {
        "fold-normalizer"
    }

    fn summary(&self) -> &'static str {
        "folds a per-feature affine chain in front of a linear into its weights"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        for id in graph.topo() {
            // Chains are folded from their last node, whose readers are the layers.
            let Some(layers) = layers_behind(graph, id, cx)? else { continue };
            let rank = graph.ty(id.value()).shape.len();
            let mut reason = None;
            for behind in 0..rank {
                let Some(chain) = chain(graph, id, behind)? else { continue };
                match mapped(graph, &chain, &layers) {
                    Ok(mapped) => {
                        dead.extend(fold(graph, id, &chain, &layers, &mapped, cx)?);
                        reason = None;
                        break;
                    }
                    Err(found) => reason = Some(found),
                }
            }
            if let Some(reason) = reason {
                cx.declined(graph, id, reason);
            }
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// Affine functions one behind the other.
struct Chain {
    /// The value where they begin.
    root: ValueId,
    affine: Affine,
    origin: Origin,
    /// The axis of the features.
    axis: usize,
}

/// The chain that ends in `id`, with features along the axis that has `behind` axes behind it.
fn chain(graph: &Graph, id: NodeId, behind: usize) -> Result<Option<Chain>, PassError> {
    let Some((root, affine)) = Affine::along(graph, id, behind)? else { return Ok(None) };
    let axis = graph.ty(root).shape.len().saturating_sub(behind + 1);
    let mut chain = Chain { root, affine, origin: graph.node(id).origin.clone(), axis };
    while let Some((before, first)) = Affine::along(graph, chain.root.node, behind)? {
        chain.origin = chain.origin.merge(&graph.node(chain.root.node).origin);
        chain.root = before;
        chain.affine = chain.affine.after(&first);
    }
    Ok(Some(chain))
}

/// A layer that reads a value, through movements.
struct Reader {
    layer: ConstLinear,
    movements: Vec<NodeId>,
}

/// The layers that read an affine node, if nothing else does.
fn layers_behind(graph: &Graph, id: NodeId, cx: &mut PassContext<'_>) -> Result<Option<Vec<Reader>>, PassError> {
    let rank = graph.ty(id.value()).shape.len();
    let mut is_affine = false;
    for behind in 0..rank {
        is_affine |= Affine::along(graph, id, behind)?.is_some();
    }
    if !is_affine {
        return Ok(None);
    }
    let mut readers = Vec::new();
    let mut others = graph.is_output(id.value());
    let mut queue: Vec<(ValueId, Vec<NodeId>)> = vec![(id.value(), vec![])];
    while let Some((value, path)) = queue.pop() {
        others |= graph.is_output(value);
        for (user, slot) in graph.users(value) {
            let layer = ConstLinear::matching(graph, user).filter(|_| slot == 0);
            if let Some(layer) = layer {
                readers.push(Reader { layer, movements: path.clone() });
            } else if slot == 0 && keeps_features(graph, user) {
                queue.push((user.value(), [&path[..], &[user]].concat()));
            } else {
                others = true;
            }
        }
    }
    if readers.is_empty() {
        return Ok(None);
    }
    if others {
        cx.declined(graph, id, "the normalized value has readers other than linear layers");
        return Ok(None);
    }
    Ok(Some(readers))
}

fn keeps_features(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Unfold(_))
}

/// What becomes of the readers of a chain.
struct Mapped {
    /// Scale and shift of each input feature, for each layer.
    rows: Vec<Affine>,
    /// Windows whose fill changes.
    fills: Vec<(NodeId, f32)>,
}

/// Scales and shifts of rows, or why there are none.
fn mapped(graph: &Graph, chain: &Chain, readers: &[Reader]) -> Result<Mapped, &'static str> {
    let mut mapped = Mapped { rows: Vec::new(), fills: Vec::new() };
    let of_bytes = flow::is_of_bytes(graph, chain.root);
    for reader in readers {
        let k = reader.layer.features();
        let rows = if is_uniform(&chain.affine) {
            let spread = |all: &[f64]| all.iter().copied().cycle().take(k).collect::<Vec<f64>>();
            Affine { scale: spread(&chain.affine.scale), shift: spread(&chain.affine.shift) }
        } else {
            let inner = inner_of_channel(graph, chain, &reader.movements, k)
                .ok_or("its features do not lie along the rows of the weights behind it")?;
            let pick = |all: &[f64]| {
                (0..k).filter_map(|row| all.get(row / inner % all.len().max(1)).copied()).collect::<Vec<f64>>()
            };
            Affine { scale: pick(&chain.affine.scale), shift: pick(&chain.affine.shift) }
        };
        mapped.rows.push(rows);
        for &id in &reader.movements {
            let Op::Unfold(unfold) = &graph.node(id).op else { continue };
            if !shows_edges(graph, id, unfold) {
                continue;
            }
            let fill = raw_fill(&chain.affine, unfold.fill)
                .ok_or("what stands beyond the edges of windows is another number in each channel")?;
            if of_bytes && !(fill.fract() == 0.0 && (0.0..=255.0).contains(&fill)) {
                return Err("what stands beyond the edges of windows is no byte before it is normalized");
            }
            mapped.fills.push((id, fill));
        }
    }
    Ok(mapped)
}

fn is_uniform(affine: &Affine) -> bool {
    let same = |all: &[f64]| all.windows(2).all(|pair| pair.first() == pair.last());
    same(&affine.scale) && same(&affine.shift)
}

/// True if a window may stand beyond an edge.
fn shows_edges(graph: &Graph, id: NodeId, unfold: &Unfold) -> bool {
    let shape = graph.operands(id).first().map(|&x| graph.ty(x).shape.clone()).unwrap_or_default();
    let inside = |(window, &extent): (&Window, &usize)| {
        let last = window.element(window.out.saturating_sub(1), window.size.saturating_sub(1), extent);
        window.pad <= 0 && window.spread == 1 && last.is_some()
    };
    !unfold.windows.iter().zip(&shape).all(inside)
}

/// The number that every channel normalizes to `fill`.
fn raw_fill(affine: &Affine, fill: f32) -> Option<f32> {
    if fill.is_infinite() {
        return None;
    }
    let mut raw: Option<f64> = None;
    for (scale, shift) in affine.scale.iter().zip(&affine.shift) {
        let mut found = (f64::from(fill) - shift) / scale;
        // Constants of a normalizer are rounded: 0.5019608 * 255 is 128.
        if (found - found.round()).abs() <= 1e-5 * found.abs() {
            found = found.round();
        }
        if !found.is_finite() || raw.is_some_and(|raw| (raw - found).abs() > 1e-6 * raw.abs().max(found.abs())) {
            return None;
        }
        raw = Some(found);
    }
    raw.map(|raw| raw as f32)
}

/// Rows of the weights that lie between two channels next to each other: row `k` belongs to channel
/// `k / inner % channels`. `None` if rows do not have one channel each.
fn inner_of_channel(graph: &Graph, chain: &Chain, movements: &[NodeId], k: usize) -> Option<usize> {
    let mut shape = graph.ty(chain.root).shape.clone();
    let mut axis = chain.axis;
    let channels = *shape.get(axis)?;
    let behind = |shape: &[usize], axis: usize| shape.iter().skip(axis + 1).product::<usize>();
    for (i, &id) in movements.iter().enumerate() {
        let after = graph.ty(id.value()).shape.clone();
        match &graph.node(id).op {
            Op::Transpose(transpose) => axis = transpose.perm.iter().position(|&from| from == axis)?,
            Op::Unfold(unfold) => {
                let window = unfold.windows.get(axis)?;
                (*window == Window::identity(channels)).then_some(())?;
            }
            Op::Slice(slice) => {
                let whole = slice.axes.get(axis)?;
                (whole.start == 0 && whole.len == channels && whole.step == 1).then_some(())?;
            }
            Op::Reshape(_) => {
                let inner = behind(&shape, axis);
                let kept = (0..after.len()).find(|&at| after.get(at) == Some(&channels) && behind(&after, at) == inner);
                match kept {
                    Some(at) => axis = at,
                    // Flattened: whole groups of channels in each row.
                    None if i + 1 == movements.len() && after.last() == Some(&k) => {
                        let group = inner.checked_mul(channels).filter(|&group| group > 0)?;
                        return k.is_multiple_of(group).then_some(inner);
                    }
                    None => return None,
                }
            }
            _ => return None,
        }
        shape = after;
    }
    (axis + 1 == shape.len()).then_some(1)
}

/// Folds the chain that ends in `id` into every layer; gives nodes that may
/// then be dead.
fn fold(
    graph: &mut Graph,
    id: NodeId,
    chain: &Chain,
    readers: &[Reader],
    mapped: &Mapped,
    cx: &mut PassContext<'_>,
) -> Result<Vec<NodeId>, PassError> {
    let mut folded = Vec::with_capacity(readers.len());
    for (Reader { layer, .. }, rows) in readers.iter().zip(&mapped.rows) {
        let (mut w, mut b) = layer.parameters(graph)?;
        let mut shift = vec![0.0f64; layer.n];
        for (k, row) in w.chunks_exact_mut(layer.n.max(1)).enumerate() {
            for (channel, (w, shift)) in row.iter_mut().zip(&mut shift).enumerate() {
                let feature = layer.feature(k, channel);
                let (Some(&scale), Some(&offset)) = (rows.scale.get(feature), rows.shift.get(feature)) else {
                    continue;
                };
                *shift += offset * *w;
                *w *= scale;
            }
        }
        b.iter_mut().zip(&shift).for_each(|(b, shift)| *b += shift);
        if !chain.affine.is_finite() || !w.iter().chain(&b).all(|x| (*x as f32).is_finite()) {
            cx.declined(graph, layer.id, "the folded parameters are not finite; is a standard deviation zero?");
            return Ok(vec![]);
        }
        folded.push((w, b));
    }
    let mut dead = vec![id];
    for (Reader { layer, .. }, (w, b)) in readers.iter().zip(&folded) {
        graph.merge_origin(layer.id, &chain.origin);
        dead.extend(layer.set_parameters(graph, w, b));
    }
    graph.replace_uses(id.value(), chain.root);
    for &(windows, fill) in &mapped.fills {
        let Op::Unfold(unfold) = graph.node(windows).op.clone() else { continue };
        let operands = graph.operands(windows);
        let name = graph.node(windows).name.clone();
        graph
            .redefine(windows, Op::Unfold(Unfold { fill, ..unfold }), &operands)
            .map_err(|source| PassError::Type { node: name, source })?;
    }
    Ok(dead)
}
