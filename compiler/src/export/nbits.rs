//! The export of weight-only precisions for ONNX Runtime: `MatMulNBits`.
//!
//! The operator of the domain `com.microsoft` multiplies floats with weights of 4
//! or 8 bits, one scale for a block of rows of each column. It holds the weight
//! by column, `[N, blocks, bytes]`, in unsigned codes that count from the middle
//! of their range, the first code in the lowest bits. Everything around it is
//! plain operators of opset 13.

use qail_ir::{Elem, Graph, LinearWq, NodeId, Op};

use super::{COMMON_OPSET, ExportError, ExportOptions, builder::Tensor, builder::check_size, emit::Emitter, float};
use crate::frontend::proto::{AttributeProto, ModelProto, data_type};

const FORMAT: &str = "nbits";
const DOMAIN: &str = "com.microsoft";
/// Blocks of a weight with one scale a column: a size that kernels have.
const WHOLE_COLUMN: usize = 128;
/// The smallest block that the operator takes.
const MIN_BLOCK: usize = 16;
/// Sums in `f32`: activations are not rounded to 8 bits.
const EXACT_SUMS: i64 = 1;

/// Writes a graph with quantized weights and float activations, opset 13 and `MatMulNBits`.
///
/// There are no codes to expose, so `options` change nothing.
pub fn nbits(graph: &Graph, _options: &ExportOptions) -> Result<ModelProto, ExportError> {
    let mut emitter = Emitter::new(graph, FORMAT, COMMON_OPSET)?;
    let order = graph.topo();
    if let Some(&id) = order.iter().find(|&&id| is_on_codes(graph, id)) {
        return Err(emitter.unsupported(
            id,
            "MatMulNBits has float activations; use -b w4a16 or w8a16, or --format qcdq for integer activations",
        ));
    }
    if !order.iter().any(|&id| matches!(graph.node(id).op, Op::LinearWq(_))) {
        return Err(ExportError::NoQuantizedWeights { format: FORMAT });
    }
    emitter.domains.push((DOMAIN, 1));
    for id in order {
        let out = emitter.name_of(id);
        let tensor = match &graph.node(id).op {
            Op::Const(_) => continue,
            Op::LinearWq(linear) => linear_wq(&mut emitter, id, linear, &out)?,
            _ => float::emit(&mut emitter, id, &out)?,
        };
        emitter.define(id, tensor);
    }
    emitter.finish(&[])
}

/// True for what computes codes or accumulators at run time.
fn is_on_codes(graph: &Graph, id: NodeId) -> bool {
    match &graph.node(id).op {
        Op::Const(_) => false,
        Op::QLinear(_) | Op::QSum(_) => true,
        _ => matches!(graph.ty(id.value()).elem, Elem::Code(_)),
    }
}

fn linear_wq(emitter: &mut Emitter<'_>, id: NodeId, linear: &LinearWq, out: &str) -> Result<Tensor, ExportError> {
    let constant = emitter.constant(id, 1)?;
    let (Some(scheme), &[k, n]) = (constant.ty.scheme(), &constant.ty.shape[..]) else {
        return Err(emitter.unsupported(id, "its weights are no matrix of codes"));
    };
    // 2- and 3-bit codes live in 4 bits.
    let bits = if scheme.bits <= 4 { 4 } else { 8 };
    let group = linear.group.max(1);
    let block = if group >= k { k.next_power_of_two().clamp(MIN_BLOCK, WHOLE_COLUMN) } else { group };
    if !block.is_power_of_two() || block < MIN_BLOCK {
        let why = "MatMulNBits has blocks of 16, 32, 64, .. rows; use --format qcdq, which has any";
        return Err(emitter.unsupported(id, why));
    }
    let n_blocks = k.div_ceil(block);
    let bytes = block * bits / 8;
    check_size((n * n_blocks).saturating_mul(bytes) as u64)?;
    let codes = emitter.numbers(id, 1)?;
    let scales = emitter.constant(id, 2)?.all_f32().map_err(|source| emitter.unreadable(id, source))?;
    let scales: Vec<f32> = (0..n)
        .flat_map(|column| (0..n_blocks).map(move |at| at * block / group * n + column))
        .map(|at| scales.get(at).copied().unwrap_or(0.0))
        .collect();
    let packed = packed(&codes, (k, n), (block, n_blocks), bits);
    emitter.builder.make_room(packed.len(), 1)?;
    let (x, b) = (emitter.operand(id, 0)?, emitter.operand(id, 3)?);
    let builder = &mut emitter.builder;
    let weights = builder.raw(&format!("{out}/codes"), data_type::UINT8, &[n, n_blocks, bytes], packed);
    let scales = builder.f32s(&format!("{out}/scales"), &[n * n_blocks], &scales)?;
    let numbers = [("K", k), ("N", n), ("bits", bits), ("block_size", block)];
    let mut attributes = numbers.map(|(name, number)| AttributeProto::int(name, number as i64)).to_vec();
    attributes.push(AttributeProto::int("accuracy_level", EXACT_SUMS));
    let products = builder.claim(&format!("{out}/products"));
    builder.node_of(DOMAIN, "MatMulNBits", &[&x.name, &weights, &scales], attributes, &[&products]);
    Ok(float::biased(emitter, &products, &b.name, linear.act, out))
}

/// Codes `[K, N]` by column and block, plus the middle of their range; blocks are
/// filled up with code 0.
fn packed(codes: &[f64], (k, n): (usize, usize), (block, n_blocks): (usize, usize), bits: usize) -> Vec<u8> {
    let middle = 1i64 << (bits - 1);
    let code = |row: usize, column: usize| {
        let code = if row < k { codes.get(row * n + column).copied().unwrap_or(0.0) as i64 } else { 0 };
        (code + middle) as u8
    };
    let columns = (0..n).flat_map(|column| (0..n_blocks * block).map(move |row| (row, column)));
    let unsigned: Vec<u8> = columns.map(|(row, column)| code(row, column)).collect();
    if bits == 8 { unsigned } else { unsigned.chunks(2).map(pair).collect() }
}

fn pair(codes: &[u8]) -> u8 {
    codes.iter().rev().fold(0, |byte, code| byte << 4 | (code & 0xF))
}
