//! Quantizers of computed values.

use qail_ir::{Binary, BinaryFn, Cast, ConstError, Constant, DType, Elem, FakeQuant, Op, QuantScheme, TensorType};

use super::{
    super::{
        OpError,
        builder::{Codes, Tensor},
        cx::NodeCx,
    },
    parameters::{Parameters, known},
};

/// Codes looked at in one go.
const CHUNK: usize = 1 << 16;

/// Largest 16-bit code that the run time holds: two balanced bytes.
const WIDE_HI: i32 = 32639;

/// Rounds a computed value: its codes.
pub(super) fn quantize(
    cx: &mut NodeCx<'_>,
    name: String,
    x: Tensor,
    parameters: &Parameters,
) -> Result<Tensor, OpError> {
    cx.expect_float(x)?;
    let (Some((scale, zero_point)), Some(scheme)) = (parameters.single(), parameters.scheme) else {
        return Err(OpError::unsupported(
            format!("it quantizes a computed value with {} scales", parameters.scales.len()),
            "quantize activations per tensor, with one scale and one zero point",
        ));
    };
    let node = cx.node_name();
    let codes = Codes { scale, zero_point, scheme, node };
    let range = (i64::from(scheme.lo()), i64::from(scheme.hi()));
    place(cx, name, x, codes, range)
}

/// Rounds `x` to codes in `range`, both as the model counts them.
fn place(cx: &mut NodeCx<'_>, name: String, x: Tensor, codes: Codes, (lo, hi): (i64, i64)) -> Result<Tensor, OpError> {
    // 16-bit codes are stored signed.
    let shift = if codes.scheme == QuantScheme::unsigned(16) { 1 << 15 } else { 0 };
    let scheme = QuantScheme { signed: codes.scheme.signed || shift != 0, ..codes.scheme };
    let bound = |code: i64| i32::try_from(code - shift).unwrap_or(0).clamp(scheme.lo(), scheme.hi());
    let (lo, mut hi) = (bound(lo), bound(hi));
    if scheme.bits == 16 && hi > WIDE_HI {
        hi = WIDE_HI;
        cx.findings.note("16-bit codes saturate 128 codes before the end of their range");
    }
    if lo >= hi {
        return Err(OpError::invalid("it leaves one code or none"));
    }
    let fake = Op::FakeQuant(FakeQuant { scheme, lo, hi, axis: None, group: None });
    let scale = cx.builder.known(format!("{name}.s"), Constant::f32([], &[codes.scale]), cx.origin.clone());
    let mut operands = vec![x, scale];
    let zero = codes.zero_point - shift;
    if zero != 0 {
        let zero = Constant::ints(TensorType::plain(DType::I32, []), &[zero]);
        operands.push(cx.builder.known(format!("{name}.z"), zero, cx.origin.clone()));
    }
    let quantized = cx.builder.emit(name, fake, &operands, &cx.origin)?;
    let value = cx.builder.place(quantized);
    Ok(cx.builder.as_codes(value, codes))
}

/// What computed codes stand for.
pub(super) fn dequantize(
    cx: &mut NodeCx<'_>,
    name: String,
    x: Tensor,
    parameters: &Parameters,
) -> Result<Tensor, OpError> {
    let Some((scale, zero_point)) = parameters.single() else {
        return Err(OpError::unsupported(
            format!("it reads computed codes with {} scales", parameters.scales.len()),
            "quantize activations per tensor, with one scale and one zero point",
        ));
    };
    if let (Tensor::Codes(value, _), Some(made)) = (x, cx.builder.codes(x)) {
        if (made.scale, made.zero_point) == (scale, zero_point) {
            return Ok(Tensor::Computed(value));
        }
        let reason = format!(
            "it reads codes with scale {scale} and zero point {zero_point}; `{}` made them with {} and {}",
            made.node, made.scale, made.zero_point
        );
        return Err(OpError::unsupported(reason, "give both nodes the same scale and zero point"));
    }
    if cx.ty(x).elem != Elem::Plain(DType::U8) {
        let reason = format!("it reads {}, which no quantizer made", cx.ty(x));
        return Err(OpError::unsupported(reason, "put a QuantizeLinear in front of it, or pass the float model"));
    }
    // Bytes of a camera: codes from the start.
    let part = |part: &str| format!("{name}.{part}");
    let mut real = cx.builder.emit(part("bytes"), Op::Cast(Cast { to: DType::F32 }), &[x], &cx.origin)?;
    for (text, f, number) in [("centered", BinaryFn::Sub, zero_point as f32), ("real", BinaryFn::Mul, scale)] {
        let number = cx.builder.known(part(&format!("{text}.by")), Constant::f32([], &[number]), cx.origin.clone());
        real = cx.builder.emit(part(text), Op::Binary(Binary { f }), &[real, number], &cx.origin)?;
    }
    let scheme = QuantScheme::unsigned(8);
    let codes = Codes { scale, zero_point, scheme, node: cx.node_name() };
    let quantized = place(cx, name, real, codes, (0, 255))?;
    Ok(Tensor::Computed(cx.builder.place(quantized)))
}

/// True if clipping known codes changes nothing, as in weights whose Clip only says
/// how wide they are.
fn lie_between(codes: &Constant, (lo, hi): (i64, i64)) -> Result<bool, ConstError> {
    let n = codes.ty.n_elements();
    for start in (0..n).step_by(CHUNK) {
        let codes = codes.read_int(start..start.saturating_add(CHUNK).min(n))?;
        if codes.iter().any(|code| !(lo..=hi).contains(code)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Codes in a smaller range, `Clip` between a quantizer and its reader; none if
/// the node clips numbers.
pub(in super::super) fn clip(cx: &mut NodeCx<'_>) -> Result<Option<Tensor>, OpError> {
    let x = cx.operand(0)?;
    if cx.builder.codes(x).is_none() && cx.ty(x).scheme().is_none() {
        return Ok(None);
    }
    let mut range = (i64::MIN, i64::MAX);
    for (slot, bound) in [(1, &mut range.0), (2, &mut range.1)] {
        let Some(tensor) = cx.optional(slot) else { continue };
        *bound = known(cx, tensor, "bound")?.read_int(0..1)?.first().copied().unwrap_or(*bound);
    }
    let (lo, hi) = range;
    if lo > hi {
        return Err(OpError::invalid(format!("its bounds are {lo} and {hi}")));
    }
    if let Some(constant) = cx.constant(x).cloned() {
        if lie_between(&constant, (lo, hi))? {
            return Ok(Some(x));
        }
        cx.builder.reserve(&constant.ty)?;
        let clipped: Vec<i64> = constant.all_int()?.into_iter().map(|code| code.clamp(lo, hi)).collect();
        return Ok(Some(cx.known(Constant::ints(constant.ty, &clipped))));
    }
    let Some(codes) = cx.builder.codes(x).cloned() else { return Ok(None) };
    let value = cx.builder.place(x);
    let Op::FakeQuant(_) = cx.builder.graph.op(value) else {
        let reason = format!("it clips the codes of `{}`, but not right behind it", codes.node);
        return Err(OpError::unsupported(reason, "clip before codes are moved"));
    };
    let source = cx.builder.graph.operands(value.node).first().copied();
    let source = source.ok_or_else(|| OpError::invalid("a quantizer without an operand"))?;
    let (lo, hi) = (lo.max(i64::from(codes.scheme.lo())), hi.min(i64::from(codes.scheme.hi())));
    let name = cx.result(0);
    Ok(Some(place(cx, name, Tensor::Computed(source), codes, (lo, hi))?))
}
