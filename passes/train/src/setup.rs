//! From a prepared graph to executors that train it.

use std::collections::BTreeSet;

use qail_ir::{Graph, NodeId, ValueId};
use qail_passes::{Pass, PassContext, Rebatch};

use crate::{
    Head, LossSpec, LossValues, Weighting, attach,
    differentiate::{self, differentiate},
    exec::{CpuExecutor, CpuOptions, TrainExecutor},
    options::TrainOptions,
    parameters::{self, Parameter},
    trainer::TrainError,
};

/// The joint graph of a policy, its loss and its gradients, ready to run.
pub(crate) struct Machine {
    pub(crate) executor: Box<dyn TrainExecutor>,
    /// Rows of one run; a batch is as many runs as it takes.
    pub(crate) rows: usize,
    pub(crate) feeds: Vec<Feed>,
    /// The constants of the parameters, in their order.
    pub(crate) constants: Vec<ValueId>,
    /// Their gradients.
    pub(crate) gradients: Vec<ValueId>,
    pub(crate) loss: LossValues,
}

/// Where the numbers of an input of the joint graph come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feed {
    /// Name of the input.
    pub(crate) input: String,
    pub(crate) source: Source,
    /// Numbers in a row.
    pub(crate) row_len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This observation.
    Observation(usize),
    /// The action of the expert.
    Expert,
    /// This output of the teacher.
    Teacher(usize),
    /// The weights of the rows.
    Weight,
    /// Which of the expert's actions in a chunk count.
    Mask,
}

impl Machine {
    /// For the prepared graph at batch 1; `masked` as in [`LossSpec`]. Parameters that do not lead to the
    /// loss, those of a value function for example, are dropped, and so are those in front of a choice
    /// (the nearest code of a book), which moves in jumps: a note says that they stay as they are.
    #[allow(clippy::too_many_arguments, reason = "each is something else, and there is one caller")]
    pub(crate) fn new(
        graph: &Graph,
        head: &Head,
        parameters: &mut Vec<Parameter>,
        options: &TrainOptions,
        weighting: Weighting,
        masked: Option<usize>,
        threads: usize,
        notes: &mut Vec<String>,
    ) -> Result<Self, TrainError> {
        let observations: Vec<String> = graph.inputs().iter().map(|&id| graph.node(id).name.clone()).collect();
        let (mut graph, rows) = rebatched(graph, options.batch, notes);
        let method = options.method;
        let (from_expert, from_teacher) = options.distances(head);
        let spec = LossSpec {
            head: head.clone(),
            qail: method.needs_actions().then_some(from_expert),
            qbc: method.needs_teacher().then_some((options.lambda as f32, from_teacher)),
            weighting,
            masked,
        };
        let loss = attach(&mut graph, &spec)?;
        keep(parameters, &graph, &differentiate::leading_to(&graph, loss.total.node, |_, _| true));
        let n_leading = parameters.len();
        let cut_off = keep(parameters, &graph, &differentiate::moving(&graph, loss.total));
        if parameters.is_empty() {
            return Err(parameters::ParameterError::NoneMoves.into());
        }
        if let Some(name) = cut_off.first() {
            notes.push(format!(
                "{} of {n_leading} parameters, `{name}` the first, lie in front of a choice that has no derivative \
                 (arg max, comparison, rounding): they keep their calibrated values",
                cut_off.len()
            ));
        }
        let wrt = parameters::locate(&graph, parameters)?;
        let joint = differentiate(&graph, loss.total, &wrt)?;
        let teacher = head.outputs();
        let feeds = joint.graph.inputs().iter().map(|&id| {
            let input = joint.graph.node(id).name.clone();
            let row_len = joint.graph.ty(id.value()).n_elements() / rows.max(1);
            let source = source_of(&input, &observations, &teacher);
            let source = source.ok_or_else(|| TrainError::NoColumn { name: input.clone() })?;
            Ok(Feed { input, source, row_len })
        });
        let feeds = feeds.collect::<Result<Vec<Feed>, TrainError>>()?;
        let executor = CpuExecutor::new(&joint.graph, &CpuOptions { threads, keep: Vec::new() })?;
        Ok(Self { executor: Box::new(executor), rows, feeds, constants: wrt, gradients: joint.gradients, loss })
    }
}

/// Keeps the parameters that are among the nodes; gives the names of the others.
fn keep(parameters: &mut Vec<Parameter>, graph: &Graph, nodes: &BTreeSet<NodeId>) -> Vec<String> {
    let names: BTreeSet<&str> = nodes.iter().map(|&id| graph.node(id).name.as_str()).collect();
    let (kept, dropped): (Vec<_>, Vec<_>) =
        std::mem::take(parameters).into_iter().partition(|p| names.contains(p.name.as_str()));
    *parameters = kept;
    dropped.into_iter().map(|parameter| parameter.name).collect()
}

pub(crate) fn source_of(input: &str, observations: &[String], teacher: &[&str]) -> Option<Source> {
    if let Some(index) = observations.iter().position(|name| name == input) {
        return Some(Source::Observation(index));
    }
    if input.starts_with("target.") {
        return Some(Source::Expert);
    }
    if input == "weight" {
        return Some(Source::Weight);
    }
    if input == "mask" {
        return Some(Source::Mask);
    }
    let output = input.strip_prefix("teacher.")?;
    teacher.iter().position(|name| *name == output).map(Source::Teacher)
}

/// The graph with another batch, or the graph itself and a remark.
pub(crate) fn rebatched(graph: &Graph, batch: usize, notes: &mut Vec<String>) -> (Graph, usize) {
    let mut batched = graph.clone();
    match (Rebatch { n: batch }).run(&mut batched, &mut PassContext::new()) {
        Ok(_) => (batched, batch),
        Err(error) => {
            let note = format!("{error}; it runs row by row, which is slower");
            if !notes.contains(&note) {
                notes.push(note);
            }
            // What is no batch of one sample is one sample as a whole.
            batched = graph.clone();
            if batched.batch_size() != 1 {
                batched.batch_axis = None;
            }
            (batched, 1)
        }
    }
}
