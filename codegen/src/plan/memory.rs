//! The memory plan: which arena a tensor lives in, and where.
//!
//! A tensor that a device step names lives in a device arena, every other one in
//! the host arena. Tensors whose lives overlap never share bytes; a life runs
//! from the first step that names a tensor to the last one, and that of an input
//! or output over the whole plan. What a repeat reads and did not make itself is
//! needed in every turn, so such a life runs to the end of the last one. An arena is one buffer of a GPU, and a GPU
//! refuses a dispatch that reads and writes the same buffer, so the arenas are a
//! colouring: the result of a device step never shares an arena with what the
//! step reads. Deterministic: first fit in the order of the steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use qail_artifact::schema::{Arena, Place, Step, Tensor};

use crate::CodegenError;

/// Alignment of a tensor in its arena in bytes.
const ALIGN: u64 = 256;
/// Largest buffer of a device with default limits in bytes.
const MAX_ARENA: u64 = 256 << 20;

/// A tensor's life in steps, both ends included.
type Life = (usize, usize);

/// Assigns arena and offset of every tensor; returns the arenas. `ports` are the
/// tensors of inputs and outputs, `turns` the steps of a repeat.
pub(crate) fn plan(
    steps: &[Step],
    tensors: &mut [Tensor],
    ports: &BTreeSet<u32>,
    turns: Range<usize>,
) -> Result<Vec<Arena>, CodegenError> {
    let mut lives: BTreeMap<u32, Life> = ports.iter().map(|&tensor| (tensor, (0, steps.len()))).collect();
    let mut on_device: BTreeSet<u32> = BTreeSet::new();
    // Pairs of tensors that must not share a device arena.
    let mut apart: BTreeSet<(u32, u32)> = BTreeSet::new();
    for (i, step) in steps.iter().enumerate() {
        let access = step.operands();
        for tensor in access.reads.iter().copied().chain(access.write) {
            let life = lives.entry(tensor).or_insert((i, i));
            *life = (life.0.min(i), life.1.max(i));
        }
        if step.place() == Place::Device {
            on_device.extend(access.reads.iter().copied().chain(access.write));
            for (&read, write) in access.reads.iter().filter_map(|read| Some((read, access.write?))) {
                apart.extend([(read, write), (write, read)]);
            }
        }
    }

    for life in lives.values_mut().filter(|life| life.0 < turns.start && turns.contains(&life.1)) {
        life.1 = turns.end.saturating_sub(1);
    }

    // In the order of first use; ties by index.
    let mut order: Vec<(usize, u32)> = lives.iter().map(|(&tensor, life)| (life.0, tensor)).collect();
    order.sort_unstable();
    let has_host = order.iter().any(|(_, tensor)| !on_device.contains(tensor));
    let mut arenas: Vec<Vec<Slot>> = Vec::new();
    let mut places: Vec<Place> = Vec::new();
    if has_host {
        arenas.push(Vec::new());
        places.push(Place::Host);
    }
    let first_device = arenas.len();
    let mut arena_of: BTreeMap<u32, usize> = BTreeMap::new();
    for &(_, tensor) in &order {
        let arena = if on_device.contains(&tensor) {
            let taken: BTreeSet<usize> = apart
                .range((tensor, 0)..=(tensor, u32::MAX))
                .filter_map(|(_, other)| arena_of.get(other).copied())
                .collect();
            (first_device..).find(|arena| !taken.contains(arena)).unwrap_or(first_device)
        } else {
            0
        };
        while arenas.len() <= arena {
            arenas.push(Vec::new());
            places.push(Place::Device);
        }
        arena_of.insert(tensor, arena);
        let missing = || CodegenError::internal("a step names a tensor of the plan");
        let slots = arenas.get_mut(arena).ok_or_else(missing)?;
        let entry = usize::try_from(tensor).ok().and_then(|i| tensors.get_mut(i)).ok_or_else(missing)?;
        let life = lives.get(&tensor).copied().ok_or_else(missing)?;
        entry.offset = place(slots, life, entry.size)?;
        entry.arena = u32::try_from(arena).map_err(|_| missing())?;
    }

    let sizes = arenas.iter().map(|slots| slots.iter().map(|slot| slot.end).max().unwrap_or(0));
    let mut result = Vec::with_capacity(arenas.len());
    for (size, place) in sizes.zip(places) {
        if place == Place::Device && size > MAX_ARENA {
            return Err(CodegenError::Limit {
                node: "plan".to_owned(),
                what: "memory of intermediate values in bytes",
                found: size.to_string(),
                limit: MAX_ARENA.to_string(),
            });
        }
        result.push(Arena { size: size.max(ALIGN), place: place.into() });
    }
    Ok(result)
}

/// A tensor that has its place in an arena.
struct Slot {
    start: u64,
    /// One past the last byte, a multiple of [`ALIGN`].
    end: u64,
    life: Life,
}

/// The lowest offset at which `size` bytes are free for the whole life.
fn place(slots: &mut Vec<Slot>, life: Life, size: u64) -> Result<u64, CodegenError> {
    let mut busy: Vec<(u64, u64)> = slots
        .iter()
        .filter(|slot| slot.life.0 <= life.1 && life.0 <= slot.life.1)
        .map(|slot| (slot.start, slot.end))
        .collect();
    busy.sort_unstable();
    let over = || CodegenError::internal("the size of an arena fits into 64 bits");
    let size = size.max(1).checked_next_multiple_of(ALIGN).ok_or_else(over)?;
    let mut start = 0u64;
    for (from, to) in busy {
        if start.checked_add(size).ok_or_else(over)? <= from {
            break;
        }
        start = start.max(to);
    }
    let end = start.checked_add(size).ok_or_else(over)?;
    slots.push(Slot { start, end, life });
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qail_artifact::schema::step;

    fn unary(x: u32, out: u32, place: Place) -> Step {
        let f = step::Function { kind: step::FunctionKind::Relu.into(), p0: 0.0, p1: 0.0 };
        let op = Some(step::Op::Unary(step::Unary { x, out, f }));
        Step { name: String::new(), place: place.into(), dispatch: None, op }
    }

    fn tensors(sizes: &[u64]) -> Vec<Tensor> {
        sizes.iter().map(|&size| Tensor { size, ..Tensor::default() }).collect()
    }

    #[test]
    fn a_chain_takes_two_device_arenas_and_reuses_their_memory() {
        let mut tensors = tensors(&[4; 6]);
        let steps: Vec<Step> = (0..5).map(|i| unary(i, i + 1, Place::Device)).collect();
        let arenas = plan(&steps, &mut tensors, &BTreeSet::new(), 0..0).unwrap();
        assert_eq!(arenas.iter().map(|arena| arena.size).collect::<Vec<_>>(), [256, 256]);
        assert_eq!(tensors.iter().map(|t| t.arena).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn values_that_live_together_share_no_bytes() {
        let mut tensors = tensors(&[300, 4, 4, 4]);
        let mut steps = vec![unary(0, 1, Place::Host), unary(0, 2, Place::Host), unary(1, 3, Place::Host)];
        steps.push(unary(2, 3, Place::Host));
        plan(&steps, &mut tensors, &BTreeSet::new(), 0..0).unwrap();
        assert_eq!(tensors.iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 512, 768, 0]);
    }

    #[test]
    fn a_value_written_in_parts_avoids_every_part() {
        // Tensor 3 joins 0, 1 and 2, which come one after the other.
        let mut tensors = tensors(&[4; 4]);
        let steps = vec![
            unary(0, 3, Place::Device),
            unary(0, 1, Place::Device),
            unary(1, 3, Place::Device),
            unary(1, 2, Place::Device),
            unary(2, 3, Place::Device),
        ];
        plan(&steps, &mut tensors, &BTreeSet::new(), 0..0).unwrap();
        for (i, j) in [(0, 3), (0, 1), (1, 3), (1, 2), (2, 3)] {
            assert_ne!(tensors[i].arena, tensors[j].arena, "{i} {j}");
        }
    }

    #[test]
    fn what_every_turn_reads_lives_through_all_of_them() {
        // Tensor 1 is made before the repeat of steps 1 and 2 and read by its first one.
        let chain = |place| vec![unary(0, 1, place), unary(1, 2, place), unary(2, 3, place), unary(3, 4, place)];
        for (turns, shared) in [(0..0, true), (1..3, false)] {
            let mut tensors = tensors(&[4; 5]);
            plan(&chain(Place::Host), &mut tensors, &BTreeSet::from([0, 4]), turns).unwrap();
            assert_eq!(tensors[1].offset == tensors[3].offset, shared);
        }
    }

    #[test]
    fn ports_live_for_the_whole_plan() {
        let mut tensors = tensors(&[4; 3]);
        let steps = vec![unary(0, 1, Place::Host), unary(1, 2, Place::Host)];
        plan(&steps, &mut tensors, &BTreeSet::from([0, 2]), 0..0).unwrap();
        assert_eq!(tensors.iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 256, 512]);
    }
}
