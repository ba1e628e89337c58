//! The op set. y[m, n] = x[m, k] · W[n, k]ᵀ everywhere; activations are f32, one row per token of the batch.

use ashlar_arch::{Activation, Rope, Routing};
use ashlar_formats::Spec;
use ashlar_tensor::{Bytes, Order};
use std::ops::Range;
use std::sync::Arc;

/// A buffer of activations on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u32);

/// A loaded weight on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// The KV cache of one layer on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheId(pub u32);

/// A weight to load.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name, for messages.
    pub name: String,
    /// What the bits mean.
    pub spec: Spec,
    /// In which order the planes lie.
    pub order: Order,
    /// Outputs; for vectors (norms, biases) 1.
    pub n: usize,
    /// Inputs; for vectors their length.
    pub k: usize,
    /// Whole planes.
    pub planes: Vec<Bytes>,
}

/// How well a backend handles weights of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// A kernel reads the stored bytes.
    Native,
    /// Works, by decoding to floats (slower, or at load); the text says which.
    ViaDecode(String),
    /// Does not work.
    Unsupported(String),
}

/// In which precision matmul inputs are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ActivationMode {
    /// f32 inputs.
    #[default]
    F32,
    /// Inputs of quantized weights are rounded to int8 with one scale (max/127, round half to even) per 32 values;
    /// float weights, routers included, still see f32.
    Int8,
}

/// One output of a [`Op::Linear`].
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// `[n, k]`
    pub weight: WeightId,
    /// `[n]`
    pub bias: Option<WeightId>,
    /// m × n
    pub out: BufferId,
}

/// Weights of one expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights {
    /// `[intermediate, hidden]`
    pub gate: WeightId,
    /// `[intermediate, hidden]`
    pub up: WeightId,
    /// `[hidden, intermediate]`
    pub down: WeightId,
}

/// One step of a program. Rows propagate: `Embed` sets its output's rows to the batch's tokens, `SelectRows` to
/// `batch.outputs`, every other op to those of its input.
#[derive(Clone, Debug)]
pub enum Op {
    /// out[i] = table[batch.tokens[i]]
    Embed {
        /// `[vocab, hidden]`
        table: WeightId,
        /// Result.
        out: BufferId,
    },
    /// out = x · w / sqrt(mean(x²) + eps), per row.
    RmsNorm {
        /// Input.
        x: BufferId,
        /// `[width]`
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// Result; may not be `x`.
        out: BufferId,
    },
    /// Each part: out = x · Wᵀ + bias, or out += … when `accumulate`.
    Linear {
        /// Input, m × k.
        x: BufferId,
        /// Outputs that share the input.
        parts: Vec<Projection>,
        /// Add to `out` instead of overwriting it (residual).
        accumulate: bool,
    },
    /// out = activation(x · gateᵀ) · (x · upᵀ)
    GatedLinear {
        /// Input, m × k.
        x: BufferId,
        /// `[n, k]`
        gate: WeightId,
        /// `[n, k]`
        up: WeightId,
        /// Nonlinearity.
        activation: Activation,
        /// m × n
        out: BufferId,
    },
    /// Per head of q and k, in place: RMS norm (where given), then rope at the token's position.
    QkNormRope {
        /// m × (num_heads · head_dim)
        q: BufferId,
        /// m × (num_kv_heads · head_dim)
        k: BufferId,
        /// `[head_dim]`
        q_norm: Option<WeightId>,
        /// `[head_dim]`
        k_norm: Option<WeightId>,
        /// Epsilon of the norms.
        eps: f32,
        /// Width of a head.
        head_dim: usize,
        /// Position embedding.
        rope: Arc<Rope>,
    },
    /// Appends k and v to the cache at the tokens' positions, then causal softmax(q·kᵀ·scale)·v over each token's own
    /// sequence.
    Attention {
        /// m × (num_heads · head_dim)
        q: BufferId,
        /// m × (num_kv_heads · head_dim)
        k: BufferId,
        /// m × (num_kv_heads · head_dim)
        v: BufferId,
        /// This layer's cache.
        cache: CacheId,
        /// Query heads.
        num_heads: usize,
        /// Key/value heads.
        num_kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Multiplier of the scores.
        scale: f32,
        /// Keys visible to a query, itself included.
        window: Option<usize>,
        /// m × (num_heads · head_dim)
        out: BufferId,
    },
    /// out += Σ over the chosen experts of weight · down(activation(gate(x)) · up(x)).
    Moe {
        /// Input, m × hidden.
        x: BufferId,
        /// `[num_experts, hidden]`; logits are computed in f32.
        router: WeightId,
        /// How experts are chosen and weighted; ties go to the lower index.
        routing: Routing,
        /// All experts of the layer.
        experts: Arc<[ExpertWeights]>,
        /// Nonlinearity.
        activation: Activation,
        /// m × hidden, accumulated into.
        out: BufferId,
    },
    /// out = the rows `batch.outputs` of x.
    SelectRows {
        /// Input.
        x: BufferId,
        /// Result.
        out: BufferId,
    },
}

impl Op {
    /// Name for messages and profiles.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Linear { .. } => "linear",
            Self::GatedLinear { .. } => "gated_linear",
            Self::QkNormRope { .. } => "qk_norm_rope",
            Self::Attention { .. } => "attention",
            Self::Moe { .. } => "moe",
            Self::SelectRows { .. } => "select_rows",
        }
    }
}

/// Rows of a batch that belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Slot in every KV cache.
    pub slot: usize,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first of them; equals the number of positions the slot already holds.
    pub position: usize,
}

/// The tokens of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, one per row.
    pub tokens: Vec<u32>,
    /// Which rows belong to which sequence; together they cover all rows, in order.
    pub sequences: Vec<SequenceRows>,
    /// Rows whose logits are wanted.
    pub outputs: Vec<usize>,
}
