//! What differs between the forms that carry codes as the real values they stand for.

use qail_ir::{QuantScheme, Quantize, UnaryFn};
use qail_passes::quant::CodeInfo;

use super::{
    ExportError,
    builder::{Builder, Tensor},
    functions::{Math, emit_unary},
};
use crate::frontend::proto::data_type;

/// Where a value is rounded to codes: `clamp(rne(x / step) + zero_point, lo, hi)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rounding {
    pub(super) scheme: QuantScheme,
    pub(super) lo: i32,
    pub(super) hi: i32,
    pub(super) zero_point: i32,
    pub(super) step: f64,
}

impl Rounding {
    /// To the codes of `info`, clamped to a range of its own.
    pub(super) fn new(info: &CodeInfo, (lo, hi): (i32, i32)) -> Self {
        Self { scheme: info.scheme, lo, hi, zero_point: info.zero_point, step: info.step }
    }

    /// Of an entry.
    pub(super) fn of_entry(quantize: &Quantize, step: f64) -> Self {
        let Quantize { scheme, lo, hi, zero_point } = *quantize;
        Self { scheme, lo, hi, zero_point, step }
    }

    /// What a code stands for, as `f32`.
    pub(super) fn real(&self, code: i32) -> f64 {
        f64::from((f64::from(code - self.zero_point) * self.step) as f32)
    }
}

/// A tensor that was rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rounded {
    /// What the codes stand for.
    pub(super) real: String,
    /// The codes themselves, where the form has a tensor of integers.
    pub(super) codes: Option<Tensor>,
}

/// The codes of a weight and a scale for each extent of one axis.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    pub(super) scheme: QuantScheme,
    pub(super) shape: Vec<usize>,
    pub(super) codes: Vec<i64>,
    pub(super) scales: Vec<f32>,
    pub(super) axis: usize,
}

impl Weights {
    /// `code * scale` of each element, rounded once.
    pub(super) fn real(&self) -> Vec<f32> {
        let behind: usize = self.shape.iter().skip(self.axis + 1).product::<usize>().max(1);
        let n = self.scales.len().max(1);
        let scale = |i: usize| self.scales.get(i / behind % n).copied().unwrap_or(0.0);
        self.codes.iter().enumerate().map(|(i, &code)| (code as f64 * f64::from(scale(i))) as f32).collect()
    }
}

/// The codes of a bias and what they are worth.
#[derive(Clone, Debug)]
pub(super) struct Bias {
    pub(super) codes: Vec<i64>,
    pub(super) scales: Vec<f64>,
}

impl Bias {
    /// `code * scale` of each element, rounded once.
    pub(super) fn real(&self) -> Vec<f32> {
        self.codes.iter().zip(&self.scales).map(|(&code, scale)| (code as f64 * scale) as f32).collect()
    }
}

/// How a form writes codes. Names are those of tensors of the ONNX graph.
pub(super) trait Form {
    /// Name of the format in messages and metadata.
    fn name(&self) -> &'static str;

    /// Version of the ONNX operators.
    fn opset(&self) -> i64;

    /// The entry of a region: `clamp(rne(x * factor) + zero_point)`; the factor has a name,
    /// and is one a feature if that is true.
    fn entry(
        &self,
        builder: &mut Builder,
        x: &str,
        factor: (&str, bool),
        to: &Rounding,
        out: &str,
    ) -> Result<Rounded, ExportError>;

    /// Rounds real values.
    fn round(&self, builder: &mut Builder, x: &str, to: &Rounding, out: &str) -> Result<Rounded, ExportError>;

    /// The real values of a weight.
    fn weights(&self, builder: &mut Builder, weights: &Weights, out: &str) -> Result<String, ExportError>;

    /// The real values of a weight `[K, N]` with a scale for `group` rows and a column.
    fn grouped(&self, builder: &mut Builder, weights: &Weights, group: usize, out: &str)
    -> Result<String, ExportError>;

    /// True if groups of rows keep scales of their own in the file.
    fn holds_groups(&self) -> bool;

    /// The real values of a bias: written as such, unless the form keeps its codes.
    fn bias(&self, builder: &mut Builder, bias: &Bias, out: &str) -> Result<String, ExportError> {
        builder.f32s(&format!("{out}/bias"), &[bias.codes.len()], &bias.real())
    }

    /// A function of codes.
    fn lookup(&self, builder: &mut Builder, lookup: &CodeTable<'_>, out: &str) -> Result<Rounded, ExportError>;
}

/// Codes behind codes and functions of one number.
#[derive(Clone, Debug)]
pub(super) struct CodeTable<'t> {
    /// What is read.
    pub(super) read: Rounded,
    /// How its codes read.
    pub(super) from: Rounding,
    /// A code for each code, from the lowest on.
    pub(super) table: Vec<i64>,
    /// What the table was made from.
    pub(super) functions: &'t [UnaryFn],
    /// The codes that come out.
    pub(super) to: Rounding,
}

impl CodeTable<'_> {
    /// The functions themselves, then rounding.
    pub(super) fn by_functions(
        &self,
        form: &dyn Form,
        builder: &mut Builder,
        out: &str,
    ) -> Result<Rounded, ExportError> {
        let mut x = self.read.real.clone();
        for f in self.functions {
            let name = builder.claim(&format!("{out}/{}", f.name()));
            x = emit_unary(builder, Math::Plain, *f, &Tensor::new(x, data_type::FLOAT), &name).name;
        }
        form.round(builder, &x, &self.to, out)
    }
}
