//! Which outputs of a policy are its action, and what kind of head they make.
//!
//! The user may say so; else names and shapes are looked at, and the guess is
//! a note.

use std::collections::BTreeMap;

use qail_ir::{DType, Elem, Graph};
use qail_train::Head;

use super::{PipelineError, control};

/// Kinds of heads that can train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// An output is the action.
    Deterministic,
    /// Mean and logarithm of the standard deviation.
    Gaussian,
}

/// What the user said about the head; the rest is guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadChoice {
    /// Kind of the head.
    pub kind: Option<HeadKind>,
    /// Part of the head (`action`, or `mean` and `log_std`) to output of the model.
    pub outputs: BTreeMap<String, String>,
}

/// Names that a mean goes by.
const MEANS: [&str; 5] = ["mean", "mu", "loc", "action_mean", "actions_mean"];
/// Names that the logarithm of a standard deviation goes by.
const LOG_STDS: [&str; 6] = ["log_std", "logstd", "log_sigma", "log_scale", "action_log_std", "actions_log_std"];
/// Names that an action goes by.
const ACTIONS: [&str; 4] = ["action", "actions", "act", "output"];

/// The head of a policy, and a note if it was guessed among several outputs.
/// `n_actions` is the length of a recorded action, if there are any: as long as
/// an output, or as a row of a chunk.
///
/// # Errors
/// Outputs that the model does not have, and models that leave the choice open.
pub(super) fn resolve(
    graph: &Graph,
    choice: &HeadChoice,
    n_actions: Option<usize>,
) -> Result<(Head, Option<String>), PipelineError> {
    let floats = || graph.outputs.iter().filter(|output| graph.ty(output.value).elem == Elem::Plain(DType::F32));
    let lens: BTreeMap<&str, usize> =
        floats().map(|output| (output.name.as_str(), graph.ty(output.value).n_elements())).collect();
    // One recorded action may also be a row of a chunk.
    let rows: BTreeMap<&str, usize> = floats()
        .filter_map(|output| Some((output.name.as_str(), control::axes(&graph.ty(output.value).shape)?.1)))
        .collect();
    let fits = |name: &str, n_actions: usize| {
        lens.get(name) == Some(&n_actions) || rows.get(name).is_some_and(|&row| row == n_actions)
    };
    let is_state = |name: &str| graph.state_of_output(name).is_some();
    let listed = || {
        lens.iter()
            .filter(|(name, _)| !is_state(name))
            .map(|(name, n)| format!("`{name}` ({n} numbers)"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let wrong = |what: String| PipelineError::Head { what, outputs: listed() };
    if lens.is_empty() {
        let all = graph.outputs.iter().map(|output| format!("`{}` ({})", output.name, graph.ty(output.value)));
        let what = "a policy whose action is no output of floats cannot be judged; choose the one before it".to_owned();
        return Err(PipelineError::Head { what, outputs: all.collect::<Vec<_>>().join(", ") });
    }
    if let Some(part) = choice.outputs.keys().find(|part| !["action", "mean", "log_std"].contains(&part.as_str())) {
        return Err(wrong(format!("a head has no part `{part}`; known are action, mean and log_std")));
    }
    let named = |part: &str| -> Result<Option<String>, PipelineError> {
        match choice.outputs.get(part) {
            Some(name) if !lens.contains_key(name.as_str()) => {
                Err(wrong(format!("the model has no output `{name}` of floats")))
            }
            name => Ok(name.cloned()),
        }
    };
    let among = |known: &[&str]| known.iter().find(|name| lens.contains_key(**name)).map(|name| (*name).to_owned());
    let mean = named("mean")?;
    let log_std = named("log_std")?;
    let named_action = named("action")?;
    let kind = choice.kind.or_else(|| log_std.is_some().then_some(HeadKind::Gaussian));
    let guessed_pair = among(&MEANS).zip(among(&LOG_STDS));
    let same_len = |(a, b): &(String, String)| lens.get(a.as_str()) == lens.get(b.as_str());
    let is_gaussian = match kind {
        Some(kind) => kind == HeadKind::Gaussian,
        None => named_action.is_none() && guessed_pair.as_ref().is_some_and(same_len),
    };
    let (head, guess) = if is_gaussian {
        let mean =
            mean.or_else(|| among(&MEANS)).ok_or_else(|| wrong("a gaussian head needs an output `mean`".into()))?;
        let log_std = log_std.or_else(|| among(&LOG_STDS));
        let log_std = log_std.ok_or_else(|| wrong("a gaussian head needs an output `log_std`".to_owned()))?;
        if !same_len(&(mean.clone(), log_std.clone())) {
            return Err(wrong(format!("`{mean}` and `{log_std}` of a gaussian head differ in length")));
        }
        let note = format!("the head is taken to be gaussian, mean `{mean}`, log_std `{log_std}`");
        (Head::Gaussian { mean, log_std }, kind.is_none().then_some(note))
    } else {
        let fitting: Vec<&str> =
            lens.keys().copied().filter(|name| n_actions.is_none_or(|n_actions| fits(name, n_actions))).collect();
        let output = match (named_action.or(mean), &fitting[..]) {
            (Some(named), _) => (named, false),
            (None, _) if lens.len() == 1 => (lens.keys().map(|name| (*name).to_owned()).collect(), false),
            (None, [only]) => ((*only).to_owned(), true),
            (None, _) => match among(&ACTIONS).or_else(|| among(&MEANS)) {
                Some(known) => (known, true),
                None => return Err(wrong("it is not clear which output is the action".to_owned())),
            },
        };
        let note = format!("output `{}` is taken to be the action", output.0);
        (Head::Deterministic { output: output.0 }, output.1.then_some(note))
    };
    let name = action(&head);
    match (lens.get(name), n_actions) {
        (Some(&n), Some(n_actions)) if !fits(name, n_actions) => {
            Err(wrong(format!("output `{name}` has {n} numbers, but a recorded action has {n_actions}")))
        }
        _ if is_state(name) => {
            Err(wrong(format!("output `{name}` is a state: it is kept for the next step and not handed back")))
        }
        (Some(0), _) => Err(wrong(format!("output `{name}` is empty"))),
        _ => Ok((head, guess)),
    }
}

/// The output that is the action.
pub(super) fn action(head: &Head) -> &str {
    match head {
        Head::Deterministic { output } => output,
        Head::Gaussian { mean, .. } => mean,
    }
}

/// The head as a fact of a run.
pub(super) fn head_name(head: &Head) -> String {
    match head {
        Head::Deterministic { output } => format!("deterministic action={output}"),
        Head::Gaussian { mean, log_std } => format!("gaussian mean={mean} log_std={log_std}"),
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    fn graph(outputs: &[(&str, usize)]) -> Graph {
        let inputs: Vec<String> = outputs.iter().map(|(name, n)| format!("%{name}: f32[1, {n}]")).collect();
        let names: Vec<String> = outputs.iter().map(|(name, _)| format!("%{name}")).collect();
        let text = format!("graph @g({}) -> ({}) {{batch = 0}} {{ }}", inputs.join(", "), names.join(", "));
        text::parse(&text).unwrap()
    }

    fn pick(outputs: &[(&str, usize)], choice: &HeadChoice, n_actions: Option<usize>) -> String {
        match resolve(&graph(outputs), choice, n_actions) {
            Ok((head, note)) => format!("{}{}", head_name(&head), if note.is_some() { " (guessed)" } else { "" }),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_and_shapes_give_the_head() {
        let none = HeadChoice::default();
        assert_eq!(pick(&[("y", 3)], &none, Some(3)), "deterministic action=y");
        assert_eq!(pick(&[("y", 3), ("value", 1)], &none, Some(3)), "deterministic action=y (guessed)");
        assert_eq!(pick(&[("action", 3), ("h", 3)], &none, Some(3)), "deterministic action=action (guessed)");
        assert_eq!(
            pick(&[("mean", 3), ("log_std", 3)], &none, Some(3)),
            "gaussian mean=mean log_std=log_std (guessed)"
        );
        // A deviation that is no logarithm makes no pair.
        assert_eq!(pick(&[("mean", 3), ("std", 3)], &none, Some(3)), "deterministic action=mean (guessed)");
        assert!(pick(&[("a", 3), ("b", 3)], &none, Some(3)).contains("not clear"));
    }

    #[test]
    fn a_model_without_floats_is_told_what_it_has() {
        let graph = text::parse("graph @g(%y: i64[1, 2]) -> (%y) {batch = 0} { }").unwrap();
        let message = resolve(&graph, &HeadChoice::default(), None).unwrap_err().to_string();
        assert!(message.contains("no output of floats") && message.contains("`y` (i64[1, 2])"), "{message}");
    }

    #[test]
    fn a_recorded_action_may_be_a_row_of_a_chunk() {
        let graph = text::parse("graph @g(%y: f32[1, 20, 4], %z: f32[1, 5]) -> (%y, %z) {batch = 0} { }").unwrap();
        let pick =
            |n_actions| resolve(&graph, &HeadChoice::default(), Some(n_actions)).map(|(head, _)| head_name(&head));
        assert_eq!(pick(4).unwrap(), "deterministic action=y");
        assert_eq!(pick(80).unwrap(), "deterministic action=y");
        assert_eq!(pick(5).unwrap(), "deterministic action=z");
        assert!(pick(20).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let none = HeadChoice::default();
        let message = pick(&[("y", 3)], &none, Some(4));
        assert!(message.contains("output `y` has 3 numbers, but a recorded action has 4"), "{message}");
        let choice = HeadChoice { kind: Some(HeadKind::Gaussian), ..none };
        assert!(pick(&[("y", 3)], &choice, Some(3)).contains("needs an output `mean`"));
        let outputs = BTreeMap::from([("action".to_owned(), "z".to_owned())]);
        assert!(pick(&[("y", 3)], &HeadChoice { kind: None, outputs }, None).contains("no output `z`"));
    }

    #[test]
    fn a_state_is_no_action() {
        let text = "graph @g(%x: f32[1, 3], %h: f32[1, 4]) -> (y = %x, h_next = %h) {batch = 0} { }";
        let mut graph = text::parse(text).unwrap();
        let (input, output) = ("h".to_owned(), "h_next".to_owned());
        graph.states.push(qail_ir::State { input, output: output.clone(), element_axis: None, limit: None });
        let choice = HeadChoice { kind: None, outputs: BTreeMap::from([("action".to_owned(), output)]) };
        let message = resolve(&graph, &choice, None).unwrap_err().to_string();
        assert_eq!(
            message,
            "output `h_next` is a state: it is kept for the next step and not handed back; the outputs are `y` (3 numbers)"
        );
    }

    #[test]
    fn what_the_user_says_wins() {
        let outputs = BTreeMap::from([("action".to_owned(), "b".to_owned())]);
        let choice = HeadChoice { kind: None, outputs };
        assert_eq!(pick(&[("a", 3), ("b", 3)], &choice, Some(3)), "deterministic action=b");
        let choice = HeadChoice { kind: Some(HeadKind::Deterministic), ..HeadChoice::default() };
        assert_eq!(pick(&[("mean", 3), ("log_std", 3)], &choice, Some(3)), "deterministic action=mean (guessed)");
    }
}
