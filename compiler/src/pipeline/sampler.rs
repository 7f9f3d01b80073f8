//! Which inputs and outputs of a denoising step its sampler uses.
//!
//! The user says what kind of sampler it is; names and shapes are guessed where
//! they are not given, and the guess is a note.

use std::collections::BTreeMap;

use qail_ir::{DType, Elem, Graph};
use qail_passes::sampler::{BetaSchedule, Diffusion, Prediction, Sampler, SamplerKind, Spacing};

use super::PipelineError;

/// Prefix of facts of a run that are about its sampler.
const SAMPLER: &str = "sampler:";
/// Names that a time goes by.
const TIMES: [&str; 7] = ["timestep", "timesteps", "time", "t", "k", "noise_level", "sigma"];
/// Names that a noisy sample goes by.
const SAMPLES: [&str; 6] = ["sample", "x", "x_t", "noisy_action", "noisy_actions", "noisy_trajectory"];

/// What the user said about the sampler, as it stands in `policy.toml`: numbers
/// and names by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplerChoice {
    /// Texts: `kind`, `sample`, `timestep`, `output`, `prediction`, `beta_schedule`, `spacing`.
    pub texts: BTreeMap<String, String>,
    /// Numbers: `steps`, `train_steps`, `beta_start`, `beta_end`, `clip` (0 for none), `start`, `end`.
    pub numbers: BTreeMap<String, f64>,
}

impl SamplerChoice {
    /// Keys with texts.
    pub const TEXTS: [&str; 7] = ["kind", "sample", "timestep", "output", "prediction", "beta_schedule", "spacing"];

    fn one_of<T: Copy>(&self, key: &str, default: Option<T>, known: &[(&str, T)]) -> Result<T, PipelineError> {
        let wrong = |found: &str| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Err(refused(format!("`{key}` of the sampler is {found}, must be one of {}", names.join(", "))))
        };
        match (self.texts.get(key), default) {
            (Some(text), _) => match known.iter().find(|(name, _)| name == text) {
                Some((_, value)) => Ok(*value),
                None => wrong(&format!("`{text}`")),
            },
            (None, Some(default)) => Ok(default),
            (None, None) => wrong("not given"),
        }
    }

    fn count(&self, key: &str, default: usize) -> Result<usize, PipelineError> {
        match self.numbers.get(key) {
            None => Ok(default),
            Some(&x) if x >= 1.0 && x == x.trunc() && x <= qail_ir::MAX_TURNS as f64 => Ok(x as usize),
            Some(x) => Err(refused(format!("`{key}` of the sampler is {x}, must be a whole number, 1 to 65536"))),
        }
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.numbers.get(key).copied().unwrap_or(default)
    }

    fn diffusion(&self) -> Result<Diffusion, PipelineError> {
        let (start, end) = (self.number("beta_start", 1e-4), self.number("beta_end", 0.02));
        let betas = [
            ("squaredcos_cap_v2", BetaSchedule::SquaredCosine),
            ("linear", BetaSchedule::Linear { start, end }),
            ("scaled_linear", BetaSchedule::ScaledLinear { start, end }),
        ];
        let spacings =
            [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let predictions =
            [("epsilon", Prediction::Epsilon), ("sample", Prediction::Sample), ("v_prediction", Prediction::Velocity)];
        let clip = self.number("clip", 1.0);
        if !(clip.is_finite() && clip >= 0.0) {
            return Err(refused(format!("`clip` of the sampler is {clip}, must be a number above 0, or 0 for none")));
        }
        Ok(Diffusion {
            train_steps: self.count("train_steps", 100)?,
            betas: self.one_of("beta_schedule", Some(BetaSchedule::SquaredCosine), &betas)?,
            spacing: self.one_of("spacing", Some(Spacing::Leading), &spacings)?,
            prediction: self.one_of("prediction", Some(Prediction::Epsilon), &predictions)?,
            clip: (clip > 0.0).then_some(clip),
        })
    }

    /// The sampler of a model, and a note if names were guessed.
    ///
    /// # Errors
    /// Keys outside of their range, names that the model does not have, and
    /// models that leave the choice open.
    pub(super) fn resolve(&self, graph: &Graph) -> Result<(Sampler, Option<String>), PipelineError> {
        #[derive(Clone, Copy)]
        enum Kind {
            Ddim,
            Ddpm,
            Flow,
        }
        let kinds = [("ddim", Kind::Ddim), ("ddpm", Kind::Ddpm), ("flow-euler", Kind::Flow)];
        let kind = self.one_of("kind", None, &kinds)?;
        let (kind, steps) = match kind {
            Kind::Ddim => (SamplerKind::Ddim(self.diffusion()?), 10),
            Kind::Ddpm => {
                let diffusion = self.diffusion()?;
                (SamplerKind::Ddpm(diffusion), diffusion.train_steps)
            }
            Kind::Flow => {
                let (start, end) = (self.number("start", 1.0), self.number("end", 0.0));
                (SamplerKind::FlowEuler { start, end }, 10)
            }
        };
        let (output, sample) = self.pair(graph)?;
        let timestep = self.time(graph, &sample)?;
        let is_guessed = ["sample", "timestep", "output"].iter().any(|key| !self.texts.contains_key(*key));
        let note = format!("the sampler denoises `{sample}` with `{output}`, which is told the time as `{timestep}`");
        let action = if graph.input_named("action").is_none() { "action" } else { "sampled.action" }.to_owned();
        let steps = self.count("steps", steps)?;
        let sampler = Sampler { kind, steps, sample, timestep, output, action };
        sampler.check(graph).map_err(|error| refused(error.to_string()))?;
        Ok((sampler, is_guessed.then_some(note)))
    }

    /// Output and input of one type: the prediction and the noisy sample.
    fn pair(&self, graph: &Graph) -> Result<(String, String), PipelineError> {
        let is_meant = |key: &str, name: &str| self.texts.get(key).is_none_or(|named| named == name);
        let mut pairs = Vec::new();
        for output in graph.outputs.iter().filter(|output| is_meant("output", &output.name)) {
            for &id in graph.inputs() {
                let name = &graph.node(id).name;
                let fits = graph.ty(output.value).is_f32() && graph.ty(output.value) == graph.ty(id.value());
                if fits && is_meant("sample", name) && graph.state_of_input(name).is_none() {
                    pairs.push((output.name.clone(), name.clone()));
                }
            }
        }
        let by_name = pairs.iter().find(|(_, input)| SAMPLES.contains(&input.as_str())).cloned();
        match &pairs[..] {
            [pair] => Ok(pair.clone()),
            [] => Err(refused(
                "no input has the type of an output, so nothing can be denoised; name them with `sample` and `output` \
                 of [sampler]"
                    .to_owned(),
            )),
            [..] => by_name.ok_or_else(|| {
                let list: Vec<String> = pairs.iter().map(|(y, x)| format!("`{x}` with `{y}`")).collect();
                refused(format!(
                    "it is not clear what is denoised: {}; say so with `sample` and `output` of [sampler]",
                    list.join(", ")
                ))
            }),
        }
    }

    /// The input with one number a sample.
    fn time(&self, graph: &Graph, sample: &str) -> Result<String, PipelineError> {
        if let Some(name) = self.texts.get("timestep") {
            return Ok(name.clone());
        }
        let fitting: Vec<&str> = graph
            .inputs()
            .iter()
            .filter(|&&id| {
                let ty = graph.ty(id.value());
                let is_number = matches!(ty.elem, Elem::Plain(DType::F32 | DType::I32 | DType::I64));
                is_number && ty.n_elements() == graph.batch_size() && graph.node(id).name != sample
            })
            .map(|&id| graph.node(id).name.as_str())
            .collect();
        match fitting[..] {
            [only] => Ok(only.to_owned()),
            _ => TIMES.iter().find(|name| fitting.contains(name)).map(|name| (*name).to_owned()).ok_or_else(|| {
                refused("it is not clear which input is the time; name it with `timestep` of [sampler]".to_owned())
            }),
        }
    }

    /// The choice as facts of a run.
    pub(super) fn to_facts(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let texts = self.texts.iter().map(|(key, text)| (format!("{SAMPLER}{key}"), text.clone()));
        let numbers = self.numbers.iter().map(|(key, x)| (format!("{SAMPLER}{key}"), format!("{x:?}")));
        texts.chain(numbers)
    }

    /// The choice in the facts of a run, if there was a sampler.
    pub(super) fn from_facts(facts: &BTreeMap<String, String>) -> Option<Self> {
        let mut choice = Self::default();
        for (key, value) in facts.iter().filter_map(|(name, value)| Some((name.strip_prefix(SAMPLER)?, value))) {
            if Self::TEXTS.contains(&key) {
                choice.texts.insert(key.to_owned(), value.clone());
            } else if let Ok(x) = value.parse() {
                choice.numbers.insert(key.to_owned(), x);
            }
        }
        (choice != Self::default()).then_some(choice)
    }
}

fn refused(what: String) -> PipelineError {
    PipelineError::Sampler { what }
}

#[cfg(test)]
mod tests {
    use qail_ir::text;

    use super::*;

    fn choice(texts: &[(&str, &str)], numbers: &[(&str, f64)]) -> SamplerChoice {
        SamplerChoice {
            texts: texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect(),
            numbers: numbers.iter().map(|(key, x)| ((*key).to_owned(), *x)).collect(),
        }
    }

    fn resolve(inputs: &str, outputs: &str, choice: &SamplerChoice) -> Result<Sampler, String> {
        let graph = text::parse(&format!("graph @g({inputs}) -> ({outputs}) {{batch = 0}} {{ }}")).unwrap();
        choice.resolve(&graph).map(|(sampler, _)| sampler).map_err(|error| error.to_string())
    }

    const INPUTS: &str = "%x: f32[1, 4, 2], %t: i64[1], %obs: f32[1, 3]";

    #[test]
    fn names_are_guessed_from_types() {
        let sampler = resolve(INPUTS, "eps = %x", &choice(&[("kind", "ddim")], &[])).unwrap();
        assert_eq!((sampler.sample.as_str(), sampler.timestep.as_str(), sampler.output.as_str()), ("x", "t", "eps"));
        assert_eq!((sampler.steps, sampler.action.as_str()), (10, "action"));
        let ddpm = resolve(INPUTS, "eps = %x", &choice(&[("kind", "ddpm")], &[("train_steps", 50.0)])).unwrap();
        assert_eq!(ddpm.steps, 50);
    }

    #[test]
    fn what_is_not_clear_or_wrong_is_said() {
        let ddim = || choice(&[("kind", "ddim")], &[]);
        let two = "%a: f32[1, 4], %b: f32[1, 4], %t: i64[1]";
        assert!(resolve(two, "eps = %a", &ddim()).unwrap_err().contains("not clear what is denoised"));
        assert!(resolve("%a: f32[1, 3], %t: i64[1]", "%t", &ddim()).unwrap_err().contains("no input has the type"));
        let times = "%x: f32[1, 4], %a: i64[1], %b: i64[1]";
        assert!(resolve(times, "eps = %x", &ddim()).unwrap_err().contains("which input is the time"));
        let message = resolve(INPUTS, "eps = %x", &choice(&[], &[])).unwrap_err();
        assert!(message.contains("`kind` of the sampler is not given, must be one of ddim"), "{message}");
        let message = resolve(INPUTS, "eps = %x", &choice(&[("kind", "ddim")], &[("steps", 2.5)])).unwrap_err();
        assert!(message.contains("`steps` of the sampler is 2.5"), "{message}");
        let flow = choice(&[("kind", "flow-euler")], &[]);
        assert!(resolve(INPUTS, "eps = %x", &flow).unwrap_err().contains("must be one f32 a sample"));
    }

    #[test]
    fn a_choice_is_a_fact_of_a_run() {
        let choice = choice(&[("kind", "ddim"), ("sample", "x")], &[("steps", 16.0), ("clip", 0.0)]);
        let facts: BTreeMap<String, String> = choice.to_facts().collect();
        assert_eq!(SamplerChoice::from_facts(&facts), Some(choice));
        assert_eq!(SamplerChoice::from_facts(&BTreeMap::new()), None);
    }
}
