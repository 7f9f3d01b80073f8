//! Graphs in text form: `parse(print(g)) == g`, printing is canonical, and what
//! is well-formed runs if it is small.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qail_ir::{ConstData, Constant, text, verify};

fuzz_target!(|source: &str| {
    let given = |_: &str, ty: &qail_ir::TensorType| {
        (ty.n_elements() < 5000).then(|| Constant { ty: ty.clone(), data: ConstData::Rand(1) })
    };
    let Ok(graph) = text::parse_with_weights(source, &given) else { return };
    let (printed, weights) = text::print_with_weights(&graph);
    let read = text::parse_with_weights(&printed, &|name, _| weights.get(name).map(|c| (**c).clone()));
    let read = read.expect("what is printed can be read");
    assert!(read == graph, "{printed}");
    assert_eq!(text::print(&read), text::print(&graph));
    if verify(&graph).is_ok() {
        qailc_fuzz::run_if_small(&graph);
    }
});
