//! The action is an output of floats, and a chunk has as many rows as it says.

use super::{Check, tensor::TensorInfo};
use crate::{
    ArtifactError,
    schema::{CHUNK_FEATURE, Chunk, Control, MAX_ENSEMBLE_EXPONENT, Manifest, Storage},
};

/// Checks what a manifest says about control.
pub(super) fn check(manifest: &Manifest, tensors: &[TensorInfo]) -> Check {
    let has_feature = manifest.requires(CHUNK_FEATURE);
    let Some(control) = &manifest.control else {
        return if has_feature { refuse("needs the feature `chunk` and has none") } else { Ok(()) };
    };
    let outputs = manifest.entries.first().map(|entry| entry.outputs.as_slice()).unwrap_or_default();
    let port = outputs.iter().find(|port| port.name == control.action);
    let tensor = port.and_then(|port| Some((tensors.get(port.tensor as usize)?, port.tensor)));
    let Some((tensor, index)) = tensor.filter(|(tensor, _)| tensor.storage == Storage::F32) else {
        return refuse(&format!("the action `{}` is no output of floats", control.action));
    };
    if control.chunk.is_some() != has_feature {
        return refuse("a chunk and the feature `chunk` go together");
    }
    let Control { chunk: Some(Chunk { length, execute, ensemble }), .. } = *control else { return Ok(()) };
    let shape = manifest.tensors.get(index as usize).map(|tensor| tensor.shape.as_slice()).unwrap_or_default();
    if !matches!(*shape, [rows, _] | [1, rows, _] if rows == u64::from(length)) || tensor.rows != length as usize {
        return refuse(&format!(
            "the action `{}` has the shape {shape:?}, which is no chunk of {length}",
            control.action
        ));
    }
    if execute == 0 || execute > length {
        return refuse(&format!("{execute} actions of a chunk of {length} cannot be given out"));
    }
    let Some(m) = ensemble else { return Ok(()) };
    if execute != 1 {
        return refuse(&format!("ensembling computes a chunk in every step, but {execute} actions are given out"));
    }
    // A product with NaN is no smaller than anything.
    if !(m.abs() * f64::from(length - 1) <= MAX_ENSEMBLE_EXPONENT && m.is_finite()) {
        return refuse(&format!("the weight {m} of ensembling is out of range for chunks of {length}"));
    }
    Ok(())
}

fn refuse(problem: &str) -> Check {
    Err(ArtifactError::invalid("control", problem))
}
