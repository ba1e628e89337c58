//! What a GGUF file says of its model, in the words of Hugging Face checkpoints: config, tensor names, tokenizer.
//!
//! Owns: which architectures of GGUF are which families, their metadata keys and tensor names. Refuses: bytes of weights
//! (`source` reads the file and undoes what was done to the rows), what the config then means (the family).
//!
//! Source: the keys and names of `gguf-py/gguf/{constants,tensor_mapping}.py` and of the converters in `conversion/` of
//! ggml-org/llama.cpp (MIT).

mod config;
mod metadata;
mod names;
mod rows;
mod splits;
mod tokenizer;

pub use tokenizer::{TokenizerFiles, tokenizer};

use metadata::Metadata;
use rows::ROWS;
use serde_json::{Map, Value};

/// What is known of a GGUF file before any weight is read.
#[derive(Clone, Copy, Debug)]
pub struct Gguf<'a> {
    /// Keys and values; arrays as JSON lists.
    pub metadata: &'a Map<String, Value>,
    /// Names and shapes, outputs first, as checkpoints have them (GGUF lists dimensions the other way round).
    pub tensors: &'a [(String, Vec<usize>)],
    /// The values of `rope_freqs.weight`; empty where there is none.
    pub rope_factors: &'a [f32],
}

/// The tensor that holds [`Gguf::rope_factors`].
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A GGUF file as a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufModel {
    /// `config.json`.
    pub config: Value,
    /// What each tensor is, in their order; `None` for those that are no weights.
    pub weights: Vec<Option<GgufWeight>>,
}

/// What a tensor of a GGUF file is called in a checkpoint, and how its rows lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufWeight {
    /// The checkpoint's name; of fused experts what comes before the number of an expert.
    pub name: String,
    /// Of fused experts: what comes after that number. They are the slices of the first dimension.
    pub after_expert: Option<String>,
    /// The checkpoint's shape, of one expert where they are fused.
    pub shape: Vec<usize>,
    /// Where pairs of rows that rope turns together lie side by side: rows of a head. A checkpoint has row i of a head's
    /// first half at 2i there, and row i of its second half at 2i + 1.
    pub rotated: Option<usize>,
}

/// Why a GGUF file cannot be read as a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the message of each variant shows")]
pub enum GgufError {
    /// No family of that name.
    #[error(
        "`general.architecture`: `{got}` is not supported; supported are {known}; convert from the safetensors release instead if its family is supported"
    )]
    Architecture { got: String, known: String },

    /// A key is missing or holds something else.
    #[error("`{key}`: expected {expected}, got {got}; the file is damaged or of another version, download it again")]
    Key { key: String, expected: &'static str, got: String },

    /// Something that would change results and is not implemented.
    #[error("{what}; take the safetensors release of this model instead")]
    Unsupported { what: String },

    /// A tensor that the architecture does not have, as far as is known.
    #[error(
        "tensor `{name}` is not known of architecture `{architecture}`; take the safetensors release of this model instead"
    )]
    Tensor { name: String, architecture: String },

    /// A tokenizer that cannot be expressed.
    #[error("{what}; put the model's tokenizer.json beside the file, it is then used instead")]
    Tokenizer { what: String },
}

/// Reads a GGUF file's metadata and names as those of a checkpoint.
///
/// # Errors
/// [`GgufError`] if the architecture or something in it is not supported, or a key is missing or malformed.
pub fn gguf(file: Gguf<'_>) -> Result<GgufModel, GgufError> {
    let architecture = match file.metadata.get("general.architecture") {
        Some(Value::String(name)) => name.as_str(),
        other => {
            let got = metadata::show(other);
            return Err(GgufError::Key { key: "general.architecture".into(), expected: "a name", got });
        }
    };
    let metadata = Metadata::new(architecture, file.metadata);
    let experts = metadata.size("expert_count")?.unwrap_or(0) > 0;
    let row = ROWS.iter().find(|r| r.architecture == architecture && r.experts.is_none_or(|e| e == experts));
    let row = row.ok_or_else(|| {
        let mut known: Vec<_> = ROWS.iter().map(|r| r.architecture).collect();
        known.dedup();
        GgufError::Architecture { got: architecture.chars().take(100).collect(), known: known.join(", ") }
    })?;
    let config = config::config(row, metadata, &file)?;
    let head = config.get("head_dim").and_then(Value::as_u64).and_then(|h| usize::try_from(h).ok());
    let weights =
        file.tensors.iter().map(|(name, shape)| names::weight(row, name, shape, head)).collect::<Result<_, _>>()?;
    Ok(GgufModel { config: Value::Object(config), weights })
}

/// Architectures that [`gguf`] reads.
pub fn gguf_architectures() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|r| r.architecture)
}

#[cfg(test)]
mod tests;
