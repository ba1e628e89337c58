//! The first half of a layer: attention over heads, over a latent, over a window and pooled entries.

use super::{Builder, Pooled, Resources, Target, Use};
use ashlar_arch::{
    Attention, CompressedAttention, Compressor, Indexer, LatentAttention, Layer, Leaf, Mixer, ModelSpec,
};
use ashlar_backend::{
    AttentionOptions, Blocks, BufferId, CacheId, Entries, EntryFormat, HeadNorm, HeadRope, KvHeads, Op,
};
use std::sync::Arc;

impl<R: Resources> Builder<'_, R> {
    /// target = o(attention(norm(x)))
    pub(super) fn attention(
        &mut self,
        layer: &Layer,
        spec: &ModelSpec,
        x: BufferId,
        target: Target,
    ) -> Result<(), R::Error> {
        let normed = self.norm(&layer.attn_norm, spec, x)?;
        match &layer.attn {
            Mixer::Heads(a) => self.head_attention(a, spec.norm_eps, normed, target),
            Mixer::Latent(a) => self.latent_attention(a, spec.norm_eps, normed, target),
            Mixer::Compressed(a) => self.compressed_attention(a, spec.norm_eps, normed, target),
        }
    }

    /// The output projection of a block.
    pub(super) fn project_out(
        &mut self,
        x: BufferId,
        leaf: &Leaf,
        bias: Option<&Leaf>,
        to: Target,
    ) -> Result<(), R::Error> {
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
}
