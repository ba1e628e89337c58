//! Experts that take turns in slots of the device, while the host computes the pairs of the others (`ashlar_backend::ExpertSlots`).
//!
//! The routing kernel writes who goes where, and a copy of few rows, into memory of the host and sets a flag that the host
//! watches: that costs no copy and no wait for the stream. Fills go beside kernels on a stream of their own; each waits for
//! the kernels that last read its slot, and the next kernels that read it wait for the fill. The host's products lie in memory that
//! both see, where the kernel that adds them up reads them.
//!
//! What the host writes there it writes only when a flag has told that the kernels that read it last have ended: those of a mixture run
//! before the routing of the next one.

use crate::cuda::{Core, Cuda, Use};
use crate::device::{Mapped, Mark};
use crate::ops::moe::{self, Begun, Mixture, Part, Router, Told};
use crate::weights::check_zeros;
use ashlar_backend::{BackendError, Batch, ExpertSlots, ExpertWeights, Op, SLOT_ALIGN, Slotted, WeightId, slot_bytes};
use ashlar_tensor::{Bytes, PlaneKind};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

const OP: &str = "slots";

/// Rows of a batch up to which their inputs are told with the routing: more would keep the stream from computing.
const TOLD_ROWS: usize = 32;
/// Bytes of products that the adding kernel reads from the host's memory; more are copied first.
const GIVEN: usize = 1 << 20;
/// Pairs of a batch up to which lists name as many, some of them nobody: a recording then serves all steps.
const PADDED: usize = 64;
/// Looks at a flag between looks at the device.
const SPINS: u32 = 1 << 12;

/// A weight that comes and goes: where its planes lie in a slot.
struct Described {
    weight: WeightId,
    planes: Vec<(PlaneKind, Range<usize>)>,
}

/// One slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// 0 while it is released.
    address: u64,
    record: Option<u32>,
    /// The end of its fill, until kernels wait for it.
    filled: Option<Mark>,
    /// The end of the kernels that read it last.
    used: Option<Mark>,
}

/// A mixture between its begin and its end.
struct Turn {
    /// `None` if there are no rows.
    begun: Option<Begun>,
    experts: Arc<[ExpertWeights]>,
    top_k: usize,
    chosen: Vec<(usize, f32)>,
    /// Whether the product of a pair was started here.
    done: Vec<bool>,
    /// Whether kernels may still read the lists in the host's memory.
    listed: bool,
}

/// The slots, what is in them, and what the host and kernels tell each other by.
#[derive(Default)]
pub struct Slots {
    bytes: usize,
    all: Vec<Slot>,
    place: HashMap<u32, usize>,
    records: HashMap<u32, Vec<Described>>,
    told: Option<Mapped>,
    given: Option<Mapped>,
    lists: Option<Mapped>,
    turn: Option<Turn>,
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: OP, what }
}

fn no_slot(slot: usize, count: usize) -> BackendError {
    wrong(format!("slot {slot} of {count} is not there, or was released"))
}

/// Memory of at least so many bytes that both see. What was there before stays until the device goes: kernels may still read it.
fn mapped<'m>(core: &mut Core, of: &'m mut Option<Mapped>, bytes: usize) -> Result<&'m mut Mapped, BackendError> {
    if of.is_none_or(|m| m.bytes() < bytes) {
        *of = Some(core.mapped(bytes.next_power_of_two().max(4096))?);
    }
    of.as_mut().ok_or_else(|| wrong("no pinned memory".into()))
}

/// Where the parts of what is told lie: flags, experts, weights, inputs.
struct Places {
    chosen: usize,
    weights: usize,
    inputs: usize,
    bytes: usize,
}

impl Places {
    fn of(rows: usize, top_k: usize, hidden: usize) -> Self {
        let chosen = (4 * rows).next_multiple_of(64);
        let weights = chosen + (4 * rows * top_k).next_multiple_of(64);
        let inputs = weights + (4 * rows * top_k).next_multiple_of(64);
        let told = if rows <= TOLD_ROWS { 4 * rows * hidden } else { 0 };
        Self { chosen, weights, inputs, bytes: inputs + told }
    }

    /// The addresses for kernels, with all flags down.
    fn told(&self, memory: &mut Mapped, rows: usize) -> Result<Told, BackendError> {
        memory.write(0, &vec![0; 4 * rows])?;
        let inputs = if rows <= TOLD_ROWS { memory.device(self.inputs) } else { 0 };
        let [chosen, weights] = [self.chosen, self.weights].map(|at| memory.device(at));
        Ok(Told { chosen, weights, flags: memory.device(0), inputs })
    }
}

/// What kernels are told of some pairs: words in one piece.
struct Lists {
    /// By expert its weights gate, then up, then down; the pairs; tiles.
    words: Vec<u32>,
    /// Where the pairs begin, and how many places they have.
    which: usize,
    count: usize,
    /// Where the tiles begin, how many there are, and rows of each; `None` for pairs that are multiplied one by one.
    tiles: Option<(usize, usize, usize)>,
}

impl Turn {
    /// Lists for these pairs, sorted by expert.
    fn lists(&self, pairs: &[usize]) -> Lists {
        let of = |pick: fn(&ExpertWeights) -> WeightId| self.experts.iter().map(move |e| pick(e).0);
        let mut words: Vec<u32> = of(|e| e.gate).chain(of(|e| e.up)).chain(of(|e| e.down)).collect();
        let which = words.len();
        words.extend(pairs.iter().map(|pair| *pair as u32));
        let Some(rows) = moe::tile_of(pairs.len(), self.experts.len()) else {
            let count = if self.chosen.len() <= PADDED { self.chosen.len() } else { pairs.len() };
            words.resize(which + count, moe::NOBODY);
            return Lists { words, which, count, tiles: None };
        };
        // The number of tiles stands before them, and kernels want both on their own.
        words.resize(words.len().next_multiple_of(64), 0);
        let first = words.len();
        words.resize(first + 64, 0);
        let expert = |pair: &usize| self.chosen.get(*pair).map_or(0, |c| c.0);
        let mut begin = 0;
        let mut count = 0;
        for same in pairs.chunk_by(|a, b| expert(a) == expert(b)) {
            for (i, tile) in same.chunks(rows).enumerate() {
                words.extend([expert(&tile[0]) as u32, (begin + i * rows) as u32, tile.len() as u32]);
                count += 1;
            }
            begin += same.len();
        }
        words[first] = count as u32;
        Lists { words, which, count: pairs.len(), tiles: Some((first, count, rows)) }
    }

    /// The pairs of these experts, expert by expert, none of which may have been computed.
    fn pairs_of(&self, experts: &[usize]) -> Result<Vec<usize>, BackendError> {
        let own = |(_, (e, _)): &(usize, &(usize, f32))| experts.contains(e);
        let mut pairs: Vec<usize> = self.chosen.iter().enumerate().filter(own).map(|(pair, _)| pair).collect();
        pairs.sort_by_key(|pair| self.chosen.get(*pair).map(|c| c.0));
        match pairs.iter().find(|pair| self.done.get(**pair).copied().unwrap_or(true)) {
            Some(pair) => Err(wrong(format!("pair {pair} was computed before"))),
            None => Ok(pairs),
        }
    }

    /// Of every pair its row in what the host computed, all ones for those computed here.
    fn places(&self, pairs: &[usize]) -> Result<Vec<u32>, BackendError> {
        let mut places = vec![u32::MAX; self.done.len()];
        let mut done = self.done.clone();
        for (row, pair) in pairs.iter().enumerate() {
            let (Some(place), Some(done @ false)) = (places.get_mut(*pair), done.get_mut(*pair)) else {
                return Err(wrong(format!("pair {pair} of {} is not there, or was computed", self.done.len())));
            };
            (*place, *done) = (row as u32, true);
        }
        match done.iter().position(|done| !done) {
            Some(missing) => Err(wrong(format!("nobody computed pair {missing} of {}", done.len()))),
            None => Ok(places),
        }
    }
}

impl Slots {
    fn turn(&mut self) -> Result<&mut Turn, BackendError> {
        self.turn.as_mut().ok_or_else(|| wrong("no mixture of experts was begun".into()))
    }

    /// The slot of an expert of the present mixture.
    fn slot_of(&self, weights: &crate::weights::Weights, expert: &ExpertWeights) -> Result<usize, BackendError> {
        let record = |id| weights.any(id, OP).map(|w| w.record);
        let records = [record(expert.gate)?, record(expert.up)?, record(expert.down)?];
        let [Some(first), ..] = records else { return Err(wrong("an expert that never is in a slot".into())) };
        if records != [Some(first); 3] {
            return Err(wrong(format!("the parts of an expert are of several records: {records:?}")));
        }
        self.place.get(&first).copied().ok_or_else(|| wrong(format!("record {first} is in no slot")))
    }
}

impl Cuda {
    /// Waits until the routing of all rows was told.
    fn watch(&mut self, memory: Mapped, rows: usize) -> Result<(), BackendError> {
        for row in 0..rows {
            let mut spins = 0u32;
            while !memory.flag(4 * row)? {
                std::hint::spin_loop();
                spins += 1;
                // A kernel that failed will never tell.
                if spins.is_multiple_of(SPINS) && !self.core.busy()? && !memory.flag(4 * row)? {
                    return Err(wrong(format!("the routing of row {row} was never told")));
                }
            }
        }
        Ok(())
    }

    /// Lists pairs, sorted by expert, and the weights of their experts where kernels find them.
    fn list(&mut self, pairs: &[usize]) -> Result<Part, BackendError> {
        let turn = self.slots.turn()?;
        let Lists { words, which, count, tiles } = turn.lists(pairs);
        let experts = turn.experts.len();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let at = if tiles.is_none() && !std::mem::replace(&mut turn.listed, true) {
            // Few and at once: the kernels read them where they are.
            let memory = mapped(&mut self.core, &mut self.slots.lists, bytes.len())?;
            memory.write(0, bytes)?;
            memory.device(0)
        } else {
            let at = self.core.scratch(Use::Lists, bytes.len() as u64)?;
            self.core.begin()?;
            self.core.upload_in_order(at, bytes)?;
            at
        };
        let place = |word: usize| at + 4 * word as u64;
        let tiles = tiles.map(|(first, count, rows)| (place(first), count, rows));
        Ok(Part { ids: [0, experts, 2 * experts].map(place), which: place(which), count, tiles })
    }

    /// Where the adding kernel finds what the host computed: the products, and of every pair its row.
    fn give(&mut self, places: &[u32], products: &[f32]) -> Result<[u64; 2], BackendError> {
        let (rows, values): (&[u8], &[u8]) = (bytemuck::cast_slice(places), bytemuck::cast_slice(products));
        let first = rows.len().next_multiple_of(64);
        let small = values.len() <= GIVEN;
        let memory = mapped(&mut self.core, &mut self.slots.given, first + if small { values.len() } else { 0 })?;
        memory.write(0, rows)?;
        if small {
            memory.write(first, values)?;
            return Ok([memory.device(first), memory.device(0)]);
        }
        let places = memory.device(0);
        let given = self.core.scratch(Use::Given, values.len() as u64)?;
        self.core.begin()?;
        self.core.upload_in_order(given, values)?;
        Ok([given, places])
    }
}

impl ExpertSlots for Cuda {
    fn reserve(&mut self, count: usize, lent: usize, bytes: usize) -> Result<(), BackendError> {
        if !self.slots.all.is_empty() {
            return Err(wrong("slots are reserved once".into()));
        }
        self.arena.slots(count.saturating_sub(lent), bytes)?;
        self.slots.bytes = slot_bytes(bytes) as usize;
        for _ in 0..count {
            let address = self.core.take(self.slots.bytes as u64, || format!("{count} slots"))?;
            self.slots.all.push(Slot { address, ..Slot::default() });
        }
        // Kernels may still work on what was there before.
        let free = Some(self.core.mark()?);
        self.slots.all.iter_mut().for_each(|slot| slot.used = free);
        Ok(())
    }

    fn release(&mut self, slot: usize) -> Result<(), BackendError> {
        let count = self.slots.all.len();
        let place = self.slots.all.get_mut(slot).ok_or_else(|| no_slot(slot, count))?;
        let Slot { address, record, filled, .. } = std::mem::take(place);
        if let Some(gone) = record {
            self.slots.place.remove(&gone);
        }
        // Whoever gets the memory begins when nothing is copied there any more.
        if let Some(filled) = filled {
            self.core.wait_for(filled)?;
        }
        self.core.give(address);
        Ok(())
    }

    fn take_back(&mut self, slot: usize) -> Result<bool, BackendError> {
        let (count, bytes) = (self.slots.all.len(), self.slots.bytes as u64);
        let place = self.slots.all.get_mut(slot).ok_or_else(|| no_slot(slot, count))?;
        if place.address != 0 {
            return Ok(true);
        }
        let Some(address) = self.core.take_if_free(bytes)? else { return Ok(false) };
        *place = Slot { address, used: Some(self.core.mark()?), ..Slot::default() };
        Ok(true)
    }

    fn settle(&mut self) -> Result<(), BackendError> {
        let fills: Vec<Mark> = self.slots.all.iter_mut().filter_map(|slot| slot.filled.take()).collect();
        fills.into_iter().try_for_each(|fill| self.core.wait_for(fill))?;
        self.core.wait()
    }

    fn describe(&mut self, weight: Slotted) -> Result<WeightId, BackendError> {
        let Slotted { weight, record, planes } = weight;
        let wrong_format = |source| BackendError::Format { tensor: weight.name.clone(), source };
        let layout = weight.spec.layout(weight.order, weight.n, weight.k).map_err(wrong_format)?;
        let fits = |(plane, at): (&ashlar_formats::PlaneLayout, &Range<usize>)| {
            at.len() as u64 >= plane.bytes && at.start.is_multiple_of(SLOT_ALIGN)
        };
        if layout.planes.len() != planes.len() || !layout.planes.iter().zip(&planes).all(fits) {
            return Err(wrong(format!("the planes of `{}` cannot lie at {planes:?}", weight.name)));
        }
        let mode = self.mode();
        let planes = layout.planes.iter().map(|p| p.kind).zip(planes).collect();
        let id = self.weights.describe(&mut self.core, weight, record, mode)?;
        self.slots.records.entry(record).or_default().push(Described { weight: id, planes });
        Ok(id)
    }

    fn fill(&mut self, slot: usize, record: u32, parts: &[(usize, Bytes)]) -> Result<(), BackendError> {
        let (count, size) = (self.slots.all.len(), self.slots.bytes);
        let place = self.slots.all.get_mut(slot).filter(|slot| slot.address != 0);
        let place = place.ok_or_else(|| no_slot(slot, count))?;
        let (base, used) = (place.address, place.used);
        if let Some(gone) = place.record.take() {
            self.slots.place.remove(&gone);
        }
        if parts.iter().any(|(at, part)| at.checked_add(part.len()).is_none_or(|end| end > size)) {
            return Err(wrong(format!("record {record} is larger than a slot of {size} bytes")));
        }
        let described = self.slots.records.get(&record);
        let described = described.ok_or_else(|| wrong(format!("nothing was described of record {record}")))?;
        for part in described {
            let weight = &self.weights.any(part.weight, OP)?.weight;
            for (_, at) in part.planes.iter().filter(|(kind, _)| *kind == PlaneKind::Zeros) {
                parts.iter().try_for_each(|(first, bytes)| check_zeros(weight, overlap(*first, bytes, at)))?;
            }
        }
        let to: Vec<(u64, &[u8])> = parts.iter().map(|(at, part)| (base + *at as u64, &**part)).collect();
        let filled = self.core.fill(used, &to)?;
        for part in described {
            let planes: Vec<(PlaneKind, usize)> = part.planes.iter().map(|(kind, at)| (*kind, at.start)).collect();
            self.weights.lies_at(&mut self.core, part.weight, &planes, base)?;
        }
        if let Some(place) = self.slots.all.get_mut(slot) {
            *place = Slot { address: base, record: Some(record), filled: Some(filled), used: None };
        }
        // It lies in one place: what was in another is no longer looked for there.
        if let Some(before) = self.slots.place.insert(record, slot).and_then(|other| self.slots.all.get_mut(other)) {
            before.record = None;
        }
        Ok(())
    }

    fn begin(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        if self.slots.turn.is_some() {
            return Err(wrong("the mixture of experts before was not ended".into()));
        }
        let Op::Moe { x, router, routing, options, experts, activation, out } = moe else {
            return Err(wrong(format!("{} is no mixture of experts", moe.name())));
        };
        batch.check()?;
        self.step.set(&mut self.core, batch)?;
        let (input, top_k) = (self.buffers.get(*x, OP)?, routing.top_k);
        let places = Places::of(input.rows, top_k, input.width);
        let memory = mapped(&mut self.core, &mut self.slots.told, places.bytes)?;
        let told = places.told(memory, input.rows)?;
        let memory = *memory;
        let router = Router { weight: *router, routing: *routing, options: *options };
        let mixture = Mixture { x: *x, out: *out, router, experts, activation: *activation };
        let begun = moe::begin(self, &mixture, batch, Some(told))?;
        let mut chosen = Vec::new();
        if begun.is_some() {
            self.core.begin()?;
            self.watch(memory, input.rows)?;
            let pairs = input.rows * top_k;
            let (mut who, mut weights) = (vec![0i32; pairs], vec![0.0f32; pairs]);
            memory.read(places.chosen, bytemuck::cast_slice_mut(&mut who))?;
            memory.read(places.weights, bytemuck::cast_slice_mut(&mut weights))?;
            chosen = who.into_iter().map(|e| e.max(0) as usize).zip(weights).collect();
        }
        let (experts, done) = (Arc::clone(experts), vec![false; chosen.len()]);
        self.slots.turn = Some(Turn { begun, experts, top_k, chosen: chosen.clone(), done, listed: false });
        Ok(chosen)
    }

    fn inputs(&mut self) -> Result<Vec<f32>, BackendError> {
        let turn = self.slots.turn()?;
        let Some(begun) = &turn.begun else { return Ok(Vec::new()) };
        let (rows, from) = (begun.rows, begun.inputs());
        let mut values = vec![0.0f32; rows * begun.hidden];
        let places = Places::of(rows, turn.top_k, begun.hidden);
        match self.slots.told {
            Some(memory) if rows <= TOLD_ROWS => {
                memory.read(places.inputs, bytemuck::cast_slice_mut(&mut values))?;
            }
            // The kernels that wrote them ended before the routing did.
            _ => self.core.read_beside(from, &mut values)?,
        }
        Ok(values)
    }

    fn compute(&mut self, experts: &[usize]) -> Result<(), BackendError> {
        let turn = self.slots.turn()?;
        let pairs = turn.pairs_of(experts)?;
        let list = Arc::clone(&turn.experts);
        let mut slots = Vec::with_capacity(experts.len());
        for e in experts {
            let expert = list.get(*e).ok_or_else(|| wrong(format!("expert {e} of {}", list.len())))?;
            slots.push(self.slots.slot_of(&self.weights, expert)?);
        }
        if pairs.is_empty() {
            return Ok(());
        }
        for slot in &slots {
            if let Some(filled) = self.slots.all.get_mut(*slot).and_then(|slot| slot.filled.take()) {
                self.core.wait_for(filled)?;
            }
        }
        let part = self.list(&pairs)?;
        let begun = self.slots.turn()?.begun.take();
        let multiplied = match &begun {
            Some(begun) => moe::multiply_some(self, begun, part),
            None => Ok(()),
        };
        let turn = self.slots.turn()?;
        turn.begun = begun;
        multiplied?;
        for pair in pairs {
            turn.done[pair] = true;
        }
        // The device starts now, not when somebody wants the sum.
        let used = self.core.mark()?;
        for slot in slots {
            self.slots.all[slot].used = Some(used);
        }
        Ok(())
    }

    fn end(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError> {
        let turn = self.slots.turn.take().ok_or_else(|| wrong("no mixture of experts was begun".into()))?;
        let places = turn.places(pairs)?;
        let Some(begun) = &turn.begun else { return Ok(()) };
        if products.len() != pairs.len() * begun.hidden {
            let what = format!("{} values for {} pairs of {}", products.len(), pairs.len(), begun.hidden);
            return Err(wrong(what));
        }
        let given = if pairs.is_empty() { [0, 0] } else { self.give(&places, products)? };
        moe::finish(self, begun, given)
    }
}

/// The part of `bytes`, which begin at `first`, that lies in a range.
fn overlap<'b>(first: usize, bytes: &'b [u8], range: &Range<usize>) -> &'b [u8] {
    let (start, end) = (range.start.saturating_sub(first), range.end.saturating_sub(first).min(bytes.len()));
    bytes.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::moe::NOBODY;

    #[test]
    fn what_is_told_does_not_overlap_and_few_rows_come_with_it() {
        let places = Places::of(3, 8, 100);
        assert!(places.chosen >= 12 && places.weights >= places.chosen + 96 && places.inputs >= places.weights + 96);
        assert_eq!(places.bytes, places.inputs + 1200);
        assert_eq!(Places::of(TOLD_ROWS + 1, 8, 100).bytes, Places::of(TOLD_ROWS + 1, 8, 7).bytes);
    }

    #[test]
    fn many_pairs_are_listed_in_tiles_of_one_expert() {
        let weight = |i| ExpertWeights { gate: WeightId(i), up: WeightId(i + 1), down: WeightId(i + 2), biases: None };
        let turn = Turn {
            begun: None,
            experts: (0..3).map(|e| weight(10 * e)).collect(),
            top_k: 1,
            chosen: (0..90).map(|i| (if i < 40 { 2 } else { 0 }, 1.0)).collect(),
            done: vec![false; 90],
            listed: false,
        };
        let pairs = turn.pairs_of(&[0, 2]).unwrap();
        assert_eq!((pairs[0], pairs[50]), (40, 0));
        let lists = turn.lists(&pairs);
        assert_eq!(lists.words[..9], [0, 10, 20, 1, 11, 21, 2, 12, 22]);
        let (first, count, rows) = lists.tiles.unwrap();
        assert_eq!((lists.which, lists.words[first], count, rows), (9, 2, 2, 64));
        assert_eq!(lists.words[first + 64..], [0, 0, 50, 2, 50, 40]);
        assert_eq!(first % 64, 0);
    }

    #[test]
    fn every_pair_is_computed_once() {
        let turn = |done: &[bool]| Turn {
            begun: None,
            experts: Vec::new().into(),
            top_k: 2,
            chosen: vec![(4, 0.5), (1, 0.5), (4, 0.2), (0, 0.8)],
            done: done.to_vec(),
            listed: false,
        };
        let fresh = turn(&[false; 4]);
        assert_eq!(fresh.pairs_of(&[1, 4]).unwrap(), [1, 0, 2]);
        assert_eq!(fresh.lists(&[1, 0]).words, [1, 0, NOBODY, NOBODY]);
        assert!(turn(&[false, false, true, false]).pairs_of(&[4]).is_err());
        let half = turn(&[true, false, true, false]);
        assert_eq!(half.places(&[1, 3]).unwrap(), [u32::MAX, 0, u32::MAX, 1]);
        for wrong in [&[1][..], &[1, 3, 0], &[1, 1, 3], &[1, 3, 4]] {
            assert!(half.places(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(overlap(10, &[1, 2, 3, 4], &(11..13)), [2, 3]);
        assert_eq!(overlap(10, &[1, 2], &(0..5)), [0u8; 0]);
    }
}
