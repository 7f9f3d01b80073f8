//! Selection of the operations that compare, choose and look up, of computed
//! integers, and of sums of codes.
//!
//! Computed integers and truth values are `i32` tensors, whatever their type in
//! the graph is. Inputs keep the type that the caller knows; the first step that
//! computes with one converts it on the host, and a number beyond 32 bits is an
//! error of the run.

use qail_artifact::schema::{Layout, Place, Storage, step};
use qail_ir::{
    ArgReduce, CumSum, DType, Elem, Gather, NodeId, QAdd, QSum, ScatterFn, TensorType, TopK, TopKPart, ValueId,
};

use super::{
    builder::{Builder, Source},
    function,
    movement::shape_of,
    rows::around,
    section::{Form, SectionBytes},
};
use crate::CodegenError;

/// Smallest and largest integer of a type, if it holds integers.
pub(crate) fn int_range(ty: &TensorType) -> Option<step::IntRange> {
    let (lo, hi) = match ty.elem {
        Elem::Plain(DType::Bool) => (0, 1),
        Elem::Plain(DType::U8) => (0, 255),
        Elem::Plain(DType::I32 | DType::I64) => (i32::MIN, i32::MAX),
        Elem::Plain(DType::F32 | DType::F64) | Elem::Code(_) => return None,
    };
    Some(step::IntRange { lo, hi })
}

/// Which elements of a row, and what of them.
struct Order {
    k: u64,
    largest: bool,
    last: bool,
    indices: bool,
}

impl Builder<'_> {
    /// An operand that numbers are computed from: `f32` or `i32`.
    pub(crate) fn number(
        &mut self,
        reader: NodeId,
        value: ValueId,
        place: Place,
        shape: &[u64],
    ) -> Result<step::Operand, CodegenError> {
        self.widened(reader, value, place)?;
        self.broadcast(reader, value, place, shape)
    }

    /// The tensor of a value that numbers are computed from.
    pub(crate) fn number_tensor(&mut self, reader: NodeId, value: ValueId, place: Place) -> Result<u32, CodegenError> {
        self.widened(reader, value, place)?;
        self.tensor_of(reader, value, place)
    }

    /// Converts an input of bytes or 64-bit integers, once.
    pub(crate) fn widened(&mut self, reader: NodeId, value: ValueId, place: Place) -> Result<(), CodegenError> {
        let Source::Tensor(x) = self.source(reader, value, place)? else { return Ok(()) };
        if !matches!(self.entry(x)?.storage(), Storage::U8 | Storage::I64) {
            return Ok(());
        }
        let name = format!("{}.i32", self.name(value.node));
        let graph = self.graph;
        let out = self.tensor_as(reader, &name, graph.ty(value), Some(Storage::I32))?;
        let cast = step::Cast { x, out, to: step::CastKind::Same.into() };
        self.push_named(name, Place::Host, step::Op::Cast(cast));
        self.define(value, Source::Tensor(out));
        Ok(())
    }

    /// A comparison.
    pub(crate) fn compare(&mut self, node: NodeId, f: qail_ir::CompareFn, place: Place) -> Result<(), CodegenError> {
        let [a, b] = self.operands(node)?;
        let shape = shape_of(self, node.value());
        let (a, b) = (self.number(node, a, place, &shape)?, self.number(node, b, place, &shape)?);
        let out = self.result(node)?;
        self.push(node, place, step::Op::Compare(step::Compare { a, b, out, f: function::compare(f).into() }));
        Ok(())
    }

    /// One of two values.
    pub(crate) fn choose(&mut self, node: NodeId, place: Place) -> Result<(), CodegenError> {
        let [truth, a, b] = self.operands(node)?;
        let shape = shape_of(self, node.value());
        let truth = self.number(node, truth, place, &shape)?;
        let (a, b) = (self.number(node, a, place, &shape)?, self.number(node, b, place, &shape)?);
        let out = self.result(node)?;
        self.push(node, place, step::Op::Where(step::Where { truth, a, b, out }));
        Ok(())
    }

    /// Parts by computed index.
    pub(crate) fn gather(&mut self, node: NodeId, op: &Gather, place: Place) -> Result<(), CodegenError> {
        let [x_value, index_value] = self.operands(node)?;
        if place == Place::Device {
            self.widened(node, x_value, place)?;
        }
        self.widened(node, index_value, place)?;
        let mut x = self.operand(node, x_value, place)?;
        let mut index = self.operand(node, index_value, place)?;
        let extent = shape_of(self, x_value).get(op.axis).copied().unwrap_or(1);
        let along = x.strides.get(op.axis).copied().unwrap_or(0);
        let n_behind = x.strides.len().saturating_sub(op.axis + 1);
        // Axes of the result: those before, those of the index, those behind.
        let n_index = index.strides.len();
        let behind = x.strides.split_off(op.axis.saturating_add(1).min(x.strides.len()));
        x.strides.truncate(op.axis);
        x.strides.extend(std::iter::repeat_n(0, n_index));
        x.strides.extend(behind);
        let mut index_strides = vec![0; op.axis];
        index_strides.append(&mut index.strides);
        index_strides.extend(std::iter::repeat_n(0, n_behind));
        index.strides = index_strides;
        let out = self.moved(node, &x)?;
        self.push(node, place, step::Op::Gather(step::Gather { x, index, out, extent, along }));
        Ok(())
    }

    /// A copy with some rows changed.
    pub(crate) fn scatter(&mut self, node: NodeId, f: ScatterFn, place: Place) -> Result<(), CodegenError> {
        let [x, index, update] = self.operands(node)?;
        let (_, extent, row) = around(&shape_of(self, x), 0);
        let range = int_range(self.graph.ty(x));
        let x = self.number_tensor(node, x, place)?;
        let index = self.number_tensor(node, index, place)?;
        let update = self.number_tensor(node, update, place)?;
        let out = self.result(node)?;
        let f = function::scatter(f).into();
        self.push(node, place, step::Op::Scatter(step::Scatter { x, index, update, out, extent, row, f, range }));
        Ok(())
    }

    /// The index of the extreme element.
    pub(crate) fn arg_reduce(&mut self, node: NodeId, op: &ArgReduce, place: Place) -> Result<(), CodegenError> {
        let (k, largest, last) = (1, op.largest, op.last);
        self.order(node, op.axis, place, Order { k, largest, last, indices: true })
    }

    /// The extreme elements or their indices.
    pub(crate) fn top_k(&mut self, node: NodeId, op: &TopK, place: Place) -> Result<(), CodegenError> {
        let (k, largest, indices) = (op.k as u64, op.largest, op.part == TopKPart::Indices);
        self.order(node, op.axis, place, Order { k, largest, last: false, indices })
    }

    fn order(&mut self, node: NodeId, axis: usize, place: Place, order: Order) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let (outer, n, inner) = around(&shape_of(self, x), axis);
        let x = self.number_tensor(node, x, place)?;
        let out = self.result(node)?;
        let Order { k, largest, last, indices } = order;
        let step = step::Order { x, out, outer, n, inner, k, largest, last, indices };
        self.push(node, place, step::Op::Order(step));
        Ok(())
    }

    /// Running sums.
    pub(crate) fn cum_sum(&mut self, node: NodeId, op: &CumSum, place: Place) -> Result<(), CodegenError> {
        let [x] = self.operands(node)?;
        let (outer, n, inner) = around(&shape_of(self, x), op.axis);
        let range = int_range(self.graph.ty(x));
        let x = self.number_tensor(node, x, place)?;
        let out = self.result(node)?;
        let (exclusive, reverse) = (op.exclusive, op.reverse);
        self.push(node, place, step::Op::Scan(step::Scan { x, out, outer, n, inner, exclusive, reverse, range }));
        Ok(())
    }

    /// A cast between plain types; all but those between floats on the host.
    pub(crate) fn cast(&mut self, node: NodeId, place: Place) -> Result<(), CodegenError> {
        let [x_value] = self.operands(node)?;
        let (from, to) = (self.graph.ty(x_value), self.graph.ty(node.value()));
        let (Some(from), Some(to)) = (from.dtype(), to.dtype()) else {
            return Err(CodegenError::internal("a cast is between plain types"));
        };
        if from == DType::F64 || to == DType::F64 {
            return Err(
                self.unsupported(node, format!("from {from} to {to}; casts between f32 and integers are accepted"))
            );
        }
        let x = self.tensor_of(node, x_value, place)?;
        let to = match to {
            DType::F32 | DType::F64 => {
                let out = self.result(node)?;
                self.push(node, place, step::Op::Unary(step::Unary { x, out, f: function::IDENTITY }));
                return Ok(());
            }
            DType::Bool => step::CastKind::Bool,
            DType::U8 => step::CastKind::U8,
            DType::I32 => step::CastKind::I32,
            DType::I64 => step::CastKind::I64,
        };
        let out = self.result(node)?;
        self.push(node, Place::Host, step::Op::Cast(step::Cast { x, out, to: to.into() }));
        Ok(())
    }

    /// Sum of codes, or of accumulators and codes.
    pub(crate) fn q_add(&mut self, node: NodeId, op: &QAdd, place: Place) -> Result<(), CodegenError> {
        let graph = self.graph;
        let operands = graph.operands(node);
        let &[a, b, m_a, m_b, shift] = &operands[..] else {
            return Err(CodegenError::internal("a sum of codes has five operands"));
        };
        let read = |builder: &Self, value, what| builder.read_int(node, builder.constant(node, value, what)?);
        let (m_a, m_b, shift) = (read(self, m_a, "m_a")?, read(self, m_b, "m_b")?, read(self, shift, "shift")?);
        let bad = |builder: &Self, what: &'static str, found: i64, accepted: &'static str| CodegenError::BadValue {
            node: builder.name(node),
            what,
            found: found.to_string(),
            accepted,
        };
        if let Some(&m) = m_a.iter().chain(&m_b).find(|&&m| m <= 0 || i32::try_from(m).is_err()) {
            return Err(bad(self, "multiplier", m, "1 to 2^31 - 1"));
        }
        let (Some(&m_b), Some(&shift)) = (m_b.first(), shift.first()) else {
            return Err(CodegenError::internal("a multiplier has an element"));
        };
        if !(1..=62).contains(&shift) {
            return Err(bad(self, "shift", shift, "1 to 62"));
        }
        let shape = shape_of(self, node.value());
        let (a, b) = (self.broadcast(node, a, place, &shape)?, self.broadcast(node, b, place, &shape)?);
        let m_a = self.i32_section(node, "m_a", &m_a)?;
        let out = self.result(node)?;
        let step = step::QAdd {
            a,
            b,
            out,
            m_a,
            m_b: i32::try_from(m_b).unwrap_or(i32::MAX),
            shift: u32::try_from(shift).unwrap_or(0),
            zero_a: op.zero_a,
            zero_b: op.zero_b,
            zero_point: op.zero_point,
            lo: op.lo,
            hi: op.hi,
        };
        self.push(node, place, step::Op::QAdd(step));
        Ok(())
    }

    /// Sum of codes over axes.
    pub(crate) fn q_sum(&mut self, node: NodeId, op: &QSum, place: Place) -> Result<(), CodegenError> {
        let reduce = qail_ir::Reduce { f: qail_ir::ReduceFn::Sum, axes: op.axes.clone(), keep_dims: op.keep_dims };
        self.reduction(node, &reduce, op.zero_point, place)
    }

    /// An `f32` or, for integers, `i32` section with the elements of a constant.
    pub(crate) fn number_section(&mut self, reader: NodeId, value: ValueId) -> Result<u32, CodegenError> {
        let constant = self.constant(reader, value, "operand")?;
        let name = self.name(value.node);
        match constant.ty.dtype() {
            Some(DType::F32) => {
                let bytes = SectionBytes::of(constant, Form::Floats, &self.name(reader))?;
                self.section(&name, Layout::F32, bytes)
            }
            Some(DType::Bool | DType::U8 | DType::I32 | DType::I64) => {
                let elements = self.read_int(reader, constant)?;
                let mut bytes = Vec::with_capacity(elements.len().saturating_mul(4));
                for &x in &elements {
                    let x = i32::try_from(x).map_err(|_| CodegenError::BadValue {
                        node: name.clone(),
                        what: "an element of a constant",
                        found: x.to_string(),
                        accepted: "32-bit integers",
                    })?;
                    bytes.extend(x.to_le_bytes());
                }
                self.section(&name, Layout::I32, bytes)
            }
            Some(DType::F64) | None => {
                let found = constant.ty.to_string();
                Err(self.unsupported(
                    reader,
                    format!("a constant of type {found} as an operand; f32 and integers are accepted"),
                ))
            }
        }
    }
}
