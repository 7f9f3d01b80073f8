//! A run on the CPU allocates nothing.

#![allow(clippy::unwrap_used)]

#[path = "../artifact/tests/common/mod.rs"]
mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use common::{Mlp, Precision, families, mutant};
use qail_artifact::schema::{CHUNK_FEATURE, Chunk, Control};
use qail_runtime::{Controller, DeviceSpec, Isa, Session, TensorView, TensorViewMut};

/// The system allocator; counts the calls of each thread: the test harness has
/// one of its own.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // Fails only while a thread ends, and then nobody asks.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the conditions of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller keeps the conditions of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_run_allocates_nothing() {
    use Precision::{F32, W4A4, W4A8, W4A16, W8A8, W8A16};
    for precision in [W8A8, W4A8, W4A4, F32, W8A16, W4A16] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_present()) {
            let mlp = Mlp::new(&[17, 64, 48, 40, 6], 2, precision, 7);
            let mut session = Session::load(mlp.file.clone(), DeviceSpec::Cpu(Some(isa))).unwrap();
            let observations = mlp.observations(1);
            let mut actions = vec![0.0; 12];
            let before = CALLS.get();
            for _ in 0..10 {
                let result = session.run(&[TensorView::F32(&observations)], &mut [TensorViewMut::F32(&mut actions)]);
                assert!(result.is_ok());
            }
            assert_eq!(CALLS.get() - before, 0, "{precision:?} on {isa:?}");
        }
    }
    let mut session = Session::load(families::file(), "cpu".parse().unwrap()).unwrap();
    let x: Vec<f32> = (0..32).map(|i| i as f32 * 0.1 - 1.5).collect();
    let (mut y, mut z) = (vec![0.0; 6], vec![0.0; 288]);
    let before = CALLS.get();
    for _ in 0..10 {
        let inputs = [TensorView::F32(&x), TensorView::I64(&[3, -1, 900])];
        assert!(session.run(&inputs, &mut [TensorViewMut::F32(&mut y), TensorViewMut::F32(&mut z)]).is_ok());
    }
    assert_eq!(CALLS.get() - before, 0, "windows, rows, look-ups and modulation");
    assert!(y.iter().any(|&y| y != 0.0), "{y:?}");
    assert!(z.iter().any(|&z| z != 0.0), "{z:?}");
    for (execute, ensemble) in [(3, None), (1, Some(0.01))] {
        let mlp = Mlp::new(&[17, 64, 48, 6], 5, Precision::W4A8, 7);
        let file = mutant::edited(&mlp.file, |manifest| {
            let chunk = Some(Chunk { length: 5, execute, ensemble });
            manifest.control = Some(Control { action: "action".to_owned(), chunk });
            manifest.required_features.push(CHUNK_FEATURE.to_owned());
        });
        let mut controller = Controller::new(Session::load(file, "cpu".parse().unwrap()).unwrap()).unwrap();
        let (observations, mut action) = (mlp.observations(1), [0.0; 6]);
        let before = CALLS.get();
        for _ in 0..2 {
            for _ in 0..12 {
                assert!(controller.act(&[TensorView::F32(&observations)], &mut action).is_ok());
            }
            controller.reset().unwrap();
        }
        assert_eq!(CALLS.get() - before, 0, "chunks, {execute} at a time, ensemble {ensemble:?}");
    }
}
