//! What became of every layer, for the report and the artifact.

use qail_artifact::schema::Layer;
use qail_ir::{Graph, Node, NodeId, Op};
use qail_passes::quant::LoweringReport;

/// Rows of the report, in the order of the graph.
pub(super) fn layers(graph: &Graph, lowering: Option<&LoweringReport>) -> Vec<Layer> {
    graph.topo().into_iter().filter_map(|id| layer(graph, id, lowering)).collect()
}

fn layer(graph: &Graph, id: NodeId, lowering: Option<&LoweringReport>) -> Option<Layer> {
    let node = graph.node(id);
    match &node.op {
        Op::QLinear(linear) => {
            let lowered = lowering?.layers.iter().find(|layer| layer.acc == node.name)?;
            let (k, n) = (lowered.k as u64, lowered.n as u64);
            let bits = u32::from(lowered.weight_scheme.bits);
            // The few weights of a channel in a group are bytes in the file.
            let stored_bits = if linear.groups > 1 { 8 } else { u64::from(bits) };
            // Codes, then 4 bytes a channel for the bias, and 8 for the
            // multiplier of a requantization or the scale of an exit.
            let per_channel = 4 + 8 * lowered.requantizes.len().max(1) as u64;
            Some(Layer {
                weight_bits: bits,
                activation_bits: u32::from(lowered.input_codes.scheme.bits),
                size_after: (k * n * stored_bits).div_ceil(8) + per_channel * n,
                ..weights(node, k, n)
            })
        }
        Op::LinearWq(linear) => {
            let [_, w, ..] = graph.operands(id)[..] else { return None };
            let ty = graph.ty(w);
            let (&[k, n], scheme) = (&ty.shape[..], ty.scheme()?) else { return None };
            let bits = u32::from(scheme.bits);
            let groups = k.div_ceil(linear.group.max(1)) as u64;
            let (k, n) = (k as u64, n as u64);
            Some(Layer {
                weight_bits: bits,
                activation_bits: 32,
                size_after: (k * n * u64::from(bits)).div_ceil(8) + 4 * groups * n + 4 * n,
                ..weights(node, k, n)
            })
        }
        Op::Linear(_) => {
            let [_, w, _] = graph.operands(id)[..] else { return None };
            let &[k, n] = &graph.ty(w).shape[..] else { return None };
            let (k, n) = (k as u64, n as u64);
            let reason = if lowering.is_some() { "stays in floats" } else { "" };
            let row = weights(node, k, n);
            let size_after = row.size_before;
            Some(Layer { weight_bits: 32, activation_bits: 32, size_after, reason: reason.to_owned(), ..row })
        }
        Op::Lookup(_) => Some(Layer { size_after: 256, reason: "table of 256 codes".to_owned(), ..bare(node) }),
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Reduce(_)
        | Op::MatMul(_)
        | Op::Where(_)
        | Op::Scatter(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Film(_) => Some(Layer { reason: numbers(graph, id).to_owned(), ..bare(node) }),
        Op::Input(_)
        | Op::Const(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Expand(_)
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Gather(_)
        | Op::ArgReduce(_)
        | Op::Unfold(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::Requantize(_)
        | Op::Dequantize(_)
        | Op::Grad(_) => None,
    }
}

/// What an operation without weights computes with.
fn numbers(graph: &Graph, id: NodeId) -> &'static str {
    let is_code = |value| graph.ty(value).scheme().is_some();
    match graph.ty(id.value()).dtype() {
        _ if is_code(id.value()) || graph.operands(id).first().is_some_and(|&x| is_code(x)) => "on codes",
        Some(dtype) if !dtype.is_float() => "in integers",
        Some(_) | None => "in floats",
    }
}

/// A row of a layer with weights `[k, n]` and a bias.
fn weights(node: &Node, k: u64, n: u64) -> Layer {
    Layer { n_weights: k * n, size_before: 4 * (k * n + n), ..bare(node) }
}

/// Most nodes of the model that a layer is named after.
const MAX_NAMES: usize = 3;

fn bare(node: &Node) -> Layer {
    let origin: Vec<&str> = node.origin.names().collect();
    // A table is read by people: what many nodes became one is named by the first.
    let name = match origin.split_at_checked(MAX_NAMES) {
        _ if origin.is_empty() => node.name.clone(),
        Some((first, rest)) if !rest.is_empty() => format!("{} + {} more", first.join(" + "), rest.len()),
        Some(_) | None => origin.join(" + "),
    };
    Layer { name, op: node.op.name().to_owned(), ..Layer::default() }
}
