//! One action a step: queues of chunks and temporal ensembling around a session.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

#[path = "../artifact/tests/common/mod.rs"]
mod common;

use common::{Mlp, Precision, families, mutant};
use qail_artifact::schema::{CHUNK_FEATURE, Chunk, Control};
use qail_runtime::{Acted, ControlError, Controller, RunError, Session, TensorView, TensorViewMut};

const LENGTH: usize = 7;
const N_IN: usize = 5;
const N_ACTION: usize = 3;

/// A policy of chunks `[7, 3]`, 4 bits.
fn file(execute: u32, ensemble: Option<f64>) -> Vec<u8> {
    let mlp = Mlp::new(&[N_IN, 24, 16, N_ACTION], LENGTH, Precision::W4A8, 3);
    mutant::edited(&mlp.file, |manifest| {
        let chunk = Chunk { length: LENGTH as u32, execute, ensemble };
        manifest.control = Some(Control { action: "action".to_owned(), chunk: Some(chunk) });
        manifest.required_features.push(CHUNK_FEATURE.to_owned());
    })
}

fn session(execute: u32, ensemble: Option<f64>) -> Session {
    Session::load(file(execute, ensemble), "cpu".parse().unwrap()).unwrap()
}

/// The observation of a step.
fn observation(step: usize) -> Vec<f32> {
    (0..LENGTH * N_IN).map(|i| ((step * 31 + i * 17) as f32 * 0.23).sin() * 3.0).collect()
}

/// The chunk that the policy computes in a step.
fn chunk(session: &mut Session, step: usize) -> Vec<f32> {
    let mut out = vec![0.0; LENGTH * N_ACTION];
    session.run(&[TensorView::F32(&observation(step))], &mut [TensorViewMut::F32(&mut out)]).unwrap();
    out
}

fn act(controller: &mut Controller, step: usize) -> (Vec<f32>, Acted) {
    let mut action = vec![0.0; N_ACTION];
    let acted = controller.act(&[TensorView::F32(&observation(step))], &mut action).unwrap();
    (action, acted)
}

#[test]
fn rows_are_given_out_until_the_queue_is_empty() {
    for execute in [1, 3, LENGTH] {
        let mut plain = session(execute as u32, None);
        let mut controller = Controller::new(session(execute as u32, None)).unwrap();
        assert_eq!((controller.action_len(), controller.action_name()), (N_ACTION, "action"));
        for step in 0..4 * LENGTH {
            let (made_at, row) = (step - step % execute, step % execute);
            assert_eq!(controller.computes_next(), row == 0);
            let (action, acted) = act(&mut controller, step);
            assert_eq!(action, chunk(&mut plain, made_at)[row * N_ACTION..(row + 1) * N_ACTION], "{execute}, {step}");
            assert_eq!(acted, if row == 0 { Acted::Computed } else { Acted::Queued });
        }
    }
}

#[test]
fn a_reset_forgets_what_is_queued() {
    let mut plain = session(LENGTH as u32, None);
    for ensemble in [None, Some(0.1)] {
        let execute = if ensemble.is_some() { 1 } else { LENGTH as u32 };
        let mut controller = Controller::new(session(execute, ensemble)).unwrap();
        act(&mut controller, 0);
        act(&mut controller, 1);
        controller.reset();
        assert!(controller.computes_next());
        let (action, acted) = act(&mut controller, 2);
        // The first action of an episode has one prediction.
        assert_eq!((&action[..], acted), (&chunk(&mut plain, 2)[..N_ACTION], Acted::Computed));
    }
}

/// `temporal_agg` of the ACT reference (tonyzhaozh/act, `imitate_episodes.py`)
/// in plain loops and its precision, with the mask of populated rows written as
/// times instead of a search for zeros.
fn act_paper(chunks: &[Vec<f32>], t: usize, m: f64) -> Vec<f32> {
    let populated: Vec<usize> = (0..=t).filter(|&made_at| t - made_at < LENGTH).collect();
    let weights: Vec<f64> = (0..populated.len()).map(|i| (-m * i as f64).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
    let element = |a: usize| {
        let terms =
            populated.iter().zip(&weights).map(|(&made_at, w)| chunks[made_at][(t - made_at) * N_ACTION + a] * w);
        terms.sum::<f32>()
    };
    (0..N_ACTION).map(element).collect()
}

#[test]
fn ensembling_is_that_of_act() {
    for m in [0.01, 0.5, 0.0, -0.2] {
        let mut plain = session(1, None);
        let chunks: Vec<Vec<f32>> = (0..4 * LENGTH).map(|step| chunk(&mut plain, step)).collect();
        let mut controller = Controller::new(session(1, Some(m))).unwrap();
        let mut differs = false;
        for step in 0..chunks.len() {
            assert!(controller.computes_next());
            let (action, acted) = act(&mut controller, step);
            assert_eq!(acted, Acted::Computed);
            for (found, expected) in action.iter().zip(act_paper(&chunks, step, m)) {
                // Seven products of numbers up to 1, rounded to 24 bits.
                assert!((found - expected).abs() < 2e-6, "{m}, step {step}: {found} {expected}");
            }
            differs |= action != chunks[step][..N_ACTION];
        }
        assert!(differs, "the other chunks count");
    }
}

#[test]
fn what_fails_leaves_the_queue_as_it_is() {
    let nan = vec![f32::NAN; LENGTH * N_IN];
    let mut controller = Controller::new(session(3, None)).unwrap();
    let mut action = vec![9.0; N_ACTION];
    let failed = controller.act(&[TensorView::F32(&nan)], &mut action);
    assert!(matches!(failed, Err(ControlError::Run(RunError::NotFinite { .. }))), "{failed:?}");
    assert_eq!(action, [9.0; N_ACTION], "the action keeps its contents");
    let mut twin = Controller::new(session(3, None)).unwrap();
    for step in 0..7 {
        // A queued action needs no observation, so a bad one does no harm.
        let bad = controller.act(&[TensorView::F32(&nan)], &mut action);
        assert_eq!(bad.is_err(), step % 3 == 0);
        let (expected, _) = act(&mut twin, step);
        if bad.is_err() {
            action = act(&mut controller, step).0;
        }
        assert_eq!(action, expected, "step {step}");
    }
    // Of an ensemble, too: time stands still until the step succeeds.
    let (mut controller, mut twin) =
        (Controller::new(session(1, Some(0.1))).unwrap(), Controller::new(session(1, Some(0.1))).unwrap());
    for step in 0..2 * LENGTH {
        assert!(controller.act(&[TensorView::F32(&nan)], &mut action).is_err());
        assert!(controller.act(&[], &mut action).is_err());
        assert_eq!(act(&mut controller, step), act(&mut twin, step));
    }
    let short = controller.act(&[TensorView::F32(&observation(0))], &mut [0.0; 2]);
    assert_eq!(short.unwrap_err().to_string(), "an action has 3 numbers, found room for 2");
}

#[test]
fn a_policy_without_chunks_is_run_in_every_step() {
    let mlp = Mlp::new(&[N_IN, 24, 16, N_ACTION], 1, Precision::W4A8, 3);
    let load = || Session::load(mlp.file.clone(), "cpu".parse().unwrap()).unwrap();
    let (mut plain, mut controller) = (load(), Controller::new(load()).unwrap());
    assert_eq!(controller.chunk(), None);
    for step in 0..3 {
        let x = &observation(step)[..N_IN];
        let (mut expected, mut action) = (vec![0.0; N_ACTION], vec![0.0; N_ACTION]);
        plain.run(&[TensorView::F32(x)], &mut [TensorViewMut::F32(&mut expected)]).unwrap();
        assert_eq!(controller.act(&[TensorView::F32(x)], &mut action).unwrap(), Acted::Computed);
        assert_eq!(action, expected);
    }
}

/// One number in, two outputs: the number as it is, and a multiple of it.
fn two_outputs(control: Option<&str>) -> Session {
    let file = mutant::edited(&families::file(), |manifest| {
        let mut second = manifest.entries[0].outputs[0].clone();
        second.name = "other".to_owned();
        manifest.entries[0].outputs.push(second);
        manifest.control = control.map(|action| Control { action: action.to_owned(), chunk: None });
    });
    Session::load(file, "cpu".parse().unwrap()).unwrap()
}

#[test]
fn the_artifact_says_which_output_is_the_action() {
    assert_eq!(Controller::new(two_outputs(Some("other"))).unwrap().action_name(), "other");
    let message = Controller::new(two_outputs(None)).unwrap_err().to_string();
    assert!(
        message.starts_with("it is not clear which output is the action") && message.contains("`other`"),
        "{message}"
    );
    assert_eq!(Controller::of_output(two_outputs(None), "other").unwrap().action_name(), "other");
    assert!(Controller::of_output(two_outputs(None), "no_such_output").is_err());
}

#[test]
fn an_output_that_is_not_finite_never_becomes_an_action() {
    // A layer of floats whose result is beyond all numbers.
    let mlp = Mlp::new(&[1, 1], 1, Precision::F32, 1);
    let file = mutant::edited(&mlp.file, |manifest| {
        let Some(qail_artifact::schema::step::Op::Linear(linear)) = &mut manifest.entries[0].steps[0].op else {
            panic!("no layer")
        };
        let act = linear.act.as_mut().unwrap();
        act.kind = qail_artifact::schema::step::FunctionKind::Exp as i32;
    });
    let mut controller = Controller::new(Session::load(file, "cpu".parse().unwrap()).unwrap()).unwrap();
    let w = mlp.layers[0].floats[0];
    let mut action = [0.5];
    let failed = controller.act(&[TensorView::F32(&[1e6 * w.signum()])], &mut action);
    assert!(matches!(failed, Err(ControlError::NotFinite { index: 0, value }) if value == f32::INFINITY), "{failed:?}");
    assert_eq!(action, [0.5]);
    assert!(controller.act(&[TensorView::F32(&[0.0])], &mut action).is_ok());
}
