//! Weights as bytes: dtypes, aligned and mapped buffers, and the [`TensorStore`] trait that checkpoints and packs share.
//!
//! Owns: what a dtype is, where bytes live in memory, how a reader asks for a weight. Refuses: what the bits of a
//! quantized weight mean (`formats`) and how files are parsed (`source`, `pack`).

mod bytes;
mod dtype;
mod report;
mod store;

pub use bytes::{AlignedBytes, Bytes};
pub use dtype::Dtype;
pub use report::{Report, Silent};
pub use store::{Entry, FilePlace, Order, Plane, PlaneKind, StoreError, TensorStore};
