//! `qlinear_w4`, `qlinear_w8`: integer matrix product with what follows it.
//!
//! Formula, buffers and what a workgroup does: see `qlinear_w4.wgsl`.

use qail_artifact::pack;

use super::{Param, Shader, along_x, fold, specialize};
use crate::CodegenError;

/// The shader for nibbles as it stands.
pub(crate) const W4: &str = include_str!("qlinear_w4.wgsl");
/// The shader for bytes as it stands.
pub(crate) const W8: &str = include_str!("qlinear_w8.wgsl");

/// Most rows of x that one workgroup takes: weights are decoded once for them.
/// Four keeps the accumulators in registers and the compile time of software
/// drivers short.
const MAX_GROUP_ROWS: u64 = 4;

/// What becomes of an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// It is stored.
    Accumulators,
    /// It becomes a stored byte.
    Codes {
        /// Smallest code, less the code of zero.
        lo: i64,
        /// Largest code, less the code of zero.
        hi: i64,
        /// What makes the clamped number a stored byte, or an index of the table.
        add: i64,
        /// A table follows.
        table: bool,
    },
}

impl Finish {
    /// The parameters `OUT`, `LO`, `HI` and `ADD`.
    pub(crate) fn params(self) -> [(&'static str, Param<'static>); 4] {
        let (out, lo, hi, add) = match self {
            Self::Accumulators => (0, 0, 0, 0),
            Self::Codes { lo, hi, add, table } => (if table { 2 } else { 1 }, lo, hi, add),
        };
        [("OUT", Param::U32(out)), ("LO", Param::I32(lo)), ("HI", Param::I32(hi)), ("ADD", Param::I32(add))]
    }
}

/// Parameters.
pub(crate) struct QLinear {
    /// Weights are nibbles.
    pub(crate) w4: bool,
    /// Channels.
    pub(crate) n: u64,
    /// Rows of x.
    pub(crate) rows: u64,
    /// Elements from one row of x to the next: K, padded as the weights are.
    pub(crate) x_stride: u64,
    /// Byte planes of a row of x.
    pub(crate) planes: u64,
    /// Elements from one row of the result to the next.
    pub(crate) out_stride: u64,
    /// What becomes of an accumulator.
    pub(crate) finish: Finish,
}

impl QLinear {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let (name, source, block) = if self.w4 { ("qlinear_w4", W4, 32) } else { ("qlinear_w8", W8, 16) };
        let group_rows = match self.rows {
            0..=1 => 1,
            2..=3 => 2,
            _ => MAX_GROUP_ROWS,
        };
        let out_stride = match self.finish {
            Finish::Accumulators => self.out_stride,
            Finish::Codes { .. } => self.out_stride / 4,
        };
        let mut params = vec![
            ("N", Param::U32(self.n)),
            ("ROWS", Param::U32(self.rows)),
            ("GROUP_ROWS", Param::U32(group_rows)),
            ("BLOCKS", Param::U32(self.x_stride / block)),
            ("X_STRIDE", Param::U32(self.x_stride / 16)),
            ("PLANES", Param::U32(self.planes)),
            ("OUT_STRIDE", Param::U32(out_stride)),
        ];
        params.extend(self.finish.params());
        let text = specialize(node, source, &params)?;
        let [y, z] = fold(node, self.rows.div_ceil(group_rows))?;
        Ok(Shader { name, text, workgroups: [along_x(node, self.n.div_ceil(pack::TILE_N as u64))?, y, z] })
    }
}
