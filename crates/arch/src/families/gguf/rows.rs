//! The architectures of GGUF that are families here: one row each.

use super::GgufError;
use super::config::Builder;

/// An architecture.
pub struct Row {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Whether this row is for files with experts or without; `None` for both.
    pub experts: Option<bool>,
    /// Name in a checkpoint's `architectures`, and its `model_type`; [`Row::extra`] may change them.
    pub names: (&'static str, &'static str),
    /// Whether rows of q and k were moved for rope on neighbouring pairs.
    pub rotated: bool,
    /// Path of the mixture of experts within a layer, and what the router is called there.
    pub moe: (&'static str, &'static str),
    /// What gate, up and down of an expert are called.
    pub projs: [&'static str; 3],
    /// What the shared expert is called within the mixture.
    pub shared: &'static str,
    /// What this architecture has besides the keys of all.
    pub extra: fn(&mut Builder<'_>) -> Result<(), GgufError>,
}

const PLAIN: Row = Row {
    architecture: "",
    experts: None,
    names: ("", ""),
    rotated: false,
    moe: ("mlp", "gate"),
    projs: ["gate_proj", "up_proj", "down_proj"],
    shared: "shared_expert",
    extra: dense,
};

/// All of them.
pub const ROWS: &[Row] = &[
    Row {
        architecture: "llama",
        experts: Some(false),
        names: ("LlamaForCausalLM", "llama"),
        rotated: true,
        extra: llama,
        ..PLAIN
    },
    Row {
        architecture: "llama",
        experts: Some(true),
        names: ("MixtralForCausalLM", "mixtral"),
        rotated: true,
        moe: ("block_sparse_moe", "gate"),
        projs: ["w1", "w3", "w2"],
        extra: mixtral,
        ..PLAIN
    },
    Row { architecture: "qwen2", names: ("Qwen2ForCausalLM", "qwen2"), ..PLAIN },
    Row { architecture: "qwen2moe", names: ("Qwen2MoeForCausalLM", "qwen2_moe"), extra: qwen2_moe, ..PLAIN },
    Row { architecture: "qwen3", names: ("Qwen3ForCausalLM", "qwen3"), ..PLAIN },
    Row { architecture: "qwen3moe", names: ("Qwen3MoeForCausalLM", "qwen3_moe"), extra: qwen3_moe, ..PLAIN },
    Row {
        architecture: "gpt-oss",
        names: ("GptOssForCausalLM", "gpt_oss"),
        moe: ("mlp", "router"),
        extra: gpt_oss,
        ..PLAIN
    },
    Row {
        architecture: "deepseek2",
        names: ("DeepseekV2ForCausalLM", "deepseek_v2"),
        shared: "shared_experts",
        extra: deepseek,
        ..PLAIN
    },
];

fn dense(b: &mut Builder<'_>) -> Result<(), GgufError> {
    b.heads()?;
    b.copy("intermediate_size", "feed_forward_length")
}

fn llama(b: &mut Builder<'_>) -> Result<(), GgufError> {
    dense(b)?;
    let bias = b.has("blk.0.attn_q.bias");
    b.set("attention_bias", bias);
    b.rope_factors()
}

fn mixtral(b: &mut Builder<'_>) -> Result<(), GgufError> {
    dense(b)?;
    b.rope_factors()?;
    b.copy("num_local_experts", "expert_count")?;
    b.copy("num_experts_per_tok", "expert_used_count")
}

fn qwen3_moe(b: &mut Builder<'_>) -> Result<(), GgufError> {
    // What llama.cpp does where the file is silent.
    sparse(b, true)
}

fn qwen2_moe(b: &mut Builder<'_>) -> Result<(), GgufError> {
    sparse(b, false)?;
    let width = b.width("ffn_gate_shexp.weight", "expert_shared_feed_forward_length")?;
    b.set("shared_expert_intermediate_size", width);
    Ok(())
}

fn sparse(b: &mut Builder<'_>, norm: bool) -> Result<(), GgufError> {
    dense(b)?;
    b.copy("num_experts", "expert_count")?;
    b.copy("num_experts_per_tok", "expert_used_count")?;
    let width = b.width("ffn_gate_exps.weight", "expert_feed_forward_length")?;
    b.set("moe_intermediate_size", width);
    let norm = b.metadata.flag("expert_weights_norm")?.unwrap_or(norm);
    b.set("norm_topk_prob", norm);
    b.set("decoder_sparse_step", 1);
    let dense = b.layers_without("ffn_gate_exps.weight")?;
    b.set("mlp_only_layers", dense);
    Ok(())
}

fn gpt_oss(b: &mut Builder<'_>) -> Result<(), GgufError> {
    b.heads()?;
    b.copy("intermediate_size", "expert_feed_forward_length")?;
    b.copy("num_local_experts", "expert_count")?;
    b.copy("num_experts_per_tok", "expert_used_count")?;
    b.copy("sliding_window", "attention.sliding_window")?;
    b.set("attention_bias", true);
    b.set_rope("truncate", false);
    Ok(())
}

fn deepseek(b: &mut Builder<'_>) -> Result<(), GgufError> {
    if b.has("blk.0.attn_k_b.weight") {
        return Err(GgufError::Unsupported {
            what: "`attn_k_b` and `attn_v_b` are stored apart, the first one transposed, which cannot be put together without \
                   loss; files with `attn_kv_b` are supported"
                .into(),
        });
    }
    let m = b.metadata;
    b.copy("intermediate_size", "feed_forward_length")?;
    b.copy("num_attention_heads", "attention.head_count")?;
    b.copy("num_key_value_heads", "attention.head_count")?;
    b.copy("kv_lora_rank", "attention.kv_lora_rank")?;
    if let Some(rank) = m.size("attention.q_lora_rank")? {
        b.set("q_lora_rank", rank);
    }
    let either = |new: &str, old: &str| m.size(new).and_then(|v| v.map_or_else(|| m.need(old), Ok));
    let key = either("attention.key_length_mla", "attention.key_length")?;
    let rope = m.need("rope.dimension_count")?;
    b.set("qk_rope_head_dim", rope);
    b.set("qk_nope_head_dim", key.saturating_sub(rope));
    b.set("v_head_dim", either("attention.value_length_mla", "attention.value_length")?);
    b.copy("n_routed_experts", "expert_count")?;
    b.copy("num_experts_per_tok", "expert_used_count")?;
    b.copy("moe_intermediate_size", "expert_feed_forward_length")?;
    b.copy("first_k_dense_replace", "leading_dense_block_count")?;
    b.set("n_shared_experts", m.size("expert_shared_count")?.unwrap_or(0));
    b.set("routed_scaling_factor", m.number("expert_weights_scale")?.unwrap_or(1.0));
    b.set("norm_topk_prob", m.flag("expert_weights_norm")?.unwrap_or(false));
    let groups = m.size("expert_group_count")?.unwrap_or(1).max(1);
    b.set("n_group", groups);
    b.set("topk_group", m.size("expert_group_used_count")?.unwrap_or(1).max(1));
    // 2 is the sigmoid, with which the third version began; a bias on the choice belongs to it.
    match m.size("expert_gating_func")?.unwrap_or(1) {
        0 | 1 => {
            b.set("scoring_func", "softmax");
            b.set("topk_method", if groups > 1 { "group_limited_greedy" } else { "greedy" });
        }
        2 => {
            b.name("DeepseekV3ForCausalLM", "deepseek_v3");
            b.set("scoring_func", "sigmoid");
            b.set("topk_method", "noaux_tc");
        }
        other => {
            return Err(GgufError::Unsupported {
                what: format!("`deepseek2.expert_gating_func` {other} is not supported"),
            });
        }
    }
    // The key holds 0.1 · mscale_all_dim, and mscale is taken to be the same, as every release of the family has it.
    if let Some(log) = m.number("rope.scaling.yarn_log_multiplier")?.filter(|l| *l != 0.0) {
        let scale = (log * 10.0 * 1e6).round() / 1e6;
        b.set_rope("mscale", scale);
        b.set_rope("mscale_all_dim", scale);
    }
    Ok(())
}
