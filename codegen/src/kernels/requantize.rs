//! `requantize`: accumulators to codes, on their own.
//!
//! Formula, buffers and what an invocation does: see `requantize.wgsl`.

use super::{Param, Shader, grid, qlinear::Finish, specialize};
use crate::CodegenError;

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("requantize.wgsl");

/// Parameters.
pub(crate) struct Requantize {
    /// Channels.
    pub(crate) n: u64,
    /// Rows of accumulators.
    pub(crate) rows: u64,
    /// Bytes from one row of the result to the next, a multiple of 4.
    pub(crate) out_stride: u64,
    /// What becomes of an accumulator.
    pub(crate) finish: Finish,
}

impl Requantize {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let words = self.out_stride / 4;
        let mut params =
            vec![("N", Param::U32(self.n)), ("ROWS", Param::U32(self.rows)), ("OUT_STRIDE", Param::U32(words))];
        params.extend(self.finish.params());
        let text = specialize(node, SOURCE, &params)?;
        Ok(Shader { name: "requantize", text, workgroups: grid(node, self.rows.saturating_mul(words))? })
    }
}
