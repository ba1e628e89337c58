//! Where the planes of a weight lie, and slices of them.

use crate::x16::{COLUMNS, ROWS};
use crate::{FormatError, Spec};
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

impl PlaneLayout {
    /// A plane of `rows` × `row_bytes`; `None` if that is more than an address can hold.
    pub(crate) fn new(kind: PlaneKind, rows: usize, row_bytes: Option<usize>, rows_per_tile: usize) -> Option<Self> {
        let row_bytes = row_bytes?;
        let bytes = rows.checked_mul(row_bytes)?;
        // The last tile may be shorter, so that the product may exceed the plane; it is only ever clipped to it.
        let tile_bytes = (rows_per_tile as u64).checked_mul(row_bytes as u64)?;
        isize::try_from(bytes).ok()?;
        Some(Self { kind, bytes: bytes as u64, tile_bytes })
    }
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
        let first = ((rows.start / self.row_block) as u64).saturating_mul(p.tile_bytes);
        let last = (rows.end.div_ceil(self.row_block) as u64).saturating_mul(p.tile_bytes);
        first.min(p.bytes)..last.min(p.bytes)
    }

    /// Payload bytes of all planes, without alignment padding.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.planes.iter().map(|p| p.bytes).sum()
    }

    /// Whether slices that start at `rows.start` and belong to an n-row weight cover `rows` in every plane.
    ///
    /// # Errors
    /// [`FormatError::Rows`] if the rows do not start at a tile border or end beyond n or planes are missing,
    /// [`FormatError::Short`] if a slice is shorter than its span.
    pub fn check(&self, id: &'static str, n: usize, rows: &Range<usize>, lengths: &[usize]) -> Result<(), FormatError> {
        let bad = |what: String| Err(FormatError::Rows { id, what });
        if !rows.start.is_multiple_of(self.row_block) || rows.start > rows.end || rows.end > n {
            let block = self.row_block;
            return bad(format!("rows {rows:?} of {n} are no range that starts at a multiple of {block}"));
        }
        if lengths.len() != self.planes.len() {
            return bad(format!("has {} planes, got {}", self.planes.len(), lengths.len()));
        }
        for (plane, &got) in lengths.iter().enumerate() {
            let span = self.span(plane, rows);
            let expected = usize::try_from(span.end - span.start).unwrap_or(usize::MAX);
            if got < expected {
                return Err(FormatError::Short { id, plane, got, expected });
            }
        }
        Ok(())
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

impl<'a> Planes<'a> {
    /// Plane `index`; empty where there is none.
    pub(crate) fn plane(&self, index: usize) -> &'a [u8] {
        self.data.get(index).copied().unwrap_or_default()
    }

    /// Whether `rows` can be decoded from these slices into `out` values.
    pub(crate) fn check(
        &self,
        spec: &Spec,
        layout: &Layout,
        rows: &Range<usize>,
        out: usize,
    ) -> Result<(), FormatError> {
        let lengths: Vec<usize> = self.data.iter().map(|d| d.len()).collect();
        layout.check(spec.id, self.n, &(self.first_row..rows.end), &lengths)?;
        let values = rows.len().checked_mul(self.k);
        if rows.start < self.first_row || rows.start > rows.end || values != Some(out) {
            let what = format!("rows {rows:?} × {} do not fit {out} values from row {}", self.k, self.first_row);
            return Err(FormatError::Rows { id: spec.id, what });
        }
        Ok(())
    }
}

/// Where codes and group parameters of a row lie within planes of either order. Rows count from the planes' first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub order: Order,
    pub k: usize,
    pub groups: usize,
}

impl Places {
    /// Index of the 32 columns number `panel` of `row`, in units of what holds them: a 16-row panel in x16.
    #[inline(always)]
    pub fn panel(&self, row: usize, panel: usize) -> usize {
        let panels = self.k / COLUMNS;
        match self.order {
            Order::Rows => row * panels + panel,
            Order::X16 => row / ROWS * panels + panel,
        }
    }

    /// Index of the scale (or zero point) of `group` of `row`.
    #[inline(always)]
    pub fn parameter(&self, row: usize, group: usize) -> usize {
        match self.order {
            Order::Rows => row * self.groups + group,
            Order::X16 => (row / ROWS * self.groups + group) * ROWS + row % ROWS,
        }
    }
}

/// `n` rounded up to whole row blocks of 16; in row order, `n`.
pub(crate) fn stored_rows(order: Order, n: usize) -> Option<usize> {
    match order {
        Order::Rows => Some(n),
        Order::X16 => n.checked_next_multiple_of(ROWS),
    }
}
