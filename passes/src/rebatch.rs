//! `rebatch`: gives the graph a batch of `n` samples instead of one.
//!
//! Policies are exported for one observation; training and evaluation run many
//! at once. The batch is followed from the inputs: every operation either passes
//! it on or is named in the error. Where a `reshape` merges it into another axis
//! (rows of a sequence), it is the slow part of that axis and can be split off
//! again. Ids and names of nodes stay. Exact: each sample is computed as it was.

use std::collections::BTreeMap;

use qail_ir::{CumSum, Expand, Graph, Input, NodeId, Op, Reshape, SliceAxis, Softmax, TopK, ValueId, Window};

use crate::{Changed, Exactness, Pass, PassContext, PassError, rewrite};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebatch {
    /// Number of samples.
    pub n: usize,
}

impl Pass for Rebatch {
    fn name(&self) -> &'static str {
        "rebatch"
    }

    fn summary(&self) -> &'static str {
        "gives the graph a batch of n samples instead of one"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        rebatch(graph, self.n)
    }
}

/// Gives a graph a batch of `n` samples instead of one; ids and names stay.
///
/// # Errors
/// If the graph has no batch axis of 1, or a node cannot run on a batch; it is
/// named, and the graph is as it was.
pub fn rebatch(graph: &mut Graph, n: usize) -> Result<Changed, PassError> {
    let name = graph.name.clone();
    let refuse = |reason: &str| Err(PassError::Unsupported { node: name.clone(), reason: reason.to_owned() });
    if graph.inputs().is_empty() {
        return refuse("a graph without inputs has no batch");
    }
    let extent = graph.batch_axis.map(|axis| (axis, graph.batch_size()));
    match extent {
        None => refuse("the graph has no batch axis; export the policy with a batch axis of 1"),
        Some((_, extent)) if extent == n => Ok(Changed::No),
        Some(_) if n == 0 => refuse("a batch has one sample or more"),
        Some((axis, 1)) => {
            let mut rebatched = Rebatched { old: graph, new: graph.clone(), n, axes: BTreeMap::new() };
            rebatched.run(axis)?;
            let new = rebatched.new;
            *graph = new;
            Ok(Changed::Yes)
        }
        Some(_) => refuse("the batch is more than one sample already"),
    }
}

/// A graph on its way to a batch of `n`.
struct Rebatched<'g> {
    /// With one sample: its shapes say what each operation meant.
    old: &'g Graph,
    new: Graph,
    n: usize,
    /// Where the batch lies in the values that have it: the slow part of an axis.
    axes: BTreeMap<ValueId, usize>,
}

impl Rebatched<'_> {
    fn run(&mut self, batch_axis: usize) -> Result<(), PassError> {
        for id in self.old.topo() {
            let operands = self.old.operands(id);
            let at: Vec<Option<usize>> = operands.iter().map(|value| self.axes.get(value).copied()).collect();
            let is_input = matches!(self.old.node(id).op, Op::Input(_));
            if !is_input && at.iter().all(Option::is_none) {
                continue;
            }
            let (op, axis) = self.node(id, &at, batch_axis)?;
            // A concatenation may have got other operands.
            let operands = self.new.operands(id);
            let node = self.old.node(id).name.clone();
            self.new.redefine(id, op, &operands).map_err(|source| PassError::Type { node, source })?;
            self.axes.insert(id.value(), axis);
        }
        for i in 0..self.old.outputs.len() {
            let output = self.old.outputs[i].clone();
            let state = self.old.state_of_output(&output.name);
            let batch_axis = state.and_then(|state| state.element_axis).unwrap_or(batch_axis);
            let shape = &self.old.ty(output.value).shape;
            let value = match self.axes.get(&output.value) {
                Some(&axis) if axis == batch_axis && shape.get(axis) == Some(&1) => continue,
                Some(_) => return Err(self.unsupported(output.value.node, "its batch left the batch axis")),
                // The same for every sample, such as a `log_std` of its own.
                None => self.repeated(output.value, batch_axis)?,
            };
            self.new.outputs[i].value = value;
        }
        Ok(())
    }

    /// The operation for the whole batch and where the batch lies in its result.
    fn node(&mut self, id: NodeId, at: &[Option<usize>], batch_axis: usize) -> Result<(Op, usize), PassError> {
        let old = self.old;
        let operands = old.operands(id);
        let shape_of = |slot: usize| operands.get(slot).map_or(&[][..], |&value| &old.ty(value).shape[..]);
        let (x, first) = (shape_of(0), at.first().copied().flatten());
        let op = old.node(id).op.clone();
        let only_first = |axis: Option<usize>, what: &str| match (axis, at.get(1..)) {
            (Some(axis), Some(rest)) if rest.iter().all(Option::is_none) => Ok(axis),
            _ => Err(self.unsupported(id, what)),
        };
        const COMPUTED: &str = "its weights or scales depend on the sample";
        Ok(match op {
            Op::Input(Input { mut ty }) => {
                let state = old.state_of_input(&old.node(id).name);
                let batch_axis = match state {
                    Some(state) => state.element_axis.ok_or_else(|| self.unsupported(id, "it is one state for all"))?,
                    None => batch_axis,
                };
                match ty.shape.get_mut(batch_axis) {
                    Some(extent) => *extent = self.n,
                    None => return Err(self.unsupported(id, "it lacks the batch axis")),
                }
                (Op::Input(Input { ty }), batch_axis)
            }
            Op::Unary(_)
            | Op::Cast(_)
            | Op::FakeQuant(_)
            | Op::Quantize(_)
            | Op::Requantize(_)
            | Op::Lookup(_)
            | Op::Dequantize(_) => {
                let axis = only_first(first, COMPUTED)?;
                let per_channel = match &op {
                    Op::FakeQuant(fake) => fake.axis == Some(axis) || fake.group.is_some(),
                    Op::Quantize(_) | Op::Dequantize(_) => !matches!(shape_of(1), [] | [1]) && axis + 1 == x.len(),
                    _ => false,
                };
                if per_channel {
                    return Err(self.unsupported(id, "its scales run along the batch"));
                }
                (op, axis)
            }
            Op::Linear(_) | Op::QLinear(_) | Op::LinearWq(_) => {
                let axis = only_first(first, COMPUTED)?;
                if axis + 1 == x.len() {
                    return Err(self.unsupported(id, "it sums over the batch"));
                }
                (op, axis)
            }
            Op::Binary(_) => {
                let rank = old.ty(id.value()).shape.len();
                let axis = self.aligned(id, at, rank)?;
                (op, axis)
            }
            Op::MatMul(_) => {
                let rank = old.ty(id.value()).shape.len();
                let sums = first.is_some_and(|axis| axis + 1 == x.len())
                    || at.get(1).copied().flatten().is_some_and(|axis| axis + 2 == shape_of(1).len());
                if sums {
                    return Err(self.unsupported(id, "it sums over the batch"));
                }
                let axis = match (first, at.get(1).copied().flatten()) {
                    // Rows of one operand or columns of the other stay apart.
                    (Some(axis), None) if axis + 2 == x.len() => rank - 2,
                    (None, Some(axis)) if axis + 1 == shape_of(1).len() => rank - 1,
                    _ => {
                        let axis = self.aligned(id, at, rank)?;
                        if axis + 2 >= rank {
                            return Err(self.unsupported(id, "it multiplies samples with each other"));
                        }
                        axis
                    }
                };
                (op, axis)
            }
            Op::Reshape(Reshape { mut shape }) => {
                let from = only_first(first, COMPUTED)?;
                let before: usize = x.iter().take(from).product();
                let fits = |to: usize| to < shape.len() && shape.iter().take(to).product::<usize>() == before;
                let to = Some(from).filter(|&to| fits(to)).or_else(|| (0..shape.len()).find(|&to| fits(to)));
                let to = to.ok_or_else(|| self.unsupported(id, "it mixes the batch with an axis in front of it"))?;
                self.widen(id, shape.get_mut(to))?;
                (Op::Reshape(Reshape { shape }), to)
            }
            Op::Transpose(transpose) => {
                let from = only_first(first, COMPUTED)?;
                let to = transpose.perm.iter().position(|&axis| axis == from);
                let to = to.ok_or_else(|| self.unsupported(id, "it drops the batch"))?;
                (Op::Transpose(transpose), to)
            }
            Op::Slice(mut slice) => {
                let axis = only_first(first, COMPUTED)?;
                let extent = x.get(axis).copied().unwrap_or(1);
                match slice.axes.get_mut(axis) {
                    Some(part) if part.len == extent && part.start == 0 && (part.step == 1 || extent == 1) => {
                        let mut len = extent;
                        self.widen(id, Some(&mut len))?;
                        *part = SliceAxis { start: 0, len, step: 1 };
                    }
                    _ => return Err(self.unsupported(id, "it takes a part of the batch")),
                }
                (Op::Slice(slice), axis)
            }
            Op::Concat(concat) => {
                let axis = self.concat(id, at)?;
                if axis == concat.axis {
                    return Err(self.unsupported(id, "it adds to the batch"));
                }
                (Op::Concat(concat), axis)
            }
            Op::Expand(Expand { mut shape }) => {
                let axis = only_first(first, COMPUTED)? + shape.len().saturating_sub(x.len());
                let own = first.and_then(|from| x.get(from));
                if shape.get(axis) != own {
                    return Err(self.unsupported(id, "it repeats the only sample"));
                }
                self.widen(id, shape.get_mut(axis))?;
                (Op::Expand(Expand { shape }), axis)
            }
            Op::Reduce(reduce) => {
                let axis = only_first(first, COMPUTED)?;
                if reduce.axes.contains(&axis) {
                    return Err(self.unsupported(id, "it reduces over the batch"));
                }
                let gone = if reduce.keep_dims { 0 } else { reduce.axes.iter().filter(|&&gone| gone < axis).count() };
                (Op::Reduce(reduce), axis - gone)
            }
            Op::Compare(_) | Op::Where(_) => {
                let axis = self.aligned(id, at, old.ty(id.value()).shape.len())?;
                (op, axis)
            }
            Op::Unfold(mut unfold) => {
                let axis = only_first(first, COMPUTED)?;
                match unfold.windows.get_mut(axis) {
                    Some(window) if Some(&*window) == x.get(axis).map(|&extent| Window::identity(extent)).as_ref() => {
                        self.widen(id, Some(&mut window.out))?;
                    }
                    _ => return Err(self.unsupported(id, "it has windows over the batch")),
                }
                (Op::Unfold(unfold), axis)
            }
            Op::Softmax(Softmax { axis: own, .. })
            | Op::CumSum(CumSum { axis: own, .. })
            | Op::TopK(TopK { axis: own, .. }) => {
                let axis = only_first(first, COMPUTED)?;
                if axis == own {
                    return Err(self.unsupported(id, "it runs over the batch"));
                }
                (op, axis)
            }
            Op::ArgReduce(ref arg) => {
                let axis = only_first(first, COMPUTED)?;
                if axis == arg.axis {
                    return Err(self.unsupported(id, "it runs over the batch"));
                }
                let to = if arg.axis < axis && !arg.keep_dims { axis - 1 } else { axis };
                (op, to)
            }
            Op::Normalize(ref normalize) => {
                let axis = only_first(first, COMPUTED)?;
                if normalize.axes.contains(&axis) {
                    return Err(self.unsupported(id, "it normalizes over the batch"));
                }
                (op, axis)
            }
            Op::Gather(ref gather) => match (first, at.get(1).copied().flatten()) {
                (Some(axis), None) if axis != gather.axis => {
                    let to = if axis > gather.axis { axis + shape_of(1).len() - 1 } else { axis };
                    (op, to)
                }
                (None, Some(axis)) => {
                    let to = gather.axis + axis;
                    (op, to)
                }
                _ => return Err(self.unsupported(id, "it looks up elements across the batch")),
            },
            Op::Attention(_) => {
                let masked = at.get(3).copied().flatten();
                if at.iter().take(3).any(|at| at.is_some_and(|axis| axis != 0))
                    || masked.is_some_and(|axis| axis != 0 || shape_of(3).len() != 4)
                {
                    return Err(self.unsupported(id, "its operands do not all have the batch in front"));
                }
                // Queries of a decoder may be learned: the same for every sample.
                for (slot, _) in at.iter().enumerate().take(3).filter(|(_, at)| at.is_none()) {
                    let value =
                        operands.get(slot).copied().ok_or_else(|| self.unsupported(id, "it lacks an operand"))?;
                    let repeated = self.repeated(value, 0)?;
                    // The graph numbers operands by 16 bits.
                    self.new.rewire(id, slot as u16, repeated);
                }
                (op, 0)
            }
            Op::Rope(_) | Op::Film(_) => {
                let rank = old.ty(id.value()).shape.len();
                let axis = self.aligned(id, at, rank)?;
                if matches!(op, Op::Rope(_)) && axis + 1 == rank {
                    return Err(self.unsupported(id, "it turns samples into each other"));
                }
                if first.is_none() {
                    return Err(self.unsupported(id, "it modulates one value by many samples"));
                }
                (op, axis)
            }
            Op::Scatter(_) | Op::QAdd(_) | Op::QSum(_) => {
                return Err(self.unsupported(id, "it has rows of other samples; run it sample by sample"));
            }
            Op::Const(_) => return Err(self.unsupported(id, "a constant has no batch")),
            Op::Grad(_) => return Err(self.unsupported(id, "it is a gradient; rebatch before differentiating")),
        })
    }

    /// Where the batch lies in the result of operands that broadcast to `rank` axes.
    fn aligned(&self, id: NodeId, at: &[Option<usize>], rank: usize) -> Result<usize, PassError> {
        let operands = self.old.operands(id);
        let shapes: Vec<&[usize]> = operands.iter().map(|&value| &self.old.ty(value).shape[..]).collect();
        let places = || at.iter().zip(&shapes).filter_map(|(at, shape)| at.map(|axis| axis + rank - shape.len()));
        let own = |(at, shape): (&Option<usize>, &&[usize])| at.and_then(|axis| shape.get(axis).copied());
        let extents: Vec<usize> = at.iter().zip(&shapes).filter_map(own).collect();
        let axis = places().next().ok_or_else(|| self.unsupported(id, "it has no batch"))?;
        if places().any(|other| other != axis) || extents.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(self.unsupported(id, "its operands have the batch in different places"));
        }
        let along = |shape: &[usize]| (axis + shape.len()).checked_sub(rank).and_then(|own| shape.get(own).copied());
        let repeats =
            at.iter().zip(&shapes).any(|(at, shape)| at.is_none() && along(shape).is_some_and(|extent| extent != 1));
        if repeats {
            return Err(self.unsupported(id, "one operand has numbers of its own along the batch"));
        }
        Ok(axis)
    }

    /// Where the batch lies in joined parts. Parts without it are repeated.
    fn concat(&mut self, id: NodeId, at: &[Option<usize>]) -> Result<usize, PassError> {
        let operands = self.old.operands(id);
        let first = at.iter().zip(&operands).find_map(|(at, &value)| at.map(|axis| (axis, value)));
        let (axis, batched) = first.ok_or_else(|| self.unsupported(id, "it has no batch"))?;
        let is_one = self.old.ty(batched).shape.get(axis) == Some(&1);
        for (slot, (at, &value)) in at.iter().zip(&operands).enumerate() {
            match at {
                Some(other) if *other == axis => {}
                None if is_one => {
                    let repeated = self.repeated(value, axis)?;
                    // The graph numbers operands by 16 bits.
                    self.new.rewire(id, slot as u16, repeated);
                }
                _ => return Err(self.unsupported(id, "its parts have the batch in different places")),
            }
        }
        Ok(axis)
    }

    /// A value without a batch, once for every sample.
    fn repeated(&mut self, value: ValueId, axis: usize) -> Result<ValueId, PassError> {
        let node = self.old.node(value.node).clone();
        let mut shape = self.old.ty(value).shape.clone();
        match shape.get_mut(axis) {
            Some(extent) if *extent == 1 => *extent = self.n,
            _ => return Err(self.unsupported(value.node, "it has no batch axis of 1")),
        }
        let name = format!("{}.batch", node.name);
        rewrite::add(&mut self.new, &name, Op::Expand(Expand { shape }), &[value], node.origin)
    }

    /// `extent * n`.
    fn widen(&self, id: NodeId, extent: Option<&mut usize>) -> Result<(), PassError> {
        let extent = extent.ok_or_else(|| self.unsupported(id, "it lacks the batch axis"))?;
        let wide = extent.checked_mul(self.n).ok_or_else(|| self.unsupported(id, "the batch is too large"))?;
        *extent = wide;
        Ok(())
    }

    fn unsupported(&self, id: NodeId, why: &str) -> PassError {
        let node = self.old.node(id);
        let reason = format!("{} cannot run on a batch: {why}; export the policy with a batch axis", node.op.name());
        PassError::Unsupported { node: node.name.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    fn rebatch(source: &str, n: usize) -> Result<Graph, String> {
        let mut graph = text::parse(source).unwrap();
        let before = graph.clone();
        match (Rebatch { n }).run(&mut graph, &mut PassContext::new()) {
            Ok(_) => {
                qail_ir::verify(&graph).unwrap();
                Ok(graph)
            }
            Err(error) => {
                assert!(graph == before, "an error leaves the graph alone");
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn the_batch_may_lie_behind_another_axis() {
        let source = "graph @g(%x: f32[3, 1, 2]) -> (%y) {batch = 1} {
            %t = transpose %x {perm = [1, 0, 2]} : f32[1, 3, 2]
            %r = reshape %t : f32[1, 6]
            %s = reshape %r : f32[1, 3, 2]
            %y = transpose %s {perm = [1, 0, 2]} : f32[3, 1, 2]
        }";
        let graph = rebatch(source, 4).unwrap();
        assert_eq!(graph.ty(graph.outputs[0].value).shape, [3, 4, 2]);
    }

    #[test]
    fn learned_queries_are_the_same_for_every_sample() {
        let source = "graph @g(%x: f32[1, 2, 3, 4]) -> (%y) {batch = 0} {
            %q = const rand(1) : f32[1, 2, 5, 4]
            %y = attention %q, %x, %x {scale = 0.5} : f32[1, 2, 5, 4]
        }";
        let graph = rebatch(source, 3).unwrap();
        assert_eq!(graph.ty(graph.outputs[0].value).shape, [3, 2, 5, 4]);
    }

    #[test]
    fn ids_and_names_stay() {
        let source = "graph @g(%x: f32[1, 2]) -> (%y) {batch = 0} { %y = relu %x : f32[1, 2] }";
        let (before, after) = (text::parse(source).unwrap(), rebatch(source, 8).unwrap());
        assert_eq!(before.topo(), after.topo());
        assert_eq!(after.ty(before.outputs[0].value).shape, [8, 2]);
    }

    #[test]
    fn what_mixes_samples_is_named() {
        let error = |lines: &str| {
            let source = format!("graph @g(%x: f32[1, 3]) -> (%y) {{batch = 0}} {{ {lines} }}");
            rebatch(&source, 4).unwrap_err()
        };
        assert_eq!(
            error("%y = reduce_sum %x {axes = [0], keep_dims} : f32[1, 3]"),
            "node `y`: reduce_sum cannot run on a batch: it reduces over the batch; export the policy with a batch axis"
        );
        assert!(error("%y = concat %x, %x {axis = 0} : f32[2, 3]").contains("it adds to the batch"));
        assert!(error("%y = expand %x : f32[2, 3]").contains("it repeats the only sample"));
        assert!(error("%y = slice %x {start = [0, 0], len = [0, 3]} : f32[0, 3]").contains("a part of the batch"));
        let two = "%c = const splat(1.0) : f32[2, 3] %y = add %x, %c : f32[2, 3]";
        assert!(error(two).contains("numbers of its own along the batch"));
        let turned = "%t = transpose %x {perm = [1, 0]} : f32[3, 1]";
        assert!(error(&format!("{turned} %y = add %t, %x : f32[3, 3]")).contains("in different places"));
        assert!(error(&format!("{turned} %y = matmul %x, %t : f32[1, 1]")).contains("in different places"));
        assert!(error(&format!("{turned} %y = matmul %t, %x : f32[3, 3]")).contains("sums over the batch"));
        assert!(error(&format!("{turned} %r = reshape %t : f32[3] %y = reshape %r : f32[1, 3]")).contains("mixes"));
    }

    #[test]
    fn only_one_sample_becomes_many() {
        let three = "graph @g(%x: f32[3, 2]) -> (%x) {batch = 0} { }";
        assert!(rebatch(three, 4).unwrap_err().contains("more than one sample already"));
        assert!(rebatch(three, 3).is_ok());
        let none = "graph @g(%x: f32[1, 2]) -> (%x) { }";
        assert!(rebatch(none, 4).unwrap_err().contains("no batch axis"));
        assert!(rebatch(&three.replace("3, 2", "1, 2"), 0).unwrap_err().contains("one sample or more"));
        let wide =
            "graph @g(%x: f32[1, 9]) -> (%y) {batch = 0} { %r = reshape %x : f32[9, 1] %y = reshape %r : f32[1, 9] }";
        assert!(rebatch(wide, usize::MAX / 4).unwrap_err().contains("too large"));
    }
}
