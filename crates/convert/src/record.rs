//! Records in progress: checksums and losses of tiles, joined when the last tile of a record is written.

use crate::jobs::Tile;
use crate::measure::{Loss, Measured};
use crate::plan::Plan;
use crate::work::Work;
use ashlar_formats::Layout;
use ashlar_pack::{Done, Hash, PackError, PageBuffer, Piece, Record, TreeHash};
use ashlar_quantize::TileError;
use serde_json::Value;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// All records of a plan.
pub(crate) struct Records<'a> {
    plan: &'a Plan,
    /// Index of each record's first tensor.
    first: Vec<usize>,
    open: Vec<Mutex<Option<Open>>>,
}

/// A record of which some tiles are written.
struct Open {
    tree: TreeHash,
    tiles_left: usize,
    tensors: Vec<OpenTensor>,
}

struct OpenTensor {
    lost: Vec<Option<TileError>>,
    /// Of the source's own bytes, where they are stored in another order.
    source: Option<TreeHash>,
}

impl<'a> Records<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let records = &plan.layout.records;
        let first = records.iter().scan(0, |at, r| Some(std::mem::replace(at, *at + r.tensors.len()))).collect();
        Self { plan, first, open: records.iter().map(|_| Mutex::new(None)).collect() }
    }

    /// Index of a record's first tensor in the plan.
    pub fn first_tensor(&self, record: usize) -> usize {
        self.first.get(record).copied().unwrap_or(0)
    }

    /// The works of a record's tensors.
    fn works(&self, record: usize) -> &'a [Work] {
        let count = self.plan.layout.records.get(record).map_or(0, |r| r.tensors.len());
        let first = self.first_tensor(record);
        self.plan.works.get(first..first + count).unwrap_or_default()
    }

    fn start(&self, index: usize, record: &Record) -> Open {
        let works = self.works(index);
        let mut tree = TreeHash::new(record.bytes);
        for (at, len) in record.gaps() {
            tree.add(Piece::new(record.bytes, at, &vec![0; len as usize]));
        }
        let open = |w: &Work| OpenTensor {
            lost: vec![None; w.tiles().count()],
            source: w.is_reordered().then(|| TreeHash::new(w.entry.bytes())),
        };
        let tensors: Vec<OpenTensor> = works.iter().map(open).collect();
        Open { tree, tiles_left: tensors.iter().map(|t| t.lost.len()).sum(), tensors }
    }

    /// Notes that a tile was written, with the hashes of what was written and, where needed, read. Returns the record
    /// when it was the last.
    pub fn finish_tile(
        &self,
        tile: &Tile,
        written: Vec<Piece>,
        read: Vec<Piece>,
        lost: Option<TileError>,
    ) -> Result<Option<Done>, PackError> {
        let (Some(record), Some(slot)) = (self.plan.layout.records.get(tile.record), self.open.get(tile.record)) else {
            return Ok(None);
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let open = slot.get_or_insert_with(|| self.start(tile.record, record));
        written.into_iter().for_each(|p| open.tree.add(p));
        if let Some(tensor) = open.tensors.get_mut(tile.tensor - self.first_tensor(tile.record)) {
            if let Some(source) = &mut tensor.source {
                read.into_iter().for_each(|p| source.add(p));
            }
            if let Some(place) = tensor.lost.get_mut(tile.index) {
                *place = lost;
            }
        }
        open.tiles_left -= 1;
        if open.tiles_left > 0 {
            return Ok(None);
        }
        let open = slot.take();
        drop(slot);
        open.map(|o| o.done(tile.record)).transpose()
    }
}

impl Open {
    fn done(self, record: usize) -> Result<Done, PackError> {
        let unsealed = || PackError::Unsealed { record, what: "some of its bytes were not written".into() };
        let blake3 = self.tree.finish().ok_or_else(unsealed)?;
        let mut notes = Vec::new();
        for tensor in self.tensors {
            let source_blake3: Option<Hash> = match tensor.source {
                Some(tree) => Some(tree.finish().ok_or_else(unsealed)?),
                None => None,
            };
            // Sums in tile order, whatever order the tiles were done in.
            let mut sum = None;
            for lost in tensor.lost.into_iter().flatten() {
                sum.get_or_insert_with(Loss::default).add(lost.into());
            }
            notes.push(Measured { loss: sum, source_blake3 }.to_notes());
        }
        Ok(Done { record, blake3, notes: Value::Array(notes) })
    }
}

/// The hashes of a tile's planes, which lie at `starts` in a message of `total` bytes.
pub(crate) fn pieces(
    total: u64,
    starts: &[u64],
    layout: &Layout,
    rows: &Range<usize>,
    planes: &[PageBuffer],
) -> Vec<Piece> {
    let piece = |(plane, (start, bytes)): (usize, (&u64, &PageBuffer))| {
        Piece::new(total, start + layout.span(plane, rows).start, bytes)
    };
    starts.iter().zip(planes).enumerate().map(piece).collect()
}

/// Where planes start that follow one another without gaps.
pub(crate) fn contiguous(layout: &Layout) -> Vec<u64> {
    layout.planes.iter().scan(0, |at, p| Some(std::mem::replace(at, *at + p.bytes))).collect()
}
