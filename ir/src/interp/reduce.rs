//! Functions of many numbers, in index order.

use crate::{BinaryFn, Reduce, ReduceFn};

use super::{
    Data, Fault, Tensor,
    elementwise::int_binary,
    f32s,
    shape::{offsets, strides},
    tensor,
};

/// Of no numbers the sum is 0, the mean NaN, the minimum `inf` and the maximum
/// `-inf`. NaN wins over every other number.
pub(super) fn reduce(reduce: &Reduce, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let Views { inner, outer } = Views::new(&x.ty.shape, &reduce.axes);
    if let Data::Int(elements) = &x.data {
        return whole(reduce.f, x, elements, &inner, &outer).map(Data::Int);
    }
    let elements = f32s(operands, 0)?;
    let one = |outer: usize| {
        let numbers = inner.iter().map(|&i| elements.get(outer + i).copied().unwrap_or(f32::NAN));
        match reduce.f {
            ReduceFn::Sum => numbers.fold(0.0, |sum, x| sum + x),
            ReduceFn::Mean => numbers.fold(0.0, |sum, x| sum + x) / inner.len() as f32,
            ReduceFn::Min => numbers.fold(f32::INFINITY, |min, x| BinaryFn::Min.eval_f32(min, x)),
            ReduceFn::Max => numbers.fold(f32::NEG_INFINITY, |max, x| BinaryFn::Max.eval_f32(max, x)),
            ReduceFn::Prod => numbers.fold(1.0, |product, x| product * x),
        }
    };
    Ok(Data::F32(outer.into_iter().map(one).collect()))
}

/// Integers and codes: exact, or an error. There is no extreme one of no numbers.
fn whole(f: ReduceFn, x: &Tensor, elements: &[i64], inner: &[usize], outer: &[usize]) -> Result<Vec<i64>, Fault> {
    let (f, neutral) = match f {
        ReduceFn::Sum => (BinaryFn::Add, Some(0)),
        ReduceFn::Prod => (BinaryFn::Mul, Some(1)),
        ReduceFn::Min => (BinaryFn::Min, None),
        ReduceFn::Max => (BinaryFn::Max, None),
        ReduceFn::Mean => return Err(Fault::Internal("a mean of integers")),
    };
    let one = |(index, &outer): (usize, &usize)| {
        let mut result = neutral;
        for number in inner.iter().filter_map(|&i| elements.get(outer + i).copied()) {
            result = Some(match result {
                Some(so_far) => int_binary(f, so_far, number, index, x.ty.elem)?,
                None => number,
            });
        }
        result.ok_or(Fault::Undefined { index, what: "the extreme one of no integers" })
    };
    outer.iter().enumerate().map(one).collect()
}

/// A tensor as numbers that become one, and places where that happens.
pub(super) struct Views {
    /// Offsets of the numbers from the first of them.
    pub(super) inner: Vec<usize>,
    /// Where the first of them lies, for every element of the result.
    pub(super) outer: Vec<usize>,
}

impl Views {
    pub(super) fn new(shape: &[usize], reduced: &[usize]) -> Self {
        let strides = strides(shape);
        let view = |is_reduced: bool| {
            let all = shape.iter().copied().zip(strides.iter().copied()).enumerate();
            let axes: Vec<(usize, isize)> =
                all.filter(|(axis, _)| reduced.contains(axis) == is_reduced).map(|(_, axis)| axis).collect();
            offsets(0, &axes)
        };
        Self { inner: view(true), outer: view(false) }
    }
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{f32, y};

    #[test]
    fn axes_disappear_or_stay_with_extent_one() {
        let x = [f32("x", [2, 3, 1], &[1.0, 2.0, 6.0, -1.0, -2.0, -9.0])];
        assert_eq!(y("reduce_mean %x {axes = [1]} : f32[2, 1]", &x).as_f32().unwrap(), [3.0, -4.0]);
        assert_eq!(
            y("reduce_sum %x {axes = [0, 2], keep_dims} : f32[1, 3, 1]", &x).as_f32().unwrap(),
            [0.0, 0.0, -3.0]
        );
        assert_eq!(y("reduce_max %x {axes = [0, 1, 2]} : f32[]", &x).as_f32().unwrap(), [6.0]);
        assert_eq!(y("reduce_min %x {axes = []} : f32[2, 3, 1]", &x).as_f32(), x[0].1.as_f32());
    }

    #[test]
    fn sums_run_in_index_order() {
        let x = [1e8, 1.0, -1e8, 1.0];
        let out = y("reduce_sum %x {axes = [0]} : f32[]", &[f32("x", [4], &x)]);
        assert_eq!(out.as_f32().unwrap(), [((1e8f32 + 1.0) - 1e8) + 1.0]);
    }

    #[test]
    fn nan_wins() {
        let x = [f32("x", [3], &[1.0, f32::NAN, 2.0])];
        for op in ["reduce_min", "reduce_max", "reduce_sum", "reduce_mean"] {
            assert!(y(&format!("{op} %x {{axes = [0]}} : f32[]"), &x).as_f32().unwrap()[0].is_nan());
        }
    }

    #[test]
    fn of_no_numbers_the_result_is_the_neutral_one() {
        let of_none = |op: &str| y(&format!("{op} %x {{axes = [1]}} : f32[2]"), &[f32("x", [2, 0], &[])]);
        assert_eq!(of_none("reduce_sum").as_f32().unwrap(), [0.0, 0.0]);
        assert!(of_none("reduce_mean").as_f32().unwrap()[0].is_nan());
        assert_eq!(of_none("reduce_min").as_f32().unwrap(), [f32::INFINITY; 2]);
        assert_eq!(of_none("reduce_max").as_f32().unwrap(), [f32::NEG_INFINITY; 2]);
    }
}
