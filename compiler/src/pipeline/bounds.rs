//! Bounds of actions as part of the model: whoever runs the artifact gets
//! actions that the robot accepts.

use qail_ir::{Binary, BinaryFn, Constant, Graph, Op, Origin, Unary, UnaryFn};

use super::PipelineError;

/// Clips an output. `bounds` is one pair for all elements, or one for each
/// element of the last axis.
///
/// # Errors
/// Another number of pairs, and outputs that the graph does not have.
pub(super) fn clip(graph: &mut Graph, output: &str, bounds: &[(f64, f64)]) -> Result<(), PipelineError> {
    let Some(index) = graph.outputs.iter().position(|known| known.name == output) else {
        return Err(PipelineError::Internal("the action is an output"));
    };
    let value = graph.outputs[index].value;
    let n = graph.ty(value).shape.last().copied().unwrap_or(1);
    if bounds.len() != 1 && bounds.len() != n {
        return Err(PipelineError::Bounds { output: output.to_owned(), n, found: bounds.len() });
    }
    let (name, origin) = (graph.node(value.node).name.clone(), graph.node(value.node).origin.clone());
    let broken = |_| PipelineError::Internal("an action can be clipped");
    let clipped = match bounds {
        [(low, high), rest @ ..] if rest.iter().all(|pair| *pair == (*low, *high)) => {
            let f = UnaryFn::Clip { min: *low as f32, max: *high as f32 };
            graph.add(format!("{name}.bounded"), Op::Unary(Unary { f }), &[value], origin).map_err(broken)?
        }
        _ => {
            let side =
                |pick: fn(&(f64, f64)) -> f64| -> Vec<f32> { bounds.iter().map(|pair| pick(pair) as f32).collect() };
            let low = Constant::f32([n], &side(|pair| pair.0));
            let high = Constant::f32([n], &side(|pair| pair.1));
            let low = graph.add_const(format!("{name}.low"), low, Origin::default());
            let high = graph.add_const(format!("{name}.high"), high, Origin::default());
            let max = Op::Binary(Binary { f: BinaryFn::Max });
            let min = Op::Binary(Binary { f: BinaryFn::Min });
            let above = graph.add(format!("{name}.above"), max, &[value, low], origin.clone()).map_err(broken)?;
            graph.add(format!("{name}.bounded"), min, &[above.value(), high], origin).map_err(broken)?
        }
    };
    if let Some(output) = graph.outputs.get_mut(index) {
        output.value = clipped.value();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use qail_ir::{interp, text};

    use super::*;

    fn run(bounds: &[(f64, f64)]) -> Result<Vec<f32>, String> {
        let mut graph = text::parse("graph @g(%y: f32[1, 3]) -> (%y) {batch = 0} { }").unwrap();
        clip(&mut graph, "y", bounds).map_err(|error| error.to_string())?;
        let y = interp::Tensor::f32([1, 3], vec![-2.0, 0.0, 2.0]);
        let outputs = interp::run(&graph, &BTreeMap::from([("y".to_owned(), y)])).unwrap();
        Ok(outputs["y"].as_f32().unwrap().to_vec())
    }

    #[test]
    fn actions_stay_within() {
        assert_eq!(run(&[(-1.0, 1.0)]).unwrap(), [-1.0, 0.0, 1.0]);
        assert_eq!(run(&[(-3.0, 1.0), (0.5, 1.0), (-1.0, 1.5)]).unwrap(), [-2.0, 0.5, 1.5]);
        assert!(run(&[(-1.0, 1.0), (-1.0, 1.0)]).unwrap_err().contains("2 pairs"));
    }
}
