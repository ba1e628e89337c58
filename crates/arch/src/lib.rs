//! Models as data: a family turns a Hugging Face config into a [`ModelSpec`].
//!
//! Owns: tensor names, shapes and roles, layer structure, rope parameters, routing rules. Refuses: bytes, devices,
//! formats. A family is one file in `families/` and one line in `families/mod.rs`.
#![forbid(unsafe_code)]

mod blocks;
mod chat;
mod check;
mod config;
mod counts;
mod error;
mod families;
mod generic;
mod latent;
mod nearest;
mod rope;
mod spec;
mod tensors;

pub use chat::{ChatEncoding, Efforts};
pub use check::check;
pub use error::{ArchError, TensorProblem};
pub use families::gguf::{
    Gguf, GgufError, GgufModel, GgufWeight, ROPE_FACTORS, TokenizerFiles, gguf, gguf_architectures, tokenizer,
};
pub use families::{chat_encoding, families, model_spec};
pub use generic::generic;
pub use nearest::nearest;
pub use spec::{
    Activation, Attention, Class, CompressedAttention, Compressor, Expert, Ffn, GatedMlp, Groups, Hyper, Indexer,
    Lanes, LatentAttention, Layer, Leaf, Mixer, ModelSpec, Moe, Proj, Role, Rope, RopeScaling, Routing, Scores, Shared,
};
pub use tensors::Tensors;
