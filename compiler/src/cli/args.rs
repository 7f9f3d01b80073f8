//! Flags that several subcommands share.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, builder::TypedValueParser};
use qail_passes::{Calibrate, Observer, PipelineOptions, Precision};

use qail_train::{
    Distance,
    options::{Method, TrainOptions, parse_distance},
};

use super::{Exit, Failure, outputs::Inputs};
use crate::{
    data::DemoMap,
    frontend::ImportOptions,
    pipeline::{BuildOptions, ChunkChoice, HeadKind, Training},
    policy::{self, Policy, PolicyError},
};

/// A model and how to read it.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// The model: an ONNX file.
    pub(super) model: PathBuf,
    /// A model behind the first one, which reads its outputs: another stage of the policy, in order.
    #[arg(long, value_name = "FILE")]
    then: Vec<PathBuf>,
    /// Extent of a symbolic dimension; `batch` is 1 unless said otherwise.
    #[arg(long = "dim", value_name = "NAME=N")]
    pub(super) dims: Vec<Pair<usize>>,
    /// Outputs to keep, by name. Default: all of them.
    #[arg(long = "output", value_name = "NAME")]
    pub(super) outputs: Vec<String>,
    /// What the ONNX file cannot say: head, bounds, arrays. Default: policy.toml beside the model, if there is one.
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// Which output of the model is the action, where it has several.
    #[arg(long, value_name = "NAME")]
    action_output: Option<String>,
}

/// Recorded observations.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    /// Demonstrations: an `.npz` file or a folder of `.npy` files.
    #[arg(long, value_name = "FILE")]
    pub(super) demos: Option<PathBuf>,
    /// Which array of the data is which input of the model, or its `actions`, `weights` or `episode_ends`.
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
        DemoMap { inputs }
    }
}

impl ModelArgs {
    /// Every file that says what the model is.
    pub(super) fn files(&self, policy: &Policy) -> Inputs {
        Inputs::default()
            .and_models("the model", [&self.model])
            .and_models("a stage of the policy", &policy.then)
            .and("what was said of the policy", &policy::find(self.policy.as_deref(), &self.model))
    }

    /// How to read the model.
    pub(super) fn import_options(&self) -> ImportOptions {
        ImportOptions {
            dims: self.dims.iter().map(|pair| (pair.name.clone(), pair.value)).collect(),
            outputs: (!self.outputs.is_empty()).then(|| self.outputs.clone()),
        }
    }
}

/// What a model file does not say: `policy.toml`, the file that was named or the
/// one beside the model, then flags, which win.
pub(super) fn policy_of(model: &Path, named: Option<&Path>, action: Option<&str>) -> Result<Policy, Failure> {
    let mut policy = match policy::find(named, model) {
        Some(path) => Policy::read(&path).map_err(|error| {
            let exit = if matches!(error, PolicyError::Later { .. }) { Exit::Unsupported } else { Exit::InvalidInput };
            Failure::new(exit, format!("cannot use `{}`", path.display()), &error)
        })?,
        None => Policy::default(),
    };
    if let Some(output) = action {
        let part = if policy.head.kind == Some(HeadKind::Gaussian) { "mean" } else { "action" };
        policy.head.outputs.insert(part.to_owned(), output.to_owned());
    }
    Ok(policy)
}

/// How to quantize.
#[derive(Debug, Args)]
pub(super) struct QuantArgs {
    /// Precision: f32, w8a8, w4a8, w4a4 (integers), w8a16, w4a16 (quantized weights only). Default: w4a4; a model that is quantized already keeps its own.
    #[arg(short = 'b', long = "bits", value_name = "BITS")]
    pub(super) bits: Option<Precision>,
    /// Bits of the first and last layer, where the inside has fewer.
    #[arg(long, default_value_t = 8, value_parser = clap::builder::PossibleValuesParser::new(["4", "8"]).map(|bits| if bits == "4" { 4u8 } else { 8 }))]
    pub(super) edge_bits: u8,
    /// How ranges are found: mse, min-max, percentile or percentile:P.
    #[arg(long, default_value = "mse", value_parser = parse_observer)]
    pub(super) observer: Observer,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = parse_seed)]
    pub(super) seed: u64,
}

/// Negative numbers are taken for flags unless they may be values, so they are
/// let through to here.
pub(super) fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

fn parse_observer(text: &str) -> Result<Observer, &'static str> {
    text.parse().map_err(|()| "accepted are mse, min-max, percentile and percentile:P with P from 50 to 100")
}

/// The options of a build from the flags of a command and from `policy.toml`.
pub(super) fn build_options(model: &ModelArgs, data: &DataArgs, quant: &QuantArgs) -> Result<BuildOptions, Failure> {
    let n_calibration = data.n_calibration();
    let mut policy = policy_of(&model.model, model.policy.as_deref(), model.action_output.as_deref())?;
    if !model.then.is_empty() {
        policy.then.clone_from(&model.then);
    }
    let mut map = data.mapping();
    for (input, key) in &policy.map {
        map.inputs.entry(input.clone()).or_insert_with(|| key.clone());
    }
    Ok(BuildOptions {
        import: model.import_options(),
        passes: PipelineOptions {
            edge_bits: quant.edge_bits,
            calibrate: Calibrate { observer: quant.observer, max_samples: n_calibration },
            is_default: quant.bits.is_none(),
            ..PipelineOptions::new(quant.bits.unwrap_or(Precision::W4A4))
        },
        demos: data.demos.clone(),
        map,
        n_calibration,
        seed: quant.seed,
        policy,
        training: None,
    })
}

/// How to train.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainArgs {
    /// Method: ptq (no training), qail (imitate the expert), qbc (clone the full-precision policy),
    /// qail+qbc. Default: qail+qbc for integer precisions, qbc if the data has no actions.
    #[arg(long, value_name = "METHOD")]
    pub(super) method: Option<Method>,
    /// Updates.
    #[arg(long, default_value_t = TrainOptions::default().steps, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    steps: u64,
    /// Steps of the recording in a batch.
    #[arg(long, default_value_t = TrainOptions::default().batch as u64, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,
    /// Learning rate of weights and biases, relative to their size.
    #[arg(long, default_value_t = TrainOptions::default().lr, value_name = "RATE", value_parser = positive)]
    lr: f64,
    /// Learning rate of the steps of quantizers, relative to their size.
    #[arg(long, default_value_t = TrainOptions::default().lr_steps, value_name = "RATE", value_parser = not_negative)]
    lr_steps: f64,
    /// Distance of actions: l2, l1, huber or huber:DELTA. Default: l2; likelihood and divergence for Gaussian heads.
    #[arg(long, value_name = "DISTANCE", value_parser = parse_distance)]
    loss: Option<Distance>,
    /// Weight of the cloning term beside the imitation term.
    #[arg(long, default_value_t = TrainOptions::default().lambda, value_name = "X", value_parser = not_negative)]
    lambda: f64,
    /// Decay of weights, relative to the learning rate.
    #[arg(long, default_value_t = TrainOptions::default().weight_decay, value_name = "X", value_parser = not_negative)]
    weight_decay: f64,
    /// Largest norm of the gradient, all parameters together, in units.
    #[arg(long, default_value_t = TrainOptions::default().clip, value_name = "X", value_parser = positive)]
    clip: f64,
    /// Decay of a moving average of the parameters, which is then what is kept; 0 for none.
    #[arg(long, default_value_t = TrainOptions::default().ema, value_name = "X", value_parser = below_one)]
    ema: f64,
    /// Noise on observations, in standard deviations of each feature; the full-precision policy labels the noisy ones.
    #[arg(long, default_value_t = TrainOptions::default().obs_noise, value_name = "SIGMA", value_parser = not_negative)]
    obs_noise: f64,
    /// Updates between two evaluations on held-out episodes.
    #[arg(long, default_value_t = TrainOptions::default().evaluate_every, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    eval_every: u64,
    /// Threads; the result does not depend on it. Default: as many as there are cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Steps of an episode over which the states of a recurrent policy are followed (backpropagation through time).
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    bptt: u64,
    /// Stop training after so many seconds and keep the best. The result then depends on the clock.
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    time_budget: Option<f64>,
}

impl TrainArgs {
    /// How long training may take; whoever watches it holds it to that.
    pub(super) fn time_budget(&self) -> Option<Duration> {
        self.time_budget.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// How to train.
    pub(super) fn training(&self, cache_dir: Option<PathBuf>) -> Training {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(16);
        Training {
            method: self.method,
            options: TrainOptions {
                distance: self.loss,
                lambda: self.lambda,
                steps: self.steps,
                batch: usize::try_from(self.batch).unwrap_or(usize::MAX),
                lr: self.lr,
                lr_steps: self.lr_steps,
                weight_decay: self.weight_decay,
                clip: self.clip,
                ema: self.ema,
                obs_noise: self.obs_noise,
                evaluate_every: self.eval_every,
                ..TrainOptions::default()
            },
            window: usize::try_from(self.bptt).unwrap_or(1),
            threads: self.threads.and_then(|n| usize::try_from(n).ok()).unwrap_or_else(cores),
            cache_dir,
            save: None,
        }
    }
}

/// How the actions of a chunk are given out.
#[derive(Debug, Args)]
#[command(next_help_heading = "Chunks of actions")]
pub(super) struct ChunkArgs {
    /// The action holds the actions of N steps. Default: as policy.toml says, else as its shape and recorded actions do.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    chunk_length: Option<usize>,
    /// Execute N actions of a chunk before the next one is computed. Default: all.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    chunk_execute: Option<usize>,
    /// Compute a chunk in every step and execute the mean of what all of them say about it, weighed by exp(-M i), i = 0
    /// for the oldest; `off` if policy.toml says so.
    #[arg(long, value_name = "M", value_parser = parse_ensemble, allow_hyphen_values = true)]
    chunk_ensemble: Option<Ensemble>,
}

/// What `--chunk-ensemble` says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ensemble {
    Off,
    Weight(f64),
}

fn parse_count(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|&n| n > 0).ok_or("expected a whole number above 0")
}

fn parse_ensemble(text: &str) -> Result<Ensemble, String> {
    if text == "off" { Ok(Ensemble::Off) } else { number(text, |_| true, "or off").map(Ensemble::Weight) }
}

impl ChunkArgs {
    /// What was said before, with what the flags say in its place.
    pub(super) fn over(&self, said: Option<ChunkChoice>) -> Option<ChunkChoice> {
        if !self.is_given() {
            return said;
        }
        let said = said.unwrap_or_default();
        Some(ChunkChoice {
            length: self.chunk_length.or(said.length),
            execute: self.chunk_execute.or(said.execute),
            ensemble: match self.chunk_ensemble {
                None => said.ensemble,
                Some(Ensemble::Off) => None,
                Some(Ensemble::Weight(m)) => Some(m),
            },
        })
    }

    /// True if any flag says anything.
    fn is_given(&self) -> bool {
        self.chunk_length.is_some() || self.chunk_execute.is_some() || self.chunk_ensemble.is_some()
    }
}

/// What `compile` and `train` have in common: a model, data, and what to do with them.
#[derive(Debug, Args)]
pub(super) struct RecipeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) quant: QuantArgs,
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) chunk: ChunkArgs,
    #[command(flatten)]
    pub(super) train: TrainArgs,
}

impl RecipeArgs {
    /// Every file that is read.
    pub(super) fn files(&self, options: &BuildOptions) -> Inputs {
        self.model.files(&options.policy).and("the demonstrations", &self.data.demos)
    }

    /// The options of a build that trains.
    pub(super) fn build_options(&self, training: Training) -> Result<BuildOptions, Failure> {
        let mut options = build_options(&self.model, &self.data, &self.quant)?;
        options.policy.chunk = self.chunk.over(options.policy.chunk);
        Ok(BuildOptions { training: Some(training), ..options })
    }
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if number.is_finite() && fits(number) { Ok(number) } else { Err(format!("expected a number {expected}")) }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "above 0")
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "not below 0")
}

fn below_one(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "from 0 to below 1")
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
    fn flags_win_over_what_a_file_says() {
        let flags =
            |chunk_length, chunk_execute, chunk_ensemble| ChunkArgs { chunk_length, chunk_execute, chunk_ensemble };
        let said = ChunkChoice { length: Some(20), execute: Some(5), ensemble: None };
        assert_eq!(flags(None, None, None).over(Some(said)), Some(said));
        assert_eq!(flags(None, None, None).over(None), None);
        let execute = flags(None, Some(2), None).over(Some(said));
        assert_eq!(execute, Some(ChunkChoice { execute: Some(2), ..said }));
        let ensembled = ChunkChoice { length: None, execute: None, ensemble: Some(0.1) };
        assert_eq!(flags(None, None, Some(Ensemble::Off)).over(Some(ensembled)), Some(ChunkChoice::default()));
        assert_eq!(parse_ensemble("-0.5"), Ok(Ensemble::Weight(-0.5)));
        assert!(parse_ensemble("on").is_err() && parse_ensemble("nan").is_err() && parse_count("0").is_err());
    }

    #[test]
    fn a_pair_has_a_name_and_a_value() {
        assert_eq!("batch=4".parse(), Ok(Pair { name: "batch".to_owned(), value: 4usize }));
        assert!("batch".parse::<Pair<usize>>().is_err());
        assert!("batch=x".parse::<Pair<usize>>().is_err());
    }
}
