//! Distances, likelihoods and divergences, element by element, as nodes.

use std::collections::BTreeMap;

use qail_ir::{
    Binary, BinaryFn, ConstData, Constant, Graph, Op, Origin, Reduce, ReduceFn, Reshape, TensorType, TypeError, Unary,
    UnaryFn, ValueId,
};

use super::{Distance, LossError, Weighting, head};

/// Adds the nodes of a loss. Inputs are made once, when a term first reads them.
pub(super) struct Terms<'g> {
    graph: &'g mut Graph,
    inputs: BTreeMap<String, ValueId>,
    pub(super) weighting: Weighting,
    /// None if all of the graph is one sample.
    batch_axis: Option<usize>,
    /// Number of samples.
    n_samples: usize,
}

impl<'g> Terms<'g> {
    pub(super) fn new(graph: &'g mut Graph, weighting: Weighting) -> Self {
        let (batch_axis, n_samples) = (graph.batch_axis, graph.batch_size());
        Self { graph, inputs: BTreeMap::new(), weighting, batch_axis, n_samples }
    }

    /// `distance(output, <of>.<output>)`, element by element.
    pub(super) fn distance(
        &mut self,
        name: &str,
        of: &str,
        output: &str,
        distance: Distance,
    ) -> Result<ValueId, LossError> {
        let y = head::output(self.graph, output)?;
        let reference = self.beside(of, output)?;
        let d = self.binary(&format!("{name}.d"), BinaryFn::Sub, y, reference)?;
        Ok(match distance {
            Distance::L1 => self.unary(name, UnaryFn::Abs, d)?,
            Distance::L2 | Distance::Nll | Distance::Kl => self.binary(name, BinaryFn::Mul, d, d)?,
            Distance::Huber { delta } => {
                // With c = clip(d, -delta, delta): c * (d - c / 2).
                let c = self.unary(&format!("{name}.c"), UnaryFn::Clip { min: -delta, max: delta }, d)?;
                let half = self.scaled(&format!("{name}.half"), c, 0.5)?;
                let rest = self.binary(&format!("{name}.rest"), BinaryFn::Sub, d, half)?;
                self.binary(name, BinaryFn::Mul, c, rest)?
            }
        })
    }

    /// `((a - mean) / std)^2 / 2 + log_std + ln(2 pi) / 2`.
    pub(super) fn nll(&mut self, name: &str, mean: &str, log_std: &str) -> Result<ValueId, LossError> {
        let (mu, l) = self.gaussian(mean, log_std)?;
        let a = self.beside("target", mean)?;
        let d = self.binary(&format!("{name}.d"), BinaryFn::Sub, a, mu)?;
        let minus = self.unary(&format!("{name}.minus"), UnaryFn::Neg, l)?;
        let precision = self.unary(&format!("{name}.precision"), UnaryFn::Exp, minus)?;
        let t = self.binary(&format!("{name}.t"), BinaryFn::Mul, d, precision)?;
        let square = self.binary(&format!("{name}.square"), BinaryFn::Mul, t, t)?;
        let half = self.scaled(&format!("{name}.half"), square, 0.5)?;
        let sum = self.binary(&format!("{name}.sum"), BinaryFn::Add, half, l)?;
        let constant = self.scalar(0.5 * libm::log(std::f64::consts::TAU));
        Ok(self.binary(name, BinaryFn::Add, sum, constant)?)
    }

    /// `KL(teacher || student)` of two Gaussians:
    /// `l - l' + (exp(2 l') + (mu' - mu)^2) / (2 exp(2 l)) - 1/2`, primes for the
    /// teacher. With `e = exp(-l)` the quotient is `((exp(l') e)^2 + (d e)^2) / 2`,
    /// whose parts stay small where the variances do not.
    pub(super) fn kl(&mut self, name: &str, mean: &str, log_std: &str) -> Result<ValueId, LossError> {
        let (mu, l) = self.gaussian(mean, log_std)?;
        let (mu_t, l_t) = (self.beside("teacher", mean)?, self.beside("teacher", log_std)?);
        let d = self.binary(&format!("{name}.d"), BinaryFn::Sub, mu, mu_t)?;
        let minus = self.unary(&format!("{name}.minus"), UnaryFn::Neg, l)?;
        let precision = self.unary(&format!("{name}.precision"), UnaryFn::Exp, minus)?;
        let t = self.binary(&format!("{name}.t"), BinaryFn::Mul, d, precision)?;
        let square = self.binary(&format!("{name}.square"), BinaryFn::Mul, t, t)?;
        let log_ratio = self.binary(&format!("{name}.log_ratio"), BinaryFn::Sub, l_t, l)?;
        let ratio = self.unary(&format!("{name}.ratio"), UnaryFn::Exp, log_ratio)?;
        let variances = self.binary(&format!("{name}.variances"), BinaryFn::Mul, ratio, ratio)?;
        let sum = self.binary(&format!("{name}.sum"), BinaryFn::Add, square, variances)?;
        let half = self.scaled(&format!("{name}.half"), sum, 0.5)?;
        let difference = self.binary(&format!("{name}.difference"), BinaryFn::Sub, half, log_ratio)?;
        let constant = self.scalar(-0.5);
        Ok(self.binary(name, BinaryFn::Add, difference, constant)?)
    }

    /// Each element times the weight of its sample.
    pub(super) fn weighted(&mut self, name: &str, each: ValueId) -> Result<ValueId, LossError> {
        let ty = TensorType::f32([self.n_samples, 1]);
        let weight = self.input("weight", ty)?;
        let rank = self.graph.ty(each).shape.len();
        let mut shape = vec![1; rank];
        if let Some(extent) = self.batch_axis.and_then(|axis| shape.get_mut(axis)) {
            *extent = self.n_samples;
        }
        let along = self.add(&format!("{name}.weight"), Op::Reshape(Reshape { shape }), &[weight])?;
        Ok(self.binary(&format!("{name}.weighted"), BinaryFn::Mul, each, along)?)
    }

    /// Each element times the mask of its action in a chunk of `length`. The mask
    /// does not divide the mean, as in ACT (arXiv 2304.13705).
    pub(super) fn masked(&mut self, name: &str, each: ValueId, length: usize) -> Result<ValueId, LossError> {
        let found = self.graph.ty(each).clone();
        let mut shape = found.shape.clone();
        shape.iter_mut().last().into_iter().for_each(|extent| *extent = 1);
        let n_actions: usize = shape.iter().product();
        if !matches!(shape[..], [.., rows, _] if rows == length) || n_actions != self.n_samples * length {
            return Err(LossError::Chunk { name: name.to_owned(), found, length });
        }
        let mask = self.input("mask", TensorType::f32([self.n_samples, length]))?;
        let along = self.add(&format!("{name}.mask"), Op::Reshape(Reshape { shape }), &[mask])?;
        Ok(self.binary(&format!("{name}.masked"), BinaryFn::Mul, each, along)?)
    }

    /// One number of all elements.
    pub(super) fn reduce(&mut self, name: &str, f: ReduceFn, x: ValueId) -> Result<ValueId, TypeError> {
        let axes = (0..self.graph.ty(x).shape.len()).collect();
        self.add(&format!("{name}.mean"), Op::Reduce(Reduce { f, axes, keep_dims: false }), &[x])
    }

    pub(super) fn binary(&mut self, name: &str, f: BinaryFn, a: ValueId, b: ValueId) -> Result<ValueId, TypeError> {
        self.add(name, Op::Binary(Binary { f }), &[a, b])
    }

    /// `x * factor`; nothing for 1.
    pub(super) fn scaled(&mut self, name: &str, x: ValueId, factor: f32) -> Result<ValueId, TypeError> {
        if factor == 1.0 {
            return Ok(x);
        }
        let factor = self.scalar(factor.into());
        self.binary(name, BinaryFn::Mul, x, factor)
    }

    /// Hands a value back.
    pub(super) fn output(&mut self, name: &str, value: ValueId) -> Result<(), LossError> {
        if self.graph.outputs.iter().any(|output| output.name == name) {
            return Err(LossError::Taken { name: name.to_owned() });
        }
        self.graph.add_output(name, value);
        Ok(())
    }

    /// Means and logarithms of standard deviations; the logarithms broadcast.
    fn gaussian(&mut self, mean: &str, log_std: &str) -> Result<(ValueId, ValueId), LossError> {
        let (mu, l) = (head::output(self.graph, mean)?, head::output(self.graph, log_std)?);
        let probe = Op::Binary(Binary { f: BinaryFn::Add });
        let ty = self.graph.ty(mu).clone();
        match probe.infer(&[&ty, self.graph.ty(l)]) {
            Ok(sum) if sum == [ty] => Ok((mu, l)),
            _ => {
                let found = self.graph.ty(l).clone();
                let expected = "of the shape of the means or one that broadcasts to it";
                Err(LossError::Output { name: log_std.to_owned(), found, expected })
            }
        }
    }

    /// Input `<of>.<output>`, of the type of the output.
    fn beside(&mut self, of: &str, output: &str) -> Result<ValueId, LossError> {
        let ty = self.graph.ty(head::output(self.graph, output)?).clone();
        self.input(&format!("{of}.{output}"), ty)
    }

    fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId, LossError> {
        if let Some(&input) = self.inputs.get(name) {
            return Ok(input);
        }
        // The caller feeds inputs by name, so it may not get a number.
        if self.graph.nodes().any(|id| self.graph.node(id).name == name) {
            return Err(LossError::Taken { name: name.to_owned() });
        }
        let input = self.graph.add_input(name, ty);
        self.inputs.insert(name.to_owned(), input);
        Ok(input)
    }

    fn unary(&mut self, name: &str, f: UnaryFn, x: ValueId) -> Result<ValueId, TypeError> {
        self.add(name, Op::Unary(Unary { f }), &[x])
    }

    fn scalar(&mut self, number: f64) -> ValueId {
        let constant = Constant { ty: TensorType::f32([]), data: ConstData::Splat(number) };
        self.graph.add_const("loss.factor", constant, Origin::default())
    }

    fn add(&mut self, name: &str, op: Op, operands: &[ValueId]) -> Result<ValueId, TypeError> {
        Ok(self.graph.add(name, op, operands, Origin::default())?.value())
    }
}
