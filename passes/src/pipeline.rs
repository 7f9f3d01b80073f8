//! Passes in order for a precision.

use qail_ir::{Graph, Op};

use crate::{
    AdoptWeights, Calibrate, Canonicalize, CorrectBias, EliminateDeadCode, ExpandGroups, FoldConstants, FoldNormalizer,
    FuseLinearAct, HoistFunctions, InsertFakeQuant, LiftAttention, LiftFakeQuant, LiftFilm, LiftGelu, LiftHardSwish,
    LiftMish, LiftNormalize, LiftRope, LiftSilu, LiftSoftmax, LowerQuant, MergeLinearBias, MoveTransposes,
    OptimizeRounding, Pass, Precision, QuantizeWeights,
};

/// What the default pipeline depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PipelineOptions {
    /// Width of weights and activations.
    pub precision: Precision,
    /// Bits of edge layers, if the inside has fewer: 4 or 8.
    pub edge_bits: u8,
    /// Bits of observations: 16, or 8 or 4 to see what that breaks.
    pub observation_bits: u8,
    /// How steps of activations are found.
    pub calibrate: Calibrate,
    /// Training follows [`prepare`]: weights keep their unrounded numbers.
    pub trains: bool,
    /// Nobody asked for the precision: a model that brings its own is taken as
    /// it is, by [`given_pipeline`].
    pub is_default: bool,
}

impl PipelineOptions {
    /// The defaults of a precision.
    pub fn new(precision: Precision) -> Self {
        Self {
            precision,
            edge_bits: 8,
            observation_bits: 16,
            calibrate: Calibrate::default(),
            trains: false,
            is_default: false,
        }
    }

    /// What really runs: see [`Precision::effective`].
    pub fn effective(&self) -> String {
        self.precision.effective(self.edge_bits)
    }
}

/// From an imported graph to one that `codegen` takes.
pub fn default_pipeline(options: &PipelineOptions) -> Vec<Box<dyn Pass>> {
    let mut passes = prepare(options);
    passes.extend(finish(options));
    passes
}

/// True if a graph has quantizers, as an import of a quantized model has.
pub fn is_quantized(graph: &Graph) -> bool {
    graph.topo().into_iter().any(|id| matches!(graph.node(id).op, Op::FakeQuant(_)))
}

/// From an imported graph that [is quantized](is_quantized) to one that
/// `codegen` takes, with the steps that it brings. Needs no data.
pub fn given_pipeline() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(FoldConstants::default()),
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
        Box::new(LiftFakeQuant),
        Box::new(LiftRope),
        Box::new(LiftFilm),
        Box::new(MoveTransposes),
        Box::new(Canonicalize),
        // One function between codes is a table; its pieces would be floats.
        Box::new(LiftSilu),
        Box::new(LiftGelu),
        Box::new(LiftMish),
        Box::new(LiftHardSwish),
        Box::new(LiftNormalize),
        Box::new(LiftSoftmax),
        Box::new(LiftAttention),
        Box::new(HoistFunctions),
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
        Box::new(AdoptWeights),
        Box::new(LowerQuant { is_given: true }),
        Box::new(ExpandGroups),
        Box::new(FuseLinearAct),
        Box::new(EliminateDeadCode),
    ]
}

/// From an imported graph to one that can train: with quantizers and steps, if
/// the precision has quantized activations.
pub fn prepare(options: &PipelineOptions) -> Vec<Box<dyn Pass>> {
    let PipelineOptions { precision, edge_bits, observation_bits, calibrate, trains, .. } = *options;
    // What the source spelled out becomes constants, then one spelling is left
    // for the patterns behind; nothing dead may count as a reader.
    let mut passes: Vec<Box<dyn Pass>> = vec![
        Box::new(FoldConstants::default()),
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
        // They read one value twice, or computed features: transposes would move over parts of them.
        Box::new(LiftRope),
        Box::new(LiftFilm),
        // Channels last: what follows a convolution stands right behind its `linear`.
        Box::new(MoveTransposes),
        Box::new(Canonicalize),
        Box::new(LiftSilu),
        Box::new(LiftGelu),
        Box::new(LiftMish),
        Box::new(LiftHardSwish),
        Box::new(LiftNormalize),
        Box::new(LiftSoftmax),
        Box::new(LiftAttention),
        Box::new(HoistFunctions),
        // Transposes of keys meet those that split heads.
        Box::new(Canonicalize),
        Box::new(EliminateDeadCode),
        Box::new(MergeLinearBias { exact_only: !precision.needs_data() }),
    ];
    if let Some(insert) = InsertFakeQuant::new(precision, edge_bits) {
        // Affine pieces fold before quantizers stand between them and the
        // layers. Float precisions keep the rounding of the source instead.
        passes.push(Box::new(FoldNormalizer));
        passes.push(Box::new(EliminateDeadCode));
        passes.push(Box::new(InsertFakeQuant { observation_bits, ..insert }));
        passes.push(Box::new(calibrate));
        if !trains {
            // Training finds better codes from the unrounded weights.
            let max_samples = calibrate.max_samples;
            passes.push(Box::new(OptimizeRounding { max_samples, ..OptimizeRounding::default() }));
        }
        passes.push(Box::new(CorrectBias));
    }
    passes
}

/// From the graph of [`prepare`], trained or not, to one that `codegen` takes.
pub fn finish(options: &PipelineOptions) -> Vec<Box<dyn Pass>> {
    let mut passes: Vec<Box<dyn Pass>> = Vec::new();
    if let Some(quantize) = QuantizeWeights::new(options.precision, options.edge_bits) {
        passes.push(Box::new(quantize));
    }
    if options.precision.needs_data() {
        passes.push(Box::new(LowerQuant::default()));
    }
    // Layers that stay in floats, whatever the precision.
    passes.push(Box::new(ExpandGroups));
    passes.push(Box::new(FuseLinearAct));
    passes.push(Box::new(EliminateDeadCode));
    passes
}
