//! Gather with known indices: a table lookup now, or slices of a computed
//! tensor. Attention splits its packed projections this way.

use qail_ir::{Concat, ConstData, Constant, Op, Reshape, Slice, SliceAxis, TensorType};

use super::{
    OpError,
    builder::{self, Tensor},
    cx::{self, NodeCx},
    slice,
};

/// Most slices that one node becomes.
const MAX_RUNS: usize = 64;

/// Elements at `indices` along an axis.
pub(super) fn gather(cx: &mut NodeCx<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = cx.operand(0)?;
    let indices = cx.operand(1)?;
    let old = cx.shape(x);
    let axis = cx::axis(cx.int("axis")?.unwrap_or(0), old.len())?;
    let index_shape = cx.shape(indices);
    let list = cx.ints(1, "list of indices")?.unwrap_or_default();
    let list: Vec<usize> = list.iter().map(|&i| cx::axis(i, old[axis])).collect::<Result<_, _>>()?;
    let mut shape = old[..axis].to_vec();
    shape.extend(&index_shape);
    shape.extend(&old[axis + 1..]);

    if let Some(constant) = cx.constant(x).cloned() {
        let ty = TensorType { elem: constant.ty.elem, shape };
        builder::check_size(&ty)?;
        cx.builder.reserve(&ty)?;
        let data = lookup(&constant, axis, &list)?;
        return Ok(vec![cx.known(Constant { ty, data })]);
    }
    let runs = runs(&list);
    if runs.is_empty() || runs.len() > MAX_RUNS {
        let remedy = "reorder the weights instead of the values before exporting";
        return Err(OpError::unsupported(format!("its {} indices follow no pattern", list.len()), remedy));
    }
    let mut parts = Vec::with_capacity(runs.len());
    for (i, &run) in runs.iter().enumerate() {
        let mut axes = slice::whole(&old);
        axes[axis] = run;
        parts.push(cx.emit_part(&format!("part{i}"), Op::Slice(Slice { axes }), &[x])?);
    }
    let joined = match parts[..] {
        [one] => one,
        _ => cx.emit_part("joined", Op::Concat(Concat { axis }), &parts)?,
    };
    if cx.ty(joined).shape == shape {
        return Ok(vec![joined]);
    }
    Ok(vec![cx.emit(Op::Reshape(Reshape { shape }), &[joined])?])
}

/// Splits indices into arithmetic progressions.
fn runs(list: &[usize]) -> Vec<SliceAxis> {
    let mut runs: Vec<SliceAxis> = Vec::new();
    for &i in list {
        if let Some(run) = runs.last_mut() {
            let reach = |n: usize| run.start as isize + run.step * n as isize;
            let distance = i as isize - run.start as isize;
            if run.len == 1 && distance != 0 {
                (run.len, run.step) = (2, distance);
                continue;
            }
            if run.len > 1 && reach(run.len) == i as isize {
                run.len += 1;
                continue;
            }
        }
        runs.push(SliceAxis { start: i, len: 1, step: 1 });
    }
    runs
}

fn lookup(constant: &Constant, axis: usize, list: &[usize]) -> Result<ConstData, OpError> {
    let shape = &constant.ty.shape;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut bytes = Vec::new();
    for o in 0..outer {
        for &i in list {
            let start = (o * shape[axis] + i) * inner;
            bytes.extend(constant.read_bytes(start..start + inner)?);
        }
    }
    Ok(ConstData::Bytes(bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_become_as_few_slices_as_progressions() {
        let run = |start, len, step| SliceAxis { start, len, step };
        assert_eq!(runs(&[2]), [run(2, 1, 1)]);
        assert_eq!(runs(&[0, 2, 4, 5]), [run(0, 3, 2), run(5, 1, 1)]);
        assert_eq!(runs(&[3, 2, 1]), [run(3, 3, -1)]);
        assert_eq!(runs(&[1, 1]), [run(1, 1, 1), run(1, 1, 1)]);
    }
}
