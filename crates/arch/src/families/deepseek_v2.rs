//! DeepSeek-V2, V2-Lite: latent attention, dense first layers, then experts beside a shared one.
//!
//! Source: `modeling_deepseek_v2.py` of transformers, which follows the release. Routing: softmax over all experts, of the
//! best groups (by their best expert) if `topk_method` says so; weights are not divided by their sum.

use crate::blocks::Frame;
use crate::config::{Config, MAX_EXPERTS};
use crate::{ArchError, Groups, ModelSpec};

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let latent = frame.latent()?;
    let mut moe = frame.moe_sizes("moe_intermediate_size", false)?;
    if config.bool_or("norm_topk_prob", false)? {
        return Err(config.unsupported("norm_topk_prob", "only false is supported, as in every release"));
    }
    if let Some(other) = config.text("scoring_func")?.filter(|s| *s != "softmax") {
        return Err(config.unsupported("scoring_func", format!("`{other}` is not supported; supported is softmax")));
    }
    moe.routing.groups = match config.text("topk_method")? {
        Some("group_limited_greedy") => Some(groups(&config, moe.num_experts, moe.routing.top_k, 1)?),
        Some("greedy") | None => None,
        Some(other) => {
            let what = format!("`{other}` is not supported; supported are greedy and group_limited_greedy");
            return Err(config.unsupported("topk_method", what));
        }
    };
    moe.routing.scale = config.optional_number("routed_scaling_factor", 1e-6..=1e6)?.unwrap_or(1.0) as f32;
    let sparsity = frame.sparsity(&moe)?;
    let layers = (0..frame.layers).map(|i| frame.latent_layer(i, &latent, &sparsity, &moe, false)).collect();
    frame.model(family, layers)
}

/// The groups of `n_group` and `topk_group`, each ranked by its `ranked_by` best experts.
pub fn groups(config: &Config<'_>, experts: usize, top_k: usize, ranked_by: usize) -> Result<Groups, ArchError> {
    let count = config.size("n_group", 1..=MAX_EXPERTS)?;
    let kept = config.size("topk_group", 1..=count)?;
    if !experts.is_multiple_of(count) || experts / count * kept < top_k || experts / count < ranked_by {
        let expected = format!("a number of groups of equal size, of {experts} experts, that leaves {top_k} to choose");
        return Err(config.error("n_group", &expected, config.get("n_group")));
    }
    Ok(Groups { count, kept, ranked_by })
}
