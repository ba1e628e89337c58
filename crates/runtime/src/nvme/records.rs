//! Which bytes of which file make an expert, in whole pages, and where its planes lie among them.

use crate::placement::{Placement, Tier};
use crate::program::Draft;
use ashlar_arch::{Class, Leaf};
use ashlar_pack::PAGE;
use ashlar_tensor::{FilePlace, TensorStore};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

/// Planes that lie nearer to each other than this are read at once: what lies between costs less than another read.
const GAP: u64 = 64 << 10;

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the file.
    pub file: usize,
    /// Where it begins there: on a page.
    pub offset: u64,
    /// Whole pages.
    pub len: usize,
    /// How many bytes must come; the file may end behind them.
    pub needed: usize,
}

/// The weights of one expert: extents that follow one another in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Layer and expert.
    pub of: (usize, usize),
    /// What is read, in order.
    pub extents: Vec<Extent>,
}

impl Record {
    /// Bytes that it takes in memory, which are those that are read.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.extents.iter().map(|e| e.len).sum()
    }
}

/// The experts of a model that are read as they are used.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Layer by layer, expert by expert.
    pub records: Vec<Record>,
    /// By number of a draft's weight: its record, and where its planes lie there.
    pub weights: HashMap<usize, (u32, Vec<Range<usize>>)>,
    /// Experts that stay on disk but are not in a file as they are, or whose device wants them in memory: they are mapped.
    pub mapped: usize,
}

/// A plane on its way into a record.
struct Plane {
    file: usize,
    range: Range<u64>,
    weight: usize,
    number: usize,
}

impl Plan {
    /// The experts that a placement leaves on disk. `streams`: whether a device of the placement takes records.
    #[must_use]
    pub fn new(draft: &Draft, placement: &Placement, store: &dyn TensorStore, streams: &dyn Fn(usize) -> bool) -> Self {
        let mut experts: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (i, leaf) in draft.leaves.iter().enumerate() {
            if let Some(key) = expert_matrix(leaf) {
                experts.entry(key).or_default().push(i);
            }
        }
        let mut plan = Self::default();
        let mut numbers = HashMap::new();
        for (of, weights) in experts {
            let on_disk = |i: &usize| placement.weights.get(*i).is_some_and(|(_, tier)| *tier == Tier::Nvme);
            if !weights.iter().all(on_disk) {
                continue;
            }
            let taken = weights.iter().all(|i| placement.weights.get(*i).is_some_and(|(device, _)| streams(*device)));
            match plan.planes(draft, &weights, store, &mut numbers).filter(|_| taken) {
                Some(planes) => plan.add(of, planes),
                None => plan.mapped += 1,
            }
        }
        plan
    }

    /// The largest record, bytes.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.records.iter().map(Record::bytes).max().unwrap_or(0)
    }

    /// Where all planes of these weights lie; `None` if one is in no file as it is.
    fn planes(
        &mut self,
        draft: &Draft,
        weights: &[usize],
        store: &dyn TensorStore,
        numbers: &mut HashMap<PathBuf, usize>,
    ) -> Option<Vec<Plane>> {
        let mut all = Vec::new();
        for &weight in weights {
            let entry = store.entry(&draft.leaves.get(weight)?.name)?;
            for (number, plane) in entry.planes.iter().enumerate() {
                let FilePlace { file, offset } = store.place(entry, number)?;
                let file = *numbers.entry(file).or_insert_with_key(|path| {
                    self.files.push(path.clone());
                    self.files.len() - 1
                });
                all.push(Plane { file, range: offset..offset.checked_add(plane.bytes)?, weight, number });
            }
        }
        Some(all)
    }

    fn add(&mut self, of: (usize, usize), mut planes: Vec<Plane>) {
        planes.sort_by_key(|p| (p.file, p.range.start));
        let mut record = Record { of, extents: Vec::new() };
        let page = PAGE as u64;
        for plane in &planes {
            let end = |e: &Extent| e.offset + e.needed as u64;
            match record.extents.last_mut() {
                Some(last) if last.file == plane.file && plane.range.start <= end(last) + GAP => {
                    last.needed = last.needed.max((plane.range.end - last.offset) as usize);
                }
                _ => {
                    let offset = plane.range.start / page * page;
                    let needed = (plane.range.end - offset) as usize;
                    record.extents.push(Extent { file: plane.file, offset, len: 0, needed });
                }
            }
        }
        record.extents.iter_mut().for_each(|e| e.len = e.needed.next_multiple_of(PAGE));
        let number = self.records.len() as u32;
        for plane in planes {
            let mut at = 0;
            for extent in &record.extents {
                let inside = extent.offset..extent.offset + extent.needed as u64;
                if extent.file == plane.file && inside.contains(&plane.range.start) {
                    at += (plane.range.start - extent.offset) as usize;
                    break;
                }
                at += extent.len;
            }
            let ranges = &mut self.weights.entry(plane.weight).or_insert_with(|| (number, Vec::new())).1;
            if ranges.len() <= plane.number {
                ranges.resize(plane.number + 1, 0..0);
            }
            if let Some(range) = ranges.get_mut(plane.number) {
                *range = at..at + (plane.range.end - plane.range.start) as usize;
            }
        }
        self.records.push(record);
    }
}

/// Layer and expert of a matrix that only one expert reads.
pub(crate) fn expert_matrix(leaf: &Leaf) -> Option<(usize, usize)> {
    let matrix = matches!(leaf.shape.as_slice(), [n, _] if *n > 1);
    leaf.role.layer.zip(leaf.role.expert).filter(|_| matrix && leaf.role.class == Class::Experts)
}
