//! Whether the numbers of a model are numbers.

use qail_ir::{ConstError, Constant, Graph, Op};
use qail_passes::PassError;

/// Weights beyond this are looked at when they are quantized, not before: to read
/// them takes longer than everything else.
const MAX_ELEMENTS: usize = 1 << 24;
/// Elements looked at in one go.
const CHUNK: usize = 1 << 16;

/// Checks weights and biases. Other constants may be infinite: masks are.
///
/// # Errors
/// [`PassError::Weights`]: rounding would make finite numbers of them.
pub(super) fn check(graph: &Graph) -> Result<(), PassError> {
    for id in graph.topo() {
        let node = graph.node(id);
        if !matches!(node.op, Op::Linear(_) | Op::MatMul(_)) {
            continue;
        }
        for value in graph.operands(id) {
            let Some(constant) = graph.const_of(value).filter(|constant| constant.ty.n_elements() <= MAX_ELEMENTS)
            else {
                continue;
            };
            let weights = || graph.node(value.node).name.clone();
            if !is_finite(constant).map_err(|source| PassError::Const { node: weights(), source })? {
                return Err(PassError::Weights { weights: weights(), node: node.name.clone() });
            }
        }
    }
    Ok(())
}

fn is_finite(constant: &Constant) -> Result<bool, ConstError> {
    let n = constant.ty.n_elements();
    for start in (0..n).step_by(CHUNK) {
        if !constant.read_f32(start..start.saturating_add(CHUNK).min(n))?.iter().all(|x| x.is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    #[test]
    fn weights_that_are_no_numbers_are_named() {
        let graph = |w: &str, mask: &str| {
            text::parse(&format!(
                "graph @g(%x: f32[1, 2]) -> (%y) {{
                   %w = const [1.0, {w}] : f32[2, 1]
                   %b = const [0.0] : f32[1]
                   %h = linear %x, %w, %b : f32[1, 1]
                   %mask = const [{mask}] : f32[1]
                   %y = add %h, %mask : f32[1, 1]
                 }}"
            ))
            .unwrap()
        };
        check(&graph("2.0", "-inf")).unwrap();
        for broken in ["nan", "inf"] {
            let message = check(&graph(broken, "0.0")).unwrap_err().to_string();
            assert!(message.starts_with("`w` of node `h` holds NaN or infinity"), "{message}");
        }
    }
}
