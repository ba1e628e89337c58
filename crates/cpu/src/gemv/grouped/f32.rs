//! Codes turned into f32 in registers and multiplied with f32 activations.
//!
//!   for each 32 columns:  p = Σ level · x         in two interleaved chains
//!                         y += p · weight scale

use super::super::{COLUMNS, PanelKernel};
use crate::inputs::{Form, Inputs};
use ashlar_simd::Simd;

/// What codes mean as floats.
pub trait Values: Copy {
    /// Codes in a 32-bit lane: 4 of 8 bits or 8 of 4.
    const PER_LANE: usize;
    /// A constant of the inner loop.
    fn prepare<S: Simd>(&self, s: S) -> S::F32;
    /// The levels of column j (0..PER_LANE) of the lanes.
    fn value<S: Simd>(s: S, prepared: S::F32, lanes: S::I32, j: usize) -> S::F32;
}

/// The scale, and perhaps zero point, of the 16 rows of a panel for 32 columns.
pub trait Scaling: Copy {
    /// Whether levels are reduced by zero points.
    const ZEROS: bool;
    /// Scales of block `block` (32 columns) of a panel.
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F32;
    /// Zero points of it.
    fn zero<S: Simd>(&self, s: S, panel: usize, block: usize) -> S::F32;
}

/// Signed bytes.
#[derive(Clone, Copy)]
pub struct ByteValues;

impl Values for ByteValues {
    const PER_LANE: usize = 4;
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::F32 {
        s.splat(0.0)
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, _: S::F32, lanes: S::I32, j: usize) -> S::F32 {
        s.to_f32(s.sar(s.shl(lanes, 24 - 8 * j as u32), 24))
    }
}

/// Where the 4-bit code of column j begins in its lane: byte j mod 4, low nibble first.
#[inline(always)]
fn nibble_shift(j: usize) -> u32 {
    (8 * (j % 4) + 4 * (j / 4)) as u32
}

/// Unsigned 4-bit codes, less a constant.
#[derive(Clone, Copy)]
pub struct NibbleValues {
    /// The code that means zero.
    pub zero: f32,
}

impl Values for NibbleValues {
    const PER_LANE: usize = 8;
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::F32 {
        s.splat(self.zero)
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, zero: S::F32, lanes: S::I32, j: usize) -> S::F32 {
        s.sub(s.to_f32(s.and(s.shr(lanes, nibble_shift(j)), s.splat_i32(15))), zero)
    }
}

/// 4-bit indices into a table.
#[derive(Clone, Copy)]
pub struct TableValues {
    /// The level of every code.
    pub levels: [f32; 16],
}

impl Values for TableValues {
    const PER_LANE: usize = 8;
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S) -> S::F32 {
        s.load(&self.levels)
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, levels: S::F32, lanes: S::I32, j: usize) -> S::F32 {
        s.pick(levels, s.shr(lanes, nibble_shift(j)))
    }
}

/// The kernel.
pub struct Panels<'a, V, Z> {
    /// The code plane.
    pub codes: &'a [u8],
    /// What codes mean.
    pub values: V,
    /// Scales and zero points.
    pub scaling: Z,
    /// Activations.
    pub inputs: Inputs<'a>,
    /// Which form of them.
    pub form: Form,
}

impl<V: Values, Z: Scaling> PanelKernel for Panels<'_, V, Z> {
    #[inline(always)]
    fn rows<S: Simd>() -> usize {
        S::ROWS / 2
    }

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let stored = COLUMNS / V::PER_LANE;
        let codes = &self.codes.as_chunks::<64>().0[panel * blocks * stored..][..blocks * stored];
        let mut x: [&[[f32; COLUMNS]]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = &self.inputs.values(row, self.form).as_chunks().0[..blocks];
        }
        let (prepared, scaling) = (self.values.prepare(s), self.scaling);
        let mut acc = [s.splat(0.0); M];
        for (block, codes) in codes.chunks_exact(stored).enumerate() {
            let zero = if Z::ZEROS { scaling.zero(s, panel, block) } else { s.splat(0.0) };
            let mut parts = [[s.splat(0.0); 2]; M];
            for v in 0..stored {
                let lanes = s.lanes(s.bytes(&codes[v]));
                for j in 0..V::PER_LANE {
                    let mut w = V::value(s, prepared, lanes, j);
                    if Z::ZEROS {
                        w = s.sub(w, zero);
                    }
                    for t in 0..M {
                        let x = s.splat(x[t][block][v * V::PER_LANE + j]);
                        parts[t][j % 2] = s.fma(w, x, parts[t][j % 2]);
                    }
                }
            }
            let scale = scaling.scale(s, panel, block);
            for t in 0..M {
                acc[t] = s.fma(s.add(parts[t][0], parts[t][1]), scale, acc[t]);
            }
        }
        acc
    }
}
