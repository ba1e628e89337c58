//! Qwen2, Qwen2.5: as Llama, with biases on q, k and v, and optionally a sliding window in the upper layers.
//!
//! Source: `modeling_qwen2.py` of transformers. `sliding_window` means nothing unless `use_sliding_window`.

use crate::blocks::{Frame, Heads};
use crate::config::Config;
use crate::{ArchError, ModelSpec};

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let heads = Heads { qkv_bias: true, ..frame.heads(None, 10_000.0)? };
    let intermediate = frame.intermediate()?;
    let layers = (0..)
        .zip(frame.windows()?)
        .map(|(i, window)| frame.layer(i, frame.attention(i, &heads, window), frame.dense(i, intermediate)))
        .collect();
    frame.model(family, layers)
}
