//! Pieces of backward graphs: the formulas of [`Grad`], word by word.

use crate::{BinaryGrad, FakeQuantGrad, Grad, Reduce, ReduceFn, SliceGrad, TensorType, Unary, Wrt};

use super::{
    Data, Fault, Tensor, f32s, ints, quant, reduce,
    shape::{broadcast_offsets, slice_offsets},
    tensor, window,
};

pub(super) fn grad(grad: &Grad, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    match grad {
        Grad::Unary(op) => unary(op, operands),
        Grad::Binary(op) => binary(op, operands, ty),
        Grad::Reduce(op) => extreme(op, operands),
        Grad::Slice(op) => slice(op, operands, ty),
        Grad::FakeQuant(op) => fake_quant(op, operands),
        Grad::Unfold(op) => window::unfold_grad(op, operands),
    }
    .map(Data::F32)
}

/// `f'(x) * g` in `f64`, rounded once.
fn unary(unary: &Unary, operands: &[&Tensor]) -> Result<Vec<f32>, Fault> {
    let (x, g) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let one = |(&x, &g): (&f32, &f32)| (unary.f.derivative_f64(f64::from(x)) * f64::from(g)) as f32;
    Ok(x.iter().zip(g).map(one).collect())
}

fn binary(grad: &BinaryGrad, operands: &[&Tensor], ty: &TensorType) -> Result<Vec<f32>, Fault> {
    let (a, b, g) = (f32s(operands, 0)?, f32s(operands, 1)?, f32s(operands, 2)?);
    let at = |i: usize| tensor(operands, i).map(|x| broadcast_offsets(&x.ty.shape, &ty.shape));
    let one = |((i, j), &g): ((usize, usize), &f32)| match (a.get(i), b.get(j)) {
        (Some(&a), Some(&b)) => Ok((grad.f.partial_f64(grad.wrt, f64::from(a), f64::from(b)) * f64::from(g)) as f32),
        _ => Err(Fault::Internal("a view leaves its tensor")),
    };
    at(0)?.into_iter().zip(at(1)?).zip(g).map(one).collect()
}

fn extreme(op: &Reduce, operands: &[&Tensor]) -> Result<Vec<f32>, Fault> {
    let (x, g) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let views = reduce::Views::new(&tensor(operands, 0)?.ty.shape, &op.axes);
    let mut out = vec![0.0; x.len()];
    for (&outer, &g) in views.outer.iter().zip(g) {
        let numbers = || views.inner.iter().filter_map(|&i| x.get(outer + i).map(|&x| (outer + i, x)));
        let extreme = match op.f {
            ReduceFn::Min => numbers().fold(f32::INFINITY, |min, (_, x)| min.min(x)),
            ReduceFn::Max => numbers().fold(f32::NEG_INFINITY, |max, (_, x)| max.max(x)),
            ReduceFn::Sum | ReduceFn::Mean | ReduceFn::Prod => {
                return Err(Fault::Internal("a sum has no extreme number"));
            }
        };
        let n_equal = numbers().filter(|&(_, x)| x == extreme).count();
        for (i, _) in numbers().filter(|&(_, x)| x == extreme) {
            out[i] = g / n_equal as f32;
        }
    }
    Ok(out)
}

fn slice(grad: &SliceGrad, operands: &[&Tensor], ty: &TensorType) -> Result<Vec<f32>, Fault> {
    let mut out = vec![0.0; ty.n_elements()];
    for (i, &g) in slice_offsets(&grad.slice, &grad.shape).into_iter().zip(f32s(operands, 0)?) {
        *out.get_mut(i).ok_or(Fault::Internal("a view leaves its tensor"))? = g;
    }
    Ok(out)
}

fn fake_quant(grad: &FakeQuantGrad, operands: &[&Tensor]) -> Result<Vec<f32>, Fault> {
    let (x, s) = (f32s(operands, 0)?, f32s(operands, 1)?);
    let has_zero_point = operands.len() > 3;
    let z = if has_zero_point { ints(operands, 2)?.first().copied().unwrap_or(0) as f32 } else { 0.0 };
    let g = f32s(operands, if has_zero_point { 3 } else { 2 })?;
    // Codes have at most 16 bits: exact.
    let (lo, hi) = (grad.fake.lo as f32 - z, grad.fake.hi as f32 - z);
    let channel = quant::channel(&grad.fake, &tensor(operands, 0)?.ty.shape);
    let (mut by_x, mut by_s) = (Vec::with_capacity(x.len()), vec![0f64; s.len()]);
    for (i, (&x, &g)) in x.iter().zip(g).enumerate() {
        let (Some(&s), Some(by_s)) = (s.get(channel(i)), by_s.get_mut(channel(i))) else {
            return Err(Fault::Internal("a channel without a scale"));
        };
        let v = x / s;
        let (through, slope) = if v < lo {
            (0.0, lo)
        } else if v > hi {
            (0.0, hi)
        } else {
            (g, v.round_ties_even() - v)
        };
        by_x.push(through);
        *by_s += f64::from(g) * f64::from(slope);
    }
    Ok(match grad.wrt {
        Wrt::First => by_x,
        Wrt::Second => by_s.into_iter().map(|sum| sum as f32).collect(),
    })
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{error, f32, run, y};

    #[test]
    fn a_derivative_is_multiplied_in() {
        let inputs = [f32("x", [3], &[-1.0, 0.0, 2.0]), f32("g", [3], &[10.0, 20.0, 30.0])];
        assert_eq!(y("unary_grad %x, %g {f = relu} : f32[3]", &inputs).as_f32().unwrap(), [0.0, 0.0, 30.0]);
        let clip = y("unary_grad %x, %g {f = clip(-0.5, inf)} : f32[3]", &inputs);
        assert_eq!(clip.as_f32().unwrap(), [0.0, 20.0, 30.0]);
    }

    #[test]
    fn two_operands_broadcast_and_equal_ones_share() {
        let inputs =
            [f32("a", [2, 1], &[1.0, 5.0]), f32("b", [2], &[1.0, 3.0]), f32("g", [2, 2], &[2.0, 4.0, 6.0, 8.0])];
        let by = |f: &str, wrt: usize| {
            let line = format!("binary_grad %a, %b, %g {{f = {f}, wrt = {wrt}}} : f32[2, 2]");
            y(&line, &inputs).as_f32().unwrap().to_vec()
        };
        assert_eq!(by("max", 0), [1.0, 0.0, 6.0, 8.0]);
        assert_eq!(by("max", 1), [1.0, 4.0, 0.0, 0.0]);
        assert_eq!(by("pow", 0), [2.0, 12.0, 6.0, 600.0]);
        assert_eq!(by("div", 1), [-2.0, -4.0 / 9.0, -30.0, -40.0 / 9.0]);
    }

    #[test]
    fn the_extreme_numbers_get_the_gradient() {
        let inputs = [f32("x", [2, 3], &[1.0, 7.0, 7.0, -2.0, -5.0, 0.0]), f32("g", [2, 1], &[3.0, 4.0])];
        let max = y("reduce_grad %x, %g {f = reduce_max, axes = [1], keep_dims} : f32[2, 3]", &inputs);
        assert_eq!(max.as_f32().unwrap(), [0.0, 1.5, 1.5, 0.0, 0.0, 4.0]);
        let inputs = [inputs[0].clone(), f32("g", [3], &[3.0, 4.0, 5.0])];
        let min = y("reduce_grad %x, %g {f = reduce_min, axes = [0]} : f32[2, 3]", &inputs);
        assert_eq!(min.as_f32().unwrap(), [0.0, 0.0, 0.0, 3.0, 4.0, 5.0]);
        let sum = error("reduce_grad %x, %g {f = reduce_sum, axes = [0]} : f32[2, 3]", &inputs);
        assert!(sum.contains("reduce_grad takes x and g of f32, g in the shape of the minimum or maximum"), "{sum}");
    }

    #[test]
    fn a_slice_goes_back_to_its_place() {
        let inputs = [f32("g", [2, 2], &[1.0, 2.0, 3.0, 4.0])];
        let out = y("slice_grad %g {start = [2, 0], len = [2, 2], step = [-2, 1]} : f32[3, 2]", &inputs);
        assert_eq!(out.as_f32().unwrap(), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
        let empty = y("slice_grad %g {start = [0], len = [0]} : f32[2]", &[f32("g", [0], &[])]);
        assert_eq!(empty.as_f32().unwrap(), [0.0, 0.0]);
        let wide = error("slice_grad %g {start = [0, 0], len = [2, 1]} : f32[3, 2]", &inputs);
        assert!(wide.contains("g of f32, in the shape of the slice"), "{wide}");
    }

    #[test]
    fn a_quantizer_passes_through_inside_of_its_range() {
        // v = x / s: -9.2 below, -7.0 on the bound, 0.4, 2.6, 7.4 above.
        let x = f32("x", [5], &[-4.6, -3.5, 0.2, 1.3, 3.7]);
        let inputs = [x, f32("s", [], &[0.5]), f32("g", [5], &[1.0, 2.0, 3.0, 4.0, 5.0])];
        let by_x = y("fake_quant_grad %x, %s, %g {s4, lo = -7, wrt = 0} : f32[5]", &inputs);
        assert_eq!(by_x.as_f32().unwrap(), [0.0, 2.0, 3.0, 4.0, 0.0]);
        let by_s = y("fake_quant_grad %x, %s, %g {s4, lo = -7, wrt = 1} : f32[]", &inputs);
        let inside = 3.0 * f64::from(-0.4f32) + 4.0 * f64::from(3.0 - 2.6f32);
        assert_eq!(by_s.as_f32().unwrap(), [(-7.0 + inside + 35.0) as f32]);
    }

    #[test]
    fn a_zero_point_shifts_the_range() {
        let lines = "const [3] : i32[] %y = fake_quant_grad %x, %s, %z, %g {u4, wrt = 1} : f32[]";
        let text = format!("graph @g(%x: f32[3], %s: f32[], %g: f32[3]) -> (%y) {{ %z = {lines} }}");
        // v = -4 is below 0 - 3, v = 13 above 15 - 3, v = 12 on the bound.
        let inputs = [f32("x", [3], &[-4.0, 13.0, 12.0]), f32("s", [], &[1.0]), f32("g", [3], &[1.0, 10.0, 100.0])];
        assert_eq!(run(&text, &inputs).unwrap().as_f32().unwrap(), [-3.0 + 120.0]);
    }

    #[test]
    fn channels_and_groups_have_their_own_sums() {
        let x = f32("x", [3, 2], &[0.25, 10.0, 0.25, -10.0, 0.25, 0.25]);
        let g = f32("g", [3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let inputs = [x.clone(), f32("s", [2], &[1.0, 1.0]), g.clone()];
        let channels = y("fake_quant_grad %x, %s, %g {s4, axis = 1, wrt = 1} : f32[2]", &inputs);
        assert_eq!(channels.as_f32().unwrap(), [-9.0 * 0.25, 14.0 - 32.0 - 1.5]);
        let inputs = [x, f32("s", [2, 2], &[1.0; 4]), g];
        let groups = y("fake_quant_grad %x, %s, %g {s4, axis = 1, group = 2, wrt = 1} : f32[2, 2]", &inputs);
        assert_eq!(groups.as_f32().unwrap(), [-1.0, 14.0 - 32.0, -1.25, -1.5]);
    }
}
