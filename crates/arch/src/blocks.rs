//! Building blocks that families compose: frame, grouped-query attention, gated MLP, mixture of experts.
//!
//! Owns: reading the config keys these blocks share, and their tensor names as most families spell them. A family
//! whose names differ passes its own.

use crate::config::{Config, MAX_EXPERTS, MAX_LAYERS, MAX_SIZE, MAX_TENSORS};
use crate::rope::rope;
use crate::{
    Activation, ArchError, Attention, Class, Ffn, GatedMlp, Layer, Leaf, Mixer, ModelSpec, Moe, Proj, Role, Rope,
    RopeScaling, Routing,
};

/// What every decoder of this kind has in common.
pub struct Frame<'a> {
    /// The config.
    pub config: Config<'a>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
}

/// Attention parameters shared by all layers.
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Position embedding.
    pub rope: Rope,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// RMS norm over each query and key head.
    pub qk_norm: bool,
    /// A sink per query head, named `self_attn.sinks`.
    pub sinks: bool,
}

/// How a family spells the tensors of a mixture of experts, relative to the layer.
pub struct MoeNames {
    /// The router.
    pub router: &'static str,
    /// Before the expert's index.
    pub experts: &'static str,
    /// After the expert's index: gate, up, down.
    pub projs: [&'static str; 3],
}

/// Sizes of a mixture of experts.
pub struct MoeSizes {
    /// Routed experts per layer.
    pub num_experts: usize,
    /// Width of an expert.
    pub intermediate: usize,
    /// How they are chosen.
    pub routing: Routing,
}

impl<'a> Frame<'a> {
    /// Reads the keys that every family has, and refuses other activations than SiLU.
    pub fn read(config: Config<'a>) -> Result<Self, ArchError> {
        if let Some(act) = config.text("hidden_act")?.filter(|a| !matches!(*a, "silu" | "swish")) {
            return Err(config.unsupported("hidden_act", format!("`{act}` is not supported; supported is silu")));
        }
        let hidden = config.size("hidden_size", 1..=MAX_SIZE)?;
        let layers = config.size("num_hidden_layers", 1..=MAX_LAYERS)?;
        Ok(Self { config, hidden, layers })
    }

    /// Heads, head width and rope. `head_dim` is what the family assumes when the config is silent; `None` for
    /// hidden / heads.
    pub fn heads(&self, head_dim: Option<usize>, rope_theta: f64) -> Result<Heads, ArchError> {
        let c = &self.config;
        let num_heads = c.size("num_attention_heads", 1..=MAX_SIZE)?;
        let num_kv_heads = c.optional_size("num_key_value_heads", 1..=MAX_SIZE)?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({num_heads})");
            return Err(c.error("num_key_value_heads", &expected, c.get("num_key_value_heads")));
        }
        let head_dim = match c.optional_size("head_dim", 1..=MAX_SIZE)?.or(head_dim) {
            Some(given) => given,
            None if self.hidden.is_multiple_of(num_heads) => self.hidden / num_heads,
            None => {
                let expected = format!("a divisor of hidden_size ({}), as there is no head_dim", self.hidden);
                return Err(c.error("num_attention_heads", &expected, c.get("num_attention_heads")));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(c.unsupported("head_dim", format!("rope needs an even head width, this is {head_dim}")));
        }
        if num_heads.checked_mul(head_dim).is_none_or(|width| width > MAX_SIZE) {
            let expected = format!("at most {MAX_SIZE} / head_dim ({head_dim})");
            return Err(c.error("num_attention_heads", &expected, c.get("num_attention_heads")));
        }
        let rope = rope(c, rope_theta)?;
        Ok(Heads {
            num_heads,
            num_kv_heads,
            head_dim,
            rope,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            sinks: false,
        })
    }

    /// The attention of one layer, named `self_attn.{q,k,v,o}_proj`.
    pub fn attention(&self, layer: usize, heads: &Heads, window: Option<usize>) -> Mixer {
        let (q_width, kv_width) = (heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim);
        let hidden = self.hidden;
        let at = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let role = |proj| Role { class: Class::Attn, proj: Some(proj), layer: Some(layer), expert: None };
        let weight = |name: &str, proj, n, k| Leaf { name: at(name), shape: vec![n, k], role: role(proj) };
        let bias =
            |name: &str, proj, n, has: bool| has.then(|| Leaf { name: at(name), shape: vec![n], role: role(proj) });
        let norm = |name: &str| heads.qk_norm.then(|| norm_leaf(at(name), heads.head_dim, Some(layer)));
        Mixer::Heads(Box::new(Attention {
            q: weight("q_proj.weight", Proj::Q, q_width, hidden),
            k: weight("k_proj.weight", Proj::K, kv_width, hidden),
            v: weight("v_proj.weight", Proj::V, kv_width, hidden),
            o: weight("o_proj.weight", Proj::O, hidden, q_width),
            q_bias: bias("q_proj.bias", Proj::Q, q_width, heads.qkv_bias),
            k_bias: bias("k_proj.bias", Proj::K, kv_width, heads.qkv_bias),
            v_bias: bias("v_proj.bias", Proj::V, kv_width, heads.qkv_bias),
            o_bias: bias("o_proj.bias", Proj::O, hidden, heads.o_bias),
            q_norm: norm("q_norm.weight"),
            k_norm: norm("k_norm.weight"),
            sinks: heads.sinks.then(|| Leaf {
                name: at("sinks"),
                shape: vec![heads.num_heads],
                role: Role { class: Class::Attn, proj: None, layer: Some(layer), expert: None },
            }),
            num_heads: heads.num_heads,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            rope: heads.rope.clone(),
            window,
        }))
    }

    /// The width of dense MLPs.
    pub fn intermediate(&self) -> Result<usize, ArchError> {
        self.config.size("intermediate_size", 1..=MAX_SIZE)
    }

    /// A dense MLP named `mlp.{gate,up,down}_proj`.
    pub fn dense(&self, layer: usize, intermediate: usize) -> Ffn {
        let role = |proj| Role { class: Class::Mlp, proj: Some(proj), layer: Some(layer), expert: None };
        let names = ["gate_proj", "up_proj", "down_proj"].map(|p| format!("model.layers.{layer}.mlp.{p}.weight"));
        Ffn::Dense(gated(names, self.hidden, intermediate, role))
    }

    /// Sizes of the experts. `normalize` is the family's rule or what its config says.
    pub fn moe_sizes(&self, intermediate_key: &str, normalize: bool) -> Result<MoeSizes, ArchError> {
        let c = &self.config;
        let key = c.first(&["num_experts", "num_local_experts", "n_routed_experts"]).unwrap_or("num_experts");
        let num_experts = c.size(key, 1..=MAX_EXPERTS)?;
        let tensors = self.layers * (3 * num_experts + 12);
        if tensors > MAX_TENSORS {
            let what = format!(
                "{} layers of {num_experts} experts are {tensors} tensors; at most {MAX_TENSORS} are supported",
                self.layers
            );
            return Err(c.unsupported(key, what));
        }
        let key = c.first(&["num_experts_per_tok", "experts_per_token"]).unwrap_or("num_experts_per_tok");
        let top_k = c.size(key, 1..=num_experts)?;
        let intermediate = c.size(intermediate_key, 1..=MAX_SIZE)?;
        Ok(MoeSizes { num_experts, intermediate, routing: Routing { top_k, normalize, ..Routing::default() } })
    }

    /// Router and experts of one layer.
    pub fn moe(&self, layer: usize, sizes: &MoeSizes, names: &MoeNames) -> Moe {
        let at = format!("model.layers.{layer}.");
        let router = Leaf {
            name: format!("{at}{}", names.router),
            shape: vec![sizes.num_experts, self.hidden],
            role: Role { class: Class::Router, proj: None, layer: Some(layer), expert: None },
        };
        let expert = |index: usize| {
            let role = |proj| Role { class: Class::Experts, proj: Some(proj), layer: Some(layer), expert: Some(index) };
            let names = names.projs.map(|p| format!("{at}{}.{index}.{p}.weight", names.experts));
            gated(names, self.hidden, sizes.intermediate, role)
        };
        Moe {
            router,
            router_bias: None,
            choice_bias: None,
            table: None,
            experts: (0..sizes.num_experts).map(expert).collect(),
            routing: sizes.routing,
            shared: None,
        }
    }

    /// An MLP that every token visits, `{name}.{gate,up,down}_proj` of a layer.
    pub fn shared(&self, layer: usize, name: &str, intermediate: usize) -> GatedMlp {
        let role = |proj| Role { class: Class::SharedExpert, proj: Some(proj), layer: Some(layer), expert: None };
        let names = ["gate_proj", "up_proj", "down_proj"].map(|p| format!("model.layers.{layer}.{name}.{p}.weight"));
        gated(names, self.hidden, intermediate, role)
    }

    /// Which layers route to experts: not those of `mlp_only_layers`, and of the others every `decoder_sparse_step`-th.
    pub fn sparse_layers(&self) -> Result<Vec<bool>, ArchError> {
        let c = &self.config;
        let step = c.optional_size("decoder_sparse_step", 1..=MAX_LAYERS)?.unwrap_or(1);
        let mut sparse: Vec<bool> = (1..=self.layers).map(|nth| nth.is_multiple_of(step)).collect();
        for value in c.list("mlp_only_layers")?.unwrap_or_default() {
            let index = value.as_u64().and_then(|i| usize::try_from(i).ok());
            match index.and_then(|i| sparse.get_mut(i)) {
                Some(layer) => *layer = false,
                None => return Err(c.error("mlp_only_layers", "indices of layers", Some(value))),
            }
        }
        Ok(sparse)
    }

    /// The windows of the layers: `layer_types` where the config lists them, else `sliding_window` from layer
    /// `max_window_layers` on, and nothing unless `use_sliding_window`.
    pub fn windows(&self) -> Result<Vec<Option<usize>>, ArchError> {
        let c = &self.config;
        let window = match c.bool_or("use_sliding_window", false)? {
            true => c.optional_size("sliding_window", 1..=MAX_SIZE)?,
            false => None,
        };
        if let Some(types) = c.list("layer_types")? {
            return self.layer_types(types, window);
        }
        let Some(window) = window else { return Ok(vec![None; self.layers]) };
        let full = c.size("max_window_layers", 0..=MAX_LAYERS)?;
        Ok((0..self.layers).map(|layer| (layer >= full).then_some(window)).collect())
    }

    /// The windows that `layer_types` lists.
    pub fn layer_types(
        &self,
        types: &[serde_json::Value],
        window: Option<usize>,
    ) -> Result<Vec<Option<usize>>, ArchError> {
        let c = &self.config;
        if types.len() != self.layers {
            let expected = format!("num_hidden_layers ({}) values", self.layers);
            return Err(c.error("layer_types", &expected, c.get("layer_types")));
        }
        let one = |value: &serde_json::Value| match (value.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
            (Some("sliding_attention"), None) => {
                Err(c.unsupported("layer_types", "a sliding layer needs use_sliding_window and sliding_window"))
            }
            _ => Err(c.error("layer_types", "full_attention or sliding_attention", Some(value))),
        };
        types.iter().map(one).collect()
    }

    /// One layer with the usual names of its norms.
    pub fn layer(&self, layer: usize, attn: Mixer, ffn: Ffn) -> Layer {
        let norm = |name: &str| norm_leaf(format!("model.layers.{layer}.{name}.weight"), self.hidden, Some(layer));
        Layer {
            attn_norm: norm("input_layernorm"),
            attn,
            ffn_norm: norm("post_attention_layernorm"),
            ffn,
            activation: Activation::Silu,
            hyper: None,
        }
    }

    /// Embedding, final norm and head around `layers`.
    pub fn model(&self, family: &'static str, layers: Vec<Layer>) -> Result<ModelSpec, ArchError> {
        let c = &self.config;
        let vocab = c.size("vocab_size", 1..=MAX_SIZE)?;
        let table = |name: &str, class| Leaf {
            name: name.to_owned(),
            shape: vec![vocab, self.hidden],
            role: Role { class, proj: None, layer: None, expert: None },
        };
        let tied = c.bool_or("tie_word_embeddings", false)?;
        Ok(ModelSpec {
            family,
            hidden_size: self.hidden,
            vocab_size: vocab,
            max_position: self.max_position(&layers)?,
            norm_eps: c.number("rms_norm_eps", 1e-12..=1.0)? as f32,
            embed: table("model.embed_tokens.weight", Class::Embed),
            layers,
            final_norm: norm_leaf("model.norm.weight".to_owned(), self.hidden, None),
            lm_head: (!tied).then(|| table("lm_head.weight", Class::LmHead)),
            lanes: None,
            mtp_prefixes: Vec::new(),
            mtp: Vec::new(),
        })
    }

    /// YaRN configs often keep the old `max_position_embeddings` beside a factor that extends it.
    fn max_position(&self, layers: &[Layer]) -> Result<usize, ArchError> {
        let stated = self.config.size("max_position_embeddings", 1..=MAX_SIZE)?;
        Ok(match layers.first().map(|l| &l.attn.rope().scaling) {
            Some(RopeScaling::Yarn { factor, original_max_position, .. }) => {
                stated.max((factor * original_max_position) as usize).min(MAX_SIZE)
            }
            _ => stated,
        })
    }
}

pub fn norm_leaf(name: String, width: usize, layer: Option<usize>) -> Leaf {
    Leaf { name, shape: vec![width], role: Role { class: Class::Norm, proj: None, layer, expert: None } }
}

pub fn gated(
    [gate, up, down]: [String; 3],
    hidden: usize,
    intermediate: usize,
    role: impl Fn(Proj) -> Role,
) -> GatedMlp {
    GatedMlp {
        gate: Leaf { name: gate, shape: vec![intermediate, hidden], role: role(Proj::Gate) },
        up: Leaf { name: up, shape: vec![intermediate, hidden], role: role(Proj::Up) },
        down: Leaf { name: down, shape: vec![hidden, intermediate], role: role(Proj::Down) },
        biases: None,
    }
}
