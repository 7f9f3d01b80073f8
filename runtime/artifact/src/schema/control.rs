//! What a control loop makes of the outputs: which one is the action, and how
//! chunks of actions are given out.

/// Name of the feature of files with a [`Chunk`]. Who does not know it would
/// take a whole chunk for an action, so such readers must refuse the file.
pub const CHUNK_FEATURE: &str = "chunk";

/// From outputs to actions. Speaks of the first entry point.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Control {
    /// Name of the output that is the action; `f32`.
    #[prost(string, tag = "1")]
    pub action: String,
    /// Present if that output holds the actions of several steps.
    #[prost(message, optional, tag = "2")]
    pub chunk: Option<Chunk>,
}

/// An output `[length, A]` or `[1, length, A]`: row `i` is the action of the
/// `i`-th step from the one whose observation it was computed from.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Chunk {
    /// Actions in a chunk.
    #[prost(uint32, tag = "1")]
    pub length: u32,
    /// Actions that are given out before the next chunk is computed, 1 to `length`.
    #[prost(uint32, tag = "2")]
    pub execute: u32,
    /// `m` of temporal ensembling (ACT, arXiv 2304.13705): a chunk is computed
    /// in every step, and the action is the mean of what all chunks say about
    /// the step, weighed by `exp(-m * i)`, `i = 0` for the oldest. `execute` is
    /// then 1, and `|m| * (length - 1)` at most [`MAX_ENSEMBLE_EXPONENT`].
    #[prost(double, optional, tag = "3")]
    pub ensemble: Option<f64>,
}

/// Keeps the weights of temporal ensembling and their sums finite.
pub const MAX_ENSEMBLE_EXPONENT: f64 = 600.0;
