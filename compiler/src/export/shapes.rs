//! Operations that move elements without computing: the same in every export.

use qail_ir::{NodeId, Op, Reduce, ReduceFn, Slice};

use super::{
    ExportError,
    builder::{Tensor, dims},
    emit::{Emitter, onnx_type},
};
use crate::frontend::proto::AttributeProto;

/// Writes a shape operation on the tensor `x` of its first operand, under the
/// name `out`. `Concat` takes all its operands from `xs`.
pub(super) fn emit(emitter: &mut Emitter<'_>, id: NodeId, xs: &[Tensor], out: &str) -> Result<Tensor, ExportError> {
    let [x, ..] = xs else { return Err(emitter.unsupported(id, "an operand is missing")) };
    let graph = emitter.graph;
    match &graph.node(id).op {
        Op::Reshape(reshape) => {
            let mut shape = dims(&reshape.shape);
            if let (true, Some(first)) = (emitter.batch_is_open, shape.first_mut()) {
                // Zero copies the extent of the operand.
                *first = 0;
            }
            let shape = emitter.builder.i64s(&format!("{out}/shape"), &shape);
            emitter.builder.node("Reshape", &[&x.name, &shape], Vec::new(), out);
        }
        Op::Transpose(transpose) => {
            let perm = AttributeProto::ints("perm", dims(&transpose.perm));
            emitter.builder.node("Transpose", &[&x.name], vec![perm], out);
        }
        Op::Slice(slice) => emit_slice(emitter, slice, x, out),
        Op::Concat(concat) => {
            let names: Vec<&str> = xs.iter().map(|x| x.name.as_str()).collect();
            let axis = AttributeProto::int("axis", concat.axis as i64);
            emitter.builder.node("Concat", &names, vec![axis], out);
        }
        Op::Expand(expand) => {
            let mut shape = dims(&expand.shape);
            if let (true, Some(first)) = (emitter.batch_is_open, shape.first_mut()) {
                // One broadcasts to whatever extent the operand has.
                *first = 1;
            }
            let shape = emitter.builder.i64s(&format!("{out}/shape"), &shape);
            emitter.builder.node("Expand", &[&x.name, &shape], Vec::new(), out);
        }
        Op::Cast(cast) => {
            let ty = onnx_type(cast.to);
            emitter.builder.node("Cast", &[&x.name], vec![AttributeProto::int("to", ty.into())], out);
            return Ok(Tensor::new(out, ty));
        }
        Op::Input(_)
        | Op::Const(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Linear(_)
        | Op::Reduce(_)
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
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::FakeQuant(_)
        | Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_)
        | Op::Grad(_) => return Err(emitter.unsupported(id, "it is not a shape operation")),
    }
    Ok(Tensor::new(out, x.ty))
}

fn emit_slice(emitter: &mut Emitter<'_>, slice: &Slice, x: &Tensor, out: &str) {
    let (mut starts, mut ends, mut axes, mut steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (at, axis) in slice.axes.iter().enumerate() {
        if at == 0 && emitter.batch_is_open {
            continue;
        }
        let (start, step) = (axis.start as i64, axis.step as i64);
        let end = start + axis.len as i64 * step;
        starts.push(start);
        // A negative end counts from the back: behind the front is "very small".
        ends.push(if end < 0 { i64::MIN } else { end });
        axes.push(at as i64);
        steps.push(step);
    }
    let builder = &mut emitter.builder;
    let parts = [("starts", &starts), ("ends", &ends), ("axes", &axes), ("steps", &steps)];
    let [starts, ends, axes, steps] = parts.map(|(what, numbers)| builder.i64s(&format!("{out}/{what}"), numbers));
    builder.node("Slice", &[&x.name, &starts, &ends, &axes, &steps], Vec::new(), out);
}

/// Writes a reduction of `x`, in the type of `x`.
pub(super) fn emit_reduce(emitter: &mut Emitter<'_>, reduce: &Reduce, x: &Tensor, out: &str) -> Tensor {
    let op = match reduce.f {
        ReduceFn::Sum => "ReduceSum",
        ReduceFn::Mean => "ReduceMean",
        ReduceFn::Min => "ReduceMin",
        ReduceFn::Max => "ReduceMax",
        ReduceFn::Prod => "ReduceProd",
    };
    // A list without elements would mean all axes.
    let keep = AttributeProto::int("keepdims", reduce.keep_dims.into());
    if reduce.axes.is_empty() {
        emitter.builder.node("Identity", &[&x.name], Vec::new(), out);
        return Tensor::new(out, x.ty);
    }
    // Axes are an operand of sums from 13 on, of the others from 18 on.
    if emitter.builder.opset < 18 && reduce.f != ReduceFn::Sum {
        let axes = AttributeProto::ints("axes", dims(&reduce.axes));
        emitter.builder.node(op, &[&x.name], vec![axes, keep], out);
        return Tensor::new(out, x.ty);
    }
    let axes = emitter.builder.i64s(&format!("{out}/axes"), &dims(&reduce.axes));
    emitter.builder.node(op, &[&x.name, &axes], vec![keep], out);
    Tensor::new(out, x.ty)
}
