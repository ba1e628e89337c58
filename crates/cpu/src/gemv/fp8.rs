//! fp8: E4M3 codes in x16 order, one scale per 128 × 128 block.
//!
//! The bits of a code, moved to where f32 keeps sign, exponent and mantissa, are the value times 2^-120, subnormals
//! included; one multiplication makes them right. Codes 0x7f and 0xff (NaN) would read as ±480: `convert` and `verify`
//! refuse them, so a pack holds none, and checkpoints in row order are decoded by `formats`, which refuses them too.

use super::grouped::codes::{Panel, VECTORS};
use super::grouped::f32::{Expanded, Panels, Values};
use super::grouped::scales::Scaling;
use super::{COLUMNS, Job, PANEL, PanelKernel, Sink, drive};
use crate::inputs::{Bf16Chunk, Inputs};
use crate::loaded::Loaded;
use ashlar_backend::BackendError;
use ashlar_formats::fp8::BLOCK;
use ashlar_formats::{Grid, ScaleType};
use ashlar_simd::{Isa, Simd};
use std::ops::Range;

/// The kernel.
pub fn multiply(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Ok(Grid::Blocks(kind)) = job.weight.weight.spec.grid() else { return Ok(()) };
    let k = job.weight.weight.k;
    let scaling = BlockScales { bytes: job.weight.plane(1), kind, columns: k.div_ceil(BLOCK) };
    let (low, high) = (job.weight.plane(0), &[]);
    let kernel = Panels { low, high, values: E4m3, scaling, inputs: job.inputs, form: job.form };
    drive(job.isa, &kernel, job.rows, panels, sink);
    Ok(())
}

/// The values of a panel, written down.
pub fn expand(weight: &Loaded, isa: Isa, panel: usize, out: &mut [[f32; PANEL]]) {
    let Ok(Grid::Blocks(kind)) = weight.weight.spec.grid() else { return };
    let scaling = BlockScales { bytes: weight.plane(1), kind, columns: out.len().div_ceil(BLOCK) };
    isa.run(Expanded { low: weight.plane(0), high: &[], values: E4m3, scaling, panel, out });
}

/// The kernel for inputs rounded to bf16, in which every E4M3 value is exact.
pub fn rounded(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let Ok(Grid::Blocks(kind)) = job.weight.weight.spec.grid() else { return Ok(()) };
    let scaling = BlockScales { bytes: job.weight.plane(1), kind, columns: job.inputs.k.div_ceil(BLOCK) };
    let kernel = Pairs { codes: job.weight.plane(0).as_chunks().0, scaling, inputs: job.inputs };
    drive(job.isa, &kernel, job.rows, panels, sink);
    Ok(())
}

struct Pairs<'a> {
    /// `[panel][block of 32 columns][4 columns]`, 16 rows × 4 codes each
    codes: &'a [[u8; 64]],
    scaling: BlockScales<'a>,
    inputs: Inputs<'a>,
}

/// Vectors of codes between what is multiplied and what is asked for from memory: 8 KiB, as for other formats.
const AHEAD: usize = 128;

impl PanelKernel for Pairs<'_> {
    // Two sums per row, which the rows share the work of turning codes into bf16 for.
    const ROWS: [usize; 2] = [8, 2];
    const BF16: bool = true;

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let blocks = self.inputs.k / COLUMNS;
        let start = panel * blocks * VECTORS;
        let mut x: [&[Bf16Chunk]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = &self.inputs.bf16(row)[..blocks];
        }
        let mut total = [s.splat(0.0); M];
        for first in (0..blocks).step_by(BLOCK / COLUMNS) {
            let mut acc = [[s.splat(0.0); 2]; M];
            for block in first..(first + BLOCK / COLUMNS).min(blocks) {
                let at = start + block * VECTORS;
                for (v, codes) in self.codes[at..at + VECTORS].iter().enumerate() {
                    if let Some(line) = self.codes.get(at + v + AHEAD) {
                        s.prefetch(line);
                    }
                    let codes = s.bytes(codes);
                    for t in 0..M {
                        let x = x[t][block].0.as_chunks::<4>().0;
                        let x = [i32::from_le_bytes(x[2 * v]), i32::from_le_bytes(x[2 * v + 1])];
                        acc[t] = s.dot_e4m3(acc[t], codes, x);
                    }
                }
            }
            let (scale, _) = self.scaling.at(s, panel, first, 0);
            for t in 0..M {
                total[t] = s.fma(s.sum_e4m3(acc[t]), scale, total[t]);
            }
        }
        total
    }
}

#[derive(Clone, Copy)]
struct E4m3;

impl Values for E4m3 {
    const LOW: usize = 8;
    type Tables<S: Simd> = S::F32;
    #[inline(always)]
    fn tables<S: Simd>(&self, s: S) -> S::F32 {
        s.splat(f32::from_bits((127 + 120) << 23))
    }
    #[inline(always)]
    fn value<S: Simd>(s: S, unit: S::F32, panel: Panel<'_>, v: usize, b: usize) -> S::F32 {
        let lanes = s.lanes(s.bytes(&panel.low[v]));
        // The code to the top byte, then down by 4: the sign stays at the top (copies of it below are masked off),
        // 4 exponent bits end at bit 23, 3 mantissa bits follow.
        let bits = s.and(s.sar(s.shl(lanes, 24 - 8 * b as u32), 4), s.splat_i32(0x87f0_0000_u32.cast_signed()));
        s.mul(s.as_f32(bits), unit)
    }
}

#[derive(Clone, Copy)]
struct BlockScales<'a> {
    bytes: &'a [u8],
    kind: ScaleType,
    /// Blocks along k.
    columns: usize,
}

impl Scaling for BlockScales<'_> {
    const ZEROS: bool = false;
    #[inline(always)]
    fn at<S: Simd>(&self, s: S, panel: usize, block: usize, _: usize) -> (S::F32, S::F32) {
        let at = panel * PANEL / BLOCK * self.columns + block * COLUMNS / BLOCK;
        (s.splat(self.kind.load(self.bytes, at).unwrap_or(f32::NAN)), s.splat(0.0))
    }
}
