//! Calibration data, as passes see it.

use std::collections::BTreeMap;

use qail_ir::interp::Tensor;

/// Samples of the model's inputs, read one at a time: never all in memory.
pub trait Samples {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Sample `index`: a tensor for every input of the model, by its name, of
    /// its type.
    fn get(&self, index: usize) -> Result<BTreeMap<String, Tensor>, SampleError>;

    /// True if there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A sample that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SampleError(#[from] Box<dyn std::error::Error + Send + Sync>);

impl SampleError {
    /// An error of whoever reads the data.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

impl Samples for Vec<BTreeMap<String, Tensor>> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn get(&self, index: usize) -> Result<BTreeMap<String, Tensor>, SampleError> {
        self.as_slice().get(index).cloned().ok_or_else(|| SampleError::new(format!("there is no sample {index}")))
    }
}
