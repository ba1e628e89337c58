//! Qwen3 (dense): as Llama, with an RMS norm over each query and key head, and a head width of its own.
//!
//! Source: `modeling_qwen3.py` of transformers. heads · head_dim may differ from hidden_size.

use crate::blocks::{Frame, Heads};
use crate::config::Config;
use crate::{ArchError, ModelSpec};

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let bias = config.bool_or("attention_bias", false)?;
    let heads = Heads { qkv_bias: bias, o_bias: bias, qk_norm: true, ..frame.heads(Some(128), 10_000.0)? };
    let intermediate = frame.intermediate()?;
    let layers = (0..)
        .zip(frame.windows()?)
        .map(|(i, window)| frame.layer(i, frame.attention(i, &heads, window), frame.dense(i, intermediate)))
        .collect();
    frame.model(family, layers)
}
