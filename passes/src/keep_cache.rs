//! Caches of keys and values that grow become states of a fixed size.
//!
//! A decoder is exported for one more token: it reads the keys and values of the
//! tokens before (`past`, of some length) and hands back the same with its own at
//! the end (`present = concat(past, new)`). Here the cache gets as many places as
//! `present` has, and a count of those that are taken, which is a state too:
//!
//! ```text
//! present[.., s, ..] = new              if s == length, else past[.., s, ..]
//! attention          + mask, 0 for s <= length and the smallest number beyond
//! length             + 1
//! ```
//! So shapes stay as they are, nothing grows, and a step that finds no place is
//! refused (see [`State::limit`](qail_ir::State::limit)). The count is one number an element of a
//! batch, so elements can be reset by themselves.

use std::collections::BTreeSet;

use qail_ir::{
    Binary, BinaryFn, Compare, CompareFn, Concat, ConstData, Constant, DType, Graph, Input, Node, NodeId, Op, Origin,
    Reshape, State, TensorType, ValueId, Where,
};

use crate::{PassError, rewrite};

/// Name of the count of tokens in the caches.
pub const LENGTH: &str = "cache.length";
const NEXT: &str = "cache.length.next";

/// A cache of a graph: an input, and the output that is longer by one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub output: String,
}

/// The axis along which the output of a cache is its input and one token, if it
/// is such a pair.
pub fn growing_axis(graph: &Graph, cache: &Cache) -> Option<usize> {
    let (past, present) = (graph.input_named(&cache.input)?, graph.output_named(&cache.output)?);
    let Op::Concat(Concat { axis }) = *graph.op(present) else { return None };
    let operands = graph.operands(present.node);
    let grown = *graph.ty(present).shape.get(axis)?;
    let is_one_more = graph.ty(past).shape.get(axis).is_some_and(|&n| n.checked_add(1) == Some(grown));
    (operands.len() == 2 && operands.first() == Some(&past) && is_one_more && graph.ty(past).is_f32()).then_some(axis)
}

/// Makes states of caches. Attention must be lifted.
///
/// # Errors
/// Caches that are no such pairs, that have several lengths, or that something
/// else than attention reads. The graph is then as it was.
pub fn keep_caches(graph: &mut Graph, caches: &[Cache]) -> Result<(), PassError> {
    let mut kept = graph.clone();
    Keeper::new(&mut kept, caches)?.run(caches)?;
    *graph = kept;
    Ok(())
}

struct Keeper<'g> {
    graph: &'g mut Graph,
    /// Tokens taken, `i64[B]`.
    length: ValueId,
    batch: usize,
    /// Places of a cache.
    capacity: usize,
}

impl<'g> Keeper<'g> {
    fn new(graph: &'g mut Graph, caches: &[Cache]) -> Result<Self, PassError> {
        let refused =
            |node: &str, reason: &str| Err(PassError::Unsupported { node: node.to_owned(), reason: reason.to_owned() });
        let mut sizes = BTreeSet::new();
        for cache in caches {
            let (Some(axis), Some(present)) = (growing_axis(graph, cache), graph.output_named(&cache.output)) else {
                return refused(&cache.input, "it is no cache: no output is this input and one token behind it");
            };
            let shape = &graph.ty(present).shape;
            let &[batch, ..] = &shape[..] else { return refused(&cache.input, "a cache has a batch axis in front") };
            let Some(&capacity) = shape.get(axis).filter(|_| axis > 0) else {
                return refused(&cache.input, "a cache does not grow along its batch axis");
            };
            sizes.insert((batch, capacity));
        }
        let &[(batch, capacity)] = &sizes.into_iter().collect::<Vec<_>>()[..] else {
            return refused(LENGTH, "caches of one policy have one length");
        };
        let length = graph.add_input(LENGTH, TensorType::plain(DType::I64, [batch]));
        Ok(Self { graph, length, batch, capacity })
    }

    fn run(mut self, caches: &[Cache]) -> Result<(), PassError> {
        let mut attentions = BTreeSet::new();
        for cache in caches {
            self.keep(cache, &mut attentions)?;
        }
        let mask = self.mask()?;
        for id in attentions {
            let mut operands = self.graph.operands(id);
            let mask = match operands.get(3).copied() {
                None => mask,
                Some(own) => {
                    let name = format!("{}.masks", self.graph.node(id).name);
                    self.add(&name, Op::Binary(Binary { f: BinaryFn::Add }), &[own, mask])?
                }
            };
            operands.truncate(3);
            operands.push(mask);
            let Node { name, op, .. } = self.graph.node(id).clone();
            self.graph.redefine(id, op, &operands).map_err(|source| PassError::Type { node: name, source })?;
        }
        let one = Constant::ints(TensorType::plain(DType::I64, [1]), &[1]);
        let one = self.graph.add_const("cache.one", one, Origin::default());
        let length = self.length;
        let next = self.add(NEXT, Op::Binary(Binary { f: BinaryFn::Add }), &[length, one])?;
        self.graph.add_output(NEXT, next);
        self.graph.states.push(State {
            input: LENGTH.to_owned(),
            output: NEXT.to_owned(),
            element_axis: Some(0),
            limit: Some(self.capacity as i64 - 1),
        });
        Ok(())
    }

    /// Puts the new token in its place; collects the attention that reads it.
    fn keep(&mut self, cache: &Cache, attentions: &mut BTreeSet<NodeId>) -> Result<(), PassError> {
        let missing = || PassError::Unsupported { node: cache.input.clone(), reason: "it is no cache".to_owned() };
        let axis = growing_axis(self.graph, cache).ok_or_else(missing)?;
        let past = self.graph.input_named(&cache.input).ok_or_else(missing)?;
        let present = self.graph.output_named(&cache.output).ok_or_else(missing)?;
        let new = self.graph.operands(present.node).get(1).copied().ok_or_else(missing)?;
        if self.graph.users(past).len() != 1 {
            let reason = "the cache is read by more than the concatenation that lengthens it".to_owned();
            return Err(PassError::Unsupported { node: cache.input.clone(), reason });
        }
        self.readers(present, attentions)?;
        let ty = self.graph.ty(present).clone();
        let rank = ty.shape.len();
        let typed = |source| PassError::Type { node: cache.input.clone(), source };
        // The concatenation goes before the input changes its type under it.
        let aside = self.graph.add_input(format!("{}.places", cache.input), ty.clone());
        let at = self.compare(&format!("{}.at", cache.input), CompareFn::Eq, rank, axis)?;
        let node = present.node;
        self.graph.redefine(node, Op::Where(Where), &[at, new, aside]).map_err(typed)?;
        self.graph.redefine(past.node, Op::Input(Input { ty }), &[]).map_err(typed)?;
        self.graph.rewire(node, 2, past);
        self.graph.drop_input(aside.node);
        self.graph.states.push(State {
            input: cache.input.clone(),
            output: cache.output.clone(),
            element_axis: Some(0),
            limit: None,
        });
        Ok(())
    }

    /// Every attention behind a cache; only movements may lie between.
    fn readers(&self, value: ValueId, attentions: &mut BTreeSet<NodeId>) -> Result<(), PassError> {
        let mut queue = vec![value];
        let mut seen = BTreeSet::new();
        while let Some(value) = queue.pop() {
            for (user, slot) in self.graph.users(value) {
                let op = &self.graph.node(user).op;
                if matches!(op, Op::Attention(_)) && (slot == 1 || slot == 2) {
                    attentions.insert(user);
                } else if matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_)) {
                    if seen.insert(user) {
                        queue.push(user.value());
                    }
                } else {
                    let node = self.graph.node(user).name.clone();
                    let reason = "it reads a cache of keys and values, and only attention can leave the places that \
                                  are not taken out; see `compile -v` for why it was not lifted"
                        .to_owned();
                    return Err(PassError::Unsupported { node, reason });
                }
            }
        }
        Ok(())
    }

    /// Which places along an axis of a tensor of `rank` axes compare so with the count.
    fn compare(&mut self, name: &str, f: CompareFn, rank: usize, axis: usize) -> Result<ValueId, PassError> {
        let mut shape = vec![1; rank];
        if let Some(extent) = shape.get_mut(axis) {
            *extent = self.capacity;
        }
        let numbers: Vec<i64> = (0..self.capacity as i64).collect();
        let places = Constant::ints(TensorType::plain(DType::I64, shape), &numbers);
        let places = self.graph.add_const(format!("{name}.places"), places, Origin::default());
        let mut shape = vec![1; rank];
        if let Some(extent) = shape.first_mut() {
            *extent = self.batch;
        }
        let length = self.length;
        let length = self.add(&format!("{name}.length"), Op::Reshape(Reshape { shape }), &[length])?;
        self.add(name, Op::Compare(Compare { f }), &[places, length])
    }

    /// `f32[B, 1, 1, S]`: what is added to scores.
    fn mask(&mut self) -> Result<ValueId, PassError> {
        let taken = self.compare("cache.taken", CompareFn::Le, 4, 3)?;
        let number = |x: f64| Constant { ty: TensorType::f32([]), data: ConstData::Splat(x) };
        let zero = self.graph.add_const("cache.open", number(0.0), Origin::default());
        let closed = self.graph.add_const("cache.closed", number(f64::from(f32::MIN)), Origin::default());
        self.add("cache.mask", Op::Where(Where), &[taken, zero, closed])
    }

    fn add(&mut self, name: &str, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
        rewrite::add(self.graph, name, op, operands, Origin::default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use qail_ir::{
        interp::{self, Tensor},
        text, verify,
    };

    use super::*;

    /// Attention of one head of two numbers over three tokens before and this one.
    const DECODER: &str = "graph @g(%q: f32[1, 1, 1, 2], %k: f32[1, 1, 1, 2], %v: f32[1, 1, 1, 2],
        %past_k: f32[1, 1, 3, 2], %past_v: f32[1, 1, 3, 2]) -> (%y, present_k = %ks, present_v = %vs) {batch = 0} {
        %ks = concat %past_k, %k {axis = 2} : f32[1, 1, 4, 2]
        %vs = concat %past_v, %v {axis = 2} : f32[1, 1, 4, 2]
        %y = attention %q, %ks, %vs {scale = 0.5} : f32[1, 1, 1, 2]
    }";

    fn caches() -> [Cache; 2] {
        ["k", "v"].map(|name| Cache { input: format!("past_{name}"), output: format!("present_{name}") })
    }

    fn token(seed: u32) -> [f32; 2] {
        [((seed * 7 + 3) % 11) as f32 / 5.0 - 1.0, ((seed * 5 + 1) % 13) as f32 / 6.0 - 1.0]
    }

    #[test]
    fn a_kept_cache_attends_to_what_was_seen() {
        let mut graph = text::parse(DECODER).unwrap();
        keep_caches(&mut graph, &caches()).unwrap();
        verify(&graph).unwrap();
        assert!(text::parse(&text::print(&graph)).unwrap() == graph);
        let mut states: BTreeMap<String, Tensor> = BTreeMap::new();
        for state in &graph.states {
            let ty = graph.ty(graph.input_named(&state.input).unwrap()).clone();
            let zero = if ty.is_f32() {
                Tensor::f32(ty.shape.clone(), vec![0.0; ty.n_elements()])
            } else {
                Tensor::ints(ty.clone(), vec![0; ty.n_elements()])
            };
            states.insert(state.input.clone(), zero);
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for step in 0..4 {
            let [q, k, v] = [0, 1, 2].map(|part| token(3 * step + part));
            keys.push(k);
            values.push(v);
            let scores: Vec<f32> = keys.iter().map(|k| 0.5 * (q[0] * k[0] + q[1] * k[1])).collect();
            let sum: f32 = scores.iter().map(|s| s.exp()).sum();
            let expected = [0, 1]
                .map(|i| scores.iter().zip(&values).map(|(s, v): (&f32, &[f32; 2])| s.exp() / sum * v[i]).sum::<f32>());
            let mut inputs = states.clone();
            for (name, token) in [("q", q), ("k", k), ("v", v)] {
                inputs.insert(name.to_owned(), Tensor::f32([1, 1, 1, 2], token.to_vec()));
            }
            let outputs = interp::run(&graph, &inputs).unwrap();
            for (found, expected) in outputs["y"].as_f32().unwrap().iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "step {step}: {found} instead of {expected}");
            }
            for state in &graph.states {
                states.insert(state.input.clone(), outputs[&state.output].clone());
            }
        }
        // Four tokens are all that there is room for.
        assert_eq!(states[LENGTH].as_ints().unwrap(), [4]);
        assert_eq!(graph.states.last().unwrap().limit, Some(3));
    }

    #[test]
    fn a_mask_of_its_own_stays() {
        let masked = DECODER.replace("%q, %ks, %vs {scale", "%q, %ks, %vs, %m {scale").replace(
            "%ks = concat",
            "%m = const splat(0.0) : f32[1, 4]
        %ks = concat",
        );
        let mut graph = text::parse(&masked).unwrap();
        keep_caches(&mut graph, &caches()).unwrap();
        verify(&graph).unwrap();
        assert!(text::print(&graph).contains("%y.masks = add"));
    }

    #[test]
    fn what_is_no_cache_is_named() {
        let refused = |text: &str| keep_caches(&mut text::parse(text).unwrap(), &caches()).unwrap_err().to_string();
        let read = DECODER.replace("-> (%y,", "-> (%y, %other,").replace(
            "%y = attention",
            "%other = tanh %ks : f32[1, 1, 4, 2]
        %y = attention",
        );
        assert!(refused(&read).contains("`other`"), "{}", refused(&read));
        let turned = DECODER.replace("concat %past_k, %k", "concat %k, %past_k");
        assert!(refused(&turned).contains("`past_k`"), "{}", refused(&turned));
    }
}
