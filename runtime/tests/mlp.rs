//! Whole networks against plain loops over their numbers.

// Indices as in the formulas.
#![allow(clippy::unwrap_used, clippy::needless_range_loop)]

#[path = "../artifact/tests/common/mod.rs"]
mod common;

use common::{Dense, Mlp, Precision, Rng, families, mixed, mutant};
use proptest::prelude::*;
use qail_runtime::{
    DeviceSpec, Isa, LoadOptions, PortInfo, RunError, RuntimeError, Session, Storage, TensorView, TensorViewMut,
};

/// Stored codes or accumulators of each layer, and the actions.
fn integer_reference(mlp: &Mlp, observations: &[f32]) -> (Vec<Vec<i32>>, Vec<f32>) {
    let n_in = mlp.layers[0].k;
    let mut x: Vec<i64> = observations
        .iter()
        .enumerate()
        .map(|(i, &obs)| (f64::from(obs * mlp.factor[i % n_in]).round_ties_even() as i64).clamp(-32639, 32639))
        .collect();
    let mut values = vec![x.iter().map(|&q| q as i32).collect::<Vec<_>>()];
    for (i, layer) in mlp.layers.iter().enumerate() {
        let last = i + 1 == mlp.layers.len();
        let mut out = Vec::new();
        for row in x.chunks_exact(layer.k) {
            for n in 0..layer.n {
                let acc: i64 = (0..layer.k).map(|k| row[k] * i64::from(layer.codes[k * layer.n + n])).sum();
                let acc = acc + i64::from(layer.bias[n]);
                out.push(if last { acc } else { code(layer, acc, n) });
            }
        }
        values.push(out.iter().map(|&q| q as i32 + if last { 0 } else { layer.code_offset }).collect());
        x = out;
    }
    let n_out = mlp.exit_scale.len();
    let action =
        |(i, &acc): (usize, &i64)| libm::tanh(f64::from((acc as f64 * mlp.exit_scale[i % n_out]) as f32)) as f32;
    (values, x.iter().enumerate().map(action).collect())
}

/// The stored code of an accumulator.
fn code(layer: &Dense, acc: i64, n: usize) -> i64 {
    let scaled = i128::from(acc) * i128::from(layer.m[n]);
    let q = ((scaled + (1 << (layer.shift[n] - 1))) >> layer.shift[n]) as i64 + i64::from(layer.zero_point);
    let q = q.clamp(layer.lo.into(), layer.hi.into());
    match &layer.table {
        Some(table) => i64::from(table[(q + 128) as usize]),
        None => q - i64::from(layer.code_offset),
    }
}

fn float_reference(mlp: &Mlp, observations: &[f32]) -> Vec<f32> {
    let mut x = observations.to_vec();
    for (i, layer) in mlp.layers.iter().enumerate() {
        let mut out = Vec::new();
        for row in x.chunks_exact(layer.k) {
            for n in 0..layer.n {
                let mut total = 0f32;
                if mlp.precision == Precision::F32 {
                    for k in 0..layer.k {
                        total += row[k] * layer.floats[k * layer.n + n];
                    }
                } else {
                    for group in 0..layer.k.div_ceil(layer.group) {
                        let mut sum = 0f32;
                        for k in group * layer.group..((group + 1) * layer.group).min(layer.k) {
                            sum += row[k] * f32::from(layer.codes[k * layer.n + n]);
                        }
                        total += sum * layer.group_scales[group * layer.n + n];
                    }
                }
                let y = total + layer.float_bias[n];
                let last = i + 1 == mlp.layers.len();
                out.push(if last { libm::tanh(f64::from(y)) as f32 } else { y.max(0.0) });
            }
        }
        x = out;
    }
    x
}

fn isas() -> impl Iterator<Item = DeviceSpec> {
    Isa::ALL.into_iter().filter(|isa| isa.is_present()).map(|isa| DeviceSpec::Cpu(Some(isa)))
}

fn run(session: &mut Session, observations: &[f32]) -> Vec<f32> {
    let mut actions = vec![0.0; session.outputs()[0].elements()];
    session.run(&[TensorView::F32(observations)], &mut [TensorViewMut::F32(&mut actions)]).unwrap();
    actions
}

fn check(dims: &[usize], rows: usize, precision: Precision, seed: u64) {
    let mlp = Mlp::new(dims, rows, precision, seed);
    let options = LoadOptions { keep_intermediates: true, ..LoadOptions::default() };
    for device in isas() {
        let mut session = Session::load_with(mlp.file.clone(), device, &options).unwrap();
        let mut lean = Session::load(mlp.file.clone(), device).unwrap();
        for turn in 0..3 {
            let observations = mlp.observations(seed + turn);
            let actions = run(&mut session, &observations);
            if matches!(precision, Precision::W8A8 | Precision::W4A8 | Precision::W4A4) {
                let (values, expected) = integer_reference(&mlp, &observations);
                for (i, expected) in values.iter().enumerate() {
                    let last = i + 1 == values.len();
                    let name = if i == 0 {
                        "obs.q".to_owned()
                    } else if last {
                        "acc".to_owned()
                    } else {
                        format!("h{}", i - 1)
                    };
                    assert_eq!(&session.read_codes(&name).unwrap(), expected, "{name} on {device}");
                }
                assert_eq!(actions, expected, "{device}");
            } else {
                assert_eq!(actions, float_reference(&mlp, &observations), "{device}");
            }
            assert_eq!(run(&mut lean, &observations), actions, "{device}");
        }
    }
}

#[test]
fn a_policy_gives_the_codes_of_plain_loops() {
    for precision in [Precision::W8A8, Precision::W4A8, Precision::W4A4] {
        check(&[17, 256, 256, 6], 1, precision, 7);
    }
}

#[test]
fn a_float_policy_gives_the_bits_of_plain_loops() {
    for precision in [Precision::F32, Precision::W8A16, Precision::W4A16] {
        check(&[17, 256, 256, 6], 1, precision, 7);
    }
}

fn any_precision() -> impl Strategy<Value = Precision> {
    use Precision::{F32, W4A4, W4A8, W4A16, W8A8, W8A16};
    prop_oneof![Just(W8A8), Just(W4A8), Just(W4A4), Just(F32), Just(W8A16), Just(W4A16)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn odd_shapes_agree(
        dims in proptest::collection::vec(1usize..70, 3..6), rows in 1usize..4, precision in any_precision(), seed in any::<u64>(),
    ) {
        check(&dims, rows, precision, seed >> 8);
    }
}

#[test]
fn hidden_codes_use_their_range() {
    // Guards the other tests: a network of saturated codes would prove little.
    let mlp = Mlp::new(&[17, 64, 64, 6], 1, Precision::W8A8, 5);
    let (values, _) = integer_reference(&mlp, &mlp.observations(5));
    for layer in &values[1..3] {
        let distinct: std::collections::BTreeSet<_> = layer.iter().collect();
        assert!(distinct.len() > 15, "{layer:?}");
    }
}

fn session() -> Session {
    Session::load(Mlp::new(&[3, 8, 2], 1, Precision::W8A8, 1).file, "cpu".parse().unwrap()).unwrap()
}

#[test]
fn ports_are_described() {
    let session = session();
    assert_eq!((session.inputs()[0].name.as_str(), &session.inputs()[0].shape[..]), ("obs", &[1, 3][..]));
    assert_eq!((session.outputs()[0].name.as_str(), session.outputs()[0].elements()), ("action", 2));
    assert_eq!(session.device_name(), format!("cpu:{}", Isa::best().name()));
}

#[test]
fn wrong_inputs_are_named_and_leave_the_outputs() {
    let mut session = session();
    let mut y = [9.0; 2];
    let mut message = |inputs: &[TensorView<'_>], y: &mut [f32]| {
        session.run(inputs, &mut [TensorViewMut::F32(y)]).unwrap_err().to_string()
    };
    assert_eq!(message(&[], &mut y), "the model has 1 inputs, found 0");
    assert_eq!(message(&[TensorView::F32(&[0.0; 4])], &mut y), "`obs` has 3 elements, found 4");
    assert_eq!(message(&[TensorView::U8(&[0; 3])], &mut y), "`obs` is F32, found U8");
    assert_eq!(message(&[TensorView::F32(&[0.0, f32::NAN, 0.0])], &mut y), "element 1 of input `obs` is NaN");
    assert_eq!(message(&[TensorView::F32(&[0.0, 0.0, f32::INFINITY])], &mut y), "element 2 of input `obs` is inf");
    assert_eq!(message(&[TensorView::F32(&[0.0; 3])], &mut [0.0; 3]), "`action` has 2 elements, found 3");
    assert_eq!(y, [9.0; 2]);
    assert!(session.run(&[TensorView::F32(&[0.1; 3])], &mut [TensorViewMut::F32(&mut y)]).is_ok());
}

#[test]
fn intermediate_values_need_the_option() {
    let mut session = session();
    assert!(matches!(session.read_codes("h0"), Err(RunError::NoTensor(name)) if name == "h0"));
}

#[test]
fn missing_entry_points_and_devices_are_errors() {
    let file = Mlp::new(&[3, 8, 2], 1, Precision::W8A8, 1).file;
    let options = LoadOptions { entry: Some("decode".into()), ..LoadOptions::default() };
    let error = Session::load_with(file.clone(), "cpu".parse().unwrap(), &options).unwrap_err();
    assert_eq!(error.to_string(), "the artifact has no entry point `decode`");
    if let Some(isa) = Isa::ALL.into_iter().find(|isa| !isa.is_present()) {
        let error = Session::load(file, DeviceSpec::Cpu(Some(isa))).unwrap_err();
        assert!(matches!(error, RuntimeError::NoDevice { .. }), "{error}");
    }
}

#[test]
fn a_mapped_file_runs() {
    let mlp = Mlp::new(&[17, 32, 6], 1, Precision::W4A8, 3);
    let path = std::env::temp_dir().join(format!("qail-mapped-{}.qail", std::process::id()));
    std::fs::write(&path, &mlp.file).unwrap();
    let mut mapped = Session::open(&path, "cpu".parse().unwrap()).unwrap();
    let mut owned = Session::load(mlp.file.clone(), "cpu".parse().unwrap()).unwrap();
    let observations = mlp.observations(1);
    assert_eq!(run(&mut mapped, &observations), run(&mut owned, &observations));
    drop(mapped);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn instruction_sets_agree_on_every_operation() {
    let x = [0.5, -1.0, 2.0, 0.25, -3.0, 1.5, 0.1, 0.2, -0.3, 0.4, 5.0, -0.6];
    let results: Vec<Vec<f32>> = isas().map(|isa| run(&mut Session::load(mixed::file(), isa).unwrap(), &x)).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{results:?}");
    assert!(results[0].iter().any(|&z| z != results[0][0]), "{results:?}");
}

#[test]
fn files_that_lie_consistently_load_or_fail_but_never_panic() {
    let mlp = |precision| Mlp::new(&[5, 9, 8, 3], 2, precision, 1).file;
    let precisions = [Precision::W8A8, Precision::W4A8, Precision::W4A16, Precision::F32];
    let files = [&precisions.map(mlp)[..], &[mixed::file(), families::file()]].concat();
    let mut rng = Rng(11);
    let mut n_run = 0;
    let n = qail_fixtures::n_mutants(1000) as usize;
    for i in 0..n {
        let mutant = mutant::consistent(&files[i % files.len()], &mut rng);
        for device in isas() {
            let Ok(mut session) = Session::load(mutant.clone(), device) else { continue };
            let n_out: usize = session.outputs().iter().map(|p| p.elements()).sum();
            let mut y = vec![0.0; n_out];
            let n = |of| session.inputs().iter().find(|p| p.storage == of).map_or(0, |p| p.elements());
            let (floats, indices) = (vec![0.3; n(Storage::F32)], vec![-2; n(Storage::I64)]);
            let view = |port: &PortInfo| match port.storage {
                Storage::I64 => TensorView::I64(&indices),
                _ => TensorView::F32(&floats),
            };
            let inputs: Vec<TensorView<'_>> = session.inputs().iter().map(view).collect();
            let result = session.run(&inputs, &mut [TensorViewMut::F32(&mut y)]);
            assert!(!matches!(result, Err(RunError::Internal(_))), "{result:?}");
            n_run += 1;
        }
    }
    assert!(n_run > n / 20, "only {n_run} of {n} mutants ran");
}
