//! What a part of a model reads, and which Hessians that makes.

use crate::hessian::Hessian;
use crate::tally::{Want, Wanted};
use ashlar_arch::{Class, Leaf, ModelSpec, Proj};
use ashlar_backend::{BufferId, CacheId, KvHeads, Op, WeightId};
use ashlar_convert::stats::upper_values;
use ashlar_runtime::program::{Part, Pooled, Resources, build_part};
use std::collections::{HashMap, HashSet};
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

    fn cache(&mut self, _heads: KvHeads) -> Result<CacheId, Infallible> {
        Ok(CacheId(0))
    }

    fn tokens(&mut self, _pooled: Pooled) -> Result<CacheId, Infallible> {
        Ok(CacheId(0))
    }

    fn entries(&mut self, _pooled: Pooled) -> Result<CacheId, Infallible> {
        Ok(CacheId(0))
    }
}

/// The Hessians to be summed for a weight. The gate and up projections of experts take that of their router, which reads
/// the same tokens once: an expert's own share of them is worth neither the memory nor the time (`docs/statistics.md`).
/// The mixing of residual lanes is never quantized, and reads all of them at once.
pub fn want(leaf: &Leaf) -> Want {
    let [_, k] = *leaf.shape.as_slice() else { return Want::default() };
    if !k.is_multiple_of(8) || matches!(leaf.role.class, Class::Norm | Class::Hyper) {
        return Want::default();
    }
    match (leaf.role.class, leaf.role.proj) {
        (Class::Experts, Some(Proj::Down)) => Want { own: true, experts: true, drift: false },
        (Class::Experts, _) => Want::default(),
        _ => Want { own: true, ..Want::default() },
    }
}

/// Whether a weight makes up for what its inputs lack. A down projection does not: the gate and up projections that it reads
/// have done so already, and twice is too much (measured in `docs/statistics.md`).
pub fn moves(leaf: &Leaf) -> bool {
    leaf.role.proj != Some(Proj::Down)
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
        let (Want { own, experts: also, .. }, Some(&k)) = (want(leaf), leaf.shape.get(1)) else { continue };
        let shared = matches!(leaf.role.proj, Some(Proj::K | Proj::V | Proj::Up));
        if own && !shared {
            memory += Hessian::bytes(k, false);
            file += 4 * upper_values(k) as u64;
        }
        if also {
            experts = k;
        }
    }
    (memory + Hessian::bytes(experts, false), file + 4 * upper_values(experts) as u64)
}

/// For every weight of a part that reads the same inputs as another: that other. What an op does not tell, it reads alone.
pub fn inputs(spec: &ModelSpec, part: Part) -> HashMap<String, String> {
    let mut list = List(Vec::new());
    let Ok(program) = build_part(spec, part, WeightId(0), &mut list);
    let name = |id: WeightId| Some(list.0.get((id.0 as usize).checked_sub(1)?)?.name.clone());
    let mut all = HashMap::new();
    for op in &program.ops {
        let together: Vec<WeightId> = match op {
            Op::Linear { parts, .. } => parts.iter().map(|p| p.weight).collect(),
            Op::GatedLinear { gate, up, .. } => vec![*gate, *up],
            _ => continue,
        };
        if let Some(first) = together.first().and_then(|id| name(*id)) {
            all.extend(together.iter().filter_map(|id| name(*id)).map(|name| (name, first.clone())));
        }
    }
    all
}

/// The Hessians of a part that a conversion needs: those of the weights for which `needs` holds, with drift
/// where they move by it.
pub struct Needed {
    /// All but those of single experts.
    pub shared: Wanted,
    /// Down projections of experts, each with its bytes.
    pub experts: Vec<(String, u64)>,
    /// Bytes of the shared ones.
    pub shared_bytes: u64,
}

impl Needed {
    /// `leaves` are those of the part, `inputs` says which of them share.
    pub fn new(leaves: &[Leaf], inputs: &HashMap<String, String>, needs: impl Fn(&str) -> bool) -> Self {
        let mut all = Self { shared: Wanted::new(), experts: Vec::new(), shared_bytes: 0 };
        let matrices = || leaves.iter().filter_map(|l| Some((l, *l.shape.get(1)?)));
        let class = |l: &Leaf| (l.role.class, l.role.proj);
        let (mut halves, mut counted) = (false, HashSet::new());
        for (leaf, k) in matrices().filter(|(l, _)| needs(&l.name)) {
            match class(leaf) {
                (Class::Experts, Some(Proj::Down)) => all.experts.push((leaf.name.clone(), Hessian::bytes(k, false))),
                (Class::Experts, _) => halves = true,
                _ => {
                    let drift = moves(leaf);
                    all.shared.insert(leaf.name.clone(), Want { own: true, experts: false, drift });
                    if counted.insert(inputs.get(&leaf.name).unwrap_or(&leaf.name)) {
                        all.shared_bytes += Hessian::bytes(k, drift);
                    }
                }
            }
        }
        if let Some((router, k)) = matrices().find(|(l, _)| halves && l.role.class == Class::Router) {
            all.shared.insert(router.name.clone(), Want { own: true, experts: false, drift: true });
            all.shared_bytes += Hessian::bytes(k, true);
        }
        if let Some((_, bytes)) = all.experts.first() {
            all.shared_bytes += bytes;
            let downs = leaves.iter().filter(|l| class(l) == (Class::Experts, Some(Proj::Down)));
            all.shared.extend(downs.map(|l| (l.name.clone(), Want { experts: true, ..Want::default() })));
        }
        all
    }

    /// Bytes while the experts of `group` have their turn.
    pub fn bytes(&self, group: &[(String, u64)]) -> u64 {
        self.shared_bytes + group.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// The experts in groups whose Hessians fit into `room` bytes, at least one each.
    pub fn groups(&self, room: u64) -> Vec<&[(String, u64)]> {
        let largest = self.experts.iter().map(|(_, bytes)| *bytes).max().unwrap_or(1).max(1);
        self.experts.chunks(usize::try_from(room / largest).unwrap_or(usize::MAX).max(1)).collect()
    }
}
