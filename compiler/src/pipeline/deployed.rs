//! From the graph that is quantized and trained to the one that runs: a denoising
//! step gets the loop of its sampler.

use std::borrow::Cow;

use qail_artifact::{
    MAX_TURNS,
    schema::{Manifest, Step, step},
};
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

/// Refuses more turns than a reader of the artifact accepts.
///
/// # Errors
/// A sampler with too many steps for so large a model.
pub(super) fn check_turns(manifest: &Manifest, sampler: &Sampler) -> Result<(), PipelineError> {
    let all = manifest.entries.iter().map(|entry| n_turns(&entry.steps, 1)).max().unwrap_or(0);
    if all <= MAX_TURNS {
        return Ok(());
    }
    let steps = sampler.steps as u64;
    let each = all.div_ceil(steps.max(1));
    let most = MAX_TURNS / each.max(1);
    let what = format!(
        "`steps` of the sampler is {steps}, and each has {each} steps of the plan, more than {MAX_TURNS} in all; \
         choose {most} at most"
    );
    Err(PipelineError::Sampler { what })
}

/// Steps that the deepest repeats take, all turns together.
fn n_turns(steps: &[Step], turns: u64) -> u64 {
    let repeats = steps.iter().filter_map(|step| match &step.op {
        Some(step::Op::Repeat(repeat)) => Some(repeat),
        _ => None,
    });
    let each = repeats.map(|repeat| {
        let turns = repeat.turns(turns);
        turns.max(n_turns(&repeat.steps, turns))
    });
    each.max().unwrap_or(0)
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
