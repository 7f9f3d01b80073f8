//! What a command says and returns when it cannot do its work.

use std::{error::Error, fmt::Write as _, path::Path};

use qail_passes::PassError;
use qail_runtime::{ControlError, RunError, RuntimeError};
use qail_train::{checkpoint::CheckpointError, trainer::TrainError};

use crate::{
    data::DataError,
    frontend::{Blocker, ErrorKind, ImportError},
    pipeline::PipelineError,
};

/// Why a command stopped. The numbers are the exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// A bug of ours: an invariant did not hold.
    Internal = 1,
    /// Flags that make no sense.
    Usage = 2,
    /// The model is well-formed and qailc does not support it.
    Unsupported = 3,
    /// A file is damaged, hostile, missing or does not fit the model.
    InvalidInput = 4,
    /// The accuracy asked for was not reached.
    AccuracyGate = 5,
    /// The speed asked for was not reached.
    PerformanceGate = 6,
    /// There is no such device here.
    NoDevice = 7,
    /// The artifact is damaged or of another version.
    Artifact = 8,
}

/// An error on its way to the terminal: what was tried, why it failed, what to do.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What was tried: "cannot import `actor.onnx`".
    pub context: String,
    /// Why it failed, the chain of sources included.
    pub causes: Vec<String>,
    /// One thing to do.
    pub help: Option<String>,
    /// Everything that the model asks for and this version does not have.
    pub blockers: Vec<Blocker>,
}

impl Failure {
    /// A failure with the chain of an error as its causes.
    pub fn new(exit: Exit, context: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let context = context.into();
        let mut causes = vec![context.clone(), error.to_string()];
        let mut source = error.source();
        while let Some(error) = source {
            causes.push(error.to_string());
            source = error.source();
        }
        // A transparent wrapper repeats its source, a plain error its context.
        causes.dedup();
        causes.remove(0);
        Self { causes, ..Self::plain(exit, context) }
    }

    /// A failure that is its own explanation.
    pub fn plain(exit: Exit, context: impl Into<String>) -> Self {
        Self { exit, context: context.into(), causes: Vec::new(), help: None, blockers: Vec::new() }
    }

    /// Flags that were not understood.
    pub(super) fn of_flags(error: &clap::Error) -> Self {
        let message = error.to_string();
        Self::plain(Exit::Usage, message.lines().next().unwrap_or_default().trim_start_matches("error: "))
    }

    /// The same failure with a remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The text for the terminal.
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.context);
        for cause in &self.causes {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "  caused by: {}", cause.replace('\n', "\n    "));
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, "  help: {help}");
        }
        text
    }

    /// The same for machines: fields of a document.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let blockers: Vec<_> = self
            .blockers
            .iter()
            .map(|b| serde_json::json!({ "node": b.node, "op": b.op, "reason": b.reason, "remedy": b.remedy }))
            .collect();
        let error = serde_json::json!({
            "exit_code": self.exit as u8, "message": self.context, "causes": self.causes, "help": self.help,
        });
        let mut fields = serde_json::Map::from_iter([("schema".to_owned(), 1.into()), ("error".to_owned(), error)]);
        if !blockers.is_empty() {
            fields.insert("blockers".to_owned(), blockers.into());
        }
        fields
    }
}

/// A failed import.
pub(super) fn of_import(context: impl Into<String>, error: &ImportError) -> Failure {
    let failure = Failure::new(exit_of_import(error), context, error);
    match error {
        ImportError::Blocked { blockers, .. } => Failure { blockers: blockers.clone(), ..failure },
        _ => failure,
    }
}

/// A failed build.
pub(super) fn of_pipeline(context: &str, error: &PipelineError) -> Failure {
    let failure = Failure::new(exit_of_pipeline(error), context, error);
    match error {
        PipelineError::Import(error) => of_import(context, error),
        PipelineError::NeedsData { .. } => {
            failure.help("give recorded observations with --demos FILE.npz, or choose -b f32, w4a16 or w8a16")
        }
        PipelineError::Head { .. } => failure.help("name the action with --action-output, or the head in policy.toml"),
        PipelineError::AlreadyQuantized { .. } => {
            failure.help("leave -b and --method out to compile it as it is, or pass the float model")
        }
        _ => failure,
    }
}

fn exit_of_pipeline(error: &PipelineError) -> Exit {
    match error {
        PipelineError::Import(error) => exit_of_import(error),
        PipelineError::Data(error) => exit_of_data(error),
        PipelineError::NeedsData { .. } | PipelineError::AlreadyQuantized { .. } => Exit::Usage,
        PipelineError::Read { .. } => Exit::InvalidInput,
        PipelineError::Pass(error) => exit_of_pass(error),
        PipelineError::Codegen(error) => match error {
            qail_codegen::CodegenError::InvalidShader { .. } | qail_codegen::CodegenError::Internal { .. } => {
                Exit::Internal
            }
            _ => Exit::Unsupported,
        },
        PipelineError::Interp(_) | PipelineError::Output(_) | PipelineError::Resume { .. } => Exit::InvalidInput,
        PipelineError::Head { .. }
        | PipelineError::Method { .. }
        | PipelineError::Bounds { .. }
        | PipelineError::Chunk { .. }
        | PipelineError::Stages(_)
        | PipelineError::NoStage { .. }
        | PipelineError::Sampler { .. }
        | PipelineError::State { .. } => Exit::Usage,
        PipelineError::Train(error) => exit_of_training(error),
        PipelineError::Checkpoint { source, .. } => match **source {
            CheckpointError::Foreign => Exit::InvalidInput,
            _ => Exit::Artifact,
        },
        PipelineError::Fact { .. } => Exit::Artifact,
        PipelineError::NoCheckpoint(_) => Exit::Internal,
        PipelineError::Write(_) | PipelineError::Runtime(_) | PipelineError::Run(_) | PipelineError::Internal(_) => {
            Exit::Internal
        }
    }
}

fn exit_of_training(error: &TrainError) -> Exit {
    match error {
        TrainError::Diverged { .. } | TrainError::Lost { .. } => Exit::AccuracyGate,
        TrainError::Parameter(_)
        | TrainError::Unroll(_)
        | TrainError::Loss(_)
        | TrainError::Gradient(_)
        | TrainError::Exec(_) => Exit::Unsupported,
        TrainError::Interp(_)
        | TrainError::NoColumn { .. }
        | TrainError::NoOutput { .. }
        | TrainError::RowLength { .. }
        | TrainError::NoRows
        | TrainError::FirstLoss { .. }
        | TrainError::State { .. }
        | TrainError::Save(_) => Exit::InvalidInput,
    }
}

/// Exit code of a model that was not imported.
fn exit_of_import(error: &ImportError) -> Exit {
    match error.kind() {
        ErrorKind::Usage => Exit::Usage,
        ErrorKind::Unsupported => Exit::Unsupported,
        ErrorKind::Invalid => Exit::InvalidInput,
        ErrorKind::Internal => Exit::Internal,
    }
}

/// Exit code of a recording that cannot be used.
pub(super) fn exit_of_data(error: &DataError) -> Exit {
    match error {
        DataError::Missing { .. } | DataError::NoInput { .. } => Exit::Usage,
        _ => Exit::InvalidInput,
    }
}

/// Observations for an artifact or for passes that cannot be read.
pub(super) fn of_observations(path: &Path, error: &DataError) -> Failure {
    let exit = if matches!(error, DataError::NoInput { .. }) { Exit::Usage } else { Exit::InvalidInput };
    Failure::new(exit, format!("cannot read observations from `{}`", path.display()), error)
}

/// Exit code of a pass that refused.
pub(super) fn exit_of_pass(error: &PassError) -> Exit {
    match error {
        PassError::In { source, .. } => exit_of_pass(source),
        PassError::Options { .. } | PassError::Unknown { .. } | PassError::NoData { .. } => Exit::Usage,
        PassError::Const { .. }
        | PassError::Sample { .. }
        | PassError::NotFinite { .. }
        | PassError::Weights { .. }
        | PassError::Interp(_) => Exit::InvalidInput,
        PassError::Step { .. }
        | PassError::Overflow { .. }
        | PassError::Multiplier { .. }
        | PassError::Unsupported { .. } => Exit::Unsupported,
        PassError::Broken { .. } | PassError::Type { .. } | PassError::Internal { .. } => Exit::Internal,
    }
}

/// A session that was not made.
pub fn of_runtime(context: &str, error: &RuntimeError) -> Failure {
    let exit = match error {
        RuntimeError::Artifact(_) => Exit::Artifact,
        RuntimeError::Io { .. } => Exit::InvalidInput,
        RuntimeError::NoEntry(_) => Exit::Usage,
        RuntimeError::NoDevice { .. } | RuntimeError::Step { .. } | RuntimeError::Memory { .. } => Exit::NoDevice,
        RuntimeError::Internal(_) => Exit::Internal,
    };
    let failure = Failure::new(exit, context, error);
    if exit == Exit::NoDevice { failure.help("`qailc devices` lists what can run artifacts here") } else { failure }
}

/// A run that did not happen.
pub fn of_run(context: &str, error: &RunError) -> Failure {
    let exit = match error {
        RunError::Device { .. } => Exit::NoDevice,
        RunError::Internal(_) => Exit::Internal,
        _ => Exit::InvalidInput,
    };
    Failure::new(exit, context, error)
}

/// An action that was not given.
pub fn of_control(context: &str, error: &ControlError) -> Failure {
    match error {
        ControlError::Run(error) => of_run(context, error),
        ControlError::NoAction { .. } | ControlError::Type { .. } => Failure::new(Exit::Usage, context, error),
        ControlError::Length { .. } | ControlError::NotFinite { .. } => {
            Failure::new(Exit::InvalidInput, context, error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("node `fc`: gemm supports rank 2")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("1 blocker")]
    struct Outer(#[source] Inner);

    #[test]
    fn the_chain_does_the_nesting() {
        let failure = Failure::new(Exit::Unsupported, "cannot import `actor.onnx`", &Outer(Inner)).help("export again");
        insta::assert_snapshot!(failure.render(), @r"
        error: cannot import `actor.onnx`
          caused by: 1 blocker
          caused by: node `fc`: gemm supports rank 2
          help: export again
        ");
    }
}
