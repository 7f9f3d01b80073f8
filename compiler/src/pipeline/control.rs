//! From outputs to actions: which output is the action, and how the actions of
//! a chunk are given out.
//!
//! The user may say so; else the shape of the output is held against a recorded
//! action, and the guess is a note.

use std::collections::BTreeMap;

use qail_artifact::schema::{CHUNK_FEATURE, Chunk, Control, MAX_ENSEMBLE_EXPONENT, Manifest};
use qail_ir::Graph;

use super::PipelineError;

/// Prefix of facts that say what becomes of actions, and do not decide a run.
pub(super) const CONTROL: &str = "control:";

/// What the user said about chunks; the rest follows from the action's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChunkChoice {
    /// Actions in a chunk.
    pub length: Option<usize>,
    /// Actions given out before the next chunk is computed. Default: all, or one
    /// when ensembling.
    pub execute: Option<usize>,
    /// `m` of temporal ensembling, see [`Chunk::ensemble`].
    pub ensemble: Option<f64>,
}

/// Actions in a chunk and numbers of an action, of an output `[1, L, A]` or `[L, A]`.
pub(super) fn axes(shape: &[usize]) -> Option<(usize, usize)> {
    match *shape {
        [1, length, n] | [length, n] if length > 0 && n > 0 => Some((length, n)),
        _ => None,
    }
}

/// The chunk of an output; a note if it was guessed. `n_actions` is the length
/// of a recorded action, if there are any.
///
/// # Errors
/// A choice that does not fit the output or itself.
pub(super) fn chunk(
    choice: Option<&ChunkChoice>,
    graph: &Graph,
    output: &str,
    n_actions: Option<usize>,
) -> Result<(Option<Chunk>, Option<String>), PipelineError> {
    let found = graph.outputs.iter().find(|known| known.name == output);
    let found = found.ok_or(PipelineError::Internal("the action is an output"))?;
    let shape = &graph.ty(found.value).shape;
    let Some(choice) = choice else {
        let Some((length, _)) = axes(shape).filter(|&(length, n)| length > 1 && n_actions == Some(n)) else {
            return Ok((None, None));
        };
        let chunk = resolved(&ChunkChoice::default(), length)?;
        let note = format!(
            "output `{output}` {shape:?} is taken to be a chunk of {length} actions, all of them executed before \
             the next one: recorded actions have {} numbers; [chunk] in policy.toml or --chunk-execute say otherwise",
            n_actions.unwrap_or_default()
        );
        return Ok((Some(chunk), Some(note)));
    };
    let wrong = |what: String| PipelineError::Chunk { what };
    let Some((length, _)) = axes(shape) else {
        return Err(wrong(format!(
            "output `{output}` has the shape {shape:?}, and chunks are [1, length, actions] or [length, actions]: \
             export it so, or leave [chunk] out"
        )));
    };
    match choice.length {
        Some(said) if said != length => Err(wrong(format!(
            "the chunk has the length {said}, but output `{output}` {shape:?} holds {length} actions: leave the length out"
        ))),
        Some(_) => Ok((Some(resolved(choice, length)?), None)),
        None => {
            let note = format!("output `{output}` {shape:?} is taken to be a chunk of {length} actions");
            Ok((Some(resolved(choice, length)?), Some(note)))
        }
    }
}

/// Defaults filled in, and whether it all goes together.
fn resolved(choice: &ChunkChoice, length: usize) -> Result<Chunk, PipelineError> {
    let wrong = |what: String| Err(PipelineError::Chunk { what });
    let execute = choice.execute.unwrap_or(if choice.ensemble.is_some() { 1 } else { length });
    if execute == 0 || execute > length {
        return wrong(format!("{execute} actions of a chunk of {length} cannot be executed: choose 1 to {length}"));
    }
    if let Some(m) = choice.ensemble {
        if execute != 1 {
            return wrong(format!(
                "ensembling computes a chunk in every step, so {execute} actions of each cannot be executed: leave \
                 `execute` out, or the ensemble (--chunk-ensemble off)"
            ));
        }
        let limit = MAX_ENSEMBLE_EXPONENT / length.saturating_sub(1).max(1) as f64;
        if !(m.is_finite() && m.abs() <= limit) {
            return wrong(format!("the weight {m} of ensembling is out of range: choose one from -{limit} to {limit}"));
        }
    }
    let number = |x: usize| u32::try_from(x).map_err(|_| PipelineError::Chunk { what: format!("{x} is out of range") });
    Ok(Chunk { length: number(length)?, execute: number(execute)?, ensemble: choice.ensemble })
}

/// What is stored, with some of it said anew: an artifact gives out actions in
/// another way without being trained again.
///
/// # Errors
/// As [`chunk`], and if the action is no chunk.
pub(super) fn changed(stored: Option<&Control>, choice: &ChunkChoice) -> Result<Control, PipelineError> {
    let Some((control, chunk)) = stored.and_then(|control| Some((control, control.chunk?))) else {
        let what = "the checkpoint is of a policy without chunks: train it with [chunk] in policy.toml".to_owned();
        return Err(PipelineError::Chunk { what });
    };
    if let Some(length) = choice.length.filter(|&length| length != chunk.length as usize) {
        let what = format!("the checkpoint has chunks of {}, not of {length}: leave the length out", chunk.length);
        return Err(PipelineError::Chunk { what });
    }
    // How many are executed was perhaps never said, and follows from ensembling.
    let execute = choice.execute.or(choice.ensemble.map_or(Some(chunk.execute as usize), |_| None));
    let choice = ChunkChoice { length: None, execute, ensemble: choice.ensemble };
    Ok(Control { action: control.action.clone(), chunk: Some(resolved(&choice, chunk.length as usize)?) })
}

/// Writes what is known into a manifest.
pub(super) fn store(control: Option<&Control>, manifest: &mut Manifest) {
    manifest.control = control.cloned();
    if control.is_some_and(|control| control.chunk.is_some()) {
        manifest.required_features.push(CHUNK_FEATURE.to_owned());
    }
}

/// As facts of a checkpoint.
pub(super) fn to_facts(control: Option<&Control>) -> BTreeMap<String, String> {
    let Some(control) = control else { return BTreeMap::new() };
    let mut facts = vec![("action", control.action.clone())];
    if let Some(chunk) = control.chunk {
        facts.extend([("length", chunk.length.to_string()), ("execute", chunk.execute.to_string())]);
        facts.extend(chunk.ensemble.map(|m| ("ensemble", format!("{m:?}"))));
    }
    facts.into_iter().map(|(name, value)| (format!("{CONTROL}{name}"), value)).collect()
}

/// From the facts of a checkpoint.
///
/// # Errors
/// Facts that are no numbers.
pub(super) fn of_facts(facts: &BTreeMap<String, String>) -> Result<Option<Control>, PipelineError> {
    let fact = |name: &str| facts.get(&format!("{CONTROL}{name}"));
    let Some(action) = fact("action") else { return Ok(None) };
    let bad = || PipelineError::Fact { name: "control" };
    let number = |text: &String| text.parse::<u32>().map_err(|_| bad());
    let chunk = match (fact("length"), fact("execute")) {
        (Some(length), Some(execute)) => {
            let ensemble = fact("ensemble").map(|m| m.parse().map_err(|_| bad()));
            Some(Chunk { length: number(length)?, execute: number(execute)?, ensemble: ensemble.transpose()? })
        }
        (None, None) => None,
        _ => return Err(bad()),
    };
    Ok(Some(Control { action: action.clone(), chunk }))
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    fn say(shape: &str, choice: Option<ChunkChoice>, n_actions: Option<usize>) -> String {
        let graph = text::parse(&format!("graph @g(%y: f32[{shape}]) -> (%y) {{ }}")).unwrap();
        match chunk(choice.as_ref(), &graph, "y", n_actions) {
            Ok((None, None)) => "none".to_owned(),
            Ok((Some(Chunk { length, execute, ensemble }), note)) => {
                let ensemble = ensemble.map_or(String::new(), |m| format!(" ensemble {m}"));
                format!("{execute} of {length}{ensemble}{}", if note.is_some() { " (guessed)" } else { "" })
            }
            Ok((None, Some(note))) => note,
            Err(error) => error.to_string(),
        }
    }

    fn choice(length: Option<usize>, execute: Option<usize>, ensemble: Option<f64>) -> Option<ChunkChoice> {
        Some(ChunkChoice { length, execute, ensemble })
    }

    #[test]
    fn the_shape_says_what_was_left_out() {
        assert_eq!(say("1, 20, 4", choice(Some(20), Some(5), None), None), "5 of 20");
        assert_eq!(say("1, 20, 4", choice(None, None, None), None), "20 of 20 (guessed)");
        assert_eq!(say("20, 4", choice(Some(20), None, Some(0.01)), None), "1 of 20 ensemble 0.01");
        assert_eq!(say("1, 20, 4", None, Some(4)), "20 of 20 (guessed)");
        // Recorded actions that are the output, or none at all, make no chunk.
        assert_eq!(say("1, 20, 4", None, Some(80)), "none");
        assert_eq!(say("1, 20, 4", None, None), "none");
        assert_eq!(say("1, 4", None, Some(4)), "none");
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_a_remedy() {
        let said = say("1, 20, 4", choice(Some(10), None, None), None);
        assert_eq!(
            said,
            "the chunk has the length 10, but output `y` [1, 20, 4] holds 20 actions: leave the length out"
        );
        assert!(say("1, 2, 20, 4", choice(Some(20), None, None), None).contains("[1, length, actions]"));
        assert!(say("2, 20, 4", choice(Some(20), None, None), None).contains("[1, length, actions]"));
        assert!(say("1, 20, 4", choice(None, Some(21), None), None).contains("choose 1 to 20"));
        assert!(say("1, 20, 4", choice(None, Some(0), None), None).contains("choose 1 to 20"));
        assert!(say("1, 20, 4", choice(None, Some(50), Some(0.01)), None).contains("choose 1 to 20"));
        let said = say("1, 20, 4", choice(None, Some(5), Some(0.01)), None);
        assert!(said.contains("in every step") && said.contains("leave `execute` out"), "{said}");
        for m in [f64::NAN, f64::INFINITY, 40.0, -40.0] {
            assert!(say("1, 20, 4", choice(None, None, Some(m)), None).contains("out of range"), "{m}");
        }
        assert_eq!(say("1, 1, 4", choice(None, None, Some(500.0)), None), "1 of 1 ensemble 500 (guessed)");
    }

    #[test]
    fn facts_read_back() {
        let chunk = |execute, ensemble| Some(Chunk { length: 20, execute, ensemble });
        for chunk in [None, chunk(5, None), chunk(1, Some(0.01))] {
            let control = Some(Control { action: "y".to_owned(), chunk });
            assert_eq!(of_facts(&to_facts(control.as_ref())).unwrap(), control);
        }
        assert_eq!(of_facts(&to_facts(None)).unwrap(), None);
        let mut facts = to_facts(Some(&Control { action: "y".to_owned(), chunk: chunk(5, None) }));
        facts.insert("control:execute".to_owned(), "many".to_owned());
        assert!(of_facts(&facts).is_err());
        facts.remove("control:execute");
        assert!(of_facts(&facts).is_err());
    }

    #[test]
    fn a_checkpoint_gives_out_its_actions_in_another_way() {
        let stored = Control { action: "y".to_owned(), chunk: Some(Chunk { length: 20, execute: 20, ensemble: None }) };
        let change = |execute, ensemble| changed(Some(&stored), &ChunkChoice { length: None, execute, ensemble });
        assert_eq!(change(Some(5), None).unwrap().chunk.unwrap().execute, 5);
        assert_eq!(change(None, None).unwrap(), stored);
        let ensembled = change(None, Some(0.1)).unwrap().chunk.unwrap();
        assert_eq!((ensembled.execute, ensembled.ensemble), (1, Some(0.1)));
        assert!(change(Some(3), Some(0.1)).is_err());
        let other = ChunkChoice { length: Some(19), ..ChunkChoice::default() };
        assert!(changed(Some(&stored), &other).unwrap_err().to_string().contains("chunks of 20, not of 19"));
        assert!(changed(None, &ChunkChoice::default()).unwrap_err().to_string().contains("without chunks"));
    }
}
