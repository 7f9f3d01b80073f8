//! Graph-to-graph transformations.
//!
//! A [`Pass`] has one name in four spellings (command line, file, struct and
//! folder of its tests) and states its [`Exactness`]. [`registry`] lists all
//! of them, [`pipeline`] puts them in order for a [`Precision`], and
//! [`PassManager`] runs them and verifies the graph after each.
//!
//! Quantization is four of them: `insert-fake-quant` decides where codes are,
//! `calibrate` finds the steps, `lower-quant` writes the integer graph, and
//! `quantize-weights` is the path with float activations. What they share is
//! in [`quant`]. A model that is quantized already keeps its steps: `adopt-weights`
//! and `lower-quant` are all that it needs.

pub mod adopt_weights;
pub mod calibrate;
pub mod canonicalize;
mod context;
pub mod correct_bias;
pub mod eliminate_dead_code;
mod error;
pub mod expand_groups;
pub mod fold_constants;
pub mod fold_entry_steps;
pub mod fold_normalizer;
pub mod fuse_linear_act;
pub mod hoist_functions;
pub mod insert_fake_quant;
pub mod join;
pub mod keep_cache;
pub mod lift_attention;
pub mod lift_fake_quant;
pub mod lift_film;
pub mod lift_gelu;
pub mod lift_hard_swish;
pub mod lift_mish;
pub mod lift_normalize;
pub mod lift_rope;
pub mod lift_silu;
pub mod lift_softmax;
pub mod lower_quant;
mod manager;
pub mod merge_linear_bias;
pub mod move_transposes;
pub mod optimize_rounding;
mod options;
mod pattern;
pub mod pipeline;
mod precision;
pub mod quant;
pub mod quantize_weights;
pub mod rebatch;
pub mod registry;
mod rewrite;
pub mod sampler;
mod samples;
pub mod tabulate_turns;

pub use adopt_weights::AdoptWeights;
pub use calibrate::{Calibrate, Observer};
pub use canonicalize::Canonicalize;
pub use context::{Note, NoteKind, PassContext, Progress};
pub use correct_bias::CorrectBias;
pub use eliminate_dead_code::EliminateDeadCode;
pub use error::PassError;
pub use expand_groups::ExpandGroups;
pub use fold_constants::FoldConstants;
pub use fold_entry_steps::FoldEntrySteps;
pub use fold_normalizer::FoldNormalizer;
pub use fuse_linear_act::FuseLinearAct;
pub use hoist_functions::HoistFunctions;
pub use insert_fake_quant::InsertFakeQuant;
pub use lift_attention::LiftAttention;
pub use lift_fake_quant::LiftFakeQuant;
pub use lift_film::LiftFilm;
pub use lift_gelu::LiftGelu;
pub use lift_hard_swish::LiftHardSwish;
pub use lift_mish::LiftMish;
pub use lift_normalize::LiftNormalize;
pub use lift_rope::LiftRope;
pub use lift_silu::LiftSilu;
pub use lift_softmax::LiftSoftmax;
pub use lower_quant::LowerQuant;
pub use manager::{AfterPass, Changed, Exactness, Pass, PassManager};
pub use merge_linear_bias::MergeLinearBias;
pub use move_transposes::MoveTransposes;
pub use optimize_rounding::OptimizeRounding;
pub use options::PassOptions;
pub use pipeline::{PipelineOptions, default_pipeline};
pub use precision::{ParsePrecisionError, Precision};
pub use quantize_weights::QuantizeWeights;
pub use rebatch::Rebatch;
pub use sampler::Sampler;
pub use samples::{SampleError, Samples};
pub use tabulate_turns::TabulateTurns;
