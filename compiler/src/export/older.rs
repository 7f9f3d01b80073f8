//! Functions that older operator sets have no operator for, spelled out.
//!
//! In the spelling of PyTorch's exporter, which importers recognize, ours too.

use qail_ir::UnaryFn;

use super::builder::{Builder, Tensor};
use crate::frontend::proto::{AttributeProto, data_type};

/// Writes `f(x)` in several operators under the name `out`, if the operator set
/// of the builder has none for it; else writes nothing and says so.
pub(super) fn emit(builder: &mut Builder, f: UnaryFn, x: &Tensor, out: &str) -> bool {
    let since = match f {
        UnaryFn::HardSwish => 14,
        UnaryFn::Mish => 18,
        UnaryFn::Gelu | UnaryFn::GeluTanh => 20,
        _ => return false,
    };
    if builder.opset >= since {
        return false;
    }
    let x = x.name.as_str();
    let gate = match f {
        UnaryFn::HardSwish => {
            let numbers =
                [("alpha", 1.0 / 6.0), ("beta", 0.5)].map(|(name, number)| AttributeProto::float(name, number));
            builder.step("HardSigmoid", &[x], numbers.to_vec(), &format!("{out}/gate"))
        }
        UnaryFn::Mish => {
            let softplus = builder.step("Softplus", &[x], Vec::new(), &format!("{out}/softplus"));
            builder.step("Tanh", &[&softplus], Vec::new(), &format!("{out}/gate"))
        }
        _ => {
            let one_sided = if f == UnaryFn::Gelu { erf(builder, x, out) } else { tanh(builder, x, out) };
            let one = scalar(builder, out, 1.0);
            let sum = builder.step("Add", &[&one_sided, &one], Vec::new(), &format!("{out}/sum"));
            let half = scalar(builder, out, 0.5);
            builder.step("Mul", &[&sum, &half], Vec::new(), &format!("{out}/gate"))
        }
    };
    builder.node("Mul", &[x, &gate], Vec::new(), out);
    true
}

/// `erf(x / sqrt(2))`.
fn erf(builder: &mut Builder, x: &str, out: &str) -> String {
    let root = scalar(builder, out, std::f64::consts::SQRT_2);
    let scaled = builder.step("Div", &[x, &root], Vec::new(), &format!("{out}/scaled"));
    builder.step("Erf", &[&scaled], Vec::new(), &format!("{out}/erf"))
}

/// `tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))`.
fn tanh(builder: &mut Builder, x: &str, out: &str) -> String {
    let square = builder.step("Mul", &[x, x], Vec::new(), &format!("{out}/square"));
    let cube = builder.step("Mul", &[x, &square], Vec::new(), &format!("{out}/cube"));
    let weight = scalar(builder, out, 0.044_715);
    let weighted = builder.step("Mul", &[&cube, &weight], Vec::new(), &format!("{out}/weighted"));
    let bent = builder.step("Add", &[x, &weighted], Vec::new(), &format!("{out}/bent"));
    let slope = scalar(builder, out, (2.0 / std::f64::consts::PI).sqrt());
    let scaled = builder.step("Mul", &[&bent, &slope], Vec::new(), &format!("{out}/scaled"));
    builder.step("Tanh", &[&scaled], Vec::new(), &format!("{out}/tanh"))
}

fn scalar(builder: &mut Builder, out: &str, x: f64) -> String {
    builder.scalar(&format!("{out}/number"), data_type::FLOAT, x)
}
