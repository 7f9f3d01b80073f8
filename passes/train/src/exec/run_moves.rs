//! Takes the steps that move, reduce and broadcast, and the sums of codes in
//! front of quantizers.

use qail_ir::{UnaryFn, interp::Tensor};
use qail_passes::quant::{
    CodeInfo,
    region::{self, AddNumbers, NoMultiplier, Route},
};

use super::{
    ExecError,
    memory::{Item, Memory},
    moves,
    run::{State, internal, quantize},
    step::{AddCodes, AddendStep, Step, SumOfCodes},
};

fn ints(memory: &Memory, item: Item) -> &[i64] {
    memory.tensor(item).and_then(Tensor::as_ints).unwrap_or_default()
}

impl State {
    pub(super) fn take_moves(&mut self, step: &Step) -> Result<(), ExecError> {
        let threads = self.threads;
        let write = |state: &mut Self, out: Item, f: &dyn Fn(&Memory, &mut [f32])| state.memory.write(out, f);
        match step {
            Step::Pick { x, out, picks, fill } => {
                write(self, *out, &|memory, out| picks.copy(threads, out, memory.f32(*x), *fill));
            }
            Step::PickCodes { from, to, x, out, picks } => {
                let mut info = self.info(*from)?.clone();
                let mut fill = 0;
                if let Some((place, number)) = to {
                    fill = region::fill_code(*number, &info);
                    (info.lo, info.hi) = (info.lo.min(fill), info.hi.max(fill));
                    fill -= info.zero_point;
                    if let Some(place) = self.infos.get_mut(*place) {
                        *place = Some(info);
                    }
                }
                write(self, *out, &|memory, out| picks.copy(threads, out, memory.f32(*x), fill as f32));
            }
            Step::Sums { x, out, sums } => {
                write(self, *out, &|memory, out| sums.add(threads, out, memory.f32(*x)));
            }
            Step::Floats { x, out } => write(self, *out, &|memory, out| {
                out.iter_mut().zip(ints(memory, *x)).for_each(|(out, &x)| *out = x as f32);
            }),
            Step::Join { parts, out, codes } => {
                if let Some((from, to)) = codes {
                    let mut all: Option<CodeInfo> = None;
                    for &place in from {
                        let info = self.info(place)?.clone();
                        all = Some(match all {
                            Some(known) => CodeInfo { lo: known.lo.min(info.lo), hi: known.hi.max(info.hi), ..known },
                            None => info,
                        });
                    }
                    if let Some(place) = self.infos.get_mut(*to) {
                        *place = all;
                    }
                }
                write(self, *out, &|memory, out| {
                    let parts: Vec<(&[f32], usize)> =
                        parts.iter().map(|&(item, row)| (memory.f32(item), row)).collect();
                    moves::join(threads, out, &parts);
                });
            }
            Step::Gather { x, index, out, dims } => write(self, *out, &|memory, out| {
                moves::gather(threads, out, memory.f32(*x), ints(memory, *index), *dims);
            }),
            Step::Scatter { x, index, update, out, row, sums } => write(self, *out, &|memory, out| {
                out.copy_from_slice(memory.f32(*x));
                let (index, update) = (ints(memory, *index), memory.f32(*update));
                if *sums {
                    moves::scatter(out, index, update, *row, |old, new| old + new);
                } else {
                    moves::scatter(out, index, update, *row, |_, new| new);
                }
            }),
            Step::Reduce { f, rows, x, out } => {
                write(self, *out, &|memory, out| rows.reduce(threads, *f, out, memory.f32(*x)));
            }
            Step::ExtremeGrad { largest, rows, x, g, out } => write(self, *out, &|memory, out| {
                rows.extreme_grad(threads, *largest, out, memory.f32(*x), memory.f32(*g));
            }),
            Step::Softmax { log, rows, x, out } => {
                write(self, *out, &|memory, out| rows.softmax(threads, *log, out, memory.f32(*x)));
            }
            Step::Normalize { eps, center, rows, x, out } => write(self, *out, &|memory, out| {
                rows.normalize(threads, (*eps, *center), out, memory.f32(*x));
            }),
            Step::Spread { f, spread, a, b, out } => write(self, *out, &|memory, out| {
                spread.zip(threads, *f, out, memory.f32(*a), memory.f32(*b));
            }),
            Step::SpreadGrad { f, wrt, spread, operands, out } => write(self, *out, &|memory, out| {
                spread.grad(threads, (*f, *wrt), out, operands.map(|item| memory.f32(item)));
            }),
            Step::Choose { spread, operands: [truth, a, b], out } => write(self, *out, &|memory, out| {
                spread.choose(threads, out, ints(memory, *truth), [memory.f32(*a), memory.f32(*b)]);
            }),
            Step::Rope { op, width, spread, operands, out } => write(self, *out, &|memory, out| {
                spread.rope(threads, (*op, *width), out, operands.map(|item| memory.f32(item)));
            }),
            Step::Film { spread, operands, out } => write(self, *out, &|memory, out| {
                spread.film(threads, out, operands.map(|item| memory.f32(item)));
            }),
            _ => return Err(internal("every step has somebody who takes it")),
        }
        Ok(())
    }

    /// Codes behind a sum of codes: `qsum` and `requantize`.
    pub(super) fn sum_of_codes(
        &mut self,
        sum: &SumOfCodes,
        out: Item,
        functions: &[UnaryFn],
        info: &CodeInfo,
    ) -> Result<CodeInfo, ExecError> {
        let SumOfCodes { name, quantizer, codes, rows, n, divisor } = sum;
        let input = self.info(*quantizer)?.clone();
        if region::sum_bound(&input, *n).is_none() {
            let bound = i128::from(region::centered_bound(&input)) * *n as i128;
            return Err(ExecError::Overflow { node: name.clone(), channel: 0, bound });
        }
        let scale = region::sum_scale(input.step, *divisor);
        let threads = self.threads;
        match region::route(None, functions, info) {
            Route::Requantize(info) => {
                let multipliers = region::multipliers(&[scale], info.step).map_err(|none| multiplier(name, none))?;
                let factor = multipliers.first().map_or(f64::NAN, |multiplier| multiplier.factor());
                let [lo, hi] = [info.lo, info.hi].map(|bound| f64::from(bound - info.zero_point));
                self.memory.write(out, |memory, out| {
                    let code = |acc: f64| (acc * factor + 0.5).clamp(lo, hi).floor() as f32;
                    rows.sums(threads, out, memory.f32(*codes), code);
                });
                Ok(info)
            }
            Route::Same | Route::Lookup | Route::Quantize => {
                self.memory.write(out, |memory, out| {
                    rows.sums(threads, out, memory.f32(*codes), |acc| (acc * scale) as f32);
                    quantize(threads, name, out, functions, info)
                })?;
                Ok(info.clone())
            }
        }
    }

    /// Codes behind the sum of two values: `qadd`.
    pub(super) fn add_codes(
        &mut self,
        add: &AddCodes,
        out: Item,
        functions: &[UnaryFn],
        info: &CodeInfo,
    ) -> Result<CodeInfo, ExecError> {
        let AddCodes { name, a, quantizer_b, codes_b, spread } = add;
        let info_b = self.info(*quantizer_b)?.clone();
        let none = [0.0];
        let (scales, bound, bias, item, wide) = match *a {
            AddendStep::Layer { layer, acc, wide } => {
                let numbers = self.layers.get(layer).ok_or_else(|| internal("a layer has its place"))?;
                (numbers.exit_scales.clone(), numbers.bound, numbers.bias.clone(), acc, wide)
            }
            AddendStep::Codes { quantizer, codes } => {
                let info = self.info(quantizer)?;
                (vec![info.step], region::centered_bound(info), none.to_vec(), codes, false)
            }
        };
        let threads = self.threads;
        let b_of = |memory: &Memory, at: usize| f64::from(memory.f32(*codes_b).get(at).copied().unwrap_or(f32::NAN));
        let a_of = |memory: &Memory, at: usize| match wide {
            true => memory.f64(item).get(at).copied().unwrap_or(f64::NAN),
            false => f64::from(memory.f32(item).get(at).copied().unwrap_or(f32::NAN)),
        };
        let of = |all: &[f64], at: usize| all.get(at).copied().unwrap_or(f64::NAN);
        match region::route(None, functions, info) {
            Route::Requantize(info) => {
                let reach = (info_b.step, region::centered_bound(&info_b));
                let numbers = region::add_numbers((&scales, bound), reach, info.step);
                let AddNumbers { m_a, m_b, shift } = numbers.map_err(|none| multiplier(name, none))?;
                let m_a: Vec<f64> = m_a.into_iter().map(f64::from).collect();
                let (m_b, half) = (f64::from(m_b), f64::from(1u32 << 31) * 2f64.powi(shift as i32 - 32));
                let unit = 2f64.powi(-(shift as i32));
                let [lo, hi] = [info.lo, info.hi].map(|bound| f64::from(bound - info.zero_point));
                // Sums stay below 2^52, see `add_numbers`: every step is exact.
                self.memory.write(out, |memory, out| {
                    spread.each(threads, out, |[i, j, c]| {
                        let sum = (a_of(memory, i) + of(&bias, c)) * of(&m_a, c) + b_of(memory, j) * m_b + half;
                        (sum * unit).floor().clamp(lo, hi) as f32
                    });
                });
                Ok(info)
            }
            Route::Same | Route::Lookup | Route::Quantize => {
                self.memory.write(out, |memory, out| {
                    spread.each(threads, out, |[i, j, c]| {
                        let a = ((a_of(memory, i) + of(&bias, c)) * of(&scales, c)) as f32;
                        a + (b_of(memory, j) * info_b.step) as f32
                    });
                    quantize(threads, name, out, functions, info)
                })?;
                Ok(info.clone())
            }
        }
    }
}

fn multiplier(name: &str, none: NoMultiplier) -> ExecError {
    let NoMultiplier { channel, factor } = none;
    ExecError::Multiplier { node: name.to_owned(), channel, factor }
}
