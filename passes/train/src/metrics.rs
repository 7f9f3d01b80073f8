//! How far actions are from those that they should be: one definition for
//! training, for the report of a build, and for evaluating an artifact.
//!
//! Sums run in `f64`, row by row, element by element, so equal outputs on equal
//! rows give equal figures, to the last digit.

/// Distance of actions from their references, summed up row by row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ActionError {
    squares: f64,
    reference_squares: f64,
    max: f64,
    n: usize,
}

impl ActionError {
    /// Nothing compared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one row, or several rows in order, of both.
    pub fn add(&mut self, actions: &[f32], reference: &[f32]) {
        for (&a, &r) in actions.iter().zip(reference) {
            let difference = f64::from(a) - f64::from(r);
            self.squares += difference * difference;
            self.reference_squares += f64::from(r) * f64::from(r);
            // NaN is never hidden: nothing is larger than it.
            if difference.is_nan() || difference.abs() > self.max {
                self.max = difference.abs();
            }
            self.n += 1;
        }
    }

    /// Mean over rows and elements of the squared difference; 0 without rows.
    pub fn mse(&self) -> f64 {
        self.squares / self.n.max(1) as f64
    }

    /// Largest absolute difference; NaN if one was NaN.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// Root mean square of the references.
    pub fn reference_rms(&self) -> f64 {
        (self.reference_squares / self.n.max(1) as f64).sqrt()
    }

    /// Numbers compared.
    pub fn n_elements(&self) -> usize {
        self.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up() {
        let mut error = ActionError::new();
        error.add(&[1.0, 2.0], &[1.0, 4.0]);
        error.add(&[0.0, 0.0], &[0.0, 2.0]);
        assert_eq!((error.mse(), error.max(), error.n_elements()), (2.0, 2.0, 4));
        assert_eq!(error.reference_rms(), (21.0f64 / 4.0).sqrt());
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut error = ActionError::new();
        error.add(&[f32::NAN, 1.0], &[0.0, 0.0]);
        assert!(error.mse().is_nan() && error.max().is_nan());
    }
}
