//! Demonstrations: npz archives and npy files, opened, streamed and summarized.
//!
//! The readers take files, so the bytes go through one in the folder for
//! temporary files; let that be in memory (`TMPDIR=/dev/shm`).

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use qailc::data::{DemoMap, Demos, Npz, Summary};

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    // What a file is goes by its name; a lone array begins with a byte of its own.
    let name = if bytes.first() == Some(&0x93) { "demos.npy" } else { "demos.npz" };
    let path = FOLDER.path().join(name);
    fs::write(&path, bytes).expect("the temporary folder can be written");
    read(&path);
});

fn read(path: &Path) {
    if let Ok(summary) = Summary::read(path) {
        let _ = summary.remarks();
    }
    let Ok(npz) = Npz::open(path) else { return };
    let keys: Vec<String> = npz.keys().map(str::to_owned).collect();
    for key in &keys {
        let (mut floats, mut wide, mut ints) = (Vec::new(), Vec::new(), Vec::new());
        if let Ok(mut rows) = npz.rows(key) {
            let _ = rows.next_f32(3, &mut floats);
            let _ = rows.skip(2);
            let _ = rows.next_f64(3, &mut wide);
            let _ = rows.next_i64(3, &mut ints);
        }
        let Ok(info) = npz.info(key) else { continue };
        let extents: Vec<usize> = info.shape.iter().skip(1).copied().collect();
        let _ = npz.read_f32(key, 1..2.min(info.n_rows()));
        let map = DemoMap { inputs: [("obs".to_owned(), key.clone())].into() };
        let Ok(demos) = Demos::open(path, &[("obs", &extents)], &map) else { continue };
        let steps: usize = demos.episodes().iter().map(ExactSizeIterator::len).sum();
        assert_eq!(steps, demos.n_steps(), "episodes cover every step once");
        for field in demos.observations().iter().chain(demos.actions()).chain(demos.weights()) {
            let Ok(mut steps) = demos.stream(field) else { continue };
            floats.clear();
            let _ = steps.next(4, &mut floats);
            assert!(floats.len() <= 4 * field.info.row_len().max(1));
            let _ = steps.next_ints(4, 0..=255, &mut ints);
        }
    }
}
