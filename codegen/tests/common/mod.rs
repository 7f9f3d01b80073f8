//! What the tests of this crate share: seeded numbers, graphs, devices.

#![allow(dead_code, reason = "every test crate uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::OnceLock,
};

use qail_codegen::{BuildOptions, Plan, build};
use qail_ir::{
    DType, Elem, Graph, TensorType,
    interp::{self, Tensor},
    text,
};
use qail_runtime::{DeviceSpec, LoadOptions, Session, Storage, TensorView, TensorViewMut};

/// Seeded numbers (SplitMix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `lo..=hi`.
    pub(crate) fn range(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.next() % (hi - lo + 1) as u64) as i64
    }

    /// One of the elements.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.range(0, from.len() as i64 - 1) as usize]
    }

    /// Numbers in -4 .. 4 with a few of them exactly 0.
    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| if self.range(0, 9) == 0 { 0.0 } else { self.range(-4_000_000, 4_000_000) as f32 * 1e-6 })
            .collect()
    }
}

/// A graph from its text.
pub(crate) fn graph(source: &str) -> Graph {
    text::parse(source).unwrap_or_else(|error| panic!("{error}\n{source}"))
}

/// A list of numbers as the text form has it.
pub(crate) fn list(numbers: impl IntoIterator<Item = i64>) -> String {
    let mut out = String::new();
    for number in numbers {
        let _ = write!(out, "{}{number}", if out.is_empty() { "" } else { ", " });
    }
    format!("[{out}]")
}

/// Multipliers `m` and `shift` of `n` channels that bring accumulators of about
/// `size` to about `range`, extremes included.
pub(crate) fn multipliers(rng: &mut Rng, n: usize, size: f64, range: f64) -> (String, String) {
    let mut pairs = Vec::new();
    for i in 0..n {
        let factor = range / size.max(1.0) * (rng.range(50, 200) as f64 / 100.0);
        let nearest = qail_ir::fixed::Multiplier::nearest(factor).unwrap();
        pairs.push(match i % 7 {
            5 => (65535, rng.range(1, 15)),
            6 => (32769, rng.range(32, 62)),
            _ => (i64::from(nearest.m()), i64::from(nearest.shift())),
        });
    }
    (list(pairs.iter().map(|pair| pair.0)), list(pairs.iter().map(|pair| pair.1)))
}

/// The plan of a graph.
pub(crate) fn plan(graph: &Graph) -> Plan {
    build(graph, &BuildOptions::default()).unwrap_or_else(|error| panic!("{error}\n{}", text::print(graph)))
}

/// Vulkan devices of this machine, software included. Complains if there are
/// fewer than `QAILC_REQUIRE_ADAPTERS` says.
pub(crate) fn devices() -> &'static [DeviceSpec] {
    static DEVICES: OnceLock<Vec<DeviceSpec>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let found = qail_runtime::adapters();
        let required: usize = std::env::var("QAILC_REQUIRE_ADAPTERS").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        assert!(found.len() >= required, "{required} adapters are required, found {found:?}");
        if found.is_empty() {
            eprintln!("SKIPPED: no adapter found, shaders are not run");
        }
        for info in &found {
            eprintln!("adapter {}: {} ({})", info.device, info.name, info.driver);
        }
        found.into_iter().map(|info| info.device).collect()
    })
}

/// Seeded inputs of a graph, by name.
pub(crate) fn inputs(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = Rng(seed);
    let mut inputs = BTreeMap::new();
    for &node in graph.inputs() {
        let node = graph.node(node);
        let ty = node.outputs[0].clone();
        let n = ty.n_elements();
        let tensor = match ty.dtype() {
            Some(DType::Bool) => Tensor::ints(ty.clone(), (0..n).map(|_| rng.range(0, 1)).collect()),
            Some(DType::U8) => Tensor::ints(ty.clone(), (0..n).map(|_| rng.range(0, 255)).collect()),
            Some(DType::I32 | DType::I64) => Tensor::ints(ty.clone(), (0..n).map(|_| rng.range(-6, 6)).collect()),
            _ => Tensor::f32(ty.shape.clone(), rng.floats(n)),
        };
        inputs.insert(node.name.clone(), tensor);
    }
    inputs
}

/// Runs a plan on a device and holds it to the interpreter: every output, and
/// every integer value that the plan keeps, bit for bit; floats within
/// `tolerance` (relative to the largest of the tensor). Returns how many different
/// numbers the compared tensors hold, so that a test cannot pass on constants.
pub(crate) fn check(graph: &Graph, plan: &Plan, device: DeviceSpec, seed: u64, tolerance: f32) -> usize {
    let inputs = inputs(graph, seed);
    let expected = interp::run_all(graph, &inputs).unwrap_or_else(|error| panic!("{error:?}\n{}", text::print(graph)));

    let file = plan.to_file().unwrap_or_else(|error| panic!("{error:?}\n{}", qail_codegen::explain(&plan.manifest)));
    let options = LoadOptions { keep_intermediates: true, ..LoadOptions::default() };
    let mut session = Session::load_with(file, device, &options)
        .unwrap_or_else(|error| panic!("{device}: {error:?}\n{}", qail_codegen::explain(&plan.manifest)));
    let given: Vec<Room> = session.inputs().iter().map(|port| Room::of(port.storage, &inputs[&port.name])).collect();
    let views: Vec<TensorView<'_>> = given.iter().map(Room::view).collect();
    let mut rooms: Vec<Room> =
        session.outputs().iter().map(|port| Room::empty(port.storage, port.elements())).collect();
    let mut outputs: Vec<TensorViewMut<'_>> = rooms.iter_mut().map(Room::view_mut).collect();
    // Twice: the second run must not see the first.
    for _ in 0..2 {
        session.run(&views, &mut outputs).unwrap_or_else(|error| panic!("{device}: {error:?}"));
    }
    drop(outputs);

    let mut n_different = 0;
    let context =
        |what: &str| format!("{device}, `{what}`\n{}\n{}", text::print(graph), qail_codegen::explain(&plan.manifest));
    for (output, room) in graph.outputs.iter().zip(&rooms) {
        match (expected[&output.value].as_f32(), room) {
            (Some(expected), Room::F32(found)) => compare(found, expected, tolerance, &context(&output.name)),
            (_, room) => {
                let expected = expected[&output.value].as_ints().unwrap();
                assert_eq!(room.ints(), expected, "{}", context(&output.name));
            }
        }
    }
    let names: Vec<String> = session.tensor_names().map(str::to_owned).collect();
    for (value, expected) in &expected {
        let name = &graph.node(value.node).name;
        if !names.contains(name) || graph.const_of(*value).is_some() {
            continue;
        }
        match graph.ty(*value) {
            TensorType { elem: Elem::Code(_), .. } => {
                let found: Vec<i64> = session.read_codes(name).unwrap().into_iter().map(i64::from).collect();
                assert_eq!(found, expected.as_ints().unwrap(), "{}", context(name));
            }
            ty if ty.is_f32() => {
                compare(&session.read_f32(name).unwrap(), expected.as_f32().unwrap(), tolerance, &context(name))
            }
            _ => {
                // Inputs of 64 bits are what the caller gave.
                let Ok(found) = session.read_codes(name) else { continue };
                let found: Vec<i64> = found.into_iter().map(i64::from).collect();
                assert_eq!(found, expected.as_ints().unwrap(), "{}", context(name));
            }
        }
        let bits: BTreeSet<u64> = expected.to_f64().iter().map(|x| x.to_bits()).collect();
        n_different += bits.len();
    }
    n_different
}

fn compare(found: &[f32], expected: &[f32], tolerance: f32, context: &str) {
    assert_eq!(found.len(), expected.len(), "{context}");
    let size = expected.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let ok = found.to_bits() == expected.to_bits() || (found - expected).abs() <= tolerance * size;
        assert!(ok, "element {i}: {found} instead of {expected}: {context}");
    }
}

/// Elements of an input or output.
enum Room {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    I64(Vec<i64>),
}

impl Room {
    fn empty(storage: Storage, n: usize) -> Self {
        match storage {
            Storage::F32 => Self::F32(vec![0.0; n]),
            Storage::U8 => Self::U8(vec![0; n]),
            Storage::I64 => Self::I64(vec![0; n]),
            _ => Self::I32(vec![0; n]),
        }
    }

    fn of(storage: Storage, tensor: &Tensor) -> Self {
        let ints = || tensor.as_ints().unwrap().iter();
        match storage {
            Storage::F32 => Self::F32(tensor.as_f32().unwrap().to_vec()),
            Storage::U8 => Self::U8(ints().map(|&x| x as u8).collect()),
            Storage::I64 => Self::I64(ints().copied().collect()),
            _ => Self::I32(ints().map(|&x| x as i32).collect()),
        }
    }

    fn view(&self) -> TensorView<'_> {
        match self {
            Self::F32(x) => TensorView::F32(x),
            Self::I32(x) => TensorView::I32(x),
            Self::U8(x) => TensorView::U8(x),
            Self::I64(x) => TensorView::I64(x),
        }
    }

    fn view_mut(&mut self) -> TensorViewMut<'_> {
        match self {
            Self::F32(x) => TensorViewMut::F32(x),
            Self::I32(x) => TensorViewMut::I32(x),
            Self::U8(x) => TensorViewMut::U8(x),
            Self::I64(x) => TensorViewMut::I64(x),
        }
    }

    fn ints(&self) -> Vec<i64> {
        match self {
            Self::F32(_) => Vec::new(),
            Self::I32(x) => x.iter().map(|&x| x.into()).collect(),
            Self::U8(x) => x.iter().map(|&x| x.into()).collect(),
            Self::I64(x) => x.clone(),
        }
    }
}
