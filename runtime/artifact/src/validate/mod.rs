//! Checks a manifest against its file, once, when it is loaded.
//!
//! What holds afterwards, so that executors need not look again:
//! - every index names something, every enumeration has a known value;
//! - tensors lie inside their arenas, and what a step reads or writes lies
//!   inside its tensors and sections, at every index it can compute;
//! - sections are as long as the steps that read them say;
//! - a step does not read the memory that it writes, and no tensor is read that
//!   nothing has written;
//! - the action is an output, and its chunks are as long as the file says;
//! - integer products stay inside an `i32` and requantizations inside an `i64`.

mod control;
mod float;
mod integer;
mod rows;
mod select;
mod strided;
mod tensor;
mod window;

use std::collections::BTreeSet;

use crate::{
    Artifact, ArtifactError,
    schema::{BindingSource, EntryPoint, Layout, Manifest, Place, Port, REPEAT_FEATURE, Step, Storage, step},
};
use tensor::TensorInfo;

/// Most turns of all nested repeats together, times the steps of the innermost.
pub const MAX_TURNS: u64 = 1 << 20;
/// Deepest nesting of repeats.
const MAX_DEPTH: u32 = 4;

type Check = Result<(), ArtifactError>;

/// Checks everything that `Artifact::parse` has not.
pub(crate) fn check(artifact: &Artifact<'_>) -> Check {
    let manifest = artifact.manifest();
    let tensors = tensor::check(manifest)?;
    check_sections(artifact)?;
    for kernel in &manifest.kernels {
        let layout = manifest.sections.get(kernel.section as usize).map(|section| section.layout());
        if layout != Some(Layout::Wgsl) || kernel.entry.is_empty() {
            return Err(ArtifactError::invalid(
                format!("kernel `{}`", kernel.name),
                "names no text with an entry point",
            ));
        }
    }
    let mut names = BTreeSet::new();
    for entry in &manifest.entries {
        if !names.insert(entry.name.as_str()) {
            return Err(ArtifactError::invalid(format!("entry point `{}`", entry.name), "the name appears twice"));
        }
        EntryCheck::new(artifact, &tensors, entry)?.run()?;
    }
    control::check(manifest, &tensors)
}

/// Sections whose layout alone says something about their bytes.
fn check_sections(artifact: &Artifact<'_>) -> Check {
    for (section, index) in artifact.manifest().sections.iter().zip(0..) {
        let item = || format!("section `{}`", section.name);
        let layout = Layout::try_from(section.layout)
            .map_err(|_| ArtifactError::invalid(item(), format!("unknown layout {}", section.layout)))?;
        let unit = match layout {
            Layout::Unspecified => return Err(ArtifactError::invalid(item(), "has no layout")),
            Layout::F32 | Layout::I32 | Layout::F32Rows8 => 4,
            Layout::F64 => 8,
            Layout::W8Tile8x16 | Layout::W4Tile8x32 => 16,
            Layout::I8 | Layout::Wgsl => 1,
        };
        if !section.len.is_multiple_of(unit) {
            return Err(ArtifactError::invalid(item(), format!("{} bytes are no multiple of {unit}", section.len)));
        }
        if layout == Layout::Wgsl && artifact.wgsl(index).is_none() {
            return Err(ArtifactError::invalid(item(), "is no text"));
        }
    }
    Ok(())
}

/// The checks of one entry point.
struct EntryCheck<'a> {
    artifact: &'a Artifact<'a>,
    manifest: &'a Manifest,
    tensors: &'a [TensorInfo],
    entry: &'a EntryPoint,
    /// Largest absolute value that each tensor of codes can hold, as stored.
    largest: Vec<u32>,
    /// Tensors with a value at this point of the entry.
    written: Vec<bool>,
}

impl<'a> EntryCheck<'a> {
    fn new(
        artifact: &'a Artifact<'a>,
        tensors: &'a [TensorInfo],
        entry: &'a EntryPoint,
    ) -> Result<Self, ArtifactError> {
        let mut check = Self {
            artifact,
            manifest: artifact.manifest(),
            tensors,
            entry,
            largest: vec![0; tensors.len()],
            written: vec![false; tensors.len()],
        };
        check.find_largest(&entry.steps, 0)?;
        Ok(check)
    }

    fn run(mut self) -> Check {
        for arg in &self.entry.args {
            if arg.min > arg.max {
                return Err(self.entry_error(format!("argument `{}` has an empty range", arg.name)));
            }
        }
        let mut inputs = BTreeSet::new();
        for port in &self.entry.inputs {
            let tensor = self.port(port)?;
            if !matches!(tensor.storage, Storage::F32 | Storage::U8 | Storage::I64 | Storage::I32) {
                return Err(self.entry_error(format!("input `{}` cannot be {:?}", port.name, tensor.storage)));
            }
            if !inputs.insert(port.tensor) {
                return Err(self.entry_error(format!("input `{}` shares a tensor with another", port.name)));
            }
            self.mark(port.tensor);
        }
        for port in &self.entry.noise {
            if self.port(port)?.storage != Storage::F32 || !inputs.insert(port.tensor) {
                return Err(self.entry_error(format!("noise `{}` is not f32, or shares its tensor", port.name)));
            }
            self.mark(port.tensor);
        }
        self.states(&mut inputs)?;
        self.steps(&self.entry.steps, 1)?;
        for port in &self.entry.outputs {
            let tensor = self.port(port)?;
            if !matches!(tensor.storage, Storage::F32 | Storage::U8 | Storage::I64 | Storage::I32 | Storage::I8) {
                return Err(self.entry_error(format!("output `{}` cannot be {:?}", port.name, tensor.storage)));
            }
            if !self.is_written(port.tensor) {
                return Err(self.entry_error(format!("nothing writes output `{}`", port.name)));
            }
        }
        let all_inputs = || self.entry.inputs.iter().chain(&self.entry.noise);
        let names: BTreeSet<&str> = all_inputs().map(|port| port.name.as_str()).collect();
        let outputs: BTreeSet<&str> = self.entry.outputs.iter().map(|port| port.name.as_str()).collect();
        if names.len() != all_inputs().count() || outputs.len() != self.entry.outputs.len() {
            return Err(self.entry_error("two inputs or two outputs have one name"));
        }
        Ok(())
    }

    /// States have a value from the start, and memory of their own.
    fn states(&mut self, taken: &mut BTreeSet<u32>) -> Check {
        let mut names = BTreeSet::new();
        for state in &self.entry.states {
            let error = |problem: String| Err(self.entry_error(format!("state `{}` {problem}", state.name)));
            let Some(tensor) = self.tensors.get(state.tensor as usize) else {
                return error(format!("names tensor {}, which does not exist", state.tensor));
            };
            if !matches!(tensor.storage, Storage::F32 | Storage::U8 | Storage::I64 | Storage::I32)
                || tensor.stride != tensor.cols
            {
                return error("does not fit its tensor".to_owned());
            }
            if !names.insert(state.name.as_str()) || !taken.insert(state.tensor) {
                return error("shares its name or its tensor with another".to_owned());
            }
            let rank = self.manifest.tensors.get(state.tensor as usize).map_or(0, |tensor| tensor.shape.len());
            if state.element_axis.is_some_and(|axis| axis as usize >= rank) {
                return error("has its elements along an axis that its tensor has not".to_owned());
            }
            if state.limit.is_some() && !matches!(tensor.storage, Storage::I32 | Storage::I64) {
                return error("has a limit and is no integer".to_owned());
            }
            self.mark(state.tensor);
        }
        Ok(())
    }

    fn port(&self, port: &Port) -> Result<&'a TensorInfo, ArtifactError> {
        let tensor = self.tensors.get(port.tensor as usize).ok_or_else(|| {
            self.entry_error(format!("`{}` names tensor {}, which does not exist", port.name, port.tensor))
        })?;
        let bounds_ok = [&port.lower, &port.upper].iter().all(|b| b.is_empty() || b.len() == tensor.cols);
        if !bounds_ok || tensor.stride != tensor.cols {
            return Err(self.entry_error(format!("`{}` does not fit its tensor", port.name)));
        }
        Ok(tensor)
    }

    /// Checks steps that together run `turns` times.
    fn steps(&mut self, steps: &'a [Step], turns: u64) -> Check {
        for step in steps {
            if let Some(step::Op::Repeat(repeat)) = &step.op {
                self.repeat(step, repeat, turns)?;
                continue;
            }
            let place = Place::try_from(step.place).map_err(|_| step_error(step, "has an unknown place"))?;
            let operands = step.operands();
            let out = operands.write.ok_or_else(|| step_error(step, "has no operation that this reader knows"))?;
            for &tensor in operands.reads.iter().chain([&out]) {
                let info = self.tensor(step, tensor)?;
                if place == Place::Device && info.place != Place::Device {
                    return Err(step_error(
                        step,
                        format!("runs on the device, but tensor `{}` does not live there", info.name),
                    ));
                }
            }
            for &tensor in &operands.reads {
                if !self.is_written(tensor) {
                    return Err(step_error(
                        step,
                        format!("reads `{}` before it has a value", self.tensor(step, tensor)?.name),
                    ));
                }
                if self.tensor(step, tensor)?.overlaps(self.tensor(step, out)?) {
                    return Err(step_error(
                        step,
                        format!("writes over `{}`, which it reads", self.tensor(step, tensor)?.name),
                    ));
                }
            }
            for &section in &operands.sections {
                if self.manifest.sections.get(section as usize).is_none() {
                    return Err(step_error(step, format!("names section {section}, which does not exist")));
                }
            }
            self.operation(step)?;
            self.dispatch(step, place, out)?;
            self.mark(out);
        }
        Ok(())
    }

    fn operation(&self, step: &Step) -> Check {
        match &step.op {
            Some(step::Op::Quantize(op)) => self.quantize(step, op),
            Some(step::Op::QLinear(op)) => self.q_linear(step, op),
            Some(step::Op::QGroups(op)) => self.q_groups(step, op),
            Some(step::Op::Requantize(op)) => self.requantize_step(step, op),
            Some(step::Op::Dequantize(op)) => self.dequantize(step, op),
            Some(step::Op::Linear(op)) => self.linear(step, op),
            Some(step::Op::LinearWq(op)) => self.linear_wq(step, op),
            Some(step::Op::Unary(op)) => self.unary(step, op),
            Some(step::Op::Binary(op)) => self.binary(step, op),
            Some(step::Op::Copy(op)) => self.copy(step, op),
            Some(step::Op::Reduce(op)) => self.reduce(step, op),
            Some(step::Op::MatMul(op)) => self.mat_mul(step, op),
            Some(step::Op::Unfold(op)) => self.unfold(step, op),
            Some(step::Op::Softmax(op)) => self.softmax(step, op),
            Some(step::Op::Normalize(op)) => self.normalize(step, op),
            Some(step::Op::Attention(op)) => self.attention(step, op),
            Some(step::Op::Rope(op)) => self.rope(step, op),
            Some(step::Op::Film(op)) => self.film(step, op),
            Some(step::Op::Compare(op)) => self.compare(step, op),
            Some(step::Op::Where(op)) => self.choose(step, op),
            Some(step::Op::Gather(op)) => self.gather(step, op),
            Some(step::Op::Scatter(op)) => self.scatter(step, op),
            Some(step::Op::Order(op)) => self.order(step, op),
            Some(step::Op::Scan(op)) => self.scan(step, op),
            Some(step::Op::Cast(op)) => self.cast(step, op),
            Some(step::Op::QAdd(op)) => self.q_add(step, op),
            Some(step::Op::Lookup(op)) => self.lookup(step, op),
            Some(step::Op::Repeat(_)) | None => Err(step_error(step, "has no operation that this reader knows")),
        }
    }

    fn repeat(&mut self, step: &Step, repeat: &'a step::Repeat, turns: u64) -> Check {
        if !self.manifest.requires(REPEAT_FEATURE) {
            return Err(step_error(step, "repeats without the feature `repeat`"));
        }
        let turns = repeat.turns(turns);
        if turns > MAX_TURNS {
            return Err(step_error(step, format!("more than {MAX_TURNS} turns")));
        }
        if let Some(turn) = repeat.turn {
            self.dense(step, turn, Storage::I64, Some(1))?;
            self.mark(turn);
        }
        self.steps(&repeat.steps, turns)
    }

    /// The kernel call of a device step. What the kernel does with its buffers
    /// is bounded by the checks that the device itself makes.
    fn dispatch(&self, step: &Step, place: Place, out: u32) -> Check {
        let Some(dispatch) = &step.dispatch else { return Ok(()) };
        if place != Place::Device {
            return Err(step_error(step, "runs on the host, but has a kernel"));
        }
        if self.manifest.kernels.get(dispatch.kernel as usize).is_none() {
            return Err(step_error(step, format!("names kernel {}, which does not exist", dispatch.kernel)));
        }
        let groups_ok = (1..=3).contains(&dispatch.workgroups.len())
            && dispatch.workgroups.iter().all(|n| (1..=65_535).contains(n));
        if !groups_ok {
            return Err(step_error(step, "has a number of workgroups outside 1 to 65535"));
        }
        for binding in &dispatch.bindings {
            let ok = match binding.source {
                Some(BindingSource::Tensor(tensor)) => {
                    self.tensor(step, tensor)?.place == Place::Device && (!binding.write || tensor == out)
                }
                Some(BindingSource::Section(section)) => {
                    !binding.write && self.manifest.sections.get(section as usize).is_some()
                }
                None => false,
            };
            if !ok {
                return Err(step_error(step, "binds a buffer that its kernel cannot have"));
            }
        }
        Ok(())
    }

    /// Collects what the steps can write, before any of them is checked: a
    /// repeat may read in its second turn what it writes in its first.
    fn find_largest(&mut self, steps: &[Step], depth: u32) -> Check {
        if depth > MAX_DEPTH {
            return Err(self.entry_error(format!("repeats are nested deeper than {MAX_DEPTH}")));
        }
        for step in steps {
            let (out, largest) = match &step.op {
                Some(step::Op::Repeat(repeat)) => {
                    self.find_largest(&repeat.steps, depth + 1)?;
                    continue;
                }
                Some(step::Op::Quantize(op)) => (op.out, self.largest_code(op.out, op.lo, op.hi)),
                Some(step::Op::QLinear(step::QLinear { out, requantize: Some(r), .. }))
                | Some(step::Op::QGroups(step::QGroups { out, requantize: Some(r), .. }))
                | Some(step::Op::Requantize(step::RequantizeStep { out, requantize: r, .. })) => {
                    let table = r.table.and_then(|table| self.largest_entry(table));
                    (*out, table.unwrap_or_else(|| self.largest_code(*out, r.lo, r.hi)))
                }
                Some(step::Op::Lookup(op)) => (op.out, self.largest_entry(op.table).unwrap_or(u32::MAX)),
                Some(step::Op::QAdd(op)) => (op.out, self.largest_code(op.out, op.lo, op.hi)),
                // A copy moves what its source holds; the widest is always right.
                Some(_) => match step.operands().write {
                    Some(out) => (out, u32::from(u16::MAX)),
                    None => continue,
                },
                None => continue,
            };
            if let Some(known) = self.largest.get_mut(out as usize) {
                *known = (*known).max(largest);
            }
        }
        Ok(())
    }

    /// Largest magnitude in a table of stored bytes; none without a section.
    fn largest_entry(&self, table: u32) -> Option<u32> {
        let bytes = self.artifact.section(table)?;
        Some(bytes.iter().map(|&byte| u32::from((byte as i8).unsigned_abs())).max().unwrap_or(0))
    }

    fn largest_code(&self, out: u32, lo: i32, hi: i32) -> u32 {
        let offset = self.tensors.get(out as usize).map_or(0, |tensor| tensor.code_offset);
        lo.saturating_sub(offset).unsigned_abs().max(hi.saturating_sub(offset).unsigned_abs())
    }

    fn is_written(&self, tensor: u32) -> bool {
        self.written.get(tensor as usize).copied().unwrap_or(false)
    }

    fn mark(&mut self, tensor: u32) {
        if let Some(written) = self.written.get_mut(tensor as usize) {
            *written = true;
        }
    }

    fn tensor(&self, step: &Step, index: u32) -> Result<&'a TensorInfo, ArtifactError> {
        self.tensors
            .get(index as usize)
            .ok_or_else(|| step_error(step, format!("names tensor {index}, which does not exist")))
    }

    /// A dense tensor of plain numbers with a given number of elements.
    fn dense(
        &self,
        step: &Step,
        index: u32,
        storage: Storage,
        elements: Option<usize>,
    ) -> Result<&'a TensorInfo, ArtifactError> {
        let tensor = self.tensor(step, index)?;
        if tensor.storage != storage || Some(tensor.elements) != elements {
            let expected = elements.map_or("too many elements".to_owned(), |n| format!("{n} elements of {storage:?}"));
            return Err(step_error(
                step,
                format!(
                    "tensor `{}` has {} elements of {:?}, expected {expected}",
                    tensor.name, tensor.elements, tensor.storage
                ),
            ));
        }
        Ok(tensor)
    }

    /// The bytes of a section that must have a layout and a number of elements
    /// (bytes for packed layouts).
    fn section(
        &self,
        step: &Step,
        index: u32,
        layout: Layout,
        elements: Option<usize>,
        what: &str,
    ) -> Result<&'a [u8], ArtifactError> {
        let error = |problem: String| step_error(step, format!("{what}: {problem}"));
        let found = self.manifest.sections.get(index as usize).map(|section| section.layout());
        if found != Some(layout) {
            return Err(error(format!("expected a section of layout {layout:?}, found {found:?}")));
        }
        let unit = match layout {
            Layout::F32 | Layout::I32 => 4,
            Layout::F64 => 8,
            Layout::Unspecified
            | Layout::I8
            | Layout::Wgsl
            | Layout::W8Tile8x16
            | Layout::W4Tile8x32
            | Layout::F32Rows8 => 1,
        };
        let bytes = self.artifact.section(index).unwrap_or_default();
        let expected = elements.and_then(|n| n.checked_mul(unit)).ok_or_else(|| error("too large".to_owned()))?;
        if bytes.len() != expected {
            return Err(error(format!("{} bytes, expected {expected}", bytes.len())));
        }
        Ok(bytes)
    }

    fn entry_error(&self, problem: impl Into<String>) -> ArtifactError {
        ArtifactError::invalid(format!("entry point `{}`", self.entry.name), problem)
    }
}

fn step_error(step: &Step, problem: impl Into<String>) -> ArtifactError {
    ArtifactError::invalid(format!("step `{}`", step.name), problem)
}

/// A size from the file as an index of this machine.
fn size(step: &Step, value: u64) -> Result<usize, ArtifactError> {
    usize::try_from(value).map_err(|_| step_error(step, format!("{value} is beyond the address space")))
}

/// The little-endian integers of a checked section.
fn ints(bytes: &[u8]) -> impl Iterator<Item = i32> {
    bytes.chunks_exact(4).filter_map(|b| b.first_chunk().map(|&b| i32::from_le_bytes(b)))
}
