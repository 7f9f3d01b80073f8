//! What happens around a graph: values that one run hands to the next one, and
//! how often the graph runs.
//!
//! A graph computes outputs from inputs. A [`State`] makes an input of an
//! output: the memory of a recurrent policy, the keys and values that a decoder
//! has seen. A [`Repeat`] runs the graph several times in a row, as the samplers
//! of diffusion and flow policies do. Neither changes what a node computes, so
//! passes need not know them: they go by the names of inputs and outputs, which
//! every pass keeps.

use crate::{DType, Elem, Graph, TensorType, ValueId, VerifyError};

/// Most turns of a [`Repeat`].
pub const MAX_TURNS: usize = 1 << 16;

/// A value that is kept from run to run. Zero at the start of an episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Input that reads it.
    pub input: String,
    /// Output that is the value in the next run.
    pub output: String,
    /// Axis along which the elements of a batch lie, if there is one: what
    /// resetting one element resets.
    pub element_axis: Option<usize>,
    /// Largest number that a run may begin with: a cache that has no room left
    /// is an error, never a wrong answer. For integers only.
    pub limit: Option<i64>,
}

/// A value that one turn of a [`Repeat`] hands to the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// Input that reads it; what the caller gives is for the first turn.
    pub input: String,
    /// Output that is the value in the next turn.
    pub output: String,
}

/// The graph runs several times; its outputs are those of the last turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// Number of turns, 1 to [`MAX_TURNS`].
    pub n: usize,
    /// Input, `i64[]`, that reads the number of the turn, from 0. Tables of
    /// constants are looked up with it.
    pub turn: Option<String>,
    /// What goes from turn to turn.
    pub carries: Vec<Carry>,
}

impl Graph {
    /// The input of a name.
    pub fn input_named(&self, name: &str) -> Option<ValueId> {
        self.inputs().iter().find(|&&id| self.node(id).name == name).map(|id| id.value())
    }

    /// The value behind an output of a name.
    pub fn output_named(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|output| output.name == name).map(|output| output.value)
    }

    /// The state that an input reads.
    pub fn state_of_input(&self, name: &str) -> Option<&State> {
        self.states.iter().find(|state| state.input == name)
    }

    /// The state that an output is.
    pub fn state_of_output(&self, name: &str) -> Option<&State> {
        self.states.iter().find(|state| state.output == name)
    }

    /// True for the input that counts turns.
    pub fn is_turn(&self, name: &str) -> bool {
        self.repeat.as_ref().and_then(|repeat| repeat.turn.as_deref()) == Some(name)
    }
}

/// Checks that every name means something and every type fits.
pub(crate) fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let broken = |name: &str, what: String| VerifyError::Schedule { name: name.to_owned(), what };
    let mut taken: Vec<&str> = Vec::new();
    let handed = graph.states.iter().map(|state| (&state.input, &state.output));
    let carries = graph.repeat.iter().flat_map(|repeat| &repeat.carries);
    for (input, output) in handed.chain(carries.map(|carry| (&carry.input, &carry.output))) {
        let from = graph.output_named(output).ok_or_else(|| broken(output, "there is no such output".to_owned()))?;
        let to = graph.input_named(input).ok_or_else(|| broken(input, "there is no such input".to_owned()))?;
        let (from, to) = (graph.ty(from), graph.ty(to));
        if from != to {
            return Err(broken(input, format!("it is {to}, but output `{output}`, which it takes over, is {from}")));
        }
        if taken.contains(&input.as_str()) {
            return Err(broken(input, "it takes over two values".to_owned()));
        }
        taken.push(input);
    }
    for state in &graph.states {
        let ty = graph.input_named(&state.input).map(|value| graph.ty(value));
        if let (Some(axis), Some(ty)) = (state.element_axis, ty)
            && axis >= ty.shape.len()
        {
            return Err(broken(&state.input, format!("{ty} has no axis {axis}")));
        }
        let is_int = |ty: &TensorType| matches!(ty.elem, Elem::Plain(DType::I32 | DType::I64));
        if state.limit.is_some() && !ty.is_some_and(is_int) {
            return Err(broken(&state.input, "only integers have a limit".to_owned()));
        }
    }
    let Some(repeat) = &graph.repeat else { return Ok(()) };
    if !(1..=MAX_TURNS).contains(&repeat.n) {
        return Err(broken("repeat", format!("{} turns; 1 to {MAX_TURNS} are accepted", repeat.n)));
    }
    let Some(turn) = &repeat.turn else { return Ok(()) };
    let expected = TensorType::plain(DType::I64, Vec::<usize>::new());
    match graph.input_named(turn).map(|value| graph.ty(value)) {
        None => Err(broken(turn, "there is no such input".to_owned())),
        Some(ty) if *ty != expected => Err(broken(turn, format!("it counts turns and is {ty}, must be {expected}"))),
        Some(_) if taken.contains(&turn.as_str()) => {
            Err(broken(turn, "it counts turns and takes over a value".to_owned()))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    const COUNTER: &str = "graph @g(%x: f32[1, 2], %n: i64[1], %k: i64[]) -> (y = %y, m = %m) {
        state \"n\" = \"m\" {element_axis = 0, limit = 3}
        repeat 4 \"k\"
        carry \"x\" = \"y\"
        %one = const [1] : i64[1]
        %m = add %n, %one : i64[1]
        %y = add %x, %x : f32[1, 2]
    }";

    fn broken(change: impl Fn(&mut Graph)) -> String {
        let mut graph = text::parse(COUNTER).unwrap();
        change(&mut graph);
        crate::verify(&graph).unwrap_err().to_string()
    }

    #[test]
    fn what_is_around_a_graph_prints_and_reads_back() {
        let graph = text::parse(COUNTER).unwrap();
        crate::verify(&graph).unwrap();
        assert_eq!(graph.states[0].limit, Some(3));
        assert_eq!(graph.repeat.as_ref().unwrap().n, 4);
        assert!(text::parse(&text::print(&graph)).unwrap() == graph);
        let mut other = graph.clone();
        other.states[0].limit = None;
        assert!(other != graph);
    }

    #[test]
    fn names_and_types_must_fit() {
        let repeat = |graph: &mut Graph, change: fn(&mut Repeat)| change(graph.repeat.as_mut().unwrap());
        assert_eq!(broken(|g| g.states[0].input = "z".into()), "`z`: there is no such input");
        assert_eq!(broken(|g| g.states[0].output = "z".into()), "`z`: there is no such output");
        assert_eq!(
            broken(|g| g.states[0].output = "y".into()),
            "`n`: it is i64[1], but output `y`, which it takes over, is f32[1, 2]"
        );
        assert_eq!(broken(|g| g.states[0].element_axis = Some(1)), "`n`: i64[1] has no axis 1");
        let twice = |g: &mut Graph| g.states.push(g.states[0].clone());
        assert_eq!(broken(twice), "`n`: it takes over two values");
        assert_eq!(broken(|g| repeat(g, |r| r.n = 0)), "`repeat`: 0 turns; 1 to 65536 are accepted");
        assert_eq!(broken(|g| repeat(g, |r| r.turn = Some("z".into()))), "`z`: there is no such input");
        assert_eq!(
            broken(|g| repeat(g, |r| r.turn = Some("x".into()))),
            "`x`: it counts turns and is f32[1, 2], must be i64[]"
        );
        let limited = |g: &mut Graph| {
            g.repeat = None;
            g.states[0] = State { input: "x".into(), output: "y".into(), element_axis: None, limit: Some(1) };
        };
        assert_eq!(broken(limited), "`x`: only integers have a limit");
    }
}
