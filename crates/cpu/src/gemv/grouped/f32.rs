//! Codes turned into f32 in registers and multiplied with f32 activations.
//!
//!   for each 32 columns, in as many parts as there are weight scales:
//!       p  = Σ level · x              in two interleaved chains
//!       y += p · weight scale

use super::super::{COLUMNS, PANEL, PanelKernel};
use super::codes::{Integers, Panel, VECTORS};
use super::scales::Scaling;
use crate::inputs::{Form, Inputs};
use ashlar_simd::{Kernel, Simd};

/// What codes mean as floats.
pub trait Values: Copy {
    /// 64-byte vectors of a panel in the code plane.
    const LOW: usize;
    /// The same in the plane of high codes.
    const HIGH: usize = 0;
    /// Constants of the inner loop.
    type Tables<S: Simd>: Copy;
    /// The constants.
    fn tables<S: Simd>(&self, s: S) -> Self::Tables<S>;
    /// The levels of column 4v + b of a panel, one lane per row.
    fn value<S: Simd>(s: S, tables: Self::Tables<S>, panel: Panel<'_>, v: usize, b: usize) -> S::F32;
}

/// Any codes that are integers.
#[derive(Clone, Copy)]
pub struct IntegerValues<C>(pub C);

impl<C: Integers> Values for IntegerValues<C> {
    const LOW: usize = C::LOW;
    const HIGH: usize = C::HIGH;
    type Tables<S: Simd> = (C::Tables<S>, S::F32);
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> Self::Tables<S> {
        (self.0.tables(s), s.splat(self.0.unit()))
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, (tables, unit): Self::Tables<S>, panel: Panel<'_>, v: usize, b: usize) -> S::F32 {
        let (lanes, offset) = (s.lanes(C::weights(s, tables, panel, v)), C::offset::<S>());
        let b = 8 * b as u32;
        if offset == 0 {
            return s.mul(s.to_f32(s.sar(s.shl(lanes, 24 - b), 24)), unit);
        }
        let shifted = s.to_f32(s.and(s.shr(lanes, b), s.splat_i32(255)));
        s.mul(s.sub(shifted, s.splat(offset as f32)), unit)
    }
}

/// 4-bit indices into a table of floats.
#[derive(Clone, Copy)]
pub struct TableValues {
    /// The level of every code.
    pub levels: [f32; 16],
}

impl Values for TableValues {
    const LOW: usize = 4;
    type Tables<S: Simd> = S::F32;
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> S::F32 {
        s.load(&self.levels)
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, levels: S::F32, panel: Panel<'_>, v: usize, b: usize) -> S::F32 {
        // Column 4v + b: byte b of the lane, its low nibble first.
        s.pick(levels, s.shr(s.lanes(s.bytes(&panel.low[v / 2])), (8 * b + 4 * (v % 2)) as u32))
    }
}

/// The kernel.
pub struct Panels<'a, V, Z> {
    /// The code plane.
    pub low: &'a [u8],
    /// The plane of high codes; empty if there is none.
    pub high: &'a [u8],
    /// What codes mean.
    pub values: V,
    /// Scales and zero points.
    pub scaling: Z,
    /// Activations.
    pub inputs: Inputs<'a>,
    /// Which form of them.
    pub form: Form,
}

/// Codes turned into f32 in registers and written down: `out` has a row of lanes per column of the panel.
pub struct Expanded<'a, V, Z> {
    /// The code plane.
    pub low: &'a [u8],
    /// The plane of high codes; empty if there is none.
    pub high: &'a [u8],
    /// What codes mean.
    pub values: V,
    /// Scales and zero points.
    pub scaling: Z,
    /// Which panel.
    pub panel: usize,
    /// Columns × lanes.
    pub out: &'a mut [[f32; PANEL]],
}

impl<V: Values, Z: Scaling> Kernel for Expanded<'_, V, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.out.len() / COLUMNS;
        let low = &self.low.as_chunks::<64>().0[self.panel * blocks * V::LOW..][..blocks * V::LOW];
        let high = &self.high.as_chunks::<64>().0[self.panel * blocks * V::HIGH..][..blocks * V::HIGH];
        let tables = self.values.tables(s);
        for (block, out) in self.out.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
            let codes = Panel {
                low: &low[block * V::LOW..(block + 1) * V::LOW],
                high: &high[block * V::HIGH..(block + 1) * V::HIGH],
            };
            for part in 0..Z::PARTS {
                let (scale, zero) = self.scaling.at(s, self.panel, block, part);
                for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
                    for b in 0..4 {
                        let mut w = V::value(s, tables, codes, v, b);
                        if Z::ZEROS {
                            w = s.sub(w, zero);
                        }
                        s.store(s.mul(w, scale), &mut out[4 * v + b]);
                    }
                }
            }
        }
    }
}

impl<V: Values, Z: Scaling> PanelKernel for Panels<'_, V, Z> {
    // Two chains and a sum per row. More rows share the work of turning codes into floats.
    const ROWS: [usize; 2] = [8, 2];

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let low = &self.low.as_chunks::<64>().0[panel * blocks * V::LOW..][..blocks * V::LOW];
        let high = &self.high.as_chunks::<64>().0[panel * blocks * V::HIGH..][..blocks * V::HIGH];
        let mut x: [&[[f32; COLUMNS]]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = &self.inputs.values(row, self.form).as_chunks().0[..blocks];
        }
        let tables = self.values.tables(s);
        let mut acc = [s.splat(0.0); M];
        for block in 0..blocks {
            let codes = Panel {
                low: &low[block * V::LOW..(block + 1) * V::LOW],
                high: &high[block * V::HIGH..(block + 1) * V::HIGH],
            };
            for part in 0..Z::PARTS {
                let (scale, zero) = self.scaling.at(s, panel, block, part);
                let mut chains = [[s.splat(0.0); 2]; M];
                for v in part * VECTORS / Z::PARTS..(part + 1) * VECTORS / Z::PARTS {
                    for b in 0..4 {
                        let mut w = V::value(s, tables, codes, v, b);
                        if Z::ZEROS {
                            w = s.sub(w, zero);
                        }
                        for t in 0..M {
                            let x = s.splat(x[t][block][4 * v + b]);
                            chains[t][b % 2] = s.fma(w, x, chains[t][b % 2]);
                        }
                    }
                }
                for t in 0..M {
                    acc[t] = s.fma(s.add(chains[t][0], chains[t][1]), scale, acc[t]);
                }
            }
        }
        acc
    }
}
