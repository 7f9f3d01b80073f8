//! The function of a number in shaders: `FUNCTION`, `P0` and `P1` of `act`.

use qail_artifact::schema::step;

use super::Param;

/// The three parameters of `act`; none is the identity.
pub(crate) fn params(f: Option<step::Function>) -> [(&'static str, Param<'static>); 3] {
    // The numbers of `FunctionKind` are those of the shader; the identity is its default.
    let f = f.unwrap_or(step::Function { kind: step::FunctionKind::Identity.into(), p0: 0.0, p1: 0.0 });
    let kind = u64::try_from(f.kind).unwrap_or(0);
    [("FUNCTION", Param::U32(kind)), ("P0", Param::F32(f.p0)), ("P1", Param::F32(f.p1))]
}
