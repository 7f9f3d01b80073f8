//! ONNX models: whatever is imported is well-formed, prints and reads back, and
//! runs if it is small.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qail_ir::{text, verify};
use qailc::frontend::{ImportOptions, import_bytes};

fuzz_target!(|bytes: &[u8]| {
    // Constants in other files are refused without a folder.
    let Ok(imported) = import_bytes(bytes.to_vec(), None, &ImportOptions::default()) else { return };
    let graph = imported.graph;
    verify(&graph).expect("an imported graph is well-formed");
    if qailc_fuzz::constants_are_small(&graph) {
        let (printed, weights) = text::print_with_weights(&graph);
        let read = text::parse_with_weights(&printed, &|name, _| weights.get(name).map(|c| (**c).clone()));
        assert!(read.expect("what is printed can be read") == graph, "{printed}");
    }
    qailc_fuzz::run_if_small(&graph);
});
