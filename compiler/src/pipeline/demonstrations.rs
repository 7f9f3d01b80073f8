//! Which recorded steps calibrate, and which ones judge.
//!
//! Split by episode, never by step: neighbouring steps are nearly the same
//! observation, so a split by step would judge on what it calibrated on.

use std::{collections::BTreeMap, ops::Range, path::Path};

use qail_ir::{DType, Elem, Graph, TensorType, interp::Tensor};
use qail_train::batches::{Column, MAX_BYTES, Rows, Windows};

use super::{Inputs, PipelineError, made};
use crate::data::{DataError, DemoMap, Demos, Field, StepReader};

/// Named tensors of one step.
pub type Sample = BTreeMap<String, Tensor>;

/// Recorded steps, read into memory: only those that were chosen.
#[derive(Debug)]
pub struct Demonstrations {
    /// Steps to calibrate on, spread evenly.
    pub calibration: Vec<Sample>,
    /// Steps of other episodes, to judge on, spread evenly.
    pub held_out: Vec<Sample>,
    /// False if there is one episode only, so that both come from it.
    pub split: bool,
    /// Steps in the file.
    pub n_steps: usize,
    /// Episodes in the file.
    pub n_episodes: usize,
}

/// Opens demonstrations for the inputs of a model that are not made by it.
pub fn open<'a>(path: &Path, inputs: impl Into<Inputs<'a>>, map: &DemoMap) -> Result<Demos, DataError> {
    let from = inputs.into();
    let graph = from.graph;
    let inputs = from.recorded().map(|(name, ty)| {
        // Several samples at once are one recorded step as a whole.
        let with_batch = graph.batch_axis == Some(0) && ty.shape.first() == Some(&1);
        (name, ty.shape.get(usize::from(with_batch)..).unwrap_or_default())
    });
    Demos::open(path, &inputs.collect::<Vec<_>>(), map)
}

impl Demonstrations {
    /// Reads up to `n_calibration` and `n_held_out` steps. The last fifth of the
    /// episodes, at least one, is held out.
    pub fn read<'a>(
        demos: &Demos,
        inputs: impl Into<Inputs<'a>>,
        n_calibration: usize,
        n_held_out: usize,
    ) -> Result<Self, PipelineError> {
        let inputs = inputs.into();
        let episodes = demos.episodes();
        let split = episodes.len() >= 2;
        let Split { train, held } = Split::of(episodes);
        let read = |episodes: &[Range<usize>], n: usize, draw: u64| {
            let steps = spread(episodes, n);
            let mut samples = read_steps(demos, inputs.graph, &steps)?;
            inputs.complete(demos, &steps, &mut samples, draw)?;
            Ok::<_, PipelineError>(samples)
        };
        Ok(Self {
            calibration: read(train, n_calibration, 1)?,
            held_out: read(held, n_held_out, 2)?,
            split,
            n_steps: demos.n_steps(),
            n_episodes: episodes.len(),
        })
    }
}

/// Rows to train on and rows to judge on.
#[derive(Debug)]
pub struct TrainingRows {
    /// Every step of the episodes that are not held out, or as many as fit
    /// into memory, evenly spread.
    pub train: Rows,
    /// The steps of [`Demonstrations::held_out`].
    pub held_out: Rows,
    /// Rows that there are for [`TrainingRows::train`]: steps, or windows of them.
    pub n_rows: usize,
}

impl TrainingRows {
    /// Reads the rows of both; `n_held_out` as in [`Demonstrations::read`]. With
    /// a window recorded actions are single ones, and a row's target are so many
    /// of them from its step on.
    pub fn read<'a>(demos: &Demos, inputs: impl Into<Inputs<'a>>, n_held_out: usize) -> Result<Self, PipelineError> {
        let inputs = inputs.into();
        let Split { train, held } = Split::of(demos.episodes());
        let numbers = |field: &Field| field.info.row_len();
        let made = inputs.graph.inputs().iter().filter(|&&id| !inputs.is_recorded(&inputs.graph.node(id).name));
        let made: usize = made.map(|&id| inputs.graph.ty(id.value()).n_elements()).sum();
        let columns = demos.observations().iter().chain(demos.weights());
        let per_step = columns.map(numbers).sum::<usize>().saturating_add(made);
        // Of windows too: steps far apart do not share them. The teacher's answers
        // take as much again.
        let actions = demos.actions().map_or(0, numbers).saturating_mul(inputs.window.unwrap_or(1));
        let per_step = per_step.saturating_add(actions.saturating_mul(2)).max(1).saturating_mul(size_of::<f32>());
        let n_rows = train.iter().map(Range::len).sum();
        if let n @ 2.. = inputs.follow {
            // Windows that are spread evenly, and never more than fit.
            let some = |episodes: &[Range<usize>], most: usize| {
                let starts = made::starts(episodes, n);
                let most = (most / n).clamp(1, starts.len().max(1));
                let each = |i: usize| starts.get(i * starts.len() / most).copied();
                (0..most).filter_map(each).collect::<Vec<usize>>()
            };
            let held_out = inputs.rows(demos, &some(held, n_held_out))?;
            let n_rows = made::starts(train, n).len();
            let train = inputs.rows(demos, &some(train, MAX_BYTES / per_step))?;
            return Ok(Self { train, held_out, n_rows });
        }
        let train = inputs.rows(demos, &spread(train, MAX_BYTES / per_step))?;
        Ok(Self { train, held_out: inputs.rows(demos, &spread(held, n_held_out))?, n_rows })
    }
}

/// Recorded columns of ascending steps.
pub(super) fn rows(demos: &Demos, steps: &[usize], window: Option<usize>) -> Result<Rows, DataError> {
    let column_at = |field: &Field, steps: &[usize]| -> Result<Column, DataError> {
        let mut data = Vec::with_capacity(steps.len() * field.info.row_len());
        let read = |reader: &mut StepReader, n: usize, out: &mut Vec<f32>| reader.next(n, out);
        for_rows(demos, field, steps, read, |row| data.extend_from_slice(row))?;
        Ok(Column { name: field.name.clone(), row_len: field.info.row_len(), data })
    };
    let column = |field: &Field| column_at(field, steps);
    let observations = demos.observations().iter().map(column).collect::<Result<_, _>>()?;
    let weights = demos.weights().map(column).transpose()?;
    if let (Some(field), Some(column)) = (demos.weights(), &weights)
        && let Some((index, &value)) = column.data.iter().enumerate().find(|(_, weight)| **weight < 0.0)
    {
        let (path, key) = (demos.npz().path().to_owned(), field.key.clone());
        return Err(DataError::Weight { path, key, row: steps.get(index).copied().unwrap_or(index), value });
    }
    let (windows, actions) = match window {
        Some(length) => {
            let (windows, needed) = Windows::new(length, steps, demos.episodes());
            (Some(windows), demos.actions().map(|field| column_at(field, &needed)).transpose()?)
        }
        None => (None, demos.actions().map(column).transpose()?),
    };
    Ok(Rows { observations, actions, windows, weights })
}

/// Episodes to learn from and episodes to judge on.
struct Split<'a> {
    train: &'a [Range<usize>],
    held: &'a [Range<usize>],
}

impl<'a> Split<'a> {
    /// The last fifth of the episodes, at least one, is held out; a single
    /// episode is both.
    fn of(episodes: &'a [Range<usize>]) -> Self {
        let n_held_out = if episodes.len() >= 2 { (episodes.len() / 5).max(1) } else { 0 };
        let (train, held) = episodes.split_at(episodes.len() - n_held_out);
        Self { train, held: if held.is_empty() { train } else { held } }
    }
}

/// At most `n` steps of some episodes, evenly spread, ascending.
fn spread(episodes: &[Range<usize>], n: usize) -> Vec<usize> {
    let all: Vec<usize> = episodes.iter().cloned().flatten().collect();
    let n = n.min(all.len());
    (0..n).filter_map(|i| all.get(i * all.len() / n.max(1)).copied()).collect()
}

/// The given ascending steps, in one pass over each array.
fn read_steps(demos: &Demos, graph: &Graph, steps: &[usize]) -> Result<Vec<Sample>, DataError> {
    let mut samples: Vec<Sample> = steps.iter().map(|_| Sample::new()).collect();
    let fields = demos.observations().iter();
    for (field, input) in fields.filter_map(|field| Some((field, graph.input_named(&field.name)?))) {
        let ty = graph.ty(input);
        for (sample, tensor) in samples.iter_mut().zip(read_tensors(demos, field, ty, steps)?) {
            sample.insert(field.name.clone(), tensor);
        }
    }
    Ok(samples)
}

/// Shows the steps of a range one after the other; reads in blocks.
pub(super) fn read_blocks(
    demos: &Demos,
    graph: &Graph,
    steps: Range<usize>,
    mut see: impl FnMut(Sample),
) -> Result<(), DataError> {
    const BLOCK: usize = 1024;
    for start in steps.clone().step_by(BLOCK) {
        let block: Vec<usize> = (start..steps.end.min(start + BLOCK)).collect();
        read_steps(demos, graph, &block)?.into_iter().for_each(&mut see);
    }
    Ok(())
}

/// One array at ascending steps, in the type of an input of the model.
fn read_tensors(demos: &Demos, field: &Field, ty: &TensorType, steps: &[usize]) -> Result<Vec<Tensor>, DataError> {
    let floats = |reader: &mut StepReader, n: usize, out: &mut Vec<f32>| reader.next(n, out);
    let shape = || ty.shape.clone();
    let (lo, hi) = match ty.elem {
        Elem::Plain(DType::F32) => {
            let rows = read_rows(demos, field, steps, floats)?;
            return Ok(rows.into_iter().map(|row| Tensor::f32(shape(), row)).collect());
        }
        Elem::Plain(DType::F64) => {
            let rows = read_rows(demos, field, steps, floats)?;
            let wide = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
            return Ok(rows.into_iter().map(|row| Tensor::f64(shape(), wide(row))).collect());
        }
        Elem::Plain(DType::Bool) => (0, 1),
        Elem::Plain(DType::U8) => (0, u8::MAX.into()),
        Elem::Plain(DType::I32) => (i32::MIN.into(), i32::MAX.into()),
        Elem::Plain(DType::I64) => (i64::MIN, i64::MAX),
        Elem::Code(scheme) => (scheme.lo().into(), scheme.hi().into()),
    };
    let rows = read_rows(demos, field, steps, |reader, n, out| reader.next_ints(n, lo..=hi, out))?;
    Ok(rows.into_iter().map(|row| Tensor::ints(ty.clone(), row)).collect())
}

/// Rows of one array at ascending steps.
fn read_rows<T: Clone>(
    demos: &Demos,
    field: &Field,
    steps: &[usize],
    read: impl FnMut(&mut StepReader, usize, &mut Vec<T>) -> Result<usize, DataError>,
) -> Result<Vec<Vec<T>>, DataError> {
    let mut rows = Vec::with_capacity(steps.len());
    for_rows(demos, field, steps, read, |row| rows.push(row.to_vec()))?;
    Ok(rows)
}

/// Shows the rows of one array at ascending steps; reads in blocks.
fn for_rows<T>(
    demos: &Demos,
    field: &Field,
    steps: &[usize],
    mut read: impl FnMut(&mut StepReader, usize, &mut Vec<T>) -> Result<usize, DataError>,
    mut see: impl FnMut(&[T]),
) -> Result<(), DataError> {
    const BLOCK: usize = 256;
    let row_len = field.info.row_len();
    let mut reader = demos.stream(field)?;
    let (mut block, mut first) = (Vec::new(), 0);
    let mut wanted = steps.iter().copied().peekable();
    while wanted.peek().is_some() {
        block.clear();
        let n = read(&mut reader, BLOCK, &mut block)?;
        if n == 0 {
            break;
        }
        while let Some(step) = wanted.next_if(|&step| step < first + n) {
            let start = (step - first) * row_len;
            see(block.get(start..start + row_len).unwrap_or_default());
        }
        first += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_over_all_episodes() {
        assert_eq!(spread(&[0..4, 6..10], 4), [0, 2, 6, 8]);
        assert_eq!(spread(std::slice::from_ref(&(0..3)), 10), [0, 1, 2]);
        assert_eq!(spread(&[], 10), [0usize; 0]);
    }

    #[test]
    fn a_fifth_of_the_episodes_is_held_out() {
        let episodes: Vec<Range<usize>> = (0..11).map(|i| i..i + 1).collect();
        let split = Split::of(&episodes);
        assert_eq!((split.train.len(), split.held.len()), (9, 2));
        let split = Split::of(&episodes[..2]);
        assert_eq!((split.train, split.held), (&episodes[..1], &episodes[1..2]));
        let split = Split::of(&episodes[..1]);
        assert_eq!(split.train, split.held);
    }
}
