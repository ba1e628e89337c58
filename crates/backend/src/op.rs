//! The op set. y[m, n] = x[m, k] · W[n, k]ᵀ everywhere; activations are f32, one row per token of the batch.

use ashlar_arch::{Activation, Rope, Routing};
use ashlar_formats::{Grid, Spec};
use ashlar_tensor::Dtype;
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

/// In which precision the inputs of a weight are multiplied. What a backend does for a format is
/// [`crate::Backend::activations`]; other floats and routers always see f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ActivationMode {
    /// f32 inputs.
    #[default]
    F32,
    /// Inputs are rounded by [`crate::round_int8`]: int8, one scale per 32 values along k. The rounded values are what
    /// every part of the weight sees, an outlier plane included.
    Int8,
    /// Inputs of bf16 weights and of fp8 blocks are rounded by [`crate::round_bf16`], as CPUs with bf16 dot products want them;
    /// those of other quantized weights as in [`ActivationMode::Int8`].
    Bf16,
}

impl ActivationMode {
    /// How the inputs of a weight of that format are rounded in this mode, where every rounding has a kernel. Unknown
    /// formats count as quantized.
    #[must_use]
    pub fn of(self, spec: &Spec) -> Self {
        match (self, spec.grid()) {
            (Self::F32, _) => Self::F32,
            (Self::Bf16, Ok(Grid::Float(Dtype::BF16) | Grid::Blocks(_))) if spec.outlier_slots == 0 => Self::Bf16,
            (_, Ok(Grid::Float(_))) => Self::F32,
            (Self::Int8 | Self::Bf16, _) => Self::Int8,
        }
    }

    /// Name for reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }
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
    /// Of gate, up and down, one value per output.
    pub biases: Option<[WeightId; 3]>,
}

/// What attention may have besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions {
    /// `[num_heads]`: one more score per query head, which takes part in the softmax and has no value.
    pub sinks: Option<WeightId>,
    /// Values are the first so many entries of the keys: `v` is then not read, and `out` is m × (num_heads · that).
    pub values_in_keys: Option<usize>,
    /// Pooled keys that are visible besides; there is then one key head.
    pub entries: Option<Entries>,
}

/// Entries that [`Op::Compress`] made: entry w pools the tokens w · ratio .. (w + 1) · ratio, and a token at position p
/// sees those that are complete by then, w < (p + 1) / ratio.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// Where they are.
    pub cache: CacheId,
    /// Tokens of an entry.
    pub ratio: usize,
    /// m × any: the numbers of those that a token attends to, as [`Op::SelectEntries`] writes them; `None` for all that
    /// it sees.
    pub selected: Option<BufferId>,
}

/// An RMS norm over the first values of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm {
    /// `[width]`; `None` for ones.
    pub weight: Option<WeightId>,
    /// How many values.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// A rotation of the last values of a head.
#[derive(Clone, Debug)]
pub struct HeadRope {
    /// Frequencies; pairs are (2i, 2i + 1).
    pub rope: Arc<Rope>,
    /// How many values.
    pub width: usize,
    /// Turn back by the same angles.
    pub inverse: bool,
}

/// Constants of [`Op::HyperMix`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperLanes {
    /// Number of lanes.
    pub count: usize,
    /// Added to the mean square.
    pub norm_eps: f32,
    /// Added to weights and sums.
    pub eps: f32,
    /// Normalisations of columns.
    pub iterations: usize,
}

/// Which rows of a weight belong to a block: for block b, `rows` of them from b · stride + first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Number of blocks.
    pub count: usize,
    /// Rows from one block to the next.
    pub stride: usize,
    /// The first row within a block's stride.
    pub first: usize,
    /// Rows of a block.
    pub rows: usize,
}

impl Blocks {
    /// Whether all blocks lie within a weight of `n` rows.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, n: usize) -> Result<(), String> {
        let end = (self.count.max(1) - 1).checked_mul(self.stride).and_then(|s| s.checked_add(self.first + self.rows));
        if self.count > 0 && self.rows > 0 && end.is_some_and(|end| end <= n) {
            return Ok(());
        }
        Err(format!("has {n} rows, which cannot be {self:?}"))
    }
}

/// What a mixture of experts may have besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoeOptions {
    /// `[num_experts]`: added to the logits.
    pub router_bias: Option<WeightId>,
    /// `[num_experts]`: added to the scores where experts are ranked, not to their weights.
    pub choice_bias: Option<WeightId>,
    /// `[vocab, top_k]`: the experts of every token id, which are then not ranked but only weighed. An expert named twice
    /// by a row counts twice.
    pub table: Option<WeightId>,
}

/// One step of a program. Rows propagate: `Embed` sets its output's rows to the batch's tokens, `SelectRows` to
/// `batch.outputs`, every other op to those of its input.
#[derive(Clone, Debug)]
pub enum Op {
    /// `out[i] = table[batch.tokens[i]]`
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
    /// out = activation(x · gateᵀ, x · upᵀ), by [`crate::gated`]
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
    /// Per head of q and k, in place: RMS norm (where given), then rope at the token's position: pairs (i, i + d/2)
    /// turned by the angles of [`crate::RopeTable`].
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
    /// Stores k and v in the cache at the tokens' positions, then causal softmax(q·kᵀ·scale)·v over each token's own
    /// sequence. Query head h reads key/value head h / (num_heads / num_kv_heads). With a window w, the token at
    /// position p sees positions p-w+1 ..= p.
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
        /// What it may have besides.
        options: AttentionOptions,
        /// m × (num_heads · head_dim)
        out: BufferId,
    },
    /// out += Σ over the experts that [`crate::route`] chooses of weight · down(activation(gate(x), up(x))).
    Moe {
        /// Input, m × hidden.
        x: BufferId,
        /// `[num_experts, hidden]`; its inputs are f32 whatever its format.
        router: WeightId,
        /// How experts are chosen and weighted; ties go to the lower index.
        routing: Routing,
        /// What it may have besides.
        options: MoeOptions,
        /// All experts of the layer.
        experts: Arc<[ExpertWeights]>,
        /// Nonlinearity.
        activation: Activation,
        /// m × hidden, accumulated into.
        out: BufferId,
    },
    /// Per head of x, in place: RMS norm of its first values, then rope of its last ones at the token's position.
    HeadNormRope {
        /// m × (heads · head_dim)
        x: BufferId,
        /// Width of a head.
        head_dim: usize,
        /// The norm.
        norm: Option<HeadNorm>,
        /// The rotation.
        rope: Option<HeadRope>,
    },
    /// Every block of the weight times its own part of x: out_b = x_b · W_bᵀ, with W_b `[rows, k]`.
    BlockLinear {
        /// m × (count · k)
        x: BufferId,
        /// `[n, k]`; its inputs are f32 whatever its format.
        weight: WeightId,
        /// Its blocks.
        blocks: Blocks,
        /// m × (count · rows); may not be `x`.
        out: BufferId,
    },
    /// Every block of the weight, transposed, times its own part of x: out_b = [x_b[..rows] · W_b, x_b[rows..]]: what
    /// stands behind the block's inputs goes through.
    ///
    /// This moves a projection of keys to the queries: q · (W c) = (q W) · c. What the weight meets as its input is c.
    BlockLinearTransposed {
        /// m × (count · width), width ≥ rows
        x: BufferId,
        /// `[n, k]`; its inputs are f32 whatever its format.
        weight: WeightId,
        /// Its blocks.
        blocks: Blocks,
        /// What the products will be multiplied with: an observer is shown its first k columns.
        meets: BufferId,
        /// m × (count · (k + width − rows)); may not be `x`.
        out: BufferId,
    },
    /// Pools windows of `ratio` tokens. In channel c, the softmax over the window's tokens of gate + position weighs kv; the
    /// result is normalised and turned at the window's first position. With `overlap`, kv and gate are twice as wide: the
    /// tokens of the window before take part with the first half of their channels, those of the window itself with the
    /// second half.
    Compress {
        /// m × width or m × 2 · width
        kv: BufferId,
        /// As wide.
        gate: BufferId,
        /// `[ratio, …]`, as wide: added to the gate of the token at that place of its window.
        position: WeightId,
        /// `[width]`: the RMS norm.
        norm: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// The rotation.
        rope: HeadRope,
        /// Tokens of a window.
        ratio: usize,
        /// Whether windows overlap.
        overlap: bool,
        /// kv and gate + position of all tokens, as wide as they.
        tokens: CacheId,
        /// The entries of all complete windows, `width` wide.
        entries: CacheId,
    },
    /// The `top_k` visible entries (see [`Entries`]) of the greatest Σ over heads of weight · relu(q · entry), equal ones by
    /// the lower number. Ascending, −1 where there are fewer. Queries are first rounded as the cache rounds its entries, by
    /// [`crate::EntryFormat::round_query`].
    SelectEntries {
        /// m × (num_heads · head_dim)
        q: BufferId,
        /// m × num_heads
        weights: BufferId,
        /// The entries, `head_dim` wide.
        entries: CacheId,
        /// Tokens of an entry.
        ratio: usize,
        /// Heads.
        num_heads: usize,
        /// m × top_k
        out: BufferId,
    },
    /// Every row, `times` times, side by side.
    Repeat {
        /// m × n
        x: BufferId,
        /// m × (times · n)
        out: BufferId,
    },
    /// From a residual stream of lanes to the input of a block, and to how its output will be added (mHC, DeepSeek-V4).
    ///
    /// With c = (x · mixᵀ) / sqrt(mean(x²) + norm_eps), in groups of lanes, lanes and lanes² (row j, column k):
    /// out = Σ_j (sigmoid(scale₀ c + base) + eps)_j · x_j; coefficients: 2 · sigmoid(scale₁ c + base), then the matrix
    /// softmax over k of (scale₂ c + base), + eps, divided by its column sums, then `iterations − 1` times by its row and
    /// its column sums, eps added to each sum.
    HyperMix {
        /// m × (lanes · n)
        x: BufferId,
        /// `[lanes · (lanes + 2), lanes · n]`, or `[lanes, lanes · n]` where no coefficients are wanted.
        mix: WeightId,
        /// As many values as `mix` has rows.
        base: WeightId,
        /// Three multipliers, or one.
        scale: WeightId,
        /// Number of lanes, and the constants.
        lanes: HyperLanes,
        /// m × (lanes + lanes²), for [`Op::HyperAdd`].
        coefficients: Option<BufferId>,
        /// m × n
        out: BufferId,
    },
    /// Lane k becomes a_k · z + Σ_j M(j, k) · lane j, with the coefficients (a, M) of [`Op::HyperMix`], in place.
    HyperAdd {
        /// m × (lanes · n)
        x: BufferId,
        /// m × n: the block's output.
        z: BufferId,
        /// m × (lanes + lanes²)
        coefficients: BufferId,
        /// Number of lanes.
        lanes: usize,
    },
    /// Each row of y is multiplied by sigmoid(x · wᵀ), in place.
    SigmoidGate {
        /// Input, m × k.
        x: BufferId,
        /// `[1, k]`; its inputs are f32 whatever its format.
        weight: WeightId,
        /// m × n; may not be `x`.
        y: BufferId,
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
            Self::HeadNormRope { .. } => "head_norm_rope",
            Self::BlockLinear { .. } => "block_linear",
            Self::BlockLinearTransposed { .. } => "block_linear_transposed",
            Self::Compress { .. } => "compress",
            Self::SelectEntries { .. } => "select_entries",
            Self::Repeat { .. } => "repeat",
            Self::HyperMix { .. } => "hyper_mix",
            Self::HyperAdd { .. } => "hyper_add",
            Self::SigmoidGate { .. } => "sigmoid_gate",
            Self::SelectRows { .. } => "select_rows",
        }
    }
}
