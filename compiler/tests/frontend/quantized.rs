//! Models that are quantized already: what their operators become, and what is
//! refused.

use qail_ir::{ConstData, FakeQuant, Graph, NodeId, Op, QuantScheme};
use qailc::frontend::{
    ErrorKind,
    proto::{AttributeProto, OperatorSetIdProto, TensorProto, data_type},
};

use crate::models::{Tiny, node};

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto::int(name, i)
}

fn i8s(name: &str, dims: &[i64], codes: &[i8]) -> TensorProto {
    TensorProto::raw(name, data_type::INT8, dims, codes.iter().map(|&code| code as u8).collect::<Vec<_>>())
}

fn u8s(name: &str, dims: &[i64], codes: &[u8]) -> TensorProto {
    TensorProto::raw(name, data_type::UINT8, dims, codes.to_vec())
}

/// With operators of ONNX Runtime.
fn contributed(mut tiny: Tiny, op: &str, inputs: &str, outputs: &str, attributes: Vec<AttributeProto>) -> Tiny {
    tiny.model.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".to_owned(), version: 1 });
    let mut node = node(op, inputs, outputs, attributes);
    node.domain = "com.microsoft".to_owned();
    tiny.graph().node.push(node);
    tiny
}

fn graph(tiny: &Tiny) -> Graph {
    tiny.import().unwrap().graph
}

fn quantizers(graph: &Graph) -> Vec<(NodeId, FakeQuant)> {
    let fake = |id: NodeId| match &graph.node(id).op {
        Op::FakeQuant(fake) => Some((id, fake.clone())),
        _ => None,
    };
    graph.topo().into_iter().filter_map(fake).collect()
}

/// The codes that the quantizer of the only weight gives, and their scheme.
fn weight_codes(graph: &Graph) -> (QuantScheme, Option<usize>, Vec<i64>) {
    let (id, fake) = quantizers(graph).into_iter().find(|(_, fake)| fake.axis == Some(1)).unwrap();
    let [w, s] = graph.operands(id)[..] else { panic!("a weight has no zero point") };
    let (shape, w) = (graph.ty(w).shape.clone(), graph.const_of(w).unwrap().all().unwrap());
    let s = graph.const_of(s).unwrap().all().unwrap();
    let n = shape[1];
    let group = fake.group.unwrap_or(shape[0]);
    let code = |(i, w): (usize, &f64)| (w / s[i / n / group * n + i % n]).round_ties_even() as i64;
    (fake.scheme, fake.group, w.iter().enumerate().map(code).collect())
}

/// `x -> Q -> DQ -> MatMul(DQ(w)) -> y`.
fn qdq(weights: TensorProto, scales: &[f32], zeros: Option<TensorProto>, attributes: Vec<AttributeProto>) -> Tiny {
    let tiny = Tiny::new(21, &[1, 2])
        .f32("xs", &[], &[0.5])
        .tensor(i8s("xz", &[], &[3]))
        .tensor(weights)
        .f32("ws", &if scales.len() == 1 { vec![] } else { vec![scales.len() as i64] }, scales)
        .node("QuantizeLinear", "x xs xz", "xq", vec![])
        .node("DequantizeLinear", "xq xs xz", "xd", vec![]);
    let operands = if zeros.is_some() { "w ws wz" } else { "w ws" };
    let tiny = match zeros {
        Some(zeros) => tiny.tensor(zeros),
        None => tiny,
    };
    tiny.node("DequantizeLinear", operands, "wd", attributes).node("MatMul", "xd wd", "y", vec![])
}

fn refusal(tiny: &Tiny) -> String {
    let error = tiny.import().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    error.to_string()
}

fn invalid(tiny: &Tiny) -> String {
    let error = tiny.import().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    error.to_string()
}

#[test]
fn a_layer_between_quantizers_stays_in_real_values() {
    let tiny = qdq(i8s("w", &[2, 2], &[-128, 1, 2, 127]), &[0.5, 0.25], None, vec![int("axis", 1)]);
    insta::assert_snapshot!(tiny.qir());
    // x = [-1, 0] is on the grid: -64 * -1, -0.25 * ..
    assert_eq!(tiny.run("y"), [64.0, -0.25]);
    assert_eq!(weight_codes(&graph(&tiny)).2, [-128, 1, 2, 127]);
}

#[test]
fn codes_in_4_bits_and_zero_points_of_weights_are_centered() {
    let packed = |elem_type| TensorProto::raw("w", elem_type, [2, 2], vec![0x8f, 0x70]);
    let of = |tiny: &Tiny| weight_codes(&graph(tiny));
    let signed = qdq(packed(data_type::INT4), &[0.5], None, vec![]);
    assert_eq!(of(&signed), (QuantScheme::signed(4), None, vec![-1, -8, 0, 7]));
    let zero = |code: u8| Some(TensorProto::raw("wz", data_type::UINT4, [], vec![code]));
    let middle = qdq(packed(data_type::UINT4), &[0.5], zero(8), vec![]);
    assert_eq!(of(&middle), (QuantScheme::signed(4), None, vec![7, 0, -8, -1]));
    // 15 from zero: more than 4 bits hold, and 8 do.
    let far = qdq(packed(data_type::UINT4), &[0.5], zero(0), vec![]);
    assert_eq!(of(&far), (QuantScheme::signed(8), None, vec![15, 8, 0, 7]));
    let bytes = qdq(u8s("w", &[2, 2], &[0, 128, 255, 1]), &[0.5], Some(u8s("wz", &[], &[128])), vec![]);
    assert_eq!(of(&bytes), (QuantScheme::signed(8), None, vec![-128, 0, 127, -127]));
    let wide = qdq(u8s("w", &[2, 2], &[0, 128, 255, 1]), &[0.5], Some(u8s("wz", &[], &[100])), vec![]);
    let wide = wide.import().unwrap();
    assert!(wide.notes.iter().any(|note| note.contains("lie -100 to 155 from zero")), "{:?}", wide.notes);
    assert!(quantizers(&wide.graph).iter().all(|(_, fake)| fake.axis.is_none()));
}

#[test]
fn blocks_become_groups_of_rows_also_behind_a_transposition() {
    let tiny = Tiny::new(21, &[1, 4])
        .tensor(TensorProto::raw("w", data_type::INT4, [2, 4], vec![0x21, 0x43, 0xfe, 0xdc]))
        .f32("ws", &[2, 2], &[1.0, 2.0, 4.0, 8.0])
        .node("DequantizeLinear", "w ws", "wd", vec![int("axis", 1), int("block_size", 2)])
        .node("Gemm", "x wd", "y", vec![int("transB", 1)]);
    let (scheme, group, codes) = weight_codes(&graph(&tiny));
    assert_eq!((scheme, group), (QuantScheme::signed(4), Some(2)));
    assert_eq!(codes, [1, -2, 2, -1, 3, -4, 4, -3]);
    // x = [-2, -1, 0, 1].
    assert_eq!(tiny.run("y"), [-2.0 - 2.0 + 8.0, 16.0 + 4.0 - 24.0]);
}

#[test]
fn bias_codes_become_their_numbers() {
    let tiny = Tiny::new(13, &[1, 2])
        .tensor(TensorProto::raw("b", data_type::INT32, [2], [7i32.to_le_bytes(), (-3i32).to_le_bytes()].concat()))
        .f32("bs", &[2], &[0.5, 0.25])
        .f32("w", &[2, 2], &[0.0; 4])
        .node("DequantizeLinear", "b bs", "bd", vec![int("axis", 0)])
        .node("Gemm", "x w bd", "y", vec![]);
    assert_eq!(tiny.run("y"), [3.5, -0.75]);
    assert!(quantizers(&graph(&tiny)).is_empty());
}

#[test]
fn weights_that_are_rounded_in_the_graph_have_codes() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("w", &[2, 2], &[0.26, 0.9, -70.0, 0.1])
        .f32("s", &[2], &[0.5, 0.1])
        .tensor(i8s("z", &[2], &[0, 0]))
        .node("QuantizeLinear", "w s z", "wq", vec![int("axis", 1)])
        .node("DequantizeLinear", "wq s z", "wd", vec![int("axis", 1)])
        .node("MatMul", "x wd", "y", vec![]);
    assert_eq!(weight_codes(&graph(&tiny)).2, [1, 9, -128, 1]);
}

#[test]
fn a_clip_between_quantizers_narrows_the_range() {
    let tiny = Tiny::new(13, &[1, 4])
        .f32("s", &[], &[0.5])
        .tensor(i8s("z", &[], &[0]))
        .tensor(i8s("lo", &[], &[-2]))
        .tensor(i8s("hi", &[], &[1]))
        .node("QuantizeLinear", "x s z", "q", vec![])
        .node("Clip", "q lo hi", "c", vec![])
        .node("DequantizeLinear", "c s z", "y", vec![]);
    // x counts from -2 to 1.
    assert_eq!(tiny.run("y"), [-1.0, -1.0, 0.0, 0.5]);
}

#[test]
fn movements_of_codes_are_movements_of_what_they_stand_for() {
    let tiny = Tiny::new(13, &[1, 4])
        .f32("s", &[], &[0.5])
        .tensor(u8s("z", &[], &[2]))
        .i64("shape", &[2, 2])
        .node("QuantizeLinear", "x s z", "q", vec![])
        .node("Reshape", "q shape", "r", vec![])
        .node("Transpose", "r", "t", vec![AttributeProto::ints("perm", [1, 0])])
        .node("DequantizeLinear", "t s z", "y", vec![]);
    assert_eq!(tiny.run("y"), [-1.0, 0.0, -1.0, 1.0]);
}

#[test]
fn codes_are_not_numbers() {
    let tiny = || {
        Tiny::new(13, &[1, 4]).f32("s", &[], &[0.5]).f32("other", &[], &[0.25]).tensor(u8s("z", &[], &[2])).node(
            "QuantizeLinear",
            "x s z",
            "q",
            vec![],
        )
    };
    let relu = tiny().node("Relu", "q", "y", vec![]);
    assert!(refusal(&relu).contains("it takes the codes of `QuantizeLinear_0` for numbers"), "{}", refusal(&relu));
    let output = Tiny::new(13, &[1, 4]).f32("s", &[], &[0.5]).node("QuantizeLinear", "x s", "y", vec![]);
    assert!(refusal(&output).contains("--output"));
    let rescaled = tiny().node("DequantizeLinear", "q other z", "y", vec![]);
    let text = refusal(&rescaled);
    assert!(text.contains("`QuantizeLinear_0` made them with 0.5 and 2"), "{text}");
}

#[test]
fn products_of_codes_are_taken_apart() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("xs", &[], &[0.5])
        .tensor(u8s("xz", &[], &[128]))
        .tensor(i8s("w", &[2, 2], &[1, 2, 3, -4]))
        .f32("ws", &[], &[0.25])
        .tensor(i8s("wz", &[], &[0]))
        .f32("ys", &[], &[0.125])
        .tensor(u8s("yz", &[], &[100]))
        .node("QuantizeLinear", "x xs xz", "q", vec![])
        .node("QLinearMatMul", "q xs xz w ws wz ys yz", "p", vec![])
        .node("DequantizeLinear", "p ys yz", "y", vec![]);
    // x = [-1, 0].
    assert_eq!(tiny.run("y"), [-0.25, -0.5]);
    assert_eq!(weight_codes(&graph(&tiny)).2, [1, 2, 3, -4]);

    let integer = Tiny::new(13, &[1, 2])
        .f32("xs", &[], &[0.5])
        .tensor(u8s("xz", &[], &[128]))
        .tensor(i8s("w", &[2, 2], &[1, 2, 3, -4]))
        .f32("scale", &[], &[0.125])
        .node("QuantizeLinear", "x xs xz", "q", vec![])
        .node("MatMulInteger", "q w xz", "p", vec![])
        .node("Cast", "p", "f", vec![int("to", 1)])
        .node("Mul", "f scale", "y", vec![]);
    assert_eq!(integer.run("y"), [-0.25, -0.5]);
}

#[test]
fn gemm_and_sums_of_onnx_runtime_are_taken_apart() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("s", &[], &[0.5])
        .tensor(u8s("z", &[], &[128]))
        .tensor(i8s("w", &[2, 2], &[1, 2, 3, -4]))
        .f32("ws", &[], &[0.25])
        .tensor(i8s("wz", &[], &[0]))
        .tensor(TensorProto::raw("c", data_type::INT32, [2], [8i32.to_le_bytes(), 0i32.to_le_bytes()].concat()))
        .node("QuantizeLinear", "x s z", "q", vec![]);
    let tiny = contributed(tiny, "QGemm", "q s z w ws wz c s z", "g", vec![int("transB", 1)]);
    let tiny =
        contributed(tiny, "QLinearAdd", "g s z q s z s z", "a", vec![]).node("DequantizeLinear", "a s z", "y", vec![]);
    // x = [-1, 0]: -0.25 + 1 and -0.75, rounded to 0.5 each (ties to even), plus x.
    assert_eq!(tiny.run("y"), [1.0 - 1.0, -1.0]);
}

#[test]
fn packed_blocks_become_groups() {
    let nbits = |attributes: Vec<AttributeProto>| {
        // Two columns of 20 rows, 4 bits, blocks of 16: two of 8 bytes each.
        let bytes: Vec<u8> = (0..2 * 2 * 8u8).map(|i| (i % 16) | ((15 - i % 16) << 4)).collect();
        let tiny = Tiny::new(21, &[1, 20]).tensor(u8s("b", &[2, 2, 8], &bytes)).f32("s", &[4], &[1.0, 0.5, -1.0, 2.0]);
        contributed(tiny, "MatMulNBits", "x b s", "y", attributes)
    };
    let attributes = |k: i64, bits: i64| vec![int("K", k), int("N", 2), int("bits", bits), int("block_size", 16)];
    let tiny = nbits(attributes(20, 4));
    let (scheme, group, codes) = weight_codes(&graph(&tiny));
    assert_eq!((scheme, group), (QuantScheme::signed(4), Some(16)));
    let expected = |k: usize, n: usize| {
        let byte = (n * 16 + k / 2) % 16;
        (if k.is_multiple_of(2) { byte as i64 } else { 15 - byte as i64 }) - 8
    };
    let expected: Vec<i64> = (0..20).flat_map(|k| [expected(k, 0), expected(k, 1)]).collect();
    assert_eq!(codes, expected);
    // Scales may be negative; the whole way to a plan takes them.
    let mut whole = graph(&tiny);
    let passes = qail_passes::pipeline::given_pipeline();
    qail_passes::PassManager::new(passes).run(&mut whole, &mut qail_passes::PassContext::new()).unwrap();
    assert!(whole.topo().into_iter().any(|id| matches!(whole.node(id).op, Op::LinearWq(_))));
    assert!(invalid(&nbits(attributes(20, 2))).contains("bytes"));
    assert!(invalid(&nbits(attributes(1 << 40, 4))).contains("attribute `K`"));
    assert!(refusal(&nbits(attributes(20, 5))).contains("weights of 5 bits"));
}

#[test]
fn packed_weights_with_zero_points_keep_their_width() {
    // Two columns of 20 rows, blocks of 16; zero points as far from the middle as they may be.
    let scales = [1.0, 0.5, 0.25, 2.0];
    for (bits, zeros, packed) in [(8, [0u8, 255, 128, 3], vec![0, 255, 128, 3]), (4, [0, 15, 8, 3], vec![0xf0, 0x38])] {
        let codes: Vec<u8> = (0..64u8).map(|i| if bits == 8 { i.wrapping_mul(37) } else { i % 16 * 7 % 16 }).collect();
        let bytes: Vec<u8> = match bits {
            8 => codes.clone(),
            _ => codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect(),
        };
        let tiny = Tiny::new(21, &[1, 20])
            .tensor(u8s("b", &[2, 2, 2 * i64::from(bits)], &bytes))
            .f32("s", &[4], &scales)
            .tensor(u8s("z", &[packed.len() as i64], &packed));
        let attributes = vec![int("K", 20), int("N", 2), int("bits", bits.into()), int("block_size", 16)];
        let tiny = contributed(tiny, "MatMulNBits", "x b s z", "y", attributes);
        let (scheme, group, _) = weight_codes(&graph(&tiny));
        assert_eq!((scheme, group), (QuantScheme::signed(bits), Some(16)));
        let x = Tiny::new(21, &[1, 20]).node("Identity", "x", "y", vec![]).run("y");
        let w = |k: usize, n: usize| {
            let block = n * 2 + k / 16;
            f64::from(scales[block]) * (f64::from(codes[n * 32 + k]) - f64::from(zeros[block]))
        };
        for (n, y) in tiny.run("y").into_iter().enumerate() {
            let expected: f64 = x.iter().enumerate().map(|(k, x)| x * w(k, n)).sum();
            let size: f64 = x.iter().enumerate().map(|(k, x)| (x * w(k, n)).abs()).sum();
            assert!((y - expected).abs() <= 1e-5 * size, "{bits} bits, column {n}: {y}, expected {expected}");
        }
    }
}

#[test]
fn dynamic_scales_are_refused_with_a_remedy() {
    let tiny = Tiny::new(13, &[1, 2]).node("DynamicQuantizeLinear", "x", "q s z", vec![]).node(
        "DequantizeLinear",
        "q s z",
        "y",
        vec![],
    );
    assert!(refusal(&tiny).contains("quantize statically"));
}

#[test]
fn quantizers_that_contradict_themselves_are_invalid() {
    let weights = || i8s("w", &[2, 2], &[1, 2, 3, 4]);
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0] {
        assert!(invalid(&qdq(weights(), &[scale], None, vec![])).contains("a scale is"), "{scale}");
    }
    let other = Some(u8s("wz", &[], &[0]));
    assert!(invalid(&qdq(weights(), &[1.0], other, vec![])).contains("another type than its codes"));
    let two = Some(i8s("wz", &[2], &[0, 0]));
    assert!(invalid(&qdq(weights(), &[1.0], two, vec![])).contains("1 scales and 2 zero points"));
    assert!(invalid(&qdq(weights(), &[1.0; 2], None, vec![int("axis", 2)])).contains("axis 2"));
    assert!(invalid(&qdq(weights(), &[1.0; 3], None, vec![int("axis", 1)])).contains("shape [3], not [2]"));
    // The last block may be shorter than the others, the only one too: then there is one row of scales.
    for (block, reason) in [(-1, "blocks of"), (3, "shape [2], not [1, 2]"), (i64::MAX, "shape [2], not [1, 2]")] {
        let text = invalid(&qdq(weights(), &[1.0; 2], None, vec![int("axis", 0), int("block_size", block)]));
        assert!(text.contains(reason), "{text}");
    }
    let bias = TensorProto::raw("w", data_type::INT32, [2, 2], vec![0; 16]);
    let zero = Some(TensorProto::raw("wz", data_type::INT32, [], vec![1, 0, 0, 0]));
    assert!(invalid(&qdq(bias, &[1.0], zero, vec![])).contains("outside of 0..=0"));
    let channels = Tiny::new(13, &[1, 2]).f32("s", &[2], &[0.5, 1.0]).node("QuantizeLinear", "x s", "q", vec![]).node(
        "DequantizeLinear",
        "q s",
        "y",
        vec![],
    );
    assert!(refusal(&channels).contains("quantize activations per tensor"));
}

#[test]
fn large_weights_stay_in_the_file() {
    let n = 2100usize;
    let codes: Vec<i8> = (0..n * n).map(|i| i as i8).collect();
    let tiny = Tiny::new(13, &[1, n as i64])
        .tensor(i8s("w", &[n as i64, n as i64], &codes))
        .f32("s", &[], &[0.5])
        .node("DequantizeLinear", "w s", "wd", vec![])
        .node("Gemm", "x wd", "y", vec![int("transB", 1)]);
    let graph = graph(&tiny);
    let (id, _) = quantizers(&graph)[0];
    let w = graph.const_of(graph.operands(id)[0]).unwrap();
    assert!(matches!(w.data, ConstData::Source(_)));
    let of = |k: usize, column: usize| f32::from(codes[column * n + k]) * 0.5;
    assert_eq!(w.read_f32(n - 1..n + 1).unwrap(), [of(0, n - 1), of(1, 0)]);
}
