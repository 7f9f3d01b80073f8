//! The closing report: what became of every layer, how large it is, how far the
//! actions are from the teacher's.
//!
//! Built from the manifest alone, so `compile` and `inspect` print the same.

use std::{collections::BTreeMap, fmt::Write as _};

use comfy_table::{CellAlignment, Table, presets};
use qail_artifact::schema::{Layer, Manifest};
use serde::Serialize;

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// Name in the source model.
    pub name: String,
    /// Operation.
    pub op: String,
    /// `w4a8`, `f32`, or empty for operations without weights.
    pub precision: String,
    /// Number of weights.
    pub n_weights: u64,
    /// Bytes as f32.
    pub size_before: u64,
    /// Bytes in the artifact: codes, scales, biases, tables.
    pub size_after: u64,
    /// Why it is not quantized.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Distance of one output from the teacher's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputError {
    /// Name of the output.
    pub name: String,
    /// Mean over samples and elements of the squared difference.
    pub mse: f64,
    /// Largest absolute difference.
    pub max: f64,
    /// Root mean square of the teacher's output, for comparison.
    pub teacher_rms: f64,
    /// Number of samples compared.
    pub n_samples: usize,
}

/// Everything that `compile` says when it is done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this document.
    pub schema: u32,
    /// Name of the model.
    pub model: String,
    /// What was done, for example `w4a4+e8+o16`.
    pub precision: String,
    /// Layers, in order.
    pub layers: Vec<LayerRow>,
    /// Bits of weight codes a weight, layers without weights left out.
    pub effective_bits: f64,
    /// Bytes of all parameters as f32.
    pub size_before: u64,
    /// Bytes of all parameters in the artifact.
    pub size_after: u64,
    /// Bytes of the whole artifact.
    pub artifact_bytes: u64,
    /// Distance from the teacher, empty without data.
    pub errors: Vec<OutputError>,
}

impl Report {
    /// The report of a manifest. `artifact_bytes` is the length of the file.
    pub fn new(manifest: &Manifest, artifact_bytes: u64) -> Self {
        let layers: Vec<LayerRow> = manifest.layers.iter().map(row).collect();
        let weights = |layer: &&Layer| layer.n_weights > 0;
        let n_weights: u64 = manifest.layers.iter().filter(weights).map(|layer| layer.n_weights).sum();
        let bits: u64 = manifest.layers.iter().map(|layer| layer.n_weights * u64::from(layer.weight_bits)).sum();
        Self {
            schema: 1,
            model: manifest.name.clone(),
            precision: manifest.precision.clone(),
            effective_bits: if n_weights == 0 { 0.0 } else { bits as f64 / n_weights as f64 },
            size_before: layers.iter().map(|layer| layer.size_before).sum(),
            size_after: layers.iter().map(|layer| layer.size_after).sum(),
            artifact_bytes,
            errors: errors(manifest),
            layers,
        }
    }

    /// The report as a JSON document.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The report as tables for a terminal.
    pub fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["layer", "op", "bits", "weights", "before", "after", ""]);
        for layer in &self.layers {
            table.add_row([
                layer.name.clone(),
                layer.op.clone(),
                layer.precision.clone(),
                if layer.n_weights == 0 { String::new() } else { layer.n_weights.to_string() },
                size(layer.size_before),
                size(layer.size_after),
                layer.reason.clone(),
            ]);
        }
        for column in table.column_iter_mut().skip(3).take(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n\n");
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "{}: {}, {:.2} bits per weight; parameters {} -> {}, artifact {}",
            self.model,
            self.precision,
            self.effective_bits,
            size(self.size_before),
            size(self.size_after),
            size(self.artifact_bytes),
        );
        self.errors.iter().for_each(|error| text.push_str(&error.render()));
        text
    }
}

impl OutputError {
    /// One line for a terminal.
    pub fn render(&self) -> String {
        format!(
            "output `{}` against the teacher, {} samples: mse {:.3e}, max {:.3e} (teacher rms {:.3e})\n",
            self.name, self.n_samples, self.mse, self.max, self.teacher_rms,
        )
    }

    /// Entries of [`Manifest::evaluation`] for this output.
    pub fn figures(&self) -> [(String, f64); 4] {
        let figure = |name: &str, value: f64| (format!("{}:{name}", self.name), value);
        [
            figure("mse", self.mse),
            figure("max", self.max),
            figure("teacher_rms", self.teacher_rms),
            figure("n_samples", self.n_samples as f64),
        ]
    }
}

/// The distances that figures tell, in the order of the names of the outputs.
pub fn output_errors(figures: &BTreeMap<String, f64>) -> Vec<OutputError> {
    let names = figures.keys().filter_map(|key| key.strip_suffix(":mse"));
    names.filter_map(|name| output_error(figures, name)).collect()
}

fn output_error(figures: &BTreeMap<String, f64>, name: &str) -> Option<OutputError> {
    let get = |figure: &str| figures.get(&format!("{name}:{figure}")).copied();
    Some(OutputError {
        name: name.to_owned(),
        mse: get("mse")?,
        max: get("max")?,
        teacher_rms: get("teacher_rms")?,
        n_samples: get("n_samples")? as usize,
    })
}

fn errors(manifest: &Manifest) -> Vec<OutputError> {
    let outputs = manifest.entries.iter().flat_map(|entry| &entry.outputs);
    outputs.filter_map(|port| output_error(&manifest.evaluation, &port.name)).collect()
}

fn row(layer: &Layer) -> LayerRow {
    let precision = match (layer.weight_bits, layer.activation_bits) {
        (0, _) => String::new(),
        (32, _) => "f32".to_owned(),
        (weight, 32) => format!("w{weight}a16"),
        // An observation, not a float activation.
        (weight, 16) => format!("w{weight}o16"),
        (weight, activation) => format!("w{weight}a{activation}"),
    };
    LayerRow {
        name: layer.name.clone(),
        op: layer.op.clone(),
        precision,
        n_weights: layer.n_weights,
        size_before: layer.size_before,
        size_after: layer.size_after,
        reason: layer.reason.clone(),
    }
}

/// A size in bytes as people read it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        1..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
