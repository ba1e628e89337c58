//! DeepSeek-V3, R1, V3.1, Kimi-K2: latent attention, dense first layers, then experts beside a shared one, and next-token
//! layers behind the last one.
//!
//! Source: `modeling_deepseek_v3.py` of transformers, `inference/model.py` of the release. Routing: sigmoid scores; a bias
//! takes part in the choice alone; of the best groups (by their two best experts); weights divided by their sum, scaled.

use super::deepseek_v2::groups;
use crate::blocks::Frame;
use crate::config::{Config, MAX_LAYERS};
use crate::{ArchError, ModelSpec, Scores};

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let latent = frame.latent()?;
    let mut moe = frame.moe_sizes("moe_intermediate_size", config.bool_or("norm_topk_prob", true)?)?;
    for (key, only) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(other) = config.text(key)?.filter(|s| *s != only) {
            return Err(config.unsupported(key, format!("`{other}` is not supported; supported is {only}")));
        }
    }
    moe.routing.scores = Scores::Sigmoid;
    moe.routing.scale = config.optional_number("routed_scaling_factor", 1e-6..=1e6)?.unwrap_or(2.5) as f32;
    // One group is no choice among groups.
    let one = config.optional_size("n_group", 1..=1 << 16)?.is_none_or(|count| count == 1);
    moe.routing.groups = if one { None } else { Some(groups(&config, moe.num_experts, moe.routing.top_k, 2)?) };
    let sparsity = frame.sparsity(&moe)?;
    let layers = (0..frame.layers).map(|i| frame.latent_layer(i, &latent, &sparsity, &moe, true)).collect();
    let mut model = frame.model(family, layers)?;
    let next = config.optional_size("num_nextn_predict_layers", 0..=MAX_LAYERS)?.unwrap_or(0);
    model.mtp_prefixes = (0..next).map(|i| format!("model.layers.{}.", frame.layers + i)).collect();
    Ok(model)
}
