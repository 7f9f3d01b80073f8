//! What is in a recording: types, ranges, and what looks wrong.
//!
//! One pass over every array, memory for one portion and for the columns.

use std::path::Path;

use serde::Serialize;

use super::{DataError, Npz};

/// Rows read at a time.
const BLOCK: usize = 256;
/// Wider rows, images for example, are summed up as one column.
const MAX_COLUMNS: usize = 1024;

/// What is in a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Arrays, by name.
    pub arrays: Vec<ArraySummary>,
    /// Episodes, if the recording says where they end.
    pub episodes: Option<Episodes>,
}

/// One array.
#[derive(Clone, Debug, Serialize)]
pub struct ArraySummary {
    /// Its name.
    pub key: String,
    /// Element type as numpy names it.
    pub dtype: String,
    /// Its shape; the first axis counts rows.
    pub shape: Vec<usize>,
    /// NaN.
    pub n_nan: u64,
    /// Infinite numbers.
    pub n_infinite: u64,
    /// Columns, or all of them together if a row is wide.
    pub columns: Vec<Column>,
}

/// Finite numbers of one column over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Column {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// All the same, or none at all.
    pub constant: bool,
}

/// Lengths of episodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Episodes {
    /// How many.
    pub n: usize,
    /// Steps of the shortest one that is not empty.
    pub shortest: usize,
    /// Steps of the longest.
    pub longest: usize,
    /// Indices of episodes without steps, or whose end lies before their start.
    pub empty: Vec<usize>,
    /// Indices of episodes of one step.
    pub one_step: Vec<usize>,
}

impl Summary {
    /// Reads a recording.
    ///
    /// # Errors
    /// Files that are no recordings, or damaged ones. NaN is none: it is counted.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let npz = Npz::open(path)?;
        let keys: Vec<String> = npz.keys().map(str::to_owned).collect();
        let arrays: Vec<ArraySummary> = keys.iter().map(|key| array(&npz, key)).collect::<Result<_, _>>()?;
        let episodes = match npz.contains("episode_ends") {
            true => Some(episodes(&npz.read_i64("episode_ends", 0..npz.info("episode_ends")?.n_rows())?)),
            false => None,
        };
        Ok(Self { arrays, episodes })
    }

    /// What should be looked at before training, one sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for array in &self.arrays {
            let key = &array.key;
            if array.n_nan + array.n_infinite > 0 {
                let (nan, infinite) = (array.n_nan, array.n_infinite);
                remarks.push(format!("`{key}` has {nan} NaN and {infinite} infinite numbers, which no model takes: remove those steps or repair the recording"));
            }
            let constant: Vec<String> = array
                .columns
                .iter()
                .enumerate()
                .filter(|(_, column)| column.constant && array.columns.len() > 1)
                .map(|(index, _)| index.to_string())
                .collect();
            if !constant.is_empty() {
                remarks.push(format!("columns {} of `{key}` never change", constant.join(", ")));
            }
        }
        let list = |episodes: &[usize]| {
            let shown: Vec<String> = episodes.iter().take(10).map(usize::to_string).collect();
            format!("{}{}", shown.join(", "), if episodes.len() > 10 { ", .." } else { "" })
        };
        match &self.episodes {
            None => remarks.push("there is no `episode_ends`: all steps count as one episode".to_owned()),
            Some(episodes) => {
                if !episodes.empty.is_empty() {
                    remarks.push(format!("episodes {} have no steps", list(&episodes.empty)));
                }
                if !episodes.one_step.is_empty() {
                    remarks.push(format!("episodes {} have one step", list(&episodes.one_step)));
                }
                if episodes.n == 1 {
                    remarks.push("there is one episode: nothing can be held out to judge on".to_owned());
                }
            }
        }
        remarks
    }
}

fn array(npz: &Npz, key: &str) -> Result<ArraySummary, DataError> {
    let mut rows = npz.rows(key)?;
    let info = rows.info().clone();
    let row_len = info.row_len();
    let n_columns = if row_len > MAX_COLUMNS { 1 } else { row_len };
    let mut sums = vec![Sums::default(); n_columns];
    let (mut n_nan, mut n_infinite) = (0, 0);
    let mut block = Vec::new();
    loop {
        block.clear();
        if rows.next_f64(BLOCK, &mut block)? == 0 {
            break;
        }
        for row in block.chunks(row_len.max(1)) {
            for (index, &x) in row.iter().enumerate() {
                if x.is_nan() {
                    n_nan += 1;
                } else if x.is_infinite() {
                    n_infinite += 1;
                } else if let Some(sums) = sums.get_mut(index % n_columns.max(1)) {
                    sums.add(x);
                }
            }
        }
    }
    let columns = sums.iter().map(Sums::column).collect();
    Ok(ArraySummary {
        key: key.to_owned(),
        dtype: info.ty.name().to_owned(),
        shape: info.shape,
        n_nan,
        n_infinite,
        columns,
    })
}

/// Numbers of one column, one after the other (Welford 1962).
#[derive(Clone, Copy, Default)]
struct Sums {
    n: u64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Sums {
    fn add(&mut self, x: f64) {
        if self.n == 0 {
            (self.min, self.max) = (x, x);
        }
        self.n += 1;
        let difference = x - self.mean;
        self.mean += difference / self.n as f64;
        self.squares += difference * (x - self.mean);
        (self.min, self.max) = (self.min.min(x), self.max.max(x));
    }

    fn column(&self) -> Column {
        let std = (self.squares / self.n.max(1) as f64).sqrt();
        Column { min: self.min, max: self.max, mean: self.mean, std, constant: self.min == self.max }
    }
}

fn episodes(ends: &[i64]) -> Episodes {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let lens: Vec<i64> = ends.iter().zip(starts).map(|(end, start)| end.saturating_sub(start)).collect();
    let which = |fits: fn(i64) -> bool| -> Vec<usize> {
        lens.iter().enumerate().filter(|(_, len)| fits(**len)).map(|(index, _)| index).collect()
    };
    let sound = || lens.iter().filter(|len| **len > 0).map(|len| usize::try_from(*len).unwrap_or(usize::MAX));
    Episodes {
        n: ends.len(),
        shortest: sound().min().unwrap_or(0),
        longest: sound().max().unwrap_or(0),
        empty: which(|len| len <= 0),
        one_step: which(|len| len == 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_numbers() {
        let mut sums = Sums::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|x| sums.add(x));
        let column = sums.column();
        assert_eq!((column.min, column.max, column.mean, column.constant), (1.0, 6.0, 3.0, false));
        assert!((column.std - 3.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn episodes_that_cannot_be_are_listed() {
        let found = episodes(&[5, 5, 6, 20, 10]);
        assert_eq!(found, Episodes { n: 5, shortest: 1, longest: 14, empty: vec![1, 4], one_step: vec![2] });
    }
}
