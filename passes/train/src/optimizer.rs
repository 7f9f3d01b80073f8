//! AdamW with groups (Loshchilov, Hutter 2019, arXiv 1711.05101), in units.
//!
//! Each element is seen as `theta = unit * x` with the unit of its parameter
//! (see [`parameters`](crate::parameters)), and `x` is what is trained. With
//! `g = dL/dtheta`, the scale `c` of steps, and the clip factor `k`:
//! ```text
//! h = k * c * unit * g                        k = min(1, clip / |all c * unit * g|)
//! m = b1 m + (1 - b1) h                       v = b2 v + (1 - b2) h^2
//! theta -= rate * unit * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//! theta -= rate * decay * theta               weights only
//! ```
//! Adam's direction is about 1, whatever the loss, so `rate` is the relative
//! change of a step. Steps of quantizers have a rate of their own and a floor.

use crate::parameters::{Parameter, Role};

/// What AdamW depends on beside the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// What keeps the division sound.
    pub epsilon: f64,
    /// Decay of weights, relative to the rate.
    pub weight_decay: f64,
    /// Largest norm of all gradients together, in units; infinite for none.
    pub clip: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-10, weight_decay: 0.0, clip: 1.0 }
    }
}

/// Learning rates of one update, by role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of weights and biases.
    pub weights: f64,
    /// Of steps.
    pub steps: f64,
}

impl Rates {
    fn of(&self, role: Role) -> f64 {
        match role {
            Role::Weight | Role::Bias => self.weights,
            Role::Step => self.steps,
        }
    }
}

/// Moments of every parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    options: AdamWOptions,
    /// First moments, parameter by parameter.
    pub m: Vec<Vec<f32>>,
    /// Second moments.
    pub v: Vec<Vec<f32>>,
    /// Updates so far.
    pub t: u64,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(options: AdamWOptions, parameters: &[Parameter]) -> Self {
        let zeros = || parameters.iter().map(|parameter| vec![0.0; parameter.elements.len()]).collect();
        Self { options, m: zeros(), v: zeros(), t: 0 }
    }

    /// Changes the parameters once. `gradients` are `dL/dtheta` in their order.
    /// Returns the global norm of the gradients in units, before clipping.
    pub fn update(&mut self, parameters: &mut [Parameter], gradients: &[Vec<f32>], rates: Rates) -> f64 {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, clip } = self.options;
        let norm = norm(parameters, gradients);
        let k = if norm > clip { clip / norm } else { 1.0 };
        self.t += 1;
        let c1 = 1.0 - libm::pow(beta1, self.t as f64);
        let c2 = 1.0 - libm::pow(beta2, self.t as f64);
        let moments = self.m.iter_mut().zip(&mut self.v);
        for ((parameter, gradient), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
            let rate = rates.of(parameter.role);
            let decay = if parameter.role == Role::Weight { rate * weight_decay } else { 0.0 };
            let scale = k * f64::from(parameter.gradient_scale);
            for (i, ((m, v), (&g, &unit))) in m.iter_mut().zip(v).zip(gradient.iter().zip(&parameter.unit)).enumerate()
            {
                let unit = f64::from(unit);
                let h = scale * unit * f64::from(g);
                *m = (beta1 * f64::from(*m) + (1.0 - beta1) * h) as f32;
                *v = (beta2 * f64::from(*v) + (1.0 - beta2) * h * h) as f32;
                let direction = (f64::from(*m) / c1) / ((f64::from(*v) / c2).sqrt() + epsilon);
                let floor = parameter.floor(i);
                let Some(theta) = parameter.elements.get_mut(i) else { continue };
                let old = f64::from(*theta);
                *theta = (old - rate * unit * direction - decay * old) as f32;
                if let Some(floor) = floor {
                    // NaN stays: whoever watches must see it.
                    *theta = if *theta < floor { floor } else { *theta };
                }
            }
        }
        norm
    }
}

/// Global norm of the gradients in units, summed in order in `f64`.
fn norm(parameters: &[Parameter], gradients: &[Vec<f32>]) -> f64 {
    let mut sum = 0.0;
    for (parameter, gradient) in parameters.iter().zip(gradients) {
        let scale = f64::from(parameter.gradient_scale);
        for (&g, &unit) in gradient.iter().zip(&parameter.unit) {
            let h = scale * f64::from(unit) * f64::from(g);
            sum += h * h;
        }
    }
    sum.sqrt()
}

/// A moving average of parameters: `a = decay a + (1 - decay) theta`, with the
/// decay held back at first, `min(decay, (1 + t) / (10 + t))`, so that it does
/// not remember the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Average {
    decay: f64,
    /// The averages, parameter by parameter.
    pub elements: Vec<Vec<f32>>,
}

impl Average {
    /// Starts at the present parameters.
    pub fn new(decay: f64, parameters: &[Parameter]) -> Self {
        Self { decay, elements: parameters.iter().map(|parameter| parameter.elements.clone()).collect() }
    }

    /// Takes in the parameters behind update `t`.
    pub fn update(&mut self, parameters: &[Parameter], t: u64) {
        let decay = self.decay.min((1.0 + t as f64) / (10.0 + t as f64));
        for (average, parameter) in self.elements.iter_mut().zip(parameters) {
            for (a, &theta) in average.iter_mut().zip(&parameter.elements) {
                *a = (decay * f64::from(*a) + (1.0 - decay) * f64::from(theta)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(role: Role, elements: &[f32], unit: f32) -> Parameter {
        Parameter {
            name: "p".to_owned(),
            role,
            shape: vec![elements.len()],
            elements: elements.to_vec(),
            unit: vec![unit; elements.len()],
            gradient_scale: 1.0,
        }
    }

    const RATES: Rates = Rates { weights: 0.01, steps: 0.001 };

    #[test]
    fn the_first_update_is_the_rate_in_units_whatever_the_gradient() {
        for unit in [1.0, 1e-4] {
            let mut parameters = [parameter(Role::Weight, &[1.0, 1.0], unit)];
            let mut adam = AdamW::new(AdamWOptions::default(), &parameters);
            adam.update(&mut parameters, &[vec![100.0, -1e-3]], RATES);
            let change: Vec<f32> = parameters[0].elements.iter().map(|x| (x - 1.0) / unit).collect();
            assert!((change[0] + 0.01).abs() < 1e-3 && (change[1] - 0.01).abs() < 1e-3, "{change:?}");
        }
    }

    #[test]
    fn folded_weights_train_like_others() {
        // f(w) = (w - target)^2 in two units that differ by 1e4.
        let run = |unit: f32| {
            let mut parameters = [parameter(Role::Weight, &[unit], unit)];
            let mut adam = AdamW::new(AdamWOptions { clip: f64::INFINITY, ..AdamWOptions::default() }, &parameters);
            for _ in 0..300 {
                let x = parameters[0].elements[0] / unit;
                adam.update(&mut parameters, &[vec![2.0 * (x - 0.5) / unit]], RATES);
            }
            parameters[0].elements[0] / unit
        };
        let (one, small) = (run(1.0), run(1e-4));
        assert!((one - 0.5).abs() < 0.05, "{one}");
        assert!((one - small).abs() < 1e-5, "{one} {small}");
    }

    #[test]
    fn steps_stay_positive_and_have_their_own_rate() {
        let mut parameters = [parameter(Role::Step, &[0.5], 0.5)];
        let mut adam = AdamW::new(AdamWOptions::default(), &parameters);
        adam.update(&mut parameters, &[vec![1.0]], RATES);
        assert!((parameters[0].elements[0] - 0.4995).abs() < 1e-6);
        for _ in 0..2000 {
            adam.update(&mut parameters, &[vec![1.0]], RATES);
        }
        assert_eq!(parameters[0].elements[0], 0.5 / 64.0);
    }

    #[test]
    fn only_weights_decay() {
        for (role, expected) in [(Role::Weight, 0.99), (Role::Bias, 1.0), (Role::Step, 1.0)] {
            let mut parameters = [parameter(role, &[1.0], 1.0)];
            let options = AdamWOptions { weight_decay: 1.0, ..AdamWOptions::default() };
            AdamW::new(options, &parameters).update(&mut parameters, &[vec![0.0]], RATES);
            assert!((parameters[0].elements[0] - expected).abs() < 1e-6, "{role:?}");
        }
    }

    #[test]
    fn one_huge_gradient_is_clipped_for_all() {
        let mut parameters = [parameter(Role::Weight, &[1.0, 1.0], 1.0)];
        let mut adam = AdamW::new(AdamWOptions::default(), &parameters);
        let norm = adam.update(&mut parameters, &[vec![3e6, 4e6]], RATES);
        assert_eq!(norm, 5e6);
        assert!((adam.m[0][0] - 0.06).abs() < 1e-6 && (adam.m[0][1] - 0.08).abs() < 1e-6);
    }

    #[test]
    fn an_average_follows() {
        let mut parameters = [parameter(Role::Weight, &[0.0], 1.0)];
        let mut average = Average::new(0.5, &parameters);
        parameters[0].elements[0] = 1.0;
        average.update(&parameters, 1000);
        assert_eq!(average.elements[0], [0.5]);
    }
}
