//! Checkpoint to pack in one pass.
//!
//! [`plan`] turns a model, its store and a recipe's choices into a [`Plan`]: every size and offset, from headers alone.
//! [`convert`] carries it out: read rows → decode to f32 → quantize → write at the known offset, on all cores, within a
//! bound of memory, resumable, and byte-identical however many threads took part. [`verify`] checks a pack and compares
//! it with its source. [`stats`] reads what `ashlar calibrate` learned of a model's activations; [`Knowledge`] is how it,
//! or whoever else knows something, tells the quantizers.
//!
//! [`convert_part`] and [`merge`] do the same on many machines. [`allocate`] chooses formats for a budget.
//!
//! Owns: the work list, the pipeline, its memory bound, what was lost (`Summary`). Refuses: which format a tensor gets
//! (`recipe`), how bits are chosen (`quantize`), where bytes lie in the file (`pack`).
#![forbid(unsafe_code)]

pub mod allocate;
mod budget;
mod conversion;
mod error;
mod factors;
mod jobs;
mod knowledge;
mod measure;
mod parts;
mod pipeline;
mod plan;
mod pool;
mod record;
mod stamp;
pub mod stats;
mod tile;
mod verify;
mod work;

pub use conversion::{Conversion, Options, convert, convert_through};
pub use error::ConvertError;
pub use knowledge::Knowledge;
pub use measure::{ClassSummary, Loss, Summary};
pub use parts::{convert_part, merge};
pub use plan::{ClassTotal, Memory, Origin, Plan, PlannedTensor, plan, planned_bytes};
pub use verify::{Comparison, VerifyReport, verify};
