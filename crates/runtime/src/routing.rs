//! Which experts tokens were routed to, recorded and replayed: how often a cache of experts would have hit.
//!
//! The cast: [`Routes`] (a recording, in the route_trace format), [`Recorder`] (makes one while a model runs), `cache` and `score` (slots and
//! who gets them), [`replay`] (a recording through a policy). Pure but for the recorder: no device, no clock.

mod cache;
mod recorder;
mod replay;
mod routes;
mod score;

pub use cache::{Admission, ExpertCache, Filled};
pub use recorder::{Recorder, record};
pub use replay::{Links, Policy, Replay, Replayed, replay};
pub use routes::{LayerBytes, LayerStep, Routes, RoutesError};
pub use score::Ema;
