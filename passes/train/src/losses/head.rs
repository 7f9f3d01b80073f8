//! What the outputs of a policy mean.

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

const MEANS: [&str; 4] = ["mean", "mu", "loc", "action_mean"];
const LOG_STDS: [&str; 5] = ["log_std", "logstd", "log_sigma", "log_scale", "action_log_std"];
const ACTIONS: [&str; 6] = ["action", "actions", "act", "a", "action_pred", "actions_pred"];

impl Head {
    /// The head that names and types of the outputs suggest: a mean with a
    /// `log_std` is Gaussian; otherwise the only output, or the only one with
    /// the name of an action, is the action. The caller tells the user.
    ///
    /// # Errors
    /// If no output or several could be the action.
    pub fn guess(graph: &Graph) -> Result<Self, LossError> {
        let named = |names: &[&str]| {
            let mut found = graph.outputs.iter().filter(|output| {
                let name = output.name.to_lowercase();
                names.contains(&name.as_str()) && graph.ty(output.value).is_f32()
            });
            found.next().filter(|_| found.next().is_none()).map(|output| (output.name.clone(), output.value))
        };
        let same_shape = |a: ValueId, b: ValueId| graph.ty(a) == graph.ty(b);
        match (named(&MEANS), named(&LOG_STDS)) {
            (Some((mean, a)), Some((log_std, b))) if same_shape(a, b) => return Ok(Self::Gaussian { mean, log_std }),
            _ => {}
        }
        match (&graph.outputs[..], named(&ACTIONS)) {
            ([only], _) if graph.ty(only.value).is_f32() => Ok(Self::Deterministic { output: only.name.clone() }),
            (_, Some((output, _))) => Ok(Self::Deterministic { output }),
            _ => Err(LossError::NoHead { known: known(graph) }),
        }
    }

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
