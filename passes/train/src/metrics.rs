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
    signed: f64,
    max: f64,
    n_flips: usize,
    n: usize,
}

impl ActionError {
    /// Nothing compared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one row, or several rows in order, of both.
    pub fn add(&mut self, actions: &[f32], reference: &[f32]) {
        self.add_numbers(actions.iter().map(|&a| f64::from(a)), reference.iter().map(|&r| f64::from(r)));
    }

    /// The same for numbers of any type.
    pub fn add_numbers(&mut self, actions: impl IntoIterator<Item = f64>, reference: impl IntoIterator<Item = f64>) {
        for (a, r) in actions.into_iter().zip(reference) {
            let difference = a - r;
            self.squares += difference * difference;
            self.reference_squares += r * r;
            self.signed += difference;
            // NaN is never hidden: nothing is larger than it.
            if difference.is_nan() || difference.abs() > self.max {
                self.max = difference.abs();
            }
            self.n_flips += usize::from(a * r < 0.0);
            self.n += 1;
        }
    }

    /// Takes in the sums of other rows, behind those of this one.
    pub fn merge(&mut self, other: &Self) {
        self.squares += other.squares;
        self.reference_squares += other.reference_squares;
        self.signed += other.signed;
        if other.max.is_nan() || other.max > self.max {
            self.max = other.max;
        }
        self.n_flips += other.n_flips;
        self.n += other.n;
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

    /// Mean difference, with its sign: what adds up over an episode.
    pub fn bias(&self) -> f64 {
        self.signed / self.n.max(1) as f64
    }

    /// Share of the elements whose sign is the opposite one; 0 has no sign.
    pub fn sign_flips(&self) -> f64 {
        self.n_flips as f64 / self.n.max(1) as f64
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
    fn signs_are_counted_and_differences_keep_theirs() {
        let mut error = ActionError::new();
        error.add(&[1.0, -1.0], &[0.5, 1.0]);
        let mut more = ActionError::new();
        more.add(&[0.0], &[-2.0]);
        error.merge(&more);
        assert_eq!(error.bias(), (0.5 - 2.0 + 2.0) / 3.0);
        assert_eq!((error.sign_flips(), error.max()), (1.0 / 3.0, 2.0));
    }

    #[test]
    fn rows_and_one_long_row_give_the_same_bits() {
        let y: Vec<f32> = (0..300).map(|i| (i as f32 * 0.37).sin()).collect();
        let t: Vec<f32> = (0..300).map(|i| (i as f32 * 0.36).sin()).collect();
        let (mut by_rows, mut at_once) = (ActionError::new(), ActionError::new());
        for (y, t) in y.chunks(3).zip(t.chunks(3)) {
            by_rows.add(y, t);
        }
        at_once.add(&y, &t);
        assert_eq!(by_rows.mse().to_bits(), at_once.mse().to_bits());
    }

    #[test]
    fn nan_is_not_hidden() {
        let mut error = ActionError::new();
        error.add(&[f32::NAN, 1.0], &[0.0, 0.0]);
        assert!(error.mse().is_nan() && error.max().is_nan());
    }
}
