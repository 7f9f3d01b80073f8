//! Files that mean harm: a typed error, no panic, no memory out of proportion.

use std::{fs, path::Path};

use prost::Message;
use qail_ir::ConstData;
use qailc::frontend::{
    ErrorKind, ImportError, ImportOptions, import, import_bytes,
    proto::{
        AttributeProto, Dim, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, TypeProto,
        TypeValue, ValueInfoProto, data_type,
    },
};

use crate::models::{Tiny, node};

fn relu() -> Tiny {
    Tiny::new(13, &[1, 2]).node("Relu", "x", "y", vec![])
}

fn invalid(tiny: &Tiny) -> String {
    let error = tiny.import().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    error.to_string()
}

fn hopper() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/policies/hopper/hopper_expert.onnx");
    fs::read(path).unwrap()
}

/// A model with most forms that a file can have.
fn rich() -> Vec<u8> {
    let mut tiny = Tiny::new(13, &[1, 4])
        .f32("w", &[4, 4], &[0.5; 16])
        .i64("sizes", &[1, 3])
        .node("Gemm", "x w", "h", vec![AttributeProto::int("transB", 1)])
        .node("Split", "h sizes", "a b", vec![AttributeProto::int("axis", 1)])
        .node("Constant", "", "c", vec![AttributeProto::tensor("value", TensorProto::f32("", [1, 1], &[2.0]))])
        .node("Shape", "a", "shape", vec![])
        .node("Expand", "c shape", "e", vec![])
        .node("Concat", "e b", "d", vec![AttributeProto::int("axis", 1)])
        .node("Clip", "d", "y", vec![]);
    let list = TensorProto { float_data: vec![1.0, 2.0], raw_data: None, ..TensorProto::f32("f", [2], &[]) };
    tiny = tiny.tensor(list).input(ValueInfoProto::with_dims("n", data_type::FLOAT, [Dim::Param("N".to_owned())]));
    tiny.model.metadata_props.push(StringStringEntryProto { key: "a".to_owned(), value: "b".to_owned() });
    tiny.bytes()
}

#[test]
fn every_truncation_is_an_error_or_a_model() {
    let bytes = rich();
    for end in 0..bytes.len() {
        // A cut between two fields leaves a protobuf, and perhaps a model.
        let _ = import_bytes(bytes[..end].to_vec(), None, &ImportOptions::default());
    }
    let error = import_bytes(bytes[..bytes.len() / 2].to_vec(), None, &ImportOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// xorshift64*: a seeded sequence that never changes.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }
}

/// Flips, overwrites, removes, repeats or cuts.
fn mutate(bytes: &mut Vec<u8>, random: &mut Seeded) {
    let at = random.next(bytes.len());
    match random.next(8) {
        0..=2 => bytes[at] ^= 1 << random.next(8),
        3 | 4 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.next(5)],
        5 => {
            let len = random.next(64).min(bytes.len() - at);
            bytes.drain(at..at + len);
        }
        6 => {
            let len = random.next(64).min(bytes.len() - at);
            let copy = bytes[at..at + len].to_vec();
            let to = random.next(bytes.len());
            bytes.splice(to..to, copy);
        }
        _ => bytes.truncate(at),
    }
}

/// 2,000 mutants by default, half of them small so that names, extents and
/// lengths are hit.
#[test]
fn mutants_do_not_panic() {
    let n_mutants = qail_fixtures::n_mutants(2000) as usize;
    let seeds = [rich(), hopper(), relu().bytes()];
    let mut random = Seeded(20);
    let (mut n_models, mut n_internal) = (0, 0);
    for i in 0..n_mutants {
        let mut bytes = seeds[if i % 8 == 0 { 1 } else { i % 2 * 2 }].clone();
        for _ in 0..=random.next(3) {
            if !bytes.is_empty() {
                mutate(&mut bytes, &mut random);
            }
        }
        match import_bytes(bytes, None, &ImportOptions::default()) {
            Ok(imported) => {
                qail_ir::verify(&imported.graph).unwrap();
                n_models += 1;
            }
            Err(error) => n_internal += usize::from(error.kind() == ErrorKind::Internal),
        }
    }
    assert_eq!(n_internal, 0);
    assert!(n_models < n_mutants);
}

#[test]
fn what_is_not_a_model_is_said_so() {
    let error = |bytes: &[u8]| import_bytes(bytes.to_vec(), None, &ImportOptions::default()).unwrap_err();
    insta::assert_snapshot!(error(b""), @r"
    the model is invalid
      model: it has no graph
    ");
    insta::assert_snapshot!(error(b"\x89PNG\r\n"), @"not an ONNX model: a number is cut short at byte 0");
    insta::assert_snapshot!(error(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]), @"not an ONNX model: a field is longer than the message around it at byte 0");
    let missing = import(Path::new("no/such/model.onnx"), &ImportOptions::default()).unwrap_err();
    insta::assert_snapshot!(missing, @"cannot read `no/such/model.onnx`");
    assert_eq!(missing.kind(), ErrorKind::Invalid);
    assert!(matches!(import(Path::new("."), &ImportOptions::default()), Err(ImportError::Io { .. })));
}

#[test]
fn small_files_do_not_become_large_models() {
    let graph = GraphProto { node: vec![NodeProto::default(); 2_000_000], ..GraphProto::default() };
    let bytes = ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
    insta::assert_snapshot!(import_bytes(bytes, None, &ImportOptions::default()).unwrap_err(), @"not an ONNX model: the model would take far more memory than its file at byte 1154291");
}

#[test]
fn a_file_larger_than_any_protobuf_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.onnx");
    fs::File::create(&path).unwrap().set_len(3 << 30).unwrap();
    assert!(matches!(import(&path, &ImportOptions::default()), Err(ImportError::TooLarge { .. })));
}

#[test]
fn structure_is_checked_all_at_once() {
    let mut tiny = Tiny::new(13, &[1, 2])
        .node("Add", "x b", "a", vec![])
        .node("Add", "x a", "b", vec![])
        .node("Relu", "nowhere", "y", vec![])
        .node("Relu", "x", "y", vec![])
        .node("", "x", "", vec![])
        .f32("x", &[1], &[0.0])
        .f32("x", &[1], &[0.0])
        .output("gone")
        .output("y");
    tiny.graph().node[0].name = "first".to_owned();
    tiny.graph().node[3].attribute = vec![AttributeProto::int("a", 1), AttributeProto::int("a", 2)];
    insta::assert_snapshot!(invalid(&tiny), @r"
    the model is invalid
      tensor `x`: it is defined twice
      tensor `y`: it is defined twice
      node `_4`: it has no operator
      node `Relu_2`: it reads `nowhere`, which nothing defines
      node `Relu_3`: it has two attributes `a`
      output `gone`: nothing defines it
      output `y`: it is listed twice
      node `first`: it is on a cycle, or reads one that is
      node `Add_1`: it is on a cycle, or reads one that is
    ");
}

#[test]
fn extents_must_mean_something() {
    for dims in [&[0, 2][..], &[-1, 2], &[i64::MAX, i64::MAX], &[1; 40]] {
        let tiny = Tiny::new(13, dims).node("Relu", "x", "y", vec![]);
        assert!(invalid(&tiny).contains("input `x`"), "{dims:?}");
    }
    insta::assert_snapshot!(invalid(&Tiny::new(13, &[1 << 20, 1 << 20]).node("Relu", "x", "y", vec![])), @r"
    the model is invalid
      input `x`: f32[1048576, 1048576] has more than 268435456 elements
    ");
}

#[test]
fn constants_must_be_as_long_as_they_say() {
    let tiny = Tiny::new(13, &[1, 2])
        .f32("short", &[2, 2], &[0.0; 3])
        .f32("negative", &[-2], &[0.0])
        .f32("empty", &[0, 2], &[])
        .f32("huge", &[1 << 31, 1 << 31, 4], &[0.0])
        .node("Sum", "x short negative empty huge", "y", vec![]);
    insta::assert_snapshot!(invalid(&tiny), @r"
    the model is invalid
      initializer `short`: 4 elements are declared, 12 bytes are given
      initializer `negative`: an extent is -2 in [-2]
      initializer `empty`: an extent is 0 in [0, 2]
      initializer `huge`: [2147483648, 2147483648, 4] has more than 8589934592 elements
    ");
}

#[test]
fn text_and_odd_types_are_refused() {
    let text =
        TensorProto { dims: vec![1], data_type: data_type::STRING, name: "t".to_owned(), ..TensorProto::default() };
    let codes = TensorProto::raw("q", 17, [2], vec![0x21, 0x43]);
    let newer = TensorProto::raw("n", 99, [2], vec![0x21]);
    let tiny = Tiny::new(13, &[1, 2]).tensor(text).tensor(codes).tensor(newer).node("Sum", "x t q n", "y", vec![]);
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      constant `t`: string constants are not supported; move text processing out of the exported model
      constant `q`: float8 constants are not supported; export weights as float32
      constant `n`: type 99 constants are not supported; export weights as float32
    ");
    let mut tiny = relu();
    tiny.graph().input[0].r#type = Some(TypeProto { value: Some(TypeValue::Sequence(Default::default())) });
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      input `x`: it is a sequence; export a model that takes tensors
    ");
    tiny.graph().input[0].r#type = None;
    insta::assert_snapshot!(invalid(&tiny), @r"
    the model is invalid
      input `x`: has no type
    ");
    tiny.graph().input = vec![ValueInfoProto::tensor("x", data_type::STRING, &[1])];
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      input `x`: its element type is string; export with inputs of type float32, uint8, int32, int64 or bool
    ");
}

#[test]
fn graphs_inside_graphs_are_refused_at_any_depth() {
    let mut inner = GraphProto::default();
    for _ in 0..200 {
        let branch = AttributeProto { name: "then_branch".to_owned(), g: Some(Box::new(inner)), ..Default::default() };
        inner = GraphProto { node: vec![node("If", "x", "y", vec![branch])], ..GraphProto::default() };
    }
    let mut deep = relu();
    deep.graph().node = inner.node.clone();
    assert_eq!(deep.import().unwrap_err().kind(), ErrorKind::Invalid);
    let shallow = AttributeProto { name: "then_branch".to_owned(), g: Some(Box::default()), ..Default::default() };
    let tiny = Tiny::new(13, &[1, 2]).node("If", "x", "y", vec![shallow]);
    insta::assert_snapshot!(tiny.error(), @r"
    the model needs what is not supported
      If `If_0`: control flow is not supported; export by tracing with fixed conditions, or unroll the loop
    ");
}

#[test]
fn a_long_chain_needs_no_stack() {
    let mut tiny = Tiny::new(13, &[1, 2]);
    let mut last = "x".to_owned();
    for i in 0..20_000 {
        tiny.graph().node.push(node("Relu", &last, &format!("h{i}"), vec![]));
        last = format!("h{i}");
    }
    tiny.graph().output[0].name = last;
    assert_eq!(tiny.import().unwrap().graph.len(), 20_001);
}

#[test]
fn more_operands_than_a_graph_can_number_are_refused() {
    let join = Tiny::new(13, &[1]).node("Concat", &"x ".repeat(70_000), "y", vec![AttributeProto::int("axis", 0)]);
    insta::assert_snapshot!(join.error(), @r"
    the model needs what is not supported
      Concat `Concat_0`: it has 70000 operands; join the operands in several steps
    ");
}

#[test]
fn constant_expressions_have_a_budget() {
    let mut doubling = Tiny::new(13, &[1]).f32("c0", &[1], &[1.0]);
    for i in 0..60 {
        let (from, to) = (format!("c{i} c{i}"), format!("c{}", i + 1));
        doubling = doubling.node("Concat", &from, &to, vec![AttributeProto::int("axis", 0)]);
    }
    let doubling = doubling.node("Add", "x c60", "y", vec![]);
    assert!(doubling.error().contains("too large"), "{}", doubling.error());
    let fill = Tiny::new(13, &[1]).i64("n", &[1 << 27]).node("ConstantOfShape", "n", "c", vec![]).node(
        "Add",
        "x c",
        "y",
        vec![],
    );
    insta::assert_snapshot!(fill.error(), @r"
    the model needs what is not supported
      ConstantOfShape `ConstantOfShape_0`: constant expressions would grow far beyond the size of the model (here f32[134217728]); compute large tables at run time or store them as initializers
    ");
}

fn external(location: &str, more: &[(&str, &str)]) -> Tiny {
    let mut tensor = TensorProto { raw_data: None, data_location: 1, ..TensorProto::f32("w", [2], &[]) };
    for &(key, value) in [("location", location)].iter().chain(more) {
        tensor.external_data.push(StringStringEntryProto { key: key.to_owned(), value: value.to_owned() });
    }
    Tiny::new(13, &[1, 2]).tensor(tensor).node("Add", "x w", "y", vec![])
}

fn weights(folder: &Path) {
    let bytes: Vec<u8> = [9.0f32, 1.0, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    fs::create_dir_all(folder.join("model/data")).unwrap();
    fs::write(folder.join("model/data/w.bin"), &bytes).unwrap();
    fs::write(folder.join("secret"), &bytes).unwrap();
}

fn import_in(folder: &Path, tiny: &Tiny) -> Result<qailc::frontend::Imported, ImportError> {
    let path = folder.join("model/model.onnx");
    fs::write(&path, tiny.bytes()).unwrap();
    import(&path, &ImportOptions::default())
}

#[test]
fn constants_in_other_files_are_read_and_hashed() {
    let folder = tempfile::tempdir().unwrap();
    weights(folder.path());
    let tiny = external("data/w.bin", &[("offset", "4"), ("length", "8")]);
    let imported = import_in(folder.path(), &tiny).unwrap();
    assert_eq!(crate::models::run(&imported.graph, "y"), [0.0, 2.0]);
    fs::write(folder.path().join("model/data/w.bin"), [0; 12]).unwrap();
    assert_ne!(import_in(folder.path(), &tiny).unwrap().sha256, imported.sha256);
}

/// 32 MiB of weights beside a small model: transposed when read, never copied.
#[test]
fn large_weights_stay_in_their_file() {
    let folder = tempfile::tempdir().unwrap();
    weights(folder.path());
    let n = 2048usize;
    let element = |row: usize, column: usize| (row * 3 + column) as f32;
    let bytes: Vec<u8> = (0..2 * n * n).flat_map(|i| element(i / n, i % n).to_le_bytes()).collect();
    fs::write(folder.path().join("model/w.bin"), bytes).unwrap();
    let mut tiny = external("w.bin", &[]);
    tiny.graph().initializer[0].dims = vec![2 * n as i64, n as i64];
    tiny.graph().input[0] = ValueInfoProto::tensor("x", data_type::FLOAT, &[1, n as i64]);
    tiny.graph().node[0] = node("Gemm", "x w", "y", vec![AttributeProto::int("transB", 1)]);
    let graph = import_in(folder.path(), &tiny).unwrap().graph;
    let linear = graph.outputs[0].value;
    let weight = graph.const_of(graph.operands(linear.node)[1]).unwrap();
    assert!(matches!(weight.data, ConstData::Source(_)));
    assert_eq!(weight.ty.shape, [n, 2 * n]);
    let at = 5 * 2 * n + 4000;
    assert_eq!(weight.read_f32(at..at + 2).unwrap(), [element(4000, 5), element(4001, 5)]);
}

#[test]
fn external_data_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    weights(folder.path());
    let absolute = folder.path().join("secret").display().to_string();
    let reason = |tiny: &Tiny| {
        let error = import_in(folder.path(), tiny).unwrap_err();
        assert!(matches!(error, ImportError::External { .. }));
        let text = error.to_string().replace(&absolute, "/secret");
        text.lines().last().unwrap_or_default().trim().to_owned()
    };
    insta::assert_snapshot!(reason(&external("../secret", &[])), @"initializer `w`, location `../secret`: paths with `..` are refused");
    insta::assert_snapshot!(reason(&external("data/../../secret", &[])), @"initializer `w`, location `data/../../secret`: paths with `..` are refused");
    insta::assert_snapshot!(reason(&external(&absolute, &[])), @"initializer `w`, location `/secret`: absolute paths are refused");
    insta::assert_snapshot!(reason(&external("C:\\secret", &[])), @r#"initializer `w`, location `C:\secret`: absolute paths are refused"#);
    insta::assert_snapshot!(reason(&external("", &[])), @"initializer `w`, location ``: no location is given");
    insta::assert_snapshot!(reason(&external("data", &[])), @"initializer `w`, location `data`: not a regular file");
    insta::assert_snapshot!(reason(&external("data/w.bin", &[("offset", "8"), ("length", "8")])), @"initializer `w`, location `data/w.bin`: bytes 8..16 are asked for, the file has 12");
    insta::assert_snapshot!(reason(&external("data/w.bin", &[("offset", "18446744073709551615")])), @"initializer `w`, location `data/w.bin`: bytes 18446744073709551615..18446744073709551615 are asked for, the file has 12");
    insta::assert_snapshot!(reason(&external("data/w.bin", &[("offset", "-4")])), @"initializer `w`, location `data/w.bin`: `offset` is `-4`, not a number");
    assert!(reason(&external("data/none.bin", &[])).contains("No such file"));
    let error = external("data/w.bin", &[]).import().unwrap_err();
    assert!(error.to_string().contains("no folder"));
}

#[cfg(unix)]
#[test]
fn links_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    weights(folder.path());
    let model = folder.path().join("model");
    std::os::unix::fs::symlink("../../secret", model.join("data/link")).unwrap();
    std::os::unix::fs::symlink("data", model.join("folder")).unwrap();
    fs::hard_link(folder.path().join("secret"), model.join("data/hard")).unwrap();
    let reason = |location: &str| import_in(folder.path(), &external(location, &[])).unwrap_err().to_string();
    insta::assert_snapshot!(reason("data/link"), @r"
    the external data of the model cannot be used
      initializer `w`, location `data/link`: symbolic links are refused
    ");
    insta::assert_snapshot!(reason("folder/w.bin"), @r"
    the external data of the model cannot be used
      initializer `w`, location `folder/w.bin`: symbolic links are refused
    ");
    insta::assert_snapshot!(reason("data/hard"), @r"
    the external data of the model cannot be used
      initializer `w`, location `data/hard`: files with several hard links are refused
    ");
}

#[test]
fn sizes_out_of_proportion_are_refused_by_every_layer() {
    let ints = |name: &str, list: &[i64]| AttributeProto::ints(name, list);
    let huge = i64::MAX;
    let image = || Tiny::new(17, &[1, 2, 8, 8]).f32("w", &[2, 2, 3, 3], &[0.5; 36]);
    let conv = |attribute: AttributeProto| image().node("Conv", "x w", "y", vec![attribute]);
    let pool =
        |list: &[i64], more: AttributeProto| image().node("MaxPool", "x", "y", vec![ints("kernel_shape", list), more]);
    let cases = [
        conv(ints("strides", &[0, 1])),
        conv(ints("strides", &[huge, huge])),
        conv(ints("dilations", &[1 << 20, 1 << 20])),
        conv(ints("pads", &[-1, 0, 0, 0])),
        conv(ints("pads", &[1 << 20, 1 << 20, 1 << 20, 1 << 20])),
        conv(ints("pads", &[1])),
        conv(AttributeProto::int("group", 0)),
        conv(AttributeProto::int("group", huge)),
        pool(&[0, 1], ints("strides", &[1, 1])),
        pool(&[huge, huge], ints("strides", &[1, 1])),
        pool(&[1 << 20, 1 << 20], ints("pads", &[1 << 20, 1 << 20, 1 << 20, 1 << 20])),
        image().node("ConvTranspose", "x w", "y", vec![ints("strides", &[1 << 20, 1 << 20])]),
        image().node("ConvTranspose", "x w", "y", vec![ints("output_shape", &[huge, huge])]),
        image().node("ConvTranspose", "x w", "y", vec![ints("output_padding", &[1 << 20, 1 << 20])]),
        image().i64("n", &[1, 1, huge, huge]).node("Tile", "x n", "y", vec![]),
        image().i64("n", &[0, 0, 0, 0, huge, huge, huge, huge]).node("Pad", "x n", "y", vec![]),
        image().i64("n", &[0, 0, 0, 0, 1 << 30, 1 << 30, 0, 0]).node("Pad", "x n", "y", vec![]),
        image().f32("s", &[4], &[1.0, 1.0, 1e30, 1e30]).node("Resize", "x _ s", "y", vec![]),
        image().f32("s", &[4], &[f32::NAN; 4]).node("Resize", "x _ s", "y", vec![]),
        image().f32("s", &[4], &[1.0, 1.0, 1e-9, 1.0]).node("Resize", "x _ s", "y", vec![]),
        image().i64("s", &[1, 1, 1 << 30, 1 << 30]).node("Resize", "x _ _ s", "y", vec![]),
        image().node("DepthToSpace", "x", "y", vec![AttributeProto::int("blocksize", huge)]),
        image().node("LRN", "x", "y", vec![AttributeProto::int("size", huge)]),
        image().node("Einsum", "x", "y", vec![AttributeProto::string("equation", "aaaa...->....,")]),
        image()
            .node("Einsum", "x x", "y", vec![AttributeProto::string("equation", "abcd,efgh->abcdefgh")])
            .input(ValueInfoProto::tensor("z", data_type::FLOAT, &[1 << 20]))
            .node("Einsum", "z z", "v", vec![AttributeProto::string("equation", "a,b->ab")])
            .output("v"),
        image().i64("k", &[huge]).node("TopK", "x k", "y _", vec![]),
        image().i64("d", &[1 << 40]).f32("v", &[2], &[0.0, 1.0]).node("OneHot", "x d v", "y", vec![]),
        image()
            .tensor(TensorProto::i64("a", [], &[0]))
            .tensor(TensorProto::i64("b", [], &[huge]))
            .tensor(TensorProto::i64("c", [], &[1]))
            .node("Range", "a b c", "r", vec![])
            .node("Gather", "x r", "y", vec![]),
        Tiny::new(17, &[4000, 1, 2]).f32("w", &[1, 2, 2], &[0.5; 4]).node("RNN", "x w w", "y", vec![]),
    ];
    for (i, tiny) in cases.iter().enumerate() {
        let error = tiny.import().err().unwrap_or_else(|| panic!("case {i} is accepted"));
        assert_ne!(error.kind(), ErrorKind::Internal, "case {i}: {error}");
    }
}

#[test]
fn parameters_that_are_no_numbers_are_refused() {
    let x = || Tiny::new(24, &[1, 4]);
    let with = |op: &str, name: &str, number: f32| x().node(op, "x", "y", vec![AttributeProto::float(name, number)]);
    let mut cases = vec![
        x().f32("slope", &[], &[f32::NAN]).node("PRelu", "x slope", "y", vec![]),
        x().f32("lo", &[], &[2.0]).f32("hi", &[], &[1.0]).node("Clip", "x lo hi", "y", vec![]),
        x().f32("w", &[4], &[1.0; 4]).node(
            "LayerNormalization",
            "x w",
            "y",
            vec![AttributeProto::float("epsilon", f32::NAN)],
        ),
    ];
    for op in ["Swish", "LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid"] {
        cases.extend([f32::NAN, f32::INFINITY].map(|number| with(op, "alpha", number)));
    }
    for (i, tiny) in cases.iter().enumerate() {
        let error = tiny.import().err().unwrap_or_else(|| panic!("case {i} is accepted"));
        assert_eq!(error.kind(), ErrorKind::Invalid, "case {i}: {error}");
    }
    let report = format!("{:?}", with("Swish", "alpha", f32::NAN).import().unwrap_err());
    assert!(report.contains("`alpha` is NaN, must be finite"), "{report}");
}

/// Each operator with operands and attributes that mean nothing to it: 40 times each by default.
#[test]
fn operators_survive_what_they_do_not_expect() {
    let n_times = qail_fixtures::n_mutants(40);
    let names = [
        "axis",
        "axes",
        "keepdims",
        "pads",
        "strides",
        "dilations",
        "kernel_shape",
        "group",
        "perm",
        "to",
        "k",
        "upper",
        "batch_dims",
        "num_groups",
        "blocksize",
        "hidden_size",
        "p",
        "size",
        "num_heads",
        "q_num_heads",
        "kv_num_heads",
        "is_causal",
        "interleaved",
        "ceil_mode",
        "select_last_index",
        "layout",
        "batch_axis",
        "time_axis",
        "split",
        "output_shape",
        "output_padding",
        "count_include_pad",
        "fmod",
        "storage_order",
    ];
    let texts = ["auto_pad", "mode", "direction", "equation", "reduction", "coordinate_transformation_mode"];
    let said =
        ["SAME_UPPER", "SAME_LOWER", "reflect", "edge", "linear", "cubic", "LEFT", "reverse", "...a->a", "add", "CRD"];
    let numbers = [0, 1, 2, 3, -1, 4, 7, -3, 1 << 20, i64::MAX, i64::MIN];
    let operands = ["x", "m", "v", "i", "j", "s", "t", "_"];
    let mut random = Seeded(31);
    let mut n_models = 0;
    for op in qailc::frontend::operators() {
        for _ in 0..n_times {
            let mut tiny = Tiny::new([9, 12, 13, 17, 20, 23][random.next(6)], &[1, 2, 4, 4])
                .f32("m", &[2, 2, 3, 3], &[0.5; 36])
                .f32("v", &[2], &[1.0, 2.0])
                .i64("i", &[1, 0])
                .i64("j", &[0, 1, -1, 2])
                .tensor(TensorProto::i64("s", [], &[1]))
                .tensor(TensorProto::raw("t", data_type::BOOL, [2], vec![1, 0]));
            let n = 1 + random.next(4);
            let inputs: Vec<&str> =
                (0..n).map(|at| if at == 0 && random.next(4) > 0 { "x" } else { operands[random.next(8)] }).collect();
            let mut attributes: Vec<AttributeProto> = Vec::new();
            for _ in 0..random.next(4) {
                let name = names[random.next(names.len())];
                let mut number = || numbers[random.next(numbers.len())];
                let attribute = match number() & 1 {
                    0 => AttributeProto::int(name, number()),
                    _ => AttributeProto::ints(name, [number(), number(), number(), number()]),
                };
                if attributes.iter().all(|other| other.name != name) {
                    attributes.push(attribute);
                }
            }
            if random.next(2) == 0 {
                let text = said[random.next(said.len())];
                attributes.push(AttributeProto::string(texts[random.next(texts.len())], text));
            }
            tiny = tiny.node(op, &inputs.join(" "), "y", attributes);
            match tiny.import() {
                Ok(imported) => {
                    qail_ir::verify(&imported.graph).unwrap();
                    n_models += 1;
                }
                Err(error) => assert_ne!(error.kind(), ErrorKind::Internal, "{op}: {error}"),
            }
        }
    }
    assert!(n_models > 100, "only {n_models} were accepted");
}

#[test]
fn pools_of_more_windows_than_can_be_counted_are_refused() {
    let ints = |name: &str, list: &[i64]| AttributeProto::ints(name, list);
    let pool = |extent: i64| {
        let window = vec![ints("kernel_shape", &[2]), ints("pads", &[1, 0])];
        Tiny::new(13, &[1, 1, extent]).node("AveragePool", "x", "y", window)
    };
    assert!(pool(1 << 20).import().is_ok());
    let error = format!("{:?}", pool(1 << 27).import().unwrap_err());
    assert!(error.contains("134217728 windows along an axis, more than 1048576"), "{error}");
}
