//! `unary`: a function of every element.
//!
//! Formula, buffers and what a workgroup does: see `unary.wgsl`.

use qail_artifact::schema::step;

use super::{Param, Shader, function, grid, specialize};
use crate::CodegenError;

/// The shader as it stands.
pub(crate) const SOURCE: &str = include_str!("unary.wgsl");

/// Parameters.
pub(crate) struct Unary {
    /// Elements.
    pub(crate) n: u64,
    /// The function.
    pub(crate) f: step::Function,
}

impl Unary {
    /// The shader for these parameters.
    pub(crate) fn specialize(&self, node: &str) -> Result<Shader, CodegenError> {
        let mut params = vec![("N", Param::U32(self.n))];
        params.extend(function::params(Some(self.f)));
        Ok(Shader { name: "unary", text: specialize(node, SOURCE, &params)?, workgroups: grid(node, self.n)? })
    }
}
