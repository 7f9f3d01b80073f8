//! The fake-quant export: floats only, on the grids of the codes.
//!
//! Weights and biases are the real values of their codes; a value that has codes
//! passes through Div, Round, Clip and Mul. No operator is newer than opset 13,
//! so every engine runs it, in full precision. Clip works on codes minus their
//! zero point, which is the code of zero and needs no operator then.

use qail_ir::Graph;
use qail_passes::quant::LoweringReport;

use super::{
    COMMON_OPSET, ExportError, ExportOptions,
    builder::{Builder, Tensor},
    codes,
    form::{CodeTable, Form, Rounded, Rounding, Weights},
    functions::emit_clip,
};
use crate::frontend::proto::{ModelProto, data_type};

const F32: i32 = data_type::FLOAT;

/// Writes a lowered graph in floats that lie on the grids of its codes, opset 13.
///
/// `report` is that of the `lower-quant` run that made the graph.
pub fn fake_quant(graph: &Graph, report: &LoweringReport, options: &ExportOptions) -> Result<ModelProto, ExportError> {
    codes::export(&FakeQuant, graph, report, options)
}

struct FakeQuant;

impl Form for FakeQuant {
    fn name(&self) -> &'static str {
        "fake-quant"
    }

    fn opset(&self) -> i64 {
        COMMON_OPSET
    }

    /// The factor as the runtime has it.
    fn entry(
        &self,
        builder: &mut Builder,
        x: &str,
        (factor, _): (&str, bool),
        to: &Rounding,
        out: &str,
    ) -> Result<Rounded, ExportError> {
        let scaled = builder.step("Mul", &[x, factor], Vec::new(), &format!("{out}/scaled"));
        rounded(builder, &scaled, to, out)
    }

    fn round(&self, builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError> {
        divided(builder, x, to, out)
    }

    fn weights(&self, builder: &mut Builder, weights: &Weights, out: &str) -> Result<String, ExportError> {
        builder.f32s(&format!("{out}/weights"), &weights.shape, &weights.real())
    }

    fn grouped(
        &self,
        builder: &mut Builder,
        weights: &Weights,
        group: usize,
        out: &str,
    ) -> Result<String, ExportError> {
        let n = weights.shape.last().copied().unwrap_or(1).max(1);
        let scale = |i: usize| weights.scales.get(i / n / group.max(1) * n + i % n).copied().unwrap_or(0.0);
        let codes = weights.codes.iter().enumerate();
        let real: Vec<f32> = codes.map(|(i, &code)| (code as f64 * f64::from(scale(i))) as f32).collect();
        builder.f32s(&format!("{out}/weights"), &weights.shape, &real)
    }

    fn holds_groups(&self) -> bool {
        false
    }

    fn lookup(&self, builder: &mut Builder, lookup: &CodeTable<'_>, out: &str) -> Result<Rounded, ExportError> {
        lookup.by_functions(self, builder, out)
    }
}

/// Div by the step, then [`rounded`].
pub(super) fn divided(builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError> {
    let step = builder.scalar(&format!("{out}/step"), F32, to.step);
    let scaled = builder.step("Div", &[x, &step], Vec::new(), &format!("{out}/scaled"));
    rounded(builder, &scaled, to, out)
}

/// Round and Clip a value in units of the step, and Mul by it. Codes minus their zero
/// point have the name of the node.
pub(super) fn rounded(builder: &mut Builder, scaled: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError> {
    let codes = builder.step("Round", &[scaled], Vec::new(), &format!("{out}/rounded"));
    let (lo, hi) = (to.lo - to.zero_point, to.hi - to.zero_point);
    emit_clip(builder, &Tensor::new(codes, F32), lo.into(), hi.into(), out);
    if to.step == 1.0 {
        return Ok(Rounded { real: out.to_owned(), codes: None });
    }
    let step = builder.scalar(&format!("{out}/real/step"), F32, to.step);
    let real = builder.step("Mul", &[out, &step], Vec::new(), &format!("{out}/real"));
    Ok(Rounded { real, codes: None })
}
