//! Checkpoints: a Hugging Face directory (or one safetensors file with its `config.json`), or a GGUF file, as a
//! [`TensorStore`](ashlar_tensor::TensorStore).
//!
//! Owns: the safetensors header ([`Header`]), the shard index, `config.json` as JSON, FP8 and packed FP4 weights paired with
//! their scales, fused experts taken apart, GGUF's header ([`GgufHeader`]) and blocks, positioned reads and lazy maps. Refuses: what a
//! config or a GGUF key means (`arch`), what bits mean (`formats`), packs (`pack`), any other container.
//!
//! Every input is taken to be hostile. Sizes and offsets come from the file and are believed only after they have been
//! compared with the size the operating system reports; nothing is allocated that the file is too small to justify; all
//! arithmetic on them is checked. What a caller sees of an open [`Checkpoint`] therefore holds: names are unique and
//! printable, shapes do not overflow, ranges lie inside their file and overlap nothing.
//!
//! Start at [`Checkpoint::open`]; the layout of a safetensors file is described in [`Header`]. Format reference:
//! <https://huggingface.co/docs/safetensors>.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

mod blocks;
mod checkpoint;
mod config;
mod error;
mod find;
mod fp8;
mod fused;
mod gguf;
mod header;
mod index;
mod nibbles;
mod packed;
mod place;
mod quantized;
mod shard;
mod shards;
mod side;
mod strided;
mod tensor_file;
#[cfg(test)]
mod testing;
mod text;

pub use checkpoint::Checkpoint;
pub use config::parse_config;
pub use error::SourceError;
pub use gguf::header::{GgufHeader, GgufTensor};
pub use gguf::split::siblings as gguf_parts;
pub use header::{Header, TensorInfo};
pub use index::parse_index;
pub use side::SideDir;
pub use tensor_file::TensorFile;
