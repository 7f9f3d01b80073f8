//! `expand-groups`: takes linear layers in groups apart that stay in floats.
//!
//! A kernel exists for groups of codes alone. In floats a group is a matrix of a
//! batch of products, `y[g, r, n] = sum_k x[g, r, k] w[g, k, n]`, or, with one
//! channel a group, a product element by element and a sum over `k`. Exact: sums
//! still run over `k` from 0, and the bias comes last.

use qail_ir::{
    Binary, BinaryFn, Constant, Graph, Linear, MatMul, NodeId, Op, Origin, Reduce, ReduceFn, Reshape, Transpose, Unary,
    ValueId,
};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpandGroups;

impl Pass for ExpandGroups {
    fn name(&self) -> &'static str {
        "expand-groups"
    }

    fn summary(&self) -> &'static str {
        "takes linear layers in groups apart that stay in floats"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut dead = Vec::new();
        for id in graph.topo() {
            let Op::Linear(linear) = &graph.node(id).op else { continue };
            if linear.groups > 1 {
                let linear = linear.clone();
                dead.push(expand(graph, id, &linear)?);
                dead.push(id);
            }
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// Puts the pieces in the place of the layer; gives the weights that it read.
fn expand(graph: &mut Graph, id: NodeId, linear: &Linear) -> Result<NodeId, PassError> {
    let node = graph.node(id).clone();
    let malformed = || PassError::Internal { node: node.name.clone(), invariant: "a layer has features and weights" };
    let [x, w, b] = graph.operands(id)[..] else { return Err(malformed()) };
    let (shape, weights) = (graph.ty(x).shape.clone(), graph.ty(w).shape.clone());
    let ([lead @ .., _], &[k, n]) = (&shape[..], &weights[..]) else { return Err(malformed()) };
    let groups = linear.groups;
    let channels = n / groups.max(1);
    let mut parts = Parts { graph, name: &node.name, origin: &node.origin };
    let sum = if channels == 1 {
        let x = parts.reshape("x", x, [lead, &[groups, k]].concat())?;
        let w = parts.weights(w, &[1, 0], vec![k, n])?;
        let products = parts.add("products", Op::Binary(Binary { f: BinaryFn::Mul }), &[x, w])?;
        let sum = Reduce { f: ReduceFn::Sum, axes: vec![lead.len() + 1], keep_dims: false };
        parts.add("sum", Op::Reduce(sum), &[products])?
    } else {
        let rows = lead.iter().product();
        let x = parts.reshape("x", x, vec![rows, groups, k])?;
        let x = parts.transpose("rows", x, vec![1, 0, 2])?;
        let w = parts.weights(w, &[1, 0, 2], vec![k, groups, channels])?;
        let y = parts.add("products", Op::MatMul(MatMul), &[x, w])?;
        let y = parts.transpose("channels", y, vec![1, 0, 2])?;
        parts.reshape("sum", y, [lead, &[n]].concat())?
    };
    let biased = Op::Binary(Binary { f: BinaryFn::Add });
    match linear.act {
        None => rewrite::replace(parts.graph, id, biased, &[sum, b])?,
        Some(f) => {
            let biased = parts.add("biased", biased, &[sum, b])?;
            rewrite::replace(parts.graph, id, Op::Unary(Unary { f }), &[biased])?
        }
    };
    Ok(w.node)
}

/// Nodes that come from one layer.
struct Parts<'a> {
    graph: &'a mut Graph,
    name: &'a str,
    origin: &'a Origin,
}

impl Parts<'_> {
    fn add(&mut self, part: &str, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
        rewrite::add(self.graph, &format!("{}.{part}", self.name), op, operands, self.origin.clone())
    }

    fn reshape(&mut self, part: &str, x: ValueId, shape: Vec<usize>) -> Result<ValueId, PassError> {
        self.add(part, Op::Reshape(Reshape { shape }), &[x])
    }

    fn transpose(&mut self, part: &str, x: ValueId, perm: Vec<usize>) -> Result<ValueId, PassError> {
        self.add(part, Op::Transpose(Transpose { perm }), &[x])
    }

    /// Weights in another shape, then with axes in another order; constants at once.
    fn weights(&mut self, w: ValueId, perm: &[usize], shape: Vec<usize>) -> Result<ValueId, PassError> {
        let Some(elements) = rewrite::const_f32(self.graph, w)? else {
            let w = self.reshape("weights", w, shape)?;
            return self.transpose("by_group", w, perm.to_vec());
        };
        let extents: Vec<usize> = perm.iter().filter_map(|&axis| shape.get(axis).copied()).collect();
        let stride = |axis: usize| shape.iter().skip(axis + 1).product::<usize>();
        let strides: Vec<usize> = perm.iter().map(|&axis| stride(axis)).collect();
        let at = |i: usize| {
            let mut rest = i;
            let places = extents.iter().zip(&strides).rev();
            places.fold(0, |at, (&extent, &stride)| {
                let place = rest % extent.max(1);
                rest /= extent.max(1);
                at + place * stride
            })
        };
        let turned: Vec<f32> = (0..elements.len()).filter_map(|i| elements.get(at(i)).copied()).collect();
        let node = self.graph.node(w.node).clone();
        Ok(self.graph.add_const(node.name, Constant::f32(extents, &turned), node.origin))
    }
}
