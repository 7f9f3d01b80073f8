//! Takes the steps of a plan.

use qail_ir::{
    UnaryFn,
    interp::{self, Tensor},
};
use qail_passes::quant::{
    CodeInfo,
    region::{self, ColumnSums, NoMultiplier, Overflow, Route},
};

use super::{
    ExecError, codes, gemm,
    gemm::Matrix,
    groups, lanes,
    memory::{Item, Memory},
    step::{Layer, Quantizer, QuantizerGrad, Source, Step, Weights, table_offset},
};

/// Numbers of a layer on codes, as the steps of this run make them.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerNumbers {
    /// Name of the layer.
    pub(super) name: String,
    pub(super) exit_scales: Vec<f64>,
    /// Largest magnitude that an accumulator may reach.
    pub(super) bound: i64,
    /// Bias codes for codes without their zero point.
    pub(super) bias: Vec<f64>,
}

/// Everything that changes from run to run.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) memory: Memory,
    pub(super) threads: usize,
    /// How the codes of each quantizer read.
    pub(super) infos: Vec<Option<CodeInfo>>,
    pub(super) layers: Vec<LayerNumbers>,
    weights: Vec<Vec<ColumnSums>>,
}

impl State {
    pub(super) fn new(memory: Memory, threads: usize, [quantizers, layers, weights]: [usize; 3]) -> Self {
        Self {
            memory,
            threads,
            infos: vec![None; quantizers],
            layers: vec![LayerNumbers::default(); layers],
            weights: vec![Vec::new(); weights],
        }
    }

    pub(super) fn take(&mut self, step: &Step) -> Result<(), ExecError> {
        let threads = self.threads;
        match step {
            Step::Weights(weights) => self.weights(weights),
            Step::Quantizer(quantizer) => self.quantizer(quantizer),
            Step::Layer(layer) => self.layer(layer),
            Step::Scale { codes, step, out } => {
                self.memory.write(*out, |memory, out| {
                    let step = memory.f32(*step).first().copied().unwrap_or(f32::NAN);
                    lanes::map(threads, out, memory.f32(*codes), |code| code * step);
                });
                Ok(())
            }
            Step::ScaleColumns { codes, steps, out } => {
                self.memory.write(*out, |memory, out| {
                    lanes::zip_row(threads, out, memory.f32(*codes), memory.f32(*steps), |code, step| code * step);
                });
                Ok(())
            }
            Step::Leave { layer, acc, wide, act, out } => {
                let Some(numbers) = self.layers.get(*layer) else { return Err(internal("a layer has its place")) };
                self.memory.write(*out, |memory, out| {
                    leave(threads, out, memory, *acc, *wide, numbers);
                    if let Some(f) = act {
                        lanes::unary(threads, *f, out, None);
                    }
                });
                Ok(())
            }
            Step::Linear { name, x, w, b, act, out, dims, groups } => self.memory.write(*out, |memory, out| {
                let n = dims[1];
                let (x, w) = (memory.f32(*x), memory.f32(*w));
                groups::product(*dims, *groups, out, x, w, threads).map_err(|_| outside(name))?;
                let b = memory.f32(*b);
                lanes::pieces(threads, n, out, |_, out| {
                    lanes::wide(
                        #[inline(always)]
                        || {
                            for out in out.chunks_exact_mut(n.max(1)) {
                                out.iter_mut().zip(b).for_each(|(out, b)| *out += b);
                            }
                        },
                    );
                });
                if let Some(f) = act {
                    lanes::unary(threads, *f, out, None);
                }
                Ok(())
            }),
            Step::MatMul { name, a, b, out, dims, offsets } => self.memory.write(*out, |memory, out| {
                let size = dims[0].saturating_mul(dims[1]).max(1);
                for (&[of_a, of_b], out) in offsets.iter().zip(out.chunks_exact_mut(size)) {
                    let at = |item: Item, offset: usize| memory.f32(item).get(offset..).ok_or_else(|| outside(name));
                    let a = Matrix { data: at(a.item, of_a)?, rows: a.rows, columns: a.columns };
                    let b = Matrix { data: at(b.item, of_b)?, rows: b.rows, columns: b.columns };
                    gemm::product(*dims, out, 1.0, a, b, threads).map_err(|_| outside(name))?;
                }
                Ok(())
            }),
            Step::Unary { f, x, out } => {
                self.memory.write(*out, |memory, out| lanes::unary(threads, *f, out, Some(memory.f32(*x))));
                Ok(())
            }
            Step::UnaryOfCodes { f, quantizer, codes, out } => {
                let info = self.info(*quantizer)?.clone();
                let table = table_of(&info, |x| f.eval_f32(x));
                self.memory.write(*out, |memory, out| {
                    codes::look_up(threads, out, memory.f32(*codes), &table, table_offset(&info));
                });
                Ok(())
            }
            Step::UnaryGrad { f, x, g, out } => {
                self.memory.write(*out, |memory, out| {
                    lanes::unary_grad(threads, *f, out, memory.f32(*x), memory.f32(*g));
                });
                Ok(())
            }
            Step::UnaryGradOfCodes { f, quantizer, codes, g, out } => {
                let info = self.info(*quantizer)?.clone();
                let table = table_of(&info, |x| f.derivative_f64(f64::from(x)) as f32);
                self.memory.write(*out, |memory, out| {
                    let (codes, g) = (memory.f32(*codes), memory.f32(*g));
                    codes::look_up_times(threads, out, codes, g, &table, table_offset(&info));
                });
                Ok(())
            }
            Step::Binary { f, beside, flipped, a, b, out } => {
                self.memory.write(*out, |memory, out| {
                    lanes::binary(threads, *f, *beside, *flipped, out, memory.f32(*a), memory.f32(*b));
                });
                Ok(())
            }
            Step::SumRows { x, out, inner, factor } => {
                self.memory.write(*out, |memory, out| {
                    for (out, x) in out.iter_mut().zip(memory.f32(*x).chunks_exact((*inner).max(1))) {
                        *out = (lanes::sum(threads, x) * factor) as f32;
                    }
                });
                Ok(())
            }
            Step::SumColumns { x, out, factor } => {
                self.memory.write(*out, |memory, out| {
                    let mut sums = vec![0.0; out.len()];
                    lanes::column_sums(threads, &mut sums, memory.f32(*x));
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum * factor) as f32);
                });
                Ok(())
            }
            Step::Pick { .. }
            | Step::PickCodes { .. }
            | Step::Sums { .. }
            | Step::Floats { .. }
            | Step::Join { .. }
            | Step::Gather { .. }
            | Step::Scatter { .. }
            | Step::Reduce { .. }
            | Step::ExtremeGrad { .. }
            | Step::Softmax { .. }
            | Step::Normalize { .. }
            | Step::Spread { .. }
            | Step::SpreadGrad { .. }
            | Step::Choose { .. }
            | Step::Rope { .. }
            | Step::Film { .. } => self.take_moves(step),
            Step::Repeat { x, out } => {
                self.memory.write(*out, |memory, out| {
                    let x = memory.f32(*x);
                    match *x {
                        [x] => out.fill(x),
                        _ => out.chunks_exact_mut(x.len().max(1)).for_each(|out| out.copy_from_slice(x)),
                    }
                });
                Ok(())
            }
            Step::QuantizerGrad(grad) => {
                self.quantizer_grad(grad);
                Ok(())
            }
            Step::Interpret { node, operands, out } => {
                let owned: Vec<Option<Tensor>> = (operands.iter())
                    .map(|(item, ty)| match self.memory.tensor(*item) {
                        _ if ty.is_f32() => Some(Tensor::f32(ty.shape.clone(), self.memory.f32(*item).to_vec())),
                        // A reshaped value has the item of what it reshapes.
                        Some(tensor) if tensor.ty != *ty => Some(Tensor { ty: ty.clone(), data: tensor.data.clone() }),
                        _ => None,
                    })
                    .collect();
                let tensors: Option<Vec<&Tensor>> = (owned.iter().zip(operands))
                    .map(|(owned, (item, _))| owned.as_ref().or_else(|| self.memory.tensor(*item)))
                    .collect();
                let tensors = tensors.ok_or_else(|| internal("operands are computed before their users"))?;
                let result = interp::eval(node, &tensors)?;
                match result.as_f32() {
                    Some(elements) => self.memory.write(*out, |_, out| {
                        out.iter_mut().zip(elements).for_each(|(out, &x)| *out = x);
                    }),
                    None => self.memory.set_tensor(*out, result),
                }
                Ok(())
            }
        }
    }

    pub(super) fn info(&self, quantizer: usize) -> Result<&CodeInfo, ExecError> {
        self.infos
            .get(quantizer)
            .and_then(Option::as_ref)
            .ok_or_else(|| internal("codes are made before they are read"))
    }

    fn weights(&mut self, weights: &Weights) -> Result<(), ExecError> {
        let Weights { name, index, w, steps, codes, lo, hi } = weights;
        let threads = self.threads;
        check_steps(name, self.memory.f32(*steps))?;
        let sums = self.memory.write(*codes, |memory, out| {
            let steps = memory.f32(*steps);
            codes::weight_codes(threads, out, memory.f32(*w), steps, *lo, *hi);
            let (mut sums, mut magnitudes) = (vec![0.0; steps.len()], vec![0.0; steps.len()]);
            codes::code_sums(threads, out, &mut sums, &mut magnitudes);
            let one = |(sum, magnitude): (f64, f64)| ColumnSums { sum: sum as i64, magnitude: magnitude as i64 };
            sums.into_iter().zip(magnitudes).map(one).collect()
        });
        if let Some(place) = self.weights.get_mut(*index) {
            *place = sums;
        }
        Ok(())
    }

    fn layer(&mut self, layer: &Layer) -> Result<(), ExecError> {
        let &Layer { ref name, index, input, weights, x, w, steps, bias, acc, wide, m, k, n, groups } = layer;
        let info = self.info(input)?.clone();
        let exit_scales = region::exit_scales(info.step, self.memory.f32(steps));
        let b: Vec<f64> = self.memory.f32(bias).iter().map(|&b| f64::from(b)).collect();
        let columns = self.weights.get(weights).map(Vec::as_slice).unwrap_or_default();
        let codes = region::bias_codes(&b, &exit_scales, columns, &info)
            .map_err(|Overflow { channel, bound }| ExecError::Overflow { node: name.clone(), channel, bound })?;
        // Codes are without their zero point here, so the bias is alone.
        let z = i64::from(info.zero_point);
        let bound = codes.bound;
        let bias = codes.codes.iter().zip(columns).map(|(code, column)| (code + z * column.sum) as f64).collect();
        if let Some(place) = self.layers.get_mut(index) {
            *place = LayerNumbers { name: name.clone(), exit_scales, bound, bias };
        }
        let threads = self.threads;
        let Some([x_wide, w_wide]) = wide else {
            return self.memory.write(acc, |memory, acc| {
                let (x, w) = (memory.f32(x), memory.f32(w));
                groups::product([m, n, k], groups, acc, x, w, threads).map_err(|_| outside(name))
            });
        };
        for (narrow, wide) in [(x, x_wide), (w, w_wide)] {
            self.memory.write_f64(wide, |memory, wide| {
                wide.iter_mut().zip(memory.f32(narrow)).for_each(|(wide, &x)| *wide = f64::from(x));
            });
        }
        self.memory.write_f64(acc, |memory, acc| {
            let (x, w) = (memory.f64(x_wide), memory.f64(w_wide));
            groups::product([m, n, k], groups, acc, x, w, threads).map_err(|_| outside(name))
        })
    }

    fn quantizer(&mut self, step: &Quantizer) -> Result<(), ExecError> {
        let Quantizer { name, index, quantizer, source, step, codes: out } = step;
        let threads = self.threads;
        let steps = self.memory.f32(*step);
        check_steps(name, steps)?;
        let info = quantizer.info(steps.first().copied().unwrap_or(f32::NAN));
        let functions = &quantizer.functions[..];
        let info =
            match *source {
                Source::Sum(ref sum) => self.sum_of_codes(sum, *out, functions, &info)?,
                Source::Add(ref add) => self.add_codes(add, *out, functions, &info)?,
                Source::Layer { layer, acc, wide } => {
                    let numbers = self.layers.get(layer).ok_or_else(|| internal("a layer has its place"))?;
                    match region::route(None, functions, &info) {
                        Route::Requantize(info) => {
                            let found = region::multipliers(&numbers.exit_scales, info.step);
                            let multipliers = found.map_err(|NoMultiplier { channel, factor }| {
                                ExecError::Multiplier { node: numbers.name.clone(), channel, factor }
                            })?;
                            let factors: Vec<f64> = multipliers.iter().map(|multiplier| multiplier.factor()).collect();
                            let range = [info.lo, info.hi].map(|bound| f64::from(bound - info.zero_point));
                            self.memory.write(*out, |memory, out| {
                                let bias = &numbers.bias;
                                if wide {
                                    codes::requantize(threads, out, memory.f64(acc), bias, &factors, range);
                                } else {
                                    codes::requantize(threads, out, memory.f32(acc), bias, &factors, range);
                                }
                            });
                            info
                        }
                        Route::Same | Route::Lookup | Route::Quantize => {
                            self.memory.write(*out, |memory, out| {
                                leave(threads, out, memory, acc, wide, numbers);
                                quantize(threads, name, out, functions, &info)
                            })?;
                            info
                        }
                    }
                }
                Source::Codes { quantizer, codes } => {
                    let input = self.info(quantizer)?.clone();
                    let offset = table_offset(&input);
                    match region::route(Some(&input), functions, &info) {
                        Route::Same => {
                            self.memory.write(*out, |memory, out| out.copy_from_slice(memory.f32(codes)));
                            input
                        }
                        Route::Lookup => {
                            let (table, info) = region::table(functions, &input, &info);
                            let mut centered = [0f32; 256];
                            for (entry, code) in centered.iter_mut().zip(table) {
                                *entry = (code - info.zero_point) as f32;
                            }
                            self.memory.write(*out, |memory, out| {
                                codes::look_up(threads, out, memory.f32(codes), &centered, offset);
                            });
                            info
                        }
                        Route::Requantize(_) | Route::Quantize => {
                            let step = input.step as f32;
                            self.memory.write(*out, |memory, out| {
                                lanes::map(threads, out, memory.f32(codes), |code| code * step);
                                quantize(threads, name, out, functions, &info)
                            })?;
                            info
                        }
                    }
                }
                Source::Floats(x) => {
                    self.memory.write(*out, |memory, out| {
                        out.copy_from_slice(memory.f32(x));
                        quantize(threads, name, out, &[], &info)
                    })?;
                    info
                }
            };
        if let Some(place) = self.infos.get_mut(*index) {
            *place = Some(info);
        }
        Ok(())
    }

    fn quantizer_grad(&mut self, grad: &QuantizerGrad) {
        let &QuantizerGrad { x, steps, g, columns, range, by_x, by_steps } = grad;
        let threads = self.threads;
        if columns {
            if let Some(by_x) = by_x {
                self.memory.write(by_x, |memory, out| {
                    let (x, g, steps) = (memory.f32(x), memory.f32(g), memory.f32(steps));
                    lanes::columns_quantizer_grad(threads, out, x, g, steps, range);
                });
            }
            if let Some(by_steps) = by_steps {
                self.memory.write(by_steps, |memory, out| {
                    let mut sums = vec![0.0; out.len()];
                    let (x, g, steps) = (memory.f32(x), memory.f32(g), memory.f32(steps));
                    lanes::columns_step_grad(threads, &mut sums, x, g, steps, range);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
                });
            }
            return;
        }
        let pass = |memory: &Memory, out: &mut [f32]| {
            let step = memory.f32(steps).first().copied().unwrap_or(f32::NAN);
            lanes::quantizer_grad(threads, out, memory.f32(x), memory.f32(g), step, range)
        };
        let sum = match by_x {
            Some(by_x) => self.memory.write(by_x, pass),
            None => pass(&self.memory, &mut []),
        };
        if let Some(by_steps) = by_steps {
            self.memory.write(by_steps, |_, out| out.fill(sum as f32));
        }
    }
}

/// `(acc as f64 * S) as f32`.
fn leave(threads: usize, out: &mut [f32], memory: &Memory, acc: Item, wide: bool, numbers: &LayerNumbers) {
    let LayerNumbers { exit_scales, bias, .. } = numbers;
    if wide {
        codes::leave(threads, out, memory.f64(acc), bias, exit_scales);
    } else {
        codes::leave(threads, out, memory.f32(acc), bias, exit_scales);
    }
}

/// From floats, through functions, to codes.
pub(super) fn quantize(
    threads: usize,
    name: &str,
    out: &mut [f32],
    functions: &[UnaryFn],
    info: &CodeInfo,
) -> Result<(), ExecError> {
    functions.iter().for_each(|&f| lanes::unary(threads, f, out, None));
    let range = [info.lo, info.hi].map(|bound| (bound - info.zero_point) as f32);
    codes::quantize(threads, out, region::entry_factor(info.step), range);
    match codes::nan(out) {
        Some(index) => Err(ExecError::NotANumber { node: name.to_owned(), index }),
        None => Ok(()),
    }
}

/// A function of the real number behind each of 256 codes, from the lowest on.
fn table_of(info: &CodeInfo, f: impl Fn(f32) -> f32) -> [f32; 256] {
    let mut table = [0f32; 256];
    let first = info.scheme.lo() - info.zero_point;
    for (code, entry) in (first..).zip(&mut table) {
        *entry = f((f64::from(code) * info.step) as f32);
    }
    table
}

fn check_steps(name: &str, steps: &[f32]) -> Result<(), ExecError> {
    match region::wrong_step(steps) {
        Some((index, step)) => Err(ExecError::Step { node: name.to_owned(), index, step }),
        None => Ok(()),
    }
}

fn outside(name: &str) -> ExecError {
    ExecError::Internal { node: name.to_owned(), invariant: "matrices lie inside of their buffers" }
}

pub(super) fn internal(invariant: &'static str) -> ExecError {
    ExecError::Internal { node: String::new(), invariant }
}
