//! Integer dot products of codes and int8 activations.
//!
//!   for each 32 columns, in PARTS of as many as share a weight scale:
//!       d  = Σ (code − zero) · x      exact, i32, one lane per row
//!       y += f32(d) · (weight scale · activation scale)
//!
//! Levels that are no multiples of a unit are sums of integers, [`Integers::DIGITS`] of them: then this is done for each.
//!
//! The dot-product instruction wants unsigned weights, so it sees code + offset; the accumulator starts at
//! −offset · Σx, for which the inputs bring −Σx along. A group longer than 32 columns has several activation scales, so
//! its blocks are scaled one by one. What varies between formats is a type, so that the loop has no branches.

#![expect(clippy::needless_range_loop, reason = "an index names the same row, group or block in several arrays")]

use super::super::{COLUMNS, Job, PanelKernel, Scheme, Sink, drive};
use super::codes::{Integers, Panel, VECTORS};
use super::scales::Scaling;
use super::tile;
use crate::inputs::{Inputs, Int8Group, SLAB};
use ashlar_simd::Simd;
use std::ops::Range;

/// Bytes of codes between what is multiplied and what is asked for from memory. Measured: with half of it formats of 4 bits
/// and less wait, with twice as much first-level lines are gone again before their turn.
const AHEAD: usize = 8192;

/// The kernel.
pub struct Panels<'a, C, Z> {
    /// The code plane.
    pub low: &'a [u8],
    /// The plane of high codes; empty if there is none.
    pub high: &'a [u8],
    /// What codes mean.
    pub codes: C,
    /// Scales and zero points.
    pub scaling: Z,
    /// Rounded activations.
    pub inputs: Inputs<'a>,
}

impl<'a, C: Integers, Z: Scaling> Panels<'a, C, Z> {
    /// Few rows go over the codes as they lie; for many the codes are expanded first. The sums are the same, operation
    /// by operation.
    pub fn multiply(&self, job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) {
        match job.scheme {
            Scheme::Tiled => tile::drive(self, job, panels, sink),
            Scheme::Direct => drive(job.isa, self, job.rows, panels, sink),
        }
    }

    /// The cache lines of the codes of these blocks.
    pub fn lines(&self, panels: Range<usize>, blocks: Range<usize>, out: &mut Vec<&'a [u8; 64]>) {
        let all = self.inputs.k / COLUMNS;
        for panel in panels {
            let of =
                |per_block: usize| (panel * all + blocks.start) * per_block..(panel * all + blocks.end) * per_block;
            out.extend(&self.low.as_chunks::<64>().0[of(C::LOW)]);
            out.extend(&self.high.as_chunks::<64>().0[of(C::HIGH)]);
        }
    }

    /// The codes of block `block` (32 columns) of a panel.
    #[inline(always)]
    pub fn block(&self, panel: usize, block: usize) -> Panel<'_> {
        let at = panel * (self.inputs.k / COLUMNS) + block;
        Panel {
            low: &self.low.as_chunks::<64>().0[at * C::LOW..(at + 1) * C::LOW],
            high: &self.high.as_chunks::<64>().0[at * C::HIGH..(at + 1) * C::HIGH],
        }
    }
}

impl<C: Integers, Z: Scaling> PanelKernel for Panels<'_, C, Z> {
    const ROWS: [usize; 2] = if C::DIGITS == 1 { [8, 4] } else { [4, 2] };

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let low = &self.low.as_chunks::<64>().0[panel * blocks * C::LOW..][..blocks * C::LOW];
        let high = &self.high.as_chunks::<64>().0[panel * blocks * C::HIGH..][..blocks * C::HIGH];
        let tables = self.codes.tables(s);
        let mut acc = [s.splat(0.0); M];
        for slab in 0..blocks.div_ceil(SLAB) {
            let mut x: [&[Int8Group]; M] = [&[]; M];
            for (x, row) in x.iter_mut().zip(rows) {
                *x = self.inputs.int8(row, slab);
            }
            let width = SLAB.min(blocks - slab * SLAB);
            for x in &mut x {
                *x = &x[..width];
            }
            for i in 0..width {
                let block = slab * SLAB + i;
                let codes = Panel {
                    low: &low[block * C::LOW..(block + 1) * C::LOW],
                    high: &high[block * C::HIGH..(block + 1) * C::HIGH],
                };
                let mut groups = [&x[0][i]; M];
                for t in 1..M {
                    groups[t] = &x[t][i];
                }
                self.prefetch(s, panel * blocks + block + const { AHEAD / (64 * (C::LOW + C::HIGH)) });
                self.block_sums(s, tables, codes, [panel, block], groups, &mut acc);
            }
        }
        if C::DIGITS == 1 {
            for a in &mut acc {
                *a = s.mul(*a, s.splat(self.codes.unit()));
            }
        }
        acc
    }
}

impl<C: Integers, Z: Scaling> Panels<'_, C, Z> {
    /// Asks for the codes and scales of a block, counted from the first of the weight; beyond the last there are none.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, block: usize) {
        for (plane, lines) in [(self.low, C::LOW), (self.high, C::HIGH)] {
            for line in plane.as_chunks::<64>().0.get(block * lines..(block + 1) * lines).unwrap_or_default() {
                s.prefetch(line);
            }
        }
        self.scaling.prefetch(s, block);
    }

    /// Adds the products of one block of 32 columns.
    #[inline(always)]
    fn block_sums<S: Simd, const M: usize>(
        &self,
        s: S,
        tables: C::Tables<S>,
        codes: Panel<'_>,
        [panel, block]: [usize; 2],
        x: [&Int8Group; M],
        acc: &mut [S::F32; M],
    ) {
        for part in 0..Z::PARTS {
            let (scale, zero) = self.scaling.at(s, panel, block, part);
            let mut starts = [s.splat_i32(0); M];
            if C::offset::<S>() != 0 {
                for t in 0..M {
                    let minus = s.splat_i32(x[t].minus(Z::PARTS, part));
                    starts[t] = s.shl(minus, C::offset::<S>().trailing_zeros());
                }
            }
            for digit in 0..C::DIGITS {
                let dots = Self::dots(s, tables, codes, (part, digit), x, starts);
                for t in 0..M {
                    let mut d = s.to_f32(dots[t]);
                    if Z::ZEROS {
                        // Exact: both products are integers below 2^24.
                        d = s.fma(zero, s.to_f32(s.splat_i32(x[t].minus(Z::PARTS, part))), d);
                    }
                    let factor = if C::DIGITS == 1 { x[t].scale } else { x[t].scale * self.codes.units()[digit] };
                    acc[t] = s.fma(d, s.mul(scale, s.splat(factor)), acc[t]);
                }
            }
        }
    }

    /// starts[t] + Σ of one digit of a part's weights · x[t], exactly.
    #[inline(always)]
    fn dots<S: Simd, const M: usize>(
        s: S,
        tables: C::Tables<S>,
        codes: Panel<'_>,
        (part, digit): (usize, usize),
        x: [&Int8Group; M],
        starts: [S::I32; M],
    ) -> [S::I32; M] {
        // A row alone is summed in two chains: one would wait for itself. Integer sums do not mind.
        let chains = if M == 1 && C::DIGITS == 1 { 2 } else { 1 };
        let (mut dots, mut odd) = (starts, [s.splat_i32(0); M]);
        for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
            let w = C::digit(s, tables, codes, v, digit);
            let chain = if v % chains == 0 { &mut dots } else { &mut odd };
            for t in 0..M {
                chain[t] = C::dot(s, chain[t], w, x[t].words[v]);
            }
        }
        if chains == 2 {
            for t in 0..M {
                dots[t] = s.add_i32(dots[t], odd[t]);
            }
        }
        dots
    }
}
