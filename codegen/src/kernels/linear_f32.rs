//! `linear_f32`: float matrix product with bias and activation.
//!
//! Formula, buffers and what a workgroup does: see `linear_f32.wgsl`.

use qail_artifact::schema::step;

use super::{LANES, Param, Shader, along_x, fold, function, specialize};
use crate::CodegenError;

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("linear_f32.wgsl");

/// Parameters.
pub(crate) struct LinearF32 {
    /// Terms of a sum.
    pub(crate) k: u64,
    /// Channels.
    pub(crate) n: u64,
    /// Rows of x.
    pub(crate) rows: u64,
    /// Function of the result.
    pub(crate) act: Option<step::Function>,
}

impl LinearF32 {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let mut params = vec![
            ("K", Param::U32(self.k)),
            ("N", Param::U32(self.n)),
            ("N_STRIDE", Param::U32(self.n.next_multiple_of(8))),
            ("ROWS", Param::U32(self.rows)),
        ];
        params.extend(function::params(self.act));
        let text = specialize(node, SOURCE, &params)?;
        let [y, z] = fold(node, self.rows)?;
        Ok(Shader { name: "linear_f32", text, workgroups: [along_x(node, self.n.div_ceil(LANES))?, y, z] })
    }
}
