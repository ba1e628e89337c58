//! From a [`ModelSpec`] to the flat list of ops that an executor runs.
//!
//! Owns: which op follows which, which buffers they share. Knows no model names and no devices: what a family needs is
//! in its spec. Refuses: bytes and memory, which [`Resources`] hides.

use ashlar_arch::{
    Activation, Attention, CompressedAttention, Compressor, Ffn, GatedMlp, Hyper, Indexer, Lanes, LatentAttention,
    Layer, Leaf, Mixer, ModelSpec, Moe,
};
use ashlar_backend::{
    AttentionOptions, Blocks, BufferId, CacheId, Entries, EntryFormat, ExpertWeights, HeadNorm, HeadRope, HyperLanes,
    KvHeads, MoeOptions, Op, Projection, WeightId,
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

    /// A cache for the keys and values of one layer.
    fn cache(&mut self, heads: KvHeads) -> Result<CacheId, Self::Error>;

    /// A cache of what pooling needs of the tokens.
    fn tokens(&mut self, pooled: Pooled) -> Result<CacheId, Self::Error>;

    /// A cache of pooled entries.
    fn entries(&mut self, pooled: Pooled) -> Result<CacheId, Self::Error>;
}

/// Entries that each stand for several positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooled {
    /// Values of an entry.
    pub width: usize,
    /// Positions of an entry.
    pub ratio: usize,
    /// Whether the positions before take part; what is pooled is then twice as wide.
    pub overlap: bool,
    /// How the release stores them.
    pub native: EntryFormat,
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
    Embedded,
    Mixed,
    Coefficients,
    Site,
    Pooled,
    PooledGate,
    IndexQuery,
    IndexWeights,
    IndexPooled,
    IndexPooledGate,
    Chosen,
    Grouped,
    Logits,
}

/// Which half of a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Attention,
    Ffn,
}

/// Where a block's output goes.
#[derive(Clone, Copy)]
struct Target {
    out: BufferId,
    /// Added to what is there, or in its place.
    accumulate: bool,
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
    let table = b.weight(&spec.embed)?;
    let x = b.embed(spec, table)?;
    for layer in &spec.layers {
        b.half(Half::Attention, layer, spec, x)?;
        b.half(Half::Ffn, layer, spec, x)?;
    }
    let selected = b.buffer(Use::Selected, spec.residual_width())?;
    b.ops.push(Op::SelectRows { x, out: selected });
    let joined = b.joined(spec, selected)?;
    let normed = b.norm(&spec.final_norm, spec, joined)?;
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
    /// Where the hidden states of every row end up: as wide as the residual stream, behind the final norm as
    /// `hidden_size`.
    pub out: BufferId,
}

/// The program of a part. Its input are the rows of `table` (rows × the residual stream's width) that the batch's tokens name: for
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
    if part == Part::Embed {
        let out = b.embed(spec, table)?;
        return Ok(PartProgram { ops: b.ops, out });
    }
    let x = b.buffer(Use::Residual, spec.residual_width())?;
    b.ops.push(Op::Embed { table, out: x });
    let mut out = x;
    match part {
        Part::Embed => {}
        Part::Layer(index) | Part::Attention(index) | Part::Ffn(index) => {
            let Some(layer) = spec.layers.get(index) else { return Ok(PartProgram { ops: b.ops, out }) };
            if part != Part::Ffn(index) {
                b.half(Half::Attention, layer, spec, x)?;
            }
            if part != Part::Attention(index) {
                b.half(Half::Ffn, layer, spec, x)?;
            }
        }
        Part::FinalNorm => {
            let joined = b.joined(spec, x)?;
            out = b.norm(&spec.final_norm, spec, joined)?;
        }
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

    /// The residual stream: the embedding, in every lane.
    fn embed(&mut self, spec: &ModelSpec, table: WeightId) -> Result<BufferId, R::Error> {
        let x = self.buffer(Use::Residual, spec.residual_width())?;
        if spec.lanes.is_none() {
            self.ops.push(Op::Embed { table, out: x });
            return Ok(x);
        }
        let embedded = self.buffer(Use::Embedded, spec.hidden_size)?;
        self.ops.push(Op::Embed { table, out: embedded });
        self.ops.push(Op::Repeat { x: embedded, out: x });
        Ok(x)
    }

    /// What the final norm reads of the residual stream.
    fn joined(&mut self, spec: &ModelSpec, x: BufferId) -> Result<BufferId, R::Error> {
        match &spec.lanes {
            Some(lanes) => self.mixed(spec, lanes, &lanes.head, x, None),
            None => Ok(x),
        }
    }

    /// A block's input from all lanes.
    fn mixed(
        &mut self,
        spec: &ModelSpec,
        lanes: &Lanes,
        site: &Hyper,
        x: BufferId,
        coefficients: Option<BufferId>,
    ) -> Result<BufferId, R::Error> {
        let out = self.buffer(Use::Mixed, spec.hidden_size)?;
        let (mix, base, scale) = (self.weight(&site.mix)?, self.weight(&site.base)?, self.weight(&site.scale)?);
        let &Lanes { count, eps, iterations, .. } = lanes;
        let lanes = HyperLanes { count, norm_eps: spec.norm_eps, eps, iterations };
        self.ops.push(Op::HyperMix { x, mix, base, scale, lanes, coefficients, out });
        Ok(out)
    }

    /// One half of a layer, added to the residual stream.
    fn half(&mut self, half: Half, layer: &Layer, spec: &ModelSpec, x: BufferId) -> Result<(), R::Error> {
        let sites = layer.hyper.as_deref().zip(spec.lanes.as_ref());
        let Some(([attention, ffn], lanes)) = sites else {
            let target = Target { out: x, accumulate: true };
            return match half {
                Half::Attention => self.attention(layer, spec, x, target),
                Half::Ffn => self.ffn(layer, spec, x, target),
            };
        };
        let coefficients = self.buffer(Use::Coefficients, lanes.count * (lanes.count + 1))?;
        let z = self.buffer(Use::Site, spec.hidden_size)?;
        let target = Target { out: z, accumulate: false };
        let site = if half == Half::Attention { attention } else { ffn };
        let mixed = self.mixed(spec, lanes, site, x, Some(coefficients))?;
        match half {
            Half::Attention => self.attention(layer, spec, mixed, target)?,
            Half::Ffn => self.ffn(layer, spec, mixed, target)?,
        }
        self.ops.push(Op::HyperAdd { x, z, coefficients, lanes: lanes.count });
        Ok(())
    }

    /// target = o(attention(norm(x)))
    fn attention(&mut self, layer: &Layer, spec: &ModelSpec, x: BufferId, target: Target) -> Result<(), R::Error> {
        let normed = self.norm(&layer.attn_norm, spec, x)?;
        match &layer.attn {
            Mixer::Heads(a) => self.head_attention(a, spec.norm_eps, normed, target),
            Mixer::Latent(a) => self.latent_attention(a, spec.norm_eps, normed, target),
            Mixer::Compressed(a) => self.compressed_attention(a, spec.norm_eps, normed, target),
        }
    }

    /// The output projection of a block.
    fn project_out(&mut self, x: BufferId, leaf: &Leaf, bias: Option<&Leaf>, to: Target) -> Result<(), R::Error> {
        let parts = vec![self.projection(leaf, bias, to.out)?];
        self.ops.push(Op::Linear { x, parts, accumulate: to.accumulate });
        Ok(())
    }

    fn head_attention(&mut self, a: &Attention, eps: f32, normed: BufferId, to: Target) -> Result<(), R::Error> {
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
            cache: self.resources.cache(KvHeads {
                count: a.num_kv_heads,
                dim: a.head_dim,
                values_in_keys: false,
                window: a.window,
                native: None,
            })?,
            num_heads: a.num_heads,
            num_kv_heads: a.num_kv_heads,
            head_dim: a.head_dim,
            scale: (a.head_dim as f32).sqrt().recip(),
            window: a.window,
            options,
            out,
        });
        self.project_out(out, &a.o, a.o_bias.as_ref(), to)
    }

    /// One key for all heads, of latent and rotary part, whose latent part is the value too. The key projections move to
    /// the queries before, the value projections behind.
    fn latent_attention(
        &mut self,
        a: &LatentAttention,
        eps: f32,
        normed: BufferId,
        to: Target,
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
            cache: self.resources.cache(KvHeads {
                count: 1,
                dim: key_width,
                values_in_keys: true,
                window: None,
                native: None,
            })?,
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
        self.project_out(out, &a.o, None, to)
    }

    /// One key for all heads, which is the value too, over a window of tokens and over pooled entries; outputs are turned
    /// back and projected group by group.
    fn compressed_attention(
        &mut self,
        a: &CompressedAttention,
        eps: f32,
        normed: BufferId,
        to: Target,
    ) -> Result<(), R::Error> {
        let [q_a, q_norm] = &a.q_a;
        let [kv, kv_norm] = &a.kv;
        let (rank, width) = (q_norm.shape.first().copied().unwrap_or_default(), a.num_heads * a.head_dim);
        let (low, low_normed) = (self.buffer(Use::Low, rank)?, self.buffer(Use::LowNormed, rank)?);
        let (q, k) = (self.buffer(Use::Query, width)?, self.buffer(Use::Key, a.head_dim)?);
        let parts = vec![self.projection(q_a, None, low)?, self.projection(kv, None, k)?];
        self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
        let weight = self.weight(q_norm)?;
        self.ops.push(Op::RmsNorm { x: low, weight, eps, out: low_normed });
        let parts = vec![self.projection(&a.q_b, None, q)?];
        self.ops.push(Op::Linear { x: low_normed, parts, accumulate: false });
        let rope = HeadRope { rope: Arc::new(a.rope.clone()), width: a.rope_dim, inverse: false };
        for (x, weight) in [(q, None), (k, Some(self.weight(kv_norm)?))] {
            let norm = Some(HeadNorm { weight, width: a.head_dim, eps });
            self.ops.push(Op::HeadNormRope { x, head_dim: a.head_dim, norm, rope: Some(rope.clone()) });
        }
        let entries = match &a.compressor {
            Some(c) => {
                let native = EntryFormat::Fp8 { plain: a.head_dim - a.rope_dim };
                let cache = self.compress(c, native, [Use::Pooled, Use::PooledGate], eps, normed, &rope)?;
                let selected = match &a.indexer {
                    Some(indexer) => Some(self.select(indexer, eps, [normed, low_normed], &rope)?),
                    None => None,
                };
                Some(Entries { cache, ratio: c.ratio, selected })
            }
            None => None,
        };
        let out = self.buffer(Use::Attended, width)?;
        let sinks = Some(self.weight(&a.sinks)?);
        self.ops.push(Op::Attention {
            q,
            k,
            v: k,
            cache: self.resources.cache(KvHeads {
                count: 1,
                dim: a.head_dim,
                values_in_keys: true,
                window: Some(a.window),
                native: Some(a.head_dim - a.rope_dim),
            })?,
            num_heads: a.num_heads,
            num_kv_heads: 1,
            head_dim: a.head_dim,
            scale: (a.head_dim as f32).sqrt().recip(),
            window: Some(a.window),
            options: AttentionOptions { sinks, values_in_keys: Some(a.head_dim), entries },
            out,
        });
        let back = Some(HeadRope { inverse: true, ..rope });
        self.ops.push(Op::HeadNormRope { x: out, head_dim: a.head_dim, norm: None, rope: back });
        let rows = a.o_a.shape.first().copied().unwrap_or_default() / a.groups.max(1);
        let blocks = Blocks { count: a.groups, stride: rows, first: 0, rows };
        let (weight, grouped) = (self.weight(&a.o_a)?, self.buffer(Use::Grouped, a.groups * rows)?);
        self.ops.push(Op::BlockLinear { x: out, weight, blocks, out: grouped });
        self.project_out(grouped, &a.o_b, None, to)
    }

    /// The entries that a compressor makes.
    fn compress(
        &mut self,
        c: &Compressor,
        native: EntryFormat,
        [kv, gate]: [Use; 2],
        eps: f32,
        normed: BufferId,
        rope: &HeadRope,
    ) -> Result<CacheId, R::Error> {
        let wide = if c.overlap { 2 * c.width } else { c.width };
        let (kv, gate) = (self.buffer(kv, wide)?, self.buffer(gate, wide)?);
        let parts = vec![self.projection(&c.kv, None, kv)?, self.projection(&c.gate, None, gate)?];
        self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
        let (position, norm) = (self.weight(&c.position)?, self.weight(&c.norm)?);
        let pooled = Pooled { width: c.width, ratio: c.ratio, overlap: c.overlap, native };
        let (tokens, entries) = (self.resources.tokens(pooled)?, self.resources.entries(pooled)?);
        let (rope, ratio, overlap) = (rope.clone(), c.ratio, c.overlap);
        self.ops.push(Op::Compress { kv, gate, position, norm, eps, rope, ratio, overlap, tokens, entries });
        Ok(entries)
    }

    /// The numbers of the entries that each token attends to.
    fn select(
        &mut self,
        indexer: &Indexer,
        eps: f32,
        [normed, low_normed]: [BufferId; 2],
        rope: &HeadRope,
    ) -> Result<BufferId, R::Error> {
        let c = &indexer.compressor;
        let uses = [Use::IndexPooled, Use::IndexPooledGate];
        let entries = self.compress(c, EntryFormat::Fp4, uses, eps, normed, rope)?;
        let q = self.buffer(Use::IndexQuery, indexer.num_heads * c.width)?;
        let parts = vec![self.projection(&indexer.q, None, q)?];
        self.ops.push(Op::Linear { x: low_normed, parts, accumulate: false });
        self.ops.push(Op::HeadNormRope { x: q, head_dim: c.width, norm: None, rope: Some(rope.clone()) });
        let weights = self.buffer(Use::IndexWeights, indexer.num_heads)?;
        let parts = vec![self.projection(&indexer.weights, None, weights)?];
        self.ops.push(Op::Linear { x: normed, parts, accumulate: false });
        let out = self.buffer(Use::Chosen, indexer.top_k)?;
        let (ratio, num_heads) = (c.ratio, indexer.num_heads);
        self.ops.push(Op::SelectEntries { q, weights, entries, ratio, num_heads, out });
        Ok(out)
    }

    /// target = ffn(norm(x))
    fn ffn(&mut self, layer: &Layer, spec: &ModelSpec, x: BufferId, to: Target) -> Result<(), R::Error> {
        let normed = self.norm(&layer.ffn_norm, spec, x)?;
        let activation = layer.activation;
        match &layer.ffn {
            Ffn::Dense(mlp) => self.gated(mlp, None, activation, normed, to),
            Ffn::Moe(moe) => {
                // Experts add to what the shared one, which comes first, or the residual stream left.
                if let Some(shared) = &moe.shared {
                    self.gated(&shared.mlp, shared.gate.as_ref(), activation, normed, to)?;
                }
                self.experts(moe, activation, normed, to.out)
            }
        }
    }

    /// target = mlp(normed), times sigmoid(normed · gateᵀ) where there is a gate.
    fn gated(
        &mut self,
        mlp: &GatedMlp,
        gate: Option<&Leaf>,
        activation: Activation,
        normed: BufferId,
        to: Target,
    ) -> Result<(), R::Error> {
        let intermediate = mlp.gate.shape.first().copied().unwrap_or_default();
        let out = self.buffer(Use::Hidden, intermediate)?;
        let weights = (self.weight(&mlp.gate)?, self.weight(&mlp.up)?);
        self.ops.push(Op::GatedLinear { x: normed, gate: weights.0, up: weights.1, activation, out });
        if let Some(weight) = self.optional(gate)? {
            // Before the down projection, which is linear, instead of behind it: no buffer of its own.
            self.ops.push(Op::SigmoidGate { x: normed, weight, y: out });
        }
        self.project_out(out, &mlp.down, None, to)
    }

    /// x += Σ experts(normed)
    fn experts(&mut self, moe: &Moe, activation: Activation, normed: BufferId, x: BufferId) -> Result<(), R::Error> {
        let router = self.weight(&moe.router)?;
        let options = MoeOptions {
            router_bias: self.optional(moe.router_bias.as_ref())?,
            choice_bias: self.optional(moe.choice_bias.as_ref())?,
            table: self.optional(moe.table.as_ref())?,
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
