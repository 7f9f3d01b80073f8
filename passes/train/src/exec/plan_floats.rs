//! Steps in floats. What has no fast loop runs on the interpreter.

use qail_ir::{
    Binary, BinaryGrad, DType, FakeQuantGrad, Grad, Linear, NodeId, Op, Reduce, ReduceFn, Rope, Shape, Unary, ValueId,
    Wrt,
};

use super::{
    ExecError,
    lanes::Beside,
    memory::{Item, Kind},
    plan::{Form, Planner},
    rows::Rows,
    spread::Spread,
    step::{QuantizerGrad, Step, Window},
};

/// An operand of a product: a tensor behind transpositions.
pub(super) struct Operand {
    /// Where the elements are.
    pub(super) root: ValueId,
    shape: Shape,
    strides: Vec<usize>,
}

impl Planner<'_> {
    /// Looks through transpositions.
    pub(super) fn window(&self, value: ValueId) -> Operand {
        let mut root = value;
        let mut perms = Vec::new();
        while let Op::Transpose(transpose) = self.graph.op(root) {
            let Some(&x) = self.graph.operands(root.node).first() else { break };
            perms.push(transpose.perm.clone());
            root = x;
        }
        let mut shape = self.graph.ty(root).shape.clone();
        let mut strides = vec![1usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            let inner = strides[axis].saturating_mul(shape[axis]);
            strides[axis - 1] = inner;
        }
        for perm in perms.into_iter().rev() {
            let of = |all: &[usize]| perm.iter().map(|&axis| all.get(axis).copied().unwrap_or(0)).collect::<Vec<_>>();
            (shape, strides) = (of(&shape), of(&strides));
        }
        Operand { root, shape, strides }
    }

    pub(super) fn value(&mut self, value: ValueId) -> Result<(), ExecError> {
        let id = value.node;
        let operands = self.graph.operands(id);
        let is_f32 = self.graph.ty(value).is_f32();
        match (self.graph.node(id).op.clone(), &operands[..]) {
            _ if self.codes_serve(value) => self.scale(value),
            _ if is_f32 && self.view(value).root != value => self.move_floats(value),
            (Op::Linear(linear), _) if self.region.layers.contains_key(&id) => self.leave(value, &linear),
            (Op::Linear(linear), &[x, w, b]) => {
                let [k, n] = self.graph.ty(w).shape[..] else { return self.interpret(value) };
                let m = self.graph.ty(x).shape.split_last().map_or(1, |(_, lead)| lead.iter().product());
                let (x, w, b) = (self.real(x)?, self.real(w)?, self.real(b)?);
                let out = self.out(value);
                let name = self.graph.node(id).name.clone();
                let Linear { act, groups } = linear;
                let step = Step::Linear { name, x, w, b, act, out, dims: [m, n, k], groups };
                self.push(step, &[x, w, b], &[out]);
                Ok(())
            }
            (Op::FakeQuant(_), _) if self.has_codes(value) => self.scale(value),
            (Op::MatMul(_), &[a, b]) => self.matmul(value, a, b),
            (Op::Reshape(_), &[x]) => {
                let item = self.real(x)?;
                self.plan.items.insert(Form::Real(value), item);
                Ok(())
            }
            (Op::Unary(unary), &[x]) => self.unary(value, &unary, x),
            (Op::Binary(binary), &[a, b]) => self.binary(value, &binary, a, b),
            (Op::Reduce(reduce), &[x]) => self.reduce(value, &reduce, x),
            (Op::Expand(_), &[x]) => self.expand(value, x),
            (Op::Cast(_), &[x]) if is_f32 && self.graph.ty(x).is_f32() => {
                let item = self.real(x)?;
                self.plan.items.insert(Form::Real(value), item);
                Ok(())
            }
            (Op::Cast(_), &[x]) if is_f32 && self.graph.ty(x).dtype() != Some(DType::F64) => {
                let x = self.real(x)?;
                let out = self.out(value);
                self.push(Step::Floats { x, out }, &[x], &[out]);
                Ok(())
            }
            (Op::Concat(concat), _) if is_f32 => self.concat(value, concat.axis),
            (Op::Gather(gather), &[x, index]) if is_f32 => self.gather(value, gather.axis, [x, index]),
            (Op::Scatter(scatter), &[x, index, update]) if is_f32 => self.scatter(value, &scatter, [x, index, update]),
            (Op::Where(_), &[c, a, b]) if is_f32 => self.choose(value, [c, a, b]),
            (Op::Softmax(softmax), &[x]) => {
                let rows = Rows::new(&self.graph.ty(x).shape, &[softmax.axis]);
                let x = self.real(x)?;
                let out = self.out(value);
                self.push(Step::Softmax { log: softmax.log, rows, x, out }, &[x], &[out]);
                Ok(())
            }
            (Op::Normalize(op), &[x]) => {
                let rows = Rows::new(&self.graph.ty(x).shape, &op.axes);
                let x = self.real(x)?;
                let out = self.out(value);
                self.push(Step::Normalize { eps: op.eps, center: op.center, rows, x, out }, &[x], &[out]);
                Ok(())
            }
            (Op::Rope(op), &[x, cos, sin]) => self.rope(value, op, [x, cos, sin]),
            (Op::Film(_), &[x, scale, shift]) => self.film(value, [x, scale, shift]),
            (Op::Grad(Grad::Unfold(grad)), &[g]) => self.unfold_grad(value, &grad, g),
            (Op::Grad(Grad::Binary(grad)), &[a, b, g]) => self.binary_grad(value, &grad, [a, b, g]),
            (Op::Grad(Grad::Reduce(reduce)), &[x, g]) => {
                let rows = Rows::new(&self.graph.ty(x).shape, &reduce.axes);
                let largest = reduce.f == ReduceFn::Max;
                let (x, g) = (self.real(x)?, self.real(g)?);
                let out = self.out(value);
                self.push(Step::ExtremeGrad { largest, rows, x, g, out }, &[x, g], &[out]);
                Ok(())
            }
            (Op::Grad(Grad::Unary(unary)), &[x, g]) => self.unary_grad(value, &unary, x, g),
            (Op::Grad(Grad::FakeQuant(grad)), _) => self.quantizer_grad(value, &grad, &operands),
            _ => self.interpret(value),
        }
    }

    pub(super) fn out(&mut self, value: ValueId) -> Item {
        let n = self.graph.ty(value).n_elements();
        self.item(Form::Real(value), Kind::F32(n))
    }

    /// Leaves a node to the interpreter.
    pub(super) fn interpret(&mut self, value: ValueId) -> Result<(), ExecError> {
        let ty = self.graph.ty(value).clone();
        let operands: Result<Vec<_>, ExecError> = (self.graph.operands(value.node).into_iter())
            .map(|operand| Ok((self.real(operand)?, self.graph.ty(operand).clone())))
            .collect();
        let operands = operands?;
        let reads: Vec<Item> = operands.iter().map(|(item, _)| *item).collect();
        let n = ty.n_elements();
        let out = self.item(Form::Real(value), if ty.is_f32() { Kind::F32(n) } else { Kind::Tensor(n) });
        let node = Box::new(self.graph.node(value.node).clone());
        self.push(Step::Interpret { node, operands, out }, &reads, &[out]);
        Ok(())
    }

    fn matmul(&mut self, value: ValueId, a: ValueId, b: ValueId) -> Result<(), ExecError> {
        let (a, b) = (self.window(a), self.window(b));
        let out_shape = self.graph.ty(value).shape.clone();
        let ([a_lead @ .., m, k], [b_lead @ .., _, n], [lead @ .., _, _]) =
            (&a.shape[..], &b.shape[..], &out_shape[..])
        else {
            return Err(self.internal(value.node, "operands of products are matrices"));
        };
        let dims = [*m, *n, *k];
        let batches = |operand: &Operand, own: &[usize]| offsets(lead, own, &operand.strides);
        let offsets: Vec<[usize; 2]> =
            batches(&a, a_lead).into_iter().zip(batches(&b, b_lead)).map(|(a, b)| [a, b]).collect();
        let window = |item: Item, operand: &Operand| {
            let last = |back: usize| operand.strides.iter().rev().nth(back).copied().unwrap_or(1);
            Window { item, rows: last(1), columns: last(0) }
        };
        let (of_a, of_b) = (self.real(a.root)?, self.real(b.root)?);
        let (a, b) = (window(of_a, &a), window(of_b, &b));
        let out = self.out(value);
        let name = self.graph.node(value.node).name.clone();
        self.push(Step::MatMul { name, a, b, out, dims, offsets }, &[of_a, of_b], &[out]);
        Ok(())
    }

    fn unary(&mut self, value: ValueId, unary: &Unary, x: ValueId) -> Result<(), ExecError> {
        let f = unary.f;
        if self.small_codes(f, x) {
            let (codes, quantizer) = (self.known(Form::Codes(x))?, self.quantizer_index(x)?);
            let out = self.out(value);
            self.push(Step::UnaryOfCodes { f, quantizer, codes, out }, &[codes], &[out]);
        } else {
            let x = self.real(x)?;
            let out = self.out(value);
            self.push(Step::Unary { f, x, out }, &[x], &[out]);
        }
        Ok(())
    }

    fn unary_grad(&mut self, value: ValueId, unary: &Unary, x: ValueId, g: ValueId) -> Result<(), ExecError> {
        let f = unary.f;
        let of_g = self.real(g)?;
        if self.small_codes(f, x) {
            let (codes, quantizer) = (self.known(Form::Codes(x))?, self.quantizer_index(x)?);
            let out = self.out(value);
            self.push(Step::UnaryGradOfCodes { f, quantizer, codes, g: of_g, out }, &[codes, of_g], &[out]);
        } else {
            let x = self.real(x)?;
            let out = self.out(value);
            self.push(Step::UnaryGrad { f, x, g: of_g, out }, &[x, of_g], &[out]);
        }
        Ok(())
    }

    fn binary(&mut self, value: ValueId, binary: &Binary, a: ValueId, b: ValueId) -> Result<(), ExecError> {
        let ty = self.graph.ty(value).clone();
        let (of_a, of_b) = (self.graph.ty(a), self.graph.ty(b));
        let n = ty.n_elements();
        if !ty.is_f32() || n == 0 {
            return self.interpret(value);
        }
        let spreads = |small: &Shape, large: usize| {
            let size: usize = small.iter().product();
            let row = ty.shape.last().copied();
            match () {
                () if large != n => None,
                () if size == n => Some(Beside::Equal),
                () if size == 1 => Some(Beside::Scalar),
                () if Some(size) == row && small.last().copied() == row => Some(Beside::Row),
                () => None,
            }
        };
        let (beside, flipped) = match (spreads(&of_b.shape, of_a.n_elements()), spreads(&of_a.shape, of_b.n_elements()))
        {
            (Some(beside), _) => (beside, false),
            (None, Some(beside)) => (beside, true),
            (None, None) => {
                let spread = Spread::new(&ty.shape, &[&of_a.shape, &of_b.shape]);
                let (a, b) = (self.real(a)?, self.real(b)?);
                let out = self.out(value);
                self.push(Step::Spread { f: binary.f, spread, a, b, out }, &[a, b], &[out]);
                return Ok(());
            }
        };
        let (a, b) = if flipped { (b, a) } else { (a, b) };
        let (a, b) = (self.real(a)?, self.real(b)?);
        let out = self.out(value);
        self.push(Step::Binary { f: binary.f, beside, flipped, a, b, out }, &[a, b], &[out]);
        Ok(())
    }

    fn binary_grad(&mut self, value: ValueId, grad: &BinaryGrad, operands: [ValueId; 3]) -> Result<(), ExecError> {
        let shape = |value: ValueId| &self.graph.ty(value).shape[..];
        let [a, b, g] = operands.map(shape);
        let spread = Spread::new(shape(value), &[a, b, g]);
        let [a, b, g] = operands;
        let operands = [self.real(a)?, self.real(b)?, self.real(g)?];
        let out = self.out(value);
        self.push(Step::SpreadGrad { f: grad.f, wrt: grad.wrt, spread, operands, out }, &operands, &[out]);
        Ok(())
    }

    fn choose(&mut self, value: ValueId, operands: [ValueId; 3]) -> Result<(), ExecError> {
        let shape = |value: ValueId| &self.graph.ty(value).shape[..];
        let [c, a, b] = operands.map(shape);
        let spread = Spread::new(shape(value), &[c, a, b]);
        let [c, a, b] = operands;
        let operands = [self.real(c)?, self.real(a)?, self.real(b)?];
        let out = self.out(value);
        self.push(Step::Choose { spread, operands, out }, &operands, &[out]);
        Ok(())
    }

    fn rope(&mut self, value: ValueId, op: Rope, operands: [ValueId; 3]) -> Result<(), ExecError> {
        let (spread, operands) = self.spread(value, operands)?;
        let width = self.graph.ty(value).shape.last().copied().unwrap_or(1);
        let out = self.out(value);
        self.push(Step::Rope { op, width, spread, operands, out }, &operands, &[out]);
        Ok(())
    }

    fn film(&mut self, value: ValueId, operands: [ValueId; 3]) -> Result<(), ExecError> {
        let (spread, operands) = self.spread(value, operands)?;
        let out = self.out(value);
        self.push(Step::Film { spread, operands, out }, &operands, &[out]);
        Ok(())
    }

    /// Three operands in floats, and how they lie below the result.
    fn spread(&mut self, value: ValueId, operands: [ValueId; 3]) -> Result<(Spread, [Item; 3]), ExecError> {
        let shape = |value: ValueId| &self.graph.ty(value).shape[..];
        let spread = Spread::new(shape(value), &operands.map(shape));
        let [a, b, c] = operands;
        Ok((spread, [self.real(a)?, self.real(b)?, self.real(c)?]))
    }

    fn reduce(&mut self, value: ValueId, reduce: &Reduce, x: ValueId) -> Result<(), ExecError> {
        let ty = self.graph.ty(x).clone();
        // Axes of extent 1 do not matter.
        let wide: Vec<(usize, usize)> = ty.shape.iter().copied().enumerate().filter(|axis| axis.1 != 1).collect();
        let reduced: Vec<bool> = wide.iter().map(|(axis, _)| reduce.axes.contains(axis)).collect();
        let count: usize = wide.iter().filter(|(axis, _)| reduce.axes.contains(axis)).map(|axis| axis.1).product();
        if !ty.is_f32() {
            return self.interpret(value);
        }
        if ty.n_elements() == 0 {
            return self.interpret(value);
        }
        let factor = match reduce.f {
            ReduceFn::Sum => 1.0,
            ReduceFn::Mean => 1.0 / count as f64,
            ReduceFn::Min | ReduceFn::Max | ReduceFn::Prod => return self.reduce_rows(value, reduce, x),
        };
        let rows = reduced.windows(2).all(|pair| pair[0] <= pair[1]);
        let columns = reduced.windows(2).all(|pair| pair[0] >= pair[1]);
        if !rows && !columns {
            return self.reduce_rows(value, reduce, x);
        }
        let x = self.real(x)?;
        let out = self.out(value);
        let step =
            if rows { Step::SumRows { x, out, inner: count, factor } } else { Step::SumColumns { x, out, factor } };
        self.push(step, &[x], &[out]);
        Ok(())
    }

    /// Any axes, in the order of the interpreter.
    fn reduce_rows(&mut self, value: ValueId, reduce: &Reduce, x: ValueId) -> Result<(), ExecError> {
        let rows = Rows::new(&self.graph.ty(x).shape, &reduce.axes);
        let x = self.real(x)?;
        let out = self.out(value);
        self.push(Step::Reduce { f: reduce.f, rows, x, out }, &[x], &[out]);
        Ok(())
    }

    /// True for an `expand` that repeats its operand as a whole.
    pub(super) fn repeats(&self, value: ValueId) -> bool {
        let Some(&x) = self.graph.operands(value.node).first() else { return false };
        let (from, to) = (self.graph.ty(x), self.graph.ty(value));
        let own: Vec<usize> = from.shape.iter().copied().skip_while(|&extent| extent == 1).collect();
        to.is_f32() && from.n_elements() != 0 && to.shape.ends_with(&own)
    }

    fn expand(&mut self, value: ValueId, x: ValueId) -> Result<(), ExecError> {
        if !self.repeats(value) {
            return self.interpret(value);
        }
        let x = self.real(x)?;
        let out = self.out(value);
        self.push(Step::Repeat { x, out }, &[x], &[out]);
        Ok(())
    }

    /// Both gradients of a quantizer in one pass, where both are needed.
    fn quantizer_grad(&mut self, value: ValueId, grad: &FakeQuantGrad, operands: &[ValueId]) -> Result<(), ExecError> {
        let (x, scale, z, g) = match *operands {
            [x, scale, g] => (x, scale, None, g),
            [x, scale, z, g] => (x, scale, Some(z), g),
            _ => return self.interpret(value),
        };
        let ty = self.graph.ty(x).clone();
        let columns = grad.fake.axis.is_some();
        let last = ty.shape.len().checked_sub(1);
        let one_step = !columns && self.graph.ty(scale).n_elements() == 1;
        let z = match z {
            None => Some(0),
            Some(z) => self.graph.const_of(z).and_then(|z| z.all_int().ok()).and_then(|z| z.first().copied()),
        };
        let Some(z) = z.filter(|_| one_step || (columns && grad.fake.axis == last && grad.fake.group.is_none())) else {
            return self.interpret(value);
        };
        let range = [grad.fake.lo, grad.fake.hi].map(|bound| (i64::from(bound) - z) as f32);
        let other = self.sibling(value.node, grad, operands, g);
        let (of_x, steps, of_g) = (self.real(x)?, self.real(scale)?, self.real(g)?);
        let mut writes = Vec::new();
        let mut one = |planner: &mut Self, wrt: Wrt| {
            let of = if grad.wrt == wrt { Some(value) } else { other };
            let item = of.map(|value| planner.out(value));
            writes.extend(item);
            item
        };
        let (by_x, by_steps) = (one(self, Wrt::First), one(self, Wrt::Second));
        let step = QuantizerGrad { x: of_x, steps, g: of_g, columns, range, by_x, by_steps };
        self.push(Step::QuantizerGrad(step), &[of_x, steps, of_g], &writes);
        Ok(())
    }

    /// The other gradient of the same quantizer, if somebody reads it.
    fn sibling(&self, id: NodeId, grad: &FakeQuantGrad, operands: &[ValueId], g: ValueId) -> Option<ValueId> {
        let same = |node: NodeId| match &self.graph.node(node).op {
            Op::Grad(Grad::FakeQuant(other)) => {
                node != id
                    && other.fake == grad.fake
                    && other.wrt != grad.wrt
                    && self.graph.operands(node) == operands
                    && self.needed.contains(&Form::Real(node.value()))
                    && !self.plan.items.contains_key(&Form::Real(node.value()))
            }
            _ => false,
        };
        self.graph.users(g).into_iter().map(|(node, _)| node).find(|&node| same(node)).map(NodeId::value)
    }
}

/// Where each matrix of a batch begins, if the batch axes `own` spread to `lead`.
fn offsets(lead: &[usize], own: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut all = vec![0usize];
    let missing = lead.len().saturating_sub(own.len());
    for (axis, &extent) in lead.iter().enumerate() {
        let own = axis.checked_sub(missing).filter(|&i| own.get(i).is_some_and(|&extent| extent != 1));
        let stride = own.and_then(|i| strides.get(i).copied()).unwrap_or(0);
        all = all.iter().flat_map(|&base| (0..extent).map(move |i| base + i * stride)).collect();
    }
    all
}
