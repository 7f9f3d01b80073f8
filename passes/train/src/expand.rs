//! Attention written out in products, sums and a softmax: what is
//! differentiated, and what the executor runs.
//!
//! Exact: the definition of attention names these operations, in this order and
//! with these roundings.

use qail_ir::{
    Attention, Binary, BinaryFn, ConstData, Constant, Graph, MatMul, NodeId, Op, Reshape, Softmax, TensorType,
    Transpose, TypeError, ValueId,
};

/// Attention that could not be written out: a bug.
#[derive(Debug)]
pub(crate) struct ExpandError {
    /// The node.
    pub(crate) node: String,
    /// What does not fit.
    pub(crate) source: TypeError,
}

/// Writes out every attention. Ids stay: that of the node names its result.
pub(crate) fn expand_attention(graph: &mut Graph) -> Result<(), ExpandError> {
    for id in graph.topo() {
        let Op::Attention(op) = graph.node(id).op.clone() else { continue };
        expand(graph, id, &op).map_err(|source| ExpandError { node: graph.node(id).name.clone(), source })?;
    }
    Ok(())
}

/// True if there is something to write out.
pub(crate) fn has_attention(graph: &Graph) -> bool {
    graph.nodes().any(|id| matches!(graph.node(id).op, Op::Attention(_)))
}

fn expand(graph: &mut Graph, id: NodeId, op: &Attention) -> Result<(), TypeError> {
    let operands = graph.operands(id);
    let error = || TypeError::new("attention", "q[B, H, L, E], k[B, G, S, E], v[B, G, S, V]", &[]);
    let (&[q, k, v], mask) = (operands.get(..3).ok_or_else(error)?, operands.get(3)) else { return Err(error()) };
    let shape = |graph: &Graph, value: ValueId| graph.ty(value).shape.clone();
    let (&[batch, heads, length, e], &[_, groups, s, width]) = (&shape(graph, q)[..], &shape(graph, v)[..]) else {
        return Err(error());
    };
    let (name, origin) = (graph.node(id).name.clone(), graph.node(id).origin.clone());
    let add = |graph: &mut Graph, part: &str, op: Op, operands: &[ValueId]| {
        let node = graph.add(format!("{name}.{part}"), op, operands, origin.clone())?;
        Ok::<_, TypeError>(node.value())
    };
    let reshaped = |graph: &mut Graph, part: &str, x: ValueId, shape: Vec<usize>| {
        if graph.ty(x).shape == shape { Ok(x) } else { add(graph, part, Op::Reshape(Reshape { shape }), &[x]) }
    };
    // The heads of a group are rows of one product: they share keys and values.
    let rows = heads / groups.max(1) * length;
    let q = reshaped(graph, "q", q, vec![batch, groups, rows, e])?;
    let k = add(graph, "k", Op::Transpose(Transpose { perm: vec![0, 1, 3, 2] }), &[k])?;
    let mut scores = add(graph, "products", Op::MatMul(MatMul), &[q, k])?;
    if op.scale != 1.0 {
        let scale = Constant { ty: TensorType::f32([]), data: ConstData::Splat(op.scale.into()) };
        let scale = graph.add_const(format!("{name}.scale"), scale, origin.clone());
        scores = add(graph, "scores", Op::Binary(Binary { f: BinaryFn::Mul }), &[scores, scale])?;
    }
    if let Some(&mask) = mask {
        scores = reshaped(graph, "heads", scores, vec![batch, heads, length, s])?;
        scores = add(graph, "masked", Op::Binary(Binary { f: BinaryFn::Add }), &[scores, mask])?;
        scores = reshaped(graph, "rows", scores, vec![batch, groups, rows, s])?;
    }
    let p = add(graph, "p", Op::Softmax(Softmax { axis: 3, log: false }), &[scores])?;
    if groups == heads {
        return graph.redefine(id, Op::MatMul(MatMul), &[p, v]);
    }
    let out = add(graph, "out", Op::MatMul(MatMul), &[p, v])?;
    graph.redefine(id, Op::Reshape(Reshape { shape: vec![batch, heads, length, width] }), &[out])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use qail_ir::{
        interp::{self, Tensor},
        text, verify,
    };

    use super::*;

    #[test]
    fn what_is_written_out_is_the_same_to_the_last_bit() {
        for (heads, groups, mask) in [(3, 3, ""), (4, 2, ""), (4, 1, "[5, 7]"), (4, 2, "[2, 4, 1, 7]")] {
            let (declared, operand) = match mask {
                "" => (String::new(), ""),
                mask => (format!(", %m: f32{mask}"), ", %m"),
            };
            let text = format!(
                "graph @g(%q: f32[2, {heads}, 5, 6], %k: f32[2, {groups}, 7, 6], %v: f32[2, {groups}, 7, 3]{declared})
                -> (%y) {{ %y = attention %q, %k, %v{operand} {{scale = 0.41}} : f32[2, {heads}, 5, 3] }}"
            );
            let graph = text::parse(&text).unwrap();
            let mut written = graph.clone();
            expand_attention(&mut written).unwrap();
            verify(&written).unwrap();
            assert!(!has_attention(&written));
            let input = |(i, &id): (usize, &NodeId)| {
                let ty = graph.ty(id.value()).clone();
                let constant = Constant { ty, data: ConstData::Rand(i as u64) };
                (graph.node(id).name.clone(), Tensor::from_constant(&constant).unwrap())
            };
            let inputs: BTreeMap<String, Tensor> = graph.inputs().iter().enumerate().map(input).collect();
            assert_eq!(interp::run(&graph, &inputs).unwrap(), interp::run(&written, &inputs).unwrap(), "{text}");
        }
    }
}
