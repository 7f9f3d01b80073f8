//! Rows that are changed by computed index. An index beyond the ends changes none,
//! and a lookup by it reads the last row there is: its rows are left out.

use qail_ir::{
    BinaryFn, Cast, Compare, CompareFn, DType, Gather, Op, Scatter, ScatterFn, TensorType, TypeError, ValueId, Where,
};

use super::Builder;

/// The gradient of the tensor (slot 0) or of the update (slot 2).
pub(super) fn scatter(
    builder: &mut Builder<'_>,
    op: &Scatter,
    operands: &[ValueId],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let &[x, index, update] = operands else { return Err(TypeError::new("scatter", "three operands", &[])) };
    let of_update = builder.shape(update);
    let extent = builder.shape(g).first().copied().unwrap_or(0);
    if slot != 0 && extent == 0 {
        return Ok(builder.splat(of_update, 0.0));
    }
    let rows = Rows { index, extent, of_update };
    match (op.f, slot) {
        (ScatterFn::Add, 0) => Ok(g),
        (ScatterFn::Add, _) => {
            let read = rows.read(builder, g)?;
            rows.inside(builder, read)
        }
        // Without the rows that were replaced.
        (ScatterFn::Replace, 0) => {
            let zeros = builder.splat(rows.of_update.clone(), 0.0);
            rows.write(builder, ScatterFn::Replace, g, zeros)
        }
        (ScatterFn::Replace, _) => {
            let read = rows.read(builder, g)?;
            rows.last(builder, read)
        }
        (ScatterFn::Mul, 0) => {
            let ones = builder.splat(builder.shape(x), 1.0);
            let factors = rows.write(builder, ScatterFn::Mul, ones, update)?;
            builder.binary(BinaryFn::Mul, factors, g)
        }
        (ScatterFn::Mul, _) => factor(builder, &rows, x, update, g),
        (ScatterFn::Min | ScatterFn::Max, _) => extreme(builder, &rows, [x, update], slot, g),
    }
}

/// Which rows are changed.
struct Rows {
    index: ValueId,
    /// Rows of the tensor.
    extent: usize,
    of_update: Vec<usize>,
}

impl Rows {
    /// The rows of a tensor, one for each row of the update.
    fn read(&self, builder: &mut Builder<'_>, x: ValueId) -> Result<ValueId, TypeError> {
        builder.add(Op::Gather(Gather { axis: 0 }), &[x, self.index])
    }

    fn write(
        &self,
        builder: &mut Builder<'_>,
        f: ScatterFn,
        x: ValueId,
        update: ValueId,
    ) -> Result<ValueId, TypeError> {
        builder.add(Op::Scatter(Scatter { f }), &[x, self.index, update])
    }

    /// Rows in the shape of the update, 0 where the index lies beyond the ends.
    fn inside(&self, builder: &mut Builder<'_>, rows: ValueId) -> Result<ValueId, TypeError> {
        let bounds = [-(self.extent as i64), self.extent as i64];
        if builder.ints_within(self.index, [bounds[0], bounds[1] - 1]) {
            return Ok(rows);
        }
        let ty = TensorType { shape: vec![], ..builder.ty(self.index) };
        let [first, end] = bounds.map(|bound| builder.ints(ty.clone(), &[bound]));
        let ahead = builder.add(Op::Compare(Compare { f: CompareFn::Ge }), &[self.index, first])?;
        let before = builder.add(Op::Compare(Compare { f: CompareFn::Lt }), &[self.index, end])?;
        let inside = builder.binary(BinaryFn::Min, ahead, before)?;
        self.shown(builder, inside, rows)
    }

    /// Rows that nobody replaced later; rows beyond the ends find somebody else there.
    fn last(&self, builder: &mut Builder<'_>, rows: ValueId) -> Result<ValueId, TypeError> {
        let n_rows = self.of_update.first().copied().unwrap_or(1);
        let i64s = |n: usize| TensorType::plain(DType::I64, [n]);
        let nobody = builder.ints(i64s(self.extent), &vec![-1; self.extent]);
        let numbers: Vec<i64> = (0..n_rows as i64).collect();
        let numbers = builder.ints(i64s(n_rows), &numbers);
        let last = self.write(builder, ScatterFn::Replace, nobody, numbers)?;
        let last = self.read(builder, last)?;
        let shown = builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[last, numbers])?;
        self.shown(builder, shown, rows)
    }

    /// Rows where a condition for each of them holds, 0 elsewhere.
    fn shown(&self, builder: &mut Builder<'_>, condition: ValueId, rows: ValueId) -> Result<ValueId, TypeError> {
        let n_rows = self.of_update.first().copied().unwrap_or(1);
        let column = [&[n_rows][..], &vec![1; self.of_update.len().saturating_sub(1)]].concat();
        let condition = builder.reshaped(condition, column)?;
        let zero = builder.scalar(0.0);
        builder.add(Op::Where(Where), &[condition, rows, zero])
    }
}

/// `g` times all other factors of the row. That is `y / update`, except where updates
/// are 0: the only one of a row gets the product of the others, several get 0.
fn factor(
    builder: &mut Builder<'_>,
    rows: &Rows,
    x: ValueId,
    update: ValueId,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let (zero, one) = (builder.scalar(0.0), builder.scalar(1.0));
    let equal = |builder: &mut Builder<'_>, a, b| builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[a, b]);
    let is_zero = equal(builder, update, zero)?;
    let others = builder.add(Op::Where(Where), &[is_zero, one, update])?;
    let product = rows.write(builder, ScatterFn::Mul, x, others)?;
    let product = builder.binary(BinaryFn::Mul, product, g)?;
    let product = rows.read(builder, product)?;
    let is_zero_number = builder.add(Op::Cast(Cast { to: DType::F32 }), &[is_zero])?;
    let nothing = builder.splat(builder.shape(x), 0.0);
    let count = rows.write(builder, ScatterFn::Add, nothing, is_zero_number)?;
    let count = rows.read(builder, count)?;
    // Zeros among the other factors.
    let count = builder.binary(BinaryFn::Sub, count, is_zero_number)?;
    let none = equal(builder, count, zero)?;
    let slope = builder.binary(BinaryFn::Div, product, others)?;
    let slope = builder.add(Op::Where(Where), &[none, slope, zero])?;
    rows.inside(builder, slope)
}

/// All of `g` for the extreme number, in equal parts for several.
fn extreme(
    builder: &mut Builder<'_>,
    rows: &Rows,
    [x, update]: [ValueId; 2],
    slot: usize,
    g: ValueId,
) -> Result<ValueId, TypeError> {
    let result = builder.node.value();
    let equal = |builder: &mut Builder<'_>, a, b| {
        let equal = builder.add(Op::Compare(Compare { f: CompareFn::Eq }), &[a, b])?;
        builder.add(Op::Cast(Cast { to: DType::F32 }), &[equal])
    };
    let kept = equal(builder, x, result)?;
    let read = rows.read(builder, result)?;
    let taken = equal(builder, update, read)?;
    let taken = rows.inside(builder, taken)?;
    let n = rows.write(builder, ScatterFn::Add, kept, taken)?;
    let share = builder.binary(BinaryFn::Div, g, n)?;
    if slot == 0 {
        return builder.binary(BinaryFn::Mul, share, kept);
    }
    let share = rows.read(builder, share)?;
    builder.binary(BinaryFn::Mul, share, taken)
}
