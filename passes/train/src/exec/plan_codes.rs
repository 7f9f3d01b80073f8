//! Steps on codes: weights, layers and quantizers.

use qail_ir::{Linear, NodeId, Op, ValueId};
use qail_passes::quant::region::CodesFrom;

use super::{
    ExecError,
    memory::{Item, Kind},
    plan::{CodedWeights, Form, Planner},
    step::{Layer, Quantizer, Source, Step, Weights},
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
        let (m, k, n) = (rows, layer.k, layer.n);
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
            let of_x = Kind::F64(m.saturating_mul(k));
            [self.scratch(of_x), self.scratch(Kind::F64(k.saturating_mul(n)))]
        });
        let index = self.layers.len();
        self.layers.insert(id, index);
        let mut writes = vec![acc];
        writes.extend(wide.into_iter().flatten());
        let name = self.graph.node(id).name.clone();
        let step = Layer { name, index, input: quantizer, weights, x, w, steps, bias, acc, wide, m, k, n };
        self.push(Step::Layer(step), &[x, w, steps, bias], &writes);
        Ok(())
    }

    /// The place of the quantizer whose codes a value holds.
    pub(super) fn quantizer_index(&self, mut value: ValueId) -> Result<usize, ExecError> {
        while let Some(&moved) = self.region.moved.get(&value.node) {
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
        if let Some(&x) = self.region.moved.get(&id) {
            let codes = self.known(Form::Codes(x))?;
            if let Op::Reshape(_) = self.graph.op(value) {
                self.plan.items.insert(form, codes);
                return Ok(());
            }
            let out = self.item(form, size);
            let node = Box::new(self.graph.node(id).clone());
            let mut operands = Vec::new();
            for (form, operand) in self.moved(id).into_iter().zip(self.graph.operands(id)) {
                operands.push((self.known(form)?, self.graph.ty(operand).clone()));
            }
            let reads: Vec<Item> = operands.iter().map(|(item, _)| *item).collect();
            self.push(Step::Interpret { node, operands, out }, &reads, &[out]);
            return Ok(());
        }
        if let Some(quantizer) = self.region.quantizers.get(&id).cloned() {
            let (source, from) = self.source(&quantizer.from, quantizer.x)?;
            let step = self.real(quantizer.scale)?;
            let codes = self.item(form, size);
            let index = self.quantizers.len();
            self.quantizers.insert(id, index);
            let quantizer = Quantizer { name, index, quantizer, source, step, codes };
            self.push(Step::Quantizer(quantizer), &[from, step], &[codes]);
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

    fn source(&self, from: &CodesFrom, x: ValueId) -> Result<(Source, Item), ExecError> {
        Ok(match *from {
            CodesFrom::Layer(id) => {
                let acc = self.known(Form::Acc(id))?;
                let layer = self.layer_index(id)?;
                (Source::Layer { layer, acc, wide: self.is_wide(acc) }, acc)
            }
            CodesFrom::Codes(value) => {
                let codes = self.known(Form::Codes(value))?;
                (Source::Codes { quantizer: self.quantizer_index(value)?, codes }, codes)
            }
            CodesFrom::Sum(_) | CodesFrom::Add(_) => return Err(self.internal(x.node, "sums of codes are not trained")),
            CodesFrom::Floats => {
                let x = self.real(x)?;
                (Source::Floats(x), x)
            }
        })
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
        let quantizer = self.region.quantizers.get(&value.node).map(|quantizer| quantizer.scale);
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
