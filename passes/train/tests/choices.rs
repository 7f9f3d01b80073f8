//! Policies that choose: what lies in front of an arg max does not train, the rest does.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use qail_ir::{ConstData, Constant, TensorType, interp::Tensor, text};
use qail_passes::{PassContext, PassManager, PipelineOptions, Precision, pipeline};
use qail_train::{
    Head,
    batches::{Column, Rows},
    options::TrainOptions,
    trainer::{Evaluation, Setup, StepReport, TrainError, Trainer, Watch},
};

const N: usize = 24;

/// An encoder, the best of eight entries of a book, a decoder.
const BOOK: &str = "graph @book(%obs: f32[1, 4]) -> (action = %y) {batch = 0} {
    %w0 = const rand(1) : f32[4, 8]
    %b0 = const rand(2) : f32[8]
    %e = linear %obs, %w0, %b0 : f32[1, 8]
    %i = arg_reduce %e {axis = 1, largest} : i64[1]
    %book = const rand(3) : f32[8, 6]
    %z = gather %book, %i {axis = 0} : f32[1, 6]
    %w1 = const rand(4) : f32[6, 2]
    %b1 = const rand(5) : f32[2]
    %y = linear %z, %w1, %b1 : f32[1, 2]
}";

/// Nothing but the choice.
const CHOICE: &str = "graph @choice(%obs: f32[1, 4]) -> (action = %y) {batch = 0} {
    %w0 = const rand(1) : f32[4, 8]
    %b0 = const rand(2) : f32[8]
    %e = linear %obs, %w0, %b0 : f32[1, 8]
    %i = arg_reduce %e {axis = 1, largest} : i64[1]
    %book = const rand(3) : f32[8, 2]
    %y = gather %book, %i {axis = 0} : f32[1, 2]
}";

struct Silent;

impl Watch for Silent {
    fn step(&mut self, _: &StepReport) {}

    fn evaluated(&mut self, _: &Evaluation) {}
}

fn trainer(policy: &str) -> Result<Trainer, TrainError> {
    let teacher = text::parse(policy).unwrap();
    let numbers = |seed| Constant { ty: TensorType::f32([1, 4]), data: ConstData::Rand(seed) };
    let samples: Vec<BTreeMap<String, Tensor>> = (0..N as u64)
        .map(|seed| BTreeMap::from([("obs".to_owned(), Tensor::from_constant(&numbers(100 + seed)).unwrap())]))
        .collect();
    let mut prepared = teacher.clone();
    let options = PipelineOptions { trains: true, ..PipelineOptions::new(Precision::W4A4) };
    PassManager::new(pipeline::prepare(&options)).run(&mut prepared, &mut PassContext::with_samples(&samples)).unwrap();
    let observations = samples.iter().flat_map(|sample| sample["obs"].as_f32().unwrap().to_vec()).collect();
    let rows = Rows {
        observations: vec![Column { name: "obs".to_owned(), row_len: 4, data: observations }],
        actions: Some(Column { name: "actions".to_owned(), row_len: 2, data: vec![0.5; 2 * N] }),
        windows: None,
        weights: None,
    };
    Trainer::new(Setup {
        prepared: &prepared,
        teacher: &teacher,
        head: Head::Deterministic { output: "action".to_owned() },
        held_out: rows.clone(),
        train: rows,
        denoise: None,
        window: 1,
        samples: &samples,
        options: TrainOptions { steps: 3, batch: 8, ..TrainOptions::default() },
        threads: 1,
    })
}

#[test]
fn what_lies_behind_a_choice_trains() {
    let mut trainer = trainer(BOOK).unwrap();
    let said = trainer.notes().join("; ");
    assert!(said.contains("lie in front of a choice that has no derivative"), "{said}");
    let before: Vec<_> = trainer.parameters().to_vec();
    assert!(before.iter().all(|parameter| !["w0", "b0"].contains(&parameter.name.as_str())), "{before:?}");
    trainer.run(&mut Silent).unwrap();
    assert!(trainer.parameters().iter().zip(&before).any(|(new, old)| new.elements != old.elements));
}

#[test]
fn a_policy_of_choices_alone_has_nothing_to_train() {
    let error = trainer(CHOICE).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("nothing to train"), "{error}");
}
