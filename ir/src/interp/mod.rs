//! What a graph means: a scalar executor for floats and exact integers.
//!
//! It is the judge of every other executor in the project and never the judged,
//! so it stays simple: one function an operation, loops in index order, no
//! reassociation, no fused multiply-add. Integers are computed exactly; a result
//! that leaves its type is an error, never a wrap.
//!
//! - `f32` sums run sequentially over the index, from 0, and every operation
//!   rounds on its own. Functions are `f64` through `libm`, rounded once.
//! - Quantized operations follow the formulas of their [`Op`] alone.
//! - What only depends on constants is computed once, in [`Interpreter::new`].
//! - A graph that repeats runs from its first node to its last in every turn. States are inputs and outputs like
//!   others: whoever runs a graph several times hands them on.

mod elementwise;
mod error;
mod grad;
mod integer;
mod linear;
mod normalize;
mod quant;
mod reduce;
mod rope;
mod select;
mod shape;
mod tensor;
#[cfg(test)]
mod testing;
mod window;

use std::collections::BTreeMap;

use crate::{DType, Graph, Node, NodeId, Op, TensorType, ValueId, verify};

pub use error::{Fault, InterpError};
pub use tensor::{Data, Tensor, TensorError};

/// Largest number of elements of all values of a graph together: 2^30.
pub const MAX_ELEMENTS: usize = 1 << 30;

/// Runs a graph once. Inputs and outputs go by their names.
pub fn run(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, InterpError> {
    Interpreter::new(graph)?.run(inputs)
}

/// Runs a graph once and keeps every value, constants included.
pub fn run_all(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<ValueId, Tensor>, InterpError> {
    let mut values = BTreeMap::new();
    Interpreter::new(graph)?.observe(inputs, |node, tensor| {
        values.insert(node.value(), tensor.clone());
    })?;
    Ok(values)
}

/// A graph made ready to run many times.
#[derive(Debug)]
pub struct Interpreter<'g> {
    graph: &'g Graph,
    /// Every node, operands before users.
    steps: Vec<Step>,
    /// What only depends on constants, in the order of `steps`.
    fixed: Vec<Option<Tensor>>,
    /// The step behind each output.
    outputs: Vec<usize>,
}

/// One node. Steps go by their place in the order.
#[derive(Debug)]
struct Step {
    node: NodeId,
    operands: Vec<usize>,
    /// Steps whose values nobody reads after this one.
    last_read: Vec<usize>,
}

impl<'g> Interpreter<'g> {
    /// Verifies a graph, decodes its constants and computes what depends on
    /// nothing else.
    pub fn new(graph: &'g Graph) -> Result<Self, InterpError> {
        verify(graph)?;
        let order = graph.topo();
        check_size(graph, &order)?;
        let place: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let place_of = |value: ValueId| place.get(&value.node).copied().unwrap_or(0);
        let mut steps: Vec<Step> = order
            .iter()
            .map(|&node| {
                let operands = graph.operands(node).into_iter().map(place_of).collect();
                Step { node, operands, last_read: Vec::new() }
            })
            .collect();
        let outputs: Vec<usize> = graph.outputs.iter().map(|output| place_of(output.value)).collect();
        let mut last_reader: Vec<Option<usize>> = vec![None; steps.len()];
        for (i, step) in steps.iter().enumerate() {
            for &operand in &step.operands {
                last_reader[operand] = Some(i);
            }
        }
        for &output in &outputs {
            last_reader[output] = None;
        }
        for (value, reader) in last_reader.into_iter().enumerate() {
            if let Some(reader) = reader {
                steps[reader].last_read.push(value);
            }
        }
        let mut interpreter = Self { graph, steps, fixed: Vec::new(), outputs };
        interpreter.fold()?;
        Ok(interpreter)
    }

    fn fold(&mut self) -> Result<(), InterpError> {
        for step in &self.steps {
            let node = self.graph.node(step.node);
            let operands: Option<Vec<&Tensor>> =
                step.operands.iter().map(|&i| self.fixed.get(i).and_then(Option::as_ref)).collect();
            let value = if let Op::Const(c) = &node.op {
                let constant = Tensor::from_constant(self.graph.constant(c.id))
                    .map_err(|source| InterpError::Const { name: node.name.clone(), source })?;
                constant.check().map_err(|error| fault(node, error.into()))?;
                Some(constant)
            } else if matches!(node.op, Op::Input(_)) {
                None
            } else {
                operands.map(|operands| eval(node, &operands)).transpose()?
            };
            self.fixed.push(value);
        }
        Ok(())
    }

    /// Runs the graph. Inputs and outputs go by their names.
    pub fn run(&self, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, InterpError> {
        self.observe(inputs, |_, _| {})
    }

    /// As [`Interpreter::run`], and shows the value of every node as it appears,
    /// operands before users, constants included.
    pub fn observe(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        mut see: impl FnMut(NodeId, &Tensor),
    ) -> Result<BTreeMap<String, Tensor>, InterpError> {
        self.check_inputs(inputs)?;
        let Some(repeat) = &self.graph.repeat else { return self.turn(inputs, &mut see) };
        let mut given = inputs.clone();
        let mut outputs = BTreeMap::new();
        for turn in 0..repeat.n {
            if let Some(name) = &repeat.turn {
                let number = TensorType::plain(DType::I64, Vec::<usize>::new());
                given.insert(name.clone(), Tensor::ints(number, vec![turn as i64]));
            }
            outputs = self.turn(&given, &mut see)?;
            for carry in &repeat.carries {
                if let Some(value) = outputs.get(&carry.output) {
                    given.insert(carry.input.clone(), value.clone());
                }
            }
        }
        Ok(outputs)
    }

    /// The graph, once.
    fn turn(
        &self,
        inputs: &BTreeMap<String, Tensor>,
        see: &mut dyn FnMut(NodeId, &Tensor),
    ) -> Result<BTreeMap<String, Tensor>, InterpError> {
        let mut live: Vec<Option<Tensor>> = vec![None; self.steps.len()];
        for (i, step) in self.steps.iter().enumerate() {
            if let Some(fixed) = &self.fixed[i] {
                see(step.node, fixed);
                continue;
            }
            let node = self.graph.node(step.node);
            let value = if matches!(node.op, Op::Input(_)) {
                inputs.get(&node.name).cloned().ok_or_else(|| missing(node))?
            } else {
                let operands: Option<Vec<&Tensor>> =
                    step.operands.iter().map(|&operand| self.value(&live, operand)).collect();
                let operands = operands.ok_or_else(|| fault(node, Fault::Internal("an operand has no value")))?;
                eval(node, &operands)?
            };
            see(step.node, &value);
            live[i] = Some(value);
            for &dead in &step.last_read {
                live[dead] = None;
            }
        }
        let mut outputs = BTreeMap::new();
        for (output, &i) in self.graph.outputs.iter().zip(&self.outputs) {
            let value = self.value(&live, i).cloned();
            let node = self.graph.node(output.value.node);
            let value = value.ok_or_else(|| fault(node, Fault::Internal("an output has no value")))?;
            outputs.insert(output.name.clone(), value);
        }
        Ok(outputs)
    }

    fn value<'a>(&'a self, live: &'a [Option<Tensor>], i: usize) -> Option<&'a Tensor> {
        live.get(i).and_then(Option::as_ref).or_else(|| self.fixed.get(i).and_then(Option::as_ref))
    }

    fn check_inputs(&self, inputs: &BTreeMap<String, Tensor>) -> Result<(), InterpError> {
        for &id in self.graph.inputs() {
            let node = self.graph.node(id);
            if self.graph.is_turn(&node.name) {
                continue;
            }
            let given = inputs.get(&node.name).ok_or_else(|| missing(node))?;
            let expected = self.graph.ty(id.value());
            if given.ty != *expected {
                let (name, found) = (node.name.clone(), given.ty.clone());
                return Err(InterpError::InputType { name, found, expected: expected.clone() });
            }
            given.check().map_err(|source| InterpError::Input { name: node.name.clone(), source })?;
        }
        let names = || self.graph.inputs().iter().map(|&id| self.graph.node(id).name.as_str());
        let names = || names().filter(|name| !self.graph.is_turn(name));
        match inputs.keys().find(|given| !names().any(|name| name == *given)) {
            Some(name) if inputs.len() > names().count() => {
                let known: Vec<String> = names().map(|name| format!("`{name}`")).collect();
                let known = if known.is_empty() { "no inputs".to_owned() } else { known.join(", ") };
                Err(InterpError::UnknownInput { name: name.clone(), known })
            }
            _ => Ok(()),
        }
    }
}

fn missing(node: &Node) -> InterpError {
    let ty = node.outputs.first().cloned().unwrap_or_else(|| crate::TensorType::f32([]));
    InterpError::MissingInput { name: node.name.clone(), ty }
}

fn fault(node: &Node, fault: Fault) -> InterpError {
    InterpError::Node { name: node.name.clone(), fault }
}

fn check_size(graph: &Graph, order: &[NodeId]) -> Result<(), InterpError> {
    let mut n_elements = 0usize;
    for &id in order {
        let node = graph.node(id);
        for ty in &node.outputs {
            n_elements = n_elements.saturating_add(ty.n_elements());
            if n_elements > MAX_ELEMENTS {
                return Err(InterpError::TooLarge { name: node.name.clone(), ty: ty.clone(), limit: MAX_ELEMENTS });
            }
        }
    }
    Ok(())
}

/// The value of one node that is neither an input nor a constant. Operands have
/// the types that the graph says: [`verify`] is for whole graphs.
pub fn eval(node: &Node, operands: &[&Tensor]) -> Result<Tensor, InterpError> {
    let [ty] = &node.outputs[..] else {
        return Err(fault(node, Fault::Internal("a node with several results")));
    };
    // No operation has anything to do for no element, whatever its operands.
    if ty.n_elements() == 0 {
        return Ok(Tensor { ty: ty.clone(), data: Data::empty(ty.elem) });
    }
    let data = match &node.op {
        Op::Input(_) | Op::Const(_) => Err(Fault::Internal("a leaf is not computed")),
        Op::Unary(unary) => elementwise::unary(unary, operands),
        Op::Binary(binary) => elementwise::binary(binary, operands, ty),
        Op::Cast(cast) => elementwise::cast(cast, operands),
        Op::MatMul(_) => linear::matmul(operands, ty),
        Op::Linear(linear) => linear::linear(linear, operands),
        Op::LinearWq(linear) => linear::linear_wq(linear, operands),
        Op::Reshape(_) => shape::reshape(operands),
        Op::Transpose(transpose) => shape::transpose(transpose, operands),
        Op::Slice(slice) => shape::slice(slice, operands),
        Op::Concat(concat) => shape::concat(concat, operands, ty),
        Op::Expand(_) => shape::expand(operands, ty),
        Op::Reduce(reduce) => reduce::reduce(reduce, operands),
        Op::Compare(op) => select::compare(op, operands, ty),
        Op::Where(_) => select::choose(operands, ty),
        Op::Gather(op) => select::gather(op, operands),
        Op::Scatter(op) => select::scatter(op, operands),
        Op::ArgReduce(op) => select::arg_reduce(op, operands),
        Op::TopK(op) => select::top_k(op, operands, ty),
        Op::CumSum(op) => select::cum_sum(op, operands),
        Op::Unfold(op) => window::unfold(op, operands),
        Op::Softmax(op) => normalize::softmax(op, operands),
        Op::Normalize(op) => normalize::normalize(op, operands),
        Op::Attention(op) => normalize::attention(op, operands, ty),
        Op::Rope(op) => rope::rope(op, operands),
        Op::Film(_) => rope::film(operands),
        Op::QAdd(op) => integer::q_add(op, operands, ty),
        Op::QSum(op) => integer::q_sum(op, operands),
        Op::FakeQuant(fake) => quant::fake_quant(fake, operands),
        Op::Quantize(quantize) => quant::quantize(quantize, operands),
        Op::QLinear(linear) => quant::qlinear(linear, operands),
        Op::Requantize(requantize) => quant::requantize(requantize, operands),
        Op::Lookup(_) => quant::lookup(operands),
        Op::Dequantize(dequantize) => quant::dequantize(dequantize, operands),
        Op::Grad(op) => grad::grad(op, operands, ty),
    }
    .map_err(|why| fault(node, why))?;
    let value = Tensor { ty: ty.clone(), data };
    if value.data.len() != ty.n_elements() {
        return Err(fault(node, Fault::Internal("a result without its number of elements")));
    }
    Ok(value)
}

/// The elements of operand `i`, which verification found to be `f32`.
fn f32s<'a>(operands: &[&'a Tensor], i: usize) -> Result<&'a [f32], Fault> {
    operands.get(i).and_then(|x| x.as_f32()).ok_or(Fault::Internal("an operand that is not f32"))
}

/// The elements of operand `i`, which verification found to be `f64`.
fn f64s<'a>(operands: &[&'a Tensor], i: usize) -> Result<&'a [f64], Fault> {
    operands.get(i).and_then(|x| x.as_f64()).ok_or(Fault::Internal("an operand that is not f64"))
}

/// The elements of operand `i`, which verification found to be integers.
fn ints<'a>(operands: &[&'a Tensor], i: usize) -> Result<&'a [i64], Fault> {
    operands.get(i).and_then(|x| x.as_ints()).ok_or(Fault::Internal("an operand that is not an integer"))
}

/// Operand `i`.
fn tensor<'a>(operands: &[&'a Tensor], i: usize) -> Result<&'a Tensor, Fault> {
    operands.get(i).copied().ok_or(Fault::Internal("an operand is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuantScheme, text};

    const TWO_INPUTS: &str = "graph @g(%x: f32[2], %q: qs4[2]) -> (%y, copy = %y, %x, w = %w2) {
        %w = const [1.0, -2.0] : f32[2]
        %w2 = mul %w, %w : f32[2]
        %h = mul %x, %w2 : f32[2]
        %y = neg %h : f32[2]
    }";

    fn inputs(x: Tensor, q: Tensor) -> BTreeMap<String, Tensor> {
        [("x".to_owned(), x), ("q".to_owned(), q)].into()
    }

    fn good() -> BTreeMap<String, Tensor> {
        let q = Tensor::ints(TensorType::code(QuantScheme::signed(4), [2]), vec![7, -8]);
        inputs(Tensor::f32([2], vec![3.0, 5.0]), q)
    }

    #[test]
    fn outputs_go_by_their_names() {
        let graph = text::parse(TWO_INPUTS).unwrap();
        let outputs = run(&graph, &good()).unwrap();
        let names: Vec<&str> = outputs.keys().map(String::as_str).collect();
        assert_eq!(names, ["copy", "w", "x", "y"]);
        assert_eq!(outputs["y"], outputs["copy"]);
        assert_eq!(outputs["y"].as_f32().unwrap(), [-3.0, -20.0]);
        assert_eq!(outputs["w"].as_f32().unwrap(), [1.0, 4.0]);
    }

    #[test]
    fn every_value_can_be_seen() {
        let graph = text::parse(TWO_INPUTS).unwrap();
        let values = run_all(&graph, &good()).unwrap();
        assert_eq!(values.len(), graph.len());
        for (value, tensor) in &values {
            assert_eq!(tensor.ty, *graph.ty(*value));
            tensor.check().unwrap();
        }
        let mut order = Vec::new();
        Interpreter::new(&graph).unwrap().observe(&good(), |node, _| order.push(node)).unwrap();
        assert_eq!(order, graph.topo());
    }

    #[test]
    fn a_repeat_hands_values_from_turn_to_turn() {
        let graph = text::parse(
            "graph @g(%x: f32[1], %k: i64[]) -> (y = %y) {
                repeat 3 \"k\"
                carry \"x\" = \"y\"
                %steps = const [1.0, 10.0, 100.0] : f32[3]
                %step = gather %steps, %k {axis = 0} : f32[]
                %two = const [2.0] : f32[1]
                %twice = mul %x, %two : f32[1]
                %y = add %twice, %step : f32[1]
            }",
        )
        .unwrap();
        let x: BTreeMap<String, Tensor> = [("x".to_owned(), Tensor::f32([1], vec![1.0]))].into();
        // ((1 * 2 + 1) * 2 + 10) * 2 + 100
        assert_eq!(run(&graph, &x).unwrap()["y"].as_f32().unwrap(), [132.0]);
        let mut with_turn = x;
        with_turn.insert("k".to_owned(), Tensor::ints(TensorType::plain(DType::I64, []), vec![0]));
        assert_eq!(run(&graph, &with_turn).unwrap_err().to_string(), "there is no input `k`; the graph takes `x`");
    }

    #[test]
    fn wrong_inputs_are_named() {
        let graph = text::parse(TWO_INPUTS).unwrap();
        let message = |inputs: &BTreeMap<String, Tensor>| match run(&graph, inputs).unwrap_err() {
            InterpError::Input { name, source } => format!("{name}: {source}"),
            error => error.to_string(),
        };
        let change = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut inputs = good();
            change(&mut inputs);
            message(&inputs)
        };
        let codes = || TensorType::code(QuantScheme::signed(4), [2]);
        assert_eq!(change(&|inputs| drop(inputs.remove("x"))), "input `x`, f32[2], is missing");
        assert_eq!(
            change(&|inputs| drop(inputs.insert("z".to_owned(), Tensor::f32([], vec![0.0])))),
            "there is no input `z`; the graph takes `x`, `q`"
        );
        assert_eq!(
            change(&|inputs| drop(inputs.insert("x".to_owned(), Tensor::f64([2], vec![0.0; 2])))),
            "input `x` is f64[2], must be f32[2]"
        );
        assert_eq!(
            change(&|inputs| drop(inputs.insert("x".to_owned(), Tensor::f32([2], vec![0.0; 3])))),
            "x: a tensor of type f32[2] has 2 elements, found 3"
        );
        assert_eq!(
            change(&|inputs| drop(inputs.insert("x".to_owned(), Tensor::ints(TensorType::f32([2]), vec![0; 2])))),
            "x: a tensor of type f32[2] cannot hold integers"
        );
        assert_eq!(
            change(&|inputs| drop(inputs.insert("q".to_owned(), Tensor::ints(codes(), vec![0, 8])))),
            "q: element 1 is 8, which is not a qs4"
        );
    }

    #[test]
    fn constants_that_are_not_of_their_type_are_refused() {
        let mut graph = Graph::new("g");
        let ty = TensorType::code(QuantScheme::signed(4), [1]);
        let wild = crate::Constant { ty, data: crate::ConstData::Bytes(vec![100].into()) };
        graph.add_const("w", wild, crate::Origin::default());
        let message = Interpreter::new(&graph).unwrap_err().to_string();
        assert_eq!(message, "node `w`: element 0 is 100, which is not a qs4");
    }

    #[test]
    fn an_ill_formed_graph_is_refused() {
        let mut graph = text::parse(TWO_INPUTS).unwrap();
        graph.outputs[0].name = "copy".to_owned();
        assert!(matches!(Interpreter::new(&graph), Err(InterpError::Verify(_))));
    }

    #[test]
    fn constants_and_tensors_are_the_same_elements() {
        for ty in [
            TensorType::f32([2, 3]),
            TensorType::plain(DType::F64, [3]),
            TensorType::plain(DType::I64, [3]),
            TensorType::code(QuantScheme::unsigned(8), [5]),
        ] {
            let constant = crate::Constant { ty, data: crate::ConstData::Rand(3) };
            let tensor = Tensor::from_constant(&constant).unwrap();
            assert_eq!(tensor.to_constant().unwrap().all().unwrap(), constant.all().unwrap());
            assert_eq!(tensor.to_f64(), constant.all().unwrap());
        }
    }
}
