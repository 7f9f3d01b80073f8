//! Models that are quantized already: they keep their scales.

use qail_ir::Graph;
use qail_passes::{pipeline::is_quantized, quant::LoweringReport};
use qail_train::options::Method;

use super::{BuildOptions, PipelineError};

/// What runs, in reports and in the artifact: the precision of each layer is
/// the model's.
pub(super) const PRECISION: &str = "given";

/// True if a model is quantized already and nothing else was asked for.
///
/// # Errors
/// A precision that was asked for: the model has one.
pub(super) fn accepted(graph: &Graph, options: &BuildOptions) -> Result<bool, PipelineError> {
    match is_quantized(graph) {
        true if !options.passes.is_default => {
            Err(PipelineError::AlreadyQuantized { asked: format!("-b {}", options.passes.precision) })
        }
        quantized => Ok(quantized),
    }
}

/// What is done to such a model: nothing is trained.
///
/// # Errors
/// A method that trains.
pub(super) fn method(options: &BuildOptions) -> Result<Method, PipelineError> {
    match options.training.as_ref().and_then(|training| training.method) {
        Some(method) if method.trains() => {
            Err(PipelineError::AlreadyQuantized { asked: format!("training with --method {method}") })
        }
        _ => Ok(Method::Ptq),
    }
}

/// How far what runs is from the scales and the biases of the model.
pub(super) fn notes(lowering: Option<&LoweringReport>) -> Vec<String> {
    [Some(scales(lowering)), biases(lowering)].into_iter().flatten().collect()
}

fn scales(lowering: Option<&LoweringReport>) -> String {
    let kept = "the model is quantized already: its codes and scales are kept, no data is needed";
    let rounding = lowering.into_iter().flat_map(|report| &report.layers).flat_map(|layer| {
        let requantizes = layer.requantizes.iter();
        requantizes.flat_map(|requantize| {
            let pairs = layer.nominal_scales.iter().zip(&requantize.derived_scales);
            pairs.map(|(&nominal, &derived)| (f64::from(derived) / f64::from(nominal) - 1.0).abs())
        })
    });
    match rounding.fold(None, |most: Option<f64>, x| Some(most.unwrap_or(0.0).max(x))) {
        Some(most) => format!("{kept}; as integer multipliers they differ by at most {most:.1e} of their size"),
        None => kept.to_owned(),
    }
}

/// Biases that integers would not hold.
fn biases(lowering: Option<&LoweringReport>) -> Option<String> {
    let layers = &lowering?.layers;
    let kept = layers.iter().filter(|layer| layer.keeps_bias);
    let (n, first) = (kept.clone().count(), kept.clone().next()?);
    Some(format!(
        "biases of {n} of {} layers, `{}` the first, are no whole numbers of accumulators: they are added and their \
         results quantized on the host, which is slower than biases of type int32",
        layers.len(),
        first.name
    ))
}
