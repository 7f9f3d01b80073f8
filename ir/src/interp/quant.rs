//! Quantized operations: the formulas of [`Op`](crate::Op), word by word.

use crate::{Dequantize, FakeQuant, QLinear, Quantize, Requantize, fixed::Multiplier};

use super::{
    Data, Fault, Tensor, f32s, f64s, ints,
    linear::{row, rows},
    tensor,
};

/// `s * (clamp(rne(x / s) + z, lo, hi) - z)`, every step rounded to `f32`. NaN
/// stays NaN: this is a float operation.
pub(super) fn fake_quant(fake: &FakeQuant, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (x, s) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let z = if operands.len() > 2 { ints(operands, 2)?.first().copied().unwrap_or(0) as f32 } else { 0.0 };
    let (lo, hi) = (fake.lo as f32, fake.hi as f32);
    let channel = channel(fake, &tensor(operands, 0)?.ty.shape);
    let one = |(i, &x): (usize, &f32)| {
        let s = s.get(channel(i)).copied().ok_or(Fault::Internal("a channel without a scale"))?;
        let code = (x / s).round_ties_even() + z;
        // Not `clamp`, which would panic for an empty range.
        let code = if code < lo { lo } else { code };
        let code = if code > hi { hi } else { code };
        Ok(s * (code - z))
    };
    x.iter().enumerate().map(one).collect::<Result<_, _>>().map(Data::F32)
}

/// Which scale element `i` of a tensor of this shape has.
pub(super) fn channel(fake: &FakeQuant, shape: &[usize]) -> impl Fn(usize) -> usize {
    // Elements behind one index of the channel axis.
    let inner: usize = fake.axis.and_then(|axis| shape.get(axis + 1..)).map_or(1, |rest| rest.iter().product());
    let extent = fake.axis.and_then(|axis| shape.get(axis)).map_or(1, |&extent| extent.max(1));
    let n = shape.last().map_or(1, |&n| n.max(1));
    let (axis, group) = (fake.axis, fake.group);
    move |i| match (axis, group) {
        (None, _) => 0,
        (Some(_), None) => i / inner.max(1) % extent,
        (Some(_), Some(group)) => i / n / group.max(1) * n + i % n,
    }
}

/// `clamp(rne(x * r) + z, lo, hi)`, the product rounded to `f32`.
pub(super) fn quantize(quantize: &Quantize, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (x, r) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let (lo, hi) = (i64::from(quantize.lo), i64::from(quantize.hi));
    let (_, n) = rows(tensor(operands, 0)?);
    let one = |(index, &x): (usize, &f32)| {
        let feature = index % n.max(1);
        let r = if r.len() == 1 { r.first() } else { r.get(feature) };
        let product = x * r.copied().ok_or(Fault::Internal("a feature without a factor"))?;
        if product.is_nan() {
            return Err(Fault::NotANumber { index, feature });
        }
        // Saturating, so that infinities are clamped as well.
        let code = (product.round_ties_even() as i64).saturating_add(i64::from(quantize.zero_point));
        Ok(code.max(lo).min(hi))
    };
    x.iter().enumerate().map(one).collect::<Result<_, _>>().map(Data::Int)
}

/// Codes have at most 16 bits and a graph at most 2^30 elements, so an `i64`
/// holds every sum; the result must fit an `i32`.
pub(super) fn qlinear(linear: &QLinear, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (x, w, b) = (ints(operands, 0)?, ints(operands, 1)?, ints(operands, 2)?);
    let (n_rows, k) = rows(tensor(operands, 0)?);
    let n = b.len();
    let groups = linear.groups.max(1);
    let (k_group, n_group) = ((k / groups).max(1), n / groups);
    let mut out = Vec::with_capacity(n_rows * n);
    let mut acc = vec![0i64; n];
    for i in 0..n_rows {
        acc.copy_from_slice(b);
        // Every group of channels sees its own part of the row.
        for (group, x) in row(x, i, k)?.chunks(k_group).enumerate() {
            for (&x, w) in x.iter().zip(w.chunks_exact(n.max(1))) {
                let channels = acc.iter_mut().zip(w).skip(group * n_group).take(n_group);
                channels.for_each(|(acc, &w)| *acc += x * w);
            }
        }
        if let Some(channel) = acc.iter().position(|&acc| i32::try_from(acc).is_err()) {
            return Err(Fault::Accumulator { row: i, channel, value: acc[channel] });
        }
        out.extend_from_slice(&acc);
    }
    Ok(Data::Int(out))
}

/// `clamp(((acc * m + 2^(shift-1)) >> shift) + z, lo, hi)`.
pub(super) fn requantize(requantize: &Requantize, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (acc, m, shift) = (ints(operands, 0)?, ints(operands, 1)?, ints(operands, 2)?);
    let (lo, hi) = (i64::from(requantize.lo), i64::from(requantize.hi));
    let z = i64::from(requantize.zero_point);
    let multiplier = |(channel, (&m, &shift)): (usize, (&i64, &i64))| {
        let parts = u32::try_from(m).ok().zip(u32::try_from(shift).ok());
        let multiplier = parts.and_then(|(m, shift)| Multiplier::new(m, shift));
        multiplier.ok_or(Fault::Multiplier { channel, m, shift })
    };
    let multipliers: Vec<Multiplier> = m.iter().zip(shift).enumerate().map(multiplier).collect::<Result<_, _>>()?;
    let one = |(&acc, multiplier): (&i64, &Multiplier)| {
        let acc = i32::try_from(acc).map_err(|_| Fault::Internal("an accumulator that is not an i32"))?;
        // The product is below 2^47, and an `i32` holds more than `lo - z ..= hi - z`.
        Ok((i64::from(multiplier.requantize(acc, i32::MIN, i32::MAX)) + z).max(lo).min(hi))
    };
    acc.iter().zip(multipliers.iter().cycle()).map(one).collect::<Result<_, _>>().map(Data::Int)
}

/// `table[code - lowest code]`.
pub(super) fn lookup(operands: &[&Tensor]) -> Result<Data, Fault> {
    let (codes, table) = (ints(operands, 0)?, ints(operands, 1)?);
    let lowest = tensor(operands, 0)?.ty.scheme().map_or(0, |scheme| i64::from(scheme.lo()));
    let one = |&code: &i64| {
        let entry = usize::try_from(code - lowest).ok().and_then(|i| table.get(i));
        entry.copied().ok_or(Fault::Internal("a code outside of the table"))
    };
    codes.iter().map(one).collect::<Result<_, _>>().map(Data::Int)
}

/// `((q - z) as f64 * s) as f32`.
pub(super) fn dequantize(dequantize: &Dequantize, operands: &[&Tensor]) -> Result<Data, Fault> {
    let (codes, s) = (ints(operands, 0)?, f64s(operands, 1)?);
    let z = i64::from(dequantize.zero_point);
    let one = |(&q, &s): (&i64, &f64)| ((q - z) as f64 * s) as f32;
    Ok(Data::F32(codes.iter().zip(s.iter().cycle()).map(one).collect()))
}

#[cfg(test)]
mod tests {
    use super::Multiplier;
    use crate::interp::testing::{error, f32, run, y};

    #[test]
    fn fake_quant_rounds_to_the_grid() {
        let x = f32("x", [6], &[0.25, 0.75, -10.0, 10.0, f32::NAN, -0.1]);
        let s = f32("s", [], &[0.5]);
        let out = y("fake_quant %x, %s {s4, lo = -7} : f32[6]", &[x, s]);
        let out = out.as_f32().unwrap();
        // 0.5 and 1.5 are ties and go to the even codes 0 and 2.
        assert_eq!(out[..4], [0.0, 1.0, -3.5, 3.5]);
        assert!(out[4].is_nan() && out[5] == 0.0);
    }

    #[test]
    fn fake_quant_knows_channels_groups_and_the_zero_point() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let at = |op: &str, shape: &[usize], s: &[f32]| {
            y(op, &[f32("x", [3, 2], &x), f32("s", shape.to_vec(), s)]).as_f32().unwrap().to_vec()
        };
        assert_eq!(
            at("fake_quant %x, %s {s8, axis = 1} : f32[3, 2]", &[2], &[4.0, 1.0]),
            [0.0, 2.0, 4.0, 4.0, 4.0, 6.0]
        );
        assert_eq!(
            at("fake_quant %x, %s {s8, axis = 0} : f32[3, 2]", &[3], &[4.0, 1.0, 10.0]),
            [0.0, 0.0, 3.0, 4.0, 0.0, 10.0]
        );
        let grouped = at("fake_quant %x, %s {s8, axis = 1, group = 2} : f32[3, 2]", &[2, 2], &[4.0, 1.0, 1.0, 8.0]);
        assert_eq!(grouped, [0.0, 2.0, 4.0, 4.0, 5.0, 8.0]);
        let text = "graph @g(%x: f32[3]) -> (%y) { %s = const splat(1.0) : f32[] %z = const [3] : i32[]
            %y = fake_quant %x, %s, %z {u4} : f32[3] }";
        let out = run(text, &[f32("x", [3], &[-5.0, 0.4, 20.0])]).unwrap();
        assert_eq!(out.as_f32().unwrap(), [-3.0, 0.0, 12.0]);
    }

    #[test]
    fn the_entry_rounds_half_to_even_and_clamps() {
        let inputs = [f32("x", [1, 5], &[0.5, 1.5, -2.5, 1e30, f32::NEG_INFINITY]), f32("r", [], &[1.0])];
        let out = y("quantize %x, %r {lo = -32639, hi = 32639} : qs16[1, 5]", &inputs);
        assert_eq!(out.as_ints().unwrap(), [0, 2, -2, 32639, -32639]);
        let inputs = [f32("x", [1, 2], &[0.3, 0.3]), f32("r", [2], &[10.0, 1000.0])];
        assert_eq!(y("quantize %x, %r {zero_point = 5} : qu8[1, 2]", &inputs).as_ints().unwrap(), [8, 255]);
    }

    #[test]
    fn nan_has_no_code() {
        let inputs = [f32("x", [2, 3], &[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]), f32("r", [], &[1.0])];
        let message = error("quantize %x, %r : qs8[2, 3]", &inputs);
        assert_eq!(message, "node `y`: element 4, feature 1, is not a number and has no code");
    }

    #[test]
    fn accumulators_are_exact_or_an_error() {
        let text = |b: i64| {
            format!(
                "graph @g() -> (%y) {{ %x = const [32639, -3, 2, 1] : qs16[2, 2] %w = const [127, -7, 5, 7] : qs8[2, 2]
                %b = const [{b}, 10] : i32[2] %y = qlinear %x, %w, %b : i32[2, 2] }}"
            )
        };
        let out = run(&text(5), &[]).unwrap();
        assert_eq!(out.as_ints().unwrap(), [32639 * 127 - 15 + 5, -7 * 32639 - 21 + 10, 254 + 5 + 5, -14 + 7 + 10]);
        let message = run(&text(2_147_483_000), &[]).unwrap_err().to_string();
        assert_eq!(message, "node `y`: the accumulator of row 0, channel 0 is 2151628138, which is not an i32");
    }

    #[test]
    fn requantize_is_the_formula() {
        let text = "graph @g() -> (%y) { %acc = const [100, -100, 2147483647, -2147483648, 1, 3] : i32[3, 2]
            %m = const [32769, 65535] : i32[2] %s = const [17, 16] : i32[2]
            %y = requantize %acc, %m, %s {lo = -100, zero_point = 2} : qs8[3, 2] }";
        // 100 * 32769 / 2^17 = 25.0008, -100 * 65535 / 2^16 = -99.998.
        assert_eq!(run(text, &[]).unwrap().as_ints().unwrap(), [27, -98, 127, -100, 2, 5]);
    }

    #[test]
    fn a_multiplier_that_breaks_its_rules_is_an_error() {
        let graph = crate::text::parse(
            "graph @g(%m: i32[1]) -> (%y) { %acc = const [1] : i32[1] %s = const [17] : i32[1]
            %y = requantize %acc, %m, %s : qs8[1] }",
        );
        let m = crate::interp::Tensor::ints(crate::TensorType::plain(crate::DType::I32, [1]), vec![32768]);
        let message = crate::interp::run(&graph.unwrap(), &[("m".to_owned(), m)].into()).unwrap_err().to_string();
        assert!(message.starts_with("node `y`: channel 0: multiplier 32768 with shift 17 is not odd"), "{message}");
    }

    #[test]
    fn tables_start_at_the_lowest_code() {
        let table: Vec<String> = (0..256).map(|i| (i % 16).to_string()).collect();
        let lookup = |elem: &str, codes: &str| {
            let text = format!(
                "graph @g() -> (%y) {{ %x = const [{codes}] : {elem}[3] %t = const [{}] : qu4[256]
                %y = lookup %x, %t : qu4[3] }}",
                table.join(", ")
            );
            run(&text, &[]).unwrap().as_ints().unwrap().to_vec()
        };
        assert_eq!(lookup("qs8", "-128, 0, 127"), [0, 0, 15]);
        assert_eq!(lookup("qu8", "0, 1, 255"), [0, 1, 15]);
    }

    #[test]
    fn the_exit_multiplies_in_f64_and_rounds_once() {
        let text = "graph @g() -> (%y) { %acc = const [16777217, -3] : i32[2] %s = const [0.1, 0.3] : f64[2]
            %y = dequantize %acc, %s {zero_point = 1} : f32[2] }";
        let out = run(text, &[]).unwrap();
        assert_eq!(out.as_f32().unwrap(), [(16_777_216.0 * 0.1) as f32, (-4.0 * 0.3) as f32]);
    }

    proptest::proptest! {
        #[test]
        fn requantize_is_the_rounded_product(
            acc in -2_147_483_648i64..=2_147_483_647,
            small in -100_000i64..100_000,
            half in 16384u32..=32767,
            shift in 1u32..=62,
            z in -8i64..=7,
        ) {
            let multiplier = Multiplier::new(2 * half + 1, shift).unwrap();
            for acc in [acc, small] {
                let text = format!(
                    "graph @g() -> (%y) {{ %acc = const [{acc}] : i32[1] %m = const [{}] : i32[1] %s = const [{shift}] : i32[1]
                    %y = requantize %acc, %m, %s {{zero_point = {z}}} : qs8[1] }}",
                    multiplier.m()
                );
                let code = run(&text, &[]).unwrap().as_ints().unwrap()[0];
                // Exact: 31 + 16 bits fit the 53 of an f64, and so does half.
                let exact = acc as f64 * multiplier.factor();
                let expected = ((exact + 0.5).floor() + z as f64).clamp(-128.0, 127.0);
                proptest::prop_assert_eq!(code as f64, expected);
                // Ties do not occur inside of the range, so this is rounding to nearest.
                if (-128.0..=127.0).contains(&exact.round_ties_even()) {
                    let nearest = (exact.round_ties_even() + z as f64).clamp(-128.0, 127.0);
                    proptest::prop_assert_eq!(code as f64, nearest);
                }
            }
        }
    }
}
