//! Well-formedness of a graph: what a pass may rely on and must leave behind.
//!
//! Cheap enough to run after every pass: weights are never read. Of the small
//! constants that steer quantized operations (scales, multipliers, tables), the
//! first [`MAX_CHECKED`] elements are.

use std::collections::BTreeSet;

use crate::{
    ConstData, ConstError, Constant, Elem, FakeQuant, Grad, Graph, NodeId, Op, QuantScheme, State, TensorType,
    TypeError, UnaryFn, fixed::Multiplier, schedule,
};

/// Elements of a scale that are read, and how many at a time.
const MAX_CHECKED: usize = 1 << 20;
const CHUNK: usize = 1 << 12;

/// A rule that a graph breaks.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The wires run in a circle.
    #[error("{n_nodes} node(s) lie on a cycle or behind it, among them `{name}`")]
    Cycle {
        /// The first of them.
        name: String,
        /// How many there are.
        n_nodes: usize,
    },
    /// Two nodes have one name, or a node has none.
    #[error("node name `{name}` is empty or used twice")]
    NodeName {
        /// The name.
        name: String,
    },
    /// Two outputs have one name, or an output has none.
    #[error("output name `{name}` is empty or used twice")]
    OutputName {
        /// The name.
        name: String,
    },
    /// An output that no node defines.
    #[error("output `{name}` is a value that the graph does not define")]
    NoSuchOutput {
        /// The output.
        name: String,
    },
    /// An operand that its node does not define.
    #[error("node `{name}`: operand {slot} does not exist")]
    NoSuchOperand {
        /// The node that reads it.
        name: String,
        /// Which operand.
        slot: usize,
    },
    /// A node that reads a constant which the graph does not have.
    #[error("node `{name}`: its constant does not exist")]
    NoSuchConst {
        /// The node.
        name: String,
    },
    /// Operands do not fit.
    #[error("node `{name}`")]
    Type {
        /// The node.
        name: String,
        /// The rule.
        #[source]
        source: TypeError,
    },
    /// The recorded types are not those that the operation yields.
    #[error("node `{name}`: recorded types {recorded}, inferred {inferred}")]
    StaleType {
        /// The node.
        name: String,
        /// Types in the node.
        recorded: String,
        /// Types from the operands.
        inferred: String,
    },
    /// An input or output without the batch axis, or with another batch size.
    #[error("`{name}`, {ty}, does not have {n_samples} sample(s) along batch axis {axis}")]
    BatchAxis {
        /// The input or output.
        name: String,
        /// Its type.
        ty: TensorType,
        /// The axis.
        axis: usize,
        /// Extent of the axis in the first input.
        n_samples: usize,
    },
    /// A constant or attribute outside of what the operation can compute with.
    #[error("node `{name}`: {what} is {found}, must be {expected}")]
    Value {
        /// The node that reads it.
        name: String,
        /// Which number.
        what: String,
        /// What it is.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A state or a repeat that names nothing, or something else.
    #[error("`{name}`: {what}")]
    Schedule {
        /// The input or output.
        name: String,
        /// What does not fit.
        what: String,
    },
    /// A constant that is shorter than its type, or cannot be read.
    #[error("node `{name}`")]
    Const {
        /// The node.
        name: String,
        /// Why.
        #[source]
        source: ConstError,
    },
}

/// Checks names, acyclicity, types and the numbers of quantized operations.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let order = graph.topo();
    if order.len() < graph.len() {
        let seen: BTreeSet<NodeId> = order.into_iter().collect();
        let name = graph.nodes().find(|id| !seen.contains(id)).map(|id| graph.node(id).name.clone());
        return Err(VerifyError::Cycle { name: name.unwrap_or_default(), n_nodes: graph.len() - seen.len() });
    }
    let mut names = BTreeSet::new();
    for id in order {
        let name = graph.node(id).name.as_str();
        if name.is_empty() || !names.insert(name) {
            return Err(VerifyError::NodeName { name: name.to_owned() });
        }
        verify_types(graph, id)?;
        verify_node(graph, id)?;
    }
    verify_outputs(graph)?;
    schedule::verify(graph)?;
    verify_batch_axis(graph)
}

/// Checks the attributes and constants that a node computes with: the part of
/// [`verify()`] that types do not tell.
///
/// # Errors
///
/// [`VerifyError::Value`] and [`VerifyError::Const`].
pub fn verify_node(graph: &Graph, id: NodeId) -> Result<(), VerifyError> {
    verify_numbers(&Reader { graph, id })
}

fn verify_types(graph: &Graph, id: NodeId) -> Result<(), VerifyError> {
    let node = graph.node(id);
    let name = || node.name.clone();
    let mut operands: Vec<&TensorType> = Vec::new();
    for (slot, value) in graph.operands(id).into_iter().enumerate() {
        match graph.node(value.node).outputs.get(usize::from(value.slot)) {
            Some(ty) => operands.push(ty),
            None => return Err(VerifyError::NoSuchOperand { name: name(), slot }),
        }
    }
    let inferred = node.op.infer(&operands).map_err(|source| VerifyError::Type { name: name(), source })?;
    if inferred != node.outputs {
        let list = |types: &[TensorType]| types.iter().map(TensorType::to_string).collect::<Vec<_>>().join("; ");
        return Err(VerifyError::StaleType { name: name(), recorded: list(&node.outputs), inferred: list(&inferred) });
    }
    if let Some(Elem::Code(scheme)) = inferred.iter().map(|ty| ty.elem).find(|elem| !is_valid(*elem)) {
        return Err(VerifyError::Value {
            name: name(),
            what: "width of the codes".to_owned(),
            found: format!("{} bits", scheme.bits),
            expected: "2, 3, 4, 8 or 16 bits".to_owned(),
        });
    }
    if let Op::Const(c) = &node.op {
        let constant = graph.get_constant(c.id).ok_or_else(|| VerifyError::NoSuchConst { name: name() })?;
        if constant.ty != c.ty {
            return Err(VerifyError::StaleType {
                name: name(),
                recorded: c.ty.to_string(),
                inferred: constant.ty.to_string(),
            });
        }
        verify_length(constant).map_err(|source| VerifyError::Const { name: name(), source })?;
    }
    Ok(())
}

fn is_valid(elem: Elem) -> bool {
    match elem {
        Elem::Plain(_) => true,
        Elem::Code(QuantScheme { bits, .. }) => matches!(bits, 2 | 3 | 4 | 8 | 16),
    }
}

/// Only bytes that are there can be counted: what lies behind a source is found
/// out when it is read.
fn verify_length(constant: &Constant) -> Result<(), ConstError> {
    let ty = &constant.ty;
    let size_bytes = ty.shape.iter().try_fold(ty.elem.size_bytes(), |n, &extent| n.checked_mul(extent));
    let long_enough = match &constant.data {
        ConstData::Bytes(bytes) => size_bytes.is_some_and(|size_bytes| bytes.len() >= size_bytes),
        ConstData::Splat(_) | ConstData::Rand(_) | ConstData::Source(_) => true,
    };
    if long_enough { Ok(()) } else { Err(ConstError::Range { ty: ty.clone(), start: 0, end: ty.n_elements() }) }
}

fn verify_numbers(node: &Reader<'_>) -> Result<(), VerifyError> {
    match &node.graph.node(node.id).op {
        Op::Input(_)
        | Op::Const(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Expand(_)
        | Op::Reduce(_)
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Gather(_)
        | Op::Scatter(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Unfold(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_)
        | Op::QLinear(_)
        | Op::Grad(Grad::Unfold(_)) => Ok(()),
        Op::QAdd(add) => {
            let positive = |m: f64| m >= 1.0;
            node.each(2, "the first multiplier", "positive", positive)?;
            node.each(3, "the second multiplier", "positive", positive)?;
            let shift = format!("1 to {}", Multiplier::SHIFT_MAX);
            node.each(4, "the shift", &shift, |s| (1.0..=f64::from(Multiplier::SHIFT_MAX)).contains(&s))?;
            for (slot, zero) in [(0, add.zero_a), (1, add.zero_b)] {
                if let Some(scheme) = node.operand_scheme(slot) {
                    node.zero_point(zero, scheme)?;
                }
            }
            node.zero_point(add.zero_point, add.scheme)
        }
        Op::QSum(sum) => match node.operand_scheme(0) {
            Some(scheme) => node.zero_point(sum.zero_point, scheme),
            None => Ok(()),
        },
        Op::Unary(unary) => node.function(unary.f),
        Op::Linear(linear) => linear.act.map_or(Ok(()), |f| node.function(f)),
        Op::FakeQuant(fake) => node.quantizer(fake, true),
        Op::Quantize(quantize) => {
            node.scale(1, "the factor")?;
            node.zero_point(quantize.zero_point, quantize.scheme)
        }
        Op::Requantize(requantize) => {
            let mantissa = format!("odd, {} to {}", Multiplier::M_MIN, Multiplier::M_MAX);
            node.each(1, "the multiplier", &mantissa, |m| {
                m % 2.0 == 1.0 && (f64::from(Multiplier::M_MIN)..=f64::from(Multiplier::M_MAX)).contains(&m)
            })?;
            let shift = format!("1 to {}", Multiplier::SHIFT_MAX);
            node.each(2, "the shift", &shift, |s| (1.0..=f64::from(Multiplier::SHIFT_MAX)).contains(&s))?;
            node.zero_point(requantize.zero_point, requantize.scheme)
        }
        Op::Lookup(_) => match node.operand_scheme(1) {
            Some(scheme) => {
                let (lo, hi) = (scheme.lo(), scheme.hi());
                node.each(1, "the table", &in_range(lo, hi), |code| in_bounds(code, lo, hi))
            }
            None => Ok(()),
        },
        Op::Dequantize(dequantize) => {
            node.scale(1, "the scale")?;
            match node.operand_scheme(0) {
                Some(scheme) => node.zero_point(dequantize.zero_point, scheme),
                None => Ok(()),
            }
        }
        Op::LinearWq(linear) => {
            node.scales_of_weights(2)?;
            linear.act.map_or(Ok(()), |f| node.function(f))
        }
        Op::Grad(Grad::Unary(unary)) => node.function(unary.f),
        Op::Grad(Grad::Binary(_) | Grad::Reduce(_) | Grad::Slice(_)) => Ok(()),
        Op::Grad(Grad::FakeQuant(grad)) => {
            // `(x, s, z, g)`, not `(x, s, g)`.
            let has_zero_point = node.graph.operands(node.id).len() == 4;
            node.quantizer(&grad.fake, has_zero_point)
        }
    }
}

fn in_range(lo: i32, hi: i32) -> String {
    format!("{lo} to {hi}")
}

fn in_bounds(x: f64, lo: i32, hi: i32) -> bool {
    (f64::from(lo)..=f64::from(hi)).contains(&x)
}

/// One node and the constants that it reads.
struct Reader<'g> {
    graph: &'g Graph,
    id: NodeId,
}

impl Reader<'_> {
    fn bad(&self, what: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> VerifyError {
        let name = self.graph.node(self.id).name.clone();
        VerifyError::Value { name, what: what.into(), found: found.to_string(), expected: expected.into() }
    }

    fn operand_scheme(&self, slot: usize) -> Option<QuantScheme> {
        self.graph.operands(self.id).get(slot).and_then(|&value| self.graph.ty(value).scheme())
    }

    /// Holds the elements of an operand to a rule, if a constant defines it.
    fn each(&self, slot: usize, what: &str, expected: &str, rule: impl Fn(f64) -> bool) -> Result<(), VerifyError> {
        let Some(constant) = self.graph.operands(self.id).get(slot).and_then(|&value| self.graph.const_of(value))
        else {
            return Ok(());
        };
        let distinct = match constant.data {
            ConstData::Splat(_) => 1,
            ConstData::Bytes(_) | ConstData::Rand(_) | ConstData::Source(_) => MAX_CHECKED,
        };
        let n = constant.ty.n_elements().min(distinct);
        for start in (0..n).step_by(CHUNK) {
            let elements = constant
                .read(start..(start + CHUNK).min(n))
                .map_err(|source| VerifyError::Const { name: self.graph.node(self.id).name.clone(), source })?;
            if let Some(i) = elements.iter().position(|&x| !rule(x)) {
                let at = if constant.ty.shape.is_empty() { String::new() } else { format!(", element {}", start + i) };
                return Err(self.bad(format!("{what}{at}"), elements[i], expected));
            }
        }
        Ok(())
    }

    fn scale(&self, slot: usize, what: &str) -> Result<(), VerifyError> {
        self.each(slot, what, "positive and finite", |s| s > 0.0 && s.is_finite())
    }

    /// Scales of weights: formats with a block a scale put the sign of the largest number into it.
    fn scales_of_weights(&self, slot: usize) -> Result<(), VerifyError> {
        self.each(slot, "the scale", "finite and not zero", |s| s != 0.0 && s.is_finite())
    }

    /// The scale of `(x, s, ..)`, and the zero point if operand 2 is one.
    fn quantizer(&self, fake: &FakeQuant, has_zero_point: bool) -> Result<(), VerifyError> {
        match fake.axis {
            Some(_) => self.scales_of_weights(1)?,
            None => self.scale(1, "the scale")?,
        }
        if !has_zero_point {
            return Ok(());
        }
        let (lo, hi) = (fake.scheme.lo(), fake.scheme.hi());
        self.each(2, "the zero point", &in_range(lo, hi), |z| in_bounds(z, lo, hi))
    }

    /// A zero point may lie outside of the codes used: a `clip` above zero was
    /// folded into them.
    fn zero_point(&self, zero_point: i32, scheme: QuantScheme) -> Result<(), VerifyError> {
        let (lo, hi) = (scheme.lo(), scheme.hi());
        if (lo..=hi).contains(&zero_point) {
            return Ok(());
        }
        Err(self.bad("the zero point", zero_point, in_range(lo, hi)))
    }

    fn function(&self, f: UnaryFn) -> Result<(), VerifyError> {
        match f {
            UnaryFn::Clip { min, max } if min > max || min.is_nan() || max.is_nan() => {
                Err(self.bad("the range of `clip`", format!("{min:?} to {max:?}"), "ascending"))
            }
            UnaryFn::Clip { .. } => Ok(()),
            f => match f.params().into_iter().find(|(_, x)| !x.is_finite()) {
                Some((name, x)) => Err(self.bad(format!("`{name}`"), x, "finite")),
                None => Ok(()),
            },
        }
    }
}

fn verify_outputs(graph: &Graph) -> Result<(), VerifyError> {
    let mut names = BTreeSet::new();
    for output in &graph.outputs {
        let name = || output.name.clone();
        if output.name.is_empty() || !names.insert(output.name.as_str()) {
            return Err(VerifyError::OutputName { name: name() });
        }
        let value = output.value;
        if !graph.contains(value.node) || usize::from(value.slot) >= graph.node(value.node).outputs.len() {
            return Err(VerifyError::NoSuchOutput { name: name() });
        }
    }
    Ok(())
}

fn verify_batch_axis(graph: &Graph) -> Result<(), VerifyError> {
    let Some(axis) = graph.batch_axis else { return Ok(()) };
    let own = |state: Option<&State>| state.map_or(Some(axis), |state| state.element_axis);
    let inputs = graph.inputs().iter().map(|&id| (graph.node(id).name.as_str(), id.value()));
    let inputs = inputs.filter(|(name, _)| !graph.is_turn(name));
    let inputs = inputs.map(|(name, value)| (name, value, own(graph.state_of_input(name))));
    let outputs = graph.outputs.iter().map(|output| (output.name.as_str(), output.value));
    let outputs = outputs.map(|(name, value)| (name, value, own(graph.state_of_output(name))));
    let mut batch = None;
    for (name, value, axis) in inputs.chain(outputs) {
        // A state that does not say where its elements lie has one for all.
        let Some(axis) = axis else { continue };
        let ty = graph.ty(value);
        let extent = ty.shape.get(axis).copied();
        let n_samples = *batch.get_or_insert(extent.unwrap_or(1));
        if extent != Some(n_samples) {
            return Err(VerifyError::BatchAxis { name: name.to_owned(), ty: ty.clone(), axis, n_samples });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{error::Error, sync::Arc};

    use super::*;
    use crate::{Origin, Output, Unary, text};

    /// The message of the first broken rule, with its causes.
    fn broken(graph: &Graph) -> String {
        let error = verify(graph).unwrap_err();
        let cause = error.source().map_or(String::new(), |source| format!(": {source}"));
        format!("{error}{cause}")
    }

    fn broken_text(lines: &str) -> String {
        broken(&text::parse(&format!("graph @g(%x: f32[1, 2], %q: qs4[1, 2]) -> (%x) {{ {lines} }}")).unwrap())
    }

    fn relu(graph: &mut Graph, name: &str, x: crate::ValueId) -> crate::ValueId {
        graph.add(name, Op::Unary(Unary { f: UnaryFn::Relu }), &[x], Origin::default()).unwrap().value()
    }

    fn chain() -> (Graph, [crate::ValueId; 3]) {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", TensorType::f32([1, 2]));
        let a = relu(&mut graph, "a", x);
        let b = relu(&mut graph, "b", a);
        graph.add_output("y", b);
        (graph, [x, a, b])
    }

    #[test]
    fn a_cycle_is_found() {
        let (mut graph, [_, a, b]) = chain();
        verify(&graph).unwrap();
        graph.rewire(a.node, 0, b);
        assert_eq!(broken(&graph), "2 node(s) lie on a cycle or behind it, among them `a`");
    }

    #[test]
    fn types_follow_from_operands() {
        let (mut graph, [_, a, _]) = chain();
        let wide = graph.add_input("wide", TensorType::f32([1, 3]));
        graph.rewire(a.node, 0, wide);
        assert_eq!(broken(&graph), "node `a`: recorded types f32[1, 2], inferred f32[1, 3]");
        let bytes = graph.add_input("bytes", TensorType::plain(crate::DType::U8, [1, 2]));
        graph.rewire(a.node, 0, bytes);
        assert_eq!(broken(&graph), "node `a`: relu takes one f32 tensor, found u8[1, 2]");
        graph.rewire(a.node, 1, wide);
        assert_eq!(broken(&graph), "node `a`: relu takes one f32 tensor, found u8[1, 2], f32[1, 3]");
        graph.rewire(a.node, 0, crate::ValueId { node: wide.node, slot: 3 });
        assert_eq!(broken(&graph), "node `a`: operand 0 does not exist");
    }

    #[test]
    fn outputs_exist_and_have_their_own_names() {
        let (mut graph, [x, ..]) = chain();
        graph.add_output("y", x);
        assert_eq!(broken(&graph), "output name `y` is empty or used twice");
        graph.outputs[1] = Output { name: "z".to_owned(), value: crate::ValueId { node: x.node, slot: 1 } };
        assert_eq!(broken(&graph), "output `z` is a value that the graph does not define");
    }

    #[test]
    fn inputs_and_outputs_share_the_batch() {
        let (mut graph, [_, _, b]) = chain();
        graph.batch_axis = Some(0);
        verify(&graph).unwrap();
        graph.batch_axis = Some(2);
        assert_eq!(broken(&graph), "`x`, f32[1, 2], does not have 1 sample(s) along batch axis 2");
        graph.batch_axis = Some(0);
        let shape = vec![2, 1];
        let op = Op::Reshape(crate::Reshape { shape });
        let flat = graph.add("flat", op, &[b], Origin::default()).unwrap();
        graph.add_output("z", flat.value());
        assert_eq!(broken(&graph), "`z`, f32[2, 1], does not have 1 sample(s) along batch axis 0");
    }

    #[test]
    fn bytes_are_as_many_as_the_type_says() {
        let mut graph = Graph::new("g");
        let short = ConstData::Bytes(vec![0; 7].into());
        graph.add_const("w", Constant { ty: TensorType::f32([2]), data: short }, Origin::default());
        assert_eq!(broken(&graph), "node `w`: constant of type f32[2] has no elements 0..2");
    }

    #[test]
    fn codes_have_a_width_that_exists() {
        let mut graph = Graph::new("g");
        graph.add_input("q", TensorType::code(QuantScheme::signed(5), [1]));
        assert_eq!(broken(&graph), "node `q`: width of the codes is 5 bits, must be 2, 3, 4, 8 or 16 bits");
    }

    #[test]
    fn numbers_of_quantized_operations_are_checked() {
        let scale = "node `y`: the scale is 0, must be positive and finite";
        assert_eq!(broken_text("%s = const splat(0.0) : f32[] %y = fake_quant %x, %s {s4} : f32[1, 2]"), scale);
        assert_eq!(
            broken_text("%s = const [1.0, inf] : f32[2] %y = fake_quant %x, %s {s4, axis = 1} : f32[1, 2]"),
            "node `y`: the scale, element 1 is inf, must be finite and not zero"
        );
        let weights = "%w = const [1.0, -2.0] : f32[1, 2] %s = const [-0.5, 0.5] : f32[2]
            %y = fake_quant %w, %s {s4, axis = 1} : f32[1, 2]";
        verify(&text::parse(&format!("graph @g() -> (%y) {{ {weights} }}")).unwrap()).unwrap();
        assert_eq!(
            broken_text("%s = const [1.0] : f32[] %z = const [8] : i32[] %y = fake_quant %x, %s, %z {s4} : f32[1, 2]"),
            "node `y`: the zero point is 8, must be -8 to 7"
        );
        assert_eq!(
            broken_text("%r = const [1.0, nan] : f32[2] %y = quantize %x, %r : qs8[1, 2]"),
            "node `y`: the factor, element 1 is NaN, must be positive and finite"
        );
        assert_eq!(
            broken_text("%r = const [1.0] : f32[] %y = quantize %x, %r {zero_point = -1} : qu8[1, 2]"),
            "node `y`: the zero point is -1, must be 0 to 255"
        );
        assert_eq!(
            broken_text("%s = const [-1.0] : f64[1] %y = dequantize %q, %s : f32[1, 2]"),
            "node `y`: the scale, element 0 is -1, must be positive and finite"
        );
        assert_eq!(
            broken_text("%s = const [1.0] : f64[1] %y = dequantize %q, %s {zero_point = 9} : f32[1, 2]"),
            "node `y`: the zero point is 9, must be -8 to 7"
        );
        let requantize = |m: &str, shift: &str| {
            broken_text(&format!(
                "%acc = const [1] : i32[1] %m = const [{m}] : i32[1] %s = const [{shift}] : i32[1]
                %y = requantize %acc, %m, %s : qs8[1]"
            ))
        };
        assert_eq!(
            requantize("40000", "3"),
            "node `y`: the multiplier, element 0 is 40000, must be odd, 32769 to 65535"
        );
        assert_eq!(
            requantize("-40001", "3"),
            "node `y`: the multiplier, element 0 is -40001, must be odd, 32769 to 65535"
        );
        assert_eq!(requantize("40001", "63"), "node `y`: the shift, element 0 is 63, must be 1 to 62");
        let lines = "%s = const [1.0] : f32[] %y = fake_quant_grad %x, %s, %x {s4, wrt = 0} : f32[1, 2]";
        verify(&text::parse(&format!("graph @g(%x: f32[1, 2]) -> (%x) {{ {lines} }}")).unwrap()).unwrap();
        assert_eq!(
            broken_text(&lines.replace("[1.0]", "[0.0]")),
            "node `y`: the scale is 0, must be positive and finite"
        );
    }

    #[test]
    fn parameters_of_functions_are_checked() {
        assert_eq!(
            broken_text("%y = clip %x {min = 1.0, max = -1.0} : f32[1, 2]"),
            "node `y`: the range of `clip` is 1.0 to -1.0, must be ascending"
        );
        assert_eq!(broken_text("%y = elu %x {alpha = inf} : f32[1, 2]"), "node `y`: `alpha` is inf, must be finite");
    }

    #[test]
    fn weights_are_not_read() {
        #[derive(Debug)]
        struct Trap;
        impl crate::ConstSource for Trap {
            fn read(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
                Err(std::io::Error::other("read"))
            }
        }
        let mut graph = Graph::new("g");
        let weights = Constant { ty: TensorType::f32([1 << 20, 1 << 20]), data: ConstData::Source(Arc::new(Trap)) };
        graph.add_const("w", weights, Origin::default());
        verify(&graph).unwrap();
    }
}
