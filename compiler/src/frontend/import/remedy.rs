//! What to say about an operator that is not known.

use super::super::{error::shown, proto::NodeProto};

/// Why the operator of `node` blocks an import, and what to do about it.
pub(super) fn unknown_operator(node: &NodeProto) -> (String, String) {
    let (reason, remedy) = match node.op_type.as_str() {
        _ if !node.domain.is_empty() && node.domain != "ai.onnx" => {
            let reason = format!("operators of the domain `{}` are not supported", shown(&node.domain));
            return (reason, "export with standard ONNX operators only".to_owned());
        }
        "If" | "Loop" | "Scan" => {
            ("control flow is not supported", "export by tracing with fixed conditions, or unroll the loop")
        }
        _ if node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) => {
            ("control flow is not supported", "export by tracing with fixed conditions, or unroll the loop")
        }
        "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike" | "Multinomial" | "Bernoulli" => (
            "random numbers are not supported",
            "name a deterministic output with --output, the random branch then disappears",
        ),
        _ => ("the operator is not supported", "express it with supported operators, or cut it off with --output"),
    };
    (reason.to_owned(), remedy.to_owned())
}
