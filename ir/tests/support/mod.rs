//! Random graphs: every operation, awkward names, shared values, empty tensors.

mod layers;

use std::{collections::BTreeMap, sync::Arc};

use qail_ir::{
    Binary, BinaryFn, BinaryGrad, Cast, Concat, ConstData, ConstSource, Constant, DType, Dequantize, Elem, Expand,
    FakeQuant, FakeQuantGrad, Grad, Graph, Linear, LinearWq, Lookup, MatMul, Op, Origin, QLinear, QuantScheme,
    Quantize, Reduce, ReduceFn, Requantize, Reshape, Slice, SliceAxis, SliceGrad, TensorType, Transpose, Unary,
    UnaryFn, ValueId, Wrt, interp::Tensor,
};

/// A counter-based generator: the same numbers everywhere.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn f32(&mut self) -> f32 {
        let odd = [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE / 4.0, 3.4e38, 0.1];
        match self.below(4) {
            0 => self.pick(&odd),
            1 => f32::from_bits(self.next() as u32),
            _ => (self.below(2000) as f32 - 1000.0) / 250.0,
        }
    }
}

/// A random element type.
fn elem(dice: &mut Dice) -> Elem {
    if dice.flip() { Elem::Plain(dice.pick(&DType::ALL)) } else { Elem::Code(scheme(dice)) }
}

fn scheme(dice: &mut Dice) -> QuantScheme {
    QuantScheme { bits: dice.pick(&[2, 3, 4, 8, 16]), signed: dice.flip() }
}

fn shape(dice: &mut Dice) -> Vec<usize> {
    let rank = dice.below(4);
    (0..rank).map(|_| dice.pick(&[1, 2, 3, 4, 5, 1, 2, 0])).collect()
}

/// Every function, with random parameters.
pub(crate) fn function(dice: &mut Dice) -> UnaryFn {
    let alpha = dice.below(100) as f32 / 64.0;
    let all = [
        UnaryFn::Relu,
        UnaryFn::LeakyRelu { alpha },
        UnaryFn::Elu { alpha },
        UnaryFn::Tanh,
        UnaryFn::Sigmoid,
        UnaryFn::Silu,
        UnaryFn::Clip { min: -alpha, max: alpha },
        UnaryFn::Clip { min: f32::NEG_INFINITY, max: 6.0 },
        UnaryFn::Abs,
        UnaryFn::Neg,
        UnaryFn::Exp,
        UnaryFn::Log,
        UnaryFn::Sqrt,
        UnaryFn::Reciprocal,
        UnaryFn::Gelu,
        UnaryFn::GeluTanh,
        UnaryFn::Mish,
        UnaryFn::Swish { alpha },
        UnaryFn::HardSigmoid { alpha, beta: 0.5 },
        UnaryFn::HardSwish,
        UnaryFn::Selu { alpha, gamma: 1.5 },
        UnaryFn::Celu { alpha: alpha + 0.5 },
        UnaryFn::Softplus,
        UnaryFn::Softsign,
        UnaryFn::Erf,
        UnaryFn::Sin,
        UnaryFn::Cos,
        UnaryFn::Tan,
        UnaryFn::Asin,
        UnaryFn::Acos,
        UnaryFn::Atan,
        UnaryFn::Sinh,
        UnaryFn::Cosh,
        UnaryFn::Asinh,
        UnaryFn::Acosh,
        UnaryFn::Atanh,
        UnaryFn::Floor,
        UnaryFn::Ceil,
        UnaryFn::Round,
        UnaryFn::Sign,
    ];
    dice.pick(&all)
}

#[derive(Debug)]
struct Memory(Arc<[u8]>);

impl ConstSource for Memory {
    fn read(&self, start: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = start as usize;
        out.copy_from_slice(&self.0[start..start + out.len()]);
        Ok(())
    }
}

/// A constant of any storage; `sane` keeps the elements small and finite.
fn constant(dice: &mut Dice, ty: TensorType, sane: bool) -> Constant {
    let n = ty.n_elements();
    let rand = Constant { ty: ty.clone(), data: ConstData::Rand(dice.next()) };
    match dice.below(4) {
        0 => rand,
        1 if !sane => Constant { ty, data: ConstData::Splat(f64::from(dice.f32())) },
        2 if ty.is_f32() && !sane => {
            let elements: Vec<f32> = (0..n).map(|_| dice.f32()).collect();
            Constant::f32(ty.shape, &elements)
        }
        3 => Constant { ty, data: ConstData::Source(Arc::new(Memory(rand.read_bytes(0..n).unwrap().into()))) },
        _ => Constant { ty, data: ConstData::Bytes(rand.read_bytes(0..n).unwrap().into()) },
    }
}

const NAMES: [&str; 12] = ["a", "x.y", "mlp_1/sub:0", "ünï", "%", "q\"uote\\", "1", "-", ".", "new\nline", "inf", "v"];

struct Builder {
    dice: Dice,
    graph: Graph,
    values: Vec<ValueId>,
}

impl Builder {
    fn origin(&mut self) -> Origin {
        (0..self.dice.below(3)).map(|_| self.dice.pick(&NAMES).to_owned()).collect()
    }

    fn constant(&mut self, ty: TensorType, sane: bool) -> ValueId {
        let constant = constant(&mut self.dice, ty, sane);
        let (name, origin) = (self.dice.pick(&NAMES), self.origin());
        self.graph.add_const(name, constant, origin)
    }

    fn positive(&mut self, ty: TensorType) -> ValueId {
        let value = f64::from(self.dice.pick(&[0.5f32, 1.0, 0.1, 0.007]));
        self.graph.add_const("s", Constant { ty, data: ConstData::Splat(value) }, Origin::default())
    }

    fn ints(&mut self, n: usize, value: usize) -> ValueId {
        let ty = TensorType::plain(DType::I32, [n]);
        self.graph.add_const("m", Constant::ints(ty, &vec![value as i64; n]), Origin::default())
    }

    /// Groups of channels for `features` features, features and channels of a group of `n`.
    fn groups(&mut self, features: usize, n: usize) -> (usize, usize, usize) {
        let groups = 1 + self.dice.below(3);
        let groups = if features.is_multiple_of(groups) { groups } else { 1 };
        (groups, features / groups, n * groups)
    }

    fn add(&mut self, op: Op, operands: &[ValueId]) {
        let (name, origin) = (self.dice.pick(&NAMES), self.origin());
        // What does not fit is left out: the generator may guess.
        if let Ok(node) = self.graph.add(name, op, operands, origin)
            && self.graph.ty(node.value()).n_elements() <= 4096
        {
            self.values.push(node.value());
        }
    }

    fn value(&mut self) -> ValueId {
        self.dice.pick(&self.values)
    }

    fn step(&mut self) {
        let x = self.value();
        let ty = self.graph.ty(x).clone();
        let rank = ty.shape.len();
        let last = ty.shape.last().copied().unwrap_or(1);
        let n = self.dice.pick(&[1, 2, 3, 8, 0]);
        let f = function(&mut self.dice);
        let act = self.dice.flip().then_some(f);
        let scheme = scheme(&mut self.dice);
        match self.dice.below(36) {
            0 => {
                let elem = elem(&mut self.dice);
                let shape = shape(&mut self.dice);
                let value = self.constant(TensorType { elem, shape }, false);
                self.values.push(value);
            }
            1 => self.add(Op::Unary(Unary { f }), &[x]),
            2 | 3 => {
                let (f, y) = (self.dice.pick(&BinaryFn::ALL), self.value());
                self.add(Op::Binary(Binary { f }), &[x, y]);
            }
            4 => {
                let y = self.constant(TensorType::f32([last, n]), true);
                self.add(Op::MatMul(MatMul), &[x, y]);
            }
            5 | 6 => {
                let (groups, k, n) = self.groups(last, n);
                let (w, b) = (TensorType::f32([k, n]), TensorType::f32([n]));
                let (w, b) = (self.constant(w, true), self.constant(b, true));
                self.add(Op::Linear(Linear { act, groups }), &[x, w, b]);
            }
            7 => self.add(Op::Reshape(Reshape { shape: vec![ty.n_elements()] }), &[x]),
            8 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                for i in (1..rank).rev() {
                    perm.swap(i, self.dice.below(i + 1));
                }
                self.add(Op::Transpose(Transpose { perm }), &[x]);
            }
            9 => {
                let axis = |&extent: &usize| match self.dice.below(3) {
                    0 => SliceAxis { start: 0, len: extent, step: 1 },
                    1 => SliceAxis { start: extent.saturating_sub(1), len: extent, step: -1 },
                    _ => SliceAxis { start: extent / 2, len: (extent - extent / 2).div_ceil(2), step: 2 },
                };
                let axes = ty.shape.iter().map(axis).collect();
                self.add(Op::Slice(Slice { axes }), &[x]);
            }
            10 => {
                let axis = self.dice.below(rank);
                let parts = if self.dice.flip() { vec![x, x] } else { vec![x, self.value(), x] };
                self.add(Op::Concat(Concat { axis }), &parts);
            }
            11 => self.add(Op::Expand(Expand { shape: [&[2][..], &ty.shape[..]].concat() }), &[x]),
            12 => {
                let axes = (0..rank).filter(|_| self.dice.flip()).collect();
                let (f, keep_dims) = (self.dice.pick(&ReduceFn::ALL), self.dice.flip());
                self.add(Op::Reduce(Reduce { f, axes, keep_dims }), &[x]);
            }
            13 => {
                let to = self.dice.pick(&DType::ALL);
                self.add(Op::Cast(Cast { to }), &[x]);
            }
            14 => {
                let axis = self.dice.flip().then(|| self.dice.below(rank));
                let group = (axis == Some(1) && self.dice.flip()).then_some(2);
                let scale = match (axis.and_then(|axis| ty.shape.get(axis)), group) {
                    (Some(&n), Some(group)) => vec![ty.shape[0].div_ceil(group), n],
                    (Some(&n), None) => vec![n],
                    (None, _) => vec![],
                };
                let lo = if self.dice.flip() { scheme.lo() } else { -scheme.hi() };
                let s = self.positive(TensorType::f32(scale));
                let mut operands = vec![x, s];
                if self.dice.flip() {
                    let zero = Constant { ty: TensorType::plain(DType::I32, []), data: ConstData::Splat(1.0) };
                    operands.push(self.graph.add_const("z", zero, Origin::default()));
                }
                self.add(Op::FakeQuant(FakeQuant { scheme, lo, hi: scheme.hi(), axis, group }), &operands);
            }
            15 | 16 => {
                let r = if self.dice.flip() { vec![last] } else { vec![] };
                let r = self.positive(TensorType::f32(r));
                let (lo, zero_point) = (scheme.lo() + 1, self.dice.below(2) as i32);
                self.add(Op::Quantize(Quantize { scheme, lo, hi: scheme.hi(), zero_point }), &[x, r]);
            }
            17 | 18 => {
                let (groups, k, n) = self.groups(last, n);
                let (w, b) = (TensorType::code(scheme, [k, n]), TensorType::plain(DType::I32, [n]));
                let (w, b) = (self.constant(w, true), self.constant(b, true));
                self.add(Op::QLinear(QLinear { groups }), &[x, w, b]);
            }
            19 => {
                let (m, shift) = (32769 + 2 * self.dice.below(16000), 1 + self.dice.below(40));
                let (m, shift) = (self.ints(last, m), self.ints(last, shift));
                let hi = if self.dice.flip() { scheme.hi() } else { 1 };
                let op = Requantize { scheme, lo: 0, hi, zero_point: self.dice.below(2) as i32 };
                self.add(Op::Requantize(op), &[x, m, shift]);
            }
            20 => {
                if self.dice.flip() {
                    let table = self.constant(TensorType::code(scheme, [256]), true);
                    let bytes = QuantScheme { bits: 8, ..scheme };
                    let codes = self.constant(TensorType::code(bytes, ty.shape.clone()), true);
                    let codes = if ty.scheme().is_some_and(|scheme| scheme.bits == 8) { x } else { codes };
                    self.add(Op::Lookup(Lookup), &[codes, table]);
                } else {
                    let s = self.positive(TensorType::plain(DType::F64, [last]));
                    let zero_point = self.dice.below(2) as i32;
                    self.add(Op::Dequantize(Dequantize { zero_point }), &[x, s]);
                }
            }
            21 => self.grad(x, &ty, f),
            22 => {
                // The scale of the quantizer that is differentiated.
                let wrt = if self.dice.flip() { Wrt::First } else { Wrt::Second };
                let s = self.positive(TensorType::f32([]));
                let fake = FakeQuant { scheme, lo: scheme.lo(), hi: scheme.hi(), axis: None, group: None };
                self.add(Op::Grad(Grad::FakeQuant(FakeQuantGrad { fake, wrt })), &[x, s, x]);
            }
            23..=32 => self.layer(x, &ty, scheme),
            _ => {
                let group = 1 + self.dice.below(4);
                let w = self.constant(TensorType::code(scheme, [last, n]), true);
                let s = self.positive(TensorType::f32([last.div_ceil(group), n]));
                let b = self.constant(TensorType::f32([n]), true);
                self.add(Op::LinearWq(LinearWq { group, act }), &[x, w, s, b]);
            }
        }
    }
}

impl Builder {
    fn grad(&mut self, x: ValueId, ty: &TensorType, f: UnaryFn) {
        let wrt = if self.dice.flip() { Wrt::First } else { Wrt::Second };
        match self.dice.below(4) {
            0 => self.add(Op::Grad(Grad::Unary(Unary { f })), &[x, x]),
            1 => {
                let f = self.dice.pick(&BinaryFn::ALL);
                self.add(Op::Grad(Grad::Binary(BinaryGrad { f, wrt })), &[x, x, x]);
            }
            2 => {
                let f = self.dice.pick(&[ReduceFn::Min, ReduceFn::Max]);
                self.add(Op::Grad(Grad::Reduce(Reduce { f, axes: vec![], keep_dims: false })), &[x, x]);
            }
            _ => {
                let axes = ty.shape.iter().map(|&len| SliceAxis { start: len, len, step: 2 }).collect();
                let shape = ty.shape.iter().map(|&len| 3 * len).collect();
                self.add(Op::Grad(Grad::Slice(SliceGrad { slice: Slice { axes }, shape })), &[x]);
            }
        }
    }
}

/// A well-formed graph of about `n_nodes` nodes.
pub(crate) fn random_graph(seed: u64, n_nodes: usize) -> Graph {
    let mut dice = Dice::new(seed);
    let mut graph = Graph::new(dice.pick(&NAMES));
    let mut values = Vec::new();
    for _ in 0..1 + dice.below(3) {
        let ty = if dice.below(4) > 0 {
            TensorType::f32(shape(&mut dice))
        } else {
            TensorType { elem: elem(&mut dice), shape: shape(&mut dice) }
        };
        let name = dice.pick(&NAMES);
        values.push(match dice.below(3) {
            0 => {
                let origin = (0..dice.below(3)).map(|_| dice.pick(&NAMES).to_owned()).collect();
                graph.add(name, Op::Input(qail_ir::Input { ty }), &[], origin).unwrap().value()
            }
            _ => graph.add_input(name, ty),
        });
    }
    let mut builder = Builder { dice, graph, values };
    for _ in 0..n_nodes {
        builder.step();
    }
    for i in 0..builder.dice.below(3) {
        builder
            .graph
            .metadata
            .insert(format!("{}{i}", builder.dice.pick(&NAMES)), builder.dice.pick(&NAMES).to_owned());
    }
    for i in 0..1 + builder.dice.below(3) {
        let value = builder.value();
        let own = builder.graph.node(value.node).name.clone();
        let name = if i == 0 && builder.dice.flip() { own } else { format!("{}{i}", builder.dice.pick(&NAMES)) };
        if builder.graph.outputs.iter().all(|output| output.name != name) {
            builder.graph.add_output(name, value);
        }
    }
    builder.graph
}

/// Random inputs of a graph.
pub(crate) fn random_inputs(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut dice = Dice::new(seed);
    let input = |&id: &qail_ir::NodeId| {
        let constant = Constant { ty: graph.ty(id.value()).clone(), data: ConstData::Rand(dice.next()) };
        (graph.node(id).name.clone(), Tensor::from_constant(&constant).unwrap())
    };
    graph.inputs().iter().map(input).collect()
}
