//! A policy of several model files: each stage is read on its own, then they are
//! [joined](qail_passes::join) into one graph.

use std::path::Path;

use qail_passes::join;
use sha2::{Digest, Sha256};

use super::{BuildOptions, Observer, PipelineError};
use crate::{
    files::hex,
    frontend::{self, Imported, batch_axis},
};

/// Reads the stages of a policy, of which the model is the first.
///
/// # Errors
/// Everything that is wrong with a model, and stages that do not go together.
pub(super) fn import(
    model: &Path,
    options: &BuildOptions,
    observer: &mut dyn Observer,
) -> Result<Imported, PipelineError> {
    let mut read = |path: &Path, import: &frontend::ImportOptions| {
        frontend::import_with(path, import, &mut |done, all| {
            let [done, all] = [done, all].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            observer.progress("read", done, all);
        })
    };
    let Some((last, between)) = options.policy.then.split_last() else {
        if let Some(input) = options.policy.wires.keys().next() {
            return Err(PipelineError::NoStage { input: input.clone() });
        }
        return Ok(read(model, &options.import)?);
    };
    // What was named to be handed back is an output of the last stage.
    let all_outputs = frontend::ImportOptions { outputs: None, ..options.import.clone() };
    let mut joined = read(model, &all_outputs)?;
    let mut stages = Vec::new();
    for path in between {
        stages.push(read(path, &all_outputs)?);
    }
    stages.push(read(last, &options.import)?);
    let graphs: Vec<&qail_ir::Graph> = stages.iter().map(|stage| &stage.graph).collect();
    let refused = |error| PipelineError::Stages(Box::new(error));
    join::check_wires(&graphs, &options.policy.wires).map_err(refused)?;
    join::join(&mut joined.graph, &graphs, &options.policy.wires).map_err(refused)?;
    let mut hash = Sha256::new();
    hash.update(&joined.sha256);
    for stage in stages {
        hash.update(&stage.sha256);
        joined.notes.extend(stage.notes);
        joined.size_bytes = joined.size_bytes.saturating_add(stage.size_bytes);
        joined.cross_checked &= stage.cross_checked;
    }
    joined.sha256 = hex(&hash.finalize());
    joined.graph.batch_axis = batch_axis(&joined.graph);
    Ok(joined)
}
