//! Mixtures of experts that an accelerator and the host compute together. The accelerator has *slots*, a fixed number of equal
//! pieces of its memory, in which experts of all layers take turns; the host computes the pairs (token, expert) whose expert
//! is in no slot, from its own memory, at the same time.
//!
//! One layer goes so, with `device` the accelerator's [`ExpertSlots`] and `host` a [`Backend`]:
//!
//! ```text
//! chosen   = device.begin(moe, batch)              the router; rows × top_k
//! device.compute(experts in slots)                 starts, does not wait
//! host.write(x, device.inputs());  products = host.experts(moe's experts, the other pairs)
//! device.end(the other pairs, products)            out += Σ weight · product, as if one had computed all
//! device.fill(slot, record, …)                     who is in which slot later; starts, does not wait
//! ```
//!
//! What a row becomes does not depend on who computed which pair, as far as both have the same kernels: products come back unweighted,
//! and are added in the order in which the device alone would have added them.
//!
//! Owns: the seam. Refuses: who gets a slot (the runtime's policy), and where the bytes of experts come from.

use crate::{BackendError, Batch, ExpertWeights, Op, Weight, WeightId};
use ashlar_arch::Activation;
use ashlar_tensor::Bytes;
use std::ops::Range;

/// A token's row and the expert that it goes to.
pub type Pair = (usize, usize);

/// The experts of a mixture, for a host that computes some pairs of it ([`crate::Backend::experts`]).
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// All experts of the layer; of the host's own weights.
    pub list: &'a [ExpertWeights],
    /// Nonlinearity.
    pub activation: Activation,
}

/// A weight of an expert that lies in a slot from time to time.
#[derive(Clone, Debug)]
pub struct Slotted {
    /// What it is; without planes.
    pub weight: Weight,
    /// The record that it belongs to: gate, up and down of one expert are one record. Records are numbered through all layers.
    pub record: u32,
    /// Where its planes lie in the slot that holds the record; they begin at multiples of [`crate::SLOT_ALIGN`].
    pub planes: Vec<Range<usize>>,
}

/// An accelerator's side of mixtures that it computes together with the host.
pub trait ExpertSlots {
    /// Takes memory for `count` slots of `bytes` each, once, before the first token. It is of the arena's budget, but for `lent` of
    /// them, which stand in memory that is reserved for caches and not in use yet: they are [released](ExpertSlots::release)
    /// before caches grow into it.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    fn reserve(&mut self, count: usize, lent: usize, bytes: usize) -> Result<(), BackendError>;

    /// Gives up a slot and its memory, which caches may grow into.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is no such slot.
    fn release(&mut self, slot: usize) -> Result<(), BackendError>;

    /// Takes memory for a slot that was released again; false if there is none in one piece.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is no such slot.
    fn take_back(&mut self, slot: usize) -> Result<bool, BackendError>;

    /// Takes a weight that will come and go; it may stand in the mixtures of experts of [`ExpertSlots::begin`] only.
    ///
    /// # Errors
    /// [`BackendError`] if the format is unsupported, or its planes cannot be those of its shape.
    fn describe(&mut self, weight: Slotted) -> Result<WeightId, BackendError>;

    /// Puts a record into a slot: `parts` are its bytes, each with the place in the slot where they begin. What was there is gone, for ops that
    /// begin later. The copy may go on while other ops run, and ops that use the record wait for it.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if there is no such slot, it was released, or a part lies beyond it; [`BackendError::Device`]. The slot is empty then.
    fn fill(&mut self, slot: usize, record: u32, parts: &[(usize, Bytes)]) -> Result<(), BackendError>;

    /// Waits for all fills.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn settle(&mut self) -> Result<(), BackendError>;

    /// Begins a mixture: returns where the rows go, rows × top_k, best first, with weights.
    ///
    /// # Errors
    /// As of running the op; [`BackendError::Operand`] also if the one before was not ended.
    fn begin(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError>;

    /// The rows that experts read, rows × hidden, between [`ExpertSlots::begin`] and [`ExpertSlots::end`]. Does not wait for
    /// [`ExpertSlots::compute`].
    ///
    /// # Errors
    /// [`BackendError`].
    fn inputs(&mut self) -> Result<Vec<f32>, BackendError>;

    /// Starts on all pairs of these experts, which are in slots. May be called again for others, after fills too.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if one is in no slot.
    fn compute(&mut self, experts: &[usize]) -> Result<(), BackendError>;

    /// Ends the mixture: adds to its output what was computed here, and for the other pairs, which are given as places in what
    /// [`ExpertSlots::begin`] returned, ascending, `products`, pairs × hidden: down(…) with its bias, unweighted.
    ///
    /// # Errors
    /// [`BackendError::Operand`] unless every pair is there exactly once. The mixture is over in any case.
    fn end(&mut self, pairs: &[usize], products: &[f32]) -> Result<(), BackendError>;
}

/// `out += Σ over a row's pairs of weight · product`, in ascending order of experts, as kernels on the processor add them.
/// `chosen`: rows × top_k; `products`: as many × hidden.
pub(crate) fn combine(out: &mut [f32], chosen: &[(usize, f32)], products: &[f32], hidden: usize) {
    let top_k = chosen.len() / (out.len() / hidden.max(1)).max(1);
    let mut order: Vec<usize> = (0..top_k).collect();
    for (row, (out, chosen)) in out.chunks_exact_mut(hidden.max(1)).zip(chosen.chunks_exact(top_k.max(1))).enumerate() {
        order.sort_by_key(|k| chosen.get(*k).map(|c| c.0));
        for &k in &order {
            let Some((_, weight)) = chosen.get(k) else { continue };
            let first = (row * top_k + k) * hidden;
            let product = products.get(first..first + hidden).unwrap_or_default();
            out.iter_mut().zip(product).for_each(|(to, product)| *to += weight * product);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_by_ascending_expert_whatever_their_rank() {
        // 1e8 + 1 - 1e8 depends on the order: 0 if 1 is lost.
        let chosen = [(7, 1.0), (2, 1.0), (4, 1.0)];
        let products = [-1e8, 1e8, 1.0];
        let mut out = [0.0];
        combine(&mut out, &chosen, &products, 1);
        assert_eq!(out, [(1e8f32 + 1.0) - 1e8]);
        let mut rows = [1.0, 2.0, 3.0, 4.0];
        combine(&mut rows, &[(0, 2.0), (1, 0.5)], &[1.0, 1.0, 4.0, 8.0], 2);
        assert_eq!(rows, [3.0, 4.0, 5.0, 8.0]);
    }
}
