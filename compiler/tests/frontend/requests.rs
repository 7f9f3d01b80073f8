//! What the user can ask for: outputs by name, extents of dimensions.

use qailc::frontend::{
    ErrorKind, ImportError, ImportOptions, Imported, import_bytes,
    proto::{Dim, ValueInfoProto, data_type},
};

use crate::models::Tiny;

fn import(tiny: &Tiny, dims: &[(&str, usize)], outputs: &[&str]) -> Result<Imported, ImportError> {
    let options = ImportOptions {
        dims: dims.iter().map(|&(name, extent)| (name.to_owned(), extent)).collect(),
        outputs: (!outputs.is_empty()).then(|| outputs.iter().map(|&name| name.to_owned()).collect()),
    };
    import_bytes(tiny.bytes(), None, &options)
}

/// A stochastic policy: the mean, and a sample beside it.
fn stochastic() -> Tiny {
    Tiny::new(17, &[1, 2])
        .node("Tanh", "x", "mean", vec![])
        .node("RandomNormalLike", "mean", "noise", vec![])
        .node("Add", "mean noise", "y", vec![])
        .output("mean")
}

#[test]
fn a_random_branch_is_refused_and_pruned_when_the_mean_is_named() {
    let error = import(&stochastic(), &[], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    insta::assert_snapshot!(error, @r"
    the model needs what is not supported
      RandomNormalLike `RandomNormalLike_1`: random numbers are not supported; name a deterministic output with --output, the random branch then disappears
    ");
    let imported = import(&stochastic(), &[], &["mean"]).unwrap();
    assert_eq!(imported.graph.outputs.len(), 1);
    insta::assert_snapshot!(imported.notes.join("\n"), @"2 nodes do not reach the outputs and are dropped");
}

#[test]
fn an_unknown_output_names_the_known_ones() {
    let error = import(&stochastic(), &[], &["men"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    insta::assert_snapshot!(error, @"the model has no tensor `men`; its outputs are y, mean");
}

fn with_dims(dims: Vec<Dim>) -> Tiny {
    let mut tiny = Tiny::new(17, &[]).node("Relu", "x", "y", vec![]);
    tiny.graph().input = vec![ValueInfoProto::with_dims("x", data_type::FLOAT, dims)];
    tiny
}

fn named(name: &str) -> Dim {
    Dim::Param(name.to_owned())
}

#[test]
fn a_batch_is_one_unless_it_is_bound() {
    let tiny = with_dims(vec![named("batch_size"), Dim::Value(3)]);
    let imported = import(&tiny, &[], &[]).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).shape, [1, 3]);
    assert_eq!(imported.graph.batch_axis, Some(0));
    insta::assert_snapshot!(imported.notes.join("\n"), @"dimension `batch_size` of input `x` is a batch, taken as 1");
    let imported = import(&tiny, &[("batch_size", 4)], &[]).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).shape, [4, 3]);
    assert_eq!(imported.dims["batch_size"], 4);
    assert_eq!(imported.notes, [""; 0]);
}

#[test]
fn other_names_must_be_bound() {
    let tiny = with_dims(vec![named("batch"), named("horizon"), named("unk__12")]);
    insta::assert_snapshot!(import(&tiny, &[], &[]).unwrap_err(), @r"
    the model needs what is not supported
      input `x`: dimension `horizon` of axis 1 is not bound; pass --dim horizon=VALUE
      input `x`: dimension `unk__12` of axis 2 is not bound; pass --dim unk__12=VALUE
    ");
    assert!(import(&tiny, &[("horizon", 16), ("unk__12", 2)], &[]).is_ok());
    insta::assert_snapshot!(import(&tiny, &[("horizont", 16)], &[]).unwrap_err(), @"no input has a dimension `horizont`; known are batch, horizon, unk__12");
    insta::assert_snapshot!(import(&tiny, &[("horizon", 0), ("unk__12", 2)], &[]).unwrap_err(), @r"
    the model needs what is not supported
      input `x`: dimension `horizon` is bound to 0; pass --dim horizon=VALUE with a value of at least 1
    ");
}

#[test]
fn everything_that_is_not_supported_is_said_at_once() {
    let mut tiny = Tiny::new(8, &[1, 2])
        .node("Loop", "x", "a", vec![])
        .node("Bernoulli", "x", "b", vec![])
        .node("Optional", "b", "c", vec![])
        .node("Add", "a c", "d", vec![])
        .node("Fancy", "d", "y", vec![]);
    tiny.graph().node[4].domain = "com.example".to_owned();
    tiny.graph().node[1].name = "/encoder/Noise".to_owned();
    let error = tiny.import().unwrap_err();
    insta::assert_snapshot!(error, @r"
    the model needs what is not supported
      opset `ai.onnx`: version 8 is not supported; export with an opset from 9 to 25
      Loop `Loop_0`: control flow is not supported; export by tracing with fixed conditions, or unroll the loop
      Bernoulli `/encoder/Noise`: random numbers are not supported; name a deterministic output with --output, the random branch then disappears
      Optional `Optional_2`: the operator is not supported; express it with supported operators, or cut it off with --output
      Fancy `Fancy_4`: operators of the domain `com.example` are not supported; export with standard ONNX operators only
    ");
    let ImportError::Blocked { blockers, .. } = error else { panic!("{error}") };
    assert_eq!(blockers.len(), 5);
    assert!(blockers.iter().all(|blocker| !blocker.remedy.is_empty()));
}

#[test]
fn an_input_that_nobody_needs_is_dropped_with_a_note() {
    let tiny = Tiny::new(17, &[1, 2]).input(ValueInfoProto::tensor("mask", data_type::FLOAT, &[1, 5])).node(
        "Relu",
        "x",
        "y",
        vec![],
    );
    let imported = tiny.import().unwrap();
    assert_eq!(imported.graph.inputs().len(), 1);
    insta::assert_snapshot!(imported.notes.join("\n"), @"input `mask` does not reach the outputs and is dropped");
}

#[test]
fn a_wrong_declaration_of_an_output_is_noted_and_not_believed() {
    let mut tiny = Tiny::new(17, &[1, 2]).node("Relu", "x", "y", vec![]);
    tiny.graph().output = vec![ValueInfoProto::tensor("y", data_type::FLOAT, &[7, 7])];
    let imported = tiny.import().unwrap();
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).shape, [1, 2]);
    insta::assert_snapshot!(imported.notes.join("\n"), @"output `y` is declared with another shape than [1, 2]");
}

#[test]
fn what_is_not_listed_is_counted() {
    let n = 1234;
    let many = (0..n).fold(Tiny::new(17, &[1, 2]), |tiny, i| tiny.node("Bernoulli", "x", &format!("b{i}"), vec![]));
    let all: Vec<String> = (0..n).map(|i| format!("b{i}")).collect();
    let error = many.node("Sum", &all.join(" "), "y", vec![]).import().unwrap_err();
    let said = error.to_string();
    assert!(said.ends_with("\n  and 1184 more"), "{said}");
    let ImportError::Blocked { blockers, n_more } = error else { panic!("{error}") };
    assert_eq!(blockers.len() + n_more, n);
}
