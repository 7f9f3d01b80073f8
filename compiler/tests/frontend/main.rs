//! Models in, graphs out: real policies against reference outputs, each
//! operator in each of its forms, and files that mean harm.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests.

mod folder;
mod hostile;
mod layers;
mod models;
mod node_cases;
mod onnxruntime;
mod ops;
mod policies;
mod quantized;
mod requests;
