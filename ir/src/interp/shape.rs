//! Operations that move elements and compute none.

use crate::{Concat, Slice, TensorType, Transpose};

use super::{Data, Fault, Tensor, tensor};

/// Distance between neighbours along each axis, in elements.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut stride = 1isize;
    let mut strides: Vec<isize> = shape
        .iter()
        .rev()
        .map(|&extent| {
            let this = stride;
            stride = stride.saturating_mul(isize::try_from(extent).unwrap_or(isize::MAX));
            this
        })
        .collect();
    strides.reverse();
    strides
}

/// Where the elements of a strided view lie, row-major. `axes` holds the extent
/// and the stride of each axis, outermost first.
pub(super) fn offsets(start: usize, axes: &[(usize, isize)]) -> Vec<usize> {
    // One empty axis makes the view empty, however long the others are.
    if axes.iter().any(|&(extent, _)| extent == 0) {
        return Vec::new();
    }
    axes.iter().fold(vec![start], |outer, &(extent, stride)| {
        let inner = |at: usize| (0..extent as isize).map(move |i| at.wrapping_add_signed(stride.wrapping_mul(i)));
        outer.into_iter().flat_map(inner).collect()
    })
}

/// Where the elements of a tensor of shape `from` lie when it is broadcast to
/// `to`: an axis of extent 1 is read again and again.
pub(super) fn broadcast_offsets(from: &[usize], to: &[usize]) -> Vec<usize> {
    let lead = to.len().saturating_sub(from.len());
    let strides = strides(from);
    let axes: Vec<(usize, isize)> = to
        .iter()
        .enumerate()
        .map(|(axis, &extent)| {
            let own = axis.checked_sub(lead).filter(|&i| from.get(i).is_some_and(|&extent| extent != 1));
            (extent, own.and_then(|i| strides.get(i).copied()).unwrap_or(0))
        })
        .collect();
    offsets(0, &axes)
}

/// The elements at some offsets.
pub(super) fn gather(data: &Data, at: &[usize]) -> Result<Data, Fault> {
    fn pick<T: Copy>(elements: &[T], at: &[usize]) -> Result<Vec<T>, Fault> {
        let outside = Fault::Internal("a view leaves its tensor");
        at.iter().map(|&i| elements.get(i).copied().ok_or(outside.clone())).collect()
    }
    Ok(match data {
        Data::F32(x) => Data::F32(pick(x, at)?),
        Data::F64(x) => Data::F64(pick(x, at)?),
        Data::Int(x) => Data::Int(pick(x, at)?),
    })
}

pub(super) fn reshape(operands: &[&Tensor]) -> Result<Data, Fault> {
    Ok(tensor(operands, 0)?.data.clone())
}

pub(super) fn transpose(transpose: &Transpose, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    let strides = strides(&x.ty.shape);
    let axes: Option<Vec<(usize, isize)>> =
        transpose.perm.iter().map(|&axis| Some((*x.ty.shape.get(axis)?, *strides.get(axis)?))).collect();
    gather(&x.data, &offsets(0, &axes.ok_or(Fault::Internal("a permutation names a missing axis"))?))
}

pub(super) fn slice(slice: &Slice, operands: &[&Tensor]) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    gather(&x.data, &slice_offsets(slice, &x.ty.shape))
}

/// Where the elements of a slice lie in a tensor of this shape.
pub(super) fn slice_offsets(slice: &Slice, shape: &[usize]) -> Vec<usize> {
    let strides = strides(shape);
    let parts = || slice.axes.iter().zip(&strides);
    let start = parts().map(|(axis, &stride)| axis.start * stride as usize).sum();
    let axes: Vec<(usize, isize)> = parts().map(|(axis, &stride)| (axis.len, axis.step.wrapping_mul(stride))).collect();
    offsets(start, &axes)
}

pub(super) fn expand(operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    let x = tensor(operands, 0)?;
    gather(&x.data, &broadcast_offsets(&x.ty.shape, &ty.shape))
}

pub(super) fn concat(concat: &Concat, operands: &[&Tensor], ty: &TensorType) -> Result<Data, Fault> {
    /// Blocks of `row` elements of each part in turn.
    fn interleave<T: Copy>(parts: &[(&[T], usize)], n_rows: usize) -> Result<Vec<T>, Fault> {
        let mut out = Vec::new();
        for i in 0..n_rows {
            for &(elements, row) in parts {
                let block = elements.get(i * row..(i + 1) * row);
                out.extend_from_slice(block.ok_or(Fault::Internal("a part is shorter than its type"))?);
            }
        }
        Ok(out)
    }
    fn parts<'a, T>(
        operands: &[&'a Tensor],
        axis: usize,
        elements: impl Fn(&'a Tensor) -> Option<&'a [T]>,
    ) -> Result<Vec<(&'a [T], usize)>, Fault> {
        let part = |x: &&'a Tensor| Some((elements(x)?, x.ty.shape.get(axis..)?.iter().product()));
        let all: Option<Vec<(&[T], usize)>> = operands.iter().map(part).collect();
        all.ok_or(Fault::Internal("parts of different types"))
    }
    let n_rows = ty.shape.iter().take(concat.axis).product();
    Ok(match tensor(operands, 0)?.data {
        Data::F32(_) => Data::F32(interleave(&parts(operands, concat.axis, Tensor::as_f32)?, n_rows)?),
        Data::F64(_) => Data::F64(interleave(&parts(operands, concat.axis, Tensor::as_f64)?, n_rows)?),
        Data::Int(_) => Data::Int(interleave(&parts(operands, concat.axis, Tensor::as_ints)?, n_rows)?),
    })
}

#[cfg(test)]
mod tests {
    use crate::interp::testing::{f32, run, y};

    fn count(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
    }

    #[test]
    fn transpose_permutes_axes() {
        let out = y("transpose %x {perm = [2, 0, 1]} : f32[3, 1, 2]", &[f32("x", [1, 2, 3], &count(6))]);
        assert_eq!(out.as_f32().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn slices_may_run_backwards() {
        let x = [f32("x", [3, 4], &count(12))];
        let out = y("slice %x {start = [2, 3], len = [2, 2], step = [-2, -3]} : f32[2, 2]", &x);
        assert_eq!(out.as_f32().unwrap(), [11.0, 8.0, 3.0, 0.0]);
        let out = y("slice %x {start = [0, 1], len = [3, 1]} : f32[3, 1]", &x);
        assert_eq!(out.as_f32().unwrap(), [1.0, 5.0, 9.0]);
        assert!(y("slice %x {start = [9, 1], len = [0, 1]} : f32[0, 1]", &x).data.is_empty());
    }

    #[test]
    fn concat_joins_along_any_axis() {
        let inputs = [f32("x", [2, 1], &[1.0, 2.0]), f32("z", [2, 2], &[3.0, 4.0, 5.0, 6.0])];
        let out = y("concat %x, %z, %x {axis = 1} : f32[2, 4]", &inputs);
        assert_eq!(out.as_f32().unwrap(), [1.0, 3.0, 4.0, 1.0, 2.0, 5.0, 6.0, 2.0]);
        let out = y("concat %z, %z {axis = 0} : f32[4, 2]", &inputs);
        assert_eq!(out.as_f32().unwrap(), [3.0, 4.0, 5.0, 6.0, 3.0, 4.0, 5.0, 6.0]);
        let empty = [f32("x", [2, 0], &[]), f32("z", [2, 1], &[1.0, 2.0])];
        assert_eq!(y("concat %x, %z {axis = 1} : f32[2, 1]", &empty).as_f32().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn expand_repeats_axes_of_extent_one() {
        let out = y("expand %x : f32[2, 2, 2]", &[f32("x", [2, 1], &[1.0, 2.0])]);
        assert_eq!(out.as_f32().unwrap(), [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(y("expand %x : f32[2, 0]", &[f32("x", [2, 1], &[1.0, 2.0])]).data.is_empty());
    }

    #[test]
    fn codes_move_like_numbers() {
        let text = "graph @g() -> (%y) { %q = const [1, -2, 3, -4] : qs4[2, 2]
            %t = transpose %q {perm = [1, 0]} : qs4[2, 2] %y = reshape %t : qs4[4] }";
        assert_eq!(run(text, &[]).unwrap().as_ints().unwrap(), [1, 3, -2, -4]);
    }
}
