//! `correct-bias`: moves the mean effect of rounded weights into the bias.
//!
//! Rounding changes the result of a layer by `sum_k x[k] (w'[k, n] - w[k, n])`,
//! whose mean over the data is known from the mean of the inputs. The bias takes
//! it back: `b[n] += sum_k mean(x[k]) (w[k, n] - w'[k, n])` (Nagel et al. 2019,
//! arXiv 1906.04721, section 4.2, with measured means). Features that hardly
//! move, such as a height, then cost nothing.
//!
//! Needs the means that `calibrate` leaves in the context, and uses them up.

use qail_ir::{Constant, FakeQuant, Graph, NodeId, Op};

use crate::{
    Changed, Exactness, Pass, PassContext, PassError,
    quant::{is_placeholder, weight_code},
    rewrite,
};

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct CorrectBias;

impl Pass for CorrectBias {
    fn name(&self) -> &'static str {
        "correct-bias"
    }

    fn summary(&self) -> &'static str {
        "moves the mean effect of rounded weights into the bias"
    }

    fn exactness(&self) -> Exactness {
        Exactness::Lossy
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let means = std::mem::take(&mut cx.input_means);
        let mut dead = Vec::new();
        for id in graph.topo() {
            let Some(means) = means.get(&graph.node(id).name) else { continue };
            let Some(b) = corrected(graph, id, means)? else { continue };
            let shape = [b.len()];
            dead.extend(rewrite::set_const_operand(graph, id, 2, Constant::f32(shape, &b)));
        }
        let changed = Changed::when(!dead.is_empty());
        rewrite::sweep(graph, dead);
        Ok(changed)
    }
}

/// The bias of a layer with quantized weights, corrected.
fn corrected(graph: &Graph, id: NodeId, means: &[f64]) -> Result<Option<Vec<f32>>, PassError> {
    let Op::Linear(linear) = &graph.node(id).op else { return Ok(None) };
    let [_, quantizer, b] = graph.operands(id)[..] else { return Ok(None) };
    let Op::FakeQuant(FakeQuant { lo, hi, axis: Some(1), group: None, .. }) = *graph.op(quantizer) else {
        return Ok(None);
    };
    let [w, scale] = graph.operands(quantizer.node)[..] else { return Ok(None) };
    if graph.const_of(scale).is_none_or(|scale| is_placeholder(scale)) {
        return Ok(None);
    }
    let (Some(w), Some(steps)) = (rewrite::const_f64(graph, w)?, rewrite::const_f32(graph, scale)?) else {
        return Ok(None);
    };
    let Some(mut b) = rewrite::const_f64(graph, b)? else { return Ok(None) };
    let n = steps.len().max(1);
    let k = w.len() / n;
    if means.len() != k * linear.groups {
        return Ok(None);
    }
    for (row_idx, row) in w.chunks_exact(n).enumerate() {
        for (channel, ((b, &w), &step)) in b.iter_mut().zip(row).zip(&steps).enumerate() {
            let Some(mean) = means.get(rewrite::feature(linear, k, n, row_idx, channel)) else { continue };
            *b += mean * (w - f64::from(weight_code(w, step, lo, hi)) * f64::from(step));
        }
    }
    let b: Vec<f32> = b.into_iter().map(|b| b as f32).collect();
    Ok(b.iter().all(|b| b.is_finite()).then_some(b))
}
