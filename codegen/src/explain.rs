//! The plan in words, for people: `qailc inspect --plan` and the tests.

use std::fmt::Write;

use qail_artifact::schema::{BindingSource, Manifest, Place, Step, Tensor, step};

use crate::error::op_name;

/// Prints a plan: arenas, tensors, steps with place, kernel and workgroups.
/// Canonical: equal plans print alike.
pub fn explain(manifest: &Manifest) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_manifest(manifest, &mut out);
    out
}

fn write_manifest(manifest: &Manifest, out: &mut String) -> std::fmt::Result {
    writeln!(out, "plan @{}", manifest.name)?;
    for (i, arena) in manifest.arenas.iter().enumerate() {
        writeln!(out, "arena {i}: {} bytes, {}", arena.size, place_name(arena.place()))?;
    }
    for entry in &manifest.entries {
        writeln!(out, "entry {}", entry.name)?;
        for port in &entry.inputs {
            writeln!(out, "  input  {} = {}", port.name, tensor(manifest, port.tensor))?;
        }
        for port in &entry.noise {
            writeln!(out, "  noise  {} = {}", port.name, tensor(manifest, port.tensor))?;
        }
        for state in &entry.states {
            let limit = state.limit.map_or_else(String::new, |limit| format!(", at most {limit}"));
            writeln!(out, "  state  {} = {}{limit}", state.name, tensor(manifest, state.tensor))?;
        }
        write_steps(manifest, &entry.steps, "  ", out)?;
        for port in &entry.outputs {
            writeln!(out, "  output {} = {}", port.name, tensor(manifest, port.tensor))?;
        }
    }
    for section in &manifest.sections {
        writeln!(out, "section {}: {:?}, {} bytes", section.name, section.layout(), section.len)?;
    }
    Ok(())
}

/// Steps of an entry point, or of a turn, behind an indent.
fn write_steps(manifest: &Manifest, steps: &[Step], indent: &str, out: &mut String) -> std::fmt::Result {
    for step in steps {
        if let Some(step::Op::Repeat(repeat)) = &step.op {
            let turn = repeat.turn.map_or_else(String::new, |turn| format!(", turn in {}", tensor(manifest, turn)));
            writeln!(out, "{indent}repeat {} times{turn}", repeat.n)?;
            // The reader bounds how deep repeats are nested.
            write_steps(manifest, &repeat.steps, &format!("{indent}  "), out)?;
            continue;
        }
        let Some(op) = &step.op else { continue };
        let operands = step.operands();
        let reads: Vec<String> = operands.reads.iter().map(|&x| tensor_name(manifest, x)).collect();
        let write = operands.write.map_or_else(String::new, |x| tensor(manifest, x));
        writeln!(
            out,
            "{indent}{:6} {} {write} = {}({})",
            place_name(step.place()),
            step.name,
            op_name(op),
            reads.join(", ")
        )?;
        if let Some(detail) = detail(op) {
            writeln!(out, "{indent}         {detail}")?;
        }
        if let Some(dispatch) = &step.dispatch {
            let kernel = manifest.kernels.get(dispatch.kernel as usize).map_or("?", |kernel| &kernel.name);
            let groups: Vec<String> = dispatch.workgroups.iter().map(u32::to_string).collect();
            let bindings: Vec<String> = dispatch
                .bindings
                .iter()
                .map(|binding| match binding.source {
                    Some(BindingSource::Tensor(i)) => {
                        format!("{}%{}", if binding.write { "*" } else { "" }, tensor_name(manifest, i))
                    }
                    Some(BindingSource::Section(i)) => {
                        manifest.sections.get(i as usize).map_or_else(|| "?".to_owned(), |section| section.name.clone())
                    }
                    None => "?".to_owned(),
                })
                .collect();
            writeln!(out, "{indent}         {kernel} {} ({})", groups.join("x"), bindings.join(", "))?;
        }
    }
    Ok(())
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::Host => "host",
        Place::Device => "device",
    }
}

fn get(manifest: &Manifest, index: u32) -> Option<&Tensor> {
    manifest.tensors.get(index as usize)
}

fn tensor_name(manifest: &Manifest, index: u32) -> String {
    get(manifest, index).map_or_else(|| "?".to_owned(), |tensor| tensor.name.clone())
}

/// Name, storage, shape and place of a tensor.
fn tensor(manifest: &Manifest, index: u32) -> String {
    get(manifest, index).map_or_else(
        || "?".to_owned(),
        |t| format!("{}: {:?}{:?} @{}+{}", t.name, t.storage(), t.shape, t.arena, t.offset),
    )
}

/// What distinguishes steps of one operation.
fn detail(op: &step::Op) -> Option<String> {
    let requantize = |op: &step::Requantize| {
        let table = if op.table.is_some() { " through a table" } else { "" };
        format!("codes in {}..={}, zero {}{table}", op.lo, op.hi, op.zero_point)
    };
    let act = |f: &Option<step::Function>| {
        f.as_ref().map_or_else(String::new, |f| format!(", {:?}", f.kind()).to_lowercase())
    };
    match op {
        step::Op::Quantize(op) => Some(format!("codes in {}..={}, zero {}", op.lo, op.hi, op.zero_point)),
        step::Op::QLinear(op) => {
            let codes = op.requantize.as_ref().map_or_else(|| "accumulators".to_owned(), requantize);
            Some(format!("{} x {} x {}, {codes}", op.rows, op.k, op.n))
        }
        step::Op::QGroups(op) => {
            let codes = op.requantize.as_ref().map_or_else(|| "accumulators".to_owned(), requantize);
            Some(format!("{} x {} x {} in {} groups, {codes}", op.rows, op.k, op.n, op.groups))
        }
        step::Op::Requantize(op) => Some(requantize(&op.requantize)),
        step::Op::Linear(op) => Some(format!("{} x {} x {}{}", op.rows, op.k, op.n, act(&op.act))),
        step::Op::LinearWq(op) => {
            Some(format!("{} x {} x {}, groups of {}{}", op.rows, op.k, op.n, op.group, act(&op.act)))
        }
        step::Op::Unary(op) => Some(format!("{:?}", op.f.kind()).to_lowercase()),
        step::Op::Binary(op) => Some(format!("{:?}", op.f()).to_lowercase()),
        step::Op::Reduce(op) => Some(format!("{:?} of {:?}", op.f(), op.inner).to_lowercase()),
        step::Op::MatMul(op) => Some(format!("{:?} x {} x {} x {}", op.batch, op.m, op.k, op.n)),
        step::Op::Copy(op) => Some(format!("{:?}", op.shape)),
        step::Op::Unfold(op) => Some(format!("{:?} over {:?}", op.shape, op.extents)),
        step::Op::Softmax(op) => Some(format!("{} x {} x {}", op.outer, op.n, op.inner)),
        step::Op::Normalize(op) => Some(format!("rows of {:?}", op.inner)),
        step::Op::Attention(op) => {
            Some(format!("{} x {} heads, {} queries, {} keys of {}", op.batch, op.heads, op.queries, op.keys, op.depth))
        }
        step::Op::Rope(op) => {
            Some(if op.interleaved { "pairs of neighbours" } else { "pairs across halves" }.to_owned())
        }
        step::Op::Compare(op) => Some(format!("{:?}", op.f()).to_lowercase()),
        step::Op::Gather(op) => Some(format!("of {} places", op.extent)),
        step::Op::Scatter(op) => Some(format!("{:?} of {} rows", op.f(), op.extent).to_lowercase()),
        step::Op::Order(op) => Some(format!("{} of {}", op.k, op.n)),
        step::Op::Scan(op) => Some(format!("{} x {} x {}", op.outer, op.n, op.inner)),
        step::Op::Cast(op) => Some(format!("{:?}", op.to()).to_lowercase()),
        step::Op::QAdd(op) => Some(format!("codes in {}..={}, zero {}", op.lo, op.hi, op.zero_point)),
        step::Op::Where(_)
        | step::Op::Film(_)
        | step::Op::Dequantize(_)
        | step::Op::Lookup(_)
        | step::Op::Repeat(_) => None,
    }
}
