//! Tensor names of GGUF as those of checkpoints.

use super::rows::Row;
use super::{GgufError, GgufWeight, ROPE_FACTORS};

/// What `name` is in a checkpoint of this row; `None` for a tensor that is no weight. `head` is the width of a head.
///
/// # Errors
/// [`GgufError::Tensor`] if the name is not known.
pub fn weight(row: &Row, name: &str, shape: &[usize], head: Option<usize>) -> Result<Option<GgufWeight>, GgufError> {
    let unknown =
        || GgufError::Tensor { name: name.chars().take(100).collect(), architecture: row.architecture.to_owned() };
    let plain = |name: String| GgufWeight { name, after_expert: None, shape: shape.to_vec(), rotated: None };
    let global = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        ROPE_FACTORS => return Ok(None),
        _ => None,
    };
    if let Some(global) = global {
        return Ok(Some(plain(global.to_owned())));
    }
    let (layer, rest) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')).ok_or_else(unknown)?;
    let canonical = layer.parse::<u32>().is_ok_and(|l| l.to_string() == layer);
    let (stem, kind) = rest.rsplit_once('.').filter(|_| canonical).ok_or_else(unknown)?;
    if !matches!(kind, "weight" | "bias") {
        return Err(unknown());
    }
    let at = |inner: &str| format!("model.layers.{layer}.{inner}");
    let (moe, router) = row.moe;
    if let Some(proj) = stem.strip_suffix("_exps").and_then(|s| project(row, s)) {
        let [_, one @ ..] = shape else { return Err(unknown()) };
        return Ok(Some(GgufWeight {
            name: at(&format!("{moe}.experts.")),
            after_expert: Some(format!(".{proj}.{kind}")),
            shape: one.to_vec(),
            rotated: None,
        }));
    }
    if let Some(proj) = stem.strip_suffix("_shexp").and_then(|s| project(row, s)) {
        return Ok(Some(plain(at(&format!("{moe}.{}.{proj}.{kind}", row.shared)))));
    }
    let weight = match stem {
        "attn_sinks" => plain(at("self_attn.sinks")),
        "exp_probs_b" => plain(at(&format!("{moe}.{router}.e_score_correction_bias"))),
        "ffn_gate_inp" => plain(at(&format!("{moe}.{router}.{kind}"))),
        // A vector there, a matrix of one row in checkpoints.
        "ffn_gate_inp_shexp" => {
            let k = shape.iter().product();
            GgufWeight { shape: vec![1, k], ..plain(at(&format!("{moe}.{}_gate.{kind}", row.shared))) }
        }
        "ffn_gate" | "ffn_up" | "ffn_down" => {
            let proj = stem.strip_prefix("ffn_").unwrap_or(stem);
            plain(at(&format!("mlp.{proj}_proj.{kind}")))
        }
        _ => {
            let (_, inner) = LAYER.iter().find(|(from, _)| *from == stem).ok_or_else(unknown)?;
            let rotated = head.filter(|_| row.rotated && matches!(stem, "attn_q" | "attn_k"));
            GgufWeight { rotated, ..plain(at(&format!("{inner}.{kind}"))) }
        }
    };
    Ok(Some(weight))
}

/// What gate, up or down of an expert is called.
fn project(row: &Row, stem: &str) -> Option<&'static str> {
    let [gate, up, down] = row.projs;
    match stem {
        "ffn_gate" => Some(gate),
        "ffn_up" => Some(up),
        "ffn_down" => Some(down),
        _ => None,
    }
}

/// Names within a layer that all rows share.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
];
