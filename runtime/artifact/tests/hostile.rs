//! Files from a stranger: whatever the bytes are, the reader answers with an
//! error and neither panics nor allocates beyond its caps.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Mlp, Precision, Rng, families, mixed, mutant};
use qail_artifact::{
    Artifact, ArtifactError, MAX_MANIFEST_BYTES,
    schema::{CHUNK_FEATURE, Chunk, Control, step},
};

fn small() -> Vec<u8> {
    Mlp::new(&[5, 9, 8, 3], 2, Precision::W4A8, 1).file
}

fn message(file: &[u8]) -> String {
    Artifact::parse(file).unwrap_err().to_string()
}

/// The error of a file whose manifest was changed consistently.
fn refusal(change: impl FnOnce(&mut qail_artifact::Manifest)) -> String {
    message(&mutant::edited(&small(), change))
}

fn q_linear(manifest: &mut qail_artifact::Manifest, index: usize) -> &mut step::QLinear {
    match &mut manifest.entries[0].steps[index].op {
        Some(step::Op::QLinear(op)) => op,
        other => panic!("step {index} is {other:?}"),
    }
}

#[test]
fn the_undamaged_file_is_read() {
    let file = small();
    let artifact = Artifact::parse(&file).unwrap();
    assert_eq!(artifact.manifest().entries[0].steps.len(), 6);
    assert!(artifact.section(0).is_some() && artifact.section(1000).is_none());
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    assert_eq!(small(), small());
}

#[test]
fn every_truncation_is_refused() {
    let file = small();
    for len in 0..file.len() {
        assert!(Artifact::parse(&file[..len]).is_err(), "{len} bytes");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(Artifact::parse(&longer), Err(ArtifactError::Length { .. })));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut file = small();
    for byte in 0..file.len() {
        let bit = 1 << (byte % 8);
        file[byte] ^= bit;
        assert!(Artifact::parse(&file).is_err(), "byte {byte}");
        file[byte] ^= bit;
    }
}

#[test]
fn damaged_files_are_refused() {
    let file = small();
    let mut rng = Rng(2);
    for _ in 0..qail_fixtures::n_mutants(2000) {
        let mut mutant = file.clone();
        mutant::damage(&mut mutant, &mut rng);
        assert!(mutant == file || Artifact::parse(&mutant).is_err());
    }
}

#[test]
fn consistent_lies_never_panic() {
    let float = |precision| Mlp::new(&[4, 6, 2], 1, precision, 3).file;
    let files =
        [small(), float(Precision::W4A16), float(Precision::F32), mixed::file(), families::file(), chunked(|_| ())];
    let mut rng = Rng(3);
    let mut n_refused = 0;
    let n = qail_fixtures::n_mutants(2000) as usize;
    for i in 0..n {
        let mutant = mutant::consistent(&files[i % files.len()], &mut rng);
        n_refused += usize::from(Artifact::parse(&mutant).is_err());
    }
    // The others change names, numbers of weights and the like.
    assert!(n_refused > n / 3, "{n_refused} of {n}");
}

#[test]
fn other_files_and_versions_are_named() {
    let file = small();
    assert_eq!(message(b"PK\x03\x04"), "not a .qail file");
    let mut later = file.clone();
    later[8] = 9;
    assert_eq!(message(&later), "the file needs version 9 of the reader, this is version 1");
    assert_eq!(refusal(|m| m.min_reader = 7), "the file needs version 7 of the reader, this is version 3");
    assert_eq!(
        refusal(|m| m.required_features = vec!["repeat".into(), "warp".into()]),
        "the file needs features that this reader does not have: warp"
    );
}

/// A file of chunks of 2, the rows of its only output.
fn chunked(change: impl FnOnce(&mut Chunk)) -> Vec<u8> {
    let mut chunk = Chunk { length: 2, execute: 2, ensemble: None };
    change(&mut chunk);
    mutant::edited(&small(), |m| {
        m.control = Some(Control { action: "action".to_owned(), chunk: Some(chunk) });
        m.required_features.push(CHUNK_FEATURE.to_owned());
    })
}

#[test]
fn chunks_are_as_long_as_the_action_and_fit_themselves() {
    assert!(Artifact::parse(&chunked(|_| ())).is_ok());
    assert!(Artifact::parse(&chunked(|c| (c.execute, c.ensemble) = (1, Some(-300.0)))).is_ok());
    let refused = |change: fn(&mut Chunk)| message(&chunked(change));
    assert_eq!(refused(|c| c.length = 3), "control: the action `action` has the shape [2, 3], which is no chunk of 3");
    assert_eq!(refused(|c| c.length = 0), "control: the action `action` has the shape [2, 3], which is no chunk of 0");
    for execute in [0, 3, u32::MAX] {
        let file = chunked(|c| c.execute = execute);
        assert_eq!(message(&file), format!("control: {execute} actions of a chunk of 2 cannot be given out"));
    }
    assert!(refused(|c| c.ensemble = Some(0.1)).contains("ensembling computes a chunk in every step"));
    for m in [f64::NAN, f64::INFINITY, 601.0, -601.0, f64::MAX] {
        let file = chunked(|c| (c.execute, c.ensemble) = (1, Some(m)));
        assert!(message(&file).contains("of ensembling is out of range"), "{m}");
    }
    let said = |action: &str, chunk, feature: bool| {
        mutant::edited(&small(), |m| {
            m.control = Some(Control { action: action.to_owned(), chunk });
            m.required_features.extend(feature.then(|| CHUNK_FEATURE.to_owned()));
        })
    };
    assert!(Artifact::parse(&said("action", None, false)).is_ok());
    assert_eq!(message(&said("obs", None, false)), "control: the action `obs` is no output of floats");
    assert_eq!(message(&said("action", None, true)), "control: a chunk and the feature `chunk` go together");
    let chunk = Some(Chunk { length: 2, execute: 1, ensemble: None });
    assert_eq!(message(&said("action", chunk, false)), "control: a chunk and the feature `chunk` go together");
    let alone = refusal(|m| m.required_features.push(CHUNK_FEATURE.to_owned()));
    assert_eq!(alone, "control: needs the feature `chunk` and has none");
    // Nothing can be called, so nothing is the action.
    let file = mutant::edited(&chunked(|_| ()), |m| m.entries.clear());
    assert_eq!(message(&file), "control: the action `action` is no output of floats");
}

#[test]
fn windows_rows_and_look_ups_stay_in_their_tensors() {
    let file = families::file();
    let refused = |index: usize, change: &dyn Fn(&mut step::Op)| {
        message(&mutant::edited(&file, |m| change(m.entries[0].steps[index].op.as_mut().unwrap())))
    };
    macro_rules! changed {
        ($index:expr, $op:ident, $change:expr) => {
            refused($index, &|op| match op {
                step::Op::$op(op) => $change(op),
                other => panic!("step {} is {other:?}", $index),
            })
        };
    }
    let windows = |change: fn(&mut step::Unfold)| changed!(0, Unfold, change);
    assert_eq!(windows(|op| op.x.strides[0] = 17), "step `windows`: reaches elements 0..=32 of 32");
    assert_eq!(windows(|op| op.extents[2] = 5), "step `windows`: reaches elements 0..=32 of 32");
    assert_eq!(windows(|op| op.start[1] = i64::MIN), "step `windows`: has positions beyond 32 bits");
    assert_eq!(windows(|op| op.steps[0] = i64::MAX), "step `windows`: has positions beyond 32 bits");
    assert_eq!(windows(|op| op.coordinates[0] = 3), "step `windows`: has no coordinate 3");
    assert_eq!(windows(|op| op.spread[0] = 0), "step `windows`: has a coordinate without elements");
    assert_eq!(windows(|op| op.spread[0] = u64::MAX), "step `windows`: has positions beyond 32 bits");
    assert_eq!(windows(|op| op.shape[0] = 3), "step `windows`: shows another number of elements than its result has");
    assert_eq!(windows(|op| op.start.clear()), "step `windows`: has windows whose lists do not match");
    assert_eq!(windows(|op| op.fill = f32::NAN), "step `windows`: has a fill that its elements cannot be");
    assert!(changed!(1, Softmax, |op: &mut step::Softmax| op.n = 19).contains("tensor `windows` has 288 elements"));
    assert!(changed!(1, Softmax, |op: &mut step::Softmax| op.outer = 0).contains("empty axis"));
    let normalize = changed!(2, Normalize, |op: &mut step::Normalize| op.inner_strides[0] = 10);
    assert_eq!(normalize, "step `norm`: reaches elements 0..=288 of 288");
    assert!(changed!(3, Attention, |op: &mut step::Attention| op.groups = 0).contains("do not share 0 groups"));
    let mask = changed!(3, Attention, |op: &mut step::Attention| op.mask.as_mut().unwrap().strides[2] = 1);
    assert_eq!(mask, "step `heads`: reaches elements 0..=30 of 16");
    assert!(changed!(4, Compare, |op: &mut step::Compare| op.f = 9).contains("unknown comparison"));
    assert!(changed!(5, Where, |op: &mut step::Where| op.truth = op.a.clone()).contains("not i32"));
    assert!(changed!(6, Cast, |op: &mut step::Cast| op.to = 6).contains("cannot cast I64 to I32"));
    let gather = changed!(7, Gather, |op: &mut step::Gather| op.extent = 17);
    assert_eq!(gather, "step `rows`: reaches elements 0..=305 of 288");
    assert!(changed!(7, Gather, |op: &mut step::Gather| op.extent = 0).contains("looks up one of 0 places"));
    assert!(changed!(8, Scatter, |op: &mut step::Scatter| op.row = 9).contains("expected 27 elements"));
    assert!(changed!(9, Order, |op: &mut step::Order| op.k = 19).contains("takes 19 of 18 elements"));
    assert!(changed!(10, Scan, |op: &mut step::Scan| op.inner = 2).contains("expected 12 elements"));
    assert!(changed!(12, Unfold, |op: &mut step::Unfold| op.fill_stored = 128).contains("fill"));
    assert!(changed!(13, QAdd, |op: &mut step::QAdd| op.shift = 63).contains("shift outside 1 to 62"));
    assert!(changed!(13, QAdd, |op: &mut step::QAdd| op.m_b = 0).contains("not positive"));
    assert!(changed!(13, QAdd, |op: &mut step::QAdd| op.hi = 200).contains("does not hold codes -100..=200"));
    let lookup = changed!(18, Lookup, |op: &mut step::Lookup| op.x.strides[0] = 40);
    assert_eq!(lookup, "step `looked`: reaches elements 0..=201 of 192");
    assert!(changed!(18, Lookup, |op: &mut step::Lookup| op.table = 0).contains("table"));
    let floats = changed!(18, Lookup, |op: &mut step::Lookup| op.x.source = Some(step::Source::Tensor(3)));
    assert_eq!(floats, "step `looked`: looks up I8 by F32");
    assert!(changed!(14, Reduce, |op: &mut step::Reduce| op.f = 2).contains("cannot reduce I8 to I32"));
    assert!(changed!(14, Reduce, |op: &mut step::Reduce| op.zero_point = i32::MAX).contains("leave 32 bits"));
    let cos = changed!(16, Rope, |op: &mut step::Rope| op.cos.offset = 1);
    assert_eq!(cos, "step `turned`: reaches elements 1..=18 of 18");
    assert!(changed!(16, Rope, |op: &mut step::Rope| op.x.strides.clear()).contains("do not match its axes"));
    let odd = message(&mutant::edited(&file, |m| (m.tensors[18].shape, m.tensors[18].stride) = (vec![32, 9], 9)));
    assert_eq!(odd, "step `turned`: has rows that do not divide into pairs");
    let scale = changed!(17, Film, |op: &mut step::Film| op.scale.strides[0] = i64::MIN);
    assert!(scale.contains("reaches elements"), "{scale}");
    let truth = changed!(17, Film, |op: &mut step::Film| op.shift.source = Some(step::Source::Tensor(7)));
    assert_eq!(truth, "step `modulated`: has an operand that is not f32");
}

#[test]
fn steps_that_change_types_are_host_code() {
    let file = families::file();
    let error = message(&mutant::edited(&file, |m| {
        m.arenas[0].place = qail_artifact::Place::Device as i32;
        m.entries[0].steps[6].place = qail_artifact::Place::Device as i32;
    }));
    assert_eq!(error, "step `index`: is no step of a device");
}

#[test]
fn damaged_sections_are_named() {
    let mut file = small();
    file[64] ^= 1;
    assert_eq!(message(&file), "section `factor` is damaged: its checksum does not match");
}

#[test]
fn a_manifest_beyond_the_cap_is_not_decoded() {
    let file = small();
    let huge = mutant::with_manifest(&file, &vec![0x2A; MAX_MANIFEST_BYTES + 1]);
    assert!(matches!(Artifact::parse(&huge), Err(ArtifactError::ManifestSize { .. })));
}

#[test]
fn scratch_memory_is_capped() {
    assert_eq!(refusal(|m| m.arenas[1].size = 1 << 40), "arena 1: more than 4294967296 bytes of scratch memory");
}

#[test]
fn tensors_stay_in_their_arenas() {
    assert_eq!(refusal(|m| m.tensors[1].offset = 1 << 20), "tensor `obs.q`: leaves its arena");
    assert_eq!(refusal(|m| m.tensors[1].arena = 9), "tensor `obs.q`: lives in an arena that does not exist");
    assert_eq!(refusal(|m| m.tensors[1].shape = vec![u64::MAX, 5]), "tensor `obs.q`: is too large");
    assert_eq!(
        refusal(|m| m.tensors[1].shape = vec![9, 5]),
        "tensor `obs.q`: has a size or an offset that does not fit its shape"
    );
}

#[test]
fn products_match_their_sections() {
    assert!(refusal(|m| q_linear(m, 1).n = 17).starts_with("step `fc0`: weight: 512 bytes, expected 768"));
    assert_eq!(refusal(|m| q_linear(m, 1).k = 6), "step `fc0`: tensor `obs.q` is no matrix of codes 2 x 6");
    assert_eq!(refusal(|m| q_linear(m, 2).x = 99), "step `fc1`: names tensor 99, which does not exist");
    assert_eq!(refusal(|m| q_linear(m, 2).bias = 99), "step `fc1`: names section 99, which does not exist");
}

#[test]
fn multipliers_are_in_range() {
    let error = refusal(|m| {
        let op = q_linear(m, 1).requantize.as_mut().unwrap();
        std::mem::swap(&mut op.m, &mut op.shift);
    });
    assert!(error.ends_with("is no multiplier of a requantization"), "{error}");
}

#[test]
fn steps_read_what_was_written_and_nothing_else() {
    assert_eq!(refusal(|m| m.entries[0].steps.swap(1, 2)), "step `fc1`: reads `h0` before it has a value");
    let error = refusal(|m| m.tensors[2].offset = m.tensors[1].offset);
    assert_eq!(error, "step `fc0`: writes over `obs.q`, which it reads");
    let error = refusal(|m| m.entries[0].steps[1].op = None);
    assert_eq!(error, "step `fc0`: has no operation that this reader knows");
}

#[test]
fn sums_that_could_wrap_are_refused() {
    // 9000 weights of 127 times codes of up to 32639 leave 32 bits.
    use common::{Builder, DEVICE, HOST};
    use qail_artifact::{Layout, Place, Storage, WriteError, pack};
    let k = 9000;
    let mut b = Builder::default();
    let obs = b.tensor("obs", Storage::F32, &[1, k], HOST);
    let x = b.tensor("x", Storage::I16, &[1, k], DEVICE);
    let out = b.tensor("acc", Storage::I32, &[1, 1], DEVICE);
    let factor = b.floats("factor", &[1.0]);
    let quantize = step::Quantize { x: obs, out: x, factor, lo: -32639, hi: 32639, zero_point: 0 };
    b.step("quantize", Place::Host, step::Op::Quantize(quantize));
    let packed = pack::pack_codes(Layout::W8Tile8x16, &vec![127; k], k, 1).unwrap();
    let weight = b.writer.add_section("w", Layout::W8Tile8x16, &packed).unwrap();
    let bias = b.ints("b", &[0]);
    let op = step::QLinear { x, out, weight, bias, k: k as u64, n: 1, rows: 1, requantize: None };
    b.step("fc", Place::Device, step::Op::QLinear(op));
    b.entry(&[("obs", obs)], &[("acc", out)]);
    let Err(WriteError::Refused(error)) = b.writer.finish(b.manifest) else { panic!("accepted") };
    assert_eq!(error.to_string(), "step `fc`: the sum of channel 0 can leave 32 bits");
}

#[test]
fn equal_sections_are_stored_once() {
    let mut writer = qail_artifact::Writer::new();
    let a = writer.add_section("a", qail_artifact::Layout::I32, &[1, 0, 0, 0]).unwrap();
    let b = writer.add_section("b", qail_artifact::Layout::I32, &[1, 0, 0, 0]).unwrap();
    let c = writer.add_section("c", qail_artifact::Layout::F32, &[1, 0, 0, 0]).unwrap();
    assert_eq!((a, b, c), (0, 0, 1));
    assert!(writer.add_section("a", qail_artifact::Layout::I32, &[2, 0, 0, 0]).is_err());
}

#[test]
fn groups_match_their_sections_and_do_not_wrap() {
    use common::{Builder, DEVICE, HOST};
    use qail_artifact::{Layout, Place, Storage, WriteError};
    let refusal = |feature: bool, bias: i32, change: &dyn Fn(&mut step::QGroups)| {
        let mut b = Builder::default();
        let obs = b.tensor("obs", Storage::F32, &[1, 6], HOST);
        let x = b.tensor("x", Storage::I8, &[1, 6], DEVICE);
        let out = b.tensor("acc", Storage::I32, &[1, 6], DEVICE);
        let factor = b.floats("factor", &[1.0]);
        let quantize = step::Quantize { x: obs, out: x, factor, lo: -128, hi: 127, zero_point: 0 };
        b.step("quantize", Place::Host, step::Op::Quantize(quantize));
        let weight = b.writer.add_section("w", Layout::I8, &[100; 12]).unwrap();
        let bias = b.ints("b", &[bias; 6]);
        let mut op = step::QGroups { x, out, weight, bias, k: 2, n: 6, rows: 1, requantize: None, groups: 3 };
        change(&mut op);
        b.step("dw", Place::Device, step::Op::QGroups(op));
        b.entry(&[("obs", obs)], &[("acc", out)]);
        if feature {
            b.manifest.required_features = vec!["groups".to_owned()];
        }
        match b.writer.finish(b.manifest) {
            Ok(_) => "accepted".to_owned(),
            Err(WriteError::Refused(error)) => error.to_string(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(refusal(true, i32::MAX - 25_600, &|_| ()), "accepted");
    assert_eq!(refusal(true, i32::MAX - 25_599, &|_| ()), "step `dw`: the sum of channel 0 can leave 32 bits");
    assert_eq!(refusal(false, 0, &|_| ()), "step `dw`: has groups without the feature `groups`");
    for groups in [0, 4] {
        let error = refusal(true, 0, &|op| op.groups = groups);
        assert_eq!(error, format!("step `dw`: cannot part 6 channels of 2 features into {groups} groups"));
    }
    let error = refusal(true, 0, &|op| op.groups = 2);
    assert_eq!(error, "step `dw`: tensor `x` is no matrix of codes 1 x 2 groups of 2");
    assert!(refusal(true, 0, &|op| op.k = 0).contains("cannot part"));
    assert!(refusal(true, 0, &|op| op.k = u64::MAX).contains("no matrix of codes"));
    assert!(refusal(true, 0, &|op| op.rows = 2).contains("no matrix of codes"));
    assert_eq!(
        refusal(true, 0, &|op| op.weight = op.bias),
        "step `dw`: weight: expected a section of layout I8, found Some(I32)"
    );
    assert_eq!(refusal(true, 0, &|op| op.n = 9), "step `dw`: weight: 12 bytes, expected 20");
}
