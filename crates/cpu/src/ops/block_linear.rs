//! Blocks of a weight, each times its own part of the input. Inputs are f32 whatever the weight's format.
//!
//! Where blocks begin on panels, products are those of the kernels of linear layers, and transposed ones multiply panels that
//! were written down as f32 by the same kernels. Other blocks are decoded row by row.

use super::matmul::FirstError;
use crate::cpu::Cpu;
use crate::gemv::{self, Expand, Job, PANEL, RowSet};
use crate::inputs::{Form, Inputs};
use crate::loaded::Loaded;
use crate::math::{PlusTimes, dot, zip_map};
use crate::shards::Shards;
use ashlar_backend::{BackendError, Blocks, BufferId, MatmulInput, Observer, WeightId, first_columns};
use ashlar_simd::{Isa, Kernel, Simd};
use std::ops::Range;

const OP: &str = "block_linear";
/// Rows that a task decodes: 512 inputs each are 128 KB, which stay in the L2 cache.
const ROWS: usize = 64;

/// out_b = x_b · W_bᵀ
pub fn run(
    cpu: &mut Cpu,
    [x, out]: [BufferId; 2],
    weight: WeightId,
    blocks: Blocks,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let w = checked(cpu, weight, blocks)?;
    let (k, width) = (w.weight.k, blocks.count * blocks.rows);
    let input = cpu.buffers.input(x, blocks.count * k, OP)?;
    if let Some(observer) = observer {
        // Every block of a row is a row of inputs.
        observer.matmul_input(&MatmulInput::whole(&[&w.weight.name], input, k));
    }
    let m = input.len() / (blocks.count * k);
    let mut y = cpu.buffers.take(out, [m, width], false, x, OP)?;
    let (w, input) = (cpu.weight(weight, OP)?, cpu.buffers.input(x, blocks.count * k, OP)?);
    if on_panels(&blocks) {
        let result = panels(cpu, w, blocks, input, &mut y);
        cpu.buffers.put(out, y);
        return result;
    }
    let (all, errors, isa) = (Shards::new(&mut y), FirstError::default(), cpu.isa);
    let pieces = blocks.rows.div_ceil(ROWS);
    cpu.pool.run(blocks.count * pieces, &|task| {
        let (block, first) = (task / pieces, task % pieces * ROWS);
        let rows = first..(first + ROWS).min(blocks.rows);
        let decoded = match decode(w, blocks, block, &rows) {
            Ok(decoded) => decoded,
            Err(error) => return errors.keep(Err(error)),
        };
        for row in 0..m {
            let at = row * width + block * blocks.rows;
            // SAFETY: these columns of every row belong to this task alone.
            let y = unsafe { all.slice(at + rows.start..at + rows.end) };
            let x = &input[(row * blocks.count + block) * k..][..k];
            isa.run(Dots { x, weights: &decoded, y });
        }
    });
    cpu.buffers.put(out, y);
    errors.result()
}

/// Whether every block begins with a panel.
fn on_panels(blocks: &Blocks) -> bool {
    blocks.first.is_multiple_of(PANEL) && (blocks.stride.is_multiple_of(PANEL) || blocks.count == 1)
}

/// Panels that a task multiplies.
const PANELS: usize = 4;

/// The products of blocks that begin on panels: `input` is m × (count · k), `y` m × (count · rows).
fn panels(cpu: &Cpu, w: &Loaded, blocks: Blocks, input: &[f32], y: &mut [f32]) -> Result<(), BackendError> {
    let (k, width) = (w.weight.k, blocks.count * blocks.rows);
    let m = y.len() / width.max(1);
    // The parts of a block from row to row behind each other.
    let mut parts = vec![0.0; input.len()];
    for (row, values) in input.chunks_exact(blocks.count * k).enumerate() {
        for (block, values) in values.chunks_exact(k).enumerate() {
            parts[(block * m + row) * k..][..k].copy_from_slice(values);
        }
    }
    let (all, errors) = (Shards::new(y), FirstError::default());
    let pieces = blocks.rows.div_ceil(PANEL).div_ceil(PANELS);
    cpu.pool.run(blocks.count * pieces, &|task| {
        let (block, first) = (task / pieces, task % pieces * PANELS);
        let begin = (block * blocks.stride + blocks.first) / PANEL;
        let range = begin + first..begin + (first + PANELS).min(blocks.rows.div_ceil(PANEL));
        let inputs = Inputs::new(&parts[block * m * k..][..m * k], k, None);
        let job = Job::new(cpu.isa, w, inputs, Form::F32, RowSet::First(m));
        errors.keep(gemv::multiply(&job, range, &mut |row, panel, product| {
            let at = (panel - begin) * PANEL;
            let end = (at + product.len() * PANEL).min(blocks.rows);
            let of_block = row * width + block * blocks.rows;
            // SAFETY: these columns of every row belong to this task alone.
            let to = unsafe { all.slice(of_block + at..of_block + end) };
            to.copy_from_slice(&product.as_flattened()[..to.len()]);
        }));
    });
    errors.result()
}

/// out_b = [x_b[..rows] · W_b, x_b[rows..]]
pub fn transposed(
    cpu: &mut Cpu,
    [x, meets, out]: [BufferId; 3],
    weight: WeightId,
    blocks: Blocks,
    observer: Option<&mut dyn Observer>,
) -> Result<(), BackendError> {
    let w = checked(cpu, weight, blocks)?;
    let k = w.weight.k;
    let (input, meets) = (cpu.buffers.get(x, OP)?, cpu.buffers.get(meets, OP)?);
    let width = input.width / blocks.count;
    if width * blocks.count != input.width || width < blocks.rows || meets.width < k {
        let what = format!("inputs of {}, met by {} of {k}, {blocks:?}", input.width, meets.width);
        return Err(BackendError::Operand { op: OP, what });
    }
    if let Some(observer) = observer {
        let columns = first_columns(&meets.values, meets.width, k);
        observer.matmul_input(&MatmulInput::whole(&[&w.weight.name], &columns, k));
    }
    let m = input.values.len() / input.width.max(1);
    let wide = k + width - blocks.rows;
    let mut y = cpu.buffers.take(out, [m, blocks.count * wide], false, x, OP)?;
    let (w, input) = (cpu.weight(weight, OP)?, &cpu.buffers.get(x, OP)?.values);
    let (all, errors, isa) = (Shards::new(&mut y), FirstError::default(), cpu.isa);
    let expand = w.expand().filter(|_| on_panels(&blocks));
    cpu.pool.run(blocks.count, &|block| {
        let decoded = match expand {
            Some(expand) => Ok(Decoded::Panels(expanded(isa, w, expand, blocks, block))),
            None => decode(w, blocks, block, &(0..blocks.rows)).map(Decoded::Rows),
        };
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return errors.keep(Err(error)),
        };
        for row in 0..m {
            let at = (row * blocks.count + block) * wide;
            // SAFETY: this part of every row belongs to this block alone.
            let y = unsafe { all.slice(at..at + wide) };
            let (x, behind) = input[(row * blocks.count + block) * width..][..width].split_at(blocks.rows);
            let (sums, through) = y.split_at_mut(k);
            through.copy_from_slice(behind);
            match &decoded {
                Decoded::Rows(rows) => isa.run(Sums { x, weights: rows, y: sums }),
                Decoded::Panels(panels) => isa.run(PanelSums { x, panels, y: sums }),
            }
        }
    });
    cpu.buffers.put(out, y);
    errors.result()
}

fn checked(cpu: &Cpu, weight: WeightId, blocks: Blocks) -> Result<&Loaded, BackendError> {
    let w = cpu.weight(weight, OP)?;
    let wrong = |what: String| BackendError::Operand { op: OP, what: format!("`{}` {what}", w.weight.name) };
    blocks.check(w.weight.n).map_err(wrong)?;
    Ok(w)
}

/// A block in f32.
enum Decoded {
    /// Row by row.
    Rows(Vec<f32>),
    /// Panel by panel, column by column, one lane per row.
    Panels(Vec<[f32; PANEL]>),
}

fn expanded(isa: Isa, w: &Loaded, expand: Expand, blocks: Blocks, block: usize) -> Vec<[f32; PANEL]> {
    let (k, begin) = (w.weight.k, (block * blocks.stride + blocks.first) / PANEL);
    let mut all = vec![[0.0; PANEL]; blocks.rows.div_ceil(PANEL) * k];
    for (panel, out) in all.chunks_exact_mut(k.max(1)).enumerate() {
        expand(w, isa, begin + panel, out);
    }
    all
}

/// Rows of a block in f32.
fn decode(w: &Loaded, blocks: Blocks, block: usize, rows: &Range<usize>) -> Result<Vec<f32>, BackendError> {
    let first = block * blocks.stride + blocks.first;
    let mut values = vec![0.0; rows.len() * w.weight.k];
    w.weight.decode(first + rows.start..first + rows.end, &mut values)?;
    Ok(values)
}

/// y[i] = x · weights[i]
struct Dots<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (y, row) in self.y.iter_mut().zip(self.weights.chunks_exact(self.x.len().max(1))) {
            *y = dot(s, self.x, row);
        }
    }
}

/// y = Σ x[i] · weights[i]
struct Sums<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Sums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.y.fill(0.0);
        for (x, row) in self.x.iter().zip(self.weights.chunks_exact(self.y.len().max(1))) {
            zip_map(s, self.y, row, &PlusTimes(s.splat(*x)));
        }
    }
}

/// Columns whose sums stay in registers.
const KEPT: usize = 8;

/// y[c] = Σ x[i] · weights[i][c], with 16 rows in the lanes: a sum across them comes once per column, at the end.
struct PanelSums<'a> {
    x: &'a [f32],
    panels: &'a [[f32; PANEL]],
    y: &'a mut [f32],
}

impl Kernel for PanelSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.y.len();
        // Rows beyond the block count nothing.
        let mut x = vec![[0.0f32; PANEL]; self.x.len().div_ceil(PANEL)];
        x.as_flattened_mut()[..self.x.len()].copy_from_slice(self.x);
        for (first, y) in (0..k).step_by(KEPT).zip(self.y.chunks_mut(KEPT)) {
            let mut sums = [s.splat(0.0); KEPT];
            for (x, panel) in x.iter().zip(self.panels.chunks_exact(k)) {
                let x = s.load(x);
                for (sum, weights) in sums.iter_mut().zip(&panel[first..first + y.len()]) {
                    *sum = s.fma(s.load(weights), x, *sum);
                }
            }
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = s.sum(sum);
            }
        }
    }
}
