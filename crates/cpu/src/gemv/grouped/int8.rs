//! Integer dot products of codes and int8 activations.
//!
//!   for each 32 columns, in PARTS of as many as share a weight scale:
//!       d  = Σ (code − zero) · x      exact, i32, one lane per row
//!       t += f32(d) · weight scale
//!   y += t · activation scale
//!
//! The dot-product instruction wants unsigned weights, so it sees code + offset; the accumulator starts at
//! −offset · Σx, for which the inputs bring −Σx along. A group longer than 32 columns has several activation scales, so
//! its blocks are scaled one by one. What varies between formats is a type, so that the loop has no branches.

use super::super::{COLUMNS, PanelKernel};
use super::codes::{Integers, Panel, VECTORS};
use super::scales::Scaling;
use crate::inputs::{Inputs, Int8Group};
use ashlar_simd::Simd;

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

impl<C: Integers, Z: Scaling> PanelKernel for Panels<'_, C, Z> {
    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        S::ROWS
    }

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let low = &self.low.as_chunks::<64>().0[panel * blocks * C::LOW..][..blocks * C::LOW];
        let high = &self.high.as_chunks::<64>().0[panel * blocks * C::HIGH..][..blocks * C::HIGH];
        let mut x: [&[Int8Group]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = &self.inputs.int8(row)[..blocks];
        }
        let tables = self.codes.tables(s);
        let mut acc = [s.splat(0.0); M];
        for block in 0..blocks {
            let codes = Panel {
                low: &low[block * C::LOW..(block + 1) * C::LOW],
                high: &high[block * C::HIGH..(block + 1) * C::HIGH],
            };
            let mut sums = [s.splat(0.0); M];
            for part in 0..Z::PARTS {
                // A row alone is summed in two chains: one would wait for itself. Integer sums do not mind.
                let chains = if M == 1 { 2 } else { 1 };
                let (mut dots, mut odd) = ([s.splat_i32(0); M], [s.splat_i32(0); M]);
                if C::offset::<S>() != 0 {
                    for t in 0..M {
                        let minus = s.splat_i32(x[t][block].minus(Z::PARTS, part));
                        dots[t] = s.shl(minus, C::offset::<S>().trailing_zeros());
                    }
                }
                for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
                    let w = C::weights(s, tables, codes, v);
                    let chain = if v % chains == 0 { &mut dots } else { &mut odd };
                    for t in 0..M {
                        chain[t] = C::dot(s, chain[t], w, x[t][block].words[v]);
                    }
                }
                let (scale, zero) = self.scaling.at(s, panel, block, part);
                for t in 0..M {
                    let mut d = s.to_f32(if chains == 2 { s.add_i32(dots[t], odd[t]) } else { dots[t] });
                    if Z::ZEROS {
                        // Exact: both products are integers below 2^24.
                        d = s.fma(zero, s.to_f32(s.splat_i32(x[t][block].minus(Z::PARTS, part))), d);
                    }
                    sums[t] = if part == 0 { s.mul(d, scale) } else { s.fma(d, scale, sums[t]) };
                }
            }
            for t in 0..M {
                acc[t] = s.fma(sums[t], s.splat(x[t][block].scale), acc[t]);
            }
        }
        for a in &mut acc {
            *a = s.mul(*a, s.splat(self.codes.unit()));
        }
        acc
    }
}
