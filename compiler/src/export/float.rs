//! Operations on plain numbers: the same in every form that computes in `f32`.

use qail_ir::{
    ArgReduce, Attention, CompareFn, CumSum, Elem, Gather, NodeId, Normalize, Op, Scatter, ScatterFn, Softmax, TopK,
    TopKPart, UnaryFn,
};

use super::{
    ExportError,
    builder::{Tensor, dims},
    emit::{Emitter, onnx_type},
    functions::{Math, emit_binary, emit_unary},
    shapes, windows,
};
use crate::frontend::proto::{AttributeProto, data_type};

const F32: i32 = data_type::FLOAT;

/// Writes an operation under the name `out`. What computes on codes is refused.
pub(super) fn emit(emitter: &mut Emitter<'_>, id: NodeId, out: &str) -> Result<Tensor, ExportError> {
    let graph = emitter.graph;
    match &graph.node(id).op {
        Op::Input(input) => match input.ty.elem {
            Elem::Plain(dtype) => Ok(Tensor::new(out, onnx_type(dtype))),
            Elem::Code(_) => Err(emitter.unsupported(id, "a model takes numbers, not codes")),
        },
        Op::Unary(unary) => {
            let x = emitter.operand(id, 0)?;
            Ok(emit_unary(&mut emitter.builder, Math::Plain, unary.f, &x, out))
        }
        Op::Binary(binary) => {
            let (a, b) = (emitter.operand(id, 0)?, emitter.operand(id, 1)?);
            Ok(emit_binary(&mut emitter.builder, Math::Plain, binary.f, [&a, &b], out))
        }
        Op::MatMul(_) => {
            let (a, b) = (emitter.operand(id, 0)?, emitter.operand(id, 1)?);
            emitter.builder.node("MatMul", &[&a.name, &b.name], Vec::new(), out);
            Ok(Tensor::new(out, F32))
        }
        Op::Linear(linear) => {
            let (x, w, b) = (emitter.operand(id, 0)?, emitter.operand(id, 1)?, emitter.operand(id, 2)?);
            let product = emitter.builder.step("MatMul", &[&x.name, &w.name], Vec::new(), &format!("{out}/products"));
            Ok(biased(emitter, &product, &b.name, linear.act, out))
        }
        Op::Reduce(reduce) => {
            let x = emitter.operand(id, 0)?;
            Ok(shapes::emit_reduce(emitter, reduce, &x, out))
        }
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Concat(_) | Op::Expand(_) | Op::Cast(_) => {
            let n_operands = graph.operands(id).len();
            let xs = (0..n_operands).map(|slot| emitter.operand(id, slot)).collect::<Result<Vec<_>, _>>()?;
            shapes::emit(emitter, id, &xs, out)
        }
        Op::Unfold(unfold) => {
            let x = emitter.operand(id, 0)?;
            let shape = graph.ty(emitter.operand_value(id, 0)?).shape.clone();
            windows::emit(emitter, id, unfold, (&x, &shape), unfold.fill.into(), out)
        }
        Op::Compare(compare) => emit_compare(emitter, id, compare.f, out),
        Op::Where(_) => {
            let [c, a, b] = operands(emitter, id)?;
            emitter.builder.node("Where", &[&c.name, &a.name, &b.name], Vec::new(), out);
            Ok(Tensor::new(out, a.ty))
        }
        Op::Gather(gather) => emit_gather(emitter, id, gather, out),
        Op::Scatter(scatter) => emit_scatter(emitter, id, scatter, out),
        Op::ArgReduce(reduce) => emit_arg_reduce(emitter, id, reduce, out),
        Op::TopK(top_k) => emit_top_k(emitter, id, top_k, out),
        Op::CumSum(sum) => emit_cum_sum(emitter, id, sum, out),
        Op::Softmax(softmax) => emit_softmax(emitter, id, softmax, out),
        Op::Normalize(normalize) => emit_normalize(emitter, id, normalize, out),
        Op::Attention(attention) => emit_attention(emitter, id, attention, out),
        Op::Film(_) => {
            let [x, scale, shift] = operands(emitter, id)?;
            let base = format!("{out}/scaled");
            let scaled = emitter.builder.step("Mul", &[&x.name, &scale.name], Vec::new(), &base);
            emitter.builder.node("Add", &[&scaled, &shift.name], Vec::new(), out);
            Ok(Tensor::new(out, x.ty))
        }
        Op::Rope(_) => {
            Err(emitter.unsupported(id, "rotary embeddings are not written yet; check it with `run` instead"))
        }
        Op::Const(_) => Err(emitter.unsupported(id, "it is written by its readers")),
        Op::FakeQuant(_) => Err(emitter.unsupported(id, "it has no codes yet; run the pass `lower-quant` first")),
        Op::Quantize(_)
        | Op::QLinear(_)
        | Op::Requantize(_)
        | Op::Lookup(_)
        | Op::QAdd(_)
        | Op::QSum(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_) => Err(emitter.unsupported(id, "it is no operation on plain numbers")),
        Op::Grad(_) => {
            Err(emitter.unsupported(id, "ONNX has no operation for gradients; export the graph without them"))
        }
    }
}

/// The sum, and the function that was fused.
pub(super) fn biased(emitter: &mut Emitter<'_>, product: &str, bias: &str, act: Option<UnaryFn>, out: &str) -> Tensor {
    let builder = &mut emitter.builder;
    let Some(f) = act else {
        builder.node("Add", &[product, bias], Vec::new(), out);
        return Tensor::new(out, F32);
    };
    let sum = builder.step("Add", &[product, bias], Vec::new(), &format!("{out}/sum"));
    emit_unary(builder, Math::Plain, f, &Tensor::new(sum, F32), out)
}

fn operands<const N: usize>(emitter: &mut Emitter<'_>, id: NodeId) -> Result<[Tensor; N], ExportError> {
    let all = (0..N).map(|slot| emitter.operand(id, slot)).collect::<Result<Vec<_>, _>>()?;
    all.try_into().map_err(|_| emitter.unsupported(id, "an operand is missing"))
}

fn emit_compare(emitter: &mut Emitter<'_>, id: NodeId, f: CompareFn, out: &str) -> Result<Tensor, ExportError> {
    let [a, b] = operands(emitter, id)?;
    let op = match f {
        CompareFn::Eq | CompareFn::Ne => "Equal",
        CompareFn::Lt => "Less",
        CompareFn::Le => "LessOrEqual",
        CompareFn::Gt => "Greater",
        CompareFn::Ge => "GreaterOrEqual",
    };
    if f == CompareFn::Ne {
        let equal = emitter.builder.step(op, &[&a.name, &b.name], Vec::new(), &format!("{out}/equal"));
        emitter.builder.node("Not", &[&equal], Vec::new(), out);
    } else {
        emitter.builder.node(op, &[&a.name, &b.name], Vec::new(), out);
    }
    Ok(Tensor::new(out, data_type::BOOL))
}

/// An index beyond the ends is an error in ONNX; the compiler reads the element at the end.
fn emit_gather(emitter: &mut Emitter<'_>, id: NodeId, gather: &Gather, out: &str) -> Result<Tensor, ExportError> {
    let [x, index] = operands(emitter, id)?;
    let axis = AttributeProto::int("axis", gather.axis as i64);
    emitter.builder.node("Gather", &[&x.name, &index.name], vec![axis], out);
    Ok(Tensor::new(out, x.ty))
}

fn emit_scatter(emitter: &mut Emitter<'_>, id: NodeId, scatter: &Scatter, out: &str) -> Result<Tensor, ExportError> {
    let [x, index, update] = operands(emitter, id)?;
    let (since, attributes) = match scatter.f {
        ScatterFn::Replace => (13, Vec::new()),
        ScatterFn::Add | ScatterFn::Mul => (16, vec![AttributeProto::string("reduction", scatter.f.name())]),
        ScatterFn::Min | ScatterFn::Max => (18, vec![AttributeProto::string("reduction", scatter.f.name())]),
    };
    if emitter.builder.opset < since {
        return Err(emitter.unsupported(id, "opset 13 only replaces rows; use --format qdq"));
    }
    let builder = &mut emitter.builder;
    let index = builder.cast(&index, data_type::INT64, &format!("{out}/index"));
    let axes = builder.i64s(&format!("{out}/axes"), &[1]);
    let index = builder.step("Unsqueeze", &[&index.name, &axes], Vec::new(), &format!("{out}/rows"));
    builder.node("ScatterND", &[&x.name, &index, &update.name], attributes, out);
    Ok(Tensor::new(out, x.ty))
}

fn emit_arg_reduce(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    reduce: &ArgReduce,
    out: &str,
) -> Result<Tensor, ExportError> {
    let [x] = operands(emitter, id)?;
    let attributes = vec![
        AttributeProto::int("axis", reduce.axis as i64),
        AttributeProto::int("keepdims", reduce.keep_dims.into()),
        AttributeProto::int("select_last_index", reduce.last.into()),
    ];
    let op = if reduce.largest { "ArgMax" } else { "ArgMin" };
    emitter.builder.node(op, &[&x.name], attributes, out);
    Ok(Tensor::new(out, data_type::INT64))
}

fn emit_top_k(emitter: &mut Emitter<'_>, id: NodeId, top_k: &TopK, out: &str) -> Result<Tensor, ExportError> {
    let [x] = operands(emitter, id)?;
    let builder = &mut emitter.builder;
    let k = builder.i64s(&format!("{out}/k"), &[top_k.k as i64]);
    let attributes =
        vec![AttributeProto::int("axis", top_k.axis as i64), AttributeProto::int("largest", top_k.largest.into())];
    let other = builder.claim(&format!("{out}/other"));
    let (results, ty) = match top_k.part {
        TopKPart::Values => ([out, &other], x.ty),
        TopKPart::Indices => ([other.as_str(), out], data_type::INT64),
    };
    builder.node_of("", "TopK", &[&x.name, &k], attributes, &results);
    Ok(Tensor::new(out, ty))
}

fn emit_cum_sum(emitter: &mut Emitter<'_>, id: NodeId, sum: &CumSum, out: &str) -> Result<Tensor, ExportError> {
    let [x] = operands(emitter, id)?;
    let axis = emitter.builder.i64_scalar(&format!("{out}/axis"), sum.axis as i64);
    let attributes = vec![
        AttributeProto::int("exclusive", sum.exclusive.into()),
        AttributeProto::int("reverse", sum.reverse.into()),
    ];
    emitter.builder.node("CumSum", &[&x.name, &axis], attributes, out);
    Ok(Tensor::new(out, x.ty))
}

fn emit_softmax(emitter: &mut Emitter<'_>, id: NodeId, softmax: &Softmax, out: &str) -> Result<Tensor, ExportError> {
    let [x] = operands(emitter, id)?;
    let op = if softmax.log { "LogSoftmax" } else { "Softmax" };
    emitter.builder.node(op, &[&x.name], vec![AttributeProto::int("axis", softmax.axis as i64)], out);
    Ok(Tensor::new(out, F32))
}

fn emit_normalize(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    normalize: &Normalize,
    out: &str,
) -> Result<Tensor, ExportError> {
    let [x] = operands(emitter, id)?;
    let mean = |emitter: &mut Emitter<'_>, x: &str, name: &str| {
        let reduce = qail_ir::Reduce { f: qail_ir::ReduceFn::Mean, axes: normalize.axes.clone(), keep_dims: true };
        let name = emitter.builder.claim(&format!("{out}/{name}"));
        shapes::emit_reduce(emitter, &reduce, &Tensor::new(x, F32), &name).name
    };
    let centred = if normalize.center {
        let mean = mean(emitter, &x.name, "mean");
        emitter.builder.step("Sub", &[&x.name, &mean], Vec::new(), &format!("{out}/centred"))
    } else {
        x.name
    };
    let square = emitter.builder.step("Mul", &[&centred, &centred], Vec::new(), &format!("{out}/square"));
    let variance = mean(emitter, &square, "variance");
    let builder = &mut emitter.builder;
    let eps = builder.scalar(&format!("{out}/eps"), F32, normalize.eps.into());
    let sum = builder.step("Add", &[&variance, &eps], Vec::new(), &format!("{out}/sum"));
    let deviation = builder.step("Sqrt", &[&sum], Vec::new(), &format!("{out}/deviation"));
    builder.node("Div", &[&centred, &deviation], Vec::new(), out);
    Ok(Tensor::new(out, F32))
}

/// `softmax(q k^T * scale + mask) v`; keys and values of a group are repeated for its heads.
fn emit_attention(
    emitter: &mut Emitter<'_>,
    id: NodeId,
    attention: &Attention,
    out: &str,
) -> Result<Tensor, ExportError> {
    let graph = emitter.graph;
    let values = graph.operands(id);
    let shapes: Vec<&[usize]> = values.iter().map(|&value| &graph.ty(value).shape[..]).collect();
    let (Some(&[_, heads, ..]), Some(&[_, groups, ..])) = (shapes.first().copied(), shapes.get(1).copied()) else {
        return Err(emitter.unsupported(id, "an operand is missing"));
    };
    let q = emitter.operand(id, 0)?.name;
    let mut parts = Vec::with_capacity(2);
    for (slot, name) in [(1, "keys"), (2, "values")] {
        let x = emitter.operand(id, slot)?.name;
        let shape = shapes.get(slot).copied().unwrap_or_default();
        // One group is broadcast as it is.
        parts.push(if groups == heads || groups == 1 {
            x
        } else {
            repeated(emitter, &x, shape, heads / groups.max(1), &format!("{out}/{name}"))
        });
    }
    let mask = if values.len() > 3 { Some(emitter.operand(id, 3)?.name) } else { None };
    let builder = &mut emitter.builder;
    let [k, v] = [0, 1].map(|at| parts.get(at).map(String::as_str).unwrap_or_default());
    let perm = vec![AttributeProto::ints("perm", vec![0, 1, 3, 2])];
    let turned = builder.step("Transpose", &[k], perm, &format!("{out}/turned"));
    let products = builder.step("MatMul", &[&q, &turned], Vec::new(), &format!("{out}/products"));
    let scale = builder.scalar(&format!("{out}/scale"), F32, attention.scale.into());
    let mut scores = builder.step("Mul", &[&products, &scale], Vec::new(), &format!("{out}/scores"));
    if let Some(mask) = mask {
        scores = builder.step("Add", &[&scores, &mask], Vec::new(), &format!("{out}/masked"));
    }
    let axis = vec![AttributeProto::int("axis", -1)];
    let weights = builder.step("Softmax", &[&scores], axis, &format!("{out}/weights"));
    builder.node("MatMul", &[&weights, v], Vec::new(), out);
    Ok(Tensor::new(out, F32))
}

/// `[B, G, S, E]` to `[B, G * times, S, E]`, each group `times` times.
fn repeated(emitter: &mut Emitter<'_>, x: &str, shape: &[usize], times: usize, out: &str) -> String {
    let &[batch, groups, rows, width] = shape else { return x.to_owned() };
    let first = |extent: i64| if emitter.batch_is_open { extent } else { batch as i64 };
    let (kept, any) = (first(0), first(1));
    let builder = &mut emitter.builder;
    let apart = builder.i64s(&format!("{out}/apart"), &[&[kept], &dims(&[groups, 1, rows, width])[..]].concat());
    let x = builder.step("Reshape", &[x, &apart], Vec::new(), &format!("{out}/groups"));
    let wide = builder.i64s(&format!("{out}/wide"), &[&[any], &dims(&[groups, times, rows, width])[..]].concat());
    let x = builder.step("Expand", &[&x, &wide], Vec::new(), &format!("{out}/repeated"));
    let heads = builder.i64s(&format!("{out}/heads"), &[&[kept], &dims(&[groups * times, rows, width])[..]].concat());
    builder.step("Reshape", &[&x, &heads], Vec::new(), out)
}
