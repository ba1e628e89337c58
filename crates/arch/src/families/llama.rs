//! Llama 2, 3, 3.1, 3.2: grouped-query attention, gated MLP, optional llama3 / linear / YaRN rope scaling.
//!
//! Source: `modeling_llama.py` of transformers. `attention_bias` puts a bias on all four projections.

use crate::blocks::{Frame, Heads};
use crate::config::Config;
use crate::{ArchError, ModelSpec};

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    if config.bool_or("mlp_bias", false)? {
        return Err(config.unsupported("mlp_bias", "biases in the MLP are not supported; only false is"));
    }
    let bias = config.bool_or("attention_bias", false)?;
    let heads = Heads { qkv_bias: bias, o_bias: bias, ..frame.heads(None, 10_000.0)? };
    let intermediate = frame.intermediate()?;
    let layers = (0..frame.layers)
        .map(|i| frame.layer(i, frame.attention(i, &heads, None), frame.dense(i, intermediate)))
        .collect();
    frame.model(family, layers)
}
