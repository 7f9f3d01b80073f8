//! Edge layers: first or last on some path through the model.
//!
//! Skip connections are no paths. Each layer of a transformer reads the stream that
//! the embeddings began, and adds to the stream that the output is made of; only
//! the first and the last of them are at the edge.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Graph, NodeId, Op, ValueId};

use super::flow;

/// The edge layers of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edges {
    first: BTreeSet<NodeId>,
    last: BTreeSet<NodeId>,
}

impl Edges {
    /// Of a graph with these layers.
    pub(crate) fn of(graph: &Graph, layers: &BTreeSet<NodeId>) -> Self {
        let order = graph.topo();
        let skips = skips(graph, &order);
        let mut edges = Self::default();
        // Nodes that an input reaches without a layer between.
        let mut given = BTreeSet::new();
        for &id in &order {
            let sees = |(slot, x): (u16, ValueId)| given.contains(&x.node) && !skips.contains(&(id, slot));
            if layers.contains(&id) {
                if graph.operands(id).first().is_some_and(|x| given.contains(&x.node)) {
                    edges.first.insert(id);
                }
            } else if matches!(graph.node(id).op, Op::Input(_)) || (0..).zip(graph.operands(id)).any(sees) {
                given.insert(id);
            }
        }
        // Nodes that reach an output likewise.
        let mut left = BTreeSet::new();
        for &id in order.iter().rev() {
            let reaches = |(user, slot): (NodeId, u16)| {
                left.contains(&user) && !layers.contains(&user) && !skips.contains(&(user, slot))
            };
            if graph.is_output(id.value()) || graph.users(id.value()).into_iter().any(reaches) {
                left.insert(id);
                if layers.contains(&id) {
                    edges.last.insert(id);
                }
            }
        }
        edges
    }

    /// True if the layer reads what the model is given.
    pub(crate) fn is_first(&self, layer: NodeId) -> bool {
        self.first.contains(&layer)
    }

    /// True for the first and the last layers.
    pub(crate) fn contains(&self, layer: NodeId) -> bool {
        self.first.contains(&layer) || self.last.contains(&layer)
    }
}

/// Most nodes that a skip connection jumps over; a longer one is a path like others.
const MAX_SKIPPED: usize = 4096;

/// Additions and which of their operands the other one is computed from.
fn skips(graph: &Graph, order: &[NodeId]) -> BTreeSet<(NodeId, u16)> {
    let places: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(place, &id)| (id, place)).collect();
    let mut found = BTreeSet::new();
    for &id in order {
        let [Some(a), Some(b)] = [0, 1].map(|slot| graph.operands(id).get(slot).copied()) else { continue };
        if flow::addends(graph, id.value()).is_none() {
            continue;
        }
        let origins = [a, b].map(|x| flow::through_movements(graph, x).0.node);
        if is_before(graph, &places, origins[0], b.node) {
            found.insert((id, 0));
        } else if is_before(graph, &places, origins[1], a.node) {
            found.insert((id, 1));
        }
    }
    found
}

/// True if `node` is computed from `origin`.
fn is_before(graph: &Graph, places: &BTreeMap<NodeId, usize>, origin: NodeId, node: NodeId) -> bool {
    // One user is the addition.
    if graph.users(origin.value()).len() < 2 {
        return false;
    }
    let mut seen = BTreeSet::new();
    let mut queue = vec![node];
    while let Some(id) = queue.pop() {
        for x in graph.operands(id) {
            if x.node == origin {
                return true;
            }
            // What stands before the origin does not read it.
            let is_behind = places.get(&x.node) > places.get(&origin);
            if is_behind && seen.len() < MAX_SKIPPED && seen.insert(x.node) {
                queue.push(x.node);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use qail_ir::{Op, text};

    use super::Edges;

    /// Names of the first and of the last layers.
    fn edges(body: &str, output: &str) -> [String; 2] {
        let graph = text::parse(&format!(
            "graph @g(%x: f32[2, 4]) -> (%{output}) {{
               %w = const rand(1) : f32[4, 4]
               %b = const rand(2) : f32[4]
               {body} }}"
        ));
        let graph = graph.unwrap_or_else(|error| panic!("{error}"));
        let layers: BTreeSet<_> =
            graph.topo().into_iter().filter(|&id| matches!(graph.node(id).op, Op::Linear(_))).collect();
        let edges = Edges::of(&graph, &layers);
        [&edges.first, &edges.last].map(|found| {
            let mut names: Vec<&str> = found.iter().map(|&id| graph.node(id).name.as_str()).collect();
            names.sort_unstable();
            names.join(" ")
        })
    }

    #[test]
    fn a_stream_has_one_first_and_one_last_block() {
        let block = |i: usize, x: &str| {
            format!(
                "%n{i} = normalize {x} {{axes = [1], eps = 1e-5, center}} : f32[2, 4]
                 %up{i} = linear %n{i}, %w, %b : f32[2, 4]
                 %gate{i} = linear %n{i}, %w, %b {{act = silu}} : f32[2, 4]
                 %m{i} = mul %up{i}, %gate{i} : f32[2, 4]
                 %down{i} = linear %m{i}, %w, %b : f32[2, 4]
                 %s{i} = add {x}, %down{i} : f32[2, 4]"
            )
        };
        let body = [block(0, "%x"), block(1, "%s0"), block(2, "%s1")].concat();
        assert_eq!(edges(&body, "s2"), ["gate0 up0", "down2"]);
    }

    #[test]
    fn what_is_added_without_a_skip_connection_is_a_path() {
        // Two branches of the input, and a function of the input without a layer in it.
        let body = "%a = linear %x, %w, %b : f32[2, 4] %t = tanh %x : f32[2, 4]
                    %s = add %t, %a : f32[2, 4] %c = linear %s, %w, %b : f32[2, 4]
                    %u = sigmoid %c : f32[2, 4] %v = add %c, %u : f32[2, 4]";
        assert_eq!(edges(body, "v"), ["a c", "c"]);
        let chain = "%a = linear %x, %w, %b : f32[2, 4] %c = linear %a, %w, %b : f32[2, 4]
                     %d = linear %c, %w, %b : f32[2, 4]";
        assert_eq!(edges(chain, "d"), ["a", "d"]);
    }

    #[test]
    fn a_skip_connection_may_move_what_it_skips() {
        let body = "%a = linear %x, %w, %b : f32[2, 4] %r = reshape %a : f32[8] %f = reshape %r : f32[2, 4]
                    %c = linear %a, %w, %b : f32[2, 4] %s = add %c, %f : f32[2, 4]
                    %d = linear %s, %w, %b : f32[2, 4] %e = add %s, %d : f32[2, 4]";
        assert_eq!(edges(body, "e"), ["a", "d"]);
    }
}
