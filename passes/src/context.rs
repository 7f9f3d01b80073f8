//! What passes know beside the graph, and what they tell.

use std::collections::BTreeMap;

use qail_ir::{Graph, NodeId};

use crate::{
    Samples,
    quant::{LoweringReport, ValueStats},
};

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// A rewrite that was expected here did not happen, and why.
    Declined,
    /// Something worth knowing.
    Info,
}

/// Something a pass wants its user to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Name of the pass.
    pub pass: String,
    /// Name of the node.
    pub node: String,
    /// What it is about.
    pub kind: NoteKind,
    /// One clause, lower case, without a final period.
    pub text: String,
}

/// Takes the name of a pass, the work done and the work in all.
pub type Progress<'a> = dyn FnMut(&str, usize, usize) + 'a;

/// What passes know beside the graph, and what they leave for their caller.
#[derive(Default)]
pub struct PassContext<'a> {
    /// Calibration data, if there is any.
    pub samples: Option<&'a dyn Samples>,
    /// Seed of everything random.
    pub seed: u64,
    /// Called by long passes.
    pub progress: Option<Box<Progress<'a>>>,
    /// Statistics of quantized values by the name of their quantizer, written by `calibrate`.
    pub stats: BTreeMap<String, ValueStats>,
    /// Means of the input features of each layer by its name, in units of what
    /// the layer reads; written by `calibrate`, used up by `correct-bias`.
    pub input_means: BTreeMap<String, Vec<f64>>,
    /// What `lower-quant` knows about every layer that it lowered.
    pub lowering: Option<LoweringReport>,
    /// Notes of all passes, in order.
    pub notes: Vec<Note>,
    /// Name of the pass that runs.
    pub pass: &'static str,
}

impl<'a> PassContext<'a> {
    /// A context without data, seed 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context with calibration data.
    pub fn with_samples(samples: &'a dyn Samples) -> Self {
        Self { samples: Some(samples), ..Self::default() }
    }

    /// Notes that an expected rewrite did not happen at `node`, and why.
    pub fn declined(&mut self, graph: &Graph, node: NodeId, reason: impl Into<String>) {
        self.note(NoteKind::Declined, &graph.node(node).name, reason.into());
    }

    /// Notes something about `node`.
    pub fn info(&mut self, graph: &Graph, node: NodeId, text: impl Into<String>) {
        self.note(NoteKind::Info, &graph.node(node).name, text.into());
    }

    /// Reports progress.
    pub fn advance(&mut self, done: usize, all: usize) {
        if let Some(progress) = &mut self.progress {
            progress(self.pass, done, all);
        }
    }

    fn note(&mut self, kind: NoteKind, node: &str, text: String) {
        let note = Note { pass: self.pass.to_owned(), node: node.to_owned(), kind, text };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}
