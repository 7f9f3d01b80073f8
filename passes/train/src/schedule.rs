//! How the learning rate changes: linear warm-up, then half a cosine.
//!
//! With `w` steps of warm-up out of `n`, step `t` (from 0) has the factor
//! ```text
//! (t + 1) / w                                    for t < w
//! f + (1 - f) (1 + cos(pi (t - w) / (n - w))) / 2   else
//! ```
//! where `f` is what is left at the end (Loshchilov, Hutter 2017, arXiv 1608.03983).

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps in all.
    pub steps: u64,
    /// Steps of warm-up.
    pub warm_up: u64,
    /// Factor behind the last step, 0 to 1.
    pub end: f64,
}

impl Schedule {
    /// The factor of the learning rate at a step, from 0 to 1.
    pub fn factor(&self, step: u64) -> f64 {
        let warm_up = self.warm_up.min(self.steps);
        if step < warm_up {
            return (step + 1) as f64 / warm_up as f64;
        }
        let all = (self.steps - warm_up).max(1) as f64;
        let done = ((step - warm_up) as f64 / all).min(1.0);
        self.end + (1.0 - self.end) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_then_falls_to_the_end() {
        let schedule = Schedule { steps: 110, warm_up: 10, end: 0.1 };
        assert_eq!(schedule.factor(0), 0.1);
        assert_eq!(schedule.factor(9), 1.0);
        assert_eq!(schedule.factor(10), 1.0);
        assert!((schedule.factor(60) - 0.55).abs() < 1e-12);
        assert!((schedule.factor(110) - 0.1).abs() < 1e-12);
        assert!((10..110).all(|t| schedule.factor(t + 1) < schedule.factor(t)));
    }

    #[test]
    fn no_warm_up_and_no_steps_are_fine() {
        assert_eq!(Schedule { steps: 4, warm_up: 0, end: 0.0 }.factor(0), 1.0);
        assert_eq!(Schedule { steps: 0, warm_up: 3, end: 0.0 }.factor(0), 1.0);
    }
}
