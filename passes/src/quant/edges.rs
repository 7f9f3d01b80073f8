//! Edge layers: first or last on some path through the model.
//!
//! Skip connections are no paths. Each layer of a transformer reads the stream that
//! the embeddings began, and adds to the stream that the output is made of; only
//! the first and the last of them are at the edge. What a cache holds is neither
//! given nor handed out: keys and values of the steps before are like those of now.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Graph, NodeId, Op, State, ValueId};

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
        let places = places(&order);
        let skips = skips(graph, &places);
        let (cached, caches) = caches(graph, &places);
        let mut edges = Self::default();
        // Nodes that an input reaches without a layer between.
        let mut given = BTreeSet::new();
        for &id in &order {
            let sees = |(slot, x): (u16, ValueId)| {
                given.contains(&x.node) && !skips.contains(&(id, slot)) && !arranges(&graph.node(id).op, slot)
            };
            if layers.contains(&id) {
                if graph.operands(id).first().is_some_and(|x| given.contains(&x.node)) {
                    edges.first.insert(id);
                }
            } else if matches!(graph.node(id).op, Op::Input(_)) && !cached.contains(&id)
                || (0..).zip(graph.operands(id)).any(sees)
            {
                given.insert(id);
            }
        }
        // Nodes that reach an output likewise.
        let mut left = BTreeSet::new();
        for &id in order.iter().rev() {
            let reaches = |(user, slot): (NodeId, u16)| {
                let is_path = !skips.contains(&(user, slot)) && !arranges(&graph.node(user).op, slot);
                left.contains(&user) && !layers.contains(&user) && is_path
            };
            let is_output = || {
                graph.outputs.iter().any(|output| output.value == id.value() && !caches.contains(output.name.as_str()))
            };
            if is_output() || graph.users(id.value()).into_iter().any(reaches) {
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

/// True for an operand that says which elements of the others count, or where they
/// stand. What an attention gives is a mean of many things and none of them.
fn arranges(op: &Op, slot: u16) -> bool {
    matches!((op, slot), (Op::Where(_), 0) | (Op::Attention(_), _) | (Op::Rope(_), 1 | 2))
}

/// Where each node stands in the order of the graph.
type Places = BTreeMap<NodeId, usize>;

fn places(order: &[NodeId]) -> Places {
    order.iter().enumerate().map(|(place, &id)| (id, place)).collect()
}

/// Inputs and outputs of the states that keep some of their elements and replace the
/// others by what is not computed from them.
fn caches<'g>(graph: &'g Graph, places: &Places) -> (BTreeSet<NodeId>, BTreeSet<&'g str>) {
    let cache = |state: &State| {
        let (input, output) = (graph.input_named(&state.input)?, graph.output_named(&state.output)?);
        let chosen = match graph.op(output) {
            Op::Where(_) => graph.operands(output.node).split_off(1),
            _ => return None,
        };
        let is_kept = chosen.contains(&input) && !chosen.iter().any(|x| is_before(graph, places, input.node, x.node));
        is_kept.then_some(input.node)
    };
    graph.states.iter().filter_map(|state| Some((cache(state)?, state.output.as_str()))).unzip()
}

/// Most nodes that a skip connection jumps over; a longer one is a path like others.
const MAX_SKIPPED: usize = 4096;

/// Additions and which of their operands the other one is computed from.
fn skips(graph: &Graph, places: &Places) -> BTreeSet<(NodeId, u16)> {
    let mut found = BTreeSet::new();
    for &id in places.keys() {
        let [Some(a), Some(b)] = [0, 1].map(|slot| graph.operands(id).get(slot).copied()) else { continue };
        if flow::addends(graph, id.value()).is_none() {
            continue;
        }
        let origins = [a, b].map(|x| flow::through_movements(graph, x).0.node);
        if is_before(graph, places, origins[0], b.node) {
            found.insert((id, 0));
        } else if is_before(graph, places, origins[1], a.node) {
            found.insert((id, 1));
        }
    }
    found
}

/// True if `node` is computed from `origin`.
fn is_before(graph: &Graph, places: &Places, origin: NodeId, node: NodeId) -> bool {
    // One user is whoever asks: the addition, or the choice that a cache is.
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
        edges_of(&format!(
            "graph @g(%x: f32[2, 4]) -> (%{output}) {{
               %w = const rand(1) : f32[4, 4]
               %b = const rand(2) : f32[4]
               {body} }}"
        ))
    }

    fn edges_of(graph: &str) -> [String; 2] {
        let graph = text::parse(graph).unwrap_or_else(|error| panic!("{error}"));
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

    #[test]
    fn what_a_cache_holds_is_neither_given_nor_handed_out() {
        let step = |new: &str| {
            format!(
                "graph @g(%x: f32[2, 4], %past: f32[2, 4], %mask: bool[2, 1]) -> (%y, present = %k) {{
                   state \"past\" = \"present\"
                   %w = const rand(1) : f32[4, 4]
                   %b = const rand(2) : f32[4]
                   %a = linear %x, %w, %b : f32[2, 4]
                   %h = linear %past, %w, %b : f32[2, 4]
                   %s = add %a, %h : f32[2, 4]
                   %k = where %mask, {new}, %past : f32[2, 4]
                   %y = linear %k, %w, %b : f32[2, 4] }}"
            )
        };
        assert_eq!(edges_of(&step("%a")), ["a", "y"]);
        let attended = "graph @g(%x: f32[1, 1, 2, 4], %past: f32[1, 1, 3, 4]) -> (%y) {
               %w = const rand(1) : f32[4, 4]
               %b = const rand(2) : f32[4]
               %q = linear %x, %w, %b : f32[1, 1, 2, 4]
               %a = attention %q, %past, %past {scale = 0.5} : f32[1, 1, 2, 4]
               %o = linear %a, %w, %b : f32[1, 1, 2, 4]
               %y = linear %o, %w, %b : f32[1, 1, 2, 4] }";
        assert_eq!(edges_of(attended), ["q", "y"]);
        // A recurrent state that a mask holds back.
        assert_eq!(edges_of(&step("%s")), ["a h y", "a h y"]);
    }
}
