//! The QCDQ export: QuantizeLinear, Clip, DequantizeLinear with 8-bit tensors.
//!
//! The convention of Brevitas and QONNX, opset 13, which knows neither 4-bit nor
//! 16-bit codes: narrower codes are 8-bit integers behind Clip, weights and
//! activations alike; biases are `int32` in units of `s_in * s_w'`; an
//! observation of 16 bits passes through Mul, Round, Clip and Mul, as floats
//! that hold its codes. Functions between codes are written as functions, not as
//! tables.

use qail_ir::{Graph, QuantScheme};
use qail_passes::quant::LoweringReport;

use super::{
    COMMON_OPSET, ExportError, ExportOptions,
    builder::{Builder, Tensor},
    codes, fake_quant,
    form::{Bias, CodeTable, Form, Rounded, Rounding, Weights},
    qdq::{integer_type, integers},
};
use crate::frontend::proto::{AttributeProto, ModelProto, data_type};

const F32: i32 = data_type::FLOAT;

/// Writes a lowered graph with QuantizeLinear, Clip and DequantizeLinear, opset 13.
///
/// `report` is that of the `lower-quant` run that made the graph.
pub fn qcdq(graph: &Graph, report: &LoweringReport, options: &ExportOptions) -> Result<ModelProto, ExportError> {
    codes::export(&Qcdq, graph, report, options)
}

struct Qcdq;

impl Form for Qcdq {
    fn name(&self) -> &'static str {
        "qcdq"
    }

    fn opset(&self) -> i64 {
        COMMON_OPSET
    }

    /// With a factor a feature the step is 1. With one factor QuantizeLinear divides by the step itself.
    fn entry(
        &self,
        builder: &mut Builder,
        x: &str,
        (factor, per_feature): (&str, bool),
        to: &Rounding,
        out: &str,
    ) -> Result<Rounded, ExportError> {
        let is_wide = to.scheme.bits > 8;
        if !is_wide && !per_feature {
            return self.round(builder, x, to, out);
        }
        let scaled = builder.step("Mul", &[x, factor], Vec::new(), &format!("{out}/scaled"));
        if is_wide { fake_quant::rounded(builder, &scaled, to, out) } else { self.round(builder, &scaled, to, out) }
    }

    fn round(&self, builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError> {
        if to.scheme.bits > 8 {
            return fake_quant::divided(builder, x, to, out);
        }
        let held = held_scheme(to.scheme);
        let ty = integer_type(held);
        let step = builder.scalar(&format!("{out}/step"), F32, to.step);
        let zero_point = integers(builder, &format!("{out}/zero_point"), held, &[], &[to.zero_point.into()])?;
        let narrower = to.lo > held.lo() || to.hi < held.hi();
        let codes = if narrower { builder.claim(&format!("{out}/wide")) } else { out.to_owned() };
        builder.node("QuantizeLinear", &[x, &step, &zero_point], Vec::new(), &codes);
        if narrower {
            clip(builder, &codes, held, (to.lo, to.hi), out)?;
        }
        let inputs = [out, &step, &zero_point];
        let real = builder.step("DequantizeLinear", &inputs, Vec::new(), &format!("{out}/real"));
        Ok(Rounded { real, codes: Some(Tensor::new(out, ty)) })
    }

    fn weights(&self, builder: &mut Builder, weights: &Weights, out: &str) -> Result<String, ExportError> {
        let codes = narrow_codes(builder, weights, &weights.shape, &weights.codes, out)?;
        let scales = builder.f32s(&format!("{out}/scales"), &[weights.scales.len()], &weights.scales)?;
        let axis = vec![AttributeProto::int("axis", weights.axis as i64)];
        Ok(builder.step("DequantizeLinear", &[&codes, &scales], axis, &format!("{out}/weights")))
    }

    /// One row for each group of each column, so that a scale is one of a channel; then
    /// the shape of the weights. Groups that do not divide the rows become smaller ones.
    fn grouped(
        &self,
        builder: &mut Builder,
        weights: &Weights,
        group: usize,
        out: &str,
    ) -> Result<String, ExportError> {
        let &[k, n] = &weights.shape[..] else {
            return self.weights(builder, weights, out);
        };
        let rows = gcd(group.max(1), k);
        let cells = k / rows.max(1);
        let at = |cell: usize, column: usize, row: usize| (cell * rows + row) * n + column;
        let order = (0..cells).flat_map(|cell| (0..n).map(move |column| (cell, column)));
        let codes: Vec<i64> = order
            .clone()
            .flat_map(|(cell, column)| (0..rows).map(move |row| at(cell, column, row)))
            .map(|at| weights.codes.get(at).copied().unwrap_or(0))
            .collect();
        let scale = |(cell, column): (usize, usize)| cell * rows / group.max(1) * n + column;
        let scales: Vec<f32> = order.map(|cell| weights.scales.get(scale(cell)).copied().unwrap_or(0.0)).collect();
        let codes = narrow_codes(builder, weights, &[cells * n, rows], &codes, out)?;
        let scales = builder.f32s(&format!("{out}/scales"), &[cells * n], &scales)?;
        let axis = vec![AttributeProto::int("axis", 0)];
        let blocks = builder.step("DequantizeLinear", &[&codes, &scales], axis, &format!("{out}/blocks"));
        let apart = builder.i64s(&format!("{out}/apart"), &[cells as i64, n as i64, rows as i64]);
        let apart = builder.step("Reshape", &[&blocks, &apart], Vec::new(), &format!("{out}/columns"));
        let perm = vec![AttributeProto::ints("perm", vec![0, 2, 1])];
        let turned = builder.step("Transpose", &[&apart], perm, &format!("{out}/rows"));
        let shape = builder.i64s(&format!("{out}/shape"), &[k as i64, n as i64]);
        Ok(builder.step("Reshape", &[&turned, &shape], Vec::new(), &format!("{out}/weights")))
    }

    fn holds_groups(&self) -> bool {
        true
    }

    fn bias(&self, builder: &mut Builder, bias: &Bias, out: &str) -> Result<String, ExportError> {
        let n = bias.codes.len();
        builder.make_room(n, 4)?;
        let fits = bias.codes.iter().map(|&code| i32::try_from(code)).collect::<Result<Vec<i32>, _>>();
        let Ok(codes) = fits else {
            // A zero point far from zero can push the bias out of what int32 holds.
            return builder.f32s(&format!("{out}/bias"), &[n], &bias.real());
        };
        let bytes = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let codes = builder.raw(&format!("{out}/bias/codes"), data_type::INT32, &[n], bytes);
        let scales: Vec<f32> = bias.scales.iter().map(|&scale| scale as f32).collect();
        let scales = builder.f32s(&format!("{out}/bias/scales"), &[n], &scales)?;
        let axis = vec![AttributeProto::int("axis", 0)];
        Ok(builder.step("DequantizeLinear", &[&codes, &scales], axis, &format!("{out}/bias")))
    }

    fn lookup(&self, builder: &mut Builder, lookup: &CodeTable<'_>, out: &str) -> Result<Rounded, ExportError> {
        lookup.by_functions(self, builder, out)
    }
}

/// The type of up to 8 bits.
fn held_scheme(scheme: QuantScheme) -> QuantScheme {
    QuantScheme { bits: 8, signed: scheme.signed }
}

/// 8-bit codes of a weight; behind Clip if they have fewer bits, which says how many.
fn narrow_codes(
    builder: &mut Builder,
    weights: &Weights,
    shape: &[usize],
    codes: &[i64],
    out: &str,
) -> Result<String, ExportError> {
    let scheme = weights.scheme;
    let codes = integers(builder, &format!("{out}/codes"), held_scheme(scheme), shape, codes)?;
    if scheme.bits >= 8 {
        return Ok(codes);
    }
    let name = builder.claim(&format!("{out}/narrow"));
    clip(builder, &codes, held_scheme(scheme), (scheme.lo(), scheme.hi()), &name)?;
    Ok(name)
}

fn clip(builder: &mut Builder, x: &str, held: QuantScheme, (lo, hi): (i32, i32), out: &str) -> Result<(), ExportError> {
    let lo = integers(builder, &format!("{out}/lo"), held, &[], &[lo.into()])?;
    let hi = integers(builder, &format!("{out}/hi"), held, &[], &[hi.into()])?;
    builder.node("Clip", &[x, &lo, &hi], Vec::new(), out);
    Ok(())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
