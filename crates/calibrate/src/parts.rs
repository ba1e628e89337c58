//! What a part of a model reads, and which Hessians that makes.

use crate::hessian::Hessian;
use crate::tally::{Want, Wanted};
use ashlar_arch::{Class, Leaf, ModelSpec, Proj};
use ashlar_backend::{BufferId, CacheId, WeightId};
use ashlar_convert::stats::upper_values;
use ashlar_runtime::program::{Part, Resources, build_part};
use std::convert::Infallible;

/// The weights that a part reads, in the order in which it asks for them: for the last one the head as well.
pub fn leaves(spec: &ModelSpec, part: Part) -> Vec<Leaf> {
    let mut list = List(Vec::new());
    let Ok(_) = build_part(spec, part, WeightId(0), &mut list);
    if part == Part::FinalNorm {
        list.0.push(spec.lm_head.as_ref().unwrap_or(&spec.embed).clone());
    }
    list.0
}

/// Writes down what a program asks for.
struct List(Vec<Leaf>);

impl Resources for List {
    type Error = Infallible;

    fn weight(&mut self, leaf: &Leaf) -> Result<WeightId, Infallible> {
        self.0.push(leaf.clone());
        Ok(WeightId(self.0.len() as u32))
    }

    fn buffer(&mut self, _width: usize) -> Result<BufferId, Infallible> {
        Ok(BufferId(0))
    }

    fn cache(&mut self, _kv_width: usize) -> Result<CacheId, Infallible> {
        Ok(CacheId(0))
    }
}

/// The Hessians to be summed for a weight. The gate and up projections of experts take that of their router, which reads
/// the same tokens once: an expert's own share of them is worth neither the memory nor the time (`docs/statistics.md`).
pub fn want(leaf: &Leaf) -> Want {
    let [_, k] = *leaf.shape.as_slice() else { return Want::default() };
    if !k.is_multiple_of(8) || leaf.role.class == Class::Norm {
        return Want::default();
    }
    match (leaf.role.class, leaf.role.proj) {
        (Class::Experts, Some(Proj::Down)) => Want { own: true, experts: true },
        (Class::Experts, _) => Want::default(),
        _ => Want { own: true, experts: false },
    }
}

/// All Hessians of a part.
pub fn wanted(leaves: &[Leaf]) -> Wanted {
    leaves.iter().map(|l| (l.name.clone(), want(l))).collect()
}

/// Bytes of the Hessians of a part: in memory while they are summed, and as arrays of a file. An estimate from above:
/// which weights share their inputs shows only when the part runs.
pub fn sizes(leaves: &[Leaf]) -> (u64, u64) {
    let (mut memory, mut file, mut experts) = (0, 0, 0);
    for leaf in leaves {
        let (Want { own, experts: also }, Some(&k)) = (want(leaf), leaf.shape.get(1)) else { continue };
        let shared = matches!(leaf.role.proj, Some(Proj::K | Proj::V | Proj::Up));
        if own && !shared {
            memory += Hessian::bytes(k);
            file += 4 * upper_values(k) as u64;
        }
        if also {
            experts = k;
        }
    }
    (memory + Hessian::bytes(experts), file + 4 * upper_values(experts) as u64)
}
