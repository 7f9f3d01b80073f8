//! Forward error bounds of float graphs: how far results in `f32` may lie from
//! those in exact arithmetic, element by element.
//!
//! Standard running error analysis with unit roundoff `u = 2^-24`, to first
//! order and then doubled. Constants count as rounded once, so the bound also
//! covers parameters that a pass computed in `f64` and rounded.

use std::collections::BTreeMap;

use qail_ir::{
    BinaryFn, DType, Elem, Graph, NodeId, Op, Origin, UnaryFn,
    interp::{Data, Interpreter, Tensor, run},
};

const U: f64 = 1.0 / (1u64 << 24) as f64;

/// True if every operation has an error bound here.
pub(crate) fn covers(graph: &Graph) -> bool {
    graph.topo().into_iter().all(|id| match &graph.node(id).op {
        Op::Unary(unary) => has_lipschitz(unary.f),
        Op::Binary(binary) => !matches!(binary.f, BinaryFn::Pow | BinaryFn::Mod | BinaryFn::Rem),
        Op::Linear(linear) => linear.groups == 1 && linear.act.is_none_or(has_lipschitz),
        Op::Input(_) | Op::Const(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => true,
        Op::Concat(_) | Op::Expand(_) | Op::Cast(_) | Op::Unfold(_) => true,
        _ => false,
    })
}

fn has_lipschitz(f: UnaryFn) -> bool {
    matches!(f, UnaryFn::Relu | UnaryFn::Tanh | UnaryFn::Clip { .. } | UnaryFn::Abs | UnaryFn::Neg)
        || matches!(f, UnaryFn::LeakyRelu { .. } | UnaryFn::Elu { .. } | UnaryFn::Sigmoid | UnaryFn::Silu)
}

/// Bound of the error of every output.
pub(crate) fn output_errors(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f64>> {
    let mut values: BTreeMap<NodeId, Tensor> = BTreeMap::new();
    let mut errors: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
    let interpreter = Interpreter::new(graph).unwrap();
    interpreter
        .observe(inputs, |id, tensor| {
            values.insert(id, tensor.clone());
        })
        .unwrap();
    for id in graph.topo() {
        let operands = graph.operands(id);
        let of =
            |i: usize| (numbers(&values[&operands[i].node]), &errors[&operands[i].node], &values[&operands[i].node]);
        let y = numbers(&values[&id]);
        let error: Vec<f64> = match &graph.node(id).op {
            Op::Input(_) => vec![0.0; y.len()],
            Op::Const(_) => y.iter().map(|y| U * y.abs()).collect(),
            Op::Unary(unary) => {
                let (_, e, _) = of(0);
                e.iter().zip(&y).map(|(e, y)| lipschitz(unary.f) * e + U * y.abs()).collect()
            }
            Op::Binary(binary) => {
                let spread = |i: usize| {
                    let (x, e, t) = of(i);
                    let to = &values[&id].ty.shape;
                    (expand(&x, &t.ty.shape, to), expand(e, &t.ty.shape, to))
                };
                let ((a, ea), (b, eb)) = (spread(0), spread(1));
                (0..y.len()).map(|i| binary_error(binary.f, (a[i], ea[i]), (b[i], eb[i]), y[i])).collect()
            }
            Op::Linear(linear) => {
                let ((x, ex, t), (w, ew, _), (b, eb, _)) = (of(0), of(1), of(2));
                let k = *t.ty.shape.last().unwrap();
                let n = b.len();
                let l = linear.act.map_or(1.0, lipschitz);
                let one = |i: usize| {
                    let (row, column) = (i / n, i % n);
                    let (mut carried, mut size) = (eb[column], b[column].abs());
                    for j in 0..k {
                        let (x, ex) = (x[row * k + j].abs(), ex[row * k + j]);
                        let (w, ew) = (w[j * n + column].abs(), ew[j * n + column]);
                        carried += x * ew + w * ex;
                        size += x * w;
                    }
                    l * (carried + (k + 2) as f64 * U * size) + U * y[i].abs()
                };
                (0..y.len()).map(one).collect()
            }
            Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Slice(_)
            | Op::Concat(_)
            | Op::Expand(_)
            | Op::Cast(_)
            | Op::Unfold(_) => moved(
                graph,
                id,
                &operands
                    .iter()
                    .map(|value| (errors[&value.node].clone(), values[&value.node].ty.shape.clone()))
                    .collect::<Vec<_>>(),
            ),
            other => panic!("no error bound for {other}"),
        };
        errors.insert(id, error);
    }
    graph
        .outputs
        .iter()
        .map(|output| (output.name.clone(), errors[&output.value.node].iter().map(|e| 2.0 * e).collect()))
        .collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match &tensor.data {
        Data::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
        Data::F64(x) => x.clone(),
        Data::Int(x) => x.iter().map(|&x| x as f64).collect(),
    }
}

fn lipschitz(f: UnaryFn) -> f64 {
    match f {
        UnaryFn::Relu | UnaryFn::Tanh | UnaryFn::Clip { .. } | UnaryFn::Abs | UnaryFn::Neg => 1.0,
        UnaryFn::LeakyRelu { alpha } | UnaryFn::Elu { alpha } => f64::from(alpha.abs()).max(1.0),
        UnaryFn::Sigmoid => 0.25,
        UnaryFn::Silu => 1.1,
        other => panic!("no error bound for {}", other.name()),
    }
}

fn binary_error(f: BinaryFn, (a, ea): (f64, f64), (b, eb): (f64, f64), y: f64) -> f64 {
    let carried = match f {
        BinaryFn::Add | BinaryFn::Sub => ea + eb,
        BinaryFn::Mul => a.abs() * eb + b.abs() * ea,
        BinaryFn::Div => (ea + y.abs() * eb) / b.abs(),
        BinaryFn::Min | BinaryFn::Max => ea.max(eb),
        other => panic!("no error bound for {}", other.name()),
    };
    carried + U * y.abs()
}

fn expand(x: &[f64], from: &[usize], to: &[usize]) -> Vec<f64> {
    let lead = to.len() - from.len();
    (0..to.iter().product::<usize>())
        .map(|i| {
            let (mut rest, mut at, mut stride) = (i, 0, 1);
            for axis in (0..to.len()).rev() {
                let index = rest % to[axis];
                rest /= to[axis];
                if axis >= lead {
                    let extent = from[axis - lead];
                    at += if extent == 1 { 0 } else { index * stride };
                    stride *= extent;
                }
            }
            x[at]
        })
        .collect()
}

/// Errors move as elements do: runs the operation on them.
fn moved(graph: &Graph, id: NodeId, operands: &[(Vec<f64>, Vec<usize>)]) -> Vec<f64> {
    let node = graph.node(id);
    if node.outputs[0].elem != Elem::Plain(DType::F32) {
        return operands[0].0.clone();
    }
    let mut alone = Graph::new("errors");
    let mut inputs = BTreeMap::new();
    let mut values = Vec::new();
    for (i, (errors, shape)) in operands.iter().enumerate() {
        let tensor = Tensor::f32(shape.clone(), errors.iter().map(|&e| e as f32).collect());
        values.push(alone.add_input(format!("x{i}"), tensor.ty.clone()));
        inputs.insert(format!("x{i}"), tensor);
    }
    let y = alone.add("y", node.op.clone(), &values, Origin::default()).unwrap().value();
    alone.add_output("y", y);
    numbers(&run(&alone, &inputs).unwrap()["y"])
}

/// Bounds of the distance between the graph on codes and the graph without
/// quantizers, for a graph with quantizers and steps: every rounding at its
/// worst and in the same direction, clipping as it happens.
///
/// Also gives the outputs of the graph without quantizers.
pub(crate) fn quantization_errors(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
) -> (BTreeMap<String, Tensor>, BTreeMap<String, Vec<f64>>) {
    let mut floats = graph.clone();
    for id in graph.topo() {
        if let (Op::FakeQuant(_), [x, ..]) = (&graph.node(id).op, &floats.operands(id)[..]) {
            floats.replace_uses(id.value(), *x);
        }
    }
    let mut values: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
    let mut shapes: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let interpreter = Interpreter::new(&floats).unwrap();
    let outputs = interpreter
        .observe(inputs, |id, tensor| {
            values.insert(id, numbers(tensor));
            shapes.insert(id, tensor.ty.shape.clone());
        })
        .unwrap();
    let mut errors: BTreeMap<NodeId, Vec<f64>> = BTreeMap::new();
    for id in graph.topo() {
        let operands: Vec<NodeId> = graph.operands(id).iter().map(|value| value.node).collect();
        let error = match &graph.node(id).op {
            Op::Input(_) | Op::Const(_) => vec![0.0; values[&id].len()],
            Op::Unary(unary) => errors[&operands[0]].iter().map(|e| lipschitz(unary.f) * e).collect(),
            Op::Binary(binary) => {
                assert_eq!(binary.f, BinaryFn::Mul);
                let r = &values[&operands[1]];
                errors[&operands[0]].iter().zip(r.iter().cycle()).map(|(e, r)| e * r.abs()).collect()
            }
            Op::FakeQuant(fake) => {
                let (x, steps) = (&values[&operands[0]], &values[&operands[1]]);
                let z = operands.get(2).map_or(0.0, |z| values[z][0]);
                let one = |(i, &x): (usize, &f64)| {
                    let s = steps[i % steps.len()];
                    let clipped = x.clamp((f64::from(fake.lo) - z) * s, (f64::from(fake.hi) - z) * s);
                    let e = errors[&operands[0]][i];
                    // A multiplier is within one part in 2^15 of its factor.
                    e + (x - clipped).abs() + s / 2.0 + (x.abs() + e) * 2f64.powi(-15)
                };
                x.iter().enumerate().map(one).collect()
            }
            Op::Linear(linear) => {
                let (x, w, ex, ew) =
                    (&values[&operands[0]], &values[&operands[1]], &errors[&operands[0]], &errors[&operands[1]]);
                let n = shapes[&operands[2]][0];
                let k = x.len() / (values[&id].len() / n);
                let step_of = |node: NodeId, i: usize| {
                    let steps = &values[&graph.operands(node)[1].node];
                    steps[i % steps.len()]
                };
                let one = |i: usize| {
                    let (row, column) = (i / n, i % n);
                    let bias = step_of(operands[0], 0) * step_of(operands[1], column) / 2.0;
                    let l = linear.act.map_or(1.0, lipschitz);
                    l * (bias
                        + (0..k)
                            .map(|j| {
                                let (at_x, at_w) = (row * k + j, j * n + column);
                                x[at_x].abs() * ew[at_w] + (w[at_w].abs() + ew[at_w]) * ex[at_x]
                            })
                            .sum::<f64>())
                };
                (0..values[&id].len()).map(one).collect()
            }
            other => panic!("no error bound for {other}"),
        };
        errors.insert(id, error);
        if let Op::FakeQuant(_) = graph.node(id).op {
            // What readers see: the value that the bypass gives them.
            values.insert(id, values[&operands[0]].clone());
        }
    }
    let of_output = graph.outputs.iter().map(|output| {
        let error = &errors[&output.value.node];
        let y = numbers(&outputs[&output.name]);
        // The last multiplication and what follows round in f32.
        (output.name.clone(), error.iter().zip(y).map(|(e, y)| e * (1.0 + 4.0 * U) + 16.0 * U * y.abs()).collect())
    });
    let errors = of_output.collect();
    (outputs, errors)
}
