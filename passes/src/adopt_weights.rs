//! `adopt-weights`: quantizers of weights that a model brought become codes of
//! weight-only layers, where activations are floats.
//!
//! A layer whose input is codes as well stays: `lower-quant` makes integers of
//! it. Everywhere else, and always for weights with a step for some rows only,
//! `linear` becomes `linear_wq` with the very codes and steps of the quantizer.
//! Steps for so few rows that kernels have no form for them leave the rounded
//! weights, in floats.

use qail_ir::{Constant, FakeQuant, Graph, Linear, LinearWq, NodeId, Op, TensorType, ValueId};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    quant::{region::Region, weight_code},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct AdoptWeights;

impl Pass for AdoptWeights {
    fn name(&self) -> &'static str {
        "adopt-weights"
    }

    fn summary(&self) -> &'static str {
        "turns given quantizers of weights into codes of weight-only layers"
    }

    fn exactness(&self) -> Exactness {
        // The order of sums changes: a step multiplies the sum of its rows.
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let region = Region::of(graph)?;
        let mut dead = Vec::new();
        for id in graph.topo() {
            if region.layers.contains_key(&id) {
                continue;
            }
            let Some(given) = given(graph, id) else { continue };
            let group = given.fake.group.unwrap_or(given.k);
            if group < given.k && !group.is_multiple_of(LinearWq::GROUP_MULTIPLE) {
                let multiple = LinearWq::GROUP_MULTIPLE;
                let why = format!("a scale for {group} rows, not for a multiple of {multiple}: weights stay in floats");
                cx.declined(graph, id, why);
                // The weights are numbers of the quantizer already.
                graph.replace_uses(given.quantizer.value(), given.w);
                dead.push(given.quantizer);
                continue;
            }
            adopt(graph, id, &given)?;
            dead.push(id);
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// A quantizer of the constant weights of a layer.
struct Given {
    quantizer: NodeId,
    fake: FakeQuant,
    w: ValueId,
    scales: ValueId,
    k: usize,
    n: usize,
}

fn given(graph: &Graph, layer: NodeId) -> Option<Given> {
    // Layers in groups have no weight-only form: their weights are few, and are rounded in place.
    let Op::Linear(Linear { groups: 1, .. }) = graph.node(layer).op else { return None };
    let &[_, quantizer, bias] = &graph.operands(layer)[..] else { return None };
    let Op::FakeQuant(fake @ FakeQuant { axis: Some(1), .. }) = graph.op(quantizer) else { return None };
    let &[w, scales] = &graph.operands(quantizer.node)[..] else { return None };
    let &[k, n] = &graph.ty(w).shape[..] else { return None };
    let known = [w, scales, bias].iter().all(|&value| graph.const_of(value).is_some());
    known.then(|| Given { quantizer: quantizer.node, fake: fake.clone(), w, scales, k, n })
}

fn adopt(graph: &mut Graph, layer: NodeId, given: &Given) -> Result<(), PassError> {
    let Given { quantizer, ref fake, w, scales, k, n } = *given;
    let node = graph.node(quantizer).clone();
    let missing = || PassError::Internal {
        node: node.name.clone(),
        invariant: "weights and steps of a given quantizer are known",
    };
    let steps = rewrite::const_f32(graph, scales)?.ok_or_else(missing)?;
    // A negative step is odd, but it is a step.
    if let Some((index, step)) = steps.iter().enumerate().find(|(_, step)| !step.is_normal()) {
        return Err(PassError::Step { node: node.name, index, step: f64::from(*step) });
    }
    let group = fake.group.unwrap_or(k).max(1);
    let elements = rewrite::const_f32(graph, w)?.ok_or_else(missing)?;
    let of_row = |(row, w): (usize, &[f32])| -> Vec<i64> {
        let steps = steps.iter().skip(row / group * n);
        w.iter().zip(steps).map(|(&w, &step)| i64::from(weight_code(f64::from(w), step, fake.lo, fake.hi))).collect()
    };
    let codes: Vec<i64> = elements.chunks_exact(n.max(1)).enumerate().flat_map(of_row).collect();
    let codes = Constant::ints(TensorType::code(fake.scheme, [k, n]), &codes);
    let codes = graph.add_const(format!("{}.codes", node.name), codes, node.origin);
    let name = graph.node(scales.node).name.clone();
    let origin = graph.node(scales.node).origin.clone();
    let steps = graph.add_const(name, Constant::f32([k.div_ceil(group), n], &steps), origin);
    let (act, operands) = match (&graph.node(layer).op, &graph.operands(layer)[..]) {
        (Op::Linear(linear), &[x, _, b]) => (linear.act, [x, codes, steps, b]),
        _ => return Err(missing()),
    };
    rewrite::replace(graph, layer, Op::LinearWq(LinearWq { group, act }), &operands)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    fn adopted(graph: &str) -> Graph {
        let mut graph = text::parse(graph).unwrap();
        AdoptWeights.run(&mut graph, &mut PassContext::new()).unwrap();
        graph
    }

    fn op<'g>(graph: &'g Graph, name: &str) -> &'g Op {
        let id = graph.topo().into_iter().find(|&id| graph.node(id).name == name).unwrap();
        &graph.node(id).op
    }

    #[test]
    fn codes_and_steps_are_those_of_the_quantizer() {
        let zeros = "0.0, ".repeat(12);
        let graph = adopted(&format!(
            "graph @g(%x: f32[1, 9]) -> (%y) {{
              %w = const [-4.0, 3.5, 1.0, 0.5, {zeros}30.0, 2.0] : f32[9, 2]
              %s = const [0.5, -0.5, 10.0, 1.0] : f32[2, 2]
              %wq = fake_quant %w, %s {{s4, axis = 1, group = 8}} : f32[9, 2]
              %b = const splat(0.0) : f32[2]
              %y = linear %x, %wq, %b {{act = relu}} : f32[1, 2]
            }}"
        ));
        assert!(matches!(op(&graph, "y"), Op::LinearWq(LinearWq { group: 8, act: Some(_) })));
        let layer = graph.topo().into_iter().find(|&id| graph.node(id).name == "y").unwrap();
        let [_, codes, ..] = graph.operands(layer)[..] else { panic!("a layer has four operands") };
        let expected = [&[-8, -7, 2, -1][..], &[0; 12], &[3, 2]].concat();
        assert_eq!(graph.const_of(codes).unwrap().all_int().unwrap(), expected);
    }

    #[test]
    fn steps_of_a_few_rows_leave_floats() {
        let graph = adopted(
            "graph @g(%x: f32[1, 3]) -> (%y) {
              %w = const [-4.0, 3.5, 1.0, 0.5, 30.0, 2.0] : f32[3, 2]
              %s = const [0.5, 0.5, 10.0, 1.0] : f32[2, 2]
              %wq = fake_quant %w, %s {s8, axis = 1, group = 2} : f32[3, 2]
              %b = const splat(0.0) : f32[2]
              %y = linear %x, %wq, %b : f32[1, 2]
            }",
        );
        let layer = graph.topo().into_iter().find(|&id| graph.node(id).name == "y").unwrap();
        let [_, w, _] = graph.operands(layer)[..] else { panic!("a layer has three operands") };
        assert_eq!(graph.const_of(w).unwrap().all_f32().unwrap(), [-4.0, 3.5, 1.0, 0.5, 30.0, 2.0]);
    }

    #[test]
    fn layers_on_codes_stay() {
        let graph = adopted(
            "graph @g(%x: f32[1, 2]) -> (%y) {
              %sx = const [0.5] : f32[]
              %xq = fake_quant %x, %sx {s8} : f32[1, 2]
              %w = const [1.0, 2.0, 3.0, 4.0] : f32[2, 2]
              %s = const [0.5, 0.25] : f32[2]
              %wq = fake_quant %w, %s {s8, axis = 1} : f32[2, 2]
              %b = const splat(0.5) : f32[2]
              %y = linear %xq, %wq, %b : f32[1, 2]
            }",
        );
        assert!(matches!(op(&graph, "y"), Op::Linear(_)));
    }
}
