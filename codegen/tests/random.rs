//! Random small graphs of every operation: plans on the CPU equal the interpreter
//! bit for bit, and plans on every adapter equal it in codes and integers and
//! within a tolerance in floats.
//!
//! `QAILC_STATES` is the number of graphs for the CPU, 300 without, at most 2000; adapters run
//! 100 of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod common;

use common::{Rng, check, devices};
use qail_codegen::{BuildOptions, build};
use qail_ir::{
    ArgReduce, Attention, Binary, BinaryFn, Cast, Compare, CompareFn, Concat, Constant, CumSum, DType, Expand, Film,
    Gather, Graph, Input, Linear, Lookup, Normalize, Op, Origin, Output, QAdd, QLinear, QSum, QuantScheme, Quantize,
    Reduce, ReduceFn, Requantize, Reshape, Rope, Scatter, ScatterFn, Slice, SliceAxis, Softmax, TensorType, TopK,
    TopKPart, Transpose, Unary, UnaryFn, Unfold, ValueId, Where, Window, interp,
};

/// Which graphs.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Every operation.
    All,
    /// Floats that every device computes alike, so that decisions between them
    /// and codes of them are alike.
    Exact,
    /// Functions with a tolerance, and no decision between floats.
    Smooth,
}

struct Maker {
    mode: Mode,
    rng: Rng,
    graph: Graph,
    values: Vec<ValueId>,
}

impl Maker {
    fn below(&mut self, n: usize) -> usize {
        self.rng.range(0, n.max(1) as i64 - 1) as usize
    }

    fn flip(&mut self) -> bool {
        self.rng.range(0, 1) == 1
    }

    /// Adds what fits and stays small; the generator may guess.
    fn add(&mut self, op: Op, operands: &[ValueId]) -> Option<ValueId> {
        let name = format!("n{}", self.graph.len());
        let types: Vec<&TensorType> = operands.iter().map(|&x| self.graph.ty(x)).collect();
        let ty = op.infer(&types).ok()?.remove(0);
        if ty.n_elements() == 0 || ty.n_elements() > 2000 || ty.shape.len() > 6 {
            return None;
        }
        let node = self.graph.add(&name, op, operands, Origin::default()).ok()?;
        self.values.push(node.value());
        Some(node.value())
    }

    fn constant(&mut self, ty: TensorType, elements: &[i64]) -> ValueId {
        let constant = if ty.is_f32() {
            let floats: Vec<f32> = elements.iter().map(|&x| x as f32 * 0.25).collect();
            Constant::f32(ty.shape, &floats)
        } else {
            Constant::ints(ty, elements)
        };
        let name = format!("c{}", self.graph.len());
        self.graph.add_const(&name, constant, Origin::default())
    }

    fn numbers(&mut self, n: usize, lo: i64, hi: i64) -> Vec<i64> {
        (0..n).map(|_| self.rng.range(lo, hi)).collect()
    }

    /// A value of a type, newer ones more often.
    fn value(&mut self, wanted: impl Fn(&TensorType) -> bool) -> Option<ValueId> {
        let fitting: Vec<ValueId> = self.values.iter().copied().filter(|&v| wanted(self.graph.ty(v))).collect();
        let (a, b) = (self.below(fitting.len()), self.below(fitting.len()));
        fitting.get(a.max(b)).copied()
    }

    fn float(&mut self) -> Option<ValueId> {
        self.value(TensorType::is_f32)
    }

    fn axis(&mut self, x: ValueId) -> usize {
        let rank = self.graph.ty(x).shape.len();
        self.below(rank)
    }

    fn step(&mut self) -> Option<ValueId> {
        let x = self.value(|_| true)?;
        let ty = self.graph.ty(x).clone();
        let rank = ty.shape.len();
        let choice = self.below(32);
        let fits = match self.mode {
            Mode::All => true,
            Mode::Exact => !matches!(choice, 18 | 19 | 29..=31),
            Mode::Smooth => !(choice == 28 || ty.is_f32() && matches!(choice, 20 | 24 | 27)),
        };
        if !fits {
            return None;
        }
        match choice {
            0 | 1 => {
                let x = self.float()?;
                let alpha = self.rng.range(1, 8) as f32 * 0.25;
                let all = [
                    UnaryFn::Relu,
                    UnaryFn::LeakyRelu { alpha },
                    UnaryFn::Clip { min: -alpha, max: alpha },
                    UnaryFn::Abs,
                    UnaryFn::Neg,
                    UnaryFn::Elu { alpha },
                    UnaryFn::Tanh,
                    UnaryFn::Sigmoid,
                    UnaryFn::Silu,
                    UnaryFn::Gelu,
                    UnaryFn::GeluTanh,
                    UnaryFn::Mish,
                    UnaryFn::Swish { alpha },
                    UnaryFn::HardSigmoid { alpha, beta: 0.5 },
                    UnaryFn::HardSwish,
                    UnaryFn::Selu { alpha, gamma: 1.5 },
                    UnaryFn::Celu { alpha },
                    UnaryFn::Softplus,
                    UnaryFn::Softsign,
                    UnaryFn::Erf,
                    UnaryFn::Sin,
                    UnaryFn::Cos,
                    UnaryFn::Asinh,
                ];
                // The exact ones come first.
                let n = if self.mode == Mode::Exact { 5 } else { all.len() };
                let f = self.rng.pick(&all[..n]);
                self.add(Op::Unary(Unary { f }), &[x])
            }
            2 | 3 => {
                let y = self.value(|other| other.elem == ty.elem)?;
                let f = self.rng.pick(&[BinaryFn::Add, BinaryFn::Sub, BinaryFn::Mul, BinaryFn::Min, BinaryFn::Max]);
                self.add(Op::Binary(Binary { f }), &[x, y])
            }
            4..=6 => {
                let x = self.float()?;
                let k = self.graph.ty(x).shape.last().copied()?;
                let n = self.below(6) + 1;
                let w = self.numbers(k * n, -4, 4);
                let w = self.constant(TensorType::f32([k, n]), &w);
                let b = self.numbers(n, -4, 4);
                let b = self.constant(TensorType::f32([n]), &b);
                self.add(Op::Linear(Linear { act: None, groups: 1 }), &[x, w, b])
            }
            7 => {
                let n = ty.n_elements();
                let divisors: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
                let at = self.below(divisors.len());
                self.add(Op::Reshape(Reshape { shape: vec![n / divisors[at], divisors[at]] }), &[x])
            }
            8 | 9 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                for i in (1..rank).rev() {
                    let j = self.below(i + 1);
                    perm.swap(i, j);
                }
                self.add(Op::Transpose(Transpose { perm }), &[x])
            }
            10 => {
                let axes = ty.shape.iter().map(|&extent| match self.below(3) {
                    0 => SliceAxis { start: 0, len: extent, step: 1 },
                    1 => SliceAxis { start: extent - 1, len: extent, step: -1 },
                    _ => SliceAxis { start: extent / 2, len: (extent - extent / 2).div_ceil(2), step: 2 },
                });
                let axes = axes.collect();
                self.add(Op::Slice(Slice { axes }), &[x])
            }
            11 => {
                let axis = self.axis(x);
                let y = self.value(|other| {
                    other.elem == ty.elem
                        && other.shape.len() == rank
                        && (0..rank).all(|i| i == axis || other.shape[i] == ty.shape[i])
                })?;
                self.add(Op::Concat(Concat { axis }), &[x, y, x])
            }
            12 => self.add(Op::Expand(Expand { shape: [&[2][..], &ty.shape[..]].concat() }), &[x]),
            13 => {
                let axes = (0..rank).filter(|_| self.flip()).collect();
                let keep_dims = self.flip();
                let last = if self.mode == Mode::Exact { ReduceFn::Sum } else { ReduceFn::Mean };
                let f = self.rng.pick(&[ReduceFn::Sum, ReduceFn::Min, ReduceFn::Max, last]);
                self.add(Op::Reduce(Reduce { f, axes, keep_dims }), &[x])
            }
            14..=17 => {
                // Windows, and what folds into the same copy.
                let windows = ty
                    .shape
                    .iter()
                    .map(|&extent| {
                        if self.flip() {
                            return Window::identity(extent);
                        }
                        let (size, stride, dilation) = (self.below(3) + 1, self.below(2) + 1, self.below(2) + 1);
                        let (spread, pad) = (self.below(2) + 1, self.rng.range(-1, 2) as isize);
                        Window { size, stride, dilation, pad, spread, out: self.below(extent + 1) + 1 }
                    })
                    .collect();
                let fill = if ty.is_f32() { self.rng.pick(&[0.0, 2.5, -1e4]) } else { self.below(2) as f32 };
                let x = self.add(Op::Unfold(Unfold { windows, fill }), &[x])?;
                if self.flip() {
                    return Some(x);
                }
                let rank = self.graph.ty(x).shape.len();
                let turn = self.below(rank);
                let perm = (0..rank).map(|i| (i + turn) % rank).collect();
                let t = self.add(Op::Transpose(Transpose { perm }), &[x])?;
                let shape = self.graph.ty(t).shape.clone();
                let at = self.below(rank);
                let rows = shape[..at].iter().product();
                let cols = shape[at..].iter().product();
                self.add(Op::Reshape(Reshape { shape: vec![rows, cols] }), &[t])
            }
            18 => {
                let x = self.float()?;
                let (axis, log) = (self.axis(x), self.flip());
                self.add(Op::Softmax(Softmax { axis, log }), &[x])
            }
            19 => {
                let x = self.float()?;
                let rank = self.graph.ty(x).shape.len();
                let axes: Vec<usize> = (0..rank).filter(|_| self.flip()).collect();
                let center = self.flip();
                self.add(Op::Normalize(Normalize { axes, eps: 0.5, center }), &[x])
            }
            20 => {
                let y = self.value(|other| other.elem == ty.elem)?;
                let f = self.rng.pick(&CompareFn::ALL);
                self.add(Op::Compare(Compare { f }), &[x, y])
            }
            21 => {
                let c = self.value(|other| other.dtype() == Some(DType::Bool))?;
                let y = self.value(|other| other.elem == ty.elem)?;
                self.add(Op::Where(Where), &[c, x, y])
            }
            22 | 23 => {
                let axis = self.axis(x);
                let index = if self.flip() {
                    let elements = self.numbers(4, -7, 7);
                    self.constant(TensorType::plain(DType::I64, [2, 2]), &elements)
                } else {
                    self.value(|other| matches!(other.dtype(), Some(DType::I32 | DType::I64)))?
                };
                self.add(Op::Gather(Gather { axis }), &[x, index])
            }
            24 => {
                let axis = self.axis(x);
                let (largest, keep_dims, last) = (self.flip(), self.flip(), self.flip());
                if self.flip() {
                    return self.add(Op::ArgReduce(ArgReduce { largest, axis, keep_dims, last }), &[x]);
                }
                let part = if last { TopKPart::Values } else { TopKPart::Indices };
                let k = ty.shape.get(axis).map_or(1, |&extent| extent.div_ceil(2));
                self.add(Op::TopK(TopK { axis, k, largest, part }), &[x])
            }
            25 => {
                let axis = self.axis(x);
                let (exclusive, reverse) = (self.flip(), self.flip());
                self.add(Op::CumSum(CumSum { axis, exclusive, reverse }), &[x])
            }
            26 => {
                let row = ty.shape.get(1..)?;
                let elements = self.numbers(2, -3, 3);
                let index = self.constant(TensorType::plain(DType::I32, [2]), &elements);
                let shape = [&[2][..], row].concat();
                let n = shape.iter().product();
                let update = self.numbers(n, 0, 1);
                let update = self.constant(TensorType { elem: ty.elem, shape }, &update);
                let f = self.rng.pick(&ScatterFn::ALL);
                self.add(Op::Scatter(Scatter { f }), &[x, index, update])
            }
            27 => {
                let to = self.rng.pick(&[DType::Bool, DType::U8, DType::I32, DType::I64, DType::F32]);
                self.add(Op::Cast(Cast { to }), &[x])
            }
            28 if self.flip() => self.products_of_codes(),
            28 => self.codes(),
            29 | 30 => {
                let x = self.float()?;
                let (a, b) = (self.narrower(x), self.narrower(x));
                let interleaved = self.flip();
                if self.flip() {
                    return self.add(Op::Film(Film), &[x, a, b]);
                }
                self.add(Op::Rope(Rope { interleaved }), &[x, a, b])
            }
            _ => {
                let x = self.value(|ty| ty.is_f32() && ty.shape.len() == 4)?;
                let y = self.value(|ty| ty.is_f32() && ty.shape.len() == 4)?;
                self.add(Op::Attention(Attention { scale: 0.3 }), &[x, y, y])
            }
        }
    }

    /// A product of codes, perhaps in groups of channels, and what becomes of it.
    fn products_of_codes(&mut self) -> Option<ValueId> {
        let x = match self.value(|ty| ty.scheme().is_some()) {
            Some(x) => x,
            None => self.codes()?,
        };
        let features = *self.graph.ty(x).shape.last()?;
        let divisors: Vec<usize> = (1..=features).filter(|groups| features.is_multiple_of(*groups)).collect();
        let groups = self.rng.pick(&divisors);
        let (k, n) = (features / groups, groups * (self.below(3) + 1));
        let scheme = self.rng.pick(&[QuantScheme::signed(8), QuantScheme::signed(4)]);
        let w = self.numbers(k * n, i64::from(scheme.lo()), i64::from(scheme.hi()));
        let w = self.constant(TensorType::code(scheme, [k, n]), &w);
        let b = self.numbers(n, -5000, 5000);
        let b = self.constant(TensorType::plain(DType::I32, [n]), &b);
        let acc = self.add(Op::QLinear(QLinear { groups }), &[x, w, b])?;
        if self.flip() {
            return Some(acc);
        }
        let m: Vec<i64> = self.numbers(n, 16_384, 32_767).iter().map(|m| 2 * m + 1).collect();
        let m = self.constant(TensorType::plain(DType::I32, [n]), &m);
        let shift = self.numbers(n, 15, 24);
        let shift = self.constant(TensorType::plain(DType::I32, [n]), &shift);
        let scheme = self.rng.pick(&[QuantScheme::signed(8), QuantScheme::unsigned(8), QuantScheme::unsigned(4)]);
        let op = Requantize { scheme, lo: scheme.lo(), hi: scheme.hi(), zero_point: 3 };
        self.add(Op::Requantize(op), &[acc, m, shift])
    }

    /// A value that broadcasts to another: a constant, computed, or a transpose.
    fn narrower(&mut self, x: ValueId) -> ValueId {
        let shape = self.graph.ty(x).shape.clone();
        let fits = |ty: &TensorType| {
            let own = ty.shape.iter().rev().zip(shape.iter().rev());
            ty.is_f32() && ty.shape.len() <= shape.len() && own.into_iter().all(|(&a, &b)| a == b || a == 1)
        };
        if let Some(found) = self.value(fits).filter(|_| self.flip()) {
            return found;
        }
        let skipped = self.below(shape.len() + 1);
        let shape: Vec<usize> = shape[skipped..].iter().map(|&extent| if self.flip() { extent } else { 1 }).collect();
        let numbers = self.numbers(shape.iter().product(), -4, 4);
        self.constant(TensorType::f32(shape), &numbers)
    }

    /// Codes of a value, and what is done with codes alone.
    fn codes(&mut self) -> Option<ValueId> {
        let x = match self.value(|ty| ty.scheme().is_some()) {
            Some(x) if self.flip() => x,
            _ => {
                let x = self.float()?;
                let scheme = self.rng.pick(&[QuantScheme::signed(8), QuantScheme::unsigned(8), QuantScheme::signed(4)]);
                let r = self.constant(TensorType::f32([]), &[16]);
                let zero_point = self.below(3) as i32;
                let op = Quantize { scheme, lo: scheme.lo(), hi: scheme.hi(), zero_point };
                return self.add(Op::Quantize(op), &[x, r]);
            }
        };
        let rank = self.graph.ty(x).shape.len();
        if self.flip() {
            let axes = (0..rank).filter(|_| self.flip()).collect();
            let keep_dims = self.flip();
            return self.add(Op::QSum(QSum { axes, keep_dims, zero_point: 2 }), &[x]);
        }
        if self.graph.ty(x).scheme().is_some_and(|scheme| scheme.bits == 8) && self.flip() {
            let scheme = self.rng.pick(&[QuantScheme::signed(8), QuantScheme::unsigned(8), QuantScheme::signed(4)]);
            let table = self.numbers(256, scheme.lo().into(), scheme.hi().into());
            let table = self.constant(TensorType::code(scheme, [256]), &table);
            return self.add(Op::Lookup(Lookup), &[x, table]);
        }
        let y = self.value(|ty| ty.scheme().is_some())?;
        let (m, shift) = (self.rng.range(1, 1 << 20), self.rng.range(1, 40));
        let m = self.constant(TensorType::plain(DType::I32, [1]), &[m]);
        let shift = self.constant(TensorType::plain(DType::I32, [1]), &[shift]);
        let scheme = self.rng.pick(&[QuantScheme::signed(8), QuantScheme::unsigned(8)]);
        let (lo, hi) = (scheme.lo() + 1, scheme.hi());
        let op = QAdd { scheme, lo, hi, zero_a: 1, zero_b: -2, zero_point: 5 };
        self.add(Op::QAdd(op), &[x, y, m, m, shift])
    }
}

/// A graph of two inputs; every value that nobody reads is an output.
fn random(mode: Mode, seed: u64) -> Graph {
    let mut maker = Maker { mode, rng: Rng(seed), graph: Graph::new("random"), values: Vec::new() };
    let shape: Vec<usize> = (0..maker.below(3) + 2).map(|_| maker.below(5) + 1).collect();
    let other = maker.rng.pick(&[DType::Bool, DType::U8, DType::I32, DType::I64]);
    for (name, ty) in [("x", TensorType::f32(shape.clone())), ("i", TensorType::plain(other, shape))] {
        let node = maker.graph.add(name, Op::Input(Input { ty }), &[], Origin::default()).unwrap();
        maker.values.push(node.value());
    }
    if mode == Mode::Exact {
        // Whole numbers.
        let x = maker.values.remove(0);
        maker.add(Op::Unary(Unary { f: UnaryFn::Floor }), &[x]);
    }
    let n = maker.below(14) + 3;
    for _ in 0..n {
        maker.step();
    }
    let Maker { mut graph, values, .. } = maker;
    for value in values {
        let is_code = graph.ty(value).scheme().is_some();
        if graph.users(value).is_empty() && !is_code && !matches!(graph.op(value), Op::Input(_)) {
            let name = format!("out{}", graph.outputs.len());
            graph.outputs.push(Output { name, value });
        }
    }
    graph
}

/// True if the graph has outputs and every number of it is one that devices agree on.
fn is_tame(graph: &Graph, seed: u64) -> bool {
    let inputs = common::inputs(graph, seed);
    let Ok(values) = interp::run_all(graph, &inputs) else { return false };
    !graph.outputs.is_empty() && values.values().all(|t| t.to_f64().iter().all(|x| x.is_finite() && x.abs() < 1e6))
}

fn n_graphs() -> u64 {
    std::env::var("QAILC_STATES").ok().and_then(|n| n.parse().ok()).map_or(300, |n: u64| n.min(2000))
}

/// Plans of random graphs, and how many graphs were left out.
fn each(mode: Mode, n: u64, mut f: impl FnMut(&Graph, &qail_codegen::Plan, u64)) {
    let (mut n_run, mut n_refused, mut seed) = (0, 0, 0);
    while n_run < n {
        seed += 1;
        assert!(seed < 40 * n + 100, "{n_run} of {seed} graphs ran, {n_refused} were refused");
        let graph = random(mode, seed);
        if !is_tame(&graph, seed) {
            continue;
        }
        match build(&graph, &BuildOptions::default()) {
            Ok(plan) => {
                f(&graph, &plan, seed);
                n_run += 1;
            }
            Err(qail_codegen::CodegenError::Unsupported { .. }) => n_refused += 1,
            Err(error) => panic!("{error}\n{}", qail_ir::text::print(&graph)),
        }
    }
    assert!(n_refused * 10 < n_run, "{n_refused} graphs were refused, {n_run} ran");
}

#[test]
fn random_graphs_agree_on_the_cpu_bit_for_bit() {
    each(Mode::All, n_graphs(), |graph, plan, seed| {
        check(graph, plan, "cpu".parse().unwrap(), seed, 0.0);
    });
}

#[test]
fn decisions_codes_and_integers_agree_on_every_adapter() {
    each(Mode::Exact, (n_graphs() / 5).min(60), |graph, plan, seed| {
        for &device in devices() {
            check(graph, plan, device, seed, 0.0);
        }
    });
}

#[test]
fn functions_agree_on_every_adapter_within_their_tolerance() {
    each(Mode::Smooth, (n_graphs() / 7).min(40), |graph, plan, seed| {
        for &device in devices() {
            check(graph, plan, device, seed, 1e-3);
        }
    });
}
