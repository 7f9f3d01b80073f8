//! `qgroups`: integer product in groups of channels, with what follows it.
//!
//! Formula, buffers and what an invocation does: see `qgroups.wgsl`.

use super::{Param, Shader, grid, qlinear::Finish, specialize};
use crate::CodegenError;

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("qgroups.wgsl");

/// Parameters.
pub(crate) struct QGroups {
    /// Features of a group.
    pub(crate) k: u64,
    /// Channels.
    pub(crate) n: u64,
    /// Channels of a group.
    pub(crate) channels: u64,
    /// Rows of x.
    pub(crate) rows: u64,
    /// Bytes from one row of x to the next, or of one plane of a row.
    pub(crate) x_stride: u64,
    /// Byte planes of a row of x.
    pub(crate) planes: u64,
    /// Elements from one row of the result to the next.
    pub(crate) out_stride: u64,
    /// What becomes of an accumulator.
    pub(crate) finish: Finish,
}

impl QGroups {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let words = match self.finish {
            Finish::Accumulators => self.out_stride,
            Finish::Codes { .. } => self.out_stride / 4,
        };
        let mut params = vec![
            ("K", Param::U32(self.k)),
            ("N", Param::U32(self.n)),
            ("CHANNELS", Param::U32(self.channels)),
            ("ROWS", Param::U32(self.rows)),
            ("X_STRIDE", Param::U32(self.x_stride)),
            ("PLANES", Param::U32(self.planes)),
            ("OUT_STRIDE", Param::U32(words)),
        ];
        params.extend(self.finish.params());
        let text = specialize(node, SOURCE, &params)?;
        Ok(Shader { name: "qgroups", text, workgroups: grid(node, self.rows.saturating_mul(words))? })
    }
}
