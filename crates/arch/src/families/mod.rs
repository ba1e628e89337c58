//! One file per family: a pure function from a config to a [`ModelSpec`]. The only place that knows family names.

mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v4;
pub(crate) mod gguf;
mod gpt_oss;
mod llama;
mod mixtral;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::nearest::nearest;
use crate::{ArchError, ChatEncoding, ModelSpec};

/// A row of the registry.
struct Family {
    /// `model_type` of its configs.
    name: &'static str,
    /// Names in `architectures`.
    architectures: &'static [&'static str],
    /// The model of a config.
    spec: fn(&'static str, Config<'_>) -> Result<ModelSpec, ArchError>,
    /// How its releases write conversations, where they have no template.
    chat: Option<fn(&serde_json::Value) -> ChatEncoding>,
}

/// All families, alphabetical.
const FAMILIES: &[Family] = &[
    family("deepseek_v2", &["DeepseekV2ForCausalLM"], deepseek_v2::spec),
    family("deepseek_v3", &["DeepseekV3ForCausalLM"], deepseek_v3::spec),
    Family { chat: Some(deepseek_v4::chat), ..family("deepseek_v4", &["DeepseekV4ForCausalLM"], deepseek_v4::spec) },
    family("gpt_oss", &["GptOssForCausalLM"], gpt_oss::spec),
    family("kimi_k2", &[], deepseek_v3::spec),
    family("llama", &["LlamaForCausalLM"], llama::spec),
    family("mixtral", &["MixtralForCausalLM"], mixtral::spec),
    family("qwen2", &["Qwen2ForCausalLM"], qwen2::spec),
    family("qwen2_moe", &["Qwen2MoeForCausalLM"], qwen2_moe::spec),
    family("qwen3", &["Qwen3ForCausalLM"], qwen3::spec),
    family("qwen3_moe", &["Qwen3MoeForCausalLM"], qwen3_moe::spec),
];

const fn family(
    name: &'static str,
    architectures: &'static [&'static str],
    spec: fn(&'static str, Config<'_>) -> Result<ModelSpec, ArchError>,
) -> Family {
    Family { name, architectures, spec, chat: None }
}

/// The names of all families.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.name)
}

/// The model that a `config.json` describes. `architectures` decides; `model_type` where that is absent.
///
/// # Errors
/// [`ArchError`] if the architecture is unknown, a key is missing or out of bounds, or the config asks for something
/// that is not implemented.
pub fn model_spec(config: &serde_json::Value) -> Result<ModelSpec, ArchError> {
    let family = of(config)?;
    (family.spec)(family.name, Config::new(config)?)
}

/// How the family of a config writes conversations, where its releases come without a template.
#[must_use]
pub fn chat_encoding(config: &serde_json::Value) -> Option<ChatEncoding> {
    of(config).ok()?.chat.map(|chat| chat(config))
}

fn of(config: &serde_json::Value) -> Result<&'static Family, ArchError> {
    let config = Config::new(config)?;
    match config.list("architectures")?.and_then(<[_]>::first) {
        Some(value) => {
            let name = value.as_str().ok_or_else(|| config.error("architectures", "a list of names", Some(value)))?;
            FAMILIES.iter().find(|f| f.architectures.contains(&name)).ok_or_else(|| unknown(name))
        }
        None => {
            let name = config.text("model_type")?;
            let name = name.ok_or_else(|| config.error("architectures", "a list with one name", None))?;
            FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| unknown(name))
        }
    }
}

fn unknown(got: &str) -> ArchError {
    let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.architectures.iter().copied()).collect();
    let nearest = nearest(got, known.iter().copied());
    ArchError::UnknownArchitecture { got: got.chars().take(100).collect(), nearest, known }
}
