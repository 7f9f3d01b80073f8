//! A large weight matrix, transposed and scaled when it is read: the original
//! stays in the file.

use std::{fmt, io, sync::Arc};

use qail_ir::{Block, ConstData, ConstSource, Constant, TensorType};

/// `scale * inner^T`, element by element in `f32`.
#[derive(Debug)]
struct Transposed {
    inner: Constant,
    rows: usize,
    columns: usize,
    scale: f32,
}

/// `scale * matrix^T` of a matrix `[rows, columns]` of `f32`.
pub(super) fn transposed(matrix: Constant, rows: usize, columns: usize, scale: f32) -> Constant {
    let source = Transposed { inner: matrix, rows, columns, scale };
    Constant { ty: TensorType::f32([columns, rows]), data: ConstData::Source(Arc::new(source)) }
}

impl ConstSource for Transposed {
    fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let error = |what: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, what.to_string());
        let first = usize::try_from(start / 4).map_err(|e| error(&e))?;
        let end = first.saturating_add(out.len() / 4);
        if !start.is_multiple_of(4) || !out.len().is_multiple_of(4) || self.rows == 0 {
            return Err(error(&"a read cuts through an element"));
        }
        if end > self.rows.saturating_mul(self.columns) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Rows `k0..k1` of the result are touched: the same columns of the
        // original, read once a row of it.
        let (k0, k1) = (first / self.rows, end.div_ceil(self.rows));
        for n in 0..self.rows {
            let at = n * self.columns;
            let elements = self.inner.read_f32(at + k0..at + k1).map_err(|e| error(&e))?;
            for (k, x) in (k0..).zip(elements) {
                let to = (k * self.rows + n).checked_sub(first).and_then(|i| out.get_mut(i * 4..i * 4 + 4));
                if let Some(to) = to {
                    to.copy_from_slice(&(x * self.scale).to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn read_block(&self, block: &Block, out: &mut [u8]) -> io::Result<()> {
        let (rows, columns) = (block.rows.clone(), block.columns.clone());
        let n_columns = columns.len();
        let (first_row, n_rows) = (rows.start, rows.len());
        let elements = self.inner.read_block_f32(columns, first_row..first_row.saturating_add(n_rows));
        let elements = elements.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let (words, _) = out.as_chunks_mut::<4>();
        for (n, run) in elements.chunks_exact(n_rows.max(1)).enumerate() {
            for (to, x) in words.iter_mut().skip(n).step_by(n_columns.max(1)).zip(run) {
                *to = (x * self.scale).to_le_bytes();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_part_of_the_whole() {
        let matrix = Constant::f32([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let turned = transposed(matrix, 2, 3, 2.0);
        let whole = [2.0, 8.0, 4.0, 10.0, 6.0, 12.0];
        assert_eq!(turned.all_f32().unwrap(), whole);
        for start in 0..6 {
            for end in start..=6 {
                assert_eq!(turned.read_f32(start..end).unwrap(), whole[start..end]);
            }
        }
        assert_eq!(turned.read_block_f32(0..3, 0..2).unwrap(), whole);
        assert_eq!(turned.read_block_f32(1..3, 1..2).unwrap(), [10.0, 12.0]);
    }
}
