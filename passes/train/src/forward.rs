//! Runs a graph over any number of rows, a batch at a time.

use qail_ir::{Graph, ValueId};

use crate::{
    batches::Column,
    exec::{CpuExecutor, CpuOptions, ExecError, TrainExecutor},
    parameters::{self, Parameter},
    setup::rebatched,
    trainer::TrainError,
};

/// A graph without gradients, made ready for batches of one size.
pub struct Forward {
    executor: Box<dyn TrainExecutor>,
    batch: usize,
    inputs: Vec<String>,
    outputs: Vec<Output>,
    constants: Vec<ValueId>,
    rows: Vec<Vec<f32>>,
}

struct Output {
    name: String,
    value: ValueId,
    row_len: usize,
}

impl Forward {
    /// For `graph` at batch 1. `parameters` are those that [`Forward::set`] will
    /// change. What cannot have another batch runs row by row; the reason is
    /// added to `notes`.
    pub fn new(
        graph: &Graph,
        parameters: &[Parameter],
        batch: usize,
        threads: usize,
        notes: &mut Vec<String>,
    ) -> Result<Self, TrainError> {
        let (graph, batch) = rebatched(graph, batch, notes);
        let constants = parameters::locate(&graph, parameters)?;
        let executor = CpuExecutor::new(&graph, &CpuOptions { threads, keep: Vec::new() })?;
        Ok(Self::with(Box::new(executor), &graph, batch, constants))
    }

    /// Around an executor of `graph`, which has batches of `batch` rows.
    pub(crate) fn with(executor: Box<dyn TrainExecutor>, graph: &Graph, batch: usize, constants: Vec<ValueId>) -> Self {
        let inputs: Vec<String> = graph.inputs().iter().map(|&id| graph.node(id).name.clone()).collect();
        let outputs = graph.outputs.iter().map(|output| {
            let row_len = graph.ty(output.value).n_elements() / batch.max(1);
            Output { name: output.name.clone(), value: output.value, row_len }
        });
        let rows = vec![Vec::new(); inputs.len()];
        Self { executor, batch: batch.max(1), outputs: outputs.collect(), inputs, constants, rows }
    }

    /// Replaces the numbers of the parameters.
    pub fn set(&mut self, elements: &[Vec<f32>]) -> Result<(), ExecError> {
        for (&constant, elements) in self.constants.iter().zip(elements) {
            self.executor.set(constant, elements)?;
        }
        Ok(())
    }

    /// Runs all rows of `inputs`, found by their names; gives a column for each
    /// of the `wanted` outputs.
    pub fn run(&mut self, inputs: &[Column], wanted: &[&str]) -> Result<Vec<Column>, TrainError> {
        let columns: Vec<&Column> = self
            .inputs
            .iter()
            .map(|name| {
                let column = inputs.iter().find(|column| column.name == *name);
                column.ok_or_else(|| TrainError::NoColumn { name: name.clone() })
            })
            .collect::<Result<_, _>>()?;
        let outputs: Vec<&Output> = wanted
            .iter()
            .map(|name| {
                let output = self.outputs.iter().find(|output| output.name == *name);
                output.ok_or_else(|| TrainError::NoOutput { name: (*name).to_owned() })
            })
            .collect::<Result<_, _>>()?;
        let n_rows = columns.first().map_or(0, |column| column.n_rows());
        let new = |output: &&Output| Column {
            name: output.name.clone(),
            row_len: output.row_len,
            data: Vec::with_capacity(n_rows * output.row_len),
        };
        let mut out: Vec<Column> = outputs.iter().map(new).collect();
        for start in (0..n_rows).step_by(self.batch) {
            let n = self.batch.min(n_rows - start);
            for (rows, column) in self.rows.iter_mut().zip(&columns) {
                rows.clear();
                // The last batch is filled up with its last row.
                for i in 0..self.batch {
                    rows.extend_from_slice(column.row(start + i.min(n - 1)));
                }
            }
            let feed: Vec<(&str, &[f32])> =
                self.inputs.iter().zip(&self.rows).map(|(name, rows)| (name.as_str(), rows.as_slice())).collect();
            self.executor.run(&feed)?;
            for (column, output) in out.iter_mut().zip(&outputs) {
                let all = self.executor.read(output.value)?;
                column.data.extend_from_slice(all.get(..n * output.row_len).unwrap_or_default());
            }
        }
        Ok(out)
    }
}
