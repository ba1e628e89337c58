//! [`Draft`]: a program before its operands exist. Weights, buffers and caches are numbers, and what is known of them is
//! written down: enough to place them on devices and to count bytes.

use super::{Pooled, Program, Resources, build};
use crate::Kv;
use crate::caches::Caches;
use ashlar_arch::{Leaf, ModelSpec};
use ashlar_backend::{BufferId, CacheId, CacheShape, KvHeads, Op, Stored, WeightId};
use std::convert::Infallible;

/// How much a program must be able to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences at the same time.
    pub sequences: usize,
    /// Positions per sequence.
    pub context: usize,
    /// Rows of a batch.
    pub rows: usize,
    /// How keys and values are stored.
    pub kv: Kv,
}

/// A program whose operands are numbers: indices into these lists.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The ops.
    pub program: Program,
    /// Weights, in the order in which ops ask for them.
    pub leaves: Vec<Leaf>,
    /// Widths of buffers.
    pub widths: Vec<usize>,
    /// Caches.
    pub caches: Vec<CacheShape>,
    /// What it is made for.
    pub sizes: Sizes,
}

impl Draft {
    /// Of a model.
    #[must_use]
    pub fn new(spec: &ModelSpec, sizes: Sizes) -> Self {
        let mut lists = Lists { leaves: Vec::new(), widths: Vec::new(), caches: Caches::new(sizes) };
        let Ok(program) = build(spec, &mut lists);
        let Lists { leaves, widths, caches } = lists;
        let caches = caches.into_shapes();
        Self { program, leaves, widths, caches, sizes }
    }

    /// Whether logits are made with that weight: the head, or the embedding that is tied to it.
    #[must_use]
    pub fn is_head(&self, weight: usize) -> bool {
        let last = self.program.ops.last().map(Op::operands).unwrap_or_default();
        last.weights.iter().any(|id| id.0 as usize == weight)
    }
}

/// What a program asks for, in order.
struct Lists {
    leaves: Vec<Leaf>,
    widths: Vec<usize>,
    caches: Caches,
}

impl Lists {
    fn alloc(&mut self, stored: Stored) -> CacheId {
        self.caches.add(stored);
        CacheId(self.caches.shapes().len() as u32 - 1)
    }
}

impl Resources for Lists {
    type Error = Infallible;

    fn weight(&mut self, leaf: &Leaf) -> Result<WeightId, Infallible> {
        self.leaves.push(leaf.clone());
        Ok(WeightId(self.leaves.len() as u32 - 1))
    }

    fn buffer(&mut self, width: usize) -> Result<BufferId, Infallible> {
        self.widths.push(width);
        Ok(BufferId(self.widths.len() as u32 - 1))
    }

    fn cache(&mut self, heads: KvHeads) -> Result<CacheId, Infallible> {
        let stored = self.caches.heads(heads);
        Ok(self.alloc(stored))
    }

    fn tokens(&mut self, pooled: Pooled) -> Result<CacheId, Infallible> {
        Ok(self.alloc(Caches::tokens(pooled)))
    }

    fn entries(&mut self, pooled: Pooled) -> Result<CacheId, Infallible> {
        let stored = self.caches.entries(pooled);
        Ok(self.alloc(stored))
    }
}
