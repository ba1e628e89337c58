//! Multi-head latent attention and the layers around it, as the DeepSeek families spell them.

use crate::blocks::{Frame, MoeNames, MoeSizes, norm_leaf};
use crate::config::{MAX_LAYERS, MAX_SIZE};
use crate::rope::{rope, softmax_scale};
use crate::{ArchError, Class, Ffn, LatentAttention, Layer, Leaf, Mixer, Proj, Role, Rope, Shared};

const NAMES: MoeNames =
    MoeNames { router: "mlp.gate.weight", experts: "mlp.experts", projs: ["gate_proj", "up_proj", "down_proj"] };

/// Sizes of latent attention, shared by all layers.
pub struct Latent {
    num_heads: usize,
    q_rank: Option<usize>,
    rank: usize,
    plain_dim: usize,
    rope_dim: usize,
    value_dim: usize,
    rope: Rope,
    scale: f32,
}

/// Which layers are dense, and the widths of what is not routed.
pub struct Sparsity {
    dense_layers: usize,
    every: usize,
    dense: usize,
    shared: Option<usize>,
}

impl Frame<'_> {
    /// Heads, ranks and widths of latent attention.
    pub fn latent(&self) -> Result<Latent, ArchError> {
        let c = &self.config;
        if c.bool_or("attention_bias", false)? {
            return Err(c.unsupported("attention_bias", "biases in latent attention are not supported; only false is"));
        }
        let size = |key: &str| c.size(key, 1..=1 << 20);
        let num_heads = size("num_attention_heads")?;
        let (plain_dim, rope_dim) = (size("qk_nope_head_dim")?, size("qk_rope_head_dim")?);
        let (rank, value_dim) = (size("kv_lora_rank")?, size("v_head_dim")?);
        if !rope_dim.is_multiple_of(2) {
            let what = format!("rope needs an even width, this is {rope_dim}");
            return Err(c.unsupported("qk_rope_head_dim", what));
        }
        let widest = plain_dim.max(rank) + rope_dim.max(value_dim);
        if num_heads.checked_mul(widest).is_none_or(|width| width > MAX_SIZE) {
            let expected = format!("at most {MAX_SIZE} / {widest}, the widest head");
            return Err(c.error("num_attention_heads", &expected, c.get("num_attention_heads")));
        }
        Ok(Latent {
            num_heads,
            q_rank: c.optional_size("q_lora_rank", 1..=MAX_SIZE)?,
            rank,
            plain_dim,
            rope_dim,
            value_dim,
            rope: rope(c, 10_000.0)?,
            scale: softmax_scale(c, plain_dim + rope_dim)?,
        })
    }

    /// The latent attention of one layer.
    pub fn latent_attention(&self, layer: usize, sizes: &Latent) -> Mixer {
        let at = |name: &str| format!("model.layers.{layer}.self_attn.{name}.weight");
        let role = |proj| Role { class: Class::Attn, proj: Some(proj), layer: Some(layer), expert: None };
        let weight = |name: &str, proj, n, k| Leaf { name: at(name), shape: vec![n, k], role: role(proj) };
        let Latent { num_heads, rank, plain_dim, rope_dim, value_dim, .. } = *sizes;
        let (q_width, hidden) = (num_heads * (plain_dim + rope_dim), self.hidden);
        let q_a = sizes.q_rank.map(|rank| {
            let norm = norm_leaf(at("q_a_layernorm"), rank, Some(layer));
            [weight("q_a_proj", Proj::QA, rank, hidden), norm]
        });
        let q_b = match sizes.q_rank {
            Some(rank) => weight("q_b_proj", Proj::QB, q_width, rank),
            None => weight("q_proj", Proj::Q, q_width, hidden),
        };
        Mixer::Latent(Box::new(LatentAttention {
            q_a,
            q_b,
            kv_a: weight("kv_a_proj_with_mqa", Proj::KvA, rank + rope_dim, hidden),
            kv_a_norm: norm_leaf(at("kv_a_layernorm"), rank, Some(layer)),
            kv_b: weight("kv_b_proj", Proj::KvB, num_heads * (plain_dim + value_dim), rank),
            o: weight("o_proj", Proj::O, hidden, num_heads * value_dim),
            num_heads,
            rank,
            plain_dim,
            rope_dim,
            value_dim,
            rope: sizes.rope.clone(),
            scale: sizes.scale,
        }))
    }

    /// The first `first_k_dense_replace` layers are dense, of the others every `moe_layer_freq`-th routes to experts.
    pub fn sparsity(&self, moe: &MoeSizes) -> Result<Sparsity, ArchError> {
        let c = &self.config;
        let shared = c.optional_size("n_shared_experts", 0..=1 << 16)?.filter(|count| *count > 0);
        let shared = shared.map(|count| count.checked_mul(moe.intermediate).filter(|width| *width <= MAX_SIZE));
        if shared == Some(None) {
            let expected = format!("at most {MAX_SIZE} / moe_intermediate_size");
            return Err(c.error("n_shared_experts", &expected, c.get("n_shared_experts")));
        }
        let dense_layers = c.optional_size("first_k_dense_replace", 0..=MAX_LAYERS)?.unwrap_or(0);
        let every = c.optional_size("moe_layer_freq", 1..=MAX_LAYERS)?.unwrap_or(1);
        // Only models with dense layers need this key.
        let dense = if dense_layers > 0 || every > 1 { self.intermediate()? } else { 0 };
        Ok(Sparsity { dense_layers, every, dense, shared: shared.flatten() })
    }

    /// A layer of latent attention and, where it is not dense, experts beside a shared one; `choice_bias` tells whether
    /// the router has one.
    pub fn latent_layer(
        &self,
        layer: usize,
        latent: &Latent,
        sparsity: &Sparsity,
        moe: &MoeSizes,
        choice_bias: bool,
    ) -> Layer {
        let attn = self.latent_attention(layer, latent);
        if layer < sparsity.dense_layers || !layer.is_multiple_of(sparsity.every) {
            return self.layer(layer, attn, self.dense(layer, sparsity.dense));
        }
        let mut ffn = self.moe(layer, moe, &NAMES);
        ffn.shared = sparsity.shared.map(|width| {
            let mlp = self.shared(layer, "mlp.shared_experts", width);
            Box::new(Shared { mlp, gate: None })
        });
        ffn.choice_bias = choice_bias.then(|| Leaf {
            name: format!("model.layers.{layer}.mlp.gate.e_score_correction_bias"),
            shape: vec![moe.num_experts],
            role: Role { class: Class::Router, proj: None, layer: Some(layer), expert: None },
        });
        self.layer(layer, attn, Ffn::Moe(ffn))
    }
}
