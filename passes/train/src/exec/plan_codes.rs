//! Steps on codes: weights, layers and quantizers.

use qail_ir::{Linear, NodeId, Op, ValueId};
use qail_passes::quant::region::{Addend, CodesFrom};

use super::{
    ExecError,
    memory::{Item, Kind},
    plan::{CodedWeights, Form, Planner},
    rows::Rows,
    spread::Spread,
    step::{AddCodes, AddendStep, Layer, Quantizer, Source, Step, SumOfCodes, Weights},
};

/// Below this, integers and their sums are exact in an `f32`.
const EXACT: u128 = 1 << 24;

impl Planner<'_> {
    /// Puts the steps of a form behind the others.
    pub(super) fn compute(&mut self, form: Form) -> Result<(), ExecError> {
        if self.plan.items.contains_key(&form) {
            return Ok(());
        }
        match form {
            Form::Acc(id) => self.layer(id),
            Form::Codes(value) => self.codes(value),
            Form::Real(value) => self.value(value),
        }
    }

    fn layer(&mut self, id: NodeId) -> Result<(), ExecError> {
        let missing = || self.internal(id, "accumulators belong to layers on codes");
        let layer = self.region.layers.get(&id).cloned().ok_or_else(missing)?;
        let x = *self.graph.operands(id).first().ok_or_else(missing)?;
        let input = self.region.quantizer_of(x).cloned().ok_or_else(missing)?;
        let quantizer = self.quantizer_index(x)?;
        let rows: usize = self.graph.ty(x).shape.split_last().map_or(1, |(_, lead)| lead.iter().product());
        let (m, k, n, groups) = (rows, layer.k, layer.n, layer.groups);
        // Without the zero point a code may have one bit more.
        let largest = |lo: i32, hi: i32, z: i32| u128::from(lo.abs_diff(z).max(hi.abs_diff(z)));
        let bound = largest(input.fake.lo, input.fake.hi, input.zero_point)
            * largest(layer.fake.lo, layer.fake.hi, 0)
            * k as u128;
        let wide = bound >= EXACT;
        let (x, w) = (self.known(Form::Codes(x))?, self.known(Form::Codes(layer.quantizer))?);
        let (steps, bias) = (self.real(layer.scale)?, self.real(layer.bias)?);
        let weights = self.weight_places.get(&layer.quantizer.node).copied().ok_or_else(missing)?;
        let size = m.saturating_mul(n);
        let acc = self.item(Form::Acc(id), if wide { Kind::F64(size) } else { Kind::F32(size) });
        let wide = wide.then(|| {
            let of_x = Kind::F64(m.saturating_mul(k).saturating_mul(groups));
            [self.scratch(of_x), self.scratch(Kind::F64(k.saturating_mul(n)))]
        });
        let index = self.layers.len();
        self.layers.insert(id, index);
        let mut writes = vec![acc];
        writes.extend(wide.into_iter().flatten());
        let name = self.graph.node(id).name.clone();
        let step = Layer { name, index, input: quantizer, weights, x, w, steps, bias, acc, wide, m, k, n, groups };
        self.push(Step::Layer(step), &[x, w, steps, bias], &writes);
        Ok(())
    }

    /// The place of the quantizer whose codes a value holds.
    pub(super) fn quantizer_index(&self, mut value: ValueId) -> Result<usize, ExecError> {
        while let (None, Some(&moved)) = (self.quantizers.get(&value.node), self.region.moved.get(&value.node)) {
            value = moved;
        }
        let index = self.quantizers.get(&value.node).copied();
        index.ok_or_else(|| self.internal(value.node, "codes come from quantizers"))
    }

    fn codes(&mut self, value: ValueId) -> Result<(), ExecError> {
        let id = value.node;
        let form = Form::Codes(value);
        let size = Kind::F32(self.graph.ty(value).n_elements());
        let name = self.graph.node(id).name.clone();
        if self.region.moved.contains_key(&id) {
            return self.move_codes(value);
        }
        if let Some(quantizer) = self.region.quantizers.get(&id).cloned() {
            let (source, mut reads) = self.source(&quantizer.from, quantizer.x)?;
            let step = self.real(quantizer.scale)?;
            reads.push(step);
            let codes = self.item(form, size);
            let index = self.new_place(id);
            let quantizer = Quantizer { name, index, quantizer, source, step, codes };
            self.push(Step::Quantizer(quantizer), &reads, &[codes]);
            return Ok(());
        }
        let missing = || self.internal(id, "codes belong to quantizers");
        let CodedWeights { fake, w, scale } = self.weights.get(&id).cloned().ok_or_else(missing)?;
        let (w, steps) = (self.real(w)?, self.real(scale)?);
        let codes = self.item(form, size);
        let index = self.weight_places.len();
        self.weight_places.insert(id, index);
        let weights = Weights { name, index, w, steps, codes, lo: fake.lo, hi: fake.hi };
        self.push(Step::Weights(weights), &[w, steps], &[codes]);
        Ok(())
    }

    /// A new place for how codes read.
    pub(super) fn new_place(&mut self, id: NodeId) -> usize {
        let index = self.quantizers.len();
        self.quantizers.insert(id, index);
        index
    }

    fn source(&self, from: &CodesFrom, x: ValueId) -> Result<(Source, Vec<Item>), ExecError> {
        Ok(match from {
            &CodesFrom::Layer(id) => {
                let (layer, acc, wide) = self.accumulators(id)?;
                (Source::Layer { layer, acc, wide }, vec![acc])
            }
            &CodesFrom::Codes(value) => {
                let codes = self.known(Form::Codes(value))?;
                (Source::Codes { quantizer: self.quantizer_index(value)?, codes }, vec![codes])
            }
            CodesFrom::Sum(sum) => {
                let codes = self.known(Form::Codes(sum.codes))?;
                let Op::Reduce(reduce) = &self.graph.node(sum.node).op else {
                    return Err(self.internal(sum.node, "a sum of codes is a reduction"));
                };
                let rows = Rows::new(&self.graph.ty(sum.codes).shape, &reduce.axes);
                let (name, quantizer) = (self.graph.node(sum.node).name.clone(), self.quantizer_index(sum.codes)?);
                let step = SumOfCodes { name, quantizer, codes, rows, n: sum.n, divisor: sum.divisor };
                (Source::Sum(Box::new(step)), vec![codes])
            }
            CodesFrom::Add(addition) => {
                let codes_b = self.known(Form::Codes(addition.b))?;
                let (a, item, of_a) = match addition.a {
                    Addend::Layer(id) => {
                        let (layer, acc, wide) = self.accumulators(id)?;
                        (AddendStep::Layer { layer, acc, wide }, acc, id.value())
                    }
                    Addend::Codes(a) => {
                        let codes = self.known(Form::Codes(a))?;
                        (AddendStep::Codes { quantizer: self.quantizer_index(a)?, codes }, codes, a)
                    }
                };
                let shape = |value: ValueId| &self.graph.ty(value).shape[..];
                let to = shape(addition.node.value());
                let row: Vec<usize> = to.last().copied().into_iter().collect();
                let channels: &[usize] = if matches!(a, AddendStep::Layer { .. }) { &row } else { &[] };
                let spread = Spread::new(to, &[shape(of_a), shape(addition.b), channels]);
                let name = self.graph.node(addition.node).name.clone();
                let step = AddCodes { name, a, quantizer_b: self.quantizer_index(addition.b)?, codes_b, spread };
                (Source::Add(Box::new(step)), vec![item, codes_b])
            }
            CodesFrom::Floats => {
                let x = self.real(x)?;
                (Source::Floats(x), vec![x])
            }
        })
    }

    fn accumulators(&self, id: NodeId) -> Result<(usize, Item, bool), ExecError> {
        let acc = self.known(Form::Acc(id))?;
        Ok((self.layer_index(id)?, acc, self.is_wide(acc)))
    }

    fn layer_index(&self, id: NodeId) -> Result<usize, ExecError> {
        self.layers.get(&id).copied().ok_or_else(|| self.internal(id, "layers come before their readers"))
    }

    fn is_wide(&self, acc: Item) -> bool {
        matches!(self.plan.kinds.get(acc.0), Some(Kind::F64(_)))
    }

    /// What floats read of a layer on codes.
    pub(super) fn leave(&mut self, value: ValueId, linear: &Linear) -> Result<(), ExecError> {
        let acc = self.known(Form::Acc(value.node))?;
        let layer = self.layer_index(value.node)?;
        let out = self.item(Form::Real(value), Kind::F32(self.graph.ty(value).n_elements()));
        let step = Step::Leave { layer, acc, wide: self.is_wide(acc), act: linear.act, out };
        self.push(step, &[acc], &[out]);
        Ok(())
    }

    /// What floats read of a quantizer.
    pub(super) fn scale(&mut self, value: ValueId) -> Result<(), ExecError> {
        let codes = self.known(Form::Codes(value))?;
        let quantizer = self.region.quantizer_of(value).map(|quantizer| quantizer.scale);
        let weights = self.weights.get(&value.node).map(|weights| weights.scale);
        let out = self.item(Form::Real(value), Kind::F32(self.graph.ty(value).n_elements()));
        match (quantizer, weights) {
            (Some(scale), _) => {
                let step = self.real(scale)?;
                self.push(Step::Scale { codes, step, out }, &[codes, step], &[out]);
            }
            (None, Some(scale)) => {
                let steps = self.real(scale)?;
                self.push(Step::ScaleColumns { codes, steps, out }, &[codes, steps], &[out]);
            }
            (None, None) => return Err(self.internal(value.node, "codes belong to quantizers")),
        }
        Ok(())
    }
}
