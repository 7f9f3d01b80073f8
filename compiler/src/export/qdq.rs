//! The QDQ export: QuantizeLinear and DequantizeLinear around `f32` layers.
//!
//! ```text
//! x/real --MatMul-- DQ(w codes, s_w') --Add-- b --[Relu, Clip]-- Q --> name --DQ--> name/real
//! ```
//! A tensor of codes has two ONNX tensors: the codes under the name of the node
//! and, behind DequantizeLinear, their real values under `name/real`, which the
//! readers use. With [`expose`](ExportOptions::expose) the real values are
//! outputs: many engines cannot hand out 4-bit tensors, and nothing is lost.
//!
//! Tables are Gather on the codes: the table is what the runtime reads, while a
//! function behind DequantizeLinear would round again.

use qail_ir::{Graph, QuantScheme};
use qail_passes::quant::LoweringReport;

use super::{
    ExportError, ExportOptions, OPSET,
    builder::{Builder, Tensor},
    codes,
    form::{CodeTable, Form, Rounded, Rounding, Weights},
    functions::emit_clip,
};
use crate::frontend::proto::{AttributeProto, ModelProto, data_type};

const F32: i32 = data_type::FLOAT;

/// Writes a lowered graph with QuantizeLinear and DequantizeLinear, opset 21.
///
/// `report` is that of the `lower-quant` run that made the graph.
pub fn qdq(graph: &Graph, report: &LoweringReport, options: &ExportOptions) -> Result<ModelProto, ExportError> {
    codes::export(&Qdq, graph, report, options)
}

struct Qdq;

impl Form for Qdq {
    fn name(&self) -> &'static str {
        "qdq"
    }

    fn opset(&self) -> i64 {
        OPSET
    }

    /// The factor in front, then QuantizeLinear with scale 1. `x / 1` is exact, so
    /// the codes are those of the runtime.
    fn entry(
        &self,
        builder: &mut Builder,
        x: &str,
        (factor, _): (&str, bool),
        to: &Rounding,
        out: &str,
    ) -> Result<Rounded, ExportError> {
        let scaled = builder.step("Mul", &[x, factor], Vec::new(), &format!("{out}/scaled"));
        let clipped = clip_to_range(builder, &scaled, &Rounding { step: 1.0, ..*to }, out);
        let one = builder.scalar(&format!("{out}/one"), F32, 1.0);
        round_and_back(builder, &clipped, &one, to, out)
    }

    /// Clamping to the range, then QuantizeLinear.
    fn round(&self, builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError> {
        let clipped = clip_to_range(builder, x, to, out);
        let step = builder.scalar(&format!("{out}/step"), F32, to.step);
        round_and_back(builder, &clipped, &step, to, out)
    }

    fn weights(&self, builder: &mut Builder, weights: &Weights, out: &str) -> Result<String, ExportError> {
        let scales = builder.f32s(&format!("{out}/scales"), &[weights.scales.len()], &weights.scales)?;
        let axis = vec![AttributeProto::int("axis", weights.axis as i64)];
        dequantized(builder, weights, &scales, axis, out)
    }

    /// DequantizeLinear by blocks of rows.
    fn grouped(
        &self,
        builder: &mut Builder,
        weights: &Weights,
        group: usize,
        out: &str,
    ) -> Result<String, ExportError> {
        let n = weights.shape.last().copied().unwrap_or(1).max(1);
        let shape = [weights.scales.len() / n, n];
        let scales = builder.f32s(&format!("{out}/scales"), &shape, &weights.scales)?;
        let blocks = vec![AttributeProto::int("axis", 0), AttributeProto::int("block_size", group as i64)];
        dequantized(builder, weights, &scales, blocks, out)
    }

    fn holds_groups(&self) -> bool {
        true
    }

    /// Gather on the codes. The table has 8-bit entries even if its codes have 4.
    fn lookup(&self, builder: &mut Builder, lookup: &CodeTable<'_>, out: &str) -> Result<Rounded, ExportError> {
        let x = match &lookup.read.codes {
            Some(codes) => codes.clone(),
            // Values that were only moved lie on the grid: they are rounded once more.
            None => {
                let base = format!("{}/codes", lookup.read.real);
                let zero_point = zero_point(builder, &lookup.from, lookup.from.scheme, &base)?;
                let step = builder.scalar(&format!("{base}/step"), F32, lookup.from.step);
                let inputs = [lookup.read.real.as_str(), &step, &zero_point];
                let name = builder.step("QuantizeLinear", &inputs, Vec::new(), &base);
                Tensor::new(name, integer_type(lookup.from.scheme))
            }
        };
        let entries = QuantScheme { bits: 8, signed: lookup.to.scheme.signed };
        let lowest = i64::from(lookup.from.scheme.lo());
        let zero_point = zero_point(builder, &lookup.to, entries, out)?;
        let table = integers(builder, &format!("{out}/table"), entries, &[lookup.table.len()], &lookup.table)?;
        let index = builder.cast(&x, data_type::INT64, &format!("{out}/index"));
        let index = if lowest == 0 {
            index.name
        } else {
            let lowest = builder.i64s(&format!("{out}/lowest"), &[lowest]);
            builder.step("Sub", &[&index.name, &lowest], Vec::new(), &format!("{out}/index"))
        };
        builder.node("Gather", &[&table, &index], vec![AttributeProto::int("axis", 0)], out);
        Ok(back(builder, Tensor::new(out, integer_type(entries)), &zero_point, &lookup.to))
    }
}

/// Integer weights and DequantizeLinear.
fn dequantized(
    builder: &mut Builder,
    weights: &Weights,
    scales: &str,
    attributes: Vec<AttributeProto>,
    out: &str,
) -> Result<String, ExportError> {
    let codes = integers(builder, &format!("{out}/codes"), weights.scheme, &weights.shape, &weights.codes)?;
    Ok(builder.step("DequantizeLinear", &[&codes, scales], attributes, &format!("{out}/weights")))
}

/// QuantizeLinear under the name of the node and DequantizeLinear behind it.
fn round_and_back(
    builder: &mut Builder,
    x: &str,
    step: &str,
    to: &Rounding,
    out: &str,
) -> Result<Rounded, ExportError> {
    let zero_point = zero_point(builder, to, to.scheme, out)?;
    builder.node("QuantizeLinear", &[x, step, &zero_point], Vec::new(), out);
    Ok(back(builder, Tensor::new(out, integer_type(to.scheme)), &zero_point, to))
}

fn back(builder: &mut Builder, codes: Tensor, zero_point: &str, to: &Rounding) -> Rounded {
    let base = format!("{}/real", codes.name);
    let step = builder.scalar(&format!("{base}/step"), F32, to.step);
    let real = builder.step("DequantizeLinear", &[&codes.name, &step, zero_point], Vec::new(), &base);
    Rounded { real, codes: Some(codes) }
}

fn zero_point(builder: &mut Builder, to: &Rounding, held: QuantScheme, out: &str) -> Result<String, ExportError> {
    integers(builder, &format!("{out}/zero_point"), held, &[], &[to.zero_point.into()])
}

/// Clamps real values to a range of codes where QuantizeLinear would not: the
/// range is narrower than the type. A lower bound of zero is written as Relu.
fn clip_to_range(builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> String {
    let held = held_scheme(to.scheme);
    let (mut below, above) = (to.lo > held.lo(), to.hi < held.hi());
    let mut x = x.to_owned();
    if below && to.lo == to.zero_point {
        x = builder.step("Relu", &[&x], Vec::new(), &format!("{out}/relu"));
        below = false;
    }
    if !below && !above {
        return x;
    }
    let name = builder.claim(&format!("{out}/clip"));
    let lo = if below { to.real(to.lo) } else { f64::NEG_INFINITY };
    let hi = if above { to.real(to.hi) } else { f64::INFINITY };
    emit_clip(builder, &Tensor::new(x, F32), lo, hi, &name);
    name
}

/// The codes that the ONNX type of a scheme holds: 2 and 3 bits live in 4.
fn held_scheme(scheme: QuantScheme) -> QuantScheme {
    QuantScheme { bits: scheme.bits.max(4), ..scheme }
}

pub(super) fn integer_type(scheme: QuantScheme) -> i32 {
    match (scheme.bits, scheme.signed) {
        (..=4, true) => data_type::INT4,
        (..=4, false) => data_type::UINT4,
        (5..=8, true) => data_type::INT8,
        (5..=8, false) => data_type::UINT8,
        (_, true) => data_type::INT16,
        (_, false) => data_type::UINT16,
    }
}

fn is_4_bit(ty: i32) -> bool {
    matches!(ty, data_type::INT4 | data_type::UINT4)
}

/// An integer constant. Two 4-bit codes share a byte, the first one in its low half.
pub(super) fn integers(
    builder: &mut Builder,
    base: &str,
    scheme: QuantScheme,
    shape: &[usize],
    codes: &[i64],
) -> Result<String, ExportError> {
    let ty = integer_type(scheme);
    builder.make_room(codes.len(), scheme.size_bytes())?;
    let bytes: Vec<u8> = if is_4_bit(ty) {
        codes.chunks(2).map(|pair| pair.iter().rev().fold(0, |byte, &code| byte << 4 | (code as u8 & 0xF))).collect()
    } else if scheme.bits <= 8 {
        codes.iter().map(|&code| code as u8).collect()
    } else {
        codes.iter().flat_map(|&code| (code as u16).to_le_bytes()).collect()
    };
    Ok(builder.raw(base, ty, shape, bytes))
}
