//! The losses of each head, as nodes.

// Helpers of tests may fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use qail_ir::{Graph, TensorType, text};
use qail_train::{Distance, Head, LossSpec, Weighting, attach};

fn outputs(list: &[(&str, &[usize])]) -> Graph {
    let mut graph = Graph::new("policy");
    for (name, shape) in list {
        let input = graph.add_input(format!("{name}.in"), TensorType::f32(shape.to_vec()));
        graph.add_output(*name, input);
    }
    graph.batch_axis = Some(0);
    graph
}

fn spec(head: Head, qail: Option<Distance>, qbc: Option<(f32, Distance)>) -> LossSpec {
    LossSpec { head, qail, qbc, weighting: Weighting::None, masked: None }
}

fn action() -> Head {
    Head::Deterministic { output: "action".to_owned() }
}

#[test]
fn a_loss_is_nodes_of_the_graph() {
    let mut graph = outputs(&[("action", &[8, 2, 3])]);
    let spec = LossSpec { weighting: Weighting::Qbc, ..spec(action(), Some(Distance::L1), Some((0.5, Distance::L2))) };
    attach(&mut graph, &spec).unwrap();
    insta::assert_snapshot!(text::print(&graph));
}

#[test]
fn a_mask_is_of_the_first_term_alone() {
    let mut graph = outputs(&[("action", &[8, 5, 3])]);
    let spec = LossSpec { masked: Some(5), ..spec(action(), Some(Distance::L1), Some((0.5, Distance::L2))) };
    attach(&mut graph, &spec).unwrap();
    insta::assert_snapshot!(text::print(&graph));
    let mut graph = outputs(&[("action", &[8, 5, 3])]);
    let error = attach(&mut graph, &LossSpec { masked: Some(4), ..spec }).unwrap_err().to_string();
    assert_eq!(error, "`loss.qail` is f32[8, 5, 3], and a chunk of 4 actions is [batch, 4, A]");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_graph() {
    let refused = |spec: LossSpec| {
        let mut graph = outputs(&[("action", &[8, 3]), ("log_std", &[2])]);
        graph.outputs[1].value = graph.inputs()[1].value();
        let before = graph.clone();
        let error = attach(&mut graph, &spec).unwrap_err().to_string();
        assert!(graph == before);
        error
    };
    let huber = |delta| Some(Distance::Huber { delta });
    assert_eq!(
        refused(spec(action(), Some(Distance::Nll), None)),
        "a deterministic head has no nll as qail: choose l1, l2 or huber"
    );
    let gaussian = || Head::Gaussian { mean: "action".to_owned(), log_std: "log_std".to_owned() };
    assert_eq!(
        refused(spec(gaussian(), None, Some((1.0, Distance::Nll)))),
        "a gaussian head has no nll as qbc: choose kl, l1, l2 or huber"
    );
    assert_eq!(
        refused(spec(gaussian(), Some(Distance::Nll), None)),
        "output `log_std` is f32[2], must be of the shape of the means or one that broadcasts to it"
    );
    assert_eq!(refused(spec(action(), None, None)), "nothing to train on: choose qail, qbc or both");
    assert_eq!(refused(spec(action(), huber(0.0), None)), "delta of huber is 0, must be finite and positive");
    assert_eq!(
        refused(spec(action(), None, Some((f32::NAN, Distance::L2)))),
        "lambda is NaN, must be finite and not negative"
    );
    let missing = Head::Deterministic { output: "act".to_owned() };
    assert_eq!(
        refused(spec(missing, Some(Distance::L2), None)),
        "the policy has no output `act`; its outputs are `action` f32[8, 3], `log_std` f32[2]"
    );
}
