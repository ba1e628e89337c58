//! Where the planes of a weight lie, and slices of them.

use ashlar_tensor::{Order, PlaneKind};
use std::ops::Range;

/// One plane of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneLayout {
    /// What the bytes are.
    pub kind: PlaneKind,
    /// Bytes of the whole plane.
    pub bytes: u64,
    /// Bytes per tile of `row_block` rows; the last tile may be shorter.
    pub tile_bytes: u64,
}

/// The planes of an n × k weight in one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows per tile.
    pub row_block: usize,
    /// The planes, in storage order. In a pack each starts at a multiple of 64 bytes.
    pub planes: Vec<PlaneLayout>,
}

impl Layout {
    /// The bytes of `plane` that hold the tiles of `rows`, clipped to the plane. `rows.start` must be a multiple of
    /// `row_block`.
    #[must_use]
    pub fn span(&self, plane: usize, rows: &Range<usize>) -> Range<u64> {
        let Some(p) = self.planes.get(plane) else { return 0..0 };
        let first = (rows.start / self.row_block) as u64 * p.tile_bytes;
        let last = rows.end.div_ceil(self.row_block) as u64 * p.tile_bytes;
        first.min(p.bytes)..last.min(p.bytes)
    }

    /// Payload bytes of all planes, without alignment padding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.planes.iter().map(|p| p.bytes).sum()
    }
}

/// Slices of a weight's planes, starting at a tile border.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    /// Order of the bytes.
    pub order: Order,
    /// Outputs of the whole weight.
    pub n: usize,
    /// Inputs of the whole weight.
    pub k: usize,
    /// The row the slices start at; a multiple of `row_block`. 0 when the slices are whole planes.
    pub first_row: usize,
    /// One slice per plane of the layout.
    pub data: &'a [&'a [u8]],
}
