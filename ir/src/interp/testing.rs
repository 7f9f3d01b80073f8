//! Short ways to run one line in the tests of the operations.

use std::collections::BTreeMap;

use crate::{Shape, interp, interp::Tensor, text};

/// An input by its name.
pub(super) fn f32(name: &'static str, shape: impl Into<Shape>, elements: &[f32]) -> (&'static str, Tensor) {
    (name, Tensor::f32(shape, elements.to_vec()))
}

/// Runs a graph with one output.
pub(super) fn run(text: &str, inputs: &[(&'static str, Tensor)]) -> Result<Tensor, interp::InterpError> {
    let graph = text::parse(text).unwrap();
    let inputs: BTreeMap<String, Tensor> = inputs.iter().map(|(name, x)| ((*name).to_owned(), x.clone())).collect();
    let mut outputs = interp::run(&graph, &inputs)?;
    let output = outputs.pop_first().unwrap().1;
    output.check().unwrap();
    Ok(output)
}

fn line(line: &str, inputs: &[(&'static str, Tensor)]) -> String {
    let inputs: Vec<String> = inputs.iter().map(|(name, x)| format!("%{name}: {}", x.ty)).collect();
    format!("graph @g({}) -> (%y) {{ %y = {line} }}", inputs.join(", "))
}

/// The value of `%y = line`.
pub(super) fn y(text: &str, inputs: &[(&'static str, Tensor)]) -> Tensor {
    run(&line(text, inputs), inputs).unwrap()
}

/// The message that `%y = line` gives, when read or when run.
pub(super) fn error(text: &str, inputs: &[(&'static str, Tensor)]) -> String {
    match text::parse(&line(text, inputs)) {
        Ok(_) => run(&line(text, inputs), inputs).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}
