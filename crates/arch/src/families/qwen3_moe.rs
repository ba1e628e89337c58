//! Qwen3-MoE: the attention of Qwen3, routed experts without a shared one, dense layers where the config says so.
//!
//! Source: `modeling_qwen3_moe.py` of transformers. Layer i is sparse iff it is not in `mlp_only_layers` and
//! (i + 1) is a multiple of `decoder_sparse_step`. Routing: softmax over all experts, top-k, weights divided by their
//! sum iff `norm_topk_prob`.

use crate::blocks::{Frame, Heads, MoeNames};
use crate::config::Config;
use crate::{ArchError, Ffn, ModelSpec};

const NAMES: MoeNames =
    MoeNames { router: "mlp.gate.weight", experts: "mlp.experts", projs: ["gate_proj", "up_proj", "down_proj"] };

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let bias = config.bool_or("attention_bias", false)?;
    let heads = Heads { qkv_bias: bias, o_bias: bias, qk_norm: true, ..frame.heads(None, 10_000.0)? };
    let sparse = frame.sparse_layers()?;
    let sizes = frame.moe_sizes("moe_intermediate_size", config.bool_or("norm_topk_prob", false)?)?;
    // Only models with dense layers need this key.
    let dense = if sparse.contains(&false) { frame.intermediate()? } else { 0 };
    let layers = (0..)
        .zip(sparse.iter().zip(frame.windows()?))
        .map(|(i, (sparse, window))| {
            let ffn = if *sparse { Ffn::Moe(frame.moe(i, &sizes, &NAMES)) } else { frame.dense(i, dense) };
            frame.layer(i, frame.attention(i, &heads, window), ffn)
        })
        .collect();
    frame.model(family, layers)
}
