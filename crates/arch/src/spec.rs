//! [`ModelSpec`]: a model as plain data, printable and testable without a device.

mod attention;
mod ffn;
mod lanes;
mod role;
mod rope;

pub use attention::{Attention, CompressedAttention, Compressor, Indexer, LatentAttention, Mixer};
pub use ffn::{Activation, Expert, Ffn, GatedMlp, Groups, Moe, Routing, Scores, Shared};
pub use lanes::{Hyper, Lanes};
pub use role::{Class, Leaf, Proj, Role};
pub use rope::{Rope, RopeScaling};

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
