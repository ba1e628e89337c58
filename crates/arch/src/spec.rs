//! [`ModelSpec`]: a model as plain data, printable and testable without a device.

use std::fmt;

/// What a tensor is for: the `class` of recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words of the recipe schema, DESIGN §6")]
pub enum Class {
    Attn,
    Mlp,
    Experts,
    SharedExpert,
    Router,
    Embed,
    LmHead,
    Norm,
    Indexer,
    Compressor,
    Hyper,
    Mtp,
    Other,
}

/// Which projection of its block a tensor is: the `proj` of recipes (`q`, `k`, `v`, `o`, `gate`, `up`, `down`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the field's names")]
pub enum Proj {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    QA,
    QB,
    KvA,
    KvB,
    OA,
    OB,
    Kv,
}

/// What recipes can say about a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// What it is for.
    pub class: Class,
    /// Which projection, where that makes sense.
    pub proj: Option<Proj>,
    /// Layer index, from 0.
    pub layer: Option<usize>,
    /// Expert index, from 0.
    pub expert: Option<usize>,
}

/// One tensor of the model, under the checkpoint's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape: `[n, k]` for matrices (n outputs, k inputs), `[n]` for vectors.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
}

/// Rotary position embedding, half-split pairs (i, i + d/2).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Changes of the rope frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Plain,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below this many rotations a frequency counts as low.
        low_freq_factor: f64,
        /// Above this many rotations it counts as high.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_position: f64,
        /// Whether the correction range is rounded outwards.
        truncate: bool,
        /// Multiplier of cos and sin.
        attention_factor: f64,
    },
}

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

/// A residual stream of several lanes: how a block's input is mixed from them and its output added to them
/// (manifold-constrained hyper-connections).
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// From all lanes to coefficients, `[lanes · (lanes + 2), lanes · hidden]`; of the head `[lanes, …]`.
    pub mix: Leaf,
    /// Added to the coefficients.
    pub base: Leaf,
    /// Multipliers of the three kinds of coefficients; of the head, of the one.
    pub scale: Leaf,
}

/// The lanes of a residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Lanes {
    /// How many.
    pub count: usize,
    /// Added in every normalisation.
    pub eps: f32,
    /// Steps of Sinkhorn's normalisation.
    pub iterations: usize,
    /// From all lanes to what the final norm reads.
    pub head: Hyper,
}

impl Compressor {
    fn tensors(&self) -> [&Leaf; 4] {
        [&self.kv, &self.gate, &self.position, &self.norm]
    }
}

impl Hyper {
    fn tensors(&self) -> [&Leaf; 3] {
        [&self.mix, &self.base, &self.scale]
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

/// The nonlinearity of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// silu(gate) · up
    Silu,
    /// silu(g) · u with g = min(gate, limit), u = up within ±limit
    ClampedSilu {
        /// Largest gate, largest |up|.
        limit: f32,
    },
    /// (u + 1) · g · sigmoid(alpha · g) with g = min(gate, limit), u = up within ±limit
    ClampedSwish {
        /// Largest gate, largest |up|.
        limit: f32,
        /// Steepness of the sigmoid.
        alpha: f32,
    },
}

/// gate, up and down projections.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedMlp {
    /// `[intermediate, hidden]`
    pub gate: Leaf,
    /// `[intermediate, hidden]`
    pub up: Leaf,
    /// `[hidden, intermediate]`
    pub down: Leaf,
    /// Of gate, up and down, one value per output.
    pub biases: Option<Box<[Leaf; 3]>>,
}

/// A routed expert.
pub type Expert = GatedMlp;

/// What router logits are turned into before experts are ranked by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// softmax over all experts
    Softmax,
    /// sigmoid of each
    Sigmoid,
    /// sqrt(ln(1 + e^x)) of each
    SqrtSoftplus,
}

/// Experts lie in groups of equal size, and only the best groups are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups; divides the number of experts.
    pub count: usize,
    /// How many are chosen from.
    pub kept: usize,
    /// How many of its best experts are summed to rank a group.
    pub ranked_by: usize,
}

/// How router logits become expert weights: scores, plus a bias where there is one, rank the experts; the scores of the
/// chosen, without that bias, are their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: bool,
    /// From logits to scores.
    pub scores: Scores,
    /// Multiplier of all weights, last of all.
    pub scale: f32,
    /// Choice among groups first.
    pub groups: Option<Groups>,
}

impl Default for Routing {
    /// Softmax over all experts, the best one.
    fn default() -> Self {
        Self { top_k: 1, normalize: false, scores: Scores::Softmax, scale: 1.0, groups: None }
    }
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// `[num_experts, hidden]`
    pub router: Leaf,
    /// Added to the logits, `[num_experts]`.
    pub router_bias: Option<Leaf>,
    /// Added to the scores where experts are ranked, `[num_experts]`.
    pub choice_bias: Option<Leaf>,
    /// The experts of every token id, `[vocab, top_k]`: the router then only weighs them.
    pub table: Option<Leaf>,
    /// Routed experts.
    pub experts: Vec<Expert>,
    /// How experts are chosen and weighted.
    pub routing: Routing,
    /// What every token visits besides.
    pub shared: Option<Box<Shared>>,
}

/// An expert that every token visits.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Its weights.
    pub mlp: GatedMlp,
    /// Its output is multiplied by sigmoid(x · gateᵀ), `[1, hidden]`; by 1 where there is none.
    pub gate: Option<Leaf>,
}

/// The feed-forward half of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// One gated MLP.
    Dense(GatedMlp),
    /// Routed experts.
    Moe(Moe),
}

/// One decoder layer: x += attn(norm(x)); x += ffn(norm(x)).
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// RMS norm before attention, `[hidden]`.
    pub attn_norm: Leaf,
    /// Attention.
    pub attn: Mixer,
    /// RMS norm before the feed-forward half, `[hidden]`.
    pub ffn_norm: Leaf,
    /// Feed-forward half.
    pub ffn: Ffn,
    /// Its nonlinearity.
    pub activation: Activation,
    /// Before attention and before the feed-forward half, where the residual stream has lanes.
    pub hyper: Option<Box<[Hyper; 2]>>,
}

/// A model as data.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The family that made it, such as `qwen3_moe`.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the config promises.
    pub max_position: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// `[vocab, hidden]`
    pub embed: Leaf,
    /// Decoder layers.
    pub layers: Vec<Layer>,
    /// RMS norm after the last layer.
    pub final_norm: Leaf,
    /// `[vocab, hidden]`; `None` when tied to `embed`.
    pub lm_head: Option<Leaf>,
    /// The lanes of the residual stream, where it has more than one.
    pub lanes: Option<Lanes>,
    /// What the names of next-token (MTP) layers begin with.
    pub mtp_prefixes: Vec<String>,
    /// Their tensors, once they were adopted. They are kept and no program reads them.
    pub mtp: Vec<Leaf>,
}

impl ModelSpec {
    /// Values per token between two layers.
    #[must_use]
    pub fn residual_width(&self) -> usize {
        self.hidden_size * self.lanes.as_ref().map_or(1, |l| l.count)
    }

    /// Every tensor of the model, in execution order: the one iterator behind recipe roles, work lists, sizes and
    /// missing-tensor checks.
    pub fn tensors(&self) -> impl Iterator<Item = &Leaf> {
        self.loaded().chain(&self.mtp)
    }

    /// The tensors that programs read: all but those of next-token layers.
    pub fn loaded(&self) -> impl Iterator<Item = &Leaf> {
        std::iter::once(&self.embed)
            .chain(self.layers.iter().flat_map(Layer::tensors))
            .chain(self.lanes.iter().flat_map(|lanes| lanes.head.tensors()))
            .chain([&self.final_norm])
            .chain(&self.lm_head)
    }

    /// Takes the tensors of next-token layers into the model, in the shapes they have: releases carry them or not, and
    /// more kinds than their configs tell.
    pub fn adopt<'a>(&mut self, tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) {
        let ours = |name: &&str| self.mtp_prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()));
        let role = Role { class: Class::Mtp, proj: None, layer: None, expert: None };
        let leaf = |(name, shape): (&str, &[usize])| Leaf { name: name.to_owned(), shape: shape.to_vec(), role };
        self.mtp = tensors.into_iter().filter(|(name, _)| ours(name)).map(leaf).collect();
    }
}

impl Layer {
    fn tensors(&self) -> Vec<&Leaf> {
        let mut all = vec![&self.attn_norm];
        all.extend(self.hyper.iter().flat_map(|sites| sites.iter().flat_map(Hyper::tensors)));
        all.extend(self.attn.tensors());
        all.push(&self.ffn_norm);
        match &self.ffn {
            Ffn::Dense(mlp) => all.extend(mlp.all()),
            Ffn::Moe(moe) => {
                all.push(&moe.router);
                all.extend([&moe.router_bias, &moe.choice_bias, &moe.table].into_iter().flatten());
                all.extend(moe.experts.iter().flat_map(GatedMlp::all));
                if let Some(shared) = &moe.shared {
                    all.extend(shared.mlp.all());
                    all.extend(&shared.gate);
                }
            }
        }
        all
    }
}

impl GatedMlp {
    /// gate, up, down.
    #[must_use]
    pub fn tensors(&self) -> [&Leaf; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// gate, up, down, and their biases.
    pub fn all(&self) -> impl Iterator<Item = &Leaf> {
        self.tensors().into_iter().chain(self.biases.iter().flat_map(|b| b.iter()))
    }
}

const CLASSES: &[(Class, &str)] = &[
    (Class::Attn, "attn"),
    (Class::Mlp, "mlp"),
    (Class::Experts, "experts"),
    (Class::SharedExpert, "shared_expert"),
    (Class::Router, "router"),
    (Class::Embed, "embed"),
    (Class::LmHead, "lm_head"),
    (Class::Norm, "norm"),
    (Class::Indexer, "indexer"),
    (Class::Compressor, "compressor"),
    (Class::Hyper, "hyper"),
    (Class::Mtp, "mtp"),
    (Class::Other, "other"),
];

const PROJS: &[(Proj, &str)] = &[
    (Proj::Q, "q"),
    (Proj::K, "k"),
    (Proj::V, "v"),
    (Proj::O, "o"),
    (Proj::Gate, "gate"),
    (Proj::Up, "up"),
    (Proj::Down, "down"),
    (Proj::QA, "q_a"),
    (Proj::QB, "q_b"),
    (Proj::KvA, "kv_a"),
    (Proj::KvB, "kv_b"),
    (Proj::OA, "o_a"),
    (Proj::OB, "o_b"),
    (Proj::Kv, "kv"),
];

macro_rules! named {
    ($type:ty, $table:ident) => {
        impl $type {
            /// The name recipes use.
            #[must_use]
            pub fn name(self) -> &'static str {
                $table.iter().find(|(v, _)| *v == self).map_or("?", |(_, n)| n)
            }

            /// The value of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                $table.iter().find(|(_, n)| *n == name).map(|(v, _)| *v)
            }

            /// Every name, for messages.
            pub fn names() -> impl Iterator<Item = &'static str> {
                $table.iter().map(|(_, n)| *n)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named!(Class, CLASSES);
named!(Proj, PROJS);
