//! Where the standard leaves room, or one of its revisions corrects another: what ONNX Runtime
//! computes. The numbers are those of onnxruntime 1.32.0.

use std::collections::BTreeMap;

use qail_ir::{Op, interp};
use qail_train::differentiate;
use qailc::frontend::proto::{AttributeProto, TensorProto, ValueInfoProto, data_type};

use crate::models::Tiny;

fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto::string(name, text)
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto::int(name, i)
}

/// Which of `n` elements in a row the nearest ones are.
fn nearest(opset: i64, op: &str, n: i64, scale: f32, attributes: Vec<AttributeProto>) -> Vec<f64> {
    let inputs = if opset < 11 { "x scales" } else { "x _ scales" };
    let tiny = Tiny::new(opset, &[1, 1, 1, n]).f32("scales", &[4], &[1.0, 1.0, 1.0, scale]);
    let found = tiny.node(op, inputs, "y", attributes).run("y");
    found.into_iter().map(|x| x + (n / 2) as f64).collect()
}

#[test]
fn extents_and_places_of_a_fractional_scale_are_rounded_as_f32() {
    let mode = |coordinates: &str, rounding: &str| {
        vec![text("coordinate_transformation_mode", coordinates), text("nearest_mode", rounding)]
    };
    // 20 * 0.7 is just below 14 in wider numbers, and 20 * 1.4 below 28.
    assert_eq!(nearest(13, "Resize", 20, 0.6, vec![]).len(), 12);
    assert_eq!(nearest(13, "Resize", 20, 0.7, vec![]).len(), 14);
    let doubled = [0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 7, 8, 9, 10, 10, 11, 12, 12, 13, 14, 15, 15, 16, 17, 17, 18, 19];
    assert_eq!(nearest(9, "Upsample", 20, 1.4, vec![]), doubled.map(f64::from));
    let floor = nearest(13, "Resize", 10, 0.7, mode("asymmetric", "floor"));
    assert_eq!(floor, [0.0, 1.0, 2.0, 4.0, 5.0, 7.0, 8.0]);
    assert_eq!(nearest(13, "Resize", 10, 0.3, mode("asymmetric", "ceil")), [0.0, 4.0, 7.0]);
}

#[test]
fn what_f32_makes_of_a_tie_is_one() {
    let half =
        |rounding: &str| vec![text("coordinate_transformation_mode", "half_pixel"), text("nearest_mode", rounding)];
    // 4.5 / 0.3 - 0.5 is 14.499999.
    assert_eq!(nearest(13, "Resize", 20, 0.3, half("round_prefer_ceil")), [1.0, 5.0, 8.0, 11.0, 15.0, 18.0]);
    // 19.5 / 1.3 - 0.5 is 14.500001.
    assert_eq!(nearest(13, "Resize", 20, 1.3, half("round_prefer_floor"))[19], 14.0);
}

#[test]
fn the_first_resize_rounds_up_where_it_leaves_elements_out() {
    assert_eq!(nearest(10, "Resize", 10, 0.7, vec![]), [0.0, 2.0, 3.0, 5.0, 6.0, 8.0, 9.0]);
    assert_eq!(nearest(10, "Resize", 5, 1.4, vec![]), [0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0]);
}

#[test]
fn corners_stay_corners_when_a_scaled_extent_is_not_whole() {
    let corners = vec![text("mode", "linear"), text("coordinate_transformation_mode", "align_corners")];
    assert_eq!(nearest(13, "Resize", 6, 0.6, corners), [0.0, 2.5, 5.0]);
}

#[test]
fn nothing_moves_if_no_extent_changes() {
    assert_eq!(nearest(13, "Resize", 5, 1.1, vec![text("nearest_mode", "ceil")]), [0.0, 1.0, 2.0, 3.0, 4.0]);
}

/// Two queries and three keys; `inputs` are those behind the values.
fn attention(opset: i64, inputs: &str, attributes: Vec<AttributeProto>) -> Tiny {
    Tiny::new(opset, &[1, 1, 2, 2])
        .f32("k", &[1, 1, 3, 2], &[1.0, 0.0, 0.0, 2.0, -1.0, 1.0])
        .f32("v", &[1, 1, 3, 2], &[1.0, 10.0, 2.0, 20.0, 4.0, 40.0])
        .f32("bias", &[2, 3], &[0.0, -1.0, 0.5, f32::NEG_INFINITY, 1.0, 0.0])
        .tensor(TensorProto::raw("seen", data_type::BOOL, [2, 3], vec![0, 0, 0, 1, 0, 1]))
        .tensor(TensorProto::raw("later", data_type::BOOL, [2, 3], vec![0, 1, 1, 1, 0, 1]))
        .node("Attention", &format!("x k v {inputs}"), "y", attributes)
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let near = |(x, y): (&f64, &f64)| (x - y).abs() <= 1e-5 * y.abs().max(1.0);
    assert!(found.iter().zip(expected).all(near), "{found:?} for {expected:?}");
}

#[test]
fn a_soft_cap_bends_scores_before_they_are_masked() {
    let cap = || AttributeProto::float("softcap", 1.5);
    close(&attention(23, "bias", vec![cap()]).run("y"), &[3.6599874, 36.599876, 2.3813086, 23.813084]);
    close(&attention(23, "", vec![cap(), int("is_causal", 1)]).run("y"), &[1.0, 10.0, 1.7511518, 17.511518]);
}

#[test]
fn scores_of_mode_1_with_a_soft_cap_are_refused_where_they_are_needed() {
    let attributes = || vec![AttributeProto::float("softcap", 1.5), int("qk_matmul_output_mode", 1)];
    let unneeded = attention(23, "bias", attributes());
    close(&unneeded.run("y"), &[3.6599874, 36.599876, 2.3813086, 23.813084]);
    let mut needed = attention(23, "bias", attributes()).output("scores");
    needed.graph().node[0].output.extend([String::new(), String::new(), "scores".to_owned()]);
    insta::assert_snapshot!(needed.error(), @r"
    the model needs what is not supported
      Attention `Attention_0`: the scores that it hands out are of mode 1, with a soft cap; ask for another `qk_matmul_output_mode`: 0, 2 or 3
    ");
}

#[test]
fn the_last_query_stands_at_the_last_key_that_counts() {
    let expected = [[0.0, 0.0, 1.0, 10.0], [1.0, 10.0, 1.8044298, 18.044298], [1.5, 15.0, 2.4279618, 24.279618]];
    for (n, expected) in (1..).zip(expected) {
        let tiny = attention(24, "_ _ _ n", vec![int("is_causal", 1)]).i64("n", &[n]);
        close(&tiny.run("y"), &expected);
    }
    let past = attention(24, "_ k v n", vec![]).i64("n", &[2]);
    assert!(past.error().contains("one excludes the other"), "{}", past.error());
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    close(&attention(23, "seen", vec![]).run("y"), &[0.0, 0.0, 3.0092845, 30.092846]);
    let capped = attention(23, "seen", vec![AttributeProto::float("softcap", 1.5)]);
    close(&capped.run("y"), &[0.0, 0.0, 2.9771073, 29.771072]);
    close(&attention(23, "later", vec![int("is_causal", 1)]).run("y"), &[0.0, 0.0, 1.0, 10.0]);
    // Bytes 0 to 5 are given: the first key of the first query is hidden.
    let given = |dims: &[i64]| attention(23, "m", vec![]).input(ValueInfoProto::tensor("m", data_type::BOOL, dims));
    assert!(given(&[2, 3]).run("y").iter().all(|x| x.is_finite() && *x > 0.0));
    // Bytes 0 and 1: the first query sees nothing, the second one everything.
    let row = given(&[2, 1]).run("y");
    assert!(row[0] == 0.0 && row[1] == 0.0 && row[2] > 1.0, "{row:?}");
}

#[test]
fn masks_that_hide_no_query_cost_nothing() {
    for tiny in [attention(23, "", vec![int("is_causal", 1)]), attention(23, "bias", vec![])] {
        let qir = tiny.qir();
        assert!(!qir.contains("where") && !qir.contains("max"), "{qir}");
    }
}

/// Gradient of the sum of `y` by the inputs, all of them zero.
fn gradient_at_zero(tiny: Tiny) -> Vec<f64> {
    let tiny = tiny.node("ReduceSum", "y", "sum", vec![int("keepdims", 0)]).output("sum");
    let graph = tiny.import().unwrap().graph;
    let sum = graph.outputs.iter().find(|output| output.name == "sum").unwrap().value;
    let inputs: Vec<_> = graph.inputs().iter().map(|id| id.value()).collect();
    let zeros = |&value: &qail_ir::ValueId| {
        let Op::Input(_) = graph.node(value.node).op else { panic!("not an input") };
        let ty = graph.ty(value);
        (graph.node(value.node).name.clone(), interp::Tensor::f32(ty.shape.clone(), vec![0.0; ty.n_elements()]))
    };
    let given: BTreeMap<_, _> = inputs.iter().map(zeros).collect();
    let joint = differentiate(&graph, sum, &inputs).unwrap();
    interp::run(&joint.graph, &given).unwrap()["grad.x"].to_f64()
}

#[test]
fn gradients_of_a_query_that_sees_nothing_are_finite() {
    for attributes in [vec![], vec![AttributeProto::float("softcap", 1.5)]] {
        let gradient = gradient_at_zero(attention(23, "seen", attributes));
        assert!(gradient.iter().all(|x| x.is_finite()), "{gradient:?}");
        assert_eq!(gradient[..2], [0.0, 0.0]);
    }
}

#[test]
fn zeros_stay_zeros_when_they_are_divided_by_their_norm() {
    for p in [1, 2] {
        let tiny =
            |dims: &[i64]| Tiny::new(13, dims).node("LpNormalization", "x", "y", vec![int("axis", 1), int("p", p)]);
        // Rows of one element each.
        close(&tiny(&[3, 1]).run("y"), &[-1.0, 0.0, 1.0]);
        assert!(gradient_at_zero(tiny(&[2, 3])).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn top_k_has_its_number_in_an_attribute_up_to_opset_9() {
    let old = Tiny::new(9, &[1, 4]).node("TopK", "x", "y i", vec![int("k", 2)]).output("i");
    assert_eq!((old.run("y"), old.run("i")), (vec![1.0, 0.0], vec![3.0, 2.0]));
    let new = Tiny::new(10, &[1, 4]).i64("k", &[2]).node("TopK", "x k", "y i", vec![]).output("i");
    assert_eq!(old.qir(), new.qir());
    let mut without = old;
    without.graph().node[0].attribute.clear();
    assert!(without.error().contains("its number of elements is None"), "{}", without.error());
}

#[test]
fn truth_values_come_in_bytes() {
    let tiny = Tiny::new(17, &[1, 3])
        .input(ValueInfoProto::tensor("m", data_type::BOOL, &[1, 3]))
        .f32("off", &[], &[-9.0])
        .node("Where", "m x off", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 3], %m: u8[1, 3]) -> (%y) {batch = 0} {
      %m.bool = cast %m : bool[1, 3] @ "m"
      %off = const [-9.0] : f32[] @ "off"
      %y = where %m.bool, %x, %off : f32[1, 3] @ "Where_0"
    }
    "#);
    insta::assert_snapshot!(
        tiny.import().unwrap().notes.join("\n"),
        @"input `m` is bool in the model and u8 here: 0 is false, all else is true"
    );
    // Bytes 0, 1 and 2.
    assert_eq!(tiny.run("y"), [-9.0, 0.0, 1.0]);
}
