//! What the outputs of a policy mean. Whoever knows the user's words and the
//! recorded actions chooses; nothing is guessed here.

use std::fmt;

use qail_ir::{Graph, TensorType, ValueId};

use super::LossError;

/// What the outputs of a policy mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The action itself, of any shape: chunks of actions too.
    Deterministic {
        /// Name of the output.
        output: String,
    },
    /// Mean and logarithm of the standard deviation of independent Gaussians.
    Gaussian {
        /// Name of the output with the means.
        mean: String,
        /// Name of the output with the logarithms; its shape is that of the
        /// means or broadcasts to it.
        log_std: String,
    },
}

impl Head {
    /// Name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Deterministic { .. } => "deterministic",
            Self::Gaussian { .. } => "gaussian",
        }
    }

    /// Names of the outputs that it is made of, the action or its mean first.
    pub fn outputs(&self) -> Vec<&str> {
        match self {
            Self::Deterministic { output } => vec![output],
            Self::Gaussian { mean, log_std } => vec![mean, log_std],
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outputs: Vec<String> = self.outputs().into_iter().map(|name| format!("`{name}`")).collect();
        write!(f, "{} ({})", self.name(), outputs.join(", "))
    }
}

/// Output `name`, which is `f32`.
pub(super) fn output(graph: &Graph, name: &str) -> Result<ValueId, LossError> {
    let found = graph.outputs.iter().find(|output| output.name == name);
    let value = found.ok_or_else(|| LossError::NoOutput { name: name.to_owned(), known: known(graph) })?.value;
    let ty: &TensorType = graph.ty(value);
    if ty.is_f32() {
        return Ok(value);
    }
    Err(LossError::Output { name: name.to_owned(), found: ty.clone(), expected: "f32" })
}

fn known(graph: &Graph) -> String {
    let all: Vec<String> =
        graph.outputs.iter().map(|output| format!("`{}` {}", output.name, graph.ty(output.value))).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
