//! What crosses between host and device, and how repeats unroll.

#[path = "../../artifact/tests/common/mod.rs"]
mod common;

use common::{Builder, DEVICE, HOST, Mlp, Precision};
use qail_artifact::schema::step::{Copy, Op, Operand, Source};

use super::*;

fn plan_of(file: &[u8], keep_intermediates: bool) -> Plan {
    Plan::new(&Artifact::parse(file).unwrap(), None, keep_intermediates).unwrap()
}

/// Places, uploads and downloads of each segment, by tensor name.
fn crossings(plan: &Plan) -> Vec<(Place, Vec<&str>, Vec<&str>)> {
    let names = |list: &[usize]| list.iter().map(|&tensor| plan.tensors[tensor].name.as_str()).collect();
    plan.segments.iter().map(|s| (s.place, names(&s.uploads), names(&s.downloads))).collect()
}

#[test]
fn codes_go_up_and_accumulators_come_down() {
    let plan = plan_of(&Mlp::new(&[3, 4, 5, 2], 1, Precision::W8A8, 1).file, true);
    assert_eq!(
        crossings(&plan),
        [(Place::Host, vec![], vec![]), (Place::Device, vec!["obs.q"], vec!["acc"]), (Place::Host, vec![], vec![]),]
    );
    let left: Vec<&str> = plan.left_on_device.iter().map(|&tensor| plan.tensors[tensor].name.as_str()).collect();
    assert_eq!(left, ["h0", "h1"]);
}

#[test]
fn a_float_network_is_one_segment_with_its_ports() {
    let plan = plan_of(&Mlp::new(&[3, 4, 2], 1, Precision::F32, 1).file, false);
    assert_eq!(crossings(&plan), [(Place::Device, vec!["obs"], vec!["action"])]);
}

#[test]
fn kept_tensors_do_not_share_memory() {
    let plan = plan_of(&Mlp::new(&[3, 4, 5, 2], 1, Precision::W4A8, 1).file, true);
    for (i, a) in plan.tensors.iter().enumerate() {
        for b in &plan.tensors[..i] {
            assert!(a.arena != b.arena || a.offset >= b.offset + b.size || b.offset >= a.offset + a.size);
        }
    }
}

#[test]
fn a_part_written_on_the_host_keeps_what_the_device_wrote() {
    // The device writes both halves of `y`, then the host the first one.
    let mut b = Builder::default();
    let x = b.tensor("x", Storage::F32, &[4], DEVICE);
    let y = b.tensor("y", Storage::F32, &[4], DEVICE);
    let z = b.tensor("z", Storage::F32, &[4], HOST);
    let mut copy = |place, x, out, n| {
        let x = Operand { source: Some(Source::Tensor(x)), strides: vec![1], offset: 0 };
        b.step("copy", place, Op::Copy(Copy { x, out, shape: vec![n], out_strides: vec![1], out_offset: 0 }));
    };
    copy(Place::Device, x, y, 4);
    copy(Place::Host, x, y, 2);
    copy(Place::Host, y, z, 4);
    let plan = plan_of(&b.finish(&[("x", x)], &[("z", z)]), false);
    assert_eq!(crossings(&plan), [(Place::Device, vec!["x"], vec!["y"]), (Place::Host, vec![], vec![])]);
}

#[test]
fn repeats_are_unrolled_and_capped() {
    let file = |n| {
        let mut b = Builder::default();
        b.manifest.required_features = vec!["repeat".to_owned()];
        let x = b.tensor("x", Storage::F32, &[1], DEVICE);
        let y = b.tensor("y", Storage::F32, &[1], DEVICE);
        let operand = Operand { source: Some(Source::Tensor(x)), strides: vec![1], offset: 0 };
        let copy = Copy { x: operand, out: y, shape: vec![1], out_strides: vec![1], out_offset: 0 };
        b.step("copy", Place::Device, Op::Copy(copy));
        let steps = std::mem::take(&mut b.steps);
        b.step("loop", Place::Device, Op::Repeat(step::Repeat { n, steps, turn: None }));
        b.entry(&[("x", x)], &[("y", y)]);
        b.writer.finish(b.manifest)
    };
    assert_eq!(plan_of(&file(3).unwrap(), false).order, [Item::Step(0); 3]);
    assert!(file(u32::MAX).is_err());
}
