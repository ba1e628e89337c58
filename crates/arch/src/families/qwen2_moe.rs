//! Qwen1.5-MoE, Qwen2-MoE: the attention of Qwen2, routed experts, and a shared expert whose output is weighted by a
//! sigmoid of its own; dense layers where the config says so.
//!
//! Source: `modeling_qwen2_moe.py` of transformers. Which layers are sparse and how they route is as in Qwen3-MoE.

use crate::blocks::{Frame, Heads, MoeNames};
use crate::config::{Config, MAX_SIZE};
use crate::{ArchError, Class, Ffn, Leaf, ModelSpec, Role, Shared};

const NAMES: MoeNames =
    MoeNames { router: "mlp.gate.weight", experts: "mlp.experts", projs: ["gate_proj", "up_proj", "down_proj"] };

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let heads = Heads { qkv_bias: config.bool_or("qkv_bias", true)?, ..frame.heads(None, 10_000.0)? };
    let sparse = frame.sparse_layers()?;
    let sizes = frame.moe_sizes("moe_intermediate_size", config.bool_or("norm_topk_prob", false)?)?;
    let shared = config.size("shared_expert_intermediate_size", 1..=MAX_SIZE)?;
    // Only models with dense layers need this key.
    let dense = if sparse.contains(&false) { frame.intermediate()? } else { 0 };
    let layers = (0..)
        .zip(sparse.iter().zip(frame.windows()?))
        .map(|(i, (sparse, window))| {
            let ffn = if *sparse {
                let mlp = frame.shared(i, "mlp.shared_expert", shared);
                let gate = Leaf {
                    name: format!("model.layers.{i}.mlp.shared_expert_gate.weight"),
                    shape: vec![1, frame.hidden],
                    role: Role { class: Class::Router, proj: None, layer: Some(i), expert: None },
                };
                let mut moe = frame.moe(i, &sizes, &NAMES);
                moe.shared = Some(Box::new(Shared { mlp, gate: Some(gate) }));
                Ffn::Moe(moe)
            } else {
                frame.dense(i, dense)
            };
            frame.layer(i, frame.attention(i, &heads, window), ffn)
        })
        .collect();
    frame.model(family, layers)
}
