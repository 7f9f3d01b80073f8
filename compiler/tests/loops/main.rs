//! Policies with a loop around them: samplers that denoise an action, and
//! recurrent policies whose state goes from step to step. What is compiled is
//! held to the loop written out by hand, and to the interpreter on every device.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod commands;
mod models;
mod samplers;
mod states;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use qail_passes::Precision;
use qail_runtime::{DeviceSpec, LoadOptions, Session, TensorView, TensorViewMut};
use qailc::{
    pipeline::{self, BuildOptions, Built, Silent},
    policy::Policy,
};

/// A model of a folder, rounded.
fn compile(folder: &Path, model: &str, precision: Precision, policy: &str, then: &[&str]) -> Built {
    let options = options(folder, precision, policy, then);
    pipeline::compile(&folder.join(model), &options, &mut Silent).unwrap()
}

fn options(folder: &Path, precision: Precision, policy: &str, then: &[&str]) -> BuildOptions {
    let policy = Policy::parse(Path::new("policy.toml"), policy).unwrap();
    BuildOptions {
        demos: Some(folder.join("demos.npz")),
        n_calibration: 64,
        seed: 3,
        policy: Policy { then: then.iter().map(|name| folder.join(name)).collect(), ..policy },
        ..BuildOptions::new(precision)
    }
}

/// The processor and every Vulkan driver.
fn devices() -> Vec<DeviceSpec> {
    [DeviceSpec::Cpu(None)].into_iter().chain(support::vulkan()).collect()
}

fn session(built: &Built, device: DeviceSpec) -> Session {
    let options = LoadOptions { given_noise: true, keep_intermediates: true, ..LoadOptions::default() };
    Session::load_with(built.bytes.clone(), device, &options).unwrap()
}

/// The only or the named output of a run on floats.
fn run(session: &mut Session, inputs: &[&[f32]], output: &str) -> Vec<f32> {
    let views: Vec<TensorView<'_>> = inputs.iter().map(|x| TensorView::F32(x)).collect();
    let mut rooms: Vec<Vec<f32>> = session.outputs().iter().map(|port| vec![0.0; port.elements()]).collect();
    let mut outputs: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(|room| TensorViewMut::F32(room)).collect();
    session.run(&views, &mut outputs).unwrap();
    let index = session.outputs().iter().position(|port| port.name == output).unwrap();
    rooms.swap_remove(index)
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{context}: {found} instead of {expected}");
    }
}
