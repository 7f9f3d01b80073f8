//! What is trained: constants of a prepared graph, with their roles and units.
//!
//! Parameters are the weights and biases of layers with quantized weights, and
//! the steps of every quantizer but that of an observation, whose steps are
//! powers of two that `fold-entry-steps` moved into the weights, or 1 for images of bytes.
//!
//! Weights are *folded*: a normalizer and the steps of an observation were
//! multiplied into them, so their magnitude is arbitrary, 1e-4 say. So every
//! parameter has a **unit**, fixed before the first step, and learning rates
//! are relative: a rate of 1e-3 moves an element by about a thousandth of it.
//!
//! | role | unit |
//! |---|---|
//! | weight | root mean square of the tensor; of the row, behind an observation |
//! | bias | rms(weights of the layer) * rms(what the layer reads): a change of the bias counts like one of a weight |
//! | step | the initial value, element by element |
//!
//! Rows behind an observation have a unit each because each has the step of its
//! feature folded in.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::{
    ConstId, Constant, DType, Graph, NodeId, Op, ValueId,
    interp::{Data, InterpError, Interpreter, Tensor},
};
use qail_passes::quant::ENTRY;

/// A step may shrink to this part of its initial value: it stays positive, and
/// a layer cannot leave the range of its multipliers in one bad update.
const SMALLEST_STEP: f32 = 1.0 / 64.0;
/// A unit is at least this part of the largest unit of its tensor: rows of
/// zeros could never leave zero otherwise.
const SMALLEST_UNIT: f64 = 1e-3;

/// What a parameter is, which decides its learning rate and decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Weights of a layer: decayed.
    Weight,
    /// Bias of a layer.
    Bias,
    /// Steps of a quantizer: their own rate, positive.
    Step,
}

/// A constant that is trained.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name of the constant in the graph.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its extents.
    pub shape: Vec<usize>,
    /// The present elements, row-major.
    pub elements: Vec<f32>,
    /// What a relative change of 1 is, for every element.
    pub unit: Vec<f32>,
    /// Factor of its gradient: `1 / sqrt(N * Qp)` for the steps of a quantizer
    /// of `N` numbers a step with largest code `Qp` (Esser et al. 2020, arXiv
    /// 1902.08153, section 2.2), 1 for everything else. Adam divides it out
    /// again; what is left of it is the weight of steps in the global norm.
    pub gradient_scale: f32,
}

impl Parameter {
    /// The smallest allowed element, if there is one. `unit` is the initial
    /// value of a step.
    pub(crate) fn floor(&self, index: usize) -> Option<f32> {
        match self.role {
            Role::Step => self.unit.get(index).map(|initial| initial * SMALLEST_STEP),
            Role::Weight | Role::Bias => None,
        }
    }
}

/// A graph without anything to train, or one that does not run.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// All parameters lie in front of choices.
    #[error(
        "no parameter moves the action, so there is nothing to train: all lie in front of choices; use the method ptq"
    )]
    NoneMoves,
    /// No layer has quantized weights.
    #[error("no layer of the model has quantized weights, so there is nothing to train; use the method ptq")]
    Nothing,
    /// The constant cannot be read.
    #[error("constant `{name}` cannot be read")]
    Const {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: qail_ir::ConstError,
    },
    /// The constant has NaN or infinite elements.
    #[error("constant `{name}` is not finite before training; check the weights of the model")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// The graph does not run on a sample.
    #[error(transparent)]
    Interp(#[from] InterpError),
    /// The graph has no such constant of that type.
    #[error("the graph has no constant `{name}` of {n} numbers")]
    Missing {
        /// Its name.
        name: String,
        /// Number of elements.
        n: usize,
    },
}

/// The parameters of a prepared graph, in the order of the graph. Units of
/// biases are measured on `samples`, a first calibration batch.
///
/// # Errors
/// Graphs without quantized layers, constants that are not finite, and samples
/// that the graph does not take.
pub fn parameters(graph: &Graph, samples: &[BTreeMap<String, Tensor>]) -> Result<Vec<Parameter>, ParameterError> {
    let layers: Vec<Layer> = graph.topo().into_iter().filter_map(|id| Layer::of(graph, id)).collect();
    if layers.is_empty() {
        return Err(ParameterError::Nothing);
    }
    let inputs = rms_of(graph, layers.iter().map(|layer| layer.x).collect(), samples)?;
    let mut out = Vec::new();
    let mut taken: BTreeSet<ConstId> = BTreeSet::new();
    for layer in &layers {
        let w = read(graph, layer.w)?;
        let by_row = is_observation(graph, layer.x);
        let weights = Parameter { unit: weight_units(&w, by_row), ..new(graph, layer.w, Role::Weight, w) };
        let rms_w = rms(weights.elements.iter().copied());
        if take(graph, layer.w, &mut taken) {
            out.push(weights);
        }
        if take(graph, layer.b, &mut taken) {
            let b = read(graph, layer.b)?;
            let one = (rms_w * inputs.get(&layer.x).copied().unwrap_or(1.0)).max(f64::MIN_POSITIVE) as f32;
            let unit = vec![one.max(f32::MIN_POSITIVE); b.elements.len()];
            out.push(Parameter { unit, ..new(graph, layer.b, Role::Bias, b) });
        }
    }
    for id in graph.topo() {
        let Op::FakeQuant(fake) = &graph.node(id).op else { continue };
        let [x, scale, ..] = graph.operands(id)[..] else { continue };
        if fake.scheme == ENTRY || is_of_bytes(graph, x) || !take(graph, scale, &mut taken) {
            continue;
        }
        let steps = read(graph, scale)?;
        let unit = steps.elements.clone();
        // Numbers behind one step: of the whole batch for an activation, as the
        // paper counts them for one sample.
        let n = graph.ty(x).n_elements() as f64 / unit.len().max(1) as f64;
        let gradient_scale = 1.0 / libm::sqrt(n.max(1.0) * f64::from(fake.hi.max(1))) as f32;
        out.push(Parameter { unit, gradient_scale, ..new(graph, scale, Role::Step, steps) });
    }
    Ok(out)
}

/// The constant of a parameter in a graph that has it under the same name.
pub fn locate(graph: &Graph, parameters: &[Parameter]) -> Result<Vec<ValueId>, ParameterError> {
    let by_name: BTreeMap<&str, ValueId> = graph.nodes().map(|id| (graph.node(id).name.as_str(), id.value())).collect();
    let of = |parameter: &Parameter| {
        let value = by_name.get(parameter.name.as_str()).copied();
        let fits = |value: &ValueId| graph.const_of(*value).is_some_and(|c| c.ty.shape == parameter.shape);
        value
            .filter(fits)
            .ok_or_else(|| ParameterError::Missing { name: parameter.name.clone(), n: parameter.elements.len() })
    };
    parameters.iter().map(of).collect()
}

/// Puts numbers into the constants of a graph, by name.
pub fn set(graph: &mut Graph, parameters: &[Parameter], elements: &[Vec<f32>]) -> Result<(), ParameterError> {
    let values = locate(graph, parameters)?;
    for ((parameter, elements), value) in parameters.iter().zip(elements).zip(values) {
        let missing = || ParameterError::Missing { name: parameter.name.clone(), n: elements.len() };
        let Op::Const(constant) = graph.op(value) else { return Err(missing()) };
        let id = constant.id;
        graph.set_const(id, Constant::f32(parameter.shape.clone(), elements)).map_err(|_| missing())?;
    }
    Ok(())
}

/// A layer with quantized weights and a constant bias.
struct Layer {
    x: ValueId,
    w: ValueId,
    b: ValueId,
}

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let Op::Linear(_) = graph.node(id).op else { return None };
        let [x, quantizer, b] = graph.operands(id)[..] else { return None };
        let Op::FakeQuant(_) = graph.op(quantizer) else { return None };
        let w = graph.operands(quantizer.node).first().copied()?;
        graph.const_of(w)?;
        graph.const_of(b)?;
        Some(Self { x, w, b })
    }
}

/// Elements and shape of a constant.
struct Elements {
    elements: Vec<f32>,
    shape: Vec<usize>,
}

fn read(graph: &Graph, value: ValueId) -> Result<Elements, ParameterError> {
    let name = || graph.node(value.node).name.clone();
    let constant = graph.const_of(value).ok_or_else(|| ParameterError::Missing { name: name(), n: 0 })?;
    let elements = constant.all_f32().map_err(|source| ParameterError::Const { name: name(), source })?;
    if !elements.iter().all(|x| x.is_finite()) {
        return Err(ParameterError::NotFinite { name: name() });
    }
    Ok(Elements { elements, shape: constant.ty.shape.clone() })
}

fn new(graph: &Graph, value: ValueId, role: Role, read: Elements) -> Parameter {
    let name = graph.node(value.node).name.clone();
    Parameter { name, role, shape: read.shape, elements: read.elements, unit: Vec::new(), gradient_scale: 1.0 }
}

/// True the first time that a constant is asked for.
fn take(graph: &Graph, value: ValueId, taken: &mut BTreeSet<ConstId>) -> bool {
    matches!(graph.op(value), Op::Const(constant) if taken.insert(constant.id))
}

/// True for codes of an observation, moved or not.
fn is_observation(graph: &Graph, mut x: ValueId) -> bool {
    loop {
        match (graph.op(x), graph.operands(x.node).first()) {
            (Op::FakeQuant(fake), operand) => {
                return fake.scheme == ENTRY || operand.is_some_and(|&operand| is_of_bytes(graph, operand));
            }
            (Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Unfold(_), Some(&moved)) => x = moved,
            _ => return false,
        }
    }
}

/// True for bytes as floats: images, which are their own codes; their step is 1.
fn is_of_bytes(graph: &Graph, value: ValueId) -> bool {
    let bytes = |x: &ValueId| graph.ty(*x).dtype() == Some(DType::U8);
    matches!(graph.op(value), Op::Cast(_)) && graph.operands(value.node).first().is_some_and(bytes)
}

fn weight_units(weights: &Elements, by_row: bool) -> Vec<f32> {
    let n = weights.shape.last().copied().unwrap_or(1).max(1);
    let row_len = if by_row { n } else { weights.elements.len().max(1) };
    let rows: Vec<f64> = weights.elements.chunks(row_len).map(|row| rms(row.iter().copied())).collect();
    let largest = rows.iter().copied().fold(0.0, f64::max);
    let smallest = if largest > 0.0 { largest * SMALLEST_UNIT } else { 1.0 };
    let of_row = |rms: &f64| (rms.max(smallest) as f32).max(f32::MIN_POSITIVE);
    rows.iter().flat_map(|rms| std::iter::repeat_n(of_row(rms), row_len)).take(weights.elements.len()).collect()
}

/// Root mean square of each value over some samples; 1 without samples.
fn rms_of(
    graph: &Graph,
    values: BTreeSet<ValueId>,
    samples: &[BTreeMap<String, Tensor>],
) -> Result<BTreeMap<ValueId, f64>, ParameterError> {
    let mut sums: BTreeMap<ValueId, (f64, usize)> = values.into_iter().map(|value| (value, (0.0, 0))).collect();
    if !samples.is_empty() {
        let interpreter = Interpreter::new(graph)?;
        for sample in samples {
            interpreter.observe(sample, |id, tensor| {
                let (Some((sum, n)), Data::F32(x)) = (sums.get_mut(&id.value()), &tensor.data) else { return };
                *sum += x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
                *n += x.len();
            })?;
        }
    }
    let rms = |(sum, n): (f64, usize)| if n == 0 || sum == 0.0 { 1.0 } else { libm::sqrt(sum / n as f64) };
    Ok(sums.into_iter().map(|(value, sum)| (value, rms(sum))).collect())
}

fn rms(x: impl ExactSizeIterator<Item = f32>) -> f64 {
    let n = x.len().max(1) as f64;
    libm::sqrt(x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>() / n)
}

#[cfg(test)]
pub(crate) mod tests {
    use qail_ir::text;

    use super::*;

    /// An observation of two features, a layer on codes and one behind a table.
    pub(crate) const POLICY: &str = "
        graph @policy(%obs: f32[1, 2]) -> (%y) {batch = 0} {
          %obs.r = const [4.0, 4.0] : f32[2]
          %x = mul %obs, %obs.r : f32[1, 2]
          %one = const [1.0] : f32[]
          %xq = fake_quant %x, %one {s16, lo = -32639, hi = 32639} : f32[1, 2]
          %w0 = const [0.25, -0.25, 0.5, 0.5] : f32[2, 2]
          %w0.s = const [0.005, 0.005] : f32[2]
          %w0.q = fake_quant %w0, %w0.s {s8, lo = -127, axis = 1} : f32[2, 2]
          %b0 = const [0.5, 0.0] : f32[2]
          %h = linear %xq, %w0.q, %b0 {act = relu} : f32[1, 2]
          %h.s = const [0.25] : f32[]
          %hq = fake_quant %h, %h.s {u4} : f32[1, 2]
          %w1 = const [1.0, -2.0] : f32[2, 1]
          %w1.s = const [0.25] : f32[1]
          %w1.q = fake_quant %w1, %w1.s {s4, lo = -7, axis = 1} : f32[2, 1]
          %b1 = const [0.0] : f32[1]
          %y = linear %hq, %w1.q, %b1 : f32[1, 1]
        }";

    pub(crate) fn sample() -> BTreeMap<String, Tensor> {
        BTreeMap::from([("obs".to_owned(), Tensor::f32([1, 2], vec![0.5, 0.25]))])
    }

    #[test]
    fn weights_biases_and_steps_are_found_but_not_the_step_of_the_observation() {
        let graph = text::parse(POLICY).unwrap();
        let found = parameters(&graph, &[sample()]).unwrap();
        let names: Vec<(&str, Role)> = found.iter().map(|p| (p.name.as_str(), p.role)).collect();
        let (w, b, s) = (Role::Weight, Role::Bias, Role::Step);
        assert_eq!(names, [("w0", w), ("b0", b), ("w1", w), ("b1", b), ("w0.s", s), ("h.s", s), ("w1.s", s)]);
    }

    #[test]
    fn units_follow_the_numbers() {
        let graph = text::parse(POLICY).unwrap();
        let found = parameters(&graph, &[sample()]).unwrap();
        let unit = |name: &str| found.iter().find(|p| p.name == name).unwrap().unit.clone();
        // Rows behind an observation have a unit each.
        assert_eq!(unit("w0"), [0.25, 0.25, 0.5, 0.5]);
        // The codes of the observation are 2 and 1.
        let expected = (0.15625f64.sqrt() * 2.5f64.sqrt()) as f32;
        assert_eq!(unit("b0"), [expected, expected]);
        assert_eq!(unit("w1"), [2.5f32.sqrt(), 2.5f32.sqrt()]);
        assert_eq!(unit("h.s"), [0.25]);
    }

    #[test]
    fn the_step_of_an_image_of_bytes_is_not_trained() {
        let text = "graph @policy(%img: u8[1, 3, 2]) -> (%y) {batch = 0} {
            %f = cast %img : f32[1, 3, 2] %one = const [1.0] : f32[] %q = fake_quant %f, %one {u8} : f32[1, 3, 2]
            %u = unfold %q {out = [1, 2, 1], size = [1, 2, 2]} : f32[1, 2, 1, 2, 2] %r = reshape %u : f32[1, 2, 4]
            %w = const [0.5, 0.25, 1.0, 2.0] : f32[4, 1] %ws = const [0.02] : f32[1]
            %wq = fake_quant %w, %ws {s8, lo = -127, axis = 1} : f32[4, 1] %b = const [0.0] : f32[1]
            %y = linear %r, %wq, %b : f32[1, 2, 1] }";
        let found = parameters(&text::parse(text).unwrap(), &[]).unwrap();
        let names: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["w", "b", "ws"]);
        // A normalizer was folded in: rows have a unit each.
        assert_eq!(found[0].unit, [0.5, 0.25, 1.0, 2.0]);
    }

    #[test]
    fn a_float_graph_has_nothing_to_train() {
        let text = "graph @g(%x: f32[1, 2]) -> (%x) {batch = 0} { }";
        let error = parameters(&text::parse(text).unwrap(), &[]).unwrap_err();
        assert!(error.to_string().contains("nothing to train"));
    }

    #[test]
    fn numbers_go_back_by_name() {
        let mut graph = text::parse(POLICY).unwrap();
        let found = parameters(&graph, &[sample()]).unwrap();
        let mut elements: Vec<Vec<f32>> = found.iter().map(|p| p.elements.clone()).collect();
        elements[2] = vec![3.0, 4.0];
        set(&mut graph, &found, &elements).unwrap();
        let values = locate(&graph, &found).unwrap();
        assert_eq!(graph.const_of(values[2]).unwrap().all_f32().unwrap(), [3.0, 4.0]);
    }
}
