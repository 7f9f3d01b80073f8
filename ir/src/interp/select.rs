//! Operations that compare, choose and look up by index.

use std::cmp::Ordering;

use crate::{ArgReduce, BinaryFn, Compare, CompareFn, CumSum, Gather, Scatter, ScatterFn, TensorType, TopK, TopKPart};

use super::{
    Data, Fault, Tensor, elementwise, ints,
    reduce::Views,
    shape::{broadcast_offsets, gather as at_offsets},
    tensor,
};

pub(super) fn compare(compare: &Compare, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    fn truths<T: Copy + PartialOrd>(f: CompareFn, a: &[T], b: &[T], at: &[Vec<usize>; 2]) -> Result<Vec<i64>, Fault> {
        let pairs = at[0].iter().zip(&at[1]).map(|(&i, &j)| Some(i64::from(f.holds(*a.get(i)?, *b.get(j)?))));
        pairs.collect::<Option<_>>().ok_or(Fault::Internal("a view leaves its tensor"))
    }
    let (a, b) = (tensor(operands, 0)?, tensor(operands, 1)?);
    let at = [a, b].map(|x| broadcast_offsets(&x.ty.shape, &ty.shape));
    match (&a.data, &b.data) {
        (Data::F32(a), Data::F32(b)) => truths(compare.f, a, b, &at),
        (Data::F64(a), Data::F64(b)) => truths(compare.f, a, b, &at),
        (Data::Int(a), Data::Int(b)) => truths(compare.f, a, b, &at),
        _ => Err(Fault::Internal("operands of different types")),
    }
    .map(Data::Int)
}

pub(super) fn choose(operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    fn chosen<T: Copy>(truth: &[i64], a: &[T], b: &[T], at: &[Vec<usize>; 3]) -> Result<Vec<T>, Fault> {
        let one = |((&i, &j), &k): ((&usize, &usize), &usize)| {
            if *truth.get(i)? != 0 { a.get(j).copied() } else { b.get(k).copied() }
        };
        let all = at[0].iter().zip(&at[1]).zip(&at[2]).map(one);
        all.collect::<Option<_>>().ok_or(Fault::Internal("a view leaves its tensor"))
    }
    let (truth, a, b) = (tensor(operands, 0)?, tensor(operands, 1)?, tensor(operands, 2)?);
    let at = [truth, a, b].map(|x| broadcast_offsets(&x.ty.shape, &ty.shape));
    let truth = ints(operands, 0)?;
    Ok(match (&a.data, &b.data) {
        (Data::F32(a), Data::F32(b)) => Data::F32(chosen(truth, a, b, &at)?),
        (Data::F64(a), Data::F64(b)) => Data::F64(chosen(truth, a, b, &at)?),
        (Data::Int(a), Data::Int(b)) => Data::Int(chosen(truth, a, b, &at)?),
        _ => return Err(Fault::Internal("operands of different types")),
    })
}

/// An index that may count from the end, as a place; none beyond either end.
fn place(index: i64, extent: usize) -> Option<usize> {
    let extent = i64::try_from(extent).ok()?;
    let index = if index < 0 { index.checked_add(extent)? } else { index };
    usize::try_from(index).ok().filter(|_| index < extent)
}

pub(super) fn gather(gather: &Gather, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let extent = x.ty.shape.get(gather.axis).copied().unwrap_or(1);
    let lead: usize = x.ty.shape.iter().take(gather.axis).product();
    let row: usize = x.ty.shape.iter().skip(gather.axis + 1).product();
    let index = ints(operands, 1)?;
    let clamped = |index: i64| place(index, extent).unwrap_or(if index < 0 { 0 } else { extent.saturating_sub(1) });
    let mut at = Vec::with_capacity(lead * index.len() * row);
    for outer in 0..lead {
        for &index in index {
            let start = (outer * extent + clamped(index)) * row;
            at.extend(start..start + row);
        }
    }
    at_offsets(&x.data, &at)
}

pub(super) fn scatter(scatter: &Scatter, operands: &[&Tensor]) -> Result<Data, Fault> {
    fn written<T: Copy>(
        x: &[T],
        update: &[T],
        places: &[Option<usize>],
        row: usize,
        f: impl Fn(usize, T, T) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut out = x.to_vec();
        for (place, update) in places.iter().zip(update.chunks(row.max(1))) {
            let Some(place) = place else { continue };
            for (i, (out, &new)) in out.iter_mut().skip(place * row).zip(update).enumerate() {
                *out = f(place * row + i, *out, new)?;
            }
        }
        Ok(out)
    }
    let (x, update) = (tensor(operands, 0)?, tensor(operands, 2)?);
    let row: usize = x.ty.shape.iter().skip(1).product();
    let extent = x.ty.shape.first().copied().unwrap_or(1);
    let places: Vec<Option<usize>> = ints(operands, 1)?.iter().map(|&index| place(index, extent)).collect();
    let f = match scatter.f {
        ScatterFn::Replace => None,
        ScatterFn::Add => Some(BinaryFn::Add),
        ScatterFn::Mul => Some(BinaryFn::Mul),
        ScatterFn::Min => Some(BinaryFn::Min),
        ScatterFn::Max => Some(BinaryFn::Max),
    };
    Ok(match (&x.data, &update.data) {
        (Data::F32(x), Data::F32(update)) => {
            Data::F32(written(x, update, &places, row, |_, a, b| Ok(f.map_or(b, |f| f.eval_f32(a, b))))?)
        }
        (Data::F64(x), Data::F64(update)) => {
            Data::F64(written(x, update, &places, row, |_, a, b| Ok(f.map_or(b, |f| f.eval_f64(a, b))))?)
        }
        (Data::Int(old), Data::Int(update)) => Data::Int(written(old, update, &places, row, |i, a, b| match f {
            Some(f) => elementwise::int_binary(f, a, b, i, x.ty.elem),
            None => Ok(b),
        })?),
        _ => return Err(Fault::Internal("operands of different types")),
    })
}

/// The larger one first, NaN before every number.
fn descending<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    b.partial_cmp(a).unwrap_or_else(|| is_nan(b).cmp(&is_nan(a)))
}

/// The smaller one first, NaN before every number.
fn ascending<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    a.partial_cmp(b).unwrap_or_else(|| is_nan(b).cmp(&is_nan(a)))
}

/// Along an axis, `pick(row, base)` for every row.
fn along<R>(x: &Tensor, axis: usize, mut pick: impl FnMut(&[usize]) -> Result<R, Fault>) -> Result<Vec<R>, Fault> {
    let views = Views::new(&x.ty.shape, &[axis]);
    views.outer.iter().map(|&outer| pick(&views.inner.iter().map(|&i| outer + i).collect::<Vec<_>>())).collect()
}

/// The places of a row in sorted order; of equal elements the first comes first.
fn sorted<T: Copy + PartialOrd>(x: &[T], row: &[usize], largest: bool) -> Result<Vec<usize>, Fault> {
    let elements: Option<Vec<T>> = row.iter().map(|&i| x.get(i).copied()).collect();
    let elements = elements.ok_or(Fault::Internal("a view leaves its tensor"))?;
    let mut order: Vec<usize> = (0..elements.len()).collect();
    let compare = if largest { descending } else { ascending };
    order.sort_by(|&i, &j| compare(&elements[i], &elements[j]));
    Ok(order)
}

fn row_order(x: &Tensor, row: &[usize], largest: bool) -> Result<Vec<usize>, Fault> {
    match &x.data {
        Data::F32(x) => sorted(x, row, largest),
        Data::F64(x) => sorted(x, row, largest),
        Data::Int(x) => sorted(x, row, largest),
    }
}

pub(super) fn arg_reduce(op: &ArgReduce, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let extreme = |row: &[usize]| {
        // Backwards, the first one of equal elements is the last one.
        let backwards: Vec<usize> = row.iter().rev().copied().collect();
        let first = |order: Vec<usize>| order.first().copied().unwrap_or(0);
        Ok(if op.last {
            row.len() - 1 - first(row_order(x, &backwards, op.largest)?)
        } else {
            first(row_order(x, row, op.largest)?)
        } as i64)
    };
    along(x, op.axis, extreme).map(Data::Int)
}

pub(super) fn top_k(op: &TopK, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let rows = along(x, op.axis, |row| {
        let order = row_order(x, row, op.largest)?;
        Ok(order.into_iter().take(op.k).map(|i| (i, row[i])).collect::<Vec<_>>())
    })?;
    // Rows come one after the other, results lie along the axis.
    let views = Views::new(&ty.shape, &[op.axis]);
    let mut at = vec![0; ty.n_elements()];
    let mut index = vec![0; ty.n_elements()];
    for (&outer, row) in views.outer.iter().zip(rows) {
        for (&inner, (i, place)) in views.inner.iter().zip(row) {
            (at[outer + inner], index[outer + inner]) = (place, i as i64);
        }
    }
    match op.part {
        TopKPart::Indices => Ok(Data::Int(index)),
        TopKPart::Values => at_offsets(&x.data, &at),
    }
}

pub(super) fn cum_sum(op: &CumSum, operands: &[&Tensor]) -> Result<Data, Fault> {
    fn sums<T: Copy>(
        x: &[T],
        rows: &[Vec<usize>],
        op: &CumSum,
        zero: T,
        add: impl Fn(usize, T, T) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut out = x.to_vec();
        for row in rows {
            let mut sum = zero;
            for step in 0..row.len() {
                let at = row[if op.reverse { row.len() - 1 - step } else { step }];
                let next = add(at, sum, x[at])?;
                out[at] = if op.exclusive { sum } else { next };
                sum = next;
            }
        }
        Ok(out)
    }
    let x = tensor(operands, 0)?;
    let rows = along(x, op.axis, |row| Ok(row.to_vec()))?;
    Ok(match &x.data {
        Data::F32(x) => Data::F32(sums(x, &rows, op, 0.0, |_, a, b| Ok(a + b))?),
        Data::F64(x) => Data::F64(sums(x, &rows, op, 0.0, |_, a, b| Ok(a + b))?),
        Data::Int(elements) => {
            let add = |at, a, b| elementwise::int_binary(BinaryFn::Add, a, b, at, x.ty.elem);
            Data::Int(sums(elements, &rows, op, 0, add)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::{
        TensorType,
        interp::{
            Tensor,
            testing::{error, f32, y},
        },
    };

    fn index(name: &'static str, elements: &[i64]) -> (&'static str, Tensor) {
        (name, Tensor::ints(TensorType::plain(crate::DType::I64, [elements.len()]), elements.to_vec()))
    }

    #[test]
    fn comparisons_broadcast_and_nan_is_only_unequal() {
        let x = [f32("x", [2, 1], &[1.0, f32::NAN]), f32("z", [2], &[1.0, 2.0])];
        for (op, expected) in [
            ("eq", [1, 0, 0, 0]),
            ("ne", [0, 1, 1, 1]),
            ("lt", [0, 1, 0, 0]),
            ("le", [1, 1, 0, 0]),
            ("ge", [1, 0, 0, 0]),
        ] {
            assert_eq!(y(&format!("{op} %x, %z : bool[2, 2]"), &x).as_ints().unwrap(), expected, "{op}");
        }
    }

    #[test]
    fn where_chooses_element_by_element() {
        let c = ("c", Tensor::ints(TensorType::plain(crate::DType::Bool, [2, 1]), vec![1, 0]));
        let x = [c, f32("x", [2], &[1.0, 2.0]), f32("z", [], &[9.0])];
        assert_eq!(y("where %c, %x, %z : f32[2, 2]", &x).as_f32().unwrap(), [1.0, 2.0, 9.0, 9.0]);
    }

    #[test]
    fn an_index_counts_from_the_end_and_stops_at_it() {
        let x = [f32("x", [2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), index("i", &[-1, 0, 7, -9])];
        let out = y("gather %x, %i {axis = 1} : f32[2, 4]", &x);
        assert_eq!(out.as_f32().unwrap(), [2.0, 0.0, 2.0, 0.0, 5.0, 3.0, 5.0, 3.0]);
        let out = y("gather %x, %i {axis = 0} : f32[4, 3]", &x);
        assert_eq!(out.as_f32().unwrap()[..6], [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
        assert!(error("gather %x, %i {axis = 2} : f32[2]", &x).contains("axis"));
    }

    #[test]
    fn rows_are_written_in_order() {
        let x =
            [f32("x", [3, 1], &[1.0, 2.0, 3.0]), index("i", &[0, -1, 0, 5]), f32("u", [4, 1], &[5.0, 6.0, 7.0, 8.0])];
        let out = |f: &str| y(&format!("scatter %x, %i, %u {{f = {f}}} : f32[3, 1]"), &x).as_f32().unwrap().to_vec();
        assert_eq!(out("replace"), [7.0, 2.0, 6.0]);
        assert_eq!(out("add"), [13.0, 2.0, 9.0]);
        assert_eq!(out("mul"), [35.0, 2.0, 18.0]);
        assert_eq!(out("min"), [1.0, 2.0, 3.0]);
        assert_eq!(out("max"), [7.0, 2.0, 6.0]);
    }

    #[test]
    fn of_equal_elements_the_first_one_counts_unless_the_last_one_is_asked_for() {
        let x = [f32("x", [2, 3], &[1.0, 4.0, 4.0, f32::NAN, 0.0, -1.0])];
        assert_eq!(y("arg_reduce %x {axis = 1, largest} : i64[2]", &x).as_ints().unwrap(), [1, 0]);
        assert_eq!(y("arg_reduce %x {axis = 1, largest, last} : i64[2]", &x).as_ints().unwrap(), [2, 0]);
        assert_eq!(y("arg_reduce %x {axis = 0, keep_dims} : i64[1, 3]", &x).as_ints().unwrap(), [1, 1, 1]);
    }

    #[test]
    fn the_first_k_come_sorted() {
        let x = [f32("x", [3, 2], &[1.0, 9.0, 3.0, 9.0, 2.0, 7.0])];
        assert_eq!(y("top_k %x {axis = 0, k = 2, largest} : f32[2, 2]", &x).as_f32().unwrap(), [3.0, 9.0, 2.0, 9.0]);
        assert_eq!(y("top_k %x {axis = 0, k = 2, largest, indices} : i64[2, 2]", &x).as_ints().unwrap(), [1, 0, 2, 1]);
        assert_eq!(y("top_k %x {axis = 1, k = 1} : f32[3, 1]", &x).as_f32().unwrap(), [1.0, 3.0, 2.0]);
    }

    #[test]
    fn running_sums_run_both_ways() {
        let x = [f32("x", [3], &[1.0, 2.0, 4.0])];
        assert_eq!(y("cum_sum %x {axis = 0} : f32[3]", &x).as_f32().unwrap(), [1.0, 3.0, 7.0]);
        assert_eq!(y("cum_sum %x {axis = 0, exclusive} : f32[3]", &x).as_f32().unwrap(), [0.0, 1.0, 3.0]);
        assert_eq!(y("cum_sum %x {axis = 0, reverse} : f32[3]", &x).as_f32().unwrap(), [7.0, 6.0, 4.0]);
    }
}
