//! The plan of a session: one entry point, its steps in the order of execution,
//! and where every tensor lives.
//!
//! Made once at load from a checked manifest. Repeats are unrolled here, so that
//! executors see a flat list. Consecutive items of one place form a
//! [`Segment`]; what crosses between the host and the device at the borders of a
//! device segment is worked out here, for all executors.

use std::ops::Range;

use qail_artifact::{
    Artifact, Storage,
    schema::{self, Place, Step, step},
};

use crate::RuntimeError;

/// Most items of an unrolled entry point.
const MAX_ITEMS: usize = 1 << 20;
/// Alignment of a tensor in its arena in bytes.
const ALIGN: usize = 256;

/// What a session runs and where its values live.
pub(crate) struct Plan {
    /// Index of the entry point in the manifest.
    pub(crate) entry: usize,
    /// Every tensor of the manifest, with its place in this session.
    pub(crate) tensors: Vec<PlanTensor>,
    /// Every arena of this session; without `keep_intermediates` those of the manifest.
    pub(crate) arenas: Vec<PlanArena>,
    /// Every step of the entry point that is not a repeat, once, repeats entered.
    pub(crate) steps: Vec<Step>,
    /// The order of execution, repeats unrolled.
    pub(crate) order: Vec<Item>,
    /// `order` cut where the place changes.
    pub(crate) segments: Vec<Segment>,
    /// What a run leaves for the next one.
    pub(crate) states: Vec<PlanState>,
    /// Tensors whose newest value is only on the device when a run has ended. Ascending.
    pub(crate) left_on_device: Vec<usize>,
}

/// A tensor with its place.
#[derive(Clone, Debug)]
pub(crate) struct PlanTensor {
    /// Name of the value in the graph.
    pub(crate) name: String,
    /// How an element is stored.
    pub(crate) storage: Storage,
    /// Logical shape, outermost axis first.
    pub(crate) shape: Vec<usize>,
    /// Product of all axes but the last.
    pub(crate) rows: usize,
    /// Extent of the last axis, 1 for a scalar.
    pub(crate) cols: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Index of the arena in [`Plan::arenas`].
    pub(crate) arena: usize,
    /// Byte offset in the arena, a multiple of 256.
    pub(crate) offset: usize,
    /// Size in bytes, padding included, a multiple of 4.
    pub(crate) size: usize,
    /// Code minus stored byte.
    pub(crate) code_offset: i32,
}

/// An arena of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanArena {
    /// Size in bytes, a multiple of 256.
    pub(crate) size: usize,
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "a CPU has one memory"))]
    /// Where it lives; a GPU makes a buffer for each `Device` arena.
    pub(crate) place: Place,
}

/// A value that is kept from run to run.
#[derive(Clone, Debug)]
pub(crate) struct PlanState {
    /// Index of the tensor.
    pub(crate) tensor: usize,
    /// Axis of the elements of a batch.
    pub(crate) element_axis: Option<usize>,
    /// Largest number that a run may begin with.
    pub(crate) limit: Option<i64>,
}

impl PlanState {
    fn new(state: &schema::State) -> Self {
        let element_axis = state.element_axis.map(|axis| axis as usize);
        Self { tensor: state.tensor as usize, element_axis, limit: state.limit }
    }
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// Run `Plan::steps[i]`.
    Step(usize),
    /// Write the number of a turn of a repeat, on the host. Never in a device
    /// segment.
    Turn {
        /// Index of the tensor, one `i64`.
        tensor: usize,
        /// The number, from 0.
        turn: usize,
    },
}

/// Consecutive items of one place.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Who runs it.
    pub(crate) place: Place,
    /// Positions in [`Plan::order`].
    pub(crate) items: Range<usize>,
    /// For a device segment: tensors that it reads and that the host wrote
    /// last. Ascending.
    pub(crate) uploads: Vec<usize>,
    /// For a device segment: tensors that it writes and that the host reads
    /// before the device writes them again. Ascending.
    pub(crate) downloads: Vec<usize>,
}

impl Plan {
    /// The plan of an entry point, the first one if none is named.
    ///
    /// # Errors
    ///
    /// If there is no such entry point, or if it is too long.
    pub(crate) fn new(
        artifact: &Artifact<'_>,
        entry: Option<&str>,
        keep_intermediates: bool,
    ) -> Result<Self, RuntimeError> {
        let manifest = artifact.manifest();
        let wanted = entry.unwrap_or_default();
        let index = match entry {
            Some(name) => manifest.entries.iter().position(|entry| entry.name == name),
            None => (!manifest.entries.is_empty()).then_some(0),
        };
        let (index, entry) = index
            .and_then(|index| Some((index, manifest.entries.get(index)?)))
            .ok_or_else(|| RuntimeError::NoEntry(wanted.to_owned()))?;
        let mut plan = Self {
            entry: index,
            tensors: manifest.tensors.iter().map(PlanTensor::new).collect::<Result<_, _>>()?,
            arenas: manifest.arenas.iter().map(PlanArena::new).collect::<Result<_, _>>()?,
            steps: Vec::new(),
            order: Vec::new(),
            segments: Vec::new(),
            states: entry.states.iter().map(PlanState::new).collect(),
            left_on_device: Vec::new(),
        };
        if keep_intermediates {
            plan.spread()?;
        }
        plan.order = plan.unroll(&entry.steps)?;
        let inputs: Vec<schema::Port> = entry.inputs.iter().chain(&entry.noise).cloned().collect();
        plan.cut(&inputs, &entry.outputs);
        Ok(plan)
    }

    /// Gives every tensor memory of its own, in an arena of the same index and place.
    fn spread(&mut self) -> Result<(), RuntimeError> {
        let too_large = || RuntimeError::Memory { size_bytes: usize::MAX };
        for arena in &mut self.arenas {
            arena.size = 0;
        }
        for tensor in &mut self.tensors {
            let arena = self.arenas.get_mut(tensor.arena).ok_or(RuntimeError::Internal("a tensor has no arena"))?;
            tensor.offset = arena.size;
            arena.size = tensor
                .size
                .checked_next_multiple_of(ALIGN)
                .and_then(|size| arena.size.checked_add(size))
                .ok_or_else(too_large)?;
        }
        Ok(())
    }

    /// Adds the steps to the plan and returns the order in which they run.
    fn unroll(&mut self, steps: &[Step]) -> Result<Vec<Item>, RuntimeError> {
        let mut order = Vec::new();
        for step in steps {
            let Some(step::Op::Repeat(repeat)) = &step.op else {
                order.push(Item::Step(self.steps.len()));
                self.steps.push(step.clone());
                continue;
            };
            let body = self.unroll(&repeat.steps)?;
            for turn in 0..repeat.n as usize {
                order.extend(repeat.turn.map(|tensor| Item::Turn { tensor: tensor as usize, turn }));
                order.extend_from_slice(&body);
                if order.len() > MAX_ITEMS {
                    return Err(RuntimeError::Step {
                        step: step.name.clone(),
                        device: "any device".to_owned(),
                        reason: format!("unrolls to more than {MAX_ITEMS} steps"),
                    });
                }
            }
        }
        Ok(order)
    }

    /// Cuts the order into segments and finds what crosses their borders.
    fn cut(&mut self, inputs: &[schema::Port], outputs: &[schema::Port]) {
        let mut segments: Vec<Segment> = Vec::new();
        for (position, item) in self.order.iter().enumerate() {
            let place = self.place(*item);
            match segments.last_mut() {
                Some(segment) if segment.place == place => segment.items.end = position + 1,
                _ => segments.push(Segment {
                    place,
                    items: position..position + 1,
                    uploads: Vec::new(),
                    downloads: Vec::new(),
                }),
            }
        }
        // Where the newest value of each tensor is: the host, a device segment, or nowhere.
        #[derive(Clone, Copy, PartialEq)]
        enum Newest {
            None,
            Host,
            Both,
            Device(usize),
        }
        let mut newest = vec![Newest::None; self.tensors.len()];
        for port in inputs {
            if let Some(newest) = newest.get_mut(port.tensor as usize) {
                *newest = Newest::Host;
            }
        }
        // A state that a device segment wrote last is there when a run begins.
        for state in &self.states {
            let last = segments.iter().enumerate().rev().find(|(_, segment)| {
                let items = self.order.get(segment.items.clone()).unwrap_or_default();
                items.iter().any(|item| self.touched(*item).1 == Some(state.tensor))
            });
            if let Some(newest) = newest.get_mut(state.tensor) {
                *newest = match last {
                    Some((index, segment)) if segment.place == Place::Device => Newest::Device(index),
                    Some(_) | None => Newest::Host,
                };
            }
        }
        let mut downloads: Vec<(usize, usize)> = Vec::new();
        for (index, segment) in segments.iter_mut().enumerate() {
            for item in self.order.get(segment.items.clone()).unwrap_or_default() {
                let (reads, write) = self.touched(*item);
                for tensor in reads {
                    let Some(newest) = newest.get_mut(tensor) else { continue };
                    match (segment.place, *newest) {
                        (Place::Device, Newest::Host) => {
                            segment.uploads.push(tensor);
                            *newest = Newest::Both;
                        }
                        (Place::Host, Newest::Device(writer)) => {
                            downloads.push((writer, tensor));
                            *newest = Newest::Both;
                        }
                        _ => {}
                    }
                }
                if let Some(newest) = write.and_then(|tensor| newest.get_mut(tensor)) {
                    *newest = if segment.place == Place::Host { Newest::Host } else { Newest::Device(index) };
                }
            }
        }
        for port in outputs {
            if let Some(newest) = newest.get_mut(port.tensor as usize)
                && let Newest::Device(writer) = *newest
            {
                downloads.push((writer, port.tensor as usize));
                *newest = Newest::Both;
            }
        }
        let left = newest.iter().enumerate().filter(|(_, newest)| matches!(newest, Newest::Device(_)));
        self.left_on_device = left.map(|(tensor, _)| tensor).collect();
        for (writer, tensor) in downloads {
            if let Some(segment) = segments.get_mut(writer) {
                segment.downloads.push(tensor);
            }
        }
        for segment in &mut segments {
            for list in [&mut segment.uploads, &mut segment.downloads] {
                list.sort_unstable();
                list.dedup();
            }
        }
        self.segments = segments;
    }

    fn place(&self, item: Item) -> Place {
        match item {
            Item::Step(index) => self.steps.get(index).map_or(Place::Host, Step::place),
            Item::Turn { .. } => Place::Host,
        }
    }

    /// Tensors that an item reads, and the one that it writes. What a partial
    /// write leaves in place counts as read.
    fn touched(&self, item: Item) -> (Vec<usize>, Option<usize>) {
        match item {
            Item::Step(index) => {
                let operands = self.steps.get(index).map(Step::operands).unwrap_or_default();
                let write = operands.write.map(|tensor| tensor as usize);
                let mut reads: Vec<usize> = operands.reads.iter().map(|&tensor| tensor as usize).collect();
                reads.extend(write.filter(|_| operands.partial));
                (reads, write)
            }
            Item::Turn { tensor, .. } => (Vec::new(), Some(tensor)),
        }
    }
}

impl PlanTensor {
    fn new(tensor: &schema::Tensor) -> Result<Self, RuntimeError> {
        let narrow = |value: u64| usize::try_from(value).map_err(|_| RuntimeError::Internal("a tensor is too large"));
        let shape: Vec<usize> = tensor.shape.iter().map(|&extent| narrow(extent)).collect::<Result<_, _>>()?;
        let (&cols, outer) = shape.split_last().unwrap_or((&1, &[]));
        Ok(Self {
            name: tensor.name.clone(),
            storage: tensor.storage(),
            rows: outer.iter().product(),
            cols,
            stride: narrow(tensor.stride)?,
            arena: tensor.arena as usize,
            offset: narrow(tensor.offset)?,
            size: narrow(tensor.size)?,
            code_offset: tensor.code_offset,
            shape,
        })
    }

    /// Size of an element in the mirror.
    pub(crate) fn element_bytes(&self) -> usize {
        match self.storage {
            Storage::I8 | Storage::U8 => 1,
            Storage::I16 => 2,
            Storage::I64 => 8,
            Storage::F32 | Storage::I32 | Storage::Unspecified => 4,
        }
    }

    /// Number of elements without padding.
    pub(crate) fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

impl PlanArena {
    fn new(arena: &schema::Arena) -> Result<Self, RuntimeError> {
        let size = usize::try_from(arena.size).map_err(|_| RuntimeError::Internal("an arena is too large"))?;
        Ok(Self { size, place: arena.place() })
    }
}

#[cfg(test)]
mod tests;
