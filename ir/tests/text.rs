//! The text form: every operation, every error, and text from strangers.

// Clippy knows tests, but not the functions that they share.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, time::Instant};

use insta::assert_snapshot;
use qail_ir::{ConstData, Constant, Graph, Origin, TensorType, interp, text, verify};

use support::{Dice, random_graph, random_inputs};

const FLOAT: &str = include_str!("samples/float.qir");
const QUANT: &str = include_str!("samples/quant.qir");
const GRAD: &str = include_str!("samples/grad.qir");

fn error(text: &str) -> String {
    match text::parse(text) {
        Err(error) => error.to_string(),
        Ok(graph) => panic!("parses: {}", text::print(&graph)),
    }
}

/// A graph with one input `%x: f32[1, 3]` and these lines.
fn body_error(lines: &str) -> String {
    error(&format!("graph @g(%x: f32[1, 3]) -> () {{\n{lines}\n}}"))
}

#[test]
fn samples_print_as_they_stand() {
    for sample in [FLOAT, QUANT, GRAD] {
        let graph = text::parse(sample).unwrap();
        verify(&graph).unwrap();
        assert_eq!(text::print(&graph), sample);
    }
}

#[test]
fn space_and_comments_mean_nothing() {
    let squeezed = "graph @g(%x:f32[2])->(%y){%y=relu%x:f32[2]}";
    let airy = "// head\ngraph\n@g ( %x : f32 [ 2 , ] ) -> ( y = %y ) {\n %y =\n relu %x // why\n : f32[2]\n}\n// end";
    assert!(text::parse(squeezed).is_ok());
    assert_snapshot!(error(airy), @"line 3, column 21: expected a number, found `]`");
    let airy = airy.replace("2 , ]", "2 ]");
    assert!(text::parse(squeezed).unwrap() == text::parse(&airy).unwrap());
}

#[test]
fn long_constants_stay_outside() {
    let mut graph = Graph::new("g");
    let elements: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let long = graph.add_const("a/w", Constant::f32([4, 5], &elements), Origin::default());
    graph.add_output("y", long);
    let (text, weights) = text::print_with_weights(&graph);
    assert_snapshot!(text, @r#"
    graph @g() -> (y = %"a/w") {
      %"a/w" = const file("a/w") : f32[4, 5]
    }
    "#);
    assert_snapshot!(error(&text), @"line 2, column 18: the elements of constant `a/w`, f32[4, 5], were not given");
    let read = text::parse_with_weights(&text, &|name, _| weights.get(name).map(|c| (**c).clone())).unwrap();
    assert!(read == graph);
    let wrong = text::parse_with_weights(&text, &|_, _| Some(Constant::f32([1], &[0.0])));
    assert_snapshot!(wrong.unwrap_err(), @"line 2, column 18: the elements of constant `a/w` are f32[1], declared f32[4, 5]");
}

#[test]
fn what_has_no_text_stays_outside() {
    let mut graph = Graph::new("g");
    let payload = f32::from_bits(0x7fc0_1234);
    graph.add_const("nan", Constant::f32([1], &[payload]), Origin::default());
    graph.add_const("plain_nan", Constant::f32([3], &[f32::NAN, f32::NEG_INFINITY, -0.0]), Origin::default());
    let wild = ConstData::Bytes(vec![100].into());
    let ty = TensorType::code(qail_ir::QuantScheme::signed(4), [1]);
    graph.add_const("code", Constant { ty, data: wild }, Origin::default());
    assert_snapshot!(text::print(&graph), @r#"
    graph @g() -> () {
      %nan = const file("nan") : f32[1]
      %plain_nan = const [nan, -inf, -0.0] : f32[3]
      %code = const file("code") : qs4[1]
    }
    "#);
}

#[test]
fn graphs_differ_by_what_they_say() {
    let same = |from: &str, to: &str| {
        assert!(QUANT.contains(from), "{from}");
        text::parse(QUANT).unwrap() == text::parse(&QUANT.replacen(from, to, 1)).unwrap()
    };
    assert!(same("const splat(0.1) : f32[4]", "const [0.1, 0.1, 0.1, 0.1] : f32[4]"));
    assert!(!same("const splat(0.1) : f32[4]", "const [0.1, 0.1, 0.1, 0.2] : f32[4]"));
    assert!(!same("rand(9)", "rand(8)"));
    assert!(!same("@quant", "@other"));
    assert!(!same("action", "torque"));
    assert!(!same("zero_point = -3", "zero_point = -4"));
    assert!(!same("\"observation\"", "\"o\""));
    assert!(!same("fake_quant %f, %s, %z", "fake_quant %obs, %s, %z"));
    assert!(!same(") {", ") {batch = 0} {"));
}

#[test]
fn errors_name_the_place() {
    assert_snapshot!(error(""), @"line 1, column 1: expected `graph`, found the end of the text");
    assert_snapshot!(error("graph @g(%x: f32[1]) (%x) {}"), @"line 1, column 22: expected `->`, found `(`");
    assert_snapshot!(error("graph @g(%x: f33[1]) -> (%x) {}"), @"line 1, column 14: expected an element type: bool, u8, i32, i64, f32, f64 or codes such as qs4, found `f33`");
    assert_snapshot!(error("graph @g(%x: f32[1], %x: f32[1]) -> (%x) {}"), @"line 1, column 22: `%x` is defined twice");
    assert_snapshot!(error("graph @g(%x: f32[1]) -> (%y) {\n}"), @"line 1, column 26: output `y` is `%y`, which no line defines");
    assert_snapshot!(error("graph @g(%x: f32[1]) -> (y = %x:1) {\n}"), @"line 1, column 30: `%x` has 1 result(s), so `:1` does not exist");
    assert_snapshot!(error("graph @g(%x: f32[1]) -> (%x) {} %"), @"line 1, column 33: expected a name after `%`, found `%`");
    assert_snapshot!(body_error("  %y = relu %z : f32[1, 3]"), @"line 2, column 13: `%z` is not defined above");
    assert_snapshot!(body_error("  %y = relu %x : f32[1, 4]"), @"line 2, column 18: declared f32[1, 4], inferred f32[1, 3]");
    assert_snapshot!(body_error("  %y = rely %x : f32[1, 3]"), @"line 2, column 8: expected an operation, found `rely`");
    assert_snapshot!(body_error("  %x = relu %x : f32[1, 3]"), @"line 2, column 3: `%x` is defined twice");
    assert_snapshot!(body_error("  %y = matmul %x, %x : f32[1, 3]"), @"line 2, column 8: matmul takes a[.., M, K] and b[.., K, N] of f32, found f32[1, 3], f32[1, 3]");
    assert_snapshot!(body_error("  %y = relu %x {fast} : f32[1, 3]"), @"line 2, column 17: `relu` has no attribute `fast`");
    assert_snapshot!(body_error("  %y = elu %x : f32[1, 3]"), @"line 2, column 8: `elu` needs attribute `alpha`");
    assert_snapshot!(body_error("  %y = elu %x {alpha = nan} : f32[1, 3]"), @"line 2, column 16: expected a number for `alpha` in its range, found `nan`");
    assert_snapshot!(body_error("  %y = elu %x {alpha = 1, alpha = 2} : f32[1, 3]"), @"line 2, column 27: attribute `alpha` is defined twice");
    assert_snapshot!(body_error("  %y = linear %x {act = clip(1.0)} : f32[1, 3]"), @"line 2, column 19: expected `clip` with a number for `max`, found `clip`");
    assert_snapshot!(body_error("  %y = fake_quant %x, %x {s5} : f32[1, 3]"), @"line 2, column 27: expected a scheme such as `s4` or `u8`, found `s5`");
    assert_snapshot!(body_error("  %y = fake_quant %x, %x {axis = 0} : f32[1, 3]"), @"line 2, column 8: `fake_quant` needs attribute `s4` or another scheme");
    assert_snapshot!(body_error("  %y = quantize %x, %x : f32[1, 3]"), @"line 2, column 8: expected codes, such as qs8, as result of `quantize`, found `f32[1, 3]`");
    assert_snapshot!(body_error("  %y = const [1, 2] : u8[3]"), @"line 2, column 14: a constant of type u8[3] has 3 elements, found 2");
    assert_snapshot!(body_error("  %y = const [1, 300] : u8[2]"), @"line 2, column 18: expected an element of u8, found `300`");
    assert_snapshot!(body_error("  %y = const [1.5] : i32[1]"), @"line 2, column 15: expected an element of i32, found `1.5`");
    assert_snapshot!(body_error("  %y = const [1e39] : f32[1]"), @"line 2, column 15: expected an element of f32, found `1e39`");
    assert_snapshot!(body_error("  %y = const [.5] : f32[1]"), @"line 2, column 15: expected a token, found `.`");
    assert_snapshot!(body_error("  %y = const \"é\" : f32[1]"), @r#"line 2, column 14: expected `[elements]`, `splat(x)`, `rand(seed)` or `file("name")`, found `"é"`"#);
    assert_snapshot!(body_error("  \"é\" é"), @r#"line 2, column 3: expected `%name`, found `"é"`"#);
    assert_snapshot!(body_error("  %y = const rand(-1) : f32[1]"), @"line 2, column 19: expected a seed below 2^64, found `-1`");
    assert_snapshot!(body_error(&format!("  %y = {} %x : f32[1, 3]", "long".repeat(100))), @"line 2, column 8: expected an operation, found `longlonglonglonglonglonglonglonglonglong...`");
}

#[test]
fn sizes_are_bounded() {
    assert_snapshot!(body_error("%y = const rand(1) : f32[1048576, 1048577]"), @"line 2, column 35: more than 1099511627776 elements");
    assert_snapshot!(body_error("%y = const rand(1) : f32[0, 18446744073709551615]"), @"line 2, column 29: more than 1099511627776 elements");
    assert_snapshot!(body_error("%y = const rand(1) : f32[18446744073709551616]"), @"line 2, column 26: expected an extent, found `18446744073709551616`");
    assert_snapshot!(body_error(&format!("%y = const rand(1) : f32[{}1]", "1, ".repeat(16))), @"line 2, column 74: more than 16 axes");
    assert_snapshot!(body_error(&format!("%y = transpose %x {{perm = [{}1]}} : f32[1]", "1, ".repeat(1000))), @"line 2, column 76: more than 16 numbers in an attribute");
    assert_snapshot!(body_error(&format!("%y = concat {}%x {{axis = 0}} : f32[1]", "%x, ".repeat(70_000))), @"line 2, column 262153: more than 65535 operands");
    let most =
        format!("graph @g(%x: f32[1]) -> () {{ %y = concat {}%x {{axis = 0}} : f32[65535] }}", "%x, ".repeat(65_534));
    verify(&text::parse(&most).unwrap()).unwrap();
    // Nothing of this size is made while reading, printing, comparing or verifying.
    let huge = "graph @g() -> () {\n  %y = const rand(1) : f32[1048576, 1048576]\n  %z = const splat(2.0) : f64[1099511627776]\n}\n";
    let graph = text::parse(huge).unwrap();
    assert_eq!(text::print(&graph), huge);
    assert!(graph == text::parse(huge).unwrap());
    verify(&graph).unwrap();
    let refused = interp::run(&graph, &BTreeMap::new()).unwrap_err();
    assert_snapshot!(refused, @"node `y`, f32[1048576, 1048576]: the values of the graph have more than 1073741824 elements together");
}

#[test]
fn reading_takes_linear_time() {
    let seconds = |text: &str| {
        let start = Instant::now();
        let _ = text::parse(text);
        start.elapsed().as_secs_f64()
    };
    let n = 200_000;
    let one_line: String = (0..n).map(|i| format!("%v{i} = relu %x : f32[1] ")).collect();
    for text in [
        format!("graph @g(%x: f32[1]) -> () {{{one_line}}}"),
        format!("graph @g(%x: f32[1]) -> () {{%c = const [{}1.0] : f32[{}]}}", "1.0, ".repeat(n), n + 1),
        "// ".repeat(n),
        " ".repeat(n) + &"/".repeat(n),
        format!("graph @\"{}", "é\\".repeat(n)),
        format!("graph @g({}", "(".repeat(n)),
        format!("graph @g(%x: f32[{}", "[".repeat(n)),
        format!("graph @g(%x: f32[1] @ {}", "\"a\", ".repeat(n)),
        format!("graph @g(%x: f32[1]) -> ({}", "%x, ".repeat(n)),
        format!("graph @g() -> () {{{}", "meta \"a\" = \"b\" ".repeat(n)),
        format!("graph @g() -> () {{%y = a {{{}", "a, ".repeat(n)),
    ] {
        let seconds = seconds(&text);
        assert!(seconds < 20.0, "{seconds} s for {}...", &text[..40]);
    }
}

/// Cuts, doubles, swaps and replaces parts of a text.
fn mutate(text: &str, dice: &mut Dice) -> String {
    const SPLICES: &str =
        "% : { } [ ] ( ) , = \" @ -> - 0 1 9999999999999999999 -1 inf nan f32 qs4 qu16 i64 1e999 // \n é s3";
    let splices: Vec<&str> = SPLICES.split(' ').collect();
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + dice.below(3) {
        let (a, b) = (dice.below(bytes.len()), dice.below(bytes.len()));
        let (start, end) = (a.min(b), a.max(b).min(a.min(b) + 1 + dice.below(60)));
        match dice.below(8) {
            // Another digit often leaves a text that still reads.
            5..=7 => {
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    bytes[dice.pick(&digits)] = b'0' + dice.below(10) as u8;
                }
            }
            0 => drop(bytes.drain(start..end)),
            1 => {
                let part = bytes[start..end].to_vec();
                let at = dice.below(bytes.len());
                bytes.splice(at..at, part);
            }
            2 => bytes.swap(a, b),
            _ => {
                let splice = dice.pick(&splices);
                bytes.splice(start..(start + dice.below(4)).min(bytes.len()), splice.bytes());
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn mutants_never_panic() {
    let mut dice = Dice::new(20_261_123);
    let (mut n_read, mut n_ran) = (0, 0);
    for i in 0..4000 {
        let sample = match i % 4 {
            0 => FLOAT.to_owned(),
            1 => QUANT.to_owned(),
            _ => text::print(&random_graph(i, 12)),
        };
        let mutant = mutate(&sample, &mut dice);
        let Ok(graph) = text::parse_with_weights(&mutant, &|_, ty| {
            (ty.n_elements() < 5000).then(|| Constant { ty: ty.clone(), data: ConstData::Rand(1) })
        }) else {
            continue;
        };
        n_read += 1;
        let printed = text::print(&graph);
        if !printed.contains("file(") {
            assert!(text::parse(&printed).unwrap() == graph, "{mutant}");
        }
        let n_elements = |graph: &Graph| -> usize {
            graph.topo().iter().map(|id| graph.ty(id.value()).n_elements()).fold(0, usize::saturating_add)
        };
        if verify(&graph).is_ok() && n_elements(&graph) < 100_000 {
            n_ran += usize::from(interp::run(&graph, &random_inputs(&graph, i)).is_ok());
        }
    }
    assert!(n_read > 200 && n_ran > 50, "{n_read} mutants parse, {n_ran} run");
}
