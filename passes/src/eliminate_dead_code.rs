//! `eliminate-dead-code`: removes what no output of the model needs.
//!
//! Inputs of the model stay, read or not: they are its signature. Exact.

use std::collections::BTreeSet;

use qail_ir::{Graph, NodeId};

use crate::{Changed, Exactness, Pass, PassContext, PassError};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct EliminateDeadCode;

impl Pass for EliminateDeadCode {
    fn name(&self) -> &'static str {
        "eliminate-dead-code"
    }

    fn summary(&self) -> &'static str {
        "removes what no output of the model needs"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut live = BTreeSet::new();
        let mut queue: Vec<NodeId> = graph.outputs.iter().map(|output| output.value.node).collect();
        while let Some(id) = queue.pop() {
            if live.insert(id) {
                queue.extend(graph.operands(id).into_iter().map(|value| value.node));
            }
        }
        let mut changed = Changed::No;
        // Users before operands, so that every node is free when its turn comes.
        for id in graph.topo().into_iter().rev().filter(|id| !live.contains(id)) {
            changed = changed.or(Changed::when(graph.remove(id)));
        }
        Ok(changed)
    }
}
