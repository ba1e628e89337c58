//! Which experts tokens were routed to, recorded and replayed: how often a cache of experts would have hit.
//!
//! The cast: [`Routes`] (a recording, in the route_trace format), [`Recorder`] (makes one while a model runs), `cache` and `score` (slots and
//! who gets them), [`replay`] (a recording through a policy), `timeline` (how long that takes on a machine), `guess` (reading the next
//! layer's experts ahead). Pure but for the recorder: no device, and no clock but a modelled one.

mod cache;
mod guess;
mod recorder;
mod replay;
mod routes;
mod score;
mod timeline;

pub use cache::{Admission, ExpertCache, Filled};
pub use guess::{Guesser, LookAhead, Pairs, look_ahead};
pub use recorder::{Recorder, record};
pub use replay::{Policy, Replay, Replayed, Tiers, replay};
pub use routes::{LayerBytes, LayerStep, Routes, RoutesError};
pub use score::Ema;
pub use timeline::{LayerUse, Machine, Shares, Timeline};
