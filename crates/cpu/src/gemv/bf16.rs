//! bf16 weights, row-major, and inputs rounded to bf16: the dot product of a weight row and an activation row, 32 columns at
//! a time, in lanes of two.

use super::{Job, PANEL, PanelKernel, Sink, drive};
use crate::inputs::{BF16_CHUNK, Bf16Chunk, Inputs};
use ashlar_backend::BackendError;
use ashlar_simd::Simd;
use std::ops::Range;

/// Weight rows that share the loads of M activation rows: 16 sums at once.
const fn together(m: usize) -> usize {
    if m >= 8 { 2 } else { 4 }
}
/// Rows of activations up to which weights are bound to come from memory: they are read whole rows at a time.
const FEW: usize = 2;
/// Chunks of a block: with 8 rows of activations, 16 KiB of those and 32 of weights. The more rows, the more often a weight is
/// used between its ways from the second-level cache.
const BLOCK: usize = 32;

/// The kernel of bf16 weights.
pub fn multiply(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let weight = &job.weight.weight;
    let kernel = Panels { data: job.weight.plane(0), n: weight.n, inputs: job.inputs };
    drive(job.isa, &kernel, job.rows, panels, sink);
    Ok(())
}

struct Panels<'a> {
    /// n × k
    data: &'a [u8],
    n: usize,
    inputs: Inputs<'a>,
}

impl PanelKernel for Panels<'_> {
    const ROWS: [usize; 2] = [8, 2];
    const BF16: bool = true;

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let mut x: [&[Bf16Chunk]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = self.inputs.bf16(row);
        }
        // As for other floats: in blocks that stay in the first-level cache; sums go on where they were.
        let mut sums = [[s.splat(0.0); PANEL]; M];
        let chunks = self.inputs.k.div_ceil(BF16_CHUNK);
        let block = if M > FEW { BLOCK } else { chunks.max(1) };
        for start in (0..chunks).step_by(block) {
            let chunks = start..(start + block).min(chunks);
            for first in (0..PANEL).step_by(const { together(M) }) {
                let at = [panel * PANEL, first];
                if panel * PANEL + first >= self.n {
                    break;
                }
                if const { together(M) == 2 } {
                    self.some::<S, M, 2>(s, at, x, chunks.clone(), &mut sums);
                } else {
                    self.some::<S, M, 4>(s, at, x, chunks.clone(), &mut sums);
                }
            }
        }
        let mut y = [s.splat(0.0); M];
        for (y, sums) in y.iter_mut().zip(sums) {
            let mut out = [0.0; PANEL];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = s.sum(sum);
            }
            *y = s.load(&out);
        }
        y
    }
}

impl Panels<'_> {
    /// Adds the products of Q weight rows with M activation rows over some chunks; rows beyond n repeat the last.
    #[inline(always)]
    fn some<S: Simd, const M: usize, const Q: usize>(
        &self,
        s: S,
        [row, first]: [usize; 2],
        x: [&[Bf16Chunk]; M],
        chunks: Range<usize>,
        sums: &mut [[S::F32; PANEL]; M],
    ) {
        let k = self.inputs.k;
        let mut w: [&[u8]; Q] = [&[]; Q];
        for (i, w) in w.iter_mut().enumerate() {
            let row = (row + first + i).min(self.n - 1);
            *w = &self.data[2 * row * k..2 * (row + 1) * k];
        }
        let mut acc = [[s.splat(0.0); Q]; M];
        for t in 0..M {
            for i in 0..Q {
                acc[t][i] = sums[t][first + i];
            }
        }
        let whole = chunks.start..chunks.end.min(k / BF16_CHUNK);
        for c in whole.clone() {
            // One line of each of the next rows.
            if M <= FEW {
                for i in 0..Q {
                    let next = (row + first + i + Q) * k + c * BF16_CHUNK;
                    if let Some(byte) = self.data.get(2 * next) {
                        s.prefetch(byte);
                    }
                }
            }
            let mut values = [s.bytes(&[0; 64]); Q];
            for (v, w) in values.iter_mut().zip(w) {
                let Some(w) = w[2 * c * BF16_CHUNK..].first_chunk() else { continue };
                *v = s.bytes(w);
            }
            for t in 0..M {
                let x = s.bytes(&x[t][c].0);
                for i in 0..Q {
                    acc[t][i] = s.dot_bf16(acc[t][i], values[i], x);
                }
            }
        }
        for c in whole.end.max(chunks.start)..chunks.end {
            for i in 0..Q {
                let mut bytes = [0; 64];
                let tail = &w[i][2 * c * BF16_CHUNK..];
                bytes[..tail.len()].copy_from_slice(tail);
                for t in 0..M {
                    acc[t][i] = s.dot_bf16(acc[t][i], s.bytes(&bytes), s.bytes(&x[t][c].0));
                }
            }
        }
        for t in 0..M {
            for i in 0..Q {
                sums[t][first + i] = acc[t][i];
            }
        }
    }
}
