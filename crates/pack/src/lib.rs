//! Where the bytes of a pack lie: `docs/format.md` in code.
//!
//! A pack is a directory of literally valid safetensors shards and a manifest, `ashlar.json`. [`plan_layout`] decides
//! every offset before a weight is read; [`Writer`] fills the shards at those offsets in any order, keeps a journal so
//! that a killed run can go on, and publishes by rename; [`Part`]s of a pack are written apart and assembled; [`Pack`] reads the result defensively and is a
//! [`ashlar_tensor::TensorStore`].
//!
//! Owns: shards, padding, records, the manifest, checksums, the journal. Refuses: what the bits of a weight mean: a
//! format is an opaque string here (`formats`), and so is what a converter measured (`convert`).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod checksum;
mod direct;
mod error;
mod header;
mod journal;
mod layout;
mod manifest;
mod part;
mod partial;
mod publish;
mod reader;
mod unpublished;
mod verify;
mod writer;

pub use blake3::Hash;
pub use checksum::{Piece, TreeHash};
pub use direct::{DirectFile, PAGE, PageBuffer};
pub use error::PackError;
pub use journal::{Done, Fingerprint};
pub use layout::{
    Content, DEFAULT_SHARD_BYTES, Layout, Record, RecordSpec, Shard, StoredPlane, Tensor, TensorSpec, plan_layout,
};
pub use manifest::{MANIFEST_FILE, Manifest, SealedRecord, VERSION, pack_config};
pub use part::{Part, PartManifest, assemble, remove_part};
pub use partial::Target;
pub use reader::Pack;
pub use unpublished::Unpublished;
pub use verify::Damage;
pub use writer::{Direct, WriteAt, Writer, free_bytes};
