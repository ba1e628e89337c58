//! f32, f16 and bf16 weights, row-major: the dot product of a weight row and an activation row, 16 columns at a time.

use super::{Job, PANEL, PanelKernel, RowSet, Sink, drive};
use crate::inputs::{Form, Inputs};
use crate::math::load_part;
use ashlar_backend::BackendError;
use ashlar_formats::Grid;
use ashlar_simd::{Isa, Simd};
use ashlar_tensor::Dtype;
use std::ops::Range;

/// Weight rows that share the loads of an activation row.
const QUAD: usize = 4;
/// Rows of activations up to which weights are bound to come from memory: they are read whole rows at a time.
const FEW: usize = 2;
/// Columns of a block, a multiple of 16: with 4 rows of activations, at most 32 KiB of weights and 8 of those.
const BLOCK: usize = 512;

/// The kernel of float weights.
pub fn multiply(job: &Job<'_>, panels: Range<usize>, sink: Sink<'_>) -> Result<(), BackendError> {
    let weight = &job.weight.weight;
    let Ok(Grid::Float(dtype)) = weight.spec.grid() else { return Ok(()) };
    let matrix = Matrix { data: job.weight.plane(0), n: weight.n, k: weight.k };
    let inputs = (job.inputs, job.form);
    match dtype {
        Dtype::F16 => drive(job.isa, &Panels { matrix, inputs, element: Half }, job.rows, panels, sink),
        Dtype::BF16 => drive(job.isa, &Panels { matrix, inputs, element: Brain }, job.rows, panels, sink),
        _ => drive(job.isa, &Panels { matrix, inputs, element: Single }, job.rows, panels, sink),
    }
    Ok(())
}

/// One panel of decoded rows: `rows_f32` holds `n` ≤ 16 rows of k values.
pub fn multiply_decoded(isa: Isa, rows_f32: &[f32], inputs: (Inputs<'_>, Form), rows: RowSet<'_>, sink: Sink<'_>) {
    let k = inputs.0.k;
    let matrix = Matrix { data: bytemuck::cast_slice(rows_f32), n: rows_f32.len() / k.max(1), k };
    drive(isa, &Panels { matrix, inputs, element: Single }, rows, 0..1, sink);
}

#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [u8],
    n: usize,
    k: usize,
}

struct Panels<'a, E> {
    matrix: Matrix<'a>,
    inputs: (Inputs<'a>, Form),
    element: E,
}

/// How a float is stored, little-endian.
trait Element: Copy {
    const SIZE: usize;
    /// 16 values from 16 · SIZE bytes.
    fn load<S: Simd>(self, s: S, bytes: &[u8]) -> S::F32;
}

#[derive(Clone, Copy)]
struct Single;
#[derive(Clone, Copy)]
struct Half;
#[derive(Clone, Copy)]
struct Brain;

impl Element for Single {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        s.as_f32(s.lanes(s.bytes(bytes)))
    }
}

impl Element for Half {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        s.load_f16(bytes)
    }
}

impl Element for Brain {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(self, s: S, bytes: &[u8]) -> S::F32 {
        let Some(bytes) = bytes.first_chunk() else { return s.splat(0.0) };
        s.load_bf16(bytes)
    }
}

impl<E: Element> PanelKernel for Panels<'_, E> {
    const ROWS: [usize; 2] = [4, 2];

    #[inline(always)]
    fn panel<S: Simd, const M: usize>(&self, s: S, panel: usize, rows: [usize; M]) -> [S::F32; M] {
        let mut out = [[0.0f32; PANEL]; M];
        let mut x: [&[f32]; M] = [&[]; M];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = self.inputs.0.values(row, self.inputs.1);
        }
        // Columns in blocks, so that the rows of both sides stay in the first-level cache. Sums go on where they were.
        let mut sums = [[s.splat(0.0); PANEL]; M];
        let block = if M > FEW { BLOCK } else { self.matrix.k.max(1) };
        for start in (0..self.matrix.k).step_by(block) {
            let columns = start..(start + block).min(self.matrix.k);
            for first in (0..PANEL).step_by(QUAD) {
                if panel * PANEL + first < self.matrix.n {
                    self.quad(s, [panel * PANEL, first], x, columns.clone(), &mut sums);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = s.sum(sum);
            }
        }
        let mut y = [s.splat(0.0); M];
        for (y, out) in y.iter_mut().zip(&out) {
            *y = s.load(out);
        }
        y
    }
}

impl<E: Element> Panels<'_, E> {
    /// Adds the products of four weight rows with M activation rows over some columns; rows beyond n repeat the last.
    #[inline(always)]
    fn quad<S: Simd, const M: usize>(
        &self,
        s: S,
        [row, first]: [usize; 2],
        x: [&[f32]; M],
        columns: Range<usize>,
        sums: &mut [[S::F32; PANEL]; M],
    ) {
        let Matrix { data, n, k } = self.matrix;
        let mut w: [&[u8]; QUAD] = [&[]; QUAD];
        for (i, w) in w.iter_mut().enumerate() {
            let row = (row + first + i).min(n - 1) * k;
            *w = &data[(row + columns.start) * E::SIZE..(row + columns.end) * E::SIZE];
        }
        let mut acc = [[s.splat(0.0); QUAD]; M];
        for t in 0..M {
            for i in 0..QUAD {
                acc[t][i] = sums[t][first + i];
            }
        }
        let (whole, rest) = (columns.len() / 16, columns.len() % 16);
        for c in 0..whole {
            // One line of each of the next four rows.
            if M <= FEW && c * 16 * E::SIZE % 64 == 0 {
                for i in 0..QUAD {
                    let next = (row + first + i + QUAD) * k + columns.start + c * 16;
                    if let Some(byte) = data.get(next * E::SIZE) {
                        s.prefetch(byte);
                    }
                }
            }
            let mut values = [s.splat(0.0); QUAD];
            for (v, w) in values.iter_mut().zip(w) {
                *v = self.element.load(s, &w[c * 16 * E::SIZE..(c + 1) * 16 * E::SIZE]);
            }
            for (acc, x) in acc.iter_mut().zip(x) {
                let Some(x) = x[columns.start + c * 16..].first_chunk() else { continue };
                let x = s.load(x);
                for (a, v) in acc.iter_mut().zip(values) {
                    *a = s.fma(v, x, *a);
                }
            }
        }
        if rest != 0 {
            for (i, w) in w.iter().enumerate() {
                let mut bytes = [0u8; 64];
                let tail = &w[whole * 16 * E::SIZE..];
                bytes[..tail.len()].copy_from_slice(tail);
                let v = self.element.load(s, &bytes);
                for (acc, x) in acc.iter_mut().zip(x) {
                    acc[i] = s.fma(v, load_part(s, &x[columns.start + whole * 16..columns.end]), acc[i]);
                }
            }
        }
        for t in 0..M {
            for i in 0..QUAD {
                sums[t][first + i] = acc[t][i];
            }
        }
    }
}
