//! What can be wrong with a data file.

use std::{io, path::PathBuf};

/// A data file that cannot be used. Each message names the file, the array
/// where there is one, what was found, and one way out.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a zip archive, or a broken one.
    #[error("`{}` is not a sound npz file: {what}; write it again with numpy.savez", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The array has a header that numpy would not write, or too few bytes.
    #[error("`{}`: array `{key}` is damaged: {what}; write it again with numpy", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// The elements are of a type that is not read.
    #[error(
        "`{}`: array `{key}` has elements of type {found}; \
         accepted are little-endian f4, f8, u1, i1, i2, i4, i8 and bool: convert with astype(numpy.float32)",
        path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// The type as numpy writes it.
        found: String,
    },
    /// Columns before rows.
    #[error(
        "`{}`: array `{key}` is stored in Fortran order; save numpy.ascontiguousarray({key}) instead",
        path.display()
    )]
    FortranOrder {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
    },
    /// No such array.
    #[error(
        "`{}` has no array `{key}`, only {}; name the array with --map INPUT=KEY",
        path.display(),
        if found.is_empty() { "none at all" } else { found.as_str() }
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The array asked for.
        key: String,
        /// The arrays there are.
        found: String,
    },
    /// An array is named for something that is not read.
    #[error(
        "the model has no input `{input}` to map array `{key}` to; its inputs are {known}, and `actions`, `weights` and \
         `episode_ends` can be mapped to as well"
    )]
    NoInput {
        /// The name.
        input: String,
        /// The array.
        key: String,
        /// Inputs that are read from data.
        known: String,
    },
    /// The array has another shape than the model needs.
    #[error("`{}`: array `{key}` has shape {found:?}, needed is {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// What fits.
        expected: String,
    },
    /// Rows that the array does not have.
    #[error("`{}`: array `{key}` has {n_rows} rows, asked for are {start}..{end}", path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Rows that there are.
        n_rows: usize,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
    },
    /// One call asked for more than fits.
    #[error(
        "`{}`: rows {start}..{end} of array `{key}` take more than {limit_mib} MiB at once; read fewer rows at a time",
        path.display()
    )]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// The most that one call returns.
        limit_mib: usize,
    },
    /// NaN or an infinite number.
    #[error(
        "`{}`: array `{key}` has {value} at row {row}, column {column}, which is step {step} of episode {episode}; \
         remove that step or repair the recording",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Episode of the row, from 0.
        episode: usize,
        /// Step within the episode, from 0.
        step: usize,
        /// First such row.
        row: usize,
        /// Column within the row, counted over all its elements.
        column: usize,
        /// The number.
        value: f64,
    },
    /// A number that an integer input cannot hold.
    #[error(
        "`{}`: array `{key}` has {value} at row {row}, column {column}, \
         and the model takes whole numbers from {lo} to {hi} there; record them as such",
        path.display()
    )]
    NotInteger {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// First such row.
        row: usize,
        /// Column within the row, counted over all its elements.
        column: usize,
        /// The number.
        value: f64,
        /// Smallest number that fits.
        lo: i64,
        /// Largest number that fits.
        hi: i64,
    },
    /// A weight that would drive the policy away from a step.
    #[error("`{}`: array `{key}` has {value} at row {row}; a weight is 0 or more", path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// First such row.
        row: usize,
        /// The number.
        value: f32,
    },
    /// Episode ends that do not ascend to the number of steps.
    #[error(
        "`{}`: array `{key}` must ascend and end at the number of steps, {n_steps}; entry {index} is {found}",
        path.display()
    )]
    EpisodeEnds {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Steps of the observations.
        n_steps: usize,
        /// Which entry.
        index: usize,
        /// Its value.
        found: i64,
    },
}
