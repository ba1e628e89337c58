//! Slots of the virtual device: copies in memory of its own, as a card's would be, from which the kernels beneath compute.

use super::Virtual;
use crate::{
    Arrived, BackendError, Batch, BufferId, ExpertSlots, ExpertWeights, Experts, Op, Pair, Records, Slotted, Streamed,
    WeightId, slots,
};
use ashlar_arch::Activation;
use ashlar_tensor::{AlignedBytes, Bytes};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const OP: &str = "slots";

/// What is in the slots, as records for the kernels beneath.
#[derive(Default)]
pub struct Store(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Bytes of a slot.
    bytes: usize,
    slots: Vec<Slot>,
    /// What an op asked for and did not get yet.
    wanted: Vec<u32>,
}

enum Slot {
    /// The record that is there, and the memory, which only a fill lacks.
    Held {
        record: Option<u32>,
        bytes: Option<Bytes>,
    },
    Released,
}

impl Slot {
    fn new(bytes: usize) -> Option<Self> {
        AlignedBytes::zeroed(bytes).map(|bytes| Self::Held { record: None, bytes: Some(bytes.into()) })
    }

    fn bytes_of(&self, wanted: u32) -> Option<Bytes> {
        match self {
            Self::Held { record, bytes } if *record == Some(wanted) => bytes.clone(),
            _ => None,
        }
    }
}

impl Held {
    fn slot(&mut self, slot: usize) -> Result<&mut Slot, BackendError> {
        let count = self.slots.len();
        self.slots.get_mut(slot).ok_or_else(|| wrong(format!("there is no slot {slot}, only {count}")))
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for Store {
    fn begin(&self, used: &[(u32, usize)], _rows: usize) -> Vec<Range<usize>> {
        self.lock().wanted = used.iter().map(|(record, _)| *record).collect();
        std::iter::once(0..used.len()).collect()
    }

    fn take(&self, _window: usize) -> Result<Vec<Arrived>, BackendError> {
        let mut held = self.lock();
        let wanted = std::mem::take(&mut held.wanted);
        let found = |record: u32| Some((record, held.slots.iter().find_map(|slot| slot.bytes_of(record))?));
        let missing = |record| BackendError::Operand { op: OP, what: format!("record {record} is in no slot") };
        wanted.into_iter().map(|record| found(record).ok_or_else(|| missing(record))).collect()
    }
}

/// A mixture between its begin and its end.
pub struct Mixture {
    x: BufferId,
    out: BufferId,
    experts: Arc<[ExpertWeights]>,
    activation: Activation,
    top_k: usize,
    hidden: usize,
    chosen: Vec<(usize, f32)>,
    /// Pairs × hidden.
    products: Vec<f32>,
    /// Whether a pair's product is there.
    done: Vec<bool>,
}

impl Mixture {
    /// Takes the products of some pairs.
    fn put(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError> {
        let hidden = self.hidden.max(1);
        let rows = products.chunks_exact(hidden);
        if rows.len() != pairs.len() || !rows.remainder().is_empty() {
            return Err(wrong(format!("{} values for {} pairs of {hidden}", products.len(), pairs.len())));
        }
        for (&pair, product) in pairs.iter().zip(rows) {
            let to = self.products.get_mut(pair * hidden..(pair + 1) * hidden);
            let (Some(to), Some(done @ false)) = (to, self.done.get_mut(pair)) else {
                return Err(wrong(format!("pair {pair} of {} is not there, or was computed before", self.done.len())));
            };
            to.copy_from_slice(product);
            *done = true;
        }
        Ok(())
    }
}

fn wrong(what: String) -> BackendError {
    BackendError::Operand { op: OP, what }
}

impl Virtual {
    fn mixture(&mut self) -> Result<&mut Mixture, BackendError> {
        self.mixture.as_mut().ok_or_else(|| wrong("no mixture of experts was begun".into()))
    }
}

impl ExpertSlots for Virtual {
    fn reserve(&mut self, count: usize, lent: usize, bytes: usize) -> Result<(), BackendError> {
        self.arena.slots(count.saturating_sub(lent), bytes)?;
        let what = || format!("memory for {count} slots of {bytes} bytes cannot be had");
        let slots = (0..count).map(|_| Slot::new(bytes)).collect::<Option<Vec<_>>>();
        let slots = slots.ok_or_else(|| wrong(what()))?;
        *self.store.lock() = Held { bytes, slots, wanted: Vec::new() };
        Ok(())
    }

    fn release(&mut self, slot: usize) -> Result<(), BackendError> {
        *self.store.lock().slot(slot)? = Slot::Released;
        Ok(())
    }

    fn take_back(&mut self, slot: usize) -> Result<bool, BackendError> {
        let mut held = self.store.lock();
        let bytes = held.bytes;
        let place = held.slot(slot)?;
        if let (Slot::Released, Some(new)) = (&place, Slot::new(bytes)) {
            *place = new;
        }
        Ok(!matches!(place, Slot::Released))
    }

    fn describe(&mut self, weight: Slotted) -> Result<WeightId, BackendError> {
        let records = Arc::clone(&self.store) as Arc<dyn Records>;
        let Slotted { weight, record, planes } = weight;
        self.inner.load_streamed(Streamed { weight, records, record, planes })
    }

    fn fill(&mut self, slot: usize, record: u32, parts: &[(usize, Bytes)]) -> Result<(), BackendError> {
        let mut held = self.store.lock();
        let size = held.bytes;
        let place = held.slot(slot)?;
        let Slot::Held { record: there, bytes: own } = place else {
            return Err(wrong(format!("slot {slot} was released")));
        };
        *there = None;
        // An op that failed may still have it.
        let own = own.take().and_then(|bytes| bytes.try_into_heap().ok()).or_else(|| AlignedBytes::zeroed(size));
        let mut bytes = own.ok_or_else(|| wrong(format!("memory for slot {slot} cannot be had")))?;
        let mut fits = true;
        for (at, part) in parts {
            match bytes.get_mut(*at..).and_then(|rest| rest.get_mut(..part.len())) {
                Some(to) => to.copy_from_slice(part),
                None => fits = false,
            }
        }
        *place = Slot::Held { record: fits.then_some(record), bytes: Some(bytes.into()) };
        if fits { Ok(()) } else { Err(wrong(format!("record {record} is larger than a slot of {size} bytes"))) }
    }

    fn settle(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn begin(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        if self.mixture.is_some() {
            return Err(wrong("the mixture of experts before was not ended".into()));
        }
        let chosen = self.inner.route(moe, batch)?;
        let Op::Moe { x, routing, out, experts, activation, .. } = moe else {
            return Err(wrong(format!("{} is no mixture of experts", moe.name())));
        };
        let top_k = routing.top_k.max(1);
        let hidden = self.inner.read(*x)?.len() / (chosen.len() / top_k).max(1);
        self.mixture = Some(Mixture {
            x: *x,
            out: *out,
            experts: Arc::clone(experts),
            activation: *activation,
            top_k,
            hidden,
            products: vec![0.0; chosen.len() * hidden],
            done: vec![false; chosen.len()],
            chosen: chosen.clone(),
        });
        Ok(chosen)
    }

    fn inputs(&mut self) -> Result<Vec<f32>, BackendError> {
        let x = self.mixture()?.x;
        self.inner.read(x)
    }

    fn compute(&mut self, experts: &[usize]) -> Result<(), BackendError> {
        let mixture = self.mixture()?;
        let (x, list, activation) = (mixture.x, Arc::clone(&mixture.experts), mixture.activation);
        let own: Vec<usize> =
            (0..).zip(&mixture.chosen).filter(|(_, (e, _))| experts.contains(e)).map(|p| p.0).collect();
        let pair = |place: &usize| Some((place / mixture.top_k, mixture.chosen.get(*place)?.0));
        let pairs: Vec<Pair> = own.iter().filter_map(pair).collect();
        let products = self.inner.experts(x, Experts { list: &list, activation }, &pairs)?;
        self.mixture()?.put(&own, &products)
    }

    fn end(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError> {
        let mut mixture = self.mixture.take().ok_or_else(|| wrong("no mixture of experts was begun".into()))?;
        mixture.put(pairs, products)?;
        if let Some(missing) = mixture.done.iter().position(|done| !done) {
            return Err(wrong(format!("nobody computed pair {missing} of {}", mixture.done.len())));
        }
        let mut out = self.inner.read(mixture.out)?;
        slots::combine(&mut out, &mixture.chosen, &mixture.products, mixture.hidden);
        self.inner.write(mixture.out, &out)
    }
}
