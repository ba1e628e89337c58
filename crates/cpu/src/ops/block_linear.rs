//! Blocks of a weight, each times its own part of the input. Inputs are f32 whatever the weight's format.
//!
//! A task decodes some rows of a block once and multiplies them with every token's part.

use super::matmul::FirstError;
use crate::cpu::Cpu;
use crate::loaded::Loaded;
use crate::math::{PlusTimes, dot, zip_map};
use crate::shards::Shards;
use ashlar_backend::{BackendError, Blocks, BufferId, MatmulInput, Observer, WeightId, first_columns};
use ashlar_simd::{Kernel, Simd};
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
    cpu.pool.run(blocks.count, &|block| {
        let decoded = match decode(w, blocks, block, &(0..blocks.rows)) {
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
            isa.run(Sums { x, weights: &decoded, y: sums });
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
