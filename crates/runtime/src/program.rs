//! From a [`ModelSpec`] to the flat list of ops that an executor runs.
//!
//! Owns: which op follows which, which buffers they share. Knows no model names and no devices: what a family needs is
//! in its spec. Refuses: bytes and memory, which [`Resources`] hides.

use ashlar_arch::{Activation, Attention, Ffn, GatedMlp, LatentAttention, Layer, Leaf, Mixer, ModelSpec, Moe};
use ashlar_backend::{
    AttentionOptions, Blocks, BufferId, CacheId, ExpertWeights, HeadNorm, HeadRope, MoeOptions, Op, Projection,
    WeightId,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a program finds its operands: a device being loaded, or a counter in tests.
pub trait Resources {
    /// Why an operand cannot be had.
    type Error;

    /// The weight of that name. Called once per name.
    fn weight(&mut self, leaf: &Leaf) -> Result<WeightId, Self::Error>;

    /// A buffer of that width, with as many rows as a batch may have.
    fn buffer(&mut self, width: usize) -> Result<BufferId, Self::Error>;

    /// A KV cache for one layer.
    fn cache(&mut self, kv_width: usize) -> Result<CacheId, Self::Error>;
}

/// A model as ops.
#[derive(Clone, Debug)]
pub struct Program {
    /// In order of execution.
    pub ops: Vec<Op>,
    /// Where the logits of `batch.outputs` end up, `vocab_size` wide.
    pub logits: BufferId,
}

/// What a buffer is for. Layers run one after the other, so each use needs one buffer per width.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Residual,
    Normed,
    Low,
    LowNormed,
    Query,
    WideQuery,
    Key,
    Value,
    Attended,
    Hidden,
    Selected,
    Logits,
}

struct Builder<'r, R> {
    resources: &'r mut R,
    weights: HashMap<String, WeightId>,
    buffers: HashMap<(Use, usize), BufferId>,
    ops: Vec<Op>,
}

/// The program of a model.
///
/// # Errors
/// What the resources report.
pub fn build<R: Resources>(spec: &ModelSpec, resources: &mut R) -> Result<Program, R::Error> {
    let mut b = Builder { resources, weights: HashMap::new(), buffers: HashMap::new(), ops: Vec::new() };
    let x = b.buffer(Use::Residual, spec.hidden_size)?;
    let table = b.weight(&spec.embed)?;
    b.ops.push(Op::Embed { table, out: x });
    for layer in &spec.layers {
        b.attention(layer, spec, x)?;
        b.ffn(layer, spec, x)?;
    }
    let selected = b.buffer(Use::Selected, spec.hidden_size)?;
    b.ops.push(Op::SelectRows { x, out: selected });
    let normed = b.norm(&spec.final_norm, spec, selected)?;
    let weight = b.weight(spec.lm_head.as_ref().unwrap_or(&spec.embed))?;
    let logits = b.buffer(Use::Logits, spec.vocab_size)?;
    let parts = vec![Projection { weight, bias: None, out: logits }];
    b.ops.push(Op::Linear { x: normed, parts, accumulate: false });
    Ok(Program { ops: b.ops, logits })
}

/// A stretch of a model that runs alone, on hidden states that another stretch left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding. Its rows are those of the table that is given.
    Embed,
    /// One layer.
    Layer(usize),
    /// The first half of a layer: x += attention(norm(x)).
    Attention(usize),
    /// The second half of a layer: x += ffn(norm(x)).
    Ffn(usize),
    /// The norm before the head.
    FinalNorm,
}

/// A [`Part`] as ops.
#[derive(Clone, Debug)]
pub struct PartProgram {
    /// In order of execution.
    pub ops: Vec<Op>,
    /// Where the hidden states of every row end up, `hidden_size` wide.
    pub out: BufferId,
}

/// The program of a part. Its input are the rows of `table` (rows × hidden_size) that the batch's tokens name: for
/// [`Part::Embed`] the embedding itself, for the others hidden states, whose "tokens" are row numbers.
///
/// # Errors
/// What the resources report.
pub fn build_part<R: Resources>(
    spec: &ModelSpec,
    part: Part,
    table: WeightId,
    resources: &mut R,
) -> Result<PartProgram, R::Error> {
    let mut b = Builder { resources, weights: HashMap::new(), buffers: HashMap::new(), ops: Vec::new() };
    let x = b.buffer(Use::Residual, spec.hidden_size)?;
    b.ops.push(Op::Embed { table, out: x });
    let mut out = x;
    match part {
        Part::Embed => {}
        Part::Layer(index) | Part::Attention(index) | Part::Ffn(index) => {
            let Some(layer) = spec.layers.get(index) else { return Ok(PartProgram { ops: b.ops, out }) };
            if part != Part::Ffn(index) {
                b.attention(layer, spec, x)?;
            }
            if part != Part::Attention(index) {
                b.ffn(layer, spec, x)?;
            }
        }
        Part::FinalNorm => out = b.norm(&spec.final_norm, spec, x)?,
    }
    Ok(PartProgram { ops: b.ops, out })
}

impl<R: Resources> Builder<'_, R> {
    /// Weights used twice (a tied embedding) are loaded once.
    fn weight(&mut self, leaf: &Leaf) -> Result<WeightId, R::Error> {
        if let Some(&id) = self.weights.get(&leaf.name) {
            return Ok(id);
        }
        let id = self.resources.weight(leaf)?;
        self.weights.insert(leaf.name.clone(), id);
        Ok(id)
    }

    fn optional(&mut self, leaf: Option<&Leaf>) -> Result<Option<WeightId>, R::Error> {
        leaf.map(|l| self.weight(l)).transpose()
    }

    fn buffer(&mut self, purpose: Use, width: usize) -> Result<BufferId, R::Error> {
        if let Some(&id) = self.buffers.get(&(purpose, width)) {
            return Ok(id);
        }
        let id = self.resources.buffer(width)?;
        self.buffers.insert((purpose, width), id);
        Ok(id)
    }

    fn norm(&mut self, norm: &Leaf, spec: &ModelSpec, x: BufferId) -> Result<BufferId, R::Error> {
        let out = self.buffer(Use::Normed, spec.hidden_size)?;
        let weight = self.weight(norm)?;
        self.ops.push(Op::RmsNorm { x, weight, eps: spec.norm_eps, out });
        Ok(out)
    }

    fn projection(&mut self, leaf: &Leaf, bias: Option<&Leaf>, out: BufferId) -> Result<Projection, R::Error> {
        Ok(Projection { weight: self.weight(leaf)?, bias: self.optional(bias)?, out })
    }

    /// x += o(attention(norm(x)))
    fn attention(&mut self, layer: &Layer, spec: &ModelSpec, x: BufferId) -> Result<(), R::Error> {
        let normed = self.norm(&layer.attn_norm, spec, x)?;
        match &layer.attn {
            Mixer::Heads(a) => self.head_attention(a, spec.norm_eps, normed, x),
            Mixer::Latent(a) => self.latent_attention(a, spec.norm_eps, normed, x),
        }
    }

    fn head_attention(&mut self, a: &Attention, eps: f32, normed: BufferId, x: BufferId) -> Result<(), R::Error> {
        let (q_width, kv_width) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim);
        let (q, k) = (self.buffer(Use::Query, q_width)?, self.buffer(Use::Key, kv_width)?);
        let v = self.buffer(Use::Value, kv_width)?;
        let parts = vec![
            self.projection(&a.q, a.q_bias.as_ref(), q)?,
            self.projection(&a.k, a.k_bias.as_ref(), k)?,
            self.projection(&a.v, a.v_bias.as_ref(), v)?,
        ];
        self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
        let (q_norm, k_norm) = (self.optional(a.q_norm.as_ref())?, self.optional(a.k_norm.as_ref())?);
        let rope = Arc::new(a.rope.clone());
        self.ops.push(Op::QkNormRope { q, k, q_norm, k_norm, eps, head_dim: a.head_dim, rope });
        let out = self.buffer(Use::Attended, q_width)?;
        let options = AttentionOptions { sinks: self.optional(a.sinks.as_ref())?, ..AttentionOptions::default() };
        self.ops.push(Op::Attention {
            q,
            k,
            v,
            cache: self.resources.cache(kv_width)?,
            num_heads: a.num_heads,
            num_kv_heads: a.num_kv_heads,
            head_dim: a.head_dim,
            scale: (a.head_dim as f32).sqrt().recip(),
            window: a.window,
            options,
            out,
        });
        let parts = vec![self.projection(&a.o, a.o_bias.as_ref(), x)?];
        self.ops.push(Op::Linear { x: out, parts, accumulate: true });
        Ok(())
    }

    /// One key for all heads, of latent and rotary part, whose latent part is the value too. The key projections move to
    /// the queries before, the value projections behind.
    fn latent_attention(
        &mut self,
        a: &LatentAttention,
        eps: f32,
        normed: BufferId,
        x: BufferId,
    ) -> Result<(), R::Error> {
        let (q_dim, key_width) = (a.plain_dim + a.rope_dim, a.rank + a.rope_dim);
        let (q, k) = (self.buffer(Use::Query, a.num_heads * q_dim)?, self.buffer(Use::Key, key_width)?);
        let kv_a = self.projection(&a.kv_a, None, k)?;
        match &a.q_a {
            Some([q_a, q_norm]) => {
                let rank = q_norm.shape.first().copied().unwrap_or_default();
                let (low, low_normed) = (self.buffer(Use::Low, rank)?, self.buffer(Use::LowNormed, rank)?);
                let parts = vec![self.projection(q_a, None, low)?, kv_a];
                self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
                let weight = self.weight(q_norm)?;
                self.ops.push(Op::RmsNorm { x: low, weight, eps, out: low_normed });
                let parts = vec![self.projection(&a.q_b, None, q)?];
                self.ops.push(Op::Linear { x: low_normed, parts, accumulate: false });
            }
            None => {
                let parts = vec![self.projection(&a.q_b, None, q)?, kv_a];
                self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
            }
        }
        let rope = Some(HeadRope { rope: Arc::new(a.rope.clone()), width: a.rope_dim, inverse: false });
        self.ops.push(Op::HeadNormRope { x: q, head_dim: q_dim, norm: None, rope: rope.clone() });
        let norm = Some(HeadNorm { weight: Some(self.weight(&a.kv_a_norm)?), width: a.rank, eps });
        self.ops.push(Op::HeadNormRope { x: k, head_dim: key_width, norm, rope });
        let weight = self.weight(&a.kv_b)?;
        let stride = a.plain_dim + a.value_dim;
        let keys = Blocks { count: a.num_heads, stride, first: 0, rows: a.plain_dim };
        let wide = self.buffer(Use::WideQuery, a.num_heads * key_width)?;
        self.ops.push(Op::BlockLinearTransposed { x: q, weight, blocks: keys, meets: k, out: wide });
        let latents = self.buffer(Use::Attended, a.num_heads * a.rank)?;
        self.ops.push(Op::Attention {
            q: wide,
            k,
            v: k,
            cache: self.resources.cache(key_width)?,
            num_heads: a.num_heads,
            num_kv_heads: 1,
            head_dim: key_width,
            scale: a.scale,
            window: None,
            options: AttentionOptions { values_in_keys: Some(a.rank), ..AttentionOptions::default() },
            out: latents,
        });
        let values = Blocks { count: a.num_heads, stride, first: a.plain_dim, rows: a.value_dim };
        let out = self.buffer(Use::Value, a.num_heads * a.value_dim)?;
        self.ops.push(Op::BlockLinear { x: latents, weight, blocks: values, out });
        let parts = vec![self.projection(&a.o, None, x)?];
        self.ops.push(Op::Linear { x: out, parts, accumulate: true });
        Ok(())
    }

    /// x += ffn(norm(x))
    fn ffn(&mut self, layer: &Layer, spec: &ModelSpec, x: BufferId) -> Result<(), R::Error> {
        let normed = self.norm(&layer.ffn_norm, spec, x)?;
        let activation = layer.activation;
        match &layer.ffn {
            Ffn::Dense(mlp) => self.gated(mlp, None, activation, normed, x),
            Ffn::Moe(moe) => {
                self.experts(moe, activation, normed, x)?;
                match &moe.shared {
                    Some(shared) => self.gated(&shared.mlp, shared.gate.as_ref(), activation, normed, x),
                    None => Ok(()),
                }
            }
        }
    }

    /// x += mlp(normed), times sigmoid(normed · gateᵀ) where there is a gate.
    fn gated(
        &mut self,
        mlp: &GatedMlp,
        gate: Option<&Leaf>,
        activation: Activation,
        normed: BufferId,
        x: BufferId,
    ) -> Result<(), R::Error> {
        let intermediate = mlp.gate.shape.first().copied().unwrap_or_default();
        let out = self.buffer(Use::Hidden, intermediate)?;
        let weights = (self.weight(&mlp.gate)?, self.weight(&mlp.up)?);
        self.ops.push(Op::GatedLinear { x: normed, gate: weights.0, up: weights.1, activation, out });
        if let Some(weight) = self.optional(gate)? {
            // Before the down projection, which is linear, instead of behind it: no buffer of its own.
            self.ops.push(Op::SigmoidGate { x: normed, weight, y: out });
        }
        let parts = vec![self.projection(&mlp.down, None, x)?];
        self.ops.push(Op::Linear { x: out, parts, accumulate: true });
        Ok(())
    }

    /// x += Σ experts(normed)
    fn experts(&mut self, moe: &Moe, activation: Activation, normed: BufferId, x: BufferId) -> Result<(), R::Error> {
        let router = self.weight(&moe.router)?;
        let options = MoeOptions {
            router_bias: self.optional(moe.router_bias.as_ref())?,
            choice_bias: self.optional(moe.choice_bias.as_ref())?,
        };
        let mut experts = Vec::with_capacity(moe.experts.len());
        for e in &moe.experts {
            let (gate, up, down) = (self.weight(&e.gate)?, self.weight(&e.up)?, self.weight(&e.down)?);
            let biases = match e.biases.as_deref() {
                Some([gate, up, down]) => Some([self.weight(gate)?, self.weight(up)?, self.weight(down)?]),
                None => None,
            };
            experts.push(ExpertWeights { gate, up, down, biases });
        }
        let (experts, routing) = (experts.into(), moe.routing);
        self.ops.push(Op::Moe { x: normed, router, routing, options, experts, activation, out: x });
        Ok(())
    }
}
