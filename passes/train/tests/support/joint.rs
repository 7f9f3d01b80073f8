//! A multi-layer perceptron with its backward pass, written down by hand: the
//! mean square error of `x[B, D]` against `t[B, A]`, quantizers of learned steps
//! in front of every layer and on all weights.

use qail_ir::{Graph, text};

/// The joint graph. Activations are quantized to `bits`; weights to 4 bits.
/// Outputs are `loss` and `grad.<constant>`.
pub(crate) fn joint(batch: usize, widths: &[usize], act: &str, bits: u8) -> Graph {
    let mut lines = vec!["%k2 = const splat(2.0) : f32[]".to_owned()];
    let mut outputs = vec!["loss = %loss".to_owned()];
    let n_layers = widths.len() - 1;
    let b = batch;
    let quantizer = |i: usize| if i == 0 || act != "relu" { format!("s{bits}") } else { format!("u{bits}") };
    let last = n_layers - 1;
    for (i, pair) in widths.windows(2).enumerate() {
        let (k, n) = (pair[0], pair[1]);
        let a = if i == 0 { "x".to_owned() } else { format!("a{i}") };
        let q = quantizer(i);
        // Steps that nobody reads twice: odd numbers, far from ties.
        let step = [0.2213, 0.1371, 0.0913, 0.0713][i.min(3)] * f32::from(16u8 >> (bits / 4)) / 8.0;
        lines.push(format!(
            "%w{i} = const rand({seed}) : f32[{k}, {n}]
            %w{i}s = const splat({ws}) : f32[{n}]
            %b{i} = const rand({bias}) : f32[{n}]
            %a{i}s = const splat({step}) : f32[]
            %wq{i} = fake_quant %w{i}, %w{i}s {{s4, lo = -7, axis = 1}} : f32[{k}, {n}]
            %q{i} = fake_quant %{a}, %a{i}s {{{q}}} : f32[{b}, {k}]
            %l{i} = linear %q{i}, %wq{i}, %b{i} : f32[{b}, {n}]",
            seed = i + 1,
            bias = i + 11,
            ws = 0.1434 + 0.01 * i as f32,
        ));
        if i < last {
            lines.push(format!("%a{next} = {act} %l{i} : f32[{b}, {n}]", next = i + 1));
        }
    }
    let n = widths[n_layers];
    lines.push(format!(
        "%d = sub %l{last}, %t : f32[{b}, {n}]
        %sq = mul %d, %d : f32[{b}, {n}]
        %loss = reduce_mean %sq {{axes = [0, 1]}} : f32[]
        %scale = const splat({scale}) : f32[]
        %d2 = mul %d, %k2 : f32[{b}, {n}]
        %g{last} = mul %d2, %scale : f32[{b}, {n}]",
        scale = 1.0 / (b * n) as f32,
    ));
    for (i, pair) in widths.windows(2).enumerate().rev() {
        let (k, n) = (pair[0], pair[1]);
        let a = if i == 0 { "x".to_owned() } else { format!("a{i}") };
        let q = quantizer(i);
        lines.push(format!(
            "%gb{i} = reduce_sum %g{i} {{axes = [0]}} : f32[{n}]
            %qt{i} = transpose %q{i} {{perm = [1, 0]}} : f32[{k}, {b}]
            %gwq{i} = matmul %qt{i}, %g{i} : f32[{k}, {n}]
            %gw{i} = fake_quant_grad %w{i}, %w{i}s, %gwq{i} {{s4, lo = -7, axis = 1, wrt = 0}} : f32[{k}, {n}]
            %gws{i} = fake_quant_grad %w{i}, %w{i}s, %gwq{i} {{s4, lo = -7, axis = 1, wrt = 1}} : f32[{n}]
            %wt{i} = transpose %wq{i} {{perm = [1, 0]}} : f32[{n}, {k}]
            %gq{i} = matmul %g{i}, %wt{i} : f32[{b}, {k}]
            %gas{i} = fake_quant_grad %{a}, %a{i}s, %gq{i} {{{q}, wrt = 1}} : f32[]"
        ));
        for (name, gradient) in [("w", "gw"), ("b", "gb")] {
            outputs.push(format!("grad.{name}{i} = %{gradient}{i}"));
        }
        for (name, gradient) in [("w", "gws"), ("a", "gas")] {
            outputs.push(format!("grad.{name}{i}s = %{gradient}{i}"));
        }
        if i > 0 {
            lines.push(format!(
                "%ga{i} = fake_quant_grad %{a}, %a{i}s, %gq{i} {{{q}, wrt = 0}} : f32[{b}, {k}]
                %g{before} = unary_grad %l{before}, %ga{i} {{f = {act}}} : f32[{b}, {k}]",
                before = i - 1
            ));
        }
    }
    let (d, n) = (widths[0], widths[n_layers]);
    let outputs = outputs.iter().map(|output| quoted(output)).collect::<Vec<_>>().join(", ");
    let whole =
        format!("graph @joint(%x: f32[{b}, {d}], %t: f32[{b}, {n}]) -> ({outputs}) {{\n{}\n}}", lines.join("\n"));
    text::parse(&whole).unwrap_or_else(|error| panic!("{error}\n{whole}"))
}

/// Names with a dot are quoted.
fn quoted(output: &str) -> String {
    match output.split_once(" = ") {
        Some((name, value)) => format!("\"{name}\" = {value}"),
        None => output.to_owned(),
    }
}
