//! Policies of chunks learn from demonstrations of single actions: windows are
//! cut when a batch is drawn, and end with their episode.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use qail_ir::{Graph, interp::Tensor, text};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, pipeline};
use qail_train::{
    Distance, Head,
    batches::{Column, Rows, Windows},
    forward::Forward,
    options::{Method, TrainOptions},
    trainer::{Evaluation, Setup, StepReport, TrainError, Trainer, Watch},
};

/// Recorded steps: episodes of 7, 2 and 11.
const ENDS: [usize; 3] = [7, 9, 20];
const LENGTH: usize = 3;
const POLICY: &str = "
    graph @chunks(%obs: f32[1, 4]) -> (%actions) {batch = 0} {
      %w0 = const rand(1) : f32[4, 16]
      %b0 = const rand(2) : f32[16]
      %h = linear %obs, %w0, %b0 : f32[1, 16]
      %r = relu %h : f32[1, 16]
      %w1 = const rand(3) : f32[16, 6]
      %b1 = const rand(4) : f32[6]
      %y = linear %r, %w1, %b1 : f32[1, 6]
      %actions = reshape %y : f32[1, 3, 2]
    }";

#[derive(Default)]
struct Witness {
    steps: Vec<StepReport>,
    evaluations: Vec<Evaluation>,
}

impl Watch for Witness {
    fn step(&mut self, report: &StepReport) {
        self.steps.push(*report);
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluations.push(*evaluation);
    }
}

fn number(i: usize) -> f32 {
    (i as f32 * 0.71).sin()
}

fn column(name: &str, row_len: usize, data: Vec<f32>) -> Column {
    Column { name: name.to_owned(), row_len, data }
}

/// The rows of some steps, as windows of single actions.
fn windowed(steps: &[usize]) -> Rows {
    let episodes: Vec<_> = [0].into_iter().chain(ENDS).zip(ENDS).map(|(start, end)| start..end).collect();
    let (windows, needed) = Windows::new(LENGTH, steps, &episodes);
    let of = |steps: &[usize], len: usize, first: usize| -> Vec<f32> {
        steps.iter().flat_map(|step| (0..len).map(move |i| number(first + step * len + i))).collect()
    };
    Rows {
        observations: vec![column("obs", 4, of(steps, 4, 0))],
        actions: Some(column("actions", 2, of(&needed, 2, 1000))),
        windows: Some(windows),
        weights: None,
    }
}

/// The same rows as recorded chunks, and the masks of the windows.
fn chunked(rows: &Rows) -> (Rows, Vec<f32>) {
    let (mut data, mut mask) = (Vec::new(), Vec::new());
    (0..rows.n_rows()).for_each(|row| rows.expert(row, &mut data, &mut mask));
    let actions = Some(column("actions", 2 * LENGTH, data));
    (Rows { actions, windows: None, ..rows.clone() }, mask)
}

struct Policy {
    teacher: Graph,
    prepared: Graph,
}

impl Policy {
    fn new() -> Self {
        let teacher = text::parse(POLICY).unwrap();
        let samples: Vec<BTreeMap<String, Tensor>> = (0..20)
            .map(|step| {
                let obs = Tensor::f32([1, 4], (0..4).map(|i| number(step * 4 + i)).collect());
                BTreeMap::from([("obs".to_owned(), obs)])
            })
            .collect();
        let mut prepared = teacher.clone();
        let options = PipelineOptions { trains: true, ..PipelineOptions::new(Precision::W4A4) };
        let mut cx = PassContext::with_samples(&samples);
        PassManager::new(pipeline::prepare(&options)).run(&mut prepared, &mut cx).unwrap();
        Self { teacher, prepared }
    }

    fn trainer(&self, train: Rows, held_out: Rows, options: TrainOptions) -> Result<Trainer, TrainError> {
        Trainer::new(Setup {
            prepared: &self.prepared,
            teacher: &self.teacher,
            head: Head::Deterministic { output: "actions".to_owned() },
            train,
            held_out,
            denoise: None,
            window: 1,
            samples: &[],
            options,
            threads: 1,
        })
    }

    fn train(&self, train: Rows, held_out: Rows, options: TrainOptions) -> Witness {
        let mut witness = Witness::default();
        self.trainer(train, held_out, options).unwrap().run(&mut witness).unwrap();
        witness
    }
}

fn options(method: Method, obs_noise: f64, batch: usize) -> TrainOptions {
    TrainOptions { method, obs_noise, batch, steps: 3, ..TrainOptions::default() }
}

#[test]
fn windows_inside_an_episode_are_recorded_chunks() {
    let policy = Policy::new();
    let rows = windowed(&[0, 1, 2, 4, 9, 10, 12, 17]);
    let (chunks, mask) = chunked(&rows);
    assert!(mask.iter().all(|&counts| counts == 1.0));
    for method in [Method::Qail, Method::Qbc, Method::QailQbc] {
        for obs_noise in [0.0, 0.3] {
            let options = || options(method, obs_noise, 5);
            let (a, b) = (
                policy.train(rows.clone(), rows.clone(), options()),
                policy.train(chunks.clone(), chunks.clone(), options()),
            );
            assert_eq!(a.steps, b.steps, "{method} {obs_noise}");
            assert_eq!(a.evaluations, b.evaluations, "{method} {obs_noise}");
        }
    }
}

/// The terms of the first update and the errors on held-out rows, by hand.
#[test]
fn what_lies_behind_the_end_of_an_episode_does_not_count() {
    let policy = Policy::new();
    let rows = windowed(&(0..20).collect::<Vec<_>>());
    let (chunks, mask) = chunked(&rows);
    assert_eq!(mask.iter().filter(|&&counts| counts == 0.0).count(), 3 * 3, "one and two steps before each end");
    let mut student = Forward::new(&policy.prepared, &[], 20, 1, &mut Vec::new()).unwrap();
    let actions = student.run(&rows.observations, &["actions"]).unwrap().remove(0).data;
    let expert = chunks.actions.unwrap().data;
    let differences = || actions.iter().zip(&expert).map(|(a, e)| f64::from(a - e));
    let counts = || mask.iter().flat_map(|&counts| [f64::from(counts); 2]);
    for (distance, of) in [(Distance::L1, f64::abs as fn(f64) -> f64), (Distance::L2, |d: f64| d * d)] {
        let options = TrainOptions { distance: Some(distance), ..options(Method::QailQbc, 0.0, 20) };
        let witness = policy.train(rows.clone(), rows.clone(), options);
        let masked: f64 = differences().zip(counts()).map(|(d, counts)| of(d) * counts).sum();
        let expected = masked / actions.len() as f64;
        let found = witness.steps[0].qail.unwrap();
        assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
        let all: f64 = differences().map(of).sum::<f64>() / actions.len() as f64;
        assert!((found - all).abs() > 1e-3 * all, "the mask changes something");
        let squares: f64 = differences().zip(counts()).map(|(d, counts)| d * d * counts).sum();
        let error = witness.evaluations[0].expert.unwrap();
        let n = counts().filter(|&counts| counts > 0.0).count();
        assert_eq!(error.n_elements(), n);
        assert!((error.mse() - squares / n as f64).abs() < 1e-6, "{error:?}");
        // The full-precision policy is matched in whole chunks.
        assert_eq!(witness.evaluations[0].teacher.n_elements(), actions.len());
    }
}

#[test]
fn windows_of_another_length_than_the_chunk_are_refused() {
    let policy = Policy::new();
    let mut rows = windowed(&[0, 1, 2]);
    rows.windows.as_mut().unwrap().length = 2;
    let error = policy.trainer(rows.clone(), rows, options(Method::Qail, 0.0, 2)).err().unwrap().to_string();
    assert_eq!(error, "`loss.qail` is f32[2, 3, 2], and a chunk of 2 actions is [batch, 2, A]");
}
