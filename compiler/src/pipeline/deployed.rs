//! From the graph that is quantized and trained to the one that runs: a denoising
//! step gets the loop of its sampler.

use std::borrow::Cow;

use qail_ir::{Graph, interp::Tensor};
use qail_passes::{Pass, PassContext, Sampler, TabulateTurns};
use qail_train::denoise::standard_normal;

use super::{PipelineError, Sample};

/// Held-out steps that a sampler is judged on: each takes all of its turns.
const N_SAMPLED: usize = 32;

/// The graph as it runs.
///
/// # Errors
/// A sampler that does not fit.
pub(super) fn deployed<'g>(graph: &'g Graph, sampler: Option<&Sampler>) -> Result<Cow<'g, Graph>, PipelineError> {
    let Some(sampler) = sampler else { return Ok(Cow::Borrowed(graph)) };
    let mut policy = graph.clone();
    sampler.attach(&mut policy).map_err(|error| PipelineError::Sampler { what: error.to_string() })?;
    TabulateTurns.run(&mut policy, &mut PassContext::new())?;
    Ok(Cow::Owned(policy))
}

/// What the policy of a sampler is judged on: held-out observations, and noise
/// to begin with instead of a noisy action.
pub(super) fn judged<'s>(
    policy: &Graph,
    samples: &'s [Sample],
    sampler: Option<&Sampler>,
    seed: u64,
) -> Cow<'s, [Sample]> {
    let Some(sampler) = sampler else { return Cow::Borrowed(samples) };
    let n = N_SAMPLED.min(samples.len());
    let chosen = (0..n).filter_map(|i| samples.get(i * samples.len() / n.max(1)));
    let mut judged: Vec<Sample> = chosen.cloned().collect();
    for (draw, sample) in judged.iter_mut().enumerate() {
        sample.remove(&sampler.timestep);
        for (place, name) in noise(sampler).into_iter().enumerate() {
            let Some(value) = policy.input_named(&name) else { continue };
            let ty = policy.ty(value);
            let numbers = standard_normal(seed, (2 * draw + place) as u64, ty.n_elements());
            sample.insert(name, Tensor::f32(ty.shape.clone(), numbers));
        }
    }
    Cow::Owned(judged)
}

/// Inputs that are noise.
pub(super) fn noise(sampler: &Sampler) -> [String; 2] {
    [sampler.sample.clone(), Sampler::NOISE.to_owned()]
}
