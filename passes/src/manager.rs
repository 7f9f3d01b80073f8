//! Runs passes in order and checks the graph after each.

use qail_ir::Graph;

use crate::{PassContext, PassError};

/// Whether a pass did something. The pass that knows reports it; nobody infers
/// it from node counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The graph is as it was.
    No,
    /// The graph was rewritten.
    Yes,
}

impl Changed {
    /// [`Changed::Yes`] if the condition holds.
    pub fn when(condition: bool) -> Self {
        if condition { Self::Yes } else { Self::No }
    }

    /// [`Changed::Yes`] if either is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::when(self == Self::Yes || other == Self::Yes)
    }
}

/// What a pass may do to the numbers that a graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Every result is the same number. (Zeros may change sign.)
    Exact,
    /// Results differ by rounding of `f32` alone, inside a forward error bound.
    Rounding,
    /// Results differ: quantization.
    Lossy,
}

impl Exactness {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Rounding => "rounding",
            Self::Lossy => "lossy",
        }
    }
}

/// A named graph-to-graph transformation.
///
/// The graph is well-formed before and after; [`PassManager`] verifies it.
pub trait Pass {
    /// Name on the command line, of the source file, of the struct and of the
    /// folder of tests.
    fn name(&self) -> &'static str;

    /// What the pass does, in one sentence without a final period.
    fn summary(&self) -> &'static str;

    /// What it may do to the numbers.
    fn exactness(&self) -> Exactness;

    /// Rewrites `graph`.
    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError>;
}

/// Called after each pass with the pass, whether it changed something, and the graph.
pub type AfterPass<'a> = dyn FnMut(&dyn Pass, Changed, &Graph) + 'a;

/// A sequence of passes.
#[derive(Default)]
pub struct PassManager {
    passes: Vec<Box<dyn Pass>>,
}

impl PassManager {
    /// A manager of the given passes.
    pub fn new(passes: Vec<Box<dyn Pass>>) -> Self {
        Self { passes }
    }

    /// Appends a pass.
    pub fn push(&mut self, pass: impl Pass + 'static) {
        self.passes.push(Box::new(pass));
    }

    /// The passes, in order.
    pub fn passes(&self) -> impl Iterator<Item = &dyn Pass> {
        self.passes.iter().map(AsRef::as_ref)
    }

    /// Runs every pass once.
    pub fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        self.run_with(graph, cx, &mut |_, _, _| {})
    }

    /// Runs every pass once and calls `after` behind each, with a verified graph.
    pub fn run_with(
        &self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        after: &mut AfterPass<'_>,
    ) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for pass in self.passes() {
            cx.pass = pass.name();
            let of_this =
                pass.run(graph, cx).map_err(|source| PassError::In { pass: pass.name(), source: Box::new(source) })?;
            qail_ir::verify(graph).map_err(|source| PassError::Broken { pass: pass.name(), source })?;
            after(pass, of_this, graph);
            changed = changed.or(of_this);
        }
        Ok(changed)
    }
}
