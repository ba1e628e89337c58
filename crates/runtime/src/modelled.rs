//! Modelled time: what a run would take on the machine that a placement describes, while it really runs here. Every device of a
//! rehearsal is wrapped ([`Modelled`]); what is asked of it is done, and handed to one [`ashlar_backend::Clock`] as well, in the order and with
//! the dependencies in which the executor asked: one op after the other, but for mixtures that an accelerator and the host
//! compute together, and copies to slots, which go on beside what follows.
//!
//! Owns: bytes and multiply-adds of ops. Refuses: results, which are those of the wrapped device; experts that come from the disk, whose
//! reads the wrapped device hides.

mod device;
mod ledger;
#[cfg(test)]
mod tests;

use crate::devices;
use crate::fit::speeds;
use crate::placement::Placement;
use ashlar_backend::{Backend, Batch, Engine};
use ashlar_recipe::Hardware;
use device::Modelled;
use ledger::Shared;

/// What was decoded and prefilled so far, in modelled time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelledUse {
    /// What the machine is called.
    pub machine: String,
    /// Tokens of prompts, and the seconds that they would have taken.
    pub prompt: (u64, f64),
    /// Tokens decoded, and their seconds.
    pub decode: (u64, f64),
}

impl ModelledUse {
    /// Tokens per second of decoding, all sequences together; `None` before the first token.
    #[must_use]
    pub fn tokens_per_s(&self) -> Option<f64> {
        let (tokens, seconds) = self.decode;
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// The modelled machine of a model that runs.
pub(crate) struct Modelling {
    ledger: Shared,
    begun: f64,
}

impl Modelling {
    /// Wraps fresh devices, those of a placement, if some of them are rehearsed and the machine is described.
    pub fn wrap(
        machine: &str,
        hardware: Option<Hardware>,
        placement: &Placement,
        devices: Vec<Box<dyn Backend>>,
    ) -> (Vec<Box<dyn Backend>>, Option<Self>) {
        let kinds: Vec<_> = placement.devices.iter().map(|share| share.offer.device).collect();
        let Some(hardware) = hardware.filter(|_| kinds.iter().any(|d| devices::is_rehearsed(*d))) else {
            return (devices, None);
        };
        let ledger = Shared::new(speeds(&hardware), machine);
        let engine = |device| if devices::is_rehearsed(device) { Engine::Device } else { Engine::Host };
        let wrapped = devices
            .into_iter()
            .zip(kinds)
            .map(|(inner, device)| Box::new(Modelled::new(inner, engine(device), ledger.clone())) as Box<dyn Backend>);
        (wrapped.collect(), Some(Self { ledger, begun: 0.0 }))
    }

    /// Loading is over, or a batch begins: everything before it has ended, but for copies to slots.
    pub fn begin(&mut self) {
        self.begun = self.ledger.lock().wait();
    }

    /// A batch has run.
    pub fn end(&mut self, batch: &Batch) {
        self.ledger.lock().book(self.begun, batch.rows(), batch.rows() > batch.sequences.len());
    }

    /// What was booked so far.
    pub fn used(&self) -> ModelledUse {
        self.ledger.lock().used()
    }
}
