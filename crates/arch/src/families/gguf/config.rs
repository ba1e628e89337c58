//! `config.json` from metadata.

use super::metadata::Metadata;
use super::rows::Row;
use super::{Gguf, GgufError};
use serde_json::{Map, Value, json};

/// Keys that change what a model computes and that no family of this row has.
const FOREIGN: &[&str] = &[
    "attention.clamp_kqv",
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.scaling.attn_factor",
    "router_logit_softcapping",
];

/// The config of a file.
pub fn config(row: &Row, metadata: Metadata<'_>, file: &Gguf<'_>) -> Result<Map<String, Value>, GgufError> {
    if let Some(key) = FOREIGN.iter().find(|key| metadata.get(key).is_some()) {
        return Err(GgufError::Unsupported { what: format!("`{}.{key}` is not supported", metadata.architecture) });
    }
    let mut b = Builder { metadata, file, out: Map::new(), rope: Map::new() };
    b.name(row.names.0, row.names.1);
    b.copy("hidden_size", "embedding_length")?;
    b.copy("num_hidden_layers", "block_count")?;
    b.copy("max_position_embeddings", "context_length")?;
    let eps = metadata.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6);
    b.set("rms_norm_eps", eps);
    // The default of llama.cpp.
    b.set("rope_theta", metadata.number("rope.freq_base")?.unwrap_or(10_000.0));
    let vocab = file.tensors.iter().find(|(name, _)| name == "token_embd.weight").and_then(|(_, shape)| shape.first());
    b.set("vocab_size", vocab.copied().unwrap_or(0));
    b.set("tie_word_embeddings", !b.has("output.weight"));
    b.set("hidden_act", "silu");
    b.tokens();
    b.scaling()?;
    (row.extra)(&mut b)?;
    if b.rope.contains_key("rope_type") {
        b.out.insert("rope_scaling".into(), Value::Object(b.rope));
    }
    Ok(b.out)
}

/// A config in the making.
pub struct Builder<'a> {
    pub metadata: Metadata<'a>,
    file: &'a Gguf<'a>,
    out: Map<String, Value>,
    rope: Map<String, Value>,
}

impl Builder<'_> {
    /// `architectures` and `model_type`.
    pub fn name(&mut self, class: &str, kind: &str) {
        self.set("architectures", json!([class]));
        self.set("model_type", kind);
    }

    /// A key of the config.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.out.insert(key.to_owned(), value.into());
    }

    /// A key of `rope_scaling`, which is written if there is scaling.
    pub fn set_rope(&mut self, key: &str, value: impl Into<Value>) {
        self.rope.insert(key.to_owned(), value.into());
    }

    /// A whole number under another name.
    pub fn copy(&mut self, key: &str, from: &str) -> Result<(), GgufError> {
        let value = self.metadata.need(from)?;
        self.set(key, value);
        Ok(())
    }

    /// Whether there is such a tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.file.tensors.iter().any(|(name, _)| name == tensor)
    }

    /// Heads and their width, all of which rope must turn.
    pub fn heads(&mut self) -> Result<(), GgufError> {
        self.copy("num_attention_heads", "attention.head_count")?;
        let (m, heads) = (self.metadata, self.metadata.need("attention.head_count")?);
        self.set("num_key_value_heads", m.size("attention.head_count_kv")?.unwrap_or(heads));
        let width = match m.size("attention.key_length")? {
            Some(width) => width,
            None => m.need("embedding_length")?.checked_div(heads).unwrap_or(0),
        };
        self.set("head_dim", width);
        for key in ["rope.dimension_count", "attention.value_length"] {
            if let Some(other) = m.size(key)?.filter(|other| *other != width) {
                let what =
                    format!("`{}.{key}` is {other} and a head is {width} wide, which is not supported", m.architecture);
                return Err(GgufError::Unsupported { what });
            }
        }
        Ok(())
    }

    /// The rows of the first tensor that is called so in a layer; without it, the key.
    pub fn width(&self, tensor: &str, key: &str) -> Result<u64, GgufError> {
        let named =
            |name: &str| name.strip_prefix("blk.").and_then(|n| n.split_once('.')).is_some_and(|(_, n)| n == tensor);
        let found =
            self.file.tensors.iter().find(|(name, _)| named(name)).and_then(|(_, shape)| shape.iter().rev().nth(1));
        found.map_or_else(|| self.metadata.need(key), |rows| Ok(*rows as u64))
    }

    /// Layers that lack such a tensor.
    pub fn layers_without(&self, tensor: &str) -> Result<Vec<u64>, GgufError> {
        let layers = self.metadata.need("block_count")?.min(crate::config::MAX_LAYERS as u64);
        let with: std::collections::HashSet<&str> = self.file.tensors.iter().map(|(name, _)| name.as_str()).collect();
        Ok((0..layers).filter(|layer| !with.contains(format!("blk.{layer}.{tensor}").as_str())).collect())
    }

    /// Tokens that begin and end a text.
    fn tokens(&mut self) {
        for (key, from) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
            if let Some(id) = self.file.metadata.get(&format!("tokenizer.ggml.{from}_token_id")) {
                self.set(key, id.clone());
            }
        }
    }

    /// Linear and YaRN scaling of rope.
    fn scaling(&mut self) -> Result<(), GgufError> {
        let m = self.metadata;
        let at = |key: &str| format!("rope.scaling.{key}");
        let factor = m.number(&at("factor"))?;
        match (m.text(&at("type"))?, factor) {
            (None | Some("none"), None) => return Ok(()),
            (None | Some("none"), Some(factor)) if factor <= 1.0 => return Ok(()),
            (Some(kind @ ("linear" | "yarn")), Some(factor)) => {
                self.set_rope("rope_type", kind);
                self.set_rope("factor", factor);
            }
            (kind, _) => {
                let kind = kind.unwrap_or("none").chars().take(40).collect::<String>();
                let what = format!("`{}.rope.scaling.type` `{kind}` is not supported with this factor", m.architecture);
                return Err(GgufError::Unsupported { what });
            }
        }
        for (key, from) in [
            ("original_max_position_embeddings", "original_context_length"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
            ("attention_factor", "yarn_attn_factor"),
        ] {
            if let Some(value) = m.get(&at(from)) {
                self.set_rope(key, value.clone());
            }
        }
        Ok(())
    }

    /// Factors of single frequencies: the third Llama's rule, whose parameters the metadata does not hold.
    ///
    /// # Errors
    /// [`GgufError::Unsupported`] if no such rule gives these factors.
    pub fn rope_factors(&mut self) -> Result<(), GgufError> {
        let factors = self.file.rope_factors;
        let (Some(&last), Some(theta)) = (factors.last(), self.out.get("rope_theta").and_then(Value::as_f64)) else {
            return Ok(());
        };
        if factors.iter().all(|f| *f == 1.0) {
            return Ok(());
        }
        // As every release that uses the rule has them.
        let (low, high) = (1.0, 4.0);
        let rule = |context: f64| {
            let width = factors.len() as f64;
            (0..factors.len()).map(move |i| {
                let turns = context / (std::f64::consts::TAU * theta.powf(i as f64 / width));
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 - smooth) / f64::from(last) + smooth).recip()
            })
        };
        let fits =
            |context: f64| rule(context).zip(factors).all(|(want, got)| (want - f64::from(*got)).abs() <= 1e-4 * want);
        let Some(context) = [8192.0, 4096.0, 2048.0, 16384.0, 32768.0].into_iter().find(|c| fits(*c)) else {
            let what = format!("`{}` holds factors that no known rule of rope gives", super::ROPE_FACTORS);
            return Err(GgufError::Unsupported { what });
        };
        self.set_rope("rope_type", "llama3");
        self.set_rope("factor", f64::from(last));
        self.set_rope("low_freq_factor", low);
        self.set_rope("high_freq_factor", high);
        self.set_rope("original_max_position_embeddings", context as u64);
        Ok(())
    }
}
