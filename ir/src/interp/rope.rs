//! Values that are turned or scaled by others, every step rounded to `f32`.

use crate::Rope;

use super::{Data, Fault, Tensor, f32s, shape::broadcast_offsets, tensor};

const OUTSIDE: Fault = Fault::Internal("a view leaves its tensor");

/// `x` and the elements of two operands that broadcast to it.
fn beside(operands: &[&Tensor]) -> Result<Vec<[f32; 3]>, Fault> {
    let shape = &tensor(operands, 0)?.ty.shape;
    let of = |slot: usize| -> Result<(&[f32], Vec<usize>), Fault> {
        Ok((f32s(operands, slot)?, broadcast_offsets(&tensor(operands, slot)?.ty.shape, shape)))
    };
    let ((a, at_a), (b, at_b)) = (of(1)?, of(2)?);
    let places = f32s(operands, 0)?.iter().zip(at_a.into_iter().zip(at_b));
    places.map(|(&x, (i, j))| Some([x, *a.get(i)?, *b.get(j)?])).collect::<Option<_>>().ok_or(OUTSIDE)
}

pub(super) fn rope(op: &Rope, operands: &[&Tensor]) -> Result<Data, Fault> {
    let width = tensor(operands, 0)?.ty.shape.last().copied().unwrap_or(0);
    let mut out = Vec::new();
    for row in beside(operands)?.chunks_exact(width.max(1)) {
        for (i, &[x, cos, sin]) in row.iter().enumerate() {
            let (partner, negated) = op.partner(i, width);
            let &[other, ..] = row.get(partner).ok_or(OUTSIDE)?;
            let turned = if negated { -other } else { other };
            out.push(x * cos + turned * sin);
        }
    }
    Ok(Data::F32(out))
}

pub(super) fn film(operands: &[&Tensor]) -> Result<Data, Fault> {
    Ok(Data::F32(beside(operands)?.into_iter().map(|[x, scale, shift]| x * scale + shift).collect()))
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{error, f32, y};

    #[test]
    fn halves_turn_into_each_other() {
        let inputs = [
            f32("x", [2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
            f32("c", [4], &[0.0, 1.0, 0.0, 1.0]),
            f32("s", [2, 1], &[1.0, 10.0]),
        ];
        // (-3, -4, 1, 2) and (-7, -8, 5, 6) times the sine of their row.
        let halves = y("rope %x, %c, %s : f32[2, 4]", &inputs);
        assert_eq!(halves.as_f32().unwrap(), [-3.0, -2.0, 1.0, 6.0, -70.0, -74.0, 50.0, 68.0]);
        let pairs = y("rope %x, %c, %s {interleaved} : f32[2, 4]", &inputs);
        assert_eq!(pairs.as_f32().unwrap(), [-2.0, 3.0, -4.0, 7.0, -60.0, 56.0, -80.0, 78.0]);
    }

    #[test]
    fn both_products_and_the_sum_are_rounded() {
        let e = f32::EPSILON;
        // 1 + 2 e + e^2 loses its last term before the sum: a fused sum would keep it.
        let inputs = [f32("x", [1], &[1.0 + e]), f32("a", [1], &[1.0 + e]), f32("b", [1], &[-1.0 - 2.0 * e])];
        assert_eq!(y("film %x, %a, %b : f32[1]", &inputs).as_f32().unwrap(), [0.0]);
        let x = f32("x", [2], &[1.0 + e, -1.0 - 2.0 * e]);
        let inputs = [x, f32("c", [2], &[1.0 + e, 0.0]), f32("s", [2], &[-1.0, 0.0])];
        assert_eq!(y("rope %x, %c, %s : f32[2]", &inputs).as_f32().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn features_are_scaled_and_shifted() {
        let inputs = [
            f32("x", [1, 2, 2], &[1.0, 2.0, 3.0, 4.0]),
            f32("a", [1, 2, 1], &[10.0, -1.0]),
            f32("b", [2, 1], &[0.5, 0.25]),
        ];
        let out = y("film %x, %a, %b : f32[1, 2, 2]", &inputs);
        assert_eq!(out.as_f32().unwrap(), [10.5, 20.5, -2.75, -3.75]);
    }

    #[test]
    fn rows_have_pairs_and_operands_broadcast_to_them() {
        let (x, one) = (f32("x", [3], &[1.0; 3]), f32("c", [1], &[1.0]));
        let odd = error("rope %x, %c, %c : f32[3]", &[x.clone(), one.clone()]);
        assert!(odd.contains("even D"), "{odd}");
        let wider = error("film %c, %x, %x : f32[3]", &[x, one]);
        assert!(wider.contains("broadcast to it"), "{wider}");
    }
}
