//! A quantizer of an activation becomes `quantize`, `requantize` or `lookup`.

use qail_ir::{
    Binary, BinaryFn, Constant, DType, FakeQuant, Graph, Lookup, NodeId, Op, Origin, Quantize, Requantize, TensorType,
    UnaryFn, ValueId, fixed::Multiplier,
};

use super::{Lowering, layer::checked_steps};
use crate::{
    PassContext, PassError,
    quant::{CodeInfo, LoweredRequantize, code, derived_scale, flow},
    rewrite,
};

impl Lowering {
    /// Adds the counterpart of an old quantizer of an activation.
    pub(super) fn lower_quantizer(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        fake: &FakeQuant,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let Some(x) = graph.operands(id).first().copied() else { return Ok(()) };
        let out = code_info(graph, id, fake)?;
        let chain = flow::chain_behind(graph, x);
        let behind_layer = self.layers.contains_key(&chain.source.node);
        if behind_layer && chain.functions.iter().all(|&f| flow::clamps(f)) {
            if let Some(out) = fold_clamps(&chain.functions, &out) {
                return self.requantize(graph, id, chain, out);
            }
            cx.declined(graph, id, "the functions in front leave one code; it is quantized on the host");
        }
        let behind_codes = self.codes.get(&chain.source).cloned();
        if let Some((codes, info)) = behind_codes {
            if chain.functions.is_empty() && info == out {
                self.codes.insert(id.value(), (codes, info));
                return Ok(());
            }
            if info.scheme.bits == 8 && chain.functions.iter().all(|&f| flow::fits_a_table(f)) {
                return self.lookup(graph, id, &chain.functions, (codes, info), out);
            }
        }
        self.quantize(graph, id, x, out)
    }

    /// Behind a layer.
    fn requantize(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        chain: flow::Chain,
        out: CodeInfo,
    ) -> Result<(), PassError> {
        let missing = || PassError::Internal { node: graph.node(id).name.clone(), invariant: "the layer was lowered" };
        let layer = self.layers.get_mut(&chain.source.node).ok_or_else(missing)?;
        let mut multipliers = Vec::with_capacity(layer.exit_scales.len());
        for (channel, scale) in layer.exit_scales.iter().enumerate() {
            let factor = scale / out.step;
            let found = Multiplier::nearest(factor);
            let node = || layer.report.name.clone();
            multipliers.push(found.ok_or_else(|| PassError::Multiplier { node: node(), channel, factor })?);
        }
        let i32s = |parts: Vec<i64>| Constant::ints(TensorType::plain(DType::I32, [parts.len()]), &parts);
        let m = i32s(multipliers.iter().map(|multiplier| i64::from(multiplier.m())).collect());
        let shift = i32s(multipliers.iter().map(|multiplier| i64::from(multiplier.shift())).collect());
        let name = graph.node(id).name.clone();
        let m = graph.add_const(format!("{name}.m"), m, Origin::default());
        let shift = graph.add_const(format!("{name}.shift"), shift, Origin::default());
        let op = Requantize { scheme: out.scheme, lo: out.lo, hi: out.hi, zero_point: out.zero_point };
        let codes = add_in_place(graph, id, Op::Requantize(op), &[layer.acc, m, shift])?;
        let s_in = layer.report.input_codes.step;
        layer.report.requantizes.push(LoweredRequantize {
            node: name,
            out: out.clone(),
            folded: chain.functions,
            derived_scales: multipliers.iter().map(|&multiplier| derived_scale(multiplier, out.step, s_in)).collect(),
        });
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Behind 8-bit codes.
    fn lookup(
        &mut self,
        graph: &mut Graph,
        id: NodeId,
        functions: &[UnaryFn],
        (x, info): (ValueId, CodeInfo),
        out: CodeInfo,
    ) -> Result<(), PassError> {
        let first = info.scheme.lo();
        let entry = |code_in: i32| {
            let x = f64::from(code_in - info.zero_point) * info.step;
            let y = functions.iter().fold(x, |y, f| f.eval_f64(y));
            code(y, out.step, out.zero_point, out.lo, out.hi)
        };
        let table: Vec<i64> = (first..first + 256).map(|code_in| i64::from(entry(code_in))).collect();
        let reached = || (info.lo..=info.hi).map(entry);
        let out = CodeInfo { lo: reached().min().unwrap_or(out.lo), hi: reached().max().unwrap_or(out.hi), ..out };
        let name = graph.node(id).name.clone();
        let table = Constant::ints(TensorType::code(out.scheme, [256]), &table);
        let table = graph.add_const(format!("{name}.table"), table, Origin::default());
        let codes = add_in_place(graph, id, Op::Lookup(Lookup), &[x, table])?;
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }

    /// Behind floats.
    fn quantize(&mut self, graph: &mut Graph, id: NodeId, x: ValueId, out: CodeInfo) -> Result<(), PassError> {
        let name = graph.node(id).name.clone();
        let (x, factors) = match scaled_by(graph, x)? {
            // `fold-entry-steps` put the factors there.
            Some((inner, factors)) if out.step == 1.0 => (inner, Constant::f32([factors.len()], &factors)),
            _ => (x, Constant::f32([], &[(1.0 / out.step) as f32])),
        };
        let factors = graph.add_const(format!("{name}.r"), factors, Origin::default());
        let op = Quantize { scheme: out.scheme, lo: out.lo, hi: out.hi, zero_point: out.zero_point };
        let codes = add_in_place(graph, id, Op::Quantize(op), &[x, factors])?;
        self.codes.insert(id.value(), (codes, out));
        Ok(())
    }
}

/// Adds a node that takes the name and the origin of an old one, which stays.
fn add_in_place(graph: &mut Graph, old: NodeId, op: Op, operands: &[ValueId]) -> Result<ValueId, PassError> {
    let node = graph.node(old).clone();
    let new = rewrite::add(graph, &node.name, op, operands, node.origin)?;
    graph.rename(old, format!("{}.old", node.name));
    graph.rename(new.node, node.name);
    Ok(new)
}

/// How the codes of a quantizer read.
fn code_info(graph: &Graph, id: NodeId, fake: &FakeQuant) -> Result<CodeInfo, PassError> {
    let unsupported =
        |reason: &str| PassError::Unsupported { node: graph.node(id).name.clone(), reason: reason.to_owned() };
    let (scale, zero_point) = match graph.operands(id)[..] {
        [_, scale] => (scale, 0.0),
        [_, scale, z] => {
            let z = rewrite::const_f64(graph, z)?.and_then(|z| z.first().copied());
            (scale, z.ok_or_else(|| unsupported("its zero point is computed, not constant"))?)
        }
        _ => return Err(unsupported("it has neither two nor three operands")),
    };
    if !(f64::from(fake.scheme.lo())..=f64::from(fake.scheme.hi())).contains(&zero_point) {
        return Err(unsupported("its zero point is not one of its codes"));
    }
    match checked_steps(graph, id, scale)?[..] {
        [step] if fake.axis.is_none() => Ok(CodeInfo {
            scheme: fake.scheme,
            step: f64::from(step),
            zero_point: zero_point as i32,
            lo: fake.lo,
            hi: fake.hi,
        }),
        _ => Err(unsupported("it has one step a feature; run `fold-entry-steps` first, or use one step")),
    }
}

/// The range of codes behind functions that clamp; `None` if one code is left.
fn fold_clamps(functions: &[UnaryFn], out: &CodeInfo) -> Option<CodeInfo> {
    let code = |x: f32| (f64::from(x) / out.step).round_ties_even() + f64::from(out.zero_point);
    let mut range = (f64::NEG_INFINITY, f64::INFINITY);
    let bounds = functions.iter().map(|f| match f {
        UnaryFn::Relu => (code(0.0), f64::INFINITY),
        UnaryFn::Clip { min, max } => (code(*min), code(*max)),
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    });
    for (lo, hi) in bounds.chain([(f64::from(out.lo), f64::from(out.hi))]) {
        // As the function does it: first the lower bound, then the upper one.
        range = (range.0.max(lo).min(hi), range.1.max(lo).min(hi));
    }
    (range.0 < range.1).then(|| CodeInfo { lo: range.0 as i32, hi: range.1 as i32, ..out.clone() })
}

/// The operand and the factors, if the value is `x * factors` with one constant
/// factor a feature.
fn scaled_by(graph: &Graph, value: ValueId) -> Result<Option<(ValueId, Vec<f32>)>, PassError> {
    let Op::Binary(Binary { f: BinaryFn::Mul }) = graph.op(value) else { return Ok(None) };
    let [x, factors] = graph.operands(value.node)[..] else { return Ok(None) };
    let Some(&n) = graph.ty(x).shape.last() else { return Ok(None) };
    if graph.ty(x) != graph.ty(value) || graph.const_of(factors).is_none() {
        return Ok(None);
    }
    let factors = rewrite::per_feature(graph, factors, n)?;
    Ok(factors.map(|factors| (x, factors.into_iter().map(|factor| factor as f32).collect())))
}
