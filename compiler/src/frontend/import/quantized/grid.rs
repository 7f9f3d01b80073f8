//! Scales of a weight and how they lie over it: one for all, one a channel, one
//! a block.

use std::{fmt, io, sync::Arc};

use qail_ir::{ConstData, ConstSource, Constant, QuantScheme, Shape, TensorType};

/// Cells of equal size over a tensor, row-major; the last one of an axis may be
/// cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::frontend::import) struct Grid {
    /// Extents of the tensor.
    shape: Shape,
    /// Extents of a cell, at least 1.
    cell: Vec<usize>,
}

impl Grid {
    /// Cells of extents `cell` over a tensor of extents `shape`.
    pub(super) fn new(shape: Shape, cell: Vec<usize>) -> Self {
        let cell = cell.into_iter().zip(&shape).map(|(cell, &extent)| cell.clamp(1, extent.max(1))).collect();
        Self { shape, cell }
    }

    /// Number of cells along each axis.
    pub(super) fn extents(&self) -> impl Iterator<Item = usize> {
        self.shape.iter().zip(&self.cell).map(|(&extent, &cell)| extent.div_ceil(cell))
    }

    /// Number of cells.
    pub(super) fn len(&self) -> usize {
        self.extents().product()
    }

    /// The cell of element `i`.
    pub(super) fn cell_of(&self, mut i: usize) -> usize {
        let (mut cell, mut stride) = (0, 1);
        for (&extent, &size) in self.shape.iter().zip(&self.cell).rev() {
            let extent = extent.max(1);
            cell += i % extent / size * stride;
            stride *= extent.div_ceil(size);
            i /= extent;
        }
        cell
    }

    /// The grid of the transposed tensor, and where each of its cells was.
    fn transposed(&self, perm: &[usize]) -> Option<(Self, Vec<usize>)> {
        let pick = |from: &[usize]| perm.iter().map(|&axis| from.get(axis).copied()).collect::<Option<Vec<_>>>();
        let (shape, cell) = (pick(&self.shape)?, pick(&self.cell)?);
        let extents: Vec<usize> = self.extents().collect();
        let mut strides = vec![1; extents.len()];
        for axis in (1..extents.len()).rev() {
            strides[axis - 1] = strides[axis] * extents[axis];
        }
        let (new_extents, strides) = (pick(&extents)?, pick(&strides)?);
        let from = |mut i: usize| {
            let mut at = 0;
            for (extent, stride) in new_extents.iter().zip(&strides).rev() {
                at += i % extent * stride;
                i /= extent;
            }
            at
        };
        let order = (0..self.len()).map(from).collect();
        Some((Self { shape, cell }, order))
    }

    /// The grid of the same elements in another shape, if cells stay cells in the same order.
    ///
    /// Both shapes are products of the same factors, row-major. Inside of an axis a cell
    /// spans the innermost factors whole, perhaps a part of one, and 1 of those further out.
    fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        if self.extents().all(|n| n == 1) {
            return Some(Self::new(shape.to_vec(), shape.to_vec()));
        }
        let (old, new) = common_factors(&self.shape, shape)?;
        let mut cells = Vec::new();
        for (factors, &cell) in old.iter().zip(&self.cell) {
            cells.extend(split(factors, cell)?);
        }
        let mut cells = cells.into_iter();
        let merged = new.iter().map(|factors| merge(factors, cells.by_ref().take(factors.len())));
        let cell = merged.collect::<Option<Vec<usize>>>()?;
        Some(Self::new(shape.to_vec(), cell))
    }
}

/// Factors of the extent of each axis.
type Factors = Vec<Vec<usize>>;

/// Factors of the extents of two shapes: one list, cut into axes in two ways.
fn common_factors(old: &[usize], new: &[usize]) -> Option<(Factors, Factors)> {
    let (mut of_old, mut of_new) = (vec![Vec::new(); old.len()], vec![Vec::new(); new.len()]);
    let axes = |shape: &[usize]| {
        let several = shape.iter().copied().enumerate().filter(|&(_, extent)| extent != 1);
        several.collect::<Vec<(usize, usize)>>().into_iter()
    };
    let (mut olds, mut news) = (axes(old), axes(new));
    let (mut a, mut b) = (olds.next(), news.next());
    while let (Some((axis_a, rest_a)), Some((axis_b, rest_b))) = (a, b) {
        let factor = rest_a.min(rest_b);
        if factor == 0 || !rest_a.is_multiple_of(factor) || !rest_b.is_multiple_of(factor) {
            return None;
        }
        of_old.get_mut(axis_a)?.push(factor);
        of_new.get_mut(axis_b)?.push(factor);
        a = if rest_a == factor { olds.next() } else { Some((axis_a, rest_a / factor)) };
        b = if rest_b == factor { news.next() } else { Some((axis_b, rest_b / factor)) };
    }
    (a.is_none() && b.is_none()).then_some((of_old, of_new))
}

/// The part of a cell of one axis along each of its factors.
fn split(factors: &[usize], mut cell: usize) -> Option<Vec<usize>> {
    if let [_] = factors {
        return Some(vec![cell]);
    }
    let mut cells = vec![1; factors.len()];
    for (&factor, part) in factors.iter().zip(&mut cells).rev() {
        *part = cell.min(factor);
        if !cell.is_multiple_of(*part) || !factor.is_multiple_of(*part) {
            return None;
        }
        cell /= *part;
    }
    (cell == 1).then_some(cells)
}

/// The cell of an axis from its parts along each of its factors.
fn merge(factors: &[usize], cells: impl Iterator<Item = usize>) -> Option<usize> {
    let (mut cell, mut whole) = (1, true);
    let cells: Vec<usize> = cells.collect();
    for (&factor, &part) in factors.iter().zip(&cells).rev() {
        // The last cell of an axis of its own may be cut off.
        let is_cut = !factor.is_multiple_of(part) && factors.len() > 1;
        if is_cut || !whole && part != 1 {
            return None;
        }
        cell *= part;
        whole = whole && part == factor;
    }
    Some(cell)
}

/// How a known tensor of floats was quantized: `scale * code`, zero is code 0.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::frontend::import) struct WeightQuant {
    /// Width of the codes, signed.
    pub(super) scheme: QuantScheme,
    /// Which elements share a scale.
    pub(super) grid: Grid,
    /// A scale for each cell.
    pub(super) scales: Arc<[f32]>,
}

/// The quantizer of a weight `[K, N]`, as `fake_quant` takes it.
pub(in crate::frontend::import) struct MatrixQuant {
    /// Width of the codes, signed.
    pub(in crate::frontend::import) scheme: QuantScheme,
    /// Rows that share a scale, if not all of them do.
    pub(in crate::frontend::import) group: Option<usize>,
    /// `[N]`, or `[ceil(K / group), N]`.
    pub(in crate::frontend::import) scales: Vec<f32>,
}

impl WeightQuant {
    /// Of the transposed tensor.
    pub(in crate::frontend::import) fn transposed(&self, perm: &[usize]) -> Option<Self> {
        let (grid, order) = self.grid.transposed(perm)?;
        let scales: Option<Vec<f32>> = order.iter().map(|&from| self.scales.get(from).copied()).collect();
        Some(Self { scheme: self.scheme, grid, scales: scales?.into() })
    }

    /// Of the same elements in another shape.
    pub(in crate::frontend::import) fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        Some(Self { grid: self.grid.reshaped(shape)?, ..self.clone() })
    }

    /// Of a part of the tensor, if all of it has one scale.
    pub(in crate::frontend::import) fn part(&self, shape: &[usize]) -> Option<Self> {
        (self.scales.len() == 1).then(|| Self { grid: Grid::new(shape.to_vec(), shape.to_vec()), ..self.clone() })
    }

    /// For a weight `[K, N]`.
    pub(in crate::frontend::import) fn of_matrix(&self) -> Option<MatrixQuant> {
        let (&[k, n], &[rows, _]) = (&self.grid.shape[..], &self.grid.cell[..]) else { return None };
        let group = (rows < k).then_some(rows);
        let n_groups = k.div_ceil(rows);
        let scales = (0..n_groups).flat_map(|g| (0..n).map(move |column| g * rows * n + column));
        let scales = scales.map(|i| self.scales.get(self.grid.cell_of(i)).copied()).collect::<Option<_>>()?;
        Some(MatrixQuant { scheme: self.scheme, group, scales })
    }
}

/// `scale * (code - zero)`, element by element when it is read.
pub(super) struct Dequantized {
    pub(super) codes: Constant,
    pub(super) grid: Grid,
    /// A zero point for each cell, or one.
    pub(super) zeros: Vec<i64>,
    /// A scale for each cell.
    pub(super) scales: Arc<[f32]>,
}

impl fmt::Debug for Dequantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dequantized({})", self.codes.ty)
    }
}

impl Dequantized {
    /// Code minus zero point of element `i`.
    pub(super) fn centered(&self, i: usize, code: i64) -> i64 {
        code - self.zeros.get(if self.zeros.len() == 1 { 0 } else { self.grid.cell_of(i) }).copied().unwrap_or(0)
    }

    /// Elements `start..start + codes.len()`.
    fn real(&self, start: usize, codes: Vec<i64>) -> impl Iterator<Item = f32> {
        let scale = |i| self.scales.get(self.grid.cell_of(i)).copied().unwrap_or(f32::NAN);
        // Both factors are exact in f64, and the product is rounded once.
        (start..).zip(codes).map(move |(i, code)| (self.centered(i, code) as f64 * f64::from(scale(i))) as f32)
    }

    /// All elements, now.
    pub(super) fn computed(&self) -> Result<Constant, qail_ir::ConstError> {
        let elements: Vec<f32> = self.real(0, self.codes.all_int()?).collect();
        Ok(Constant::f32(self.codes.ty.shape.clone(), &elements))
    }

    /// All elements, when they are read.
    pub(super) fn lazy(self) -> Constant {
        let ty = TensorType::f32(self.codes.ty.shape.clone());
        Constant { ty, data: ConstData::Source(Arc::new(self)) }
    }
}

impl ConstSource for Dequantized {
    fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let error = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if !start.is_multiple_of(4) || !out.len().is_multiple_of(4) {
            return Err(error("a read cuts through an element".to_owned()));
        }
        let first = usize::try_from(start / 4).map_err(|e| error(e.to_string()))?;
        let end = first.saturating_add(out.len() / 4);
        let codes = self.codes.read_int(first..end).map_err(|e| error(e.to_string()))?;
        for (to, x) in out.chunks_exact_mut(4).zip(self.real(first, codes)) {
            to.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quant(shape: &[usize], cell: &[usize], scales: &[f32]) -> WeightQuant {
        let grid = Grid::new(shape.to_vec(), cell.to_vec());
        assert_eq!(grid.len(), scales.len());
        WeightQuant { scheme: QuantScheme::signed(4), grid, scales: scales.into() }
    }

    #[test]
    fn blocks_follow_a_transposition() {
        // [N = 2, K = 3] in blocks of 2 along K.
        let stored = quant(&[2, 3], &[1, 2], &[1.0, 2.0, 3.0, 4.0]);
        let matrix = stored.transposed(&[1, 0]).unwrap().of_matrix().unwrap();
        assert_eq!((matrix.group, matrix.scales), (Some(2), vec![1.0, 3.0, 2.0, 4.0]));
    }

    #[test]
    fn channels_of_a_convolution_become_columns() {
        let stored = quant(&[2, 3, 5, 5], &[1, 3, 5, 5], &[1.0, 2.0]);
        let matrix = stored.reshaped(&[2, 75]).unwrap().transposed(&[1, 0]).unwrap().of_matrix().unwrap();
        assert_eq!((matrix.group, matrix.scales), (None, vec![1.0, 2.0]));
        // Three rows of 25 are one channel.
        let rows = stored.reshaped(&[6, 25]).unwrap().of_matrix().unwrap();
        assert_eq!((rows.group, rows.scales.len(), rows.scales[25]), (Some(3), 50, 2.0));
        assert_eq!(stored.part(&[1, 3, 5, 5]), None);
    }

    #[test]
    fn rows_of_blocks_become_groups_of_rows() {
        // [groups * N, G] to [groups, N, G], [groups, G, N], [K, N].
        let scales = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let stored = quant(&[6, 4], &[1, 4], &scales);
        let turned = stored.reshaped(&[2, 3, 4]).unwrap().transposed(&[0, 2, 1]).unwrap();
        let matrix = turned.reshaped(&[8, 3]).unwrap().of_matrix().unwrap();
        assert_eq!((matrix.group, &matrix.scales[..]), (Some(4), &scales[..]));
    }

    #[test]
    fn cells_that_would_fall_apart_are_given_up() {
        let stored = quant(&[4, 6], &[2, 3], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(stored.reshaped(&[24]), None);
        assert_eq!(stored.reshaped(&[3, 8]), None);
        assert_eq!(stored.reshaped(&[4, 2, 3]).unwrap().grid, Grid::new(vec![4, 2, 3], vec![2, 1, 3]));
        let cut_off = quant(&[2, 5], &[2, 3], &[1.0, 2.0]);
        assert_eq!(cut_off.reshaped(&[10]), None);
        assert_eq!(cut_off.reshaped(&[2, 1, 5]).unwrap().grid, Grid::new(vec![2, 1, 5], vec![2, 1, 3]));
    }

    #[test]
    fn one_scale_survives_everything() {
        let stored = quant(&[4, 6], &[4, 6], &[0.5]);
        let moved = stored.reshaped(&[2, 12]).unwrap().part(&[2, 3]).unwrap().of_matrix().unwrap();
        assert_eq!((moved.group, moved.scales), (None, vec![0.5; 3]));
    }

    #[test]
    fn elements_are_the_same_in_every_range() {
        let codes = Constant::ints(TensorType::code(QuantScheme::unsigned(4), [2, 3]), &[0, 1, 2, 15, 8, 7]);
        let grid = Grid::new(vec![2, 3], vec![1, 3]);
        let dequantized = Dequantized { codes, grid, zeros: vec![1, 8], scales: [0.5, 2.0].into() };
        let whole = [-0.5, 0.0, 0.5, 14.0, 0.0, -2.0];
        assert_eq!(dequantized.computed().unwrap().all_f32().unwrap(), whole);
        let lazy = dequantized.lazy();
        for (start, end) in [(0, 6), (1, 4), (5, 6), (2, 2)] {
            assert_eq!(lazy.read_f32(start..end).unwrap(), whole[start..end]);
        }
    }
}
