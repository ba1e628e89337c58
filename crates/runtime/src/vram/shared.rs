//! One layer of experts on both devices, and filling slots before the first token.

use super::Slots;
use super::cache::SlotCache;
use super::records::Record;
use ashlar_arch::Activation;
use ashlar_backend::{
    Backend, BackendError, Batch, BufferId, ExpertSlots, ExpertWeights, Experts, Observer, Op, Pair, Routed,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Tokens of one expert that are timed on the host, to find out from how many on it is streamed.
const TRIED: [usize; 4] = [8, 24, 72, 216];

/// A mixture of experts that an accelerator computes together with the host.
pub struct Shared {
    /// The accelerator.
    pub device: usize,
    /// The host.
    pub host: usize,
    /// The op, with the accelerator's operands.
    pub op: Op,
    /// The host's buffer for its input, and its width.
    pub x: (BufferId, usize),
    /// The host's weights of experts.
    pub experts: Arc<[ExpertWeights]>,
    /// Nonlinearity.
    pub activation: Activation,
    /// Experts per token.
    pub top_k: usize,
    /// By expert: its record.
    pub records: Vec<u32>,
    /// The router's name.
    pub router: String,
}

/// Who computes what of a step.
struct Parts {
    /// Experts in slots.
    here: Vec<usize>,
    /// Experts that are streamed.
    streamed: Vec<usize>,
    /// Places of the pairs that the host computes.
    host: Vec<usize>,
}

impl Shared {
    /// Runs the mixture, then brings in who should be in a slot.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn run(
        &self,
        devices: &mut [Box<dyn Backend>],
        Slots { cache, records, .. }: &mut Slots,
        batch: &Batch,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let chosen = slots(devices, self.device)?.begin(&self.op, batch)?;
        if let Some(observer) = observer {
            let (experts, top_k) = (self.experts.len(), self.top_k);
            observer.routed(&Routed { router: &self.router, experts, top_k, chosen: &chosen });
        }
        let mut uses: BTreeMap<usize, usize> = BTreeMap::new();
        chosen.iter().for_each(|(expert, _)| *uses.entry(*expert).or_default() += 1);
        let parts = self.parts(&chosen, &uses, cache, records);
        let result = self.compute(devices, cache, records, &chosen, &parts);
        if result.is_err() {
            // The device forgets the mixture; what matters is the first error.
            let _ = slots(devices, self.device)?.end(&[], &[]);
            return result;
        }
        let (all, others) = (chosen.len() as u64, parts.host.len() as u64);
        let used = &mut cache.used;
        let decoding = batch.rows() <= batch.sequences.len();
        let (hits, misses) = match decoding {
            true => (&mut used.hits, &mut used.misses),
            false => (&mut used.prompt_hits, &mut used.prompt_misses),
        };
        (*hits, *misses) = (*hits + all - others, *misses + others);
        let uses: Vec<(u32, usize)> =
            uses.into_iter().filter_map(|(e, count)| Some((*self.records.get(e)?, count))).collect();
        let fills = cache.step(&uses, chosen.len() / self.top_k.max(1));
        for (done, &(record, slot)) in fills.iter().enumerate() {
            let filled = fill(slots(devices, self.device)?, cache, records, slot, record);
            if filled.is_err() {
                // Nor do those come that were to follow.
                fills.iter().skip(done + 1).for_each(|(record, _)| cache.give_up(*record));
                return filled;
            }
        }
        Ok(())
    }

    /// Whether an expert is in a slot.
    #[must_use]
    pub fn is_in_slot(&self, expert: usize, slots: &Slots) -> bool {
        self.records.get(expert).is_some_and(|record| slots.cache.holds(*record))
    }

    /// Experts in slots are computed there. Of the others, those of many tokens are streamed, if that pays.
    fn parts(
        &self,
        chosen: &[(usize, f32)],
        uses: &BTreeMap<usize, usize>,
        cache: &SlotCache,
        records: &[Record],
    ) -> Parts {
        let holds = |e: usize| self.records.get(e).is_some_and(|record| cache.holds(*record));
        let (here, others): (Vec<usize>, Vec<usize>) = uses.keys().partition(|e| holds(**e));
        let from = cache.used.streams_from.filter(|_| !cache.ring().is_empty()).unwrap_or(usize::MAX);
        // What is on disk is not at hand when its turn comes.
        let record = |e: &usize| self.records.get(*e).and_then(|record| records.get(*record as usize));
        let streams =
            |e: &usize| uses.get(e).is_some_and(|n| *n >= from) && record(e).is_some_and(Record::is_in_memory);
        let streamed: Vec<usize> = others.into_iter().filter(streams).collect();
        let at_host = |e: &usize| !holds(*e) && !streamed.contains(e);
        let host = (0..).zip(chosen).filter(|(_, (e, _))| at_host(e)).map(|(pair, _)| pair).collect();
        Parts { here, streamed, host }
    }

    fn compute(
        &self,
        devices: &mut [Box<dyn Backend>],
        cache: &mut SlotCache,
        records: &[Record],
        chosen: &[(usize, f32)],
        parts: &Parts,
    ) -> Result<(), BackendError> {
        let own = slots(devices, self.device)?;
        own.compute(&parts.here)?;
        let x = if parts.host.is_empty() { Vec::new() } else { own.inputs()? };
        for (expert, slot) in parts.streamed.iter().zip(cache.ring().to_vec().into_iter().cycle()) {
            let record = self.records.get(*expert).copied().unwrap_or(u32::MAX);
            let bytes = put(own, records, slot, record)?;
            own.compute(&[*expert])?;
            cache.used.streamed += 1;
            cache.used.copied += bytes.unwrap_or(0);
        }
        let mut products = Vec::new();
        if !parts.host.is_empty() {
            let place = |pair: &usize| Some((pair / self.top_k.max(1), chosen.get(*pair)?.0));
            let pairs: Vec<Pair> = parts.host.iter().filter_map(place).collect();
            let host = host(devices, self.host)?;
            host.write(self.x.0, &x)?;
            let experts = Experts { list: &self.experts, activation: self.activation };
            products = host.experts(self.x.0, experts, &pairs)?;
        }
        slots(devices, self.device)?.end(&parts.host, &products)
    }

    /// Seconds that the host takes for so many tokens of one expert.
    fn host_time(&self, devices: &mut [Box<dyn Backend>], tokens: usize) -> Result<f64, BackendError> {
        let host = host(devices, self.host)?;
        let values: Vec<f32> = (0..tokens * self.x.1).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        host.write(self.x.0, &values)?;
        let pairs: Vec<Pair> = (0..tokens).map(|row| (row, 0)).collect();
        let experts = Experts { list: &self.experts, activation: self.activation };
        // The first time brings weights into memory.
        host.experts(self.x.0, experts, &pairs)?;
        let begin = Instant::now();
        host.experts(self.x.0, experts, &pairs)?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// The slots of a device.
pub fn slots(devices: &mut [Box<dyn Backend>], device: usize) -> Result<&mut dyn ExpertSlots, BackendError> {
    let slots = devices.get_mut(device).and_then(|device| device.slots());
    slots.ok_or_else(|| BackendError::Operand { op: "moe", what: "the device has no slots for experts".into() })
}

fn host(devices: &mut [Box<dyn Backend>], device: usize) -> Result<&mut Box<dyn Backend>, BackendError> {
    devices.get_mut(device).ok_or_else(|| BackendError::Operand { op: "moe", what: "there is no host".into() })
}

/// Copies a record into a slot, if its bytes are at hand: how many they are.
fn put(slots: &mut dyn ExpertSlots, records: &[Record], slot: usize, record: u32) -> Result<Option<u64>, BackendError> {
    let Some(parts) = records.get(record as usize).and_then(Record::parts) else { return Ok(None) };
    slots.fill(slot, record, &parts)?;
    Ok(Some(parts.iter().map(|(_, bytes)| bytes.len() as u64).sum()))
}

/// Copies a record into the slot that the cache gave it, or tells the cache that it cannot be had.
fn fill(
    slots: &mut dyn ExpertSlots,
    cache: &mut SlotCache,
    records: &[Record],
    slot: usize,
    record: u32,
) -> Result<(), BackendError> {
    match put(slots, records, slot, record) {
        Ok(Some(bytes)) => (cache.used.fills, cache.used.copied) = (cache.used.fills + 1, cache.used.copied + bytes),
        Ok(None) => cache.give_up(record),
        Err(error) => {
            cache.give_up(record);
            return Err(error);
        }
    }
    Ok(())
}

/// Fills the slots of an accelerator with the experts that come first, layer by layer in turn, and finds out by time from how many tokens
/// on an expert that is in no slot is better copied over than computed by the host.
///
/// # Errors
/// [`BackendError`].
pub fn warm(
    devices: &mut [Box<dyn Backend>],
    layers: &[&Shared],
    Slots { cache, records, .. }: &mut Slots,
    rows: usize,
) -> Result<(), BackendError> {
    let Some(first) = layers.first() else { return Ok(()) };
    let begin = Instant::now();
    let most = layers.iter().map(|layer| layer.records.len()).max().unwrap_or(0);
    for record in (0..most).flat_map(|e| layers.iter().filter_map(move |layer| layer.records.get(e).copied())) {
        let Some(slot) = cache.preload(record) else { continue };
        fill(slots(devices, first.device)?, cache, records, slot, record)?;
    }
    slots(devices, first.device)?.settle()?;
    let each = begin.elapsed().as_secs_f64() / cache.used.fills.max(1) as f64;
    let in_memory = first.records.first().is_some_and(|r| records.get(*r as usize).is_some_and(Record::is_in_memory));
    if cache.used.fills == 0 || cache.ring().is_empty() || !in_memory {
        return Ok(());
    }
    for tokens in TRIED.into_iter().filter(|tokens| *tokens <= rows) {
        if first.host_time(devices, tokens)? > each {
            cache.used.streams_from = Some(tokens);
            break;
        }
    }
    Ok(())
}
