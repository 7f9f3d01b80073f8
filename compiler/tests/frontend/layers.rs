//! Convolutional, recurrent and attention layers become operations that quantize like a linear layer.

use qailc::frontend::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, data_type};

use crate::models::{Tiny, node};

fn ints(name: &str, list: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, list)
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto::int(name, i)
}

fn count(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 7) as f32 - 3.0).collect()
}

#[test]
fn a_convolution_is_windows_times_a_matrix() {
    let conv = Tiny::new(17, &[1, 2, 4, 4]).f32("w", &[3, 2, 3, 3], &count(54)).f32("b", &[3], &[1.0, 2.0, 3.0]).node(
        "Conv",
        "x w b",
        "y",
        vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])],
    );
    insta::assert_snapshot!(conv.qir(), @r#"
    graph @tiny(%x: f32[1, 2, 4, 4]) -> (%y) {batch = 0} {
      %y.unfold = unfold %x {out = [1, 2, 2, 2], size = [1, 1, 3, 3], stride = [1, 1, 2, 2], pad = [0, 0, 1, 1]} : f32[1, 2, 2, 2, 3, 3] @ "Conv_0"
      %y.transpose = transpose %y.unfold {perm = [0, 2, 3, 1, 4, 5]} : f32[1, 2, 2, 2, 3, 3] @ "Conv_0"
      %y.reshape = reshape %y.transpose : f32[1, 2, 2, 18] @ "Conv_0"
      %w = const file("w") : f32[18, 3] @ "w"
      %b = const [1.0, 2.0, 3.0] : f32[3] @ "b"
      %y.linear = linear %y.reshape, %w, %b : f32[1, 2, 2, 3] @ "Conv_0"
      %y = transpose %y.linear {perm = [0, 3, 1, 2]} : f32[1, 3, 2, 2] @ "Conv_0"
    }
    "#);
    assert_eq!(conv.run("y").len(), 12);
}

#[test]
fn a_convolution_of_single_places_needs_no_windows() {
    let conv = Tiny::new(17, &[1, 2, 2, 2]).f32("w", &[1, 2, 1, 1], &[1.0, 10.0]).node("Conv", "x w", "y", vec![]);
    assert!(!conv.qir().contains("unfold"));
    // x counts from -4: channel 0 is -4, -3, -2, -1 and channel 1 is 0, 1, 2, 3.
    assert_eq!(conv.run("y"), [-4.0, 7.0, 18.0, 29.0]);
}

#[test]
fn groups_of_one_channel_are_products_and_sums() {
    let conv = Tiny::new(17, &[1, 2, 3]).f32("w", &[2, 1, 2], &[1.0, 1.0, 1.0, -1.0]).node(
        "Conv",
        "x w",
        "y",
        vec![int("group", 2)],
    );
    // Rows -3, -2, -1 and 0, 1, 2.
    assert_eq!(conv.run("y"), [-5.0, -3.0, -1.0, -1.0]);
    let several = Tiny::new(17, &[1, 4, 2]).f32("w", &[2, 2, 1], &[1.0, 1.0, 1.0, -1.0]).node(
        "Conv",
        "x w",
        "y",
        vec![int("group", 2)],
    );
    assert_eq!(several.qir().matches(" = linear ").count(), 2);
    assert_eq!(several.run("y"), [-6.0, -4.0, -2.0, -2.0]);
}

#[test]
fn a_transposed_convolution_spreads_its_operand() {
    let conv = Tiny::new(17, &[1, 1, 2]).f32("w", &[1, 1, 2], &[1.0, 10.0]).node(
        "ConvTranspose",
        "x w",
        "y",
        vec![ints("strides", &[2])],
    );
    // -1 and 0, each as itself and ten times itself.
    assert_eq!(conv.run("y"), [-1.0, -10.0, 0.0, 0.0]);
}

#[test]
fn a_pool_counts_what_lies_inside() {
    let pool = |more: Vec<AttributeProto>| {
        let mut attributes = vec![ints("kernel_shape", &[2]), ints("pads", &[1, 1]), ints("strides", &[2])];
        attributes.extend(more);
        Tiny::new(19, &[1, 1, 4]).node("AveragePool", "x", "y", attributes)
    };
    // -2, -1, 0, 1
    assert_eq!(pool(vec![]).run("y"), [-2.0, -0.5, 1.0]);
    assert_eq!(pool(vec![int("count_include_pad", 1)]).run("y"), [-1.0, -0.5, 0.5]);
}

#[test]
fn a_recurrent_layer_is_unrolled_and_its_gates_are_layers() {
    let gru = |steps: i64| {
        Tiny::new(17, &[steps, 1, 2]).f32("w", &[1, 6, 2], &count(12)).f32("r", &[1, 6, 2], &count(12)).node(
            "GRU",
            "x w r",
            "y",
            vec![int("hidden_size", 2), int("linear_before_reset", 1)],
        )
    };
    // One layer for the inputs of all steps, one for the state of each; the first state is known.
    assert_eq!(gru(3).qir().matches(" = linear").count(), 3);
    assert_eq!(gru(3).run("y").len(), 6);
    insta::assert_snapshot!(gru(1000).error(), @r"
    the model needs what is not supported
      GRU `GRU_0`: it has 1000 steps, at most 64 are unrolled; export the layer for one step, with its state as input and output
    ");
}

/// `If` with the branches `x + 1` and `x * 2`.
fn branches(condition: &str) -> Tiny {
    let branch = |name: &str, op: &str, number: f32| AttributeProto {
        g: Some(Box::new(GraphProto {
            initializer: vec![TensorProto::f32("number", [1], &[number])],
            node: vec![node(op, "h number", "result", vec![])],
            output: vec![ValueInfoProto { name: "result".to_owned(), r#type: None }],
            ..GraphProto::default()
        })),
        ..AttributeProto { name: name.to_owned(), r#type: 5, ..AttributeProto::default() }
    };
    let attributes = vec![branch("then_branch", "Add", 1.0), branch("else_branch", "Mul", 2.0)];
    let mut tiny = Tiny::new(17, &[1, 2]).node("Neg", "x", "h", vec![]);
    tiny.graph().node.push(NodeProto { attribute: attributes, ..node("If", condition, "y", vec![]) });
    tiny.tensor(TensorProto::raw("yes", data_type::BOOL, [], vec![1])).tensor(TensorProto::raw(
        "no",
        data_type::BOOL,
        [],
        vec![0],
    ))
}

#[test]
fn the_branch_of_a_known_condition_is_inlined() {
    // x is -1, 0.
    assert_eq!(branches("yes").run("y"), [2.0, 1.0]);
    assert_eq!(branches("no").run("y"), [2.0, 0.0]);
    let mut computed = branches("c");
    computed.graph().node.insert(0, node("IsNaN", "x", "c", vec![]));
    insta::assert_snapshot!(computed.error(), @r"
    the model needs what is not supported
      If `If_2`: control flow is not supported; export by tracing with fixed conditions, or unroll the loop
    ");
}

#[test]
fn attention_with_a_mask_stays_one_operation() {
    let past = |name: &str| TensorProto::f32(name, [1, 1, 2, 2], &[0.5; 4]);
    let attention = Tiny::new(23, &[1, 2, 4])
        .tensor(past("past_k"))
        .tensor(past("past_v"))
        .f32("w", &[4, 2], &count(8))
        .node("MatMul", "x w", "kv", vec![])
        .node(
            "Attention",
            "x kv kv _ past_k past_v",
            "y present",
            vec![int("q_num_heads", 2), int("kv_num_heads", 1), int("is_causal", 1)],
        );
    assert_eq!(attention.qir().matches(" = attention").count(), 1);
    assert_eq!(attention.run("y").len(), 8);
}

#[test]
fn an_index_that_is_computed_is_looked_up_at_run_time() {
    let pick = Tiny::new(17, &[1, 3])
        .f32("table", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .node("ArgMax", "x", "i", vec![int("axis", 1), int("keepdims", 0)])
        .node("Gather", "table i", "y", vec![]);
    assert_eq!(pick.run("y"), [5.0, 6.0]);
}

#[test]
fn steps_that_are_too_large_are_named_with_the_largest() {
    let conv = |attribute: &str, list: &[i64]| {
        Tiny::new(13, &[1, 1, 4, 4]).f32("w", &[1, 1, 1, 1], &[1.0]).node(
            "Conv",
            "x w",
            "y",
            vec![AttributeProto::ints(attribute, list)],
        )
    };
    insta::assert_snapshot!(conv("dilations", &[1 << 40, 1]).error(), @r"
    the model needs what is not supported
      Conv `Conv_0`: its attribute `dilations` has 1099511627776, more than 1048576; export with `dilations` of at most 1048576
    ");
    insta::assert_snapshot!(conv("pads", &[0, 0, 1 << 40, 0]).error(), @r"
    the model needs what is not supported
      Conv `Conv_0`: its attribute `pads` has 1099511627776, more than 1048576; export with `pads` of at most 1048576
    ");
    insta::assert_snapshot!(conv("pads", &[0, 0, -1, 0]).error(), @r"
    the model is invalid
      node `Conv_0` (Conv): its attribute `pads` is not 4 integers of at least 0
    ");
}

#[test]
fn an_index_beyond_the_end_is_named_with_the_extent() {
    let gather = |index| {
        Tiny::new(13, &[1, 4]).i64("i", &[index]).node("Gather", "x i", "y", vec![AttributeProto::int("axis", 1)])
    };
    insta::assert_snapshot!(gather(100).error(), @r"
    the model is invalid
      node `Gather_0` (Gather): index 100 along an axis of 4 elements
    ");
    assert!(gather(-5).error().contains("index -5 along an axis of 4 elements"));
    assert_eq!(gather(-4).run("y"), [-2.0]);
}
