//! Several models become one graph: the stages of a policy.
//!
//! An encoder and the network that denoises an action are often exported apart.
//! A later stage reads outputs of earlier ones by their names, or by the names
//! that the user gives; what no later stage reads is handed back. Joined, they
//! are one policy: passes, training and plans see through the border, and a
//! sampler runs the first stage once.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{Constant, Graph, NodeId, Op, TensorType, TypeError, ValueId};

/// Stages that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// An output that no earlier stage has.
    #[error("input `{input}` of a stage is wired to `{output}`, and earlier stages have {known}")]
    NoOutput {
        /// The input.
        input: String,
        /// What it is wired to.
        output: String,
        /// What there is.
        known: String,
    },
    /// An input that the stage does not have.
    #[error("a stage has no input `{input}`, which is wired to `{output}`; the stages have {known}")]
    NoInput {
        /// The input.
        input: String,
        /// What it is wired to.
        output: String,
        /// What there is.
        known: String,
    },
    /// Types that differ.
    #[error("input `{input}` of a stage is {expected}, and `{output}`, which it reads, is {found}")]
    Type {
        /// The input.
        input: String,
        /// Its type.
        expected: TensorType,
        /// What it reads.
        output: String,
        /// The type of that.
        found: TensorType,
    },
    /// Two stages that hand back the same name.
    #[error("two stages have an output `{name}` that nobody reads; rename one of them")]
    Output {
        /// The name.
        name: String,
    },
    /// A stage that reads nothing of the stages before.
    #[error(
        "stage `{name}` reads no output of the stages before it; wire one of its inputs {inputs} to one of {known}"
    )]
    Apart {
        /// Name of the stage.
        name: String,
        /// Its inputs.
        inputs: String,
        /// Outputs of earlier stages.
        known: String,
    },
    /// A node that does not fit: a bug.
    #[error("internal error: a node of a stage")]
    Node(#[from] TypeError),
}

/// Appends stages to a graph, in order. `wires` goes from inputs of the stages to
/// outputs of those before them; other inputs read the last output of their name,
/// or the input of their name if both are alike, or are new.
///
/// # Errors
/// See [`JoinError`]; then the graph is as it was.
pub fn join(graph: &mut Graph, stages: &[&Graph], wires: &BTreeMap<String, String>) -> Result<(), JoinError> {
    let mut joined = graph.clone();
    let mut read = BTreeSet::new();
    for stage in stages {
        append(&mut joined, stage, wires, &mut read)?;
    }
    joined.outputs.retain(|output| !read.contains(&output.name));
    *graph = joined;
    Ok(())
}

/// Appends one stage. `read` has the names of outputs that some stage reads.
fn append(
    joined: &mut Graph,
    stage: &Graph,
    wires: &BTreeMap<String, String>,
    read: &mut BTreeSet<String>,
) -> Result<(), JoinError> {
    let known = outputs(joined);
    let mut n_read = 0usize;
    let mut places: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in stage.topo() {
        let node = stage.node(id);
        let (name, origin) = (node.name.clone(), node.origin.clone());
        let new = match &node.op {
            Op::Input(input) => match source(joined, &name, &input.ty, wires)? {
                Some((value, output)) => {
                    n_read += usize::from(output.is_some());
                    read.extend(output);
                    value.node
                }
                None => joined.add_input(name, input.ty.clone()).node,
            },
            Op::Const(c) => joined.add_const(name, Constant::clone(stage.constant(c.id)), origin).node,
            op => {
                let operands = stage.operands(id).into_iter().filter_map(|value| place(&places, value));
                joined.add(name, op.clone(), &operands.collect::<Vec<_>>(), origin)?
            }
        };
        places.insert(id, new);
    }
    if n_read == 0 {
        let inputs = list(stage.inputs().iter().map(|&id| stage.node(id).name.as_str()));
        return Err(JoinError::Apart { name: stage.name.clone(), inputs, known });
    }
    // An output of the name of one that was read takes its place.
    let again = |name: &String| stage.outputs.iter().any(|output| output.name == *name);
    joined.outputs.retain(|output| !(read.contains(&output.name) && again(&output.name)));
    read.retain(|name| !again(name));
    for output in &stage.outputs {
        if joined.outputs.iter().any(|known| known.name == output.name) {
            return Err(JoinError::Output { name: output.name.clone() });
        }
        if let Some(value) = place(&places, output.value) {
            joined.add_output(output.name.clone(), value);
        }
    }
    joined.metadata.extend(stage.metadata.clone());
    Ok(())
}

/// Checks that every wire leads from an input of a stage.
///
/// # Errors
/// [`JoinError::NoInput`].
pub fn check_wires(stages: &[&Graph], wires: &BTreeMap<String, String>) -> Result<(), JoinError> {
    for (input, output) in wires {
        if stages.iter().all(|stage| stage.input_named(input).is_none()) {
            let known = stages.iter().flat_map(|stage| stage.inputs().iter().map(|&id| stage.node(id).name.as_str()));
            return Err(JoinError::NoInput { input: input.clone(), output: output.clone(), known: list(known) });
        }
    }
    Ok(())
}

fn place(places: &BTreeMap<NodeId, NodeId>, value: ValueId) -> Option<ValueId> {
    places.get(&value.node).map(|&node| ValueId { node, slot: value.slot })
}

/// What an input of a stage reads, and the output by which it does; nothing if it
/// is an input of the whole.
fn source(
    graph: &Graph,
    name: &str,
    ty: &TensorType,
    wires: &BTreeMap<String, String>,
) -> Result<Option<(ValueId, Option<String>)>, JoinError> {
    let wired = wires.get(name);
    let output = wired.map_or(name, String::as_str);
    match (graph.output_named(output), wired, graph.input_named(name)) {
        (Some(value), ..) if graph.ty(value) == ty => Ok(Some((value, Some(output.to_owned())))),
        (Some(value), ..) => Err(JoinError::Type {
            input: name.to_owned(),
            expected: ty.clone(),
            output: output.to_owned(),
            found: graph.ty(value).clone(),
        }),
        (None, Some(wired), _) => {
            Err(JoinError::NoOutput { input: name.to_owned(), output: wired.clone(), known: outputs(graph) })
        }
        (None, None, Some(shared)) if graph.ty(shared) == ty => Ok(Some((shared, None))),
        (None, None, Some(other)) => Err(JoinError::Type {
            input: name.to_owned(),
            expected: ty.clone(),
            output: name.to_owned(),
            found: graph.ty(other).clone(),
        }),
        (None, None, None) => Ok(None),
    }
}

fn outputs(graph: &Graph) -> String {
    list(graph.outputs.iter().map(|output| output.name.as_str()))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use qail_ir::{
        interp::{self, Tensor},
        text, verify,
    };

    use super::*;

    const ENCODER: &str = "graph @encoder(%obs: f32[1, 2]) -> (features = %f, extra = %e) {
        %f = tanh %obs : f32[1, 2]
        %e = exp %obs : f32[1, 2]
    }";
    const HEAD: &str = "graph @head(%obs: f32[1, 2], %cond: f32[1, 2], %x: f32[1, 2]) -> (action = %y) {
        %f = mul %cond, %x : f32[1, 2]
        %y = add %f, %obs : f32[1, 2]
    }";

    fn joined(wires: &[(&str, &str)]) -> Result<Graph, String> {
        let (mut graph, stage) = (text::parse(ENCODER).unwrap(), text::parse(HEAD).unwrap());
        let wires = wires.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        check_wires(&[&stage], &wires).map_err(|error| error.to_string())?;
        join(&mut graph, &[&stage], &wires).map_err(|error| error.to_string())?;
        verify(&graph).unwrap();
        Ok(graph)
    }

    #[test]
    fn a_stage_reads_what_it_is_wired_to() {
        let graph = joined(&[("cond", "features")]).unwrap();
        let names: Vec<&str> = graph.inputs().iter().map(|&id| graph.node(id).name.as_str()).collect();
        let outputs: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!((names, outputs), (vec!["obs", "x"], vec!["extra", "action"]));
        let tensor = |x: f32| Tensor::f32([1, 2], vec![x; 2]);
        let inputs = [("obs".to_owned(), tensor(0.5)), ("x".to_owned(), tensor(2.0))].into();
        let action = &interp::run(&graph, &inputs).unwrap()["action"];
        assert!((action.as_f32().unwrap()[0] - (0.5f32.tanh() * 2.0 + 0.5)).abs() < 1e-6);
    }

    #[test]
    fn stages_that_do_not_meet_are_told_so() {
        assert_eq!(
            joined(&[]).unwrap_err(),
            "stage `head` reads no output of the stages before it; wire one of its inputs `obs`, `cond`, `x` to one of \
             `features`, `extra`"
        );
        let message = joined(&[("cond", "feature")]).unwrap_err();
        assert_eq!(
            message,
            "input `cond` of a stage is wired to `feature`, and earlier stages have `features`, `extra`"
        );
        assert!(joined(&[("kond", "features")]).unwrap_err().starts_with("a stage has no input `kond`"));
    }

    #[test]
    fn a_later_stage_reads_what_an_earlier_one_read_too() {
        let stages = [
            ENCODER,
            "graph @context(%features: f32[1, 2]) -> (ctx = %c) {
                %c = abs %features : f32[1, 2]
            }",
            // Its output has the name of what it reads.
            "graph @head(%features: f32[1, 2], %ctx: f32[1, 2]) -> (ctx = %y) {
                %y = add %features, %ctx : f32[1, 2]
            }",
        ];
        let [mut graph, context, head] = stages.map(|stage| text::parse(stage).unwrap());
        join(&mut graph, &[&context, &head], &BTreeMap::new()).unwrap();
        verify(&graph).unwrap();
        let names: Vec<&str> = graph.inputs().iter().map(|&id| graph.node(id).name.as_str()).collect();
        let outputs: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!((names, outputs), (vec!["obs"], vec!["extra", "ctx"]));
        let inputs = [("obs".to_owned(), Tensor::f32([1, 2], vec![-0.5; 2]))].into();
        let found = &interp::run(&graph, &inputs).unwrap()["ctx"];
        assert_eq!(found.as_f32().unwrap(), [0.0, 0.0]);
    }
}
