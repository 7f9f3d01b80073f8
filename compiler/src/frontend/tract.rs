//! The only module that knows tract.
//!
//! tract does two things here. It infers the shapes of the outputs a second
//! time, independently of ours: a difference becomes a note, never a refusal.
//! And it evaluates operators that the graph does not have when all their
//! operands are constants. It runs under `catch_unwind` on small inputs only:
//! tensors are bounded before it sees them, and large constants are shown to it
//! as inputs, so that no weight is copied.

use std::{
    cell::Cell,
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

use prost::Message;
use qail_ir::{Constant, DType, TensorType};
use tract_onnx::prelude::{DatumType, Framework, InferenceModelExt, IntoRunnable, Tensor, TractResult, tvec};

use super::{
    external,
    proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type},
    validate::Checked,
};

/// Most nodes of a model that tract is asked about.
const MAX_NODES: usize = 10_000;

/// Most elements of a constant that tract sees.
const MAX_CONSTANT_ELEMENTS: usize = 4096;

/// Most elements of a tensor that tract may compute.
pub(super) const MAX_COMPUTED_ELEMENTS: usize = 1 << 22;

/// Shapes of the outputs as tract infers them; none where it declines.
pub(super) fn output_shapes(model: &ModelProto, checked: &Checked<'_>) -> Vec<Option<Vec<usize>>> {
    let none = || vec![None; checked.outputs.len()];
    if checked.order.len() > MAX_NODES {
        return none();
    }
    let skeleton = skeleton(model, checked).encode_to_vec();
    quietly(|| infer(&skeleton)).filter(|shapes| shapes.len() == checked.outputs.len()).unwrap_or_else(none)
}

fn infer(skeleton: &[u8]) -> TractResult<Vec<Option<Vec<usize>>>> {
    let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut model = onnx.model_for_read(&mut Cursor::new(skeleton))?;
    model.analyse(false)?;
    let n_outputs = model.output_outlets()?.len();
    (0..n_outputs).map(|i| Ok(model.output_fact(i)?.shape.as_concrete_finite()?.map(|shape| shape.to_vec()))).collect()
}

/// The model without its large constants: they become inputs of the same type.
fn skeleton(model: &ModelProto, checked: &Checked<'_>) -> ModelProto {
    let mut graph = GraphProto { name: "skeleton".to_owned(), ..GraphProto::default() };
    for tensor in checked.graph.initializer.iter().filter(|tensor| checked.needed.contains(tensor.name.as_str())) {
        let n = tensor.dims.iter().fold(1i64, |n, &dim| n.saturating_mul(dim));
        if n <= MAX_CONSTANT_ELEMENTS as i64 && tensor.data_location != external::EXTERNAL {
            graph.initializer.push(tensor.clone());
        } else {
            graph.input.push(ValueInfoProto::tensor(&*tensor.name, tensor.data_type, &tensor.dims));
        }
    }
    for (name, ty) in &checked.inputs {
        let dims: Vec<i64> = ty.shape.iter().map(|&extent| extent as i64).collect();
        graph.input.push(ValueInfoProto::tensor(*name, elem_type(ty), &dims));
    }
    graph.node = checked.order.iter().filter_map(|&i| checked.graph.node.get(i).cloned()).collect();
    graph.output = checked.outputs.iter().map(|&name| ValueInfoProto { name: name.to_owned(), r#type: None }).collect();
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// Operators on constants that tract may evaluate: none of them makes a tensor
/// larger than its operands broadcast to.
const FOLDED: [&str; 22] = [
    "And",
    "Ceil",
    "Cos",
    "Equal",
    "Erf",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "LogSoftmax",
    "Mish",
    "Mod",
    "Not",
    "Or",
    "Round",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Tan",
    "Where",
];

/// True if constants under this operator may be evaluated here.
pub(super) fn folds(op_type: &str) -> bool {
    FOLDED.contains(&op_type)
}

/// Applies an operator of [`FOLDED`] to constants; none if tract declines.
pub(super) fn fold(node: &NodeProto, opset: i64, operands: &[Option<&Constant>]) -> Option<Constant> {
    let rank = operands.iter().flatten().map(|constant| constant.ty.shape.len()).max()?;
    let mut n_broadcast = 1usize;
    for axis in 0..rank {
        let extents = operands.iter().flatten().filter_map(|constant| constant.ty.shape.iter().rev().nth(axis));
        n_broadcast = n_broadcast.checked_mul(*extents.max()?)?;
    }
    if n_broadcast > MAX_COMPUTED_ELEMENTS || !folds(&node.op_type) || node.output.len() != 1 {
        return None;
    }
    let mut node = node.clone();
    let mut graph = GraphProto { name: "fold".to_owned(), ..GraphProto::default() };
    for (i, (operand, name)) in operands.iter().zip(&mut node.input).enumerate() {
        let Some(constant) = operand else { continue };
        *name = format!("operand{i}");
        let bytes = constant.read_bytes(0..constant.ty.n_elements()).ok()?;
        let dims: Vec<i64> = constant.ty.shape.iter().map(|&extent| extent as i64).collect();
        graph.initializer.push(TensorProto::raw(name.clone(), elem_type(&constant.ty), dims, bytes));
    }
    node.output = vec!["result".to_owned()];
    graph.output = vec![ValueInfoProto { name: "result".to_owned(), r#type: None }];
    graph.node = vec![node];
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
    let bytes = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec();
    quietly(|| evaluate(&bytes)).flatten()
}

fn evaluate(model: &[u8]) -> TractResult<Option<Constant>> {
    let model = tract_onnx::onnx().model_for_read(&mut Cursor::new(model))?.into_typed()?;
    let results = model.into_runnable()?.run(tvec!())?;
    Ok(results.first().and_then(|result| constant(result)))
}

fn constant(tensor: &Tensor) -> Option<Constant> {
    let shape = tensor.shape().to_vec();
    let view = tensor.as_plain_ram()?;
    let ints = |dtype, elements: &[i64]| Some(Constant::ints(TensorType::plain(dtype, shape.clone()), elements));
    match tensor.datum_type() {
        DatumType::F32 => Some(Constant::f32(shape, view.as_slice::<f32>().ok()?)),
        DatumType::I64 => ints(DType::I64, view.as_slice::<i64>().ok()?),
        DatumType::Bool => {
            let bits: Vec<i64> = view.as_slice::<bool>().ok()?.iter().map(|&bit| i64::from(bit)).collect();
            ints(DType::Bool, &bits)
        }
        _ => None,
    }
}

fn elem_type(ty: &TensorType) -> i32 {
    match ty.dtype() {
        Some(DType::F32) => data_type::FLOAT,
        Some(DType::F64) => data_type::DOUBLE,
        Some(DType::U8) => data_type::UINT8,
        Some(DType::I32) => data_type::INT32,
        Some(DType::I64) => data_type::INT64,
        Some(DType::Bool) => data_type::BOOL,
        None => 0,
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; an error or a panic becomes `None`, and a panic prints nothing.
///
/// The panic hook belongs to the process. It is wrapped once, and the wrapper
/// passes everything on except from a thread that is inside this function.
fn quietly<T>(f: impl FnOnce() -> TractResult<T>) -> Option<T> {
    static WRAP: Once = Once::new();
    WRAP.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                hook(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    result.ok().and_then(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_nothing() {
        assert_eq!(quietly(|| -> TractResult<()> { panic!("unknown output") }), None);
    }

    #[test]
    fn a_sine_of_a_constant_is_a_constant() {
        let node = NodeProto {
            op_type: "Sin".to_owned(),
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            ..NodeProto::default()
        };
        let x = Constant::f32([1, 2], &[0.0, 1.0]);
        let y = fold(&node, 17, &[Some(&x)]).unwrap();
        assert_eq!(y.ty, x.ty);
        assert!((y.all().unwrap()[1] - 1f64.sin()).abs() < 1e-6);
    }
}
