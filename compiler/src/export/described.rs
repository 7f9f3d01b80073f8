//! What the metadata of an export says about its codes, for those who compare.
//!
//! One JSON object: for the name of each node of codes the tensor of real
//! values that stands for it, how its codes read, and where they come from, in
//! the integers of the runtime. So a script knows the exact number in front of
//! every rounding, whatever the form looks like.

use std::collections::BTreeMap;

use qail_ir::fixed::Multiplier;
use qail_passes::quant::{CodeInfo, LoweredLayer};
use serde_json::{Map, Value, json};

use super::form::{CodeTable, Rounding};

/// Key of the metadata entry.
pub(super) const KEY: &str = "qailc.codes";

/// Collects the entries.
#[derive(Debug, Default)]
pub(super) struct Described {
    nodes: Map<String, Value>,
}

impl Described {
    fn insert(&mut self, to: &Rounding, out: &str, real: &str, from: Value) {
        let Rounding { lo, hi, zero_point, step, .. } = *to;
        let entry = json!({ "real": real, "step": step, "zero_point": zero_point, "lo": lo, "hi": hi, "from": from });
        self.nodes.insert(out.to_owned(), entry);
    }

    /// Observations.
    pub(super) fn entry(&mut self, to: &Rounding, out: &str, real: &str) {
        self.insert(to, out, real, json!({ "kind": "entry" }));
    }

    /// Codes that stand elsewhere.
    pub(super) fn moved(&mut self, info: &CodeInfo, out: &str, real: &str) {
        self.insert(&Rounding::new(info, (info.lo, info.hi)), out, real, json!({ "kind": "moved" }));
    }

    /// Behind a layer: `acc * m * 2^-shift`.
    pub(super) fn layer(
        &mut self,
        to: &Rounding,
        out: &str,
        real: &str,
        layer: &LoweredLayer,
        multipliers: &[Multiplier],
    ) {
        let factors: Vec<f64> = multipliers.iter().map(|one| one.factor()).collect();
        let from = json!({ "kind": "layer", "acc": layer.acc, "factors": factors, "k": layer.k });
        self.insert(to, out, real, from);
    }

    /// Behind a table: the number in front of the rounding for each code, from the lowest on.
    pub(super) fn table(&mut self, lookup: &CodeTable<'_>, out: &str, real: &str, read: &str) {
        let first = lookup.from.scheme.lo();
        let value = |code: i32| {
            let x = f64::from(code - lookup.from.zero_point) * lookup.from.step;
            let y = lookup.functions.iter().fold(x, |y, f| f.eval_f64(y));
            y / lookup.to.step
        };
        let values: Vec<f64> = (0..256).map(|at| value(first + at)).collect();
        let from = json!({ "kind": "table", "reads": read, "lowest": first, "values": values });
        self.insert(&lookup.to, out, real, from);
    }

    /// Behind a sum over axes: `sum(q - zero_point) * factor`.
    pub(super) fn sum(
        &mut self,
        to: &Rounding,
        out: &str,
        real: &str,
        (read, zero_point, shape, axes): (&str, i32, &[usize], &[usize]),
        multipliers: &[Multiplier],
    ) {
        let factor = multipliers.first().map_or(0.0, |one| one.factor());
        let from = json!({
            "kind": "sum", "reads": read, "zero_point": zero_point, "shape": shape, "axes": axes, "factor": factor,
        });
        self.insert(to, out, real, from);
    }

    /// Behind a sum of two values: `((a - zero_a) m_a + (b - zero_b) m_b) 2^-shift`.
    pub(super) fn add(
        &mut self,
        to: &Rounding,
        out: &str,
        real: &str,
        [(a, zero_a), (b, zero_b)]: [(String, i32); 2],
        (m_a, m_b, shift): (&[f64], &[f64], i32),
        (steps, layer): ([f64; 2], Option<&LoweredLayer>),
    ) {
        let scaled = |m: &[f64]| m.iter().map(|&m| m * 2f64.powi(-shift)).collect::<Vec<f64>>();
        let from = json!({
            "kind": "add", "a": a, "zero_a": zero_a, "factors_a": scaled(m_a), "b": b, "zero_b": zero_b,
            "factor_b": scaled(m_b).first(), "step_a": steps[0], "step_b": steps[1],
            "k": layer.map(|layer| layer.k),
        });
        self.insert(to, out, real, from);
    }

    /// Puts everything into the metadata.
    pub(super) fn write(&mut self, metadata: &mut BTreeMap<String, String>) {
        if !self.nodes.is_empty() {
            metadata.insert(KEY.to_owned(), Value::Object(std::mem::take(&mut self.nodes)).to_string());
        }
    }
}
