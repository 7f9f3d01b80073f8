//! Whether a model can be compiled: all passes and kernels, on made-up observations.

use std::path::Path;

use qail_artifact::schema::Layer;
use qail_ir::{ConstData, Constant, Graph, interp::Tensor};
use qail_passes::{default_pipeline, pipeline::given_pipeline};

use super::{
    BuildOptions, Opened, PipelineError, Sample, Silent, deployed, given, layers, opened, plan_of, run_passes,
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
    let opened = opened::read(model, options, &mut Silent)?;
    if options.policy.chunk.is_some() {
        opened.control(options)?;
    }
    let Opened { teacher, is_quantized, sampler, notes, .. } = opened;
    let samples: Vec<Sample> = (0..2).map(|seed| random_sample(&teacher, seed)).collect::<Result<_, _>>()?;
    let passes = if is_quantized { given_pipeline() } else { default_pipeline(&options.passes) };
    let passed = run_passes(&teacher, Some(&samples), passes, options.seed, &mut Silent)?;
    plan_of(&*deployed::deployed(&passed.graph, sampler.as_ref())?, sampler.as_ref(), options.seed)?;
    Ok(Checked {
        precision: if is_quantized { given::PRECISION.to_owned() } else { options.passes.effective() },
        layers: layers::layers(&passed.graph, passed.lowering.as_ref()),
        notes,
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
