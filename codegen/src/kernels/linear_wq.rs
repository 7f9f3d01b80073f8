//! `linear_w4`, `linear_w8`: float matrix product with quantized weights.
//!
//! Formula, buffers and what a workgroup does: see `linear_w4.wgsl`.

use qail_artifact::{pack, schema::step};

use super::{Param, Shader, along_x, fold, function, specialize};
use crate::CodegenError;

/// The shader for nibbles as it stands.
pub(crate) const W4: &str = include_str!("linear_w4.wgsl");
/// The shader for bytes as it stands.
pub(crate) const W8: &str = include_str!("linear_w8.wgsl");

/// Parameters.
pub(crate) struct LinearWq {
    /// Weights are nibbles.
    pub(crate) w4: bool,
    /// Terms of a sum.
    pub(crate) k: u64,
    /// Channels.
    pub(crate) n: u64,
    /// Rows of x.
    pub(crate) rows: u64,
    /// Rows of w that share a scale: a multiple of 8, or at least `k`.
    pub(crate) group: u64,
    /// Function of the result.
    pub(crate) act: Option<step::Function>,
}

impl LinearWq {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let (name, source, block) = if self.w4 { ("linear_w4", W4, 32) } else { ("linear_w8", W8, 16) };
        let group = self.group.min(self.k).max(1);
        let multiple = qail_ir::LinearWq::GROUP_MULTIPLE;
        if group < self.k && !group.is_multiple_of(multiple as u64) {
            let reason = format!("groups of {group} rows; a multiple of {multiple} is accepted");
            return Err(CodegenError::Unsupported { node: node.to_owned(), op: "linear_wq", reason });
        }
        let mut params = vec![
            ("K", Param::U32(self.k)),
            ("N", Param::U32(self.n)),
            ("ROWS", Param::U32(self.rows)),
            ("BLOCKS", Param::U32(self.k.next_multiple_of(pack::K_ALIGN as u64) / block)),
            ("GROUP", Param::U32(group)),
            ("GROUPS", Param::U32(self.k.div_ceil(group))),
        ];
        params.extend(function::params(self.act));
        let text = specialize(node, source, &params)?;
        let [y, z] = fold(node, self.rows)?;
        Ok(Shader { name, text, workgroups: [along_x(node, self.n.div_ceil(pack::TILE_N as u64))?, y, z] })
    }
}
