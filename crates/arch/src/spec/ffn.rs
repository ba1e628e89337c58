//! The feed-forward half of a layer: one gated MLP, or routed experts.

use super::Leaf;

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
