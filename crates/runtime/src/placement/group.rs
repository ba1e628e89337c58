//! What must lie together: weights and caches that one op reads, as [`Group`]s, and the ops as [`Unit`]s that each run on
//! one device. A linear op with several outputs is several units: its projections may lie apart.

use crate::nvme::expert_matrix;
use crate::program::Draft;
use ashlar_arch::{Class, Leaf};
use ashlar_backend::{Access, Op, Reserved};
use ashlar_recipe::stays_float;
use std::collections::{BTreeMap, BTreeSet};

/// Weights and caches that lie on one device.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Indices of weights, ascending.
    pub weights: Vec<usize>,
    /// Indices of caches, ascending.
    pub caches: Vec<usize>,
    /// What they take.
    pub bytes: Reserved,
    /// Of that, matrices of experts.
    pub experts: u64,
    /// When it is its turn to be given memory of an accelerator; `None` for what follows its neighbours.
    pub turn: Option<Turn>,
}

/// The order in which weights that no rule places get memory of accelerators: what every token reads first, then experts, of
/// which a token reads a few, then the table of embeddings, of which it reads a row. Layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// What it is.
    pub kind: Kind,
    /// Of which layer; the largest number for what is behind them.
    pub layer: usize,
}

/// Kinds of weights, in the order of their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Every token reads them.
    Dense,
    /// A token reads some of them.
    Experts,
    /// A token reads a row of them.
    Embedding,
}

impl Turn {
    /// `layers 3-5, experts of layers 0-7`.
    pub fn told(turns: &BTreeSet<Self>) -> String {
        let mut kinds: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
        for turn in turns {
            kinds.entry(turn.kind).or_default().push(turn.layer);
        }
        let one = |(kind, layers): (Kind, Vec<usize>)| {
            let (inside, outside): (Vec<usize>, Vec<usize>) = layers.into_iter().partition(|l| *l != usize::MAX);
            let ranges = ranges(&inside);
            let inside = (!inside.is_empty()).then(|| match kind {
                Kind::Experts => format!("experts of layers {ranges}"),
                Kind::Dense | Kind::Embedding => format!("layers {ranges}"),
            });
            let head = if kind == Kind::Embedding { "the embedding" } else { "the head" };
            inside.into_iter().chain((!outside.is_empty()).then(|| head.to_owned())).collect::<Vec<_>>()
        };
        kinds.into_iter().flat_map(one).collect::<Vec<_>>().join(", ")
    }
}

/// `0-3,7` of ascending numbers.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let one = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.into_iter().map(one).collect::<Vec<_>>().join(",")
}

/// What runs on one device.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    /// Its weights and caches.
    pub group: Option<usize>,
    /// Buffers that it reads, updated ones included.
    pub reads: Vec<usize>,
    /// Buffers that it leaves behind, updated ones included.
    pub writes: Vec<usize>,
}

/// A draft, sorted by what must lie together.
#[derive(Debug)]
pub struct Groups {
    /// The groups, in the order in which ops meet them.
    pub list: Vec<Group>,
    /// The group of every weight.
    pub of_weight: Vec<usize>,
    /// Units of every op.
    pub units: Vec<Vec<Unit>>,
}

/// A matrix that is worth a place of its own. The others, vectors and small matrices such as routers, go with those that
/// the same op reads.
pub fn leads(leaf: &Leaf) -> bool {
    matches!(leaf.shape.as_slice(), [n, _] if *n > 1) && !stays_float(leaf.role)
}

/// Sets that are joined (union-find).
struct Joined(Vec<usize>);

impl Joined {
    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, items: impl IntoIterator<Item = usize>) {
        let mut items = items.into_iter();
        let Some(first) = items.next() else { return };
        for other in items {
            let (a, b) = (self.root(first), self.root(other));
            self.0[a.max(b)] = a.min(b);
        }
    }
}

/// The parts of an op that may run apart. Joined again, they are the op.
pub fn split(op: &Op) -> Vec<Op> {
    match op {
        Op::Linear { x, parts, accumulate } => {
            let one = |part| Op::Linear { x: *x, parts: vec![part], accumulate: *accumulate };
            parts.iter().copied().map(one).collect()
        }
        op => vec![op.clone()],
    }
}

impl Groups {
    /// Sorts a draft whose weights have so many bytes.
    #[must_use]
    pub fn new(draft: &Draft, bytes: &[u64]) -> Self {
        let weights = draft.leaves.len();
        let mut joined = Joined((0..weights + draft.caches.len()).collect());
        let operands: Vec<Vec<_>> =
            draft.program.ops.iter().map(|op| split(op).iter().map(Op::operands).collect()).collect();
        let members = |o: &ashlar_backend::Operands| -> Vec<usize> {
            let caches = o.caches.iter().map(|c| weights + c.0 as usize);
            o.weights.iter().map(|w| w.0 as usize).chain(caches).collect()
        };
        operands.iter().flatten().for_each(|o| joined.join(members(o)));
        let mut groups = Self { list: Vec::new(), of_weight: vec![0; weights], units: Vec::new() };
        let mut numbers = vec![None; joined.0.len()];
        for member in 0..joined.0.len() {
            let root = joined.root(member);
            let number = *numbers[root].get_or_insert_with(|| {
                groups.list.push(Group::default());
                groups.list.len() - 1
            });
            groups.add(number, member, draft, bytes);
        }
        let unit = |o: &ashlar_backend::Operands| {
            let group = members(o).first().and_then(|m| numbers[joined.root(*m)]);
            let of = |wanted: &dyn Fn(Access) -> bool| {
                let some = o.buffers.iter().filter(|(_, access)| wanted(*access));
                some.map(|(id, _)| id.0 as usize).collect()
            };
            Unit { group, reads: of(&|a| a != Access::Write), writes: of(&|a| a != Access::Read) }
        };
        let mut unit = unit;
        groups.units = operands.iter().map(|parts| parts.iter().map(&mut unit).collect()).collect();
        groups
    }

    fn add(&mut self, number: usize, member: usize, draft: &Draft, bytes: &[u64]) {
        let group = &mut self.list[number];
        let Some(leaf) = draft.leaves.get(member) else {
            let cache = member - draft.leaves.len();
            group.caches.push(cache);
            group.bytes.add_cache(&draft.caches[cache]);
            return;
        };
        group.weights.push(member);
        let before = group.bytes.weights;
        group.bytes.add_weight(bytes[member]);
        if expert_matrix(leaf).is_some() {
            group.experts += group.bytes.weights - before;
        }
        self.of_weight[member] = number;
        if leads(leaf) {
            let kind = match leaf.role.class {
                Class::Experts => Kind::Experts,
                Class::Embed if draft.is_head(member) => Kind::Dense,
                Class::Embed => Kind::Embedding,
                _ => Kind::Dense,
            };
            // Weights behind the layers come after them.
            let turn = Turn { kind, layer: leaf.role.layer.unwrap_or(usize::MAX) };
            group.turn = Some(group.turn.map_or(turn, |t| t.min(turn)));
        }
    }
}
