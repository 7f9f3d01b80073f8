//! Flags that several subcommands share.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, builder::TypedValueParser};
use qail_passes::{Calibrate, Observer, PipelineOptions, Precision};

use crate::{data::DemoMap, frontend::ImportOptions, pipeline::BuildOptions};

/// A model and how to read it.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// The model: an ONNX file.
    pub(super) model: PathBuf,
    /// Extent of a symbolic dimension; `batch` is 1 unless said otherwise.
    #[arg(long = "dim", value_name = "NAME=N")]
    pub(super) dims: Vec<Pair<usize>>,
    /// Outputs to keep, by name. Default: all of them.
    #[arg(long = "output", value_name = "NAME")]
    pub(super) outputs: Vec<String>,
}

/// Recorded observations.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    /// Demonstrations: an `.npz` file or a folder of `.npy` files.
    #[arg(long, value_name = "FILE")]
    pub(super) demos: Option<PathBuf>,
    /// Which array of the data is which input of the model.
    #[arg(long = "map", value_name = "INPUT=KEY")]
    pub(super) map: Vec<Pair<String>>,
    /// Recorded steps to calibrate on, at most.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    calibration_samples: u64,
}

impl DataArgs {
    /// Of a command that takes no data.
    pub(super) fn none() -> Self {
        Self { demos: None, map: Vec::new(), calibration_samples: 1 }
    }

    /// Recorded steps to calibrate on, at most.
    pub(super) fn n_calibration(&self) -> usize {
        usize::try_from(self.calibration_samples).unwrap_or(usize::MAX)
    }

    /// The mapping from inputs of the model to arrays of the data.
    pub(super) fn mapping(&self) -> DemoMap {
        let inputs = self.map.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect();
        DemoMap { inputs, ..DemoMap::default() }
    }
}

impl ModelArgs {
    /// How to read the model.
    pub(super) fn import_options(&self) -> ImportOptions {
        ImportOptions {
            dims: self.dims.iter().map(|pair| (pair.name.clone(), pair.value)).collect(),
            outputs: (!self.outputs.is_empty()).then(|| self.outputs.clone()),
        }
    }
}

/// How to quantize.
#[derive(Debug, Args)]
pub(super) struct QuantArgs {
    /// Precision: f32, w8a8, w4a8, w4a4 (integers), w8a16, w4a16 (quantized weights only).
    #[arg(short = 'b', long = "bits", default_value = "w4a4")]
    pub(super) bits: Precision,
    /// Bits of the first and last layer, where the inside has fewer.
    #[arg(long, default_value_t = 8, value_parser = clap::builder::PossibleValuesParser::new(["4", "8"]).map(|bits| if bits == "4" { 4u8 } else { 8 }))]
    pub(super) edge_bits: u8,
    /// How ranges are found: mse, min-max, percentile or percentile:P.
    #[arg(long, default_value = "mse", value_parser = parse_observer)]
    pub(super) observer: Observer,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
}

fn parse_observer(text: &str) -> Result<Observer, &'static str> {
    text.parse().map_err(|()| "accepted are mse, min-max, percentile and percentile:P with P from 50 to 100")
}

/// The options of a build from the flags of a command.
pub(super) fn build_options(model: &ModelArgs, data: &DataArgs, quant: &QuantArgs) -> BuildOptions {
    let n_calibration = data.n_calibration();
    BuildOptions {
        import: model.import_options(),
        passes: PipelineOptions {
            edge_bits: quant.edge_bits,
            calibrate: Calibrate { observer: quant.observer, max_samples: n_calibration },
            ..PipelineOptions::new(quant.bits)
        },
        demos: data.demos.clone(),
        map: data.mapping(),
        n_calibration,
        seed: quant.seed,
    }
}

/// `NAME=VALUE` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair<T> {
    /// Left of the sign.
    pub(super) name: String,
    /// Right of the sign.
    pub(super) value: T,
}

impl<T: FromStr> FromStr for Pair<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let value = value.parse().map_err(|_| format!("`{value}` is not a valid value"))?;
        Ok(Self { name: name.to_owned(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_a_name_and_a_value() {
        assert_eq!("batch=4".parse(), Ok(Pair { name: "batch".to_owned(), value: 4usize }));
        assert!("batch".parse::<Pair<usize>>().is_err());
        assert!("batch=x".parse::<Pair<usize>>().is_err());
    }
}
