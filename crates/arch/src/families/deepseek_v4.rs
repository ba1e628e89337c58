//! DeepSeek-V4: attention to a window and to pooled entries, a residual stream of four lanes, experts that the first layers
//! choose by token id.
//!
//! Source: `inference/model.py` of the release, whose tensor names these are, and `modeling_deepseek_v4.py` of transformers.
//! `compress_ratios` tells each layer's kind: 0 sees its window only, 4 chooses among entries of four tokens (which overlap),
//! 128 sees all entries of 128 tokens. Layers without entries have the plain rope of `rope_theta`, the others YaRN over
//! `compress_rope_theta`, and no attention factor.

use crate::blocks::{Frame, gated, norm_leaf};
use crate::config::{Config, MAX_LAYERS, MAX_SIZE};
use crate::rope::rope;
use crate::{
    Activation, ArchError, ChatEncoding, Class, CompressedAttention, Compressor, Efforts, Ffn, Hyper, Indexer, Lanes,
    Layer, Leaf, Mixer, ModelSpec, Moe, Proj, Role, Rope, RopeScaling, Routing, Scores, Shared,
};

/// Tokens of a window whose entries overlap and are chosen among.
const OVERLAPPING: usize = 4;

/// Releases with a drafter of their own (`dspark_…`, from 2026-07-31 on) know one level of reasoning more.
pub fn chat(config: &serde_json::Value) -> ChatEncoding {
    let drafts = config.as_object().is_some_and(|c| c.keys().any(|key| key.starts_with("dspark_")));
    ChatEncoding::Dsml(if drafts { Efforts::Three } else { Efforts::Two })
}

struct Sizes {
    hidden: usize,
    num_heads: usize,
    head_dim: usize,
    rope_dim: usize,
    q_rank: usize,
    groups: usize,
    o_rank: usize,
    window: usize,
    index_heads: usize,
    index_dim: usize,
    index_top_k: usize,
    experts: usize,
    expert: usize,
    shared: usize,
    routing: Routing,
    activation: Activation,
    hash_layers: usize,
    lanes: usize,
    ropes: [Rope; 2],
    vocab: usize,
}

pub fn spec(family: &'static str, config: Config<'_>) -> Result<ModelSpec, ArchError> {
    let frame = Frame::read(config)?;
    let sizes = sizes(&frame)?;
    let ratios = ratios(&frame)?;
    let layers = ratios.iter().enumerate().map(|(i, ratio)| layer(&sizes, i, *ratio)).collect();
    let mut model = frame.model(family, layers)?;
    model.embed.name = "embed.weight".into();
    model.final_norm.name = "norm.weight".into();
    if let Some(head) = &mut model.lm_head {
        head.name = "head.weight".into();
    }
    model.lanes = Some(Lanes {
        count: sizes.lanes,
        eps: config.optional_number("hc_eps", 1e-12..=1.0)?.unwrap_or(1e-6) as f32,
        iterations: config.optional_size("hc_sinkhorn_iters", 1..=1000)?.unwrap_or(20),
        head: hyper("hc_head", None, [sizes.lanes, 1], sizes.lanes * sizes.hidden),
    });
    model.mtp_prefixes = vec!["mtp.".into()];
    Ok(model)
}

fn sizes(frame: &Frame<'_>) -> Result<Sizes, ArchError> {
    let c = &frame.config;
    for (key, only) in [("scoring_func", "sqrtsoftplus"), ("topk_method", "noaux_tc")] {
        if let Some(other) = c.text(key)?.filter(|s| *s != only) {
            return Err(c.unsupported(key, format!("`{other}` is not supported; supported is {only}")));
        }
    }
    if c.bool_or("attention_bias", false)? || !c.bool_or("norm_topk_prob", true)? {
        let what = "only attention_bias false and norm_topk_prob true are supported, as in every release";
        return Err(c.unsupported("attention_bias", what));
    }
    let size = |key: &str| c.size(key, 1..=1 << 20);
    let (num_heads, head_dim, groups) = (size("num_attention_heads")?, size("head_dim")?, size("o_groups")?);
    if !num_heads.is_multiple_of(groups) {
        let expected = format!("a divisor of num_attention_heads ({num_heads})");
        return Err(c.error("o_groups", &expected, c.get("o_groups")));
    }
    let rope_dim = c.size("qk_rope_head_dim", 2..=head_dim)?;
    let index_dim = c.size("index_head_dim", rope_dim..=1 << 20)?;
    let index_heads = size("index_n_heads")?;
    if !rope_dim.is_multiple_of(2) || (num_heads * head_dim).max(index_heads * index_dim) > MAX_SIZE {
        return Err(c.unsupported("head_dim", "rope needs an even width, and heads must fit 2^31 values"));
    }
    let moe = frame.moe_sizes("moe_intermediate_size", true)?;
    let shared = c.size("n_shared_experts", 1..=1 << 10)?.saturating_mul(moe.intermediate).min(MAX_SIZE);
    let scale = c.optional_number("routed_scaling_factor", 1e-6..=1e6)?.unwrap_or(1.5) as f32;
    let limit = c.number("swiglu_limit", 1e-3..=1e6)? as f32;
    let plain = rope_of(c, "rope_theta", 10_000.0, RopeScaling::Plain)?;
    let stretched = match rope(c, 10_000.0)?.scaling {
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, truncate, .. } => {
            let attention_factor = 1.0;
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, truncate, attention_factor }
        }
        other => other,
    };
    Ok(Sizes {
        hidden: frame.hidden,
        num_heads,
        head_dim,
        rope_dim,
        q_rank: size("q_lora_rank")?,
        groups,
        o_rank: size("o_lora_rank")?,
        window: c.size("sliding_window", 1..=MAX_SIZE)?,
        index_heads,
        index_dim,
        index_top_k: size("index_topk")?,
        experts: moe.num_experts,
        expert: moe.intermediate,
        shared,
        routing: Routing { scores: Scores::SqrtSoftplus, scale, ..moe.routing },
        activation: Activation::ClampedSilu { limit },
        hash_layers: c.optional_size("num_hash_layers", 0..=MAX_LAYERS)?.unwrap_or(0),
        lanes: c.size("hc_mult", 1..=64)?,
        ropes: [plain, rope_of(c, "compress_rope_theta", 160_000.0, stretched)?],
        vocab: c.size("vocab_size", 1..=MAX_SIZE)?,
    })
}

fn rope_of(config: &Config<'_>, key: &str, default: f64, scaling: RopeScaling) -> Result<Rope, ArchError> {
    Ok(Rope { theta: config.optional_number(key, 1.0..=1e15)?.unwrap_or(default), scaling })
}

/// The kinds of the layers; what follows belongs to next-token layers.
fn ratios(frame: &Frame<'_>) -> Result<Vec<usize>, ArchError> {
    let c = &frame.config;
    let listed = c.list("compress_ratios")?.unwrap_or_default();
    let ratio = |value: &serde_json::Value| match value.as_u64() {
        Some(0) => Ok(0),
        Some(4) => Ok(4),
        Some(128) => Ok(128),
        _ => Err(c.error("compress_ratios", "0, 4 or 128 for every layer", Some(value))),
    };
    let ratios = listed.iter().take(frame.layers).map(ratio).collect::<Result<Vec<_>, _>>()?;
    if ratios.len() == frame.layers {
        return Ok(ratios);
    }
    let expected = format!("at least num_hidden_layers ({}) values", frame.layers);
    Err(c.error("compress_ratios", &expected, c.get("compress_ratios")))
}

fn layer(s: &Sizes, index: usize, ratio: usize) -> Layer {
    let at = format!("layers.{index}");
    let norm = |name: &str| norm_leaf(format!("{at}.{name}.weight"), s.hidden, Some(index));
    let (n, k) = ([s.lanes * (s.lanes + 2), 3], s.lanes * s.hidden);
    Layer {
        attn_norm: norm("attn_norm"),
        attn: Mixer::Compressed(Box::new(attention(s, index, ratio))),
        ffn_norm: norm("ffn_norm"),
        ffn: Ffn::Moe(moe(s, index)),
        activation: s.activation,
        hyper: Some(Box::new(["attn", "ffn"].map(|site| hyper(&format!("{at}.hc_{site}"), Some(index), n, k)))),
    }
}

fn hyper(at: &str, layer: Option<usize>, [n, scales]: [usize; 2], k: usize) -> Hyper {
    let role = Role { class: Class::Hyper, proj: None, layer, expert: None };
    let leaf = |name: &str, shape: Vec<usize>| Leaf { name: format!("{at}_{name}"), shape, role };
    Hyper { mix: leaf("fn", vec![n, k]), base: leaf("base", vec![n]), scale: leaf("scale", vec![scales]) }
}

fn attention(s: &Sizes, index: usize, ratio: usize) -> CompressedAttention {
    let at = format!("layers.{index}.attn");
    let leaf = |class, proj, name: &str, shape: Vec<usize>| Leaf {
        name: format!("{at}.{name}"),
        shape,
        role: Role { class, proj, layer: Some(index), expert: None },
    };
    let weight = |proj, name: &str, n, k| leaf(Class::Attn, Some(proj), name, vec![n, k]);
    let norm = |name: &str, width| norm_leaf(format!("{at}.{name}.weight"), width, Some(index));
    let compressor = |prefix: &str, class, width| {
        let overlap = ratio == OVERLAPPING;
        let wide = if overlap { 2 * width } else { width };
        Compressor {
            kv: leaf(class, Some(Proj::Kv), &format!("{prefix}.wkv.weight"), vec![wide, s.hidden]),
            gate: leaf(class, Some(Proj::Gate), &format!("{prefix}.wgate.weight"), vec![wide, s.hidden]),
            position: leaf(class, None, &format!("{prefix}.ape"), vec![ratio, wide]),
            norm: norm(&format!("{prefix}.norm"), width),
            ratio,
            overlap,
            width,
        }
    };
    let indexer = || Indexer {
        q: leaf(Class::Indexer, Some(Proj::QB), "indexer.wq_b.weight", vec![s.index_heads * s.index_dim, s.q_rank]),
        weights: leaf(Class::Indexer, None, "indexer.weights_proj.weight", vec![s.index_heads, s.hidden]),
        compressor: compressor("indexer.compressor", Class::Indexer, s.index_dim),
        num_heads: s.index_heads,
        top_k: s.index_top_k,
    };
    let group = s.num_heads / s.groups * s.head_dim;
    let [plain, stretched] = &s.ropes;
    CompressedAttention {
        q_a: [weight(Proj::QA, "wq_a.weight", s.q_rank, s.hidden), norm("q_norm", s.q_rank)],
        q_b: weight(Proj::QB, "wq_b.weight", s.num_heads * s.head_dim, s.q_rank),
        kv: [weight(Proj::Kv, "wkv.weight", s.head_dim, s.hidden), norm("kv_norm", s.head_dim)],
        sinks: leaf(Class::Attn, None, "attn_sink", vec![s.num_heads]),
        o_a: weight(Proj::OA, "wo_a.weight", s.groups * s.o_rank, group),
        o_b: weight(Proj::OB, "wo_b.weight", s.hidden, s.groups * s.o_rank),
        num_heads: s.num_heads,
        head_dim: s.head_dim,
        rope_dim: s.rope_dim,
        rope: if ratio == 0 { plain.clone() } else { stretched.clone() },
        window: s.window,
        groups: s.groups,
        compressor: (ratio > 0).then(|| compressor("compressor", Class::Compressor, s.head_dim)),
        indexer: (ratio == OVERLAPPING).then(indexer),
    }
}

fn moe(s: &Sizes, index: usize) -> Moe {
    let at = format!("layers.{index}.ffn");
    let router = Role { class: Class::Router, proj: None, layer: Some(index), expert: None };
    let leaf = |name: &str, shape: Vec<usize>| Leaf { name: format!("{at}.{name}"), shape, role: router };
    let names = |prefix: String| ["w1", "w3", "w2"].map(|w| format!("{at}.{prefix}.{w}.weight"));
    let expert = |e: usize| {
        let role = |proj| Role { class: Class::Experts, proj: Some(proj), layer: Some(index), expert: Some(e) };
        gated(names(format!("experts.{e}")), s.hidden, s.expert, role)
    };
    let role = |proj| Role { class: Class::SharedExpert, proj: Some(proj), layer: Some(index), expert: None };
    let hashed = index < s.hash_layers;
    Moe {
        router: leaf("gate.weight", vec![s.experts, s.hidden]),
        router_bias: None,
        choice_bias: (!hashed).then(|| leaf("gate.bias", vec![s.experts])),
        table: hashed.then(|| leaf("gate.tid2eid", vec![s.vocab, s.routing.top_k])),
        experts: (0..s.experts).map(expert).collect(),
        routing: s.routing,
        shared: Some(Box::new(Shared {
            mlp: gated(names("shared_experts".into()), s.hidden, s.shared, role),
            gate: None,
        })),
    }
}
