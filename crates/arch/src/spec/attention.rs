//! How tokens of a sequence see each other: attention per head, from a latent, or to a window and pooled entries.

use super::{Leaf, Rope};

/// Grouped-query attention with optional biases, QK-norm and window.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query projection, `[num_heads · head_dim, hidden]`.
    pub q: Leaf,
    /// Key projection, `[num_kv_heads · head_dim, hidden]`.
    pub k: Leaf,
    /// Value projection, `[num_kv_heads · head_dim, hidden]`.
    pub v: Leaf,
    /// Output projection, `[hidden, num_heads · head_dim]`.
    pub o: Leaf,
    /// Bias of q.
    pub q_bias: Option<Leaf>,
    /// Bias of k.
    pub k_bias: Option<Leaf>,
    /// Bias of v.
    pub v_bias: Option<Leaf>,
    /// Bias of o.
    pub o_bias: Option<Leaf>,
    /// RMS norm over each query head, `[head_dim]`.
    pub q_norm: Option<Leaf>,
    /// RMS norm over each key head, `[head_dim]`.
    pub k_norm: Option<Leaf>,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Position embedding.
    pub rope: Rope,
    /// Keys visible to a query, itself included; `None` for all.
    pub window: Option<usize>,
    /// One more score per query head, `[num_heads]`, that takes part in the softmax and has no value.
    pub sinks: Option<Leaf>,
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads are projections of one latent
/// vector per token. The cache holds that and one rotary key for all heads; the projections are absorbed into queries and
/// outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentAttention {
    /// Down projection of queries, `[q_rank, hidden]`, and the RMS norm behind it, `[q_rank]`.
    pub q_a: Option<[Leaf; 2]>,
    /// Query projection, `[num_heads · (plain_dim + rope_dim), q_rank or hidden]`.
    pub q_b: Leaf,
    /// Latent and rotary key, `[rank + rope_dim, hidden]`.
    pub kv_a: Leaf,
    /// RMS norm over the latent, `[rank]`.
    pub kv_a_norm: Leaf,
    /// Keys and values from the latent, `[num_heads · (plain_dim + value_dim), rank]`; key rows first in every head.
    pub kv_b: Leaf,
    /// Output projection, `[hidden, num_heads · value_dim]`.
    pub o: Leaf,
    /// Heads.
    pub num_heads: usize,
    /// Width of the latent.
    pub rank: usize,
    /// Width of the part of a query or key that has no position.
    pub plain_dim: usize,
    /// Width of the part that is rotated, in pairs (2i, 2i + 1).
    pub rope_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Position embedding.
    pub rope: Rope,
    /// Multiplier of the scores.
    pub scale: f32,
}

/// Pools every `ratio` tokens into one entry: a softmax over the window weighs them, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressor {
    /// What is pooled, `[width or 2 · width, hidden]`.
    pub kv: Leaf,
    /// Weights before the softmax, as many.
    pub gate: Leaf,
    /// Added to them, by position in the window, `[ratio, …]`.
    pub position: Leaf,
    /// RMS norm over an entry, `[width]`.
    pub norm: Leaf,
    /// Tokens of a window.
    pub ratio: usize,
    /// Whether the tokens of the window before take part, with the first half of what they project to.
    pub overlap: bool,
    /// Width of an entry.
    pub width: usize,
}

/// Chooses which entries a token attends to.
#[derive(Clone, Debug, PartialEq)]
pub struct Indexer {
    /// Its queries, `[num_heads · width, q_rank]`.
    pub q: Leaf,
    /// How its heads count, `[num_heads, hidden]`.
    pub weights: Leaf,
    /// Its keys.
    pub compressor: Compressor,
    /// Heads.
    pub num_heads: usize,
    /// Entries chosen.
    pub top_k: usize,
}

/// Attention to a window of tokens and to entries pooled from all before, with one head of keys that are the values too
/// (DeepSeek-V4).
#[derive(Clone, Debug, PartialEq)]
pub struct CompressedAttention {
    /// Down projection of queries, `[q_rank, hidden]`, and the RMS norm behind it, `[q_rank]`.
    pub q_a: [Leaf; 2],
    /// Query projection, `[num_heads · head_dim, q_rank]`; every head is normalised, without a weight.
    pub q_b: Leaf,
    /// Keys and values, `[head_dim, hidden]`, and the RMS norm behind it, `[head_dim]`.
    pub kv: [Leaf; 2],
    /// One more score per head, `[num_heads]`.
    pub sinks: Leaf,
    /// First output projection, `[groups · o_rank, num_heads / groups · head_dim]`: each group of heads has its own rows.
    pub o_a: Leaf,
    /// Second one, `[hidden, groups · o_rank]`.
    pub o_b: Leaf,
    /// Query heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The last values of a head are rotated, in pairs (2i, 2i + 1); those of outputs are turned back.
    pub rope_dim: usize,
    /// Position embedding.
    pub rope: Rope,
    /// Tokens visible to a query, itself included.
    pub window: usize,
    /// Groups of heads.
    pub groups: usize,
    /// Entries that are visible besides.
    pub compressor: Option<Compressor>,
    /// Which of them; all where there is none.
    pub indexer: Option<Indexer>,
}

impl Compressor {
    fn tensors(&self) -> [&Leaf; 4] {
        [&self.kv, &self.gate, &self.position, &self.norm]
    }
}

/// How tokens of a sequence see each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Keys and values per head.
    Heads(Box<Attention>),
    /// Keys and values from a latent.
    Latent(Box<LatentAttention>),
    /// A window and pooled entries.
    Compressed(Box<CompressedAttention>),
}

impl Mixer {
    /// The attention, if it has keys and values per head.
    #[must_use]
    pub fn heads(&self) -> Option<&Attention> {
        match self {
            Self::Heads(a) => Some(a),
            Self::Latent(_) | Self::Compressed(_) => None,
        }
    }

    /// Its position embedding.
    #[must_use]
    pub fn rope(&self) -> &Rope {
        match self {
            Self::Heads(a) => &a.rope,
            Self::Latent(a) => &a.rope,
            Self::Compressed(a) => &a.rope,
        }
    }

    /// Its tensors, in execution order.
    #[must_use]
    pub fn tensors(&self) -> Vec<&Leaf> {
        match self {
            Self::Heads(a) => {
                let mut all = vec![&a.q, &a.k, &a.v, &a.o];
                let optional = [&a.q_bias, &a.k_bias, &a.v_bias, &a.o_bias, &a.q_norm, &a.k_norm, &a.sinks];
                all.extend(optional.into_iter().flatten());
                all
            }
            Self::Latent(a) => {
                let q_a = a.q_a.iter().flatten();
                q_a.chain([&a.q_b, &a.kv_a, &a.kv_a_norm, &a.kv_b, &a.o]).collect()
            }
            Self::Compressed(a) => {
                let mut all: Vec<&Leaf> = a.q_a.iter().chain([&a.q_b]).chain(&a.kv).chain([&a.sinks]).collect();
                all.extend(a.compressor.iter().flat_map(Compressor::tensors));
                if let Some(indexer) = &a.indexer {
                    all.extend([&indexer.q, &indexer.weights]);
                    all.extend(indexer.compressor.tensors());
                }
                all.extend([&a.o_a, &a.o_b]);
                all
            }
        }
    }
}
