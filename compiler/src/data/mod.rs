//! Demonstrations and recorded observations: reading and writing npz files.
//!
//! An npz file is a zip archive of `.npy` arrays. [`Npz`] opens one (or a folder
//! of `.npy` files, or a single one), [`RowReader`] streams rows of an array,
//! [`Demos`] joins the arrays of a set of demonstrations, [`NpzWriter`] writes.
//!
//! Files come from anywhere and are not trusted: every size in a header is
//! checked against the bytes that are there before anything is allocated, and
//! memory depends on how many rows are asked for, not on what a file claims.

mod archive;
mod demos;
mod error;
mod header;
mod npz;
mod rows;
mod summary;
mod write;

pub use demos::{DemoMap, Demos, Field, StepReader};
pub use error::DataError;
pub use header::{ArrayInfo, NumberType};
pub use npz::Npz;
pub use rows::RowReader;
pub use summary::{ArraySummary, Column, Episodes, Summary};
pub use write::{Element, NpzWriter, write_npz};
