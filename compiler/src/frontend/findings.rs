//! Collects everything that is wrong with a model, so that one run tells all.

use super::{
    error::{Blocker, ImportError, Problem, shown},
    external::ExternalError,
};

/// Most findings of one kind that are kept; a hostile file can be wrong more often.
const MAX_KEPT: usize = 1000;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    external: Vec<ExternalError>,
    blockers: Vec<Blocker>,
    n_more_blockers: usize,
    /// What the user should know about a model that is imported.
    pub(super) notes: Vec<String>,
}

impl Findings {
    /// Something that no sound model contains.
    pub(super) fn problem(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        if self.problems.len() < MAX_KEPT {
            self.problems.push(Problem { place: place.into(), reason: reason.into() });
        }
    }

    /// Something that is not supported.
    pub(super) fn blocker(&mut self, op: &str, node: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        if self.blockers.len() < MAX_KEPT {
            let (reason, remedy) = (reason.into(), remedy.into());
            self.blockers.push(Blocker { node: shown(node), op: shown(op), reason, remedy });
        } else {
            self.n_more_blockers += 1;
        }
    }

    /// A constant in another file that cannot be used.
    pub(super) fn external(&mut self, error: ExternalError) {
        if self.external.len() < MAX_KEPT {
            self.external.push(error);
        }
    }

    /// Something that the user should know.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if self.notes.len() < MAX_KEPT && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Fails if the file is broken: nothing can be built from it. What is not
    /// supported waits until the whole model was seen.
    pub(super) fn stop_if_invalid(&mut self) -> Result<(), ImportError> {
        if !self.problems.is_empty() {
            return Err(ImportError::Invalid { problems: std::mem::take(&mut self.problems) });
        }
        if !self.external.is_empty() {
            return Err(ImportError::External { errors: std::mem::take(&mut self.external) });
        }
        Ok(())
    }

    /// Fails if anything was found.
    pub(super) fn stop_if_any(&mut self) -> Result<(), ImportError> {
        self.stop_if_invalid()?;
        if !self.blockers.is_empty() {
            let blockers = std::mem::take(&mut self.blockers);
            return Err(ImportError::Blocked { blockers, n_more: self.n_more_blockers });
        }
        Ok(())
    }
}
