//! Products of matrices. The backward nodes are products too; an executor reads
//! transposed operands by their strides, so the transposes cost nothing.

use qail_ir::{Op, Reduce, ReduceFn, TypeError, ValueId};

use super::Builder;

/// Of `y[.., M, N] = a[.., M, K] * b[.., K, N]`: `da = g * b^T`, `db = a^T * g`,
/// summed over the batch axes that were broadcast.
pub(super) fn matmul(
    builder: &mut Builder<'_>,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [a, b] = *operands else { return Err(TypeError::new("matmul", "two operands", &[])) };
    let (shape_a, shape_b) = (builder.shape(a), builder.shape(b));
    if slot == 0 {
        let b = builder.transposed(b)?;
        let product = builder.matmul(g, b)?;
        return builder.summed_to(product, &shape_a);
    }
    if shape_b.len() == 2 {
        // One matrix for all rows: one product over all of them, instead of one
        // for each batch and their sum.
        return rows_product(builder, a, g);
    }
    let a = builder.transposed(a)?;
    let product = builder.matmul(a, g)?;
    builder.summed_to(product, &shape_b)
}

/// Of `y[.., N] = x[.., K] * w[K, N] + b[N]`: `dx = g * w^T`, `dw = x^T * g`,
/// `db` the sum of `g` over the rows.
pub(super) fn linear(
    builder: &mut Builder<'_>,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let [x, w, _] = *operands else { return Err(TypeError::new("linear", "three operands", &[])) };
    let shape = builder.shape(x);
    match slot {
        0 => {
            // A row alone is a matrix of one row.
            let g = if shape.len() < 2 { builder.rows(g)? } else { g };
            let w = builder.transposed(w)?;
            let product = builder.matmul(g, w)?;
            builder.reshaped(product, shape)
        }
        1 => rows_product(builder, x, g),
        _ => summed_rows(builder, g, shape.len()),
    }
}

/// The gradient of a bias.
fn summed_rows(builder: &mut Builder<'_>, g: ValueId, rank: usize) -> Result<ValueId, TypeError> {
    let axes: Vec<usize> = (0..rank.saturating_sub(1)).collect();
    if axes.is_empty() {
        return Ok(g);
    }
    builder.add(Op::Reduce(Reduce { f: ReduceFn::Sum, axes, keep_dims: false }), &[g])
}

/// The same in groups, each of them a matrix of a batch: of `y[r, g, n] = sum_k x[r, g, k] w[k, g, n]`.
pub(super) fn linear_in_groups(
    builder: &mut Builder<'_>,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
    groups: usize,
) -> Result<ValueId, TypeError> {
    let [x, w, _] = *operands else { return Err(TypeError::new("linear", "three operands", &[])) };
    let (shape, weights) = (builder.shape(x), builder.shape(w));
    let [k, n] = weights[..] else { return Err(TypeError::new("linear", "weights with two axes", &[])) };
    let rows = shape.split_last().map_or(1, |(_, lead)| lead.iter().product());
    let channels = n / groups.max(1);
    let grouped = builder.reshaped(g, vec![rows, groups, channels])?;
    match slot {
        0 => {
            let g = builder.transposed_by(grouped, vec![1, 0, 2])?;
            let w = builder.reshaped(w, vec![k, groups, channels])?;
            let w = builder.transposed_by(w, vec![1, 2, 0])?;
            let product = builder.matmul(g, w)?;
            let product = builder.transposed_by(product, vec![1, 0, 2])?;
            builder.reshaped(product, shape)
        }
        1 => {
            let x = builder.reshaped(x, vec![rows, groups, k])?;
            let x = builder.transposed_by(x, vec![1, 2, 0])?;
            let g = builder.transposed_by(grouped, vec![1, 0, 2])?;
            let product = builder.matmul(x, g)?;
            let product = builder.transposed_by(product, vec![1, 0, 2])?;
            builder.reshaped(product, weights)
        }
        _ => summed_rows(builder, g, shape.len()),
    }
}

/// `x^T * g` over all rows.
fn rows_product(builder: &mut Builder<'_>, x: ValueId, g: ValueId) -> Result<ValueId, TypeError> {
    let (x, g) = (builder.rows(x)?, builder.rows(g)?);
    let x = builder.transposed(x)?;
    builder.matmul(x, g)
}
