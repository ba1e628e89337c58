//! From a [`ModelSpec`] to the flat list of ops that an executor runs.
//!
//! Owns: which op follows which, which buffers they share; `attention` and `ffn` are the halves of a layer, `part` runs
//! stretches alone, `draft` is a program whose operands are only numbers. Knows no model names and no devices: what a
//! family needs is in its spec. Refuses: bytes and memory, which [`Resources`] hides.

mod attention;
mod draft;
mod ffn;
mod part;

use ashlar_arch::{Hyper, Lanes, Layer, Leaf, ModelSpec};
use ashlar_backend::{BufferId, CacheId, EntryFormat, HyperLanes, KvHeads, Op, Projection, WeightId};
use std::collections::HashMap;

pub use draft::{Draft, Sizes};
pub use part::{Part, PartProgram, build_part};

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
    let mut b = Builder::new(resources);
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

impl<'r, R: Resources> Builder<'r, R> {
    fn new(resources: &'r mut R) -> Self {
        Self { resources, weights: HashMap::new(), buffers: HashMap::new(), ops: Vec::new() }
    }

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
}
