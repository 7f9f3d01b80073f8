//! A multi-layer perceptron with its loss and its gradients: the mean square
//! error of `x[B, D]` against `target.y[B, A]`, quantizers of learned steps in
//! front of every layer and on all weights.

use qail_ir::{Graph, ValueId, text};
use qail_train::{Distance, Head, LossSpec, Weighting, attach, differentiate};

/// The joint graph. Activations are quantized to `bits`; weights to 4 bits.
/// Outputs are `y`, `loss`, `loss.qail` and `grad.<constant>`.
pub(crate) fn joint(batch: usize, widths: &[usize], act: &str, bits: u8) -> Graph {
    let mut graph = forward(batch, widths, act, bits);
    let head = Head::Deterministic { output: "y".to_owned() };
    let spec = LossSpec { head, qail: Some(Distance::L2), qbc: None, weighting: Weighting::None, masked: None };
    let loss = attach(&mut graph, &spec).unwrap();
    let constants: Vec<ValueId> = graph.topo().into_iter().map(|id| id.value()).collect();
    let wrt: Vec<ValueId> = constants.into_iter().filter(|&value| graph.const_of(value).is_some()).collect();
    differentiate(&graph, loss.total, &wrt).unwrap().graph
}

fn forward(batch: usize, widths: &[usize], act: &str, bits: u8) -> Graph {
    let mut lines = Vec::new();
    let last = widths.len() - 2;
    for (i, pair) in widths.windows(2).enumerate() {
        let (k, n) = (pair[0], pair[1]);
        let x = if i == 0 { "x".to_owned() } else { format!("a{i}") };
        let y = if i == last { "y".to_owned() } else { format!("l{i}") };
        let sign = if i == 0 || act != "relu" { "s" } else { "u" };
        // Steps that nobody reads twice: odd numbers, far from ties.
        let step = [0.2213, 0.1371, 0.0913, 0.0713][i.min(3)] * f32::from(16u8 >> (bits / 4)) / 8.0;
        lines.push(format!(
            "%w{i} = const rand({seed}) : f32[{k}, {n}]
            %w{i}s = const splat({ws}) : f32[{n}]
            %b{i} = const rand({bias}) : f32[{n}]
            %a{i}s = const splat({step}) : f32[]
            %wq{i} = fake_quant %w{i}, %w{i}s {{s4, lo = -7, axis = 1}} : f32[{k}, {n}]
            %q{i} = fake_quant %{x}, %a{i}s {{{sign}{bits}}} : f32[{batch}, {k}]
            %{y} = linear %q{i}, %wq{i}, %b{i} : f32[{batch}, {n}]",
            seed = i + 1,
            bias = i + 11,
            ws = 0.1434 + 0.01 * i as f32,
        ));
        if i < last {
            lines.push(format!("%a{next} = {act} %l{i} : f32[{batch}, {n}]", next = i + 1));
        }
    }
    let whole =
        format!("graph @mlp(%x: f32[{batch}, {}]) -> (%y) {{batch = 0}} {{\n{}\n}}", widths[0], lines.join("\n"));
    text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{whole}"))
}
