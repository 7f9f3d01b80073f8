//! Constants that are codes.

use qail_ir::{ConstError, Constant, Elem, QuantScheme, TensorType};

use super::{
    super::{OpError, builder::Tensor, cx::NodeCx},
    grid::{Dequantized, WeightQuant},
    parameters::Parameters,
};

/// Constants above this size become numbers when they are read, not before: as
/// `f32` they are several times as large as in the file.
const MAX_COMPUTED_BYTES: usize = 64 << 10;

/// Codes looked at in one go.
const CHUNK: usize = 1 << 16;

/// Codes of known floats, as the quantizer would make them.
pub(super) fn quantize(cx: &mut NodeCx<'_>, x: Tensor, parameters: &Parameters) -> Result<Tensor, OpError> {
    cx.expect_float(x)?;
    let Some(scheme) = parameters.scheme else { return Err(OpError::invalid("it makes codes of 32 bits")) };
    let constant = cx.constant(x).cloned().ok_or_else(|| OpError::invalid("a constant that is computed"))?;
    let ty = TensorType { elem: elem(scheme), shape: constant.ty.shape.clone() };
    cx.builder.reserve(&ty)?;
    let (lo, hi) = (i64::from(scheme.lo()), i64::from(scheme.hi()));
    let mut codes = Vec::with_capacity(ty.n_elements());
    for (i, x) in constant.all_f32()?.into_iter().enumerate() {
        let cell = parameters.grid.cell_of(i);
        let of_cell = |all: &[f32]| all.get(if all.len() == 1 { 0 } else { cell }).copied();
        let scale = of_cell(&parameters.scales).unwrap_or(f32::NAN);
        let zero = parameters.zeros.get(if parameters.zeros.len() == 1 { 0 } else { cell }).copied().unwrap_or(0);
        if x.is_nan() {
            return Err(OpError::invalid(format!("element {i} of its operand is not a number")));
        }
        // Saturating: infinities are clamped as well.
        codes.push(((x / scale).round_ties_even() as i64).saturating_add(zero).clamp(lo, hi));
    }
    Ok(cx.known(Constant::ints(ty, &codes)))
}

fn elem(scheme: QuantScheme) -> Elem {
    if scheme == QuantScheme::unsigned(8) { Elem::Plain(qail_ir::DType::U8) } else { Elem::Code(scheme) }
}

/// The numbers that known codes stand for; they remember the codes.
pub(super) fn dequantize(
    cx: &mut NodeCx<'_>,
    name: String,
    x: Tensor,
    parameters: &Parameters,
) -> Result<Tensor, OpError> {
    let codes = cx.constant(x).cloned().ok_or_else(|| OpError::invalid("a constant that is computed"))?;
    let Parameters { scheme, ref scales, ref zeros, ref grid } = *parameters;
    let dequantized = Dequantized { codes, grid: grid.clone(), zeros: zeros.clone(), scales: scales.as_slice().into() };
    let quant = match scheme {
        // A bias, or a constant that is no weight.
        None => None,
        Some(scheme) => match centered_scheme(&dequantized, scheme)? {
            Ok(scheme) => Some(WeightQuant { scheme, grid: grid.clone(), scales: dequantized.scales.clone() }),
            Err(Wide { lo, hi }) => {
                if dequantized.codes.ty.shape.len() > 1 {
                    let why = "more than 8 signed bits hold: a layer with it stays in floats";
                    let remedy = "quantize weights symmetrically (int8 or int4, zero point 0; or uint8, 128)";
                    let node = cx.node_name();
                    cx.findings.note(format!("codes of `{node}` lie {lo} to {hi} from zero, {why}; {remedy}"));
                }
                None
            }
        },
    };
    known(cx, name, dequantized, quant)
}

/// A known tensor of the numbers that codes stand for.
pub(super) fn known(
    cx: &mut NodeCx<'_>,
    name: String,
    dequantized: Dequantized,
    quant: Option<WeightQuant>,
) -> Result<Tensor, OpError> {
    let ty = TensorType::f32(dequantized.codes.ty.shape.clone());
    let constant = if ty.n_elements().saturating_mul(4) > MAX_COMPUTED_BYTES {
        dequantized.lazy()
    } else {
        cx.builder.reserve(&ty)?;
        dequantized.computed()?
    };
    let origin = cx.origin.clone();
    let tensor = cx.builder.known(name, constant, origin);
    cx.builder.set_quant(tensor, quant);
    Ok(tensor)
}

/// Codes that are too far from their zero points, the lowest and the highest.
pub(super) struct Wide {
    lo: i64,
    hi: i64,
}

/// The scheme of codes minus zero points. Layers have 4-bit and 8-bit weights
/// around zero; 8-bit integers that hold 4-bit codes, as operator sets without
/// 4-bit types need, are 4-bit codes.
pub(super) fn centered_scheme(
    dequantized: &Dequantized,
    scheme: QuantScheme,
) -> Result<Result<QuantScheme, Wide>, ConstError> {
    let is_symmetric = scheme.signed && dequantized.zeros.iter().all(|&zero| zero == 0);
    if is_symmetric && scheme.bits <= 4 {
        return Ok(Ok(QuantScheme::signed(4)));
    }
    let fits = |scheme: QuantScheme, lo: i64, hi: i64| i64::from(scheme.lo()) <= lo && hi <= i64::from(scheme.hi());
    let n = dequantized.codes.ty.n_elements();
    let (mut lo, mut hi) = (0, 0);
    for start in (0..n).step_by(CHUNK) {
        let codes = dequantized.codes.read_int(start..start.saturating_add(CHUNK).min(n))?;
        for (i, code) in (start..).zip(codes) {
            let centered = dequantized.centered(i, code);
            (lo, hi) = (lo.min(centered), hi.max(centered));
        }
        if is_symmetric && scheme.bits <= 8 && !fits(QuantScheme::signed(4), lo, hi) {
            return Ok(Ok(QuantScheme::signed(8)));
        }
    }
    let schemes = [4, 8].map(QuantScheme::signed);
    Ok(schemes.into_iter().find(|&scheme| fits(scheme, lo, hi)).ok_or(Wide { lo, hi }))
}
