//! `policy.toml`: what an ONNX file cannot say about a policy.
//!
//! ```toml
//! [policy]
//! head = "gaussian"                      # deterministic | gaussian
//! outputs = { mean = "mu", log_std = "log_std" }
//! control_rate_hz = 50
//! state = [{ in = "h", out = "h_next" }] # kept from step to step; guessed if absent, [] for none
//! [chunk]                                # the output holds the actions of several steps
//! length = 100                           # as many as there are in the output
//! execute = 50                           # before the next chunk is computed; default: all
//! # ensemble = 0.01                      # or: a chunk in every step, and their weighed mean
//! [sampler]                              # the model is one step of denoising
//! kind = "ddim"                          # ddim | ddpm | flow-euler
//! steps = 10
//! # sample, timestep, output: names, guessed; prediction = "epsilon" | "sample" | "v_prediction";
//! # train_steps = 100, beta_schedule = "squaredcos_cap_v2" | "linear" | "scaled_linear", beta_start, beta_end,
//! # spacing = "leading" | "trailing" | "linspace", clip = 1.0 (0: none); of flows start = 1.0, end = 0.0
//! [stages]                               # later models read outputs of earlier ones
//! then = ["denoise.onnx"]                # behind the model that is compiled
//! wires = { cond = "features" }          # input of a stage = output before it; equal names need none
//! [actions]
//! bounds = [[-1, 1], [-0.5, 0.5]]        # one pair an action, or one for all
//! [map]
//! obs = "observation.state"              # input of the model = array of the data
//! weights = "importance"                 # so can actions, weights and episode_ends be named
//! ```
//! A key that is not known is refused with the nearest one that is; tables of
//! later versions are refused by name, never skipped.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::{
    files::read_text,
    pipeline::{ChunkChoice, HeadChoice, HeadKind, SamplerChoice, StateChoice},
};

/// The most that is read of a file.
const MAX_BYTES: u64 = 1 << 20;
/// Tables and the keys that they may have; true if this version uses the key.
const KNOWN: [(&str, &[(&str, bool)]); 7] = [
    ("policy", &[("head", true), ("outputs", true), ("state", true), ("control_rate_hz", true)]),
    ("chunk", &[("length", true), ("execute", true), ("ensemble", true)]),
    (
        "sampler",
        &[
            ("kind", true),
            ("steps", true),
            ("sample", true),
            ("timestep", true),
            ("output", true),
            ("prediction", true),
            ("train_steps", true),
            ("beta_schedule", true),
            ("beta_start", true),
            ("beta_end", true),
            ("spacing", true),
            ("clip", true),
            ("start", true),
            ("end", true),
        ],
    ),
    ("observations", &[]),
    ("stages", &[("then", true), ("wires", true)]),
    ("actions", &[("bounds", true), ("unnormalize", false)]),
    ("map", &[]),
];
/// Tables that this version uses.
const USED: [&str; 6] = ["policy", "chunk", "sampler", "stages", "actions", "map"];
/// Heads that this version does not train.
const LATER_HEADS: [&str; 5] = ["tanh-gaussian", "beta", "mixture", "categorical", "bins"];

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// What is known about the head.
    pub head: HeadChoice,
    /// Rate of the control loop in Hz.
    pub control_rate_hz: Option<f64>,
    /// Chunks of actions, if there are any.
    pub chunk: Option<ChunkChoice>,
    /// The loop around a denoising step, if the model is one.
    pub sampler: Option<SamplerChoice>,
    /// What is kept from step to step; guessed if nothing is said.
    pub states: Option<StateChoice>,
    /// Models behind the first one; relative paths are those of the file.
    pub then: Vec<PathBuf>,
    /// Input of a later stage to output of an earlier one, where names differ.
    pub wires: BTreeMap<String, String>,
    /// Smallest and largest action: one pair an action, or one for all.
    pub bounds: Vec<(f64, f64)>,
    /// Input of the model to array of the data.
    pub map: BTreeMap<String, String>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Too large to be one.
    #[error("`{}` has more than {MAX_BYTES} bytes", path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML.
    #[error("`{}` is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key that nobody knows.
    #[error("`{}` has the key `{key}`, which is not known{}", path.display(), match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    })]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// A key that looks like it.
        nearest: Option<String>,
    },
    /// A key of a later version.
    #[error("`{}`: `{key}` is not supported by this version; leave it out if the policy works without", path.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value of another kind.
    #[error("`{}`: `{key}` must be {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is accepted.
        expected: &'static str,
    },
}

/// The file that is meant: the one that was named, or `policy.toml` beside the
/// model if there is one.
pub fn find(named: Option<&Path>, model: &Path) -> Option<PathBuf> {
    match named {
        Some(path) => Some(path.to_owned()),
        None => Some(model.with_file_name("policy.toml")).filter(|path| path.is_file()),
    }
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.to_owned(), source };
        let text = read_text(path, MAX_BYTES).map_err(failed)?;
        Self::parse(path, &text.ok_or_else(|| PolicyError::Large { path: path.to_owned() })?)
    }

    /// Reads a text; the path is for messages.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let file = File { path };
        let tables: Table =
            text.parse().map_err(|source| PolicyError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        let mut policy = Self::default();
        for (table, content) in &tables {
            let Some((_, keys)) = KNOWN.iter().find(|(known, _)| known == table) else {
                return Err(file.unknown(table, KNOWN.iter().map(|(known, _)| (*known).to_owned())));
            };
            if !USED.contains(&table.as_str()) {
                return Err(file.later(table));
            }
            let content = content.as_table().ok_or_else(|| file.wrong(table, "a table"))?;
            if table == "chunk" {
                // An empty table says that there are chunks.
                policy.chunk = Some(ChunkChoice::default());
            }
            if table == "sampler" {
                policy.sampler = Some(SamplerChoice::default());
            }
            for (key, value) in content {
                let full = format!("{table}.{key}");
                if table == "map" {
                    policy.map.insert(key.clone(), file.text(&full, value)?);
                    continue;
                }
                match keys.iter().find(|(known, _)| known == key) {
                    None => return Err(file.unknown(&full, keys.iter().map(|(known, _)| format!("{table}.{known}")))),
                    Some((_, false)) => return Err(file.later(&full)),
                    Some((_, true)) => policy.take(&file, &full, value)?,
                }
            }
        }
        Ok(policy)
    }

    fn chunk(&mut self) -> &mut ChunkChoice {
        self.chunk.get_or_insert_default()
    }

    fn take(&mut self, file: &File<'_>, key: &str, value: &Value) -> Result<(), PolicyError> {
        match key {
            "policy.head" => {
                let name = file.text(key, value)?;
                self.head.kind = Some(match name.as_str() {
                    "deterministic" => HeadKind::Deterministic,
                    "gaussian" => HeadKind::Gaussian,
                    later if LATER_HEADS.contains(&later) => return Err(file.later(&format!("head = {later}"))),
                    _ => return Err(file.wrong(key, "deterministic or gaussian")),
                });
            }
            "policy.outputs" => {
                let outputs = value.as_table().ok_or_else(|| file.wrong(key, "a table of output names"))?;
                for (part, name) in outputs {
                    let full = format!("{key}.{part}");
                    if !["action", "mean", "log_std"].contains(&part.as_str()) {
                        let known = ["action", "mean", "log_std"].map(|part| format!("{key}.{part}"));
                        return Err(file.unknown(&full, known.into_iter()));
                    }
                    self.head.outputs.insert(part.clone(), file.text(&full, name)?);
                }
            }
            "policy.control_rate_hz" => {
                let rate = number(value).filter(|rate| rate.is_finite() && *rate > 0.0);
                self.control_rate_hz = Some(rate.ok_or_else(|| file.wrong(key, "a number above 0"))?);
            }
            "policy.state" => {
                let states = states(value);
                self.states = Some(states.ok_or_else(|| file.wrong(key, "a list of { in = \"..\", out = \"..\" }"))?);
            }
            _ if key.starts_with("sampler.") => {
                let key_alone = key.trim_start_matches("sampler.");
                let sampler = self.sampler.get_or_insert_default();
                if SamplerChoice::TEXTS.contains(&key_alone) {
                    sampler.texts.insert(key_alone.to_owned(), file.text(key, value)?);
                } else {
                    let x = number(value).filter(|x| x.is_finite());
                    let x = x.ok_or_else(|| file.wrong(key, "a number"))?;
                    sampler.numbers.insert(key_alone.to_owned(), x);
                }
            }
            "stages.then" => {
                let names = value.as_array().map(|names| names.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
                let names = names.flatten().ok_or_else(|| file.wrong(key, "a list of file names"))?;
                let folder = file.path.parent().unwrap_or(Path::new(""));
                self.then = names.into_iter().map(|name| folder.join(name)).collect();
            }
            "stages.wires" => {
                let wires = value.as_table().ok_or_else(|| file.wrong(key, "a table of input = \"output\""))?;
                for (input, output) in wires {
                    self.wires.insert(input.clone(), file.text(&format!("{key}.{input}"), output)?);
                }
            }
            "chunk.length" => self.chunk().length = Some(count(value).ok_or_else(|| file.wrong(key, COUNT))?),
            "chunk.execute" => self.chunk().execute = Some(count(value).ok_or_else(|| file.wrong(key, COUNT))?),
            "chunk.ensemble" => {
                let m = number(value).filter(|m| m.is_finite());
                self.chunk().ensemble = Some(m.ok_or_else(|| file.wrong(key, "a number"))?);
            }
            _ => self.bounds = bounds(value).ok_or_else(|| file.wrong(key, "pairs [low, high] with low below high"))?,
        }
        Ok(())
    }
}

/// What a number of actions must be.
const COUNT: &str = "a whole number above 0";

fn count(value: &Value) -> Option<usize> {
    value.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
}

/// Pairs of an input and an output; the list may be empty.
fn states(value: &Value) -> Option<StateChoice> {
    let pairs = value.as_array()?.iter().map(|pair| {
        let pair = pair.as_table().filter(|pair| pair.len() == 2)?;
        let name = |key: &str| pair.get(key)?.as_str().map(str::to_owned);
        Some((name("in")?, name("out")?))
    });
    pairs.collect::<Option<Vec<_>>>().map(|pairs| StateChoice { pairs })
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|x| x as f64))
}

fn bounds(value: &Value) -> Option<Vec<(f64, f64)>> {
    let pairs = value.as_array()?;
    let pair = |pair: &Value| match pair.as_array()?.as_slice() {
        [low, high] => Some((number(low)?, number(high)?)).filter(|(low, high)| low < high),
        _ => None,
    };
    pairs.iter().map(pair).collect::<Option<Vec<_>>>().filter(|pairs| !pairs.is_empty())
}

struct File<'a> {
    path: &'a Path,
}

impl File<'_> {
    fn text(&self, key: &str, value: &Value) -> Result<String, PolicyError> {
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a text in quotes"))
    }

    fn wrong(&self, key: &str, expected: &'static str) -> PolicyError {
        PolicyError::Value { path: self.path.to_owned(), key: key.to_owned(), expected }
    }

    fn later(&self, key: &str) -> PolicyError {
        PolicyError::Later { path: self.path.to_owned(), key: key.to_owned() }
    }

    fn unknown(&self, key: &str, known: impl Iterator<Item = String>) -> PolicyError {
        let near = known.map(|known| (distance(key, &known), known)).min();
        let nearest = near.filter(|(distance, known)| *distance <= known.len().div_ceil(2)).map(|(_, known)| known);
        PolicyError::Unknown { path: self.path.to_owned(), key: key.chars().take(80).collect(), nearest }
    }
}

/// Insertions, deletions and replacements that make one text of the other
/// (Levenshtein 1966), of at most 80 characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(80).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        Policy::parse(Path::new("policy.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_known_is_read() {
        let policy = parse(
            "[policy]\nhead = \"gaussian\"\noutputs = { mean = \"mu\" }\ncontrol_rate_hz = 50\n\
             [chunk]\nlength = 100\nexecute = 50\nensemble = 1\n[actions]\nbounds = [[-1, 1], [0, 0.5]]\n[map]\nobs = \"observation.state\"",
        )
        .unwrap();
        assert_eq!(policy.head.kind, Some(HeadKind::Gaussian));
        assert_eq!(policy.head.outputs["mean"], "mu");
        assert_eq!(policy.control_rate_hz, Some(50.0));
        let chunk = ChunkChoice { length: Some(100), execute: Some(50), ensemble: Some(1.0) };
        assert_eq!(policy.chunk, Some(chunk));
        assert_eq!(parse("[chunk]").unwrap().chunk, Some(ChunkChoice::default()));
        assert_eq!(policy.bounds, [(-1.0, 1.0), (0.0, 0.5)]);
        assert_eq!(policy.map["obs"], "observation.state");
        assert_eq!(parse("").unwrap(), Policy::default());
    }

    #[test]
    fn a_slip_is_met_with_the_nearest_key() {
        let message = parse("[policy]\nhaed = \"gaussian\"").unwrap_err();
        assert!(message.contains("`policy.haed`") && message.contains("did you mean `policy.head`?"), "{message}");
        assert!(parse("[polcy]").unwrap_err().contains("did you mean `policy`?"));
        assert!(!parse("[something_else_altogether]").unwrap_err().contains("did you mean"));
    }

    #[test]
    fn later_features_are_refused_by_name() {
        for (text, name) in [
            ("[observations]\nlayout = 1", "`observations`"),
            ("[actions]\nunnormalize = {}", "`actions.unnormalize`"),
            ("[policy]\nhead = \"beta\"", "`head = beta`"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(name) && message.contains("not supported"), "{message}");
        }
    }

    #[test]
    fn values_of_another_kind_are_refused() {
        for text in [
            "[policy]\nhead = 3",
            "[policy]\nhead = \"other\"",
            "[policy]\ncontrol_rate_hz = -1",
            "[policy]\nstate = 1",
            "[policy]\nstate = [{ in = \"h\" }]",
            "[sampler]\nkind = 1",
            "[sampler]\nsteps = \"ten\"",
            "[stages]\nthen = \"b.onnx\"",
            "[stages]\nthen = [1]",
            "[stages]\nwires = [\"a\"]",
            "[actions]\nbounds = [[1, -1]]",
            "[actions]\nbounds = []",
            "[map]\nobs = 1",
            "[chunk]\nlength = 0",
            "[chunk]\nlength = 2.5",
            "[chunk]\nexecute = -1",
            "[chunk]\nensemble = nan",
            "[chunk]\nensemble = true",
            "chunk = 3",
            "policy = 3",
            "[policy",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
