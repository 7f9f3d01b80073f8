//! Host steps: the entry and the exit of quantized regions, on every device.
//!
//! They run on the mirror of the arenas with the kernels of the CPU, so that an
//! action has the same bits whatever computed the integers before it.

use qail_artifact::Place;

use crate::{
    Isa, RunError, RuntimeError,
    cpu::Program,
    device::DeviceContext,
    memory::HostMemory,
    plan::{Plan, Segment},
};

/// The prepared host steps of a plan.
pub(crate) struct Host {
    program: Program,
}

impl Host {
    pub(crate) fn new(cx: &DeviceContext<'_>) -> Result<Self, RuntimeError> {
        Ok(Self { program: Program::new(Isa::best(), Place::Host, cx)? })
    }

    /// Runs one host segment.
    pub(crate) fn run(&mut self, plan: &Plan, segment: &Segment, memory: &mut HostMemory) -> Result<(), RunError> {
        self.program.run(plan, segment, memory)
    }
}

/// `clamp(rne(x * factor) + zero_point, lo, hi)` in `f32`, then integers. One
/// factor serves all columns, or each column has its own.
#[inline(always)]
pub(crate) fn quantize(x: f32, factor: f32, zero_point: i32, lo: i32, hi: i32) -> i32 {
    // The conversion saturates, and so must the sum.
    ((x * factor).round_ties_even() as i32).saturating_add(zero_point).clamp(lo, hi)
}

/// `((q - zero_point) as f64 * scale) as f32`.
pub(crate) fn dequantize(q: i32, zero_point: i32, scale: f64) -> f32 {
    ((i64::from(q) - i64::from(zero_point)) as f64 * scale) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_extremes_saturate() {
        let codes = [0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30].map(|x| quantize(x, 1.0, 0, -128, 127));
        assert_eq!(codes, [0, 2, 2, 0, -2, 127, -128]);
        assert_eq!(quantize(1e30, 1.0, 5, -32639, 32639), 32639);
    }

    #[test]
    fn accumulators_are_scaled_in_f64() {
        assert_eq!(dequantize(16_777_217, 0, 1.0 / 16_777_217.0), 1.0);
        assert_eq!(dequantize(i32::MIN, i32::MAX, 0.5), -2_147_483_647.5_f64 as f32);
    }
}
