//! Selection of the integer operations.
//!
//! `qlinear`, `requantize` and `lookup` become one step where nobody else reads
//! the values between them; otherwise the accumulators are stored and each
//! reader requantizes them. Codes are stored as the file wants them: unsigned
//! 8-bit codes less 128, which the bias makes up for with `128 * sum(w)`, and
//! tables with bytes of the stored form. The bound of every accumulator is proven
//! here once more, from the codes that are really stored.

use std::collections::BTreeMap;

use qail_artifact::{
    pack,
    schema::{Layout, Place, Storage, step},
};
use qail_ir::{Graph, NodeId, Op, QuantScheme, ValueId, fixed::Multiplier};

use super::{
    builder::{Builder, Source, rows},
    movement::shape_of,
};
use crate::CodegenError;

/// Which nodes a step takes along.
pub(crate) struct Fusions {
    /// For a `qlinear`: the `requantize` behind it. For a `requantize`: itself.
    requantize: BTreeMap<NodeId, NodeId>,
    /// For a `requantize`: the `lookup` behind it.
    lookup: BTreeMap<NodeId, NodeId>,
    /// `requantize` nodes that are part of a `qlinear` step, or that only
    /// lookups read, and `lookup` nodes that are part of another step.
    absorbed: std::collections::BTreeSet<NodeId>,
}

impl Fusions {
    /// Decides for a whole graph.
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut fusions =
            Self { requantize: BTreeMap::new(), lookup: BTreeMap::new(), absorbed: std::collections::BTreeSet::new() };
        for node in graph.topo() {
            if let Op::Requantize(_) = graph.node(node).op {
                fusions.decide(graph, node);
            }
        }
        fusions
    }

    fn decide(&mut self, graph: &Graph, node: NodeId) {
        let is_lookup = |user: &NodeId| matches!(graph.node(*user).op, Op::Lookup(_));
        let users: Vec<NodeId> = graph.users(node.value()).into_iter().map(|(user, _)| user).collect();
        let n_lookups = users.iter().filter(|user| is_lookup(user)).count();
        if let Some(lookup) = graph.sole_user(node.value()).filter(is_lookup) {
            self.lookup.insert(node, lookup);
            self.absorbed.insert(lookup);
        } else if n_lookups > 0 {
            // Every lookup requantizes the accumulators itself.
            if n_lookups == users.len() && !graph.is_output(node.value()) {
                self.absorbed.insert(node);
            }
            return;
        }
        let operands = graph.operands(node);
        let Some(acc) = operands.first() else { return };
        if graph.sole_user(*acc) == Some(node) && matches!(graph.op(*acc), Op::QLinear(_)) {
            self.requantize.insert(acc.node, node);
            self.absorbed.insert(node);
        }
    }
}

impl Builder<'_> {
    /// Entry of a quantized region, on the host.
    pub(crate) fn quantize(&mut self, node: NodeId, op: &qail_ir::Quantize) -> Result<(), CodegenError> {
        let [x, factor] = self.operands(node)?;
        let x = self.tensor_of(node, x, Place::Host)?;
        let factor = self.f32_section(node, factor, "factor")?;
        let out = self.result(node)?;
        let step = step::Quantize { x, out, factor, lo: op.lo, hi: op.hi, zero_point: op.zero_point };
        self.push(node, Place::Host, step::Op::Quantize(step));
        Ok(())
    }

    /// Exit of a quantized region, on the host.
    pub(crate) fn dequantize(&mut self, node: NodeId, op: &qail_ir::Dequantize) -> Result<(), CodegenError> {
        let [x, scale] = self.operands(node)?;
        let constant = self.constant(node, scale, "scale")?;
        let scales = constant.all().map_err(|source| CodegenError::Const { node: self.name(node), source })?;
        let x = self.tensor_of(node, x, Place::Host)?;
        let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let scale = self.section(&format!("{}.scale", self.name(node)), Layout::F64, bytes)?;
        let out = self.result(node)?;
        let step = step::Dequantize { x, out, scale, zero_point: op.zero_point };
        self.push(node, Place::Host, step::Op::Dequantize(step));
        Ok(())
    }

    /// Integer matrix product, with what follows it.
    pub(crate) fn qlinear(&mut self, node: NodeId, groups: usize, fusions: &Fusions) -> Result<(), CodegenError> {
        let [x_value, w_value, b_value] = self.operands(node)?;
        let w = self.constant(node, w_value, "weight")?;
        let &[k, n] = &w.ty.shape[..] else {
            return Err(self.unsupported(node, format!("weights of type {}", w.ty)));
        };
        let codes = self.weight_codes(node, w_value)?;
        let bias = self.read_int(node, self.constant(node, b_value, "bias")?)?;
        let (lo, hi) = code_range(self.graph, x_value);
        let x = self.tensor_of(node, x_value, Place::Device)?;
        let (storage, offset) = (self.entry(x)?.storage(), i64::from(self.entry(x)?.code_offset));
        if storage == Storage::I16 && hi > 32639 {
            return Err(CodegenError::BadValue {
                node: self.name(node),
                what: "largest code of a 16-bit input",
                found: hi.to_string(),
                accepted: "at most 32639, so that two byte planes hold it",
            });
        }
        let largest = (i64::from(lo) - offset).abs().max((i64::from(hi) - offset).abs());

        let mut sums = vec![(0i64, 0i64); n];
        for row in codes.chunks_exact(n.max(1)) {
            for ((sum, size), &code) in sums.iter_mut().zip(row) {
                *sum += i64::from(code);
                *size += i64::from(code).abs();
            }
        }
        let mut stored_bias = Vec::with_capacity(n);
        for (channel, ((sum, size), b)) in sums.iter().zip(&bias).enumerate() {
            let b = sum.saturating_mul(offset).saturating_add(*b);
            let bound = size.saturating_mul(largest).saturating_add(b.saturating_abs());
            if bound > i64::from(i32::MAX) {
                return Err(CodegenError::Overflow { node: self.name(node), channel, bound });
            }
            stored_bias.push(b);
        }

        let weight = match groups {
            1 => self.weight_section(node, w_value, &codes, k, n)?,
            _ => self.group_section(node, &codes, n)?,
        };
        let bias = self.i32_section(node, "bias", &stored_bias)?;
        let (result, requantize) = match fusions.requantize.get(&node) {
            None => (node, None),
            Some(&requantize) => self.requantization(requantize, fusions.lookup.get(&requantize).copied())?,
        };
        let out = self.result(result)?;
        let rows = rows(&self.entry(out)?.shape);
        let (k, n, groups) = (k as u64, n as u64, groups as u64);
        let op = match groups {
            1 => step::Op::QLinear(step::QLinear { x, out, weight, bias, k, n, rows, requantize }),
            _ => step::Op::QGroups(step::QGroups { x, out, weight, bias, k, n, rows, requantize, groups }),
        };
        self.push(node, Place::Device, op);
        Ok(())
    }

    /// Weights of groups of channels: the few codes of a channel one after the other.
    fn group_section(&mut self, node: NodeId, codes: &[i8], n: usize) -> Result<u32, CodegenError> {
        let mut bytes = Vec::with_capacity(codes.len());
        for channel in 0..n {
            bytes.extend(codes.iter().skip(channel).step_by(n.max(1)).map(|&code| code as u8));
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.section(&format!("{}.weight", self.name(node)), Layout::I8, bytes)
    }

    /// A requantization that is not part of a matrix product.
    pub(crate) fn requantize(&mut self, node: NodeId, fusions: &Fusions) -> Result<(), CodegenError> {
        if fusions.absorbed.contains(&node) {
            return Ok(());
        }
        self.standalone(node, fusions.lookup.get(&node).copied())
    }

    /// A table that is not part of another step.
    pub(crate) fn lookup(&mut self, node: NodeId, fusions: &Fusions) -> Result<(), CodegenError> {
        if fusions.absorbed.contains(&node) {
            return Ok(());
        }
        let [x, _] = self.operands(node)?;
        if matches!(self.graph.op(x), Op::Requantize(_)) {
            return self.standalone(x.node, Some(node));
        }
        let shape = shape_of(self, node.value());
        let x = self.broadcast(node, x, Place::Device, &shape)?;
        let table = self.table(node)?;
        let out = self.result(node)?;
        self.push(node, Place::Device, step::Op::Lookup(step::Lookup { x, out, table }));
        Ok(())
    }

    /// The stored bytes of the table of a `lookup`.
    fn table(&mut self, lookup: NodeId) -> Result<u32, CodegenError> {
        let [_, table] = self.operands(lookup)?;
        let table = self.constant(lookup, table, "table")?;
        let offset = match table.ty.scheme() {
            Some(scheme) if scheme.bits <= 8 => i64::from(!scheme.signed && scheme.bits == 8) * 128,
            Some(_) | None => return Err(self.unsupported(lookup, format!("a table of type {}", table.ty))),
        };
        let codes = self.read_int(lookup, table)?;
        let bytes: Vec<u8> = codes.iter().map(|code| ((code - offset) as i8).to_le_bytes()[0]).collect();
        let name = format!("{}.table", self.name(lookup));
        self.section(&name, Layout::I8, bytes)
    }

    fn standalone(&mut self, node: NodeId, lookup: Option<NodeId>) -> Result<(), CodegenError> {
        let [acc, ..] = self.operands::<3>(node)?;
        let x = self.tensor_of(node, acc, Place::Device)?;
        let (result, requantize) = self.requantization(node, lookup)?;
        let out = self.result(result)?;
        let requantize = requantize.ok_or_else(|| CodegenError::internal("a requantize node has a requantization"))?;
        self.push(result, Place::Device, step::Op::Requantize(step::RequantizeStep { x, out, requantize }));
        Ok(())
    }

    /// The parameters of a `requantize` node and perhaps a table behind it, and
    /// the node whose result that is.
    fn requantization(
        &mut self,
        node: NodeId,
        lookup: Option<NodeId>,
    ) -> Result<(NodeId, Option<step::Requantize>), CodegenError> {
        let [_, m_value, shift_value] = self.operands(node)?;
        let Op::Requantize(op) = &self.graph.node(node).op else {
            return Err(CodegenError::internal("a fusion names a requantize node"));
        };
        let m = self.read_int(node, self.constant(node, m_value, "multiplier")?)?;
        let shift = self.read_int(node, self.constant(node, shift_value, "shift")?)?;
        for (&m, &shift) in m.iter().zip(&shift) {
            let parts = u32::try_from(m).ok().zip(u32::try_from(shift).ok());
            if parts.and_then(|(m, shift)| Multiplier::new(m, shift)).is_none() {
                return Err(CodegenError::BadValue {
                    node: self.name(node),
                    what: "multiplier",
                    found: format!("{m} * 2^-{shift}"),
                    accepted: "an odd mantissa in 2^15 .. 2^16 and a shift of 1 to 62",
                });
            }
        }
        if op.scheme.bits > 8 {
            return Err(self.unsupported(node, format!("a result of type {}; 2 to 8 bits are accepted", op.scheme)));
        }
        let (lo, hi, zero_point, table_lo) = (op.lo, op.hi, op.zero_point, op.scheme.lo());
        let m = self.i32_section(node, "multiplier", &m)?;
        let shift = self.i32_section(node, "shift", &shift)?;
        let mut result = step::Requantize { m, shift, lo, hi, zero_point, table: None, table_lo: 0 };
        let Some(lookup) = lookup else { return Ok((node, Some(result))) };
        result.table = Some(self.table(lookup)?);
        result.table_lo = table_lo;
        Ok((lookup, Some(result)))
    }

    /// Codes of a constant weight matrix as signed bytes, row-major.
    pub(crate) fn weight_codes(&self, node: NodeId, w: ValueId) -> Result<Vec<i8>, CodegenError> {
        let codes = self.read_int(node, self.constant(node, w, "weight")?)?;
        let narrow: Option<Vec<i8>> = codes.iter().map(|&code| i8::try_from(code).ok()).collect();
        narrow.ok_or_else(|| CodegenError::BadValue {
            node: self.name(node),
            what: "a weight code",
            found: codes.iter().find(|code| i8::try_from(**code).is_err()).copied().unwrap_or(0).to_string(),
            accepted: "-128 to 127",
        })
    }

    /// Packs a weight matrix, see [`weight_layout`].
    pub(crate) fn weight_section(
        &mut self,
        node: NodeId,
        w: ValueId,
        codes: &[i8],
        k: usize,
        n: usize,
    ) -> Result<u32, CodegenError> {
        let layout = self.graph.ty(w).scheme().map_or(Layout::W8Tile8x16, weight_layout);
        let bytes = pack::pack_codes(layout, codes, k, n)
            .map_err(|error| CodegenError::Pack { node: self.name(node), reason: error.to_string() })?;
        let name = format!("{}.weight", self.name(node));
        self.section(&name, layout, bytes)
    }

    /// The operands of a node, whose number the type checker has checked.
    pub(crate) fn operands<const N: usize>(&self, node: NodeId) -> Result<[ValueId; N], CodegenError> {
        self.graph
            .operands(node)
            .try_into()
            .map_err(|_| CodegenError::internal(format!("a node of the graph has {N} operands")))
    }

    /// Another name for a value, in memory that is laid out alike.
    pub(crate) fn alias(&mut self, node: NodeId, source: Source) {
        self.define(node.value(), source);
    }
}

/// Nibbles for weights that have a sign and fit, else bytes.
pub(crate) fn weight_layout(scheme: QuantScheme) -> Layout {
    if scheme.signed && scheme.bits <= 4 { Layout::W4Tile8x32 } else { Layout::W8Tile8x16 }
}

/// Smallest and largest code that a value can have.
pub(crate) fn code_range(graph: &Graph, value: ValueId) -> (i32, i32) {
    let whole = || graph.ty(value).scheme().map_or((i32::MIN, i32::MAX), |scheme| (scheme.lo(), scheme.hi()));
    match graph.op(value) {
        Op::Quantize(op) => (op.lo, op.hi),
        Op::Requantize(op) => (op.lo, op.hi),
        Op::QAdd(op) => (op.lo, op.hi),
        // Extremes are codes of the operand, and an index reads nothing else.
        Op::Gather(_) | Op::Reduce(_) => {
            graph.operands(value.node).first().map_or_else(whole, |&x| code_range(graph, x))
        }
        Op::Unfold(op) => {
            let fill = op.fill as i32;
            let inside = graph.operands(value.node).first().map_or_else(whole, |&x| code_range(graph, x));
            (inside.0.min(fill), inside.1.max(fill))
        }
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Concat(_) => graph
            .operands(value.node)
            .into_iter()
            .map(|operand| code_range(graph, operand))
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
            .unwrap_or_else(whole),
        Op::Lookup(_)
        | Op::Input(_)
        | Op::Const(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::MatMul(_)
        | Op::Linear(_)
        | Op::Cast(_)
        | Op::Compare(_)
        | Op::Where(_)
        | Op::Scatter(_)
        | Op::ArgReduce(_)
        | Op::TopK(_)
        | Op::CumSum(_)
        | Op::Softmax(_)
        | Op::Normalize(_)
        | Op::Attention(_)
        | Op::Rope(_)
        | Op::Film(_)
        | Op::QSum(_)
        | Op::FakeQuant(_)
        | Op::QLinear(_)
        | Op::Dequantize(_)
        | Op::LinearWq(_)
        | Op::Grad(_) => whole(),
    }
}
