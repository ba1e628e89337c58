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
use crate::{ArchError, ModelSpec};

/// A row of the registry.
struct Family {
    /// `model_type` of its configs.
    name: &'static str,
    /// Names in `architectures`.
    architectures: &'static [&'static str],
    /// The model of a config.
    spec: fn(&'static str, Config<'_>) -> Result<ModelSpec, ArchError>,
}

/// All families, alphabetical.
const FAMILIES: &[Family] = &[
    Family { name: "deepseek_v2", architectures: &["DeepseekV2ForCausalLM"], spec: deepseek_v2::spec },
    Family { name: "deepseek_v3", architectures: &["DeepseekV3ForCausalLM"], spec: deepseek_v3::spec },
    Family { name: "deepseek_v4", architectures: &["DeepseekV4ForCausalLM"], spec: deepseek_v4::spec },
    Family { name: "gpt_oss", architectures: &["GptOssForCausalLM"], spec: gpt_oss::spec },
    Family { name: "kimi_k2", architectures: &[], spec: deepseek_v3::spec },
    Family { name: "llama", architectures: &["LlamaForCausalLM"], spec: llama::spec },
    Family { name: "mixtral", architectures: &["MixtralForCausalLM"], spec: mixtral::spec },
    Family { name: "qwen2", architectures: &["Qwen2ForCausalLM"], spec: qwen2::spec },
    Family { name: "qwen2_moe", architectures: &["Qwen2MoeForCausalLM"], spec: qwen2_moe::spec },
    Family { name: "qwen3", architectures: &["Qwen3ForCausalLM"], spec: qwen3::spec },
    Family { name: "qwen3_moe", architectures: &["Qwen3MoeForCausalLM"], spec: qwen3_moe::spec },
];

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
    let config = Config::new(config)?;
    let family = match config.list("architectures")?.and_then(<[_]>::first) {
        Some(value) => {
            let name = value.as_str().ok_or_else(|| config.error("architectures", "a list of names", Some(value)))?;
            FAMILIES.iter().find(|f| f.architectures.contains(&name)).ok_or_else(|| unknown(name))?
        }
        None => {
            let name = config.text("model_type")?;
            let name = name.ok_or_else(|| config.error("architectures", "a list with one name", None))?;
            FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| unknown(name))?
        }
    };
    (family.spec)(family.name, config)
}

fn unknown(got: &str) -> ArchError {
    let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.architectures.iter().copied()).collect();
    let nearest = nearest(got, known.iter().copied());
    ArchError::UnknownArchitecture { got: got.chars().take(100).collect(), nearest, known }
}
