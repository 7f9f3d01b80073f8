//! Which inputs take over an output of the step before: the memory of recurrent
//! policies.
//!
//! The user may say so; else names and types are looked at, and the guess is a
//! note. A pair has one type and the same name but for words such as `in` and
//! `out`, `prev` and `next`, `past` and `present`, and the output depends on the
//! input. The only output is never hidden. An output that is its input and one
//! token more is a cache of keys or values, see [`qail_passes::keep_cache`].

use std::{collections::BTreeSet, fmt};

use qail_ir::{Graph, NodeId, State, ValueId};
use qail_passes::{
    Canonicalize, EliminateDeadCode, FoldConstants, LiftAttention, LiftSoftmax, Pass, PassContext, PassManager,
    keep_cache::{Cache, growing_axis, keep_caches},
    rebatch::rebatch,
};

use super::PipelineError;
use crate::frontend::batch_axis;

/// Words that tell the two names of a state apart.
const TURNS: [&str; 18] = [
    "in", "out", "input", "output", "prev", "previous", "next", "new", "old", "past", "present", "cur", "current",
    "final", "initial", "init", "n", "last",
];

/// What the user said about states: pairs of input and output, perhaps none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateChoice {
    /// Input, and the output that it takes over.
    pub pairs: Vec<(String, String)>,
}

impl fmt::Display for StateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.pairs.iter().map(|(input, output)| format!("{input}<-{output}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// Declares the states of a graph; a note if they were guessed.
///
/// # Errors
/// Names that the model does not have, and types that differ.
pub(super) fn declare(graph: &mut Graph, choice: Option<&StateChoice>) -> Result<Option<String>, PipelineError> {
    let pairs = match choice {
        Some(choice) => choice.pairs.clone(),
        None => guess(graph),
    };
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut caches = Vec::new();
    for (input, output) in &pairs {
        let wrong = |what: String| PipelineError::State { what };
        let to = graph.input_named(input).ok_or_else(|| wrong(format!("state: the model has no input `{input}`")))?;
        let from = graph.output_named(output);
        let from = from.ok_or_else(|| wrong(format!("state: the model has no output `{output}`")))?;
        let (to, from) = (graph.ty(to), graph.ty(from));
        let cache = Cache { input: input.clone(), output: output.clone() };
        if to != from && growing_axis(graph, &cache).is_some() {
            caches.push(cache);
            continue;
        }
        if to != from {
            return Err(wrong(format!(
                "state: input `{input}` is {to} and output `{output}` is {from}; a state has one type, or its output is \
                 the input and one token behind it"
            )));
        }
        graph.states.push(State { input: input.clone(), output: output.clone(), element_axis: None, limit: None });
    }
    keep(graph, &caches)?;
    if graph.states.len() == graph.outputs.len() {
        let what = "state: every output is a state, so nothing is left to act with".to_owned();
        return Err(PipelineError::State { what });
    }
    graph.batch_axis = batch_axis(graph);
    find_elements(graph);
    qail_ir::verify(graph).map_err(|error| PipelineError::State { what: format!("state: {error}") })?;
    let list: Vec<String> = pairs.iter().map(|(input, output)| format!("`{input}` takes over `{output}`")).collect();
    let note =
        format!("kept from step to step: {}; `state = []` in policy.toml leaves them to the caller", list.join(", "));
    Ok(choice.is_none().then_some(note))
}

/// Makes states of caches.
fn keep(graph: &mut Graph, caches: &[Cache]) -> Result<(), PipelineError> {
    if caches.is_empty() {
        return Ok(());
    }
    // The places that are not taken are left out by attention, which is lifted for it.
    let lift: Vec<Box<dyn Pass>> = vec![
        Box::new(FoldConstants::default()),
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
        Box::new(LiftSoftmax),
        Box::new(LiftAttention),
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
    ];
    PassManager::new(lift).run(graph, &mut PassContext::new())?;
    Ok(keep_caches(graph, caches)?)
}

/// Finds the axis along which the elements of a batch lie in the states: the
/// first or the second, whichever lets the policy have a batch.
fn find_elements(graph: &mut Graph) {
    let batch = graph.batch_size();
    for place in 0..2 {
        let mut with = graph.clone();
        let axes: Vec<Option<usize>> = with.states.iter().map(|state| axis(graph, state, place, batch)).collect();
        for (state, axis) in with.states.iter_mut().zip(axes).filter(|(state, _)| state.element_axis.is_none()) {
            state.element_axis = axis;
        }
        let fits = batch != 1 || rebatch(&mut with.clone(), 2).is_ok();
        if qail_ir::verify(&with).is_ok() && fits && with.states.iter().all(|state| state.element_axis.is_some()) {
            *graph = with;
            return;
        }
    }
}

/// The `place`th axis with the extent of the batch, or the last one.
fn axis(graph: &Graph, state: &State, place: usize, batch: usize) -> Option<usize> {
    let shape = &graph.ty(graph.input_named(&state.input)?).shape;
    let fitting: Vec<usize> = (0..shape.len().min(2)).filter(|&axis| shape.get(axis) == Some(&batch)).collect();
    fitting.get(place).or(fitting.last()).copied()
}

/// Pairs that look like states.
fn guess(graph: &Graph) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for &id in graph.inputs() {
        let name = &graph.node(id).name;
        let behind = behind(graph, id);
        let fitting: Vec<&str> = graph
            .outputs
            .iter()
            .filter(|output| {
                let cache = Cache { input: name.clone(), output: output.name.clone() };
                (graph.ty(output.value) == graph.ty(id.value()) || growing_axis(graph, &cache).is_some())
                    && behind.contains(&output.value.node)
                    && output.value.node != id
                    && is_pair(name, &output.name)
            })
            .map(|output| output.name.as_str())
            .collect();
        if let [output] = fitting[..]
            && pairs.iter().all(|(_, taken)| taken != output)
        {
            pairs.push((name.clone(), output.to_owned()));
        }
    }
    if pairs.len() == graph.outputs.len() { Vec::new() } else { pairs }
}

/// Nodes that depend on an input.
fn behind(graph: &Graph, input: NodeId) -> BTreeSet<NodeId> {
    let mut behind = BTreeSet::from([input]);
    for id in graph.topo() {
        if graph.operands(id).iter().any(|operand: &ValueId| behind.contains(&operand.node)) {
            behind.insert(id);
        }
    }
    behind
}

/// True if two names differ by words for before and after alone.
fn is_pair(input: &str, output: &str) -> bool {
    let (input, output) = (words(input), words(output));
    let stem =
        |words: &[String]| words.iter().filter(|word| !TURNS.contains(&word.as_str())).cloned().collect::<Vec<_>>();
    let same = stem(&input) == stem(&output);
    same && input != output
}

/// The words of a name in small letters: `stateN` is `state n`, `hn` is `h n`.
fn words(name: &str) -> Vec<String> {
    let name = name.replace("key_values", "");
    let mut words: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in name.chars() {
        let is_new = !before.is_alphanumeric()
            || (c.is_uppercase() && before.is_lowercase())
            || (c.is_ascii_digit() != before.is_ascii_digit());
        if c.is_alphanumeric() {
            match words.last_mut() {
                Some(word) if !is_new => word.extend(c.to_lowercase()),
                _ => words.push(c.to_lowercase().collect()),
            }
        }
        before = c;
    }
    match &words[..] {
        // `h0` and `hn`, as PyTorch's documentation calls them.
        [state, zero] if state.len() == 1 && zero == "0" => vec![state.clone()],
        [both] if both == "hn" || both == "cn" => {
            vec![both.chars().take(1).collect(), "n".to_owned()]
        }
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    #[test]
    fn names_of_states_go_together() {
        for (input, output) in [
            ("h_in", "h_out"),
            ("state", "stateN"),
            ("h0", "hn"),
            ("recurrent_in", "recurrent_out"),
            ("past_key_values.0.key", "present.0.key"),
            ("prev_hidden", "hidden"),
            ("lstm.cell", "lstm.cell_next"),
        ] {
            assert!(is_pair(input, output), "{input} {output}");
        }
        for (input, output) in [("obs", "action"), ("h", "h"), ("h_in", "c_out"), ("layer.0.h_in", "layer.1.h_out")] {
            assert!(!is_pair(input, output), "{input} {output}");
        }
    }

    const GRU: &str = "graph @g(%obs: f32[1, 2], %h_in: f32[1, 1, 3]) -> (action = %y, h_out = %h) {
        %flat = reshape %h_in : f32[1, 3]
        %w = const rand(1) : f32[2, 3]
        %b = const rand(2) : f32[3]
        %u = linear %obs, %w, %b : f32[1, 3]
        %s = add %flat, %u : f32[1, 3]
        %y = tanh %s : f32[1, 3]
        %h = reshape %y : f32[1, 1, 3]
    }";

    #[test]
    fn a_state_is_guessed_and_may_be_refused() {
        let mut graph = text::parse(GRU).unwrap();
        let note = declare(&mut graph, None).unwrap().unwrap();
        assert!(note.contains("`h_in` takes over `h_out`"), "{note}");
        assert!(graph.states[0].element_axis.is_some());
        let mut graph = text::parse(GRU).unwrap();
        assert_eq!(declare(&mut graph, Some(&StateChoice::default())).unwrap(), None);
        assert!(graph.states.is_empty());
    }

    #[test]
    fn a_cache_that_grows_is_kept_with_its_length() {
        let text = "graph @g(%q: f32[1, 1, 1, 2], %kv: f32[1, 1, 1, 2], %past_k: f32[1, 1, 3, 2],
            %past_v: f32[1, 1, 3, 2]) -> (action = %y, present_k = %ks, present_v = %vs) {batch = 0} {
            %ks = concat %past_k, %kv {axis = 2} : f32[1, 1, 4, 2]
            %vs = concat %past_v, %kv {axis = 2} : f32[1, 1, 4, 2]
            %kt = transpose %ks {perm = [0, 1, 3, 2]} : f32[1, 1, 2, 4]
            %scores = matmul %q, %kt : f32[1, 1, 1, 4]
            %p = softmax %scores {axis = 3} : f32[1, 1, 1, 4]
            %y = matmul %p, %vs : f32[1, 1, 1, 2]
        }";
        let mut graph = text::parse(text).unwrap();
        let note = declare(&mut graph, None).unwrap().unwrap();
        assert!(note.contains("`past_k` takes over `present_k`"), "{note}");
        let names: Vec<&str> = graph.states.iter().map(|state| state.input.as_str()).collect();
        assert_eq!(names, ["past_k", "past_v", "cache.length"]);
        assert_eq!(graph.batch_axis, Some(0));
    }

    #[test]
    fn pairs_that_do_not_fit_are_named() {
        let refused = |input: &str, output: &str| {
            let choice = StateChoice { pairs: vec![(input.to_owned(), output.to_owned())] };
            declare(&mut text::parse(GRU).unwrap(), Some(&choice)).unwrap_err().to_string()
        };
        assert!(refused("h", "h_out").contains("no input `h`"));
        assert!(refused("h_in", "h").contains("no output `h`"));
        assert!(refused("h_in", "action").contains("f32[1, 1, 3] and output `action` is f32[1, 3]"));
    }
}
