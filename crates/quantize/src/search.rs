//! `search`: the scale that minimises Σ importance · (w − ŵ)² over candidates around the largest magnitude.

use crate::fit::{Fit, Group, Method, Rounder};
use crate::{Quantizer, Rtn, Stats, Target, Tile, TileError, check, groups};
use ashlar_formats::{FormatError, Grid, Groups, Spec};
use ashlar_simd::Isa;

/// Weighted search for group scales.
#[derive(Clone, Copy, Debug)]
pub struct Search;

impl Quantizer for Search {
    fn id(&self) -> &'static str {
        "search"
    }

    fn supports(&self, spec: &Spec) -> Result<(), FormatError> {
        match spec.grid()? {
            Grid::Groups(_) => Ok(()),
            _ => {
                let what = "method search chooses group scales, which this format has not; use method: rtn".into();
                Err(FormatError::Parameter { id: spec.id, what })
            }
        }
    }

    fn quantize(
        &self,
        target: Target<'_>,
        tile: Tile<'_>,
        stats: Stats<'_>,
        isa: Isa,
        out: &mut [&mut [u8]],
    ) -> Result<TileError, FormatError> {
        self.supports(target.spec)?;
        check(target, tile, stats, out)?;
        match target.spec.grid()? {
            Grid::Groups(grid) => groups::quantize(*self, &grid, target, tile, stats, isa, out),
            _ => Rtn.quantize(target, tile, stats, isa, out),
        }
    }
}

impl Method for Search {
    #[inline(always)]
    fn fit<G: Rounder>(self, grid: &Groups, rounder: G, group: &Group<'_>) -> Fit {
        Rtn.fit(grid, rounder, group)
    }
}
