//! Laws that hold for every graph.

// Clippy knows tests, but not the functions that they share.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use proptest::prelude::*;
use qail_ir::{
    Graph, Op,
    interp::{Data, Interpreter, Tensor},
    text, verify,
};

use support::{random_graph, random_inputs};

/// Prints and reads back, constants included.
fn round_trip(graph: &Graph) -> (String, Graph) {
    let (text, weights) = text::print_with_weights(graph);
    let read = text::parse_with_weights(&text, &|name, _| weights.get(name).map(|c| (**c).clone()));
    match read {
        Ok(read) => (text, read),
        Err(error) => panic!("{error}\n{text}"),
    }
}

/// Equal bit by bit, so that NaN equals itself.
fn bits(tensor: &Tensor) -> Vec<u64> {
    match &tensor.data {
        Data::F32(x) => x.iter().map(|x| u64::from(x.to_bits())).collect(),
        Data::F64(x) => x.iter().map(|x| x.to_bits()).collect(),
        Data::Int(x) => x.iter().map(|&x| x as u64).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_undoes_printing(seed: u64, n_nodes in 0usize..40) {
        let graph = random_graph(seed, n_nodes);
        let (text, read) = round_trip(&graph);
        prop_assert!(read == graph, "{}", text);
    }

    #[test]
    fn printing_is_canonical(seed: u64, n_nodes in 0usize..40) {
        let (text, read) = round_trip(&random_graph(seed, n_nodes));
        prop_assert_eq!(text::print(&read), text);
    }

    #[test]
    fn running_does_not_depend_on_storage(seed: u64, n_nodes in 0usize..40) {
        let graph = random_graph(seed, n_nodes);
        let (text, read) = round_trip(&graph);
        let inputs = random_inputs(&graph, seed);
        let outputs = |graph| Interpreter::new(graph).and_then(|interpreter| interpreter.run(&inputs));
        match (outputs(&graph), outputs(&read)) {
            (Ok(a), Ok(b)) => {
                prop_assert_eq!(a.len(), b.len());
                for ((name, a), b) in a.iter().zip(b.values()) {
                    prop_assert!(a.check().is_ok(), "{name}\n{text}");
                    prop_assert_eq!(bits(a), bits(b), "{}\n{}", name, text);
                }
            }
            (Err(a), Err(b)) => prop_assert_eq!(a.to_string(), b.to_string()),
            (a, b) => prop_assert!(false, "{:?}\n{:?}\n{}", a, b, text),
        }
    }
}

#[test]
fn random_graphs_are_well_formed_and_cover_every_operation() {
    let mut seen = std::collections::BTreeMap::new();
    let mut n_runs = 0;
    for seed in 0..800 {
        let graph = random_graph(seed, 40);
        if let Err(error) = verify(&graph) {
            panic!("{error}\n{}", text::print(&graph));
        }
        n_runs += usize::from(qail_ir::interp::run(&graph, &random_inputs(&graph, seed)).is_ok());
        for id in graph.topo() {
            *seen.entry(graph.node(id).op.name()).or_insert(0) += 1;
            if let Op::Linear(linear) = &graph.node(id).op {
                *seen.entry(linear.act.map_or("no act", |f| f.name())).or_insert(0) += 1;
            }
        }
    }
    let rare: Vec<_> = seen.iter().filter(|(_, n)| **n < 10).collect();
    assert!(rare.is_empty(), "{rare:?}");
    // Input, constant, 39 unary, 9 binary, 6 comparisons, 5 reductions and 27 others, 6 gradients, and `no act`.
    assert_eq!(seen.len(), 97, "{seen:?}");
    assert!(n_runs > 150, "{n_runs} of 800 graphs ran");
}
