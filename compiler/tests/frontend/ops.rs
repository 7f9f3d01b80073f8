//! Each operator in each of its forms: what it becomes, and what it computes.
//! Inputs count up: `x[1, 4]` is -2, -1, 0, 1.

use qailc::frontend::proto::{AttributeProto, TensorProto, ValueInfoProto, data_type};

use crate::models::Tiny;

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto::int(name, i)
}

fn ints(name: &str, list: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, list)
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto::float(name, f)
}

/// `x` of shape `dims` under one operator.
fn one(opset: i64, dims: &[i64], op: &str, attributes: Vec<AttributeProto>) -> Tiny {
    Tiny::new(opset, dims).node(op, "x", "y", attributes)
}

#[test]
fn gemm_becomes_linear_with_everything_folded() {
    let gemm = Tiny::new(13, &[1, 2])
        .f32("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .f32("b", &[3], &[1.0, 2.0, 3.0])
        .node("Gemm", "x w b", "y", vec![int("transB", 1), float("alpha", 2.0), float("beta", 0.5)]);
    insta::assert_snapshot!(gemm.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %y.weight = const [2.0, 6.0, 10.0, 4.0, 8.0, 12.0] : f32[2, 3] @ "w"
      %y.bias = const [0.5, 1.0, 1.5] : f32[3] @ "Gemm_0"
      %y = linear %x, %y.weight, %y.bias : f32[1, 3] @ "Gemm_0"
    }
    "#);
    assert_eq!(gemm.run("y"), [-1.5, -5.0, -8.5]);
}

#[test]
fn gemm_without_a_bias_gets_zeros() {
    let gemm = Tiny::new(13, &[1, 2]).f32("w", &[2, 1], &[1.0, 2.0]).node("Gemm", "x w", "y", vec![]);
    insta::assert_snapshot!(gemm.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %w = const [1.0, 2.0] : f32[2, 1] @ "w"
      %y.bias = const splat(0.0) : f32[1] @ "Gemm_0"
      %y = linear %x, %w, %y.bias : f32[1, 1] @ "Gemm_0"
    }
    "#);
}

#[test]
fn gemm_transposes_a_computed_operand() {
    let gemm = Tiny::new(13, &[2, 3]).f32("w", &[2, 1], &[1.0, 10.0]).node("Gemm", "x w", "y", vec![int("transA", 1)]);
    insta::assert_snapshot!(gemm.qir(), @r#"
    graph @tiny(%x: f32[2, 3]) -> (%y) {
      %y.rows = transpose %x {perm = [1, 0]} : f32[3, 2] @ "Gemm_0"
      %w = const [1.0, 10.0] : f32[2, 1] @ "w"
      %y.bias = const splat(0.0) : f32[1] @ "Gemm_0"
      %y = linear %y.rows, %w, %y.bias : f32[3, 1] @ "Gemm_0"
    }
    "#);
    assert_eq!(gemm.run("y"), [-3.0, 8.0, 19.0]);
}

#[test]
fn gemm_keeps_a_bias_that_differs_by_row() {
    let gemm = Tiny::new(13, &[2, 1]).f32("w", &[1, 2], &[1.0, 2.0]).f32("c", &[2, 1], &[10.0, 20.0]).node(
        "Gemm",
        "x w c",
        "y",
        vec![],
    );
    insta::assert_snapshot!(gemm.qir(), @r#"
    graph @tiny(%x: f32[2, 1]) -> (%y) {batch = 0} {
      %w = const [1.0, 2.0] : f32[1, 2] @ "w"
      %y.bias = const splat(0.0) : f32[2] @ "Gemm_0"
      %y.product = linear %x, %w, %y.bias : f32[2, 2] @ "Gemm_0"
      %c = const [10.0, 20.0] : f32[2, 1] @ "c"
      %y = add %y.product, %c : f32[2, 2] @ "Gemm_0"
    }
    "#);
    assert_eq!(gemm.run("y"), [9.0, 8.0, 20.0, 20.0]);
}

#[test]
fn gemm_of_two_computed_values_is_a_product() {
    let gemm = Tiny::new(13, &[2, 2]).node("Gemm", "x x x", "y", vec![int("transB", 1), float("alpha", 0.5)]);
    insta::assert_snapshot!(gemm.qir(), @r#"
    graph @tiny(%x: f32[2, 2]) -> (%y) {batch = 0} {
      %y.columns = transpose %x {perm = [1, 0]} : f32[2, 2] @ "Gemm_0"
      %y.product = matmul %x, %y.columns : f32[2, 2] @ "Gemm_0"
      %y.factor = const [0.5] : f32[] @ "Gemm_0"
      %y.scaled = mul %y.product, %y.factor : f32[2, 2] @ "Gemm_0"
      %y = add %y.scaled, %x : f32[2, 2] @ "Gemm_0"
    }
    "#);
    assert_eq!(gemm.run("y"), [0.5, -1.5, -0.5, 1.5]);
}

#[test]
fn a_weight_that_is_read_twice_stays_one_constant() {
    let twice = Tiny::new(13, &[1, 2])
        .f32("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])
        .node("Gemm", "x w", "h", vec![int("transB", 1)])
        .node("Gemm", "h w", "y", vec![int("transB", 1)]);
    assert_eq!(twice.qir().matches("%w ").count(), 1);
}

#[test]
fn matmul_takes_leading_axes_as_rows() {
    let matmul = Tiny::new(13, &[2, 1, 2]).f32("w", &[2, 3], &[1.0; 6]).node("MatMul", "x w", "y", vec![]);
    insta::assert_snapshot!(matmul.qir(), @r#"
    graph @tiny(%x: f32[2, 1, 2]) -> (%y) {batch = 0} {
      %w = const [1.0, 1.0, 1.0, 1.0, 1.0, 1.0] : f32[2, 3] @ "w"
      %y.bias = const splat(0.0) : f32[3] @ "MatMul_0"
      %y = linear %x, %w, %y.bias : f32[2, 1, 3] @ "MatMul_0"
    }
    "#);
}

#[test]
fn matmul_and_add_become_one_linear() {
    let linear = |b: &[i64]| {
        Tiny::new(13, &[1, 2])
            .f32("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])
            .f32("b", b, &[0.5, 0.25])
            .node("MatMul", "x w", "h", vec![])
            .node("Add", "b h", "y", vec![])
    };
    insta::assert_snapshot!(linear(&[2]).qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %w = const [1.0, 2.0, 3.0, 4.0] : f32[2, 2] @ "w"
      %b = const [0.5, 0.25] : f32[2] @ "b"
      %y = linear %x, %w, %b : f32[1, 2] @ "Add_1", "MatMul_0"
    }
    "#);
    assert_eq!(linear(&[2]).run("y"), [-0.5, -1.75]);
    assert_eq!(linear(&[1, 2]).run("y"), [-0.5, -1.75]);
}

#[test]
fn a_product_with_two_readers_keeps_its_add() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])
        .f32("b", &[2], &[0.5, 0.25])
        .node("MatMul", "x w", "h", vec![])
        .node("Add", "h b", "s", vec![])
        .node("Mul", "h s", "y", vec![]);
    assert!(tiny.qir().contains("add"));
}

#[test]
fn vectors_in_a_product_lose_their_axis() {
    let left =
        Tiny::new(13, &[2]).f32("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).node("MatMul", "x w", "y", vec![]);
    assert_eq!(left.run("y"), [-1.0, -2.0, -3.0]);
    let right = Tiny::new(13, &[2, 2]).f32("w", &[2], &[1.0, 10.0]).node("MatMul", "x w", "y", vec![]);
    insta::assert_snapshot!(right.qir(), @r#"
    graph @tiny(%x: f32[2, 2]) -> (%y) {
      %y.columns = const [1.0, 10.0] : f32[2, 1] @ "MatMul_0"
      %y.bias = const splat(0.0) : f32[1] @ "MatMul_0"
      %y.product = linear %x, %y.columns, %y.bias : f32[2, 1] @ "MatMul_0"
      %y = reshape %y.product : f32[2] @ "MatMul_0"
    }
    "#);
    assert_eq!(right.run("y"), [-12.0, 10.0]);
    let both = Tiny::new(13, &[2]).node("MatMul", "x x", "y", vec![]);
    insta::assert_snapshot!(both.qir(), @r#"
    graph @tiny(%x: f32[2]) -> (%y) {
      %y.columns = reshape %x : f32[2, 1] @ "MatMul_0"
      %y.rows = reshape %x : f32[1, 2] @ "MatMul_0"
      %y.product = matmul %y.rows, %y.columns : f32[1, 1] @ "MatMul_0"
      %y = reshape %y.product : f32[] @ "MatMul_0"
    }
    "#);
    assert_eq!(both.run("y"), [1.0]);
    let first = Tiny::new(13, &[2, 2]).f32("w", &[2], &[1.0, 10.0]).node("MatMul", "w x", "y", vec![]);
    assert_eq!(first.run("y"), [-2.0, 9.0]);
}

#[test]
fn arithmetic_broadcasts() {
    for (op, expected) in [
        ("Add", [0.0, 1.0, 2.0, 3.0]),
        ("Sub", [-4.0, -3.0, -2.0, -1.0]),
        ("Mul", [-4.0, -2.0, 0.0, 2.0]),
        ("Div", [-1.0, -0.5, 0.0, 0.5]),
        ("Pow", [4.0, 1.0, 0.0, 1.0]),
        ("Min", [-2.0, -1.0, 0.0, 1.0]),
        ("Max", [2.0, 2.0, 2.0, 2.0]),
        ("Sum", [0.0, 1.0, 2.0, 3.0]),
    ] {
        let tiny = Tiny::new(13, &[1, 4]).f32("two", &[], &[2.0]).node(op, "x two", "y", vec![]);
        assert_eq!(tiny.run("y"), expected, "{op}");
    }
    let pow = Tiny::new(13, &[1, 4]).i64("two", &[2]).node("Pow", "x two", "y", vec![]);
    insta::assert_snapshot!(pow.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %y.exponent = const [2.0] : f32[1] @ "Pow_0"
      %y = pow %x, %y.exponent : f32[1, 4] @ "Pow_0"
    }
    "#);
    let max = Tiny::new(13, &[1, 4]).f32("z", &[], &[0.0]).f32("h", &[], &[0.5]).node("Max", "x z h", "y", vec![]);
    insta::assert_snapshot!(max.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %z = const [0.0] : f32[] @ "z"
      %y.2 = max %x, %z : f32[1, 4] @ "Max_0"
      %h = const [0.5] : f32[] @ "h"
      %y = max %y.2, %h : f32[1, 4] @ "Max_0"
    }
    "#);
}

#[test]
fn functions_of_one_number() {
    for (op, expected) in [
        ("Relu", 2.0),
        ("Tanh", 2f64.tanh()),
        ("Sigmoid", 1.0 / (1.0 + (-2f64).exp())),
        ("Abs", 2.0),
        ("Neg", -2.0),
        ("Exp", 2f64.exp()),
        ("Log", 2f64.ln()),
        ("Sqrt", 2f64.sqrt()),
        ("Reciprocal", 0.5),
    ] {
        let tiny =
            Tiny::new(13, &[1, 1]).f32("two", &[], &[2.0]).node("Add", "x two", "h", vec![]).node(op, "h", "y", vec![]);
        assert!((tiny.run("y")[0] - expected).abs() < 1e-6, "{op}");
    }
    assert_eq!(one(13, &[1, 4], "LeakyRelu", vec![float("alpha", 0.5)]).run("y"), [-1.0, -0.5, 0.0, 1.0]);
    assert!(one(13, &[1, 4], "LeakyRelu", vec![]).qir().contains("0.01"));
    assert!(one(13, &[1, 4], "Elu", vec![]).run("y")[0] < -0.86);
}

#[test]
fn clip_takes_bounds_as_attributes_and_as_operands() {
    let attributes = one(9, &[1, 4], "Clip", vec![float("min", -1.0), float("max", 0.5)]);
    insta::assert_snapshot!(attributes.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %y = clip %x {min = -1.0, max = 0.5} : f32[1, 4] @ "Clip_0"
    }
    "#);
    let operands =
        Tiny::new(11, &[1, 4]).f32("lo", &[], &[-1.0]).f32("hi", &[], &[0.5]).node("Clip", "x lo hi", "y", vec![]);
    assert_eq!(operands.qir(), attributes.qir());
    assert_eq!(operands.run("y"), [-1.0, -1.0, 0.0, 0.5]);
    let upper = Tiny::new(11, &[1, 4]).f32("hi", &[], &[0.5]).node("Clip", "x _ hi", "y", vec![]);
    insta::assert_snapshot!(upper.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %y = clip %x {min = -inf, max = 0.5} : f32[1, 4] @ "Clip_0"
    }
    "#);
    let computed = Tiny::new(13, &[1, 4]).node("ReduceMax", "x", "hi", vec![int("keepdims", 0)]).node(
        "Clip",
        "x _ hi",
        "y",
        vec![],
    );
    insta::assert_snapshot!(computed.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %hi = reduce_max %x {axes = [0, 1]} : f32[] @ "ReduceMax_0"
      %y = min %x, %hi : f32[1, 4] @ "Clip_1"
    }
    "#);
}

#[test]
fn split_becomes_slices_in_each_of_its_forms() {
    let attribute = one(9, &[1, 4], "Split", vec![int("axis", 1), ints("split", &[1, 3])]);
    let attribute = Tiny { model: attribute.model }.output("z");
    let mut forms = vec![(attribute, "z")];
    forms[0].0.graph().node[0].output = vec!["y".to_owned(), "z".to_owned()];
    insta::assert_snapshot!(forms[0].0.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y, %z) {batch = 0} {
      %y = slice %x {start = [0, 0], len = [1, 1]} : f32[1, 1] @ "Split_0"
      %z = slice %x {start = [0, 1], len = [1, 3]} : f32[1, 3] @ "Split_0"
    }
    "#);
    let operand = Tiny::new(13, &[1, 4]).i64("sizes", &[1, 3]).node("Split", "x sizes", "y z", vec![int("axis", -1)]);
    forms.push((operand.output("z"), "z"));
    for (tiny, output) in forms {
        assert_eq!(tiny.run("y"), [-2.0]);
        assert_eq!(tiny.run(output), [-1.0, 0.0, 1.0]);
    }
    let halves = Tiny::new(13, &[1, 4]).node("Split", "x", "y z", vec![int("axis", 1)]).output("z");
    assert_eq!(halves.run("z"), [0.0, 1.0]);
    let uneven =
        Tiny::new(18, &[1, 5]).node("Split", "x", "y z", vec![int("axis", 1), int("num_outputs", 2)]).output("z");
    assert_eq!(uneven.run("y"), [-2.0, -1.0, 0.0]);
    assert_eq!(uneven.run("z"), [1.0, 2.0]);
}

#[test]
fn an_empty_part_of_a_split_can_be_joined_again_but_not_be_an_output() {
    let rotary = Tiny::new(13, &[1, 4])
        .i64("sizes", &[4, 0])
        .node("Split", "x sizes", "turned rest", vec![int("axis", -1)])
        .node("Neg", "turned", "negative", vec![])
        .node("Concat", "negative rest", "y", vec![int("axis", -1)]);
    assert_eq!(rotary.run("y"), [2.0, 1.0, 0.0, -1.0]);
    insta::assert_snapshot!(rotary.output("rest").error(), @r"
    the model needs what is not supported
      output `rest`: it has no elements; name other outputs with --output
    ");
}

#[test]
fn slice_counts_from_both_ends_and_backwards() {
    let attributes =
        one(9, &[1, 4], "Slice", vec![ints("starts", &[1]), ints("ends", &[i64::MAX]), ints("axes", &[1])]);
    assert_eq!(attributes.run("y"), [-1.0, 0.0, 1.0]);
    let operands = Tiny::new(13, &[1, 4])
        .i64("starts", &[-1])
        .i64("ends", &[i64::MIN])
        .i64("axes", &[1])
        .i64("steps", &[-2])
        .node("Slice", "x starts ends axes steps", "y", vec![]);
    insta::assert_snapshot!(operands.qir(), @r#"
    graph @tiny(%x: f32[1, 4]) -> (%y) {batch = 0} {
      %y = slice %x {start = [0, 3], len = [1, 2], step = [1, -2]} : f32[1, 2] @ "Slice_0"
    }
    "#);
    assert_eq!(operands.run("y"), [1.0, -1.0]);
    let no_axes = Tiny::new(13, &[3, 2]).i64("s", &[1]).i64("e", &[2]).node("Slice", "x s e", "y", vec![]);
    assert_eq!(no_axes.run("y"), [-1.0, 0.0]);
}

#[test]
fn gather_of_a_computed_value_becomes_slices() {
    let index = TensorProto::i64("i", [], &[-1]);
    let scalar = Tiny::new(13, &[3, 2]).tensor(index).node("Gather", "x i", "y", vec![]);
    insta::assert_snapshot!(scalar.qir(), @r#"
    graph @tiny(%x: f32[3, 2]) -> (%y) {
      %y.part0 = slice %x {start = [2, 0], len = [1, 2]} : f32[1, 2] @ "Gather_0"
      %y = reshape %y.part0 : f32[2] @ "Gather_0"
    }
    "#);
    assert_eq!(scalar.run("y"), [1.0, 2.0]);
    let list = Tiny::new(13, &[1, 6]).i64("i", &[0, 2, 4, 1]).node("Gather", "x i", "y", vec![int("axis", 1)]);
    insta::assert_snapshot!(list.qir(), @r#"
    graph @tiny(%x: f32[1, 6]) -> (%y) {batch = 0} {
      %y.part0 = slice %x {start = [0, 0], len = [1, 3], step = [1, 2]} : f32[1, 3] @ "Gather_0"
      %y.part1 = slice %x {start = [0, 1], len = [1, 1]} : f32[1, 1] @ "Gather_0"
      %y = concat %y.part0, %y.part1 {axis = 1} : f32[1, 4] @ "Gather_0"
    }
    "#);
    assert_eq!(list.run("y"), [-3.0, -1.0, 1.0, -2.0]);
}

#[test]
fn gather_of_a_constant_is_a_constant() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("table", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .i64("i", &[2])
        .node("Gather", "table i", "row", vec![])
        .node("Add", "x row", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %row = const [5.0, 6.0] : f32[1, 2] @ "Gather_0"
      %y = add %x, %row : f32[1, 2] @ "Add_1"
    }
    "#);
}

#[test]
fn concat_joins_along_an_axis() {
    let tiny = Tiny::new(13, &[1, 2]).f32("c", &[1, 1], &[9.0]).node("Concat", "x c x", "y", vec![int("axis", -1)]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %c = const [9.0] : f32[1, 1] @ "c"
      %y = concat %x, %c, %x {axis = 1} : f32[1, 5] @ "Concat_0"
    }
    "#);
    assert_eq!(tiny.run("y"), [-1.0, 0.0, 9.0, -1.0, 0.0]);
}

#[test]
fn reshape_copies_and_infers_extents() {
    let shape = |opset, list: &[i64]| Tiny::new(opset, &[1, 6]).i64("s", list).node("Reshape", "x s", "y", vec![]);
    insta::assert_snapshot!(shape(13, &[0, 2, -1]).qir(), @r#"
    graph @tiny(%x: f32[1, 6]) -> (%y) {batch = 0} {
      %y = reshape %x : f32[1, 2, 3] @ "Reshape_0"
    }
    "#);
    insta::assert_snapshot!(shape(13, &[0, 4, -1]).error(), @r"
    the model is invalid
      node `Reshape_0` (Reshape): [1, 6] does not fit [0, 4, -1]
    ");
    insta::assert_snapshot!(shape(13, &[-1, -1]).error(), @r"
    the model is invalid
      node `Reshape_0` (Reshape): its new shape is [-1, -1]
    ");
    let mut zeros = shape(14, &[0, 6]);
    zeros.graph().node[0].attribute = vec![int("allowzero", 1)];
    insta::assert_snapshot!(zeros.error(), @r"
    the model needs what is not supported
      Reshape `Reshape_0`: its new shape has no elements; export the model with extents of at least 1
    ");
}

#[test]
fn shapes_are_known_and_their_arithmetic_is_folded() {
    // The legacy exporter flattens this way.
    let tiny = Tiny::new(13, &[2, 3, 4])
        .node("Shape", "x", "shape", vec![])
        .i64("zero", &[0])
        .i64("minus_one", &[-1])
        .node("Gather", "shape zero", "n", vec![])
        .node("Mul", "n minus_one", "minus_n", vec![])
        .node("Div", "minus_n n", "rest", vec![])
        .node("Concat", "n rest", "new", vec![int("axis", 0)])
        .node("Reshape", "x new", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[2, 3, 4]) -> (%y) {batch = 0} {
      %y = reshape %x : f32[2, 12] @ "Reshape_5"
    }
    "#);
}

#[test]
fn a_legacy_expand_is_folded_with_the_help_of_tract() {
    // Equal and Where are no operations of the graph.
    let tiny = Tiny::new(13, &[1, 3])
        .i64("asked", &[2, -1])
        .i64("minus_one", &[-1])
        .i64("two", &[2])
        .node("ConstantOfShape", "two", "ones", vec![AttributeProto::tensor("value", TensorProto::i64("", [1], &[1]))])
        .node("Equal", "asked minus_one", "open", vec![])
        .node("Where", "open ones asked", "shape", vec![])
        .node("Expand", "x shape", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 3]) -> (%y) {
      %y = expand %x : f32[2, 3] @ "Expand_3"
    }
    "#);
}

#[test]
fn axes_come_and_go() {
    for opset in [9, 13] {
        let attributes = |axes: &[i64]| if opset < 13 { vec![ints("axes", axes)] } else { vec![] };
        let inputs = if opset < 13 { "x" } else { "x axes" };
        let squeeze = Tiny::new(opset, &[1, 3, 1]).i64("axes", &[-1]).node("Squeeze", inputs, "y", attributes(&[-1]));
        assert!(squeeze.qir().contains("reshape %x : f32[1, 3]"), "{}", squeeze.qir());
        let unsqueeze =
            Tiny::new(opset, &[2, 3]).i64("axes", &[0, 3]).node("Unsqueeze", inputs, "y", attributes(&[0, 3]));
        assert!(unsqueeze.qir().contains("f32[1, 2, 3, 1]"), "{}", unsqueeze.qir());
    }
    assert!(one(13, &[1, 3, 1], "Squeeze", vec![]).qir().contains("f32[3]"));
    assert!(one(13, &[2, 3, 4], "Flatten", vec![]).qir().contains("f32[2, 12]"));
    assert!(one(13, &[2, 3, 4], "Flatten", vec![int("axis", 3)]).qir().contains("f32[24, 1]"));
    assert!(one(13, &[2, 3, 4], "Transpose", vec![]).qir().contains("f32[4, 3, 2]"));
    assert!(one(13, &[2, 3, 4], "Transpose", vec![ints("perm", &[0, 2, 1])]).qir().contains("f32[2, 4, 3]"));
    insta::assert_snapshot!(one(13, &[2, 3], "Transpose", vec![ints("perm", &[0, 0])]).error(), @r"
    the model is invalid
      node `Transpose_0` (Transpose): axes [0, 0] of a tensor of rank 2 repeat
    ");
    insta::assert_snapshot!(one(13, &[2, 3], "Transpose", vec![ints("perm", &[1])]).error(), @r"
    the model is invalid
      node `Transpose_0` (Transpose): its permutation [1] leaves out axes of f32[2, 3]
    ");
}

#[test]
fn identity_and_dropout_leave_nothing_behind() {
    let tiny = Tiny::new(13, &[1, 2]).node("Identity", "x", "a", vec![]).node("Dropout", "a", "b", vec![]).node(
        "Relu",
        "b",
        "y",
        vec![],
    );
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %y = relu %x : f32[1, 2] @ "Relu_2"
    }
    "#);
}

#[test]
fn constants_come_in_all_forms() {
    let value = AttributeProto::tensor("value", TensorProto::f32("", [2], &[1.0, 2.0]));
    let floats = AttributeProto::floats("value_floats", [1.0, 2.0]);
    for attribute in [value, floats] {
        let tiny = Tiny::new(13, &[1, 2]).node("Constant", "", "c", vec![attribute]).node("Add", "x c", "y", vec![]);
        assert_eq!(tiny.run("y"), [0.0, 2.0]);
    }
    let tiny = Tiny::new(13, &[1, 2]).node("Constant", "", "c", vec![float("value_float", 3.0)]).node(
        "Add",
        "x c",
        "y",
        vec![],
    );
    assert_eq!(tiny.run("y"), [2.0, 3.0]);
    for attribute in [int("value_int", 2), ints("value_ints", &[1, 2])] {
        let tiny = Tiny::new(13, &[1, 2])
            .node("Constant", "", "c", vec![attribute])
            .node("Cast", "c", "f", vec![int("to", 1)])
            .node("Mul", "x f", "y", vec![]);
        assert_eq!(tiny.run("y")[1], 0.0);
    }
    let text = Tiny::new(13, &[1, 2]).node("Constant", "", "y", vec![AttributeProto::string("value_string", "hello")]);
    insta::assert_snapshot!(text.error(), @r"
    the model needs what is not supported
      Constant `Constant_0`: constants that are sparse or text are not supported; export dense constants of numbers
    ");
}

#[test]
fn expand_broadcasts_in_both_directions() {
    let tiny = Tiny::new(13, &[1, 3]).i64("shape", &[2, 1, 1]).node("Expand", "x shape", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 3]) -> (%y) {
      %y = expand %x : f32[2, 1, 3] @ "Expand_0"
    }
    "#);
    assert_eq!(tiny.run("y"), [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]);
}

#[test]
fn reductions_take_axes_as_attributes_and_as_operands() {
    let attribute = one(11, &[2, 2], "ReduceSum", vec![ints("axes", &[-1]), int("keepdims", 0)]);
    assert_eq!(attribute.run("y"), [-3.0, 1.0]);
    let operand = Tiny::new(13, &[2, 2]).i64("axes", &[0]).node("ReduceSum", "x axes", "y", vec![]);
    insta::assert_snapshot!(operand.qir(), @r#"
    graph @tiny(%x: f32[2, 2]) -> (%y) {
      %y = reduce_sum %x {axes = [0], keep_dims} : f32[1, 2] @ "ReduceSum_0"
    }
    "#);
    assert_eq!(operand.run("y"), [-2.0, 0.0]);
    assert_eq!(one(17, &[2, 2], "ReduceMean", vec![ints("axes", &[0])]).run("y"), [-1.0, 0.0]);
    assert_eq!(one(18, &[2, 2], "ReduceMax", vec![]).run("y"), [1.0]);
    assert_eq!(one(18, &[2, 2], "ReduceMin", vec![]).run("y"), [-2.0]);
    let nothing = one(13, &[2, 2], "ReduceSum", vec![int("noop_with_empty_axes", 1)]);
    assert!(!nothing.qir().contains("reduce"));
    // Before opset 18 the axes of a mean are an attribute.
    insta::assert_snapshot!(
        Tiny::new(17, &[2, 2]).i64("axes", &[0]).node("ReduceMean", "x axes", "y", vec![]).error(),
        @r"
    the model needs what is not supported
      ReduceMean `ReduceMean_0`: its operand 1 is not supported; export with another opset or another exporter
    "
    );
}

#[test]
fn images_and_commands_are_cast() {
    let mut tiny = Tiny::new(13, &[1, 2]).node("Cast", "x", "y", vec![int("to", 1)]);
    tiny.graph().input = vec![ValueInfoProto::tensor("x", data_type::UINT8, &[1, 2])];
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: u8[1, 2]) -> (%y) {batch = 0} {
      %y = cast %x : f32[1, 2] @ "Cast_0"
    }
    "#);
    assert_eq!(tiny.run("y"), [0.0, 1.0]);
    tiny.graph().input = vec![ValueInfoProto::tensor("x", data_type::INT64, &[1, 2])];
    assert_eq!(tiny.run("y"), [0.0, 1.0]);
    tiny.graph().node[0].attribute = vec![int("to", 3)];
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      Cast `Cast_0`: casts to int8 are not supported; keep computed values float32
    ");
}

#[test]
fn other_float_types_become_f32_with_a_note() {
    let half = TensorProto::raw("c", data_type::FLOAT16, [2], vec![0x00, 0x3c, 0x00, 0xc0]);
    let bfloat = TensorProto::raw("c", data_type::BFLOAT16, [2], vec![0x80, 0x3f, 0x00, 0xc0]);
    let double = TensorProto::f64("c", [2], &[1.0, -2.0]);
    let mut bits = TensorProto { raw_data: None, ..half.clone() };
    bits.int32_data = vec![0x3c00, 0xc000];
    for tensor in [half, bfloat, double, bits] {
        let tiny = Tiny::new(13, &[1, 2]).tensor(tensor).node("Add", "x c", "y", vec![]);
        assert_eq!(tiny.run("y"), [0.0, -2.0]);
        assert_eq!(tiny.import().unwrap().notes.len(), 1);
    }
}

#[test]
fn constant_expressions_are_folded_by_the_interpreter() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("w", &[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        .node("Transpose", "w", "t", vec![])
        .node("Split", "t", "a b", vec![])
        .node("Transpose", "b", "bt", vec![])
        .node("Exp", "bt", "unused", vec![])
        .node("MatMul", "x bt", "y", vec![]);
    insta::assert_snapshot!(tiny.qir(), @r#"
    graph @tiny(%x: f32[1, 2]) -> (%y) {batch = 0} {
      %bt = const [3.0, 4.0, 7.0, 8.0] : f32[2, 2] @ "Transpose_2"
      %y.bias = const splat(0.0) : f32[2] @ "MatMul_4"
      %y = linear %x, %bt, %y.bias : f32[1, 2] @ "MatMul_4"
    }
    "#);
}

#[test]
fn an_attribute_that_nobody_knows_is_refused() {
    insta::assert_snapshot!(one(13, &[1, 2], "Relu", vec![float("slope", 0.1)]).error(), @r"
    the model needs what is not supported
      Relu `Relu_0`: its attribute `slope` is not supported; export with another opset or another exporter
    ");
    let mut wrong = one(13, &[1, 2], "Elu", vec![int("alpha", 1)]);
    insta::assert_snapshot!(wrong.error(), @r"
    the model is invalid
      node `Elu_0` (Elu): attribute `alpha` has type 2, not 1
    ");
    wrong.graph().node[0].input.push("x".to_owned());
    wrong.graph().node[0].attribute.clear();
    insta::assert_snapshot!(wrong.error(), @r"
    the model needs what is not supported
      Elu `Elu_0`: its operand 1 is not supported; export with another opset or another exporter
    ");
}

#[test]
fn a_shape_that_depends_on_data_is_refused() {
    let mut tiny = Tiny::new(13, &[1, 2]).node("Reshape", "x s", "y", vec![]);
    tiny.graph().input.push(ValueInfoProto::tensor("s", data_type::INT64, &[2]));
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      Reshape `Reshape_0`: its new shape is computed at run time; export with fixed shapes, or simplify the model first, for example with `onnxsim`
    ");
}

#[test]
fn an_average_that_leaves_its_padding_out_is_cut_into_parts_of_equal_windows() {
    let pool = |more: Vec<AttributeProto>| {
        let window = vec![AttributeProto::ints("kernel_shape", [1, 3]), AttributeProto::ints("pads", [0, 1, 0, 1])];
        Tiny::new(13, &[1, 1, 1, 5]).node("AveragePool", "x", "y", [window, more].concat())
    };
    // Of -2, -1, 0, 1, 2.
    assert_eq!(pool(vec![]).run("y"), [-1.5, -1.0, 0.0, 1.0, 1.5]);
    let qir = pool(vec![]).qir();
    assert!(qir.contains("concat") && qir.contains("reduce_mean") && !qir.contains("= div"), "{qir}");
    let counted = pool(vec![AttributeProto::int("count_include_pad", 1)]);
    assert_eq!(counted.run("y"), [-1.0, -1.0, 0.0, 1.0, 1.0]);
    assert!(!counted.qir().contains("concat"));
}

#[test]
fn a_channel_with_a_window_of_its_own_is_a_group() {
    let conv = Tiny::new(13, &[1, 2, 1, 2])
        .f32("w", &[4, 1, 1, 2], &[1.0, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0])
        .f32("b", &[4], &[0.5, 0.0, 0.0, 0.0])
        .node("Conv", "x w b", "y", vec![AttributeProto::int("group", 2)]);
    // Channels -2, -1 and 0, 1.
    assert_eq!(conv.run("y"), [-3.5, -40.0, 4.0, 40.0]);
    assert!(conv.qir().contains("groups = 2"), "{}", conv.qir());
}
