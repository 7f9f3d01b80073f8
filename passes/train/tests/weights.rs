//! Weights of recorded steps: how much each counts in the loss.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/support/mod.rs"]
mod support;

use qail_ir::{Graph, UnaryFn};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, pipeline};
use qail_train::{
    Head,
    batches::{Column, Rows},
    options::TrainOptions,
    trainer::{Evaluation, Setup, StepReport, Trainer, Watch},
};
use support::{Mlp, floats};

const N: usize = 40;
const POLICY: Mlp = Mlp { widths: &[4, 16, 2], act: UnaryFn::Relu, last: None, normalizer: false };

#[derive(Default)]
struct Witness(Vec<StepReport>);

impl Watch for Witness {
    fn step(&mut self, report: &StepReport) {
        self.0.push(*report);
    }

    fn evaluated(&mut self, _: &Evaluation) {}
}

/// Trains for two steps on batches of all rows; gives what was reported and the
/// weights of the first layer behind it.
fn train(weights: Option<Vec<f32>>) -> (Vec<StepReport>, Vec<f32>) {
    let samples = POLICY.samples(3, N);
    let teacher: Graph = POLICY.graph(1);
    let mut prepared = teacher.clone();
    let options = PipelineOptions { trains: true, ..PipelineOptions::new(Precision::W4A4) };
    PassManager::new(pipeline::prepare(&options)).run(&mut prepared, &mut PassContext::with_samples(&samples)).unwrap();
    let observations = samples.iter().flat_map(|sample| floats(&sample["obs"]).to_vec()).collect();
    let rows = Rows {
        observations: vec![Column { name: "obs".to_owned(), row_len: 4, data: observations }],
        actions: Some(Column { name: "actions".to_owned(), row_len: 2, data: vec![0.5; 2 * N] }),
        windows: None,
        weights: weights.map(|data| Column { name: "weights".to_owned(), row_len: 1, data }),
    };
    let mut trainer = Trainer::new(Setup {
        prepared: &prepared,
        teacher: &teacher,
        head: Head::Deterministic { output: "action".to_owned() },
        held_out: rows.clone(),
        train: rows,
        denoise: None,
        window: 1,
        samples: &samples,
        options: TrainOptions { steps: 2, batch: N, ..TrainOptions::default() },
        threads: 1,
    })
    .unwrap();
    let mut witness = Witness::default();
    trainer.run(&mut witness).unwrap();
    (witness.0, trainer.parameters()[0].elements.clone())
}

#[test]
fn weights_of_one_change_nothing() {
    assert_eq!(train(Some(vec![1.0; N])), train(None));
}

#[test]
fn weights_multiply_both_terms_of_their_rows() {
    let plain = train(None).0[0];
    let double = train(Some(vec![2.0; N])).0[0];
    assert_eq!(
        (double.loss, double.qail, double.qbc),
        (2.0 * plain.loss, plain.qail.map(|x| 2.0 * x), plain.qbc.map(|x| 2.0 * x))
    );
    // Each row is in one of two halves: what they add up to is everything.
    let half = |odd: usize| (0..N).map(|row| if row % 2 == odd { 1.0 } else { 0.0 }).collect();
    let (even, odd) = (train(Some(half(0))).0[0], train(Some(half(1))).0[0]);
    assert!(even.loss > 0.0 && odd.loss > 0.0 && even.loss != odd.loss);
    // Sums of 80 numbers in `f32`, in another order.
    assert!((even.loss + odd.loss - plain.loss).abs() < 1e-5 * plain.loss, "{even:?} {odd:?} {plain:?}");
}

#[test]
fn rows_that_weigh_nothing_teach_nothing() {
    let (reports, weights) = train(Some(vec![0.0; N]));
    assert!(reports.iter().all(|report| report.loss == 0.0 && report.gradient_norm == 0.0), "{reports:?}");
    assert_ne!(weights, train(None).1);
}
