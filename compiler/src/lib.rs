//! The compiler as a library: what the command line is made of.

pub mod cli;
pub mod data;
pub mod elements;
pub mod eval;
pub mod export;
pub mod files;
pub mod frontend;
pub mod pipeline;
pub mod policy;
pub mod qir;
pub mod report;
