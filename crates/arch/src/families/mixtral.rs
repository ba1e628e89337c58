//! Mixtral: Llama attention, optionally windowed in every layer, and routed experts named w1 (gate), w3 (up), w2 (down).
//!
//! Source: `modeling_mixtral.py` of transformers. Weights of the chosen experts are divided by their sum.

use crate::blocks::{Frame, MoeNames};
use crate::config::{Config, MAX_SIZE};
use crate::{ArchError, Ffn, ModelSpec};

const NAMES: MoeNames =
    MoeNames { router: "block_sparse_moe.gate.weight", experts: "block_sparse_moe.experts", projs: ["w1", "w3", "w2"] };

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let heads = frame.heads(None, 1e6)?;
    let window = config.optional_size("sliding_window", 1..=MAX_SIZE)?;
    let sizes = frame.moe_sizes("intermediate_size", true)?;
    let layers = (0..frame.layers)
        .map(|i| frame.layer(i, frame.attention(i, &heads, window), Ffn::Moe(frame.moe(i, &sizes, &NAMES))))
        .collect();
    frame.model(family, layers)
}
