//! Whether a model can be compiled: all passes and kernels, on made-up observations.

use std::path::Path;

use qail_artifact::schema::Layer;
use qail_ir::{ConstData, Constant, Graph, interp::Tensor};
use qail_passes::{default_pipeline, pipeline::given_pipeline};

use super::{
    BuildOptions, PipelineError, Sample, Silent, control, deployed, given, head, layers, plan_of, run_passes, stages,
    state,
};

/// A model that can be compiled.
#[derive(Debug)]
pub struct Checked {
    /// What would be built, for example `w4a4+e8+o16`.
    pub precision: String,
    /// Layers, as the report of a build would list them.
    pub layers: Vec<Layer>,
    /// Remarks of the frontend.
    pub notes: Vec<String>,
    /// True if compiling needs recorded observations.
    pub needs_data: bool,
}

/// Goes all the way to kernels without data: two seeded random observations
/// stand in for recorded ones, so that every pass and kernel is tried. Their
/// ranges are thrown away.
///
/// # Errors
/// Whatever [`super::compile`] would say about the model.
pub fn check(model: &Path, options: &BuildOptions) -> Result<Checked, PipelineError> {
    let mut imported = stages::import(model, options, &mut Silent)?;
    imported.notes.extend(state::declare(&mut imported.graph, options.policy.states.as_ref())?);
    let sampler = options.policy.sampler.as_ref().map(|choice| choice.resolve(&imported.graph)).transpose()?;
    imported.notes.extend(sampler.as_ref().and_then(|(_, note)| note.clone()));
    let sampler = sampler.map(|(sampler, _)| sampler);
    let samples: Vec<Sample> = (0..2).map(|seed| random_sample(&imported.graph, seed)).collect::<Result<_, _>>()?;
    let is_quantized = given::accepted(&imported.graph, options)?;
    if let Some(chunk) = &options.policy.chunk {
        let (head, _) = head::resolve(&imported.graph, &options.policy.head, None)?;
        control::chunk(Some(chunk), &imported.graph, head::action(&head), None)?;
    }
    let passes = if is_quantized { given_pipeline() } else { default_pipeline(&options.passes) };
    let passed = run_passes(&imported.graph, Some(&samples), passes, options.seed, &mut Silent)?;
    plan_of(&*deployed::deployed(&passed.graph, sampler.as_ref())?, sampler.as_ref(), options.seed)?;
    Ok(Checked {
        precision: if is_quantized { given::PRECISION.to_owned() } else { options.passes.effective() },
        layers: layers::layers(&passed.graph, passed.lowering.as_ref()),
        notes: imported.notes,
        needs_data: options.passes.precision.needs_data() && !is_quantized,
    })
}

/// A seeded random value for every input.
fn random_sample(graph: &Graph, seed: u64) -> Result<Sample, PipelineError> {
    let inputs = graph.inputs().iter().map(|&id| {
        let node = graph.node(id);
        let ty = node.outputs.first().ok_or_else(|| PipelineError::internal("an input has no type"))?.clone();
        let constant = Constant { ty, data: ConstData::Rand(seed) };
        let tensor =
            Tensor::from_constant(&constant).map_err(|_| PipelineError::internal("random numbers cannot be read"))?;
        Ok((node.name.clone(), tensor))
    });
    inputs.collect()
}
