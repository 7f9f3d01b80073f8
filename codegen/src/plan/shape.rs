//! Strides: how a shape lies in memory, and how few axes say the same.

use crate::kernels::RANK;

/// Elements from one index to the next along every axis of `shape`, for rows
/// (the last axis) that are `stride` elements apart. None if that wraps.
pub(crate) fn strides(shape: &[u64], stride: u64) -> Option<Vec<i64>> {
    let mut result = vec![1i64; shape.len()];
    let mut step = i64::try_from(stride).ok()?;
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        *result.get_mut(axis)? = step;
        step = step.checked_mul(i64::try_from(*shape.get(axis)?).ok()?)?;
    }
    Some(result)
}

/// Strides of an operand of shape `from` that broadcasts to `to`: axes align at
/// the end, an extent of 1 that grows gets stride 0. None if it does not.
pub(crate) fn broadcast(from: &[u64], own: &[i64], to: &[u64]) -> Option<Vec<i64>> {
    let missing = to.len().checked_sub(from.len())?;
    let mut result = vec![0; missing];
    for ((&extent, &stride), &target) in from.iter().zip(own).zip(to.get(missing..)?) {
        result.push(match extent {
            _ if extent == target => stride,
            1 => 0,
            _ => return None,
        });
    }
    Some(result)
}

/// An index space of at most [`RANK`] axes with the same elements in the same
/// order, and the strides of each operand in it. None if it takes more axes.
pub(crate) fn collapse<const N: usize>(
    shape: &[u64],
    operands: [&[i64]; N],
) -> Option<([u64; RANK], [[i64; RANK]; N])> {
    // Axes, innermost first.
    let mut axes: Vec<(u64, [i64; N])> = Vec::new();
    for axis in (0..shape.len()).rev() {
        let extent = *shape.get(axis)?;
        if extent == 1 {
            continue;
        }
        let mut here = [0i64; N];
        for (stride, operand) in here.iter_mut().zip(operands) {
            *stride = *operand.get(axis)?;
        }
        if let Some((inner, inner_strides)) = axes.last_mut() {
            let n = i64::try_from(*inner).ok()?;
            let joins = inner_strides.iter().zip(&here).all(|(i, o)| i.checked_mul(n) == Some(*o));
            if let (true, Some(joined)) = (joins, inner.checked_mul(extent)) {
                *inner = joined;
                continue;
            }
        }
        axes.push((extent, here));
    }
    let mut extents = [1u64; RANK];
    let mut strides = [[0i64; RANK]; N];
    for (i, (extent, here)) in axes.iter().enumerate() {
        let at = RANK.checked_sub(i + 1)?;
        *extents.get_mut(at)? = *extent;
        for (operand, &stride) in strides.iter_mut().zip(here) {
            *operand.get_mut(at)? = stride;
        }
    }
    Some((extents, strides))
}

/// Number of elements; saturates.
pub(crate) fn count(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |n, &extent| n.saturating_mul(extent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_rows_have_their_own_stride() {
        assert_eq!(strides(&[2, 3, 5], 32).unwrap(), [96, 32, 1]);
        assert_eq!(strides(&[7], 32).unwrap(), [1]);
        assert_eq!(strides(&[], 1).unwrap(), [0i64; 0]);
        assert_eq!(strides(&[u64::MAX, 2, 1], 1 << 62), None);
    }

    #[test]
    fn broadcasting_aligns_at_the_end() {
        assert_eq!(broadcast(&[3, 1], &[1, 1], &[2, 3, 4]).unwrap(), [0, 1, 0]);
        assert_eq!(broadcast(&[3], &[1], &[2, 4]), None);
    }

    #[test]
    fn contiguous_axes_become_one() {
        let (extents, [a, b]) = collapse(&[2, 1, 3, 4], [&[12, 0, 4, 1], &[4, 9, 0, 1]]).unwrap();
        assert_eq!(extents, [1, 1, 1, 2, 3, 4]);
        assert_eq!((a, b), ([0, 0, 0, 12, 4, 1], [0, 0, 0, 4, 0, 1]));
        let (extents, [a]) = collapse(&[2, 1, 3, 4], [&[12, 12, 4, 1]]).unwrap();
        assert_eq!((extents, a), ([1, 1, 1, 1, 1, 24], [0, 0, 0, 0, 0, 1]));
        assert!(collapse(&[2; 7], [&[0, 1, 0, 1, 0, 1, 0]]).is_none());
    }
}
