//! Where the scales and codes of a row block go.

use super::{Scales, spans};
use crate::lanes::V;
use ashlar_formats::x16::{ROWS, Width};
use ashlar_formats::{FormatError, TwoLevel, parameters};
use ashlar_simd::Simd;

/// The planes of one row block within a tile's.
pub struct Planes<'a> {
    pub grid: &'a TwoLevel,
    pub k: usize,
    /// The row block's number in the tile.
    pub block: usize,
}

impl Planes<'_> {
    /// Writes codes and parameter of one group; lanes from `live` on stay zero bytes.
    #[inline(always)]
    pub fn group<S: Simd>(
        &self,
        s: S,
        group: usize,
        live: usize,
        (inner, which): (&V, &V),
        codes: &mut [[i32; ROWS]],
        out: &mut [&mut [u8]],
    ) {
        let grid = self.grid;
        if let Some(high) = grid.high {
            let mut above = [[0; ROWS]; super::MAX_GROUP];
            let mask = s.splat_i32((1 << grid.low.bits()) - 1);
            for (code, above) in codes.iter_mut().zip(&mut above) {
                let whole = s.load_i32(code);
                s.store_i32(s.and(whole, mask), code);
                s.store_i32(s.shr(whole, grid.low.bits() as u32), above);
            }
            self.codes(s, high, group, above.get(..grid.group).unwrap_or_default(), out.get_mut(1));
        }
        self.codes(s, grid.low, group, codes, out.first_mut());
        let parameters = std::array::from_fn(|lane| {
            if lane < live { grid.inner.parameter(inner[lane] as i32, usize::from(which[lane] > 0.5)) } else { 0 }
        });
        let bytes = parameters::block_bytes(grid.inner.bits());
        let at = (self.block * (self.k / grid.group) + group) * bytes;
        if let Some(block) = out.get_mut(self.scales()).and_then(|p| p.get_mut(at..at + bytes)) {
            parameters::write(grid.inner.bits(), &parameters, block);
        }
    }

    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, width: Width, group: usize, codes: &[[i32; ROWS]], plane: Option<&mut &mut [u8]>) {
        let bytes = self.grid.group * ROWS * width.bits() / 8;
        let at = (self.block * (self.k / self.grid.group) + group) * bytes;
        if let Some(panels) = plane.and_then(|p| p.get_mut(at..at + bytes)) {
            width.pack(s, codes, panels);
        }
    }

    /// Writes the outer scales; lanes from `live` on are zero.
    pub fn outer(&self, live: usize, outer: &[V], out: &mut [&mut [u8]]) {
        let Some(plane) = out.get_mut(self.scales() + 1) else { return };
        for (span, scales) in outer.iter().enumerate() {
            for (lane, &scale) in scales.iter().enumerate() {
                let index = (self.block * outer.len() + span) * ROWS + lane;
                self.grid.outer.store(if lane < live { scale } else { 0.0 }, plane, index);
            }
        }
    }

    /// Index of the plane of inner scales.
    fn scales(&self) -> usize {
        1 + usize::from(self.grid.high.is_some())
    }
}

/// Names the value that made an outer scale overflow, if one did.
pub fn too_large(
    id: &'static str,
    grid: &TwoLevel,
    scales: &Scales,
    rows: &[f32],
    k: usize,
    first_row: usize,
) -> Option<FormatError> {
    let lane_of = |outer: &V| outer.iter().position(|scale| !scale.is_finite());
    let (span, lane) = scales.outer.iter().enumerate().find_map(|(span, outer)| Some((span, lane_of(outer)?)))?;
    let groups = spans(grid, k / grid.group).nth(span)?;
    let start = groups.start * grid.group;
    let values = rows.get(lane * k + start..lane * k + groups.end * grid.group)?;
    let larger = |best: (usize, f32), (i, &v): (usize, &f32)| if v.abs() > best.1.abs() { (i, v) } else { best };
    let (at, value) = values.iter().enumerate().fold((0, 0.0), larger);
    let limit = grid.outer.max() * grid.reach() * grid.inner.bounds().0.unsigned_abs() as f32;
    Some(FormatError::TooLarge { id, row: first_row + lane, column: start + at, value, limit })
}
