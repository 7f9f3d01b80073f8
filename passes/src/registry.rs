//! All passes by name.

use crate::{
    AdoptWeights, Calibrate, Canonicalize, CorrectBias, EliminateDeadCode, ExpandGroups, FoldConstants, FoldEntrySteps,
    FoldNormalizer, FuseLinearAct, HoistFunctions, InsertFakeQuant, LiftAttention, LiftFakeQuant, LiftFilm, LiftGelu,
    LiftHardSwish, LiftMish, LiftNormalize, LiftRope, LiftSilu, LiftSoftmax, LowerQuant, MergeLinearBias,
    MoveTransposes, OptimizeRounding, Pass, PassError, PassOptions, QuantizeWeights, Rebatch, TabulateTurns,
};

/// One line of the table of passes.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// Builds the pass from its options.
    build: fn(&mut PassOptions) -> Result<Box<dyn Pass>, PassError>,
}

/// Every pass, sorted by name.
pub const PASSES: &[Entry] = &[
    Entry { name: "adopt-weights", build: |_| Ok(Box::new(AdoptWeights)) },
    Entry { name: "calibrate", build: |options| Ok(Box::new(Calibrate::from_options(options)?)) },
    Entry { name: "canonicalize", build: |_| Ok(Box::new(Canonicalize)) },
    Entry { name: "correct-bias", build: |_| Ok(Box::new(CorrectBias)) },
    Entry { name: "eliminate-dead-code", build: |_| Ok(Box::new(EliminateDeadCode)) },
    Entry { name: "expand-groups", build: |_| Ok(Box::new(ExpandGroups)) },
    Entry {
        name: "fold-constants",
        build: |options| {
            let limit = options.take("limit", FoldConstants::default().limit, "a number of elements")?;
            Ok(Box::new(FoldConstants { limit }))
        },
    },
    Entry { name: "fold-entry-steps", build: |_| Ok(Box::new(FoldEntrySteps)) },
    Entry { name: "fold-normalizer", build: |_| Ok(Box::new(FoldNormalizer)) },
    Entry { name: "fuse-linear-act", build: |_| Ok(Box::new(FuseLinearAct)) },
    Entry { name: "hoist-functions", build: |_| Ok(Box::new(HoistFunctions)) },
    Entry { name: "insert-fake-quant", build: |options| Ok(Box::new(InsertFakeQuant::from_options(options)?)) },
    Entry { name: "lift-attention", build: |_| Ok(Box::new(LiftAttention)) },
    Entry { name: "lift-fake-quant", build: |_| Ok(Box::new(LiftFakeQuant)) },
    Entry { name: "lift-film", build: |_| Ok(Box::new(LiftFilm)) },
    Entry { name: "lift-gelu", build: |_| Ok(Box::new(LiftGelu)) },
    Entry { name: "lift-hard-swish", build: |_| Ok(Box::new(LiftHardSwish)) },
    Entry { name: "lift-mish", build: |_| Ok(Box::new(LiftMish)) },
    Entry { name: "lift-normalize", build: |_| Ok(Box::new(LiftNormalize)) },
    Entry { name: "lift-rope", build: |_| Ok(Box::new(LiftRope)) },
    Entry { name: "lift-silu", build: |_| Ok(Box::new(LiftSilu)) },
    Entry { name: "lift-softmax", build: |_| Ok(Box::new(LiftSoftmax)) },
    Entry {
        name: "lower-quant",
        build: |options| Ok(Box::new(LowerQuant { is_given: options.take("given", false, "true or false")? })),
    },
    Entry {
        name: "merge-linear-bias",
        build: |options| {
            Ok(Box::new(MergeLinearBias { exact_only: options.take("exact-only", false, "true or false")? }))
        },
    },
    Entry { name: "move-transposes", build: |_| Ok(Box::new(MoveTransposes)) },
    Entry { name: "optimize-rounding", build: |options| Ok(Box::new(OptimizeRounding::from_options(options)?)) },
    Entry { name: "quantize-weights", build: |options| Ok(Box::new(QuantizeWeights::from_options(options)?)) },
    Entry {
        name: "rebatch",
        build: |options| Ok(Box::new(Rebatch { n: options.take("n", 1, "a number of samples")? })),
    },
    Entry { name: "tabulate-turns", build: |_| Ok(Box::new(TabulateTurns)) },
];

impl Entry {
    /// The pass with default options: for its summary and exactness.
    pub fn default_pass(&self) -> Result<Box<dyn Pass>, PassError> {
        (self.build)(&mut PassOptions::none(self.name))
    }
}

/// The pass that some options name. Unknown names and options are errors.
pub fn build(mut options: PassOptions) -> Result<Box<dyn Pass>, PassError> {
    let known = PASSES.iter().find(|entry| entry.name == options.pass());
    let entry = known.ok_or_else(|| PassError::Unknown { name: options.pass().to_owned() })?;
    let pass = (entry.build)(&mut options)?;
    options.finish()?;
    Ok(pass)
}

/// The passes of a list such as `lift-silu, insert-fake-quant(bits=w4a4, edge-bits=4)`.
pub fn parse(list: &str) -> Result<Vec<Box<dyn Pass>>, PassError> {
    PassOptions::parse_list(list)?.into_iter().map(build).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_four_spellings() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for entry in PASSES {
            let pass = entry.default_pass().unwrap();
            assert_eq!(pass.name(), entry.name);
            assert!(!pass.summary().is_empty() && !pass.summary().ends_with('.'));
            let snake = entry.name.replace('-', "_");
            let file = root.join("src").join(format!("{snake}.rs"));
            let folder = root.join("src").join(&snake).join("mod.rs");
            let source = std::fs::read_to_string(file).or_else(|_| std::fs::read_to_string(folder)).unwrap();
            assert!(source.starts_with(&format!("//! `{}`: ", entry.name)), "module doc of {}", entry.name);
            let camel: String = entry.name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            assert!(source.contains(&format!("pub struct {camel}")), "struct of {}", entry.name);
            assert!(source.contains(&format!("impl Pass for {camel}")), "impl of {}", entry.name);
            let tests = root.join("tests/filetests").join(entry.name);
            let cases = std::fs::read_dir(&tests).map(|dir| dir.count()).unwrap_or(0);
            assert!(cases > 0, "no tests in {}", tests.display());
        }
        assert!(PASSES.is_sorted_by_key(|entry| entry.name));
    }

    #[test]
    fn every_file_test_folder_is_a_pass() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
        for folder in std::fs::read_dir(root).unwrap() {
            let name = folder.unwrap().file_name().into_string().unwrap();
            assert!(PASSES.iter().any(|entry| entry.name == name), "no pass is called {name}");
        }
    }

    #[test]
    fn lists_build_passes() {
        let passes = parse("lift-silu, insert-fake-quant(bits=w4a4, edge-bits=4)").unwrap();
        assert_eq!(passes.iter().map(|pass| pass.name()).collect::<Vec<_>>(), ["lift-silu", "insert-fake-quant"]);
        let error = |list| parse(list).err().unwrap().to_string();
        assert_eq!(error("lift"), "no pass is called `lift`; `qailc opt --list` shows all");
        assert_eq!(error("lift-silu(x=1)"), "option `x` of pass `lift-silu`: the pass has no such option");
        assert_eq!(
            error("insert-fake-quant(bits=w4a16)"),
            "option `bits` of pass `insert-fake-quant`: expected w8a8, w4a8 or w4a4, found w4a16"
        );
    }
}
