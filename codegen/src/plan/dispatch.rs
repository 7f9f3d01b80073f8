//! Gives every device step its kernel: specialized text, workgroups, bindings.

use std::collections::BTreeMap;

use qail_artifact::schema::{Binding, BindingSource, Dispatch, Kernel, Layout, Place, Storage, Tensor, step};

use super::{
    builder::{Builder, rows},
    shape,
};
use crate::{
    CodegenError,
    error::op_name,
    kernels::{
        Shader, binary, codes, copy,
        linear_f32::LinearF32,
        linear_wq::LinearWq,
        matmul_f32::MatMulF32,
        order,
        qgroups::QGroups,
        qlinear::{Finish, QLinear},
        reduce, requantize, rope, rows as row_kernels, select,
        unary::Unary,
        unfold,
    },
    validate,
};

/// Largest binding of a device with default limits in bytes.
const MAX_BINDING: u64 = 128 << 20;

/// A shader and what it is bound to, in the order of its bindings.
struct Use {
    shader: Shader,
    bindings: Vec<BindingSource>,
}

/// Kernels of all device steps; the steps get their dispatches.
pub(crate) fn assign(builder: &mut Builder<'_>) -> Result<Vec<Kernel>, CodegenError> {
    let mut kernels: Vec<Kernel> = Vec::new();
    // Steps with equal texts share a kernel and the result of its validation.
    let mut by_text: BTreeMap<String, (u32, Vec<bool>)> = BTreeMap::new();
    let mut steps = std::mem::take(&mut builder.steps);
    for step in &mut steps {
        let Some(op) = step.op.as_ref().filter(|_| step.place == i32::from(Place::Device)) else { continue };
        let Use { shader, bindings } = choose(builder, &step.name, op)?;
        let (kernel, writes) = match by_text.get(&shader.text) {
            Some(known) => known.clone(),
            None => {
                let checked = validate::kernel(&step.name, shader.name, &shader.text)?;
                let name = format!("{}.{}", shader.name, kernels.len());
                let section =
                    builder.section(&format!("kernel.{name}"), Layout::Wgsl, shader.text.clone().into_bytes())?;
                let index = u32::try_from(kernels.len())
                    .map_err(|_| CodegenError::internal("the number of kernels fits into 32 bits"))?;
                kernels.push(Kernel { name, section, entry: "main".to_owned(), features: Vec::new() });
                by_text.insert(shader.text, (index, checked.writes.clone()));
                (index, checked.writes)
            }
        };
        if writes.len() != bindings.len() {
            return Err(CodegenError::internal("a kernel is bound to as many buffers as it declares"));
        }
        for &source in &bindings {
            check_size(builder, &step.name, source)?;
        }
        let bindings = bindings.into_iter().zip(writes).map(|(source, write)| Binding { source: Some(source), write });
        step.dispatch = Some(Dispatch { kernel, workgroups: shader.workgroups.to_vec(), bindings: bindings.collect() });
    }
    builder.steps = steps;
    Ok(kernels)
}

fn check_size(builder: &Builder<'_>, node: &str, source: BindingSource) -> Result<(), CodegenError> {
    let size = match source {
        BindingSource::Tensor(tensor) => builder.entry(tensor)?.size,
        // Weights may be larger than what every device has room for: each device
        // says so itself when it loads the file, and the CPU runs it.
        BindingSource::Section(_) => return Ok(()),
    };
    if size > MAX_BINDING {
        return Err(CodegenError::Limit {
            node: node.to_owned(),
            what: "size of a buffer in bytes",
            found: size.to_string(),
            limit: MAX_BINDING.to_string(),
        });
    }
    Ok(())
}

fn choose(builder: &Builder<'_>, node: &str, op: &step::Op) -> Result<Use, CodegenError> {
    let tensor = BindingSource::Tensor;
    let section = BindingSource::Section;
    let refuse = |reason: String| CodegenError::Unsupported { node: node.to_owned(), op: op_name(op), reason };
    match op {
        step::Op::QLinear(op) => {
            let (x, out) = (builder.entry(op.x)?, builder.entry(op.out)?);
            let layout = usize::try_from(op.weight).ok().and_then(|i| builder.sections.get(i)).map(|s| s.layout);
            let (finish, [m, shift, table]) = finish(op.requantize.as_ref(), out, op.bias);
            let shader = QLinear {
                w4: layout == Some(Layout::W4Tile8x32),
                n: op.n,
                rows: op.rows,
                x_stride: x.stride,
                planes: if x.storage() == Storage::I16 { 2 } else { 1 },
                out_stride: out.stride,
                finish,
            }
            .specialize(node)?;
            let bindings = vec![tensor(op.x), section(op.weight), section(op.bias), m, shift, table, tensor(op.out)];
            Ok(Use { shader, bindings })
        }
        step::Op::QGroups(op) => {
            let (x, out) = (builder.entry(op.x)?, builder.entry(op.out)?);
            let (finish, [m, shift, table]) = finish(op.requantize.as_ref(), out, op.bias);
            let shader = QGroups {
                k: op.k,
                n: op.n,
                channels: op.n / op.groups.max(1),
                rows: op.rows,
                x_stride: x.stride,
                planes: if x.storage() == Storage::I16 { 2 } else { 1 },
                out_stride: out.stride,
                finish,
            };
            let bindings = vec![tensor(op.x), section(op.weight), section(op.bias), m, shift, table, tensor(op.out)];
            Ok(Use { shader: shader.specialize(node)?, bindings })
        }
        step::Op::Requantize(op) => {
            let (x, out) = (builder.entry(op.x)?, builder.entry(op.out)?);
            let (finish, [m, shift, table]) = finish(Some(&op.requantize), out, op.requantize.m);
            let shader = requantize::Requantize { n: x.stride, rows: rows(&x.shape), out_stride: out.stride, finish };
            Ok(Use { shader: shader.specialize(node)?, bindings: vec![tensor(op.x), m, shift, table, tensor(op.out)] })
        }
        step::Op::Linear(op) => {
            let shader = LinearF32 { k: op.k, n: op.n, rows: op.rows, act: op.act }.specialize(node)?;
            let bindings = vec![tensor(op.x), section(op.weight), section(op.bias), tensor(op.out)];
            Ok(Use { shader, bindings })
        }
        step::Op::LinearWq(op) => {
            let layout = usize::try_from(op.weight).ok().and_then(|i| builder.sections.get(i)).map(|s| s.layout);
            let w4 = layout == Some(Layout::W4Tile8x32);
            let shader = LinearWq { w4, k: op.k, n: op.n, rows: op.rows, group: op.group, act: op.act };
            let bindings = vec![tensor(op.x), section(op.weight), section(op.scale), section(op.bias), tensor(op.out)];
            Ok(Use { shader: shader.specialize(node)?, bindings })
        }
        step::Op::Unary(op) => {
            let n = builder.entry(op.out)?.size / 4;
            Ok(Use { shader: Unary { n, f: op.f }.specialize(node)?, bindings: vec![tensor(op.x), tensor(op.out)] })
        }
        step::Op::Binary(op) => {
            let out = builder.entry(op.out)?;
            let ints = out.storage() == Storage::I32;
            if ints && !matches!(op.f(), step::BinaryKind::Min | step::BinaryKind::Max) {
                return Err(refuse("a function of integers is host code".to_owned()));
            }
            let shader = binary::specialize(node, op, &out.shape, ints)?;
            Ok(Use { shader, bindings: vec![bound(&op.a)?, bound(&op.b)?, tensor(op.out)] })
        }
        step::Op::Copy(op) => {
            let words = match builder.entry(op.out)?.storage() {
                Storage::F32 | Storage::I32 => true,
                Storage::I8 => false,
                storage @ (Storage::I16 | Storage::U8 | Storage::I64 | Storage::Unspecified) => {
                    return Err(refuse(format!("elements of storage {storage:?} on a device")));
                }
            };
            let shader = copy::specialize(node, op, words)?;
            Ok(Use { shader, bindings: vec![bound(&op.x)?, tensor(op.out)] })
        }
        step::Op::Reduce(op) => {
            let shader = match (x_entry(builder, &op.x)?, builder.entry(op.out)?) {
                (Some(x), out) if x.storage() == Storage::I8 => codes::reduce(node, op, out, x.code_offset)?,
                (_, out) if out.storage() == Storage::F32 => reduce::specialize(node, op)?,
                _ => return Err(refuse("a reduction of integers is host code".to_owned())),
            };
            Ok(Use { shader, bindings: vec![bound(&op.x)?, tensor(op.out)] })
        }
        step::Op::MatMul(op) => {
            let shader = MatMulF32 { op }.specialize(node)?;
            Ok(Use { shader, bindings: vec![bound(&op.a)?, bound(&op.b)?, tensor(op.out)] })
        }
        step::Op::Unfold(op) => {
            let x_stride = device_row(builder, &op.x).map_err(refuse)?;
            let shader = unfold::specialize(node, op, builder.entry(op.out)?, x_stride)?;
            Ok(Use { shader, bindings: vec![bound(&op.x)?, tensor(op.out)] })
        }
        step::Op::Gather(op) => {
            let x_stride = device_row(builder, &op.x).map_err(refuse)?;
            let shader = select::gather(node, op, builder.entry(op.out)?, x_stride)?;
            Ok(Use { shader, bindings: vec![bound(&op.x)?, bound(&op.index)?, tensor(op.out)] })
        }
        step::Op::Softmax(op) => {
            Ok(Use { shader: row_kernels::softmax(node, op)?, bindings: vec![tensor(op.x), tensor(op.out)] })
        }
        step::Op::Normalize(op) => {
            Ok(Use { shader: row_kernels::normalize(node, op)?, bindings: vec![tensor(op.x), tensor(op.out)] })
        }
        step::Op::Attention(op) => {
            let mask = op.mask.as_ref().map_or(Ok(tensor(op.q)), bound)?;
            let bindings = vec![tensor(op.q), tensor(op.k), tensor(op.v), mask, tensor(op.out)];
            Ok(Use { shader: row_kernels::attention(node, op)?, bindings })
        }
        step::Op::Rope(op) => {
            let bindings = vec![bound(&op.x)?, bound(&op.cos)?, bound(&op.sin)?, tensor(op.out)];
            Ok(Use { shader: rope::rope(node, op, &builder.entry(op.out)?.shape)?, bindings })
        }
        step::Op::Film(op) => {
            let bindings = vec![bound(&op.x)?, bound(&op.scale)?, bound(&op.shift)?, tensor(op.out)];
            Ok(Use { shader: rope::film(node, op, &builder.entry(op.out)?.shape)?, bindings })
        }
        step::Op::Compare(op) => {
            let ints = match x_entry(builder, &op.a)? {
                Some(x) => x.storage() == Storage::I32,
                None => section_layout(builder, &op.a) == Some(Layout::I32),
            };
            let shader = select::compare(node, op, &builder.entry(op.out)?.shape, ints)?;
            Ok(Use { shader, bindings: vec![bound(&op.a)?, bound(&op.b)?, tensor(op.out)] })
        }
        step::Op::Where(op) => {
            let shader = select::choose(node, op, &builder.entry(op.out)?.shape)?;
            Ok(Use { shader, bindings: vec![bound(&op.truth)?, bound(&op.a)?, bound(&op.b)?, tensor(op.out)] })
        }
        step::Op::QAdd(op) => {
            let offset = |x: Option<&Tensor>| x.map_or(0, |x| x.code_offset);
            let (a, b) = (x_entry(builder, &op.a)?, x_entry(builder, &op.b)?);
            let m_a = usize::try_from(op.m_a).ok().and_then(|i| builder.sections.get(i)).map_or(0, |s| s.bytes.len());
            let operands = codes::Operands {
                wide: a.is_some_and(|a| a.storage() == Storage::I32),
                m_cols: m_a > 4,
                offset_a: offset(a),
                offset_b: offset(b),
            };
            let shader = codes::q_add(node, op, builder.entry(op.out)?, &operands)?;
            Ok(Use { shader, bindings: vec![bound(&op.a)?, bound(&op.b)?, section(op.m_a), tensor(op.out)] })
        }
        step::Op::Lookup(op) => {
            let shader = codes::lookup(node, op, builder.entry(op.out)?)?;
            Ok(Use { shader, bindings: vec![bound(&op.x)?, section(op.table), tensor(op.out)] })
        }
        step::Op::Order(op) => {
            let floats = builder.entry(op.x)?.storage() == Storage::F32;
            Ok(Use { shader: order::order(node, op, floats)?, bindings: vec![tensor(op.x), tensor(op.out)] })
        }
        step::Op::Scan(op) if builder.entry(op.x)?.storage() == Storage::F32 => {
            Ok(Use { shader: order::scan(node, op)?, bindings: vec![tensor(op.x), tensor(op.out)] })
        }
        step::Op::Scan(_) => Err(refuse("a sum of integers is host code".to_owned())),
        step::Op::Scatter(op) => {
            let ints = builder.entry(op.out)?.storage() == Storage::I32;
            if ints && matches!(op.f(), step::ScatterKind::Add | step::ScatterKind::Mul) {
                return Err(refuse("a function of integers is host code".to_owned()));
            }
            let shader = order::scatter(node, op, shape::count(&builder.entry(op.index)?.shape), ints)?;
            Ok(Use { shader, bindings: vec![tensor(op.x), tensor(op.index), tensor(op.update), tensor(op.out)] })
        }
        step::Op::Quantize(_) | step::Op::Dequantize(_) | step::Op::Cast(_) | step::Op::Repeat(_) => {
            Err(refuse("it is host code".to_owned()))
        }
    }
}

/// The tensor behind an operand; none for a section.
fn x_entry<'a>(builder: &'a Builder<'_>, operand: &step::Operand) -> Result<Option<&'a Tensor>, CodegenError> {
    match operand.source {
        Some(step::Source::Tensor(tensor)) => builder.entry(tensor).map(Some),
        Some(step::Source::Section(_)) | None => Ok(None),
    }
}

/// The layout of the section behind an operand.
fn section_layout(builder: &Builder<'_>, operand: &step::Operand) -> Option<Layout> {
    let Some(step::Source::Section(section)) = operand.source else { return None };
    usize::try_from(section).ok().and_then(|i| builder.sections.get(i)).map(|section| section.layout)
}

/// Elements from row to row of an operand that a device can move, or why it cannot.
fn device_row(builder: &Builder<'_>, operand: &step::Operand) -> Result<u64, String> {
    match x_entry(builder, operand).map_err(|error| error.to_string())? {
        None => Ok(1),
        Some(x) => match x.storage() {
            Storage::F32 | Storage::I32 | Storage::I8 | Storage::I16 => Ok(x.stride),
            storage @ (Storage::U8 | Storage::I64 | Storage::Unspecified) => {
                Err(format!("elements of storage {storage:?} on a device"))
            }
        },
    }
}

/// What an operand is bound to.
fn bound(operand: &step::Operand) -> Result<BindingSource, CodegenError> {
    match operand.source {
        Some(step::Source::Tensor(tensor)) => Ok(BindingSource::Tensor(tensor)),
        Some(step::Source::Section(section)) => Ok(BindingSource::Section(section)),
        None => Err(CodegenError::internal("an operand has a source")),
    }
}

/// How accumulators are finished, and the bindings of multiplier, shift and
/// table. What a variant does not read is bound to `any`.
fn finish(requantize: Option<&step::Requantize>, out: &Tensor, any: u32) -> (Finish, [BindingSource; 3]) {
    let section = BindingSource::Section;
    match requantize {
        None => (Finish::Accumulators, [section(any); 3]),
        Some(op) => {
            let finish = Finish::Codes {
                lo: i64::from(op.lo) - i64::from(op.zero_point),
                hi: i64::from(op.hi) - i64::from(op.zero_point),
                add: i64::from(op.zero_point)
                    - if op.table.is_some() { i64::from(op.table_lo) } else { i64::from(out.code_offset) },
                table: op.table.is_some(),
            };
            (finish, [section(op.m), section(op.shift), section(op.table.unwrap_or(any))])
        }
    }
}
