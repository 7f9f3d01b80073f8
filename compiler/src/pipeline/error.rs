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
    /// A condition that earlier stages guarantee.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl PipelineError {
    pub(super) fn internal(invariant: &'static str) -> Self {
        Self::Internal(invariant)
    }
}
