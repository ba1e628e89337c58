//! From a [`ModelSpec`] to the flat list of ops that an executor runs.
//!
//! Owns: which op follows which, which buffers they share. Knows no model names and no devices: what a family needs is
//! in its spec. Refuses: bytes and memory, which [`Resources`] hides.

use ashlar_arch::{Activation, Attention, Ffn, GatedMlp, Layer, Leaf, ModelSpec, Moe};
use ashlar_backend::{AttentionOptions, BufferId, CacheId, ExpertWeights, MoeOptions, Op, Projection, WeightId};
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
    Query,
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
        Part::Layer(index) => {
            if let Some(layer) = spec.layers.get(index) {
                b.attention(layer, spec, x)?;
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
        let a: &Attention = &layer.attn;
        let (q_width, kv_width) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim);
        let normed = self.norm(&layer.attn_norm, spec, x)?;
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
        self.ops.push(Op::QkNormRope { q, k, q_norm, k_norm, eps: spec.norm_eps, head_dim: a.head_dim, rope });
        let out = self.buffer(Use::Attended, q_width)?;
        let options = AttentionOptions { sinks: self.optional(a.sinks.as_ref())? };
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
