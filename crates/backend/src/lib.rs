//! What a device must be able to do: the op set, the [`Backend`] trait, the slow obvious reference, the conformance
//! suite that every backend passes.
#![forbid(unsafe_code)]

use ashlar_formats::Spec;
use std::ops::Range;

mod arena;
mod batch;
mod clock;
pub mod conformance;
mod gated;
mod kv;
mod native;
mod observe;
mod op;
mod operands;
mod reference;
mod rope;
mod round;
mod route;
mod slots;
mod streamed;
mod survey;
mod virtual_device;
mod weight;

pub use arena::{ARENA_ALIGN, Arena, Reserved, SLOT_ALIGN, slot_bytes};
pub use batch::{Batch, SequenceRows};
pub use clock::{Clock, Engine, Job, Speeds, Ticket};
pub use gated::gated;
pub use kv::{
    CacheShape, Held, KV_KEPT, KV_PAGE, KV_SAVED, KvFormat, KvHeads, Q8_VALUE_GROUP, Stored, can_go_on, forgotten,
    round_q8, to_f16, tokens_held,
};
pub use native::{EntryFormat, round_key};
pub use observe::{MatmulInput, Observer, Routed, first_columns};
pub use op::{
    ActivationMode, AttentionOptions, Blocks, BufferId, CacheId, Entries, ExpertWeights, HeadNorm, HeadRope,
    HyperLanes, MoeOptions, Op, Projection, Support, WeightId,
};
pub use operands::{Access, Operand, Operands};
pub use reference::Reference;
pub use rope::RopeTable;
pub use round::{INT8_GROUP, int8_scale, round_bf16, round_int8, round_row};
pub use route::{check as check_routing, route, weights_of};
pub use slots::{ExpertSlots, Experts, Pair, Slotted};
pub use streamed::{Arrived, Records, Streamed};
pub use survey::{Ask, SURVEY_MOST, SURVEY_SPAN, Span, Survey, Surveyor, rank, ranked, survey};
pub use virtual_device::Virtual;
pub use weight::Weight;

/// Why a backend refuses or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The weight's bytes or format.
    #[error("tensor `{tensor}`: {source}")]
    Format {
        /// Tensor name.
        tensor: String,
        /// What is wrong.
        source: ashlar_formats::FormatError,
    },
    /// The backend has no such op, or not with these operands.
    #[error("{backend}: {op} is not supported: {why}")]
    Unsupported {
        /// Backend name.
        backend: &'static str,
        /// Op name.
        op: &'static str,
        /// Reason and remedy.
        why: String,
    },
    /// Not enough memory on the device.
    #[error("{backend}: {what} needs {needed} bytes, {free} are free; {remedy}")]
    Memory {
        /// Backend name.
        backend: &'static str,
        /// What was to be allocated.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// What to do.
        remedy: String,
    },
    /// A cache or buffer is too small for the batch.
    #[error("{what}: {got} exceeds the capacity {capacity}")]
    Capacity {
        /// What is full.
        what: String,
        /// Asked for.
        got: usize,
        /// Available.
        capacity: usize,
    },
    /// The device is not there, or failed.
    #[error("{what}")]
    Device {
        /// Backend name.
        backend: &'static str,
        /// What happened, and the remedy.
        what: String,
    },
    /// Bad operands: a bug of the program builder, reported rather than panicking.
    #[error("{op}: {what}")]
    Operand {
        /// Op name.
        op: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// What a device keeps besides weights, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Buffers, as far as they were ever filled.
    pub activations: u64,
    /// What caches hold of sequences.
    pub caches: u64,
}

/// A device that loads weights, holds activations and KV caches, and runs ops in order.
pub trait Backend: Send {
    /// Name for messages and reports, such as `cpu (avx512_vnni, 16 threads)`.
    fn describe(&self) -> String;

    /// Whether the device runs `op` on weights of this format natively, by decoding first, or not at all.
    fn support(&self, spec: &Spec) -> Support;

    /// What the user should know about the weights loaded so far, such as those that no kernel reads as they lie.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How inputs of weights of this format are rounded. The reference in the same mode is what kernels are held to.
    fn activations(&self, spec: &Spec) -> ActivationMode;

    /// Takes a weight. Mapped planes are kept as they are where a native kernel reads them.
    ///
    /// # Errors
    /// [`BackendError`] if the format is unsupported or memory is short.
    fn load(&mut self, weight: Weight) -> Result<WeightId, BackendError>;

    /// Whether its mixtures of experts take weights that are not in memory ([`Backend::load_streamed`]).
    fn streams(&self) -> bool {
        false
    }

    /// Takes a weight of an expert whose bytes come when it is used.
    ///
    /// # Errors
    /// [`BackendError`] if the device cannot, the format is unsupported, or its planes cannot be those of its shape.
    fn load_streamed(&mut self, weight: Streamed) -> Result<WeightId, BackendError> {
        let why = format!("`{}` would be read as it is used; place it in memory", weight.weight.name);
        Err(BackendError::Unsupported { backend: "this device", op: "moe", why })
    }

    /// An f32 matrix of up to `rows` rows of exactly `width` values; it holds no rows yet.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    fn alloc(&mut self, rows: usize, width: usize) -> Result<BufferId, BackendError>;

    /// A cache of one layer. Memory may be taken as sequences grow, but never more than the shape says.
    ///
    /// # Errors
    /// [`BackendError::Memory`].
    fn alloc_cache(&mut self, shape: &CacheShape) -> Result<CacheId, BackendError>;

    /// Cuts a slot of every cache back to its first `positions`; the pages behind them are free again.
    fn truncate(&mut self, slot: usize, positions: usize);

    /// The name of what [`Backend::save`] writes; `None` for a device that cannot. What a device saved, every device of the same
    /// name may restore that holds the same weights: it computes the same bits from it.
    fn saved_as(&self) -> Option<String> {
        None
    }

    /// Appends to `out` what a cache holds of the positions `range` of a slot, which begins and ends at multiples of
    /// [`KV_SAVED`]. Returns whether a sequence can go on at `range.end` with this and all that was saved before it: false
    /// if a window has forgotten what that would need.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`]; [`BackendError::Operand`] if there is no such cache, slot or range.
    fn save(
        &mut self,
        _cache: CacheId,
        _slot: usize,
        _range: Range<usize>,
        _out: &mut Vec<u8>,
    ) -> Result<bool, BackendError> {
        Err(no_save("save"))
    }

    /// Takes back the bytes that [`Backend::save`] wrote, behind what the slot holds before `range`. The slot holds
    /// [`Held::restored`] then.
    ///
    /// # Errors
    /// As [`Backend::save`]; [`BackendError::Operand`] also if the bytes are not those of such a range, and
    /// [`BackendError::Memory`]. The slot is to be cut back to 0 then.
    fn restore(
        &mut self,
        _cache: CacheId,
        _slot: usize,
        _range: Range<usize>,
        _bytes: &[u8],
    ) -> Result<(), BackendError> {
        Err(no_save("restore"))
    }

    /// Memory of the device besides weights.
    fn memory(&self) -> Memory;

    /// The budget of a device that reserves all memory before the first token; `None` for one that takes it as it goes.
    fn arena(&self) -> Option<&Arena> {
        None
    }

    /// Runs one op on the rows of `batch`. `observer`, for calibration, sees what its matmuls read.
    ///
    /// # Errors
    /// [`BackendError`]; [`BackendError::Unsupported`] if there is an observer and the device has no taps.
    fn run(&mut self, op: &Op, batch: &Batch, observer: Option<&mut dyn Observer>) -> Result<(), BackendError>;

    /// Experts that a mixture which runs later in this batch will use, ascending, as far as that can be known: those that a table names
    /// for the tokens, or those that its router would choose for the rows of `like`, which resemble what it will read. None by
    /// default.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if `moe` is no such op, or its operands are wrong.
    fn likely(&mut self, moe: &Op, like: Option<BufferId>, batch: &Batch) -> Result<Vec<usize>, BackendError> {
        let _ = (moe, like, batch);
        Ok(Vec::new())
    }

    /// Where the rows of a mixture go, rows × top_k, best first, with weights; its experts are not read.
    ///
    /// # Errors
    /// As of running the op; [`BackendError::Unsupported`] by default.
    fn route(&mut self, moe: &Op, batch: &Batch) -> Result<Vec<(usize, f32)>, BackendError> {
        let _ = (moe, batch);
        Err(no_parts("route"))
    }

    /// What experts make of rows of `x`: for every pair down(activation(gate · x, up · x)) with its bias, unweighted; pairs × hidden.
    ///
    /// # Errors
    /// [`BackendError::Operand`] for a row or an expert that is not there; [`BackendError::Unsupported`] by default.
    fn experts(&mut self, x: BufferId, experts: Experts<'_>, pairs: &[Pair]) -> Result<Vec<f32>, BackendError> {
        let _ = (x, experts, pairs);
        Err(no_parts("experts"))
    }

    /// Its slots for experts; `None` for a device that has none.
    fn slots(&mut self) -> Option<&mut dyn ExpertSlots> {
        None
    }

    /// Copies the current rows of a buffer to the host (rows × width, row-major).
    ///
    /// # Errors
    /// [`BackendError`].
    fn read(&mut self, buffer: BufferId) -> Result<Vec<f32>, BackendError>;

    /// What it can tell of logits without handing them over; `None` for a device whose memory is the host's.
    fn surveyor(&mut self) -> Option<&mut dyn Surveyor> {
        None
    }

    /// Replaces the rows of a buffer by `values` (rows × width, row-major): activations that come from another device.
    ///
    /// # Errors
    /// [`BackendError::Operand`] if they are no whole rows, [`BackendError::Capacity`] if they are too many.
    fn write(&mut self, buffer: BufferId, values: &[f32]) -> Result<(), BackendError>;
}

fn no_parts(op: &'static str) -> BackendError {
    let why = "this device computes mixtures of experts as a whole".to_owned();
    BackendError::Unsupported { backend: "device", op, why }
}

fn no_save(op: &'static str) -> BackendError {
    let why = "this device keeps no keys and values outside itself".to_owned();
    BackendError::Unsupported { backend: "device", op, why }
}
