//! Demonstrations: observations, actions, weights of steps, and where episodes end.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    path::Path,
};

use super::{ArrayInfo, DataError, Npz, NumberType, RowReader};

/// Names of arrays, where they differ from the usual ones.
///
/// An input that is not named here is looked for under its own name, and the
/// only input of a model under `observations` as well. `actions`, `weights` and
/// `episode_ends` can be named too, unless the model has an input of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DemoMap {
    /// Name of a model input to name of an array.
    pub inputs: BTreeMap<String, String>,
}

/// Names that can be mapped beside those of inputs.
const BESIDE: [&str; 3] = ["actions", "weights", "episode_ends"];

impl DemoMap {
    /// Refuses names that are neither of the given inputs nor of what else is read:
    /// a slip would go unnoticed.
    pub fn check<'a>(&self, inputs: impl Iterator<Item = &'a str>) -> Result<(), DataError> {
        let inputs: Vec<&str> = inputs.collect();
        let unknown = |name: &&String| !inputs.contains(&name.as_str()) && !BESIDE.contains(&name.as_str());
        let Some((input, key)) = self.inputs.iter().find(|(name, _)| unknown(name)) else { return Ok(()) };
        let known = inputs.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Err(DataError::NoInput { input: input.clone(), key: key.clone(), known })
    }
}

/// One array of a set of demonstrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Model input that it feeds, or `actions`, or `weights`.
    pub name: String,
    /// Name of the array.
    pub key: String,
    /// Type and shape; the first axis counts steps.
    pub info: ArrayInfo,
}

/// A set of demonstrations, opened: nothing but headers and episode ends is in memory.
#[derive(Clone, Debug)]
pub struct Demos {
    npz: Npz,
    n_steps: usize,
    observations: Vec<Field>,
    actions: Option<Field>,
    weights: Option<Field>,
    episodes: Vec<Range<usize>>,
}

impl Demos {
    /// Opens demonstrations for a model with the given inputs: names and
    /// extents of one sample, without the batch axis.
    ///
    /// Extents of 1 do not matter. Actions, weights and episode ends may be
    /// missing: then [`Demos::actions`] and [`Demos::weights`] are `None` and
    /// everything is one episode.
    pub fn open(path: &Path, inputs: &[(&str, &[usize])], map: &DemoMap) -> Result<Self, DataError> {
        map.check(inputs.iter().map(|(name, _)| *name))?;
        let npz = Npz::open(path)?;
        let mut observations = Vec::new();
        for &(name, extents) in inputs {
            let key = key_of_input(&npz, name, inputs.len() == 1, map);
            let info = npz.info(key)?.clone();
            let row: Vec<usize> = info.shape.iter().skip(1).copied().collect();
            if info.shape.is_empty() || !same_extents(&row, extents) {
                let expected = format!("[steps, {}] for input `{name}`", list(extents));
                return Err(shape_error(&npz, key, &info, expected));
            }
            observations.push(Field { name: name.to_owned(), key: key.to_owned(), info });
        }
        let n_steps = observations.first().map_or(0, |field| field.info.n_rows());
        let expected = || format!("[{n_steps}, ..], one row a step");
        for field in &observations {
            if field.info.n_rows() != n_steps || n_steps == 0 {
                let expected = if n_steps == 0 { "[steps, ..] with at least one step".to_owned() } else { expected() };
                return Err(shape_error(&npz, &field.key, &field.info, expected));
            }
        }
        let is_input = |name: &str| inputs.iter().any(|(input, _)| *input == name);
        let named = |usual: &str| map.inputs.get(usual).filter(|_| !is_input(usual)).map(String::as_str);
        let beside = |usual: &str| -> Result<Option<Field>, DataError> {
            let Some(key) = optional_key(&npz, named(usual), usual)? else { return Ok(None) };
            let info = npz.info(key)?.clone();
            if info.n_rows() != n_steps {
                return Err(shape_error(&npz, key, &info, expected()));
            }
            Ok(Some(Field { name: usual.to_owned(), key: key.to_owned(), info }))
        };
        let actions = beside("actions")?;
        let weights = if is_input("weights") { None } else { beside("weights")? };
        if let Some(field) = weights.as_ref().filter(|field| field.info.row_len() != 1) {
            return Err(shape_error(&npz, &field.key, &field.info, format!("[{n_steps}], one weight a step")));
        }
        let episodes = match optional_key(&npz, named("episode_ends"), "episode_ends")? {
            Some(key) => read_episodes(&npz, key, n_steps)?,
            None => std::iter::once(0..n_steps).collect(),
        };
        Ok(Self { npz, n_steps, observations, actions, weights, episodes })
    }

    /// Steps of all episodes.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// The array behind each input, in the order of the inputs.
    pub fn observations(&self) -> &[Field] {
        &self.observations
    }

    /// The array of actions, if there is one.
    pub fn actions(&self) -> Option<&Field> {
        self.actions.as_ref()
    }

    /// The array with a weight for each step, if there is one.
    pub fn weights(&self) -> Option<&Field> {
        self.weights.as_ref()
    }

    /// Steps of each episode, in order, without gaps.
    pub fn episodes(&self) -> &[Range<usize>] {
        &self.episodes
    }

    /// The file, for arrays that are not demonstrations.
    pub fn npz(&self) -> &Npz {
        &self.npz
    }

    /// Streams one of [`Demos::observations`], [`Demos::actions`] or
    /// [`Demos::weights`]; NaN and infinite numbers are errors that name the step.
    pub fn stream(&self, field: &Field) -> Result<StepReader, DataError> {
        let rows = self.npz.rows(&field.key)?;
        let (path, key) = (self.npz.path().to_owned(), field.key.clone());
        Ok(StepReader { rows, path, key, episodes: self.episodes.clone() })
    }

    /// Steps `steps` of one array, row after row, checked like [`Demos::stream`].
    pub fn read(&self, field: &Field, steps: Range<usize>) -> Result<Vec<f32>, DataError> {
        if steps.start > steps.end || steps.end > self.n_steps {
            let (path, key) = (self.npz.path().to_owned(), field.key.clone());
            return Err(DataError::Range { path, key, n_rows: self.n_steps, start: steps.start, end: steps.end });
        }
        let mut reader = self.stream(field)?;
        reader.rows.skip(steps.start)?;
        let mut out = Vec::new();
        reader.next(steps.len(), &mut out)?;
        Ok(out)
    }
}

/// Streams steps and checks that every number is one that the model can take.
#[derive(Debug)]
pub struct StepReader {
    rows: RowReader,
    path: std::path::PathBuf,
    key: String,
    episodes: Vec<Range<usize>>,
}

impl StepReader {
    /// Appends up to `n_steps` steps; returns how many, 0 at the end.
    pub fn next(&mut self, n_steps: usize, out: &mut Vec<f32>) -> Result<usize, DataError> {
        let (first_row, old_len) = (self.rows.next_row(), out.len());
        let n = self.rows.next_f32(n_steps, out)?;
        let fresh = out.get(old_len..).unwrap_or_default();
        match fresh.iter().position(|x| !x.is_finite()) {
            None => Ok(n),
            Some(at) => {
                let row_len = self.rows.info().row_len().max(1);
                let row = first_row + at / row_len;
                let found = self.episodes.iter().enumerate().find(|(_, steps)| steps.contains(&row));
                let (episode, start) = found.map_or((0, 0), |(episode, steps)| (episode, steps.start));
                Err(DataError::NotFinite {
                    path: self.path.clone(),
                    key: self.key.clone(),
                    row,
                    episode,
                    step: row - start,
                    column: at % row_len,
                    value: fresh.get(at).copied().unwrap_or(f32::NAN).into(),
                })
            }
        }
    }

    /// Appends up to `n_steps` steps as integers; returns how many, 0 at the end.
    /// A fraction, or a number outside of `accepted`, is an error.
    pub fn next_ints(
        &mut self,
        n_steps: usize,
        accepted: RangeInclusive<i64>,
        out: &mut Vec<i64>,
    ) -> Result<usize, DataError> {
        let (first_row, row_len) = (self.rows.next_row(), self.rows.info().row_len().max(1));
        let wrong = |at: usize, value: f64| DataError::NotInteger {
            path: self.path.clone(),
            key: self.key.clone(),
            row: first_row + at / row_len,
            column: at % row_len,
            value,
            lo: *accepted.start(),
            hi: *accepted.end(),
        };
        let old_len = out.len();
        let n = match self.rows.info().ty {
            NumberType::F32 | NumberType::F64 => {
                let mut floats = Vec::new();
                let n = self.rows.next_f64(n_steps, &mut floats)?;
                for (at, &x) in floats.iter().enumerate() {
                    // Floats beyond 2^53 are no longer exact.
                    let whole = x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0;
                    out.push(if whole { x as i64 } else { return Err(wrong(at, x)) });
                }
                n
            }
            _ => self.rows.next_i64(n_steps, out)?,
        };
        let fresh = out.get(old_len..).unwrap_or_default();
        match fresh.iter().enumerate().find(|(_, x)| !accepted.contains(x)) {
            None => Ok(n),
            Some((at, &x)) => Err(wrong(at, x as f64)),
        }
    }
}

fn key_of_input<'a>(npz: &Npz, name: &'a str, only_input: bool, map: &'a DemoMap) -> &'a str {
    match map.inputs.get(name) {
        Some(key) => key,
        None if !npz.contains(name) && only_input && npz.contains("observations") => "observations",
        None => name,
    }
}

/// A key that the user named must exist, the usual one need not.
fn optional_key<'a>(npz: &Npz, named: Option<&'a str>, usual: &'a str) -> Result<Option<&'a str>, DataError> {
    match named {
        Some(key) => npz.info(key).map(|_| Some(key)),
        None => Ok(Some(usual).filter(|key| npz.contains(key))),
    }
}

fn same_extents(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|&&extent| extent != 1).eq(b.iter().filter(|&&extent| extent != 1))
}

fn list(extents: &[usize]) -> String {
    extents.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn shape_error(npz: &Npz, key: &str, info: &ArrayInfo, expected: String) -> DataError {
    DataError::Shape { path: npz.path().to_owned(), key: key.to_owned(), found: info.shape.clone(), expected }
}

fn read_episodes(npz: &Npz, key: &str, n_steps: usize) -> Result<Vec<Range<usize>>, DataError> {
    let info = npz.info(key)?;
    // Ends ascend, so there are no more of them than steps.
    if info.shape.len() != 1 || info.n_rows() == 0 || info.n_rows() > n_steps {
        return Err(shape_error(npz, key, info, format!("[episodes], 1 to {n_steps} of them")));
    }
    let ends = npz.read_i64(key, 0..info.n_rows())?;
    let error = |index: usize, found: i64| DataError::EpisodeEnds {
        path: npz.path().to_owned(),
        key: key.to_owned(),
        n_steps,
        index,
        found,
    };
    let mut episodes = Vec::with_capacity(ends.len());
    let mut start = 0;
    for (index, &found) in ends.iter().enumerate() {
        let end = usize::try_from(found).ok().filter(|&end| end > start && end <= n_steps);
        let end = end.ok_or_else(|| error(index, found))?;
        episodes.push(start..end);
        start = end;
    }
    match ends.last() {
        Some(&last) if start != n_steps => Err(error(ends.len() - 1, last)),
        _ => Ok(episodes),
    }
}
