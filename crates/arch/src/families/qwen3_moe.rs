//! Qwen3-MoE: the attention of Qwen3, routed experts without a shared one, dense layers where the config says so.
//!
//! Source: `modeling_qwen3_moe.py` of transformers. Layer i is sparse iff it is not in `mlp_only_layers` and
//! (i + 1) is a multiple of `decoder_sparse_step`. Routing: softmax over all experts, top-k, weights divided by their
//! sum iff `norm_topk_prob`.

use crate::blocks::{Frame, Heads, MoeNames};
use crate::config::{Config, MAX_LAYERS};
use crate::{ArchError, ModelSpec};

const NAMES: MoeNames =
    MoeNames { router: "mlp.gate.weight", experts: "mlp.experts", projs: ["gate_proj", "up_proj", "down_proj"] };

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let bias = config.bool_or("attention_bias", false)?;
    let heads = Heads { qkv_bias: bias, o_bias: bias, qk_norm: true, ..frame.heads(None, 10_000.0)? };
    let sparse = sparse_layers(&frame)?;
    let sizes = frame.moe_sizes("moe_intermediate_size", config.bool_or("norm_topk_prob", false)?)?;
    // Only models with dense layers need this key.
    let dense = if sparse.contains(&false) { frame.intermediate()? } else { 0 };
    let layers = (0..)
        .zip(sparse.iter().zip(frame.windows()?))
        .map(|(i, (sparse, window))| {
            let ffn = if *sparse { frame.moe(i, &sizes, &NAMES) } else { frame.dense(i, dense) };
            frame.layer(i, frame.attention(i, &heads, window), ffn)
        })
        .collect();
    frame.model(family, layers)
}

/// Which layers route to experts.
fn sparse_layers(frame: &Frame<'_>) -> Result<Vec<bool>, ArchError> {
    let c = &frame.config;
    let step = c.optional_size("decoder_sparse_step", 1..=MAX_LAYERS)?.unwrap_or(1);
    let mut sparse: Vec<bool> = (1..=frame.layers).map(|nth| nth.is_multiple_of(step)).collect();
    for value in c.list("mlp_only_layers")?.unwrap_or_default() {
        let index = value.as_u64().and_then(|i| usize::try_from(i).ok());
        match index.and_then(|i| sparse.get_mut(i)) {
            Some(layer) => *layer = false,
            None => return Err(c.error("mlp_only_layers", "indices of layers", Some(value))),
        }
    }
    Ok(sparse)
}
