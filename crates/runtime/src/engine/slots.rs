//! Which request holds which slot, and what free slots still hold of ended ones.

use super::request::Running;
use crate::KvUse;

/// The slots of a model.
pub struct Slots {
    all: Vec<Slot>,
    clock: u64,
}

#[derive(Default)]
struct Slot {
    running: Option<Running>,
    /// Tokens whose keys and values lie in a free slot.
    held: Vec<u32>,
    /// When it was left.
    left: u64,
}

impl Slot {
    /// Tokens whose keys and values it holds.
    fn tokens(&self) -> &[u32] {
        self.running.as_ref().map_or(&self.held, Running::fed_tokens)
    }
}

impl Slots {
    /// So many, all empty.
    pub fn new(count: usize) -> Self {
        Self { all: (0..count).map(|_| Slot::default()).collect(), clock: 0 }
    }

    /// Slots in use, with their requests.
    pub fn busy(&self) -> impl Iterator<Item = (usize, &Running)> {
        self.all.iter().enumerate().filter_map(|(i, s)| Some((i, s.running.as_ref()?)))
    }

    /// Slots and the tokens whose keys and values they hold.
    pub fn holders(&self) -> impl Iterator<Item = (usize, &[u32])> {
        self.all.iter().map(Slot::tokens).enumerate()
    }

    /// The number of slots not in use.
    pub fn free(&self) -> usize {
        self.all.len() - self.busy().count()
    }

    /// The slot of a request.
    pub fn of(&self, id: u64) -> Option<usize> {
        self.busy().find(|(_, r)| r.id == id).map(|(slot, _)| slot)
    }

    /// The request of a slot.
    pub fn get(&self, slot: usize) -> Option<&Running> {
        self.all.get(slot)?.running.as_ref()
    }

    /// As [`Slots::get`], to be changed.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Running> {
        self.all.get_mut(slot)?.running.as_mut()
    }

    /// The free slot that holds most of the beginning of `tokens` (of equal ones the one left longest ago), and how many
    /// positions can be used again: never all, because the last token's logits are wanted.
    pub fn choose(&self, tokens: &[u32], kv: &KvUse) -> Option<(usize, usize)> {
        let most = tokens.len().saturating_sub(1);
        let usable = |(i, slot): (usize, &Slot)| {
            let common = slot.held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (i, kv.go_on(i, common.min(most).min(kv.held(i))), slot.left)
        };
        let free = self.all.iter().enumerate().filter(|(_, s)| s.running.is_none());
        let best = free.map(usable).max_by_key(|(_, common, left)| (*common, std::cmp::Reverse(*left)))?;
        Some((best.0, best.1))
    }

    /// Gives a free slot to a request.
    pub fn occupy(&mut self, slot: usize, running: Running) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.held.clear();
            slot.running = Some(running);
        }
    }

    /// Takes the request out of a slot; what was fed stays known.
    pub fn leave(&mut self, slot: usize) -> Option<Running> {
        self.clock += 1;
        let slot = self.all.get_mut(slot)?;
        let running = slot.running.take()?;
        slot.held = running.fed_tokens().to_vec();
        slot.left = self.clock;
        Some(running)
    }

    /// A free slot holds nothing any more.
    pub fn forget(&mut self, slot: usize) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.held.clear();
        }
    }

    /// Forgets what the free slot holds that was left longest ago, other than `keep`, and names it.
    pub fn drop_oldest(&mut self, keep: usize) -> Option<usize> {
        let idle = |(i, s): &(usize, &mut Slot)| *i != keep && s.running.is_none() && !s.held.is_empty();
        let (index, slot) = self.all.iter_mut().enumerate().filter(idle).min_by_key(|(_, s)| s.left)?;
        slot.held.clear();
        Some(index)
    }
}
