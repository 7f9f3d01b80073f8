//! Appends the update of a sampler to a denoising step.

use qail_ir::{
    Binary, BinaryFn, Carry, Constant, DType, Elem, Expand, Gather, Graph, Op, Origin, Repeat, Reshape, TensorType,
    Unary, UnaryFn, ValueId,
};

use super::{Sampler, SamplerError, SamplerKind, Turn};

/// Name of the input that counts turns.
const TURN: &str = "sampler.turn";

impl Sampler {
    /// Name of the input with the noise between turns, for `ddpm` alone.
    pub const NOISE: &'static str = "sampler.noise";

    /// Makes a policy of a denoising step: the sample is carried from turn to
    /// turn, the timestep is no input any more, and the only thing that comes of
    /// the prediction is the action. Other outputs stay, as the last turn has them.
    ///
    /// # Errors
    /// See [`SamplerError`]; then the graph is as it was.
    pub fn attach(&self, graph: &mut Graph) -> Result<(), SamplerError> {
        let mut policy = graph.clone();
        self.extend(&mut policy)?;
        *graph = policy;
        Ok(())
    }

    /// Checks that the inputs and the output that the sampler names are there
    /// and of the right types.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, graph: &Graph) -> Result<(), SamplerError> {
        self.parts(graph).map(drop)
    }

    /// Sample, timestep and prediction, and the turns.
    fn parts(&self, graph: &Graph) -> Result<([ValueId; 3], Vec<Turn>), SamplerError> {
        let turns = self.turns()?;
        let inputs = || graph.inputs().iter().map(|&id| graph.node(id).name.as_str());
        let input = |name: &String| {
            let known = || list(inputs());
            graph.input_named(name).ok_or_else(|| SamplerError::NoInput { name: name.clone(), known: known() })
        };
        let (x, t) = (input(&self.sample)?, input(&self.timestep)?);
        let y = graph.output_named(&self.output).ok_or_else(|| SamplerError::NoOutput {
            name: self.output.clone(),
            known: list(graph.outputs.iter().map(|output| output.name.as_str())),
        })?;
        let values = [x, t, y];
        let [x, t, y] = values.map(|value| graph.ty(value));
        let wrong = |name: &String, found: &TensorType, expected: String| {
            Err(SamplerError::Type { name: name.clone(), found: found.to_string(), expected })
        };
        if !x.is_f32() {
            return wrong(&self.sample, x, "f32".to_owned());
        }
        if y != x {
            return wrong(&self.output, y, format!("{x} as the sample `{}`", self.sample));
        }
        let is_number = matches!(t.elem, Elem::Plain(DType::F32 | DType::I64 | DType::I32));
        let is_whole = !matches!(self.kind, SamplerKind::FlowEuler { .. });
        if !is_number || t.n_elements() != graph.batch_size() || (!is_whole && !t.is_f32()) {
            let expected = if is_whole { "one integer or f32 a sample" } else { "one f32 a sample" };
            return wrong(&self.timestep, t, expected.to_owned());
        }
        if graph.repeat.is_some() {
            return Err(SamplerError::Repeats);
        }
        Ok((values, turns))
    }

    fn extend(&self, graph: &mut Graph) -> Result<(), SamplerError> {
        let ([x, t, y], turns) = self.parts(graph)?;
        let turn = graph.add_input(TURN, TensorType::plain(DType::I64, Vec::<usize>::new()));
        let mut update = Update { graph, turn, turns: &turns };
        update.timestep(t)?;
        let noise = update.noise(x)?;
        let clip = match &self.kind {
            SamplerKind::Ddim(diffusion) | SamplerKind::Ddpm(diffusion) => diffusion.clip,
            SamplerKind::FlowEuler { .. } => None,
        };
        let next = update.next(x, y, noise, clip)?;
        let repeat = Repeat {
            n: self.steps,
            turn: Some(graph.node(turn.node).name.clone()),
            carries: vec![Carry { input: self.sample.clone(), output: self.action.clone() }],
        };
        graph.drop_input(t.node);
        graph.outputs.retain(|output| output.name != self.output && output.name != self.action);
        graph.outputs.insert(0, qail_ir::Output { name: self.action.clone(), value: next });
        graph.repeat = Some(repeat);
        Ok(())
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

struct Update<'g> {
    graph: &'g mut Graph,
    turn: ValueId,
    turns: &'g [Turn],
}

impl Update<'_> {
    fn add(&mut self, name: &str, op: Op, operands: &[ValueId]) -> Result<ValueId, SamplerError> {
        Ok(self.graph.add(format!("sampler.{name}"), op, operands, Origin::default())?.value())
    }

    /// The number of this turn out of a table; none if it is always zero.
    fn coefficient(&mut self, name: &str, of: fn(&Turn) -> f64) -> Result<Option<ValueId>, SamplerError> {
        let table: Vec<f32> = self.turns.iter().map(|turn| of(turn) as f32).collect();
        if table.iter().all(|&x| x == 0.0) {
            return Ok(None);
        }
        let constant = Constant::f32([table.len()], &table);
        let table = self.graph.add_const(format!("sampler.{name}.table"), constant, Origin::default());
        let op = Op::Gather(Gather { axis: 0 });
        let turn = self.turn;
        self.add(name, op, &[table, turn]).map(Some)
    }

    /// Lets the network read the timestep of the turn.
    fn timestep(&mut self, input: ValueId) -> Result<(), SamplerError> {
        let ty = self.graph.ty(input).clone();
        let n = self.turns.len();
        let constant = if ty.is_f32() {
            Constant::f32([n], &self.turns.iter().map(|turn| turn.timestep as f32).collect::<Vec<_>>())
        } else {
            let table: Vec<i64> = self.turns.iter().map(|turn| turn.timestep as i64).collect();
            Constant::ints(TensorType { shape: vec![n], ..ty.clone() }, &table)
        };
        let table = self.graph.add_const("sampler.timesteps", constant, Origin::default());
        let turn = self.turn;
        let mut now = self.add("timestep", Op::Gather(Gather { axis: 0 }), &[table, turn])?;
        let shape = ty.shape.clone();
        if !shape.is_empty() {
            let ones = vec![1; shape.len()];
            now = self.add("timestep.shaped", Op::Reshape(Reshape { shape: ones }), &[now])?;
        }
        if ty.n_elements() != 1 {
            now = self.add("timesteps.all", Op::Expand(Expand { shape }), &[now])?;
        }
        self.graph.replace_uses(input, now);
        Ok(())
    }

    /// The fresh noise of this turn, row `turn` of an input; none for rules that take none.
    fn noise(&mut self, x: ValueId) -> Result<Option<ValueId>, SamplerError> {
        if self.turns.iter().all(|turn| turn.s == 0.0) {
            return Ok(None);
        }
        let mut shape = self.graph.ty(x).shape.clone();
        let axis = usize::from(self.graph.batch_axis == Some(0));
        shape.insert(axis.min(shape.len()), self.turns.len());
        let all = self.graph.add_input(Sampler::NOISE, TensorType::f32(shape));
        let turn = self.turn;
        self.add("noise.now", Op::Gather(Gather { axis }), &[all, turn]).map(Some)
    }

    fn binary(&mut self, name: &str, f: BinaryFn, a: ValueId, b: ValueId) -> Result<ValueId, SamplerError> {
        self.add(name, Op::Binary(Binary { f }), &[a, b])
    }

    /// The sum of some values times their coefficients; none if all are zero.
    fn sum(&mut self, name: &str, terms: &[Term]) -> Result<Option<ValueId>, SamplerError> {
        let mut sum = None;
        for &(key, of, value) in terms {
            let Some(value) = value else { continue };
            let Some(factor) = self.coefficient(key, of)? else { continue };
            let is_one = self.turns.iter().all(|turn| of(turn) == 1.0);
            let term = if is_one { value } else { self.binary(&format!("{key}.term"), BinaryFn::Mul, value, factor)? };
            sum = Some(match sum {
                None => term,
                Some(sum) => self.binary(&format!("{name}.{key}"), BinaryFn::Add, sum, term)?,
            });
        }
        Ok(sum)
    }

    fn next(
        &mut self,
        x: ValueId,
        y: ValueId,
        noise: Option<ValueId>,
        clip: Option<f64>,
    ) -> Result<ValueId, SamplerError> {
        let mut clean = self.sum("x0", &[("a", |t| t.a, Some(x)), ("b", |t| t.b, Some(y))])?;
        if let (Some(x0), Some(clip)) = (clean, clip) {
            let f = UnaryFn::Clip { min: -clip as f32, max: clip as f32 };
            clean = Some(self.add("x0.clip", Op::Unary(Unary { f }), &[x0])?);
        }
        let e = self.sum("e", &[("c", |t| t.c, Some(x)), ("d", |t| t.d, Some(y))])?;
        let terms: [Term; 4] =
            [("p", |t| t.p, clean), ("q", |t| t.q, e), ("r", |t| t.r, Some(x)), ("s", |t| t.s, noise)];
        // A rule without terms would be the identity.
        Ok(self.sum("next", &terms)?.unwrap_or(x))
    }
}

/// Name of a coefficient, where it stands in a turn, and what it multiplies.
type Term<'a> = (&'a str, fn(&Turn) -> f64, Option<ValueId>);
