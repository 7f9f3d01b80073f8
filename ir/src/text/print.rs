//! Graph to text.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use crate::{
    ConstData, Constant, Elem, FakeQuant, Grad, Graph, NodeId, Op, Origin, QuantScheme, Reduce, Slice, TensorType,
    TopKPart, UnaryFn, Unfold, ValueId, Window, eq::canonical_order,
};

use super::{
    MAX_INLINE_ELEMENTS, function,
    function::float,
    lexer::{is_plain_value, is_plain_word, quote},
    types,
};

/// Writes a graph; long constants stay outside as `file("name")`.
pub fn print(graph: &Graph) -> String {
    print_with_weights(graph).0
}

/// Writes a graph, and gives the constants that stay outside by the name in
/// their `file("name")`, which is that of their node.
pub fn print_with_weights(graph: &Graph) -> (String, BTreeMap<String, Arc<Constant>>) {
    let mut weights = BTreeMap::new();
    let mut out = header(graph);
    for (key, value) in &graph.metadata {
        line(&mut out, &format!("meta {} = {}", quote(key), quote(value)));
    }
    schedule(&mut out, graph);
    for node in canonical_order(graph) {
        if !matches!(graph.node(node).op, Op::Input(_)) {
            line(&mut out, &statement(graph, node, &mut weights));
        }
    }
    out.push_str("}\n");
    (out, weights)
}

fn line(out: &mut String, text: &str) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(out, "  {text}");
}

/// States, then how often the graph runs.
fn schedule(out: &mut String, graph: &Graph) {
    for state in &graph.states {
        let axis = state.element_axis.map(|axis| format!("element_axis = {axis}"));
        let limit = state.limit.map(|limit| format!("limit = {limit}"));
        let attributes: Vec<String> = axis.into_iter().chain(limit).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) };
        line(out, &format!("state {} = {}{attributes}", quote(&state.input), quote(&state.output)));
    }
    let Some(repeat) = &graph.repeat else { return };
    let turn = repeat.turn.as_deref().map_or(String::new(), |turn| format!(" {}", quote(turn)));
    line(out, &format!("repeat {}{turn}", repeat.n));
    for carry in &repeat.carries {
        line(out, &format!("carry {} = {}", quote(&carry.input), quote(&carry.output)));
    }
}

fn header(graph: &Graph) -> String {
    let inputs: Vec<String> = graph
        .inputs()
        .iter()
        .map(|&id| {
            let node = graph.node(id);
            let origin = if node.origin == Origin::new(node.name.as_str()) {
                String::new()
            } else if node.origin.is_empty() {
                " @ none".to_owned()
            } else {
                origin(&node.origin)
            };
            format!("{}: {}{origin}", definition(&node.name), types(&node.outputs))
        })
        .collect();
    let outputs: Vec<String> = graph
        .outputs
        .iter()
        .map(|output| {
            let value = reference(graph, output.value);
            let same = output.value.slot == 0 && graph.node(output.value.node).name == output.name;
            if same { value } else { format!("{} = {value}", word(&output.name)) }
        })
        .collect();
    let batch = graph.batch_axis.map_or(String::new(), |axis| format!(" {{batch = {axis}}}"));
    format!("graph @{}({}) -> ({}){batch} {{\n", word(&graph.name), inputs.join(", "), outputs.join(", "))
}

fn statement(graph: &Graph, id: NodeId, weights: &mut BTreeMap<String, Arc<Constant>>) -> String {
    let node = graph.node(id);
    let mut out = format!("{} = {}", definition(&node.name), node.op.name());
    if let Op::Const(c) = &node.op {
        out.push(' ');
        out.push_str(&literal(&node.name, graph.constant(c.id), weights));
    }
    for (i, value) in graph.operands(id).into_iter().enumerate() {
        out.push_str(if i == 0 { " " } else { ", " });
        out.push_str(&reference(graph, value));
    }
    let attributes = attributes(&node.op);
    if !attributes.is_empty() {
        let _ = write!(out, " {{{}}}", attributes.join(", "));
    }
    let _ = write!(out, " : {}{}", types(&node.outputs), origin(&node.origin));
    out
}

fn definition(name: &str) -> String {
    if is_plain_value(name) { format!("%{name}") } else { format!("%{}", quote(name)) }
}

fn reference(graph: &Graph, value: ValueId) -> String {
    let name = definition(&graph.node(value.node).name);
    if value.slot == 0 { name } else { format!("{name}:{}", value.slot) }
}

fn word(name: &str) -> String {
    if is_plain_word(name) { name.to_owned() } else { quote(name) }
}

fn types(types: &[TensorType]) -> String {
    types.iter().map(TensorType::to_string).collect::<Vec<_>>().join("; ")
}

fn origin(origin: &Origin) -> String {
    let names: Vec<String> = origin.names().map(quote).collect();
    if names.is_empty() { String::new() } else { format!(" @ {}", names.join(", ")) }
}

fn literal(name: &str, constant: &Arc<Constant>, weights: &mut BTreeMap<String, Arc<Constant>>) -> String {
    match &constant.data {
        ConstData::Splat(value) => return format!("splat({})", splat(*value, constant.ty.elem)),
        ConstData::Rand(seed) => return format!("rand({seed})"),
        ConstData::Bytes(_) | ConstData::Source(_) => {}
    }
    let short = constant.ty.n_elements() <= MAX_INLINE_ELEMENTS;
    match if short { types::elements(constant) } else { None } {
        Some(elements) => format!("[{}]", elements.join(", ")),
        None => {
            weights.insert(name.to_owned(), Arc::clone(constant));
            format!("file({})", quote(name))
        }
    }
}

/// Whole numbers of integer types go without a point.
fn splat(value: f64, elem: Elem) -> String {
    let is_float = matches!(elem, Elem::Plain(dtype) if dtype.is_float());
    let is_whole = value.abs() < 1e15 && value == value.trunc() && !(value == 0.0 && value.is_sign_negative());
    if is_whole && !is_float { format!("{value}") } else { float(value) }
}

/// Attributes in the order in which they print.
fn attributes(op: &Op) -> Vec<String> {
    match op {
        Op::Input(_)
        | Op::Const(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Reshape(_)
        | Op::Expand(_)
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Film(_)
        | Op::Lookup(_) => vec![],
        Op::Gather(gather) => vec![format!("axis = {}", gather.axis)],
        Op::Scatter(scatter) => vec![format!("f = {}", scatter.f.name())],
        Op::ArgReduce(op) => [
            vec![format!("axis = {}", op.axis)],
            flags(&[("largest", op.largest), ("keep_dims", op.keep_dims), ("last", op.last)]),
        ]
        .concat(),
        Op::TopK(op) => [
            vec![format!("axis = {}", op.axis), format!("k = {}", op.k)],
            flags(&[("largest", op.largest), ("indices", op.part == TopKPart::Indices)]),
        ]
        .concat(),
        Op::CumSum(op) => {
            [vec![format!("axis = {}", op.axis)], flags(&[("exclusive", op.exclusive), ("reverse", op.reverse)])]
                .concat()
        }
        Op::Unfold(unfold) => windows(unfold),
        Op::Softmax(op) => [vec![format!("axis = {}", op.axis)], flags(&[("log", op.log)])].concat(),
        Op::Normalize(op) => {
            [vec![format!("axes = {:?}", op.axes), format!("eps = {}", float(op.eps))], flags(&[("center", op.center)])]
                .concat()
        }
        Op::Attention(op) => vec![format!("scale = {}", float(op.scale))],
        Op::Rope(op) => flags(&[("interleaved", op.interleaved)]),
        Op::QAdd(op) => {
            let mut out = range(op.scheme, op.lo, op.hi);
            out.extend(offset("zero_a", op.zero_a));
            out.extend(offset("zero_b", op.zero_b));
            out.extend(zero_point(op.zero_point));
            out
        }
        Op::QSum(op) => {
            let mut out = vec![format!("axes = {:?}", op.axes)];
            out.extend(flags(&[("keep_dims", op.keep_dims)]));
            out.extend(zero_point(op.zero_point));
            out
        }
        Op::Unary(unary) => unary.f.params().into_iter().map(|(key, x)| format!("{key} = {}", float(x))).collect(),
        Op::Linear(linear) => [act(linear.act), groups(linear.groups)].concat(),
        Op::QLinear(linear) => groups(linear.groups),
        Op::Transpose(transpose) => vec![format!("perm = {:?}", transpose.perm)],
        Op::Slice(slice) => slice_axes(slice),
        Op::Concat(concat) => vec![format!("axis = {}", concat.axis)],
        Op::Reduce(reduce) => reduced(reduce),
        Op::FakeQuant(fake) => quantizer(fake),
        Op::Quantize(quantize) => {
            let mut out = range(quantize.scheme, quantize.lo, quantize.hi);
            out.extend(zero_point(quantize.zero_point));
            out
        }
        Op::Requantize(requantize) => {
            let mut out = range(requantize.scheme, requantize.lo, requantize.hi);
            out.extend(zero_point(requantize.zero_point));
            out
        }
        Op::Dequantize(dequantize) => zero_point(dequantize.zero_point).into_iter().collect(),
        Op::LinearWq(linear) => {
            let mut out = vec![format!("group = {}", linear.group)];
            out.extend(act(linear.act));
            out
        }
        Op::Grad(grad) => grad_attributes(grad),
    }
}

fn grad_attributes(grad: &Grad) -> Vec<String> {
    match grad {
        Grad::Unary(unary) => vec![format!("f = {}", function::call(unary.f))],
        Grad::Binary(grad) => vec![format!("f = {}", grad.f.name()), format!("wrt = {}", grad.wrt.slot())],
        Grad::Reduce(reduce) => [vec![format!("f = {}", reduce.f.name())], reduced(reduce)].concat(),
        Grad::Slice(grad) => slice_axes(&grad.slice),
        Grad::Unfold(grad) => windows(&grad.unfold),
        Grad::FakeQuant(grad) => [quantizer(&grad.fake), vec![format!("wrt = {}", grad.wrt.slot())]].concat(),
    }
}

fn slice_axes(slice: &Slice) -> Vec<String> {
    let starts: Vec<usize> = slice.axes.iter().map(|axis| axis.start).collect();
    let lens: Vec<usize> = slice.axes.iter().map(|axis| axis.len).collect();
    let steps: Vec<isize> = slice.axes.iter().map(|axis| axis.step).collect();
    let mut out = vec![format!("start = {starts:?}"), format!("len = {lens:?}")];
    if steps.iter().any(|&step| step != 1) {
        out.push(format!("step = {steps:?}"));
    }
    out
}

fn reduced(reduce: &Reduce) -> Vec<String> {
    let mut out = vec![format!("axes = {:?}", reduce.axes)];
    if reduce.keep_dims {
        out.push("keep_dims".to_owned());
    }
    out
}

fn quantizer(fake: &FakeQuant) -> Vec<String> {
    let mut out = vec![fake.scheme.to_string()];
    out.extend(range(fake.scheme, fake.lo, fake.hi));
    out.extend(fake.axis.map(|axis| format!("axis = {axis}")));
    out.extend(fake.group.map(|group| format!("group = {group}")));
    out
}

fn act(act: Option<UnaryFn>) -> Vec<String> {
    act.map(|f| format!("act = {}", function::call(f))).into_iter().collect()
}

fn groups(groups: usize) -> Vec<String> {
    if groups == 1 { vec![] } else { vec![format!("groups = {groups}")] }
}

fn range(scheme: QuantScheme, lo: i32, hi: i32) -> Vec<String> {
    let mut out = Vec::new();
    if lo != scheme.lo() {
        out.push(format!("lo = {lo}"));
    }
    if hi != scheme.hi() {
        out.push(format!("hi = {hi}"));
    }
    out
}

fn zero_point(zero_point: i32) -> Option<String> {
    offset("zero_point", zero_point)
}

fn offset(key: &str, value: i32) -> Option<String> {
    (value != 0).then(|| format!("{key} = {value}"))
}

fn flags(flags: &[(&str, bool)]) -> Vec<String> {
    flags.iter().filter(|(_, set)| *set).map(|(key, _)| (*key).to_owned()).collect()
}

/// Lists that only say the usual are left out.
fn windows(unfold: &Unfold) -> Vec<String> {
    let numbers = |of: fn(&Window) -> usize| unfold.windows.iter().map(of).collect::<Vec<usize>>();
    let mut out = vec![format!("out = {:?}", numbers(|window| window.out))];
    let lists = [
        ("size", numbers(|window| window.size)),
        ("stride", numbers(|window| window.stride)),
        ("dilation", numbers(|window| window.dilation)),
        ("spread", numbers(|window| window.spread)),
    ];
    for (key, list) in lists {
        if list.iter().any(|&number| number != 1) {
            out.push(format!("{key} = {list:?}"));
        }
    }
    let pads: Vec<isize> = unfold.windows.iter().map(|window| window.pad).collect();
    if pads.iter().any(|&pad| pad != 0) {
        out.push(format!("pad = {pads:?}"));
    }
    if unfold.fill.to_bits() != 0 {
        out.push(format!("fill = {}", float(unfold.fill)));
    }
    out
}
