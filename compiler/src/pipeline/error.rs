//! Everything that can stop a build.

use std::path::PathBuf;

use qail_artifact::WriteError;
use qail_codegen::CodegenError;
use qail_ir::interp::InterpError;
use qail_passes::{PassError, Precision};
use qail_runtime::{RunError, RuntimeError};

use crate::{data::DataError, frontend::ImportError};

/// A build that stopped.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The model cannot be read or is not supported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The demonstrations cannot be read or do not fit.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Activations cannot be quantized without having seen any.
    #[error("{precision} quantizes activations, and their range comes from data")]
    NeedsData {
        /// What was asked for.
        precision: Precision,
    },
    /// The model is quantized already, and something else was asked for.
    #[error("the model is quantized already, and it keeps its scales: {asked} cannot be done to it")]
    AlreadyQuantized {
        /// What was asked for.
        asked: String,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A pass refused.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// There is no plan for the graph.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// The plan does not fit a file.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The finished artifact does not load.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The finished artifact does not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The teacher does not run.
    #[error(transparent)]
    Interp(#[from] InterpError),
    /// The head does not fit the model or the data.
    #[error("{what}; the outputs are {outputs}")]
    Head {
        /// What does not fit.
        what: String,
        /// Outputs of floats with their lengths, or all with their types if there are none.
        outputs: String,
    },
    /// Another number of bounds than of actions.
    #[error("output `{output}` has {n} actions, but policy.toml has {found} pairs of bounds; give one pair, or {n}")]
    Bounds {
        /// The output.
        output: String,
        /// Its actions.
        n: usize,
        /// Pairs of bounds.
        found: usize,
    },
    /// A sampler that does not fit the model.
    #[error("{what}")]
    Sampler {
        /// What does not fit, and what would.
        what: String,
    },
    /// Stages that do not go together.
    #[error("the stages do not go together")]
    Stages(#[source] Box<qail_passes::join::JoinError>),
    /// Wires without a stage that they could lead to.
    #[error("`wires` of [stages] leads to `{input}` of a later stage, and there is none; name it with `then`")]
    NoStage {
        /// The first input that is wired.
        input: String,
    },
    /// States that do not fit the model.
    #[error("{what}")]
    State {
        /// What does not fit, and what would.
        what: String,
    },
    /// Chunks that do not fit the action or themselves.
    #[error("{what}")]
    Chunk {
        /// What does not fit, and what would.
        what: String,
    },
    /// The method cannot be used here.
    #[error("method {method} cannot be used: {why}")]
    Method {
        /// What was asked for.
        method: qail_train::options::Method,
        /// Why not.
        why: String,
    },
    /// Training cannot begin or go on.
    #[error(transparent)]
    Train(#[from] qail_train::trainer::TrainError),
    /// A file is no sound checkpoint.
    #[error("cannot use the checkpoint `{}`", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<qail_train::checkpoint::CheckpointError>,
    },
    /// A checkpoint of our own cannot be made.
    #[error("cannot make a checkpoint")]
    NoCheckpoint(#[from] qail_train::checkpoint::CheckpointError),
    /// A checkpoint lacks something that a build needs.
    #[error("the checkpoint has no sound fact `{name}`")]
    Fact {
        /// Name of the fact.
        name: &'static str,
    },
    /// The checkpoint is of another run.
    #[error("cannot resume: the checkpoint is of another run: {what}")]
    Resume {
        /// The first difference.
        what: String,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Output(#[from] crate::files::WriteError),
    /// A condition that earlier stages guarantee.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl PipelineError {
    pub(super) fn internal(invariant: &'static str) -> Self {
        Self::Internal(invariant)
    }
}
