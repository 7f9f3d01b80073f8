//! Samplers against the loops of the libraries that policies come from, written
//! out by hand in `f64`.

use std::collections::BTreeMap;

use qail_ir::{
    interp::{self, Tensor},
    text, verify,
};

use super::*;
use crate::{Pass, PassContext, TabulateTurns};

/// `eps = tanh(x w + t / 100)`, on a batch of one.
const STEP: &str = "graph @step(%x: f32[1, 2], %t: i64[1]) -> (eps = %eps) {batch = 0} {
  %tf = cast %t : f32[1]
  %c = const splat(0.01) : f32[]
  %u = mul %tf, %c : f32[1]
  %w = const [0.5, -1.0, 0.25, 0.75] : f32[2, 2]
  %b = const splat(0.0) : f32[2]
  %h = linear %x, %w, %b : f32[1, 2]
  %s = add %h, %u : f32[1, 2]
  %eps = tanh %s : f32[1, 2]
}";

fn eps(x: [f64; 2], t: f64) -> [f64; 2] {
    let h = [0.5 * x[0] + 0.25 * x[1], -x[0] + 0.75 * x[1]];
    h.map(|h| (h + t / 100.0).tanh())
}

fn diffusion(prediction: Prediction) -> Diffusion {
    Diffusion {
        train_steps: 100,
        betas: BetaSchedule::SquaredCosine,
        spacing: Spacing::Leading,
        prediction,
        clip: Some(1.0),
    }
}

fn sampler(kind: SamplerKind) -> Sampler {
    let [sample, timestep, output, action] = ["x", "t", "eps", "action"].map(str::to_owned);
    Sampler { kind, steps: 10, sample, timestep, output, action }
}

/// What the attached sampler makes of a noise.
fn run(text: &str, sampler: &Sampler, noise: Option<Vec<f32>>) -> Vec<f32> {
    let mut graph = text::parse(text).unwrap();
    sampler.attach(&mut graph).unwrap();
    verify(&graph).unwrap();
    let mut inputs: BTreeMap<String, Tensor> = [("x".to_owned(), Tensor::f32([1, 2], vec![0.3, -1.2]))].into();
    if let Some(noise) = noise {
        inputs.insert(Sampler::NOISE.to_owned(), Tensor::f32([1, 10, 2], noise));
    }
    let plain = interp::run(&graph, &inputs).unwrap();
    TabulateTurns.run(&mut graph, &mut PassContext::new()).unwrap();
    let tabulated = interp::run(&graph, &inputs).unwrap();
    assert_eq!(plain, tabulated);
    plain["action"].as_f32().unwrap().to_vec()
}

fn close(found: &[f32], expected: [f64; 2]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} instead of {expected}");
    }
}

#[test]
fn ddim_is_the_loop_of_the_paper() {
    let alpha = alpha_bars(BetaSchedule::SquaredCosine, 100).unwrap();
    let mut x = [0.3f64, -1.2];
    for t in (0..100).step_by(10).rev() {
        let (now, next) = (alpha[t], if t >= 10 { alpha[t - 10] } else { 1.0 });
        let e = eps(x, t as f64);
        for i in 0..2 {
            let clean = ((x[i] - (1.0 - now).sqrt() * e[i]) / now.sqrt()).clamp(-1.0, 1.0);
            x[i] = next.sqrt() * clean + (1.0 - next).sqrt() * e[i];
        }
    }
    close(&run(STEP, &sampler(SamplerKind::Ddim(diffusion(Prediction::Epsilon))), None), x);
}

#[test]
fn ddpm_adds_the_noise_that_it_is_given() {
    let alpha = alpha_bars(BetaSchedule::SquaredCosine, 100).unwrap();
    let noise: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut x = [0.3f64, -1.2];
    for (k, t) in (0..100).step_by(10).rev().enumerate() {
        let (now, next) = (alpha[t], if t >= 10 { alpha[t - 10] } else { 1.0 });
        let beta = 1.0 - now / next;
        let e = eps(x, t as f64);
        for i in 0..2 {
            let clean = ((x[i] - (1.0 - now).sqrt() * e[i]) / now.sqrt()).clamp(-1.0, 1.0);
            let mean =
                next.sqrt() * beta / (1.0 - now) * clean + (now / next).sqrt() * (1.0 - next) / (1.0 - now) * x[i];
            let deviation = if t > 0 { ((1.0 - next) / (1.0 - now) * beta).sqrt() } else { 0.0 };
            x[i] = mean + deviation * f64::from(noise[2 * k + i]);
        }
    }
    close(&run(STEP, &sampler(SamplerKind::Ddpm(diffusion(Prediction::Epsilon))), Some(noise)), x);
}

#[test]
fn every_prediction_is_the_same_noise() {
    for prediction in [Prediction::Epsilon, Prediction::Sample, Prediction::Velocity] {
        for turn in sampler(SamplerKind::Ddim(diffusion(prediction))).turns().unwrap() {
            let alpha = alpha_bars(BetaSchedule::SquaredCosine, 100).unwrap()[turn.timestep as usize];
            let (clean, noise) = (0.7, -0.4);
            let x = alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise;
            let y = match prediction {
                Prediction::Epsilon => noise,
                Prediction::Sample => clean,
                Prediction::Velocity => alpha.sqrt() * noise - (1.0 - alpha).sqrt() * clean,
            };
            assert!((turn.a * x + turn.b * y - clean).abs() < 1e-9);
            assert!((turn.c * x + turn.d * y - noise).abs() < 1e-9);
        }
    }
}

#[test]
fn a_flow_is_followed_in_equal_steps() {
    let text = STEP.replace("%t: i64[1]", "%t: f32[1]").replace("%tf = cast %t : f32[1]", "").replace("%tf", "%t");
    let mut x = [0.3f64, -1.2];
    for k in 0..10 {
        let v = eps(x, 1.0 - 0.1 * f64::from(k));
        x = [x[0] - 0.1 * v[0], x[1] - 0.1 * v[1]];
    }
    close(&run(&text, &sampler(SamplerKind::FlowEuler { start: 1.0, end: 0.0 }), None), x);
}

#[test]
fn what_does_not_fit_is_named() {
    let ddim = sampler(SamplerKind::Ddim(diffusion(Prediction::Epsilon)));
    let refused = |change: fn(&mut Sampler)| {
        let mut sampler = ddim.clone();
        change(&mut sampler);
        sampler.attach(&mut text::parse(STEP).unwrap()).unwrap_err().to_string()
    };
    assert_eq!(refused(|s| s.sample = "z".into()), "the model has no input `z`; its inputs are `x`, `t`");
    assert_eq!(refused(|s| s.output = "z".into()), "the model has no output `z`; its outputs are `eps`");
    assert_eq!(refused(|s| s.sample = "t".into()), "`t` is i64[1], must be f32");
    assert_eq!(refused(|s| s.timestep = "x".into()), "`x` is f32[1, 2], must be one integer or f32 a sample");
    assert_eq!(
        refused(|s| s.steps = 101),
        "`steps` of the sampler is 101, must be at least 1, and at most train_steps"
    );
    let flow = sampler(SamplerKind::FlowEuler { start: 1.0, end: 1.0 });
    assert!(flow.turns().is_err());
    let mut graph = text::parse(STEP).unwrap();
    ddim.attach(&mut graph).unwrap();
    assert!(matches!(ddim.attach(&mut graph), Err(SamplerError::NoInput { .. })));
}
