//! What is allocated: nothing by a run of a real policy, and nothing out of
//! proportion by files that lie.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

#[path = "loops/models.rs"]
#[allow(dead_code, reason = "each test crate uses a part of it")]
mod models;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::Path,
};

use qail_passes::Precision;
use qail_runtime::{DeviceSpec, Isa, Session, TensorView, TensorViewMut};
use qailc::{
    data::Npz,
    frontend::{ImportOptions, import_bytes},
    pipeline::{self, BuildOptions, Silent},
    qir,
};

/// The system allocator; counts the calls of each thread, and remembers the
/// largest request.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn count(size: usize) {
    // Fails only while a thread ends, and then nobody asks.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the conditions of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the conditions of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the conditions of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0);
        // SAFETY: the caller keeps the conditions of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn fixture(path: &str) -> std::path::PathBuf {
    qail_fixtures::root().join("policies").join(path)
}

fn hopper(precision: Precision) -> Vec<u8> {
    let options = BuildOptions {
        demos: Some(fixture("hopper/hopper_demos.npz")),
        n_calibration: 64,
        ..BuildOptions::new(precision)
    };
    pipeline::compile(&fixture("hopper/hopper_expert.onnx"), &options, &mut Silent).unwrap().bytes.to_vec()
}

/// A run with turns and noise, one with a state, one with caches: nothing is
/// allocated either.
#[test]
fn loops_allocate_nothing() {
    const SAMPLER: &str = "[sampler]\nkind = \"ddpm\"\nsteps = 4\ntrain_steps = 8";
    type Write = fn(&Path);
    let cases: [(Write, &str, &str); 3] = [
        (|path| models::denoiser(path, false), "cond", SAMPLER),
        (models::recurrent, "obs", ""),
        (models::decoder, "obs", ""),
    ];
    for (write, input, policy) in cases {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("policy.onnx"));
        models::record(&folder.path().join("demos.npz"), input);
        for precision in [Precision::F32, Precision::W8A8] {
            let options = BuildOptions {
                // The caches of the decoder are full before an episode ends.
                demos: (policy == SAMPLER || precision.needs_data()).then(|| folder.path().join("demos.npz")),
                n_calibration: 3,
                policy: qailc::policy::Policy::parse(Path::new("policy.toml"), policy).unwrap(),
                ..BuildOptions::new(precision)
            };
            let built = pipeline::compile(&folder.path().join("policy.onnx"), &options, &mut Silent).unwrap();
            let mut session = Session::load(built.bytes.clone(), DeviceSpec::Cpu(None)).unwrap();
            let mut action = vec![0.0f32; session.outputs()[0].elements()];
            let before = CALLS.get();
            for _ in 0..4 {
                session.run(&[TensorView::F32(&[0.5, -0.25, 1.0])], &mut [TensorViewMut::F32(&mut action)]).unwrap();
            }
            session.reset().unwrap();
            assert_eq!(CALLS.get() - before, 0, "{input}, {precision}");
            assert!(action.iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn a_run_of_a_real_policy_allocates_nothing() {
    for precision in [Precision::W4A4, Precision::W8A8, Precision::F32] {
        let bytes = hopper(precision);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_present()) {
            let mut session = Session::load(bytes.clone(), DeviceSpec::Cpu(Some(isa))).unwrap();
            let (state, mut action) = ([0.25f32; 11], [0.0f32; 3]);
            let before = CALLS.get();
            for _ in 0..10 {
                session.run(&[TensorView::F32(&state)], &mut [TensorViewMut::F32(&mut action)]).unwrap();
            }
            assert_eq!(CALLS.get() - before, 0, "{precision} on {isa:?}");
            assert!(action.iter().any(|&x| x != 0.0));
        }
    }
}

/// The largest request of a piece of work on this thread.
fn largest_request(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// More than any honest reading of the seeds asks for at once, less than any
/// number in them that was turned into a large one.
const MIB: usize = 1 << 20;

/// Damages that matter: bits, and lengths that are made enormous.
fn mutants(seed: &[u8], n: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..n).map(move |i| {
        let mut bytes = seed.to_vec();
        let mut z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for _ in 0..=(i % 3) {
            z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            // Half of them near the ends, where the headers are.
            let n_bytes = bytes.len() as u64;
            let at = match z >> 62 {
                0 => (z >> 8) % n_bytes.min(200),
                1 => n_bytes - 1 - (z >> 8) % n_bytes.min(200),
                _ => (z >> 8) % n_bytes,
            } as usize;
            match z & 3 {
                0 => bytes[at] ^= 1 << ((z >> 4) & 7),
                1 => bytes[at] = 0xFF,
                _ => {
                    let end = bytes.len().min(at + 4);
                    bytes[at..end].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0x7F][..end - at]);
                }
            }
        }
        bytes
    })
}

#[test]
fn damaged_models_ask_for_little_memory() {
    let seed = fs::read(fixture("hopper/hopper_expert.onnx")).unwrap();
    for bytes in mutants(&seed, qail_fixtures::n_mutants(600)) {
        let size = largest_request(|| drop(import_bytes(bytes, None, &ImportOptions::default())));
        assert!(size < 16 * MIB, "{size} bytes at once");
    }
}

#[test]
fn damaged_artifacts_ask_for_little_memory() {
    let seed = hopper(Precision::W4A4);
    for bytes in mutants(&seed, qail_fixtures::n_mutants(600)) {
        let size = largest_request(|| drop(Session::load(bytes, DeviceSpec::Cpu(None))));
        assert!(size < 16 * MIB, "{size} bytes at once");
    }
}

#[test]
fn damaged_recordings_and_graphs_ask_for_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (npz, text) = (folder.path().join("m.npz"), folder.path().join("m.qir"));
    let read = |path: &Path| {
        if let Ok(npz) = Npz::open(path) {
            for key in npz.keys() {
                let _ = npz.rows(key).and_then(|mut rows| rows.next_f32(16, &mut Vec::new()));
            }
        }
    };
    let seed = fs::read(qail_fixtures::root().join("demos/plain.npz")).unwrap();
    for bytes in mutants(&seed, qail_fixtures::n_mutants(600)) {
        fs::write(&npz, bytes).unwrap();
        let size = largest_request(|| read(&npz));
        assert!(size < 32 * MIB, "{size} bytes at once");
    }
    let model = fs::read(fixture("hopper/hopper_expert.onnx")).unwrap();
    let graph = import_bytes(model, None, &ImportOptions::default()).unwrap().graph;
    qir::write(&text, &graph).unwrap();
    let seed = fs::read(&text).unwrap();
    for bytes in mutants(&seed, qail_fixtures::n_mutants(600)) {
        fs::write(&text, bytes).unwrap();
        let size = largest_request(|| drop(qir::read(&text)));
        assert!(size < 16 * MIB, "{size} bytes at once");
    }
}

#[test]
fn a_declared_size_is_not_believed() {
    use prost::Message;
    use qailc::frontend::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
    };
    // 2^40 elements of which one is there, and one that would be computed.
    let graph = |dims: &[i64], op: &str| {
        let graph = GraphProto {
            name: "large".to_owned(),
            input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, dims)],
            output: vec![ValueInfoProto { name: "y".to_owned(), r#type: None }],
            initializer: vec![TensorProto::f32("w", dims, &[1.0])],
            node: vec![NodeProto {
                op_type: op.to_owned(),
                input: vec!["x".to_owned(), "w".to_owned()],
                output: vec!["y".to_owned()],
                ..NodeProto::default()
            }],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    };
    for dims in [&[1 << 40][..], &[1 << 20, 1 << 20], &[i64::MAX, 2], &[-1, 4]] {
        let bytes = graph(dims, "Add");
        let size = largest_request(|| assert!(import_bytes(bytes, None, &ImportOptions::default()).is_err()));
        assert!(size < MIB, "{dims:?}: {size} bytes at once");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qir");
    fs::write(&path, "graph @a() -> (%w) {\n  %w = const rand(1) : f32[1099511627776]\n}\n").unwrap();
    let size = largest_request(|| drop(qir::read(&path)));
    assert!(size < MIB, "{size} bytes at once");
}
