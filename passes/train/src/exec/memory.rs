//! Buffers of a plan. Values that are alive at different times share one.

use std::collections::{BTreeMap, BTreeSet};

use qail_ir::interp::Tensor;

use super::ExecError;

/// A value of the plan: an index into its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item(pub(super) usize);

/// What holds an item.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// So many `f32`.
    F32(usize),
    /// So many `f64`.
    F64(usize),
    /// A tensor of another type, as the interpreter holds it; so many elements.
    Tensor(usize),
}

/// What a step reads and writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    pub(super) reads: Vec<Item>,
    pub(super) writes: Vec<Item>,
}

/// Largest plan: 4 GiB of values.
pub(super) const LIMIT_BYTES: usize = 1 << 32;

/// Every buffer, and which of them an item has.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Buffer of each item, and its number of elements.
    places: Vec<(usize, usize)>,
    f32s: Vec<Vec<f32>>,
    f64s: Vec<Vec<f64>>,
    tensors: Vec<Option<Tensor>>,
}

/// Buffers of one element type while they are given out.
#[derive(Default)]
struct Pool {
    sizes: Vec<usize>,
    /// Buffers that nobody holds, by size.
    free: BTreeSet<(usize, usize)>,
}

impl Pool {
    /// The smallest free buffer that is large enough and not far too large.
    fn take(&mut self, size: usize) -> usize {
        let fits = self.free.range((size, 0)..).next().copied();
        match fits {
            Some(found) if found.0 <= size.saturating_mul(4) => {
                self.free.remove(&found);
                found.1
            }
            _ => {
                self.sizes.push(size);
                self.sizes.len() - 1
            }
        }
    }

    fn give_back(&mut self, buffer: usize) {
        if let Some(&size) = self.sizes.get(buffer) {
            self.free.insert((size, buffer));
        }
    }
}

impl Memory {
    /// Gives every item a buffer: `pinned` ones keep theirs, the others have it
    /// from the step that writes them to the last that reads them.
    pub(super) fn new(kinds: &[Kind], steps: &[Access], pinned: &BTreeSet<Item>) -> Result<Self, ExecError> {
        let mut last_read: BTreeMap<Item, usize> = BTreeMap::new();
        for (i, step) in steps.iter().enumerate() {
            for &item in step.reads.iter().chain(&step.writes) {
                last_read.insert(item, i);
            }
        }
        let mut places: Vec<Option<(usize, usize)>> = vec![None; kinds.len()];
        let (mut f32s, mut f64s, mut n_tensors) = (Pool::default(), Pool::default(), 0usize);
        let mut tensor_bytes = 0usize;
        let mut take = |item: Item, places: &mut Vec<Option<(usize, usize)>>, f32s: &mut Pool, f64s: &mut Pool| {
            let (Some(kind), Some(place @ None)) = (kinds.get(item.0), places.get_mut(item.0)) else { return };
            *place = Some(match *kind {
                Kind::F32(n) => (f32s.take(n), n),
                Kind::F64(n) => (f64s.take(n), n),
                Kind::Tensor(n) => {
                    tensor_bytes = tensor_bytes.saturating_add(n.saturating_mul(8));
                    n_tensors += 1;
                    (n_tensors - 1, n)
                }
            });
        };
        for &item in pinned {
            take(item, &mut places, &mut f32s, &mut f64s);
        }
        for (i, step) in steps.iter().enumerate() {
            for &item in &step.writes {
                take(item, &mut places, &mut f32s, &mut f64s);
            }
            let done: BTreeSet<Item> = step.reads.iter().chain(&step.writes).copied().collect();
            for item in done {
                if pinned.contains(&item) || last_read.get(&item) != Some(&i) {
                    continue;
                }
                match (kinds.get(item.0), places.get(item.0).copied().flatten()) {
                    (Some(Kind::F32(_)), Some((buffer, _))) => f32s.give_back(buffer),
                    (Some(Kind::F64(_)), Some((buffer, _))) => f64s.give_back(buffer),
                    _ => {}
                }
            }
        }
        let bytes = |pool: &Pool, size: usize| {
            pool.sizes.iter().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(size)))
        };
        let bytes = bytes(&f32s, 4).saturating_add(bytes(&f64s, 8)).saturating_add(tensor_bytes);
        if bytes > LIMIT_BYTES {
            return Err(ExecError::TooLarge { bytes, limit: LIMIT_BYTES });
        }
        Ok(Self {
            places: places.into_iter().map(Option::unwrap_or_default).collect(),
            f32s: f32s.sizes.into_iter().map(|n| vec![0.0; n]).collect(),
            f64s: f64s.sizes.into_iter().map(|n| vec![0.0; n]).collect(),
            tensors: vec![None; n_tensors],
        })
    }

    fn place(&self, item: Item) -> (usize, usize) {
        self.places.get(item.0).copied().unwrap_or_default()
    }

    /// The elements of an item of `f32`; fewer than it has if its buffer is taken.
    pub(super) fn f32(&self, item: Item) -> &[f32] {
        let (buffer, n) = self.place(item);
        self.f32s.get(buffer).and_then(|all| all.get(..n)).unwrap_or_default()
    }

    /// The elements of an item of `f64`.
    pub(super) fn f64(&self, item: Item) -> &[f64] {
        let (buffer, n) = self.place(item);
        self.f64s.get(buffer).and_then(|all| all.get(..n)).unwrap_or_default()
    }

    pub(super) fn tensor(&self, item: Item) -> Option<&Tensor> {
        self.tensors.get(self.place(item).0).and_then(Option::as_ref)
    }

    pub(super) fn set_tensor(&mut self, item: Item, tensor: Tensor) {
        let (place, _) = self.place(item);
        if let Some(slot) = self.tensors.get_mut(place) {
            *slot = Some(tensor);
        }
    }

    /// Writes an item of `f32`, while all other items can be read.
    pub(super) fn write<R>(&mut self, item: Item, f: impl FnOnce(&Self, &mut [f32]) -> R) -> R {
        let (buffer, n) = self.place(item);
        let mut taken = self.f32s.get_mut(buffer).map(std::mem::take).unwrap_or_default();
        let result = f(self, taken.get_mut(..n).unwrap_or_default());
        if let Some(slot) = self.f32s.get_mut(buffer) {
            *slot = taken;
        }
        result
    }

    /// Writes an item of `f64`, while all others can be read.
    pub(super) fn write_f64<R>(&mut self, item: Item, f: impl FnOnce(&Self, &mut [f64]) -> R) -> R {
        let (buffer, n) = self.place(item);
        let mut taken = self.f64s.get_mut(buffer).map(std::mem::take).unwrap_or_default();
        let result = f(self, taken.get_mut(..n).unwrap_or_default());
        if let Some(slot) = self.f64s.get_mut(buffer) {
            *slot = taken;
        }
        result
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> usize {
        self.f32s.iter().map(|all| all.len() * 4).sum::<usize>()
            + self.f64s.iter().map(|all| all.len() * 8).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(reads: &[usize], writes: &[usize]) -> Access {
        let items = |all: &[usize]| all.iter().map(|&i| Item(i)).collect();
        Access { reads: items(reads), writes: items(writes) }
    }

    #[test]
    fn buffers_are_used_again_when_their_value_is_dead() {
        // 0 -> 1 -> 2 -> 3, and 0 is pinned.
        let kinds = vec![Kind::F32(100); 4];
        let steps = [access(&[0], &[1]), access(&[1], &[2]), access(&[2], &[3])];
        let memory = Memory::new(&kinds, &steps, &[Item(0)].into()).unwrap();
        assert_eq!(memory.bytes(), 3 * 400);
        assert_ne!(memory.place(Item(1)).0, memory.place(Item(2)).0);
        assert_eq!(memory.place(Item(1)).0, memory.place(Item(3)).0);
    }

    #[test]
    fn a_plan_of_more_than_four_gigabytes_is_refused() {
        let kinds = [Kind::F32(1 << 29), Kind::F64(1 << 29)];
        let message = Memory::new(&kinds, &[access(&[], &[0, 1])], &BTreeSet::new()).unwrap_err().to_string();
        assert_eq!(message, "the values of the graph take 6442450944 bytes, more than 4294967296: use a smaller batch");
    }
}
