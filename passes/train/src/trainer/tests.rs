//! The loop on a problem that can be solved by hand: `y = w x + b` from rows of
//! `y = 2 x - 1`, with gradients written out and the interpreter as executor.

use std::collections::BTreeMap;

use qail_ir::{Constant, Op, ValueId, interp, text};

use super::*;
use crate::{
    LossValues,
    batches::Column,
    exec::TrainExecutor,
    parameters::Role,
    setup::{Feed, source_of},
};

const JOINT: &str = "
    graph @joint(%x: f32[4, 1], %target.y: f32[4, 1]) -> (%y, %loss, %gw, %gb) {
      %w = const [0.5] : f32[1, 1]
      %b = const [0.0] : f32[1]
      %y = linear %x, %w, %b : f32[4, 1]
      %d = sub %y, %target.y : f32[4, 1]
      %dd = mul %d, %d : f32[4, 1]
      %loss = reduce_mean %dd {axes = [0, 1]} : f32[]
      %half = const [0.5] : f32[]
      %g = mul %d, %half : f32[4, 1]
      %xt = transpose %x {perm = [1, 0]} : f32[1, 4]
      %gw = matmul %xt, %g : f32[1, 1]
      %gb = reduce_sum %g {axes = [0]} : f32[1]
    }";

/// Runs a graph by the interpreter.
struct Slow {
    graph: Graph,
    values: BTreeMap<ValueId, Vec<f32>>,
}

impl Slow {
    fn new(text: &str) -> Self {
        Self { graph: text::parse(text).unwrap(), values: BTreeMap::new() }
    }

    fn value(&self, name: &str) -> ValueId {
        self.graph.nodes().find(|&id| self.graph.node(id).name == name).unwrap().value()
    }
}

impl TrainExecutor for Slow {
    fn set(&mut self, constant: ValueId, elements: &[f32]) -> Result<(), ExecError> {
        let Op::Const(c) = self.graph.op(constant).clone() else { panic!("no constant") };
        self.graph.set_const(c.id, Constant::f32(c.ty.shape, elements)).unwrap();
        Ok(())
    }

    fn run(&mut self, inputs: &[(&str, &[f32])]) -> Result<(), ExecError> {
        let inputs = inputs.iter().map(|(name, x)| {
            let id = self.graph.inputs().iter().find(|&&id| self.graph.node(id).name == *name).unwrap();
            ((*name).to_owned(), Tensor::f32(self.graph.ty(id.value()).shape.clone(), x.to_vec()))
        });
        let all = interp::run_all(&self.graph, &inputs.collect()).unwrap();
        self.values =
            all.into_iter().map(|(value, tensor)| (value, tensor.as_f32().unwrap_or_default().to_vec())).collect();
        Ok(())
    }

    fn read(&self, value: ValueId) -> Result<&[f32], ExecError> {
        Ok(&self.values[&value])
    }

    fn codes(&self, value: ValueId) -> Result<&[f32], ExecError> {
        self.read(value)
    }
}

fn rows(n: usize) -> Rows {
    let x: Vec<f32> = (0..n).map(|i| (i as f32 / n as f32) * 2.0 - 1.0).collect();
    let actions = x.iter().map(|x| 2.0 * x - 1.0).collect();
    Rows {
        observations: vec![Column { name: "x".to_owned(), row_len: 1, data: x }],
        actions: Some(Column { name: "actions".to_owned(), row_len: 1, data: actions }),
        windows: None,
        weights: None,
    }
}

fn parameter(name: &str, role: Role, shape: &[usize], x: f32) -> Parameter {
    Parameter {
        name: name.to_owned(),
        role,
        shape: shape.to_vec(),
        elements: vec![x],
        unit: vec![1.0],
        gradient_scale: 1.0,
    }
}

fn options() -> TrainOptions {
    TrainOptions {
        method: Method::Qail,
        steps: 300,
        batch: 8,
        lr: 0.05,
        obs_noise: 0.0,
        evaluate_every: 50,
        ..TrainOptions::default()
    }
}

/// `y = w x + b` for four rows at once.
fn line(w: f32, b: f32) -> Forward {
    let text = JOINT.replace(", %target.y: f32[4, 1]", "").replace("(%y, %loss, %gw, %gb)", "(%y)");
    let until = text.find("%d = ").unwrap();
    let line = Slow::new(&format!("{}}}", &text[..until]));
    let (graph, constants) = (line.graph.clone(), vec![line.value("w"), line.value("b")]);
    let mut line = Forward::with(Box::new(line), &graph, 4, constants);
    line.set(&[vec![w], vec![b]]).unwrap();
    line
}

/// Two runs of 4 rows make a batch of 8.
fn trainer(options: TrainOptions) -> Trainer {
    let joint = Slow::new(JOINT);
    let constants = vec![joint.value("w"), joint.value("b")];
    let gradients = vec![joint.value("gw"), joint.value("gb")];
    let loss = LossValues { total: joint.value("loss"), qail: Some(joint.value("loss")), qbc: None };
    let feeds = ["x", "target.y"].map(|input| {
        let source = source_of(input, &["x".to_owned()], &["y"]).unwrap();
        Feed { input: input.to_owned(), source, row_len: 1 }
    });
    let machine = Machine {
        executor: Box::new(joint),
        rows: 4,
        feeds: feeds.to_vec(),
        constants: constants.clone(),
        gradients,
        loss,
    };
    // Five rows: the second batch of four is filled up.
    let held_out = rows(5);
    let reference = held_out.actions.clone().unwrap();
    let mut judge = Judge::new(line(0.5, 0.0), held_out, reference, "y".to_owned());
    let answers = vec![rows(30).actions.unwrap()];
    let noise = (options.obs_noise > 0.0).then(|| Noise::new(&rows(30), options.obs_noise, options.seed));
    if let Some(noise) = &noise {
        judge = judge.with_noise(noise, &mut line(2.0, -1.0)).unwrap();
    }
    let changed = noise.map(|noise| data::Changed {
        noise: Some(noise),
        denoise: None,
        teacher: line(2.0, -1.0),
        outputs: vec!["y".to_owned()],
    });
    let data = Data::with(rows(30), answers, changed, &options);
    let parameters = vec![parameter("w", Role::Weight, &[1, 1], 0.5), parameter("b", Role::Bias, &[1], 0.0)];
    Trainer::with(options, parameters, machine, judge, data).unwrap()
}

/// Remembers what it heard.
#[derive(Default)]
struct Witness {
    losses: Vec<f64>,
    evaluations: Vec<Evaluation>,
    stop_at: Option<u64>,
    saved: Vec<State>,
}

impl Watch for Witness {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluations.push(*evaluation);
    }

    fn stop(&mut self) -> bool {
        self.stop_at.is_some_and(|at| self.losses.len() as u64 >= at)
    }

    fn wants_state(&mut self, step: u64) -> bool {
        step == 0 || step == 120
    }

    fn save(&mut self, state: &State, _: &[Parameter]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.saved.push(state.clone());
        Ok(())
    }
}

#[test]
fn a_line_is_found() {
    let mut trainer = trainer(options());
    let mut witness = Witness::default();
    assert!(trainer.run(&mut witness).unwrap());
    let state = trainer.state();
    assert!((state.best[0][0] - 2.0).abs() < 1e-2 && (state.best[1][0] + 1.0).abs() < 1e-2, "{:?}", state.best);
    assert_eq!((witness.losses.len(), witness.evaluations.len()), (300, 7));
    let first = witness.evaluations[0];
    // Half of the rows' errors by hand: y = x / 2 against 2 x - 1.
    let expected: f64 = [-1.0, -0.6, -0.2, 0.2, 0.6].iter().map(|x: &f64| (1.0 - 1.5 * x).powi(2)).sum::<f64>() / 5.0;
    assert!((first.expert.unwrap().mse() - expected).abs() < 1e-6, "{first:?}");
    assert!(state.best_score < 1e-4 && state.best_step > 0);
}

#[test]
fn a_run_that_is_cut_and_resumed_ends_in_the_same_bits() {
    for obs_noise in [0.0, 0.2] {
        let options = || TrainOptions { obs_noise, ..options() };
        let mut whole = trainer(options());
        let mut witness = Witness::default();
        whole.run(&mut witness).unwrap();
        let state = witness.saved.remove(1);
        assert_eq!(state.step, 120);
        let mut rest = trainer(options());
        rest.restore(state).unwrap();
        rest.run(&mut Witness::default()).unwrap();
        assert_eq!(rest.state(), whole.state());
    }
}

/// Five times the same state, where the teacher does nothing.
fn one_state() -> Rows {
    let column = |name: &str, x: f32| Column { name: name.to_owned(), row_len: 1, data: vec![x; 5] };
    Rows { observations: vec![column("x", 0.5)], actions: Some(column("actions", 0.25)), ..Rows::default() }
}

#[test]
fn with_noise_the_policy_that_is_right_beside_the_recorded_states_wins() {
    let reference = Column { name: "y".to_owned(), row_len: 1, data: vec![0.0; 5] };
    let judge = |seed| {
        let judge = Judge::new(line(0.5, 0.0), one_state(), reference.clone(), "y".to_owned());
        judge.with_noise(&Noise::new(&rows(30), 0.2, seed), &mut line(2.0, -1.0)).unwrap()
    };
    let mse = |w: f32, b: f32| {
        let verdict = judge(3).judge(&[vec![w], vec![b]]).unwrap();
        (verdict.clean.teacher.mse(), verdict.judged.teacher.mse())
    };
    // The first one says nothing but what was recorded, the second one is the teacher, a little off.
    let (by_heart, near) = (mse(0.0, 0.0), mse(2.0, -0.99));
    assert!(by_heart.0 < near.0, "{by_heart:?} {near:?}");
    assert!(near.1 < by_heart.1 / 10.0, "{by_heart:?} {near:?}");
    // The noise of features as they vary in training, 0.2 * 0.577, times the slope.
    assert!((by_heart.1.sqrt() - 2.0 * 0.2 * 0.577).abs() < 0.01, "{by_heart:?}");
    // The expert moves with the teacher: who is the teacher stays a quarter away.
    let verdict = judge(3).judge(&[vec![2.0], vec![-1.0]]).unwrap();
    assert!((verdict.judged.expert.unwrap().mse() - 0.0625).abs() < 1e-6);
    assert!(verdict.judged.teacher.n_elements() >= 4096, "few rows are drawn often");
    assert_eq!(verdict.clean.teacher.n_elements(), 5);
    // Another seed, other noise; the same seed, the same.
    let judged = |seed| judge(seed).judge(&[vec![0.0], vec![0.0]]).unwrap().judged.teacher.mse().to_bits();
    assert_eq!(judged(3), judged(3));
    assert_ne!(judged(3), judged(4));
}

#[test]
fn integers_get_no_noise() {
    let teacher = text::parse("graph @t(%x: f32[1, 1], %k: u8[1, 1]) -> (%x) {}").unwrap();
    let mut data = rows(4);
    data.observations.push(Column { name: "k".to_owned(), row_len: 1, data: vec![1.0, 2.0, 3.0, 4.0] });
    let noise = noise(&data, &teacher, None, &TrainOptions { obs_noise: 1.0, ..options() }).unwrap();
    let mut noisy: Vec<Vec<f32>> = data.observations.iter().map(|column| column.data.clone()).collect();
    noise.add(0, &mut noisy);
    assert_ne!(noisy[0], data.observations[0].data);
    assert_eq!(noisy[1], data.observations[1].data);
    assert!(super::noise(&data, &teacher, None, &options()).is_none());
}

#[test]
fn a_watcher_can_stop_it_and_gets_a_judgement() {
    let mut trainer = trainer(options());
    let mut witness = Witness { stop_at: Some(70), ..Witness::default() };
    assert!(!trainer.run(&mut witness).unwrap());
    let judged: Vec<u64> = witness.evaluations.iter().map(|evaluation| evaluation.step).collect();
    assert_eq!(judged, [0, 50, 70]);
}

#[test]
fn divergence_is_named_and_the_best_is_kept() {
    let mut trainer = trainer(TrainOptions { lr: 1e6, clip: f64::INFINITY, ..options() });
    let error = trainer.run(&mut Witness::default()).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    assert_eq!(trainer.state().best, [[0.5], [0.0]]);
    let mut trainer = super::tests::trainer(options());
    trainer.data.rows.actions.as_mut().unwrap().data.fill(1e30);
    let error = trainer.run(&mut Witness::default()).unwrap_err();
    assert_eq!(error.to_string().split(':').next().unwrap(), "the loss of the first batch is inf");
    let mut trainer = super::tests::trainer(options());
    trainer.parameters[1].elements[0] = f32::NAN;
    let error = trainer.run(&mut Witness::default()).unwrap_err();
    assert!(error.to_string().contains("`b` is not finite"), "{error}");
}

#[test]
fn a_state_of_another_size_is_refused() {
    let mut trainer = trainer(options());
    let mut state = trainer.state();
    state.m[0].push(0.0);
    assert!(trainer.restore(state).is_err());
    let state = State { step: 301, ..trainer.state() };
    assert!(trainer.restore(state).is_err());
    let state = State { average: Some(vec![vec![0.0], vec![0.0]]), ..trainer.state() };
    assert!(trainer.restore(state).is_err());
}

#[test]
fn an_average_is_what_is_judged() {
    let mut trainer = trainer(TrainOptions { ema: 0.9, ..options() });
    trainer.run(&mut Witness::default()).unwrap();
    let state = trainer.state();
    let average = state.average.unwrap();
    assert_ne!(average, state.now);
    assert!((average[0][0] - 2.0).abs() < 2e-2, "{average:?}");
}

#[test]
fn actions_of_another_length_are_refused() {
    let mut data = rows(30);
    data.actions = Some(Column { name: "actions".to_owned(), row_len: 2, data: vec![0.0; 60] });
    let donor = trainer(options());
    let data = Data::with(data, donor.data.answers.clone(), None, &options());
    let error = Trainer::with(options(), donor.parameters, donor.machine, donor.judge, data).err().unwrap();
    assert_eq!(error.to_string(), "`actions` has 2 numbers a step, needed are 1");
}
