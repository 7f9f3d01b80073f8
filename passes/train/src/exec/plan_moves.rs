//! Steps that move elements, of floats and of codes.

use qail_ir::{Grad, NodeId, Op, Scatter, ScatterFn, UnfoldGrad, ValueId};

use super::{
    ExecError,
    memory::{Item, Kind},
    moves::{self, Picks, Sums},
    plan::{Form, Planner},
    step::Step,
};

/// A value as elements of another one.
pub(super) struct View {
    pub(super) root: ValueId,
    /// The movements between, first one first.
    path: Vec<NodeId>,
    /// What stands where no element does.
    fill: Option<f32>,
}

impl Planner<'_> {
    /// Looks through movements of floats.
    pub(super) fn view(&self, value: ValueId) -> View {
        self.look_through(value, |planner, at| planner.graph.ty(at).is_f32())
    }

    /// Looks through movements of codes.
    pub(super) fn code_view(&self, value: ValueId) -> View {
        self.look_through(value, |planner, at| planner.region.moved.contains_key(&at.node))
    }

    fn look_through(&self, value: ValueId, may: impl Fn(&Self, ValueId) -> bool) -> View {
        let mut view = View { root: value, path: Vec::new(), fill: None };
        while may(self, view.root) {
            let (Some(fill), Some(&x)) = (self.pick_fill(view.root), self.graph.operands(view.root.node).first())
            else {
                break;
            };
            // One table has one fill.
            if let (Some(own), Some(other)) = (fill, view.fill)
                && own.to_bits() != other.to_bits()
            {
                break;
            }
            view.fill = view.fill.or(fill);
            view.path.push(view.root.node);
            view.root = x;
        }
        view.path.reverse();
        view
    }

    /// True if floats read the codes of a value that somebody needs, and not what the codes come from.
    pub(super) fn codes_serve(&self, value: ValueId) -> bool {
        self.region.moved.contains_key(&value.node) && self.needed.contains(&Form::Codes(value))
    }

    /// For movements that a table can say: what they show where there is no element.
    fn pick_fill(&self, value: ValueId) -> Option<Option<f32>> {
        if self.graph.ty(value).n_elements() > moves::MAX_LEN {
            return None;
        }
        match self.graph.op(value) {
            Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => Some(None),
            Op::Expand(_) => (!self.repeats(value)).then_some(None),
            Op::Unfold(unfold) => Some(Some(unfold.fill)),
            Op::Gather(_) => self.constant_index(value.node).map(|_| None),
            Op::Grad(Grad::Slice(_)) => Some(Some(0.0)),
            _ => None,
        }
    }

    fn constant_index(&self, id: NodeId) -> Option<Vec<i64>> {
        let index = *self.graph.operands(id).get(1)?;
        self.graph.const_of(index)?.all_int().ok()
    }

    /// The element of the root at each place of a view.
    fn table(&self, view: &View) -> Option<Vec<u32>> {
        let n = self.graph.ty(view.root).n_elements();
        let mut at: Vec<u32> = if n < moves::MAX_LEN { (0..n as u32).collect() } else { return None };
        for &id in &view.path {
            let x = *self.graph.operands(id).first()?;
            let shapes = [&self.graph.ty(x).shape[..], &self.graph.ty(id.value()).shape[..]];
            let index = self.constant_index(id).unwrap_or_default();
            at = moves::moved(&self.graph.node(id).op, shapes, &at, &index)?;
        }
        Some(at)
    }

    fn is_the_same(&self, view: &View) -> bool {
        view.path.iter().all(|&id| matches!(self.graph.node(id).op, Op::Reshape(_)))
    }

    fn batch_of(&self, value: ValueId) -> usize {
        self.graph.ty(value).shape.first().copied().unwrap_or(1)
    }

    /// Floats that are moved.
    pub(super) fn move_floats(&mut self, value: ValueId) -> Result<(), ExecError> {
        let view = self.view(value);
        if self.is_the_same(&view) {
            let item = self.real(view.root)?;
            self.plan.items.insert(Form::Real(value), item);
            return Ok(());
        }
        let Some(at) = self.table(&view) else {
            return Err(self.internal(value.node, "movements have a table"));
        };
        let picks = Picks::new(at, self.graph.ty(view.root).n_elements(), self.batch_of(view.root));
        let x = self.real(view.root)?;
        let out = self.out(value);
        self.push(Step::Pick { x, out, picks, fill: view.fill.unwrap_or(0.0) }, &[x], &[out]);
        Ok(())
    }

    /// Codes that are moved.
    pub(super) fn move_codes(&mut self, value: ValueId) -> Result<(), ExecError> {
        let form = Form::Codes(value);
        let size = Kind::F32(self.graph.ty(value).n_elements());
        let view = self.code_view(value);
        if view.path.is_empty() {
            return self.join_codes(value);
        }
        let x = self.known(Form::Codes(view.root))?;
        if self.is_the_same(&view) {
            self.plan.items.insert(form, x);
            return Ok(());
        }
        let Some(at) = self.table(&view) else {
            return Err(self.internal(value.node, "movements have a table"));
        };
        let picks = Picks::new(at, self.graph.ty(view.root).n_elements(), self.batch_of(view.root));
        let from = self.quantizer_index(view.root)?;
        let to = view.fill.map(|fill| (self.new_place(value.node), fill));
        let out = self.item(form, size);
        self.push(Step::PickCodes { from, to, x, out, picks }, &[x], &[out]);
        Ok(())
    }

    /// Extremes and concatenations of codes.
    fn join_codes(&mut self, value: ValueId) -> Result<(), ExecError> {
        let operands = self.graph.operands(value.node);
        let size = Kind::F32(self.graph.ty(value).n_elements());
        match (self.graph.node(value.node).op.clone(), &operands[..]) {
            (Op::Reduce(reduce), &[x]) => {
                let rows = super::rows::Rows::new(&self.graph.ty(x).shape, &reduce.axes);
                let x = self.known(Form::Codes(x))?;
                let out = self.item(Form::Codes(value), size);
                self.push(Step::Reduce { f: reduce.f, rows, x, out }, &[x], &[out]);
                Ok(())
            }
            (Op::Concat(concat), _) => {
                let from: Result<Vec<usize>, ExecError> = operands.iter().map(|&x| self.quantizer_index(x)).collect();
                let from = from?;
                let items: Result<Vec<Item>, ExecError> =
                    operands.iter().map(|&x| self.known(Form::Codes(x))).collect();
                let items = items?;
                let parts = self.parts(&operands, &items, concat.axis);
                let to = self.new_place(value.node);
                let out = self.item(Form::Codes(value), size);
                self.push(Step::Join { parts, out, codes: Some((from, to)) }, &items, &[out]);
                Ok(())
            }
            _ => Err(self.internal(value.node, "codes are moved by known operations")),
        }
    }

    fn parts(&self, operands: &[ValueId], items: &[Item], axis: usize) -> Vec<(Item, usize)> {
        let row = |&x: &ValueId| self.graph.ty(x).shape.iter().skip(axis).product();
        items.iter().copied().zip(operands.iter().map(row)).collect()
    }

    pub(super) fn concat(&mut self, value: ValueId, axis: usize) -> Result<(), ExecError> {
        let operands = self.graph.operands(value.node);
        let items: Result<Vec<Item>, ExecError> = operands.iter().map(|&x| self.real(x)).collect();
        let items = items?;
        let parts = self.parts(&operands, &items, axis);
        let out = self.out(value);
        self.push(Step::Join { parts, out, codes: None }, &items, &[out]);
        Ok(())
    }

    /// What the gradient of windows reads: through movements, unless they show a fill that is not 0.
    pub(super) fn view_of_windows(&self, g: ValueId) -> View {
        let view = self.view(g);
        if view.fill.is_none_or(|fill| fill == 0.0) { view } else { View { root: g, path: Vec::new(), fill: None } }
    }

    pub(super) fn unfold_grad(&mut self, value: ValueId, grad: &UnfoldGrad, g: ValueId) -> Result<(), ExecError> {
        let view = self.view_of_windows(g);
        let n: usize = grad.shape.iter().product();
        let own: Vec<u32> = if n < moves::MAX_LEN { (0..n as u32).collect() } else { Vec::new() };
        let op = Op::Unfold(grad.unfold.clone());
        let to = moves::moved(&op, [&grad.shape, &self.graph.ty(g).shape], &own, &[]);
        let (Some(to), Some(from)) = (to, self.table(&view)) else {
            return Err(self.internal(value.node, "movements have a table"));
        };
        let sizes = [n, self.graph.ty(view.root).n_elements()];
        let sums = Sums::new(&to, &from, sizes, grad.shape.first().copied().unwrap_or(1));
        let x = self.real(view.root)?;
        let out = self.out(value);
        self.push(Step::Sums { x, out, sums }, &[x], &[out]);
        Ok(())
    }

    /// Rows by a computed index.
    pub(super) fn gather(&mut self, value: ValueId, axis: usize, [x, index]: [ValueId; 2]) -> Result<(), ExecError> {
        let shape = &self.graph.ty(x).shape;
        let dims = [shape.get(axis).copied().unwrap_or(1), shape.iter().skip(axis + 1).product()];
        let (x, index) = (self.real(x)?, self.real(index)?);
        let out = self.out(value);
        self.push(Step::Gather { x, index, out, dims }, &[x, index], &[out]);
        Ok(())
    }

    pub(super) fn scatter(
        &mut self,
        value: ValueId,
        op: &Scatter,
        [x, index, update]: [ValueId; 3],
    ) -> Result<(), ExecError> {
        let sums = match op.f {
            ScatterFn::Add => true,
            ScatterFn::Replace => false,
            ScatterFn::Mul | ScatterFn::Min | ScatterFn::Max => return self.interpret(value),
        };
        let row = self.graph.ty(x).shape.iter().skip(1).product();
        let (x, index, update) = (self.real(x)?, self.real(index)?, self.real(update)?);
        let out = self.out(value);
        self.push(Step::Scatter { x, index, update, out, row, sums }, &[x, index, update], &[out]);
        Ok(())
    }
}
